package surface

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	update = flag.Bool("update", false, "correct the states in compatibility.md that the probes contradict")
	tried  = flag.String("tried", "", "run the tests that tried.txt names in the folders that match this expression (. for all: many minutes; those with other programs need their tools)")
)

// A trial is a line of tried.txt.
type trial struct {
	line           int
	section, about string
	by             []string
}

func readTrials(t *testing.T) (trials []trial) {
	t.Helper()
	text, err := os.ReadFile("tried.txt")
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(string(text), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		cells := strings.Split(line, "|")
		if len(cells) != 3 || len(strings.Fields(cells[2])) == 0 {
			t.Errorf("tried.txt:%d: not \"section | row | tests and probes\"", i+1)
			continue
		}
		trials = append(trials, trial{i + 1, strings.TrimSpace(cells[0]), strings.TrimSpace(cells[1]), strings.Fields(cells[2])})
	}
	return trials
}

// trialsOf maps the rows of compatibility.md, by line, to what tries them, and reports lines that
// match no row.
func trialsOf(t *testing.T, sections map[string][]row, trials []trial) map[int][]string {
	t.Helper()
	by := map[int][]string{}
	for _, tr := range trials {
		var rows []row
		for _, r := range sections[tr.section] {
			if tr.about == "*" || strings.HasPrefix(r.about, tr.about) {
				rows = append(rows, r)
			}
		}
		// "Hash" is a row, and so is "HashKV: ...".
		if i := slices.IndexFunc(rows, func(r row) bool { return r.about == tr.about }); i >= 0 {
			rows = rows[i : i+1]
		}
		if len(rows) == 0 || len(rows) > 1 && tr.about != "*" {
			t.Errorf("tried.txt:%d: %d rows of section %s begin with %q", tr.line, len(rows), tr.section, tr.about)
		}
		for _, r := range rows {
			by[r.line] = append(by[r.line], tr.by...)
		}
	}
	return by
}

// testsOf returns the names of all test functions, as package.TestName, where the package is the
// folder's name, and their folder.
func testsOf(t *testing.T) map[string]string {
	t.Helper()
	tests := map[string]string{}
	for _, pattern := range []string{"../../*/*_test.go", "../../*/*/*_test.go", "../../*/*/*/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") && fn.Name.Name != "TestMain" {
					dir := filepath.Dir(path)
					tests[filepath.Base(dir)+"."+fn.Name.Name] = dir
				}
			}
		}
	}
	return tests
}

// judge returns which state a row has by the results of its probes: "" for the one that it has. A
// probe does not know whether what works differs.
func judge(r row, by []string, results map[string]error) (state, why string) {
	for _, name := range by {
		probe, ok := strings.CutPrefix(name, "probe:")
		if !ok {
			continue
		}
		err := results[probe]
		absent := strings.HasPrefix(probe, "no-")
		switch {
		case err != nil && absent && r.absent():
			return works, fmt.Sprintf("%s: %v", name, err)
		case err != nil && !absent && !r.absent():
			return notYet, fmt.Sprintf("%s: %v", name, err)
		case err == nil && !absent && r.absent():
			return works, name + " finds it"
		}
	}
	return "", ""
}

// TestTried holds every row of every table to what tries it.
func TestTried(t *testing.T) {
	sections := readTables(t)
	by := trialsOf(t, sections, readTrials(t))
	tests, results := testsOf(t), ask(t)
	corrections, named := map[int]string{}, map[string]bool{}
	for _, section := range slices.Sorted(maps.Keys(sections)) {
		for _, r := range sections[section] {
			if len(by[r.line]) == 0 {
				t.Errorf("compatibility.md:%d: nothing tries %q of section %s: name a test in tried.txt", r.line, r.about, section)
			}
			for _, name := range by[r.line] {
				probe, isProbe := strings.CutPrefix(name, "probe:")
				switch _, asked := results[probe]; {
				case name == "read":
					if !strings.Contains(r.note, "read from the code") {
						t.Errorf("compatibility.md:%d: nothing tries this row, so its note must say \"read from the code\"", r.line)
					}
				case isProbe && !asked:
					t.Errorf("tried.txt: there is no %s", name)
				case !isProbe && tests[name] == "":
					t.Errorf("tried.txt: there is no test %s", name)
				case isProbe || r.state == works || r.state == differs:
					named[name] = true
				}
			}
			if state, why := judge(r, by[r.line], results); state != "" {
				corrections[r.line] = state
				if !*update {
					t.Errorf("compatibility.md:%d: %q is said to be %q, but is %q: %s (go test ./proof/surface -update corrects it)", r.line, r.about, r.state, state, why)
				}
			}
		}
	}
	for probe, err := range results {
		if !named["probe:"+probe] {
			t.Errorf("tried.txt: no row names probe:%s (%v)", probe, err)
		}
	}
	if *update && len(corrections) > 0 {
		correct(t, corrections)
	}
	if *tried != "" {
		runTests(t, named, tests)
	}
}

// contradict complains of a row whose state is not what was found or, with -update, corrects it. A
// row of several names may be wrong about one of them only: it must be split by hand.
func contradict(t *testing.T, r row, state, why string) {
	t.Helper()
	if !*update || len(r.names) != 1 {
		t.Errorf("compatibility.md:%d: %s", r.line, why)
		return
	}
	correct(t, map[int]string{r.line: state})
}

// correct writes the states of rows, by line.
func correct(t *testing.T, states map[int]string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/compatibility.md")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	for line, state := range states {
		lines[line-1] = withState(lines[line-1], state)
	}
	if err := os.WriteFile("../../docs/compatibility.md", []byte(strings.Join(lines, "\n")), 0o644); err != nil {
		t.Fatal(err)
	}
}

var stateCell = regexp.MustCompile(`\| (?:` + works + `|` + differs + `|` + noEffect + `|` + never + `|` + notYet + `) \|`)

// withState is a row with another state; the note, if there was none, says who wrote it.
func withState(line, state string) string {
	at := stateCell.FindStringIndex(line)
	if at == nil {
		return line
	}
	rest := line[at[1]:]
	if state != works && strings.Trim(rest, " |") == "" {
		rest = " its probe fails |"
	}
	return line[:at[0]] + "| " + state + " |" + rest
}

// runTests runs the tests that the rows name: each must pass, and not be skipped.
func runTests(t *testing.T, named map[string]bool, tests map[string]string) {
	t.Helper()
	wanted, err := regexp.Compile(*tried)
	if err != nil {
		t.Fatal(err)
	}
	folders := map[string][]string{}
	for name := range named {
		if dir := tests[name]; dir != "" && dir != "../surface" && wanted.MatchString(filepath.Base(dir)) {
			_, test, _ := strings.Cut(name, ".")
			folders[dir] = append(folders[dir], test)
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(folders)) {
		slices.Sort(folders[dir])
		cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-v", "-timeout", "30m", "-run", "^("+strings.Join(folders[dir], "|")+")$", ".")
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		for _, test := range folders[dir] {
			if !strings.Contains(string(out), "--- PASS: "+test+" (") {
				t.Errorf("%s.%s did not pass: the rows that name it are not shown", filepath.Base(dir), test)
			}
		}
		t.Logf("%s: %d tests, %v", dir, len(folders[dir]), err)
	}
}

// TestTriedCanFail shows that rows without a test, and states that probes contradict, would be
// found.
func TestTriedCanFail(t *testing.T) {
	failed := map[string]error{"a": os.ErrNotExist, "b": nil, "no-c": nil, "no-d": os.ErrExist}
	for _, tc := range []struct{ state, by, want string }{
		{works, "probe:a", notYet}, {differs, "probe:a", notYet}, {works, "probe:b", ""}, {notYet, "probe:b", works},
		{notYet, "probe:no-c", ""}, {never, "probe:no-c", ""}, {never, "probe:no-d", works}, {notYet, "probe:no-d", works}, {differs, "probe:no-d", ""}, {works, "check.TestStop", ""},
	} {
		if state, _ := judge(row{state: tc.state}, []string{tc.by}, failed); state != tc.want {
			t.Errorf("%s by %s: %q, want %q", tc.state, tc.by, state, tc.want)
		}
	}
	if have := withState("| `a|b` | works | |", notYet); have != "| `a|b` | not yet | its probe fails |" {
		t.Errorf("%q", have)
	}
	if have := withState("| a | not yet | note |", works); have != "| a | works | note |" {
		t.Errorf("%q", have)
	}
	if tests := testsOf(t); tests["surface.TestTriedCanFail"] == "" || tests["surface.TestNothing"] != "" || len(tests) < 300 {
		t.Errorf("%d tests were found", len(tests))
	}
}

package surface

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/belaydb/belay/cli/bench"
	"github.com/belaydb/belay/cli/ctl"
	"github.com/belaydb/belay/cli/dev"
	"github.com/belaydb/belay/cli/doctor"
	"github.com/belaydb/belay/cli/offline"
	"github.com/belaydb/belay/cli/proxy"
)

// A commandLine is one that a page tells its reader to type.
type commandLine struct {
	page  string
	words []string // the program first
}

func (l commandLine) String() string { return l.page + ": `" + strings.Join(l.words, " ") + "`" }

// programs are those whose command lines are tried.
var programs = []string{"belay", "bin/belay", "etcdctl", "etcdutl"}

// noCommands look like command lines and are none: the name of a format, and of what belay dev starts.
var noCommands = []string{"belay store 1", "belay dev member"}

var (
	spans     = regexp.MustCompile("`([^`]+)`")
	codeBlock = regexp.MustCompile(`(?m)^    (.*)$`)
	goesOn    = regexp.MustCompile(` ?\\\n +`)
	comment   = regexp.MustCompile(` {2,}.*$| #.*$`) // what stands behind a command, as a second column or as a comment
	capitals  = regexp.MustCompile(`\b[A-Z]{1,}\b`)
)

// commandLines are the command lines of a page: in backticks, and in its blocks of code.
func commandLines(page, text string) (lines []commandLine) {
	text = goesOn.ReplaceAllString(text, " ")
	var all []string
	for _, m := range codeBlock.FindAllStringSubmatch(text, -1) {
		all = append(all, comment.ReplaceAllString(m[1], ""))
	}
	for _, m := range spans.FindAllStringSubmatch(codeBlock.ReplaceAllString(text, ""), -1) {
		all = append(all, strings.Join(strings.Fields(m[1]), " "))
	}
	for _, s := range all {
		for _, words := range commandsOf(s) {
			for len(words) > 0 && regexp.MustCompile(`^[A-Z_]+=`).MatchString(words[0]) {
				words = words[1:] // a variable of the environment
			}
			// A name and a colon are a program that says something.
			if slices.Contains(noCommands, strings.Join(words, " ")) {
				continue
			}
			if len(words) < 2 || !slices.Contains(programs, words[0]) || strings.HasSuffix(words[1], ":") || len(words) > 2 && strings.HasSuffix(words[2], ":") {
				continue
			}
			lines = append(lines, commandLine{page, words})
		}
	}
	return lines
}

// commandsOf splits a line as a shell does: into commands, and these into words.
func commandsOf(line string) (commands [][]string) {
	var words []string
	var word strings.Builder
	quote, began := rune(0), false
	endWord := func() {
		if began {
			words = append(words, word.String())
		}
		word.Reset()
		began = false
	}
	endCommand := func() {
		endWord()
		if len(words) > 0 {
			commands = append(commands, words)
		}
		words = nil
	}
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, began = r, true
		case r == ' ':
			endWord()
		case strings.ContainsRune("|;&<>()", r):
			endCommand()
		default:
			word.WriteRune(r)
			began = true
		}
	}
	endCommand()
	return commands
}

// usageOf has a program check a command line without running it: asked for help, it reads all flags
// and finds the command first. It returns what was wrong with it; empty: nothing.
func usageOf(words []string) (wrong string) {
	var out, errs bytes.Buffer
	name, args := words[0], words[1:]
	args = slices.DeleteFunc(slices.Clone(args), func(s string) bool { return s == "..." || strings.HasPrefix(s, "[") || strings.HasSuffix(s, "]") })
	help := args
	if i := slices.Index(args, "--"); i >= 0 {
		help = args[:i:i]
	}
	// Twice: a flag whose value was left out takes the first for it.
	help = append(slices.Clone(help), "--help", "--help")
	in, code := strings.NewReader(""), 0
	switch sub := ""; {
	case name == "etcdctl":
		code = ctl.Main("etcdctl", help, in, &out, &errs)
	case name == "etcdutl":
		code = offline.Main("etcdutl", help, &out, &errs)
	case len(args) == 0:
		return ""
	default:
		name, sub, help = "belay "+args[0], args[0], help[1:]
		switch sub {
		case "server":
			if ok, c, _, stderr, _ := load(help...); !ok && c == 2 {
				return stderr
			}
			return ""
		case "ctl":
			code = ctl.Main("belay ctl", help, in, &out, &errs)
		case "util":
			code = offline.Main("belay util", help, &out, &errs)
		case "doctor":
			code = doctor.Main(help, in, &out, &errs)
		case "proxy":
			code = proxy.Main("belay proxy", help, &out, &errs)
		case "bench":
			code = bench.Main("belay bench", help, in, &out, &errs)
		case "dev":
			if len(args) > 1 && args[1] == dev.FaultCommand {
				return "" // it is said to a cluster that runs, which judges it
			}
			if code = dev.Main(help, in, &out, &errs); code == 0 {
				return ""
			}
		case "version", "completion", "help", "--version", "--help":
			return ""
		default:
			return "there is no such command of belay"
		}
	}
	said := out.String() + errs.String()
	if code != 0 {
		first, _, _ := strings.Cut(strings.TrimSpace(errs.String()), "\n")
		// A word in capitals stands for a value.
		if strings.Contains(first, "invalid argument") && capitals.MatchString(first) {
			return ""
		}
		return first
	}
	// The help of a group of commands is what a command gets that is not there.
	if strings.Contains(said, "Available Commands:") || strings.Contains(said, "Additional Commands:") || strings.Contains(said, " [command]") {
		at := regexp.MustCompile(`(?m)^  (` + name + `.*?)(?: \[command\]| \[flags\])?$`).FindStringSubmatch(said)
		if at == nil {
			return "its help does not say whose it is: " + said
		}
		have := strings.Fields(at[1])
		// A command that has others below it and does something by itself is well without a word.
		for _, w := range plainWords(args) {
			if !slices.Contains(have, w) && !capitals.MatchString(w) {
				return at[1] + " has no command " + w
			}
		}
	}
	return ""
}

// plainWords are the first words that are no flags.
func plainWords(args []string) (plain []string) {
	for _, a := range args {
		if strings.HasPrefix(a, "-") {
			break
		}
		plain = append(plain, a)
	}
	return plain
}

// pagesOf are the pages for operators, by name.
func pagesOf(t *testing.T) map[string]string {
	t.Helper()
	names, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	pages := map[string]string{}
	for _, name := range append(names, "../../README.md") {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		pages[filepath.Base(name)] = string(text)
	}
	return pages
}

// TestCommandLines has the programs read each command line that a page tells to type: its command and
// its flags must be there.
func TestCommandLines(t *testing.T) {
	tried := 0
	for page, text := range pagesOf(t) {
		for _, l := range commandLines(page, text) {
			tried++
			if wrong := usageOf(l.words); wrong != "" {
				t.Errorf("%v: %s", l, wrong)
			}
		}
	}
	if tried < 250 {
		t.Errorf("%d command lines found", tried)
	}
}

// TestCommandLinesCanFail shows what the test finds.
func TestCommandLinesCanFail(t *testing.T) {
	page := "Run `belay doctor --endpoints EP --betwixt 30s`, `belay ctl endpoint hush --cluster | head`, `belay util move --plan`,\n" +
		"`belay frobnicate`, `belay server --no-such`, `ETCDCTL_API=3 etcdctl get k --prefx`, `belay ctl get --rev=R k`, `belay: it failed`\n\n" +
		"    belay util hushkv \\\n      FILE    # prints it\n    belay doctor neighbours rec --since 2h   # again\n"
	var wrong []string
	for _, l := range commandLines("page", page) {
		if usageOf(l.words) != "" {
			wrong = append(wrong, strings.Join(l.words, " "))
		}
	}
	want := []string{"belay util hushkv FILE", "belay doctor --endpoints EP --betwixt 30s", "belay ctl endpoint hush --cluster", "belay frobnicate",
		"belay server --no-such", "etcdctl get k --prefx"}
	if !slices.Equal(wrong, want) {
		t.Fatalf("wrong are %q, want %q", wrong, want)
	}
}

// TestCitedMetrics looks each metric that a page names up among those that the code registers, and
// has the greps of the runbook find something at a member that has just started.
func TestCitedMetrics(t *testing.T) {
	known, source := registered(t), readSource(t)
	name := regexp.MustCompile(`\b(?:belay|etcd|grpc_server)_[a-z0-9_]+`)
	grep := regexp.MustCompile("`curl -s EP/metrics ((?:\\| grep [^|`]+)+)`")
	m := startMember(t)
	resp, err := http.Get("http://" + m.client + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	live, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	greps := 0
	for page, text := range pagesOf(t) {
		if page == "compatibility.md" { // TestMetrics has its tables
			continue
		}
		for _, cited := range name.FindAllString(text, -1) {
			family := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(cited, "_bucket"), "_count"), "_sum")
			begins := strings.Contains(text, "grep "+cited) || strings.Contains(text, "-e "+cited) || strings.Contains(text, cited+"*")
			// What is registered by whom none of the above is, with its name whole or without its
			// first words.
			if source.texts[cited] || source.texts[family] || source.texts[strings.TrimPrefix(cited, "belay_proxy_")] {
				continue
			}
			if !slices.ContainsFunc(known, func(k string) bool { return k == cited || k == family || strings.HasPrefix(k, cited) && begins }) {
				t.Errorf("%s: there is no metric %s", page, cited)
			}
		}
		for _, g := range grep.FindAllStringSubmatch(text, -1) {
			greps++
			left := strings.Split(string(live), "\n")
			left = slices.DeleteFunc(left, func(s string) bool { return strings.HasPrefix(s, "#") })
			for _, stage := range strings.Split(g[1], "|")[1:] {
				patterns := slices.DeleteFunc(strings.Fields(stage)[1:], func(s string) bool { return s == "-e" })
				for _, p := range patterns {
					if !slices.ContainsFunc(left, func(s string) bool { return strings.Contains(s, p) }) {
						t.Errorf("%s: %s: nothing has %s", page, g[0], p)
					}
				}
				left = slices.DeleteFunc(left, func(s string) bool {
					return !slices.ContainsFunc(patterns, func(p string) bool { return strings.Contains(s, p) })
				})
			}
		}
	}
	if greps < 6 {
		t.Errorf("%d greps found", greps)
	}
}

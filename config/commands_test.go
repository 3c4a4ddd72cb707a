package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// The scenario: testdata/commands.txt has command lines as etcd's shell scripts have them, each
// with what etcd makes of it (asked from the real binary with BELAY_ETCD, written down with
// -rewrite), and where Belay answers otherwise, a line "belay" with that and a comment with the
// reason above it.
//
//	VAR=value --flag=value ...    a command line; "file " begins a configuration file in its place
//	    accepted | CODE TEXT      the outcome
//	    warn TEXT                 a warning on the way
//	    belay OUTCOME             the outcome here
//
// Every command line is good for a data directory that cannot be: etcd then ends before it listens.
var rewrite = flag.Bool("rewrite", false, "write etcd's answers into testdata/commands.txt (needs BELAY_ETCD)")

const commandsFile = "testdata/commands.txt"

type commandLine struct {
	text    string
	comment []string
	outcome string // of etcd
	warned  []string
	belay   string // of Belay, if it differs
}

func readCommands(t *testing.T) (all []*commandLine) {
	t.Helper()
	data, err := os.ReadFile(commandsFile)
	if err != nil {
		t.Fatal(err)
	}
	var comment []string
	for line := range strings.Lines(string(data)) {
		line = strings.TrimRight(line, "\n")
		inner := strings.TrimSpace(line)
		switch {
		case inner == "" || strings.HasPrefix(line, "#"):
			comment = append(comment, line)
		case line == inner || strings.HasPrefix(line, "(none)"):
			all, comment = append(all, &commandLine{text: line, comment: comment}), nil
		case strings.HasPrefix(inner, "warn "):
			c := all[len(all)-1]
			c.warned = append(c.warned, strings.TrimPrefix(inner, "warn "))
		case strings.HasPrefix(inner, "belay "):
			all[len(all)-1].belay = strings.TrimPrefix(inner, "belay ")
		default:
			all[len(all)-1].outcome = inner
		}
	}
	return all
}

// parts are what a process gets; dir is where a configuration file goes.
func (c *commandLine) parts(t *testing.T, dir string) (args, env []string) {
	if yaml, ok := strings.CutPrefix(c.text, "file "); ok {
		name := filepath.Join(dir, "f.yaml")
		if err := os.WriteFile(name, []byte(strings.ReplaceAll(yaml, `\n`, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		return []string{"--config-file=" + name}, []string{}
	}
	env = []string{}
	for _, word := range splitWords(strings.TrimPrefix(c.text, "(none)")) {
		if name, _, ok := strings.Cut(word, "="); ok && !strings.HasPrefix(word, "-") && strings.ToUpper(name) == name && len(args) == 0 {
			env = append(env, word)
		} else {
			args = append(args, word)
		}
	}
	return append([]string{"--data-dir=/dev/null/x"}, args...), env
}

// splitWords splits at blanks outside of single quotes.
func splitWords(s string) (words []string) {
	word, quoted, some := "", false, false
	for _, r := range s {
		switch {
		case r == '\'':
			quoted, some = !quoted, true
		case r == ' ' && !quoted:
			if some {
				words = append(words, word)
			}
			word, some = "", false
		default:
			word, some = word+string(r), true
		}
	}
	if some {
		words = append(words, word)
	}
	return words
}

// outcomeOf reads what a process said. A message that only one side has by design is left out.
func outcomeOf(code int, said, dir string) (result string, warned []string) {
	first := ""
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(strings.ReplaceAll(line, dir, "DIR"))
		var l struct{ Level, Msg, Error string }
		if json.Unmarshal([]byte(line), &l) != nil {
			line, _ = strings.CutPrefix(line, "panic: ")
			if first == "" && line != "" {
				first = line
			}
			continue
		}
		switch {
		case l.Msg == "failed to verify flags":
			result = l.Error
		case l.Msg == "failed to list data directory":
			return "accepted", warned
		case l.Level == "fatal":
			result = l.Msg
		case l.Level == "warn" && !slices.ContainsFunc([]string{"Running http and grpc", "'data-dir' was empty", "it isn't recommended to use default name",
			"flag has no effect in Belay", "flags have no effect without", "feature gate has no effect in Belay", "unknown --metrics", "--auto-compaction-retention with",
			"--unsafe-no-fsync is set", "Detected that checkpointing", "scheme is"}, func(s string) bool { return strings.HasPrefix(l.Msg, s) }):
			warned = append(warned, l.Msg)
		}
	}
	if result == "" {
		result = first
	}
	return strings.TrimSpace(fmt.Sprintf("%d %s", code, result)), warned
}

func TestCommandLines(t *testing.T) {
	for _, c := range readCommands(t) {
		t.Run(c.text, func(t *testing.T) {
			dir := t.TempDir()
			args, env := c.parts(t, dir)
			o := load(t, Etcd, env, args...)
			want := c.outcome
			if c.belay != "" {
				want = c.belay
			}
			said := strings.Builder{}
			for _, l := range o.lines {
				said.WriteString(l.Text + "\n")
			}
			for line := range strings.Lines(o.stderr) {
				if !strings.HasPrefix(line, "{") {
					said.WriteString(line)
				}
			}
			got, warned := outcomeOf(o.code, said.String(), dir)
			if o.ok {
				got = "accepted"
			}
			warned = slices.DeleteFunc(warned, func(text string) bool { return text == unknownKey || text == keyTwice })
			if got != want {
				t.Errorf("%q, want %q", got, want)
			}
			if c.belay == "" && !slices.Equal(warned, c.warned) {
				t.Errorf("warned %q, etcd %q", warned, c.warned)
			}
		})
	}
}

// TestCommandLinesOfEtcd asks the real etcd, named by BELAY_ETCD.
func TestCommandLinesOfEtcd(t *testing.T) {
	binary := os.Getenv("BELAY_ETCD")
	if binary == "" {
		t.Skip("set BELAY_ETCD to an etcd 3.7 binary")
	}
	all := readCommands(t)
	var wg sync.WaitGroup
	limit := make(chan struct{}, 4)
	for _, c := range all {
		dir := t.TempDir()
		args, env := c.parts(t, dir)
		wg.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			cmd := exec.CommandContext(t.Context(), binary, args...)
			cmd.Dir, cmd.Env = dir, env
			var said bytes.Buffer
			cmd.Stdout, cmd.Stderr = &said, &said
			err := cmd.Run()
			code := 0
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				code = exit.ExitCode()
			} else if err != nil {
				t.Errorf("%s: %v", c.text, err)
			}
			got, warned := outcomeOf(code, said.String(), dir)
			if got == "accepted" && len(warned) > 0 && warned[len(warned)-1] == "" {
				warned = warned[:len(warned)-1]
			}
			if *rewrite {
				c.outcome, c.warned = got, warned
			} else if got != c.outcome || !slices.Equal(warned, c.warned) {
				t.Errorf("%s:\n etcd %q %q\nsaved %q %q", c.text, got, warned, c.outcome, c.warned)
			}
		})
	}
	wg.Wait()
	if !*rewrite {
		return
	}
	var b strings.Builder
	for _, c := range all {
		for _, line := range c.comment {
			b.WriteString(line + "\n")
		}
		b.WriteString(c.text + "\n    " + c.outcome + "\n")
		for _, w := range c.warned {
			b.WriteString("    warn " + w + "\n")
		}
		if c.belay != "" {
			b.WriteString("    belay " + c.belay + "\n")
		}
	}
	if err := os.WriteFile(commandsFile, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

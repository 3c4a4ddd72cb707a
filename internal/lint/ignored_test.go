package lint

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// made are the names that the commands of a page create in the current folder. The default data
// directories, of a member and of dev, appear in no command.
func made(page string) []string {
	names := []string{"default.belay/", "default.etcd/", "belay-dev/"}
	for _, command := range []struct {
		text *regexp.Regexp
		of   func(match []string) string
	}{
		{regexp.MustCompile(`go build(?: -o (\S+))?(?: -\S+)* \./cmd/(\w+)`), func(m []string) string {
			if m[1] != "" {
				return m[1]
			}
			return m[2]
		}},
		{regexp.MustCompile(`ln -s \S+ (\w+)`), func(m []string) string { return m[1] }},
		{regexp.MustCompile(`snapshot save (\w[\w./-]*)`), func(m []string) string { return m[1] }},
		{regexp.MustCompile(`--(?:data|wal)-dir (\w[\w./-]*)`), func(m []string) string { return m[1] + "/" }},
	} {
		for _, m := range command.text.FindAllStringSubmatch(page, -1) {
			names = append(names, command.of(m))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// TestIgnored: who follows README.md has nothing new to commit.
func TestIgnored(t *testing.T) {
	tracked(t) // skips where there is no git
	for _, page := range []string{"README.md", "Makefile"} {
		text, err := os.ReadFile(filepath.Join(root(t), page))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range made(string(text)) {
			if strings.HasPrefix(name, "/") {
				continue
			}
			cmd := exec.Command("git", "check-ignore", "-q", name)
			cmd.Dir = root(t)
			if err := cmd.Run(); err != nil {
				t.Errorf("%s makes %s, which .gitignore does not name (%v)", page, name, err)
			}
		}
	}
	cmd := exec.Command("git", "ls-files", "--cached", "--ignored", "--exclude-standard")
	cmd.Dir = root(t)
	if out, err := cmd.Output(); err != nil || len(out) > 0 {
		t.Errorf(".gitignore names files that are in git: %s (%v)", out, err)
	}
}

func TestMade(t *testing.T) {
	page := "go build ./cmd/belay\ngo build -o bin/b -trimpath ./cmd/belay\nln -s belay etcd && ./etcd\n`etcdctl snapshot save s.db`, then --data-dir m1.belay --data-dir ..."
	want := []string{"belay", "belay-dev/", "bin/b", "default.belay/", "default.etcd/", "etcd", "m1.belay/", "s.db"}
	if have := made(page); !slices.Equal(have, want) {
		t.Errorf("have %q, want %q", have, want)
	}
}

package lint

import (
	"bytes"
	"go/format"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// patterns are the packages that vet and staticcheck look at.
func patterns() []string {
	if p := os.Getenv("BELAY_LINT_PACKAGES"); p != "" {
		return strings.Fields(p)
	}
	return []string{"./..."}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, append(args, patterns()...)...)
	cmd.Dir = root(t)
	out, err := cmd.CombinedOutput()
	// The first time on a machine, go says what it fetches.
	out = regexp.MustCompile(`(?m)^go: downloading .*\n`).ReplaceAll(out, nil)
	if err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("%s: %v\n%s", cmd, err, out)
	}
}

func TestGofmt(t *testing.T) {
	for _, name := range tracked(t) {
		if !strings.HasSuffix(name, ".go") {
			continue
		}
		src, err := os.ReadFile(filepath.Join(root(t), name))
		if os.IsNotExist(err) {
			continue // deleted, not yet committed
		}
		if err != nil {
			t.Error(err)
			continue
		}
		out, err := format.Source(src)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !bytes.Equal(src, out) {
			t.Errorf("%s is not formatted: gofmt -w %s", name, name)
		}
	}
}

func TestVet(t *testing.T) { run(t, "go", "vet") }

// TestStaticcheck analyses the whole tree anew, which takes both cores for minutes where nothing is
// cached: too much of the time that `make test` has.
func TestStaticcheck(t *testing.T) {
	if os.Getenv("BELAY_STATICCHECK") == "" {
		t.Skip("make lint")
	}
	run(t, "go", "tool", "-modfile=internal/lint/staticcheck/go.mod", "staticcheck")
}

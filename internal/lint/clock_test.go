package lint

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// wallClock reports the calls by which a program reads the wall clock, which an operator, NTP or
// the migration of a virtual machine may move forward and back. The times that time.Now returns are
// monotonic as long as they are compared unchanged; these calls remove that.
func wallClock(name string) bool {
	switch name {
	case "Unix", "UnixMilli", "UnixMicro", "UnixNano", "UTC", "Local", "Date", "Weekday", "YearDay":
		return true
	}
	return false
}

// readers are the files that need the date, and what for. Nothing that members
// decide (elections, leases, the order of writes, timeouts) is among them, which is
// why the simulation has no clock that jumps. (No term of an election is above 2^32,
// from where on replica/check.go asks for the date.)
func readers() map[string]string {
	return map[string]string{
		"auth/jwt.go":          "a token says when it ends",
		"command/member.go":    "a member that joins without a name for its cluster gets an id that etcd makes of the date, too",
		"mvcc/compact.go":      "a metric that etcd gives as a date",
		"transport/http.go":    "the Date of an HTTP answer",
		"replica/check.go":     "a term above 2^32 is a lie, or was once: the date bounds how far one goes",
		"node/certificates.go": "a certificate says when it ends",
		"node/evidence.go":     "tells one start of a member from another",
	}
}

// wallClockCalls are the lines of a file that read the date.
func wallClockCalls(name string, src []byte) (lines []int, err error) {
	if !bytes.Contains(src, []byte(`"time"`)) {
		return nil, nil
	}
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, src, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			if f, ok := call.Fun.(*ast.SelectorExpr); ok && wallClock(f.Sel.Name) {
				lines = append(lines, set.Position(f.Sel.Pos()).Line)
			}
		}
		return true
	})
	return lines, nil
}

func TestWallClock(t *testing.T) {
	members := []string{"admission", "auth", "command", "lease", "mvcc", "node", "raftlog", "replica", "server", "state", "store", "transport", "watch"}
	allowed, met := readers(), map[string]bool{}
	for _, name := range tracked(t) {
		first, _, _ := strings.Cut(name, "/")
		if !slices.Contains(members, first) || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
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
		lines, err := wallClockCalls(name, src)
		if err != nil {
			t.Error(err)
		}
		met[name] = len(lines) > 0
		if len(lines) > 0 && allowed[name] == "" {
			t.Errorf("%s, lines %v: reads the date, which may jump; compare what time.Now returns instead", name, lines)
		}
	}
	for name := range allowed {
		if !met[name] {
			t.Errorf("%s need not be among the readers of the date", name)
		}
	}
}

func TestWallClockCanFail(t *testing.T) {
	lines, err := wallClockCalls("x.go", []byte("package x\nimport \"time\"\nvar _ = time.Now()\nvar _ = time.Now().UnixNano()\n"))
	if err != nil || !slices.Equal(lines, []int{4}) {
		t.Errorf("found %v, %v", lines, err)
	}
}

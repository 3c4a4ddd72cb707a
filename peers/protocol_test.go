package peers

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestProtocolPage holds docs/peer-protocol.md to protocol.go: each path, header, value of a header and
// context stands on the page, in a table or in the text, and the page has none that is not there.
func TestProtocolPage(t *testing.T) {
	data, err := os.ReadFile("../docs/peer-protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(data)
	if !strings.Contains(page, fmt.Sprintf("Version of the protocol: **%d**", Protocol)) {
		t.Errorf("the page is not about version %d", Protocol)
	}
	f, err := parser.ParseFile(token.NewFileSet(), "protocol.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	ast.Inspect(f, func(n ast.Node) bool {
		if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
			s, err := strconv.Unquote(l.Value)
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, s)
		}
		return true
	})
	if len(names) < 30 {
		t.Fatalf("only %d names in protocol.go", len(names))
	}
	for _, name := range names {
		if !strings.Contains(page, "`"+name+"`") {
			t.Errorf("the page does not have `%s`", name)
		}
	}
	looksLikeOne := regexp.MustCompile("`((?:/|X-|belay-)[^ `]*)`")
	for _, m := range looksLikeOne.FindAllStringSubmatch(page, -1) {
		if !slices.Contains(names, m[1]) {
			t.Errorf("the page has `%s`, protocol.go does not", m[1])
		}
	}
	// A table's row is about the name in its first cell: one each.
	rows := make(map[string]int)
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(page, -1) {
		rows[m[1]]++
	}
	for name, n := range rows {
		if n > 1 {
			t.Errorf("`%s` has %d rows", name, n)
		}
	}
	for _, name := range names {
		switch {
		case name == PathBelay, name == PathRaftStream: // what others begin with
		case strings.HasPrefix(name, "/"), strings.HasPrefix(name, "X-"), strings.HasPrefix(name, "belay-"):
			if rows[name] != 1 {
				t.Errorf("`%s` has no row", name)
			}
		}
	}
}

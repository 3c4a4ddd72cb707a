package lint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// widest is where comments end, in columns with tabs of four; a word that does not fit may stand out.
const widest = 104

// hands are the ways to write a file that differ from author to author, and that are the same in
// the whole tree: where comments end, what a logger and what etcd's messages are called, and that
// Belay's own imports are a group of their own.
func hands(set *token.FileSet, file *ast.File, text string) (faults []string) {
	at := func(pos token.Pos, what string) {
		faults = append(faults, set.Position(pos).String()+": "+what)
	}
	for i, line := range strings.Split(text, "\n") {
		trimmed := strings.TrimLeft(line, "\t")
		columns := len(line) - len(trimmed)
		if !strings.HasPrefix(trimmed, "// ") || strings.HasPrefix(trimmed, "// \t") {
			continue
		}
		if wide := 4*columns + len([]rune(trimmed)); wide > widest && strings.Contains(strings.TrimSpace(trimmed[3:]), " ") && !strings.Contains(trimmed, "://") {
			at(set.File(file.Pos()).LineStart(i+1), "a comment that goes beyond 100 columns")
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if f, ok := n.(*ast.Field); ok && isLogger(f.Type) {
			for _, name := range f.Names {
				if name.Name != "logger" && name.Name != "Logger" {
					at(f.Pos(), "a logger is called logger")
				}
			}
		}
		return true
	})
	own, others := -1, -1 // lines of the last import of Belay's, and of others
	for _, imp := range file.Imports {
		path := strings.Trim(imp.Path.Value, `"`)
		if path == "go.etcd.io/etcd/api/v3/etcdserverpb" && (imp.Name == nil || imp.Name.Name != "pb" && imp.Name.Name != "_") {
			at(imp.Pos(), "etcd's messages are imported as pb")
		}
		line := set.Position(imp.Pos()).Line
		if strings.HasPrefix(path, module+"/") {
			if others == line-1 {
				at(imp.Pos(), "Belay's own imports are a group of their own")
			}
			own = line
		} else {
			if own == line-1 {
				at(imp.Pos(), "Belay's own imports are a group of their own")
			}
			others = line
		}
	}
	return faults
}

// TestOneHand: the tree reads as if one person had written it.
func TestOneHand(t *testing.T) {
	for _, p := range packages(t) {
		rel, _ := relative(p.ImportPath)
		all, err := filepath.Glob(filepath.Join(p.Dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range all {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, filepath.Join(rel, filepath.Base(path)), text, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if ast.IsGenerated(file) {
				continue
			}
			for _, fault := range hands(set, file, string(text)) {
				t.Error(fault)
			}
		}
	}
}

func TestOneHandCanFail(t *testing.T) {
	const head = "package x\n\nimport (\n\t\"fmt\"\n\n\t\"go.uber.org/zap\"\n)\n\n"
	for text, want := range map[string]int{
		head + "func f(logger *zap.Logger) { fmt.Print(1) }\n":                        0,
		head + "func f(lg *zap.Logger) { fmt.Print(1) }\n":                            1,
		head + "// " + strings.Repeat("word ", 30) + "\nvar x int\n":                  1,
		head + "// " + strings.Repeat("w", 150) + "\nvar x int\n":                     0,
		"package x\nimport (\n\t\"fmt\"\n\t\"" + module + "/command\"\n)\n":           1,
		"package x\nimport \"go.etcd.io/etcd/api/v3/etcdserverpb\"\n":                 1,
		"package x\nimport pb \"go.etcd.io/etcd/api/v3/etcdserverpb\"\n":              0,
		"package x\nimport (\n\t\"fmt\"\n\n\t\"" + module + "/command\"\n)\n":         0,
		"package x\nimport (\n\t\"" + module + "/command\"\n\t\"zzz.org/other\"\n)\n": 1,
	} {
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, "x.go", text, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if faults := hands(set, file, text); len(faults) != want {
			t.Errorf("%v, want %d, of:\n%s", faults, want, text)
		}
	}
}

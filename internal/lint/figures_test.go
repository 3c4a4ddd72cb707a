package lint

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// mostMethods is how many methods a type of the house may have, with those of the types of its
// package that it embeds: what a reader has to hold in mind when he reads one of them.
const mostMethods = 40

// larger are types above that, each with how many methods it has at most and why it is so.
var larger = map[string]struct {
	most int
	why  string
}{
	"ctl.ctl": {72, "a command each: a name space without state, not a part of the house"},
}

// A typeFigure is what a type of a package consists of.
type typeFigure struct {
	methods map[string]bool // its own
	embeds  []string        // types of its package
	fields  int
}

// figures are those of a package's types, from its files.
func figures(files []*ast.File) map[string]*typeFigure {
	types := map[string]*typeFigure{}
	of := func(name string) *typeFigure {
		if types[name] == nil {
			types[name] = &typeFigure{methods: map[string]bool{}}
		}
		return types[name]
	}
	for _, file := range files {
		for _, d := range file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv != nil && len(d.Recv.List) == 1 {
					if name := baseName(d.Recv.List[0].Type); name != "" {
						of(name).methods[d.Name.Name] = true
					}
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					t, ok := spec.(*ast.TypeSpec)
					if !ok {
						continue
					}
					s, ok := t.Type.(*ast.StructType)
					if !ok {
						continue
					}
					f := of(t.Name.Name)
					for _, field := range s.Fields.List {
						f.fields += max(1, len(field.Names))
						if len(field.Names) == 0 {
							if name := baseName(field.Type); name != "" {
								f.embeds = append(f.embeds, name)
							}
						}
					}
				}
			}
		}
	}
	return types
}

// baseName is the name of a type of the same package, behind a pointer or with type arguments; ""
// for others.
func baseName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return baseName(e.X)
	case *ast.Ident:
		return e.Name
	case *ast.IndexExpr:
		return baseName(e.X)
	case *ast.IndexListExpr:
		return baseName(e.X)
	}
	return ""
}

// all are a type's methods with those that it gets by embedding.
func all(types map[string]*typeFigure, name string, seen map[string]bool) map[string]bool {
	methods := map[string]bool{}
	f := types[name]
	if f == nil || seen[name] {
		return methods
	}
	seen[name] = true
	maps.Copy(methods, f.methods)
	for _, e := range f.embeds {
		maps.Copy(methods, all(types, e, seen))
	}
	return methods
}

// quantiles are p50, p90, p99 and the largest.
func quantiles(n []int) string {
	if len(n) == 0 {
		return "-"
	}
	slices.Sort(n)
	at := func(q float64) int { return n[min(int(q*float64(len(n))), len(n)-1)] }
	return fmt.Sprintf("%d/%d/%d/%d", at(0.5), at(0.9), at(0.99), n[len(n)-1])
}

// TestFigures holds the number of methods of a type, and with -v prints what the tree is made of.
func TestFigures(t *testing.T) {
	type biggest struct {
		name            string
		own, all, field int
	}
	var types []biggest
	var fileLines, functionLines []int
	code, tests, comments, long, packagesWithCode := 0, 0, 0, 0, 0
	for _, p := range packages(t) {
		rel, _ := relative(p.ImportPath)
		if len(p.GoFiles) > 0 {
			packagesWithCode++
		}
		var files []*ast.File
		for _, name := range slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles) {
			path := filepath.Join(p.Dir, name)
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(string(text), "// Code generated") {
				continue
			}
			lines := strings.Count(string(text), "\n")
			if strings.HasSuffix(name, "_test.go") {
				tests += lines
				continue
			}
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, path, text, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, file)
			code += lines
			fileLines = append(fileLines, lines)
			for _, c := range file.Comments {
				comments += set.Position(c.End()).Line - set.Position(c.Pos()).Line + 1
			}
			for _, d := range file.Decls {
				if f, ok := d.(*ast.FuncDecl); ok {
					n := set.Position(f.End()).Line - set.Position(f.Pos()).Line + 1
					functionLines = append(functionLines, n)
					if n > 70 {
						long++
					}
				}
			}
		}
		if strings.HasPrefix(rel, "proof/") {
			continue
		}
		of := figures(files)
		for name, f := range of {
			full := p.Name + "." + name
			n := len(all(of, name, map[string]bool{}))
			types = append(types, biggest{full, len(f.methods), n, f.fields})
			limit := mostMethods
			if l, ok := larger[full]; ok {
				limit = l.most
			}
			if n > limit {
				t.Errorf("%s has %d methods with those that it embeds, more than %d: what part of it could be a type of its own?", full, n, limit)
			}
		}
	}
	for name := range larger {
		if at := slices.IndexFunc(types, func(b biggest) bool { return b.name == name }); at < 0 || types[at].all <= mostMethods {
			t.Errorf("%s is no larger than others any more: take it out of the list", name)
		}
	}
	slices.SortFunc(types, func(a, b biggest) int { return b.all - a.all })
	t.Logf("packages with code %d; lines of code %d, of tests %d (%.2f); comments %.0f %% of code", packagesWithCode, code, tests, float64(tests)/float64(code), 100*float64(comments)/float64(code))
	t.Logf("lines of a file p50/p90/p99/max %s; of a function %s, %.1f %% above 70", quantiles(fileLines), quantiles(functionLines), 100*float64(long)/float64(len(functionLines)))
	t.Logf("floors %d", strings.Count(floors, "<")+1)
	for _, b := range types[:min(12, len(types))] {
		t.Logf("%-28s %3d methods, %3d with what it embeds, %3d fields", b.name, b.own, b.all, b.field)
	}
}

func TestFiguresCanFail(t *testing.T) {
	src := "package x\ntype a struct{ *b; n, m int }\ntype b struct{ c }\ntype c struct{}\nfunc (a) one() {}\nfunc (*b) two() {}\nfunc (c) three() {}\nfunc (c) one() {}\n"
	file, err := parser.ParseFile(token.NewFileSet(), "x.go", src, 0)
	if err != nil {
		t.Fatal(err)
	}
	types := figures([]*ast.File{file})
	if n := len(all(types, "a", map[string]bool{})); n != 3 || types["a"].fields != 3 {
		t.Errorf("a has %d methods, %d fields", n, types["a"].fields)
	}
}

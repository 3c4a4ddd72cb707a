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

// isLogger reports whether a type is *zap.Logger.
func isLogger(typ ast.Expr) bool {
	pointer, ok := typ.(*ast.StarExpr)
	if !ok {
		return false
	}
	sel, ok := pointer.X.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != "Logger" {
		return false
	}
	pkg, ok := sel.X.(*ast.Ident)
	return ok && pkg.Name == "zap"
}

// nilLoggers are the exported functions of a package, and its exported structs, that take a logger
// and never ask whether it is nil, which panics with the first line. Of a struct it is enough that
// the package asks somewhere.
func nilLoggers(files map[string][]byte) (faults []string, err error) {
	asks := func(body []byte, name string) bool { return bytes.Contains(body, []byte(name+" == nil")) }
	anywhere := slices.ContainsFunc([]string{"Logger", "lg", "logger"}, func(name string) bool {
		for _, src := range files {
			if asks(src, "."+name) {
				return true
			}
		}
		return false
	})
	for name, src := range files {
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, name, src, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch d := n.(type) {
			case *ast.FuncDecl:
				if !d.Name.IsExported() || d.Body == nil {
					return true
				}
				body := src[set.Position(d.Body.Pos()).Offset:set.Position(d.Body.End()).Offset]
				for _, param := range d.Type.Params.List {
					for _, ident := range param.Names {
						if isLogger(param.Type) && !asks(body, ident.Name) {
							faults = append(faults, name+": "+d.Name.Name)
						}
					}
				}
			case *ast.TypeSpec:
				s, ok := d.Type.(*ast.StructType)
				if !ok || !d.Name.IsExported() || anywhere {
					return true
				}
				for _, field := range s.Fields.List {
					for _, ident := range field.Names {
						if ident.IsExported() && isLogger(field.Type) {
							faults = append(faults, name+": "+d.Name.Name+"."+ident.Name)
						}
					}
				}
			}
			return true
		})
	}
	return faults, nil
}

// TestLoggersMayBeNil: nobody has to give a logger to a package of ours.
func TestLoggersMayBeNil(t *testing.T) {
	packages := map[string]map[string][]byte{}
	for _, name := range tracked(t) {
		dir := filepath.Dir(name)
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") || strings.HasPrefix(dir, "cmd/") || strings.Contains(dir, "testdata/") {
			continue // of testdata: what is put into packages of others has their signatures
		}
		src, err := os.ReadFile(filepath.Join(root(t), name))
		if os.IsNotExist(err) {
			continue // deleted, not yet committed
		}
		if err != nil {
			t.Fatal(err)
		}
		if packages[dir] == nil {
			packages[dir] = map[string][]byte{}
		}
		packages[dir][name] = src
	}
	for _, files := range packages {
		faults, err := nilLoggers(files)
		if err != nil {
			t.Error(err)
		}
		for _, fault := range faults {
			t.Errorf("%s takes a logger that must not be nil", fault)
		}
	}
}

func TestLoggersMayBeNilCanFail(t *testing.T) {
	const head = "package x\nimport \"go.uber.org/zap\"\n"
	for src, want := range map[string]int{
		"func F(lg *zap.Logger) { lg.Info(\"\") }":                                          1,
		"func F(lg *zap.Logger) { if lg == nil { lg = zap.NewNop() } }":                     0,
		"func f(lg *zap.Logger) {}":                                                         0,
		"type C struct { Logger *zap.Logger }":                                              1,
		"type C struct { Logger *zap.Logger }\nfunc g(c C) bool { return c.Logger == nil }": 0,
	} {
		faults, err := nilLoggers(map[string][]byte{"x.go": []byte(head + src)})
		if err != nil || len(faults) != want {
			t.Errorf("%s: %v, %v", src, faults, err)
		}
	}
}

package lint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/belaydb/belay"

// floors says where each package lives, in the manner of go/build/deps_test.go.
// A package imports only packages of floors below its own; rooms of one floor
// do not know each other. A package inside another's folder (server/lockpb)
// lives where that folder lives, and the two may import each other.
//
// DESIGN: command is the shared vocabulary, so it lies below everything.
const floors = `
	command, peers, budget, internal/interrupt, internal/daemon, internal/version, internal/show, internal/crash, internal/fault, internal/invariants, internal/crc32c
	< store, raftlog, transport, listen, rpc, admission, logsink, evidence, usage, timemap, neighbours, discovery, walfile
	< mvcc, lease, auth
	< state, watch, replica, snapshotfile, leader
	< server, datadir, backup
	< node
	< config
	< cli/connect, embed
	< cli/doctor
	< cli/top, cli/rolling, cli/bench
	< cli/ctl, cli/offline, cli/dev, cli/proxy
	< cmd
`

// beside are the packages beside the house: no room imports them. They see a running server from
// outside, and import from the house only what is listed.
var beside = map[string][]string{
	"internal/lint": {},
	"proof/cluster": {},
	"proof/check":   {"proof/cluster"},
	"proof/clients": {"proof/cluster", "proof/check"},
	// It reads a member's log, for a harness of others.
	"proof/clients/etcdwal": {"datadir", "raftlog", "walfile"},
	"proof/abuse":           {"proof/cluster"},
	"proof/fuzzrpc":         {"proof/cluster"},
	"proof/bench":           {"proof/cluster", "cli/bench/load", "rpc"},
	"proof/costs":           {"embed", "cli/bench/load"},
	"proof/inject":          {"proof/cluster"},
	"proof/faults":          {"proof/cluster", "proof/inject"},
	"proof/labelled":        {"proof/cluster", "proof/inject", "cli/doctor/logs", "cli/doctor/report"},
	"proof/etcdtools":       {"proof/cluster"},
	"proof/surface":         nil, // nil: it may import every room; it holds the tables of docs against the code
	"proof/sim":             nil,
}

// denied are imports that the floors would allow.
var denied = []struct{ from, to, why string }{
	{"config", "server", "only node knows the server"},
	{"cli/ctl", "server", "only node knows the server; ctl is a client"},
	{"cli/ctl", "replica", "ctl is a client"},
	{"cli/ctl", "state", "ctl is a client"},
	{"cli/dev", "server", "only node knows the server"},
	{"cli/offline", "node", "it works on files, with no member running: datadir knows them"},
	{"cmd", "server", "only node knows the server"},
	{"replica", "mvcc", "the raft loop knows the state machine through its own interface"},
	{"replica", "lease", "the raft loop knows the state machine through its own interface"},
	{"replica", "transport", "the raft loop knows the network through its own interface"},
}

type goPackage struct {
	ImportPath, Dir, Name, Doc string
	Imports                    []string
	GoFiles                    []string
	TestGoFiles, XTestGoFiles  []string
}

func root(t testing.TB) string {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(filepath.Dir(dir))
}

// packages lists the module's packages, also those that do not compile.
func packages(t testing.TB) []goPackage {
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Dir,Name,Doc,Imports,GoFiles,TestGoFiles,XTestGoFiles", "./...")
	cmd.Dir = root(t)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// rooms maps each room to its floor, counted from below.
func rooms(text string) map[string]int {
	floor := make(map[string]int)
	for i, line := range strings.Split(text, "<") {
		for _, room := range strings.Split(line, ",") {
			floor[strings.TrimSpace(room)] = i
		}
	}
	return floor
}

// roomOf finds the room that a package (relative to the module) belongs to.
func roomOf(rel string, floor map[string]int) (string, bool) {
	for r := rel; r != "."; r = filepath.Dir(r) {
		if _, ok := floor[r]; ok {
			return r, true
		}
	}
	return "", false
}

// besideOf finds the entry of beside that a package belongs to.
func besideOf(rel string) (string, bool) {
	for r := rel; r != "."; r = filepath.Dir(r) {
		if _, ok := beside[r]; ok {
			return r, true
		}
	}
	return "", false
}

// judge returns what is wrong with package from importing package to; "" if nothing.
func judge(from, to string, floor map[string]int) string {
	if outside, ok := besideOf(from); ok {
		allowed := beside[outside]
		if inside, ok := besideOf(to); ok && inside == outside || allowed == nil || slices.Contains(allowed, to) {
			return ""
		}
		return fmt.Sprintf("%s stands beside the house and may not import %s", from, to)
	}
	a, ok := roomOf(from, floor)
	if !ok {
		return fmt.Sprintf("%s has no floor: give it one in the text of this test, and in ARCHITECTURE.md", from)
	}
	if _, ok := besideOf(to); ok {
		return fmt.Sprintf("%s imports %s, which stands beside the house", from, to)
	}
	b, ok := roomOf(to, floor)
	switch {
	case !ok:
		return fmt.Sprintf("%s has no floor: give it one in the text of this test, and in ARCHITECTURE.md", to)
	case a == b:
		return ""
	case floor[b] == floor[a]:
		return fmt.Sprintf("%s imports %s: rooms of one floor do not know each other", from, to)
	case floor[b] > floor[a]:
		return fmt.Sprintf("%s imports %s, which lives on a higher floor", from, to)
	}
	for _, d := range denied {
		if d.from == a && d.to == b {
			return fmt.Sprintf("%s imports %s: %s", from, to, d.why)
		}
	}
	return ""
}

func relative(importPath string) (string, bool) {
	if importPath == module {
		return ".", true
	}
	return strings.CutPrefix(importPath, module+"/")
}

func TestFloors(t *testing.T) {
	floor := rooms(floors)
	for _, p := range packages(t) {
		from, ok := relative(p.ImportPath)
		if !ok || from == "." {
			t.Errorf("unexpected package %s", p.ImportPath)
			continue
		}
		if _, ok := besideOf(from); !ok {
			if _, ok := roomOf(from, floor); !ok {
				t.Errorf("%s has no floor: give it one in the text of this test, and in ARCHITECTURE.md", from)
			}
		}
		for _, imp := range p.Imports {
			if to, ok := relative(imp); ok {
				if fault := judge(from, to, floor); fault != "" {
					t.Error(fault)
				}
			}
		}
	}
}

// TestFloorsCanFail shows that each rule refuses what it is there for.
func TestFloorsCanFail(t *testing.T) {
	floor := rooms(floors)
	for _, tc := range []struct {
		from, to string
		refused  bool
	}{
		{"mvcc", "store", false},
		{"state", "lease", false},
		{"server", "server/lockpb", false},
		{"proof/bench", "proof/cluster", false},
		{"store", "mvcc", true},         // upwards
		{"mvcc", "lease", true},         // same floor
		{"watch", "state", true},        // same floor
		{"server", "proof/check", true}, // beside the house
		{"proof/check", "mvcc", true},   // from beside the house
		{"cmd/belay", "server", true},
		{"cli/offline", "node", true},
		{"replica", "transport", true},
		{"newcomer", "store", true},
		{"store", "newcomer", true},
	} {
		if fault := judge(tc.from, tc.to, floor); (fault != "") != tc.refused {
			t.Errorf("%s importing %s: %q, want refused = %v", tc.from, tc.to, fault, tc.refused)
		}
	}
}

// Names that say nothing.
var emptyNames = []string{"util", "utils", "common", "types", "base", "helper", "helpers", "manager", "impl", "misc", "lib", "shared"}

func TestPackageNamesAndDocs(t *testing.T) {
	for _, p := range packages(t) {
		rel, _ := relative(p.ImportPath)
		for _, part := range append(strings.Split(rel, "/"), p.Name) {
			if slices.Contains(emptyNames, part) {
				t.Errorf("%s: a package called %q has no concept", rel, part)
			}
		}
		if len(p.GoFiles) == 0 {
			continue // tests only
		}
		if strings.TrimSpace(p.Doc) == "" && !generated(t, p) {
			t.Errorf("%s: no package comment; say in doc.go what it is for and what it promises", rel)
		}
	}
}

// generated reports whether all files of a package are.
func generated(t testing.TB, p goPackage) bool {
	for _, name := range p.GoFiles {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			t.Fatal(err)
		}
		if !ast.IsGenerated(f) {
			return false
		}
	}
	return true
}

// TestNoInit: wiring is in node; a package that acts at import time can not be given its parts.
func TestNoInit(t *testing.T) {
	for _, p := range packages(t) {
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.ParseComments)
			if err != nil {
				t.Error(err)
				continue
			}
			if ast.IsGenerated(f) {
				continue
			}
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
					t.Errorf("%s/%s: func init", p.ImportPath, name)
				}
			}
		}
	}
}

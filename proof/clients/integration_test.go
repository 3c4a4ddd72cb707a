package clients

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

// notForIntegration are etcd's integration tests that are not about Belay, with the reason. The name
// may end with a package's, to leave out all that is in it.
var notForIntegration = map[string]string{
	"integration/embed":             startsEtcd,
	"integration/snapshot":          startsEtcd,
	"integration/clientv3/snapshot": startsEtcd,
	"integration/v2store":           "is about a package of etcd, without a server",

	"TestTracing":            startsEtcd,
	"TestEtcdVersionFromWAL": startsEtcd,

	"TestPeriodicCheck":                               insideEtcd,
	"TestPeriodicCheckDetectsCorruption":              insideEtcd,
	"TestCompactHashCheck":                            insideEtcd,
	"TestCompactHashCheckDetectCorruption":            insideEtcd,
	"TestCompactHashCheckDetectMultipleCorruption":    insideEtcd,
	"TestFirstCommitNotification":                     insideEtcd,
	"TestMaintenanceSnapshotFromServerClient":         insideEtcd,
	"TestMoveLeader":                                  insideEtcd,
	"TestRemoveMember":                                insideEtcd,
	"TestTransferLeadershipWithLearner":               insideEtcd,
	"TestV3AdditionalGRPCOptions":                     insideEtcd,
	"TestV3CorruptAlarm":                              filesOfEtcd,
	"TestV3CorruptAlarmWithLeaseCorrupted":            filesOfEtcd,
	"TestMaintenanceSnapshotErrorInflight":            filesOfEtcd,
	"TestMaintenanceSnapshotWithVersionErrorInflight": filesOfEtcd,
	"TestDropReadUnderNetworkPartition":               "wants a read to fail when its leader is cut off; Belay asks the next leader",
	"TestMetricDbSizeDefrag":                          "wants a smaller file when Defragment answers; Belay's goes on in the background",
	"TestV3LeaseCheckpoint":                           "sets the interval of checkpoints, for which there is no flag",
	"TestV3RangeStreamPartialThenCompacted":           "wants a compaction to end a RangeStream; Belay's goes on in its one consistent view",
	"TestV3WatchRestoreSnapshotUnsync":                "wants a snapshot after ten entries; Belay keeps log by bytes, and a follower gets entries",
	"TestWatchFragmentDisable":                        longAnswers,
	"TestWatchFragmentDisableWithGRPCLimit":           longAnswers,
	"TestWatchFragmentEnable":                         longAnswers,
	"TestWatchFragmentEnableWithGRPCLimit":            longAnswers,
}

// notThroughProxies are those that the way by a proxy cannot be about either.
var notThroughProxies = map[string]string{
	"TestV3LeaseKeepAliveForwardingCatchError": "counts what a member is asked; a proxy tries again, and answers what it knows",
	// It failed 9 times of 40: when the proxy's look at the member, each 2 s, fell between the loss of
	// the leader and the end of the test. TestKeepAlivesRequireLeader shows that clients are told.
	"TestLeaseWithRequireLeader": "wants a member to count no stream that its client ends; a proxy ends its own to a member without a leader",
}

const (
	startsEtcd  = "starts etcd by its package embed"
	insideEtcd  = "calls what is inside an etcdserver.EtcdServer and has no equivalent over the network"
	longAnswers = "wants 10 MiB of history in one answer of a watch; Belay begins another after 1 MiB"
)

// TestEtcdsIntegrationTests runs etcd's integration tests as they are: the packages below
// go.etcd.io/etcd/tests/v3/integration. They have the members in their own process and stop, cut off
// and ask them there: in a copy of the module etcd's package that starts members starts Belay's
// (etcdtests/framework). Each test has a process of its own, since one that fails leaves goroutines
// that have the others skip; that a test leaves no goroutine is part of each, so a member must leave
// none. They run directly, and then with a `belay proxy` of its own before the members for each client.
// BELAY_ETCD_INTEGRATION is a pattern of names, BELAY_ETCD_INTEGRATION_WAY is direct or proxy: only
// so. With BELAY_CHECK_KIND=etcd nothing is replaced.
func TestEtcdsIntegrationTests(t *testing.T) {
	pattern := os.Getenv("BELAY_ETCD_INTEGRATION")
	if pattern == "" {
		t.Skip("runs with BELAY_ETCD_INTEGRATION, a pattern of names, as in make etcd-integration")
	}
	source := copyOfTests(t)
	for _, way := range []string{"direct", "proxy"} {
		if only := os.Getenv("BELAY_ETCD_INTEGRATION_WAY"); only != "" && only != way || way == "proxy" && !source.belay {
			continue
		}
		source.proxied = way == "proxy"
		for _, pkg := range integrationPackages(t, source) {
			t.Run(way+"/"+pkg, func(t *testing.T) { source.run(t, pkg, pattern) })
		}
	}
}

const etcdsTests = "go.etcd.io/etcd/tests/v3"

// testsCopy is a copy of etcd's module of tests.
type testsCopy struct {
	dir     string
	modfile string // of module etcdtests, with the copy in place of the original
	belay   bool   // the members are Belay's
	proxied bool   // clients reach them through `belay proxy`
}

// sourceOfTests is where Go has etcd's module of tests. It need not have it yet.
func sourceOfTests(t *testing.T) string {
	t.Helper()
	out, stderr, err := run(t, 10*time.Minute, exec.Command("go", "mod", "download", "-C", "etcdtests", "-json", etcdsTests))
	var module struct{ Dir string }
	if err == nil {
		err = json.Unmarshal([]byte(out), &module)
	}
	if err != nil || module.Dir == "" {
		t.Fatalf("no source of %s: %v\n%s%s", etcdsTests, err, out, stderr)
	}
	return module.Dir
}

// copyOfTests makes one that can be built.
func copyOfTests(t *testing.T) *testsCopy {
	t.Helper()
	dir := sourceOfTests(t)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	top, err := cacheDir("belay-clients/etcdtests-" + string(checkKind(t))) // at one place, for Go's cache
	check(err)
	c := &testsCopy{dir: filepath.Join(top, "tests"), modfile: filepath.Join(top, "go.mod"), belay: checkKind(t) == cluster.Belay}
	check(os.RemoveAll(c.dir))
	check(os.CopyFS(c.dir, os.DirFS(dir)))
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join("etcdtests", name))
		check(err)
		if name == "go.mod" {
			text = append(text, "replace "+etcdsTests+" => "+c.dir+"\n"...)
		}
		check(os.WriteFile(filepath.Join(top, name), text, 0o644))
	}
	// A module in the proxy has no symbolic links: these are etcd's.
	for _, name := range []string{"integration", "integration/clientv3", "integration/proxy"} {
		check(os.Symlink(filepath.Join(c.dir, "fixtures"), filepath.Join(c.dir, name, "fixtures")))
	}
	check(os.Remove(filepath.Join(c.dir, "integration/cache_test.go"))) // of a module that the proxy lacks
	if !c.belay {
		return c
	}
	members := filepath.Join(c.dir, "framework/integration/cluster.go")
	text, err := os.ReadFile(members)
	check(err)
	text, err = withoutEtcd(text)
	check(err)
	check(os.WriteFile(members, text, 0o644))
	for name, as := range map[string]string{"belay.go": "belay.go", "proxied.go": "cluster_proxy.go"} {
		ours, err := os.ReadFile(filepath.Join("etcdtests/framework", name))
		check(err)
		check(os.WriteFile(filepath.Join(filepath.Dir(members), as), ours, 0o644))
	}
	return c
}

// withoutEtcd is etcd's source of a cluster without what etcdtests/framework/belay.go has: methods of
// Member, and the type of its server. It remembers as what a member was wanted.
func withoutEtcd(text []byte) ([]byte, error) {
	for _, edit := range [][2]string{
		{"*etcdserver.EtcdServer\n", "*Server\n\tWanted MemberConfig\n"},
		{"&Member{\n\t\tMemberNumber:", "&Member{\n\t\tWanted: mcfg,\n\t\tMemberNumber:"},
	} {
		if bytes.Count(text, []byte(edit[0])) != 1 {
			return nil, fmt.Errorf("etcd's framework/integration/cluster.go does not have %q once", edit[0])
		}
		text = bytes.Replace(text, []byte(edit[0]), []byte(edit[1]), 1)
	}
	replaced := []string{"Launch", "Close", "InjectPartition", "RecoverPartition", "Pause", "Resume"}
	text, err := cut(text, func(_ *ast.File, n ast.Node) bool {
		f, ok := n.(*ast.FuncDecl)
		if !ok || f.Recv == nil || !slices.Contains(replaced, f.Name.Name) {
			return false
		}
		star, ok := f.Recv.List[0].Type.(*ast.StarExpr)
		return ok && star.X.(*ast.Ident).Name == "Member"
	})
	if err != nil {
		return nil, err
	}
	return cut(text, func(file *ast.File, n ast.Node) bool {
		i, ok := n.(*ast.ImportSpec)
		return ok && !uses(file, i)
	})
}

// cut removes from Go source the nodes for which unwanted reports true.
func cut(text []byte, unwanted func(*ast.File, ast.Node) bool) ([]byte, error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, "", text, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var kept []byte
	at := 0
	ast.Inspect(file, func(n ast.Node) bool {
		if n == nil || !unwanted(file, n) {
			return true
		}
		kept = append(kept, text[at:set.Position(n.Pos()).Offset]...)
		at = set.Position(n.End()).Offset
		return false
	})
	return append(kept, text[at:]...), nil
}

// uses reports whether a file uses what it imports.
func uses(file *ast.File, i *ast.ImportSpec) (found bool) {
	name := path.Base(strings.Trim(i.Path.Value, `"`))
	if regexp.MustCompile(`^v\d+$`).MatchString(name) {
		name = path.Base(path.Dir(strings.Trim(i.Path.Value, `"`)))
	}
	if i.Name != nil {
		name = i.Name.Name
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			x, ok := s.X.(*ast.Ident)
			found = found || ok && x.Name == name
		}
		return !found
	})
	return found
}

// command runs a go command in the module of etcd's tests, over the copy.
func (c *testsCopy) command(verb string, args ...string) *exec.Cmd {
	tags := "etcd_integration"
	if c.proxied {
		tags += ",cluster_proxy" // etcd's, for its own proxy
	}
	return exec.Command("go", append([]string{verb, "-C", "etcdtests", "-modfile", c.modfile, "-tags", tags}, args...)...)
}

// integrationPackages are those that have tests, by their folder.
func integrationPackages(t *testing.T, c *testsCopy) (packages []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(c.dir, "integration"), func(name string, _ os.DirEntry, err error) error {
		if dir, _ := filepath.Rel(c.dir, filepath.Dir(name)); strings.HasSuffix(name, "_test.go") && !slices.Contains(packages, dir) {
			packages = append(packages, dir)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return packages
}

// run runs the tests and examples of a package.
func (c *testsCopy) run(t *testing.T, pkg, pattern string) {
	leftOut := func(t *testing.T, test string) {
		reason := notForIntegration[test]
		if reason == "" && c.proxied {
			reason = notThroughProxies[test]
		}
		if c.belay && reason != "" {
			t.Skip(reason)
		}
	}
	leftOut(t, pkg)
	program := filepath.Join(t.TempDir(), "integration.test")
	if stdout, stderr, err := run(t, 20*time.Minute, c.command("test", "-c", "-o", program, etcdsTests+"/"+pkg)); err != nil {
		t.Fatalf("build: %v\n%s%s", err, stdout, stderr)
	}
	own := func(args ...string) *exec.Cmd {
		cmd := exec.Command(program, args...)
		cmd.Dir = filepath.Join(c.dir, pkg)
		// etcd's lock service and Belay's generated code of it are both in this program.
		cmd.Env = append(os.Environ(), "GOLANG_PROTOBUF_REGISTRATION_CONFLICT=ignore", "BELAY_CLIENTS_PROXY="+belay(t))
		return cmd
	}
	list, stderr, err := run(t, time.Minute, own("-test.list", pattern))
	if err != nil {
		t.Fatalf("%v\n%s%s", err, list, stderr)
	}
	names := slices.DeleteFunc(strings.Fields(list), func(name string) bool {
		return !strings.HasPrefix(name, "Test") && !strings.HasPrefix(name, "Example")
	})
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			leftOut(t, name)
			stdout, stderr, err := run(t, 10*time.Minute, own("-test.run", "^"+name+"$", "-test.v", "-test.timeout", "9m"))
			switch {
			case err != nil:
				t.Errorf("%v\n%s%s", err, stdout, stderr)
			case strings.Contains(stdout, "--- SKIP: "+name+" "):
				t.Skip(stdout)
			}
		})
	}
}

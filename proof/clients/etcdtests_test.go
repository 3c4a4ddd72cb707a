package clients

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

// notForBelay are etcd's own tests that Belay cannot pass, or this harness, with the reason. Behind a
// slash is a part of a test.
var notForBelay = map[string]string{
	"TestDowngradeUpgradeClusterOf1":                         filesOfEtcd,
	"TestDowngradeUpgrade2InClusterOf3":                      filesOfEtcd,
	"TestDowngradeUpgradeClusterOf3":                         filesOfEtcd,
	"TestDowngradeUpgradeClusterOf1WithSnapshot":             filesOfEtcd,
	"TestDowngradeUpgradeClusterOf3WithSnapshot":             filesOfEtcd,
	"TestDowngradeCancellationAfterDowngrading1InClusterOf3": filesOfEtcd,
	"TestDowngradeCancellationAfterDowngrading2InClusterOf3": filesOfEtcd,
	"TestEtcdCorruptHash":                                    filesOfEtcd,
	"TestPeriodicCheckDetectsCorruption":                     filesOfEtcd,
	"TestCompactHashCheckDetectCorruption":                   filesOfEtcd,
	"TestCompactHashCheckDetectCorruptionWithFeatureGate":    filesOfEtcd,
	"TestBreakConsistentIndexNewerThanSnapshot":              filesOfEtcd,
	"TestClusterUpgradeAfterPromotingMembers":                filesOfEtcd,
	"TestCtlV3DefragOffline":                                 ofEtcdutl,
	"TestEtctlutlMigrate":                                    filesOfEtcd,
	"TestForceNewCluster_MemberCount":                        filesOfEtcd,
	"TestHTTPLivezReadyzHandler/^corrupt":                    filesOfEtcd,
	"TestReleaseUpgrade":                                     filesOfEtcd,
	"TestReleaseUpgradeWithRestart":                          filesOfEtcd,
	"TestRestoreCompactionRevBump":                           filesOfEtcd,
	"TestMixVersionsSnapshotByMockingPartition":              "wants a snapshot after ten entries; Belay keeps log by bytes, and a follower gets entries",
	"TestGrpcproxyAndCommonName":                             "leaves a goroutine behind when it runs alone, on etcd as well",
	"TestV2DeprecationSnapshotMatches":                       filesOfEtcd,
	"TestEtcdExampleConfig":                                  "wants a file of etcd's repository",
	"TestEtcdPeerLocalAddr":                                  "wants a way to the internet",
	"TestEtcdUnixPeers":                                      "deletes the data of a member that is still stopping, and wants it to write nothing",
}

const (
	filesOfEtcd = "has a release of etcd run on the data, or opens member/snap/db: moving is for belay util migrate"
	ofEtcdutl   = "has etcd's etcdutl work on Belay's data"
)

// TestEtcdsOwnTests runs etcd's end-to-end tests as they are: the packages e2e and common of
// go.etcd.io/etcd/tests. They start Belay by the name etcd, with etcd's flags, and read what it logs,
// answers and leaves; first with etcd's etcdctl and etcdutl, then with Belay's by those names. Each
// test has a process of its own, since one that fails leaves goroutines that have the others skip,
// and as root a network of its own, since they want certain ports. They have bounds of seconds: they
// want a machine that is not busy. BELAY_ETCD_TESTS is a pattern of names, BELAY_ETCD_TESTS_TOOLS is
// etcd or belay: only with these.
func TestEtcdsOwnTests(t *testing.T) {
	pattern := os.Getenv("BELAY_ETCD_TESTS")
	if pattern == "" {
		t.Skip("runs with BELAY_ETCD_TESTS, a pattern of names, as in make etcd-tests")
	}
	tools := etcdTools(t)
	for _, of := range []string{"etcd", "belay"} {
		if only := os.Getenv("BELAY_ETCD_TESTS_TOOLS"); only != "" && only != of {
			continue
		}
		ctl, utl := tools.Etcdctl, tools.Etcdutl
		if of == "belay" {
			ctl, utl = belay(t), belay(t)
		}
		dir := etcdsPrograms(t, binary(t, checkKind(t)), ctl, utl)
		for _, pkg := range []string{"common", "e2e"} {
			t.Run(of+" tools/"+pkg, func(t *testing.T) { etcdsOwn(t, pkg, pattern, dir, of) })
		}
	}
}

// etcdsPrograms is a folder with what etcd's tests start: the server under test by the name etcd, its
// tools, and etcd's last release if it is built.
func etcdsPrograms(t *testing.T, server, ctl, utl string) string {
	dir := t.TempDir()
	links := map[string]string{"etcd": server, "etcdctl": ctl, "etcdutl": utl}
	older := cluster.OlderEtcd()
	if last, ok, err := cluster.OlderTools(t.Context(), older[len(older)-1], false); err != nil {
		t.Fatal(err)
	} else if ok {
		links["etcd-last-release"] = last.Etcd
	}
	for name, program := range links {
		if err := os.Symlink(program, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// inOwnNetwork is a command in a network of its own, if this is root: etcd's tests want certain ports.
func inOwnNetwork(args ...string) *exec.Cmd {
	if os.Getuid() == 0 {
		args = append([]string{"unshare", "-n", "sh", "-c", `ip link set lo up && exec "$@"`, "sh"}, args...)
	}
	return exec.Command(args[0], args[1:]...)
}

func etcdsOwn(t *testing.T, pkg, pattern, binaries, tools string) {
	program := filepath.Join(t.TempDir(), pkg+".test")
	path := "go.etcd.io/etcd/tests/v3/" + pkg
	if stdout, stderr, err := run(t, 20*time.Minute, exec.Command("go", "test", "-C", "etcdtests", "-tags", "e2e", "-c", "-o", program, path)); err != nil {
		t.Fatalf("build: %v\n%s%s", err, stdout, stderr)
	}
	source, stderr, err := run(t, time.Minute, exec.Command("go", "list", "-C", "etcdtests", "-tags", "e2e", "-f", "{{.Dir}}", path))
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr)
	}
	own := func(args ...string) *exec.Cmd {
		cmd := inOwnNetwork(append([]string{program, "-bin-dir", binaries}, args...)...)
		cmd.Dir = strings.TrimSpace(source)
		return cmd
	}
	list, stderr, err := run(t, time.Minute, own("-test.list", pattern))
	if err != nil {
		t.Fatalf("%v\n%s%s", err, list, stderr)
	}
	names := slices.DeleteFunc(strings.Fields(list), func(name string) bool { return !strings.HasPrefix(name, "Test") })
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			args := []string{"-test.run", "^" + name + "$", "-test.v", "-test.timeout", "9m"}
			for test, reason := range notForBelay {
				switch one, part, _ := strings.Cut(test, "/"); {
				case one != name || checkKind(t) != cluster.Belay || reason == ofEtcdutl && tools == "belay":
				case part == "":
					t.Skip(reason)
				default:
					t.Logf("without %s, which %s", test, reason)
					args = append(args, "-test.skip", "^"+one+"$/"+part)
				}
			}
			stdout, stderr, err := run(t, 10*time.Minute, own(args...))
			if err != nil {
				t.Errorf("%v\n%s%s", err, stdout, stderr)
			}
		})
	}
}

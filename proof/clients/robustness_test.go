package clients

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

// robustnessNotForBelay are scenarios that cannot run, with the reason.
var robustnessNotForBelay = map[string]string{
	"Issue14370": gofail, "Issue14685": gofail, "Issue17529": gofail, "Issue17780": gofail, "Issue18089": gofail, "Issue19179": gofail,
	"Issue15271": snapshots, "Issue20221": snapshots,
}

const (
	gofail = "stops etcd at a place in its own code, by gofail"
	// A member behind its blackholed proxy gets entries over the connections that it made itself, and
	// a Belay goes on answering over them: it keeps up. etcd's does not.
	snapshots = "waits until a member that is cut off on one side lags, and gets a snapshot"
)

// A change is text that takes the place of other text in a file of Go.
type change struct{ file, old, new string }

// robustnessChanges are what is changed of etcd's robustness tests. To that come the files of
// testdata/robustness.
var robustnessChanges = []change{
	// Where the requests are read that the members have logged.
	{"robustness/report/wal.go", "walDir := datadir.ToWALDir(dataDir)", "walDir := walOf(dataDir, datadir.ToWALDir(dataDir))"},
	// Member changes, which nothing reads, are written in several ways by members of several kinds.
	{"robustness/report/wal.go", "\t\tbytes.Equal(e1.GetData(), e2.GetData())\n", "\t\t(e1.GetType() != raftpb.EntryNormal || bytes.Equal(e1.GetData(), e2.GetData()))\n"},
	// Large values, if they are asked for; in transactions the model took them as they are, elsewhere
	// by their hash.
	{"robustness/model/history.go", "ValueOrHash{Value: string(option.ValueBytes())}", "ToValueOrHash(string(option.ValueBytes()))"},
	{"robustness/traffic/etcd.go", `fmt.Sprintf("%d", `, `fmt.Sprintf(format(), `},
	{"robustness/traffic/kubernetes.go", `fmt.Sprintf("%d", `, `fmt.Sprintf(format(), `},
	// Members are not built with gofail; with it, all scenarios would skip themselves.
	{"robustness/scenarios/scenarios.go", "e2e.WithGoFailEnabled(true)", "e2e.WithGoFailEnabled(false)"},
	{"robustness/failpoint/failpoint.go", "RaftAfterSaveSnapPanic, BlackholeUntilSnapshot,", "RaftAfterSaveSnapPanic,"}, // see snapshots
	// The proxies between members accept nothing more after 17 errors that nobody takes from them, such
	// as connections to a member that was killed.
	{
		"framework/e2e/etcd_process.go", "\t\tcase <-ep.proxy.Ready():\n",
		"\t\tcase <-ep.proxy.Ready():\n\t\t\tgo func(p proxy.Server) {\n\t\t\t\tfor {\n\t\t\t\t\tselect {\n\t\t\t\t\tcase <-p.Error():\n\t\t\t\t\tcase <-p.Done():\n\t\t\t\t\t\treturn\n\t\t\t\t\t}\n\t\t\t\t}\n\t\t\t}(ep.proxy)\n",
	},
	// The fault comes when there was enough traffic, in whatever time. etcd's tests fail if there were
	// fewer requests a second, which says something of the machine.
	{"robustness/main_test.go", "\ttrafficSet := client.NewSet(ids, baseTime)\n", ""},
	{"robustness/main_test.go", "\tids := identity.NewIDProvider()\n", "\tids := identity.NewIDProvider()\n\ttrafficSet := client.NewSet(ids, baseTime)\n"},
	{
		"robustness/main_test.go", "(WaitBeforeFailpoint, WaitJitter))\n",
		"(WaitBeforeFailpoint, WaitJitter))\n\t\ttrafficSet.Await(ctx, int(s.Profile.KeyValue.MinimalQPS)+len(clus.Procs))\n", // each is asked whether it is empty
	},
	{"robustness/traffic/traffic.go", "if beforeFailpointStats.QPS() < ", "if float64(beforeFailpointStats.Successes) < "},
	{
		"robustness/traffic/traffic.go",
		`Requiring minimal %f qps before failpoint injection for test results to be reliable, got %f qps", profile.KeyValue.MinimalQPS, beforeFailpointStats.QPS()`,
		`too little traffic before the fault: %d requests succeeded, wanted %.0f", beforeFailpointStats.Successes, profile.KeyValue.MinimalQPS`,
	},
	// An older etcd cannot take over Belay's files, which these two have it do. In their place come
	// faults that need nothing of the program.
	{"robustness/failpoint/failpoint.go", "\tMemberDowngrade,\n\tMemberDowngradeUpgrade,\n", "\tPauseMember, KillAll, KillOften, StopMember,\n"},
	// A proxy before each member: it stays when the member is killed, its port is free, and the
	// member is asked itself whether it is well, which neither kind of proxy answers.
	{"robustness/failpoint/failpoint.go", "clus.Procs[i].EndpointsGRPC()", "[]string{clus.Procs[i].Config().ClientURL}"},
	{"framework/e2e/cluster_proxy.go", "\treturn p.proxyV3.Start(ctx)\n", "\tif p.proxyV3.proc != nil {\n\t\treturn nil\n\t}\n\treturn p.proxyV3.Start(ctx)\n"},
	{"framework/e2e/cluster_proxy.go", "proxyListenURL(cfg, 3)", "proxyListenURL(cfg, 1003)"},
	// The second one has all members behind it, and goes on with another when one fails.
	{"framework/e2e/cluster_proxy.go", `"--endpoints", cfg.ClientURL,`, `"--endpoints", []string{cfg.ClientURL, "http://localhost:20000,http://localhost:20005,http://localhost:20010"}[cfg.Name[len(cfg.Name)-1]&1],`},
}

// TestEtcdsRobustness runs etcd's robustness tests: traffic of etcd's and Kubernetes' kind on one
// member and on three, some of them of etcd's last release, and a fault in each scenario, drawn at
// random; then what all clients saw is held against a model of etcd and against the members' logs:
// reads, writes and watches, which must be ordered, unique, whole, without a gap, resumable. Then the
// same through a proxy for each member, and with some large values.
//
//	BELAY_ETCD_ROBUSTNESS      how many rounds
//	BELAY_ETCD_ROBUSTNESS_RUN  a pattern of scenarios, as Exploratory/EtcdHighTraffic/ClusterOfSize3
//	BELAY_ETCD_ROBUSTNESS_BY   direct, proxy or large: only so
//	RESULTS_DIR                where the data of all members and the operations of each client stay of
//	                           what failed [belay-robustness in the folder for temporary files]
func TestEtcdsRobustness(t *testing.T) {
	rounds, _ := strconv.Atoi(os.Getenv("BELAY_ETCD_ROBUSTNESS"))
	if rounds == 0 {
		t.Skip("runs with BELAY_ETCD_ROBUSTNESS, a number of rounds, as in make etcd-robustness")
	}
	r := newRobustness(t)
	r.serve(t, binary(t, checkKind(t)))
	patterns := []string{"Exploratory", "Regression"}
	if only := os.Getenv("BELAY_ETCD_ROBUSTNESS_RUN"); only != "" {
		patterns = []string{only}
	}
	for scenario, reason := range robustnessNotForBelay {
		t.Logf("without %s, which %s", scenario, reason)
	}
	for round := range rounds {
		for _, by := range []string{"direct", "proxy", "large"} {
			if only := os.Getenv("BELAY_ETCD_ROBUSTNESS_BY"); only != "" && only != by {
				continue
			}
			for _, pattern := range patterns {
				t.Run(fmt.Sprintf("%d/%s/%s", round, by, pattern), func(t *testing.T) {
					if log, ok := r.run(t, by, pattern); !ok {
						t.Errorf("%s\nin %s", failures(log), r.results)
					}
				})
			}
		}
	}
}

// robustnessMutants are rules of Belay that are broken on purpose, and the words of the harness that
// one of them must lead to.
var robustnessMutants = []struct {
	name, by, scenario string
	changes            []change
	noticed            []string
}{
	{"read without its barrier", "direct", "Exploratory/EtcdHighTraffic/ClusterOfSize3", []change{
		{"replica/read.go", "\tround, err := r.reads.join(nil, &r.inbox)\n", "\tif true {\n\t\treturn nil\n\t}\n\tround, err := r.reads.join(nil, &r.inbox)\n"},
		{"replica/read.go", "\tif _, err := r.reads.join(then, &r.inbox); err != nil {\n", "\tif true {\n\t\tgo then(nil)\n\t} else if _, err := r.reads.join(then, &r.inbox); err != nil {\n"},
	}, []string{"Linearization illegal"}},
	{"one revision in 200 reaches no watch", "direct", "Exploratory/EtcdHighTraffic/ClusterOfSize1", []change{
		{"watch/hub.go", "\ttouched := f.touched[:0]\n", "\tif rev%200 == 0 {\n\t\treturn\n\t}\n\ttouched := f.touched[:0]\n"},
	}, []string{"broke Reliable", "broke Resumable"}},
	{"progress of what was not sent", "direct", "Exploratory/EtcdHighTraffic/ClusterOfSize3", []change{
		{"watch/hub.go", "s.control(&Response{ID: InvalidID, Rev: h.done})", "s.control(&Response{ID: InvalidID, Rev: h.done + 20})"},
	}, []string{"broke Bookmarkable", "broke Reliable"}},
	{"a proxy's cache answers all reads as serializable", "proxy", "Exploratory/EtcdHighTraffic/ClusterOfSize3", []change{
		{"cli/proxy/cache/cache.go", "\tif serializable {\n", "\tif serializable || a.at >= r.Seen {\n"},
	}, []string{"Linearization illegal"}},
	{"a proxy sends a write again if its answer comes late", "proxy", "Exploratory/KubernetesHighTraffic/ClusterOfSize1", []change{
		{"cli/proxy/upstream/call.go", "if err == nil && r.Read && r.Ordered && resp.Frame.Revision() != 0 && resp.Frame.Revision() < floor {", "if err == nil && !r.Read && count == 1 && resp.Frame.Revision() < c.Seen() || floor < 0 {"},
	}, []string{"Linearization illegal"}},
	{"writes acknowledged before they are written", "direct", "Exploratory/EtcdTrafficDeleteLeases/ClusterOfSize1", []change{
		{
			"raftlog/writer.go", "\t\t\terr = l.writeBatch(batch)\n",
			"\t\t\tfor i := range batch {\n\t\t\t\tif len(batch[i].responses) > 0 {\n\t\t\t\t\tl.opts.Released(batch[i].responses)\n\t\t\t\t\tbatch[i].responses = nil\n\t\t\t\t}\n\t\t\t}\n" +
				"\t\t\ttime.Sleep(20 * time.Millisecond)\n\t\t\terr = l.writeBatch(batch)\n",
		},
	}, []string{"Linearization illegal"}},
}

// TestEtcdsRobustnessNotices shows that the harness notices Belays in which a rule is broken.
func TestEtcdsRobustnessNotices(t *testing.T) {
	if os.Getenv("BELAY_ETCD_ROBUSTNESS") == "" {
		t.Skip("runs with BELAY_ETCD_ROBUSTNESS, as in make etcd-robustness")
	}
	t.Setenv("BELAY_BIN", "") // builds its own
	root, err := cluster.Root()
	if err != nil {
		t.Fatal(err)
	}
	r := newRobustness(t)
	r.results = t.TempDir()
	for _, m := range robustnessMutants {
		t.Run(m.name, func(t *testing.T) {
			dir := t.TempDir()
			files := map[string]string{}
			for i, c := range m.changes {
				path := filepath.Join(root, c.file)
				if files[path] == "" {
					files[path] = filepath.Join(dir, fmt.Sprintf("%d.go", i))
					copyFile(t, path, files[path])
				}
				c.make(t, files[path])
			}
			overlay, err := json.Marshal(map[string]any{"Replace": files})
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			server, err := cluster.BuildBelay(t.Context(), filepath.Join(dir, "belay"), "-overlay", filepath.Join(dir, "overlay.json"))
			if err != nil {
				t.Fatal(err)
			}
			r.serve(t, server)
			for try := range 30 {
				log, ok := r.run(t, m.by, m.scenario)
				for _, words := range m.noticed {
					if !ok && bytes.Contains(log, []byte(words)) {
						t.Logf("noticed in run %d: %s", try+1, words)
						return
					}
				}
			}
			t.Error("not noticed in 30 runs")
		})
	}
}

// robustness is etcd's harness, built.
type robustness struct {
	programs map[string]string // by how they run: direct, proxy, large
	dir      string            // where they are started
	binaries string
	etcdwal  string
	results  string
}

func newRobustness(t *testing.T) *robustness {
	work := t.TempDir()
	source := filepath.Join(work, "tests")
	r := &robustness{
		programs: map[string]string{}, dir: filepath.Join(source, "robustness"), etcdwal: filepath.Join(work, "etcdwal"), results: os.Getenv("RESULTS_DIR"),
	}
	if r.results == "" {
		r.results = filepath.Join(os.TempDir(), "belay-robustness")
	}
	if err := os.MkdirAll(r.results, 0o700); err != nil {
		t.Fatal(err)
	}
	do := func(args ...string) string {
		stdout, stderr, err := run(t, 20*time.Minute, exec.Command("go", args...))
		if err != nil {
			t.Fatalf("go %s: %v\n%s%s", strings.Join(args, " "), err, stdout, stderr)
		}
		return strings.TrimSpace(stdout)
	}
	do("build", "-o", r.etcdwal, "./etcdwal")

	// A copy of etcd's module, changed, in the place of the module.
	for _, dir := range []string{sourceOfTests(t), filepath.Join("testdata", "robustness")} {
		to := source
		if dir == filepath.Join("testdata", "robustness") {
			to = r.dir
		}
		if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range robustnessChanges {
		c.make(t, filepath.Join(source, c.file))
	}
	mod := filepath.Join(work, "go.mod")
	copyFile(t, filepath.Join("etcdtests", "go.mod"), mod)
	copyFile(t, filepath.Join("etcdtests", "go.sum"), filepath.Join(work, "go.sum"))
	do("mod", "edit", "-replace", etcdsTests+"="+source, mod)
	for by, tags := range map[string]string{"direct": "e2e", "proxy": "e2e,cluster_proxy"} {
		r.programs[by] = filepath.Join(work, by+".test")
		do("test", "-C", "etcdtests", "-modfile", mod, "-tags", tags, "-c", "-o", r.programs[by], etcdsTests+"/robustness")
	}
	r.programs["large"] = r.programs["direct"]
	return r
}

// serve makes a program the server of later runs.
func (r *robustness) serve(t *testing.T, server string) {
	tools := etcdTools(t)
	r.binaries = etcdsPrograms(t, server, tools.Etcdctl, tools.Etcdutl)
}

// run runs the scenarios of a pattern. The log is kept if they fail.
func (r *robustness) run(t *testing.T, by, pattern string) (log []byte, ok bool) {
	args := []string{r.programs[by], "-bin-dir", r.binaries, "-test.v", "-test.timeout", "90m", "-test.run", "^TestRobustness" + pattern}
	if by == "proxy" {
		args = append(args, "-bin-last-release", "none") // a proxy of the older etcd keeps less of what etcd promises
	}
	args = append(args, "-test.skip", "^TestRobustnessRegression$/^("+strings.Join(slices.Sorted(maps.Keys(robustnessNotForBelay)), "|")+")$")
	out, err := os.Create(filepath.Join(r.results, fmt.Sprintf("%s-%d.log", by, time.Now().UnixNano())))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := inOwnNetwork(args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = r.dir, out, out
	cmd.Env = append(os.Environ(), "BELAY_ETCDWAL="+r.etcdwal, "RESULTS_DIR="+r.results, "TMPDIR="+t.TempDir())
	if by == "large" {
		cmd.Env = append(cmd.Env, "BELAY_LARGE_VALUES=1")
	}
	failed := cmd.Run()
	log, err = os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	// The harness goes on without the log of a member that it could not read.
	if failed == nil && !bytes.Contains(log, []byte("Failed to read WAL")) && bytes.Contains(log, []byte("\n--- PASS")) {
		for line := range bytes.Lines(log) {
			if bytes.Contains(line, []byte("--- PASS")) || bytes.Contains(line, []byte("--- SKIP")) {
				t.Logf("%s", bytes.TrimSpace(line))
			}
		}
		return log, os.Remove(out.Name()) == nil
	}
	return log, false
}

// failures are the lines of a log that say what failed.
func failures(log []byte) string {
	var lines []string
	for line := range strings.Lines(string(log)) {
		for _, words := range []string{"--- FAIL", "panic: ", "Error:", "Failed to read WAL", "ERROR\t", "too little traffic"} {
			if strings.Contains(line, words) {
				lines = append(lines, strings.TrimSpace(line))
				break
			}
		}
	}
	return strings.Join(lines[:min(len(lines), 40)], "\n")
}

// make changes a file. The text is there.
func (c change) make(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(text, []byte(c.old)) {
		t.Fatalf("%s has no %q", c.file, c.old)
	}
	if err := os.WriteFile(path, bytes.ReplaceAll(text, []byte(c.old), []byte(c.new)), 0o600); err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

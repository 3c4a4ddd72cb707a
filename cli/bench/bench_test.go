package bench

import (
	"bytes"
	"context"
	"flag"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/belaydb/belay/node"
)

var rewrite = flag.Bool("rewrite", false, "write testdata/report.txt anew")

// TestFlagsAreEtcds holds the flags against those of etcd's tool, which its help gave.
func TestFlagsAreEtcds(t *testing.T) {
	text, err := os.ReadFile("testdata/etcd-flags.txt")
	if err != nil {
		t.Fatal(err)
	}
	root := (&bench{name: "benchmark"}).command()
	short := map[string]string{"int64": "int", "float64": "float", "stringSlice": "strings"}
	for line := range strings.Lines(string(text)) {
		command, flag, _ := strings.Cut(strings.TrimSpace(line), ": --")
		fields := strings.Fields(flag)
		cmd := root
		if command != "benchmark" {
			if cmd, _, err = root.Find(strings.Fields(command)); err != nil {
				t.Fatal(err)
			}
		}
		f := cmd.Flags().Lookup(fields[0])
		if f == nil {
			f = cmd.PersistentFlags().Lookup(fields[0])
		}
		if f == nil {
			f = cmd.InheritedFlags().Lookup(fields[0])
		}
		if f == nil {
			t.Errorf("%s has no --%s", command, fields[0])
			continue
		}
		want := ""
		if len(fields) > 2 {
			want = strings.Trim(fields[2], `"`)
		}
		kind, value := f.Value.Type(), f.DefValue
		if to, ok := short[kind]; ok {
			kind = to
		}
		if value == "0" || value == "0s" || value == "false" {
			value = ""
		}
		if kind != fields[1] || value != want || f.Shorthand != "" {
			t.Errorf("%s --%s: %s, default %q, shorthand %q; etcd's tool has %s, %q, none", command, f.Name, kind, value, f.Shorthand, fields[1], want)
		}
	}
}

// server is one member in this process, for all tests.
var server = sync.OnceValues(startMember)

func startMember() (string, error) {
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	dir, err := os.MkdirTemp("", "belay-bench-test-")
	if err != nil {
		return "", err
	}
	atEnd(func() { os.RemoveAll(dir) })
	client, peer := free(), free()
	urls := func(host string) []url.URL { return []url.URL{{Scheme: "http", Host: host}} }
	n, err := node.Start(context.Background(), node.Config{
		Settings: node.Settings{
			Cluster: node.Cluster{Name: "default", DataDir: filepath.Join(dir, "data"), InitialCluster: "default=http://" + peer, InitialClusterToken: "bench"},
			Ports: node.Ports{
				ListenClientURLs: urls(client), AdvertiseClientURLs: urls(client), ListenPeerURLs: urls(peer), AdvertisePeerURLs: urls(peer),
			},
			Raft: node.Raft{UnsafeNoFsync: true},
		},
		TickInterval: 10 * time.Millisecond, ElectionTicks: 10,
		Logger: zap.NewNop(),
	})
	if err != nil {
		return "", err
	}
	atEnd(n.Stop)
	select {
	case <-n.Ready():
		return client, nil
	case err := <-n.Failed():
		return "", err
	}
}

// atEnd are run after all tests, the last first.
var ends struct {
	sync.Mutex
	fns []func()
}

func atEnd(fn func()) {
	ends.Lock()
	defer ends.Unlock()
	ends.fns = append(ends.fns, fn)
}

func TestMain(m *testing.M) {
	code := m.Run()
	for i := len(ends.fns) - 1; i >= 0; i-- {
		ends.fns[i]()
	}
	os.Exit(code)
}

// do runs a command line against the member, or against none if it has endpoints.
func do(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	if !strings.Contains(strings.Join(args, " "), "--endpoints") {
		endpoint, err := server()
		if err != nil {
			t.Fatal(err)
		}
		args = append([]string{"--endpoints=" + endpoint}, args...)
	}
	var stdout, stderr bytes.Buffer
	code = MainContext(t.Context(), "benchmark", args, strings.NewReader(""), &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

// counted sums the bars of the first histogram of an output.
func counted(out string) (n int) {
	_, out, _ = strings.Cut(out, "Response time histogram:")
	out, _, _ = strings.Cut(out, "Latency distribution:")
	for _, m := range regexp.MustCompile(`\[(\d+)\]\t\|`).FindAllStringSubmatch(out, -1) {
		one, _ := strconv.Atoi(m[1])
		n += one
	}
	return n
}

// TestSubCommands runs each of them and looks that it counts what it was told to do.
func TestSubCommands(t *testing.T) {
	for line, want := range map[string]struct {
		count int
		has   []string
	}{
		"--conns=2 --clients=5 put --total=100 --val-size=256 --key-space-size=1000 --sample": {100, []string{"UNIX-SECOND,MIN-LATENCY-MS", "put: p50 "}},
		"put --total=20 --sequential-keys --key-space-size=10 --check-hashkv --rate=2000":     {20, []string{"HashKV Summary:\n\tHashKV: "}},
		"--precise range foo --total=50":                                                                                  {50, []string{"bench with linearizable range\n\nSummary:\n  Total:\t"}},
		"range foo foz --total=50 --consistency=s --count-only --limit=3":                                                 {50, []string{"bench with serializable range\n"}},
		"--clients=4 txn-put --total=30 --txn-ops=3 --key-space-size=9":                                                   {30, nil},
		"--clients=4 txn-mixed k --total=30 --rw-ratio=0 --key-space-size=9":                                              {30, []string{"Total Read Ops: 0\nDetails:", "Total Write Ops: 30\nDetails:\nSummary:"}},
		"txn-mixed --total=30 --rw-ratio=1e9":                                                                             {30, []string{"Total Read Ops: 30\nDetails:\nSummary:"}},
		"--clients=3 stm --total=30 --keys=5 --keys-per-txn=2 --isolation=ss":                                             {30, nil},
		"--clients=2 stm --total=10 --stm-locker=lock-client":                                                             {10, nil},
		"--clients=2 stm --total=10 --stm-locker=lock-rpc":                                                                {10, nil},
		"--clients=2 watch --streams=3 --watch-per-stream=4 --put-total=5":                                                {12, []string{"Watch creation summary:\n\nSummary:", "Watch events received summary:\n\nSummary:"}},
		"watch --streams=2 --watch-per-stream=3 --watched-key-total=2 --sequential-keys --key-space-size=2 --put-total=4": {6, nil},
		"watch-get --watchers=20 --streams=3 --events=4":                                                                  {-1, []string{"Get during watch summary:\n"}},
		"watch-latency --streams=2 --watchers-per-stream=3 --put-total=5 --prevkv":                                        {5, []string{"\nPut summary:\n\nSummary:", "\nWatch events summary:\n\nSummary:"}},
		"--clients=3 lease-keepalive --total=20":                                                                          {20, nil},
		"--clients=3 lease-keepalive --total=20 --keep-stream":                                                            {20, nil},
		"--target-leader --conns=2 --clients=2 put --total=10":                                                            {10, nil},
	} {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			code, out, errs := do(t, strings.Fields(line)...)
			if n := counted(out); code != 0 || want.count >= 0 && n != want.count {
				t.Errorf("code %d, counted %d, want %d: %s\n%s", code, n, want.count, errs, out)
			}
			for _, has := range want.has {
				if !strings.Contains(out, has) {
					t.Errorf("no %q in:\n%s", has, out)
				}
			}
			if strings.Contains(out, "Error distribution") {
				t.Errorf("errors:\n%s", out)
			}
		})
	}
}

// TestWatchEventsAreAllCounted: each of 12 watchers gets each of 5 puts, and watch-latency counts the
// same events from both ends.
func TestWatchEventsAreAllCounted(t *testing.T) {
	t.Parallel()
	_, out, errs := do(t, "watch", "--streams=3", "--watch-per-stream=4", "--put-total=5", "--key-size=9")
	_, out, _ = strings.Cut(out, "Watch events received summary:")
	if n := counted(out); n != 60 {
		t.Errorf("%d events, want 60: %s", n, errs)
	}
	_, out, errs = do(t, "watch-latency", "--streams=3", "--watchers-per-stream=4", "--put-total=5", "--put-rate=0")
	_, out, _ = strings.Cut(out, "Watch events summary:")
	if n := counted(out); n != 60 {
		t.Errorf("%d events, want 60: %s", n, errs)
	}
}

func TestMvccPut(t *testing.T) {
	t.Chdir(t.TempDir())
	var out, errs bytes.Buffer
	code := Main("benchmark", strings.Fields("mvcc put --total=20 --txn --txn-ops=3 --cpuprofile=cpu --memprofile=mem"), nil, &out, &errs)
	if n := counted(out.String()); code != 0 || n != 20 {
		t.Errorf("code %d, counted %d: %s\n%s", code, n, &errs, &out)
	}
	for _, profile := range []string{"cpu", "mem"} {
		if info, err := os.Stat(profile); err != nil || info.Size() == 0 {
			t.Errorf("profile %s: %v", profile, err)
		}
	}
	if left, _ := filepath.Glob("mvcc-bench*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestErrorsAreCounted: requests that fail are counted by kind and end nothing, which is fatal to
// etcd's tool.
func TestErrorsAreCounted(t *testing.T) {
	t.Parallel()
	code, out, _ := do(t, "put", "--total=10", "--val-size=2000000")
	if code != codeFailed || !strings.Contains(out, "Error distribution:\n  [10]\tetcdserver: request is too large\n") {
		t.Errorf("code %d:\n%s", code, out)
	}
	code, _, errs := do(t, "--endpoints=127.0.0.1:1", "put")
	if code != codeFailed || !strings.Contains(errs, "--endpoints: none answers") {
		t.Errorf("code %d: %s", code, errs)
	}
	// Nothing but errors: a run of ten million ends.
	code, out, errs = do(t, "range", "", "--total=10000000")
	if code != codeFailed || !strings.Contains(errs, "given up: not one request succeeded; the last error: etcdserver: key is not provided") {
		t.Errorf("code %d: %s\n%s", code, errs, out)
	}
}

func TestBadInput(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"put --key-size=1 --key-space-size=1000": "--key-size=1: with --key-space-size=1000 the numbers in the keys take 2 bytes; give --key-size=2 or more",
		"put --key-space-size=0":                 "--key-space-size=0: give a number from 1 to 2147483647",
		"put --rate=-1":                          "--rate=-1: give the requests a second",
		"put --total=0":                          "--total=0: give 1 or more, or a --duration",
		"put --open-loop":                        "--open-loop needs a --rate",
		"put --val-size=x":                       `invalid argument "x" for "--val-size"`,
		"put extra":                              `unknown command "extra"`,
		"--clients=0 put":                        "--clients=0: give 1 or more",
		"--conns=0 put":                          "--conns=0: give 1 or more",
		"--endpoints= put":                       "--endpoints",
		"--cert=x put":                           "--cert and --key belong together",
		"--timeout=-1s put":                      "--timeout=-1s: give 0 or more",
		"range":                                  "range: give a key",
		"range a b c":                            "range: give a key",
		"range a --consistency=x":                "--consistency=x: give l (linearizable) or s (serializable)",
		"txn-put --txn-ops=2":                    "--txn-ops=2: a transaction writes a key once",
		"txn-mixed --rw-ratio=-1":                "--rw-ratio=-1: give the reads for each write",
		"txn-mixed --rw-ratio=NaN":               "--rw-ratio=NaN: give the reads for each write",
		"stm --isolation=x":                      "--isolation=x: give c (read committed)",
		"stm --stm-locker=x":                     "--stm-locker=x: give lock-client, lock-rpc, stm",
		"stm --keys-per-txn=2":                   "--keys-per-txn=2: give at most --keys, which is 1",
		"stm --txn-wr-percent=101":               "--txn-wr-percent=101: give 0 to 100",
		"watch --streams=0":                      "--streams=0: give a number from 1",
		"watch-get --events=0":                   "--events=0: give a number from 1",
		"watch-latency --put-total=0":            "--put-total=0: give a number from 1",
		"mvcc put --total=0":                     "--total=0: give a number from 1",
		"--versus=x, put":                        "--versus=x,: an endpoint is empty",
		"--repeat=-1 put":                        "--repeat=-1: give 1 to 1000",
		"--report=x.pdf put":                     "--report=x.pdf: give a name that ends in .html or .svg",
		"-o yaml put":                            "--output=yaml: give text or json",
		"put --val-size=1,x":                     `"x" is no size: give bytes, or 1k`,
		"mix --mix=x":                            "--mix=x: give one of discovery, kubernetes, patroni",
		"mvcc put --versus=x":                    "mvcc put has no --versus",
		"nonsense":                               `unknown command "nonsense"`,
		"put --nonsense":                         "unknown flag: --nonsense",
		"put --user=a:b --cacert=/nonexistent --total=1": "--cacert",
	} {
		args := strings.Fields(line)
		if !strings.Contains(line, "--endpoints") {
			args = append([]string{"--endpoints=127.0.0.1:1"}, args...)
		}
		code, out, errs := do(t, args...)
		if code != codeUsage || !strings.HasPrefix(errs, "Error: ") || !strings.Contains(errs, want) || out != "" {
			t.Errorf("%s: code %d, %q, want %q; output %q", line, code, errs, want, out)
		}
	}
}

// By the name of etcd's tool it prints the help, as that does.
func TestUnknownPart(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]int{"belay bench": codeUsage, "benchmark": 0} {
		var stdout, stderr bytes.Buffer
		code := MainContext(t.Context(), name, []string{"mvcc", "nonsense"}, strings.NewReader(""), &stdout, &stderr)
		says := strings.HasPrefix(stderr.String(), `Error: unknown command "nonsense" for "belay bench mvcc": one of put`)
		if code != want || says != (want != 0) || strings.Contains(stdout.String(), "Usage:") == says {
			t.Errorf("%s: code %d, %s; output %s", name, code, &stderr, &stdout)
		}
	}
}

var interruptedRuns atomic.Int64

// TestInterrupted: a run that is ended prints what it has.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	endpoint, err := server()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errs bytes.Buffer
	size := 100 + int(interruptedRuns.Add(1)) // a key that nobody has written
	go cancelWhenWritten(ctx, cancel, endpoint, make([]byte, size))
	code := MainContext(ctx, "benchmark", []string{"--endpoints=" + endpoint, "put", "--key-size=" + strconv.Itoa(size), "--total=2000000000"}, nil, &out, &errs)
	if n := counted(out.String()); code != codeInterrupted || n == 0 || !strings.Contains(errs.String(), "interrupted: this is what was measured so far") {
		t.Errorf("code %d, counted %d: %s\n%s", code, n, &errs, &out)
	}
}

// cancelWhenWritten ends a run that has put a key ten times.
func cancelWhenWritten(ctx context.Context, cancel func(), endpoint string, key []byte) {
	defer cancel()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Context: ctx, Logger: zap.NewNop()})
	if err != nil {
		return
	}
	defer c.Close()
	for w := range c.Watch(ctx, string(key), clientv3.WithRev(1)) {
		for _, e := range w.Events {
			if e.Kv.Version >= 10 {
				return
			}
		}
	}
}

// TestHelp: every command and flag says what it does.
func TestHelp(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Short == "" {
			t.Errorf("%s says nothing", cmd.Name())
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s says nothing", cmd.Name(), f.Name)
			}
		})
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk((&bench{name: "benchmark"}).command())
	if code, out, _ := do(t, "--endpoints=x", "--help"); code != 0 || !strings.Contains(out, "watch-latency") {
		t.Errorf("code %d: %s", code, out)
	}
}

func TestPerfdash(t *testing.T) {
	t.Setenv("ARTIFACTS", t.TempDir())
	code, out, errs := do(t, "put", "--total=10", "--report-perfdash")
	files, _ := filepath.Glob(filepath.Join(os.Getenv("ARTIFACTS"), "EtcdAPI_benchmark_put_*.json"))
	if code != 0 || len(files) != 1 || !strings.Contains(out, "Successfully created a JSON perf report at "+files[0]) {
		t.Fatalf("code %d, files %v: %s\n%s", code, files, errs, out)
	}
	text, err := os.ReadFile(files[0])
	if err != nil || !regexp.MustCompile(`(?s)"version": "v1".*"Perc50": [0-9.]+,.*"Operation": "PUT".*"unit": "ms"`).Match(text) {
		t.Errorf("%s: %v", text, err)
	}
}

// Package surface checks the pages in docs against the code: docs/compatibility.md says for each
// part of etcd's surface whether it works here. Whatever the code can answer is checked, so that
// the tables cannot become outdated.
//
// A table is checked if its second column is called "state". A row covers the names in backticks in
// its first column.
package surface

import (
	"bytes"
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/belaydb/belay/backup"
	"github.com/belaydb/belay/cli/ctl"
	"github.com/belaydb/belay/cli/proxy/relay"
	"github.com/belaydb/belay/config"
	"github.com/belaydb/belay/evidence"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/logsink"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/node"
	"github.com/belaydb/belay/raftlog"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/server"
	"github.com/belaydb/belay/server/electionpb"
	"github.com/belaydb/belay/server/lockpb"
	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/store"
	"github.com/belaydb/belay/transport"
	"github.com/belaydb/belay/usage"
	"github.com/belaydb/belay/watch"
)

const (
	works    = "works"
	differs  = "differs"
	noEffect = "no effect"
	never    = "not"
	notYet   = "not yet"
)

// row is one row of a table with states.
type row struct {
	line  int
	about string   // the first column
	names []string // in backticks in the first column
	state string
	note  string
}

// absent reports whether the row is about what is not there.
func (r row) absent() bool { return r.state == never || r.state == notYet }

var backticks = regexp.MustCompile("`([^`]+)`")

// readTables returns the rows of each section, by the number that its heading begins with.
func readTables(t *testing.T) map[string][]row {
	t.Helper()
	text, err := os.ReadFile("../../docs/compatibility.md")
	if err != nil {
		t.Fatal(err)
	}
	heading := regexp.MustCompile(`^#+ ([0-9]+(\.[0-9]+)?)\b`)
	sections := map[string][]row{}
	section, inTable := "", false
	for i, line := range strings.Split(string(text), "\n") {
		if m := heading.FindStringSubmatch(line); m != nil {
			section = m[1]
		}
		// A bar within backticks separates nothing.
		plain := backticks.ReplaceAllStringFunc(line, func(s string) string { return strings.ReplaceAll(s, "|", "\x00") })
		cells := strings.Split(strings.ReplaceAll(plain, `\|`, "\x00"), "|")
		if len(cells) < 4 {
			inTable = false
			continue
		}
		state := strings.TrimSpace(cells[2])
		switch {
		case state == "state":
			inTable = true
		case !inTable || strings.Trim(state, "-: ") == "":
		default:
			r := row{line: i + 1, state: state, about: strings.ReplaceAll(strings.TrimSpace(cells[1]), "\x00", "|"), note: cells[3]}
			if !slices.Contains([]string{works, differs, noEffect, never, notYet}, state) {
				t.Errorf("compatibility.md:%d: %q is not a state", r.line, state)
			}
			if state != works && strings.TrimSpace(cells[3]) == "" {
				t.Errorf("compatibility.md:%d: say why it %s", r.line, state)
			}
			for _, m := range backticks.FindAllStringSubmatch(cells[1], -1) {
				r.names = append(r.names, strings.ReplaceAll(m[1], "\x00", "|"))
			}
			sections[section] = append(sections[section], r)
		}
	}
	return sections
}

// byName returns the rows of a section by name; each name may be in one row only.
func byName(t *testing.T, section string) map[string]row {
	t.Helper()
	all := map[string]row{}
	for _, r := range readTables(t)[section] {
		if len(r.names) == 0 {
			t.Errorf("compatibility.md:%d: section %s: a row without a name in backticks", r.line, section)
		}
		for _, name := range r.names {
			if twice, ok := all[name]; ok {
				t.Errorf("compatibility.md:%d: %s is in line %d already", r.line, name, twice.line)
			}
			all[name] = r
		}
	}
	if len(all) == 0 {
		t.Fatalf("section %s has no table with states", section)
	}
	return all
}

// sameNames compares what is with what the tables list.
func sameNames(t *testing.T, what string, have, listed []string) {
	t.Helper()
	for _, name := range have {
		if !slices.Contains(listed, name) {
			t.Errorf("%s %s is not listed", what, name)
		}
	}
	for _, name := range listed {
		if !slices.Contains(have, name) {
			t.Errorf("%s %s is listed, but there is none", what, name)
		}
	}
}

func namesOf(rows map[string]row, states ...string) (names []string) {
	for name, r := range rows {
		if slices.Contains(states, r.state) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// load is config.Load for one command line.
func load(args ...string) (ok bool, code int, stdout, stderr, log string) {
	var out, errs, lines bytes.Buffer
	_, lg, code, ok := config.Load(config.Options{
		Program: config.Belay, Version: "test", Command: args, Args: args,
		Stdout: &out, Stderr: &errs, LogWriter: &lines,
	})
	if lg != nil {
		_ = lg.Close()
	}
	return ok, code, out.String(), errs.String(), lines.String()
}

// etcdFlags is how many flags etcd 3.7 has: 113 that it documents, --help, and 15 that it ignores.
const etcdFlags = 129

// ownFlags is how many flags Belay has that etcd has not.
const ownFlags = 26

// TestFlags gives each flag a value that is not its default.
func TestFlags(t *testing.T) {
	flags := map[string]row{}
	for name, r := range byName(t, "3.1") {
		flags[strings.TrimPrefix(name, "--")] = r
	}
	file := filepath.Join(t.TempDir(), "etcd.yaml")
	if err := os.WriteFile(file, []byte("name: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	values := map[string][]string{
		"listen-client-urls":    {"http://127.0.0.1:1", "--advertise-client-urls=http://127.0.0.1:1"},
		"listen-peer-urls":      {"http://127.0.0.1:1"},
		"advertise-client-urls": {"http://127.0.0.1:1"}, "initial-advertise-peer-urls": {"http://127.0.0.1:1"},
		"initial-cluster": {"default=http://127.0.0.1:1"}, "initial-cluster-state": {"existing"},
		"heartbeat-interval": {"50"}, "election-timeout": {"2000"}, "log-level": {"error"}, "log-format": {"console"}, "log-outputs": {"stdout"}, "logger": {"zap"},
		"disk-stall-handover": {"8s"}, "max-cluster-version": {"3.6"}, "max-unsynced-bytes": {"1073741824"}, "memory-budget": {"2GiB"}, "neighbours-record-bytes": {"1048576"}, "rpc-engine": {"grpc-go"},
		"backup-to": {"/x"}, "backup-interval": {"2h"}, "backup-increment-interval": {"2m"}, "backup-keep": {"3"},
		"cipher-suites": {"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"}, "tls-max-version": {"TLS1.3"},
		"discovery-endpoints": {"127.0.0.1:1", "--discovery-token=x"}, "discovery-token": {"x", "--discovery-endpoints=127.0.0.1:1"},
		"feature-gates": {"InitialCorruptCheck=true"}, "config-file": {file}, "v2-deprecation": {"gone"},
		"metrics": {"extensive"}, "auto-compaction-mode": {"revision"}, "auto-compaction-retention": {"5"}, "discovery-fallback": {"exit"},
		"enable-log-rotation": {"true", "--log-outputs=" + filepath.Join(t.TempDir(), "log")}, "log-rotation-config-json": {`{"maxsize": 1}`},
	}
	_, _, help, _, _ := load("--help")
	var have []string
	for _, m := range regexp.MustCompile(`(?m)^  --(\S+) '`).FindAllStringSubmatch(help, -1) {
		have = append(have, m[1])
	}
	const warning = "flag has no effect in Belay - ignoring"
	for name, r := range flags {
		if name == "version" || name == "help" || name == "h" {
			if ok, code, _, _, _ := load("--" + name); ok || code != 0 {
				t.Errorf("line %d: --%s: code %d", r.line, name, code)
			}
			continue
		}
		// The first value of the right type that asks for something else than the default.
		got, said := "", ""
		for _, value := range []string{"true", "false", "7", "7s", "x", "http://127.0.0.1:1", "TLS1.3"} {
			args := []string{"--" + name + "=" + value}
			if v := values[name]; v != nil {
				args = append([]string{"--" + name + "=" + v[0]}, v[1:]...)
			}
			ok, _, _, stderr, log := load(args...)
			switch {
			case ok && strings.Contains(log, warning) && strings.Contains(log, `"`+name+`"`):
				got = noEffect
			case ok && (got == "" || got == "wrong value"):
				got = works
			case got == "":
				got, said = "wrong value", stderr+log
			}
			if got == noEffect {
				break
			}
		}
		if got == works && !slices.Contains(have, name) && name != "discovery-fallback" {
			got = noEffect // accepted in silence, and nothing is known of it
		}
		if want := strings.Replace(r.state, differs, works, 1); got != want {
			contradict(t, r, got, fmt.Sprintf("--%s is said to be %q, the code says %q %s", name, want, got, said))
		}
	}
	if len(flags) != etcdFlags+ownFlags {
		t.Errorf("%d flags are listed, etcd has %d and Belay %d of its own", len(flags), etcdFlags, ownFlags)
	}

	listed := namesOf(flags, works, differs)
	listed = slices.DeleteFunc(listed, func(s string) bool { return slices.Contains([]string{"version", "help", "h", "discovery-fallback"}, s) })
	sameNames(t, "working flag", have, listed)
}

// registered returns the names of all families that the packages register.
func registered(t *testing.T) []string {
	reg := prometheus.NewRegistry()
	raftlog.NewMetrics(reg)
	store.NewMetrics(reg)
	mvcc.NewMetrics(reg)
	lease.NewMetrics(reg)
	watch.NewMetrics(reg)
	state.NewMetrics(reg)
	replica.NewMetrics(reg)
	transport.NewMetrics(reg)
	logsink.NewMetrics(reg)
	node.NewMetrics(reg)
	evidence.NewMetrics(reg)
	reg.MustRegister(usage.NewCollector(nil, func() bool { return true }))
	server.NewMetrics(reg, server.MetricsOptions{Extensive: true})
	proxied := prometheus.NewRegistry() // a process of its own, which has some of the same names
	relay.NewMetrics(proxied)
	descs := make(chan *prometheus.Desc)
	go func() {
		reg.Describe(descs)
		proxied.Describe(descs)
		close(descs)
	}()
	name := regexp.MustCompile(`fqName: "([^"]+)"`)
	names := map[string]bool{}
	for d := range descs {
		names[name.FindStringSubmatch(d.String())[1]] = true
	}
	return slices.Sorted(maps.Keys(names))
}

// etcdMetrics is how many families etcd 3.7 defines itself.
const etcdMetrics = 111

func TestMetrics(t *testing.T) {
	etcd, libraries := byName(t, "6.1"), byName(t, "6.2")
	if len(etcd) != etcdMetrics {
		t.Errorf("section 6.1 lists %d families, etcd has %d", len(etcd), etcdMetrics)
	}
	have := registered(t)
	var listed []string
	for _, rows := range []map[string]row{etcd, libraries} {
		listed = append(listed, namesOf(rows, works, differs, noEffect)...)
		for _, name := range namesOf(rows, never, notYet) {
			if slices.Contains(have, name) {
				contradict(t, rows[name], works, name+" is said to be missing, but is registered")
			}
		}
	}
	// Families of client_golang are the node's, and seen in TestHTTP.
	listed = slices.DeleteFunc(listed, func(s string) bool {
		return strings.HasPrefix(s, "go_") || strings.HasPrefix(s, "process_") || strings.HasPrefix(s, "promhttp_")
	})
	sameNames(t, "metric", have, listed)
}

func TestCommands(t *testing.T) {
	type command struct{ flags []string }
	have := map[string]command{}
	var walk func(path string, c *cobra.Command)
	walk = func(path string, c *cobra.Command) {
		for _, sub := range c.Commands() {
			if sub.Name() == "help" || sub.Hidden {
				continue
			}
			walk(strings.TrimSpace(path+" "+sub.Name()), sub)
		}
		if c.HasSubCommands() {
			return
		}
		var cmd command
		add := func(f *pflag.Flag) {
			if f.Name != "help" && !slices.Contains(cmd.flags, "--"+f.Name) && c.Root().PersistentFlags().Lookup(f.Name) == nil {
				cmd.flags = append(cmd.flags, "--"+f.Name)
			}
		}
		c.LocalFlags().VisitAll(add)
		c.InheritedFlags().VisitAll(add)
		have[path] = cmd
	}
	walk("", ctl.Command("belay ctl", strings.NewReader(""), io.Discard, io.Discard))

	listed := map[string]row{}
	for _, r := range readTables(t)["4.3"] {
		if r.absent() {
			for _, name := range r.names {
				if _, ok := have[name]; ok {
					contradict(t, r, works, name+" is said to be missing, but is there")
				}
			}
			continue
		}
		name, flags := r.names[0], r.names[1:]
		listed[name] = r
		if c, ok := have[name]; ok {
			sameNames(t, name, c.flags, flags)
		}
	}
	sameNames(t, "command", slices.Sorted(maps.Keys(have)), slices.Sorted(maps.Keys(listed)))

	// The global flags.
	var global []string
	ctl.Command("belay ctl", strings.NewReader(""), io.Discard, io.Discard).PersistentFlags().VisitAll(func(f *pflag.Flag) { global = append(global, "--"+f.Name) })
	sameNames(t, "global flag", global, namesOf(byName(t, "4.1"), works, differs))
}

// TestServices holds section 1.1 against the services' own descriptions and a
// running member: what is said to work is not answered with Unimplemented.
func TestServices(t *testing.T) {
	m := startMember(t)
	conn, err := grpc.NewClient(m.client, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	rows := byName(t, "1.1")
	var have []string
	for _, s := range []*grpc.ServiceDesc{
		&pb.KV_ServiceDesc, &pb.Watch_ServiceDesc, &pb.Lease_ServiceDesc, &pb.Cluster_ServiceDesc, &pb.Maintenance_ServiceDesc,
		&pb.Auth_ServiceDesc, &electionpb.Election_ServiceDesc, &lockpb.Lock_ServiceDesc, &healthpb.Health_ServiceDesc,
	} {
		short := s.ServiceName[strings.LastIndex(s.ServiceName, ".")+1:]
		for _, method := range s.Methods {
			name := short + "." + method.MethodName
			have = append(have, name)
			// An empty message asks each for nothing, or for something that is refused.
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			if !slices.Contains([]string{"Election.Campaign", "Lock.Lock"}, name) { // these would wait, or leave a lease
				err := conn.Invoke(ctx, "/"+s.ServiceName+"/"+method.MethodName, &emptypb.Empty{}, &emptypb.Empty{})
				if missing, said := status.Code(err) == codes.Unimplemented, rows[name].absent(); missing != said {
					t.Errorf("compatibility.md:%d: %s is said to be %q, and answers %v", rows[name].line, name, rows[name].state, err)
				}
			}
			cancel()
		}
		for _, stream := range s.Streams {
			have = append(have, short+"."+stream.StreamName)
		}
	}
	sameNames(t, "RPC", have, slices.Collect(maps.Keys(rows)))
}

// TestHTTP asks a running member for each path of section 2.
func TestHTTP(t *testing.T) {
	m := startMember(t)
	get := func(base, path string) int {
		resp, err := http.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if path == "/metrics" {
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			for name, r := range byName(t, "6.2") {
				process := strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") || strings.HasPrefix(name, "promhttp_")
				if there := strings.Contains(string(body), "\n"+name); process && there == r.absent() {
					t.Errorf("compatibility.md:%d: %s is said to be %q; on /metrics: %v", r.line, name, r.state, there)
				}
			}
		}
		return resp.StatusCode
	}
	for section, base := range map[string]string{"2.1": "http://" + m.client, "2.2": "http://" + m.client, "2.3": "http://" + m.peer} {
		for path, r := range byName(t, section) {
			if !strings.HasPrefix(path, "/") || strings.Contains(path, "pprof") {
				continue
			}
			code := get(base, strings.NewReplacer("*", "kv/range", "<id>", "1", "<from-hex>", "1").Replace(path))
			if missing := code == http.StatusNotFound; missing != r.absent() {
				state := works
				if missing {
					state = notYet
				}
				contradict(t, r, state, fmt.Sprintf("%s is said to be %q, and answers %d", path, r.state, code))
			}
		}
	}
}

type member struct{ client, peer string }

// startMember runs one member in this process.
func startMember(t *testing.T) member {
	t.Helper()
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	m := member{free(), free()}
	client, peer := []url.URL{{Scheme: "http", Host: m.client}}, []url.URL{{Scheme: "http", Host: m.peer}}
	n, err := node.Start(context.Background(), node.Config{
		Settings: node.Settings{
			Cluster: node.Cluster{
				Name: "default", DataDir: filepath.Join(t.TempDir(), "data"), InitialCluster: "default=http://" + m.peer, InitialClusterToken: "docs",
			},
			Ports: node.Ports{
				ListenClientURLs: client, AdvertiseClientURLs: client, ListenPeerURLs: peer, AdvertisePeerURLs: peer, EnableGateway: true,
			},
			Raft: node.Raft{UnsafeNoFsync: true},
			// Some are served only by a member that makes backups.
			Data: node.Data{Usage: true, Backup: backup.Settings{
				Place: backup.Place{To: filepath.Join(t.TempDir(), "backups")}, Every: time.Hour, Retention: backup.Retention{Least: 1},
			}},
		},
		TickInterval: 10 * time.Millisecond, ElectionTicks: 10,
		LogDropped: func() uint64 { return 0 },
		// Some paths are served at log level debug alone.
		Logger: zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(io.Discard), zap.DebugLevel)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Stop)
	deadline := time.After(20 * time.Second)
	select {
	case <-n.Ready():
	case err := <-n.Failed():
		t.Fatal(err)
	case <-deadline:
		t.Fatal("the member did not become ready")
	}
	// Calls are refused until the cluster has agreed on its version.
	for {
		resp, err := http.Get("http://" + m.client + "/version")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(body, []byte("not_decided")) {
			return m
		}
		select {
		case <-deadline:
			t.Fatalf("no cluster version: %s", body)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// source is code of this module, except tests.
type source struct {
	texts       map[string]bool // string literals, joined where they are added
	identifiers map[string]bool
}

// readSource reads what the house and its wings are made of; doctor's texts are about members, not a
// member's.
func readSource(t *testing.T) source {
	t.Helper()
	return readSourceBut(t, "proof", "internal/crash", "internal/fault", "docs", "cli/doctor")
}

// readSourceBut reads the whole module but some folders.
func readSourceBut(t *testing.T, leftOut ...string) source {
	t.Helper()
	src := source{map[string]bool{}, map[string]bool{}}
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if rel, _ := filepath.Rel("../..", path); rel != "." && (strings.HasPrefix(d.Name(), ".") || slices.Contains(leftOut, rel)) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.BasicLit, *ast.BinaryExpr:
				if text, ok := literal(n.(ast.Expr)); ok {
					src.texts[text] = true
				}
			case *ast.Ident:
				src.identifiers[n.Name] = true
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func literal(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind == token.STRING {
			s, err := strconv.Unquote(e.Value)
			return s, err == nil
		}
	case *ast.BinaryExpr:
		if e.Op == token.ADD {
			x, ok := literal(e.X)
			y, ok2 := literal(e.Y)
			return x + y, ok && ok2
		}
	}
	return "", false
}

// etcdMessages is how many different messages the inventory has of etcd's server.
const etcdMessages = 305

// TestLogMessages looks for each message of section 7.2 in the code.
func TestLogMessages(t *testing.T) {
	src := readSource(t)
	rows := byName(t, "7.2")
	if len(rows) != etcdMessages {
		t.Errorf("section 7.2 lists %d messages, etcd has %d", len(rows), etcdMessages)
	}
	for name, r := range rows {
		switch there := src.texts[name]; {
		case r.absent() && there:
			contradict(t, r, works, fmt.Sprintf("%q is said to be missing, but is in the code", name))
		case !r.absent() && !there:
			contradict(t, r, notYet, fmt.Sprintf("%q is said to be %q, but is not in the code", name, r.state))
		}
	}
}

// TestOperations looks for each message that operations.md explains.
func TestOperations(t *testing.T) {
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "| message | what it means, what to do |\n")
	table, _, _ := strings.Cut(rest, "\n\n")
	src, found := readSource(t), 0
	for _, line := range strings.Split(table, "\n") {
		if m := regexp.MustCompile("^\\| `([^`]+)` \\|").FindStringSubmatch(line); m != nil {
			if found++; !src.texts[m[1]] {
				t.Errorf("operations.md: %q is not in the code", m[1])
			}
		}
	}
	if found < 30 {
		t.Errorf("%d messages found in the table", found)
	}
}

// TestLimits looks the constants and defaults of operations.md's table of limits up in the code.
func TestLimits(t *testing.T) {
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "| what | bound | name |\n")
	table, _, _ := strings.Cut(rest, "\n\n")
	found := 0
	for _, line := range strings.Split(table, "\n") {
		cells := strings.Split(line, "|")
		if len(cells) < 5 {
			continue
		}
		pkg := regexp.MustCompile(`\((\w+)\)`).FindStringSubmatch(cells[3])
		for _, m := range backticks.FindAllStringSubmatch(cells[3], -1) {
			if strings.HasPrefix(m[1], "--") {
				continue
			}
			found++
			if pkg == nil {
				t.Errorf("operations.md: %s: in which package?", m[1])
				continue
			}
			value, ok := valueOf(t, filepath.Join("../..", pkg[1]), m[1])
			if !ok {
				t.Errorf("operations.md: package %s has no value %s", pkg[1], m[1])
			} else if !regexp.MustCompile(`\b` + regexp.QuoteMeta(value) + `\b`).MatchString(cells[2]) {
				t.Errorf("operations.md: %s.%s is %s, the table says%s", pkg[1], m[1], value, cells[2])
			}
		}
	}
	if found < 25 {
		t.Errorf("%d names found in the table of limits", found)
	}
}

// valueOf finds what a package's constant is, or what a field of options is by default or is set
// to, written as the table writes it.
func valueOf(t *testing.T, dir, name string) (text string, ok bool) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	found := func(e ast.Expr) {
		if n, duration, is := number(t, e); is && !ok && n != 0 {
			text, ok = written(name, n, duration), true
		}
	}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				for i, id := range n.Names {
					if id.Name == name && i < len(n.Values) {
						found(n.Values[i])
					}
				}
			case *ast.AssignStmt: // c.Field = default
				if len(n.Lhs) != len(n.Rhs) {
					break
				}
				for i, l := range n.Lhs {
					if s, is := l.(*ast.SelectorExpr); is && s.Sel.Name == name {
						found(n.Rhs[i])
					}
				}
			case *ast.KeyValueExpr: // Config{Field: value}
				if id, is := n.Key.(*ast.Ident); is && id.Name == name {
					found(n.Value)
				}
			case *ast.CallExpr: // setDefault(&c.Field, default)
				if len(n.Args) != 2 {
					break
				}
				if u, is := n.Args[0].(*ast.UnaryExpr); is {
					if s, is := u.X.(*ast.SelectorExpr); is && s.Sel.Name == name {
						found(n.Args[1])
					}
				}
			}
			return true
		})
	}
	return text, ok
}

// number computes a constant expression of numbers, units of time, and constants of other packages.
func number(t *testing.T, e ast.Expr) (n int64, duration, ok bool) {
	t.Helper()
	switch e := e.(type) {
	case *ast.ParenExpr:
		return number(t, e.X)
	case *ast.BasicLit:
		n, err := strconv.ParseInt(e.Value, 0, 64)
		return n, false, err == nil
	case *ast.SelectorExpr:
		units := map[string]time.Duration{"Millisecond": time.Millisecond, "Second": time.Second, "Minute": time.Minute, "Hour": time.Hour}
		if d, ok := units[e.Sel.Name]; ok {
			return int64(d), true, true
		}
		if pkg, is := e.X.(*ast.Ident); is {
			if value := constant(t, filepath.Join("../..", pkg.Name), e.Sel.Name); value != nil {
				return number(t, value)
			}
		}
	case *ast.BinaryExpr:
		x, dx, okx := number(t, e.X)
		y, dy, oky := number(t, e.Y)
		if !okx || !oky {
			return 0, false, false
		}
		switch e.Op {
		case token.MUL:
			return x * y, dx || dy, true
		case token.SHL:
			return x << y, false, true
		case token.ADD:
			return x + y, dx || dy, true
		}
	}
	return 0, false, false
}

// constant is the expression behind a constant of the package in a folder; nil if there is none.
func constant(t *testing.T, dir, name string) (value ast.Expr) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			decl, is := d.(*ast.GenDecl)
			if !is || decl.Tok != token.CONST {
				continue
			}
			for _, s := range decl.Specs {
				spec := s.(*ast.ValueSpec)
				if i := slices.IndexFunc(spec.Names, func(id *ast.Ident) bool { return id.Name == name }); i >= 0 && i < len(spec.Values) {
					return spec.Values[i]
				}
			}
		}
	}
	return nil
}

// written is a value as the table writes it: a number of things if the name says so, else of bytes.
func written(name string, n int64, duration bool) string {
	count := strings.HasSuffix(name, "Count") || strings.HasSuffix(name, "Messages")
	switch {
	case duration && n%int64(time.Second) == 0:
		return fmt.Sprintf("%d s", n/int64(time.Second))
	case duration:
		return fmt.Sprintf("%d ms", n/int64(time.Millisecond))
	case !count && n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case !count && n >= 8<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", n>>10)
	case n >= 10_000:
		return fmt.Sprintf("%d,%03d", n/1000, n%1000)
	}
	return strconv.FormatInt(n, 10)
}

// TestErrors wants every error of etcd's API in section 1.11, and those that
// are said to work in the code.
func TestErrors(t *testing.T) {
	cmd := exec.Command("go", "list", "-f", "{{.Dir}}", "go.etcd.io/etcd/api/v3/v3rpc/rpctypes")
	cmd.Stderr = os.Stderr
	dir, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "error.go"))
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]string{} // name -> text
	for _, m := range regexp.MustCompile(`(?m)^\s+(ErrGRPC\w+)\s+=.*"(.*)"`).FindAllSubmatch(text, -1) {
		have[string(m[1])] = string(m[2])
	}
	rows := byName(t, "1.11")
	sameNames(t, "error", slices.Collect(maps.Keys(have)), slices.Collect(maps.Keys(rows)))
	src := readSource(t)
	for name, r := range rows {
		if r.state == works && !src.identifiers[name] && !src.texts[have[name]] {
			contradict(t, r, notYet, name+" is said to work, but the code never returns it")
		}
	}
}

// TestTablesCanFail shows that a wrong table would be found.
func TestTablesCanFail(t *testing.T) {
	if ok, code, _, stderr, _ := load("--no-such-flag=true"); ok || code != 2 || !strings.Contains(stderr, "not defined") {
		t.Errorf("a flag that is not there was not refused: %v %d %s", ok, code, stderr)
	}
	if names := registered(t); !slices.Contains(names, "etcd_server_has_leader") || len(names) < 50 {
		t.Errorf("metrics are not found: %s", fmt.Sprint(names))
	}
	for name, want := range map[string]string{"BulkQueueBytes": "160 MiB", "QueueMessages": "131,072"} {
		if have, ok := valueOf(t, "../../node", name); !ok || have != want {
			t.Errorf("node.%s is read as %q, want %q", name, have, want)
		}
	}
	if src := readSource(t); src.texts["no such text"] || !src.texts["slow fdatasync"] || !src.identifiers["ErrGRPCCompacted"] {
		t.Error("the code was not read")
	}
}

package check

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/belaydb/belay/proof/cluster"
)

// A costed is a server that is measured through, with what was measured in each case.
type costed struct {
	name    string
	address string
	proxy   int // pid; 0: nothing between
	rows    map[string][]cost
}

// cost is what one case has cost.
type cost struct {
	server, proxy      time.Duration // CPU
	serverRSS, peakRSS int64
	p50, p99           time.Duration
	rate               float64
	failed             int64
	ended              bool // the benchmark could not go on
}

// TestProxyCosts measures one etcd directly, through `belay proxy` over its own gRPC server and over
// grpc-go's, and through `etcd grpc-proxy`, in turn, and prints a table for docs/benchmarks.md: readers
// of one hot prefix, which changes ten times a second, watchers, puts and leases. Requests come at a
// rate, so CPU times may be compared on a busy machine. BELAY_PROXY_CASES are the beginnings of the
// cases to measure, separated by commas; all, if it is not set.
func TestProxyCosts(t *testing.T) {
	rounds, err := strconv.Atoi(os.Getenv("BELAY_PROXY_COSTS"))
	if err != nil {
		t.Skip("takes minutes: make proxy-costs (BELAY_PROXY_COSTS=rounds)")
	}
	tools := EtcdTools(t)
	c := startCluster(t, cluster.Config{Kind: cluster.Etcd, Size: 1, Binary: tools.Etcd})
	member := c.Members[0]
	sides := []*costed{
		{name: "nothing", address: strings.TrimPrefix(member.Endpoint(), "http://")},
		startCostedProxy(t, "belay", c.Endpoints()), startCostedProxy(t, "grpc-go", c.Endpoints()),
		startEtcdProxy(t, tools.Etcd, c.Endpoints()),
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rounds)*10*time.Minute)
	defer cancel()
	writer := newClient(t, c.Endpoints())
	for i := range 100 {
		if _, err := writer.Put(ctx, fmt.Sprintf("hot/%02d", i), strings.Repeat("v", 256)); err != nil {
			t.Fatal(err)
		}
	}
	writing, stop := context.WithCancel(ctx)
	var writes sync.WaitGroup
	writes.Go(func() {
		for n := 0; writing.Err() == nil; n++ {
			_, _ = writer.Put(writing, fmt.Sprintf("hot/%02d", n%100), strings.Repeat("v", 256)) // the test ends
			restFor(writing, 100*time.Millisecond)
		}
	})
	readers := []string{"hot/", "hot0", "--conns=20", "--clients=100", "--open-loop", "--rate=1000", "--duration=8s", "--warm-up=2s", "--timeout=10s"}
	type costCase struct {
		name string
		args []string
	}
	cases := []costCase{
		{"serializable reads", append([]string{"range", "--consistency=s"}, readers...)},
		{"linearizable reads", append([]string{"range", "--consistency=l"}, readers...)},
		{"linearizable reads, each reader as fast as it is answered", []string{"range", "--consistency=l", "hot/", "hot0", "--conns=20", "--clients=100", "--total=20000"}},
		{"puts of 100 clients", []string{"put", "--conns=100", "--clients=100", "--key-space-size=1000", "--sequential-keys", "--val-size=256", "--open-loop", "--rate=1000", "--duration=8s", "--warm-up=2s", "--timeout=10s"}},
		{"1,000 watchers of one key", []string{"watch", "--conns=50", "--clients=50", "--streams=50", "--watch-per-stream=20", "--put-total=1000", "--put-rate=100"}},
		{"keepalives of 10,000 leases", []string{"lease-keepalive", "--keep-stream", "--conns=100", "--clients=10000", "--open-loop", "--rate=1000", "--duration=10s", "--timeout=10s"}},
	}
	if only := os.Getenv("BELAY_PROXY_CASES"); only != "" {
		cases = slices.DeleteFunc(cases, func(k costCase) bool {
			return !slices.ContainsFunc(strings.Split(only, ","), func(prefix string) bool { return strings.HasPrefix(k.name, prefix) })
		})
	}
	for range rounds {
		for _, k := range cases {
			for _, s := range sides {
				if s.rows == nil {
					s.rows = make(map[string][]cost)
				}
				s.rows[k.name] = append(s.rows[k.name], measureCost(t, ctx, member, s, k.args))
			}
		}
	}
	stop()
	writes.Wait()
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	fmt.Fprintf(&table, "load average %s", load)
	for _, k := range cases {
		fmt.Fprintf(&table, "\n%s: belay bench %s\n\n| through | server CPU | proxy CPU | server RSS | proxy RSS, most | p50 | p99 | a second | failed |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n", k.name, strings.Join(k.args, " "))
		for _, s := range sides {
			each := func(value func(cost) string) string {
				var all []string
				for _, r := range s.rows[k.name] {
					if r.ended {
						all = append(all, "ended")
						continue
					}
					all = append(all, value(r))
				}
				return strings.Join(all, ", ")
			}
			seconds := func(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
			millis := func(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }
			fmt.Fprintf(&table, "| %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", s.name,
				each(func(r cost) string { return seconds(r.server) }), each(func(r cost) string { return seconds(r.proxy) }),
				each(func(r cost) string { return fmt.Sprintf("%d MB", r.serverRSS>>20) }), each(func(r cost) string { return fmt.Sprintf("%d MB", r.peakRSS>>20) }),
				each(func(r cost) string { return millis(r.p50) }), each(func(r cost) string { return millis(r.p99) }),
				each(func(r cost) string { return fmt.Sprintf("%.0f", r.rate) }), each(func(r cost) string { return fmt.Sprint(r.failed) }))
		}
	}
	t.Log(table.String())
}

// startCostedProxy starts `belay proxy` over an engine.
func startCostedProxy(t *testing.T, engine string, endpoints []string) *costed {
	t.Helper()
	p := startProxyProcess(t, "proxy", endpoints, "--rpc-engine="+engine)
	return &costed{name: "`belay proxy` over " + engine, address: p.address, proxy: p.cmd.Process.Pid}
}

// startEtcdProxy starts `etcd grpc-proxy`.
func startEtcdProxy(t *testing.T, etcd string, endpoints []string) *costed {
	t.Helper()
	port, err := cluster.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	p := &proxyProcess{address: address, binary: etcd, log: filepath.Join(t.TempDir(), "log")}
	p.args = []string{"grpc-proxy", "start", "--listen-addr=" + address, "--endpoints=" + strings.Join(endpoints, ","), "--data-dir=" + t.TempDir()}
	p.start(t)
	t.Cleanup(p.kill)
	return &costed{name: "`etcd grpc-proxy`", address: address, proxy: p.cmd.Process.Pid}
}

// measureCost runs `belay bench` through one side.
func measureCost(t *testing.T, ctx context.Context, member *cluster.Member, s *costed, args []string) (k cost) {
	t.Helper()
	usage := func(pid int) cluster.Usage {
		if pid == 0 {
			return cluster.Usage{}
		}
		u, err := cluster.ProcessUsage(pid)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	if s.proxy != 0 {
		_ = cluster.ResetPeak(s.proxy) // where it is not allowed the peak is that of before, too
	}
	server, proxy := usage(member.PID()), usage(s.proxy)
	var errs strings.Builder
	cmd := exec.CommandContext(ctx, Belay(t), append([]string{"bench", "--output=json", "--endpoints=" + s.address}, args...)...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil { // some requests have failed, or it could not go on: the others are measured nevertheless
		t.Logf("through %s: %v %s", s.name, err, errs.String())
	}
	k.server, k.proxy = usage(member.PID()).CPU-server.CPU, usage(s.proxy).CPU-proxy.CPU
	k.serverRSS, k.peakRSS = usage(member.PID()).RSSBytes, usage(s.proxy).PeakRSSBytes
	var document struct {
		Runs []struct {
			Sections []struct {
				Errors      map[string]int64   `json:"errors"`
				Rate        float64            `json:"operations_per_second"`
				Percentiles map[string]float64 `json:"percentiles_seconds"`
			} `json:"sections"`
		} `json:"runs"`
	}
	if err := json.Unmarshal(out, &document); err != nil || len(document.Runs) == 0 || len(document.Runs[0].Sections) == 0 {
		return cost{ended: true}
	}
	section := document.Runs[0].Sections[0]
	for _, n := range section.Errors {
		k.failed += n
	}
	at := func(name string) time.Duration {
		return time.Duration(section.Percentiles[name] * float64(time.Second))
	}
	k.p50, k.p99, k.rate = at("50"), at("99"), section.Rate
	return k
}

// perProcess is how many connections of this test one process has: its limit of descriptors may be
// 20,000, and a proxy keeps 512 of its own for other things.
const perProcess = 19_400

// TestProxyConnections opens many connections, each of which asks twice, and says what they take.
// Where they are more than one process may have there are several proxies side by side, and several
// processes of clients.
func TestProxyConnections(t *testing.T) {
	count, err := strconv.Atoi(os.Getenv("BELAY_PROXY_CONNECTIONS"))
	if err != nil {
		t.Skip("takes memory and descriptors: make proxy-costs (BELAY_PROXY_CONNECTIONS=n)")
	}
	tools := EtcdTools(t)
	c := startCluster(t, cluster.Config{Kind: cluster.Etcd, Size: 1, Binary: tools.Etcd})
	parts := (count + perProcess - 1) / perProcess
	for _, engine := range []string{"belay", "grpc-go", ""} {
		kind := "`etcd grpc-proxy`"
		var pids []int
		var clients []*connectionClient
		for i := range parts {
			var side *costed
			if engine == "" {
				side = startEtcdProxy(t, tools.Etcd, c.Endpoints())
			} else {
				side = startCostedProxy(t, engine, c.Endpoints())
				kind = side.name
			}
			pids = append(pids, side.proxy)
			clients = append(clients, startConnectionClient(t, side.address, count*(i+1)/parts-count*i/parts))
		}
		usage := func() (sum cluster.Usage) {
			for _, pid := range pids {
				u, err := cluster.ProcessUsage(pid)
				if err != nil {
					t.Fatal(err)
				}
				sum.CPU, sum.RSSBytes = sum.CPU+u.CPU, sum.RSSBytes+u.RSSBytes
			}
			return sum
		}
		server := func() cluster.Usage {
			u, err := cluster.ProcessUsage(c.Members[0].PID())
			if err != nil {
				t.Fatal(err)
			}
			return u
		}
		// all tells the clients to go on and returns how many of their connections were refused.
		all := func() (refused int) {
			for _, one := range clients {
				fmt.Fprintln(one.in)
			}
			for _, one := range clients {
				line, err := one.out.ReadString('\n')
				n, text, _ := strings.Cut(strings.TrimSpace(line), " ")
				bad, failed := strconv.Atoi(n)
				if err != nil || failed != nil {
					t.Fatalf("a process of clients said %q: %v", line, err)
				}
				if refused += bad; bad > 0 {
					t.Logf("through %s: %s", kind, text)
				}
			}
			return refused
		}
		before, serverBefore, began := usage(), server(), time.Now()
		refused := all()
		opened, idle := time.Since(began), usage()
		if refused == 0 {
			refused = all()
		}
		after, serverAfter := usage(), server()
		t.Logf("%d connections through %d %s in %v: RSS %d MB together, from %d MB; after another request of each %d MB; proxy CPU %v; server CPU %v, RSS %d MB; %d failed",
			count, parts, kind, opened, idle.RSSBytes>>20, before.RSSBytes>>20, after.RSSBytes>>20, after.CPU-before.CPU,
			serverAfter.CPU-serverBefore.CPU, serverAfter.RSSBytes>>20, refused)
		for _, one := range clients {
			one.in.Close()
		}
	}
}

// A connectionClient is a process of clients, by TestConnectionClient.
type connectionClient struct {
	in  io.WriteCloser
	out *bufio.Reader
}

func startConnectionClient(t *testing.T, address string, count int) *connectionClient {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^TestConnectionClient$", "-test.timeout=20m")
	cmd.Env = append(os.Environ(), fmt.Sprintf("BELAY_CONNECTION_CLIENT=%s %d", address, count))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	return &connectionClient{in, bufio.NewReader(out)}
}

// TestConnectionClient is the process of clients: for each line of its input each connection asks
// once, and a line says how many were refused, and why the first one was.
func TestConnectionClient(t *testing.T) {
	var address string
	var count int
	if n, _ := fmt.Sscan(os.Getenv("BELAY_CONNECTION_CLIENT"), &address, &count); n != 2 {
		t.Skip("a part of TestProxyConnections")
	}
	conns := make([]net.Conn, count)
	defer func() {
		for _, conn := range conns {
			if conn != nil {
				conn.Close()
			}
		}
	}()
	stream := uint32(1)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); stream += 2 {
		var refused atomic.Int64
		var first atomic.Pointer[error]
		var group sync.WaitGroup
		for part := range 50 {
			group.Go(func() {
				for i := part; i < count; i += 50 {
					var err error
					if conns[i] == nil {
						conns[i], err = net.Dial("tcp", address)
					}
					if err == nil {
						err = ask(conns[i], stream)
					}
					if err != nil && refused.Add(1) == 1 {
						first.Store(&err)
					}
				}
			})
		}
		group.Wait()
		why := ""
		if err := first.Load(); err != nil {
			why = (*err).Error()
		}
		fmt.Println(refused.Load(), why)
	}
}

// ask makes one Range on a connection with as little of a client as there can be, and waits for its
// answer. The first stream begins the connection.
func ask(conn net.Conn, stream uint32) error {
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	f := http2.NewFramer(conn, conn)
	if stream == 1 {
		if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
			return err
		}
		if err := f.WriteSettings(); err != nil {
			return err
		}
	}
	var block strings.Builder
	e := hpack.NewEncoder(&block)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", "/etcdserverpb.KV/Range"}, {":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		if err := e.WriteField(hpack.HeaderField{Name: h[0], Value: h[1], Sensitive: true}); err != nil { // without a table
			return err
		}
	}
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: []byte(block.String()), EndHeaders: true}); err != nil {
		return err
	}
	if err := f.WriteData(stream, true, []byte{0, 0, 0, 0, 3, 0x0a, 1, 'k'}); err != nil {
		return err
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return err
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				if err := f.WriteSettingsAck(); err != nil {
					return err
				}
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				if err := f.WritePing(true, frame.Data); err != nil {
					return err
				}
			}
		case *http2.HeadersFrame:
			if frame.StreamID == stream && frame.StreamEnded() {
				return nil
			}
		case *http2.RSTStreamFrame:
			return fmt.Errorf("the call was reset: %v", frame.ErrCode)
		case *http2.GoAwayFrame:
			return fmt.Errorf("the connection was ended: %v", frame.ErrCode)
		}
	}
}

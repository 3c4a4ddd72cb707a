package bench

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"

	"github.com/belaydb/belay/cli/bench/load"
)

// TestSizes: what --val-size takes.
func TestSizes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]sizes{"8": {8}, "256,1k,100K,1m": {256, 1 << 10, 100 << 10, 1 << 20}, "0": {0}, " 3 ,4": {3, 4}} {
		var s sizes
		if err := s.Set(text); err != nil || !slices.Equal(s, want) {
			t.Errorf("%q: %v, %v, want %v", text, s, err, want)
		}
	}
	for _, text := range []string{"", "x", "1g", "-1", "1,,2", "1k1", "99999999999999999999", "1025m"} {
		var s sizes
		if err := s.Set(text); err == nil {
			t.Errorf("%q is taken as %v", text, s)
		}
	}
	if s := (&sizes{8, 1 << 10, 1500, 1 << 20}).String(); s != "8,1k,1500,1m" {
		t.Error(s)
	}
}

// parsed runs a command line with -o json.
func parsed(t *testing.T, args ...string) document {
	t.Helper()
	code, out, errs := do(t, append(args, "-o", "json")...)
	var d document
	if err := json.Unmarshal([]byte(out), &d); err != nil || code != 0 {
		t.Fatalf("%v: code %d, %v: %s\n%s", args, code, err, errs, out)
	}
	return d
}

// TestJSON: the numbers of a run, and no password.
func TestJSON(t *testing.T) {
	t.Parallel()
	const total = 4000 // so many that the kernel, which counts CPU time in hundredths of a second, has seen the server
	d := parsed(t, "--clients=4", "put", fmt.Sprint("--total=", total), "--val-size=256")
	if d.Command != "put" || len(d.Runs) != 1 || d.Flags["clients"] != "4" {
		t.Fatalf("%+v", d)
	}
	r := d.Runs[0]
	s := r.Sections[0]
	ops := int64(0)
	for _, one := range s.Seconds {
		ops += one.Ops
	}
	if s.Operations != total || ops != total || s.Rate <= 0 || s.Percentiles["99.99"] < s.Percentiles["50"] || s.Percentiles["50"] <= 0 || *r.ValSize != 256 || r.Side != "A" {
		t.Errorf("%+v", r)
	}
	if runtime.GOOS == "linux" && (r.Costs == nil || r.Costs.Members != 1 || r.Costs.Seen != 1 || r.Costs.CPU <= 0 || r.Costs.RSS <= 0 || r.Costs.Client <= 0) {
		t.Errorf("costs %+v", r.Costs)
	}
	cmd := (&bench{name: "benchmark"}).command()
	put, _, _ := cmd.Find([]string{"put"})
	if err := put.ParseFlags([]string{"--user=root:secret"}); err != nil || flagsOf(put)["user"] != "***" {
		t.Errorf("%v, %v", err, flagsOf(put))
	}
}

// TestSweepVersusAndReport measures two sizes on two sides, twice each, and writes both reports.
func TestSweepVersusAndReport(t *testing.T) {
	t.Parallel()
	endpoint, err := server()
	if err != nil {
		t.Fatal(err)
	}
	page := filepath.Join(t.TempDir(), "report.html")
	code, out, errs := do(t, "--versus="+endpoint, "--repeat=2", "--report="+page, "--per-second", "put", "--total=50", "--val-size=8,1k")
	if code != 0 {
		t.Fatalf("code %d: %s", code, errs)
	}
	// One after the other, and the other way round the next time.
	var order []string
	for _, m := range regexp.MustCompile(`(?m)^(8|1k) +([AB]) +(\d) `).FindAllStringSubmatch(out, -1) {
		order = append(order, m[1]+m[2]+m[3])
	}
	if want := []string{"8A1", "8B1", "8B2", "8A2", "1kA1", "1kB1", "1kB2", "1kA2"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	for _, want := range []string{"A = " + endpoint, "B = " + endpoint, "val-size 8:", "val-size 1k:", "B : A "} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	if !regexp.MustCompile(`(?m)^ +\d+\.\d s +[\d,]+ ops/s  p50 .* p99 .* max .* 100 %$`).MatchString(errs) {
		t.Errorf("no line of a second in:\n%s", errs)
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Throughput over time", "Latency by percentile", "Throughput by size of values", "values of 1k", "<svg"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in the page", want)
		}
	}
	if regexp.MustCompile(`(?i)(src|href)="http|@import|<script|url\(http`).Match(text) {
		t.Error("the page wants something from the network")
	}

	picture := filepath.Join(t.TempDir(), "report.svg")
	if code, _, errs := do(t, "--report="+picture, "range", "k", "--total=50"); code != 0 {
		t.Fatalf("code %d: %s", code, errs)
	}
	f, err := os.Open(picture)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dec := xml.NewDecoder(f)
	for {
		if _, err := dec.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("the picture is not XML: %v", err)
		}
	}
}

// TestMixes: each runs, every part of it has its share, and watchers get events.
func TestMixes(t *testing.T) {
	t.Parallel()
	for name, m := range mixes() {
		total := 0
		for _, p := range m.parts {
			total += p.share
		}
		if total != 100 {
			t.Errorf("%s: the shares are %d %%", name, total)
		}
		d := parsed(t, "--clients=4", "mix", "--mix="+name, "--total=1000", "--key-space-size=20")
		s := d.Runs[0].Sections
		if len(s) != 1+len(m.parts) || s[0].Operations != 1000 || len(s[0].Errors) > 0 {
			t.Fatalf("%s: %+v", name, s)
		}
		for i, p := range m.parts {
			// By chance some are more and some less: by six standard deviations once in 500
			// million runs, and 2 % of 1,000 are never none.
			share := float64(p.share) / 100
			far := 6 * math.Sqrt(1000*share*(1-share))
			if n := s[i+1].Operations; s[i+1].Name != p.name || n == 0 || math.Abs(float64(n)-1000*share) > far {
				t.Errorf("%s: %d of 1,000 are %s, want about %d", name, n, p.name, 10*p.share)
			}
		}
	}
	if code, out, errs := do(t, "mix", "--mix=discovery", "--total=300", "--key-space-size=5"); code != 0 || !regexp.MustCompile(`Watchers:\t20, which got [1-9]`).MatchString(out) {
		t.Errorf("code %d: %s\n%s", code, errs, out)
	}
}

// TestVerdicts: what is said of two sides, from numbers.
func TestVerdicts(t *testing.T) {
	t.Parallel()
	run := func(side string, took time.Duration) *measured {
		c := load.NewCounts()
		c.Add(took)
		return &measured{side: side, size: -1, outcome: &outcome{sections: []section{{name: "put", class: &load.Class{Counts: c}, elapsed: took}}}}
	}
	for _, c := range []struct {
		a, b  []time.Duration
		says  string
		ratio float64
	}{
		{[]time.Duration{100, 110, 120}, []time.Duration{200, 210, 220}, "A is better", 210.0 / 110},
		{[]time.Duration{100, 110, 120}, []time.Duration{50, 60, 99}, "B is better", 60.0 / 110},
		{[]time.Duration{100, 110, 120}, []time.Duration{120, 210, 220}, "not to be told apart", 210.0 / 110},
		{[]time.Duration{100, 200, 201}, []time.Duration{120, 130, 140}, "not to be told apart", 130.0 / 200},
		{[]time.Duration{100, 101}, []time.Duration{200, 210, 220}, "too few runs: give --repeat=3 or more", 210.0 / 100.5},
	} {
		var all []*measured
		for _, d := range c.a {
			all = append(all, run("A", d*time.Millisecond))
		}
		for _, d := range c.b {
			all = append(all, run("B", d*time.Millisecond))
		}
		found := false
		for _, v := range compare(all) {
			if v.Figure != "p50" {
				continue
			}
			found = true
			if v.Says != c.says || v.Ratio < c.ratio*0.99 || v.Ratio > c.ratio*1.01 {
				t.Errorf("%v and %v: %q, %.3f, want %q, %.3f", c.a, c.b, v.Says, v.Ratio, c.says, c.ratio)
			}
		}
		if !found {
			t.Error("no verdict")
		}
	}
}

// TestReportText holds the text of a report against a file, from fixed numbers.
func TestReportText(t *testing.T) {
	t.Parallel()
	c := load.NewCounts()
	for i := 1; i <= 1000; i++ {
		c.Add(time.Duration(i) * 100 * time.Microsecond)
	}
	c.Fail("etcdserver: too many requests")
	c.Fail("etcdserver: too many requests")
	c.Fail("context deadline exceeded")
	at := time.Unix(1700000000, 0)
	o := &outcome{
		sections: []section{{name: "put", after: "\n", elapsed: 2 * time.Second, class: &load.Class{Counts: c, Seconds: []load.Second{
			c.Second(at, time.Second), load.NewCounts().Second(at.Add(time.Second), time.Second),
		}}}},
		unanswered: 3, oldest: 1500 * time.Millisecond,
		costs: &costs{Members: 3, Seen: 3, CPU: 0.05, RSS: 123456789, Written: 4096000, Client: 0.02},
	}
	var out strings.Builder
	printer{&out, false, true}.print(o)
	golden := "testdata/report.txt"
	if *rewrite {
		if err := os.WriteFile(golden, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || out.String() != string(want) {
		t.Errorf("%v; with -rewrite the file is written anew:\n%s", err, out.String())
	}
}

// TestReadSpent: two families of a page of metrics.
func TestReadSpent(t *testing.T) {
	t.Parallel()
	s, err := readSpent(strings.NewReader("# HELP x\nprocess_cpu_seconds_total 12.5\nother 3\nprocess_resident_memory_bytes 1.5e+08\n"))
	if err != nil || s.cpu != 12.5 || s.rss != 1.5e8 {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := readSpent(strings.NewReader("nothing 1\n")); err == nil {
		t.Error("a page without them is taken")
	}
}

// stalling is a server that answers everything at once, but for half a second from its first put on
// nothing.
type stalling struct {
	wants error // of Status
	pb.UnimplementedKVServer
	pb.UnimplementedMaintenanceServer
	until func() time.Time
}

func (s *stalling) Put(context.Context, *pb.PutRequest) (*pb.PutResponse, error) {
	time.Sleep(time.Until(s.until()))
	return &pb.PutResponse{}, nil
}

func (s *stalling) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	return &pb.StatusResponse{}, s.wants
}

// TestOpenLoopShowsAStalledServer: of 1,000 requests, 500 are due while the server stalls. With
// --open-loop all of them are late; without it two clients wait, and two requests are.
func TestOpenLoopShowsAStalledServer(t *testing.T) {
	t.Parallel()
	run := func(flags ...string) (p75, slowest float64) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		srv := grpc.NewServer()
		s := &stalling{until: sync.OnceValue(func() time.Time { return time.Now().Add(500 * time.Millisecond) })}
		pb.RegisterKVServer(srv, s)
		pb.RegisterMaintenanceServer(srv, s)
		go func() { _ = srv.Serve(l) }()
		defer srv.Stop()
		d := parsed(t, append([]string{"--endpoints=" + l.Addr().String(), "--clients=2", "put", "--total=1000", "--rate=1000"}, flags...)...)
		r := d.Runs[0].Sections[0]
		if r.Operations != 1000 {
			t.Errorf("%d operations", r.Operations)
		}
		return r.Percentiles["75"], r.Slowest
	}
	if p75, slowest := run("--open-loop"); p75 < 0.1 || slowest < 0.45 {
		t.Errorf("open loop: p75 %v s, slowest %v s", p75, slowest)
	}
	if p75, slowest := run(); p75 > 0.25 || slowest < 0.45 {
		t.Errorf("closed loop: p75 %v s, slowest %v s", p75, slowest)
	}
}

// TestWantsUser: a cluster with users on says so before anything is measured.
func TestWantsUser(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	pb.RegisterMaintenanceServer(srv, &stalling{wants: rpctypes.ErrGRPCUserEmpty})
	go func() { _ = srv.Serve(l) }()
	defer srv.Stop()
	code, _, errs := do(t, "--endpoints="+l.Addr().String(), "put")
	if want := "--user: " + l.Addr().String() + " wants a user; give name:password"; code != codeFailed || !strings.Contains(errs, want) {
		t.Errorf("code %d: %s", code, errs)
	}
}

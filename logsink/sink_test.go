package logsink

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// gate is an output that can be shut: then Write waits.
type gate struct {
	mu   sync.Mutex
	shut chan struct{} // nil: open
	out  bytes.Buffer
	err  error
}

func (g *gate) Write(b []byte) (int, error) {
	g.mu.Lock()
	shut := g.shut
	g.mu.Unlock()
	if shut != nil {
		<-shut
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.out.Write(b)
	return len(b), g.err
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = make(chan struct{})
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.shut)
	g.shut = nil
}

func (g *gate) text() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.out.String()
}

func droppedOf(m *Metrics) float64 {
	var d dto.Metric
	if err := m.dropped.Write(&d); err != nil {
		panic(err)
	}
	return d.GetCounter().GetValue()
}

// TestNeverBlocks: with an output that takes nothing, writing costs no time, memory stays bounded,
// and what was lost is told when the output moves again.
func TestNeverBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMetrics(prometheus.NewRegistry())
		g := &gate{}
		s := NewSink(g, Options{BufferBytes: 1000, Metrics: m})
		g.close()
		line := []byte(strings.Repeat("x", 99) + "\n")
		start := time.Now()
		for range 25 {
			if n, err := s.Write(line); n != 100 || err != nil {
				t.Fatal(n, err)
			}
			synctest.Wait()
		}
		if d := droppedOf(m); d != 15 {
			t.Fatalf("%v lines dropped", d)
		}
		s.WriteUrgent([]byte("urgent\n"))
		if err := s.Sync(); !errors.Is(err, ErrSyncTimeout) {
			t.Fatalf("Sync of a stuck output: %v", err)
		}
		if took := time.Since(start); took != defaultSyncTimeout {
			t.Fatalf("writing and one Sync took %v", took)
		}
		g.open()
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
		want := strings.Repeat(string(line), 10) + "urgent\nlogsink: dropped 15 log lines since the log output was too slow\n"
		if got := g.text(); got != want {
			t.Fatalf("got %q", got)
		}
		s.Write([]byte("after\n"))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if got := g.text(); got != want+"after\n" {
			t.Fatalf("got %q", got[len(want):])
		}
		s.Write([]byte("too late\n"))
		if d := droppedOf(m); d != 16 || s.Dropped() != 16 {
			t.Fatalf("%v lines dropped, or %d", d, s.Dropped())
		}
	})
}

// failing is an output that takes nothing while it fails.
type failing struct {
	gate
	fails atomic.Bool
	tries atomic.Int64
}

func (f *failing) Write(b []byte) (int, error) {
	if f.tries.Add(1); f.fails.Load() {
		return 0, io.ErrClosedPipe
	}
	return f.gate.Write(b)
}

// TestFailingOutput: what an output does not take is lost and counted, and told when it takes lines
// again; it is tried once for each line that comes, not in a loop.
func TestFailingOutput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMetrics(prometheus.NewRegistry())
		out := &failing{}
		s := NewSink(out, Options{Metrics: m})
		out.fails.Store(true)
		for _, line := range []string{"a\nb\n", "c\n"} {
			s.Write([]byte(line))
			synctest.Wait()
		}
		if d, tries := droppedOf(m), out.tries.Load(); d != 3 || tries != 2 {
			t.Errorf("%v lines dropped in %d tries", d, tries)
		}
		start := time.Now()
		if err := s.Sync(); !errors.Is(err, io.ErrClosedPipe) || time.Since(start) > 0 {
			t.Errorf("Sync: %v, after %v", err, time.Since(start))
		}
		out.fails.Store(false)
		s.Write([]byte("d\n"))
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if got := out.text(); got != "d\nlogsink: dropped 3 log lines since the log output was too slow\n" || droppedOf(m) != 3 {
			t.Errorf("%q, %v dropped", got, droppedOf(m))
		}
	})
	synctest.Test(t, func(t *testing.T) { // one that fails to the end can be closed
		out := &failing{}
		out.fails.Store(true)
		s := NewSink(out, Options{})
		s.Write([]byte("a\n"))
		if err := s.Close(); !errors.Is(err, io.ErrClosedPipe) {
			t.Error(err)
		}
	})
}

func TestSyncTellsErrors(t *testing.T) {
	g := &gate{err: errors.New("disk full")}
	s := NewSink(g, Options{})
	s.Write([]byte("x\n"))
	if err := s.Sync(); err == nil || err.Error() != "disk full" {
		t.Fatal(err)
	}
	_ = s.Close()
}

// TestConcurrentWrites: whole lines, none lost, in the order of each writer.
func TestConcurrentWrites(t *testing.T) {
	g := &gate{}
	s := NewSink(g, Options{})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 1000 {
				fmt.Fprintf(s, "%d %d\n", w, i)
				if i%100 == 0 {
					_ = s.Sync()
				}
			}
		})
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	next := make([]int, 8)
	for line := range strings.Lines(g.text()) {
		var w, i int
		if _, err := fmt.Sscanf(line, "%d %d\n", &w, &i); err != nil || next[w] != i {
			t.Fatalf("line %q where %d was next (%v)", line, next[w], err)
		}
		next[w]++
	}
	for w, n := range next {
		if n != 1000 {
			t.Fatalf("writer %d: %d lines", w, n)
		}
	}
}

// TestLooksLikeEtcd compares whole lines with what etcd 3.7 prints.
func TestLooksLikeEtcd(t *testing.T) {
	log := func(format string) string {
		var b bytes.Buffer
		l, err := New(Config{Format: format, Writer: &b})
		if err != nil {
			t.Fatal(err)
		}
		l.Debug("not at info")
		l.Info("ready", zap.Duration("took", 1500*time.Microsecond), zap.Strings("urls", []string{"a", "b"}))
		l.Named("raft").With(zap.Int("n", 1)).Warn("lost", zap.Error(errors.New("x")))
		l.Error("bad")
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		out := regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d{4})`).ReplaceAllString(b.String(), "TIME")
		out = regexp.MustCompile(`sink_test.go:\d+`).ReplaceAllString(out, "sink_test.go:1")
		out = regexp.MustCompile(`(?s)"stacktrace":"[^"]+"`).ReplaceAllString(out, `"stacktrace":"STACK"`)
		return regexp.MustCompile(`(?s)\tbad\n.*`).ReplaceAllString(out, "\tbad\nSTACK\n")
	}
	want := `{"level":"info","ts":"TIME","caller":"logsink/sink_test.go:1","msg":"ready","took":"1.5ms","urls":["a","b"]}
{"level":"warn","ts":"TIME","logger":"raft","caller":"logsink/sink_test.go:1","msg":"lost","n":1,"error":"x"}
{"level":"error","ts":"TIME","caller":"logsink/sink_test.go:1","msg":"bad","stacktrace":"STACK"}
`
	if got := log("json"); got != want {
		t.Errorf("json:\n%s", got)
	}
	want = "TIME\tinfo\tlogsink/sink_test.go:1\tready\t{\"took\": \"1.5ms\", \"urls\": [\"a\", \"b\"]}\n" +
		"TIME\twarn\traft\tlogsink/sink_test.go:1\tlost\t{\"n\": 1, \"error\": \"x\"}\n" +
		"TIME\terror\tlogsink/sink_test.go:1\tbad\nSTACK\n"
	if got := log("console"); got != want {
		t.Errorf("console:\n%s", got)
	}
}

// TestSampling: of one message, a hundred a second and then each hundredth.
func TestSampling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		l, err := New(Config{Writer: &b})
		if err != nil {
			t.Fatal(err)
		}
		for range 1000 {
			l.Info("again")
		}
		_ = l.Close()
		if n := strings.Count(b.String(), "again"); n != 109 {
			t.Fatalf("%d of 1000 lines", n)
		}
	})
}

// TestFatalComesOut: through a full buffer, before the process ends.
func TestFatalComesOut(t *testing.T) {
	g := &gate{}
	l, err := New(Config{Writer: g, Sink: Options{BufferBytes: 300}})
	if err != nil {
		t.Fatal(err)
	}
	g.close()
	for i := range 50 {
		l.Info(fmt.Sprint("filling ", i))
	}
	time.AfterFunc(50*time.Millisecond, g.open)
	ended := ""
	func() {
		defer func() { recover() }()
		l.WithOptions(zap.WithFatalHook(onFatal(func() { ended = g.text() }))).Fatal("the end")
	}()
	if !strings.Contains(ended, `"msg":"the end"`) {
		t.Fatalf("at the end of the process, the log was %q", ended)
	}
	_ = l.Close()
	if !strings.Contains(g.text(), `"msg":"dropped log lines since the log output was too slow","dropped-lines":`) {
		t.Fatalf("nothing says that lines were dropped: %s", g.text())
	}
}

type onFatal func()

func (f onFatal) OnWrite(*zapcore.CheckedEntry, []zapcore.Field) { f(); panic("fatal") }

func TestOutputs(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.log"), filepath.Join(dir, "b.log")
	if err := os.WriteFile(a, []byte("old\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := New(Config{Outputs: []string{a, "file://" + b, a}, Level: "debug"})
	if err != nil {
		t.Fatal(err)
	}
	l.Debug("one")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{a, b} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Count(string(text), `"msg":"one"`) != 1 || strings.HasPrefix(string(text), "old\n") != (path == a) {
			t.Errorf("%s: %q", path, text)
		}
	}
	l, err = New(Config{Outputs: []string{filepath.Join(dir, "r.log")}, Rotate: true, Rotation: `{"maxsize": 1}`})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 900 {
		l.Info(fmt.Sprint(i), zap.String("pad", strings.Repeat("x", MaxFieldBytes)))
		if i%30 == 0 {
			_ = l.Sync()
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "r*.log")); len(files) != 2 {
		t.Errorf("after 1.8 MB with 1 MB a file: %v", files)
	}
}

// TestErrors has etcd's texts, in the order of its checks.
func TestErrors(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{Logger: "capnslog", Level: "no"}, "--logger=capnslog is removed in v3.5"},
		{Config{Logger: "x"}, `unknown logger option "x"`},
		{Config{Outputs: []string{"default", "stdout"}}, `multi logoutput for "default" is not supported yet`},
		{Config{Rotate: true}, "--log-outputs requires a single file path when --log-rotate-config-json is defined"},
		{Config{Rotate: true, Outputs: []string{"a", "b"}}, "--log-outputs requires a single file path when --log-rotate-config-json is defined"},
		{Config{Rotate: true, Outputs: []string{"a"}, Rotation: "{"}, "improperly formatted log rotation config: unexpected end of JSON input"},
		{Config{Rotate: true, Outputs: []string{"a"}, Rotation: `{"maxsize": true}`}, "invalid log rotation config: json: cannot unmarshal bool into Go struct field logRotationConfig.Logger.maxsize of type int"},
		{Config{Level: "no", Format: "xml"}, `unrecognized level: "no"`},
		{Config{Level: "no"}, `unrecognized level: "no"`},
		{Config{Format: "xml"}, "unknown log format: xml, supported values json, console"},
		{Config{Outputs: []string{"systemd/journal", "stderr"}}, `running with systemd/journal but other '--log-outputs' values (["stderr" "systemd/journal"]) are configured with 'default'; override 'default' value with something else`},
		{Config{Outputs: []string{"/no/such/dir/x"}}, `open sink "/no/such/dir/x": open /no/such/dir/x: no such file or directory`},
	} {
		_, err := New(c.cfg)
		if err == nil || err.Error() != c.want {
			t.Errorf("%+v: %v, want %s", c.cfg, err, c.want)
		}
		if errors.Is(err, ErrLevel) != strings.HasPrefix(c.want, "unrecognized level") {
			t.Errorf("%v: ErrLevel", err)
		}
	}
}

func BenchmarkInfo(b *testing.B) {
	l, err := New(Config{Writer: io.Discard})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		l.Warn("apply request took too long", zap.Int("n", i), zap.String("request", "header:<ID:1> put:<key:\"k\">"))
	}
}

// TestStalled: an output that takes nothing is seen before anything is lost.
func TestStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{}
		s := NewSink(g, Options{})
		if d := s.Stalled(); d != 0 {
			t.Errorf("an idle output has stalled for %v", d)
		}
		g.close()
		s.Write([]byte("x\n"))
		synctest.Wait()
		time.Sleep(3 * time.Second)
		if d := s.Stalled(); d != 3*time.Second {
			t.Errorf("stalled for %v", d)
		}
		g.open()
		synctest.Wait()
		if d := s.Stalled(); d != 0 {
			t.Errorf("after it went on: %v", d)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

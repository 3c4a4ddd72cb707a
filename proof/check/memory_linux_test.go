package check

import (
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/proof/cluster"
)

const (
	memoryLimit  = 512 << 20 // of the cgroup
	memoryKeys   = 300_000
	memoryValue  = 128
	memoryRanges = 100 // at the same time, over memoryConns connections
	memoryConns  = 10
)

// TestMemory runs a member in a cgroup of 512 MiB with 300,000 keys, under 100 ranges of all of them
// at the same time, beside a client that writes little. A Belay must live, and answer each range or
// refuse it as what is too much; how its puts fare is told, and so is what becomes of an etcd. It
// wants root, and cgroups for memory that it may make (version 1 or 2).
func TestMemory(t *testing.T) {
	if os.Getenv("BELAY_MEMORY") == "" {
		t.Skip("runs with BELAY_MEMORY, as in make memory")
	}
	for _, kind := range []cluster.Kind{cluster.Etcd, cluster.Belay} {
		t.Run(string(kind), func(t *testing.T) { memoryOf(t, kind) })
	}
}

func memoryOf(t *testing.T, kind cluster.Kind) {
	binary := ""
	if kind == cluster.Belay {
		binary = Belay(t)
	} else {
		binary = EtcdTools(t).Etcd
	}
	group := newMemoryCgroup(t, memoryLimit)
	c, err := cluster.New(cluster.Config{Kind: kind, Binary: group.wrapped(t, binary), Size: 1, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	m := c.Members[0]
	writer, err := m.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	kv := pb.NewKVClient(writer)
	for from := 0; from < memoryKeys; from += 100 {
		txn := &pb.TxnRequest{}
		for i := from; i < from+100; i++ {
			put := &pb.PutRequest{Key: fmt.Appendf(nil, "range/%08d", i), Value: fmt.Appendf(nil, "%0*d", memoryValue, i)}
			txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}})
		}
		if _, err := kv.Txn(ctx, txn); err != nil {
			t.Fatalf("cannot fill: %v", err)
		}
	}
	before := lightPuts(ctx, kv, 5*time.Second, nil)
	t.Logf("puts alone:         %v; the cgroup holds %s at most", before, group.peak())

	var answered, refused, failed, read atomic.Int64
	var firstFailure atomic.Pointer[error]
	var readers sync.WaitGroup
	start := time.Now()
	for i := range memoryConns {
		conn, err := m.Dial(grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30), grpc.ForceCodecV2(countsOnly{&read})))
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer conn.Close()
		for range memoryRanges / memoryConns {
			readers.Go(func() {
				_, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte("range/"), RangeEnd: []byte("range0")})
				switch {
				case err == nil:
					answered.Add(1)
				case status.Code(err) == codes.ResourceExhausted:
					refused.Add(1)
				default:
					failed.Add(1)
					firstFailure.CompareAndSwap(nil, &err)
				}
			})
		}
	}
	over := make(chan struct{})
	go func() { readers.Wait(); close(over) }()
	beside := lightPuts(ctx, kv, 0, over)
	t.Logf("puts beside ranges: %v; p50 %.2f, p99 %.2f times as long", beside, beside.times(before, 50), beside.times(before, 99))
	t.Logf("%d ranges in %v: %d answered (%d MB), %d refused, %d failed; the cgroup held %s at most, %s", memoryRanges, time.Since(start).Round(time.Millisecond),
		answered.Load(), read.Load()/1e6, refused.Load(), failed.Load(), group.peak(), group.kills())
	died := false
	select {
	case <-m.Exited():
		died = true
		t.Logf("the member was killed: %v", m.ExitErr())
	default:
	}
	if err := firstFailure.Load(); err != nil {
		t.Logf("a failure: %v", *err)
	}
	if kind != cluster.Belay {
		return
	}
	if died || failed.Load() > 0 || beside.failed > 0 {
		t.Errorf("the member died: %v; %d ranges and %d puts failed\n%s", died, failed.Load(), beside.failed, c.Tails(20))
	}
	if answered.Load() == 0 {
		t.Error("no range was answered")
	}
}

// countsOnly is a codec that counts the bytes of answers and does not decode them.
type countsOnly struct{ read *atomic.Int64 }

func (countsOnly) Name() string { return "proto" }

func (countsOnly) Marshal(v any) (mem.BufferSlice, error) {
	b, err := proto.Marshal(v.(proto.Message))
	return mem.BufferSlice{mem.SliceBuffer(b)}, err
}

func (c countsOnly) Unmarshal(data mem.BufferSlice, _ any) error {
	c.read.Add(int64(data.Len()))
	return nil
}

// putTimes is how long puts took.
type putTimes struct {
	took   []time.Duration // sorted
	failed int
}

func (p putTimes) at(percent int) time.Duration {
	if len(p.took) == 0 {
		return 0
	}
	return p.took[min(len(p.took)*percent/100, len(p.took)-1)]
}

func (p putTimes) times(of putTimes, percent int) float64 {
	return float64(p.at(percent)) / float64(max(of.at(percent), 1))
}

func (p putTimes) String() string {
	return fmt.Sprintf("%d puts, p50 %v, p99 %v, max %v, %d failed", len(p.took), p.at(50).Round(10*time.Microsecond),
		p.at(99).Round(10*time.Microsecond), p.at(100).Round(10*time.Microsecond), p.failed)
}

// lightPuts writes a key 50 times a second, for a time or until over is closed. It ends early when
// puts fail one after another.
func lightPuts(ctx context.Context, kv pb.KVClient, length time.Duration, over <-chan struct{}) (p putTimes) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var end <-chan time.Time
	if length > 0 {
		end = time.After(length)
	}
	for inRow := 0; inRow < 20; {
		select {
		case <-end:
			slices.Sort(p.took)
			return p
		case <-over:
			slices.Sort(p.took)
			return p
		case <-tick.C:
		}
		began := time.Now()
		call, cancel := context.WithTimeout(ctx, 20*time.Second)
		_, err := kv.Put(call, &pb.PutRequest{Key: []byte("light"), Value: []byte("x")})
		cancel()
		if err != nil {
			p.failed++
			inRow++
			continue
		}
		inRow = 0
		p.took = append(p.took, time.Since(began))
	}
	slices.Sort(p.took)
	return p
}

// memoryCgroup is a cgroup that bounds memory.
type memoryCgroup struct {
	dir     string
	version int
}

func newMemoryCgroup(t *testing.T, limit int64) *memoryCgroup {
	t.Helper()
	g := &memoryCgroup{}
	name := fmt.Sprintf("belay-proof-%d-%s", os.Getpid(), filepath.Base(t.Name()))
	var wrong error
	for _, at := range []struct {
		dir, file string
		version   int
	}{{"/sys/fs/cgroup", "memory.max", 2}, {"/sys/fs/cgroup/memory", "memory.limit_in_bytes", 1}} {
		if _, err := os.Stat(filepath.Join(at.dir, "cgroup.procs")); err != nil {
			wrong = errors.Join(wrong, err)
			continue
		}
		dir := filepath.Join(at.dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			wrong = errors.Join(wrong, err)
			continue
		}
		t.Cleanup(func() {
			for range 100 { // until what was in it has gone
				if os.Remove(dir) == nil {
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
		})
		if err := os.WriteFile(filepath.Join(dir, at.file), []byte(strconv.FormatInt(limit, 10)), 0o644); err != nil {
			wrong = errors.Join(wrong, err)
			continue
		}
		_ = os.WriteFile(filepath.Join(dir, "memory.swap.max"), []byte("0"), 0o644) // where there is swap
		g.dir, g.version = dir, at.version
		return g
	}
	t.Skipf("no cgroup for memory can be made here: %v", wrong)
	return nil
}

// wrapped is a program that goes into the cgroup before it becomes the real one.
func (g *memoryCgroup) wrapped(t *testing.T, binary string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), filepath.Base(binary))
	text := fmt.Sprintf("#!/bin/sh\necho $$ > %s/cgroup.procs || exit 97\nexec %s \"$@\"\n", g.dir, binary)
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// peak is the most that the cgroup held, page cache included.
func (g *memoryCgroup) peak() string {
	name := "memory.max_usage_in_bytes"
	if g.version == 2 {
		name = "memory.peak"
	}
	text, err := os.ReadFile(filepath.Join(g.dir, name))
	n, parseErr := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || parseErr != nil {
		return "an unknown amount"
	}
	return fmt.Sprintf("%d MiB with the page cache", n>>20)
}

// kills is what the kernel says about processes that it has ended here.
func (g *memoryCgroup) kills() string {
	name := "memory.oom_control"
	if g.version == 2 {
		name = "memory.events"
	}
	text, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil {
		return "kills unknown"
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "oom_kill ") {
			return strings.TrimSpace(line)
		}
	}
	return "kills unknown"
}

// TestMallocBounded: a member whose store takes memory from malloc has one arena, and begins once.
func TestMallocBounded(t *testing.T) {
	t.Parallel()
	if _, theirs := os.LookupEnv("MALLOC_ARENA_MAX"); theirs {
		t.Skip("the environment sees to malloc")
	}
	info, err := buildinfo.ReadFile(Belay(t))
	if err != nil {
		t.Fatal(err)
	}
	cgo := slices.ContainsFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == "CGO_ENABLED" && s.Value == "1" })
	c := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 1})
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", c.Members[0].PID()))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(environ), "MALLOC_ARENA_MAX=1\x00"); (n == 1) != cgo {
		t.Errorf("built with cgo: %v; MALLOC_ARENA_MAX=1 is there %d times", cgo, n)
	}
}

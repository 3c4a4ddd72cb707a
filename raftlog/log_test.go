package raftlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// sink collects what a log releases.
type sink struct {
	mu       sync.Mutex
	released []*raftpb.Message
	failed   []error
}

func (s *sink) take(ms []*raftpb.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.released = append(s.released, ms...)
}

func (s *sink) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = append(s.failed, err)
}

func (s *sink) indexes() []uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []uint64
	for _, m := range s.released {
		out = append(out, m.GetIndex())
	}
	return out
}

func (s *sink) failures() []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]error(nil), s.failed...)
}

// testOptions make small segments and no background work; random numbers repeat.
func testOptions(fs vfs.FS, s *sink) Options {
	n := uint64(0)
	return Options{
		FS: fs, SegmentBytes: 4 * pageBytes, MemberID: 0xa, ClusterID: 0xc,
		Released: s.take, Failed: s.fail,
		noSpares:      true,
		PipelineBytes: rand.IntN(2), // the default, or each group
		random:        func() uint64 { n++; return 0x9e3779b97f4a7c15 * n },
	}
}

func entry(index, term uint64, data string) *raftpb.Entry {
	e := &raftpb.Entry{Index: new(index), Term: new(term), Type: raftpb.EntryNormal.Enum()}
	if data != "" {
		e.Data = []byte(data)
	}
	return e
}

func entries(from, to, term uint64) []*raftpb.Entry {
	var out []*raftpb.Entry
	for i := from; i <= to; i++ {
		out = append(out, entry(i, term, fmt.Sprintf("e%d.%d", term, i)))
	}
	return out
}

func hardState(term, vote, commit uint64) *raftpb.HardState {
	return &raftpb.HardState{Term: new(term), Vote: new(vote), Commit: new(commit)}
}

func response(index uint64) []*raftpb.Message {
	return []*raftpb.Message{{Index: new(index)}}
}

func snapshot(index, term uint64) *raftpb.Snapshot {
	return &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: new(index), Term: new(term), ConfState: &raftpb.ConfState{Voters: []uint64{1}},
	}}
}

func mustOpen(t testing.TB, dir string, o Options) *Log {
	t.Helper()
	l, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustSync(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func mustClose(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestRealDisk(t *testing.T) {
	var s sink
	dir := filepath.Join(t.TempDir(), "member", "log")
	o := testOptions(nil, &s)
	if _, ok, err := Peek(dir, nil); ok || err != nil {
		t.Fatal(ok, err)
	}
	l := mustOpen(t, dir, o)
	l.Append(Append{HardState: hardState(1, 1, 0), Entries: entries(1, 100, 1), Responses: response(100)})
	mustSync(t, l)
	if got := s.indexes(); !slices.Equal(got, []uint64{100}) {
		t.Fatal(got)
	}
	if _, err := Open(dir, o); err == nil || !strings.Contains(err.Error(), "another process") || !strings.Contains(err.Error(), lockName) {
		t.Fatalf("opened twice: %v", err)
	}
	mustClose(t, l)
	l = mustOpen(t, dir, o)
	es, err := l.Entries(1, 101, 1<<60)
	if err != nil || len(es) != 100 || string(es[99].Data) != "e1.100" {
		t.Fatal(len(es), err)
	}
	if mem, disk := l.Bytes(); mem < 100*entryOverhead || disk < pageBytes {
		t.Fatal(mem, disk)
	}
	mustClose(t, l)
	m, ok, err := Peek(dir, nil)
	if !ok || err != nil || m.MemberID != 0xa || m.ClusterID != 0xc {
		t.Fatal(m, ok, err)
	}
	var out bytes.Buffer
	if err := Inspect(dir, nil, &out); err != nil || !strings.Contains(out.String(), "entry 1/100 ") {
		t.Fatal(err, out.String())
	}
	if os.Getuid() != 0 {
		if err := os.Chmod(dir, 0o500); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, o); err == nil || !strings.Contains(err.Error(), dir) {
			t.Fatalf("directory is not writable, but: %v", err)
		}
	}
}

// TestStall holds back one fdatasync. Append must keep working, raft must see everything, nothing
// may be released, and all of it is released in order, by one more group, afterwards.
func TestStall(t *testing.T) {
	var s sink
	var stalled atomic.Bool
	entered, leave := make(chan struct{}), make(chan struct{})
	var syncs atomic.Int32
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData {
			syncs.Add(1)
			if stalled.CompareAndSwap(true, false) {
				entered <- struct{}{}
				<-leave
			}
		}
		return nil
	}))
	reg := prometheus.NewRegistry()
	o := testOptions(fs, &s)
	o.SegmentBytes = 1 << 20
	o.Metrics = NewMetrics(reg)
	l := mustOpen(t, "log", o)
	l.Append(Append{HardState: hardState(1, 1, 0), Responses: response(0)})
	mustSync(t, l)
	if u := l.Unsynced(); u != (Unsynced{}) {
		t.Fatalf("%+v", u)
	}
	before := syncs.Load()
	stalled.Store(true)
	for i := uint64(1); i <= 500; i++ {
		l.Append(Append{Entries: entries(i, i, 1), HardState: hardState(1, 1, i-1), Responses: response(i)})
		if i == 1 {
			<-entered
		}
	}
	if u := l.Unsynced(); u.Entries != 500 || u.Oldest <= 0 || u.Bytes < 500*entryOverhead {
		t.Fatalf("%+v", u)
	}
	if es, err := l.Entries(1, 501, 1<<40); err != nil || len(es) != 500 {
		t.Fatal(len(es), err)
	}
	// The store may be flushed meanwhile.
	if err := l.Compact(400, 0); err != nil {
		t.Fatal(err)
	}
	if first, _ := l.FirstIndex(); first != 401 {
		t.Fatal(first)
	}
	if got := s.indexes(); len(got) != 1 {
		t.Fatalf("released before the sync: %v", got)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := l.Sync(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	close(leave)
	mustSync(t, l)
	got := s.indexes()
	if len(got) != 501 || !slices.IsSorted(got) {
		t.Fatal(got)
	}
	if n := syncs.Load() - before; n > 3 {
		t.Fatalf("%d syncs", n)
	}
	if u := l.Unsynced(); u != (Unsynced{}) {
		t.Fatalf("%+v", u)
	}
	mustClose(t, l)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range families {
		names = append(names, fmt.Sprintf("%s %s", f.GetName(), f.GetType()))
	}
	want := []string{
		"etcd_disk_wal_fsync_duration_seconds HISTOGRAM",
		"etcd_disk_wal_write_bytes_total GAUGE",
		"etcd_disk_wal_write_duration_seconds HISTOGRAM",
	}
	if !slices.Equal(names, want) {
		t.Fatal(names)
	}
}

// TestSpares fills segments while others are prepared and recycled: in the end there are no
// more files than the bounds allow, and the log is whole.
func TestSpares(t *testing.T) {
	fs := vfs.NewMem()
	o := testOptions(fs, &sink{})
	o.noSpares = false
	l := mustOpen(t, "log", o)
	index := uint64(0)
	for range 200 {
		es := []*raftpb.Entry{entry(index+1, 1, strings.Repeat("x", 3000))}
		index++
		l.Append(Append{HardState: hardState(1, 1, index-1), Entries: es})
		mustSync(t, l)
		if index > 20 {
			if err := l.Compact(index-10, 10000); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, disk := l.Bytes(); disk > 8*o.SegmentBytes {
		t.Fatalf("%d bytes on disk", disk)
	}
	mem, _ := l.Bytes()
	if mem > 10*(3000+entryOverhead) {
		t.Fatalf("%d bytes in memory", mem)
	}
	want := read(l)
	mustClose(t, l)
	names, err := fs.List("log")
	if err != nil || len(names) > 8+2 {
		t.Fatal(names, err)
	}
	o.MemoryBytes = 5 * (3000 + entryOverhead)
	l = mustOpen(t, "log", o)
	got := read(l)
	got.hard.commit = want.hard.commit
	if why := want.holds(got, 0); why != "" {
		t.Fatal(why)
	}
	if _, err := l.Adopt(index-2, 1, nil); err != nil {
		t.Fatal(err)
	}
	if first, _ := l.FirstIndex(); first != index-4 {
		t.Fatalf("first index %d after %d entries", first, index)
	}
	mustClose(t, l)
}

// TestLargeBacklog writes more than a group at once: groups are bounded, and the
// responses of an Append wait for its last one.
func TestLargeBacklog(t *testing.T) {
	fs := vfs.NewMem()
	var s sink
	o := testOptions(fs, &s)
	o.SegmentBytes, o.groupBytes = 1<<20, 100<<10
	l := mustOpen(t, "log", o)
	es := entries(1, 300, 1)
	for _, e := range es {
		e.Data = bytes.Repeat([]byte{byte(e.GetIndex())}, 10<<10)
	}
	l.Append(Append{HardState: hardState(1, 1, 300), Entries: es, Responses: response(300)})
	mustSync(t, l)
	if cap(l.w.buf) > 300<<10 {
		t.Fatalf("a buffer of %d bytes", cap(l.w.buf))
	}
	if got := s.indexes(); !slices.Equal(got, []uint64{300}) {
		t.Fatal(got)
	}
	if l.w.group < 25 {
		t.Fatalf("%d groups", l.w.group)
	}
	mustClose(t, l)
	l = mustOpen(t, "log", o)
	if m := read(l); m.last() != 300 || m.hard != (hard{1, 1, 300}) {
		t.Fatal(m.last(), m.hard)
	}
	mustClose(t, l)
}

func TestSnapshotMeta(t *testing.T) {
	l := mustOpen(t, "log", testOptions(vfs.NewMem(), &sink{}))
	if _, err := l.Snapshot(); err != raft.ErrSnapshotTemporarilyUnavailable {
		t.Fatal(err)
	}
	l.SetSnapshotMeta(7, 3, &raftpb.ConfState{Voters: []uint64{1, 2}})
	sn, err := l.Snapshot()
	if m := sn.GetMetadata(); err != nil || m.GetIndex() != 7 || m.GetTerm() != 3 || len(m.GetConfState().GetVoters()) != 2 {
		t.Fatal(sn, err)
	}
	mustClose(t, l)
}

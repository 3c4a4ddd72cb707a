package raftlog

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
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
		noSpares: true,
		random:   func() uint64 { n++; return 0x9e3779b97f4a7c15 * n },
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

func TestSmoke(t *testing.T) {
	for _, real := range []bool{false, true} {
		var s sink
		dir, fs := "x/log", vfs.FS(vfs.NewMem())
		if real {
			dir, fs = t.TempDir()+"/log", vfs.Default
		}
		o := testOptions(fs, &s)
		l := mustOpen(t, dir, o)
		l.Append(Append{HardState: hardState(1, 1, 0), Entries: entries(1, 100, 1), Responses: response(100)})
		mustSync(t, l)
		if got := fmt.Sprint(s.indexes()); got != "[100]" {
			t.Fatal(got)
		}
		if _, err := Open(dir, o); err == nil {
			t.Fatal("opened twice")
		}
		mustClose(t, l)
		l = mustOpen(t, dir, o)
		es, err := l.Entries(1, 101, 1<<60)
		if err != nil || len(es) != 100 || string(es[99].Data) != "e1.100" {
			t.Fatal(len(es), err)
		}
		mustClose(t, l)
	}
}

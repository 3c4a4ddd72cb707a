package raftlog

import (
	"bytes"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.etcd.io/raft/v3/raftpb"
)

// roomyFS has so many bytes free.
type roomyFS struct {
	vfs.FS
	free atomic.Uint64
}

func (fs *roomyFS) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: fs.free.Load()}, nil
}

func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

// A log that has little to write takes little of the disk; one that grows gets segments that
// grow, and spares before it needs them.
func TestSegmentSizes(t *testing.T) {
	const mb = 1 << 20
	fs := &roomyFS{FS: vfs.NewMem()}
	fs.free.Store(1 << 40)
	o := Options{FS: fs}
	l := mustOpen(t, "log", o)
	index := uint64(0)
	add := func(size int) {
		t.Helper()
		index++
		l.Append(Append{HardState: hardState(1, 1, index-1), Entries: []*raftpb.Entry{
			newEntry(index, 1, raftpb.EntryNormal, bytes.Repeat([]byte("x"), size))}})
		mustSync(t, l)
	}
	spares := func() (n int, first int64) {
		l.files.mu.Lock()
		defer l.files.mu.Unlock()
		if len(l.files.spares) == 0 {
			return 0, 0
		}
		return len(l.files.spares), l.files.spares[0].size
	}
	noSpareYet := func() {
		t.Helper()
		names, err := fs.List("log")
		if err != nil || strings.Contains(strings.Join(names, " "), sparePrefix) {
			t.Fatal(names, err)
		}
	}
	for range 10 {
		add(1000)
	}
	noSpareYet()
	if _, disk := l.Bytes(); disk > 64<<10 {
		t.Fatalf("ten small entries take %d bytes", disk)
	}
	for l.w.off < 3*mb/2 {
		add(100 << 10)
	}
	noSpareYet()
	for i, want := range []int64{16, 64, 64} {
		for until := l.w.limit * 15 / 16; l.w.off < until; {
			add(200 << 10)
		}
		until(t, "no spare", func() bool { n, _ := spares(); return n == 1 })
		if _, size := spares(); size != want*mb {
			t.Fatalf("spare %d has %d bytes", i, size)
		}
		for number := l.w.number; l.w.number == number; {
			add(200 << 10)
		}
		if !l.w.prepared || l.w.limit != want*mb {
			t.Fatalf("segment %d: prepared=%v, %d bytes", l.w.number, l.w.prepared, l.w.limit)
		}
	}
	want := read(l)
	limit, prepared := l.w.limit, l.w.prepared
	mustClose(t, l)
	l = mustOpen(t, "log", o)
	if l.w.limit != limit || l.w.prepared != prepared {
		t.Fatalf("opened again: limit %d instead of %d, prepared=%v", l.w.limit, limit, l.w.prepared)
	}
	got := read(l)
	got.hard.commit = want.hard.commit
	if why := want.holds(got, 0); why != "" {
		t.Fatal(why)
	}
	mustClose(t, l)
}

// On a disk that is nearly full nothing is set aside.
func TestNoRoom(t *testing.T) {
	var reserved atomic.Int32
	fs := &roomyFS{FS: errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFilePreallocate {
			reserved.Add(1)
		}
		return nil
	}))}
	fs.free.Store(16 << 20)
	l := mustOpen(t, "log", Options{FS: fs})
	for index := uint64(1); index < 100; index++ {
		l.Append(Append{HardState: hardState(1, 1, index-1), Entries: []*raftpb.Entry{
			newEntry(index, 1, raftpb.EntryNormal, make([]byte, 100<<10))}})
		mustSync(t, l)
	}
	mustClose(t, l)
	names, err := fs.List("log")
	if err != nil || strings.Contains(strings.Join(names, " "), sparePrefix) {
		t.Fatal(names, err)
	}
	if reserved.Load() > 0 {
		t.Fatalf("reserved space %d times", reserved.Load())
	}
}

func TestStats(t *testing.T) {
	var held atomic.Bool
	entered, leave := make(chan struct{}), make(chan struct{})
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData && held.Load() {
			entered <- struct{}{}
			<-leave
		}
		return nil
	}))
	var s sink
	l := mustOpen(t, "log", testOptions(fs, &s))
	if got := l.Stats(); got != (Stats{}) {
		t.Fatalf("%+v", got)
	}
	for i := uint64(1); i <= recentSyncs+6; i++ {
		l.Append(Append{HardState: hardState(1, 1, i-1), Entries: entries(i, i, 1)})
		mustSync(t, l)
	}
	got := l.Stats()
	if got.Syncs != recentSyncs+6 || got.InFlight != 0 || got.SinceLast <= 0 || got.Median > got.Max || got.Last > got.Max || got.Max <= 0 {
		t.Fatalf("%+v", got)
	}
	held.Store(true)
	next := uint64(recentSyncs + 7)
	l.Append(Append{Entries: entries(next, next, 1)})
	<-entered
	if got := l.Stats(); got.InFlight <= 0 || l.Unsynced().Oldest < got.InFlight {
		t.Fatalf("%+v, %+v", got, l.Unsynced())
	}
	held.Store(false)
	close(leave)
	mustSync(t, l)
	if got := l.Stats(); got.InFlight != 0 || got.Syncs != recentSyncs+7 {
		t.Fatalf("%+v", got)
	}
	mustClose(t, l)
}

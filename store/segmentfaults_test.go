package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/belaydb/belay/command"
)

// hookFS calls a function before a file is opened.
type hookFS struct {
	vfs.FS
	before func(name string) error
}

func (h hookFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	if err := h.before(name); err != nil {
		return nil, err
	}
	return h.FS.Open(name, opts...)
}

func (h hookFS) Unwrap() vfs.FS { return h.FS }

// TestNoDescriptorIsNoDamage: a process that has too many files open, or no memory, cannot read a
// segment, which says nothing of the segment.
func TestNoDescriptorIsNoDamage(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
		mem := vfs.NewMem()
		var few atomic.Bool
		fs := hookFS{mem, func(name string) error {
			if few.Load() && strings.Contains(name, segmentsDir+"/") {
				return errno
			}
			return nil
		}}
		var told atomic.Int64
		s := withPlaces(t, fs, func(error) { told.Add(1) })
		all := values(1, 500)
		placeAll(t, s, keep(t, s, 1, all...), 10, all...)
		few.Store(true)
		_, _, err := s.Get(AppendUserKey(nil, []byte("key-0"), 10, 0))
		if err == nil || IsDamage(err) || told.Load() > 0 {
			t.Errorf("%v: damage %t, the member is told %d times: %v", errno, IsDamage(err), told.Load(), err)
		}
		closeStore(t, s)
	}
}

// TestReadOnlyBesideKeep: a member keeps a segment and flushes while somebody opens its store to
// look at it.
func TestReadOnlyBesideKeep(t *testing.T) {
	mem := vfs.NewMem()
	s := withPlaces(t, mem, nil)
	defer closeStore(t, s)
	all := values(2, 500)
	placeAll(t, s, keep(t, s, 1, all...), 10, all...)
	flush(t, s)
	once := false
	fs := hookFS{mem, func(name string) error {
		if strings.Contains(name, segmentsDir+"/") && !once { // the names of segments are listed
			once = true
			placeAll(t, s, keep(t, s, 2, all...), 20, all...)
			flush(t, s)
		}
		return nil
	}}
	looked, err := OpenReadOnly("db", Options{FS: fs, PlaceBytes: 1})
	if err != nil {
		t.Fatalf("damage %t: %v", IsDamage(err), err)
	}
	got, err := versions(looked)
	if err != nil || len(got) < 2 {
		t.Error(len(got), err)
	}
	closeStore(t, looked)
}

// TestSegmentsFolderIsDurable: a process is killed between making the folder of segments and
// syncing its name. The next one goes on, and much later the power fails.
func TestSegmentsFolderIsDurable(t *testing.T) {
	mem := vfs.NewCrashableMem()
	s := withPlaces(t, mem, nil)
	write(t, s, "a", "b")
	flush(t, s)
	if err := writeFormat(s.fs, s.dir, formatWithSegments); err != nil {
		t.Fatal(err)
	}
	if err := s.fs.MkdirAll(s.Segments.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s) // killed

	s = withPlaces(t, mem, nil)
	all := values(2, 500)
	placeAll(t, s, keep(t, s, 1, all...), 10, all...)
	flush(t, s)
	after := mem.CrashClone(vfs.CrashCloneCfg{})
	closeStore(t, s)
	s, err := Open("db", Options{FS: after, PlaceBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
}

// TestMoveGoesOnBehindDamage: a value that cannot be read keeps its segment, and no other; it is
// not read again and again. What is about to be moved does not count in the size.
func TestMoveGoesOnBehindDamage(t *testing.T) {
	fs := vfs.NewMem()
	var told atomic.Int64
	s := withPlaces(t, fs, func(error) { told.Add(1) })
	defer closeStore(t, s)
	for number := uint64(1); number <= 3; number++ {
		all := values(3, 50)
		junk := strings.Repeat("~", 100_000)
		at := keep(t, s, number, all[0], all[1], all[2], junk)
		placeAll(t, s, at, 10*number, all...)
	}
	flush(t, s)
	if err := rewriteFile(fs, s.Segments.path(command.Segment{Log: 1, Number: 1}), func(b []byte) []byte { b[60] ^= 1; return b }); err != nil {
		t.Fatal(err)
	}
	s.Segments.Drop(command.Segment{Log: 1, Number: 4})
	s.takeSample()
	if total, _ := s.Size(); total > 100_000 {
		t.Errorf("the size is %d", total)
	}
	now := func(ctx context.Context) error { return ctx.Err() }
	if err := s.Segments.Move(t.Context(), true, now); !IsDamage(err) {
		t.Fatal(err)
	}
	if err := s.Segments.Move(t.Context(), true, now); err != nil || told.Load() != 1 {
		t.Fatal(err, told.Load())
	}
	if got := s.Segments.Stats(); got.Files != 1 || got.Dropped != 2 || got.Moved != 2*3*53 {
		t.Fatalf("%+v", got)
	}
}

// TestDropWaitsForTheFlush: a segment whose last value was deleted stays until that is durable, since a
// crash brings the version back.
func TestDropWaitsForTheFlush(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := withPlaces(t, fs, nil)
	all := values(1, 500)
	placeAll(t, s, keep(t, s, 1, all...), 10, all...)
	flush(t, s)
	b := s.NewLocalBatch()
	it, err := s.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	key := AppendUserKey(nil, []byte("key-0"), 10, 0)
	if !it.SeekGE(key) {
		t.Fatal("no version")
	}
	if err := errors.Join(b.DeleteVersion(key, it.Extent()), it.Close(), b.Commit()); err != nil {
		t.Fatal(err)
	}
	next := command.Segment{Log: 1, Number: 2}
	s.Segments.Drop(next)
	s.Segments.Drop(next)
	if got := s.Segments.Stats(); got.Files != 1 || got.Dropped != 0 {
		t.Errorf("before the flush: %+v", got)
	}
	after := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
	crashed := withPlaces(t, after, nil)
	if got, err := versions(crashed); err != nil || len(got) != 1 {
		t.Errorf("after a crash: %v, %v", got, err)
	}
	closeStore(t, crashed)
	flush(t, s)
	s.Segments.Drop(next)
	if got := s.Segments.Stats(); got.Files != 0 || got.Dropped != 1 {
		t.Errorf("after the flush: %+v", got)
	}
	closeStore(t, s)
}

// TestDroppedSpaceIsFreed: what DropSegments removes frees its space although the member is idle
// from then on, if nobody reads.
func TestDroppedSpaceIsFreed(t *testing.T) {
	s := withPlaces(t, vfs.NewMem(), nil)
	defer closeStore(t, s)
	all := values(2, 500)
	placeAll(t, s, keep(t, s, 1, all...), 10, all...)
	flush(t, s)
	b := s.NewLocalBatch()
	it, err := s.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(2) {
		key := AppendUserKey(nil, fmt.Append(nil, "key-", i), 10+i, 0)
		if !it.SeekGE(key) {
			t.Fatal("no version")
		}
		if err := b.DeleteVersion(key, it.Extent()); err != nil {
			t.Fatal(err)
		}
	}
	it.Close()
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	flush(t, s)
	s.Segments.Drop(command.Segment{Log: 1, Number: 2})
	s.Segments.mu.RLock()
	defer s.Segments.mu.RUnlock()
	if n := len(s.Segments.dead) + len(s.Segments.draining); n > 0 {
		t.Fatalf("%d removed files stay open until the next write, although nobody reads", n)
	}
}

package raftlog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.etcd.io/raft/v3/raftpb"
)

// forgetfulFS is what Linux does when a sync fails: the error is reported once, and the pages that
// did not reach the disk stay readable and count as clean, so that a later sync of the file returns
// nil and writes nothing. Only writing a page again makes it dirty.
type forgetfulFS struct {
	vfs.FS
	mu       sync.Mutex
	failNext bool
	dirty    map[string]map[int64]bool // pages written since the last sync
	lost     map[string]map[int64]bool // pages that a failed sync called clean
}

type forgetfulFile struct {
	vfs.File
	fs   *forgetfulFS
	name string
}

func (fs *forgetfulFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := fs.FS.OpenReadWrite(name, c, opts...)
	return &forgetfulFile{f, fs, name}, err
}

func (f *forgetfulFile) WriteAt(b []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.fs.dirty[f.name] == nil {
		f.fs.dirty[f.name] = map[int64]bool{}
	}
	for p := off / pageBytes; p <= (off+int64(len(b))-1)/pageBytes; p++ {
		f.fs.dirty[f.name][p] = true
		delete(f.fs.lost[f.name], p)
	}
	return f.File.WriteAt(b, off)
}

func (f *forgetfulFile) Sync() error { return f.SyncData() }

func (f *forgetfulFile) SyncData() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.fs.failNext {
		f.fs.failNext = false
		f.fs.lost[f.name] = f.fs.dirty[f.name]
		f.fs.dirty[f.name] = nil
		return syscall.EIO
	}
	f.fs.dirty[f.name] = nil
	if len(f.fs.lost[f.name]) > 0 {
		return nil
	}
	return f.File.SyncData()
}

// A sync fails, the process stops as it must, and is started again while the kernel
// still has the pages. What Open then returns raft will tell others, so it must survive
// a power failure after that.
func TestFailedSyncThenRestart(t *testing.T) {
	for _, roll := range []bool{false, true} {
		mem := vfs.NewCrashableMem()
		fs := &forgetfulFS{FS: mem, dirty: map[string]map[int64]bool{}, lost: map[string]map[int64]bool{}}
		var s sink
		l := mustOpen(t, "log", testOptions(fs, &s))
		l.Append(Append{HardState: hardState(1, 1, 0), Entries: entries(1, 3, 1)})
		if roll {
			l.Append(Append{Entries: []*raftpb.Entry{entry(4, 1, strings.Repeat("x", 15000))}})
		} else {
			l.Append(Append{Entries: entries(4, 4, 1)})
		}
		mustSync(t, l)
		fs.mu.Lock()
		fs.failNext = true
		fs.mu.Unlock()
		l.Append(Append{HardState: hardState(2, 3, 4), Entries: entries(5, 9, 2), Responses: response(9)})
		if err := l.Sync(t.Context()); err == nil {
			t.Fatal("the sync did not fail")
		}
		if err := l.Close(); err == nil {
			t.Fatal("closed without an error")
		}
		if got := s.indexes(); len(got) != 0 {
			t.Fatalf("released %v", got)
		}
		l = mustOpen(t, "log", testOptions(fs, &s))
		got := read(l)
		after := mem.CrashClone(vfs.CrashCloneCfg{}) // power fails
		mustClose(t, l)
		l = mustOpen(t, "log", testOptions(after, &s))
		if why := got.holds(read(l), 0); why != "" {
			t.Errorf("roll=%v: Open returned last %d, %+v; after a power failure: %s", roll, got.last(), got.hard, why)
		}
		mustClose(t, l)
	}
}

// The directories above the log may be as new as the log.
func TestParentsAreDurable(t *testing.T) {
	fs := vfs.NewCrashableMem()
	var s sink
	if err := fs.MkdirAll("data/member", 0o700); err != nil {
		t.Fatal(err)
	}
	l := mustOpen(t, "data/member/log", testOptions(fs, &s))
	l.Append(Append{HardState: hardState(1, 1, 0), Entries: entries(1, 3, 1), Responses: response(3)})
	mustSync(t, l)
	after := fs.CrashClone(vfs.CrashCloneCfg{})
	mustClose(t, l)
	if len(s.indexes()) != 1 {
		t.Fatal("not released")
	}
	if _, ok, err := Peek("data/member/log", after); !ok || err != nil {
		t.Fatalf("after a crash the log is gone: %v", err)
	}
}

// A file that cannot be taken out of the log stays in the way of the later ones: removing
// one of those instead would leave a gap.
func TestCompactFails(t *testing.T) {
	for _, kind := range []errorfs.OpKind{errorfs.OpRemove, errorfs.OpRename, errorfs.OpFileSync} {
		mem := vfs.NewCrashableMem()
		var s sink
		var fail atomic.Bool
		o := testOptions(errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == kind && fail.CompareAndSwap(true, false) {
				return syscall.EIO
			}
			return nil
		})), &s)
		l := mustOpen(t, "log", o)
		size := 3000
		if kind == errorfs.OpRename {
			size = 3700 // fills a segment, which is then recycled
		}
		for i := uint64(1); i <= 30; i++ {
			l.Append(Append{HardState: hardState(1, 1, i-1), Entries: []*raftpb.Entry{entry(i, 1, strings.Repeat("x", size))}})
			mustSync(t, l)
		}
		fail.Store(true)
		if err := l.Compact(15, 0); err == nil {
			t.Fatalf("%v: no error", kind)
		}
		_ = l.Compact(20, 0) // may fail again
		want := read(l)
		mustClose(t, l)
		for _, cfg := range []vfs.CrashCloneCfg{{}, keepAll()} {
			l, err := Open("log", testOptions(mem.CrashClone(cfg), &s))
			if err != nil {
				t.Errorf("%v: %v", kind, err)
				continue
			}
			if got := read(l); got.base > want.base || got.last() != want.last() {
				t.Errorf("%v: base %d, last %d; want %d, %d", kind, got.base, got.last(), want.base, want.last())
			}
			mustClose(t, l)
		}
	}
}

// TestCrashDuringStart lets the power fail before each file operation of Open and Adopt, and
// lets the process die at a random one: what it had not synced can then be read by the
// next start, but still be lost. No start may lose what was durable.
func TestCrashDuringStart(t *testing.T) {
	seed, rng := newSeed(t)
	for round := range 8 * *roundFlag {
		var s sink
		options := func(fs vfs.FS) Options {
			o := testOptions(fs, &s)
			o.random = rng.Uint64
			return o
		}
		fail := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("seed %d round %d: %s", seed, round, fmt.Sprintf(format, args...))
		}
		fs := vfs.NewCrashableMem()
		l := mustOpen(t, "log", options(fs))
		m := model{}
		for n := 1; n <= 60; n++ {
			a := nextAppend(rng, m, n)
			m, _ = m.step(a)
			l.Append(a)
			if rng.IntN(3) == 0 {
				mustSync(t, l)
			}
		}
		mustClose(t, l)
		if rng.IntN(2) == 0 {
			fs = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
		}
		// The store is ahead of the log, or not.
		index, term := m.hard.commit, uint64(0)
		if index >= m.base {
			term = m.term(index)
		}
		if rng.IntN(2) == 0 {
			index, term = m.last()+5, m.lastTerm()
		}
		if term == 0 {
			continue
		}
		start := func(fs vfs.FS) (opened, adopted model, err error) {
			l, err := Open("log", options(fs))
			if err != nil {
				return model{}, model{}, err
			}
			opened = read(l)
			if _, err = l.Adopt(index, term, nil); err != nil {
				_ = l.Close() // fails as Adopt did
				return opened, model{}, err
			}
			adopted = read(l)
			return opened, adopted, l.Close()
		}
		for life := range 4 {
			_, want, err := start(fs.CrashClone(vfs.CrashCloneCfg{}))
			if err != nil {
				fail("life %d: %v", life, err)
			}
			check := func(at string, cfg vfs.CrashCloneCfg) {
				_, got, err := start(crashClone(t, fs, cfg))
				if err != nil {
					fail("life %d, power failure at %s: %v", life, at, err)
				}
				if why := want.holds(got, max(index, want.base)); why != "" {
					fail("life %d, power failure at %s: %s; want last %d, %+v", life, at, why, want.last(), want.hard)
				}
			}
			count, at := 0, 1+rng.IntN(12)
			_, _, err = start(errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if op.Kind.ReadOrWrite() == errorfs.OpIsRead {
					return nil
				}
				if count++; count > at && life < 3 {
					return syscall.EIO // dead
				}
				what := fmt.Sprint(op.Kind, " of ", op.Path)
				check(what, vfs.CrashCloneCfg{})
				for range 3 {
					check(what, vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
				}
				return nil
			})))
			if err == nil {
				break
			}
			if count <= at {
				fail("life %d: %v", life, err)
			}
		}
	}
}

// A store and a log that know different committed entries do not belong together; replacing
// the log would hide it.
func TestAdoptDisagrees(t *testing.T) {
	fs := vfs.NewMem()
	l := mustOpen(t, "log", testOptions(fs, &sink{}))
	l.Append(Append{HardState: hardState(3, 1, 8), Entries: entries(1, 10, 3)})
	mustClose(t, l)
	l = mustOpen(t, "log", testOptions(fs, &sink{}))
	replaced, err := l.Adopt(7, 2, nil)
	if err == nil || replaced || !strings.Contains(err.Error(), "log") || !strings.Contains(err.Error(), "7") {
		t.Fatalf("replaced=%v, %v", replaced, err)
	}
	if last, _ := l.LastIndex(); last != 10 {
		t.Fatalf("last %d", last)
	}
	mustClose(t, l)
}

// A process dies in Adopt after the new segment was written and before its name was durable.
// The next one must make that name durable before it removes the old segments: else a
// power failure may leave neither, and with the newest old segment a vote is gone.
func TestResetIsDurableBeforeRemoval(t *testing.T) {
	fs := vfs.NewCrashableMem()
	l := mustOpen(t, "log", testOptions(fs, &sink{}))
	for i := uint64(1); i <= 12; i++ {
		l.Append(Append{HardState: hardState(i, i, i-1), Entries: []*raftpb.Entry{entry(i, i, strings.Repeat("x", 3000))}})
		mustSync(t, l)
	}
	mustClose(t, l)
	before, err := fs.List("log")
	if err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, "log", testOptions(errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		names, err := fs.List("log")
		if err != nil {
			t.Error(err)
		}
		if op.Kind == errorfs.OpFileSync && len(names) > len(before) {
			return syscall.EIO
		}
		return nil
	})), &sink{}))
	if _, err := l.Adopt(50, 11, nil); err == nil {
		t.Fatal("not interrupted")
	}
	_ = l.Close() // fails as Adopt did
	removals := 0
	rng := rand.New(rand.NewPCG(1, 2))
	l = mustOpen(t, "log", testOptions(errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpRemove {
			removals++
		}
		for range 20 {
			after := crashClone(t, fs, vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rng})
			l := mustOpen(t, "log", testOptions(after, &sink{}))
			if got := read(l); got.hard.term != 12 || got.hard.vote != 12 {
				t.Errorf("after %d removals: %+v, the vote is gone", removals, got.hard)
			}
			mustClose(t, l)
		}
		return nil
	})), &sink{}))
	if removals < 3 {
		t.Fatalf("%d removals", removals)
	}
	mustClose(t, l)
}

// TestCrashBehindInstall: entries 25..28 of a deposed leader end a segment, and 25..26 of the
// next one replace them in the next. Then a snapshot is installed: while its base is not written
// yet, Compact may remove the first segment, since the store is beyond it. What a crash
// leaves then begins after 28, which nobody committed, and holds nothing. The vote must be
// there, and the restart rule must put the store's base in its place, at the same index too.
func TestCrashBehindInstall(t *testing.T) {
	for _, index := range []uint64{28, 40} {
		fs := vfs.NewCrashableMem()
		var s sink
		l := mustOpen(t, "log", testOptions(fs, &s))
		first := append(entries(1, 27, 1), entry(28, 1, strings.Repeat("x", 9000)))
		l.Append(Append{HardState: hardState(1, 1, 23), Entries: first})
		mustSync(t, l)
		l.Append(Append{HardState: hardState(3, 3, 23), Entries: []*raftpb.Entry{entry(25, 3, strings.Repeat("y", 9000)), entry(26, 3, "z")}})
		mustSync(t, l)
		var crashed *vfs.MemFS
		l.Append(Append{
			HardState: hardState(4, 0, index), Snapshot: snapshot(index, 4),
			Install: func() error {
				if err := l.Compact(index, 0); err != nil {
					return err
				}
				crashed = fs.CrashClone(vfs.CrashCloneCfg{})
				return nil
			},
		})
		mustSync(t, l)
		mustClose(t, l)

		l = mustOpen(t, "log", testOptions(crashed, &s))
		got := read(l)
		if want := (hard{3, 3, 23}); got.hard != want || got.base != 28 || got.baseTerm != 1 || len(got.entries) != 0 {
			t.Fatalf("store at %d: found base %d/%d, %d entries, %+v", index, got.baseTerm, got.base, len(got.entries), got.hard)
		}
		released := model{base: 0, hard: hard{3, 3, 23}, entries: make([]modelEntry, 26)}
		if reason := released.holds(got, index); reason != "" {
			t.Fatalf("store at %d: %s", index, reason)
		}
		if replaced, err := l.Adopt(index, 4, nil); err != nil || !replaced {
			t.Fatalf("store at %d: replaced %v, %v", index, replaced, err)
		}
		l.Append(Append{Entries: entries(index+1, index+2, 4)})
		mustSync(t, l)
		for range 2 { // before and after a restart
			got = read(l)
			if want := (hard{4, 0, index}); got.hard != want || got.base != index || got.baseTerm != 4 || got.last() != index+2 {
				t.Fatalf("store at %d: adopted as base %d/%d, last %d, %+v", index, got.baseTerm, got.base, got.last(), got.hard)
			}
			mustClose(t, l)
			l = mustOpen(t, "log", testOptions(crashed, &s))
		}
		mustClose(t, l)
	}
}

// A mark distinguishes a log from every copy that was made of it before; the end of a sealed log
// distinguishes it from a log whose end was lost. A log that is refused is not changed.
func TestMarkedLogKnowsOlderCopies(t *testing.T) {
	mem := vfs.NewCrashableMem()
	open := func(fs vfs.FS, least uint64) (*Log, error) {
		opts := testOptions(fs, new(sink))
		opts.LeastGroup = least
		return Open("log", opts)
	}
	l, err := open(mem, 0)
	if err != nil {
		t.Fatal(err)
	}
	first, err := l.Mark()
	if err != nil || first == 0 {
		t.Fatal(first, err)
	}
	l.Append(Append{Entries: []*raftpb.Entry{{Type: raftpb.EntryNormal.Enum(), Index: new(uint64(1)), Term: new(uint64(1))}}})
	if err := l.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	running := mem.CrashClone(vfs.CrashCloneCfg{})
	sealed, err := l.Seal()
	if err != nil || sealed <= first {
		t.Fatal(sealed, err)
	}
	if again, err := l.Seal(); again != sealed || err != nil {
		t.Fatal(again, err)
	}
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Fatal(err)
	}
	stopped := mem.CrashClone(vfs.CrashCloneCfg{})
	if l, err = open(mem, sealed); err != nil {
		t.Fatal(err)
	}
	second, err := l.Mark()
	if err != nil || second <= sealed {
		t.Fatal(second, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}

	for _, tc := range []struct {
		name  string
		fs    *vfs.MemFS
		least uint64
		old   bool
	}{
		{"as it was when it ran, for its start", running, first, false},
		{"as it was when it ran, for its stop", running, sealed, true},
		{"as it was when it ran, for the next start", running, second, true},
		{"as it was when it had stopped, for the next start", stopped, second, true},
		{"as it was when it had stopped, for its stop", stopped, sealed, false},
		{"as it is", mem, second, false},
	} {
		fs := tc.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
		before := fs.String()
		l, err := open(fs, tc.least)
		var old *OldError
		if errors.As(err, &old) != tc.old || !tc.old && err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		if err == nil {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			continue
		}
		if after := fs.String(); !strings.Contains(after, "LOCK") || strings.Count(before, "segment-") != strings.Count(after, "segment-") {
			t.Errorf("%s: was\n%s\nis\n%s", tc.name, before, after)
		}
	}
}

// TestAppliedLeavesMemoryAtStart: of what is applied a log that is opened keeps the newest in memory,
// also of a segment that it must read, and counts the rest as kept in the files.
func TestAppliedLeavesMemoryAtStart(t *testing.T) {
	const last, applied, keep = 300, 250, 5000
	var s sink
	o := testOptions(vfs.NewMem(), &s)
	o.SegmentBytes = 1 << 20
	l := mustOpen(t, "log", o)
	l.Append(Append{HardState: hardState(1, 1, 0)})
	grow(t, l, last)
	mustClose(t, l)

	o.Applied, o.keepApplied = applied, keep
	l = mustOpen(t, "log", o)
	defer mustClose(t, l)
	one := entryBytes(entry(last, 1, fmt.Sprint(last, strings.Repeat("x", 1000))))
	if mem, _ := l.Bytes(); mem > (last-applied)*one+2*keep+one {
		t.Errorf("%d bytes are in memory", mem)
	}
	if base, _ := l.Base(); base > applied-keep/uint64(one) {
		t.Errorf("memory begins behind entry %d", base)
	}
	if replaced, err := l.Adopt(applied, 1, nil); replaced || err != nil {
		t.Fatal(replaced, err)
	}
	got, err := l.Entries(applied+1, last+1, 1<<30)
	if err != nil || len(got) != last-applied {
		t.Errorf("%d entries, %v", len(got), err)
	}
	if got, err := readAll(t, l, 1); err != nil || len(got) < applied {
		t.Errorf("%d entries are in the files, %v", len(got), err)
	}
	for _, n := range []int64{1000, 100} { // in this order: it forgets what is too old
		if after := l.keptAfter(n * one); int64(after) > max(last-n, 0)+keep/one {
			t.Errorf("to keep %d entries the files must keep those after %d", n, after)
		}
	}
	grow(t, l, last+20)
	if got, err := readAll(t, l, 1); err != nil || len(got) < last {
		t.Errorf("%d entries are in the files after more of them, %v", len(got), err)
	}
}

// TestReplacedBelowWhatIsForgotten: entries of the store's past may stand in the log twice, first as
// those of a leader that was deposed. Forgetting the first of them at the start changes nothing.
func TestReplacedBelowWhatIsForgotten(t *testing.T) {
	const applied = 30
	for _, c := range []struct {
		name     string
		from, to uint64 // of term 2
		replaced bool   // by the store's applied entry
	}{
		{"all", 20, 35, false},
		{"up to what is applied", 20, applied, false},
		{"a part", 20, 27, true},
		{"the first", 20, 20, true},
		{"behind it", applied + 1, 35, false},
	} {
		for keep := range int64(12) {
			t.Run(fmt.Sprintf("%s, %d kept", c.name, keep), func(t *testing.T) {
				var s sink
				o := testOptions(vfs.NewMem(), &s)
				l := mustOpen(t, "log", o)
				l.Append(Append{HardState: hardState(1, 1, 0), Entries: entries(1, 32, 1)})
				mustSync(t, l)
				l.Append(Append{HardState: hardState(2, 0, 19), Entries: entries(c.from, c.to, 2)})
				mustSync(t, l)
				mustClose(t, l)

				term := uint64(2)
				if c.from > applied {
					term = 1
				}
				o.Applied, o.keepApplied = applied, max(1, keep*150)
				l = mustOpen(t, "log", o)
				replaced, err := l.Adopt(applied, term, nil)
				if replaced != c.replaced || err != nil {
					t.Fatalf("replaced: %v, %v", replaced, err)
				}
				last := max(c.to, applied)
				if got, _ := l.LastIndex(); got != last {
					t.Errorf("it ends with entry %d, want %d", got, last)
				}
				if got, err := l.Term(applied); got != term || err != nil {
					t.Errorf("entry %d is of term %d, %v", applied, got, err)
				}
				if last > applied {
					got, err := l.Entries(applied+1, last+1, 1<<30)
					if err != nil || len(got) != int(last-applied) || got[0].GetTerm() != 2 {
						t.Errorf("%d entries, %v", len(got), err)
					}
				}
				l.Append(Append{HardState: hardState(2, 0, last), Entries: entries(last+1, last+5, 2)})
				mustSync(t, l)
				mustClose(t, l)
				l = mustOpen(t, "log", o)
				defer mustClose(t, l)
				if replaced, err := l.Adopt(applied, term, nil); replaced || err != nil {
					t.Errorf("the next start: replaced: %v, %v", replaced, err)
				}
				if got, _ := l.LastIndex(); got != last+5 {
					t.Errorf("the next start: it ends with entry %d, want %d", got, last+5)
				}
			})
		}
	}
}

package raftlog

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.etcd.io/raft/v3/raftpb"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "seed of the randomised tests; 0: drawn")
	roundFlag = flag.Int("rounds", 6, "crashes of each randomised test")
)

// keepAll makes a clone with everything, synced or not: the machine stays, the process dies.
func keepAll() vfs.CrashCloneCfg {
	return vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))}
}

// crashClone is fs.CrashClone, in which what was removed or renamed but not synced may be
// gone as well: each name by itself, whatever else was kept.
func crashClone(t testing.TB, fs *vfs.MemFS, cfg vfs.CrashCloneCfg) *vfs.MemFS {
	clone := fs.CrashClone(cfg)
	if cfg.RNG == nil {
		return clone
	}
	had, err := clone.List("log")
	if err != nil {
		return clone // not even the directory
	}
	now, err := fs.List("log")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(had)
	for _, name := range had {
		if !slices.Contains(now, name) && cfg.RNG.IntN(100) < cfg.UnsyncedDataPercent {
			if err := clone.Remove("log/" + name); err != nil {
				t.Fatal(err)
			}
		}
	}
	dir, err := clone.OpenDir("log")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		t.Fatal(err)
	}
	return clone
}

func newSeed(t testing.TB) (uint64, *rand.Rand) {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d; repeat with: go test ./raftlog -run '%s' -seed=%d", seed, t.Name(), seed)
	return seed, rand.New(rand.NewPCG(seed, 0))
}

// modelEntry is what distinguishes an entry from others.
type modelEntry struct {
	term uint64
	data string
}

// model is what a log must hold.
type model struct {
	base, baseTerm uint64
	entries        []modelEntry // from base+1
	hard           hard
}

func (m model) last() uint64 { return m.base + uint64(len(m.entries)) }

func (m model) lastTerm() uint64 { return m.term(m.last()) }

func (m model) term(i uint64) uint64 {
	if i == m.base {
		return m.baseTerm
	}
	return m.entries[i-m.base-1].term
}

func (m model) clone() model {
	m.entries = slices.Clone(m.entries)
	return m
}

// step is an Append and every state that a crash in the middle of it may leave: a large
// one is written in several groups.
func (m model) step(a Append) (after model, partial []model) {
	m = m.clone()
	if a.HardState != nil {
		// The hard state travels with the first group, its commit cut to what is there.
		m.hard = hard{a.HardState.GetTerm(), a.HardState.GetVote(), a.HardState.GetCommit()}
	}
	if a.Snapshot != nil {
		m.base, m.baseTerm, m.entries = a.Snapshot.GetMetadata().GetIndex(), a.Snapshot.GetMetadata().GetTerm(), nil
		partial = append(partial, m.clone())
	}
	for _, e := range a.Entries {
		m.entries = append(m.entries[:e.GetIndex()-m.base-1:e.GetIndex()-m.base-1], modelEntry{e.GetTerm(), string(e.Data)})
		partial = append(partial, m.clone())
	}
	return m, partial
}

// read is the model of what a log holds.
func read(l *Log) model {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := model{base: l.tail.base, baseTerm: l.tail.baseTerm, hard: l.hard}
	for i := l.tail.base + 1; i <= l.tail.last; i++ {
		e := l.tail.at(i)
		if e.GetIndex() != i {
			panic(fmt.Sprintf("entry %d in the place of %d", e.GetIndex(), i))
		}
		m.entries = append(m.entries, modelEntry{e.GetTerm(), string(e.Data)})
	}
	return m
}

// holds says whether got, found after a crash, is the state want: the same entries,
// term and vote; it may have dropped entries up to dropped, and know an older commit.
//
// If it has dropped more than want has, its base is the end of an older segment: an entry
// that want had replaced, and below which the replacing ones are skipped (replay.apply). The
// store is beyond it, since a snapshot was installed there, say, whose base is not written
// yet, so nothing is lost; that Adopt replaces such a log is for check to see.
func (want model) holds(got model, dropped uint64) string {
	switch {
	case got.hard.term != want.hard.term || got.hard.vote != want.hard.vote:
		return fmt.Sprintf("hard state %+v", got.hard)
	case got.hard.commit > want.hard.commit && got.hard.commit > dropped:
		return fmt.Sprintf("commit %d", got.hard.commit)
	case want.last() < got.base && got.base <= dropped && len(got.entries) == 0:
		return ""
	case want.last() < got.base && got.base <= dropped && len(got.entries) == 0:
		// Everything written is below the start of the oldest segment, which began where the tail
		// of a deposed leader ended: see replay.apply. The store has all of it, and Adopt, called
		// with at least dropped, replaces the log.
		return ""
	case got.last() != want.last() || got.lastTerm() != want.lastTerm():
		return fmt.Sprintf("last %d/%d", got.lastTerm(), got.last())
	case got.base > max(dropped, want.base):
		return fmt.Sprintf("base %d, dropped up to %d", got.base, dropped)
	}
	for i := max(got.base, want.base) + 1; i <= want.last(); i++ {
		if g, w := got.entries[i-got.base-1], want.entries[i-want.base-1]; g != w {
			return fmt.Sprintf("entry %d: %.40v instead of %.40v", i, g, w)
		}
	}
	return ""
}

// run is one life of a log in a crash test.
type run struct {
	t    *testing.T
	seed uint64
	fs   *vfs.MemFS

	mu       sync.Mutex
	states   []model   // after each Append; states[0] is where the run started
	partials [][]model // of the Append that led to states[i]
	durable  atomic.Uint64
	released atomic.Int64 // how many Appends were released
	read     atomic.Int64 // entries that were read from files
}

// check opens a copy of the file system, as after a crash, and compares it with the
// model: all that was released must be there, and nothing that was not appended.
func (r *run) check(fs *vfs.MemFS, released int64) (recovered model, at int) {
	r.t.Helper()
	r.mu.Lock()
	states, partials := r.states, r.partials
	r.mu.Unlock()
	durable := r.durable.Load()
	var s sink
	o := testOptions(fs, &s)
	// The store may say how far it is, which must make no difference but to what is in memory.
	for i := range states {
		if m := states[i]; m.base <= durable && durable <= m.hard.commit && released%2 == 0 {
			o.Applied = durable
			o.keepApplied = []int64{1, 200, 1000, 0}[released/2%4]
		}
	}
	l, err := Open("log", o)
	if err != nil {
		r.t.Fatalf("seed %d: open after a crash: %v", r.seed, err)
	}
	got := read(l)
	var why []string
	found := -1
	for i := len(states) - 1; i >= int(released) && found < 0; i-- {
		candidates := []model{states[i]}
		if i > int(released) {
			candidates = append(candidates, partials[i]...)
		}
		for _, c := range candidates {
			reason := c.holds(got, durable)
			if reason == "" {
				found = i
				break
			}
			why = append(why, fmt.Sprintf("not as after append %d: %s", i, reason))
		}
	}
	if found < 0 {
		r.t.Fatalf("seed %d: after a crash with %d of %d appends released, the log (base %d, last %d/%d, %+v) is none that was possible:\n%s",
			r.seed, released, len(states)-1, got.base, got.lastTerm(), got.last(), got.hard, strings.Join(why, "\n"))
	}
	// The restart rule, with a store that may be ahead.
	index, term := durable, uint64(0)
	for i := len(states) - 1; ; i-- {
		if m := states[i]; m.base <= index && index <= m.hard.commit {
			term = m.term(index)
			break
		}
		if i == 0 {
			r.t.Fatalf("seed %d: the store holds entry %d durably, which no state had committed", r.seed, index)
		}
	}
	held := index <= got.last() && index >= got.base && got.term(index) == term
	replaced, err := l.Adopt(index, term, nil)
	if err != nil {
		r.t.Fatalf("seed %d: adopt(%d, %d): %v", r.seed, index, term, err)
	}
	if replaced == held {
		r.t.Fatalf("seed %d: adopt(%d, %d) replaced=%v, held=%v", r.seed, index, term, replaced, held)
	}
	after := read(l)
	if after.hard.commit < index || after.hard.commit > after.last() || after.hard.term < term {
		r.t.Fatalf("seed %d: adopt(%d, %d) left %+v, last %d", r.seed, index, term, after.hard, after.last())
	}
	if replaced {
		if first := l.Oldest(); first != index+1 {
			r.t.Fatalf("seed %d: the log was replaced and begins with entry %d instead of %d", r.seed, first, index+1)
		}
	} else {
		r.checkFiles(l, states[found])
	}
	if err := l.Close(); err != nil {
		r.t.Fatalf("seed %d: close: %v", r.seed, err)
	}
	// Closing and opening again must change nothing.
	l = mustOpen(r.t, "log", testOptions(fs, &s))
	if again := read(l); after.holds(again, index) != "" {
		r.t.Fatalf("seed %d: opened again: %s", r.seed, after.holds(again, index))
	}
	mustClose(r.t, l)
	return after, found
}

// checkFiles reads all committed entries that the files of l hold and compares them with the model.
func (r *run) checkFiles(l *Log, want model) {
	r.t.Helper()
	base, baseTerm := l.Base()
	next := max(l.Oldest(), want.base+1)
	rd, err := l.Read(next)
	if err != nil {
		r.t.Fatalf("seed %d: read entry %d of files that begin with %d: %v", r.seed, next, l.Oldest(), err)
	}
	defer rd.Close()
	for {
		got, err := rd.Next(1000, base, baseTerm)
		if err != nil {
			r.t.Fatalf("seed %d: read entry %d, base %d, model %d to %d: %v", r.seed, next, base, want.base, want.last(), err)
		}
		if len(got) == 0 {
			break
		}
		for _, e := range got {
			if i := e.GetIndex(); i != next || i > want.hard.commit && i > base {
				r.t.Fatalf("seed %d: entry %d was given where %d belongs; base %d, commit %d", r.seed, i, next, base, want.hard.commit)
			}
			if w := want.entries[next-want.base-1]; e.GetTerm() != w.term || string(e.Data) != w.data {
				r.t.Fatalf("seed %d: entry %d of term %d with %d bytes was given; in the log it is %.40v", r.seed, next, e.GetTerm(), len(e.Data), w)
			}
			next++
			r.read.Add(1)
		}
	}
	if next <= base && next <= want.last() {
		r.t.Fatalf("seed %d: the files end before entry %d, but the base is %d", r.seed, next, base)
	}
}

// nextAppend draws one Append that raft could make.
func nextAppend(rng *rand.Rand, m model, n int) Append {
	var a Append
	h := m.hard
	if rng.IntN(8) == 0 {
		h.term, h.vote = h.term+1, uint64(rng.IntN(3))
	} else if h.vote == 0 && rng.IntN(4) == 0 {
		h.vote = 1 + uint64(rng.IntN(3))
	}
	last := m.last()
	if rng.IntN(40) == 0 {
		index := last + uint64(rng.IntN(20)) + 1
		h.term++
		h.vote = 0
		a.Snapshot = snapshot(index, h.term)
		h.commit, last = index, index
	}
	if rng.IntN(5) != 0 && h.term > 0 {
		from := last + 1
		// A tail of an older term may be replaced.
		if a.Snapshot == nil && last > h.commit && m.lastTerm() < h.term && rng.IntN(2) == 0 {
			from = h.commit + 1 + uint64(rng.IntN(int(last-h.commit)))
		}
		last = from - 1
		for range 1 + rng.IntN(4) {
			last++
			size := rng.IntN(300)
			if rng.IntN(15) == 0 {
				size = rng.IntN(9000)
			}
			a.Entries = append(a.Entries, entry(last, h.term, strings.Repeat(string(rune('a'+rng.IntN(26))), size+1)))
		}
	}
	if rng.IntN(2) == 0 && last > h.commit && (last > m.last() || a.Entries != nil || m.lastTerm() == h.term) {
		h.commit += uint64(rng.IntN(int(last-h.commit) + 1))
	}
	if h != m.hard {
		a.HardState = hardState(h.term, h.vote, h.commit)
	}
	a.Responses = response(uint64(n))
	return a
}

// TestCrash runs random Appends and Compacts on a file system that may crash. Before every single
// file operation it takes a copy of what a crash would leave, once with nothing and once with a
// random part of what was not synced, and checks it. Then it continues with one of them.
func TestCrash(t *testing.T) {
	for _, small := range []bool{false, true} {
		t.Run(map[bool]string{false: "atomic", true: "split"}[small], func(t *testing.T) {
			seed, rng := newSeed(t)
			fs := vfs.NewCrashableMem()
			state := model{}
			durable, read := uint64(0), int64(0)
			for range *roundFlag {
				r := &run{t: t, seed: seed, fs: fs, states: []model{state}, partials: [][]model{nil}}
				r.durable.Store(durable)
				var checking sync.Mutex
				crng := rand.New(rand.NewPCG(rng.Uint64(), 1))
				armed := atomic.Bool{}
				o := testOptions(errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
					if !armed.Load() || op.Kind.ReadOrWrite() == errorfs.OpIsRead {
						return nil
					}
					checking.Lock()
					defer checking.Unlock()
					released := r.released.Load()
					r.check(fs.CrashClone(vfs.CrashCloneCfg{}), released)
					r.check(crashClone(t, fs, vfs.CrashCloneCfg{UnsyncedDataPercent: crng.IntN(101), RNG: crng}), released)
					return nil
				})), &sink{})
				o.random = rng.Uint64
				o.noSpares, o.PipelineBytes = rng.IntN(2) == 0, rng.IntN(2)
				if small {
					o.groupBytes = 1
				}
				o.Released = func(ms []*raftpb.Message) {
					for _, m := range ms {
						if got := r.released.Add(1); uint64(got) != m.GetIndex() {
							t.Errorf("seed %d: response %d released as number %d", seed, m.GetIndex(), got)
						}
					}
				}
				o.Failed = func(err error) { t.Errorf("seed %d: %v", seed, err) }
				l := mustOpen(t, "log", o)
				if rng.IntN(2) == 0 {
					l.Hold(uint64(rng.IntN(100)), int64(rng.IntN(100_000)))
				}
				armed.Store(true)
				m := state
				for n := 1; n <= 25; n++ {
					a := nextAppend(rng, m, n)
					after, partial := m.step(a)
					if a.Snapshot != nil {
						index := a.Snapshot.GetMetadata().GetIndex()
						a.Install = func() error { r.durable.Store(index); return nil }
					}
					m = after
					r.mu.Lock()
					r.states = append(r.states, m)
					r.partials = append(r.partials, partial)
					r.mu.Unlock()
					l.Append(a)
					switch rng.IntN(6) {
					case 0:
						mustSync(t, l)
					case 2:
						l.Trim(m.hard.commit, int64(rng.IntN(4000))) // all that is committed may be applied
					case 1:
						// The store flushes without waiting for the log, unless a
						// snapshot is on its way.
						if d := r.durable.Load(); d >= m.base && m.hard.commit > d {
							d += uint64(rng.IntN(int(m.hard.commit-d) + 1))
							r.durable.Store(d)
							if err := l.Compact(d, int64(rng.IntN(4000))); err != nil {
								t.Fatal(err)
							}
						}
					}
				}
				if rng.IntN(2) == 0 {
					mustSync(t, l)
				}
				armed.Store(false)
				checking.Lock()
				released := r.released.Load()
				cfg := vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng}
				next := crashClone(t, fs, cfg)
				checking.Unlock()
				mustClose(t, l)
				state, _ = r.check(next, released)
				fs = next
				durable = max(r.durable.Load(), state.base)
				read += r.read.Load()
			}
			if read == 0 {
				t.Error("nothing was read from the files")
			}
			t.Logf("%d entries were read from the files", read)
		})
	}
}

// TestFailedOperation lets each file operation of a fixed run fail in turn. Nothing that was not
// durable may be released; the failure is reported once; what was released exists when the disk
// works again.
func TestFailedOperation(t *testing.T) {
	injected := []error{syscall.EIO, syscall.ENOSPC}
	for n := int32(0); ; n++ {
		fs := vfs.NewCrashableMem()
		var ops atomic.Int32
		r := &run{t: t, fs: fs, states: []model{{}}, partials: [][]model{nil}}
		var s sink
		var seen atomic.Pointer[errorfs.Op]
		o := testOptions(errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if ops.Add(1)-1 != n {
				return nil
			}
			seen.Store(&op)
			return injected[n%2]
		})), &s)
		o.Released = func(ms []*raftpb.Message) {
			if len(s.failures()) > 0 {
				t.Errorf("operation %d: released after a failure", n)
			}
			r.released.Add(int64(len(ms)))
		}
		l, err := Open("log", o)
		if err == nil {
			m := model{}
			rng := rand.New(rand.NewPCG(7, 7))
			for i := 1; i <= 40; i++ {
				a := nextAppend(rng, m, i)
				after, partial := m.step(a)
				if a.Snapshot != nil {
					index := a.Snapshot.GetMetadata().GetIndex()
					a.Install = func() error { r.durable.Store(index); return nil }
				}
				m = after
				r.states, r.partials = append(r.states, m), append(r.partials, partial)
				l.Append(a)
				_ = l.Sync(t.Context()) // fails as the log does
				if m.hard.commit >= r.durable.Load() && r.durable.Load() >= m.base {
					r.durable.Store(m.hard.commit)
					_ = l.Compact(m.hard.commit, 500) // an error here stops nothing
				}
			}
			failed := s.failures()
			if len(failed) > 1 {
				t.Fatalf("operation %d: told %d failures", n, len(failed))
			}
			if len(failed) == 1 {
				if u := l.Unsynced(); u.Oldest == 0 {
					t.Fatalf("operation %d: nothing is unsynced after %v", n, failed[0])
				}
				if !errors.Is(failed[0], injected[n%2]) || !strings.Contains(failed[0].Error(), "raftlog: ") || !strings.Contains(failed[0].Error(), "log") {
					t.Fatalf("operation %d: error does not say what or where: %v", n, failed[0])
				}
			}
			_ = l.Close() // fails as the log does
		} else if seen.Load() == nil || !errors.Is(err, injected[n%2]) {
			t.Fatal(err)
		}
		r.check(fs.CrashClone(vfs.CrashCloneCfg{}), r.released.Load())
		if seen.Load() == nil {
			if n < 50 {
				t.Fatalf("only %d operations", n)
			}
			t.Logf("%d operations failed in turn", n)
			return
		}
	}
}

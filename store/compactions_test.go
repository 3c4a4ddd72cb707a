package store

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// engine stands for the engine: it has so many compactions that wait, all of one kind.
type engine struct {
	allowed int
	waiting atomic.Int64
	what    pebble.WaitingCompaction
	handles chan pebble.CompactionGrantHandle
}

func newEngine(waiting int) *engine {
	e := &engine{allowed: 1, what: pebble.WaitingCompaction{Priority: 80}, handles: make(chan pebble.CompactionGrantHandle, 10)}
	e.waiting.Store(int64(waiting))
	return e
}

func (e *engine) GetAllowedWithoutPermission() int { return e.allowed }

func (e *engine) GetWaitingCompaction() (bool, pebble.WaitingCompaction) {
	return e.waiting.Load() > 0, e.what
}

func (e *engine) Schedule(h pebble.CompactionGrantHandle) bool {
	if e.waiting.Add(-1) < 0 {
		e.waiting.Add(1)
		return false
	}
	e.handles <- h
	return true
}

// TestCompactionsWait: what waits, and for what.
func TestCompactionsWait(t *testing.T) {
	const second = time.Second
	for _, c := range []struct {
		name   string
		set    func(c *compactions, e *engine)
		runs   bool // by the goroutine
		atOnce bool // when the engine asks
	}{
		{"nothing is written", func(c *compactions, e *engine) { c.noteDepth(2) }, true, true},
		{"little is written", func(c *compactions, e *engine) { c.noteRate(busyBytes-1, second); c.noteDepth(2) }, true, true},
		{"much is written", func(c *compactions, e *engine) { c.noteRate(busyBytes, second); c.noteDepth(2) }, false, false},
		{"much was written", func(c *compactions, e *engine) {
			c.noteRate(busyBytes, second)
			c.noteDepth(2)
			c.noteRate(busyBytes-1, second)
		}, true, true},
		{"much is written, into many sublevels", func(c *compactions, e *engine) { c.noteRate(busyBytes, second); c.noteDepth(deepSublevels) }, true, true},
		{"much is written, and somebody waits", func(c *compactions, e *engine) { c.noteRate(busyBytes, second); c.hurry() }, true, true},
		{"much is written, and somebody waited", func(c *compactions, e *engine) { c.noteRate(busyBytes, second); c.hurry()() }, false, false},
		{"much is written, and the engine was asked for it", func(c *compactions, e *engine) { c.noteRate(busyBytes, second); e.what.Priority = 70 }, true, false},
		{"much is written, and nothing else is to be done", func(c *compactions, e *engine) { c.noteRate(busyBytes, second); e.what.Optional = true }, true, false},
		{"one runs already", func(c *compactions, e *engine) { e.allowed = 0 }, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, s := newEngine(1), newCompactions()
			s.db = e
			c.set(s, e)
			ok, h := s.TrySchedule()
			if ok != c.atOnce || (h != nil) != ok {
				t.Errorf("the engine was told %v and %v, want %v", ok, h, c.atOnce)
			}
			if ok {
				h.Done()
			}
			if s.grant(); (len(e.handles) == 1) != c.runs {
				t.Errorf("%d compactions run, want %v", len(e.handles), c.runs)
			}
			for len(e.handles) > 0 {
				(<-e.handles).Done()
			}
			if s.running != 0 {
				t.Errorf("%d are counted after all have ended", s.running)
			}
		})
	}
}

// TestCompactionsRest: one that is not urgent rests for as long as it worked.
func TestCompactionsRest(t *testing.T) {
	const worked = 5 * time.Millisecond
	for _, c := range []struct {
		name  string
		set   func(c *compactions)
		rests bool
	}{
		{"little is written", func(c *compactions) { c.noteDepth(2) }, true},
		{"much is written", func(c *compactions) { c.noteRate(busyBytes, time.Second) }, false},
		{"there are many sublevels", func(c *compactions) { c.noteDepth(deepSublevels) }, false},
		{"somebody waits", func(c *compactions) { c.hurry() }, false},
	} {
		s := newCompactions()
		c.set(s)
		g := &granted{c: s}
		g.Started()
		g.from = g.from.Add(-worked)
		from := g.from
		g.CumulativeStats(pebble.CompactionGrantHandleStats{})
		if rested := g.from.Sub(from); (rested > 0) != c.rests || c.rests && rested < 2*worked {
			t.Errorf("%s: a compaction that has worked for %v goes on %v after it began", c.name, worked, rested)
		}
	}
}

// TestCompactionsAreGranted: no more run than may, those that wait run one after the other, and none
// after the end.
func TestCompactionsAreGranted(t *testing.T) {
	e, s := newEngine(5), newCompactions()
	e.allowed = 2
	s.Register(2, e)
	next := func() pebble.CompactionGrantHandle {
		select {
		case h := <-e.handles:
			return h
		case <-time.After(30 * time.Second):
			t.Fatal("no compaction was let run in 30 s")
			return nil
		}
	}
	running := []pebble.CompactionGrantHandle{next(), next()}
	for range 3 {
		if ok, _ := s.TrySchedule(); ok || len(e.handles) > 0 {
			t.Fatal("a third compaction runs")
		}
		running[0].Done()
		running = append(running[1:], next())
	}
	e.waiting.Store(1)
	s.Unregister()
	for _, h := range running {
		h.Done()
	}
	if ok, _ := s.TrySchedule(); ok || len(e.handles) > 0 || e.waiting.Load() != 1 {
		t.Error("a compaction runs after the end")
	}
}

// TestLevelsAreMerged: what waited while much was written is merged afterwards, without anybody
// asking.
func TestLevelsAreMerged(t *testing.T) {
	s, err := Open("db", Options{FS: vfs.NewMem(), MemTableBytes: 1 << 20, CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	value := bytes.Repeat([]byte{'v'}, 1<<10)
	for rev := range uint64(6) {
		for range 1 << 10 {
			write(t, s, fmt.Sprintf("key-%06d", rand.IntN(1e6)), string(value)+fmt.Sprint(rev))
		}
		s.compactions.noteRate(1<<40, time.Second) // the next sample knows better
		flush(t, s)
	}
	deadline := time.Now().Add(time.Minute)
	for s.Pebble().Levels[0].Sublevels > 1 {
		if time.Now().After(deadline) {
			t.Fatalf("level 0 has %d sublevels a minute after the last write", s.Pebble().Levels[0].Sublevels)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestTablesOfOldVersionsAreSmall: the engine holds the values of older versions in memory until a
// table ends, so a table ends early.
func TestTablesOfOldVersionsAreSmall(t *testing.T) {
	const memTableBytes, versions, bytes = 4 << 20, 8 << 10, 1 << 10
	s, err := Open("db", Options{FS: vfs.NewMem(), MemTableBytes: memTableBytes, CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	rng, value := rand.New(rand.NewPCG(1, 1)), make([]byte, bytes)
	for rev := uint64(1); rev <= versions; rev++ {
		for i := range value { // the engine compresses
			value[i] = byte(rng.Uint32())
		}
		b := s.NewBatch(rev, 1)
		if err := b.Set(AppendUserKey(nil, fmt.Appendf(nil, "key-%d", rev%3), rev, 0), value); err != nil {
			t.Fatal(err)
		}
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CompactAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	levels, err := s.db.SSTables()
	if err != nil {
		t.Fatal(err)
	}
	tables := 0
	for level, infos := range levels[1:] {
		for _, table := range infos {
			if tables++; table.Size > memTableBytes/4*3/2 {
				t.Errorf("level %d has a table of %d bytes", level+1, table.Size)
			}
		}
	}
	if tables < versions*bytes/memTableBytes {
		t.Errorf("%d tables below level 0", tables)
	}
}

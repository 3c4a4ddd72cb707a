package store

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// compactions decides when the engine's compactions run. What there is to compact, the engine knows;
// how many may run at once, too (CompactionConcurrencyRange). This waits with them while much is
// written.
//
// # Why wait
//
// A compaction of level 0 rewrites what its tables overlap in the level below, and with keys in no
// order this is all of that level. The engine wants one as soon as two flushes have made two
// sublevels. As long as more is written, every further flush that is waited for is merged by the
// same compaction, and so the level below is rewritten less often: loading 2,000,000 keys costs three
// quarters of the CPU (docs/benchmarks.md).
//
// # What it costs
//
// A reader looks into each sublevel: a get asks one more filter, a range merges one more iterator.
// So nothing waits when there are deepSublevels, nor when less than busyBytes are written in a
// second. As soon as writers pause, what waits is merged.
//
// # Rests
//
// What is merged when writers have paused is not urgent, and readers are who notices it: such a
// compaction takes a processor of its own for seconds. So it works half of the time.
//
// Compactions that somebody asked for (CompactAll), and those that the engine does when it has
// nothing else to do, never wait, and while somebody waits (hurry) none rests.
type compactions struct {
	mu      sync.Mutex // ordered after the engine's
	db      pebble.DBForCompaction
	running int
	over    bool // Unregister was called

	nudge   chan struct{} // capacity 1: something may be granted
	stop    chan struct{}
	stopped chan struct{}

	// since is when written bytes had been written; of note.
	since struct {
		at      time.Time
		written int64
	}
	// What the store knows of itself: noteRate, noteDepth.
	writing   atomic.Bool
	sublevels atomic.Int64
	asked     atomic.Int64 // who waits for it: CompactAll, Close
}

const (
	// deepSublevels of level 0 are compacted however much is written. The engine runs a second
	// compaction from ten on.
	deepSublevels = 8
	// busyBytes in a second are as many as are worth waiting for: a flush every few seconds.
	busyBytes = 4 << 20

	// A compaction that rests does so for as long as it worked, by the clock: longer when others have
	// the processors, too.
	workBeforeRest = 2 * time.Millisecond
	restMost       = 20 * time.Millisecond

	// grantInterval is how often what waits is looked at, as in the engine's own scheduler.
	grantInterval = 100 * time.Millisecond
	// askedPriority is between the engine's priorities of compactions that somebody asked for and of
	// those that a level needs: 70 and 80. See scheduledCompactionMap in Pebble.
	askedPriority = 75
)

func newCompactions() *compactions {
	return &compactions{nudge: make(chan struct{}, 1), stop: make(chan struct{}), stopped: make(chan struct{})}
}

// note is told how many bytes have been written since Open, and how many sublevels there are. Calls
// that follow each other at once, as after a flush, say nothing of how much is written in a second.
// One call at a time.
func (c *compactions) note(written, sublevels int64) {
	now := time.Now()
	if in := now.Sub(c.since.at); in >= sampleInterval/2 {
		c.noteRate(written-c.since.written, in)
		c.since.at, c.since.written = now, written
	}
	c.noteDepth(sublevels)
}

// noteRate is told how many bytes were written in how long.
func (c *compactions) noteRate(bytes int64, in time.Duration) {
	c.writing.Store(float64(bytes) >= busyBytes*in.Seconds())
}

// noteDepth is told how many sublevels there are now.
func (c *compactions) noteDepth(sublevels int64) {
	c.sublevels.Store(sublevels)
	c.poke()
}

// hurry makes nothing wait until done is called.
func (c *compactions) hurry() (done func()) {
	c.asked.Add(1)
	c.poke()
	return func() { c.asked.Add(-1) }
}

func (c *compactions) poke() {
	select {
	case c.nudge <- struct{}{}:
	default:
	}
}

// waits reports whether compactions that a level needs are to wait.
func (c *compactions) waits() bool {
	return c.writing.Load() && c.sublevels.Load() < deepSublevels && c.asked.Load() == 0
}

// rests reports whether compactions are to leave half of the time to others.
func (c *compactions) rests() bool {
	return !c.writing.Load() && c.sublevels.Load() < deepSublevels && c.asked.Load() == 0
}

// reserve counts a compaction that is about to run, if one more may.
func (c *compactions) reserve() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over || c.running >= c.db.GetAllowedWithoutPermission() {
		return false
	}
	c.running++
	return true
}

func (c *compactions) release() {
	c.mu.Lock()
	c.running--
	c.mu.Unlock()
}

// grant lets run what waits and may. Of the goroutine that Register started alone.
func (c *compactions) grant() {
	for c.reserve() {
		// This may wait for the disk: the engine answers under the lock of its manifest.
		waiting, what := c.db.GetWaitingCompaction()
		wanted := waiting && (what.Optional || what.Priority < askedPriority || !c.waits())
		if !wanted || !c.db.Schedule(&granted{c: c}) {
			c.release()
			return
		}
	}
}

// Register implements pebble.CompactionScheduler, as do the next three.
func (c *compactions) Register(_ int, db pebble.DBForCompaction) {
	c.db = db
	go func() {
		defer close(c.stopped)
		tick := time.NewTicker(grantInterval)
		defer tick.Stop()
		for {
			select {
			case <-c.stop:
				return
			case <-tick.C:
			case <-c.nudge:
			}
			c.grant()
		}
	}()
}

// Unregister returns when the engine is not called any more.
func (c *compactions) Unregister() {
	c.mu.Lock()
	c.over = true
	c.mu.Unlock()
	close(c.stop)
	<-c.stopped
}

// TrySchedule is called under the engine's lock, with nothing said of what is to run: what may have
// to wait is looked at by the goroutine.
func (c *compactions) TrySchedule() (bool, pebble.CompactionGrantHandle) {
	if !c.waits() && c.reserve() {
		return true, &granted{c: c}
	}
	c.poke()
	return false, nil
}

func (c *compactions) UpdateGetAllowedWithoutPermission() { c.poke() }

// granted is a compaction that runs.
type granted struct {
	c    *compactions
	from time.Time // it has run since then
}

func (*granted) MeasureCPU(pebble.CompactionGoroutineKind) {}

func (g *granted) Started() { g.from = time.Now() }

// CumulativeStats is called by the compaction after every 128 keys. It may wait.
func (g *granted) CumulativeStats(pebble.CompactionGrantHandleStats) {
	if !g.c.rests() {
		return
	}
	if ran := time.Since(g.from); ran >= workBeforeRest {
		time.Sleep(min(ran, restMost))
		g.from = time.Now()
	}
}

func (g *granted) Done() {
	g.c.release()
	g.c.poke()
}

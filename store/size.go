package store

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// sizes knows how large the store is, without asking the engine: the engine answers under the lock
// of its manifest, which is held while the manifest is synced, and callers (the applier at every
// write, /metrics, Status) must not wait for a disk. A goroutine asks instead: after each flush and
// compaction, and every sampleInterval, because files are removed later than their content. What
// was written since its last answer is added.
type sizes struct {
	sample atomic.Pointer[sample]
	asking gate // held while the engine is asked, so that answers come in order

	// unflushed is about how many bytes the memtables hold: what batches added, less what flushes
	// took.
	unflushed atomic.Int64
	// written is what batches added since Open; it never falls.
	written atomic.Int64
	// shadowed is the garbage, in unflushed and below it, that sized deletes still in memtables
	// have made. The engine knows the garbage of those in files.
	shadowed atomic.Int64
	flushing int64 // shadowed when the current flush began; of the engine's flushes, one at a time

	nudge   chan struct{} // capacity 1: the sample is old
	ctx     context.Context
	stop    context.CancelFunc
	stopped sync.WaitGroup
}

// sample is the engine's answer.
type sample struct {
	total, inUse int64
	written      int64 // sizes.written before the engine was asked
}

const (
	sampleInterval = 500 * time.Millisecond

	// flushShadowed is the garbage in memtables from which Reclaim has them flushed: nothing else
	// frees that memory.
	flushShadowed = 1 << 20
)

// init must be called before the engine is opened, which may flush and compact at once.
func (z *sizes) init() {
	z.nudge, z.asking = make(chan struct{}, 1), newGate()
	z.ctx, z.stop = context.WithCancel(context.Background())
}

// startSampling takes the first sample itself. REQUIRES: the engine is open.
func (s *Store) startSampling() {
	z := &s.sizes
	s.takeSample()
	z.stopped.Add(1)
	go func() {
		defer z.stopped.Done()
		tick := time.NewTicker(sampleInterval)
		defer tick.Stop()
		for {
			select {
			case <-z.ctx.Done():
				return
			case <-tick.C:
			case <-z.nudge:
			}
			s.takeSample()
		}
	}()
}

func (s *Store) stopSampling() {
	s.sizes.stop()
	s.sizes.stopped.Wait()
}

// resample triggers the next sample. It does not wait, and may be called under the engine's locks.
func (z *sizes) resample() {
	select {
	case z.nudge <- struct{}{}:
	default:
	}
}

// takeSample may wait for the disk.
func (s *Store) takeSample() {
	z := &s.sizes
	z.asking.enter()
	defer z.asking.leave()
	next := &sample{written: z.written.Load()}
	m := s.db.Metrics()
	s.blocks.note(int64(m.MemTable.Size+m.MemTable.ZombieSize), s.memTableRoom())
	memory := min(max(z.unflushed.Load(), 0), int64(m.MemTable.Size))
	files := int64(m.BlobFiles.ReferencedValueSize)
	for i := range m.Levels {
		files += m.Levels[i].TablesSize
	}
	segments, live := s.Segments.sizes()
	garbage := int64(m.Table.Garbage.PointDeletionsBytesEstimate) + max(z.shadowed.Load(), 0)
	next.total = max(int64(m.DiskSpaceUsage())+memory, files+memory, 1) + segments
	next.inUse = max(files+memory-garbage, 0) + live
	z.sample.Store(next)
}

// Size is the size of the store in bytes, on disk and in memory before the next flush, and the part
// of it that holds current data. total is never 0. The answer is an estimate, at most a second old,
// plus everything written since. It waits for nothing: while a disk hangs it is the last known size
// plus what was written since.
func (s *Store) Size() (total, inUse int64) {
	last := s.sizes.sample.Load()
	since := s.sizes.written.Load() - last.written
	return last.total + since, last.inUse + since
}

// noteCommit counts a batch that is about to be written.
func (z *sizes) noteCommit(b *Batch) {
	bytes := int64(b.b.Len()) + int64(b.b.Count())*memTableEntryBytes
	z.unflushed.Add(bytes)
	z.written.Add(bytes + b.placed)
	z.shadowed.Add(b.shadows)
}

func (z *sizes) flushBegins() { z.flushing = z.shadowed.Load() }

func (z *sizes) flushed(inputBytes uint64) {
	z.unflushed.Add(-int64(inputBytes))
	z.shadowed.Add(-z.flushing)
	z.flushing = 0
	z.resample()
}

package replica

import (
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
	"go.uber.org/zap"
)

// flushInterval is how long applied entries may stay unflushed on a quiet
// member, so that its next start has little to replay.
const flushInterval = 60 * time.Second

// flusher moves the durable applied index: it asks the state machine to flush
// and lets the log drop what is then no longer needed.
type flusher struct {
	mu      sync.Mutex
	entries uint64 // applied since the last flush began
	bytes   int64
	due     chan struct{} // capacity 1: enough has come together

	// hold: a follower still needs what the log would drop; set by the loop.
	hold atomic.Bool

	flushBytes   int64
	flushEntries uint64
}

func (f *flusher) init(cfg *Config) {
	f.due = make(chan struct{}, 1)
	f.flushBytes, f.flushEntries = cfg.FlushBytes, cfg.FlushEntries
}

// note is called by the applier for each batch.
func (f *flusher) note(entries uint64, bytes int64) {
	f.mu.Lock()
	f.entries += entries
	f.bytes += bytes
	due := f.entries >= f.flushEntries || f.bytes >= f.flushBytes
	f.mu.Unlock()
	if due {
		f.wake()
	}
}

// wake has the flusher look whether there is something to flush.
func (f *flusher) wake() {
	select {
	case f.due <- struct{}{}:
	default:
	}
}

func (f *flusher) begin() (any bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	any = f.entries > 0
	f.entries, f.bytes = 0, 0
	return any
}

func (r *Replica) runFlusher() {
	ticker := time.NewTicker(flushInterval)
	defer ticker.Stop()
	for {
		select {
		case <-r.stopped:
			return
		case <-ticker.C:
		case <-r.flusher.due:
		}
		if !r.flusher.begin() {
			continue
		}
		r.work.flushing.start()
		index, done, err := r.cfg.State.Flush()
		if err != nil {
			r.cfg.Failed(err)
			return
		}
		select {
		case <-done:
		case <-r.stopped:
			return
		}
		r.work.flushing.stop()
		r.raiseFlushed(index)
		keep := r.cfg.KeepBytes
		if r.flusher.hold.Load() {
			keep = r.cfg.HoldBytes
		}
		// The state machine may be ahead of what raft was told that it has applied, and
		// raft reads what lies between before it campaigns.
		if err := r.cfg.Log.Compact(min(index, r.raftApplied.Load()), keep); err != nil {
			r.cfg.Failed(err)
			return
		}
		r.logger.Debug("compacted Raft logs", zap.Uint64("compact-index", index))
	}
}

// raiseFlushed notes that a crash leaves everything up to index. Flusher and applier call it.
func (r *Replica) raiseFlushed(index uint64) {
	for old := r.flushed.Load(); old < index; old = r.flushed.Load() {
		if r.flushed.CompareAndSwap(old, index) {
			return
		}
	}
}

// noteLagging tells the flusher whether a follower that answers gets a snapshot,
// or got one and has yet to catch up.
func (l *loop) noteLagging(now time.Time) {
	l.node.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		switch {
		case p.State == tracker.StateSnapshot:
			l.catching[id] = true
		case l.catching[id] && l.cfg.Log.BytesAfter(p.Match) <= l.cfg.KeepBytes/2:
			delete(l.catching, id)
		}
		if l.catching[id] && p.RecentActive {
			l.lagging = now
		}
	})
	// Not at once: raft forgets for a moment, at each election timeout, who is active.
	l.flusher.hold.Store(!l.lagging.IsZero() && now.Sub(l.lagging) < 2*l.cfg.electionTimeout())
}

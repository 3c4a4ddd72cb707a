package replica

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
	"go.uber.org/zap"

	"github.com/belaydb/belay/raftlog"
)

// flushInterval is how long applied entries may stay unflushed on a quiet
// member, so that its next start has little to replay.
const flushInterval = 60 * time.Second

// flusher moves the durable applied index: it asks the state machine to flush
// and lets the log drop what is then no longer needed.
type flusher struct {
	*env
	work *storeWork

	mu      sync.Mutex
	entries uint64 // applied since the last flush began
	bytes   int64
	due     chan struct{} // capacity 1: enough has come together

	// hold: a follower still needs what the log would drop; set by the loop.
	hold atomic.Bool
}

func (f *flusher) init(e *env, work *storeWork) {
	f.env, f.work, f.due = e, work, make(chan struct{}, 1)
}

// note is called by the applier for each batch.
func (f *flusher) note(entries uint64, bytes int64) {
	f.mu.Lock()
	f.entries += entries
	f.bytes += bytes
	due := f.entries >= f.cfg.FlushEntries || f.bytes >= f.cfg.FlushBytes
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

func (f *flusher) run() {
	ticker := time.NewTicker(flushInterval)
	defer ticker.Stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { <-f.stopped; cancel() }()
	for {
		select {
		case <-f.stopped:
			return
		case <-ticker.C:
		case <-f.due:
		}
		if !f.begin() && f.cfg.Log.HeldBytes() == 0 {
			continue
		}
		f.work.flushing.start()
		index, done, err := f.cfg.State.Flush(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			f.cfg.Failed(err)
			return
		}
		select {
		case <-done:
		case <-f.stopped:
			return
		}
		f.work.flushing.stop()
		f.pub.raiseFlushed(index)
		keep := f.cfg.KeepBytes
		if f.hold.Load() {
			keep = f.cfg.HoldBytes
		}
		// The state machine may be ahead of what raft was told that it has applied, and
		// raft reads what lies between before it campaigns.
		if err := f.cfg.Log.Compact(min(index, f.pub.raftApplied.Load()), keep); err != nil {
			f.cfg.Failed(err)
			return
		}
		f.logger.Debug("compacted Raft logs", zap.Uint64("compact-index", index))
	}
}

// noteLagging tells the flusher whether a follower that answers gets a snapshot,
// or got one and has yet to catch up.
func (fs *followers) noteLagging(now time.Time) {
	fs.node.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		switch {
		case p.State == tracker.StateSnapshot:
			fs.catching[id] = true
		case fs.catching[id] && fs.cfg.Log.BytesAfter(p.Match) <= fs.cfg.KeepBytes/2:
			delete(fs.catching, id)
		}
		if fs.catching[id] && p.RecentActive {
			fs.lagging = now
		}
	})
	// Not at once: raft forgets for a moment, at each election timeout, who is active.
	fs.flusher.hold.Store(!fs.lagging.IsZero() && now.Sub(fs.lagging) < 2*fs.cfg.electionTimeout())
}

// holdInactive is how long the log on disk is held for a follower that is not heard of: it
// may be started again.
const holdInactive = 10 * time.Second

// holdDisk tells the log what of it the followers need from the files. It runs at each tick
// of a leader.
func (fs *followers) holdDisk(now time.Time) {
	after, known := uint64(raftlog.NoHold), make(map[uint64]bool, len(fs.wanted))
	fs.node.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		if id == fs.cfg.ID {
			return
		}
		known[id] = true
		if p.RecentActive || fs.heard[id].IsZero() { // a new leader has heard of nobody
			fs.heard[id] = now
		}
		// A snapshot that is on its way raises it as well: sendSnapshot.
		fs.wanted[id] = max(fs.wanted[id], p.Match)
		if now.Sub(fs.heard[id]) < holdInactive {
			after = min(after, fs.wanted[id])
		}
	})
	for id := range fs.wanted {
		if !known[id] {
			delete(fs.wanted, id)
			delete(fs.heard, id)
			delete(fs.fed, id)
		}
	}
	fs.cfg.Log.Hold(after, fs.cfg.HoldDiskBytes)
	fs.tellHeld()
}

// releaseDisk is for who does not lead.
func (fs *followers) releaseDisk() {
	clear(fs.wanted)
	clear(fs.heard)
	fs.cfg.Log.Hold(raftlog.NoHold, 0)
	fs.tellHeld()
}

func (fs *followers) tellHeld() {
	fs.metrics.KeptBytes.Set(float64(fs.cfg.Log.HeldBytes()))
	fs.metrics.FirstKept.Set(float64(fs.cfg.Log.Oldest()))
}

package replica

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// flushInterval is how long applied entries may stay unflushed on a quiet
// member, so that its next start has little to replay.
const flushInterval = 60 * time.Second

// flusher moves the durable applied index: it asks the state machine to flush
// and lets the log drop what is then no longer needed.
type flusher struct {
	*env
	work   *storeWork
	window *window // hears how much is not flushed

	mu        sync.Mutex
	entries   uint64        // applied since the last flush began
	bytes     int64         // of them, without placed
	placed    int64         // bytes of values that the store has not, since the log has them
	flushing  int64         // bytes of the flush under way
	unflushed atomic.Int64  // bytes and flushing; changed with mu held
	due       chan struct{} // capacity 1: enough has come together

	// hold: a follower still needs what the log would drop; set by the loop.
	hold atomic.Bool
	// behind: a follower of this leader lacks more than is kept in memory for those that keep up;
	// set by the loop.
	behind atomic.Bool
	// followed: there are other members; set by the loop. (A single member always leads.)
	followed atomic.Bool

	untrimmed int64 // bytes applied since the log's memory was last trimmed; the applier's
}

// trimBytes is after how much applied log the memory of the log is trimmed; or after what is kept
// in memory, if that is less.
const trimBytes = 1 << 20

// nearShare is which part of KeepBytes stays in memory while nobody is behind: on the leader of
// followers that keep up, and on a member that does not lead. (A follower that is behind when this
// one begins to lead is fed from the files, which keep as much as ever.)
const nearShare = 8

// aloneShare is the same on a single member. One that joins it is fed, or gets a snapshot.
const aloneShare = 64

func (f *flusher) init(e *env, work *storeWork, window *window) {
	f.env, f.work, f.window, f.due = e, work, window, make(chan struct{}, 1)
}

// placedShare: values that stay in the log wait for a flush as long as this many times FlushBytes of
// others. A flush has nothing to write for them; it only lets go of the log, and saves the next start
// from applying it.
const placedShare = 8

// note is called by the applier for each batch, with the bytes of its entries and those of values that
// the log keeps for the store.
func (f *flusher) note(entries uint64, bytes, placed int64) {
	f.mu.Lock()
	f.entries += entries
	f.bytes += bytes - placed
	f.placed += placed
	all := f.bytes + f.placed
	due := f.entries >= f.cfg.FlushEntries || f.bytes+f.placed/placedShare >= f.cfg.FlushBytes ||
		all >= f.cfg.MaxUnsyncedBytes/2 || // so much again may come during the flush, and a start has all of it in memory
		all >= f.cfg.MaxUnsyncedBytes/4 && f.inMemory() >= f.cfg.MaxUnsyncedBytes/4 // it takes no more soon
	due = f.tellUnflushed() || due
	f.mu.Unlock()
	if due {
		f.wake()
	}
	// The store's flush may take long, and until it ends the entries are in the store's memory, too.
	// The log need not keep them as well: what is applied is needed by followers alone.
	keep := f.keepInMemory()
	if f.untrimmed += bytes; f.untrimmed >= min(trimBytes, keep) {
		f.untrimmed = 0
		f.cfg.Log.Trim(min(f.pub.applied.Load(), f.pub.raftApplied.Load()), keep)
	}
}

// inMemory is how much log the next flush lets leave memory, in bytes: without followers that lack it,
// little, see raftlog.Log.Trim.
func (f *flusher) inMemory() int64 {
	return f.cfg.Log.BytesBetween(f.pub.flushed.Load(), f.pub.applied.Load())
}

// keepInMemory is how much log stays in memory for followers, in bytes; at most keep. What a
// follower lacks that was heard of lately stays in any case: see raftlog.Log.Trim.
func (f *flusher) keepInMemory() int64 {
	switch {
	case f.hold.Load() || f.behind.Load():
		return f.keep()
	case f.followed.Load():
		return f.cfg.KeepBytes / nearShare
	}
	return f.cfg.KeepBytes / aloneShare
}

// keep is how much log is kept for followers, in memory or in the files, in bytes.
func (f *flusher) keep() int64 {
	if f.hold.Load() {
		return f.cfg.HoldBytes
	}
	return f.cfg.KeepBytes
}

// wake makes the flusher check whether there is something to flush.
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
	f.flushing, f.entries, f.bytes, f.placed = f.bytes, 0, 0, 0
	return any
}

// end takes note that what begin found is durable.
func (f *flusher) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flushing = 0
	f.tellUnflushed()
}

// tellUnflushed publishes how much is applied and not flushed. REQUIRES: mu.
func (f *flusher) tellUnflushed() (due bool) {
	n := f.flushing + f.bytes
	f.unflushed.Store(n)
	return f.window.setUnflushed(n)
}

func (f *flusher) run() {
	ticker := time.NewTicker(flushInterval)
	defer ticker.Stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { <-f.stopped; cancel() }()
	// All that is applied at the start is flushed.
	f.dropSegments(f.pub.flushed.Load())
	for {
		select {
		case <-f.stopped:
			return
		case <-ticker.C:
		case <-f.due:
		}
		if !f.begin() && f.cfg.Log.HeldBytes() == 0 {
			f.dropSegments(f.pub.flushed.Load()) // who read them may have ended
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
		f.end()
		f.pub.raiseFlushed(index)
		// The state machine may be ahead of what raft knows to be applied, and raft reads the
		// entries in between before it campaigns.
		if err := f.cfg.Log.Compact(min(index, f.pub.raftApplied.Load()), f.keep()); err != nil {
			f.cfg.Failed(err)
			return
		}
		f.dropSegments(index)
		f.logger.Debug("compacted Raft logs", zap.Uint64("compact-index", index))
	}
}

// dropSegments lets go of segments that were kept for values and are not needed, once entries up
// to index are flushed.
func (f *flusher) dropSegments(index uint64) {
	if f.cfg.Segments != nil {
		f.cfg.Segments.DropSegments(f.cfg.Log.Places().From(index))
	}
}

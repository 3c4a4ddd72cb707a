package replica

import (
	"sync"
	"time"

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
		select {
		case f.due <- struct{}{}:
		default:
		}
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
		if err := r.cfg.Log.Compact(index, r.cfg.KeepBytes); err != nil {
			r.cfg.Failed(err)
			return
		}
		r.logger.Debug("compacted Raft logs", zap.Uint64("compact-index", index))
	}
}

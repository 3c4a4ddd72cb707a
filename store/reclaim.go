package store

import (
	"bytes"
	"fmt"
	"sync"
)

// reclaim frees what deletes made garbage in files. The engine compacts by an estimate of it, which
// is too low where deletes meet recent writes, and where values are in files of their own: those
// are freed only when the tables that point to them are compacted, and these are so small that the
// engine sees no need.
type reclaim struct {
	mu      sync.Mutex
	deleted deleted
	busy    bool
}

// deleted is the garbage that sized deletes made: how many bytes, and between which keys.
type deleted struct {
	bytes     int64
	from, end []byte // both inclusive
}

func (d *deleted) note(key []byte, bytes int64) {
	d.bytes += bytes
	d.span(key, key)
}

func (d *deleted) span(from, end []byte) {
	if d.from == nil || bytes.Compare(from, d.from) < 0 {
		d.from = append(d.from[:0], from...)
	}
	if d.end == nil || bytes.Compare(end, d.end) > 0 {
		d.end = append(d.end[:0], end...) // a compaction deletes in order: each key is the last so far
	}
}

func (d *deleted) add(other deleted) {
	if other.bytes > 0 {
		d.bytes += other.bytes
		d.span(other.from, other.end)
	}
}

func (r *reclaim) note(d deleted) {
	if d.bytes > 0 {
		r.mu.Lock()
		r.deleted.add(d)
		r.mu.Unlock()
	}
}

// begin takes the work there is, unless somebody is doing it already.
func (r *reclaim) begin() (d deleted, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.busy || r.deleted.bytes < reclaimBytes {
		return d, false
	}
	d, r.deleted, r.busy = r.deleted, deleted{}, true
	return d, true
}

func (r *reclaim) end(left deleted) {
	r.mu.Lock()
	r.deleted.add(left)
	r.busy = false
	r.mu.Unlock()
}

const (
	// reclaimBytes is the least garbage for which a compaction is considered.
	reclaimBytes = 1 << 20
	// reclaimShare: a compaction is worth it when the garbage is at least 1/reclaimShare of what it
	// rewrites.
	reclaimShare = 4
	// reclaimMost bounds what is rewritten at once. A store with more has compactions all the time.
	reclaimMost = 1 << 30
)

// Reclaim is called when a compaction of the history has deleted what it should. Garbage in memory
// is freed by a flush, garbage in files by a compaction of their keys; Reclaim starts both where
// they are worth it, and has the sizes sampled again. It waits for nothing.
func (s *Store) Reclaim() {
	if d, ok := s.reclaim.begin(); ok {
		s.sizes.stopped.Go(func() { s.reclaim.end(s.reclaimSpan(d)) })
	} else if s.sizes.shadowed.Load() >= flushShadowed {
		s.sizes.stopped.Go(func() { _, _, _ = s.AsyncFlush(s.sizes.ctx) }) // a store that is being closed is flushed as well
	}
	s.sizes.resample()
}

// reclaimSpan returns what it left undone.
func (s *Store) reclaimSpan(d deleted) deleted {
	ctx := s.sizes.ctx
	if s.Flush(ctx) != nil {
		return d
	}
	from, _, _, _, ok := ParseUserKey(d.from) // all versions of the key, since a range of one version is none
	if !ok {
		panic(fmt.Sprintf("store: %x is not a version of a key", d.from))
	}
	if rewrites := s.tableBytes(from, d.end); rewrites > reclaimMost || d.bytes*reclaimShare < rewrites {
		return d
	}
	if err := s.db.Compact(ctx, from, d.end, false); err != nil {
		return d // a disk that fails or is full is reported by the engine's own work
	}
	s.takeSample()
	return deleted{}
}

// tableBytes is about how large the tables of the keys from..end are, without values in files of
// their own.
func (s *Store) tableBytes(from, end []byte) (bytes int64) {
	m := s.db.Metrics()
	for i := range m.Levels {
		bytes += m.Levels[i].TablesSize
	}
	if takes, err := s.db.EstimateDiskUsage(from, end); err == nil {
		bytes = min(bytes, int64(takes))
	}
	return bytes
}

package raftlog

import (
	"slices"
	"sync/atomic"
	"time"
)

// recentSyncs is how many syncs Stats covers.
const recentSyncs = 64

// Stats describes the disk. It counts syncs of groups only, not those of Open, Compact or the
// preparation of segments.
type Stats struct {
	// Syncs since Open.
	Syncs uint64
	// Last, Median and Max of the time that the last 64 syncs took; 0 before the first.
	Last, Median, Max time.Duration
	// SinceLast is the time since the last sync ended: without load the figures above
	// are old. 0 before the first.
	SinceLast time.Duration
	// InFlight is how long the write and sync under way has taken so far; 0 if there is
	// none. After a failure it grows for ever.
	InFlight time.Duration
}

// Stats returns figures about the disk. It takes no lock; its fields may be from slightly different
// moments.
func (l *Log) Stats() Stats {
	s := Stats{Syncs: l.w.syncs.count.Load(), InFlight: l.w.syncs.started.age(), SinceLast: l.w.syncs.ended.age()}
	n := min(s.Syncs, recentSyncs)
	if n == 0 {
		return s
	}
	took := make([]time.Duration, n)
	for i := range took {
		took[i] = time.Duration(l.w.syncs.took[i].Load())
	}
	s.Last = took[(s.Syncs-1)%recentSyncs]
	slices.Sort(took)
	s.Median, s.Max = took[n/2], took[n-1]
	return s
}

// syncs is written by whoever writes a group, one at a time, and read by anybody.
type syncs struct {
	count          atomic.Uint64
	took           [recentSyncs]atomic.Int64 // of sync i, from 0: at i modulo recentSyncs
	started, ended instant
}

func (s *syncs) begin(now time.Time) { s.started.set(now) }

func (s *syncs) end(now time.Time, took time.Duration) {
	n := s.count.Load()
	s.took[n%recentSyncs].Store(int64(took))
	s.count.Store(n + 1)
	s.ended.set(now)
	s.idle()
}

func (s *syncs) idle() { s.started.set(time.Time{}) }

// instant is a point in time, or none, that can be read while it is set.
type instant struct {
	base time.Time    // earlier than all that are set
	at   atomic.Int64 // nanoseconds since base, plus one; 0: none
}

func (i *instant) isSet() bool { return i.at.Load() != 0 }

// set takes the zero time for none.
func (i *instant) set(t time.Time) {
	if t.IsZero() {
		i.at.Store(0)
		return
	}
	i.at.Store(int64(t.Sub(i.base)) + 1)
}

// age is how long ago it was, at least 1; 0 for none.
func (i *instant) age() time.Duration {
	at := i.at.Load()
	if at == 0 {
		return 0
	}
	return max(time.Since(i.base)-time.Duration(at-1), 1)
}

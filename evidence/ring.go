package evidence

import (
	"sync"
	"time"
)

const (
	// defaultEvents bounds the ring: 2048 events are some 300 KB.
	defaultEvents = 2048
	// mergeWithin: an event like the last one of its kind extends that one if it comes within this
	// time. So a lasting condition is one event, and cannot push everything else out.
	mergeWithin = 1500 * time.Millisecond
	// mergeBack is how many events back the ring looks for one to extend.
	mergeBack = 16
)

// Ring is the record of one member. Record may be called from any goroutine, the raft loop
// included: it takes a mutex that is held only for copies in memory, and allocates nothing. A nil
// Ring records nothing.
type Ring struct {
	now func() time.Time

	mu       sync.Mutex
	events   []Event // slot of event n: n % len
	next     uint64  // Seq of the next event; the first is 1
	nearMiss uint64  // Seq of the newest near miss
	kept     uint64  // Seq up to which the file has them
	lost     uint64  // overwritten before the file had them
	unkept   uint64  // the file could not take them

	past []Event // of earlier lives, from the file; never changes
	wake chan struct{}
}

// NewRing makes an empty ring for size events (0: 2048).
func NewRing(size int) *Ring { return newRing(size, time.Now) }

func newRing(size int, now func() time.Time) *Ring {
	if size <= 0 {
		size = defaultEvents
	}
	return &Ring{now: now, events: make([]Event, size), next: 1, wake: make(chan struct{}, 1)}
}

// Record puts e into the ring, or into the last event like it.
func (r *Ring) Record(e Event) {
	if r == nil {
		return
	}
	now := r.now()
	r.mu.Lock()
	old := r.like(&e, now)
	if old != nil {
		old.Took, old.Value = max(old.Took, e.Took), max(old.Value, e.Value)
		old.First += now.Sub(old.At)
		old.At = now
		old.Count++
		r.mu.Unlock()
		return
	}
	slot := &r.events[r.next%uint64(len(r.events))]
	if slot.Seq > r.kept {
		r.lost++
	}
	e.Seq, e.At, e.Count, e.First = r.next, now, 1, 0
	*slot = e
	r.next++
	wake := e.Kind.nearMiss() || e.Kind == Elected || e.Kind == HandOver
	if e.Kind.nearMiss() {
		r.nearMiss = e.Seq
	}
	r.mu.Unlock()
	if wake {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// like finds the event that e extends.
func (r *Ring) like(e *Event, now time.Time) *Event {
	switch e.Kind {
	case Started, Stopping, Failing, Elected, Followed, LostLeader, SteppedDown, HandOver, Judged, Timeouts:
		return nil // each is one
	}
	n := uint64(len(r.events))
	for back := uint64(1); back <= min(mergeBack, r.next-1, n); back++ {
		old := &r.events[(r.next-back)%n]
		if old.Kind == e.Kind && old.Peer == e.Peer && old.Note == e.Note && old.Term == e.Term {
			if now.Sub(old.At) > mergeWithin {
				return nil
			}
			return old
		}
	}
	return nil
}

// Wake is signalled at each event that may open an incident.
func (r *Ring) Wake() <-chan struct{} { return r.wake }

// since copies the events after Seq, the oldest first.
func (r *Ring) since(seq uint64, to []Event) []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := uint64(len(r.events))
	first := seq + 1
	if r.next > n {
		first = max(first, r.next-n)
	}
	for s := max(first, 1); s < r.next; s++ {
		to = append(to, r.events[s%n])
	}
	return to
}

// NearMiss is the Seq of the newest near miss of this life.
func (r *Ring) NearMiss() uint64 {
	if r == nil {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.nearMiss
}

// Tell returns the events within this time, earlier lives included; 0: all.
func (r *Ring) Tell(within time.Duration) []Told {
	if r == nil {
		return nil
	}
	now := r.now()
	var told []Told
	add := func(e *Event) {
		if within == 0 || now.Sub(e.At) <= within {
			told = append(told, e.told(now))
		}
	}
	for i := range r.past {
		add(&r.past[i])
	}
	events := r.since(0, nil)
	for i := range events {
		add(&events[i])
	}
	return told
}

// Report is the ring's part of a Report: the events within this time (0: all), and how many are
// missing.
func (r *Ring) Report(within time.Duration) Report {
	told := r.Tell(within)
	r.mu.Lock()
	defer r.mu.Unlock()
	return Report{Events: told, NearMiss: r.nearMiss, Lost: r.lost, Unkept: r.unkept}
}

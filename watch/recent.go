package watch

import (
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// slot is one revision in the ring.
type slot struct {
	events []*mvccpb.Event
	bytes  int64
}

// recent is the ring of the newest revisions: the queue between the applier and
// the dispatcher, and the short memory that lets watchers join the live feed.
//
// It holds the revisions first..rev without holes, revision r in slot r mod
// len(slots); first == rev+1 when it is empty. Dispatched revisions are kept up
// to keepBytes; those that wait for the dispatcher up to maxBytes, after which the
// oldest are dropped and the dispatcher notices that first > done+1. While there are
// no watchers nothing waits for it, though done stays behind: keepBytes bounds all, and
// fewer are kept, see unwatchedShare.
type recent struct {
	mu        sync.Mutex
	slots     []slot // power of two
	first     int64
	rev       int64 // the newest revision notified
	done      int64 // copy of Hub.done, <= rev
	events    int   // of the revisions held
	bytes     int64 // of their events
	keepBytes int64
	maxBytes  int64
	parked    bool // the dispatcher waits on its wake channel
}

// eventBytes is how many bytes an event counts, in queues and in the ring.
func eventBytes(ev *mvccpb.Event) int64 {
	n := int64(eventOverhead)
	if kv := ev.Kv; kv != nil {
		n += int64(len(kv.Key) + len(kv.Value))
	}
	return n
}

// eventOverhead is about the size of the structs of an Event and its KeyValue.
const eventOverhead = 128

// unwatchedShare is which part of the slots is used while nobody watches, and as many events at
// most, of which transactions have many: for a watcher that comes first and begins with a revision
// that its client has just read.
const unwatchedShare = 8

// add records a revision. It reports whether the revision follows the last one. watched: there are
// watchers. REQUIRES: mu held, rev > r.rev.
func (r *recent) add(rev int64, events []*mvccpb.Event, watched bool) (consecutive bool) {
	var n int64
	for _, ev := range events {
		n += eventBytes(ev)
	}
	consecutive = rev == r.rev+1
	if !consecutive {
		r.clear(rev - 1)
	}
	most := len(r.slots)
	if !watched {
		most = max(1, most/unwatchedShare)
	}
	for rev-r.first >= int64(most) || !watched && r.first < rev && r.events+len(events) > most {
		r.dropFirst()
	}
	r.rev = rev
	r.slots[rev&int64(len(r.slots)-1)] = slot{events: events, bytes: n}
	r.events += len(events)
	r.bytes += n
	if r.bytes > r.keepBytes {
		r.trim(watched)
	}
	return consecutive
}

// trim drops old revisions until the bounds hold. The newest always stays. watched: what is not
// dispatched waits for the dispatcher. REQUIRES: mu held.
func (r *recent) trim(watched bool) {
	for r.first < r.rev && (r.bytes > r.maxBytes || r.bytes > r.keepBytes && (!watched || r.first <= r.done)) {
		r.dropFirst()
	}
}

func (r *recent) dropFirst() {
	s := &r.slots[r.first&int64(len(r.slots)-1)]
	r.events -= len(s.events)
	r.bytes -= s.bytes
	*s = slot{}
	r.first++
}

// clear drops everything; the next revision is rev+1. REQUIRES: mu held.
func (r *recent) clear(rev int64) {
	for r.first <= r.rev {
		r.dropFirst()
	}
	r.first, r.rev, r.events, r.bytes = rev+1, rev, 0, 0
}

// copyFrom appends the revisions from..to to buf, at most max of them. ok is
// false when the ring does not hold revision from any more (or not yet), though
// from <= to. The revisions copied are from, from+1, ...
func (r *recent) copyFrom(buf []slot, from, to int64, max int) (_ []slot, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if to > r.rev {
		to = r.rev
	}
	if from > to {
		return buf, true
	}
	if from < r.first {
		return buf, false
	}
	for ; from <= to && max > 0; from, max = from+1, max-1 {
		buf = append(buf, r.slots[from&int64(len(r.slots)-1)])
	}
	return buf, true
}

// covers reports whether every revision from..done is held.
func (r *recent) covers(from int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return from >= r.first
}

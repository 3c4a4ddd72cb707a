package watch

import (
	"sync"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

const (
	// maxResponseRevs is etcd's bound on the revisions in one response.
	maxResponseRevs = 1000
	// maxResponseBytes is the approximate size from which events of further revisions go into
	// another response. Clients in other languages refuse messages over 4 MiB by default; a single
	// revision may still be larger.
	maxResponseBytes = 1 << 20
	// maxControls is how many control responses (created, canceled, progress) may
	// wait in a stream before requests on it have to wait (see Stream.Room).
	maxControls = 1024
)

// Response is one message to the client of a stream. It and its Events slice are
// reused after the function that got it returns; the events themselves are shared
// by many streams and must not be changed.
type Response struct {
	ID int64 // of the watcher; InvalidID: of none, or of the whole stream
	// Rev is the revision for the header. With events, that of the newest event or, while the
	// watcher catches up, the hub's; without events, the revision that the response vouches for; 0
	// when compaction ended the watcher.
	Rev int64
	// Events by ascending revision; all events of a revision that match, never a part.
	Events       []*mvccpb.Event
	Created      bool
	Canceled     bool
	CancelReason string
	CompactRev   int64 // with Canceled: the history from the watcher's next revision is gone
	Fragment     bool  // the watcher asked for large responses to be cut

	of *watcher // of the events; nil without
}

// Range is what the watcher watches that the events are of; the zero Range without events.
func (r *Response) Range() Range {
	if r.of == nil {
		return Range{}
	}
	return r.of.span.rangeOf(r.ID)
}

// item waits in a stream's queue: events of one revision for one watcher, or, if
// rev is nil, a control response.
type item struct {
	w     *watcher
	rev   *revision
	head  int64   // the header's revision, >= rev.rev
	sel   []int32 // which events of rev match; nil: all
	bytes int64
	ctl   *Response
}

func (it *item) len() int {
	if it.sel != nil {
		return len(it.sel)
	}
	return len(it.rev.events)
}

// revision is what one transaction changed, shared by every queue it waits in. Its events never
// change.
type revision struct {
	rev    int64
	events []*mvccpb.Event
	// prev[i] is events[i] with PrevKv, filled by the first stream that needs it;
	// nil if no watcher wanted previous values when the revision came.
	prev []atomic.Pointer[mvccpb.Event]
}

// sharedBytes is how many bytes of events that do not match a queue may hold with
// those that do, uncounted, for each revision.
const sharedBytes = 1 << 10

// part is a revision with only some of its events, which keeps no others in memory.
func (r *revision) part(sel []int32) *revision {
	p := &revision{rev: r.rev, events: make([]*mvccpb.Event, len(sel))}
	for to, from := range sel {
		p.events[to] = r.events[from]
	}
	if r.prev != nil {
		p.prev = make([]atomic.Pointer[mvccpb.Event], len(sel))
	}
	return p
}

// withPrev returns event i together with the previous version of its key, if it
// had one and the history still holds it.
func (r *revision) withPrev(i int, kv History) *mvccpb.Event {
	ev := r.events[i]
	if ev.Type == mvccpb.Event_PUT && ev.Kv.CreateRevision == ev.Kv.ModRevision {
		return ev
	}
	if r.prev != nil {
		if got := r.prev[i].Load(); got != nil {
			return got
		}
	}
	full := ev
	if prev, err := kv.PrevKV(ev); err == nil && prev != nil {
		full = &mvccpb.Event{Type: ev.Type, Kv: ev.Kv, PrevKv: prev}
	}
	if r.prev != nil {
		r.prev[i].Store(full) // a race computes it twice, to the same result
	}
	return full
}

// Stream carries the responses of any number of watchers to one client.
type Stream struct {
	hub *Hub

	// Guarded by hub.mu.
	watchers   map[int64]*watcher // by id; also those ended by compaction, until the client cancels them
	notify     map[*watcher]struct{}
	future     map[*watcher]struct{} // may have start > done
	blocked    []*watcher            // behind, and the queue had no room; w.pos is the place
	behind     int                   // watchers that are not live (and not ended)
	active     int                   // watchers that are not ended
	nextID     int64
	ended      bool  // Close was called
	progressAt int64 // a manual progress waits for this revision; 0: none waits

	charged  atomic.Int64 // bytes of events queued or being sent, <= Hub.streamBytes when it was charged, or one revision
	wantRoom atomic.Bool  // somebody found no room; cleared by hub.roomy

	mu       sync.Mutex
	queue    []item
	spare    []item // the other of the two buffers
	controls int    // control items in queue
	roomC    chan struct{}
	awake    bool // ready was signalled since Drain found the queue empty
	closed   bool
	events   int64 // in queue or being sent

	ready chan struct{}

	// Of the goroutine that calls Drain.
	review func()
	order  []*pile // watchers with events collected, in order of their first
	free   []*pile
}

// pile is a response being merged for a watcher.
type pile struct {
	w     *watcher
	resp  Response
	revs  int
	bytes int64
}

// Ready is signalled when Drain has something to do. It is never closed.
func (s *Stream) Ready() <-chan struct{} { return s.ready }

// push queues the events sel of r for w. It reports false, and queues nothing, if the stream has no
// room; the stream will then call hub.roomy once it has. The caller owns w: the dispatcher with
// hub.mu held for a live watcher, the catch-up goroutine for one that is behind.
func (s *Stream) push(w *watcher, r *revision, head int64, sel []int32, bytes int64) bool {
	if r.rev <= w.last || r.rev < w.start {
		panic("watch: revision delivered twice or out of order")
	}
	if !s.reserve(bytes) {
		s.wantRoom.Store(true)
		// The sender may have made room between the two lines above, and then missed the flag.
		if !s.reserve(bytes) {
			return false
		}
	}
	w.last = r.rev
	n := len(r.events)
	if sel != nil {
		n = len(sel)
	}
	s.enqueue(item{w: w, rev: r, head: head, sel: sel, bytes: bytes}, n)
	return true
}

// reserve takes bytes of the stream's bound. An empty stream always has room, so
// that a revision larger than the bound can pass.
func (s *Stream) reserve(bytes int64) bool {
	for {
		c := s.charged.Load()
		if c > 0 && c+bytes > s.hub.streamBytes.Load() {
			return false
		}
		if s.charged.CompareAndSwap(c, c+bytes) {
			return true
		}
	}
}

// release returns bytes, and tells the hub when half of the bound is free and a watcher waits for
// it.
func (s *Stream) release(bytes int64) {
	if c := s.charged.Add(-bytes); c < 0 {
		panic("watch: stream released more than it held")
	} else if c > s.hub.streamBytes.Load()/2 {
		return
	}
	if s.wantRoom.Load() {
		s.hub.roomy(s)
	}
}

func (s *Stream) control(c *Response) { s.enqueue(item{ctl: c}, 0) }

func (s *Stream) enqueue(it item, events int) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.queue = append(s.queue, it)
	if it.ctl != nil {
		s.controls++
	}
	s.events += int64(events)
	signal := !s.awake
	s.awake = true
	s.mu.Unlock()
	if events > 0 {
		s.hub.metrics.pending.Add(int64(events))
	}
	if signal {
		select {
		case s.ready <- struct{}{}:
		default:
		}
	}
}

// Room returns nil, or, when too many control responses wait, a channel that is closed once they
// have been taken. The reader of requests waits for it, so that a client that sends requests but
// reads no responses is held back.
func (s *Stream) Room() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.controls < maxControls || s.closed {
		return nil
	}
	if s.roomC == nil {
		s.roomC = make(chan struct{})
	}
	return s.roomC
}

// SetReview registers fn to be called each time events are about to be handed to Drain's send,
// after they have left the queue; it may End watchers, whose events are dropped then. REQUIRES:
// Drain is not running.
func (s *Stream) SetReview(fn func()) { s.review = fn }

// Drain hands everything queued to send, merged into as few responses as the bounds allow, and
// returns when the queue is empty or send fails. After an error the stream can only be closed.
func (s *Stream) Drain(send func(*Response) error) error {
	for {
		if more, err := s.drainBatch(send); !more || err != nil {
			return err
		}
	}
}

// drainBatch sends what is queued now; more is false if that was nothing.
func (s *Stream) drainBatch(send func(*Response) error) (more bool, err error) {
	s.mu.Lock()
	if len(s.queue) == 0 {
		s.awake = false
		s.mu.Unlock()
		return false, nil
	}
	batch := s.queue
	s.queue, s.spare = s.spare[:0], nil
	s.controls = 0
	if s.roomC != nil {
		close(s.roomC)
		s.roomC = nil
	}
	s.mu.Unlock()

	for i := range batch {
		if err := s.take(&batch[i], send); err != nil {
			return false, err
		}
	}
	if err := s.flush(send); err != nil {
		return false, err
	}
	clear(batch)
	s.spare = batch[:0]
	if cap(batch) > 1<<14 {
		s.spare = nil // a burst's buffer is not kept
	}
	return true, nil
}

// take adds one item to the responses being merged, or, if it is a control
// response, sends those and then it.
func (s *Stream) take(it *item, send func(*Response) error) error {
	if it.ctl != nil {
		if err := s.flush(send); err != nil {
			return err
		}
		return send(it.ctl)
	}
	w := it.w
	if w.dropped.Load() { // cancelled by the client, who waits for nothing but the reply
		s.discard(it.bytes, it.len())
		return nil
	}
	p := w.pile
	if p != nil && (p.revs >= maxResponseRevs || p.bytes+it.bytes > maxResponseBytes) {
		if err := s.sendPile(p, send); err != nil {
			return err
		}
	}
	if p == nil {
		if n := len(s.free); n > 0 {
			p, s.free = s.free[n-1], s.free[:n-1]
		} else {
			p = &pile{}
		}
		p.w, w.pile = w, p
		p.resp.ID, p.resp.Fragment, p.resp.of = w.id, w.req.Fragment, w
		s.order = append(s.order, p)
	}
	if n := len(p.resp.Events); n > 0 && it.rev.rev <= p.resp.Events[n-1].Kv.ModRevision {
		panic("watch: queue out of order")
	}
	p.resp.Rev = it.head
	p.revs++
	p.bytes += it.bytes
	switch {
	case w.req.PrevKV && it.sel == nil:
		for i := range it.rev.events {
			p.resp.Events = append(p.resp.Events, it.rev.withPrev(i, s.hub.kv))
		}
	case w.req.PrevKV:
		for _, i := range it.sel {
			p.resp.Events = append(p.resp.Events, it.rev.withPrev(int(i), s.hub.kv))
		}
	case it.sel == nil:
		p.resp.Events = append(p.resp.Events, it.rev.events...)
	default:
		for _, i := range it.sel {
			p.resp.Events = append(p.resp.Events, it.rev.events[i])
		}
	}
	return nil
}

// flush sends what is merged, in the order in which the watchers' first events came.
func (s *Stream) flush(send func(*Response) error) error {
	for i, p := range s.order {
		if err := s.sendPile(p, send); err != nil {
			return err
		}
		p.w.pile, p.w, p.resp.of = nil, nil, nil
		if cap(p.resp.Events) > maxResponseRevs {
			p.resp.Events = nil
		}
		s.free = append(s.free, p)
		s.order[i] = nil
	}
	s.order = s.order[:0]
	if len(s.free) > 64 {
		clear(s.free[64:])
		s.free = s.free[:64]
	}
	return nil
}

// sendPile sends the events of one pile, unless its watcher has ended, and empties it.
func (s *Stream) sendPile(p *pile, send func(*Response) error) error {
	n := len(p.resp.Events)
	if n == 0 {
		return nil
	}
	if s.review != nil {
		s.review()
	}
	p.w.idle = false
	var err error
	if !p.w.dropped.Load() {
		err = send(&p.resp)
		s.hub.metrics.sent.Add(int64(n))
	}
	s.discard(p.bytes, n)
	clear(p.resp.Events)
	p.resp.Events = p.resp.Events[:0]
	p.revs, p.bytes = 0, 0
	return err
}

// discard accounts for events that left the stream.
func (s *Stream) discard(bytes int64, events int) {
	s.mu.Lock()
	s.events -= int64(events)
	s.mu.Unlock()
	s.hub.metrics.pending.Add(-int64(events))
	s.release(bytes)
}

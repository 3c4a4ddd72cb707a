package watch

import (
	"bytes"
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/zap"
)

const (
	// AutoID asks Stream.Watch to choose an id.
	AutoID = 0
	// InvalidID is the id in responses that belong to no watcher.
	InvalidID = -1
)

// The texts are etcd's; clients see them as cancel_reason.
var (
	ErrEmptyRange  = errors.New("mvcc: watcher range is empty")
	ErrDuplicateID = errors.New("mvcc: duplicate watch ID provided on the WatchStream")
	// ErrClosed: the stream was closed; nobody will see it.
	ErrClosed = errors.New("watch: stream is closed")
)

// History is what the hub needs of the store of revisions; *mvcc.Store implements it. All methods
// may be called from any goroutine.
type History interface {
	// Revision is the newest revision visible to readers, >= every revision notified.
	Revision() int64
	// CompactRevision is the newest requested compaction; history before it is or will be removed.
	// Negative or 0: there was none.
	CompactRevision() int64
	// Events calls fn with each revision in [from, to] in order, with all its events of keys that
	// wants, which may be nil, returns true for; of revisions without one it need not call fn. It
	// stops early after about maxBytes of these, and returns the first revision it has not come to.
	// It reads one consistent view and fails, before the first call of
	// fn, if from is below the compact revision of that view. The events are fn's to keep.
	Events(ctx context.Context, from, to int64, maxBytes int, wants func(key []byte) bool, fn func(rev int64, events []*mvccpb.Event) error) (next int64, err error)
	// PrevKV is the event's key as it was before the event; nil if it did not exist or is
	// compacted.
	PrevKV(ev *mvccpb.Event) (*mvccpb.KeyValue, error)
}

// Options of a hub. The zero value is usable.
type Options struct {
	Logger  *zap.Logger // nil: none
	Metrics *Metrics    // nil: unregistered
	// StreamBytes bounds the undelivered events of a stream. 0: 4 MiB.
	StreamBytes int64
	// QueueBytes is what the undelivered events of all streams share: as they become many, the bound
	// of each falls below StreamBytes, in equal shares, though not below leastStreamBytes. 0: no
	// bound but StreamBytes.
	QueueBytes int64
	// RecentBytes bounds the events kept for watchers that join a little late. 0: 8 MiB.
	RecentBytes int64
	// BacklogBytes bounds the events that wait for the dispatcher. 0: 64 MiB.
	BacklogBytes int64
	// RecentRevisions bounds both in revisions; rounded up to a power of two. 0: 16384.
	RecentRevisions int
	// ScanRevisions and ScanBytes bound one read of history. 0: 4096 and 4 MiB.
	ScanRevisions int64
	ScanBytes     int
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	if o.StreamBytes <= 0 {
		o.StreamBytes = 4 << 20
	}
	if o.RecentBytes <= 0 {
		o.RecentBytes = 8 << 20
	}
	if o.BacklogBytes <= 0 {
		o.BacklogBytes = 64 << 20
	}
	if o.RecentRevisions <= 0 {
		o.RecentRevisions = 16384
	}
	n := 1
	for n < o.RecentRevisions {
		n *= 2
	}
	o.RecentRevisions = n
	if o.ScanRevisions <= 0 {
		o.ScanRevisions = 4096
	}
	if o.ScanBytes <= 0 {
		o.ScanBytes = 4 << 20
	}
	return o
}

// leastStreamBytes is what a stream may always hold: some hundred events of small values.
const leastStreamBytes = 32 << 10

// streamBytes is the bound of each of n streams.
func (o *Options) streamBytes(n int64) int64 {
	if o.QueueBytes <= 0 {
		return o.StreamBytes
	}
	return min(o.StreamBytes, max(o.QueueBytes/max(n, 1), leastStreamBytes))
}

// Hub distributes the events of the state machine. See the package comment.
type Hub struct {
	kv      History
	opts    Options
	metrics *Metrics
	logger  *zap.Logger

	recent recent
	active atomic.Int64 // watchers that are not ended; 0: Notify wakes nobody
	prev   atomic.Int64 // those of them that want previous values

	streams     atomic.Int64 // open ones
	streamBytes atomic.Int64 // the bound of each; see Options.QueueBytes

	mu       sync.Mutex
	done     int64  // every live watcher has its events <= done in its stream's queue
	live     *index // watchers fed by the dispatcher
	ready    []*watcher
	progress map[*Stream]struct{} // streams with progressAt != 0
	scratch  fan

	wake    chan struct{} // to the dispatcher: the ring has something new
	catchup chan struct{} // to the catch-up goroutine: ready is not empty
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
}

// watcherState says who may push for a watcher.
type watcherState uint8

const (
	stateLive     watcherState = iota // in Hub.live; the dispatcher, with Hub.mu
	stateReady                        // in Hub.ready; nobody
	stateScanning                     // the catch-up goroutine
	stateBlocked                      // in Stream.blocked; nobody
	stateEnded                        // nobody
)

// watcher is one watch of a stream.
type watcher struct {
	stream *Stream
	id     int64
	span   span
	req    Request
	start  int64 // first revision to deliver, > 0
	// tellFrom is the lowest revision at which progress is reported: the requested start, since a
	// client that resumes from less would see too much, or, if none was requested, the revision
	// that was current then.
	tellFrom int64

	// Guarded by Hub.mu; of the catch-up goroutine while scanning.
	state watcherState
	next  int64 // first revision not queued (behind), or to accept (live)
	last  int64 // newest revision queued; 0: none
	list  *watchList
	pos   int
	sel   []int32 // matches of the revision in hand
	want  int64   // bytes of these

	dropped atomic.Bool // the client cancelled it, or End did: what is queued is not sent

	// Of the stream's sender.
	pile *pile
	idle bool // no events since the last tick
}

// accepts reports whether the watcher's filters let ev through.
func (w *watcher) accepts(ev *mvccpb.Event) bool {
	if ev.Type == mvccpb.Event_DELETE {
		return !w.req.NoDelete
	}
	return !w.req.NoPut
}

// Request describes a watch.
type Request struct {
	ID             int64  // AutoID: the hub chooses
	Key            []byte // not empty
	End            []byte // nil: the key alone; "\0": every key >= Key; else exclusive
	Start          int64  // first revision; <= 0: the one after the current
	NoPut          bool
	NoDelete       bool
	PrevKV         bool // events carry the previous version
	ProgressNotify bool // Stream.Tick speaks for this watcher
	Fragment       bool // passed through to Response
}

// NewHub starts a hub over kv. REQUIRES: nothing is applied during the call.
func NewHub(kv History, opts Options) *Hub {
	opts = opts.withDefaults()
	rev := kv.Revision()
	h := &Hub{
		kv: kv, opts: opts, metrics: opts.Metrics, logger: opts.Logger,
		recent: recent{
			slots: make([]slot, opts.RecentRevisions), first: rev + 1, rev: rev, done: rev,
			keepBytes: opts.RecentBytes, maxBytes: max(opts.RecentBytes, opts.BacklogBytes),
		},
		done:     rev,
		live:     newIndex(),
		progress: make(map[*Stream]struct{}),
		wake:     make(chan struct{}, 1),
		catchup:  make(chan struct{}, 1),
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.wg.Add(2)
	go h.dispatchLoop()
	go h.catchUpLoop()
	return h
}

// Close stops the hub's goroutines. Streams get nothing more; their owners close them.
func (h *Hub) Close() {
	h.cancel()
	h.wg.Wait()
}

// Notify takes the events of revision rev. The applier calls it after the revision is committed and
// visible to readers of the history, in revision order. It keeps the events, and never waits.
func (h *Hub) Notify(rev int64, events []*mvccpb.Event) {
	r := &h.recent
	r.mu.Lock()
	if rev <= r.rev {
		r.mu.Unlock()
		panic("watch: revision notified twice or out of order")
	}
	// A gap is closed like an overrun: the dispatcher finds that the ring does not reach back to
	// done+1, and all watchers read the gap from history.
	watched := h.active.Load() > 0 // with r.mu held: whoever watches from now on takes r.mu first; see Watch
	consecutive := r.add(rev, events, watched)
	wake := r.parked && watched
	if wake {
		r.parked = false
	}
	r.mu.Unlock()
	if wake {
		h.wake <- struct{}{} // never blocks: one for each time parked
	}
	if !consecutive {
		h.logger.Error("watch events skipped a revision; watchers will read it from history", zap.Int64("revision", rev))
	}
}

// Reload says that a snapshot replaced the state: the store is at a revision that was never
// notified. Watchers continue from history, or end if it is compacted. REQUIRES: nothing is applied
// or notified during the call.
func (h *Hub) Reload() {
	h.mu.Lock()
	defer h.mu.Unlock()
	rev := h.kv.Revision()
	h.recent.mu.Lock()
	h.recent.clear(rev)
	h.recent.done = rev
	h.recent.mu.Unlock()
	h.demoteAll()
	h.done = rev
	h.tryProgress()
}

// dispatchLoop hands the revisions in the ring to the live watchers.
func (h *Hub) dispatchLoop() {
	defer h.wg.Done()
	for {
		h.recent.mu.Lock()
		idle := h.recent.rev == h.recent.done || h.active.Load() == 0
		h.recent.parked = idle
		h.recent.mu.Unlock()
		if idle {
			select {
			case <-h.wake:
			case <-h.ctx.Done():
				return
			}
		}
		h.mu.Lock()
		h.dispatch(dispatchChunk)
		h.mu.Unlock()
	}
}

// dispatchChunk is how many revisions are dispatched before others get Hub.mu.
const dispatchChunk = 256

// dispatch hands up to max revisions to the live watchers. REQUIRES: mu held.
func (h *Hub) dispatch(max int) {
	r := &h.recent
	r.mu.Lock()
	rev := r.rev
	r.mu.Unlock()
	if rev == h.done {
		return
	}
	if h.live.len() == 0 {
		h.setDone(rev)
	} else if reached, ok := h.replay(&h.scratch, h.live, h.done+1, rev, 0, max, h.block); ok {
		h.setDone(reached)
	} else {
		h.logger.Warn("watch dispatch overrun; watchers catch up from history", zap.Int64("from", h.done+1), zap.Int64("to", rev), zap.Int("watchers", h.live.len()))
		h.demoteAll()
		h.setDone(rev)
	}
	h.tryProgress()
}

func (h *Hub) setDone(rev int64) {
	if rev < h.done {
		panic("watch: dispatched revision went back")
	}
	h.done = rev
	h.recent.mu.Lock()
	h.recent.done = rev
	h.recent.trim(true)
	h.recent.mu.Unlock()
}

// replay delivers up to max of the ring's revisions from..to to the watchers of
// x, and returns the newest one delivered. A watcher whose stream has no room is
// taken out of x and passed to onFull with w.next set. ok is false if the ring no
// longer holds from; nothing was delivered then. REQUIRES: as deliver.
func (h *Hub) replay(f *fan, x *index, from, to, head int64, max int, onFull func(*watcher)) (reached int64, ok bool) {
	f.slots, ok = h.recent.copyFrom(f.slots[:0], from, to, max)
	if !ok {
		return 0, false
	}
	for i := range f.slots {
		h.deliver(f, x, from+int64(i), head, f.slots[i].events, onFull)
	}
	reached = from + int64(len(f.slots)) - 1
	clear(f.slots)
	return reached, true
}

// fan is scratch memory for delivering.
type fan struct {
	touched []*watcher
	slots   []slot
}

// deliver queues one revision for the watchers of x that match. head, if larger, is the revision
// for the response's header: watchers that catch up get the current one, as in etcd. REQUIRES: the
// caller owns the watchers of x (with mu held, or as the catch-up goroutine).
func (h *Hub) deliver(f *fan, x *index, rev, head int64, events []*mvccpb.Event, onFull func(*watcher)) {
	touched := f.touched[:0]
	var whole int64
	for i, ev := range events {
		size := eventBytes(ev)
		whole += size
		x.lists(ev.Kv.Key, func(l *watchList) {
			for _, w := range l.ws {
				if rev < w.next || !w.accepts(ev) {
					continue
				}
				if len(w.sel) == 0 {
					touched = append(touched, w)
				}
				w.sel = append(w.sel, int32(i))
				w.want += size
			}
		})
	}
	if len(touched) == 0 {
		return
	}
	shared := &revision{rev: rev, events: events}
	if h.prev.Load() > 0 {
		shared.prev = make([]atomic.Pointer[mvccpb.Event], len(events))
	}
	for i, w := range touched {
		var sel []int32
		r := shared
		switch {
		case len(w.sel) == len(events):
		case whole-w.want > sharedBytes:
			r = shared.part(w.sel)
		default:
			sel = append(sel, w.sel...)
		}
		bytes := w.want
		w.sel, w.want = w.sel[:0], 0
		if !w.stream.push(w, r, max(rev, head), sel, bytes) {
			w.next = rev
			x.remove(w)
			onFull(w)
		}
		touched[i] = nil
	}
	f.touched = touched[:0]
}

// block makes a watcher whose stream has no room wait for it. REQUIRES: mu held,
// w is in no index, w.next is its first revision not queued.
func (h *Hub) block(w *watcher) {
	if w.state == stateLive {
		h.fellBehind(w)
	}
	w.state = stateBlocked
	w.pos = len(w.stream.blocked)
	w.stream.blocked = append(w.stream.blocked, w)
	if !w.stream.wantRoom.Load() { // the sender made room in the meantime
		h.unblock(w.stream)
	}
}

func (h *Hub) fellBehind(w *watcher) {
	w.stream.behind++
	h.metrics.behind.Add(1)
}

func (h *Hub) caughtUp(w *watcher) {
	w.stream.behind--
	h.metrics.behind.Add(-1)
}

// roomy is called by a stream that is half free and that a watcher waits for.
func (h *Hub) roomy(s *Stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.wantRoom.Store(false)
	h.unblock(s)
}

func (h *Hub) unblock(s *Stream) {
	for i, w := range s.blocked {
		h.makeReady(w)
		s.blocked[i] = nil
	}
	s.blocked = s.blocked[:0]
}

// makeReady queues a watcher that is behind for the catch-up goroutine. REQUIRES: mu held.
func (h *Hub) makeReady(w *watcher) {
	w.state = stateReady
	h.ready = append(h.ready, w)
	select {
	case h.catchup <- struct{}{}:
	default:
	}
}

// demoteAll puts every live watcher behind, from done+1 on. REQUIRES: mu held.
func (h *Hub) demoteAll() {
	for _, w := range h.live.list() {
		h.live.remove(w)
		w.next = max(w.next, h.done+1)
		h.fellBehind(w)
		h.makeReady(w)
	}
}

// NewStream opens a stream. Its owner must Close it.
func (h *Hub) NewStream() *Stream {
	s := &Stream{
		hub:      h,
		watchers: make(map[int64]*watcher),
		ready:    make(chan struct{}, 1),
	}
	h.metrics.streams.Add(1)
	h.opened(1)
	return s
}

// opened counts streams that were opened, or, below 0, closed. The bound may be that of a moment ago
// when several are at once.
func (h *Hub) opened(n int64) { h.streamBytes.Store(h.opts.streamBytes(h.streams.Add(n))) }

// Metrics are the hub's, for the sender of streams to observe.
func (h *Hub) Metrics() *Metrics { return h.metrics }

// Revision is the newest revision visible to readers, for response headers.
func (h *Hub) Revision() int64 { return h.kv.Revision() }

// Watch adds a watcher to the stream and queues its created response, and, if its
// start is compacted already, the canceled one after it. On error
// (ErrEmptyRange, ErrDuplicateID, ErrClosed) nothing is queued.
func (s *Stream) Watch(req Request) (id int64, err error) {
	sp := span{start: string(req.Key)}
	switch {
	case len(req.End) == 0:
		sp.single = true
	case len(req.End) == 1 && req.End[0] == 0:
		sp.end = bound{inf: true}
	default:
		if bytes.Compare(req.Key, req.End) >= 0 {
			return InvalidID, ErrEmptyRange
		}
		sp.end = bound{key: string(req.End)}
	}
	req.Key, req.End = nil, nil // the span has them

	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.ended {
		return InvalidID, ErrClosed
	}
	id = req.ID
	if id == AutoID {
		for s.watchers[s.nextID] != nil {
			s.nextID++
		}
		id = s.nextID
		s.nextID++
	} else if s.watchers[id] != nil {
		return InvalidID, ErrDuplicateID
	}

	// Before anything is read: from here on Notify wakes the dispatcher.
	h.active.Add(1)
	current := h.kv.Revision()
	w := &watcher{stream: s, id: id, span: sp, req: req, start: req.Start, tellFrom: req.Start, idle: true}
	if w.start <= 0 {
		w.start, w.tellFrom = current+1, current
	}
	w.next = w.start
	s.watchers[id] = w
	s.active++
	if req.PrevKV {
		h.prev.Add(1)
	}
	if req.ProgressNotify {
		if s.notify == nil {
			s.notify = make(map[*watcher]struct{})
		}
		s.notify[w] = struct{}{}
	}
	h.metrics.watchers.Add(1)
	s.control(&Response{ID: id, Rev: current, Created: true})

	if compacted := h.kv.CompactRevision(); w.next < compacted {
		w.state = stateScanning // owned by us
		h.fellBehind(w)
		h.endCompacted(w, compacted)
		return id, nil
	}
	if h.live.len() == 0 {
		h.dispatch(dispatchChunk) // the dispatcher may have slept until now: done is old
	}
	if h.done < w.next {
		h.goLive(w)
	} else {
		w.state = stateScanning // owned by us
		h.fellBehind(w)
		x := newIndex()
		x.add(w)
		h.join(x, []*watcher{w})
	}
	h.nudge()
	return id, nil
}

// nudge wakes the dispatcher if it parked while there were no watchers. REQUIRES: mu held.
func (h *Hub) nudge() {
	r := &h.recent
	r.mu.Lock()
	wake := r.parked && r.rev != r.done
	if wake {
		r.parked = false
	}
	r.mu.Unlock()
	if wake {
		h.wake <- struct{}{}
	}
}

// goLive gives w to the dispatcher. REQUIRES: mu held, w.next > done.
func (h *Hub) goLive(w *watcher) {
	if w.next <= h.done {
		panic("watch: watcher joins with a gap")
	}
	w.state = stateLive
	h.live.add(w)
	if w.tellFrom > h.done {
		s := w.stream
		if s.future == nil {
			s.future = make(map[*watcher]struct{})
		}
		s.future[w] = struct{}{}
	}
}

// joinRevisions is how many revisions may be replayed with Hub.mu held.
const joinRevisions = 1024

// join makes watchers that are behind live, by replaying the ring up to done, and empties x. Those
// for whom the ring does not reach back go to the catch-up goroutine. ws are the watchers of x in
// the order in which they are to wait there, and possibly others, which are left alone. REQUIRES:
// mu held; the caller owns the watchers of x, none is ended.
func (h *Hub) join(x *index, ws []*watcher) {
	from := int64(math.MaxInt64)
	x.all(func(w *watcher) { from = min(from, w.next) })
	if h.done-from < joinRevisions {
		for from <= h.done {
			reached, ok := h.replay(&h.scratch, x, from, h.done, h.done, dispatchChunk, h.block)
			if !ok {
				break
			}
			from = reached + 1
			x.all(func(w *watcher) { w.next = max(w.next, from) })
		}
	}
	for _, w := range ws {
		if w.list == nil {
			continue // its stream had no room
		}
		x.remove(w)
		if w.next > h.done {
			h.caughtUp(w)
			h.goLive(w)
		} else {
			h.makeReady(w)
		}
	}
}

// endCompacted ends a watcher that is behind because its next revision is compacted. Its id stays
// taken until the client cancels it, as in etcd. REQUIRES: mu held, w in no index.
func (h *Hub) endCompacted(w *watcher, compactRev int64) {
	h.caughtUp(w)
	h.end(w)
	w.stream.control(&Response{
		ID: w.id, Canceled: true, CompactRev: compactRev,
	})
}

// end undoes what registering did, except for the id. REQUIRES: mu held, w in no index.
func (h *Hub) end(w *watcher) {
	s := w.stream
	w.state = stateEnded
	delete(s.notify, w)
	delete(s.future, w)
	s.active--
	if w.req.PrevKV {
		h.prev.Add(-1)
	}
	h.active.Add(-1)
	h.metrics.watchers.Add(-1)
}

// remove ends w in whatever state it is. REQUIRES: mu held.
func (h *Hub) remove(w *watcher) {
	switch w.state {
	case stateEnded:
		return
	case stateLive:
		h.live.remove(w)
	case stateReady, stateScanning: // the catch-up goroutine will notice
		h.caughtUp(w)
	case stateBlocked:
		b := w.stream.blocked
		last := len(b) - 1
		b[w.pos] = b[last]
		b[w.pos].pos = w.pos
		b[last] = nil
		w.stream.blocked = b[:last]
		h.caughtUp(w)
	}
	h.end(w)
}

// Cancel ends the watcher and queues the canceled response. Events that wait for
// it are dropped. It reports whether there was such a watcher.
func (s *Stream) Cancel(id int64) bool {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	w := s.watchers[id]
	if w == nil {
		return false
	}
	w.dropped.Store(true)
	h.remove(w)
	delete(s.watchers, id)
	s.control(&Response{ID: id, Rev: h.kv.Revision(), Canceled: true})
	h.tryProgressOf(s)
	return true
}

// Range is what a watcher of a stream watches; End as in Request.
type Range struct {
	ID       int64
	Key, End []byte
}

// Ranges are those of all watchers that have not ended, in no order.
func (s *Stream) Ranges() []Range {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	out := make([]Range, 0, s.active)
	for id, w := range s.watchers {
		if w.state == stateEnded {
			continue
		}
		out = append(out, w.span.rangeOf(id))
	}
	return out
}

// End ends the watcher from this side and queues the canceled response with the reason. Events that
// wait for it are dropped. Its id stays taken until the client cancels it, like that of a watcher
// that a compaction ends.
func (s *Stream) End(id int64, reason string) {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	w := s.watchers[id]
	if w == nil || w.state == stateEnded {
		return
	}
	w.dropped.Store(true)
	h.remove(w)
	s.control(&Response{ID: id, Rev: h.kv.Revision(), Canceled: true, CancelReason: reason})
	h.tryProgressOf(s)
}

// Refuse queues the answer to a watch that could not be created.
func (s *Stream) Refuse(reason string) {
	s.control(&Response{ID: InvalidID, Rev: s.hub.kv.Revision(), Created: true, Canceled: true, CancelReason: reason})
}

// Progress queues a response with InvalidID and the current revision as soon as
// every event up to it is queued before: at once if all watchers of the stream
// are live. Requests that wait are answered together. As in etcd there is no
// answer for a stream without watchers, or with one that starts in the future.
func (s *Stream) Progress() {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.active == 0 {
		return
	}
	s.progressAt = max(s.progressAt, h.kv.Revision(), 1)
	if h.done < s.progressAt {
		h.dispatch(dispatchChunk)
	}
	if s.progressAt != 0 && !h.tryProgressOf(s) {
		h.progress[s] = struct{}{}
	}
}

// tryProgress answers the progress requests that can be. REQUIRES: mu held.
func (h *Hub) tryProgress() {
	for s := range h.progress {
		h.tryProgressOf(s)
	}
}

// tryProgressOf reports whether no request waits any more. REQUIRES: mu held.
func (h *Hub) tryProgressOf(s *Stream) bool {
	if s.progressAt == 0 {
		return true
	}
	if s.active > 0 {
		if h.done < s.progressAt || s.behind > 0 {
			return false
		}
		if !h.hasFuture(s) {
			s.control(&Response{ID: InvalidID, Rev: h.done})
		}
	}
	s.progressAt = 0
	delete(h.progress, s)
	return true
}

// hasFuture reports whether a watcher of s starts after done: progress reported now would be below
// its start, and a client that resumes there would see too much.
func (h *Hub) hasFuture(s *Stream) bool {
	for w := range s.future {
		if w.tellFrom > h.done {
			return true
		}
		delete(s.future, w)
	}
	return false
}

// Tick queues a progress response for each watcher that asked for them, got no
// events since the last tick, and is live.
func (s *Stream) Tick() {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range s.notify {
		if w.idle && w.state == stateLive && w.tellFrom <= h.done {
			s.control(&Response{ID: w.id, Rev: h.done})
		}
		w.idle = true
	}
}

// closeChunk is how many watchers of a stream are ended before others get Hub.mu.
const closeChunk = 1000

// Close ends the stream's watchers and discards what is queued. REQUIRES: Drain is not running and
// not called again.
func (s *Stream) Close() {
	h := s.hub
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	s.queue, s.spare = nil, nil
	if s.roomC != nil {
		close(s.roomC)
		s.roomC = nil
	}
	h.metrics.pending.Add(-s.events)
	s.events = 0
	s.mu.Unlock()
	h.opened(-1)

	for more := true; more; {
		h.mu.Lock()
		s.ended = true
		n := 0
		for id, w := range s.watchers {
			w.dropped.Store(true)
			h.remove(w)
			delete(s.watchers, id)
			if n++; n == closeChunk {
				break
			}
		}
		if more = len(s.watchers) > 0; !more {
			delete(h.progress, s)
		}
		h.mu.Unlock()
	}
	h.metrics.streams.Add(-1)
}

package replica

import (
	"container/list"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/belaydb/belay/command"
)

// Large proposals, and those that must not wait behind them.
//
// An entry is written, sent, committed and applied after all that is before it in the log. Who
// writes values of 1 MB faster than the cluster takes them would have every other write wait behind
// his own: 60 of them, on a machine that takes 15 a second, are four seconds. So the large proposals
// of a member pass a window. Only so many bytes of them are between the inbox and the applier at a
// time; the others wait outside, in order of arrival, and whatever is small passes by.
//
// The window follows the time that large proposals take on their way. It grows while that is
// short, so that a fast cluster has as much to do as it can, and shrinks when it is long: what waits
// in the log then would not be done any sooner. It never falls below what keeps a disk busy whose
// syncs take a tenth of a second.
//
// The leader's own proposals are on their way for the shortest time. By the time alone its window would
// grow into what the others leave, and theirs shrink to the least. So a member whose part of what is
// applied is smaller than another's, and who has more to propose, makes its window larger, whatever the
// time: the one with the largest part then sees that it takes long, and makes its own smaller.
const (
	// LargeProposal is the size in bytes, encoded, from which on a proposal passes the window.
	LargeProposal = largeBuffer
	// minWindow and maxWindow bound the window, in bytes; an eighth of Config.MaxUnsyncedBytes if
	// that is less than the latter, but not less than the former. The leader has room for what has
	// passed the windows of all members.
	minWindow = 4 << 20
	maxWindow = 64 << 20
	// windowTime is how long a large proposal should take from the inbox until it is applied, at
	// most: what another write finds before it takes about as long.
	windowTime = 250 * time.Millisecond
	// maxUnflushed is how many bytes of applied log may wait for the store's flush, or be in it, while
	// large proposals still pass: they are in the store's memory. A disk that takes less than comes in
	// makes that grow until the bound of the log (Config.MaxUnsyncedBytes), and then all writes would
	// be refused. It bridges a stall of some seconds. A quarter of that bound if it is less: other
	// members' large proposals wait for the leader's store as well (pending.large), and what has
	// passed the windows needs room.
	maxUnflushed = 128 << 20
)

// window is what large proposals pass. Any goroutine may call its methods, without a lock.
type window struct {
	inbox   *inbox
	waiters *waiters
	buffers *buffers
	timeout time.Duration // Config.RequestTimeout
	waits   prometheus.Gauge
	allowed prometheus.Gauge

	mu      sync.Mutex
	most    int64                    // maxWindow or less
	size    int64                    // in bytes, from minWindow to most
	inside  map[uint64]passed        // what has passed, by request id, and may not be applied yet
	bytes   int64                    // of inside; above size only by one proposal that was alone
	outside list.List                // of *proposal, in order of arrival; none is in the inbox
	places  map[uint64]*list.Element // of outside, by request id
	waiting int64                    // bytes of outside
	// unflushed are the bytes that are applied and that no flush of the store has made durable.
	unflushed, mostUnflushed int64     // the latter is maxUnflushed, but in tests
	shrunkAt                 time.Time // when the window was last made smaller

	own      uint16           // this member in shares
	shares   map[uint16]int64 // bytes of large proposals that were applied lately, by who proposed them
	halvedAt time.Time        // when the shares were last halved, as they are each shareTime
}

// shareTime is after how long what was applied counts half.
const shareTime = time.Second

// largeEntry is a large proposal in the log.
type largeEntry struct {
	id   uint64 // of the request
	size int64
}

// proposer tells members apart: a part of each request id (command.IDGenerator).
func (e largeEntry) proposer() uint16 { return command.MemberOf(e.id) }

// passed is a proposal inside the window.
type passed struct {
	size int64
	at   time.Time
}

func (w *window) init(r *Replica) {
	m := r.cfg.Metrics
	w.inbox, w.waiters, w.buffers = &r.inbox, &r.waiters, &r.buffers
	w.timeout, w.waits, w.allowed = r.cfg.RequestTimeout, m.LargeWaiting, m.LargeWindow
	w.size, w.inside, w.places = minWindow, make(map[uint64]passed), make(map[uint64]*list.Element)
	w.own, w.shares = uint16(r.cfg.ID), make(map[uint16]int64)
	w.allowed.Set(minWindow)
	w.most = max(minWindow, min(maxWindow, r.cfg.MaxUnsyncedBytes/8))
	w.mostUnflushed = min(maxUnflushed, r.cfg.MaxUnsyncedBytes/4)
}

// enter hands a large proposal on, now or when there is room. REQUIRES: it is in waiters, and not
// encoded.
func (w *window) enter(p *proposal) {
	w.mu.Lock()
	if p.abandoned() { // it ended between waiters and here
		w.mu.Unlock()
		return
	}
	if w.outside.Len() > 0 || !w.fits(p) {
		w.places[p.id] = w.outside.PushBack(p)
		w.wait(p.large)
		w.mu.Unlock()
		return
	}
	w.let(p, time.Now())
	w.mu.Unlock()
	w.pass(p)
}

// pass encodes a proposal that was let in, and puts it into the inbox. What waits outside is not
// encoded, so that it is in memory once.
func (w *window) pass(p *proposal) {
	if p.abandoned() {
		return
	}
	if err := w.buffers.encode(p, int(p.large)); err != nil {
		w.refused(p.id)
		if w.waiters.take(p.id) != nil {
			p.abandon()
			w.waiters.end(p, command.Result{}, err)
		}
		return
	}
	w.inbox.propose(p)
}

// applied takes note that large entries have been applied, of whichever member.
func (w *window) applied(entries []largeEntry) {
	if len(entries) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	w.share(entries, now)
	for _, e := range entries {
		p, ok := w.inside[e.id]
		if !ok {
			continue
		}
		w.adapt(p, now)
		w.remove(e.id, p)
	}
	w.fill(now)
}

// ended takes note of the end of a large proposal, by whichever cause, and returns how long it has
// waited outside. One that raft was given stays inside: it may be in the log, and be applied.
func (w *window) ended(p *proposal) (waited time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if place, ok := w.places[p.id]; ok {
		w.leave(place, p, now)
	}
	if inside, ok := w.inside[p.id]; ok && p.abandoned() {
		w.remove(p.id, inside)
	}
	w.fill(now)
	return p.waited
}

// refused takes note that the leader did not take a proposal.
func (w *window) refused(id uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p, ok := w.inside[id]; ok {
		w.remove(id, p)
		w.fill(time.Now())
	}
}

// restart forgets what is inside. It is called when another member leads, since what the one before
// had not committed may be lost, and when a snapshot took the place of entries.
func (w *window) restart() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.inside)
	w.bytes = 0
	w.fill(time.Now())
}

// sweep forgets what has been inside for longer than anybody waits: raft may have lost it.
func (w *window) sweep(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, p := range w.inside {
		if now.Sub(p.at) > w.timeout {
			w.remove(id, p)
		}
	}
	w.fill(now)
}

// setUnflushed is told by the flusher, and says whether a flush is due because of it. At the end of
// that it is told again.
func (w *window) setUnflushed(bytes int64) (due bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	lower := bytes < w.unflushed
	was := w.unflushed
	if w.unflushed = bytes; lower {
		w.fill(time.Now())
	}
	if was >= w.mostUnflushed && bytes < w.mostUnflushed {
		w.inbox.signal() // what others forwarded waits for it, too
	}
	return bytes >= w.mostUnflushed
}

// full reports whether large proposals wait for the flush of the store.
func (w *window) full() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.unflushed >= w.mostUnflushed
}

// The methods below need mu.

func (w *window) fits(p *proposal) bool {
	return w.unflushed < w.mostUnflushed && (w.bytes == 0 || w.bytes+p.large <= w.size)
}

func (w *window) let(p *proposal, now time.Time) {
	w.inside[p.id] = passed{p.large, now}
	w.bytes += p.large
}

func (w *window) remove(id uint64, p passed) {
	delete(w.inside, id)
	w.bytes -= p.size
}

// leave takes p from those that wait outside.
func (w *window) leave(place *list.Element, p *proposal, now time.Time) {
	w.outside.Remove(place)
	delete(w.places, p.id)
	w.wait(-p.large)
	p.waited = now.Sub(p.born)
}

func (w *window) wait(bytes int64) {
	w.waiting += bytes
	w.waits.Set(float64(w.waiting))
}

// fill lets in what fits, in order.
func (w *window) fill(now time.Time) {
	for {
		first := w.outside.Front()
		if first == nil {
			return
		}
		p := first.Value.(*proposal)
		if !w.fits(p) {
			return
		}
		w.leave(first, p, now)
		w.let(p, now)
		go w.pass(p) // whoever made room, often the applier, has other things to do than to copy
	}
}

// share counts what was applied for who proposed it.
func (w *window) share(entries []largeEntry, now time.Time) {
	if passed := now.Sub(w.halvedAt) / shareTime; passed > 0 {
		w.halvedAt = now
		for who, bytes := range w.shares {
			if bytes >>= min(passed, 62); bytes > 0 {
				w.shares[who] = bytes
			} else {
				delete(w.shares, who)
			}
		}
	}
	for _, e := range entries {
		w.shares[e.proposer()] += e.size
	}
}

// starved reports whether proposals of this member wait while another one gets more through.
func (w *window) starved() bool {
	if w.outside.Len() == 0 {
		return false
	}
	var most int64
	for _, bytes := range w.shares {
		most = max(most, bytes)
	}
	return w.shares[w.own] < most/4*3
}

// adapt follows how long a proposal took that is applied now. A window that is not used up says
// nothing about a larger one. Those that passed before it was made smaller say nothing about the
// smaller one.
func (w *window) adapt(p passed, now time.Time) {
	switch took := now.Sub(p.at); {
	case took >= windowTime/2 && w.starved():
		w.size = min(w.most, w.size+p.size)
	case took > windowTime:
		if p.at.Before(w.shrunkAt) {
			return
		}
		w.size, w.shrunkAt = max(minWindow, w.size/4, w.size*int64(windowTime)/int64(took)), now
	case took < windowTime/2 && (w.outside.Len() > 0 || w.bytes > w.size/2):
		w.size = min(w.most, w.size+p.size)
	default:
		return
	}
	w.allowed.Set(float64(w.size))
}

package watch

import (
	"errors"
	"fmt"
	"math"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/zap"
)

const (
	catchUpBackoff    = 100 * time.Millisecond // after a failed read of history
	catchUpMaxBackoff = 5 * time.Second
)

// errNobodyLeft stops a scan when all its watchers have run out of room.
var errNobodyLeft = errors.New("watch: nobody left to scan for")

// catchUpLoop serves the watchers that are behind and whose stream has room.
func (h *Hub) catchUpLoop() {
	defer h.wg.Done()
	c := catchUp{h: h}
	backoff := catchUpBackoff
	for {
		select {
		case <-h.catchup:
		case <-h.ctx.Done():
			return
		}
		for more := true; more && h.ctx.Err() == nil; {
			var err error
			if more, err = c.window(); err == nil {
				backoff = catchUpBackoff
				continue
			}
			if h.ctx.Err() != nil {
				return
			}
			h.logger.Warn("failed to read history for watchers; will try again", zap.Duration("after", backoff), zap.Error(err))
			select {
			case <-time.After(backoff):
			case <-h.ctx.Done():
				return
			}
			backoff = min(2*backoff, catchUpMaxBackoff)
		}
	}
}

// catchUp is the state of the catch-up goroutine.
type catchUp struct {
	h     *Hub
	fan   fan
	group []*watcher // in the order they waited
	full  []*watcher // of the group: their stream has no room
	lost  []*watcher // of the group: what they need is compacted
}

// window serves one window of revisions: it takes the watcher that has waited longest, and all
// whose next revision is within the same window, reads the window once for all of them, and moves
// each to its new state. more reports whether any watcher was served.
func (c *catchUp) window() (more bool, err error) {
	h := c.h
	h.mu.Lock()
	from, to := c.take()
	head := h.done
	h.mu.Unlock()
	if len(c.group) == 0 {
		return false, nil
	}

	// What the ring still holds is served even if it was compacted since the watchers were made.
	var compacted int64
	if !h.recent.covers(from) {
		compacted = h.kv.CompactRevision()
	}
	x := newIndex()
	for _, w := range c.group {
		if w.next < compacted {
			c.lost = append(c.lost, w)
		} else {
			x.add(w)
		}
	}
	if x.len() > 0 && from <= to {
		from = max(from, compacted)
		err = c.read(x, from, to, head)
	}

	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range c.lost {
		if w.state == stateScanning {
			h.endCompacted(w, compacted)
		}
	}
	for _, w := range c.full {
		if w.state == stateScanning {
			h.block(w)
		}
	}
	for _, w := range c.group {
		if w.list != nil && (w.state != stateScanning || err != nil) {
			x.remove(w)
			if w.state == stateScanning { // else cancelled meanwhile
				h.makeReady(w)
			}
		}
	}
	if err == nil {
		h.join(x, c.group)
	}
	clear(c.group)
	clear(c.full)
	clear(c.lost)
	c.group, c.full, c.lost = c.group[:0], c.full[:0], c.lost[:0]
	h.tryProgress()
	return true, err
}

// take moves the watchers of the next window from Hub.ready to c.group, and
// returns the revisions to read. REQUIRES: Hub.mu held.
func (c *catchUp) take() (from, to int64) {
	h := c.h
	from = math.MaxInt64
	rest := h.ready[:0]
	for _, w := range h.ready {
		switch {
		case w.state != stateReady:
			// ended while it waited
		case len(c.group) == 0:
			from = w.next
			fallthrough
		case w.next >= from && w.next-from < h.opts.ScanRevisions:
			w.state = stateScanning
			c.group = append(c.group, w)
		default:
			rest = append(rest, w)
		}
	}
	clear(h.ready[len(rest):])
	h.ready = rest
	if from > h.done { // after Reload, or with a start in the future
		return from, h.done
	}
	return from, min(h.done, from+h.opts.ScanRevisions-1)
}

// read delivers the revisions from..to, or the first part of them, to the
// watchers of x and sets their next. Those without room go to c.full.
func (c *catchUp) read(x *index, from, to, head int64) error {
	h := c.h
	next := from
	onFull := func(w *watcher) { c.full = append(c.full, w) }
	reached, ok := h.replay(&c.fan, x, from, to, head, int(to-from+1), onFull)
	var err error
	if ok {
		next = reached + 1
	} else {
		var n int64
		n, err = h.kv.Events(h.ctx, from, to, h.opts.ScanBytes, x.covers, func(rev int64, events []*mvccpb.Event) error {
			if rev < next || rev > to {
				return fmt.Errorf("watch: history returned revision %d out of order, after %d, up to %d", rev, next-1, to)
			}
			h.deliver(&c.fan, x, rev, head, events, onFull)
			next = rev + 1
			if x.len() == 0 {
				return errNobodyLeft
			}
			return nil
		})
		switch {
		case err == nil && n <= from:
			err = fmt.Errorf("watch: history from revision %d returned nothing", from)
		case err == nil:
			next = max(next, n)
		case errors.Is(err, errNobodyLeft):
			err = nil
		case h.kv.CompactRevision() > from:
			err = nil // nothing of it was read: it was compacted in the meantime; the next window ends the watchers concerned
		}
	}
	x.all(func(w *watcher) { w.next = max(w.next, next) })
	return err
}

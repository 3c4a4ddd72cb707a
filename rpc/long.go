package rpc

import (
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A stream's window holds a message of up to Options.StreamWindow. A longer one gets the rest of its
// window when its length is known, out of what the server gives all connections together: so a
// client's large requests wait on its side rather than in this process, and many of them are neither
// refused nor held all at once.
//
// A unary call keeps what it was given until its handler returns, since until then its request is in
// memory; a message of a call whose client streams keeps it until the message is complete.
//
// A client that was given a window need not use it. A message of which less than longProgress has come
// in longPatience is late: while others wait, it counts no more until it comes, so that announcing
// messages holds up nobody for longer; what comes of it nevertheless is bounded as all incomplete
// messages are. Connections with a late message are served behind the others until they send one in
// time. A call that takes longer than longCalls times longPatience counts no more either: one that
// waits for a lock or an election may never end.
const (
	longPatience = 500 * time.Millisecond
	longCalls    = 20
	longProgress = 16 << 10
	// longShare is the part of all windows that one connection may have: one in so many.
	longShare = 4
	// longWaitShare is the part that the first windows of a connection's waiting messages may have;
	// more of them are refused.
	longWaitShare = 3
	// longBehind: one in so many windows is for the connections that are served behind the others,
	// who would starve else.
	longBehind = 8
)

// longWindows are the windows for long messages of all connections of a server. Its lock is taken
// under a connection's, never the other way.
type longWindows struct {
	most int64 // bytes; one message alone may have more
	// patience is longPatience.
	patience time.Duration

	mu   sync.Mutex
	used int64 // >= 0
	all  int64 // streams that wait, of all connections, for room or for their connection's share
	// waiting are the connections whose next long message fits their share, and nothing else, in the
	// order in which they are served, one message each; behind are those with a late one.
	waiting, behind []longWait
	served          int // windows given to those who waited
	// due are the streams that have windows, with the time when they are to be looked at: whether
	// their messages make progress, or their calls take long.
	due map[*stream]time.Time
	// serving: there is a goroutine that serves those who wait, which are all. room wakes it.
	serving bool
	room    chan struct{} // capacity 1
}

// longWait is a connection's next long message.
type longWait struct {
	st *stream
	n  int64
}

func newLongWindows(most int64, patience time.Duration) *longWindows {
	return &longWindows{most: most, patience: patience, due: make(map[*stream]time.Time), room: make(chan struct{}, 1)}
}

// LongWindows is what long messages have been given of Options.LongBytes, in bytes, and how many
// messages wait.
func (s *Server) LongWindows() (used, waiting int64) {
	s.long.mu.Lock()
	defer s.long.mu.Unlock()
	return s.long.used, s.long.all
}

// share is what one connection may have, bytes; one message alone may have more.
func (l *longWindows) share() int64 { return l.most / longShare }

// fits reports whether n bytes may be given. REQUIRES: mu.
func (l *longWindows) fits(n int64) bool { return l.used == 0 || n <= l.most-l.used }

// take takes n bytes for a stream, unless they are not there or others wait.
func (l *longWindows) take(st *stream, n int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting)+len(l.behind) > 0 || !l.fits(n) {
		return false
	}
	l.give(st, n)
	return true
}

// give takes n bytes for a stream. REQUIRES: mu.
func (l *longWindows) give(st *stream, n int64) {
	l.used += n
	l.due[st] = time.Now().Add(l.patience)
}

// count has n bytes more, or fewer, taken for a stream that was given some, and the stream looked at
// after a time, if others wait then; 0: not at all.
func (l *longWindows) count(st *stream, n int64, after time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if after > 0 {
		l.due[st] = time.Now().Add(after)
	} else {
		delete(l.due, st)
	}
	if l.used += n; l.used < 0 {
		panic("rpc: more of the windows for long messages was returned than given")
	}
	if n < 0 {
		signal(l.room)
	}
}

// wait puts a connection's next message behind those of the others; late: behind all that are not.
func (l *longWindows) wait(w longWait, late bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if late {
		l.behind = append(l.behind, w)
	} else {
		l.waiting = append(l.waiting, w)
	}
	signal(l.room)
}

// begin is a stream that waits from now on.
func (l *longWindows) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all++; !l.serving {
		l.serving = true
		go l.serve()
	}
}

// end is a stream that waits no longer.
func (l *longWindows) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all--; l.all == 0 {
		signal(l.room)
	}
}

// serve serves those who wait until there are none.
func (l *longWindows) serve() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		next, looked, due := l.next()
		switch {
		case next.st != nil:
			next.st.c.long.given(next)
			continue
		case due.IsZero():
			return
		}
		for _, st := range looked {
			st.look()
		}
		if len(looked) > 0 {
			continue
		}
		timer.Reset(time.Until(due))
		select {
		case <-l.room:
		case <-timer.C:
		}
	}
}

// next takes the first of those who wait, with its bytes, if they are there. Else it returns the
// streams that are to be looked at, and when others are. Nobody waits: due is zero, and the caller is
// the goroutine that serves no more.
func (l *longWindows) next() (next longWait, looked []*stream, due time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := &l.waiting
	if turn := l.served%longBehind == longBehind-1; len(l.behind) > 0 && (len(l.waiting) == 0 || turn && l.fits(l.behind[0].n)) {
		q = &l.behind
	}
	if len(*q) > 0 && l.fits((*q)[0].n) {
		next = (*q)[0]
		(*q)[0] = longWait{}
		*q = (*q)[1:]
		l.give(next.st, next.n)
		l.served++
		return next, nil, due
	}
	if l.all == 0 && len(*q) == 0 {
		l.waiting, l.behind, l.serving = nil, nil, false
		return
	}
	now := time.Now()
	due = now.Add(l.patience)
	for st, at := range l.due {
		if at.After(now) {
			if at.Before(due) {
				due = at
			}
			continue
		}
		looked = append(looked, st)
		delete(l.due, st)
	}
	return longWait{}, looked, due
}

// look has a stream's window count no more if its message makes no progress, until it has come, or if
// its call takes long.
func (st *stream) look() {
	c := st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case st.granted == 0 || st.late:
	case !st.receives():
		c.long.ungrant(st)
	case st.seen-st.need >= longProgress:
		st.seen = st.need
		c.s.long.count(st, 0, c.s.long.patience)
	default:
		st.late, c.long.late = true, true
		c.s.long.count(st, -st.counted, 0)
		st.counted = 0
	}
}

var errTooManyWait = status.Error(codes.ResourceExhausted, "etcdserver: too many requests")

// receives reports whether more of the stream's messages may come. REQUIRES: mu.
func (st *stream) receives() bool {
	return st.running && !st.recvDone && !st.closed && !st.ending && st.recvErr == nil
}

// giveStreamWindow opens a stream's window for what its handler has taken, and for all of a message
// whose length is known, or has it wait for that. REQUIRES: mu.
func (c *conn) giveStreamWindow(st *stream) {
	if !st.receives() {
		return
	}
	if want := c.window - st.held; want-st.recvWindow >= c.window/2 {
		c.windowFrame(st.id, uint32(want-st.recvWindow))
		st.recvWindow = want
	}
	more := st.need - st.recvWindow
	if more <= 0 || st.waits {
		return
	}
	q := &c.long
	if len(q.waiting) == 0 && q.fits(more) && c.s.long.take(st, more) {
		q.grant(st, more, 0)
		return
	}
	if int64(len(q.waiting)+1)*c.window > c.s.long.most/longWaitShare {
		if told := c.s.opts.LongRefused; told != nil {
			told(c.peer.Addr)
		}
		st.recvErr = errTooManyWait
		signal(st.recvWake)
		return
	}
	st.waits, st.waitsFrom = true, time.Now()
	q.waiting = append(q.waiting, st)
	c.s.long.begin()
	q.next()
}

// longQueue is a connection's part: what its streams have, and those that wait. All but given
// belongs to the connection's mu.
type longQueue struct {
	c       *conn
	granted int64     // bytes, of late messages, too
	waiting []*stream // in the order in which they came
	waits   bool      // the first of them waits with those of other connections
	late    bool      // the last long message that came, or did not come, was late
}

// fits reports whether n bytes more are within the connection's share.
func (q *longQueue) fits(n int64) bool { return q.granted == 0 || n <= q.c.s.long.share()-q.granted }

// next has the connection's next message wait with those of other connections, if it fits the
// connection's share.
func (q *longQueue) next() {
	if q.waits || len(q.waiting) == 0 {
		return
	}
	st := q.waiting[0]
	if more := max(0, st.need-st.recvWindow); q.fits(more) {
		q.waits = true
		q.c.s.long.wait(longWait{st, more}, q.late)
	}
}

// given is the turn of w, which was the connection's first when it began to wait.
func (q *longQueue) given(w longWait) {
	c := q.c
	c.mu.Lock()
	defer c.mu.Unlock()
	q.waits = false
	st := w.st
	more := st.need - st.recvWindow
	wanted := st.waits && st.receives() && more > 0
	q.forget(st)
	if wanted {
		c.s.long.count(st, more-w.n, c.s.long.patience)
		q.grant(st, more, time.Since(st.waitsFrom))
		c.kick()
	} else {
		c.s.long.count(st, -w.n, 0)
	}
	q.next()
}

// forget takes a stream out of those that wait, if it is one of them.
func (q *longQueue) forget(st *stream) {
	if st.waits {
		st.waits = false
		q.waiting = slices.DeleteFunc(q.waiting, func(other *stream) bool { return other == st })
		q.c.s.long.end()
	}
}

// grant gives a window beyond that of every stream, to one that has waited so long.
func (q *longQueue) grant(st *stream, n int64, waited time.Duration) {
	if told := q.c.s.opts.LongWaited; told != nil {
		told(waited)
	}
	q.granted += n
	st.granted += n
	st.counted += n
	st.seen = st.need
	q.c.windowFrame(st.id, uint32(n))
	st.recvWindow += n
}

// complete is the end of a stream's message.
func (q *longQueue) complete(st *stream) {
	if st.granted == 0 {
		return
	}
	q.late, st.late = st.late, false
	again := st.granted - st.counted // what was late has come nevertheless
	st.counted = st.granted
	q.c.s.long.count(st, again, longCalls*q.c.s.long.patience)
}

// ungrant returns what a stream was granted: others may have it.
func (q *longQueue) ungrant(st *stream) {
	if st.granted == 0 {
		return
	}
	q.c.s.long.count(st, -st.counted, 0)
	q.granted -= st.granted
	st.granted, st.counted, st.late = 0, 0, false
	q.next()
}

// windowKnown is the client's word that it knows the window of our settings, which may be smaller
// than HTTP/2's: it has made those of its streams smaller by the difference. REQUIRES: mu.
func (c *conn) windowKnown() {
	less := c.window - c.s.opts.StreamWindow
	if less == 0 {
		return
	}
	c.window = c.s.opts.StreamWindow
	for _, st := range c.streams {
		if st.granted > 0 { // it was given for all of its message, which stays so
			c.windowFrame(st.id, uint32(less))
			continue
		}
		st.recvWindow -= less
		c.giveStreamWindow(st)
	}
}

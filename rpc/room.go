package rpc

import (
	"cmp"
	"container/list"
	"context"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
)

// What answers hold that clients have not taken. A client may ask for any number of answers and read
// none: HTTP/2 lets the server send nothing then, and so it keeps them. (Of a stream only one message
// is kept; see queueLimit.) So a call that is about to make an answer of more than FreeAnswer asks
// for room first, and waits, holding its request alone, while its connection holds as much as it may:
// connAnswers, or half of what others leave of three quarters of the room. A connection that holds
// nothing may have what is left. What calls wait for are other answers, so those that their clients
// do not take are given up: at once almost when connections wait for each other, also of clients that
// take little; later when only calls of the same one wait, and only if they take nothing.
//
// Room is asked for when the size is known, or nearly, and it must not be asked for by a call that
// holds what others wait for.
const (
	// FreeAnswer is up to which size of its answer a call need not ask for room.
	FreeAnswer = 16 << 10
	// connAnswers is from how many bytes of answers on a connection no others are made for it.
	connAnswers = 32 << 20
	// callBytes is about what a call costs that waits, or whose answer does. maxWaits bounds those of
	// a connection that wait for room, maxSmall the bytes of answers that ask for none, of which there
	// may be many. Beyond them new calls are refused, as beyond the bound of streams: clients know that
	// they did not run.
	callBytes = 2 << 10
	maxWaits  = 16384
	maxSmall  = 4 * connAnswers
	// manyRefused is after how many refused calls nothing is read of a connection for a refusedPause:
	// a client that goes on regardless would take a processor with it.
	manyRefused, refusedPause = 100, 50 * time.Millisecond
	// While calls wait, they are looked at each roomInterval, or roomPause after something became free,
	// and the answers each takeInterval. An answer is still when nothing of it has left since the last
	// look, unless it waits for its turn behind others that have, and slow when that is so or its
	// connection has taken less than slowTaking bytes. It is given up when it has been still at
	// stillLooks in a row and calls of its connection wait, or slow at slowLooks where all connections
	// hold too much.
	roomInterval, takeInterval = 50 * time.Millisecond, time.Second
	roomPause                  = time.Millisecond
	slowTaking                 = 256 << 10
	slowLooks, stillLooks      = 3, 10
)

// answerRoom is what unary answers of all connections may hold.
type answerRoom struct {
	most   int64
	often  time.Duration                     // roomInterval, but in tests
	every  time.Duration                     // takeInterval, but in tests
	calls  int                               // maxWaits, but in tests
	small  int64                             // maxSmall, but in tests
	unread func(client net.Addr, held int64) // nil: nobody is told
	held   atomic.Int64                      // queued, and reserved
	waits  atomic.Int64                      // calls
	freed  chan struct{}                     // capacity 1: something was given back while calls wait

	mu      sync.Mutex
	waiting map[*conn]struct{} // connections with calls that wait
	looking bool               // lookAtRoom runs
}

// A roomWait is a call that waits for room.
type roomWait struct {
	call *callRoom
	n    int64
	run  func() // once it has got it, or its stream is closed; mu is held
}

// connRoom is what the answers of a connection hold. Its fields belong to mu.
type connRoom struct {
	c         *conn
	queued    int64     // bytes of answers
	answers   int64     // how many these are
	reserved  int64     // for calls that are making theirs
	waits     list.List // of roomWait
	taken     int64     // bytes of messages that have left, ever
	seenTaken int64     // at the last look
}

// callRoom is what a call has of it. Its fields belong to mu.
type callRoom struct {
	st       *stream
	queued   int64         // what its answer counts for
	reserved int64         // for the answer
	wait     *list.Element // in connRoom.waits; nil: it does not wait
	shared   bool          // the answer lies in memory that is counted elsewhere
	seen     int64         // queued at the last look
	still    int           // looks in a row since which the answer is
	slow     int           // the same
}

// UnreadBytes is what answers hold that clients have not taken, and what is reserved for those that
// are being made.
func (s *Server) UnreadBytes() int64 { return s.room.held.Load() }

// Reserve asks for room for an answer of so many bytes, which the call has until it is answered. It
// returns true if there is, or nobody waits for the answer any more. Otherwise the call is to be
// forgotten: later is called in another goroutine when it has got the room, or has ended.
func (c *Call) Reserve(n int64, later func()) bool {
	st, conn := (*stream)(c), c.c
	conn.mu.Lock()
	defer conn.mu.Unlock()
	return st.room.enter(n, func() { conn.s.run(later) })
}

// TryReserve is Reserve for a call that does not wait.
func (c *Call) TryReserve(n int64) bool {
	st, conn := (*stream)(c), c.c
	conn.mu.Lock()
	defer conn.mu.Unlock()
	return st.room.enter(n, nil)
}

// Ended is why nobody waits for the answer any more; nil: somebody does.
func (c *Call) Ended() error {
	st := (*stream)(c)
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	if st.closed {
		return st.cause
	}
	return nil
}

// AwaitRoom is Reserve for a handler, with its context: it waits. The error is the context's. The
// room is the call's until its answer is sent, or the handler returns. Of calls that no Server of
// this package serves, and of those on which the server streams, it returns at once.
func AwaitRoom(ctx context.Context, n int64) error {
	ts, ok := grpc.ServerTransportStreamFromContext(ctx).(*transportStream)
	if !ok {
		return nil
	}
	st := (*stream)(ts)
	ready := make(chan struct{})
	st.c.mu.Lock()
	in := st.room.enter(n, func() { close(ready) })
	st.c.mu.Unlock()
	if in {
		return nil
	}
	select {
	case <-ready:
		return ctx.Err()
	case <-ctx.Done():
	}
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	if st.room.wait != nil { // the handler has a context that ends sooner than the call's
		st.room.leave()
	}
	return ctx.Err()
}

// ReturnRoom gives back what a handler's call has been given by AwaitRoom, as it goes on to wait for
// other clients, and holds nothing that it has read.
func ReturnRoom(ctx context.Context) {
	if ts, ok := grpc.ServerTransportStreamFromContext(ctx).(*transportStream); ok {
		st := (*stream)(ts)
		st.c.mu.Lock()
		st.room.unreserve()
		st.c.room.admit()
		st.c.mu.Unlock()
	}
}

// HasRoom reports whether AwaitRoom bounds the answers of a call with this context.
func HasRoom(ctx context.Context) bool {
	_, ok := grpc.ServerTransportStreamFromContext(ctx).(*transportStream)
	return ok
}

// ShareAnswer says that the answer of a handler's call lies in memory that is counted elsewhere, since
// others are sent it, too.
func ShareAnswer(ctx context.Context) {
	if ts, ok := grpc.ServerTransportStreamFromContext(ctx).(*transportStream); ok {
		(*stream)(ts).room.share()
	}
}

// Share is ShareAnswer for a Hot.
func (c *Call) Share() { c.room.share() }

func (r *callRoom) share() {
	r.st.c.mu.Lock()
	r.shared = true
	r.st.c.mu.Unlock()
}

// The methods of connRoom and of callRoom below need mu.

// enter lets a call in, or has it wait if run is not nil.
func (r *callRoom) enter(n int64, run func()) bool {
	of := &r.st.c.room
	if n <= r.reserved || r.st.closed || r.st.req.called.manyAnswers() {
		return true
	}
	if of.waits.Len() == 0 && of.roomy() {
		r.reserve(n - r.reserved)
		return true
	}
	r.unreserve() // or each of some calls might hold what the others wait for
	if run != nil {
		if r.wait != nil {
			panic("rpc: a call waits for room twice")
		}
		r.wait = of.waits.PushBack(roomWait{r, n, run})
		of.all().waits.Add(1)
		of.admit()
	}
	return false
}

// manyAnswers reports whether a method's answers are a stream.
func (m *method) manyAnswers() bool { return m.stream != nil && m.stream.ServerStreams }

// reserve counts bytes that a call is about to queue.
func (r *callRoom) reserve(n int64) {
	of := &r.st.c.room
	r.reserved += n
	of.reserved += n
	of.all().hold(n)
}

// unreserve gives back what a call has reserved.
func (r *callRoom) unreserve() {
	if r.reserved > 0 {
		r.reserve(-r.reserved)
	}
}

// queue counts an answer of so many bytes that is queued now.
func (r *callRoom) queue(n int) {
	if r.st.req.called.manyAnswers() {
		return
	}
	r.unreserve()
	if r.shared {
		n = 0
	}
	if r.queued == 0 {
		r.st.c.room.answers++
	}
	r.count(callBytes + int64(n))
}

// take counts bytes of a stream's queue that go to the client.
func (r *callRoom) take(n int) {
	if r.queued > callBytes {
		r.count(-min(int64(n), r.queued-callBytes))
		r.st.c.room.admit()
	}
}

// close gives back all that a call has of the room, as its stream is closed.
func (r *callRoom) close() {
	if r.wait != nil {
		r.leave().run()
	}
	r.unreserve()
	if r.queued > 0 {
		r.st.c.room.answers--
		r.count(-r.queued)
	}
	r.st.c.room.admit()
}

// count counts bytes that are queued.
func (r *callRoom) count(n int64) {
	of := &r.st.c.room
	r.queued += n
	if of.queued += n; r.queued < 0 || of.queued < 0 {
		panic("rpc: more of the answers was taken than there was")
	}
	of.all().hold(n)
}

// leave takes a call out of those that wait.
func (r *callRoom) leave() roomWait {
	of := &r.st.c.room
	w := of.waits.Remove(r.wait).(roomWait)
	r.wait = nil
	of.all().waits.Add(-1)
	return w
}

// giveUp ends a call whose answer is queued.
func (r *callRoom) giveUp() {
	c := r.st.c
	if r.st.closed || r.queued == 0 {
		return
	}
	if told := c.s.room.unread; told != nil {
		told(c.peer.Addr, r.queued)
	}
	c.reset(r.st, http2.ErrCodeEnhanceYourCalm)
	c.kick()
}

// all is the room of all connections.
func (r *connRoom) all() *answerRoom { return &r.c.s.room }

// refuses reports whether the connection's client has so many calls whose answers it does not take
// that it gets no more.
func (r *connRoom) refuses() bool {
	all := r.all()
	// What asked for room is bounded by that: one long answer is no reason to refuse a watch.
	small := min(r.queued, r.answers*(FreeAnswer+callBytes))
	if r.waits.Len() >= all.calls || small >= all.small {
		return true
	}
	if all.waits.Load()*callBytes < all.most/2 && all.held.Load() < all.most/4*5 || small+int64(r.waits.Len())*callBytes < slowTaking {
		return false
	}
	all.wait(r.c)
	return true
}

// roomy reports whether a call of the connection may make an answer.
func (r *connRoom) roomy() bool {
	held, most := r.all().held.Load(), r.all().most
	own := r.queued + r.reserved
	return own == 0 && held < most || own < min(connAnswers, most/4*3-held)
}

// admit lets in the calls that wait, as far as there is room.
func (r *connRoom) admit() {
	if r.c.stage == stageClosed {
		return
	}
	for r.waits.Len() > 0 && r.roomy() {
		w := r.waits.Front().Value.(roomWait)
		w.call.leave()
		w.call.reserve(w.n)
		w.run()
	}
	if r.waits.Len() > 0 {
		r.all().wait(r.c)
	}
}

// countOf is how often in a row something has been so.
func countOf(so bool, before int) int {
	if so {
		return before + 1
	}
	return 0
}

// look notes which answers are still and slow, and returns those that have been slow before.
func (r *connRoom) look() (waiting []*callRoom) {
	took := r.taken - r.seenTaken
	r.seenTaken = r.taken
	if r.queued == 0 {
		return nil
	}
	for _, st := range r.c.streams {
		call := &st.room
		if call.queued == 0 {
			continue
		}
		still := call.queued == call.seen && !(st.ready && took > 0)
		call.still, call.slow = countOf(still, call.still), countOf(still || took < slowTaking, call.slow)
		call.seen = call.queued
		if call.slow >= slowLooks {
			waiting = append(waiting, call)
		}
	}
	return waiting
}

// hold counts bytes that are held from now on, or, if negative, no more.
func (r *answerRoom) hold(n int64) {
	if r.held.Add(n); n < 0 && r.waits.Load() > 0 {
		signal(r.freed)
	}
}

// wait has the calls of a connection looked at until none of them waits.
func (r *answerRoom) wait(c *conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting[c] = struct{}{}
	if !r.looking {
		r.looking = true
		go c.s.lookAtRoom()
	}
}

// lookAtRoom lets calls in, and gives up answers that are not taken, while calls wait.
func (s *Server) lookAtRoom() {
	r := &s.room
	tick := time.NewTicker(r.often)
	defer tick.Stop()
	for last := time.Now(); ; {
		select {
		case <-tick.C:
		case <-r.freed:
			time.Sleep(roomPause) // else it would go through them again and again
		}
		if now := time.Now(); now.Sub(last) >= r.every {
			last = now
			s.giveUp()
		}
		r.mu.Lock()
		waiting := r.waiting
		r.waiting = make(map[*conn]struct{})
		r.looking = len(waiting) > 0
		r.mu.Unlock()
		if len(waiting) == 0 {
			return
		}
		for c := range waiting { // those that still wait enter themselves again
			c.mu.Lock()
			c.room.admit()
			c.mu.Unlock()
		}
	}
}

// giveUp ends the calls whose answers are not taken: of connections with calls that wait, and where all
// together hold too much those that hold most, until it is half of what they may.
func (s *Server) giveUp() {
	s.mu.Lock()
	conns := slices.Collect(maps.Keys(s.conns))
	s.mu.Unlock()
	r := &s.room
	pressed := r.held.Load() >= r.most/4*3
	type holder struct {
		call *callRoom
		held int64
	}
	var holders []holder
	for _, c := range conns {
		c.mu.Lock()
		for _, call := range c.room.look() {
			switch {
			case c.room.waits.Len() > 0 && call.still >= stillLooks:
				call.giveUp()
			case pressed:
				holders = append(holders, holder{call, call.queued})
			}
		}
		c.mu.Unlock()
	}
	slices.SortFunc(holders, func(a, b holder) int { return cmp.Compare(b.held, a.held) })
	for _, h := range holders {
		if r.held.Load() <= r.most/2 {
			return
		}
		h.call.st.c.mu.Lock()
		h.call.giveUp()
		h.call.st.c.mu.Unlock()
	}
}

package rpc

import (
	"context"
	"encoding/binary"
	"slices"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// A Hot serves a unary call without a goroutine, a context and a decoded request of the server's
// making. It is called on the connection's reader with the whole message, which is valid until it
// returns, and must not wait for anything: what it cannot answer at once it answers later, by the
// Call, or it leaves the call to the registered handler. It returns false to do the latter.
//
// It sees only calls of one message that came in one frame, as those of nearly all small calls do,
// and not compressed.
type Hot func(c *Call, message []byte) bool

// Hot has h serve a registered method on which neither side streams. REQUIRES: nothing is served yet.
func (s *Server) Hot(path string, h Hot) {
	m := s.methods[path]
	if m == nil || m.stream != nil && (m.stream.ClientStreams || m.stream.ServerStreams) {
		panic("rpc: no such method for a Hot: " + path)
	}
	m.hot = h
}

// A Call is one that a Hot has taken. Exactly one of Reply, ReplyEncoded, Fail and Delegate is
// called, once and from any goroutine; if the client has left meanwhile, or the call's deadline has
// passed, they send nothing. Until then the call counts towards the bound of those that a connection
// may leave behind.
type Call stream

// An Ender is told that nobody waits for a call any longer.
type Ender interface {
	// Ended is called with context.DeadlineExceeded, up to deadlineSlack after the call's deadline, or
	// with context.Canceled when the client or its connection has gone. No lock is held.
	Ended(cause error)
}

// Notify has e told when the call ends before it is answered: at most once, in another goroutine,
// which may be soon if it has ended already. An answer is due in any case. It reports whether
// somebody still waits for that.
func (c *Call) Notify(e Ender) (awaited bool) {
	st := (*stream)(c)
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	if !st.taken {
		return false
	}
	if st.ender = e; st.closed {
		st.c.kept.tell(st)
	}
	return !st.closed
}

// release notes that a Hot has done with a stream that it took. REQUIRES: mu.
func (st *stream) release() {
	st.taken, st.ender = false, nil
	if st.orphan {
		st.orphan = false
		st.c.orphans--
	}
}

// keptCalls are a connection's calls that a Hot answers later: who is told of their ends, and when
// deadlines pass. Its fields belong to mu.
type keptCalls struct {
	c *conn
	// due is when the deadline of one passes, at the earliest; the zero time: none has one.
	due     time.Time
	ended   []endedCall // whose Enders are to be told
	telling bool        // a goroutine tells them
}

// endedCall is one whose Ender is to be told.
type endedCall struct {
	ender Ender
	cause error
}

// tell has the Ender of a stream told. REQUIRES: mu.
func (k *keptCalls) tell(st *stream) {
	k.ended = append(k.ended, endedCall{st.ender, st.cause})
	st.ender = nil
	if !k.telling {
		k.telling = true
		go k.tellAll()
	}
}

// tellAll tells, one after the other, until there are no more: of all calls of a connection that
// ends one goroutine does it.
func (k *keptCalls) tellAll() {
	for {
		k.c.mu.Lock()
		ended := k.ended
		k.ended, k.telling = nil, len(ended) > 0
		k.c.mu.Unlock()
		if len(ended) == 0 {
			return
		}
		for _, e := range ended {
			e.ender.Ended(e.cause)
		}
	}
}

// deadlineSlack is how long after its deadline a call of a Hot may be ended. There is no timer for
// each: the connection looks at all of them when the first deadline has passed, and not more often.
const deadlineSlack = 5 * time.Millisecond

// expect has the connection look when a deadline passes. REQUIRES: mu.
func (k *keptCalls) expect(deadline time.Time) {
	if !k.due.IsZero() && !deadline.Before(k.due) {
		return
	}
	k.due = deadline
	if c := k.c; c.timer != nil {
		c.timer.Reset(time.Until(c.nextLook(time.Now())))
	}
}

// look resets the streams whose deadlines have passed. REQUIRES: mu.
func (k *keptCalls) look(now time.Time) {
	if k.due.IsZero() || now.Before(k.due) {
		return
	}
	var late []*stream
	next := time.Time{}
	for _, st := range k.c.streams {
		switch {
		case !st.hot && !st.taken || st.deadline.IsZero():
		case !now.Before(st.deadline):
			late = append(late, st)
		case next.IsZero() || st.deadline.Before(next):
			next = st.deadline
		}
	}
	for _, st := range late {
		st.cause = context.DeadlineExceeded
		k.c.reset(st, http2.ErrCodeCancel)
	}
	if least := now.Add(deadlineSlack); !next.IsZero() && next.Before(least) {
		next = least
	}
	k.due = next
}

// A Message is an answer that knows its length and how to append itself.
type Message interface {
	Size() int
	AppendTo([]byte) []byte
}

// Context has the call's metadata and peer. It does not end.
func (c *Call) Context() context.Context { return c.req.ctx }

// Connection is the same for calls of the same connection, and for no others.
func (c *Call) Connection() any { return c.c }

// Deadline is the client's; the zero time: it has none.
func (c *Call) Deadline() time.Time { return c.deadline }

// SetMetadata has header go ahead of the answer and trailer after it, or with the error. It comes
// before Reply, ReplyEncoded and Fail; what a client could not read is left out.
func (c *Call) SetMetadata(header, trailer metadata.MD) {
	if len(header) == 0 && len(trailer) == 0 {
		return
	}
	st := (*stream)(c)
	st.c.mu.Lock()
	defer st.c.mu.Unlock()
	if validMetadata(header) == nil {
		st.header = header
	}
	if validMetadata(trailer) == nil {
		st.trailer = trailer
	}
}

// Go has a goroutine of the server's do f, which may wait, unlike a Hot; the server waits for it when
// it stops. Nobody may wait for the answer any more: see Ended and Notify.
func (c *Call) Go(f func()) { c.c.s.run(f) }

// Late reports whether the call's deadline has passed.
func (c *Call) Late() bool { return !c.deadline.IsZero() && time.Now().After(c.deadline) }

// Reply answers the call and ends it.
func (c *Call) Reply(m Message) {
	st, n := (*stream)(c), m.Size()
	if n > maxFrameBytes && n <= c.c.s.opts.MaxSendBytes { // it is not encoded under the lock
		c.ReplyEncoded(mem.BufferSlice{mem.SliceBuffer(m.AppendTo(make([]byte, 0, n)))})
		return
	}
	prefix, ok := st.beginReply(n)
	defer st.c.mu.Unlock()
	if !ok {
		return
	}
	if st.fits(prefixBytes + n) {
		st.c.out = m.AppendTo(st.beginData(prefix, n))
	} else {
		st.c.message(st, prefix, mem.BufferSlice{mem.SliceBuffer(m.AppendTo(make([]byte, 0, n)))})
	}
	st.endReply()
}

// ReplyEncoded answers the call with a message that is encoded, and ends it. The buffers are freed
// when they have been sent, or will not be.
func (c *Call) ReplyEncoded(data mem.BufferSlice) {
	st := (*stream)(c)
	prefix, ok := st.beginReply(data.Len())
	defer st.c.mu.Unlock()
	if !ok {
		data.Free()
		return
	}
	st.c.message(st, prefix, data)
	st.endReply()
}

// beginReply opens the answer of a taken call, of n bytes; false: nothing is to be sent any more. It
// takes mu.
func (st *stream) beginReply(n int) (prefix [prefixBytes]byte, ok bool) {
	c := st.c
	c.mu.Lock()
	st.release()
	if st.closed || st.ending {
		return prefix, false
	}
	if most := c.s.opts.MaxSendBytes; n > most {
		c.finish(st, tooLargeToSend(n, most), st.trailer)
		c.kick()
		return prefix, false
	}
	if !c.head(st, st.header) {
		c.kick() // the reset
		return prefix, false
	}
	binary.BigEndian.PutUint32(prefix[1:], uint32(n))
	return prefix, true
}

// endReply has the end of a call follow its answer. REQUIRES: mu.
func (st *stream) endReply() {
	st.ending = true
	if len(st.trailer) > 0 {
		st.trailers = trailersOf(status.New(codes.OK, ""), st.trailer)
	}
	if st.queued == 0 {
		st.c.end(st)
	}
	st.c.kick()
}

func tooLargeToSend(n, most int) *status.Status {
	return status.Newf(codes.ResourceExhausted, "trying to send message larger than max (%d vs. %d)", n, most)
}

// Fail ends the call with an error, as a handler's would.
func (c *Call) Fail(err error) {
	st := (*stream)(c)
	st.c.mu.Lock()
	st.release()
	st.c.finish(st, statusOf(err), st.trailer)
	st.c.kick()
	st.c.mu.Unlock()
}

// statusOf is what grpc-go makes of a handler's error.
func statusOf(err error) *status.Status {
	if s, ok := status.FromError(err); ok {
		return s
	}
	return status.FromContextError(err)
}

// Delegate has the registered handler serve the call after all; message is its own from now on.
func (c *Call) Delegate(message []byte) {
	st, conn := (*stream)(c), c.c
	conn.mu.Lock()
	defer conn.mu.Unlock()
	st.release()
	if st.closed || st.ending {
		return
	}
	size := int64(prefixBytes + len(message))
	st.messages = append(st.messages, received{data: mem.BufferSlice{mem.SliceBuffer(message)}, size: size})
	st.held += size
	conn.unread += size
	st.start()
}

// A HotMessage answers one message of a call on which both sides stream, in place of the registered
// handler, while that waits for a message and has sent all that it had to send: so nothing overtakes
// anything, and all else about the call is the handler's. It is called on the connection's reader as
// a Hot is, with the call's metadata and peer in ctx. It returns false to leave the message to the
// handler.
//
// It sees only messages that came in one frame, not compressed and not the last of their call.
type HotMessage func(ctx context.Context, message []byte) (answer Message, ok bool)

// HotMessages has h see the messages of a registered method on which both sides stream. REQUIRES:
// nothing is served yet.
func (s *Server) HotMessages(path string, h HotMessage) {
	m := s.methods[path]
	if m == nil || m.stream == nil || !m.stream.ClientStreams || !m.stream.ServerStreams {
		panic("rpc: no such method for a HotMessage: " + path)
	}
	m.each = h
}

// HotPaths are the methods that have a Hot or a HotMessage, in their order.
func (s *Server) HotPaths() (paths []string) {
	for path, m := range s.methods {
		if m.hot != nil || m.each != nil {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	return paths
}

// idleFor reports whether a frame is a message for a HotMessage. REQUIRES: mu.
func (st *stream) idleFor(p []byte, ends bool) bool {
	c := st.c
	return st.idle && st.req.called.each != nil && !ends && st.prefixs == 0 && len(st.messages) == 0 && st.recvErr == nil && st.compress == "" &&
		st.queued == 0 && c.queued < hotQueueLimit && wholeMessage(p, c.s.opts.MaxRecvBytes)
}

// answerMessage has a HotMessage answer a frame of its stream, or the handler.
func (st *stream) answerMessage(p []byte) {
	c := st.c
	answer, ok := st.req.called.each(st.req.ctx, p[prefixBytes:])
	c.mu.Lock()
	defer c.mu.Unlock()
	if st.closed || st.ending {
		return // its context has ended meanwhile
	}
	if !ok {
		st.receive(p)
	} else if st.headed || c.head(st, st.header) {
		n := answer.Size()
		var prefix [prefixBytes]byte
		binary.BigEndian.PutUint32(prefix[1:], uint32(n))
		if st.fits(prefixBytes + n) {
			c.out = answer.AppendTo(st.beginData(prefix, n))
		} else {
			c.message(st, prefix, mem.BufferSlice{mem.SliceBuffer(answer.AppendTo(make([]byte, 0, n)))})
		}
	}
	c.giveStreamWindow(st)
}

// wholeMessage reports whether a frame holds just one message, uncompressed.
func wholeMessage(p []byte, most int) bool {
	n := len(p) - prefixBytes
	return n >= 0 && p[0] == 0 && int64(binary.BigEndian.Uint32(p[1:])) == int64(n) && n <= most
}

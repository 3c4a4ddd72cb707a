package rpc

import (
	"context"
	"encoding/binary"
	"time"

	"google.golang.org/grpc/mem"
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

// Hot has h serve a registered unary method. REQUIRES: nothing is served yet.
func (s *Server) Hot(path string, h Hot) { s.methods[path].hot = h }

// A Call is one that a Hot has taken. Exactly one of Reply, Fail and Delegate is called, from any
// goroutine; if the client has left meanwhile, they do nothing.
type Call stream

// A Message is an answer that knows its length and how to append itself.
type Message interface {
	Size() int
	AppendTo([]byte) []byte
}

// Context has the call's metadata and peer. It does not end.
func (c *Call) Context() context.Context { return c.req.ctx }

// Late reports whether the call's deadline has passed.
func (c *Call) Late() bool { return !c.deadline.IsZero() && time.Now().After(c.deadline) }

// Reply answers the call and ends it.
func (c *Call) Reply(m Message) {
	st, conn := (*stream)(c), c.c
	conn.mu.Lock()
	defer conn.mu.Unlock()
	if st.closed || st.ending {
		return
	}
	if !conn.head(st, nil) {
		conn.kick() // the reset
		return
	}
	var prefix [prefixBytes]byte
	n := m.Size()
	binary.BigEndian.PutUint32(prefix[1:], uint32(n))
	if st.fits(prefixBytes + n) {
		conn.out = m.AppendTo(st.beginData(prefix, n))
	} else {
		conn.message(st, prefix, mem.BufferSlice{mem.SliceBuffer(m.AppendTo(make([]byte, 0, n)))})
	}
	st.ending = true
	if st.queued == 0 {
		conn.end(st)
	}
	conn.kick()
}

// Fail ends the call with an error, as a handler's would.
func (c *Call) Fail(err error) {
	st := (*stream)(c)
	st.c.mu.Lock()
	st.c.finish(st, statusOf(err), nil)
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
	if st.closed || st.ending {
		return
	}
	size := int64(prefixBytes + len(message))
	st.messages = append(st.messages, received{data: mem.BufferSlice{mem.SliceBuffer(message)}, size: size})
	st.held += size
	conn.unread += size
	st.start()
}

// wholeMessage reports whether a frame holds just one message, uncompressed.
func wholeMessage(p []byte, most int) bool {
	n := len(p) - prefixBytes
	return n >= 0 && p[0] == 0 && int64(binary.BigEndian.Uint32(p[1:])) == int64(n) && n <= most
}

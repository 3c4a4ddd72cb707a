package rpc

import (
	"errors"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// How answers leave. Whoever has something to say appends it to the connection's out, under mu; the
// writer takes all of it and writes it at once. While it writes, more gathers, and so the busier a
// connection is the more leave in one system call.
//
// What does not fit the client's windows, or makes out too long, waits in its stream's queue. The
// writer takes from the streams that are ready a frame each in turn, so that no stream keeps others
// waiting. A handler whose stream has too much in its queue waits; the reader waits when out itself
// becomes too long, which happens only if the client reads nothing.
const (
	// outTarget is how much of the streams' queues the writer puts together for one write.
	outTarget = 64 << 10
	// outLimit is up to which length of out answers go straight into it, and stallLimit beyond which
	// nothing more is read of the client.
	outLimit, stallLimit = 128 << 10, 512 << 10
	// queueLimit is from which length of its stream's queue on a handler waits before it sends.
	queueLimit = 64 << 10
	// keepBuffer is up to which capacity a buffer is used again.
	keepBuffer = 256 << 10
)

var outBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 8<<10); return &b }}

// buffer is what to append to; the result is put into c.out. REQUIRES: mu.
func (c *conn) buffer() []byte {
	if c.outBuffer == nil {
		c.outBuffer = outBuffers.Get().(*[]byte)
		c.out = (*c.outBuffer)[:0]
	}
	return c.out
}

// kick has the writer write what there is. While the reader handles what it has read, it does so
// at the end of that. REQUIRES: mu.
func (c *conn) kick() {
	if c.idleWriter && !c.reading && (len(c.out) > 0 || c.closeAfter || c.stage == stageClosed || c.ready.first != nil && c.sendWindow > 0) {
		c.idleWriter = false
		c.wake <- struct{}{} // it has room: the writer waits, and has not been woken
	}
}

// write is the writer: it ends when the connection is closed, or all is written that was to be
// written before it is.
func (c *conn) write() {
	c.mu.Lock()
	for {
		c.fill()
		switch {
		case c.stage == stageClosed:
			c.mu.Unlock()
			return
		case len(c.out) > 0:
		case c.closeAfter:
			// The reader ends when the client closes, or soon.
			_ = c.nc.SetReadDeadline(time.Now().Add(lingerTime))
			c.written = true
			c.mu.Unlock()
			return
		default:
			c.idleWriter = true
			c.mu.Unlock()
			<-c.wake
			c.mu.Lock()
			continue
		}
		b, from := c.out, c.outBuffer
		c.out, c.outBuffer = nil, nil
		c.mu.Unlock()
		_, err := c.nc.Write(b)
		if cap(b) <= keepBuffer {
			*from = b[:0]
			outBuffers.Put(from)
		}
		if err != nil {
			c.close(err)
			return
		}
		c.mu.Lock()
		if c.stalled && len(c.out) <= stallLimit {
			c.stalled = false
			signal(c.stallWake)
		}
	}
}

var errWritten = errors.New("rpc: the client goes on after the end of its connection")

// stall waits while the client does not read what it has asked for. The error is why the
// connection has been closed.
func (c *conn) stall() error {
	for {
		c.mu.Lock()
		if c.stage == stageClosed {
			defer c.mu.Unlock()
			return c.ending
		}
		if len(c.out) <= stallLimit {
			c.mu.Unlock()
			return nil
		}
		if c.written { // nobody takes anything out of it any more
			defer c.mu.Unlock()
			return errWritten
		}
		c.stalled = true
		c.kick()
		c.mu.Unlock()
		<-c.stallWake
	}
}

// streamList is a queue of streams, linked by next and prev.
type streamList struct{ first, last *stream }

func (l *streamList) push(st *stream) {
	if st.prev = l.last; st.prev == nil {
		l.first = st
	} else {
		st.prev.next = st
	}
	l.last = st
}

// remove takes out a stream. REQUIRES: it is in the list.
func (l *streamList) remove(st *stream) {
	if st.prev == nil {
		l.first = st.next
	} else {
		st.prev.next = st.next
	}
	if st.next == nil {
		l.last = st.prev
	} else {
		st.next.prev = st.prev
	}
	st.next, st.prev = nil, nil
}

// makeReady enters a stream among those that the writer takes from. REQUIRES: mu.
func (c *conn) makeReady(st *stream) {
	if st.ready || st.closed || st.queued == 0 || st.sendWindow <= 0 {
		return
	}
	st.ready = true
	c.ready.push(st)
}

// fill puts frames of the streams that are ready into out. REQUIRES: mu.
func (c *conn) fill() {
	for len(c.out) < outTarget && c.ready.first != nil && c.sendWindow > 0 {
		st := c.ready.first
		c.ready.remove(st)
		st.ready = false
		c.sendFrame(st)
		c.makeReady(st)
	}
}

// sendFrame sends one frame of a stream's queue, and what ends the stream if that was the last.
// REQUIRES: mu, and that queue and windows are not empty.
func (c *conn) sendFrame(st *stream) {
	n := min(int64(st.queued), st.sendWindow, c.sendWindow, int64(c.peerFrame))
	if n <= 0 {
		return
	}
	b := appendFrame(c.buffer(), int(n), http2.FrameData, 0, st.id)
	for left := int(n); left > 0; {
		piece := st.queue[0].ReadOnlyData()[st.offset:]
		k := min(left, len(piece))
		b = append(b, piece[:k]...)
		left -= k
		if st.offset += k; k == len(piece) {
			st.queue[0].Free()
			st.queue[0] = nil
			st.queue = st.queue[1:]
			st.offset = 0
		}
	}
	c.out = b
	st.sendWindow -= n
	c.sendWindow -= n
	c.queued -= int(n)
	st.queued -= int(n)
	c.room.taken += n
	st.room.take(int(n))
	c.pingOwed = true
	if st.queued < queueLimit {
		signal(st.sendWake)
	}
	if st.queued == 0 {
		st.queue = nil
		if st.ending {
			c.end(st)
		}
	}
}

// fits reports whether a message of so many bytes, with its prefix, may go straight into out.
// REQUIRES: mu.
func (st *stream) fits(total int) bool {
	c := st.c
	return st.queued == 0 && int64(total) <= min(st.sendWindow, c.sendWindow, int64(c.peerFrame)) && len(c.out) < outLimit
}

// beginData begins the frame of a message that fits: n bytes are appended to the result, which is
// put into c.out. REQUIRES: mu.
func (st *stream) beginData(prefix [prefixBytes]byte, n int) []byte {
	c := st.c
	total := prefixBytes + n
	st.sendWindow -= int64(total)
	c.sendWindow -= int64(total)
	c.room.taken += int64(total)
	c.pingOwed = true
	return append(appendFrame(c.buffer(), total, http2.FrameData, 0, st.id), prefix[:]...)
}

// message sends a message with its prefix. It takes over data. REQUIRES: mu, and that the stream is
// neither closed nor ending.
func (c *conn) message(st *stream, prefix [prefixBytes]byte, data mem.BufferSlice) {
	total := prefixBytes + data.Len()
	if st.fits(total) {
		b := st.beginData(prefix, data.Len())
		for _, piece := range data {
			b = append(b, piece.ReadOnlyData()...)
		}
		c.out = b
		data.Free()
		return
	}
	st.room.queue(total)
	st.queue = append(st.queue, mem.SliceBuffer(append([]byte(nil), prefix[:]...)))
	for _, piece := range data {
		if piece.Len() > 0 {
			st.queue = append(st.queue, piece)
		} else {
			piece.Free()
		}
	}
	st.queued += total
	c.queued += total
	c.makeReady(st)
}

// head opens the answer with these fields besides the usual ones. It reports false when the client
// does not take as much, and resets the stream. REQUIRES: mu, and that the stream is not closed.
func (c *conn) head(st *stream, md metadata.MD) bool {
	st.headed = true
	fields := mdFields(md)
	if st.compress != "" {
		fields = append(fields, hpack.HeaderField{Name: "grpc-encoding", Value: st.compress})
	}
	if c.peerList != 0 && listBytes(fields)+headBytes+int64(len(st.req.subtype)) > int64(c.peerList) {
		c.reset(st, http2.ErrCodeInternal)
		return false
	}
	b, at := c.beginBlock(c.buffer(), st.id, 0)
	b = c.appendAnswerHead(b, st.req.subtype)
	for _, f := range fields {
		b = appendField(b, f.Name, f.Value)
	}
	c.out = c.endBlock(b, at)
	c.pingOwed = true
	return true
}

// headBytes is the size of the fields that open every answer, in the sense of a header list.
const headBytes = int64(len(":status")+len("200")+fieldOverhead) + int64(len("content-type")+len(baseContentType)+fieldOverhead)

// finish ends a call: with trailers behind what is in its queue. REQUIRES: mu. It does nothing if
// the stream is closed or ending.
func (c *conn) finish(st *stream, with *status.Status, trailer metadata.MD) {
	if st.closed || st.ending {
		return
	}
	if !st.headed && len(st.header) > 0 && !c.head(st, st.header) {
		return
	}
	st.ending = true
	st.trailers = trailersOf(with, trailer)
	if st.queued == 0 {
		c.end(st)
	}
}

// end sends the trailers and closes the stream. REQUIRES: mu.
func (c *conn) end(st *stream) {
	if c.peerList != 0 && listBytes(st.trailers)+headBytes > int64(c.peerList) {
		c.reset(st, http2.ErrCodeInternal)
		return
	}
	b, at := c.beginBlock(c.buffer(), st.id, http2.FlagHeadersEndStream)
	if !st.headed {
		b = c.appendAnswerHead(b, st.req.subtype)
	}
	if st.trailers == nil {
		b = c.appendSuccess(b)
	}
	for _, f := range st.trailers {
		b = appendField(b, f.Name, f.Value)
	}
	c.out = c.endBlock(b, at)
	c.pingOwed = true
	if !st.recvDone { // the client need not go on
		c.resetUnknown(st.id, http2.ErrCodeNo)
	}
	c.closeStream(st)
}

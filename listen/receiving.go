package listen

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
)

// A Receiving bounds the incomplete messages of gRPC clients. grpc keeps what has arrived, for as
// long as a client likes and for any number of streams, and calls no hook before a message is
// complete. So the bytes that a grpc.Server reads are inspected on their way: the frames of HTTP/2,
// and the length before each message in them. Nothing is changed. A message that is complete in its
// first frame, as those of most calls are, costs some nanoseconds and is not counted, so clients
// that send only such messages are never refused.
//
// Further calls on a connection that holds a quarter of the bound are refused with
// ResourceExhausted until it holds less. One that holds half of it is closed, and so is the one
// that holds most when all together hold more than the bound.
//
// A call may end before its message is complete, for example when it is refused for its size.
// Either the server or the client then resets the stream: both are followed.
type Receiving struct {
	max, maxConn int64
	refused      func(closed bool, held int64, remote string)

	// pressed is how many connections get no further calls at present.
	pressed atomic.Int64

	mu    sync.Mutex
	held  int64
	conns map[*receivingConn]int64 // that hold something, and how much
}

// frameOverhead estimates what grpc keeps of a frame besides its bytes.
const frameOverhead = 128

// NewReceiving makes a Receiving of max bytes. refused is called for each call, and each
// connection, that is refused; it must not block.
func NewReceiving(max int64, refused func(closed bool, held int64, remote string)) *Receiving {
	return &Receiving{max: max, maxConn: max / 2, refused: refused, conns: make(map[*receivingConn]int64)}
}

// Held is how many bytes of incomplete messages there are.
func (r *Receiving) Held() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.held
}

// Tap is a grpc.InTapHandle: it refuses a call on a connection that holds too much.
func (r *Receiving) Tap(ctx context.Context, _ *tap.Info) (context.Context, error) {
	if r.pressed.Load() == 0 {
		return ctx, nil
	}
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ctx, nil
	}
	addr, ok := p.Addr.(receivingAddr)
	if !ok {
		return ctx, nil
	}
	r.mu.Lock()
	held := r.conns[addr.c]
	r.mu.Unlock()
	if held < r.maxConn/2 {
		return ctx, nil
	}
	r.refused(false, held, addr.String())
	return ctx, status.Errorf(codes.ResourceExhausted,
		"etcdserver: too many bytes of incomplete requests on this connection: %d, a half of what one may hold of --max-receive-bytes (%d)", held, r.max)
}

// change counts n bytes more, or fewer, and closes whoever holds too much.
func (r *Receiving) change(c *receivingConn, n int64) {
	if n == 0 {
		return
	}
	r.mu.Lock()
	if c.given {
		r.mu.Unlock()
		return // it is being closed: it counts for nothing any more
	}
	was := r.conns[c]
	now := was + n
	r.held += n
	if now == 0 {
		delete(r.conns, c)
	} else {
		r.conns[c] = now
	}
	r.press(was, now)
	var victim *receivingConn
	var most int64
	switch {
	case now > r.maxConn:
		victim, most = c, now
	case r.held > r.max && n > 0:
		for other, held := range r.conns {
			if held > most {
				victim, most = other, held
			}
		}
	}
	if victim != nil {
		r.give(victim)
	}
	r.mu.Unlock()
	if victim != nil {
		r.refused(true, most, victim.Conn.RemoteAddr().String())
		_ = victim.Conn.Close() // its server sees that, and closes it, too
	}
}

// press counts the connections that get no further calls. REQUIRES: the lock is held.
func (r *Receiving) press(was, now int64) {
	switch limit := r.maxConn / 2; {
	case was < limit && now >= limit:
		r.pressed.Add(1)
	case was >= limit && now < limit:
		r.pressed.Add(-1)
	}
}

// give releases what a connection holds, for good. REQUIRES: the lock is held.
func (r *Receiving) give(c *receivingConn) {
	held := r.conns[c]
	delete(r.conns, c)
	r.held -= held
	r.press(held, 0)
	c.given = true
}

// watch counts the bytes that are read from a gRPC connection. A nil Receiving counts nothing.
func (r *Receiving) watch(conn net.Conn) net.Conn {
	if r == nil {
		return conn
	}
	c := &receivingConn{Conn: conn, r: r, skip: len(http2.ClientPreface), block: fieldBlock{prelude: preludeOf(conn), most: maxCallHeaderBytes}}
	if t, ok := conn.(interface{ ConnectionState() tls.ConnectionState }); ok {
		return &receivingTLS{c, t}
	}
	return c
}

// receivingTLS is a receivingConn that grpc asks for its TLS state.
type receivingTLS struct {
	*receivingConn
	tls interface{ ConnectionState() tls.ConnectionState }
}

func (c *receivingTLS) ConnectionState() tls.ConnectionState { return c.tls.ConnectionState() }

// receivingAddr is a client's address by which Tap finds its connection.
type receivingAddr struct {
	net.Addr
	c *receivingConn
}

// receivingConn is a connection whose reader is followed, frame by frame. One goroutine reads it.
type receivingConn struct {
	net.Conn
	r     *Receiving
	given bool // of r, with its lock: it counts for nothing any more

	block fieldBlock
	head  [frameHeaderBytes]byte // of the frame that begins
	heads int                    // bytes of head
	skip  int                    // bytes to come that do not matter
	blind bool                   // this is not HTTP/2: the server will refuse it

	// The DATA frame that is being read; data 0: none.
	stream  uint32
	data    int  // bytes to come
	padding int  // to skip behind them
	ends    bool // the stream ends with it
	half    half // of stream

	halves map[uint32]half // of the streams of which more must come

	// late are the streams that the server reset last: what still arrives for them does not begin a
	// message.
	late  [32]uint32
	lates int

	out     [frameHeaderBytes]byte // of the frame that is being written
	outs    int                    // bytes of out
	outSkip int                    // bytes of its payload to come

	anyReset atomic.Bool // reset is not empty
	mu       sync.Mutex
	reset    []uint32 // streams that the server has reset, for the reader
}

// half is an incomplete message.
type half struct {
	prefix  [messagePrefixBytes]byte
	prefixs int   // bytes of prefix
	need    int64 // bytes to come behind it
	got     int64 // bytes of it that came, counted with the frames that they came in
	counted int64 // of got, that Receiving knows
}

// messagePrefixBytes is a byte that says whether a message is compressed, and its length.
const messagePrefixBytes = 5

func (c *receivingConn) RemoteAddr() net.Addr { return receivingAddr{c.Conn.RemoteAddr(), c} }

func (c *receivingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if !c.blind {
		if c.anyReset.Load() {
			c.takeResets()
		}
		c.follow(p[:n])
	}
	return n, err
}

// Write looks for resets. One goroutine writes.
func (c *receivingConn) Write(p []byte) (int, error) {
	for b := p; len(b) > 0; {
		if c.outSkip > 0 {
			n := min(c.outSkip, len(b))
			c.outSkip -= n
			b = b[n:]
			continue
		}
		n := copy(c.out[c.outs:], b)
		c.outs += n
		b = b[n:]
		if c.outs < frameHeaderBytes {
			break
		}
		c.outs, c.outSkip = 0, payloadBytes(c.out[:])
		if http2.FrameType(c.out[3]) == http2.FrameRSTStream {
			c.mu.Lock()
			c.reset = append(c.reset, streamOf(c.out[:]))
			c.anyReset.Store(true)
			c.mu.Unlock()
		}
	}
	return c.Conn.Write(p)
}

// takeResets ends the streams that the server has reset.
func (c *receivingConn) takeResets() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range c.reset {
		c.forget(id)
		if c.data > 0 && c.stream == id { // amid one of its frames, which must not bring it back
			c.skip, c.data, c.half = c.data+c.padding, 0, half{}
		}
		c.late[c.lates%len(c.late)] = id
		c.lates++
	}
	c.reset = c.reset[:0]
	c.anyReset.Store(false)
}

// streamOf is the stream of a frame.
func streamOf(head []byte) uint32 { return binary.BigEndian.Uint32(head[5:]) & (1<<31 - 1) }

func (c *receivingConn) Close() error {
	c.r.mu.Lock()
	c.r.give(c)
	c.r.mu.Unlock()
	return c.Conn.Close()
}

// follow takes the next bytes.
func (c *receivingConn) follow(b []byte) {
	for len(b) > 0 && !c.blind {
		switch {
		case c.skip == 0 && c.data == 0 && c.heads == 0 && c.passes(b):
			b = b[frameHeaderBytes+payloadBytes(b):] // nearly all frames
		case c.skip > 0:
			n := min(c.skip, len(b))
			c.skip -= n
			b = b[n:]
		case c.data > 0:
			n := min(c.data, len(b))
			c.message(b[:n])
			c.data -= n
			b = b[n:]
			if c.data == 0 {
				c.endData()
			}
		case c.heads == frameHeaderBytes: // of a padded frame, whose first byte says how much
			c.padding = int(b[0])
			b = b[1:]
			c.beginData(payloadBytes(c.head[:]) - 1 - c.padding)
		default:
			n := copy(c.head[c.heads:], b)
			c.heads += n
			b = b[n:]
			if c.heads == frameHeaderBytes {
				c.frame()
			}
		}
	}
}

// passes reports whether b begins with a complete frame that changes nothing: one outside any
// message, or one with the only message of a call, which it ends.
func (c *receivingConn) passes(b []byte) bool {
	if len(b) < frameHeaderBytes {
		return false
	}
	size := payloadBytes(b)
	if size > maxFrameBytes || len(b) < frameHeaderBytes+size {
		return false
	}
	switch http2.FrameType(b[3]) {
	case http2.FrameData:
		return len(c.halves) == 0 && http2.Flags(b[4]).Has(http2.FlagDataEndStream)
	case http2.FrameHeaders:
		return len(c.halves) == 0 && http2.Flags(b[4]).Has(http2.FlagHeadersEndHeaders)
	case http2.FrameContinuation:
		return false
	case http2.FrameRSTStream:
		return len(c.halves) == 0
	}
	return true
}

// frame begins a frame whose head has arrived.
func (c *receivingConn) frame() {
	size, flags := payloadBytes(c.head[:]), http2.Flags(c.head[4])
	id := streamOf(c.head[:])
	if size > maxFrameBytes {
		c.blind = true
		return
	}
	kind := http2.FrameType(c.head[3])
	c.block.frame(kind, flags, size)
	switch {
	case kind == http2.FrameData:
		c.stream, c.padding, c.ends = id, 0, flags.Has(http2.FlagDataEndStream)
		if flags.Has(http2.FlagDataPadded) {
			c.blind = size == 0
			return // the next byte is read first
		}
		c.beginData(size)
		return
	case kind == http2.FrameRSTStream, kind == http2.FrameHeaders && flags.Has(http2.FlagHeadersEndStream):
		c.forget(id)
	}
	c.heads, c.skip = 0, size
}

// beginData begins the payload of a DATA frame, without its padding.
func (c *receivingConn) beginData(size int) {
	if size < 0 {
		c.blind = true
		return
	}
	c.heads, c.data, c.half = 0, size, half{}
	if len(c.halves) > 0 {
		c.half = c.halves[c.stream]
	}
	if c.lates > 0 && slices.Contains(c.late[:], c.stream) {
		c.heads, c.data, c.skip = 0, 0, size+c.padding
		return
	}
	c.half.got += frameOverhead
	if size == 0 {
		c.endData()
	}
}

// message takes bytes of messages on the frame's stream.
func (c *receivingConn) message(b []byte) {
	h := &c.half
	for len(b) > 0 {
		if h.need > 0 {
			n := min(h.need, int64(len(b)))
			h.need -= n
			h.got += n
			b = b[n:]
		} else {
			n := copy(h.prefix[h.prefixs:], b)
			h.prefixs += n
			h.got += int64(n)
			b = b[n:]
			if h.prefixs < messagePrefixBytes {
				return
			}
			h.need = int64(binary.BigEndian.Uint32(h.prefix[1:]))
		}
		if h.need == 0 { // complete
			h.prefixs, h.got = 0, 0
		}
	}
}

// endData stores what the frame leaves of an incomplete message.
func (c *receivingConn) endData() {
	c.skip = c.padding
	h := c.half
	if c.ends || (h.need == 0 && h.prefixs == 0) {
		if h.counted > 0 {
			delete(c.halves, c.stream)
			c.r.change(c, -h.counted)
		}
		return
	}
	if c.halves == nil {
		c.halves = make(map[uint32]half)
	}
	more := h.got - h.counted
	h.counted = h.got
	c.halves[c.stream] = h
	c.r.change(c, more)
}

// forget ends a stream.
func (c *receivingConn) forget(id uint32) {
	if len(c.halves) == 0 {
		return
	}
	if h, ok := c.halves[id]; ok {
		delete(c.halves, id)
		c.r.change(c, -h.counted)
	}
}

package listen

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	"golang.org/x/net/http2"
)

// Preludes bounds what the connections of one kind of port have sent before there is a request: TLS
// handshakes that are not complete, and headers that are not. Each connection has a limit of its
// own by whoever reads it, 64 KiB to a MiB, and may wait there for as long as 5 minutes; with
// thousands of connections that is all memory. When all together hold more than the bound, the
// connection that holds most is closed, the oldest of several.
//
// What is counted is about what the readers keep, not what came: a short line of HTTP/1 becomes an
// entry of a map, and one byte of HTTP/2's compressed headers a field. smallPrelude bytes of each
// connection are free. Reading headers of HTTP/1 takes processors, too, 1 s for 12 MB of short
// lines: a thousand goroutines that do it would be a queue of seconds for all others. So those that
// are counted do it one after the other, in turns of one read.
//
// A client that behaves sends its headers at once and holds nothing when they are complete, and
// only those with long headers are counted meanwhile.
//
// Who reads tells a connection's prelude what it holds:
//
//	TLS handshake          preludeConn, by the bytes of the socket
//	first headers over TLS readPreface
//	HTTP/1                 preludeConn, between the states that FollowHeaders hears of
//	HTTP/2, net/http       carriedConn, frame by frame
//	HTTP/2, gRPC           receivingConn, frame by frame
type Preludes struct {
	max     int64
	refused func(held int64, remote string)
	turn    chan struct{} // one place: who reads long headers of HTTP/1

	mu    sync.Mutex
	held  int64
	begun uint64
	conns map[*prelude]struct{} // that count for something
}

const (
	// smallPrelude is what a connection holds unless it does something unusual, and what one that
	// is idle takes besides.
	smallPrelude = 16 << 10
	// What a byte of the socket counts: TLS keeps what came, in buffers that grow; net/http
	// makes a map of headers, of which the shortest take this much.
	handshakeWeight = 2
	http1Weight     = 16
	// fieldBytes is a field of headers that one byte of HTTP/2 may stand for.
	fieldBytes = 40
	// What headers take at most that are decoded as they come: the limits of grpc and net/http.
	maxCallHeaderBytes = 256 << 10
	maxHTTPHeaderBytes = http.DefaultMaxHeaderBytes
)

// NewPreludes makes a Preludes of max bytes. refused is called for each connection that is closed;
// it must not block.
func NewPreludes(max int64, refused func(held int64, remote string)) *Preludes {
	return &Preludes{max: max, refused: refused, turn: make(chan struct{}, 1), conns: make(map[*prelude]struct{})}
}

// Held is how many bytes count.
func (p *Preludes) Held() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held
}

// Listener counts the preludes of l's connections. What it wraps must not be hidden but by a type
// with a method NetConn.
func (p *Preludes) Listener(l net.Listener) net.Listener { return &preludeListener{l, p} }

type preludeListener struct {
	net.Listener
	of *Preludes
}

func (l *preludeListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &preludeConn{Conn: conn}
	c.prelude = prelude{of: l.of, conn: conn}
	c.prelude.weight.Store(handshakeWeight)
	return c, nil
}

// FollowHeaders has s tell where the headers of a request begin and end, for connections of a
// Preludes' listener. REQUIRES: s does not serve yet.
func FollowHeaders(s *http.Server) {
	next := s.ConnState
	s.ConnState = func(conn net.Conn, state http.ConnState) {
		if _, ok := conn.(*carriedConn); !ok { // HTTP/2 is followed by its frames
			p := preludeOf(conn)
			switch state {
			case http.StateNew, http.StateIdle:
				p.count(http1Weight)
			default: // net/http calls it StateActive when the headers are complete
				p.count(0)
			}
		}
		if next != nil {
			next(conn, state)
		}
	}
}

// preludeOf is the prelude of the connection below conn; nil: it has none.
func preludeOf(conn net.Conn) *prelude {
	for {
		switch c := conn.(type) {
		case *preludeConn:
			return &c.prelude
		case interface{ NetConn() net.Conn }:
			conn = c.NetConn()
		default:
			return nil
		}
	}
}

// prelude is what one connection holds. One goroutine at a time calls hold and count; nil holds
// nothing.
type prelude struct {
	of   *Preludes
	conn net.Conn // is closed if it holds most

	weight atomic.Int64 // what a byte of the socket counts; 0: nothing
	read   atomic.Int64 // bytes of the socket since weight was set
	turn   atomic.Bool  // of.turn is this one's: between a read and whatever its reader does next with the connection

	counted atomic.Int64 // written with of.mu; more than smallPrelude, or 0: not in of.conns
	begun   uint64       // with of.mu: in which order those of of.conns began
	given   bool         // with of.mu: the connection is closed, and counts for nothing any more
}

// count begins to count the bytes of the socket anew, with that weight, instead of what was held.
func (p *prelude) count(weight int64) {
	if p == nil {
		return
	}
	p.rest()
	p.weight.Store(weight)
	p.read.Store(0)
	p.hold(0)
}

// hold records how many bytes a connection holds now, and closes the one that holds most if that is
// too much in all.
func (p *prelude) hold(n int64) {
	if p == nil {
		return
	}
	if n <= smallPrelude {
		n = 0
	}
	if n == p.counted.Load() {
		return
	}
	p.of.mu.Lock()
	if p.given {
		p.of.mu.Unlock()
		return
	}
	p.of.set(p, n)
	var victim *prelude
	if p.of.held > p.of.max && n > 0 {
		victim = p
		for other := range p.of.conns {
			if has, most := other.counted.Load(), victim.counted.Load(); has > most || (has == most && other.begun < victim.begun) {
				victim = other
			}
		}
	}
	var most int64
	if victim != nil {
		most = victim.counted.Load()
		p.of.give(victim)
	}
	p.of.mu.Unlock()
	if victim != nil {
		p.of.refused(most, victim.conn.RemoteAddr().String())
		_ = victim.conn.Close() // who reads it sees that, and closes it, too
	}
}

// set changes what p counts for. With the lock.
func (p *Preludes) set(c *prelude, n int64) {
	was := c.counted.Swap(n)
	p.held += n - was
	switch {
	case n == 0:
		delete(p.conns, c)
	case was == 0:
		p.begun++
		c.begun = p.begun
		p.conns[c] = struct{}{}
	}
}

// give gives back what a connection holds, for good. With the lock.
func (p *Preludes) give(c *prelude) {
	p.set(c, 0)
	c.given = true
}

// preludeConn is a connection whose prelude counts.
type preludeConn struct {
	net.Conn
	prelude prelude
}

func (c *preludeConn) Read(b []byte) (int, error) {
	c.prelude.rest()
	n, err := c.Conn.Read(b)
	if weight := c.prelude.weight.Load(); weight > 0 && n > 0 {
		c.prelude.hold(c.prelude.read.Add(int64(n)) * weight)
		if weight == http1Weight && c.prelude.counted.Load() > 0 {
			c.prelude.of.turn <- struct{}{}
			c.prelude.turn.Store(true)
		}
	}
	return n, err
}

// rest ends the turn of a connection, if it has it. Until then its reader does nothing but look at
// what it has read.
func (p *prelude) rest() {
	if p.turn.Load() && p.turn.Swap(false) {
		<-p.of.turn
	}
}

func (c *preludeConn) Write(b []byte) (int, error) {
	c.prelude.rest()
	return c.Conn.Write(b)
}

func (c *preludeConn) Close() error {
	c.prelude.rest()
	c.prelude.of.mu.Lock()
	c.prelude.of.give(&c.prelude)
	c.prelude.of.mu.Unlock()
	return c.Conn.Close()
}

// Inner is boundConn's.
func (c *preludeConn) Inner() net.Conn {
	if inner, ok := c.Conn.(interface{ Inner() net.Conn }); ok {
		return inner.Inner()
	}
	return c.Conn
}

// fieldBlock is the header block of HTTP/2 that a connection is in the middle of, if any. Its
// server decodes it as it comes.
type fieldBlock struct {
	prelude *prelude
	most    int64 // what it may take, decoded
	bytes   int64 // that have come of it, or are announced
}

// frame takes the head of the next frame.
func (b *fieldBlock) frame(kind http2.FrameType, flags http2.Flags, size int) {
	switch {
	case kind != http2.FrameHeaders && kind != http2.FrameContinuation:
		return
	case flags.Has(http2.FlagHeadersEndHeaders):
		b.bytes = 0
	default:
		b.bytes += int64(size)
	}
	b.prelude.hold(min(b.bytes*fieldBytes, b.most))
}

// carry gives conn to net/http's HTTP/2.
func carry(conn net.Conn, state tls.ConnectionState, p *prelude) *carriedConn {
	return &carriedConn{Conn: conn, state: state, block: fieldBlock{prelude: p, most: maxHTTPHeaderBytes}, skip: len(http2.ClientPreface)}
}

// carriedConn is a TLS connection for net/http's HTTP/2, which must not see that it is TLS, and
// whose frames are followed.
type carriedConn struct {
	net.Conn
	state tls.ConnectionState
	block fieldBlock

	skip  int                    // bytes to come that say nothing
	head  [frameHeaderBytes]byte // of the frame that begins
	heads int                    // bytes of head
}

func (c *carriedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	for b := p[:n]; len(b) > 0; {
		if c.skip > 0 {
			n := min(c.skip, len(b))
			c.skip -= n
			b = b[n:]
			continue
		}
		n := copy(c.head[c.heads:], b)
		c.heads += n
		b = b[n:]
		if c.heads == frameHeaderBytes {
			c.heads, c.skip = 0, payloadBytes(c.head[:])
			c.block.frame(http2.FrameType(c.head[3]), http2.Flags(c.head[4]), c.skip)
		}
	}
	return n, err
}

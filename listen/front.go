package listen

import (
	"bytes"
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"sync"
	"time"
)

// sniffTimeout is how long a connection may take to show its protocol.
const sniffTimeout = 30 * time.Second

// defaultMaxPending bounds the connections that have not yet shown that they have a client. Beyond
// it the oldest is closed: a flood of silent connections displaces itself rather than new clients.
const defaultMaxPending = 4096

// Front accepts the connections of one listener and passes each to the server for its protocol.
type Front struct {
	inner net.Listener
	opts  FrontOptions
	grpc  connQueue
	http  connQueue
	ctx   context.Context // done when closed
	stop  context.CancelFunc

	mu      sync.Mutex
	pending *list.List // of net.Conn: handshake or first bytes are awaited
	closed  bool
}

// FrontOptions say what is served. At least one of GRPC and HTTP is set.
type FrontOptions struct {
	Security *Security // nil: without TLS
	// Plain serves clients without TLS too, even with a Security: the same address was given as
	// http and as https.
	Plain bool
	GRPC  bool
	HTTP  bool
	// MaxStreams is how many streams the servers allow a client to have open; 0: no bound for gRPC,
	// net/http's for HTTP.
	MaxStreams uint32
	// MaxPending bounds the connections that have sent nothing yet, or wait for Ready; 0: 4096.
	MaxPending int
	// Receiving bounds the incomplete messages of gRPC clients; nil: no bound.
	Receiving *Receiving
	// Ready: connections of HTTP/2 wait until it is closed; nil: they do not. A gRPC client uses a
	// server from its first frame on, while one whose connection is not answered sends its calls to
	// another member. HTTP/1 is served at once: it carries health checks.
	Ready <-chan struct{}
}

// NewFront sorts the connections of inner; Serve does it.
func NewFront(inner net.Listener, opts FrontOptions) *Front {
	if opts.MaxPending == 0 {
		opts.MaxPending = defaultMaxPending
	}
	f := &Front{inner: inner, opts: opts, pending: list.New()}
	f.ctx, f.stop = context.WithCancel(context.Background())
	f.grpc = connQueue{f: f, conns: make(chan net.Conn)}
	f.http = connQueue{f: f, conns: make(chan net.Conn)}
	return f
}

// GRPC accepts the connections for a grpc.Server made with Credentials.
func (f *Front) GRPC() net.Listener { return &f.grpc }

// Serve accepts until the listener is closed. What is not gRPC goes to s, which Serve prepares for
// HTTP/2 and runs; nil if HTTP is not served.
func (f *Front) Serve(s *http.Server) error {
	if f.opts.HTTP {
		f.prepare(s)
		served := make(chan error, 1)
		go func() { served <- s.Serve(&f.http) }()
		defer func() { _ = f.Close(); <-served }() // the error is that of a closed listener
	}
	for {
		conn, err := f.inner.Accept()
		if err != nil {
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() {
				time.Sleep(10 * time.Millisecond) // out of file descriptors, say
				continue
			}
			if f.ctx.Err() != nil {
				return nil
			}
			return err
		}
		pending, ok := f.begin(conn)
		if !ok {
			conn.Close()
			return nil
		}
		go func() {
			if !f.sort(conn, pending) {
				conn.Close()
			}
			f.forget(pending)
		}()
	}
}

// begin enters conn among the pending; false: the front is closed.
func (f *Front) begin(conn net.Conn) (*list.Element, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, false
	}
	if f.pending.Len() >= f.opts.MaxPending {
		oldest := f.pending.Front()
		f.pending.Remove(oldest)
		oldest.Value.(net.Conn).Close()
	}
	return f.pending.PushBack(conn), true
}

// forget removes a connection from the pending ones; a second call does nothing.
func (f *Front) forget(e *list.Element) {
	f.mu.Lock()
	f.pending.Remove(e)
	f.mu.Unlock()
}

// prepare makes s serve the connections that sort passes to it.
func (f *Front) prepare(s *http.Server) {
	// Above this net/http takes its own default of 250.
	s.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: int(min(f.opts.MaxStreams, math.MaxInt32))}
	if f.opts.Security == nil {
		return
	}
	// A connection of HTTP/2 whose frames are followed is no *tls.Conn any more: to net/http it
	// is without TLS, and the handlers hear of the TLS by way of the context.
	s.Protocols = new(http.Protocols)
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetHTTP2(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	s.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if c, ok := c.(*carriedConn); ok {
			return context.WithValue(ctx, tlsState{}, &c.state)
		}
		return ctx
	}
	inner := s.Handler
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if state, ok := r.Context().Value(tlsState{}).(*tls.ConnectionState); ok {
			r.TLS = state
		}
		inner.ServeHTTP(w, r)
	})
}

// tlsState is the context's key of a carried connection's *tls.ConnectionState.
type tlsState struct{}

// sort passes conn to its server; false: no server takes it.
func (f *Front) sort(conn net.Conn, pending *list.Element) bool {
	if f.opts.Security != nil && f.opts.Plain {
		first := make([]byte, 1)
		if err := conn.SetReadDeadline(time.Now().Add(sniffTimeout)); err != nil {
			return false
		}
		if _, err := io.ReadFull(conn, first); err != nil {
			return false
		}
		sniffed := &sniffedConn{Conn: conn, head: first}
		if first[0] != tlsHandshake {
			return f.sortPlain(sniffed, pending)
		}
		conn = sniffed
	}
	if f.opts.Security == nil {
		return f.sortPlain(conn, pending)
	}
	prelude := preludeOf(conn)
	c, err := f.opts.Security.handshake(f.ctx, conn)
	prelude.count(0)
	if err == nil && (!f.opts.HTTP || c.ConnectionState().NegotiatedProtocol == "h2") {
		f.awaitReady()
	}
	f.forget(pending) // it has a client, which may wait with its first call
	switch {
	case err != nil:
		return false
	case !f.opts.HTTP:
		return f.grpc.put(f.opts.Receiving.watch(c))
	case c.ConnectionState().NegotiatedProtocol != "h2":
		return f.http.put(c)
	case !f.opts.GRPC:
		return f.http.put(carry(c, c.ConnectionState(), prelude))
	}
	stopped := context.AfterFunc(f.ctx, func() { conn.Close() })
	prefaced, isGRPC, err := readPreface(c, f.opts.MaxStreams, prelude)
	switch {
	case err != nil || !stopped():
		return false
	case isGRPC:
		prelude.hold(0)
		return f.grpc.put(f.opts.Receiving.watch(prefaced))
	}
	return f.http.put(carry(prefaced, c.ConnectionState(), prelude))
}

// awaitReady returns when the member is ready, or the front is closed.
func (f *Front) awaitReady() {
	if f.opts.Ready == nil {
		return
	}
	select {
	case <-f.opts.Ready:
	case <-f.ctx.Done():
	}
}

// tlsHandshake begins every TLS connection, and no HTTP request.
const tlsHandshake = 22

// sortPlain reads the first bytes: only HTTP/2 begins with its preface.
func (f *Front) sortPlain(conn net.Conn, pending *list.Element) bool {
	if !f.opts.HTTP {
		preludeOf(conn).count(0)
		f.awaitReady()
		f.forget(pending)
		return f.grpc.put(f.opts.Receiving.watch(conn))
	}
	head := make([]byte, len(prefaceStart))
	n := 0
	if err := conn.SetReadDeadline(time.Now().Add(sniffTimeout)); err != nil {
		return false
	}
	for n < len(head) && bytes.HasPrefix(prefaceStart, head[:n]) {
		m, err := conn.Read(head[n:])
		n += m
		if err != nil {
			return false
		}
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return false
	}
	isHTTP2 := bytes.Equal(head[:n], prefaceStart)
	if isHTTP2 {
		f.awaitReady()
	}
	f.forget(pending)
	preludeOf(conn).count(0)
	sniffed := &sniffedConn{Conn: conn, head: head[:n]}
	if !isHTTP2 {
		return f.http.put(sniffed)
	}
	return f.opts.GRPC && f.grpc.put(f.opts.Receiving.watch(sniffed))
}

// prefaceStart is what a client that speaks HTTP/2 with prior knowledge, and so
// every gRPC client without TLS, sends first.
var prefaceStart = []byte("PRI * HTTP/2.0")

// Close stops accepting and closes the connections that no server has yet.
func (f *Front) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	f.stop()
	for e := f.pending.Front(); e != nil; e = e.Next() {
		e.Value.(net.Conn).Close()
	}
	return f.inner.Close()
}

// Addr is where it listens.
func (f *Front) Addr() net.Addr { return f.inner.Addr() }

// connQueue holds the connections of one protocol for its server.
type connQueue struct {
	f     *Front
	conns chan net.Conn
}

func (q *connQueue) put(conn net.Conn) bool {
	select {
	case q.conns <- conn:
		return true
	case <-q.f.ctx.Done():
		return false
	}
}

func (q *connQueue) Accept() (net.Conn, error) {
	select {
	case conn := <-q.conns:
		return conn, nil
	case <-q.f.ctx.Done():
		return nil, net.ErrClosed
	}
}

func (q *connQueue) Close() error   { return q.f.Close() }
func (q *connQueue) Addr() net.Addr { return q.f.inner.Addr() }

// sniffedConn returns again the bytes that were read to learn the protocol.
type sniffedConn struct {
	net.Conn
	head []byte
}

// NetConn is what preludeOf asks.
func (c *sniffedConn) NetConn() net.Conn { return c.Conn }

func (c *sniffedConn) Read(p []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(p, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

var _ interface{ ConnectionState() tls.ConnectionState } = (*prefacedConn)(nil)

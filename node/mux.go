package node

import (
	"bytes"
	"errors"
	"net"
	"sync"
	"time"
)

// http2Preface is what a client that speaks HTTP/2 with prior knowledge, and so
// every gRPC client without TLS, sends first.
var http2Preface = []byte("PRI * HTTP/2.0")

// sniffTimeout is how long a connection may take to say what it speaks.
const sniffTimeout = 30 * time.Second

// splitListener serves two protocols on one port: connections that begin with
// the HTTP/2 preface go to GRPC, the rest to HTTP. Each connection is read in a
// goroutine of its own until that is known, so a silent client delays nobody.
//
// cmux does the same for etcd; it is not kept any more, and sends every later
// read through its matcher's buffer, which ours does for the first bytes only.
type splitListener struct {
	inner net.Listener
	grpc  connQueue
	http  connQueue

	mu      sync.Mutex
	pending map[net.Conn]struct{} // being sniffed; closed by Close
	closed  bool
	done    chan struct{}
}

func newSplitListener(inner net.Listener) *splitListener {
	l := &splitListener{
		inner:   inner,
		pending: make(map[net.Conn]struct{}),
		done:    make(chan struct{}),
	}
	l.grpc = connQueue{l: l, conns: make(chan net.Conn)}
	l.http = connQueue{l: l, conns: make(chan net.Conn)}
	return l
}

// GRPC accepts the connections that speak HTTP/2 first.
func (l *splitListener) GRPC() net.Listener { return &l.grpc }

// HTTP accepts all others.
func (l *splitListener) HTTP() net.Listener { return &l.http }

// Serve accepts until the listener is closed.
func (l *splitListener) Serve() error {
	for {
		conn, err := l.inner.Accept()
		if err != nil {
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() {
				time.Sleep(10 * time.Millisecond) // out of file descriptors, say
				continue
			}
			select {
			case <-l.done:
				return nil
			default:
				return err
			}
		}
		l.mu.Lock()
		if l.closed {
			l.mu.Unlock()
			conn.Close()
			return nil
		}
		l.pending[conn] = struct{}{}
		l.mu.Unlock()
		go l.sniff(conn)
	}
}

func (l *splitListener) sniff(conn net.Conn) {
	head := make([]byte, len(http2Preface))
	n := 0
	conn.SetReadDeadline(time.Now().Add(sniffTimeout))
	for n < len(head) && bytes.HasPrefix(http2Preface, head[:n]) {
		m, err := conn.Read(head[n:])
		n += m
		if err != nil {
			l.forget(conn)
			conn.Close()
			return
		}
	}
	conn.SetReadDeadline(time.Time{})
	l.forget(conn)
	queue := &l.http
	if n == len(head) && bytes.Equal(head, http2Preface) {
		queue = &l.grpc
	}
	select {
	case queue.conns <- &sniffedConn{Conn: conn, head: head[:n]}:
	case <-l.done:
		conn.Close()
	}
}

func (l *splitListener) forget(conn net.Conn) {
	l.mu.Lock()
	delete(l.pending, conn)
	l.mu.Unlock()
}

// Close stops accepting; connections that were handed on stay open.
func (l *splitListener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	close(l.done)
	for conn := range l.pending {
		conn.Close()
	}
	return l.inner.Close()
}

// connQueue is one protocol's side of a splitListener.
type connQueue struct {
	l     *splitListener
	conns chan net.Conn
}

func (q *connQueue) Accept() (net.Conn, error) {
	select {
	case conn := <-q.conns:
		return conn, nil
	case <-q.l.done:
		return nil, net.ErrClosed
	}
}

func (q *connQueue) Close() error   { return q.l.Close() }
func (q *connQueue) Addr() net.Addr { return q.l.inner.Addr() }

// sniffedConn gives back the bytes that were read to learn the protocol.
type sniffedConn struct {
	net.Conn
	head []byte
}

func (c *sniffedConn) Read(p []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(p, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

package listen

import (
	"container/list"
	"fmt"
	"net"
	"sync"
)

// ReservedDescriptors is the least number of descriptors reserved for the member's own files, as in
// etcd.
const ReservedDescriptors = 150

// ErrFewDescriptors: the limit leaves no descriptors for connections.
var ErrFewDescriptors = fmt.Errorf("the process may open too few files; raise the limit (ulimit -n, LimitNOFILE) above %d", ReservedDescriptors)

// Shares divide the file descriptors that the process may open: a quarter, from 150 to 6144, is
// kept for its own files and outgoing connections, and the rest is divided between the kinds of
// ports, so that a flood on one of them takes no descriptor from another or from a file.
type Shares struct {
	Clients, Peers, Metrics int // connections in all
	StoreFiles              int // tables that the store may keep open
}

// plenty is as good as no bound.
const plenty = 1 << 20

// Share divides a limit of file descriptors; 0 means unknown, no bound.
func Share(descriptors uint64) (Shares, error) {
	if descriptors == 0 {
		return Shares{Clients: plenty, Peers: plenty, Metrics: plenty, StoreFiles: 4096}, nil
	}
	if descriptors <= ReservedDescriptors {
		return Shares{}, ErrFewDescriptors
	}
	reserve := min(max(descriptors/4, ReservedDescriptors), 6144)
	left := min(descriptors-reserve, plenty)
	return Shares{
		Clients:    int(max(1, left*3/4)),
		Peers:      int(max(1, left*3/16)),
		Metrics:    int(max(1, left/16)),
		StoreFiles: int(reserve * 2 / 3),
	}, nil
}

// A Bound limits the connections that the listeners of one kind of port have open together.
type Bound struct {
	max     int
	refused func(silent bool) // called for a connection closed for lack of room; silent: one that never sent anything

	mu     sync.Mutex
	open   int
	silent *list.List // of *boundConn, the oldest first: nothing has been read of them
}

// NewBound admits max connections. refused is called for each that is closed to
// keep the bound; it must not block.
func NewBound(max int, refused func(silent bool)) *Bound {
	return &Bound{max: max, refused: refused, silent: list.New()}
}

// Open is how many connections are open, and Max how many may be.
func (b *Bound) Open() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open
}

// Max is how many connections may be open.
func (b *Bound) Max() int { return b.max }

// Listener counts the connections of l. If there is no room for one more, the oldest that has not
// sent a byte is closed; if all have, the new one is closed at once, and its client turns to
// another member. (etcd leaves such a client waiting to be accepted, until its timeout.)
func (b *Bound) Listener(l net.Listener) net.Listener { return &boundListener{l, b} }

type boundListener struct {
	net.Listener
	b *Bound
}

func (l *boundListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := l.b.enter(conn); c != nil {
			return c, nil
		}
	}
}

// enter admits conn, or closes it and returns nil.
func (b *Bound) enter(conn net.Conn) *boundConn {
	b.mu.Lock()
	var evicted *boundConn
	if b.open >= b.max {
		oldest := b.silent.Front()
		if oldest == nil {
			b.mu.Unlock()
			conn.Close()
			b.refused(false)
			return nil
		}
		evicted = oldest.Value.(*boundConn)
		b.leave(evicted)
	}
	b.open++
	c := &boundConn{Conn: conn, b: b}
	c.silent = b.silent.PushBack(c)
	b.mu.Unlock()
	if evicted != nil {
		evicted.Conn.Close() // its server sees its reads fail
		b.refused(true)
	}
	return c
}

// leave releases c's place, once. REQUIRES: b.mu is held.
func (b *Bound) leave(c *boundConn) {
	if c.gone {
		return
	}
	c.gone = true
	b.open--
	b.spoke(c)
}

// spoke removes c from the silent ones. REQUIRES: b.mu is held.
func (b *Bound) spoke(c *boundConn) {
	if c.silent != nil {
		b.silent.Remove(c.silent)
		c.silent = nil
	}
}

// boundConn has a place of a Bound until it is closed.
type boundConn struct {
	net.Conn
	b *Bound

	heard  bool          // by Read alone: it is off the silent ones
	gone   bool          // guarded by b.mu
	silent *list.Element // guarded by b.mu; nil: it has been read from, or is gone
}

// Read records the first byte. Unlike that of other net.Conns, it may be called by several
// goroutines only after the first call has returned.
func (c *boundConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && !c.heard {
		c.heard = true
		c.b.mu.Lock()
		c.b.spoke(c)
		c.b.mu.Unlock()
	}
	return n, err
}

func (c *boundConn) Close() error {
	c.b.mu.Lock()
	c.b.leave(c)
	c.b.mu.Unlock()
	return c.Conn.Close()
}

// Inner is the connection itself, for writing many buffers at once (writev). Only c may close it.
func (c *boundConn) Inner() net.Conn { return c.Conn }

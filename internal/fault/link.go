package fault

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// Dial opens a connection, as net.Dialer's DialContext does.
type Dial = func(ctx context.Context, network, address string) (net.Conn, error)

const (
	// retransmit is the least time after which Linux sends a lost segment again.
	retransmit = 200 * time.Millisecond
	// longestRetransmit is where this layer stops doubling it.
	longestRetransmit = 10 * time.Second
	// onTheWay is how many chunks may be under way in one direction before the sender has to wait,
	// and chunkBytes how large they are: together what kernels buffer.
	onTheWay   = 256
	chunkBytes = 16 << 10
)

// Dialer is next over the Layer's links.
func (l *Layer) Dialer(next Dial) Dial {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if err := l.connect(ctx, address); err != nil {
			// What net.Dialer says when no answer comes.
			if errors.Is(err, context.DeadlineExceeded) {
				err = os.ErrDeadlineExceeded
			}
			return nil, &net.OpError{Op: "dial", Net: network, Addr: textAddr{network, address}, Err: err}
		}
		real, err := next(ctx, network, address)
		if err != nil {
			return nil, err
		}
		near, far := net.Pipe()
		go l.carry(far, real, func(s State) Way { return s.Links[address].Out })
		go l.carry(real, far, func(s State) Way { return s.Links[address].In })
		return &conn{Conn: near, local: real.LocalAddr(), remote: real.RemoteAddr()}, nil
	}
}

// connect waits for the round trip of a new connection.
func (l *Layer) connect(ctx context.Context, address string) error {
	began := time.Now()
	for {
		s, changed := l.get()
		link := s.Links[address]
		var timer <-chan time.Time
		if !link.Out.Cut && !link.In.Cut {
			wait := link.Out.Delay + link.In.Delay - time.Since(began)
			if wait <= 0 {
				return nil
			}
			timer = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-timer:
			return nil
		}
	}
}

// A chunk is under way until due.
type chunk struct {
	data []byte
	due  time.Time
}

// carry brings what one end says to the other until either is gone, and then closes both.
func (l *Layer) carry(from, to net.Conn, way func(State) Way) {
	under := make(chan chunk, onTheWay)
	gone := make(chan struct{}) // closed when the receiver is gone
	go func() {
		defer close(gone)
		defer from.Close()
		defer to.Close()
		for c := range under {
			l.await(c.due, way)
			if _, err := to.Write(c.data); err != nil {
				return
			}
		}
		// That it has ended is on the way like all else.
		l.await(time.Time{}, way)
	}()
	defer close(under)
	buf := make([]byte, chunkBytes)
	var last time.Time
	for {
		n, err := from.Read(buf)
		if n > 0 {
			s, _ := l.get()
			w := way(s)
			due := time.Now().Add(w.Delay)
			for again := retransmit + w.Delay; w.Loss > 0 && rand.Float64() < w.Loss && again < longestRetransmit; again *= 2 {
				due = due.Add(again)
			}
			if due.Before(last) {
				due = last // in order
			}
			last = due
			select {
			case under <- chunk{append([]byte(nil), buf[:n]...), due}:
			case <-gone:
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// await returns when it is due and the way is not cut. With the fault gone, what it delayed arrives
// at once.
func (l *Layer) await(due time.Time, way func(State) Way) {
	for {
		s, changed := l.get()
		w := way(s)
		var timer <-chan time.Time
		if !w.Cut {
			wait := time.Until(due)
			if wait <= 0 || w == (Way{}) {
				return
			}
			timer = time.After(wait)
		}
		select {
		case <-changed:
		case <-timer:
		}
	}
}

// conn is the member's end of a link. It says whose it is, and ends as a connection of TCP does.
type conn struct {
	net.Conn      // of net.Pipe
	local, remote net.Addr
	closed        atomic.Bool // by the member
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	return n, c.told("read", err)
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.told("write", err)
}

// told is a pipe's error as TCP has it: others judge by it what became of the other end.
func (c *conn) told(op string, err error) error {
	var pipe *net.OpError
	switch {
	case errors.Is(err, io.ErrClosedPipe) && c.closed.Load():
		err = net.ErrClosed
	case errors.Is(err, io.ErrClosedPipe):
		err = os.NewSyscallError(op, syscall.EPIPE)
	case errors.As(err, &pipe):
		err = pipe.Err
	default:
		return err // nil, or the end
	}
	return &net.OpError{Op: op, Net: c.remote.Network(), Source: c.local, Addr: c.remote, Err: err}
}

// textAddr is an address that nobody was reached at.
type textAddr struct{ network, address string }

func (a textAddr) Network() string { return a.network }
func (a textAddr) String() string  { return a.address }

package listen

import (
	"context"
	"net"
	"sync"
)

// Memory is a listener without a socket: this process dials itself. The JSON gateway calls the
// member's gRPC server through it, so that its calls pass the same interceptors, limits and
// counters as any client's, and no certificate of the member takes the place of the client's.
type Memory struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// NewMemory makes a Memory; Close it.
func NewMemory() *Memory {
	return &Memory{conns: make(chan net.Conn), done: make(chan struct{})}
}

// Dial connects to it; the address is ignored.
func (m *Memory) Dial(ctx context.Context, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case m.conns <- there:
		return here, nil
	case <-m.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (m *Memory) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case <-m.done:
		return nil, net.ErrClosed
	}
}

// Close ends accepting; connections stay open.
func (m *Memory) Close() error {
	m.once.Do(func() { close(m.done) })
	return nil
}

func (m *Memory) Addr() net.Addr { return memoryAddr{} }

type memoryAddr struct{}

func (memoryAddr) Network() string { return "memory" }
func (memoryAddr) String() string  { return "memory" }

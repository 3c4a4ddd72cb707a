package server

import (
	"context"
	"sync"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// lifetime is how long the services run, and what ends with them. Any goroutine.
type lifetime struct {
	stopped context.Context // done when end was called
	cancel  context.CancelFunc

	mu      sync.Mutex // held to start a goroutine and to end: none starts while end waits
	running sync.WaitGroup
}

func newLifetime() *lifetime {
	l := &lifetime{}
	l.stopped, l.cancel = context.WithCancel(context.Background())
	return l
}

// background runs f in a goroutine that end waits for, with a context that ends then; not at
// all once end was called.
func (l *lifetime) background(f func(stopped context.Context)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped.Err() == nil {
		l.running.Go(func() { f(l.stopped) })
	}
}

// end ends what runs in the background, and waits for it.
func (l *lifetime) end() {
	l.mu.Lock()
	l.cancel()
	l.mu.Unlock()
	l.running.Wait()
}

// endableContext is the context of a long-lived call: the server can end it, and then its Err is
// the reason, so that a handler that returns ctx.Err() returns it to the client.
type endableContext struct {
	context.Context
	cancel context.CancelCauseFunc
}

// endable makes a context that ends when the server stops. Its cancel must be called.
func (l *lifetime) endable(ctx context.Context) *endableContext {
	inner, cancel := context.WithCancelCause(ctx)
	forget := context.AfterFunc(l.stopped, func() { cancel(rpctypes.ErrGRPCStopped) })
	return &endableContext{Context: inner, cancel: func(cause error) { forget(); cancel(cause) }}
}

func (c *endableContext) Err() error {
	if c.Context.Err() == nil {
		return nil
	}
	if cause := context.Cause(c.Context); cause == rpctypes.ErrGRPCNoLeader || cause == rpctypes.ErrGRPCStopped {
		return cause
	}
	return c.Context.Err()
}

// Package interrupt ends a command on the first SIGINT or SIGTERM, whatever it waits for.
//
// A command that holds nothing does not need it: without a handler a signal ends the process. One
// that has something to release (a lock, a partly made directory) uses a context that ends with the
// signal. A second signal ends the process at once; and a command that still runs after Grace,
// because a server or a disk does not answer, ends as if it had never caught the first.
//
// Files: interrupt.go; raise_unix.go and raise_windows.go, how a process ends by a signal;
// forget_linux.go and forget_other.go, how a signal gets its default effect.
package interrupt

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// Grace is how long a command may take to release what it holds.
const Grace = 5 * time.Second

// Context ends with parent, or at the first SIGINT or SIGTERM. After the signal the process has
// Grace to end, unless stop is called before.
func Context(parent context.Context) (ctx context.Context, stop context.CancelFunc) {
	return within(parent, Grace)
}

// ended is the cause of a context that a signal has ended.
type ended struct{ by os.Signal }

func (e ended) Error() string { return e.by.String() }

// By is the signal that has ended a context of Context, or nil.
func By(ctx context.Context) os.Signal {
	if e, ok := errors.AsType[ended](context.Cause(ctx)); ok {
		return e.by
	}
	return nil
}

// End ends a server that has stopped because of a signal as etcd does: by the same signal, so that
// its parent sees 128+signal. Process 1 of a container, which signals do not end, is to exit with the
// code that End returns. REQUIRES: what Raise does.
func End(s os.Signal) (code int) {
	if os.Getpid() == 1 {
		return 0
	}
	Raise(s)
	return 1
}

// within is Context with another grace.
func within(parent context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	stopped := make(chan struct{})
	go func() {
		defer signal.Stop(signals)
		select {
		case <-stopped:
			return
		case s := <-signals:
			cancel(ended{s})
			timer := time.NewTimer(grace)
			defer timer.Stop()
			select {
			case <-stopped:
			case <-timer.C:
				Raise(s)
			case s = <-signals:
				Raise(s)
			}
		}
	}()
	return ctx, sync.OnceFunc(func() {
		cancel(nil)
		close(stopped)
	})
}

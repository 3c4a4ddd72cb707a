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

// within is Context with another grace.
func within(parent context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	stopped := make(chan struct{})
	go func() {
		defer signal.Stop(signals)
		select {
		case <-stopped:
			return
		case s := <-signals:
			cancel()
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
		cancel()
		close(stopped)
	})
}

package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// answerWithin is how long a directory may take for one call: to write a part and sync it, say. A
// bucket has the same bound (s3.go).
const answerWithin = time.Minute

// errSilent is in the errors of a depot that does not answer.
var errSilent = errors.New("it does not answer")

// bounded is a depot whose calls end. What a system call waits for on a network file system that hangs
// no program can end, so the call is left behind, in a goroutine of its own, and its result is lost:
// what it wrote later is there as a whole or not at all, as after a crash. While one is left behind no
// other is begun, so a few goroutines and what they hold, a part each, are all that a depot that hangs
// costs.
type bounded struct {
	d      Depot
	within time.Duration

	mu   sync.Mutex
	left int           // calls that are left behind
	idle chan struct{} // closed when none is
}

// Bounded is a depot whose calls fail if they take longer, or when their context ends.
func Bounded(d Depot, within time.Duration) Depot {
	b := &bounded{d: d, within: within, idle: make(chan struct{})}
	close(b.idle)
	return b
}

func (b *bounded) String() string { return b.d.String() }

// leave counts a call that is left behind.
func (b *bounded) leave() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left == 0 {
		b.idle = make(chan struct{})
	}
	b.left++
}

// ended is called when such a call has ended after all.
func (b *bounded) ended() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left--; b.left == 0 {
		close(b.idle)
	}
}

// enter waits until no call is left behind.
func (b *bounded) enter(ctx context.Context, late <-chan time.Time) error {
	b.mu.Lock()
	idle := b.idle
	b.mu.Unlock()
	select {
	case <-idle:
		return ctx.Err()
	case <-late:
		return fmt.Errorf("%s: %w: an earlier call has not ended within %v", b.d, errSilent, b.within)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// call runs something that may hang. begun is false if it was not, because of an earlier one.
func call[T any](ctx context.Context, b *bounded, run func() (T, error)) (result T, begun bool, err error) {
	timer := time.NewTimer(b.within)
	defer timer.Stop()
	if err := b.enter(ctx, timer.C); err != nil {
		return result, false, err
	}
	type outcome struct {
		result T
		err    error
	}
	done := make(chan outcome) // without room: either somebody waits, or the call was left behind
	left := make(chan struct{})
	go func() {
		r, err := run()
		select {
		case done <- outcome{r, err}:
		case <-left:
			if c, ok := any(r).(io.Closer); ok && err == nil {
				_ = c.Close() // nobody reads it
			}
			b.ended()
		}
	}()
	select {
	case o := <-done:
		return o.result, true, o.err
	case <-timer.C:
		err = fmt.Errorf("%s: %w within %v", b.d, errSilent, b.within)
	case <-ctx.Done():
		err = ctx.Err()
	}
	b.leave()
	close(left)
	return result, true, err
}

func (b *bounded) List(ctx context.Context, folder string) ([]Item, error) {
	items, _, err := call(ctx, b, func() ([]Item, error) { return b.d.List(ctx, folder) })
	return items, err
}

func (b *bounded) Read(ctx context.Context, name string) (io.ReadCloser, error) {
	r, _, err := call(ctx, b, func() (io.ReadCloser, error) { return b.d.Read(ctx, name) })
	if err != nil {
		return nil, err
	}
	return &boundedReader{ctx: ctx, b: b, r: r}, nil
}

// nothing is the result of a call that has none.
type nothing struct{}

func (b *bounded) Write(ctx context.Context, name string, content []byte) error {
	_, _, err := call(ctx, b, func() (nothing, error) { return nothing{}, b.d.Write(ctx, name, content) })
	return err
}

func (b *bounded) Remove(ctx context.Context, name string) error {
	_, _, err := call(ctx, b, func() (nothing, error) { return nothing{}, b.d.Remove(ctx, name) })
	return err
}

func (b *bounded) RemoveFolder(ctx context.Context, folder string) error {
	_, _, err := call(ctx, b, func() (nothing, error) { return nothing{}, b.d.RemoveFolder(ctx, folder) })
	return err
}

// readBytes is how much is read in one call.
const readBytes = 256 << 10

// boundedReader reads in calls of its own, into memory of its own: one that is left behind writes
// into nobody else's.
type boundedReader struct {
	ctx  context.Context
	b    *bounded
	r    io.ReadCloser
	left bool // a call of this reader: it is closed when that ends
}

func (r *boundedReader) Read(p []byte) (int, error) {
	if r.left {
		return 0, errSilent
	}
	size := min(len(p), readBytes)
	chunk, begun, err := call(r.ctx, r.b, func() (read, error) {
		own := make([]byte, size)
		n, err := r.r.Read(own)
		return read{bytes: own[:n], err: err, r: r.r}, nil
	})
	if err != nil {
		r.left = begun
		return 0, err
	}
	return copy(p, chunk.bytes), chunk.err
}

// read is what a Read has given. Closed, it closes the file: nobody is there any more.
type read struct {
	bytes []byte
	err   error
	r     io.Closer
}

func (r read) Close() error { return r.r.Close() }

// Close may hang, too: where it does the file is left behind, and its call fails like any other.
func (r *boundedReader) Close() error {
	if r.left {
		return nil
	}
	_, begun, err := call(context.WithoutCancel(r.ctx), r.b, func() (nothing, error) { return nothing{}, r.r.Close() })
	if !begun {
		go func() { _ = r.r.Close() }() // it was only read; the call that hangs is another one
	}
	return err
}

package server

import (
	"context"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"github.com/belaydb/belay/leader"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/store"
)

// compactable is a store that can be compacted as a whole.
type compactable interface {
	Size() (total, inUse int64)
	CompactAll(ctx context.Context) error
}

// wholeStore is a member's: values in kept segments of the log are part of it.
type wholeStore struct {
	*store.Store
	kv *mvcc.Store
}

// moveValuesWithin is how long a defragmentation waits for values to be moved: they wait for
// compactions, and one that fails is tried again and again.
const moveValuesWithin = time.Minute

func (w wholeStore) CompactAll(ctx context.Context) error {
	within, cancel := context.WithTimeout(ctx, moveValuesWithin)
	defer cancel()
	if err := w.kv.MoveValues(within); err != nil && within.Err() == nil {
		return err
	}
	return w.Store.CompactAll(ctx)
}

// defragmenter compacts the whole store in the background, one time after the other.
type defragmenter struct {
	store   compactable
	path    string // for log lines
	life    *lifetime
	metrics *Metrics
	logger  *zap.Logger

	mu      sync.Mutex
	current *defragmentation // that runs; nil: none
	next    *defragmentation // that runs afterwards; nil: none
}

// defragmentation is one of them.
type defragmentation struct {
	done chan struct{} // closed when err is set
	err  error
}

// running reports whether there is one at the moment. Any goroutine.
func (d *defragmenter) running() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.current != nil
}

// start begins a compaction, or has one follow that which runs: it may have passed over what was
// removed since it began. It does not wait. Any goroutine.
func (d *defragmenter) start() *defragmentation {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := &defragmentation{done: make(chan struct{})}
	switch {
	case d.next != nil:
		return d.next
	case d.current != nil:
		d.next = c
	default:
		d.current = c
		d.life.background(d.loop) // not once the member stops; then nobody waits
	}
	return c
}

// loop runs what was started, until there is no more.
func (d *defragmenter) loop(stopped context.Context) {
	for c := d.current; c != nil; {
		err := d.run(stopped)
		d.mu.Lock()
		c.err = err
		done := c.done
		c, d.current, d.next = d.next, d.next, nil
		d.mu.Unlock()
		close(done)
	}
}

// answerBefore is the part of a call's time after which it is answered although the work goes on.
const answerBefore, ofCall = 9, 10

// wait waits for a compaction as long as its caller does: a caller who has a deadline is answered
// before it, since the compaction goes on, and would be told as failed. goesOn: it does.
func (d *defragmenter) wait(ctx context.Context, c *defragmentation) (goesOn bool, err error) {
	waiting := d.life.endable(ctx)
	defer waiting.cancel(nil)
	var late <-chan time.Time
	if deadline, ok := ctx.Deadline(); ok {
		timer := time.NewTimer(time.Until(deadline) / ofCall * answerBefore)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-c.done:
		return false, c.err
	case <-late:
		return true, nil
	case <-waiting.Done():
		return true, waiting.Err()
	}
}

// run is one compaction. Its error is that of the disk, or that the member stops.
func (d *defragmenter) run(stopped context.Context) error {
	d.metrics.defragInflight.Set(1)
	defer d.metrics.defragInflight.Set(0)
	start := time.Now()
	before, inUseBefore := d.store.Size()
	d.logger.Info("defragmenting", append([]zap.Field{zap.String("path", d.path)}, leader.SizeFields(before, inUseBefore)...)...)
	err := d.store.CompactAll(stopped)
	took := time.Since(start)
	d.metrics.defragSeconds.Observe(took.Seconds())
	after, inUse := d.store.Size()
	switch {
	case err == nil:
	case stopped.Err() != nil:
		return rpctypes.ErrGRPCStopped
	default:
		d.logger.Warn("failed to defragment", zap.Error(err))
		return err
	}
	d.logger.Info("finished defragmenting directory", append(leader.SizeFields(after, inUse), zap.String("path", d.path),
		zap.Int64("current-db-size-bytes-diff", after-before), zap.Int64("current-db-size-in-use-bytes-diff", inUse-inUseBefore),
		zap.Duration("took", took))...)
	return nil
}

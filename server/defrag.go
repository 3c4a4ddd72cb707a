package server

import (
	"context"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/belaydb/belay/leader"
)

// compactable is a store that can be compacted as a whole; *store.Store is one.
type compactable interface {
	Size() (total, inUse int64)
	CompactAll(ctx context.Context) error
}

// defragmenter compacts the whole store in the background, once at a time.
type defragmenter struct {
	store   compactable
	path    string // for log lines
	running atomic.Bool
	life    *lifetime
	metrics *Metrics
	logger  *zap.Logger
}

// start begins a compaction, unless one runs. It does not wait. Any goroutine.
func (d *defragmenter) start() {
	if !d.running.CompareAndSwap(false, true) {
		return // one runs already
	}
	d.life.background(func(stopped context.Context) {
		defer d.running.Store(false)
		d.metrics.defragInflight.Set(1)
		defer d.metrics.defragInflight.Set(0)
		start := time.Now()
		before, inUseBefore := d.store.Size()
		d.logger.Info("defragmenting", append([]zap.Field{zap.String("path", d.path)}, leader.SizeFields(before, inUseBefore)...)...)
		err := d.store.CompactAll(stopped)
		took := time.Since(start)
		d.metrics.defragSeconds.Observe(took.Seconds())
		after, inUse := d.store.Size()
		if err != nil && stopped.Err() == nil {
			d.logger.Warn("failed to defragment", zap.Error(err))
			return
		}
		d.logger.Info("finished defragmenting directory", append(leader.SizeFields(after, inUse), zap.String("path", d.path),
			zap.Int64("current-db-size-bytes-diff", after-before), zap.Int64("current-db-size-in-use-bytes-diff", inUse-inUseBefore),
			zap.Duration("took", took))...)
	})
}

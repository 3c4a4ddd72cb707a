package server

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/belaydb/belay/admission"
	"github.com/belaydb/belay/replica"
)

// What a member samples of itself while it runs, each in a loop of its own.

// backlogSample keeps the admission gate told of the apply backlog.
type backlogSample struct {
	status func() replica.Status
	bytes  func(applied, committed uint64) int64 // Config.BacklogBytes; nil: the backlog goes by age alone
	gate   *admission.Gate
	lag    prometheus.Gauge
}

func (b *backlogSample) run(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			st := b.status()
			var backlog int64
			if b.bytes != nil && st.Committed > st.Applied {
				backlog = b.bytes(st.Applied, st.Committed)
			}
			lag := b.gate.Observe(now, st.Committed, st.Applied, backlog)
			b.lag.Set(lag.Seconds())
		}
	}
}

// DescriptorLimit is how many file descriptors the process may have; 0 if the system does not
// report it.
func DescriptorLimit() uint64 {
	_, limit := descriptors()
	return limit
}

// descriptorSample keeps os_fd_used and os_fd_limit, every ten minutes as etcd:
// counting costs a directory listing.
type descriptorSample struct {
	used, limit prometheus.Gauge
	logger      *zap.Logger
}

func (d *descriptorSample) run(ctx context.Context) {
	tick := time.NewTicker(10 * time.Minute)
	defer tick.Stop()
	for {
		used, limit := descriptors()
		d.used.Set(float64(used))
		d.limit.Set(float64(limit))
		if limit > 0 && used >= limit/5*4 {
			d.logger.Warn("80% of file descriptors are used", zap.Uint64("used", used), zap.Uint64("limit", limit))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

package client

import (
	"context"
	"time"

	"go.etcd.io/etcd/tests/v3/robustness/model"
)

// awaitAtMost is how long requests may take that a machine without CPU does in some seconds.
const awaitAtMost = time.Minute

// Await returns when count requests of the set's clients have succeeded, or cannot be waited for.
func (cs *ClientSet) Await(ctx context.Context, count int) {
	ctx, cancel := context.WithTimeout(ctx, awaitAtMost)
	defer cancel()
	for cs.succeeded() < count {
		select {
		case <-ctx.Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (cs *ClientSet) succeeded() (count int) {
	cs.mux.Lock()
	defer cs.mux.Unlock()
	for _, c := range cs.clients {
		c.kvMux.Lock()
		for _, op := range c.kvOperations.Operations() {
			if op.Output.(model.MaybeEtcdResponse).Error == "" {
				count++
			}
		}
		c.kvMux.Unlock()
	}
	return count
}

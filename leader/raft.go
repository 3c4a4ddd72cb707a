package leader

import (
	"context"
	"time"

	"github.com/belaydb/belay/replica"
)

// Raft is what the loops see of the raft group; replica.Replica is one.
type Raft interface {
	// Status is consistent: leader, term and role are of one moment.
	Status() replica.Status
	// LeaderChanged is closed at the next change of leader, to or from none included.
	LeaderChanged() <-chan struct{}
	// ReadBarrier returns when this member has applied every write that was
	// acknowledged before the call.
	ReadBarrier(ctx context.Context) error
	ElectionTimeout() time.Duration // this member's, as it is now
}

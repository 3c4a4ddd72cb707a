package leader

import (
	"context"
	"time"

	"go.etcd.io/raft/v3"
)

// Raft is what the loops see of the raft group; replica.Replica is one.
type Raft interface {
	// Role is what this member is in raft's group, and its term, of one moment. A member that was
	// paused may believe that it leads while another does; only ReadBarrier and a committed proposal
	// prove it.
	Role() (state raft.StateType, term uint64)
	// LeaderChanged is closed at the next change of leader, to or from none included.
	LeaderChanged() <-chan struct{}
	// ReadBarrier returns when this member has applied every write that was
	// acknowledged before the call.
	ReadBarrier(ctx context.Context) error
	ElectionTimeout() time.Duration // this member's, as it is now
}

// leads reports whether this member believes that it leads.
func leads(r Raft) bool {
	state, _ := r.Role()
	return state == raft.StateLeader
}

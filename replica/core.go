package replica

import (
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
)

// core is raft and what it last said of itself: what the parts of the loop have in common.
// Only the loop's goroutine may touch it, and only the loop changes it.
type core struct {
	*env
	node *raft.RawNode

	// As of the last Ready. A message that was stepped since may have changed it: where that
	// matters, raftLeads and node.BasicStatus are raft's own word.

	leader     uint64 // 0: none is known
	lastLeader uint64 // the last one known, leader included
	term       uint64
	state      raft.StateType
}

// raftLeads is raft's own word on whether this member leads.
func (c *core) raftLeads() bool { return c.node.BasicStatus().RaftState == raft.StateLeader }

// voters are those of the configuration in force, in no order. They must not be changed.
func (c *core) voters() []uint64 { return *c.pub.voters.Load() }

// votes reports whether this member is a voter.
func (c *core) votes() bool { return slices.Contains(c.voters(), c.cfg.ID) }

// lastIndex is where the log ends. The log in memory cannot fail.
func (c *core) lastIndex() uint64 {
	last, _ := c.cfg.Log.LastIndex()
	return last
}

// progress is what raft knows of another member's log; zero: it does not know the member.
func (c *core) progress(id uint64) (p tracker.Progress) {
	c.node.WithProgress(func(i uint64, _ raft.ProgressType, pr tracker.Progress) {
		if i == id {
			p = pr
		}
	})
	return p
}

// removed reports whether this member leads although it votes no more. With one voter left, raft
// answers without asking anybody, even if that voter is another member, which may have elected
// itself by now.
func (c *core) removed() bool {
	return c.raftLeads() && !c.votes()
}

package replica

import (
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// changing is a cluster of one, whose raft is driven by hand.
type changing struct {
	t       *testing.T
	storage *raft.MemoryStorage
	node    *raft.RawNode
	door    *raftDoor
	barrier uint64 // as pending has it
}

// newChanging is a follower whose log ends with a member change that is not applied.
func newChanging(t *testing.T) *changing {
	t.Helper()
	c := &changing{t: t, storage: raft.NewMemoryStorage()}
	if err := c.storage.ApplySnapshot(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: new(uint64(5)), Term: new(uint64(2)), ConfState: &raftpb.ConfState{Voters: []uint64{1}},
	}}); err != nil {
		t.Fatal(err)
	}
	if err := c.storage.Append([]*raftpb.Entry{{Index: new(uint64(6)), Term: new(uint64(2)), Type: raftpb.EntryConfChange.Enum()}}); err != nil {
		t.Fatal(err)
	}
	if err := c.storage.SetHardState(&raftpb.HardState{Term: new(uint64(2)), Commit: new(uint64(5))}); err != nil {
		t.Fatal(err)
	}
	node, err := raft.NewRawNode(&raft.Config{
		ID: 1, ElectionTick: 10, HeartbeatTick: 1, Storage: c.storage, Applied: 5, MaxSizePerMsg: 1 << 20,
		MaxCommittedSizePerReady: 1 << 20, MaxInflightMsgs: 16, Logger: panickingLogger{},
	})
	if err != nil {
		t.Fatal(err)
	}
	c.node = node
	c.door = &raftDoor{core: &core{env: &env{cfg: Config{ID: 1}}, node: node, state: raft.StateFollower, term: 2}}
	return c
}

// ready stores what raft has for the log, and takes as applied what it gives to apply.
func (c *changing) ready() {
	c.t.Helper()
	rd := c.node.Ready()
	if rd.HardState != nil && !raft.IsEmptyHardState(rd.HardState) {
		if err := c.storage.SetHardState(rd.HardState); err != nil {
			c.t.Fatal(err)
		}
	}
	if err := c.storage.Append(rd.Entries); err != nil {
		c.t.Fatal(err)
	}
	c.node.Advance(rd)
}

// settle does it until raft has nothing more.
func (c *changing) settle() {
	for c.node.HasReady() {
		c.ready()
	}
}

// lead makes raft the leader; the loop has not heard of it yet.
func (c *changing) lead() {
	c.t.Helper()
	if err := c.node.Campaign(); err != nil {
		c.t.Fatal(err)
	}
	for i := 0; c.node.BasicStatus().RaftState != raft.StateLeader; i++ {
		if i == 10 {
			c.t.Fatal("it does not lead")
		}
		c.ready()
	}
}

// hear tells the loop that this member leads, as the Ready does that says so.
func (c *changing) hear() {
	c.door.state, c.door.term = raft.StateLeader, c.node.BasicStatus().GetTerm()
	c.barrier = unknownBarrier
}

// known sets the barrier where the log ends, as handleReady does.
func (c *changing) known() {
	c.t.Helper()
	last, err := c.storage.LastIndex()
	if err != nil {
		c.t.Fatal(err)
	}
	c.barrier = last
}

// takes gives raft a change and says whether it stays one: raft writes an empty entry in its place
// when it does not want it.
func (c *changing) takes() bool {
	c.t.Helper()
	if err := c.node.Step(&raftpb.Message{Type: raftpb.MsgProp.Enum(), From: new(uint64(1)), To: new(uint64(1)), Entries: []*raftpb.Entry{
		{Type: raftpb.EntryConfChange.Enum()},
	}}); err != nil {
		c.t.Fatal(err)
	}
	rd := c.node.Ready()
	if len(rd.Entries) == 0 {
		c.t.Fatal("nothing was proposed")
	}
	if err := c.storage.Append(rd.Entries); err != nil {
		c.t.Fatal(err)
	}
	c.node.Advance(rd)
	return rd.Entries[len(rd.Entries)-1].GetType() == raftpb.EntryConfChange
}

// A member change is held back exactly while raft would write an empty entry in its place, of which
// nobody would be told; with who leads elsewhere it is not held back, but forwarded.
func TestChangesFit(t *testing.T) {
	fits := func(c *changing, want bool, when string) {
		t.Helper()
		if got := c.door.changeFits(c.barrier); got != want {
			t.Errorf("%s: it fits: %v", when, got)
		}
	}
	c := newChanging(t)
	fits(c, true, "a follower")

	c.lead()
	fits(c, false, "the election was won by a message of this round")
	c.door.state, c.door.term = raft.StateCandidate, c.node.BasicStatus().GetTerm()
	fits(c, false, "it was, and the loop knows of the candidate")
	if c.takes() {
		t.Error("raft takes a change beside that of an earlier leader")
	}

	c = newChanging(t)
	c.lead()
	c.hear()
	fits(c, false, "how far the log reaches is not known")
	c.known()
	fits(c, false, "an earlier leader's change is not applied")

	c = newChanging(t)
	c.lead()
	c.hear()
	c.settle()
	c.known()
	fits(c, true, "all is applied")
	c.door.term--
	fits(c, false, "a later election was won by a message of this round")
	c.door.term++
	if !c.takes() {
		t.Error("raft does not take a change that fits")
	}
	c.barrier = unknownBarrier
	fits(c, false, "the log has not got it yet")
	c.known()
	fits(c, false, "it is not applied")
	if c.takes() {
		t.Error("raft takes a change beside another")
	}
	c.settle()
	c.known()
	fits(c, true, "both are applied")
	if !c.takes() {
		t.Error("raft does not take the next one")
	}
}

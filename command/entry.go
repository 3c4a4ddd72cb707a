package command

import (
	"encoding/json"
	"fmt"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Entry is one committed raft entry, decoded, as the applier hands it to the state machine.
//
// At most one of Request and Change is set. With neither, the entry is a leader's empty one.
type Entry struct {
	Index, Term uint64

	// Request is what to do. It is read-only from here on: its byte slices end up in results,
	// events and caches.
	Request *pb.InternalRaftRequest

	// Data is the request as the log has it, and Place where; neither is set for most. The machine may
	// let the store refer to large values there.
	Data  []byte
	Place EntryPlace
	// Placed is set by the machine: how many bytes of values it left there.
	Placed int

	// Unawaited says that nobody on this member waits for the result, so that the machine may skip
	// work that changes only the answer (a range inside a transaction, the previous value of a
	// put).
	Unawaited bool

	// GivenUp, if not nil, becomes true when the waiter gives up, possibly while the entry is being
	// applied. From then on the machine may skip the same work.
	GivenUp *atomic.Bool

	// Change is a change of the member list; ConfState is raft's configuration after it and is
	// stored in the same batch.
	Change    *Change
	ConfState *raftpb.ConfState

	// Refused, with Change, is the error of the check of the change: raft was given a no-op and
	// only the applied index advances. It becomes the result's error.
	Refused error
}

// Awaited reports whether somebody on this member still waits for the result.
func (e *Entry) Awaited() bool { return !e.Unawaited && (e.GivenUp == nil || !e.GivenUp.Load()) }

// Result is the outcome of applying one entry.
type Result struct {
	// Response is the message of the API that answers the request, its header filled with the
	// revision alone.
	Response proto.Message
	Err      error

	// Members is the member list after a conf change, sorted by ID.
	Members []*Member

	// Done, where it is not nil, is closed when the physical part of a compaction has finished.
	Done <-chan struct{}

	// Waited is how long a large request has waited for room before it was proposed. It is not of the
	// outcome: the member that proposes fills it, whether the proposal has failed or not.
	Waited time.Duration
}

// Change is a decoded raftpb.ConfChange of etcd's kind: one member added, removed, updated or
// promoted.
type Change struct {
	// ID is the id of the request, by which its proposer finds the result.
	ID       uint64
	Type     raftpb.ConfChangeType
	MemberID uint64

	// Member is what the change says about the member; for a removal and, in etcd, for a promotion
	// only the ID is set.
	Member Member

	// IsPromote distinguishes a promotion from an addition: both are of type ConfChangeAddNode.
	IsPromote bool

	// MaxLearners, with a learner that is added, is how many learners there may then be: the limit
	// of the member that proposed it, so that all members judge it alike, whatever their own flags
	// say. 0: any number (etcd's form, and that of Belay's first versions, does not carry it);
	// below 0: none.
	MaxLearners int
}

// changeContext is etcd's membership.ConfigChangeContext: the member's fields and isPromote, plus a
// limit that etcd ignores.
type changeContext struct {
	Member
	IsPromote   bool `json:"isPromote"`
	MaxLearners int  `json:"maxLearners,omitempty"`
}

// Encode returns the raft form of the change.
func (c *Change) Encode() *raftpb.ConfChange {
	var context []byte
	var err error
	switch c.Type {
	case raftpb.ConfChangeAddNode, raftpb.ConfChangeAddLearnerNode:
		context, err = json.Marshal(changeContext{Member: c.Member, IsPromote: c.IsPromote, MaxLearners: c.MaxLearners})
	case raftpb.ConfChangeUpdateNode:
		context, err = json.Marshal(&c.Member)
	}
	if err != nil { // numbers, booleans and strings only: they always have a JSON form
		panic(fmt.Sprintf("command: encode the context of a conf change: %v", err))
	}
	return &raftpb.ConfChange{Id: new(c.ID), Type: new(c.Type), NodeId: new(c.MemberID), Context: context}
}

// DecodeChange reads what Encode or a real etcd member wrote. It refuses an unknown type, a context
// that is not JSON, and one that is about another member than the change.
func DecodeChange(cc *raftpb.ConfChange) (*Change, error) {
	c := &Change{ID: cc.GetId(), Type: cc.GetType(), MemberID: cc.GetNodeId()}
	switch c.Type {
	case raftpb.ConfChangeAddNode, raftpb.ConfChangeAddLearnerNode, raftpb.ConfChangeUpdateNode:
		var ctx changeContext
		if err := json.Unmarshal(cc.GetContext(), &ctx); err != nil {
			return nil, fmt.Errorf("command: context of the conf change %s of member %x: %w", c.Type, c.MemberID, err)
		}
		c.Member, c.IsPromote, c.MaxLearners = ctx.Member, ctx.IsPromote, ctx.MaxLearners
		if c.Member.ID != c.MemberID {
			return nil, fmt.Errorf("command: conf change %s of member %x carries member %x", c.Type, c.MemberID, c.Member.ID)
		}
	case raftpb.ConfChangeRemoveNode:
		c.Member.ID = c.MemberID
	default:
		return nil, fmt.Errorf("command: conf change of unknown type %d of member %x", int32(c.Type), c.MemberID)
	}
	return c, nil
}

// Itself is the user in the header of an AlarmRequest by which a member raises an alarm by itself;
// requests of clients have none. It marks the alarms that a member may disarm by itself. etcd's
// members ignore it.
const Itself = "\x00member"

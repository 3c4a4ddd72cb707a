package replica

import (
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
)

// removedBy is the member that an entry removes; 0: none.
func removedBy(e *raftpb.Entry) uint64 {
	if e.GetType() != raftpb.EntryConfChange {
		return raft.None
	}
	var cc raftpb.ConfChange
	if proto.Unmarshal(e.GetData(), &cc) != nil || cc.GetType() != raftpb.ConfChangeRemoveNode {
		return raft.None
	}
	return cc.GetNodeId()
}

// ownRemoval is what the loop knows of this member's own removal.
type ownRemoval struct {
	*core
	index    uint64 // of the entry in the log that removes this member; 0: none is in what is not applied
	proposed bool   // raft was given one, as leader, that the log has not got yet
}

// find looks for this member's own removal among the entries of the log from index on.
func (rm *ownRemoval) find(from uint64) {
	rm.index = 0
	first, _ := rm.cfg.Log.FirstIndex() // the log in memory cannot fail
	last := rm.lastIndex()
	for next := max(from, first); next <= last && rm.index == 0; {
		entries, err := rm.cfg.Log.Entries(next, last+1, maxApplyingBytes)
		if err != nil || len(entries) == 0 {
			return
		}
		rm.note(entries)
		next += uint64(len(entries))
	}
}

// note looks for this member's own removal among entries that the log takes.
func (rm *ownRemoval) note(entries []*raftpb.Entry) {
	if len(entries) > 0 && entries[0].GetIndex() <= rm.index {
		rm.index = 0 // it is replaced
	}
	for _, e := range entries {
		if rm.index != 0 {
			return
		}
		if removedBy(e) == rm.cfg.ID {
			rm.index = e.GetIndex()
		}
	}
}

// hide keeps from raft that this member's own removal is committed, unless it is one that will be
// refused. A leader that has applied it sends nothing more, so this member learns it only when
// another one says so.
func (rm *ownRemoval) hide(m *raftpb.Message) *raftpb.Message {
	index := rm.index
	if index == 0 {
		for _, e := range m.GetEntries() {
			if e.GetIndex() > m.GetCommit() {
				break
			}
			if removedBy(e) == rm.cfg.ID {
				index = e.GetIndex()
				break
			}
		}
	}
	if index == 0 || m.GetCommit() < index || rm.node.BasicStatus().GetCommit() >= index {
		return m
	}
	if rm.pub.applied.Load() == index-1 && rm.cfg.State.CheckChange(&command.Change{
		Type: raftpb.ConfChangeRemoveNode, MemberID: rm.cfg.ID, Member: command.Member{ID: rm.cfg.ID},
	}) != nil {
		return m
	}
	return &raftpb.Message{
		Type: m.Type, To: m.To, From: m.From, Term: m.Term, LogTerm: m.LogTerm, Index: m.Index, Entries: m.Entries,
		Commit: new(index - 1), Context: m.Context,
	}
}

// leaving reports whether this member leads although its own removal is in its log, or was applied:
// nothing may be proposed behind it.
func (rm *ownRemoval) leaving() bool {
	return (rm.index != 0 || rm.proposed || !rm.votes()) && rm.raftLeads()
}

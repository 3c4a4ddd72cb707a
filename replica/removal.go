package replica

import (
	"slices"

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

// findRemoval looks for this member's own removal among the entries of the log
// from index on.
func (l *loop) findRemoval(from uint64) {
	l.removal = 0
	first, _ := l.cfg.Log.FirstIndex() // the log in memory cannot fail
	last, _ := l.cfg.Log.LastIndex()
	for next := max(from, first); next <= last && l.removal == 0; {
		entries, err := l.cfg.Log.Entries(next, last+1, maxApplyingBytes)
		if err != nil || len(entries) == 0 {
			return
		}
		l.noteRemoval(entries)
		next += uint64(len(entries))
	}
}

// noteRemoval looks for this member's own removal among entries that the log takes.
func (l *loop) noteRemoval(entries []*raftpb.Entry) {
	if len(entries) > 0 && entries[0].GetIndex() <= l.removal {
		l.removal = 0 // it is replaced
	}
	for _, e := range entries {
		if l.removal != 0 {
			return
		}
		if removedBy(e) == l.cfg.ID {
			l.removal = e.GetIndex()
		}
	}
}

// withoutRemoval keeps from raft that this member's own removal is committed, unless
// it is one that will be refused. A leader that has applied it sends no more, so this
// member learns it by being told.
func (l *loop) withoutRemoval(m *raftpb.Message) *raftpb.Message {
	index := l.removal
	if index == 0 {
		for _, e := range m.GetEntries() {
			if e.GetIndex() > m.GetCommit() {
				break
			}
			if removedBy(e) == l.cfg.ID {
				index = e.GetIndex()
				break
			}
		}
	}
	if index == 0 || m.GetCommit() < index || l.node.BasicStatus().GetCommit() >= index {
		return m
	}
	if l.pub.applied.Load() == index-1 && l.cfg.State.CheckChange(&command.Change{
		Type: raftpb.ConfChangeRemoveNode, MemberID: l.cfg.ID, Member: command.Member{ID: l.cfg.ID},
	}) != nil {
		return m
	}
	return &raftpb.Message{
		Type: m.Type, To: m.To, From: m.From, Term: m.Term, LogTerm: m.LogTerm, Index: m.Index, Entries: m.Entries,
		Commit: new(index - 1), Context: m.Context,
	}
}

// leaving says whether this member leads although its own removal is in its log, or
// was applied: nothing may be proposed behind it.
func (l *loop) leaving() bool {
	return (l.removal != 0 || l.removalProposed || !slices.Contains(*l.pub.voters.Load(), l.cfg.ID)) &&
		l.node.BasicStatus().RaftState == raft.StateLeader
}

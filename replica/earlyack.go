package replica

import (
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/peers"
	"github.com/belaydb/belay/raftlog"
)

// earlyAnswers sends a slow-disk follower's answers to its leader before raft's own, which wait for
// the disk, and handles them on a leader.
type earlyAnswers struct {
	*core

	// acceptedIndex is the last entry, of those that the leader of acceptedTerm has sent,
	// that is in this log and the leader's.
	acceptedTerm, acceptedIndex uint64
	// truncated is the term in which entries of the log were last replaced: what was durable
	// before may not be in the log any more.
	truncated uint64
	// acknowledged is the last term in which there was an early answer.
	acknowledged uint64
}

// acknowledge tells the leader, during a long sync, how much of its log this follower has on its
// disk. For a part of the last appends it says what raft's own answers will say later: up to the
// lesser of what is durable and what matches the leader's log. So it promises nothing that is not
// durable.
//
// Its purpose: a new leader that has not heard from a follower yet sends it one append and waits
// for the answer, which here waits for the disk. So a follower with a stalled disk, such as a
// leader that handed over because of it, would get nothing new, apply nothing, and its clients
// would wait. Any answer makes raft stream.
func (ea *earlyAnswers) acknowledge(s diskSample) {
	if s.oldest < ea.cfg.TickInterval || ea.leader == raft.None || ea.leader == ea.cfg.ID {
		return
	}
	mark := ea.pub.durable.Load()
	if mark == nil || mark.term < ea.truncated || ea.acceptedTerm != ea.term {
		return
	}
	index := min(mark.index, ea.acceptedIndex)
	if index == 0 || index == ea.acceptedIndex {
		return // nothing, or raft's own answer is out
	}
	ea.acknowledged = ea.term
	ea.cfg.Network.Send([]*raftpb.Message{{
		Type: raftpb.MsgAppResp.Enum(), From: new(ea.cfg.ID), To: new(ea.leader), Term: new(ea.term),
		Index: new(index), Context: []byte(peers.ContextEarly),
	}})
}

// note keeps what acknowledge needs to know of an append. REQUIRES: the log has not got it yet.
func (ea *earlyAnswers) note(a *raftlog.Append) {
	last := ea.lastIndex()
	if a.Snapshot != nil || (len(a.Entries) > 0 && a.Entries[0].GetIndex() <= last) {
		ea.truncated = ea.node.BasicStatus().GetTerm()
	}
	for _, m := range a.Responses {
		if m.GetType() != raftpb.MsgAppResp || m.GetReject() {
			continue
		}
		if m.GetTerm() > ea.acceptedTerm {
			ea.acceptedTerm, ea.acceptedIndex = m.GetTerm(), 0
		}
		if m.GetTerm() == ea.acceptedTerm {
			ea.acceptedIndex = max(ea.acceptedIndex, m.GetIndex())
		}
	}
}

// takes reports whether a leader should give raft an early answer. One from before the first entry
// that the leader still has in memory would make raft send a snapshot to a stalled disk.
func (ea *earlyAnswers) takes(m *raftpb.Message) bool {
	first, err := ea.cfg.Log.FirstIndex()
	return err == nil && m.GetIndex()+1 >= first
}

// withoutCommitted removes from an append what is committed here already. Raft takes nothing of an
// append that begins below the commit index: it answers with that index, and the leader continues
// from there. If that answer waits for the disk, the entries beyond would be missing, and all later
// ones rejected.
func (ea *earlyAnswers) withoutCommitted(m *raftpb.Message) *raftpb.Message {
	n := uint64(len(m.GetEntries()))
	if n == 0 || m.GetIndex() >= ea.pub.committed.Load() {
		return m
	}
	// m.Index may have been passed since that was published, but not the other way.
	commit := ea.node.BasicStatus().GetCommit()
	if m.GetIndex()+n <= commit {
		return m
	}
	term, err := ea.cfg.Log.Term(commit)
	if err != nil {
		return m // a snapshot that is not in the log yet
	}
	return &raftpb.Message{
		Type: m.Type, To: m.To, From: m.From, Term: m.Term, Commit: m.Commit,
		Index: new(commit), LogTerm: new(term), Entries: m.GetEntries()[commit-m.GetIndex():],
	}
}

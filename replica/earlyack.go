package replica

import (
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/peers"
	"github.com/belaydb/belay/raftlog"
)

// acknowledgeEarly tells the leader how much of its log this follower has on its
// disk, when a sync takes long. It says what raft's own answers to the last
// appends will say later, for a part of them: up to the lesser of what is
// durable and what matches the leader's log. So it promises nothing that is
// not durable.
//
// What it is for: a leader that has heard nothing yet of a follower, since it
// leads only since a moment ago, sends it one append and waits for the answer,
// which here waits for the disk. So a follower with a stalled disk would get
// nothing new, apply nothing, and its clients would wait: those of a leader
// that handed over because of its disk, say. Any answer makes raft stream.
func (l *loop) acknowledgeEarly(s diskSample) {
	if s.oldest < l.cfg.TickInterval || l.leader == raft.None || l.leader == l.cfg.ID {
		return
	}
	mark := l.pub.durable.Load()
	if mark == nil || mark.term < l.disk.truncated || l.disk.acceptedTerm != l.term {
		return
	}
	index := min(mark.index, l.disk.acceptedIndex)
	if index == 0 || index == l.disk.acceptedIndex {
		return // nothing, or raft's own answer is out
	}
	l.disk.acknowledged = l.term
	l.cfg.Network.Send([]*raftpb.Message{{
		Type: raftpb.MsgAppResp.Enum(), From: new(l.cfg.ID), To: new(l.leader), Term: new(l.term),
		Index: new(index), Context: []byte(peers.ContextEarly),
	}})
}

// noteAppend keeps what acknowledgeEarly needs to know of an append.
func (l *loop) noteAppend(a *raftlog.Append) {
	last, _ := l.cfg.Log.LastIndex() // the log in memory cannot fail
	if a.Snapshot != nil || (len(a.Entries) > 0 && a.Entries[0].GetIndex() <= last) {
		l.disk.truncated = l.node.BasicStatus().GetTerm()
	}
	for _, m := range a.Responses {
		if m.GetType() != raftpb.MsgAppResp || m.GetReject() {
			continue
		}
		if m.GetTerm() > l.disk.acceptedTerm {
			l.disk.acceptedTerm, l.disk.acceptedIndex = m.GetTerm(), 0
		}
		if m.GetTerm() == l.disk.acceptedTerm {
			l.disk.acceptedIndex = max(l.disk.acceptedIndex, m.GetIndex())
		}
	}
}

// takesEarlyAck says whether a leader should give raft an early answer. One from
// before the first entry that the leader still has in memory would have raft send a
// snapshot to a disk that stalls.
func (l *loop) takesEarlyAck(m *raftpb.Message) bool {
	first, err := l.cfg.Log.FirstIndex()
	return err == nil && m.GetIndex()+1 >= first
}

// withoutCommitted cuts off what of an append is committed here already. Raft takes
// nothing of an append that begins below the commit index: it answers with that
// index, and the leader goes on from there. Where that answer waits for the disk,
// the entries beyond would be missing, and all that follow rejected.
func (l *loop) withoutCommitted(m *raftpb.Message) *raftpb.Message {
	n := uint64(len(m.GetEntries()))
	if n == 0 || m.GetIndex() >= l.pub.committed.Load() {
		return m
	}
	// m.Index may have been passed since that was published, but not the other way.
	commit := l.node.BasicStatus().GetCommit()
	if m.GetIndex()+n <= commit {
		return m
	}
	term, err := l.cfg.Log.Term(commit)
	if err != nil {
		return m // a snapshot that is not in the log yet
	}
	return &raftpb.Message{
		Type: m.Type, To: m.To, From: m.From, Term: m.Term, Commit: m.Commit,
		Index: new(commit), LogTerm: new(term), Entries: m.GetEntries()[commit-m.GetIndex():],
	}
}

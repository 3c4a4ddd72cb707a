package raftlog

import (
	"fmt"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// InitialState returns the hard state, nil if there never was one, and the
// configuration given to Adopt.
func (l *Log) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var h *raftpb.HardState
	if !l.hard.empty() {
		h = &raftpb.HardState{Term: new(l.hard.term), Vote: new(l.hard.vote), Commit: new(l.hard.commit)}
	}
	return h, cloneConfState(l.confState), nil
}

// Entries returns the entries [lo, hi) as far as they fit in maxSize encoded bytes, but at least
// one; raft.ErrCompacted if lo is no longer in memory, raft.ErrUnavailable if hi is beyond the end.
//
// The slice shares the log's memory and stays as it is whatever happens to the log.
func (l *Log) Entries(lo, hi, maxSize uint64) ([]*raftpb.Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case lo > hi:
		panic(fmt.Sprintf("raftlog: Entries(%d, %d)", lo, hi))
	case lo <= l.tail.base:
		return nil, raft.ErrCompacted
	case hi > l.tail.last+1:
		return nil, raft.ErrUnavailable
	case lo == hi:
		return nil, nil
	}
	return l.tail.slice(lo, hi, maxSize), nil
}

// Term returns the term of entry i, which may be the one before FirstIndex.
func (l *Log) Term(i uint64) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case i < l.tail.base:
		return 0, raft.ErrCompacted
	case i > l.tail.last:
		return 0, raft.ErrUnavailable
	}
	return l.tail.term(i), nil
}

// FirstIndex returns the index of the oldest entry in memory.
func (l *Log) FirstIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tail.base + 1, nil
}

// LastIndex returns the index of the newest entry, durable or not.
func (l *Log) LastIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tail.last, nil
}

// Snapshot returns what SetSnapshotMeta last offered, without data: the sender streams the state.
// raft.ErrSnapshotTemporarilyUnavailable if nothing was offered.
func (l *Log) Snapshot() (*raftpb.Snapshot, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.snapshot == nil {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	return proto.Clone(l.snapshot).(*raftpb.Snapshot), nil
}

// SetSnapshotMeta offers a snapshot at (index, term), with the configuration then,
// for Snapshot to return. The log keeps its own copy of cs.
func (l *Log) SetSnapshotMeta(index, term uint64, cs *raftpb.ConfState) {
	s := &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: new(index), Term: new(term), ConfState: cloneConfState(cs),
	}}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.snapshot = s
}

func cloneConfState(cs *raftpb.ConfState) *raftpb.ConfState {
	if cs == nil {
		return raftpb.EnsureConfState(nil)
	}
	return raftpb.EnsureConfState(proto.Clone(cs).(*raftpb.ConfState))
}

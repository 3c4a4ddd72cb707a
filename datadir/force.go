package datadir

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/raftlog"
)

// A Cluster is what a state machine knows about its members.
type Cluster interface {
	Members() []*command.Member
	// IsRemoved reports whether an ID is that of a former member.
	IsRemoved(id uint64) bool
}

// Alone is the member that is to be the only one of its cluster.
type Alone struct {
	Member, Cluster uint64
	Name            string   // used if the cluster does not know it
	PeerURLs        []string // likewise
	Applied         uint64   // of the store, whose members Cluster knows
	Logger          *zap.Logger
}

// ForceNewCluster appends to the log, and commits, the entries that leave this member alone in its
// cluster (--force-new-cluster). The others are removed for good, and learn it if they come back.
//
// What the log holds beyond the commit index on disk counts as committed. etcd drops it, and with
// it writes that may have been acknowledged: a commit index need not be durable. At worst this
// keeps a write whose client got no answer. The one exception is the removal of this member itself,
// for example an attempt from before the quorum was lost: it cannot be both alone and removed.
//
// REQUIRES: the log has adopted the store's applied index, and nothing runs.
func (a Alone) ForceNewCluster(log *raftlog.Log, cluster Cluster) error {
	if a.Logger == nil {
		a.Logger = zap.NewNop()
	}
	hard, _, err := log.InitialState()
	if err != nil {
		return err
	}
	last, err := log.LastIndex()
	if err != nil {
		return err
	}
	if cluster.IsRemoved(a.Member) {
		return fmt.Errorf("member %x: %w", a.Member, errForceRemoved)
	}
	members := make(map[uint64]*command.Member)
	for _, m := range cluster.Members() {
		members[m.ID] = m
	}
	var rewritten []*raftpb.Entry // the new end of the log, if it must change
	if applied := a.Applied; applied < last {
		tail, err := log.Entries(applied+1, last+1, math.MaxUint64)
		if err != nil {
			return err
		}
		if rewritten, err = withoutRemovalOf(a.Member, hard.GetCommit(), tail); err != nil {
			return err
		}
		tail = append(slices.Clone(tail[:len(tail)-len(rewritten)]), rewritten...)
		if err := foldChanges(members, tail); err != nil {
			return err
		}
	}
	entries, err := changesToAlone(members, a.Member, a.Name, a.PeerURLs)
	if err != nil {
		return err
	}
	// A term of its own: no other member can hold entries of it.
	term := hard.GetTerm() + 1
	for i, e := range entries {
		e.Term, e.Index = new(term), new(last+uint64(i)+1)
	}
	commit := last + uint64(len(entries))
	a.Logger.Info("forcing restart member",
		zap.String("cluster-id", command.IDText(a.Cluster)), zap.String("local-member-id", command.IDText(a.Member)),
		zap.Uint64("wal-commit-index", hard.GetCommit()), zap.Uint64("commit-index", commit))
	log.Append(raftlog.Append{
		HardState: &raftpb.HardState{Term: new(term), Vote: new(raft.None), Commit: new(commit)},
		Entries:   append(rewritten, entries...),
	})
	return log.Sync(context.Background())
}

// errForceRemoved: the cluster has agreed that this member is gone, and an id never comes back.
var errForceRemoved = errors.New("it was removed from its cluster, so --force-new-cluster cannot start it: start another member that way, or restore a snapshot")

// withoutRemovalOf returns the end of entries, from the first one that removes own on, with the
// removals replaced by empty entries; nil if there is none. The removal must be beyond the commit
// index.
func withoutRemovalOf(own, commit uint64, entries []*raftpb.Entry) (end []*raftpb.Entry, err error) {
	for i, e := range entries {
		c, err := changeOf(e)
		if err != nil {
			return nil, err
		}
		removal := c != nil && c.Type == raftpb.ConfChangeRemoveNode && c.MemberID == own
		switch {
		case removal && e.GetIndex() <= commit:
			return nil, fmt.Errorf("member %x: %w", own, errForceRemoved)
		case removal:
			e = &raftpb.Entry{Type: raftpb.EntryNormal.Enum(), Term: new(e.GetTerm()), Index: new(e.GetIndex())}
			if end == nil {
				end = make([]*raftpb.Entry, 0, len(entries)-i)
			}
		case end == nil:
			continue
		}
		end = append(end, e)
	}
	return end, nil
}

// changeOf is the member change that an entry holds; nil if it holds something else.
func changeOf(e *raftpb.Entry) (*command.Change, error) {
	if e.GetType() != raftpb.EntryConfChange {
		return nil, nil
	}
	var change raftpb.ConfChange
	if err := proto.Unmarshal(e.GetData(), &change); err != nil {
		return nil, fmt.Errorf("entry %d of the raft log: %w", e.GetIndex(), err)
	}
	c, err := command.DecodeChange(&change)
	if err != nil {
		return nil, fmt.Errorf("entry %d of the raft log: %w", e.GetIndex(), err)
	}
	return c, nil
}

// foldChanges applies the member changes in entries to members.
func foldChanges(members map[uint64]*command.Member, entries []*raftpb.Entry) error {
	for _, e := range entries {
		c, err := changeOf(e)
		if err != nil {
			return err
		}
		if c == nil {
			continue
		}
		switch {
		case c.Type == raftpb.ConfChangeRemoveNode:
			delete(members, c.MemberID)
		case c.IsPromote:
			if m := members[c.MemberID]; m != nil {
				m = m.Clone()
				m.IsLearner = false
				members[c.MemberID] = m
			}
		case c.Type != raftpb.ConfChangeUpdateNode:
			members[c.MemberID] = c.Member.Clone()
		}
	}
	return nil
}

// changesToAlone are the entries, without index and term. Raft refuses a configuration without
// voters, so this member comes first.
func changesToAlone(members map[uint64]*command.Member, own uint64, name string, peerURLs []string) ([]*raftpb.Entry, error) {
	var changes []command.Change
	add := command.Member{ID: own, Name: name, PeerURLs: peerURLs}
	switch m := members[own]; {
	case m == nil:
		changes = append(changes, command.Change{Type: raftpb.ConfChangeAddNode, MemberID: own, Member: add})
	case m.IsLearner:
		changes = append(changes, command.Change{Type: raftpb.ConfChangeAddNode, MemberID: own, Member: command.Member{ID: own}, IsPromote: true})
	}
	var others []uint64
	for id := range members {
		if id != own {
			others = append(others, id)
		}
	}
	slices.Sort(others)
	for _, id := range others {
		changes = append(changes, command.Change{Type: raftpb.ConfChangeRemoveNode, MemberID: id})
	}
	var entries []*raftpb.Entry
	for _, c := range changes {
		data, err := proto.Marshal(c.Encode())
		if err != nil {
			return nil, err
		}
		entries = append(entries, &raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Data: data})
	}
	return entries, nil
}

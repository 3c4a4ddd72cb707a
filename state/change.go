package state

import (
	"fmt"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/store"
)

// CheckChange reports whether the change can be applied to the members as of the applied index.
// Every member judges the same entry against the same members, so all agree; a change that is
// refused must be given to raft as a no-op. Any goroutine may ask.
func (m *Machine) CheckChange(c *command.Change) error {
	now := m.published.Load() // between batches the same as the applier's
	if now.removed[c.MemberID] {
		return ErrMemberNotFound
	}
	known := now.members[c.MemberID]
	if c.Type != raftpb.ConfChangeRemoveNode && c.Member.ID != c.MemberID {
		return ErrUnknownChange
	}
	switch c.Type {
	case raftpb.ConfChangeAddNode, raftpb.ConfChangeAddLearnerNode:
		if c.MemberID == 0 {
			return ErrUnknownChange // raft knows 0 as nobody
		}
		if c.IsPromote {
			switch {
			case known == nil:
				return ErrMemberNotFound
			case !known.IsLearner:
				return ErrNotLearner
			}
			return nil
		}
		if known != nil {
			return ErrMemberExists
		}
		if now.peerURLTaken(c) {
			return ErrPeerURLExists
		}
		// The limit is the entry's, not this member's flag: members with different flags would
		// diverge.
		if c.Type == raftpb.ConfChangeAddLearnerNode && c.Member.IsLearner && c.MaxLearners != 0 && len(now.members)-now.voters() >= c.MaxLearners {
			return ErrTooManyLearners
		}
	case raftpb.ConfChangeRemoveNode:
		if known == nil {
			return ErrMemberNotFound
		}
		if !known.IsLearner && now.voters() == 1 {
			return ErrLastVoter
		}
	case raftpb.ConfChangeUpdateNode:
		if known == nil {
			return ErrMemberNotFound
		}
		if now.peerURLTaken(c) {
			return ErrPeerURLExists
		}
	default:
		return ErrUnknownChange
	}
	return nil
}

// voters is how many members vote.
func (cl *cluster) voters() (n int) {
	for _, member := range cl.members {
		if !member.IsLearner {
			n++
		}
	}
	return n
}

// peerURLTaken reports whether another member has one of the change's peer URLs.
func (cl *cluster) peerURLTaken(c *command.Change) bool {
	for id, member := range cl.members {
		if id == c.MemberID {
			continue
		}
		for _, u := range c.Member.PeerURLs {
			if slices.Contains(member.PeerURLs, u) {
				return true
			}
		}
	}
	return false
}

// ApplyChange applies one member change as a batch of its own; a refused one moves the applied
// index only. An entry at or below the applied index gives a zero result.
//
// REQUIRES: e.Refused is what CheckChange returned for it.
func (m *Machine) ApplyChange(e command.Entry) command.Result {
	index, _ := m.Applied()
	if e.Index <= index {
		return command.Result{}
	}
	a := m.begin(e.Index, e.Term)
	defer a.stopOnPanic()
	a.at.index, a.at.kind = e.Index, kindNone
	if e.Index != index+1 {
		a.stop(fmt.Sprintf("member change %d is to be applied after entry %d", e.Index, index))
	}
	if e.Change == nil {
		a.stop("an entry of a batch is among the member changes")
	}
	if e.Refused == nil {
		a.changeMembers(e.Change)
	}
	if e.ConfState != nil {
		b, err := proto.Marshal(e.ConfState)
		if err != nil {
			a.failed("encode raft's configuration", err)
		}
		a.set(store.ConfStateKey(), b)
	}
	a.commit(e.Index, e.Term, 1)
	if e.ConfState != nil {
		m.confState.Store(e.ConfState)
	}
	if e.Refused == nil && m.cfg.OnMembership != nil {
		m.cfg.OnMembership()
	}
	return command.Result{Err: e.Refused, Members: m.Members()}
}

// changeMembers writes a change that CheckChange accepted.
func (a *application) changeMembers(c *command.Change) {
	id := c.MemberID
	switch c.Type {
	case raftpb.ConfChangeAddNode, raftpb.ConfChangeAddLearnerNode:
		if c.IsPromote {
			member := a.cluster.members[id].Clone()
			member.IsLearner = false
			a.saveMember(member)
			a.m.logger.Info("promote member", append(a.m.ids(), zap.String("promoted-member-id", command.IDText(id)))...)
			return
		}
		member := c.Member.Clone()
		a.saveMember(member)
		a.m.logger.Info("added member", append(a.m.ids(),
			zap.String("added-peer-id", command.IDText(id)),
			zap.Strings("added-peer-peer-urls", member.PeerURLs),
			zap.Bool("added-peer-is-learner", member.IsLearner))...)
	case raftpb.ConfChangeRemoveNode:
		member := a.cluster.members[id]
		w := a.change()
		delete(w.members, id)
		w.removed[id] = true
		a.delete(store.MemberKey(id))
		a.set(store.RemovedMemberKey(id), nil)
		a.m.logger.Info("removed member", append(a.m.ids(),
			zap.String("removed-remote-peer-id", command.IDText(id)),
			zap.Strings("removed-remote-peer-urls", member.PeerURLs),
			zap.Bool("removed-remote-peer-is-learner", member.IsLearner))...)
	case raftpb.ConfChangeUpdateNode:
		member := a.cluster.members[id].Clone()
		member.PeerURLs = slices.Clone(c.Member.PeerURLs) // nothing else of a member is updated this way
		a.saveMember(member)
		a.m.logger.Info("updated member", append(a.m.ids(),
			zap.String("updated-remote-peer-id", command.IDText(id)),
			zap.Strings("updated-remote-peer-urls", member.PeerURLs),
			zap.Bool("updated-remote-peer-is-learner", member.IsLearner))...)
	}
}

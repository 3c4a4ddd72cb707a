package replica

import (
	"encoding/binary"
	"errors"
	"math"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/peers"
)

// heldMessage is a proposal that a follower forwarded.
type heldMessage struct {
	message *raftpb.Message
	since   time.Time
}

// proposeFor gives raft a proposal of another member, or holds it.
func (l *loop) proposeFor(p heldMessage) {
	if !l.leaving() {
		if err := l.node.Step(p.message); !errors.Is(err, raft.ErrProposalDropped) {
			return
		}
	}
	size := entryBytes(p.message)
	if l.forwardedBytes+size > maxForwardedBytes {
		l.refuse(p.message)
		return
	}
	l.forwarded = append(l.forwarded, p)
	l.forwardedBytes += size
}

// proposeForwarded tries again what proposeFor held.
func (l *loop) proposeForwarded() {
	if len(l.forwarded) == 0 {
		return
	}
	held := l.forwarded
	l.forwarded, l.forwardedBytes = nil, 0
	for _, p := range held {
		if time.Since(p.since) < l.cfg.RequestTimeout {
			l.proposeFor(p)
		}
	}
}

// refuse answers a forwarded MsgProp that is not taken (peers.ContextRefused). Any goroutine.
func (e *env) refuse(m *raftpb.Message) {
	context := []byte(peers.ContextRefused)
	for _, entry := range m.GetEntries() {
		if id := command.RequestID(entry.GetData()); entry.GetType() == raftpb.EntryNormal && id != 0 {
			context = binary.BigEndian.AppendUint64(context, id)
		}
	}
	if m.GetFrom() == raft.None || m.GetFrom() == e.cfg.ID || len(context) == len(peers.ContextRefused) {
		return
	}
	e.cfg.Network.Send([]*raftpb.Message{{
		Type: raftpb.MsgAppResp.Enum(), From: new(e.cfg.ID), To: new(m.GetFrom()), Term: new(e.pub.status.Load().Term), Context: context,
	}})
}

// refused ends proposals of this member that the leader did not take.
func (l *loop) refused(ids []byte) {
	for ; len(ids) >= 8; ids = ids[8:] {
		l.waiters.finish(binary.BigEndian.Uint64(ids), command.Result{}, ErrTooManyRequests)
	}
}

func proposesChange(m *raftpb.Message) bool {
	for _, e := range m.GetEntries() {
		if e.GetType() != raftpb.EntryNormal {
			return true
		}
	}
	return false
}

// changeFits says whether raft would take a member change now. A leader with
// another one that may not be applied yet would write an empty entry in its
// place, and who proposed it would never hear of it: so we hold it back.
func (l *loop) changeFits() bool {
	// Raft's own word: an election may have been won by a message of this round, and
	// what it brought is known when its Ready was handled.
	status := l.node.BasicStatus()
	return status.RaftState != raft.StateLeader || (l.state == raft.StateLeader && l.term == status.GetTerm() && status.Applied >= l.changeBarrier)
}

// proposeChanges gives raft the member changes that followers forwarded, one
// at a time.
func (l *loop) proposeChanges() {
	for len(l.changes) > 0 {
		c := l.changes[0]
		if time.Since(c.since) < l.cfg.RequestTimeout {
			e := c.message.GetEntries()[0]
			if !l.mayChange(e) {
				return
			}
			if err := l.node.Step(c.message); errors.Is(err, raft.ErrProposalDropped) {
				return // no leader just now
			}
			l.changeProposed(e)
		}
		l.changes = l.changes[1:]
	}
}

// changeProposed notes that no further change fits until all of the log as it
// is now is applied. How far the log reaches is known once raft has handed its
// new entries out, so handleReady sets the barrier. e is the change, nil if it is one
// of an earlier leader.
func (l *loop) changeProposed(e *raftpb.Entry) {
	l.changeBarrier = unknownBarrier
	l.removalProposed = e != nil && removedBy(e) == l.cfg.ID
}

const unknownBarrier = math.MaxUint64

// proposeAll hands raft the held proposals and then the new ones, as few
// MsgProps with many entries.
func (l *loop) proposeAll(fresh []*proposal) {
	if len(l.held) > 0 {
		fresh = append(l.held, fresh...)
		l.held = nil
	}
	if l.leader == raft.None {
		l.hold(fresh)
		return
	}
	for len(fresh) > 0 {
		var entries []*raftpb.Entry
		size, n := 0, 0
		if l.leaving() {
			l.hold(fresh) // until another member leads
			return
		}
		if fresh[0].change != nil && !l.mayChange(fresh[0].entry) {
			l.hold(fresh[:1]) // until the next tick
			fresh = fresh[1:]
			continue
		}
		for ; n < len(fresh) && (size == 0 || size < maxProposalBytes); n++ {
			if n > 0 && fresh[0].change != nil {
				break
			}
			if fresh[n].change != nil && n > 0 {
				break // alone in its message
			}
			// An abandoned proposal's caller has been told that it was never
			// proposed, so it must not be.
			if p := fresh[n]; p.markProposed() {
				entries = append(entries, p.entry)
				size += len(p.entry.Data)
			}
		}
		if len(entries) > 0 {
			err := l.node.Step(&raftpb.Message{
				Type:    raftpb.MsgProp.Enum(),
				From:    new(l.cfg.ID),
				Entries: entries,
			})
			if err != nil {
				for _, p := range fresh[:n] {
					p.unmarkProposed()
				}
				l.hold(fresh)
				return
			}
			// Raft has copied the entries if it leads; forwarded ones it has not.
			// Its own word counts: l.state is that of the last Ready, and a
			// message stepped since may have ended the leadership.
			if l.node.BasicStatus().RaftState == raft.StateLeader {
				for _, p := range fresh[:n] {
					l.buffers.put(p)
				}
				if fresh[0].change != nil {
					l.changeProposed(fresh[0].entry)
				}
			}
		}
		fresh = fresh[n:]
	}
}

// hold keeps proposals until there is a leader, dropping those that nobody
// waits for any more.
func (l *loop) hold(ps []*proposal) {
	for _, p := range ps {
		if !p.abandoned() {
			l.held = append(l.held, p)
		}
	}
}

// mayChange says whether a member change may be given to raft now.
func (l *loop) mayChange(e *raftpb.Entry) bool {
	return l.changeFits() && !l.leaving() && (removedBy(e) != l.cfg.ID || !l.yields(time.Now()))
}

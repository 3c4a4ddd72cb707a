package replica

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/peers"
)

// What waits before raft.
//
// Raft takes a proposal or drops it. It drops what comes while no leader is known, or while
// leadership is being transferred; and a leader that may have an unapplied member change in its log
// puts an empty entry in place of another one. The proposer, a client of this member or another
// member, believes that raft has it, so none of these may be lost needlessly: they wait here, and
// are given to raft again when a leader is known, at each tick, and with the next proposals. None
// of them is in any log, so that doubles nothing.

const (
	// maxForwardedBytes bounds the proposals of other members that are held until
	// there is a leader to give them to.
	maxForwardedBytes = 64 << 20
	// maxHeldLargeBytes bounds the large ones that wait for this leader's store; half of
	// Config.MaxUnsyncedBytes if that is less. It is what four members' windows let out at most.
	maxHeldLargeBytes = 256 << 20
)

// pending is what waits before raft.
type pending struct {
	door    door
	timeout time.Duration // what others forwarded is dropped after it; Config.RequestTimeout

	// held are proposals of this member's clients, in order of arrival. Their state is waiting or
	// abandoned: raft has none of them. waiters.expire ends them.
	held []*proposal
	// forwarded are proposals of other members, in order of arrival, none of them a change.
	forwarded      []heldMessage
	forwardedBytes int64 // of forwarded, as entryBytes counts; at most maxForwardedBytes
	// large are proposals of other members that wait as this leader's own do outside its window, in
	// order of arrival: its store has much to flush.
	large                 []heldMessage
	largeBytes, mostLarge int64 // of large, as entryBytes counts, and their bound
	// changes are member changes that other members forwarded, in order of arrival.
	changes []heldMessage
	// barrier is an index at or above that of the last member change in the log of this
	// leader: no other one is given to raft before it is applied. unknownBarrier: raft was
	// given a change whose index is not known yet.
	barrier uint64
}

// heldMessage is a proposal that a follower forwarded.
type heldMessage struct {
	message *raftpb.Message
	since   time.Time
}

const unknownBarrier = math.MaxUint64

// door is raft, as what waits before it sees it.
type door interface {
	// leaderKnown reports whether raft would take a proposal or pass it on, as of the last Ready.
	leaderKnown() bool
	// closed: this member leads, and nothing may be proposed behind its own removal, nor while it
	// hands over because it stops.
	closed() bool
	// full: this member leads, and large proposals wait for the flush of its store.
	full() bool
	// mayChange reports whether a member change may be given to raft now; not before everything up
	// to the barrier is applied.
	mayChange(e *raftpb.Entry, barrier uint64) bool
	// propose gives raft a MsgProp. After an error raft does not have it. leads: it is in this
	// member's log; otherwise it is on its way to the leader, or lost.
	propose(m *raftpb.Message) (leads bool, err error)
	// proposed is called for a proposal of this member that is in its log: raft has copied it.
	proposed(p *proposal)
	// id is this member's.
	id() uint64
	// refuse tells the member that forwarded a proposal that it is refused.
	refuse(m *raftpb.Message)
}

// take gives raft the proposals that another member forwarded, or holds them; beyond
// maxForwardedBytes, and mostLarge, they are refused.
func (p *pending) take(m *raftpb.Message, now time.Time) {
	isLarge := func(e *raftpb.Entry) bool { return len(e.GetData()) >= LargeProposal }
	if slices.ContainsFunc(m.GetEntries(), isLarge) && (len(p.large) > 0 || p.door.full()) {
		large := &raftpb.Message{Type: m.Type, From: m.From, To: m.To}
		small := &raftpb.Message{Type: m.Type, From: m.From, To: m.To}
		for _, e := range m.GetEntries() {
			if isLarge(e) {
				large.Entries = append(large.Entries, e)
			} else {
				small.Entries = append(small.Entries, e)
			}
		}
		p.holdLarge(heldMessage{large, now})
		if m = small; len(m.Entries) == 0 {
			return
		}
	}
	p.proposeFor(heldMessage{m, now})
}

func (p *pending) holdLarge(h heldMessage) {
	size := entryBytes(h.message)
	if p.largeBytes+size > p.mostLarge && len(p.large) > 0 {
		p.door.refuse(h.message)
		return
	}
	p.large = append(p.large, h)
	p.largeBytes += size
}

// retryLarge gives raft what waited for the flush, as far as it may go on. Those that nobody waits for
// any more are dropped.
func (p *pending) retryLarge(now time.Time) {
	for len(p.large) > 0 && !p.door.full() {
		h := p.large[0]
		p.large[0] = heldMessage{}
		p.large = p.large[1:]
		p.largeBytes -= entryBytes(h.message)
		if now.Sub(h.since) < p.timeout {
			p.proposeFor(h)
		}
	}
}

func (p *pending) proposeFor(h heldMessage) {
	if !p.door.closed() {
		if _, err := p.door.propose(h.message); !errors.Is(err, raft.ErrProposalDropped) {
			return
		}
	}
	size := entryBytes(h.message)
	if p.forwardedBytes+size > maxForwardedBytes {
		p.door.refuse(h.message)
		return
	}
	p.forwarded = append(p.forwarded, h)
	p.forwardedBytes += size
}

// takeChange takes a member change that another member forwarded; proposeChanges gives it to raft.
func (p *pending) takeChange(m *raftpb.Message, now time.Time) {
	p.changes = append(p.changes, heldMessage{m, now})
}

// proposeChanges gives raft the member changes that followers forwarded, one at a time.
func (p *pending) proposeChanges() {
	for len(p.changes) > 0 {
		c := p.changes[0]
		if time.Since(c.since) < p.timeout {
			if !p.door.mayChange(c.message.GetEntries()[0], p.barrier) {
				return
			}
			if _, err := p.door.propose(c.message); errors.Is(err, raft.ErrProposalDropped) {
				return // no leader just now
			}
			p.changeProposed()
		}
		p.changes = p.changes[1:]
	}
}

// changeProposed notes that no further change fits until all of the log as it is now is applied.
// How far the log reaches is known once raft has handed its new entries out: settle.
func (p *pending) changeProposed() { p.barrier = unknownBarrier }

// unsettled reports whether raft was given a change and settle was not called since.
func (p *pending) unsettled() bool { return p.barrier == unknownBarrier }

// settle is called when raft has handed out all that it was given: last is where the log ends.
func (p *pending) settle(last uint64) { p.barrier = last }

// retry gives raft again what is held, if a leader is known.
func (p *pending) retry() {
	if !p.door.leaderKnown() {
		return
	}
	if len(p.held) > 0 {
		p.propose(nil)
	}
	if len(p.forwarded) == 0 {
		return
	}
	held := p.forwarded
	p.forwarded, p.forwardedBytes = nil, 0
	for _, h := range held {
		if time.Since(h.since) < p.timeout {
			p.proposeFor(h)
		}
	}
}

// propose hands raft the held proposals and then the fresh ones, as few
// MsgProps with many entries, and holds what raft does not take. fresh is not kept.
func (p *pending) propose(fresh []*proposal) {
	if len(p.held) > 0 {
		fresh = append(p.held, fresh...)
		p.held = nil
	}
	if !p.door.leaderKnown() {
		p.hold(fresh)
		return
	}
	for len(fresh) > 0 {
		if p.door.closed() {
			p.hold(fresh) // until another member leads
			return
		}
		if fresh[0].change != nil && !p.door.mayChange(fresh[0].entry, p.barrier) {
			p.hold(fresh[:1]) // until the next tick
			fresh = fresh[1:]
			continue
		}
		entries, n := gather(fresh)
		if len(entries) > 0 {
			leads, err := p.door.propose(&raftpb.Message{
				Type:    raftpb.MsgProp.Enum(),
				From:    new(p.door.id()),
				Entries: entries,
			})
			if err != nil {
				for _, each := range fresh[:n] {
					each.unmarkProposed()
				}
				p.hold(fresh)
				return
			}
			// Raft has copied the entries if it leads; forwarded ones it has not.
			if leads {
				for _, each := range fresh[:n] {
					p.door.proposed(each)
				}
				if fresh[0].change != nil {
					p.changeProposed()
				}
			}
		}
		fresh = fresh[n:]
	}
}

// gather marks the first n of some proposals as proposed, and returns the entries of those that
// nobody has abandoned: a member change alone, otherwise up to maxProposalBytes and the last one.
func gather(fresh []*proposal) (entries []*raftpb.Entry, n int) {
	size := 0
	for ; n < len(fresh) && (size == 0 || size < maxProposalBytes); n++ {
		if n > 0 && (fresh[0].change != nil || fresh[n].change != nil) {
			break // alone in its message
		}
		// The caller of an abandoned proposal knows that it was never proposed, so it must not be.
		if each := fresh[n]; each.markProposed() {
			entries = append(entries, each.entry)
			size += len(each.entry.Data)
		}
	}
	return entries, n
}

// hold keeps proposals, but those that nobody waits for any more. One that was given up in the
// moment in which raft dropped it is not abandoned: its caller was told that it may come to pass. But
// nothing would end it, and it would come to pass whenever there is a leader again, however late.
func (p *pending) hold(ps []*proposal) {
	for _, each := range ps {
		if !each.abandoned() && !each.gone.Load() {
			p.held = append(p.held, each)
		}
	}
}

// dropAbandoned drops what nobody waits for any more.
func (p *pending) dropAbandoned() {
	held := p.held
	p.held = nil
	p.hold(held)
}

// raftDoor is raft itself.
type raftDoor struct {
	*core
	removal  *ownRemoval
	handOver *handOver
	buffers  *buffers
	window   *window
	room     *room
}

func (d *raftDoor) leaderKnown() bool { return d.leader != raft.None }

func (d *raftDoor) closed() bool { return d.removal.leaving() || d.handOver.leaves }

func (d *raftDoor) full() bool { return d.raftLeads() && (d.window.full() || d.room.left <= 0) }

func (d *raftDoor) mayChange(e *raftpb.Entry, barrier uint64) bool {
	return d.changeFits(barrier) && !d.closed() && (removedBy(e) != d.cfg.ID || !d.handOver.beforeRemoval(time.Now()))
}

// changeFits reports whether raft would take a member change now. A leader with another change that
// may not be applied yet would write an empty entry instead, and the proposer would never get an
// answer: so we hold it back.
func (d *raftDoor) changeFits(barrier uint64) bool {
	// Raft's own word: an election may have been won by a message of this round, and
	// what it brought is known when its Ready was handled.
	status := d.node.BasicStatus()
	return status.RaftState != raft.StateLeader || (d.state == raft.StateLeader && d.term == status.GetTerm() && status.Applied >= barrier)
}

func (d *raftDoor) propose(m *raftpb.Message) (leads bool, err error) {
	if err := d.node.Step(m); err != nil {
		return false, err
	}
	// Its own word counts: core.state is that of the last Ready, and a message stepped since
	// may have ended the leadership.
	leads = d.raftLeads()
	if e := m.GetEntries()[0]; leads && e.GetType() == raftpb.EntryConfChange {
		d.removal.proposed = removedBy(e) == d.cfg.ID
	}
	return leads, nil
}

func (d *raftDoor) proposed(p *proposal) { d.buffers.put(p) }

func (d *raftDoor) id() uint64 { return d.cfg.ID }

// refuse answers a forwarded MsgProp that is not accepted (peers.ContextRefused). Any goroutine may
// call it.
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

// refuse ends proposals of this member that the leader did not take: ids follow each other,
// eight bytes each.
func (w *waiters) refuse(ids []byte) {
	for ; len(ids) >= 8; ids = ids[8:] {
		id := binary.BigEndian.Uint64(ids)
		w.window.refused(id)
		w.finish(id, command.Result{}, ErrTooManyRequests)
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

package replica

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/peers"
)

// What must hold of a peer's message before raft may see it.
//
// Peers are trusted: raft has no defence against a member that lies. But some messages do lasting
// damage. An entry that cannot be applied, once it is in the log, ends each member that reaches it,
// again at each start. A term close to the last one ends elections for good. And raft panics on
// some forms that no raft sends. All of these are refused here with an error, and are lost messages
// to raft: if the log of a leader holds such an entry, its followers fall behind, but stay intact.
//
// What is wrong only with respect to raft's state (a commit index beyond the log, an entry that
// contradicts a committed one) is not checked: then this or another member has lost what it
// promised to keep, and raft rightly stops the process. Nothing of the message is in the log then.

// ErrRefused is wrapped by each error about a message that no honest peer sends.
var ErrRefused = errors.New("replica: refused a message that no member sends")

// Why a message was refused: the values of the metric's label.
const (
	refusedForm  = "form"  // raft would panic, or could not make sense of it
	refusedEntry = "entry" // one of its entries could not be applied
	refusedTerm  = "term"  // its term is too far ahead
	refusedAck   = "ack"   // it acknowledges more than this leader's log holds, or reads that it has not asked about
)

// CheckMessage returns what is wrong with a message of a peer, except its term. Process calls it.
// Any goroutine may call it; it takes some 100 ns for each entry.
func (r *Replica) CheckMessage(m *raftpb.Message) error {
	why, err := refusedForm, checkForm(m, r.cfg.ID)
	if err == nil {
		why, err = refusedEntry, checkEntries(m)
	}
	if err == nil {
		return nil
	}
	r.metrics.Refused.WithLabelValues(why).Inc()
	return fmt.Errorf("%w: %s from %x: %w", ErrRefused, m.GetType(), m.GetFrom(), err)
}

// checkForm checks a message to member id without the payload of its entries.
func checkForm(m *raftpb.Message, id uint64) error {
	typ := m.GetType()
	// A peer must not send what only our own threads send. Check the type first: raft indexes an
	// array with it.
	if _, known := raftpb.MessageType_name[int32(typ)]; !known {
		return errors.New("its type is unknown")
	}
	if raft.IsLocalMsgTarget(m.GetFrom()) || raft.IsLocalMsg(typ) || typ == raftpb.MsgForgetLeader {
		return errors.New("it is not one that a peer may send")
	}
	switch {
	case m.GetFrom() == raft.None:
		return errors.New("it is from nobody")
	case m.GetFrom() == id && typ != raftpb.MsgProp && typ != raftpb.MsgReadIndex && typ != raftpb.MsgTransferLeader:
		return errors.New("it is from this member itself") // messages that others pass on may come back
	}
	if len(m.GetResponses()) > 0 {
		return errors.New("it holds responses, which are for local threads")
	}
	if refuses := typ == raftpb.MsgAppResp && bytes.HasPrefix(m.GetContext(), []byte(peers.ContextRefused)); refuses {
		return nil // the loop reads it and raft does not; the sender may not know the term yet
	}
	if (typ == raftpb.MsgProp || typ == raftpb.MsgReadIndex) != (m.GetTerm() == 0) {
		return fmt.Errorf("its term is %d", m.GetTerm()) // raft panics when it passes one on, or answers
	}
	if typ != raftpb.MsgSnap && m.GetSnapshot() != nil {
		return errors.New("it holds a snapshot")
	}
	switch typ {
	case raftpb.MsgApp, raftpb.MsgProp, raftpb.MsgReadIndex, raftpb.MsgReadIndexResp:
	default:
		if len(m.GetEntries()) > 0 {
			return errors.New("it holds entries")
		}
	}
	switch typ {
	case raftpb.MsgProp:
		if len(m.GetEntries()) == 0 {
			return errors.New("a proposal of nothing")
		}
	case raftpb.MsgReadIndex, raftpb.MsgReadIndexResp:
		if len(m.GetEntries()) != 1 {
			return fmt.Errorf("it holds %d request contexts", len(m.GetEntries()))
		}
	case raftpb.MsgApp:
		return checkLog(m)
	case raftpb.MsgVote, raftpb.MsgPreVote, raftpb.MsgAppResp:
		if m.GetLogTerm() > m.GetTerm() {
			return fmt.Errorf("the log of its sender ends in term %d, it is of term %d", m.GetLogTerm(), m.GetTerm())
		}
	case raftpb.MsgSnap:
		return checkSnapshot(m)
	}
	return nil
}

// checkLog checks the indexes and terms of an append: each entry follows the one before, and terms
// do not fall and are not beyond the leader's.
func checkLog(m *raftpb.Message) error {
	index, term := m.GetIndex(), m.GetLogTerm()
	if index > maxIndex {
		return fmt.Errorf("it begins behind index %d", index)
	}
	for _, e := range m.GetEntries() {
		if index++; e.GetIndex() != index {
			return fmt.Errorf("it holds entry %d in the place of entry %d", e.GetIndex(), index)
		}
		if e.GetTerm() < term || e.GetTerm() == 0 {
			return fmt.Errorf("entry %d is of term %d, the one before of term %d", index, e.GetTerm(), term)
		}
		term = e.GetTerm()
	}
	if term > m.GetTerm() {
		return fmt.Errorf("it is of term %d, and what it holds of term %d", m.GetTerm(), term)
	}
	return nil
}

// checkSnapshot checks what raft would panic on: the configuration, which here is never a joint
// one.
func checkSnapshot(m *raftpb.Message) error {
	meta := m.GetSnapshot().GetMetadata()
	cs := meta.GetConfState()
	all := slices.Concat(cs.GetVoters(), cs.GetLearners())
	slices.Sort(all)
	switch {
	case meta.GetIndex() == 0 || meta.GetIndex() > maxIndex || meta.GetTerm() == 0 || meta.GetTerm() > m.GetTerm():
		return fmt.Errorf("it is of term %d, its snapshot of index %d and term %d", m.GetTerm(), meta.GetIndex(), meta.GetTerm())
	case len(cs.GetVoters()) == 0 || all[0] == raft.None || len(slices.Compact(all)) != len(cs.GetVoters())+len(cs.GetLearners()),
		len(cs.GetVotersOutgoing())+len(cs.GetLearnersNext()) > 0, cs.GetAutoLeave():
		return fmt.Errorf("its snapshot has the members %v", cs)
	}
	return nil
}

// checkEntries reports whether the entries of an append or a proposal can be applied.
func checkEntries(m *raftpb.Message) error {
	typ := m.GetType()
	if typ != raftpb.MsgApp && typ != raftpb.MsgProp {
		return nil
	}
	for _, e := range m.GetEntries() {
		if e.GetType() == raftpb.EntryNormal {
			if data := e.GetData(); len(data) > 0 {
				if err := command.Check(data); err != nil {
					return fmt.Errorf("entry %d cannot be applied: %w", e.GetIndex(), err)
				}
			}
			continue
		}
		if typ == raftpb.MsgProp && len(m.GetEntries()) > 1 {
			return errors.New("a member change among other proposals") // the loop takes it to be alone
		}
		if _, _, err := decodeChange(e); err != nil {
			return fmt.Errorf("entry %d, a member change, cannot be applied: %w", e.GetIndex(), err)
		}
	}
	return nil
}

// maxTerm is the last term that a message may have, unless it is close to our own. Terms count
// elections, and no cluster has held a million of them for each second since 1970. The bound must
// not depend on the member that checks: a member that accepts a term that another refuses is lost
// to that other for good. So the bound is the time of day, on which members nearly agree, and which
// future elections do not catch up with. A lying member can raise the term to the bound and no
// further, and that does no harm. In half a million years the terms are used up.
func maxTerm(now time.Time) uint64 {
	return 1<<32 + min(uint64(max(0, now.Unix())), 1<<36)<<20
}

const (
	// nearTerms is how far beyond ours a term may always be: clocks may be set back.
	nearTerms       = 1 << 10
	refusedLogEvery = time.Second
	// maxIndex is above any index of a log: at a million entries a second it takes 100,000 years.
	maxIndex = 1 << 62
)

// takes reports whether raft may see a message of a peer, given what the loop knows.
func (l *loop) takes(m *raftpb.Message, now time.Time) bool {
	term := m.GetTerm()
	if m.GetType() == raftpb.MsgTransferLeader && term != 0 && !l.raftLeads() {
		return false // it was forwarded already, which is legitimate; raft panics if it is forwarded again
	}
	if m.GetFrom() == l.cfg.ID || raft.IsLocalMsgTarget(m.GetFrom()) {
		return true // our own
	}
	if term > l.term && term-l.term > nearTerms && term > maxTerm(now) {
		if own := l.node.BasicStatus().GetTerm(); term > own && term-own > nearTerms { // l.term may be a little behind
			l.refuseMessage(m, refusedTerm, now, zap.Uint64("message-term", term), zap.Uint64("local-member-term", own))
			return false
		}
	}
	if m.GetType() == raftpb.MsgAppResp && term == l.term && l.state == raft.StateLeader && !m.GetReject() {
		if last, _ := l.cfg.Log.LastIndex(); m.GetIndex() > last { // the log in memory cannot fail
			l.refuseMessage(m, refusedAck, now, zap.Uint64("acknowledged-index", m.GetIndex()), zap.Uint64("last-index", last))
			return false
		}
	}
	if m.GetType() == raftpb.MsgHeartbeatResp && len(m.GetContext()) > 0 && !l.heartbeats.asked(m) {
		if own := l.node.BasicStatus(); own.RaftState == raft.StateLeader && own.GetTerm() == term { // else raft does not read it
			l.refuseMessage(m, refusedAck, now, zap.Binary("acknowledged-reads", m.GetContext()), zap.Uint64("last-asked", l.heartbeats.reads))
			return false
		}
	}
	return true
}

// heartbeats knows which reads this member has asked about as a leader. Raft numbers the reads of a
// term from 1; the context of a heartbeat is the number of the newest read that it is to confirm,
// and the answer repeats it. Raft slices its list of reads by the number that a majority has
// answered, and does not check that it has asked.
type heartbeats struct {
	term  uint64 // of the newest heartbeat with a context
	reads uint64 // the newest read that the heartbeats of that term ask about
}

// sent takes note of a heartbeat that raft sends.
func (h *heartbeats) sent(m *raftpb.Message) {
	if len(m.GetContext()) != readsBytes {
		return
	}
	if m.GetTerm() != h.term {
		h.term, h.reads = m.GetTerm(), 0
	}
	h.reads = max(h.reads, binary.LittleEndian.Uint64(m.GetContext()))
}

// asked reports whether an answer with a context is of a heartbeat that was sent in its term.
func (h *heartbeats) asked(m *raftpb.Message) bool {
	return m.GetTerm() == h.term && len(m.GetContext()) == readsBytes && binary.LittleEndian.Uint64(m.GetContext()) <= h.reads
}

// readsBytes is the length of a heartbeat's context: a little-endian number.
const readsBytes = 8

// refuseMessage counts a refused message, and logs it, but not every one.
func (l *loop) refuseMessage(m *raftpb.Message, why string, now time.Time, fields ...zap.Field) {
	l.metrics.Refused.WithLabelValues(why).Inc()
	if !l.refusedLogged.IsZero() && now.Sub(l.refusedLogged) < refusedLogEvery {
		return
	}
	l.refusedLogged = now
	l.logger.Warn("refused a Raft message that no member sends: who can reach the peer port?", append(fields,
		zap.String("local-member-id", command.IDText(l.cfg.ID)), zap.String("from", command.IDText(m.GetFrom())),
		zap.Stringer("message-type", m.GetType()), zap.String("why", why))...)
}

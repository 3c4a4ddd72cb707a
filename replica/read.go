package replica

import (
	"bytes"
	"context"
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/peers"
)

// readRound is one ReadIndex request to the leader, for every reader that was waiting when it was
// sent. Its answer is an index that covers all writes acknowledged before the request, and so
// before each of its readers arrived.
type readRound struct {
	done  chan struct{} // closed when err is set and readers may go on
	err   error
	then  []func(error) // of the readers that do not wait
	index uint64        // known once the leader has answered

	born     time.Time // when it was begun with: the request timeout runs from here
	asked    time.Time
	contexts []uint64 // request contexts under which it was sent
	// unasked: the member it should be sent to now cannot be asked yet. It may have been sent to an
	// earlier leader.
	unasked bool
}

// end lets the readers go on. Those that do not wait are called in a goroutine of their own, one
// after the other: neither the loop nor the applier may wait for them.
func (r *readRound) end() {
	close(r.done)
	if len(r.then) > 0 {
		go func() {
			for _, then := range r.then {
				then(r.err)
			}
		}()
	}
}

// reads is what readers share with the loop and the applier.
type reads struct {
	mu   sync.Mutex
	next *readRound // readers that no question has been sent for; nil: none
	// answered rounds wait for the applier, in index order.
	answered []*readRound
	closed   bool
}

// questions are the ReadIndex questions that the loop has sent or holds.
type questions struct {
	*core
	reads *reads

	rounds []*readRound // without an answer, the oldest first
	// byContext finds a round by the request context of each ReadIndex that was
	// sent for it. It holds no other rounds than those of rounds.
	byContext map[uint64]*readRound
	// others are other members' ReadIndex, the last of each, that cannot be answered yet.
	others      map[uint64]*raftpb.Message
	lastContext uint64 // the last request context used
	readTerm    uint64 // a term in which this member led and had committed an entry
}

func (q *questions) init(c *core, r *reads, lastContext uint64) {
	*q = questions{core: c, reads: r, byContext: make(map[uint64]*readRound), others: make(map[uint64]*raftpb.Message), lastContext: lastContext}
}

// ReadBarrier returns when this member has applied every write that was acknowledged, by any
// member, before the call. It touches no disk. It waits for a change of leader, and for what is not
// applied yet, within the request timeout; then ErrTimeout.
func (r *Replica) ReadBarrier(ctx context.Context) error {
	round, err := r.reads.join(nil, &r.inbox)
	if err != nil {
		return err
	}
	select {
	case <-round.done:
		return round.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ReadBarrierThen is ReadBarrier for a reader without a goroutine: it does not wait, and then is
// called with the error once, from another goroutine, where others wait for it to return. Whoever
// does not want to wait any longer ignores it.
func (r *Replica) ReadBarrierThen(then func(error)) {
	if _, err := r.reads.join(then, &r.inbox); err != nil {
		go then(err)
	}
}

// join takes part in the next question, for which the loop is woken; then may be nil.
func (q *reads) join(then func(error), loop *inbox) (*readRound, error) {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return nil, ErrStopped
	}
	round, first := q.next, q.next == nil
	if first {
		round = &readRound{done: make(chan struct{})}
		q.next = round
	}
	if then != nil {
		round.then = append(round.then, then)
	}
	q.mu.Unlock()
	if first {
		loop.signal()
	}
	return round, nil
}

// start sends the question for the readers that wait. One question is
// under way at a time: those who come meanwhile share the next.
func (q *questions) start() {
	if len(q.rounds) > 0 {
		return
	}
	q.reads.mu.Lock()
	round := q.reads.next
	q.reads.next = nil
	q.reads.mu.Unlock()
	if round == nil {
		return
	}
	round.born = time.Now() // as long as the round before was under way, nobody had asked for this one
	q.rounds = append(q.rounds, round)
	q.send(round)
}

// send asks the leader, or leaves it to reissue while there is none.
func (q *questions) send(round *readRound) {
	round.asked = time.Now()
	round.unasked = true
	if q.leader == raft.None || !q.leadsWithCommit() || q.removed() {
		return
	}
	round.unasked = false
	id, requestContext := q.nextContext()
	round.contexts = append(round.contexts, id)
	q.byContext[id] = round
	q.node.ReadIndex(requestContext)
}

// leadsWithCommit reports whether this member, if it leads, has committed an entry in its term.
// Until then its commit index may lie below what an earlier leader acknowledged. Raft holds
// questions back until then, but answers at once where the leader is the only voter: after a crash
// such a member would serve reads from before its last writes.
func (q *questions) leadsWithCommit() bool {
	// raft's own word, not that of the last Ready: an election may have been won
	// by a message of this round.
	status := q.node.BasicStatus()
	if status.RaftState != raft.StateLeader || q.readTerm == status.GetTerm() {
		return true
	}
	term, err := q.cfg.Log.Term(status.GetCommit())
	if err != nil || term != status.GetTerm() {
		return false
	}
	q.readTerm = term
	return true
}

// holds keeps another member's question that cannot be answered yet, and says so. Each member
// has one question at a time: what it asked before it asks no more.
func (q *questions) holds(m *raftpb.Message) bool {
	if q.leadsWithCommit() && !q.removed() {
		return false
	}
	q.others[m.GetFrom()] = m
	return true
}

// vouch adds the term of this member to a question that it sends.
func (q *questions) vouch(m *raftpb.Message) {
	if m.GetFrom() == q.cfg.ID { // others vouch for themselves: this one may only pass it on
		m.Context = binary.BigEndian.AppendUint64([]byte(peers.ContextTerm), q.node.BasicStatus().GetTerm())
	}
}

// vouched reports whether a question says that its sender was in a term when it sent it.
func vouched(m *raftpb.Message, term uint64) bool {
	told, ok := bytes.CutPrefix(m.GetContext(), []byte(peers.ContextTerm))
	return ok && len(told) == 8 && binary.BigEndian.Uint64(told) == term
}

// answer answers another member's question, or lets raft do so, which asks all others first whether
// this member leads still. Where the one that asks and this member are a quorum, as in a cluster of
// three, nobody has to be asked: the question itself says that, after its readers came, the sender
// had not voted in a later term. Nor has this member, now. So when the readers came no later leader
// had been elected, and nothing had been acknowledged that is not committed here.
//
// REQUIRES: leadsWithCommit and not removed, if this member leads.
func (q *questions) answer(m *raftpb.Message) {
	status := q.node.BasicStatus()
	if status.RaftState != raft.StateLeader || !vouched(m, status.GetTerm()) || !q.quorum(m.GetFrom()) {
		_ = q.node.Step(m)
		return
	}
	q.cfg.Network.Send([]*raftpb.Message{{
		Type: raftpb.MsgReadIndexResp.Enum(), From: new(q.cfg.ID), To: new(m.GetFrom()), Term: new(status.GetTerm()),
		Index: new(status.GetCommit()), Entries: m.GetEntries(),
	}})
}

// quorum reports whether this member and another are voters, and enough of them.
func (q *questions) quorum(other uint64) bool {
	return other != q.cfg.ID && q.votes() && slices.Contains(q.voters(), other) && command.Quorum(len(q.voters())) <= 2
}

// sendHeld asks what send could not ask before, and answers the questions of other members that
// raft would have answered too early.
func (q *questions) sendHeld() {
	if len(q.others) > 0 && q.leadsWithCommit() && !q.removed() {
		for _, m := range q.others {
			q.answer(m)
		}
		clear(q.others)
	}
	for _, round := range q.rounds {
		if round.unasked {
			q.send(round)
		}
	}
}

// answered takes the leader's answer.
func (q *questions) answered(rs *raft.ReadState) {
	if len(rs.RequestCtx) != 8 {
		return
	}
	round := q.byContext[binary.BigEndian.Uint64(rs.RequestCtx)]
	if round == nil {
		return // a late answer to a question that was answered under another context
	}
	q.forget(round)
	round.index = rs.Index
	q.reads.await(round, q.pub.applied.Load)
	q.start()
}

func (q *questions) forget(round *readRound) {
	for _, id := range round.contexts {
		delete(q.byContext, id)
	}
	for i, other := range q.rounds {
		if other == round {
			q.rounds = append(q.rounds[:i], q.rounds[i+1:]...)
			break
		}
	}
}

// retry asks again for rounds that got no answer: questions are not
// acknowledged, so one may have been lost or sent to a leader that is no more.
func (q *questions) retry(now time.Time) {
	for i := 0; i < len(q.rounds); i++ {
		round := q.rounds[i]
		if now.Sub(round.born) >= q.cfg.RequestTimeout {
			q.forget(round)
			i--
			q.metrics.ReadIndexFailed.Inc()
			round.err = ErrTimeout
			round.end()
			continue
		}
		if now.Sub(round.asked) >= readRetryInterval {
			q.metrics.ReadIndexSlow.Inc()
			q.logger.Warn("waiting for ReadIndex response took too long, retrying",
				zap.Uint64("sent-request-id", q.lastContext), zap.Duration("retry-timeout", readRetryInterval))
			q.send(round)
		}
	}
	q.reads.expire(now.Add(-q.cfg.RequestTimeout))
	q.start()
}

// reissue asks the new leader what the old one did not answer.
func (q *questions) reissue() {
	for _, round := range q.rounds {
		q.send(round)
	}
}

// await releases a round's readers once its index is applied.
func (q *reads) await(round *readRound, applied func() uint64) {
	q.mu.Lock()
	// Under the lock: advance runs after applied was raised and takes the lock,
	// so either it sees this round or we see its index.
	if applied() >= round.index {
		q.mu.Unlock()
		round.end()
		return
	}
	i := len(q.answered)
	for i > 0 && q.answered[i-1].index > round.index {
		i--
	}
	q.answered = append(q.answered, nil)
	copy(q.answered[i+1:], q.answered[i:])
	q.answered[i] = round
	q.mu.Unlock()
}

// advance is called by the applier after it raised the applied index.
func (q *reads) advance(applied uint64) {
	q.mu.Lock()
	n := 0
	for n < len(q.answered) && q.answered[n].index <= applied {
		q.answered[n].end()
		n++
	}
	if n > 0 {
		q.answered = append(q.answered[:0], q.answered[n:]...)
	}
	q.mu.Unlock()
}

// expire ends the rounds that began at or before a time and whose index is not applied yet:
// applying hangs, or is too far behind.
func (q *reads) expire(born time.Time) {
	q.mu.Lock()
	q.answered = slices.DeleteFunc(q.answered, func(round *readRound) bool {
		if round.born.After(born) {
			return false
		}
		round.err = ErrTimeout
		round.end()
		return true
	})
	q.mu.Unlock()
}

func (q *reads) closeAll(asked []*readRound) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	all := append(asked, q.answered...)
	if q.next != nil {
		all = append(all, q.next)
	}
	q.next, q.answered = nil, nil
	for _, round := range all {
		round.err = ErrStopped
		round.end()
	}
}

func (q *questions) nextContext() (uint64, []byte) {
	q.lastContext++
	return q.lastContext, binary.BigEndian.AppendUint64(nil, q.lastContext)
}

package replica

import (
	"context"
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"go.etcd.io/raft/v3"
	"go.uber.org/zap"
)

// readRound is one ReadIndex question to the leader, asked for every reader
// that was waiting when it was sent. Its answer is an index that covers all
// writes acknowledged before the question, hence before each of its readers
// arrived.
type readRound struct {
	done  chan struct{} // closed when err is set and readers may go on
	err   error
	index uint64 // known once the leader has answered

	born     time.Time // when it was begun with: the request timeout runs from here
	asked    time.Time
	contexts []uint64 // request contexts under which it was sent
	// unasked: whom it should be sent to now cannot be asked yet. It may have been
	// sent to an earlier leader.
	unasked bool
}

// reads is what readers share with the loop and the applier.
type reads struct {
	mu   sync.Mutex
	next *readRound // readers that no question has been sent for; nil: none
	// answered rounds wait for the applier, in index order.
	answered []*readRound
	closed   bool
}

// ReadBarrier returns when this member has applied every write that was
// acknowledged, by any member, before the call. It touches no disk. A change of
// leader, and what is not applied yet, is waited for within the request timeout;
// then ErrTimeout.
func (r *Replica) ReadBarrier(ctx context.Context) error {
	q := &r.reads
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return ErrStopped
	}
	round := q.next
	if round == nil {
		round = &readRound{done: make(chan struct{})}
		q.next = round
		q.mu.Unlock()
		r.inbox.signal()
	} else {
		q.mu.Unlock()
	}
	select {
	case <-round.done:
		return round.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// startReads sends the question for the readers that wait. One question is
// under way at a time: those who come meanwhile share the next.
func (l *loop) startReads() {
	if len(l.rounds) > 0 {
		return
	}
	l.reads.mu.Lock()
	round := l.reads.next
	l.reads.next = nil
	l.reads.mu.Unlock()
	if round == nil {
		return
	}
	round.born = time.Now() // as long as the round before was under way, nobody had asked for this one
	l.rounds = append(l.rounds, round)
	l.sendRead(round)
}

// sendRead asks the leader, or leaves it to reissueReads while there is none.
func (l *loop) sendRead(round *readRound) {
	round.asked = time.Now()
	round.unasked = true
	if l.leader == raft.None || !l.leadsWithCommit() || l.removed() {
		return
	}
	round.unasked = false
	id, requestContext := l.nextReadContext()
	round.contexts = append(round.contexts, id)
	l.byContext[id] = round
	l.node.ReadIndex(requestContext)
}

// removed says whether this member leads although it votes no more. Raft answers
// questions without asking anybody where one voter is left, even if that is another
// member, which may have elected itself by now.
func (l *loop) removed() bool {
	return l.node.BasicStatus().RaftState == raft.StateLeader && !slices.Contains(*l.pub.voters.Load(), l.cfg.ID)
}

// leadsWithCommit says whether this member, if it leads, has committed an entry
// in its term. Until then its commit index may lie below what an earlier leader
// acknowledged. Raft holds questions back until then, but answers at once where
// the leader is the only voter: after a crash such a member would serve reads
// from before its last writes.
func (l *loop) leadsWithCommit() bool {
	// raft's own word, not that of the last Ready: an election may have been won
	// by a message of this round.
	status := l.node.BasicStatus()
	if status.RaftState != raft.StateLeader || l.readTerm == status.GetTerm() {
		return true
	}
	term, err := l.cfg.Log.Term(status.GetCommit())
	if err != nil || term != status.GetTerm() {
		return false
	}
	l.readTerm = term
	return true
}

// sendHeldReads asks what sendRead could not ask before, and gives raft the questions
// of other members that it would have answered too early.
func (l *loop) sendHeldReads() {
	if len(l.questions) > 0 && l.leadsWithCommit() && !l.removed() {
		for _, m := range l.questions {
			_ = l.node.Step(m)
		}
		clear(l.questions)
	}
	for _, round := range l.rounds {
		if round.unasked {
			l.sendRead(round)
		}
	}
}

// readIndexKnown takes the leader's answer.
func (l *loop) readIndexKnown(rs *raft.ReadState) {
	if len(rs.RequestCtx) != 8 {
		return
	}
	round := l.byContext[binary.BigEndian.Uint64(rs.RequestCtx)]
	if round == nil {
		return // a late answer to a question that was answered under another context
	}
	l.forget(round)
	round.index = rs.Index
	l.reads.await(round, l.pub.applied.Load)
	l.startReads()
}

func (l *loop) forget(round *readRound) {
	for _, id := range round.contexts {
		delete(l.byContext, id)
	}
	for i, other := range l.rounds {
		if other == round {
			l.rounds = append(l.rounds[:i], l.rounds[i+1:]...)
			break
		}
	}
}

// retryReads asks again for rounds that got no answer: questions are not
// acknowledged, so one may have been lost or sent to a leader that is no more.
func (l *loop) retryReads(now time.Time) {
	for i := 0; i < len(l.rounds); i++ {
		round := l.rounds[i]
		if now.Sub(round.born) >= l.cfg.RequestTimeout {
			l.forget(round)
			i--
			l.metrics.ReadIndexFailed.Inc()
			round.err = ErrTimeout
			close(round.done)
			continue
		}
		if now.Sub(round.asked) >= readRetryInterval {
			l.metrics.ReadIndexSlow.Inc()
			l.logger.Warn("waiting for ReadIndex response took too long, retrying",
				zap.Uint64("sent-request-id", l.lastRead), zap.Duration("retry-timeout", readRetryInterval))
			l.sendRead(round)
		}
	}
	l.reads.expire(now.Add(-l.cfg.RequestTimeout))
	l.startReads()
}

// reissueReads asks the new leader what the old one did not answer.
func (l *loop) reissueReads() {
	for _, round := range l.rounds {
		l.sendRead(round)
	}
}

// await lets a round's readers go on once its index is applied.
func (q *reads) await(round *readRound, applied func() uint64) {
	q.mu.Lock()
	// Under the lock: advance runs after applied was raised and takes the lock,
	// so either it sees this round or we see its index.
	if applied() >= round.index {
		q.mu.Unlock()
		close(round.done)
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
		close(q.answered[n].done)
		n++
	}
	if n > 0 {
		q.answered = append(q.answered[:0], q.answered[n:]...)
	}
	q.mu.Unlock()
}

// expire ends the rounds that began at or before a time and whose index is not applied
// yet: applying hangs, or is that far behind.
func (q *reads) expire(born time.Time) {
	q.mu.Lock()
	q.answered = slices.DeleteFunc(q.answered, func(round *readRound) bool {
		if round.born.After(born) {
			return false
		}
		round.err = ErrTimeout
		close(round.done)
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
		close(round.done)
	}
}

func (l *loop) nextReadContext() (uint64, []byte) {
	l.lastRead++
	return l.lastRead, binary.BigEndian.AppendUint64(nil, l.lastRead)
}

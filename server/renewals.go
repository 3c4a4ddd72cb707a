package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/peers"
	"github.com/belaydb/belay/replica"
)

// Renewals are what members ask the leader most: each keepalive of a client that is not connected to
// the leader is one. So they go over one connection from each member to the leader (peers.Line),
// many in one write, and cost each side a frame instead of a request of HTTP. While there is no such
// connection (one is being opened, or the leader is an etcd, or a Belay of before), they go as
// requests, one each.
//
// A renewal may be asked twice: what has become of one whose connection broke does not matter, as it
// does not for a request that broke. Nor does their order.

const (
	// maxRenewals bounds the questions of a member that have no answer yet. Others wait for
	// forwardPause, as long as their calls last.
	maxRenewals = 16_000
	// maxSlowRenewals bounds those that the leader answers at the same time for one member, of the
	// ones that have to wait for something. The others are told to come again.
	maxSlowRenewals = 1000
	// openTimeout bounds the opening of a connection, reopenPause is the time between two attempts,
	// and unspokenPause that after an answer of a member that does not speak the protocol: it may
	// have been started anew.
	openTimeout   = 2 * time.Second
	reopenPause   = 100 * time.Millisecond
	unspokenPause = 10 * time.Second
	// unusedBeats is after how many beats without a question a connection is closed.
	unusedBeats = 60
)

var (
	errRenewalsFull = errors.New("server: too many renewals wait for the leader's answers")
	errLeaderMoved  = errors.New("server: leadership has moved since the leader was asked")
	errLineLost     = errors.New("server: the connection to the leader broke")
	errLeaderBusy   = errors.New("server: the leader cannot renew now")
)

// renewals is the connection of this member to the leader. Its methods may be called from any
// goroutine.
type renewals struct {
	open   func(ctx context.Context, id uint64) (io.ReadWriteCloser, error)
	raft   leadership
	life   *lifetime
	logger *zap.Logger

	mu        sync.Mutex
	line      *leaderLine // the newest; it may have ended
	opening   bool
	asked     uint64    // who was asked for a connection last
	notBefore time.Time // when that member may be asked again
}

// to is the connection to the leader; nil: there is none, but there may be one soon.
func (r *renewals) to(leader uint64) *leaderLine {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.line; l != nil && l.to == leader && !l.hasEnded() {
		return l
	}
	if r.open != nil && !r.opening && (leader != r.asked || !time.Now().Before(r.notBefore)) {
		r.opening = true
		r.life.background(func(stopped context.Context) { r.run(stopped, leader) })
	}
	return nil
}

// run opens a connection, and lets it run until it ends.
func (r *renewals) run(stopped context.Context, leader uint64) {
	ctx, cancel := context.WithTimeout(stopped, openTimeout)
	conn, err := r.open(ctx, leader)
	cancel()
	var l *leaderLine
	if err == nil {
		l = newLeaderLine(leader, conn)
	}
	r.mu.Lock()
	r.opening, r.asked, r.notBefore = false, leader, time.Now().Add(reopenPause)
	if errors.Is(err, peers.ErrNotUpgraded) {
		r.notBefore = time.Now().Add(unspokenPause)
	}
	if l != nil {
		r.line = l
	}
	r.mu.Unlock()
	fields := []zap.Field{zap.String("leader", command.IDText(leader))}
	if l == nil {
		r.logger.Debug("no connection to the leader for renewals: they go as requests", append(fields, zap.Error(err))...)
		return
	}
	r.logger.Debug("renewals go to the leader over one connection", fields...)
	forget := context.AfterFunc(stopped, func() { l.line.Close(replica.ErrStopped) })
	defer forget()
	err = l.run(func() bool { return r.raft.Status().Leader == leader })
	r.logger.Debug("the connection to the leader for renewals has ended", append(fields, zap.Error(err))...)
}

// leaderLine is a connection to a leader, with the questions that wait for its answers.
type leaderLine struct {
	to   uint64
	line *peers.Line

	mu      sync.Mutex
	number  uint64                                // of the last question
	waiting map[uint64]chan<- peers.RenewalAnswer // nil: the connection has ended
	unused  int                                   // beats since the last question
}

func newLeaderLine(to uint64, conn io.ReadWriteCloser) *leaderLine {
	return &leaderLine{
		to: to, line: peers.NewLine(conn, peers.RenewalQuestion{}.AppendTo(nil)),
		waiting: make(map[uint64]chan<- peers.RenewalAnswer),
	}
}

func (l *leaderLine) hasEnded() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waiting == nil
}

// run reads answers until the connection ends, and returns why. leads reports whether the other side
// leads, as far as is known.
func (l *leaderLine) run(leads func() bool) error {
	err := l.line.Run(peers.RenewalAnswerBytes, l.take, func() bool { return leads() && l.wanted() })
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.waiting {
		close(c)
	}
	l.waiting = nil
	return err
}

// wanted reports whether anything was asked of late.
func (l *leaderLine) wanted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unused++
	return l.unused <= unusedBeats || len(l.waiting) > 0
}

func (l *leaderLine) take(frames []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for ; len(frames) > 0; frames = frames[peers.RenewalAnswerBytes:] {
		a, err := peers.ReadRenewalAnswer(frames)
		if err != nil {
			return err
		}
		if c := l.waiting[a.Number]; c != nil { // else nobody waits any more
			delete(l.waiting, a.Number)
			c <- a // there is room for it
		}
	}
	return nil
}

// ask sends a question; its answer, or the end of the connection, comes from the channel.
func (l *leaderLine) ask(id lease.ID, patience time.Duration) (number uint64, answer <-chan peers.RenewalAnswer, err error) {
	c := make(chan peers.RenewalAnswer, 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.waiting == nil:
		return 0, nil, errLineLost
	case len(l.waiting) >= maxRenewals:
		return 0, nil, errRenewalsFull
	}
	var frame [peers.RenewalQuestionBytes]byte
	q := peers.RenewalQuestion{Number: l.number + 1, Lease: int64(id), Patience: uint32(min(max(patience.Milliseconds(), 1), 1<<31))}
	if err := l.line.Append(q.AppendTo(frame[:0])); err != nil {
		if errors.Is(err, peers.ErrLineFull) {
			err = errRenewalsFull
		}
		return 0, nil, err
	}
	l.number = q.Number
	l.waiting[q.Number] = c
	l.unused = 0
	return q.Number, c, nil
}

// renew has the leader renew a lease. It gives up when changed is closed: there may be another
// leader. Of its errors lease.ErrNotFound is an answer; after all others the renewal may have come to
// pass, or not, and is to be asked for again.
func (l *leaderLine) renew(ctx context.Context, changed <-chan struct{}, id lease.ID) (int64, error) {
	patience := openTimeout
	if until, ok := ctx.Deadline(); ok {
		patience = time.Until(until)
	}
	number, answered, err := l.ask(id, patience)
	if err != nil {
		return 0, err
	}
	l.line.Flush()
	select {
	case a, ok := <-answered:
		return outcomeOf(a, ok)
	case <-ctx.Done():
		err = ctx.Err()
	case <-changed:
		err = errLeaderMoved
	}
	l.mu.Lock()
	delete(l.waiting, number)
	l.mu.Unlock()
	return 0, err
}

// outcomeOf is what an answer says; ok is false for one that will not come.
func outcomeOf(a peers.RenewalAnswer, ok bool) (ttl int64, err error) {
	switch {
	case !ok:
		return 0, errLineLost
	case a.Outcome == peers.RenewalDone:
		return a.TTL, nil
	case a.Outcome == peers.RenewalNoLease:
		return 0, lease.ErrNotFound
	}
	return 0, errLeaderBusy
}

// renewalAnswers is the leader's side of these connections: one for each member.
type renewalAnswers struct {
	memberID uint64
	lease    *leaseService
	member   func(id uint64) *command.Member // nil: it is none
	removed  func(id uint64) bool
	life     *lifetime
	logger   *zap.Logger

	mu    sync.Mutex
	lines map[uint64]*peers.Line // by the member at the other end
}

// serveHTTP takes over the connection of a request that asks for one. The sender has been judged
// by its headers.
func (a *renewalAnswers) serveHTTP(w http.ResponseWriter, r *http.Request) {
	if to := r.Header.Get(peers.HeaderTo); to != command.IDText(a.memberID) {
		http.Error(w, "to field mismatch", http.StatusPreconditionFailed)
		return
	}
	from, err := strconv.ParseUint(r.Header.Get(peers.HeaderFrom), 16, 64)
	if err != nil || a.member(from) == nil || a.removed(from) {
		http.Error(w, "the sender is no member", http.StatusNotFound)
		return
	}
	conn := peers.Upgrade(w, r, peers.ProtocolRenewals)
	if conn == nil {
		return
	}
	err = a.answer(from, conn)
	a.logger.Debug("a member's connection for renewals has ended", zap.String("member", command.IDText(from)), zap.Error(err))
}

var errLineReplaced = errors.New("the member has opened another connection")

// answer answers a member until the connection ends, and returns why.
func (a *renewalAnswers) answer(from uint64, conn io.ReadWriteCloser) error {
	line := peers.NewLine(conn, peers.RenewalAnswer{}.AppendTo(nil))
	a.mu.Lock()
	before := a.lines[from]
	a.lines[from] = line
	a.mu.Unlock()
	if before != nil {
		before.Close(errLineReplaced)
	}
	forget := context.AfterFunc(a.life.stopped, func() { line.Close(replica.ErrStopped) })
	defer forget()
	ctx, cancel := context.WithCancel(a.life.stopped)
	var slow sync.WaitGroup
	defer func() {
		cancel()
		slow.Wait()
		a.mu.Lock()
		if a.lines[from] == line {
			delete(a.lines, from)
		}
		a.mu.Unlock()
	}()
	turns := make(chan struct{}, maxSlowRenewals)
	var answers []byte // of one read
	return line.Run(peers.RenewalQuestionBytes, func(frames []byte) error {
		if a.removed(from) {
			return fmt.Errorf("member %s was removed", command.IDText(from))
		}
		answers = answers[:0]
		for ; len(frames) > 0; frames = frames[peers.RenewalQuestionBytes:] {
			q, err := peers.ReadRenewalQuestion(frames)
			if err != nil {
				return err
			}
			if q.Number == 0 {
				continue
			}
			ttl, ok := a.lease.renewNow(lease.ID(q.Lease))
			if ok {
				answers = peers.RenewalAnswer{Number: q.Number, TTL: ttl}.AppendTo(answers)
				continue
			}
			select {
			case turns <- struct{}{}:
				slow.Go(func() {
					defer func() { <-turns }()
					// What has no room ends a connection: who asks so much takes no answers.
					if err := line.Append(a.slowly(ctx, q).AppendTo(nil)); err != nil {
						line.Close(err)
					}
					line.Flush()
				})
			default:
				answers = peers.RenewalAnswer{Number: q.Number, Outcome: peers.RenewalNotNow}.AppendTo(answers)
			}
		}
		if len(answers) == 0 {
			return nil
		}
		defer line.Flush()
		return line.Append(answers)
	}, nil)
}

// slowly answers a question that waits for something: for a round of heartbeats, an entry.
func (a *renewalAnswers) slowly(ctx context.Context, q peers.RenewalQuestion) peers.RenewalAnswer {
	ctx, cancel := context.WithTimeout(ctx, min(time.Duration(q.Patience)*time.Millisecond, a.lease.leader.timeout))
	defer cancel()
	ttl, err := a.lease.renewHere(ctx, lease.ID(q.Lease))
	switch {
	case err == nil:
		return peers.RenewalAnswer{Number: q.Number, TTL: ttl}
	case errors.Is(err, lease.ErrNotFound):
		return peers.RenewalAnswer{Number: q.Number, Outcome: peers.RenewalNoLease}
	}
	return peers.RenewalAnswer{Number: q.Number, Outcome: peers.RenewalNotNow}
}

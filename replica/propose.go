package replica

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
)

// A Completion is told how a proposal ended.
type Completion interface {
	// Completed is called once, with the result of applying the request or with one of the errors of
	// errors.go. It is called by whoever ends the proposal: the applier, which goes on with the next
	// one when it returns; the raft loop; or the goroutine that proposes or cancels. So it does little
	// and does not wait; it may call the Replica. No lock is held.
	Completed(result command.Result, err error)
}

// proposal is one request on its way through the log, from ProposeThen to its result. Whoever
// removes it from waiters ends it: the applier with a result, the loop with a timeout or when it
// stops, the proposer when it does not want to wait any longer. The applier removes it only when it
// has the result: applying may hang with the store's disk, and then nobody else could end the call.
//
// What makes the end one, whoever races whom:
//
//   - A proposal is removed under its shard's lock, so by one goroutine, which calls Completed after
//     the lock is released. Nobody else does.
//   - It is in waiters before the inbox has it: a result finds it.
//   - Ids are not used twice. So who cancels too late, or twice, finds nothing, and keeps nothing
//     that belongs to another.
//   - closeAll closes a shard before it empties it, and add into a closed shard ends the proposal:
//     after Stop nobody waits.
//   - state decides between the loop, which gives the proposal to raft, and those who give it up. The
//     context's own error, which says that the request had and will have no effect, is told by who won.
//   - A result is delivered when the applied index that covers it has been published.
type proposal struct {
	id      uint64
	entry   *raftpb.Entry
	buffer  *[]byte                 // what entry.Data is in, to be used again; nil: not pooled
	request *pb.InternalRaftRequest // the decoded form, kept for our own apply
	change  *command.Change
	born    time.Time
	then    Completion

	// state goes waiting -> proposed (by the loop, back only if raft dropped
	// it) or waiting -> abandoned (by the caller or the sweeper).
	state atomic.Int32

	large  int64         // the encoded size in bytes of one that passes the window, which encodes it; 0 of others
	waited time.Duration // outside the window, of one that has passed it; its mutex guards it

	// gone: nobody waits for the result any more. The applier may skip what is done only for the
	// answer.
	gone atomic.Bool
}

const (
	proposalWaiting   int32 = iota // in the inbox or held for a leader
	proposalProposed               // raft has it: it may be applied from now on
	proposalAbandoned              // never given to raft and never will be
)

func (p *proposal) markProposed() bool {
	return p.state.CompareAndSwap(proposalWaiting, proposalProposed)
}

func (p *proposal) unmarkProposed() {
	p.state.CompareAndSwap(proposalProposed, proposalWaiting)
}

func (p *proposal) abandoned() bool { return p.state.Load() == proposalAbandoned }

// abandon reports whether the proposal had not been given to raft.
func (p *proposal) abandon() bool {
	return p.state.CompareAndSwap(proposalWaiting, proposalAbandoned)
}

// waiters are the proposals without a result, by request id, in shards so that a thousand clients
// do not contend for one lock.
type waiters struct {
	metrics *Metrics
	window  *window // of the large ones
	shards  [waiterShards]waiterShard
}

const waiterShards = 64

type waiterShard struct {
	mu   sync.Mutex
	byID map[uint64]*proposal
	// closed: the replica has stopped, and nobody would end another proposal.
	closed bool
	_      [40]byte // a shard to a cache line
}

func (w *waiters) init(m *Metrics, large *window) {
	w.metrics, w.window = m, large
	for i := range w.shards {
		w.shards[i].byID = make(map[uint64]*proposal)
	}
}

func (w *waiters) shard(id uint64) *waiterShard { return &w.shards[id%waiterShards] }

// end tells how p ended. REQUIRES: it is not in w, and the caller has removed it or not added it; no
// lock is held.
func (w *waiters) end(p *proposal, result command.Result, err error) {
	w.metrics.Pending.Add(-1)
	if p.large > 0 {
		result.Waited = w.window.ended(p)
	}
	if err != nil {
		w.metrics.Failed.Inc()
	}
	p.then.Completed(result, err)
}

// add makes p findable; after closeAll it ends p at once.
func (w *waiters) add(p *proposal) {
	w.metrics.Pending.Add(1)
	s := w.shard(p.id)
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.byID[p.id] = p
	}
	s.mu.Unlock()
	if closed {
		p.abandon()
		w.end(p, command.Result{}, ErrStopped)
	}
}

// find returns the proposal id and leaves it where it is; nil if nobody here waits
// for it. It may end at any time: only what never changes may be read of it.
func (w *waiters) find(id uint64) *proposal {
	s := w.shard(id)
	s.mu.Lock()
	p := s.byID[id]
	s.mu.Unlock()
	return p
}

// finish ends the proposal id if anybody here still waits for it.
func (w *waiters) finish(id uint64, result command.Result, err error) {
	if p := w.take(id); p != nil {
		w.end(p, result, err)
	}
}

// take removes and returns the proposal id, nil if nobody here waits for it.
func (w *waiters) take(id uint64) *proposal {
	s := w.shard(id)
	s.mu.Lock()
	p := s.byID[id]
	if p != nil {
		delete(s.byID, id)
	}
	s.mu.Unlock()
	return p
}

// expire ends the proposals that waited longer than the request timeout. One
// sweep in half a second costs less than a timer for each request.
func (w *waiters) expire(e *env, now time.Time) {
	for i := range w.shards {
		s := &w.shards[i]
		var late []*proposal
		s.mu.Lock()
		for id, p := range s.byID {
			if now.Sub(p.born) >= e.cfg.RequestTimeout {
				delete(s.byID, id)
				late = append(late, p)
			}
		}
		s.mu.Unlock()
		for _, p := range late {
			p.gone.Store(true)
			err := context.DeadlineExceeded // there was no leader to propose to: etcd's callers see the bare error
			if !p.abandon() {
				err = e.timeoutCause(p.born)
			}
			w.end(p, command.Result{}, err)
		}
	}
}

// closeAll ends all proposals, and has add end those that come later.
func (w *waiters) closeAll() {
	for i := range w.shards {
		s := &w.shards[i]
		s.mu.Lock()
		all := s.byID
		s.closed, s.byID = true, make(map[uint64]*proposal)
		s.mu.Unlock()
		for _, p := range all {
			p.abandon()
			w.end(p, command.Result{}, ErrStopped)
		}
	}
}

// ProposeThen replicates a request and has then told when this member has applied it; it waits for
// nothing itself. It fills the request's header id; the request must not be changed afterwards, not
// even when it has ended with an error. With an error of ProposeThen the request has had no effect
// and then is never called; otherwise it is, perhaps before ProposeThen returns. The error that it is
// told is raft's (see errors.go); what applying the request answered is in the result.
//
// The id is for CancelProposal. Without that the proposal ends within the request timeout.
func (r *Replica) ProposeThen(req *pb.InternalRaftRequest, then Completion) (id uint64, err error) {
	p, err := r.proposer.submit(req, then)
	if err != nil {
		return 0, err
	}
	return p.id, nil
}

// CancelProposal ends a proposal that nobody waits for any longer, unless it has ended: cause is why,
// context.Canceled or context.DeadlineExceeded. Its completion is told as the caller of Propose would
// be whose context ends so.
func (r *Replica) CancelProposal(id uint64, cause error) { r.proposer.cancel(id, cause) }

// Propose is ProposeThen that waits for the end.
//
// A request waits here, in a goroutine that grpc has made for it. What is on its stack then should
// fit the 4 KiB that such a goroutine is given: growing the stack once costs as much as the rest of
// Propose. So the frames of those that wait are kept small, by doing the work before and after in
// functions of their own that are not inlined.
func (r *Replica) Propose(ctx context.Context, req *pb.InternalRaftRequest) (command.Result, error) {
	w := r.buffers.newWaiting()
	p, err := r.proposer.submit(req, w)
	if err != nil {
		return command.Result{}, err
	}
	return w.await(ctx, &r.proposer, p.id)
}

// waiting is the completion of a proposal whose caller waits in a goroutine.
type waiting struct {
	ended  chan struct{} // capacity 1; receives once, when result and err are set
	result command.Result
	err    error
}

// Completed is Completion's.
func (w *waiting) Completed(result command.Result, err error) {
	w.result, w.err = result, err
	w.ended <- struct{}{}
}

// await waits for the end of a proposal, which its context may bring about. It does not watch the
// stopped channel: a select of a thousand goroutines on one channel spends its time on that
// channel's lock. Stop ends every proposal instead. w must not be used after it.
func (w *waiting) await(ctx context.Context, c *proposer, id uint64) (result command.Result, err error) {
	select {
	case <-w.ended:
	case <-ctx.Done():
		c.cancel(id, ctx.Err())
		<-w.ended // whoever ended it before hands over the end at once
	}
	result, err = w.result, w.err
	w.result, w.err = command.Result{}, nil
	c.buffers.waiting.Put(w)
	return result, err
}

// proposer is the way of clients' requests into the inbox, and how they end early. Any goroutine.
type proposer struct {
	*env
	ids     *command.IDGenerator
	inbox   *inbox
	waiters *waiters
	buffers *buffers
}

// submit makes a proposal of a request and puts it into the inbox.
//
//go:noinline
func (c *proposer) submit(req *pb.InternalRaftRequest, then Completion) (*proposal, error) {
	id := c.ids.Next()
	made := &struct {
		proposal
		entry  raftpb.Entry
		header pb.RequestHeader
	}{}
	p := &made.proposal
	p.id, p.request, p.entry, p.then = id, req, &made.entry, then
	if req.Header == nil {
		req.Header = &made.header
	}
	req.Header.ID = id
	size := command.Size(req)
	if size > c.cfg.MaxRequestBytes {
		return nil, ErrRequestTooLarge
	}
	if size >= LargeProposal {
		p.large = int64(size)
	} else if err := c.buffers.encode(p, size); err != nil {
		return nil, err
	}
	if err := c.enter(p); err != nil {
		c.buffers.put(p)
		return nil, err
	}
	return p, nil
}

// buffers pools the memory of proposals, above all of encoded ones. A leader's raft copies a
// proposed entry, so the buffer can be reused as soon as raft has it: a 1 MB value is then not
// allocated, cleared and collected once more.
type buffers struct {
	small, large sync.Pool // of *[]byte of length 0
	waiting      sync.Pool // of *waiting, empty, whose proposals have ended
}

// largeBuffer parts the pools, so that a large buffer is not kept busy by a small request.
const largeBuffer = 16 << 10

func (b *buffers) get(size int) *[]byte {
	pool := &b.small
	if size >= largeBuffer {
		pool = &b.large
	}
	if buffer, _ := pool.Get().(*[]byte); buffer != nil {
		return buffer
	}
	return new([]byte)
}

// encode encodes p's request, whose encoding has a size in bytes.
func (b *buffers) encode(p *proposal, size int) (err error) {
	p.buffer = b.get(size)
	p.entry.Data, err = command.Append(*p.buffer, p.request)
	return err
}

func (b *buffers) newWaiting() *waiting {
	if w, _ := b.waiting.Get().(*waiting); w != nil {
		return w
	}
	return &waiting{ended: make(chan struct{}, 1)}
}

// put takes back p's buffer. REQUIRES: nothing refers to p.entry.Data any more.
func (b *buffers) put(p *proposal) {
	if p.buffer == nil {
		return
	}
	*p.buffer = p.entry.Data[:0]
	if cap(p.entry.Data) >= largeBuffer {
		b.large.Put(p.buffer)
	} else {
		b.small.Put(p.buffer)
	}
	p.buffer, p.entry.Data = nil, nil
}

// ProposeInTerm is Propose for what only the leader of one term may ask for: the revocation of a lease
// that it saw expire, say. Unless this member leads in term when raft takes the request it ends
// with ErrNotLeader and is never applied; it is not held for, nor forwarded to, another leader.
func (r *Replica) ProposeInTerm(ctx context.Context, term uint64, req *pb.InternalRaftRequest) (command.Result, error) {
	id := r.proposer.ids.Next()
	if req.Header == nil {
		req.Header = &pb.RequestHeader{}
	}
	req.Header.ID = id
	data, err := command.Encode(req)
	if err != nil {
		return command.Result{}, err
	}
	w := r.buffers.newWaiting()
	p := &proposal{id: id, entry: &raftpb.Entry{Data: data}, request: req, then: w}
	r.proposer.register(p)
	r.inbox.request(termProposal{p, term})
	return w.await(ctx, &r.proposer, id)
}

// termProposal is a proposal that only the leader of a term may make.
type termProposal struct {
	proposal *proposal
	term     uint64
}

func (t termProposal) handle(l *loop) {
	p, st := t.proposal, l.node.BasicStatus()
	if st.RaftState == raft.StateLeader && st.GetTerm() == t.term && !l.pending.door.closed() && p.markProposed() {
		if l.node.Step(&raftpb.Message{Type: raftpb.MsgProp.Enum(), From: new(l.cfg.ID), Entries: []*raftpb.Entry{p.entry}}) == nil {
			return
		}
		p.unmarkProposed()
	}
	if l.waiters.take(p.id) != nil {
		p.abandon()
		l.waiters.end(p, command.Result{}, ErrNotLeader)
	}
}

// ProposeChange replicates a member change and waits until it is applied and no crash of this
// member can take it back. It fills the change's ID. A member that asks for its own removal is
// answered when another has told it of the removal; the result then only says that there was no
// error.
func (r *Replica) ProposeChange(ctx context.Context, c *command.Change) (command.Result, error) {
	c.ID = r.proposer.ids.Next()
	data, err := proto.Marshal(c.Encode())
	if err != nil {
		return command.Result{}, err
	}
	if c.Type == raftpb.ConfChangeRemoveNode && c.MemberID == r.cfg.ID {
		defer r.keeper.ownRemoval(c.ID)()
	}
	w := r.buffers.newWaiting()
	if err := r.proposer.enter(&proposal{
		id:     c.ID,
		entry:  &raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Data: data},
		change: c,
		then:   w,
	}); err != nil {
		return command.Result{}, err
	}
	return w.await(ctx, &r.proposer, c.ID)
}

// enter registers a proposal and puts it into the inbox, unless there is too much before it.
func (c *proposer) enter(p *proposal) error {
	if c.pub.overload.Load() && p.change == nil {
		c.metrics.Failed.Inc()
		return ErrTooManyRequests
	}
	c.register(p)
	if p.large > 0 {
		c.waiters.window.enter(p)
	} else {
		c.inbox.propose(p)
	}
	return nil
}

// register adds p to waiters, whose users may end it.
func (c *proposer) register(p *proposal) {
	p.born = time.Now()
	c.waiters.add(p)
}

// cancel is Replica.CancelProposal.
//
//go:noinline
func (c *proposer) cancel(id uint64, cause error) {
	p := c.waiters.take(id)
	if p == nil {
		return
	}
	p.gone.Store(true)
	err := cause
	switch {
	case p.abandon():
	case cause == context.Canceled:
		err = ErrCanceled
	default:
		err = c.timeoutCause(p.born)
	}
	c.waiters.end(p, command.Result{}, err)
}

// timeoutCause picks, as etcd does, the error that says why a proposal made at
// start has had no result for the whole request timeout.
func (e *env) timeoutCause(start time.Time) error {
	elected := e.pub.lead.electedAt()
	lost := elected.Add(-2 * e.cfg.electionTimeout())
	if start.After(lost) && start.Before(elected) {
		return ErrTimeoutLeaderFail
	}
	switch lead := e.pub.leader(); lead {
	case raft.None:
	case e.cfg.ID:
		if !e.quorumActiveSince(start) {
			return ErrTimeoutConnectionLost
		}
	default:
		if !e.activeSince(lead, start) {
			return ErrTimeoutConnectionLost
		}
	}
	return ErrTimeout
}

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

// proposal is one request on its way through the log, from Propose to its result. Whoever removes
// it from waiters ends it: the applier with a result, the loop with a timeout, the caller when its
// context ends. The applier removes it only when it has the result: applying may hang with the
// store's disk, and then nobody else could end the call.
type proposal struct {
	id      uint64
	entry   *raftpb.Entry
	buffer  *[]byte                 // what entry.Data is in, to be used again; nil: not pooled
	request *pb.InternalRaftRequest // the decoded form, kept for our own apply
	change  *command.Change
	born    time.Time

	// state goes waiting -> proposed (by the loop, back only if raft dropped
	// it) or waiting -> abandoned (by the caller or the sweeper).
	state atomic.Int32

	// gone: nobody waits for the result any more. The applier may skip what is done only for the
	// answer.
	gone atomic.Bool

	done   chan struct{} // capacity 1; receives once, after result and err are set
	result command.Result
	err    error
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

func (p *proposal) finish(result command.Result, err error) {
	p.result, p.err = result, err
	p.done <- struct{}{}
}

// waiters are the proposals without a result, by request id, in shards so that a thousand clients
// do not contend for one lock.
type waiters struct {
	shards [waiterShards]waiterShard
}

const waiterShards = 64

type waiterShard struct {
	mu   sync.Mutex
	byID map[uint64]*proposal
	// closed: the replica has stopped, and nobody would end another proposal.
	closed bool
	_      [40]byte // a shard to a cache line
}

func (w *waiters) init() {
	for i := range w.shards {
		w.shards[i].byID = make(map[uint64]*proposal)
	}
}

func (w *waiters) shard(id uint64) *waiterShard { return &w.shards[id%waiterShards] }

// add makes p findable; after closeAll it ends p at once.
func (w *waiters) add(p *proposal) {
	s := w.shard(p.id)
	s.mu.Lock()
	if s.closed {
		p.abandon()
		p.finish(command.Result{}, ErrStopped)
	} else {
		s.byID[p.id] = p
	}
	s.mu.Unlock()
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
		p.finish(result, err)
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
		s.mu.Lock()
		for id, p := range s.byID {
			if now.Sub(p.born) < e.cfg.RequestTimeout {
				continue
			}
			p.gone.Store(true)
			delete(s.byID, id)
			if p.abandon() {
				// There was no leader to propose to: etcd's callers see the bare
				// context error here.
				p.finish(command.Result{}, context.DeadlineExceeded)
			} else {
				p.finish(command.Result{}, e.timeoutCause(p.born))
			}
		}
		s.mu.Unlock()
	}
}

func (w *waiters) closeAll() {
	for i := range w.shards {
		s := &w.shards[i]
		s.mu.Lock()
		s.closed = true
		for id, p := range s.byID {
			delete(s.byID, id)
			p.abandon()
			p.finish(command.Result{}, ErrStopped)
		}
		s.mu.Unlock()
	}
}

// Propose replicates a request and waits until this member has applied it. It fills the request's
// header id; the request must not be changed afterwards, not even when Propose has returned an
// error. The error is raft's (see errors.go); what applying the request answered is in the result.
//
// A request waits here, in a goroutine that grpc has made for it. What is on its stack then should
// fit the 4 KiB that such a goroutine is given: growing the stack once costs as much as the rest of
// Propose. So the frames of those that wait are kept small, by doing the work before and after in
// functions of their own that are not inlined.
func (r *Replica) Propose(ctx context.Context, req *pb.InternalRaftRequest) (command.Result, error) {
	p, err := r.proposer.submit(req)
	if err == nil {
		err = r.proposer.await(ctx, p)
	}
	if err != nil {
		return command.Result{}, err
	}
	return p.result, nil
}

// proposer is the way of clients' requests into the inbox, and their wait. Any goroutine.
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
func (c *proposer) submit(req *pb.InternalRaftRequest) (*proposal, error) {
	id := c.ids.Next()
	made := &struct {
		proposal
		entry  raftpb.Entry
		header pb.RequestHeader
	}{}
	p := &made.proposal
	p.id, p.request, p.entry = id, req, &made.entry
	if req.Header == nil {
		req.Header = &made.header
	}
	req.Header.ID = id
	if err := c.encode(p); err != nil {
		return nil, err
	}
	if len(p.entry.Data) > c.cfg.MaxRequestBytes {
		c.buffers.put(p)
		return nil, ErrRequestTooLarge
	}
	return p, c.enter(p)
}

func (c *proposer) encode(p *proposal) (err error) {
	p.buffer = c.buffers.get(proto.Size(p.request.Put) + 64)
	p.entry.Data, err = command.Append(*p.buffer, p.request)
	return err
}

// buffers pools the memory of encoded proposals. A leader's raft copies a proposed entry, so the
// buffer can be reused as soon as raft has it: a 1 MB value is then not allocated, cleared and
// collected once more.
type buffers struct {
	small, large sync.Pool // of *[]byte of length 0
	done         sync.Pool // of proposal.done, empty, of ended proposals
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
	p := &proposal{id: id, entry: &raftpb.Entry{Data: data}, request: req}
	r.proposer.register(p)
	r.inbox.request(termProposal{p, term})
	if err = r.proposer.await(ctx, p); err != nil {
		return command.Result{}, err // the result may still be on its way into p
	}
	return p.result, nil
}

// termProposal is a proposal that only the leader of a term may make.
type termProposal struct {
	proposal *proposal
	term     uint64
}

func (t termProposal) handle(l *loop) {
	p, st := t.proposal, l.node.BasicStatus()
	if st.RaftState == raft.StateLeader && st.GetTerm() == t.term && !l.removal.leaving() && p.markProposed() {
		if l.node.Step(&raftpb.Message{Type: raftpb.MsgProp.Enum(), From: new(l.cfg.ID), Entries: []*raftpb.Entry{p.entry}}) == nil {
			return
		}
		p.unmarkProposed()
	}
	if l.waiters.take(p.id) != nil {
		p.abandon()
		p.finish(command.Result{}, ErrNotLeader)
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
	p := &proposal{
		id:     c.ID,
		entry:  &raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Data: data},
		change: c,
	}
	if err := r.proposer.enter(p); err != nil {
		return command.Result{}, err
	}
	if err = r.proposer.await(ctx, p); err != nil {
		return command.Result{}, err // the result may still be on its way into p
	}
	return p.result, nil
}

// enter registers a proposal and puts it into the inbox, unless there is too much before it.
func (c *proposer) enter(p *proposal) error {
	if c.pub.overload.Load() && p.change == nil {
		c.metrics.Failed.Inc()
		return ErrTooManyRequests
	}
	c.register(p)
	c.inbox.propose(p)
	return nil
}

// register adds p to waiters, whose users may end it.
func (c *proposer) register(p *proposal) {
	p.born = time.Now()
	if p.done, _ = c.buffers.done.Get().(chan struct{}); p.done == nil {
		p.done = make(chan struct{}, 1)
	}
	c.waiters.add(p)
	c.metrics.Pending.Add(1)
}

// await waits for the end of a registered proposal. It does not watch the
// stopped channel: a select of a thousand goroutines on one channel spends
// its time on that channel's lock. Stop ends every proposal instead.
func (c *proposer) await(ctx context.Context, p *proposal) error {
	select {
	case <-p.done:
	case <-ctx.Done():
		return c.giveUp(ctx, p)
	}
	c.buffers.done.Put(p.done) // empty again, and finish is called once
	c.metrics.Pending.Add(-1)
	if p.err != nil {
		c.metrics.Failed.Inc()
	}
	return p.err
}

// giveUp ends a proposal whose caller does not wait any longer, unless it just had its result.
//
//go:noinline
func (c *proposer) giveUp(ctx context.Context, p *proposal) error {
	defer c.metrics.Pending.Add(-1)
	if c.waiters.take(p.id) == nil {
		<-p.done // whoever took it hands over the end at once
		if p.err != nil {
			c.metrics.Failed.Inc()
		}
		return p.err
	}
	p.gone.Store(true)
	c.metrics.Failed.Inc()
	if p.abandon() {
		return ctx.Err()
	}
	if ctx.Err() == context.Canceled {
		return ErrCanceled
	}
	return c.timeoutCause(p.born)
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

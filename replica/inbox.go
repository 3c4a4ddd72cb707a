package replica

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// maxInboxBytes bounds the messages of peers that wait for the loop.
const maxInboxBytes = 256 << 20

// inbox is everything that other goroutines send to the loop. Senders append under the mutex and
// wake the loop; the loop takes all of it at once: first requests, then messages, then proposals,
// each in order of arrival.
type inbox struct {
	mu   sync.Mutex
	wake chan struct{} // capacity 1: "something waits": in here, or a reader (reads.next)

	requests  []request
	messages  []*raftpb.Message // for raft: of peers, and of the log's writer and the applier
	proposals []*proposal       // of this member's clients
	bytes     int64             // of messages of peers; at most maxInboxBytes, or of one message
}

// request is what a goroutine of this member asks of the loop, or tells it, other than a raft
// message. Each is a small type of its own, defined next to its subject.
type request interface {
	// handle is called by the loop. It must not wait.
	handle(l *loop)
}

// answered is a request whose sender waits for it to be handled. The answer is in the request
// itself, which belongs to the loop until done is closed.
type answered struct {
	request
	done chan struct{}
}

func (a answered) handle(l *loop) {
	a.request.handle(l)
	close(a.done)
}

func (b *inbox) init() { b.wake = make(chan struct{}, 1) }

func (b *inbox) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *inbox) propose(p *proposal) {
	b.mu.Lock()
	b.proposals = append(b.proposals, p)
	b.mu.Unlock()
	b.signal()
}

// message queues a message of a peer; it is refused when the loop is too far
// behind, which raft takes as a lost message.
func (b *inbox) message(m *raftpb.Message, size int64) bool {
	b.mu.Lock()
	if b.bytes+size > maxInboxBytes && len(b.messages) > 0 {
		b.mu.Unlock()
		return false
	}
	b.messages = append(b.messages, m)
	b.bytes += size
	b.mu.Unlock()
	b.signal()
	return true
}

// local queues messages of this member's own threads; never refused.
func (b *inbox) local(ms ...*raftpb.Message) {
	if len(ms) == 0 {
		return
	}
	b.mu.Lock()
	b.messages = append(b.messages, ms...)
	b.mu.Unlock()
	b.signal()
}

// request makes the loop handle q.
func (b *inbox) request(q request) {
	b.mu.Lock()
	b.requests = append(b.requests, q)
	b.mu.Unlock()
	b.signal()
}

// ask makes the loop handle q and waits for it. After an error q may still be handled, and must not
// be read.
func (b *inbox) ask(ctx context.Context, stopped <-chan struct{}, q request) error {
	done := make(chan struct{})
	b.request(answered{q, done})
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-stopped:
		return ErrStopped
	}
}

// queued is how many bytes of messages wait.
func (b *inbox) queued() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes
}

// take swaps the inbox's slices with the (empty) ones given.
func (b *inbox) take(in *taken) {
	b.mu.Lock()
	b.requests, in.requests = in.requests[:0], b.requests
	b.messages, in.messages = in.messages[:0], b.messages
	b.proposals, in.proposals = in.proposals[:0], b.proposals
	b.bytes = 0
	b.mu.Unlock()
}

// taken is what the loop took from the inbox at once.
type taken struct {
	requests  []request
	messages  []*raftpb.Message
	proposals []*proposal
}

// clear drops what was handled and keeps the capacity.
func (in *taken) clear() {
	clear(in.requests)
	clear(in.messages)
	clear(in.proposals)
}

// Process takes a message of a peer. It does not block; an error means that the message was not
// accepted, which raft tolerates; ErrRefused: no member sends such a message.
func (r *Replica) Process(m *raftpb.Message) error {
	if err := r.CheckMessage(m); err != nil {
		return err
	}
	if m.GetType() == raftpb.MsgProp && r.pub.overload.Load() && r.IsLeader() && !proposesChange(m) {
		r.refuse(m)
		return nil
	}
	if m.GetType() == raftpb.MsgProp {
		r.pub.forwarded.Add(1)
	}
	if !r.inbox.message(m, entryBytes(m)) {
		if m.GetType() == raftpb.MsgProp {
			r.pub.passed.Add(1)
		}
		return fmt.Errorf("replica: %d MiB of messages wait for the raft loop, dropped one from %x", maxInboxBytes>>20, m.GetFrom())
	}
	return nil
}

// ProcessSnapshot takes a MsgSnap whose state has been received completely. REQUIRES: CheckMessage
// finds nothing wrong with it. Exactly one of install and discard is called later: install, by the
// applier, when raft accepts the snapshot; it must make the state durable and visible. discard gets
// a goroutine of its own.
func (r *Replica) ProcessSnapshot(m *raftpb.Message, install func() error, discard func()) {
	r.inbox.request(snapshotArrived{m, incomingSnapshot{install: install, discard: discard}})
}

// snapshotArrived is a MsgSnap whose state was received.
type snapshotArrived struct {
	message  *raftpb.Message
	incoming incomingSnapshot
}

func (s snapshotArrived) handle(l *loop) {
	index := s.message.GetSnapshot().GetMetadata().GetIndex()
	if old, ok := l.incoming[index]; ok {
		l.discard(old)
	}
	l.incoming[index] = s.incoming
	if l.takes(s.message, time.Now()) { // else it is discarded with those that raft does not want
		_ = l.node.Step(s.message)
	}
}

func entryBytes(m *raftpb.Message) int64 {
	size := int64(64)
	for _, e := range m.GetEntries() {
		size += int64(len(e.GetData())) + 32
	}
	return size
}

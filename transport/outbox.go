package transport

import (
	"sync"

	"go.etcd.io/raft/v3/raftpb"
)

// messageOverhead is what a message without payload counts in a queue's bytes, and entryOverhead
// what an entry does: about their size in memory.
const (
	messageOverhead = 256
	entryOverhead   = 128
)

// queuedBytes is what m weighs in a queue.
func queuedBytes(m *raftpb.Message) int64 {
	n := int64(messageOverhead + len(m.Context))
	for _, e := range m.Entries {
		n += entryOverhead + int64(len(e.Data))
	}
	return n
}

// An outbox is a queue of messages to one peer, bounded in messages and in bytes. put never blocks.
// One goroutine takes: everything that waits, at once.
type outbox struct {
	maxMessages int
	maxBytes    int64
	ready       chan struct{} // capacity 1: something waits

	mu       sync.Mutex
	messages []*raftpb.Message
	bytes    int64 // of messages and of what was taken and not yet settled
	inHand   int64 // of what was taken and not yet settled
}

func newOutbox(maxMessages int, maxBytes int64) *outbox {
	return &outbox{maxMessages: maxMessages, maxBytes: maxBytes, ready: make(chan struct{}, 1)}
}

// put queues m, or reports that there is no room. A message larger than the bound is accepted when
// the queue is empty: otherwise it could never be sent.
func (o *outbox) put(m *raftpb.Message) bool {
	size := queuedBytes(m)
	o.mu.Lock()
	if len(o.messages) >= o.maxMessages || (o.bytes > 0 && o.bytes+size > o.maxBytes) {
		o.mu.Unlock()
		return false
	}
	o.messages = append(o.messages, m)
	o.bytes += size
	first := len(o.messages) == 1
	o.mu.Unlock()
	if first {
		select {
		case o.ready <- struct{}{}:
		default:
		}
	}
	return true
}

// take swaps everything that waits for the empty slice spare, which holds no messages any more. The
// bytes stay counted until settle.
func (o *outbox) take(spare []*raftpb.Message) []*raftpb.Message {
	o.mu.Lock()
	defer o.mu.Unlock()
	taken := o.messages
	o.messages = spare[:0]
	o.inHand = o.bytes
	return taken
}

// queued are the bytes of what waits, and of what was taken and not settled.
func (o *outbox) queued() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.bytes
}

// settle records that what take returned was written or given up.
func (o *outbox) settle() {
	o.mu.Lock()
	o.bytes -= o.inHand
	o.inHand = 0
	o.mu.Unlock()
}

// drop discards what waits and returns the number of messages.
func (o *outbox) drop() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(o.messages)
	o.messages = nil
	o.bytes = o.inHand
	return n
}

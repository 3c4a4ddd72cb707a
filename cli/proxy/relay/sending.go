package relay

import (
	"sync"
	"unsafe"

	"google.golang.org/grpc/mem"
)

// maxSendingBytes bounds the answers of the cache that are on their way to clients: a client that
// asks and does not read holds its answer, and a range that changes makes another one each time.
// Beyond it reads go to the cluster.
const maxSendingBytes = 256 << 20

// sending counts the answers of the cache that the transport holds, each once, however many clients
// it goes to. Small ones, which cost no more than a call does, are not counted.
type sending struct {
	mu      sync.Mutex
	answers map[*byte]sent // by where they lie
	bytes   int64
}

// A sent is an answer that goes to so many clients.
type sent struct {
	refs int
	size int64
}

// total is what the transport holds.
func (s *sending) total() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

// A ledger is what of it goes to one connection. It is the pool that the transport gives a buffer
// back to when it has sent it, or its stream is gone. When the connection is gone, the transport
// gives back nothing: end does.
type ledger struct {
	all *sending

	// Guarded by all.mu.
	refs  map[*byte]int
	ended bool
}

var _ mem.BufferPool = (*ledger)(nil)

// begin counts an answer that is about to be sent, and returns the pool that it is given back to;
// nil: it is not counted.
func (l *ledger) begin(body []byte) mem.BufferPool {
	if l == nil || mem.IsBelowBufferPoolingThreshold(cap(body)) {
		return nil
	}
	s := l.all
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.ended {
		return nil
	}
	if s.answers == nil {
		s.answers = make(map[*byte]sent)
	}
	if l.refs == nil {
		l.refs = make(map[*byte]int)
	}
	key := unsafe.SliceData(body)
	l.refs[key]++
	a := s.answers[key]
	if a.refs == 0 {
		a.size = int64(cap(body))
		s.bytes += a.size
	}
	a.refs++
	s.answers[key] = a
	return l
}

// Get is mem.BufferPool's. Nobody takes a buffer from here.
func (l *ledger) Get(length int) *[]byte {
	b := make([]byte, length)
	return &b
}

// Put is mem.BufferPool's: an answer that begin has counted has gone.
func (l *ledger) Put(b *[]byte) {
	l.all.mu.Lock()
	defer l.all.mu.Unlock()
	if l.ended {
		return // end has
	}
	key := unsafe.SliceData(*b)
	if l.refs[key]--; l.refs[key] == 0 {
		delete(l.refs, key)
	}
	l.all.drop(key, 1)
}

// end takes back what the connection had.
func (l *ledger) end() {
	l.all.mu.Lock()
	defer l.all.mu.Unlock()
	l.ended = true
	for key, count := range l.refs {
		l.all.drop(key, count)
	}
	l.refs = nil
}

// drop lets go an answer that goes to so many fewer clients. REQUIRES: mu.
func (s *sending) drop(key *byte, count int) {
	a := s.answers[key]
	if a.refs -= count; a.refs > 0 {
		s.answers[key] = a
		return
	}
	delete(s.answers, key)
	s.bytes -= a.size
}

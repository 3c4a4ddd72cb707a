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
// it goes to. Small ones, which cost no more than a call does, are not counted. It is the pool that
// the transport gives a buffer back to when all have it, or are gone.
type sending struct {
	mu    sync.Mutex
	refs  map[*byte]int
	bytes int64
}

var _ mem.BufferPool = (*sending)(nil)

// begin counts an answer that is about to be sent, and returns the pool that it is given back to;
// nil: it is not counted.
func (s *sending) begin(body []byte) mem.BufferPool {
	if mem.IsBelowBufferPoolingThreshold(cap(body)) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refs == nil {
		s.refs = make(map[*byte]int)
	}
	key := unsafe.SliceData(body)
	if s.refs[key]++; s.refs[key] == 1 {
		s.bytes += int64(cap(body))
	}
	return s
}

// Get is mem.BufferPool's. Nobody takes a buffer from here.
func (s *sending) Get(length int) *[]byte {
	b := make([]byte, length)
	return &b
}

// Put is mem.BufferPool's: an answer that begin has counted has gone to one client.
func (s *sending) Put(b *[]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := unsafe.SliceData(*b)
	if s.refs[key]--; s.refs[key] == 0 {
		delete(s.refs, key)
		s.bytes -= int64(cap(*b))
	}
}

// total is what the transport holds.
func (s *sending) total() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

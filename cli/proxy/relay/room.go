package relay

import (
	"sync/atomic"

	"github.com/belaydb/belay/cli/proxy/upstream"
	"github.com/belaydb/belay/rpc"
)

// What a client has asked for and does not read the proxy keeps. So a call that is forwarded asks for
// room on the client's connection first, and a member may send no more than that. How large an answer
// will be only the member knows: a read whose answer has no room is asked again, with as much as the
// member said that it takes. A write cannot be asked again, and has what it mostly needs.
const (
	// leastAnswer and mostAnswer are between how many bytes a read gets room for at first: less the
	// more others have, and the more calls are forwarded, so that all of thousands have some.
	leastAnswer, mostAnswer = rpc.FreeAnswer, 1 << 20
	// writtenAnswer is what one gets that may return values.
	writtenAnswer = 64 << 10
)

// UnreadBytes is what forwarded answers hold that clients have not taken yet, and what is reserved for
// others; 0 without an rpc.Server. REQUIRES: Register has been called.
func (r *Relay) UnreadBytes() int64 {
	if r.server == nil {
		return 0
	}
	return r.server.UnreadBytes()
}

// answers is what a connection's forwarded answers were like: about how large those of reads of one
// key, and of other reads, are that were larger than what there was room for; 0: there were none.
type answers struct{ one, many atomic.Int64 }

// like is what answers to such a request were like.
func (a *answers) like(q *upstream.Request) *atomic.Int64 {
	if q.Method != rangeMethod || ofMany(q.Frame.Head) {
		return &a.many
	}
	return &a.one
}

// foresee returns for how many bytes room is to be asked for, and has the request bounded by that if
// it can be asked again. REQUIRES: the call is among r.forwarded.
func (r *Relay) foresee(c *connection, m *method, q *upstream.Request) int64 {
	if !q.Read {
		return writtenBytes(m, q.Frame.Head)
	}
	free := r.cfg.UnreadBytes - r.UnreadBytes()
	n := min(max(free/32/r.forwarded.Load(), leastAnswer), mostAnswer)
	q.MaxBytes = max(n, c.answers.like(q).Load())
	return q.MaxBytes
}

// again returns for how many bytes room is to be asked for to ask a request again, whose answer was
// larger than it might be; 0: it was not, or the client is to have the error.
func (c *connection) again(q *upstream.Request, err error) int64 {
	size, ok := upstream.TooLarge(err, q.MaxBytes)
	if !ok {
		return 0
	}
	c.answers.like(q).Store(size)
	q.MaxBytes = size + size/8 // it may grow meanwhile
	return q.MaxBytes
}

// had notes how large an answer was.
func (a *answers) had(q *upstream.Request, size int) {
	if a.one.Load() == 0 && a.many.Load() == 0 {
		return
	}
	like := a.like(q)
	if large := like.Load(); large > 0 && int64(size) < large/4 {
		like.CompareAndSwap(large, large/2)
	}
}

// writtenBytes is about how many bytes of values a write returns that may return some.
func writtenBytes(m *method, request []byte) int64 {
	const putPrevKV, deletePrevKV = 4, 3
	switch m.full {
	case txnMethod:
		return writtenAnswer
	case putMethod:
		if flagged(request, putPrevKV) {
			return writtenAnswer
		}
	case deleteMethod:
		if flagged(request, deletePrevKV) {
			return writtenAnswer
		}
	}
	return 0
}

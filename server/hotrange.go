package server

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/mem"

	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/rpc"
	"github.com/belaydb/belay/state"
)

const rangeMethod = "/etcdserverpb.KV/Range"

// hotRange answers the gets of one key without a goroutine for each: on the connection's reader, or
// after a read barrier that many share. Only the read of what is not in memory takes a goroutine, and
// the judgment of a caller that may take a while: the others behind the barrier would wait for it.
// Everything else is left to kvService.Range, before it has been counted: other ranges, and calls that
// would be refused or traced.
type hotRange struct {
	kv      *kvService
	calls   *calls
	barrier func(func(error))
	callers *authorizer // that waits for nothing
	store   interface { // *mvcc.Store
		Cached(key []byte) (mvcc.RangeResult, bool)
	}
	method *methodMetrics
	reads  coldReads
}

// hotGet is one such call.
type hotGet struct {
	*hotRange
	call  *rpc.Call
	req   pb.RangeRequest
	bytes int // of the request
	start time.Time
	// waits is since when it waits for room, waited how long it did.
	waits  time.Time
	waited time.Duration
}

// serve is a rpc.Hot.
func (h *hotRange) serve(call *rpc.Call, message []byte) bool {
	if !h.calls.hot() {
		return false
	}
	g := &hotGet{hotRange: h, call: call, bytes: len(message), start: time.Now()}
	if !readRange(mem.BufferSlice{mem.SliceBuffer(message)}, &g.req) || !ofOneKey(&g.req) {
		return false
	}
	if g.req.Serializable {
		if !g.answer(g.start) {
			g.readLater()
		}
		return true
	}
	h.barrier(g.passed)
	return true
}

// hot reports whether calls may be served without a handler now.
func (c *calls) hot() bool {
	return !c.debug && c.spans == nil && c.capable() && !c.isLearner() && c.leader() != 0
}

// ofOneKey reports whether a request asks for the newest version of one key and nothing else.
func ofOneKey(r *pb.RangeRequest) bool {
	return len(r.Key) > 0 && len(r.RangeEnd) == 0 && r.Revision == 0 && r.SortOrder == 0 && r.SortTarget == 0 && !r.KeysOnly && !r.CountOnly &&
		r.MinModRevision == 0 && r.MaxModRevision == 0 && r.MinCreateRevision == 0 && r.MaxCreateRevision == 0
}

// passed goes on after the read barrier.
func (g *hotGet) passed(err error) {
	if err == nil && g.call.Late() {
		err = context.DeadlineExceeded
	}
	if err != nil {
		g.failed(err)
		return
	}
	if !g.answer(time.Now()) {
		g.readLater()
	}
}

// failed ends a call that has not come to its read.
func (g *hotGet) failed(err error) {
	took := time.Since(g.start)
	g.kv.metrics.observeRequest(kindRange, false, took.Seconds())
	g.kv.slow.WarnSlowRange(took, g.waited, &g.req, nil, err)
	err = toGRPC(err)
	if refused := g.begin(); refused != nil {
		err = refused
	}
	g.end(nil, err)
}

// begin counts the call as one that came, and may refuse it.
func (g *hotGet) begin() error {
	g.calls.codec.metrics.receivedBytes.Add(float64(g.bytes))
	return g.calls.beginCall(g.call.Context(), g.method, rangeMethod, &g.req)
}

// end counts its end, and answers.
func (g *hotGet) end(resp *pb.RangeResponse, err error) {
	g.calls.endCall(g.call.Context(), g.method, rangeMethod, &g.req, resp, err, g.start, waitTimes{turn: g.waited})
	if err != nil {
		g.call.Fail(err)
		return
	}
	answer := &rangeAnswer{resp, rangeResponseSize(resp)}
	g.calls.codec.metrics.sentBytes.Add(float64(answer.size))
	g.call.Reply(answer)
}

// answer reads what is in memory. It returns false, and nothing has been counted, when that is not
// enough: the version is not there any more, or the caller cannot be judged without waiting.
func (g *hotGet) answer(read time.Time) bool {
	resp, err := g.readFrom(g.hotRange, g.callers)
	if errors.Is(err, errMustWait) {
		return false
	}
	if g.hasRoom(resp) {
		g.done(resp, err, read)
	}
	return true
}

// readLater has a goroutine read, when there is room for what may come.
func (g *hotGet) readLater() {
	g.waits = time.Now() // before another goroutine may have it
	if g.call.Reserve(returnedBytes, g.readAgain) {
		g.reads.add(g)
	}
}

// hasRoom asks for room for an answer. If there is none, it is read again when there is.
func (g *hotGet) hasRoom(resp *pb.RangeResponse) bool {
	if resp == nil {
		return true
	}
	size := rangeResponseSize(resp)
	if size <= rpc.FreeAnswer {
		return true
	}
	g.waits = time.Now() // as in readLater
	return g.call.Reserve(int64(size), g.readAgain)
}

// readAgain is readLater for a call that has waited for room.
func (g *hotGet) readAgain() {
	g.waited += time.Since(g.waits)
	g.reads.add(g)
}

// read reads what is not in memory, and answers. It waits for nothing but the disk.
func (g *hotGet) read() { g.readFor(g.callers) }

// readFor is read for a caller whom these judge.
func (g *hotGet) readFor(callers *authorizer) {
	if err := g.call.Ended(); err != nil || g.call.Late() {
		g.failed(cmp.Or(err, context.DeadlineExceeded))
		return
	}
	read := time.Now()
	resp, err := g.readFrom(g.kv.kv, callers)
	switch {
	case errors.Is(err, errMustWait): // for who the caller is, which others need not wait for
		g.call.Go(func() { g.readFor(g.kv.callers) })
	case g.hasRoom(resp):
		g.done(resp, err, read)
	}
}

// readFrom reads for the caller: after it has been judged, so that rules that let it in let it see
// nothing that was overwritten before there were such rules.
func (g *hotGet) readFrom(from state.Ranger, callers *authorizer) (resp *pb.RangeResponse, err error) {
	ctx := g.call.Context()
	err = callers.reads(ctx, &g.req, func() (err error) {
		resp, err = state.RangeWithin(ctx, from, &g.req, g.kv.limits.AnswerBytes)
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// done counts what was read since a time, or the error, and answers.
func (g *hotGet) done(resp *pb.RangeResponse, err error, read time.Time) {
	if refused := g.begin(); refused != nil {
		g.end(nil, refused)
		return
	}
	k := g.kv
	now := time.Now()
	took := now.Sub(g.start)
	k.metrics.observeRange(err == nil, now.Sub(read).Seconds())
	k.metrics.observeRequest(kindRange, err == nil, took.Seconds())
	k.slow.WarnSlowRange(took, g.waited, &g.req, resp, err)
	if err == nil {
		k.headers.fill(resp.Header)
	}
	g.end(resp, toGRPC(err))
}

// Range is a state.Ranger's for the newest version of one key. What is not in memory is errMustWait.
func (h *hotRange) Range(_ context.Context, key, _ []byte, _ mvcc.RangeOptions) (mvcc.RangeResult, error) {
	if res, ok := h.store.Cached(key); ok {
		return res, nil
	}
	return mvcc.RangeResult{}, errMustWait
}

// rangeAnswer is an answer as package rpc writes it.
type rangeAnswer struct {
	resp *pb.RangeResponse
	size int
}

func (a *rangeAnswer) Size() int { return a.size }

func (a *rangeAnswer) AppendTo(b []byte) []byte {
	n := len(b)
	b = appendRangeResponse(b, a.resp)
	filled(b[n:], a.size)
	return b
}

// maxColdReads is how many gets read the store at once. Each holds the value that it reads, of which
// nobody knows beforehand how large it is; for the disk and the processors fewer would do.
const maxColdReads = 64

// coldReads are the gets that read the store, and those that are to, which take turns by connection.
type coldReads struct {
	mu      sync.Mutex
	readers int                // goroutines
	waiting map[any]*list.List // of *hotGet, by connection, when there are enough readers
	turns   list.List          // of the connections in waiting; the first is next
}

// add has a get read. It does not wait.
func (c *coldReads) add(g *hotGet) {
	c.mu.Lock()
	if c.readers >= maxColdReads {
		c.push(g)
		c.mu.Unlock()
		return
	}
	c.readers++
	c.mu.Unlock()
	g.call.Go(func() {
		for g != nil {
			g.read()
			g = c.next()
		}
	})
}

// push has a get wait for its turn. REQUIRES: mu.
func (c *coldReads) push(g *hotGet) {
	from := g.call.Connection()
	queue := c.waiting[from]
	if queue == nil {
		if queue = list.New(); c.waiting == nil {
			c.waiting = make(map[any]*list.List)
		}
		c.waiting[from] = queue
		c.turns.PushBack(from)
	}
	queue.PushBack(g)
}

// next is a get that is to read; nil: there is none, and the goroutine that asks ends.
func (c *coldReads) next() *hotGet {
	c.mu.Lock()
	defer c.mu.Unlock()
	turn := c.turns.Front()
	if turn == nil {
		c.readers--
		return nil
	}
	queue := c.waiting[turn.Value]
	g := queue.Remove(queue.Front()).(*hotGet)
	if queue.Len() > 0 {
		c.turns.MoveToBack(turn)
	} else {
		delete(c.waiting, turn.Value)
		c.turns.Remove(turn)
	}
	return g
}

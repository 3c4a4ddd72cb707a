package relay

import (
	"bytes"
	"cmp"
	"context"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/cli/proxy/cache"
	"github.com/belaydb/belay/cli/proxy/upstream"
	"github.com/belaydb/belay/rpc"
)

// Hot has a server of package rpc serve unary calls without a handler: a read that the cache answers
// needs no goroutine, and one that is forwarded one that is used again, without contexts and timers
// for each. REQUIRES: Register has been called, and nothing is served yet.
//
// Calls whose messages are looked at, for a namespace, the member list or the log, are left to
// their handlers.
func (r *Relay) Hot(s *rpc.Server) {
	if r.ns != "" || r.payloads != nil {
		return
	}
	for _, m := range r.methods {
		if m.clientStreams || m.serverStreams || m.full == memberListMethod && r.cfg.MemberList != nil {
			continue
		}
		s.Hot(m.full, func(c *rpc.Call, message []byte) bool { return r.serveHot(m, c, message) })
	}
}

// An asker is who calls, as the headers of a call say. It belongs to the reader of its connection:
// calls whose headers are the same follow each other.
type asker struct {
	in        context.Context // of the call
	out       context.Context // for calls to a member
	anonymous bool
}

// rememberedBytes bounds the headers that an idle connection keeps of its last call.
const rememberedBytes = 1 << 10

// askerOf is who makes a call.
func (c *connection) askerOf(in context.Context) asker {
	if c.last.in == in {
		return c.last
	}
	md, _ := metadata.FromIncomingContext(in)
	a := asker{in, metadata.NewOutgoingContext(context.Background(), passed(md)), anonymous(md)}
	size := 0
	for key, values := range md {
		for _, v := range values {
			size += len(key) + len(v)
		}
	}
	if size <= rememberedBytes {
		c.last = a
	}
	return a
}

// A hotCall is a call that the Relay answers itself: from the cache, or in a goroutine of the server's.
type hotCall struct {
	*Relay
	*connection
	method *method
	call   *rpc.Call
	asker  asker
	frame  upstream.Frame
	asked  upstream.Request // of the members; set when it is forwarded

	// Of a read that waits in the cache. They belong to the cache's lock: the timer may be over before
	// it is kept here.
	read *cache.Read // nil: it has not waited
	late *time.Timer

	mu     sync.Mutex
	cause  error              // nobody waits for the answer any more
	cancel context.CancelFunc // of the call to a member; nil: there is none
}

func (r *Relay) serveHot(m *method, call *rpc.Call, message []byte) bool {
	c, ok := call.Context().Value(connectionKey{}).(*connection)
	if !ok {
		return false
	}
	h := &hotCall{Relay: r, connection: c, method: m, call: call, asker: c.askerOf(call.Context()), frame: upstream.Frame{Head: bytes.Clone(message)}}
	m.counts.started.Inc()
	m.counts.received.Inc()
	if m.full != rangeMethod || !h.fromCache() {
		h.forward()
	}
	return true
}

// fromCache has the cache answer a Range, at once or later; false: the cluster is to be asked.
func (h *hotCall) fromCache() bool {
	k := h.caching
	if k == nil || !h.asker.anonymous || k.sending.total() >= maxSendingBytes {
		return false
	}
	r := &pb.RangeRequest{}
	if proto.Unmarshal(h.frame.Head, r) != nil || !cache.Cacheable(r) {
		return false
	}
	read := &cache.Read{Request: r, Seen: h.client.Seen(), Done: h.resolved}
	k.mu.Lock()
	answer, verdict := k.cache.Read(k.now(), read)
	switch verdict {
	case cache.Waits:
		h.read, h.late = read, time.AfterFunc(cache.Patience, h.tooLate)
	case cache.Miss:
		k.link()
	}
	k.mu.Unlock()
	switch verdict {
	case cache.Waits:
		h.call.Notify(h)
	case cache.Hit:
		h.answerCached(answer)
	default:
		return false
	}
	return true
}

// resolved is cache.Read's Done: the cache's lock is held.
func (h *hotCall) resolved(a cache.Answer, ok bool) {
	h.late.Stop()
	if ok {
		h.answerCached(a)
	} else {
		h.forward()
	}
}

// dropped takes a read out of the cache; false: it does not wait there.
func (h *hotCall) dropped() bool {
	if h.caching == nil {
		return false
	}
	h.caching.mu.Lock()
	defer h.caching.mu.Unlock()
	return h.read != nil && h.caching.cache.Drop(h.read)
}

// tooLate is the end of the cache's patience.
func (h *hotCall) tooLate() {
	if h.dropped() {
		h.forward()
	}
}

func (h *hotCall) answerCached(a cache.Answer) {
	h.client.Advance(a.Revision)
	h.cfg.Metrics.cacheHits.Inc()
	f := &upstream.Frame{Head: a.Head, Body: a.Body, Pool: h.ledger.begin(a.Body)}
	if f.Pool != nil {
		h.call.Share()
	}
	h.answer(f)
}

// Ended is as in rpc.Ender.
func (h *hotCall) Ended(cause error) {
	if h.dropped() {
		h.late.Stop()
		h.fail(status.FromContextError(cause).Err())
		return
	}
	h.mu.Lock()
	h.cause = cause
	cancel := h.cancel
	h.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

// forward has a goroutine ask a member, when there is room for the answer. It does not wait.
func (h *hotCall) forward() {
	if h.method.full == rangeMethod {
		h.cfg.Metrics.cacheMisses.Inc()
	}
	h.forwarded.Add(1)
	h.asked = h.method.ask(&h.frame)
	if n := h.foresee(h.connection, h.method, &h.asked); n > 0 && !h.call.Reserve(n, h.ask) {
		return
	}
	h.call.Go(h.ask)
}

// timedContext is a context with the deadline of a call, whose connection looks after it: there is
// no timer for each.
type timedContext struct {
	context.Context
	deadline time.Time
}

func (c timedContext) Deadline() (time.Time, bool) { return c.deadline, true }

// ask asks a member and answers the call.
func (h *hotCall) ask() {
	if h.asks() {
		h.forwarded.Add(-1)
	}
}

// asks is ask; false: it is asked again when there is room for the answer.
func (h *hotCall) asks() bool {
	if !h.call.Notify(h) { // given up before it was begun: a client may make and reset any number
		h.fail(status.FromContextError(cmp.Or(h.call.Ended(), context.Canceled)).Err())
		return true
	}
	ctx, cancel := context.WithCancel(h.asker.out)
	defer cancel()
	h.mu.Lock()
	cause := h.cause
	h.cancel = cancel
	h.mu.Unlock()
	if cause != nil {
		h.fail(status.FromContextError(cause).Err())
		return true
	}
	if at := h.call.Deadline(); !at.IsZero() {
		ctx = timedContext{ctx, at}
	}
	resp, done, err := h.askInRoom(ctx)
	if !done {
		return false
	}
	h.call.SetMetadata(passed(resp.Header), passed(resp.Trailer))
	h.forgetLease(h.method, &h.frame)
	if err == nil {
		h.answer(&resp.Frame)
		return true
	}
	h.mu.Lock()
	if h.cause != nil {
		err = status.FromContextError(h.cause).Err()
	}
	h.mu.Unlock()
	h.fail(err)
	return true
}

// askInRoom asks until there is room for the answer; false: it is asked again when there is.
func (h *hotCall) askInRoom(ctx context.Context) (resp *upstream.Response, done bool, err error) {
	for {
		resp, err = h.cfg.Cluster.Call(ctx, h.client, h.asked)
		n := h.again(&h.asked, err)
		if n == 0 {
			h.answers.had(&h.asked, resp.Frame.Size())
			return resp, true, err
		}
		if !h.call.Reserve(n, h.ask) {
			return nil, false, nil
		}
	}
}

func (h *hotCall) answer(f *upstream.Frame) {
	h.method.counts.sent.Inc()
	h.method.counts.ended(codes.OK)
	if m, ok := upstream.Direct(f); ok {
		h.call.Reply(m)
		return
	}
	h.call.ReplyEncoded(f.Buffers())
}

func (h *hotCall) fail(err error) {
	h.method.counts.ended(status.Code(err))
	h.call.Fail(err)
}

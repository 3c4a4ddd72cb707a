package server

import (
	"errors"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/rpc"
)

// hotWrites answers KV's small writes without a goroutine for each: puts, and deletes and
// transactions that walk over no range. What such a call does before it waits it does on the
// connection's reader, as nothing of it waits; it goes on in endedWrites. Everything else is left to
// kvService, before it has been counted: calls that would be traced, and those of users whom this
// member cannot let in without waiting.
//
// A call ends once, as its proposal does; see replica.Completion. When its client has gone, or its
// deadline has passed, the proposal is cancelled, and the call counts as it would have with a context
// that ends. Only then is its answer one that nobody gets.
type hotWrites struct {
	kv      *kvService
	calls   *calls
	callers *authorizer // that waits for nothing
	ended   endedWrites
}

// hotMethod is what serves one method.
type hotMethod struct {
	*hotWrites
	path   string
	method *methodMetrics
	kind   requestKind
	none   proto.Message // the answer of a call that fails: nil, of the answer's type
	// read reads a message; nil: it is not for here.
	read func(message []byte) *hotWrite
	// check is what refuses a request before it is proposed.
	check func(w *hotWrite) error
}

// hotWrite is one such call.
type hotWrite struct {
	*hotMethod
	call     *rpc.Call
	req      proto.Message // that of the call, and
	raft     pb.InternalRaftRequest
	cost     int   // of the request for admission
	bytes    int   // of the message
	returns  bool  // it may return values
	barred   error // why the caller is not let in; nil: it is
	start    time.Time
	entered  time.Time // when admission let it in
	proposal uint64

	// Set by Completed.
	result command.Result
	err    error
	before *hotWrite // the one that ended before it, of those that are still to be answered
}

// methods are those that it serves.
func (h *hotWrites) methods() []*hotMethod {
	k := h.kv
	of := func(name string, kind requestKind, none proto.Message, read func([]byte) *hotWrite, check func(*hotWrite) error) *hotMethod {
		path := "/" + pb.KV_ServiceDesc.ServiceName + "/" + name
		return &hotMethod{hotWrites: h, path: path, method: h.calls.metrics.grpc.method(path, "unary"), kind: kind, none: none, read: read, check: check}
	}
	return []*hotMethod{
		of("Put", kindPut, (*pb.PutResponse)(nil), hotPut, func(w *hotWrite) error { return k.admitPut(w.raft.Put) }),
		of("DeleteRange", kindDeleteRange, (*pb.DeleteRangeResponse)(nil), hotDelete, func(w *hotWrite) error { return checkDelete(w.raft.DeleteRange) }),
		of("Txn", kindTxn, (*pb.TxnResponse)(nil), hotTxn, func(w *hotWrite) error { return k.admitTxn(w.raft.Txn) }),
	}
}

func hotPut(message []byte) *hotWrite {
	made := new(struct {
		hotWrite
		put pb.PutRequest
	})
	w, r := &made.hotWrite, &made.put
	if !readPut(mem.BufferSlice{mem.SliceBuffer(message)}, r) {
		return nil
	}
	w.req, w.raft.Put, w.cost = r, r, putCost(r)
	return w
}

func hotDelete(message []byte) *hotWrite {
	r := new(pb.DeleteRangeRequest)
	if proto.Unmarshal(message, r) != nil || weighsDelete(r) {
		return nil
	}
	w := &hotWrite{req: r, cost: deleteCost(r)}
	w.raft.DeleteRange = r
	return w
}

func hotTxn(message []byte) *hotWrite {
	r := new(pb.TxnRequest)
	if proto.Unmarshal(message, r) != nil || readsRanges(r) {
		return nil
	}
	if readOnly, _, _ := txnReads(r); readOnly {
		return nil
	}
	w := &hotWrite{req: r, cost: txnCost(r)}
	w.raft.Txn = r
	return w
}

// serve is a rpc.Hot.
func (m *hotMethod) serve(call *rpc.Call, message []byte) bool {
	if !m.calls.hot() {
		return false
	}
	w := m.read(message)
	if w == nil {
		return false
	}
	w.raft.Header, w.barred = m.callers.admittedHeader(call.Context(), &w.raft)
	if errors.Is(w.barred, errMustWait) {
		return false
	}
	if n := m.kv.returned.foresee(w.req); n > 0 {
		if w.returns = true; !call.TryReserve(n) {
			return false
		}
	}
	w.hotMethod, w.call, w.bytes, w.start = m, call, len(message), time.Now()
	if err := w.propose(); err != nil {
		w.end(m.none, toGRPC(err))
		return true
	}
	call.Notify(w)
	return true
}

// propose does all that comes before the wait. With an error the call has ended; otherwise Completed
// is called.
func (w *hotWrite) propose() error {
	w.calls.codec.metrics.receivedBytes.Add(float64(w.bytes))
	if err := w.calls.beginCall(w.call.Context(), w.method, w.path, w.req); err != nil {
		return err
	}
	if err := w.check(w); err != nil {
		return err
	}
	if w.barred != nil {
		return w.barred
	}
	w.entered = time.Now()
	id, err := w.kv.log.begin(w.kind, &w.raft, w.cost, w.entered, w)
	w.proposal = id
	return err
}

// Ended is rpc.Ender's.
func (w *hotWrite) Ended(cause error) { w.kv.log.replica.CancelProposal(w.proposal, cause) }

// Completed is replica.Completion's.
func (w *hotWrite) Completed(result command.Result, err error) {
	w.result, w.err = result, err
	w.hotWrites.ended.push(w)
}

// answerable is what all answers have.
type answerable interface {
	proto.Message
	GetHeader() *pb.ResponseHeader
}

// largeAnswer is from how many bytes on the encoding of an answer would delay those behind it.
const largeAnswer = 64 << 10

// large reports whether the answer is.
func (w *hotWrite) large() bool {
	switch r := w.result.Response.(type) {
	case nil:
		return false
	case *pb.PutResponse:
		return len(r.GetPrevKv().GetValue()) > largeAnswer
	default:
		return proto.Size(r) > largeAnswer
	}
}

// answer is what is left to do when the proposal has ended.
func (w *hotWrite) answer() {
	err := w.err
	w.kv.log.ended(w.kind, w.cost, w.entered, err == nil)
	if err == nil {
		err = w.result.Err
	}
	if err != nil {
		w.end(w.none, toGRPC(err))
		return
	}
	resp := w.result.Response.(answerable)
	if w.returns {
		w.kv.returned.had(proto.Size(resp))
	}
	w.kv.headers.fill(resp.GetHeader())
	w.end(resp, nil)
}

// end counts the call's end, and answers it.
func (w *hotWrite) end(resp proto.Message, err error) {
	w.calls.endCall(w.call.Context(), w.method, w.path, w.req, resp, err, w.start, waitTimes{room: w.result.Waited})
	if err != nil {
		w.call.Fail(err)
		return
	}
	if put, ok := resp.(*pb.PutResponse); ok {
		answer := &putAnswer{put, putResponseSize(put)}
		w.calls.codec.metrics.sentBytes.Add(float64(answer.size))
		w.call.Reply(answer)
		return
	}
	data, err := w.calls.codec.Marshal(resp)
	if err != nil {
		w.call.Fail(err)
		return
	}
	w.call.Reply(encodedAnswer(data))
	data.Free()
}

// putAnswer is an answer as package rpc writes it.
type putAnswer struct {
	resp *pb.PutResponse
	size int
}

func (a *putAnswer) Size() int { return a.size }

func (a *putAnswer) AppendTo(b []byte) []byte {
	n := len(b)
	b = appendPutResponse(b, a.resp)
	filled(b[n:], a.size)
	return b
}

// encodedAnswer is an answer that has been encoded.
type encodedAnswer mem.BufferSlice

func (a encodedAnswer) Size() int { return mem.BufferSlice(a).Len() }

func (a encodedAnswer) AppendTo(b []byte) []byte {
	for _, piece := range a {
		b = append(b, piece.ReadOnlyData()...)
	}
	return b
}

// endedWrites are the calls whose proposals have ended and that are still to be answered: the applier
// puts them here and goes on. A goroutine answers them while there are any, so that under load there
// is one for thousands of calls, whose stack has grown once. It waits for nothing.
//
// last is nil: there is no goroutine, or one that only has to find out that it must end; &taken: there
// is one, and it has taken all. The others follow by before.
type endedWrites struct {
	last  atomic.Pointer[hotWrite]
	taken hotWrite
}

// push adds a call. It does not wait.
func (e *endedWrites) push(w *hotWrite) {
	for {
		last := e.last.Load()
		w.before = last
		if !e.last.CompareAndSwap(last, w) {
			continue
		}
		if last == nil {
			go e.run()
		}
		return
	}
}

// run answers until there is nothing to answer.
func (e *endedWrites) run() {
	for {
		var first *hotWrite
		for w := e.last.Swap(&e.taken); w != nil && w != &e.taken; {
			before := w.before
			w.before, first = first, w
			w = before
		}
		if first == nil && e.last.CompareAndSwap(&e.taken, nil) {
			return
		}
		for w := first; w != nil; {
			next := w.before
			w.before = nil
			if w.large() {
				go w.answer()
			} else {
				w.answer()
			}
			w = next
		}
	}
}

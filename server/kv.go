package server

import (
	"context"
	"errors"
	"math"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/state"
)

// kvService is etcdserverpb.KV.
type kvService struct {
	kv      *mvcc.Store
	barrier func(context.Context) error // Replica.ReadBarrier
	log     *proposals
	callers *authorizer
	headers *headers
	quota   *quota
	usage   *usageOf
	turns   *turns
	codec   *countingCodec
	slow    slowReads
	// Bounds of requests, with their defaults set.
	limits          Limits
	maxTxnOps       int
	maxRequestBytes int
	life            *lifetime
	metrics         *Metrics
	returned        returned
	pb.UnsafeKVServer
}

// slowReads warns of reads that took long; *state.Machine does, as it does of what it applies.
type slowReads interface {
	WarnSlowRange(took, waited time.Duration, r *pb.RangeRequest, resp *pb.RangeResponse, err error)
	WarnSlowKeys(took, waited time.Duration, r *pb.RangeRequest, keys, size int, err error)
	WarnSlowTxn(took, waited time.Duration, r *pb.TxnRequest, resp *pb.TxnResponse, err error)
}

func (k *kvService) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	t := k.turns.newTurn(ctx)
	defer t.drop()
	defer t.end()
	return k.rangeFilled(t, r)
}

// rangeInTurn is Range as it is registered; see readingStream.
func (k *kvService) rangeInTurn(t *turn, r *pb.RangeRequest) (*rangeReply, error) {
	if state.InOrder(r) {
		t.encoded = new(encodedKeys)
	}
	resp, err := k.rangeFilled(t, r)
	if err != nil {
		if t.encoded != nil {
			t.encoded.drop()
		}
		return nil, err
	}
	return &rangeReply{resp, t.encoded}, nil
}

func (k *kvService) rangeFilled(t *turn, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if err := checkRange(r); err != nil {
		return nil, err
	}
	resp, err := k.rangeLocal(t, r, theCaller)
	if err != nil {
		return nil, toGRPC(err)
	}
	k.headers.fill(resp.Header)
	return resp, nil
}

// reader is for whom a range is read.
type reader int

const (
	theCaller reader = iota // of the request, who must have the right to read it
	theMember               // a health check, which shows nothing of what is read
)

// rangeLocal reads, after a read barrier unless the request is serializable. The answer's keys are in
// t.encoded if that is set.
func (k *kvService) rangeLocal(t *turn, r *pb.RangeRequest, to reader) (resp *pb.RangeResponse, err error) {
	start := time.Now()
	if !r.Serializable {
		err = k.barrier(t.Context)
	}
	if err == nil {
		err = t.awaitRoom(r)
	}
	if err == nil {
		read := time.Now()
		get := func() (err error) {
			if keys, ok := estimator(k.kv.Estimate).ofRange(r); ok {
				if err := t.expect(keys, k.sample(t, r)); err != nil {
					return err
				}
			}
			if t.encoded != nil {
				resp, err = state.RangeEach(t, k.kv, r, k.limits.AnswerBytes, t.encoded.add)
			} else {
				resp, err = state.RangeWithin(t, k.kv, r, k.limits.AnswerBytes)
			}
			return err
		}
		if to == theMember {
			err = get()
		} else {
			err = k.callers.reads(t.Context, r, get)
		}
		k.metrics.observeRange(err == nil, time.Since(read).Seconds())
	}
	took := time.Since(start)
	k.metrics.observeRequest(kindRange, err == nil, took.Seconds())
	if t.encoded == nil {
		k.slow.WarnSlowRange(took, t.waited, r, resp, err)
		return resp, err
	}
	size := 0
	if resp != nil {
		size = t.encoded.answerSize(resp)
	}
	k.slow.WarnSlowKeys(took, t.waited, r, t.encoded.keys, size, err)
	return resp, err
}

// sample looks at the first keys of a range: how many of how many bytes its answer has.
func (k *kvService) sample(t *turn, r *pb.RangeRequest) func(keys int64) (n, bytes int64, err error) {
	return func(keys int64) (n, bytes int64, err error) {
		if r.KeysOnly && r.SortTarget != pb.RangeRequest_VALUE {
			if t.encoded != nil {
				return 1, shortKeyBytes, nil
			}
			return 1, 0, nil
		}
		return k.kv.Weigh(t.Context, r.Key, r.RangeEnd, keys, math.MaxInt64)
	}
}

// probe reads as a health check does.
func (k *kvService) probe(ctx context.Context, serializable bool) error {
	t := k.turns.newTurn(ctx)
	defer t.end()
	_, err := k.rangeLocal(t, &pb.RangeRequest{Key: []byte{0}, KeysOnly: true, Limit: 1, Serializable: serializable}, theMember)
	return err
}

func (k *kvService) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	if err := k.admitPut(r); err != nil {
		return nil, err
	}
	result, err := k.write(ctx, kindPut, r, &pb.InternalRaftRequest{Put: r}, putCost(r))
	if err != nil {
		return nil, toGRPC(err)
	}
	resp := result.Response.(*pb.PutResponse)
	k.headers.fill(resp.Header)
	return resp, nil
}

// admitPut is everything that Put does before it waits; Replica.Propose says why it is a function
// of its own.
//
//go:noinline
func (k *kvService) admitPut(r *pb.PutRequest) error {
	if err := k.quota.check(r); err != nil {
		return err
	}
	if err := checkPut(r); err != nil {
		return err
	}
	return k.limits.checkKey(r.Key)
}

// What requests cost: about what they hold in memory, in bytes, for admission.

func putCost(r *pb.PutRequest) int { return len(r.Key) + len(r.Value) }

func deleteCost(r *pb.DeleteRangeRequest) int { return len(r.Key) + len(r.RangeEnd) }

func txnCost(r *pb.TxnRequest) int { return proto.Size(r) }

// weighsDelete reports whether checkWork looks at a delete.
func weighsDelete(r *pb.DeleteRangeRequest) bool { return r.PrevKv && len(r.RangeEnd) > 0 }

func (k *kvService) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	if err := checkDelete(r); err != nil {
		return nil, err
	}
	req := &pb.InternalRaftRequest{DeleteRange: r}
	if weighsDelete(r) {
		t := k.turns.newTurn(ctx)
		err := k.checkWork(t, req)
		noteWaits(ctx, waitTimes{turn: t.waited})
		if err != nil {
			return nil, toGRPC(err)
		}
	}
	result, err := k.write(ctx, kindDeleteRange, r, req, deleteCost(r))
	if err != nil {
		return nil, toGRPC(err)
	}
	resp := result.Response.(*pb.DeleteRangeResponse)
	k.headers.fill(resp.Header)
	return resp, nil
}

func (k *kvService) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	t := k.turns.newTurn(ctx)
	defer t.drop()
	defer t.end()
	return k.txnInTurn(t, r)
}

// txnInTurn is Txn as it is registered; see readingStream.
func (k *kvService) txnInTurn(t *turn, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if err := k.admitTxn(r); err != nil {
		return nil, err
	}
	resp, err := k.txn(t, r)
	if err != nil {
		return nil, toGRPC(err)
	}
	k.headers.fill(resp.Header)
	return resp, nil
}

// admitTxn is what refuses a transaction by itself.
func (k *kvService) admitTxn(r *pb.TxnRequest) error {
	if err := k.quota.check(r); err != nil {
		return err
	}
	if err := checkTxn(r, k.maxTxnOps); err != nil {
		return err
	}
	if err := k.limits.checkKeys(r); err != nil {
		return err
	}
	return k.limits.checkTotal(r)
}

func (k *kvService) txn(t *turn, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	readOnly, nested, serializable := txnReads(r)
	if readOnly {
		return k.txnLocal(t, r, nested, serializable)
	}
	req := &pb.InternalRaftRequest{Txn: r}
	if readsRanges(r) {
		if err := k.checkWork(t, req); err != nil {
			return nil, err
		}
	}
	result, err := k.write(t.Context, kindTxn, r, req, txnCost(r))
	if err != nil {
		return nil, err
	}
	return result.Response.(*pb.TxnResponse), nil
}

// readsRanges reports whether anything in a transaction is of more than one key.
func readsRanges(r *pb.TxnRequest) bool {
	for _, c := range r.Compare {
		if len(c.GetRangeEnd()) > 0 {
			return true
		}
	}
	for _, branch := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range branch {
			switch o := op.GetRequest().(type) {
			case *pb.RequestOp_RequestRange:
				if len(o.RequestRange.GetRangeEnd()) > 0 {
					return true
				}
			case *pb.RequestOp_RequestDeleteRange:
				if len(o.RequestDeleteRange.GetRangeEnd()) > 0 {
					return true
				}
			case *pb.RequestOp_RequestTxn:
				if o.RequestTxn != nil && readsRanges(o.RequestTxn) {
					return true
				}
			}
		}
	}
	return false
}

// txnReads reports whether a transaction only reads (then it needs no entry in the log) and whether
// it may be served from what this member has. One with only compares is serializable, as in etcd:
// its answer may be stale. In etcd every transaction with nested ones goes through the log; here
// only if it writes. Otherwise it is answered as if it had: after a barrier, and not under an alarm
// that would refuse it.
func txnReads(r *pb.TxnRequest) (readOnly, nested, serializable bool) {
	serializable = true
	for _, branch := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range branch {
			if op.GetRequestTxn() != nil {
				return state.IsReadOnly(r), true, false
			}
			serializable = serializable && op.GetRequestRange().GetSerializable()
		}
	}
	return state.IsReadOnly(r), false, serializable
}

func (k *kvService) txnLocal(t *turn, r *pb.TxnRequest, nested, serializable bool) (resp *pb.TxnResponse, err error) {
	start := time.Now()
	if !serializable {
		err = k.barrier(t.Context)
	}
	if err == nil {
		err = t.awaitRoom(r)
	}
	if nested && err == nil {
		// In etcd it goes through the log, and an invalid token is refused before that.
		if _, err = k.callers.headerFor(t.Context); err == nil {
			err = k.callers.rules.AlarmRefusal(&pb.InternalRaftRequest{Txn: r})
		}
	}
	permitted := k.callers.permittedRead
	if nested {
		permitted = k.callers.permitted // what goes through the log may have a token of a later revision
	}
	if err == nil {
		err = permitted(t.Context, func(p *auth.Policy, who auth.Identity) error { return p.Txn(who, r, k.callers.leaseKeys) }, func() (err error) {
			if w := estimator(k.kv.Estimate).ofTxn(r); w.known {
				if err := t.expect(w.keys, nil); err != nil {
					return err
				}
			}
			view := k.kv.View()
			defer view.Close()
			resp, err = state.ReadTxn(t, view, r, k.limits.AnswerBytes)
			return err
		})
	}
	took := time.Since(start)
	k.metrics.observeRequest(kindReadonlyTxn, err == nil, took.Seconds())
	k.slow.WarnSlowTxn(took, t.waited, r, resp, err)
	return resp, err
}

func (k *kvService) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	if err := k.callers.authorizeAdmin(ctx); err != nil {
		return nil, toGRPC(err)
	}
	resp, err := k.compact(ctx, r)
	if err != nil {
		return nil, toGRPC(err)
	}
	k.headers.fill(resp.Header)
	return resp, nil
}

// compactTo compacts for auto compaction; it is no error if the revision is compacted already.
func (k *kvService) compactTo(ctx context.Context, rev int64) error {
	_, err := k.compact(ctx, &pb.CompactionRequest{Revision: rev})
	if errors.Is(err, mvcc.ErrCompacted) {
		return nil
	}
	return err
}

// compact also serves auto compaction.
func (k *kvService) compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	result, err := k.log.propose(ctx, kindCompaction, &pb.InternalRaftRequest{Compaction: r}, smallRequest)
	if r.Physical && result.Done != nil {
		// The entry is applied in any case; only the wait can fail.
		select {
		case <-result.Done:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-k.life.stopped.Done():
			return nil, replica.ErrStopped
		}
	}
	if err != nil {
		return nil, err
	}
	resp, _ := result.Response.(*pb.CompactionResponse)
	if resp == nil {
		resp = &pb.CompactionResponse{}
	}
	if resp.Header == nil {
		resp.Header = &pb.ResponseHeader{}
	}
	resp.Header.Revision = k.kv.Revision()
	return resp, nil
}

// streamFirstLimit is how many keys the first chunk of a RangeStream has.
const streamFirstLimit = 10

// streamHeaderBytes estimates what header, more and count add to a chunk: etcd counts them in the
// size of the last chunk.
const streamHeaderBytes = 10

// RangeStream answers a range in chunks of about the largest request's size, all from one
// consistent view. Only the last chunk has header, more and count, which is how a client knows that
// nothing is missing.
func (k *kvService) RangeStream(r *pb.RangeRequest, stream pb.KV_RangeStreamServer) error {
	if err := checkRangeStream(r); err != nil {
		return err
	}
	ctx := stream.Context()
	if !r.Serializable {
		if err := k.barrier(ctx); err != nil {
			return toGRPC(err)
		}
	}
	start := time.Now()
	may := k.callers.rightsOf(ctx)
	check := readCheck(r.Key, r.RangeEnd)
	checked := k.callers.rules.Policy()
	err := k.callers.permittedRead(ctx, func(p *auth.Policy, who auth.Identity) error {
		checked = p
		return check(p, who)
	}, func() error {
		view := k.kv.View()
		defer view.Close()
		// What is sent cannot be taken back: the rules that allow it must be at least as new as the
		// view.
		if now := k.callers.rules.Policy(); now.Enabled() && (!checked.Enabled() || now.Revision() != checked.Revision()) {
			return auth.ErrAuthOldRevision
		}
		if err := may.admitIf(check, func() {}); err != nil {
			return err
		}
		t := k.turns.newTurn(ctx)
		defer t.end()
		return k.rangeStream(t, view, r, stream, func() error { return may.keep(check) })
	})
	k.metrics.observeRange(err == nil, time.Since(start).Seconds())
	return toGRPC(err)
}

// rangeStream reads chunk after chunk, each in a turn of its own once it has read much, and checks
// before each whether the caller may still read it.
func (k *kvService) rangeStream(t *turn, view *mvcc.View, r *pb.RangeRequest, stream pb.KV_RangeStreamServer, permitted func() error) error {
	send := func(resp *pb.RangeResponse, last bool) error {
		if err := permitted(); err != nil {
			return err
		}
		if last {
			resp.Header = &pb.ResponseHeader{Revision: view.Rev()}
			k.headers.fillWithoutRevision(resp.Header)
		}
		var message any = &pb.RangeStreamResponse{RangeResponse: resp}
		if t.release != nil {
			encoded, err := k.codec.encode(stream, message)
			if err != nil {
				return err
			}
			message = encoded
			t.again()
		}
		k.usage.call(stream.Context(), r, resp, nil)
		return sendWithin(streamStall, func() error { return stream.SendMsg(message) })
	}

	end := r.RangeEnd
	if r.CountOnly {
		rr, err := view.Range(t, r.Key, end, mvcc.RangeOptions{Rev: r.Revision, CountOnly: true})
		if err != nil {
			return err
		}
		return send(&pb.RangeResponse{Count: rr.Count}, true)
	}

	if sortedChunks(r) && r.Limit < 0 {
		// As in etcd: all is one chunk, and sorted whole.
		whole, err := state.RangeResponse(t, view, r)
		if err != nil {
			return err
		}
		return send(whole, true)
	}

	left := r.Limit
	if left <= 0 {
		left = math.MaxInt64
	}
	key, sent := r.Key, int64(0)
	for limit := min(int64(streamFirstLimit), left); ; {
		// One more key than needed shows whether anything follows.
		chunk, more, err := k.readChunk(t, view, key, end, r, limit)
		if err != nil {
			return err
		}
		n := int64(len(chunk.Kvs))
		sent += n
		left -= n
		size := proto.Size(chunk) + streamHeaderBytes
		if !more || left == 0 {
			chunk.More, chunk.Count = more, sent
			if more {
				rest, err := view.Range(t, nextKey(chunk), end, mvcc.RangeOptions{Rev: r.Revision, CountOnly: true})
				if err != nil {
					return err
				}
				chunk.Count += rest.Count
			}
			return send(chunk, true)
		}
		key = nextKey(chunk)
		if err := send(chunk, false); err != nil {
			return err
		}
		limit = min(nextLimit(limit, size, k.maxRequestBytes), left)
	}
}

// sortedChunks reports whether each chunk of a RangeStream is sorted by itself: a sort target
// without an order passes checkRangeStream, as it passes etcd's. etcd then sorts the keys of each
// chunk, and goes on behind the chunk's last one, which need not be its greatest: keys are left out
// and come twice. So they do here.
func sortedChunks(r *pb.RangeRequest) bool {
	return r.SortOrder == pb.RangeRequest_NONE && r.SortTarget != pb.RangeRequest_KEY
}

// streamStall is how long a client may read nothing of a RangeStream: its view keeps what is
// overwritten in the meantime in memory and on disk.
const streamStall = time.Minute

var errStreamStalled = status.Error(codes.Aborted, "etcdserver: the client has read nothing of this stream for too long; ask again from the key after the last one received")

// sendWithin gives up after a while. What is being sent ends with the stream, when
// the caller returns.
func sendWithin(limit time.Duration, send func() error) error {
	sent := make(chan error, 1)
	go func() { sent <- send() }()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-sent:
		return err
	case <-timer.C:
		return errStreamStalled
	}
}

func nextKey(r *pb.RangeResponse) []byte {
	last := r.Kvs[len(r.Kvs)-1].Key
	return append(append(make([]byte, 0, len(last)+1), last...), 0)
}

// nextLimit brings chunks near the target size: it doubles or halves outside
// of [target/2, 2 target]. Never 0, which would mean no limit.
func nextLimit(limit int64, size, target int) int64 {
	switch {
	case size < target/2:
		limit *= 2
	case size > target*2:
		limit /= 2
	}
	return max(limit, 1)
}

// readChunk reads up to limit keys, fewer if they are large: the limit comes from the sizes of
// earlier keys, and later ones may be a thousand times as large. It reads in steps, each as many
// keys as fit into what is left of the target if they were all as large as the largest so far.
func (k *kvService) readChunk(ctx context.Context, view *mvcc.View, key, end []byte, r *pb.RangeRequest, limit int64) (*pb.RangeResponse, bool, error) {
	target := int64(2 * k.maxRequestBytes)
	chunk := &pb.RangeResponse{}
	size, largest := int64(0), int64(1)
	step := int64(streamFirstLimit)
	if sortedChunks(r) { // where a chunk ends is seen in the answer: as etcd, by the number of keys alone
		target, step = math.MaxInt64, limit
	}
	bare := r.KeysOnly && r.SortTarget != pb.RangeRequest_VALUE
	for {
		step = min(step, limit-int64(len(chunk.Kvs)))
		rr, err := view.Range(ctx, key, end, mvcc.RangeOptions{Rev: r.Revision, Limit: step + 1, KeysOnly: bare, NoCount: true})
		if err != nil {
			return nil, false, err
		}
		var next []*mvccpb.KeyValue // the one behind the chunk, if there is one
		if int64(len(rr.KVs)) > step {
			rr.KVs, next = rr.KVs[:step], rr.KVs[step:]
		}
		for _, kv := range rr.KVs {
			n := int64(len(kv.Key) + len(kv.Value) + 16)
			size += n
			largest = max(largest, n)
		}
		chunk.Kvs = append(chunk.Kvs, rr.KVs...)
		if n := int64(len(chunk.Kvs)); len(next) == 0 || n == limit || size >= target {
			if sortedChunks(r) {
				// etcd sorts what it has read, the key behind the chunk too.
				chunk.Kvs = append(chunk.Kvs, next...)
				state.SortChunk(chunk.Kvs, r)
				chunk.Kvs = chunk.Kvs[:n]
			}
			if r.KeysOnly {
				chunk.Kvs = withoutValues(chunk.Kvs, !bare)
			}
			return chunk, len(next) > 0, nil
		}
		key = nextKey(chunk)
		step = max(1, min(step*2, (target-size)/largest))
	}
}

// withoutValues returns copies, since what mvcc returns is shared. The lease is removed too, as in
// etcd, unless the range is sorted by value.
func withoutValues(kvs []*mvccpb.KeyValue, leases bool) []*mvccpb.KeyValue {
	bare := make([]mvccpb.KeyValue, len(kvs))
	out := make([]*mvccpb.KeyValue, len(kvs))
	for i, kv := range kvs {
		b := &bare[i]
		b.Key, b.CreateRevision, b.ModRevision, b.Version = kv.Key, kv.CreateRevision, kv.ModRevision, kv.Version
		if leases {
			b.Lease = kv.Lease
		}
		out[i] = b
	}
	return out
}

package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// A step is one request of the stream, with how to send it to a side.
type step struct {
	name    string
	request proto.Message // in symbols; for the report
	sync    bool          // compare the watches before this step
	do      func(ctx context.Context, s *side) (proto.Message, error)
	learn   func(s *side, m proto.Message)      // takes ids out of a raw answer
	adjust  func(etcd, other proto.Message)     // removes what a clock may change by one
	observe func(g *generator, m proto.Message) // after equal answers
}

func (s step) String() string {
	if s.request == nil {
		return s.name
	}
	return s.name + " " + abridge(oneLine(s.request))
}

// generator makes the stream. It only follows etcd's answers, so one seed
// makes one stream whatever the other side says.
type generator struct {
	rng *rand.Rand

	rev       int64 // current revision
	compacted int64 // -1: never
	compact0  bool  // Compact(0) succeeded: etcd's HashKV(0) is stale from then on
	leases    []int64
	nLeases   int64
	streams   map[int]*streamModel
	nStreams  int
	live      []int // streams that take more watches
	wantSync  bool
	expiries  int
	learner   bool
}

// streamModel is what the generator knows of a watch stream.
type streamModel struct {
	watches []int64
	future  int64 // a watch starts at this revision, which may not be reached yet
}

func newGenerator(rng *rand.Rand) *generator {
	return &generator{rng: rng, rev: 1, compacted: -1, streams: make(map[int]*streamModel)}
}

func (g *generator) observe(st step, m proto.Message) {
	if h, ok := m.(interface{ GetHeader() *pb.ResponseHeader }); ok && h.GetHeader().GetRevision() > g.rev {
		g.rev = h.GetHeader().GetRevision()
	}
	if st.observe != nil {
		st.observe(g, m)
	}
}

func (g *generator) chance(percent int) bool { return g.rng.IntN(100) < percent }

func pick[T any](g *generator, from ...T) T { return from[g.rng.IntN(len(from))] }

// key returns one of a few dozen keys, so that requests meet each other.
func (g *generator) key() []byte {
	switch n := g.rng.IntN(100); {
	case n < 70:
		return fmt.Appendf(nil, "%c/%02d", 'a'+g.rng.IntN(3), g.rng.IntN(14))
	case n < 85:
		return fmt.Appendf(nil, "a/%02d/%d", g.rng.IntN(4), g.rng.IntN(4))
	case n < 88:
		return []byte{0}
	case n < 90:
		return []byte{0xff, 0xff}
	case n < 92:
		return []byte("a/\x00\xff\x00")
	case n < 94:
		return bytes.Repeat([]byte("long"), 300)
	case n < 96:
		return []byte("a")
	default:
		return fmt.Appendf(nil, "never/%d", g.rng.IntN(1000))
	}
}

// keyRange returns a key and a range end, at times an odd one.
func (g *generator) keyRange() (key, end []byte) {
	key = g.key()
	switch n := g.rng.IntN(100); {
	case n < 35:
		return key, nil
	case n < 60:
		a, b := key, g.key()
		if bytes.Compare(a, b) > 0 && g.chance(90) {
			a, b = b, a
		}
		return a, b
	case n < 75:
		return []byte(pick(g, "a/", "b/", "c/", "a/0")), []byte(pick(g, "a0", "b0", "d", "b/1"))
	case n < 85:
		return key, []byte{0}
	case n < 95:
		return []byte{0}, []byte{0}
	case n < 97:
		return key, key
	default:
		return nil, pick(g, nil, []byte{0}, []byte("x"))
	}
}

func (g *generator) value() []byte {
	switch n := g.rng.IntN(100); {
	case n < 5:
		return nil
	case n < 80:
		return fmt.Appendf(nil, "v%d", g.rng.IntN(50))
	case n < 97:
		b := make([]byte, g.rng.IntN(300))
		for i := range b {
			b[i] = byte(g.rng.Uint32())
		}
		return b
	default:
		return bytes.Repeat([]byte{byte(g.rng.Uint32())}, g.rng.IntN(9000))
	}
}

// revision returns 0 most often, else some revision about the interesting ones.
func (g *generator) revision() int64 {
	switch n := g.rng.IntN(100); {
	case n < 60:
		return 0
	case n < 85:
		low := max(g.compacted, 1)
		return low + g.rng.Int64N(g.rev-low+1)
	case n < 90:
		return max(g.compacted, 0) + g.rng.Int64N(3) - 1
	case n < 97:
		return g.rev + g.rng.Int64N(4) - 1
	default:
		return pick(g, int64(-1), -5, 1<<62)
	}
}

// someLease returns a lease that may be attached to a key: one whose id we
// chose, because the id is part of what HashKV covers.
func (g *generator) someLease() int64 {
	var own []int64
	for _, l := range g.leases {
		if l < symLease {
			own = append(own, l)
		}
	}
	if len(own) == 0 || g.chance(5) {
		return 999_999
	}
	return pick(g, own...)
}

func (g *generator) next() []step {
	if len(g.live) == 0 || (len(g.live) < 8 && g.chance(1)) {
		return []step{g.openStream()}
	}
	switch n := g.rng.IntN(1000); {
	case n < 330:
		return []step{unary("Put", g.put(), (*side).put)}
	case n < 520:
		return []step{unary("Range", g.rangeRequest(), (*side).rangeKV)}
	case n < 545:
		return []step{g.rangeStream()}
	case n < 610:
		return []step{unary("DeleteRange", g.deleteRange(), (*side).deleteRange)}
	case n < 760:
		return []step{unary("Txn", g.txn(0), (*side).txn)}
	case n < 775:
		return []step{g.compact()}
	case n < 850:
		return g.leaseSteps()
	case n < 920:
		return g.watchSteps()
	case n < 955:
		return []step{g.hashKV()}
	case n < 985:
		return g.maintenanceSteps()
	case n < 988:
		return g.alarmSteps()
	case n < 992:
		return g.electionSteps()
	case n < 994 && g.expiries < 2:
		return g.expirySteps()
	default:
		return g.tooLarge()
	}
}

// finish reads back everything there is.
func (g *generator) finish() []step {
	all := &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}
	steps := []step{unary("Range", all, (*side).rangeKV)}
	for rev := max(g.compacted, 2); rev <= g.rev; rev += max(1, (g.rev-max(g.compacted, 2))/8) {
		steps = append(steps, unary("HashKV", &pb.HashKVRequest{Revision: rev}, (*side).hashKV))
	}
	return append(steps, unary("HashKV", &pb.HashKVRequest{Revision: g.rev}, (*side).hashKV))
}

// unary makes a step of a request and the method that sends it.
func unary[Q proto.Message](name string, req Q, send func(*side, context.Context, Q) (proto.Message, error)) step {
	return step{name: name, request: req, do: func(ctx context.Context, s *side) (proto.Message, error) {
		return send(s, ctx, real(s, req))
	}}
}

func (s *side) put(ctx context.Context, r *pb.PutRequest) (proto.Message, error) {
	return s.kv.Put(ctx, r)
}
func (s *side) rangeKV(ctx context.Context, r *pb.RangeRequest) (proto.Message, error) {
	return s.kv.Range(ctx, r)
}
func (s *side) deleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (proto.Message, error) {
	return s.kv.DeleteRange(ctx, r)
}
func (s *side) txn(ctx context.Context, r *pb.TxnRequest) (proto.Message, error) {
	return s.kv.Txn(ctx, r)
}

// compactKV waits for the end also of a compaction whose request did not ask for it, by a second
// request, which is refused: HashKV answers with a compaction's hash only once that has ended.
func (s *side) compactKV(ctx context.Context, r *pb.CompactionRequest) (proto.Message, error) {
	resp, err := s.kv.Compact(ctx, r)
	if err == nil && !r.Physical {
		_, again := s.kv.Compact(ctx, &pb.CompactionRequest{Revision: r.Revision, Physical: true})
		if !errors.Is(rpctypes.Error(again), rpctypes.ErrCompacted) {
			return nil, fmt.Errorf("compacting revision %d a second time: %w", r.Revision, again)
		}
	}
	return resp, err
}
func (s *side) hashKV(ctx context.Context, r *pb.HashKVRequest) (proto.Message, error) {
	return s.maint.HashKV(ctx, r)
}
func (s *side) grant(ctx context.Context, r *pb.LeaseGrantRequest) (proto.Message, error) {
	return s.lease.LeaseGrant(ctx, r)
}
func (s *side) revoke(ctx context.Context, r *pb.LeaseRevokeRequest) (proto.Message, error) {
	return s.lease.LeaseRevoke(ctx, r)
}
func (s *side) timeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (proto.Message, error) {
	return s.lease.LeaseTimeToLive(ctx, r)
}
func (s *side) leaseList(ctx context.Context, r *pb.LeaseLeasesRequest) (proto.Message, error) {
	return s.lease.LeaseLeases(ctx, r)
}
func (s *side) keepAlive(ctx context.Context, r *pb.LeaseKeepAliveRequest) (proto.Message, error) {
	stream, err := s.lease.LeaseKeepAlive(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(r); err != nil {
		return nil, err
	}
	resp, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	_ = stream.CloseSend()
	if _, err := stream.Recv(); err != io.EOF {
		return nil, fmt.Errorf("after CloseSend: %w", err)
	}
	return resp, nil
}
func (s *side) status(ctx context.Context, r *pb.StatusRequest) (proto.Message, error) {
	return s.maint.Status(ctx, r)
}
func (s *side) alarm(ctx context.Context, r *pb.AlarmRequest) (proto.Message, error) {
	return s.maint.Alarm(ctx, r)
}
func (s *side) moveLeader(ctx context.Context, r *pb.MoveLeaderRequest) (proto.Message, error) {
	return s.maint.MoveLeader(ctx, r)
}
func (s *side) downgrade(ctx context.Context, r *pb.DowngradeRequest) (proto.Message, error) {
	return s.maint.Downgrade(ctx, r)
}
func (s *side) defragment(ctx context.Context, r *pb.DefragmentRequest) (proto.Message, error) {
	return s.maint.Defragment(ctx, r)
}
func (s *side) memberList(ctx context.Context, r *pb.MemberListRequest) (proto.Message, error) {
	return s.members.MemberList(ctx, r)
}
func (s *side) memberAdd(ctx context.Context, r *pb.MemberAddRequest) (proto.Message, error) {
	return s.members.MemberAdd(ctx, r)
}
func (s *side) memberRemove(ctx context.Context, r *pb.MemberRemoveRequest) (proto.Message, error) {
	return s.members.MemberRemove(ctx, r)
}
func (s *side) memberUpdate(ctx context.Context, r *pb.MemberUpdateRequest) (proto.Message, error) {
	return s.members.MemberUpdate(ctx, r)
}
func (s *side) memberPromote(ctx context.Context, r *pb.MemberPromoteRequest) (proto.Message, error) {
	return s.members.MemberPromote(ctx, r)
}

func (g *generator) put() *pb.PutRequest {
	r := &pb.PutRequest{Key: g.key(), Value: g.value(), PrevKv: g.chance(30)}
	if g.chance(20) {
		r.Lease = g.someLease()
	}
	if g.chance(8) {
		r.IgnoreValue = true
		if g.chance(85) {
			r.Value = nil
		}
	}
	if g.chance(8) {
		r.IgnoreLease = true
		if g.chance(85) {
			r.Lease = 0
		}
	}
	if g.chance(1) {
		r.Key = nil
	}
	return r
}

func (g *generator) deleteRange() *pb.DeleteRangeRequest {
	key, end := g.keyRange()
	if len(end) > 0 && g.chance(60) { // or there would never be much to read
		end = nil
	}
	return &pb.DeleteRangeRequest{Key: key, RangeEnd: end, PrevKv: g.chance(50)}
}

func (g *generator) rangeRequest() *pb.RangeRequest {
	key, end := g.keyRange()
	r := &pb.RangeRequest{Key: key, RangeEnd: end, Revision: g.revision(), Serializable: g.chance(25)}
	if g.chance(40) {
		r.Limit = pick(g, int64(1), 2, 3, 10, 1000, -1)
	}
	if g.chance(35) {
		r.SortOrder = pick(g, pb.RangeRequest_NONE, pb.RangeRequest_ASCEND, pb.RangeRequest_DESCEND)
		r.SortTarget = pick(g, pb.RangeRequest_KEY, pb.RangeRequest_VERSION, pb.RangeRequest_CREATE, pb.RangeRequest_MOD, pb.RangeRequest_VALUE)
	}
	r.KeysOnly = g.chance(12)
	r.CountOnly = g.chance(12)
	bound := func() int64 {
		if g.chance(85) {
			return 0
		}
		return g.rng.Int64N(g.rev+3) - 1
	}
	r.MinModRevision, r.MaxModRevision = bound(), bound()
	r.MinCreateRevision, r.MaxCreateRevision = bound(), bound()
	if g.chance(1) {
		r.SortOrder = 9
	}
	if g.chance(1) {
		r.SortTarget = 9
	}
	return r
}

// rangeStream compares the chunks put together: where a chunk ends is the
// server's affair, but header, more and count belong to the last chunk only.
func (g *generator) rangeStream() step {
	req := g.rangeRequest()
	if g.chance(70) {
		// A target without an order passes: each chunk is sorted by it alone.
		req.SortOrder = pb.RangeRequest_NONE
		req.MinModRevision, req.MaxModRevision, req.MinCreateRevision, req.MaxCreateRevision = 0, 0, 0, 0
	}
	return unary("RangeStream", req, func(s *side, ctx context.Context, r *pb.RangeRequest) (proto.Message, error) {
		stream, err := s.kv.RangeStream(ctx, r)
		if err != nil {
			return nil, err
		}
		whole := &pb.RangeResponse{}
		for {
			chunk, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return whole, nil
			}
			if err != nil {
				return nil, err
			}
			if whole.Header != nil {
				return nil, errors.New("a chunk follows the one with the header")
			}
			proto.Merge(whole, chunk.RangeResponse)
		}
	})
}

func (g *generator) compare() *pb.Compare {
	key, end := g.keyRange()
	c := &pb.Compare{
		Key:    key,
		Result: pick(g, pb.Compare_EQUAL, pb.Compare_GREATER, pb.Compare_LESS, pb.Compare_NOT_EQUAL),
		Target: pick(g, pb.Compare_VERSION, pb.Compare_CREATE, pb.Compare_MOD, pb.Compare_VALUE, pb.Compare_LEASE),
	}
	if g.chance(30) {
		c.RangeEnd = end
	}
	arm := c.Target
	if g.chance(5) {
		arm = pick(g, pb.Compare_VERSION, pb.Compare_CREATE, pb.Compare_MOD, pb.Compare_VALUE, pb.Compare_LEASE, 77)
	}
	switch arm {
	case pb.Compare_VERSION:
		c.TargetUnion = &pb.Compare_Version{Version: g.rng.Int64N(4)}
	case pb.Compare_CREATE:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: pick(g, 0, g.rng.Int64N(g.rev+1))}
	case pb.Compare_MOD:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: pick(g, 0, g.rng.Int64N(g.rev+1))}
	case pb.Compare_VALUE:
		c.TargetUnion = &pb.Compare_Value{Value: g.value()}
	case pb.Compare_LEASE:
		c.TargetUnion = &pb.Compare_Lease{Lease: pick(g, 0, g.someLease())}
	}
	if g.chance(1) {
		c.Result = 9
	}
	if g.chance(1) {
		c.Target = 9
	}
	return c
}

// txn returns a transaction that etcd survives: it checks that a put which keeps the value or the
// lease finds its key before the transaction begins, and panics, at each start again, if the
// transaction itself deletes the key first.
func (g *generator) txn(depth int) *pb.TxnRequest {
	r := g.anyTxn(depth)
	if depth == 0 {
		var deletes []*pb.DeleteRangeRequest
		eachOp(r, func(op *pb.RequestOp) {
			if d := op.GetRequestDeleteRange(); d != nil {
				deletes = append(deletes, d)
			}
		})
		eachOp(r, func(op *pb.RequestOp) {
			if put := op.GetRequestPut(); put != nil && slices.ContainsFunc(deletes, func(d *pb.DeleteRangeRequest) bool { return covers(d, put.Key) }) {
				put.IgnoreValue, put.IgnoreLease = false, false
			}
		})
	}
	return r
}

func eachOp(r *pb.TxnRequest, do func(*pb.RequestOp)) {
	for _, op := range slices.Concat(r.Success, r.Failure) {
		do(op)
		if t := op.GetRequestTxn(); t != nil {
			eachOp(t, do)
		}
	}
}

func covers(d *pb.DeleteRangeRequest, key []byte) bool {
	switch {
	case len(d.RangeEnd) == 0:
		return bytes.Equal(d.Key, key)
	case len(d.RangeEnd) == 1 && d.RangeEnd[0] == 0:
		return bytes.Compare(d.Key, key) <= 0
	}
	return bytes.Compare(d.Key, key) <= 0 && bytes.Compare(key, d.RangeEnd) < 0
}

func (g *generator) anyTxn(depth int) *pb.TxnRequest {
	r := &pb.TxnRequest{}
	for range g.rng.IntN(4) {
		r.Compare = append(r.Compare, g.compare())
	}
	readOnly := g.chance(15)
	ops := func() []*pb.RequestOp {
		var ops []*pb.RequestOp
		most := 4
		if depth == 0 && g.chance(3) {
			most = 12 // more than max-txn-ops at times
		}
		for range g.rng.IntN(most) {
			ops = append(ops, g.op(depth, readOnly))
		}
		return ops
	}
	r.Success, r.Failure = ops(), ops()
	return r
}

func (g *generator) op(depth int, readOnly bool) *pb.RequestOp {
	n := g.rng.IntN(100)
	if readOnly {
		n = 0
	}
	switch {
	case n < 30:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: g.rangeRequest()}}
	case n < 70:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: g.put()}}
	case n < 84:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: g.deleteRange()}}
	case n < 99 && depth < 3:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: g.txn(depth + 1)}}
	default:
		return &pb.RequestOp{}
	}
}

func (g *generator) compact() step {
	req := &pb.CompactionRequest{Physical: g.chance(80)}
	switch n := g.rng.IntN(100); {
	case n < 60:
		// Keep most of the history: it is what watches and old reads need.
		low := max(g.compacted, 1)
		req.Revision = low + (g.rev-low)/3
	case n < 75:
		req.Revision = g.compacted + g.rng.Int64N(3) - 1
	case n < 90:
		req.Revision = g.rev + g.rng.Int64N(3) - 1
	default:
		req.Revision = pick(g, int64(-3), 0, g.rev+1000)
	}
	// A watch that still reads history would be cancelled, or not. Where it shares its stream with
	// one of the future, sync cannot wait for it: no progress request is answered there.
	for _, s := range g.streams {
		if len(s.watches) > 1 && s.future > g.rev {
			req.Revision = pick(g, int64(-3), g.rev+1000)
			break
		}
	}
	st := unary("Compact", req, (*side).compactKV)
	st.sync = true
	st.observe = func(g *generator, _ proto.Message) {
		g.compacted = req.Revision
		if req.Revision == 0 {
			g.compact0 = true
		}
	}
	return st
}

func (g *generator) hashKV() step {
	req := &pb.HashKVRequest{Revision: g.revision()}
	if req.Revision <= 0 && g.compact0 {
		req.Revision = g.rev // etcd answers HashKV(0) from a stale cache after Compact(0)
	}
	return unary("HashKV", req, (*side).hashKV)
}

// nextTTL returns TTLs that are far apart: the list of leases is ordered by expiry, and no clock
// should decide between two of them.
func (g *generator) nextTTL() int64 {
	g.nLeases++
	return 5000 + 200*g.nLeases
}

func (g *generator) forget(lease int64) {
	for i, l := range g.leases {
		if l == lease {
			g.leases = append(g.leases[:i], g.leases[i+1:]...)
			return
		}
	}
}

func (g *generator) leaseSteps() []step {
	any := func() int64 {
		if len(g.leases) == 0 || g.chance(8) {
			return 424242
		}
		return pick(g, g.leases...)
	}
	switch n := g.rng.IntN(100); {
	case n < 25:
		ttl := g.nextTTL()
		id := 1000 + g.nLeases
		if g.chance(10) && len(g.leases) > 0 {
			id = any()
		}
		st := unary("LeaseGrant", &pb.LeaseGrantRequest{ID: id, TTL: ttl}, (*side).grant)
		st.observe = func(g *generator, _ proto.Message) { g.leases = append(g.leases, id) }
		return []step{st}
	case n < 32: // the server chooses the id
		st := unary("LeaseGrant", &pb.LeaseGrantRequest{TTL: g.nextTTL()}, (*side).grant)
		symbol := symLease + g.nLeases
		st.learn = func(s *side, m proto.Message) { s.leases.add(symbol, m.(*pb.LeaseGrantResponse).ID) }
		st.observe = func(g *generator, _ proto.Message) { g.leases = append(g.leases, symbol) }
		return []step{st}
	case n < 40: // TTLs that are refused or raised; the short one is revoked before it expires
		id := 500_000 + g.rng.Int64N(1000)
		return []step{
			unary("LeaseGrant", &pb.LeaseGrantRequest{ID: id, TTL: pick(g, int64(0), -5, 1, 9_000_000_001)}, (*side).grant),
			unary("LeaseRevoke", &pb.LeaseRevokeRequest{ID: id}, (*side).revoke),
		}
	case n < 52:
		id := any()
		st := unary("LeaseRevoke", &pb.LeaseRevokeRequest{ID: id}, (*side).revoke)
		st.observe = func(g *generator, _ proto.Message) { g.forget(id) }
		return []step{st}
	case n < 65:
		return []step{unary("LeaseKeepAlive", &pb.LeaseKeepAliveRequest{ID: any()}, (*side).keepAlive)}
	case n < 90:
		return []step{g.timeToLive(any())}
	default:
		return []step{unary("LeaseLeases", &pb.LeaseLeasesRequest{}, (*side).leaseList)}
	}
}

// timeToLive asks for a lease, and most often for its keys.
func (g *generator) timeToLive(id int64) step {
	st := unary("LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{ID: id, Keys: g.chance(60)}, (*side).timeToLive)
	st.adjust = func(etcd, other proto.Message) {
		a, b := etcd.(*pb.LeaseTimeToLiveResponse), other.(*pb.LeaseTimeToLiveResponse)
		if diff := a.TTL - b.TTL; a.TTL > 0 && b.TTL > 0 && diff >= -3 && diff <= 3 {
			b.TTL = a.TTL
		}
		sortBytes(a.Keys)
		sortBytes(b.Keys)
	}
	return st
}

// etcd lists the keys of a lease in the order of a Go map.
func sortBytes(keys [][]byte) {
	for i := range keys {
		for j := i; j > 0 && bytes.Compare(keys[j], keys[j-1]) < 0; j-- {
			keys[j], keys[j-1] = keys[j-1], keys[j]
		}
	}
}

// expirySteps lets a lease with keys expire and continues when both sides have deleted the keys, in
// one revision.
func (g *generator) expirySteps() []step {
	g.expiries++
	id := 700_000 + int64(g.expiries)
	gone := fmt.Appendf(nil, "gone/%d/", g.expiries)
	end := append(append([]byte(nil), gone[:len(gone)-1]...), '0')
	steps := []step{unary("LeaseGrant", &pb.LeaseGrantRequest{ID: id, TTL: 4}, (*side).grant)}
	for i := range 3 {
		steps = append(steps, unary("Put", &pb.PutRequest{Key: fmt.Appendf(nil, "%s%d", gone, i), Lease: id}, (*side).put))
	}
	wait := unary("Range (until the lease has expired)", &pb.RangeRequest{Key: gone, RangeEnd: end}, func(s *side, ctx context.Context, r *pb.RangeRequest) (proto.Message, error) {
		for {
			resp, err := s.kv.Range(ctx, r)
			if err != nil || resp.Count == 0 {
				return resp, err
			}
			select {
			case <-ctx.Done():
				return nil, fmt.Errorf("the lease does not expire: %w", ctx.Err())
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	return append(steps, wait, unary("LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{ID: id, Keys: true}, (*side).timeToLive))
}

func (g *generator) openStream() step {
	g.nStreams++
	n := g.nStreams
	g.streams[n] = &streamModel{}
	g.live = append(g.live, n)
	return step{name: fmt.Sprintf("Watch: open stream %d", n), do: func(_ context.Context, s *side) (proto.Message, error) {
		return nil, s.openStream(context.Background(), n)
	}}
}

func (g *generator) watchSteps() []step {
	n := pick(g, g.live...)
	model := g.streams[n]
	switch c := g.rng.IntN(100); {
	case c < 70 && len(model.watches) < 12 || len(model.watches) == 0:
		if g.compacted > 1 && g.chance(6) {
			return g.compactedWatch()
		}
		return []step{g.watchCreate(n, model)}
	case c < 90:
		id := pick(g, model.watches...)
		if g.chance(10) {
			id = 12345 // unknown: no answer
			return []step{{name: fmt.Sprintf("Watch: cancel unknown watch on stream %d", n), do: func(_ context.Context, s *side) (proto.Message, error) {
				return nil, s.streams[n].stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}})
			}}}
		}
		st := step{name: fmt.Sprintf("Watch: cancel watch %d on stream %d", id, n), sync: true, do: func(_ context.Context, s *side) (proto.Message, error) {
			g.removeWatch(model, id) // not before the comparison, which waits for what it watches
			w := s.streams[n]
			w.mu.Lock()
			before := w.canceled[id]
			w.mu.Unlock()
			if err := w.stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}); err != nil {
				return nil, err
			}
			return nil, w.wait("answer to cancel", 10*time.Second, func() bool { return w.canceled[id] > before })
		}}
		return []step{st}
	default:
		g.wantSync = true // sends progress requests
		return nil
	}
}

// compactedWatch starts a watch before the compacted revision: the server creates it and then
// cancels it by itself. It gets a stream of its own: etcd keeps such a watch in mind as not synced,
// and answers no progress request on its stream from then on.
func (g *generator) compactedWatch() []step {
	open := g.openStream()
	n := g.nStreams
	g.live = g.live[:len(g.live)-1]
	create := g.watchCreate(n, g.streams[n])
	create.request.(*pb.WatchCreateRequest).StartRevision = 1 + g.rng.Int64N(g.compacted-1)
	create.observe = nil
	ended := step{name: fmt.Sprintf("Watch: wait until stream %d is told of the compaction", n), do: func(_ context.Context, s *side) (proto.Message, error) {
		w := s.streams[n]
		w.mu.Lock()
		created := w.created[0]
		w.mu.Unlock()
		if created.Canceled {
			return nil, nil // refused at once for another reason
		}
		return nil, w.wait("cancel of a compacted watch", 10*time.Second, func() bool { return w.canceled[created.WatchId] > 0 })
	}}
	return []step{open, create, ended}
}

func (g *generator) removeWatch(model *streamModel, id int64) {
	for i, w := range model.watches {
		if w == id {
			model.watches = append(model.watches[:i], model.watches[i+1:]...)
			break
		}
	}
	if len(model.watches) == 0 {
		model.future = 0
	}
}

func (g *generator) watchCreate(n int, model *streamModel) step {
	key, end := g.keyRange()
	req := &pb.WatchCreateRequest{Key: key, RangeEnd: end, PrevKv: g.chance(50), Fragment: g.chance(30), ProgressNotify: g.chance(20)}
	switch c := g.rng.IntN(100); {
	case c < 40:
	case c < 80:
		low := max(g.compacted, 1)
		req.StartRevision = low + g.rng.Int64N(g.rev-low+1)
	case c < 88:
		req.StartRevision = g.rev + 1 + g.rng.Int64N(10)
	case c < 94:
		req.StartRevision = max(1, g.compacted) // the oldest that can be watched
	default:
		req.StartRevision = -1
	}
	if g.chance(20) {
		req.Filters = append(req.Filters, pick(g, pb.WatchCreateRequest_NOPUT, pb.WatchCreateRequest_NODELETE))
	}
	if g.chance(2) {
		req.Filters = append(req.Filters, pb.WatchCreateRequest_NOPUT, pb.WatchCreateRequest_NODELETE, 7)
	}
	if g.chance(15) {
		req.WatchId = pick(g, int64(3), 50, 51, -7, 1<<40)
	}
	st := step{
		name:    fmt.Sprintf("Watch: create on stream %d", n),
		request: req,
		// A duplicate of a watch that the server is about to cancel would be a race.
		sync: true,
		do: func(_ context.Context, s *side) (proto.Message, error) {
			w := s.streams[n]
			w.mu.Lock()
			before := len(w.created)
			w.mu.Unlock()
			if err := w.stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}}); err != nil {
				return nil, err
			}
			if err := w.wait("created answer", 10*time.Second, func() bool { return len(w.created) > before }); err != nil {
				return nil, err
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.created[before], nil
		},
	}
	st.observe = func(g *generator, m proto.Message) {
		resp := m.(*pb.WatchResponse)
		if resp.Canceled {
			return
		}
		model.watches = append(model.watches, resp.WatchId)
		model.future = max(model.future, req.StartRevision)
	}
	return st
}

func (g *generator) maintenanceSteps() []step {
	switch n := g.rng.IntN(15); n {
	case 0, 1, 2:
		return []step{unary("Status", &pb.StatusRequest{}, (*side).status)}
	case 3, 4:
		return []step{unary("MemberList", &pb.MemberListRequest{Linearizable: g.chance(50)}, (*side).memberList)}
	case 5:
		return []step{unary("Alarm", &pb.AlarmRequest{Action: pick(g, pb.AlarmRequest_GET, pb.AlarmRequest_DEACTIVATE), MemberID: pick(g, 0, symSelf), Alarm: pick(g, pb.AlarmType_NONE, pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT)}, (*side).alarm)}
	case 6:
		return []step{unary("MoveLeader", &pb.MoveLeaderRequest{TargetID: pick(g, uint64(77), 0)}, (*side).moveLeader)}
	case 7:
		return []step{unary("Downgrade", &pb.DowngradeRequest{Action: pick(g, pb.DowngradeRequest_VALIDATE, pb.DowngradeRequest_CANCEL, 9), Version: pick(g, "", "3.6.0", "3.5", "x", "4.0.0", "3.7.0")}, (*side).downgrade)}
	case 8:
		return []step{unary("MemberRemove", &pb.MemberRemoveRequest{ID: 77}, (*side).memberRemove)}
	case 9:
		return []step{unary("MemberUpdate", &pb.MemberUpdateRequest{ID: 77, PeerURLs: []string{"http://127.0.0.1:1"}}, (*side).memberUpdate)}
	case 10:
		return []step{unary("MemberPromote", &pb.MemberPromoteRequest{ID: pick(g, 77, symSelf)}, (*side).memberPromote)}
	case 11:
		return []step{unary("MemberAdd", &pb.MemberAddRequest{PeerURLs: pick(g, nil, []string{"bad"}, []string{"self:peer"}, []string{"http://127.0.0.1"}), IsLearner: g.chance(70)}, (*side).memberAdd)}
	case 12:
		return []step{unary("Defragment", &pb.DefragmentRequest{}, (*side).defragment)}
	default:
		return g.learnerSteps()
	}
}

// learnerSteps adds a learner that never comes up, tries what is refused, and
// removes it. Once per run: a removed id and its peer's log lines are enough.
func (g *generator) learnerSteps() []step {
	if g.learner {
		return []step{unary("MemberUpdate", &pb.MemberUpdateRequest{ID: symSelf, PeerURLs: []string{"self:peer"}}, (*side).memberUpdate)}
	}
	g.learner = true
	add := unary("MemberAdd", &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:1"}, IsLearner: true}, (*side).memberAdd)
	add.learn = func(s *side, m proto.Message) { s.ids.add(symLearner, m.(*pb.MemberAddResponse).Member.ID) }
	// A member's ID is made of its URLs and the second: within the same one it is the ID that is there
	// already, and later the URL. So no server is asked again within the second in which it added.
	again := unary("MemberAdd", &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:1"}}, (*side).memberAdd)
	ask := again.do
	again.do = func(ctx context.Context, s *side) (proto.Message, error) {
		time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second)))
		return ask(ctx, s)
	}
	return []step{
		add,
		unary("MemberList", &pb.MemberListRequest{Linearizable: true}, (*side).memberList),
		unary("MemberAdd", &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:2"}, IsLearner: true}, (*side).memberAdd),
		again,
		unary("MemberPromote", &pb.MemberPromoteRequest{ID: symLearner}, (*side).memberPromote),
		unary("MoveLeader", &pb.MoveLeaderRequest{TargetID: symLearner}, (*side).moveLeader),
		unary("MemberUpdate", &pb.MemberUpdateRequest{ID: symLearner, PeerURLs: []string{"http://127.0.0.1:3"}}, (*side).memberUpdate),
		unary("MemberRemove", &pb.MemberRemoveRequest{ID: symLearner}, (*side).memberRemove),
		unary("MemberRemove", &pb.MemberRemoveRequest{ID: symLearner}, (*side).memberRemove),
		unary("MemberPromote", &pb.MemberPromoteRequest{ID: symLearner}, (*side).memberPromote),
		unary("MemberList", &pb.MemberListRequest{}, (*side).memberList),
	}
}

// alarmSteps raises an alarm, tries every kind of request under it and ends it.
func (g *generator) alarmSteps() []step {
	kind := pick(g, pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT)
	of := func(action pb.AlarmRequest_AlarmAction) step {
		return unary("Alarm", &pb.AlarmRequest{Action: action, MemberID: symSelf, Alarm: kind}, (*side).alarm)
	}
	return []step{
		of(pb.AlarmRequest_ACTIVATE), of(pb.AlarmRequest_GET),
		unary("Status", &pb.StatusRequest{}, (*side).status),
		unary("Put", g.put(), (*side).put),
		unary("Txn", g.txn(0), (*side).txn),
		unary("Txn", g.txn(0), (*side).txn),
		unary("Range", g.rangeRequest(), (*side).rangeKV),
		unary("DeleteRange", &pb.DeleteRangeRequest{Key: g.key()}, (*side).deleteRange),
		unary("LeaseGrant", &pb.LeaseGrantRequest{ID: 600_000, TTL: 50}, (*side).grant),
		unary("LeaseRevoke", &pb.LeaseRevokeRequest{ID: 600_000}, (*side).revoke),
		unary("Compact", &pb.CompactionRequest{Revision: -1}, (*side).compactKV),
		of(pb.AlarmRequest_DEACTIVATE), of(pb.AlarmRequest_DEACTIVATE),
		unary("Put", &pb.PutRequest{Key: []byte("after the alarm")}, (*side).put),
	}
}

// tooLarge crosses the limits of the request's size.
func (g *generator) tooLarge() []step {
	size := pick(g, 65536-200, 65536, 70_000, 65536+512<<10+1000)
	return []step{unary("Put", &pb.PutRequest{Key: []byte("large"), Value: make([]byte, size)}, (*side).put)}
}

// electionSteps speak to the Lock and Election services. Their messages live
// in etcd's server module, so they are written field by field here.
func (g *generator) electionSteps() []step {
	id := 800_000 + g.rng.Int64N(1_000_000)
	name := pick(g, "el", "ection")
	key := fmt.Sprintf("%s/%x", name, id)
	grant := unary("LeaseGrant", &pb.LeaseGrantRequest{ID: id, TTL: 4000}, (*side).grant)
	revoke := unary("LeaseRevoke", &pb.LeaseRevokeRequest{ID: id}, (*side).revoke)
	leader := wire(bytesField(1, []byte(name)), bytesField(2, []byte(key)), intField(4, id))
	if g.chance(40) {
		return []step{
			grant,
			raw("/v3lockpb.Lock/Lock", wire(bytesField(1, []byte(name)), intField(2, id))),
			raw("/v3lockpb.Lock/Unlock", wire(bytesField(1, []byte(key)))),
			raw("/v3lockpb.Lock/Unlock", wire(bytesField(1, []byte(key)))),
			revoke,
			raw("/v3lockpb.Lock/Lock", wire(bytesField(1, []byte(name)), intField(2, id))),
		}
	}
	return []step{
		grant,
		raw("/v3electionpb.Election/Leader", wire(bytesField(1, []byte(name)))),
		raw("/v3electionpb.Election/Campaign", wire(bytesField(1, []byte(name)), intField(2, id), bytesField(3, []byte("me")))),
		raw("/v3electionpb.Election/Leader", wire(bytesField(1, []byte(name)))),
		raw("/v3electionpb.Election/Proclaim", wire(bytesField(1, leader), bytesField(2, []byte("still me")))),
		raw("/v3electionpb.Election/Proclaim", nil),
		raw("/v3electionpb.Election/Resign", nil),
		revoke,
		raw("/v3electionpb.Election/Leader", wire(bytesField(1, []byte(name)))),
	}
}

// raw calls a method with an encoded request. The answer's header is decoded,
// its other fields are compared as bytes.
func raw(method string, request []byte) step {
	in := &emptypb.Empty{}
	in.ProtoReflect().SetUnknown(request)
	return step{name: method, request: in, do: func(ctx context.Context, s *side) (proto.Message, error) {
		out := &emptypb.Empty{}
		if err := s.conn.Invoke(ctx, method, in, out, grpc.WaitForReady(true)); err != nil {
			return nil, err
		}
		// A message that happens to have a header and bytes.
		answer := &pb.SnapshotResponse{}
		for b := []byte(out.ProtoReflect().GetUnknown()); len(b) > 0; {
			num, typ, n := protowire.ConsumeTag(b)
			m := protowire.ConsumeFieldValue(num, typ, b[max(n, 0):])
			if n < 0 || m < 0 {
				return nil, errors.New("the answer is not a message")
			}
			if field := b[n : n+m]; num == 1 && typ == protowire.BytesType {
				header, _ := protowire.ConsumeBytes(field)
				answer.Header = &pb.ResponseHeader{}
				if err := proto.Unmarshal(header, answer.Header); err != nil {
					return nil, err
				}
			} else {
				answer.Blob = append(answer.Blob, b[:n+m]...)
			}
			b = b[n+m:]
		}
		return answer, nil
	}}
}

func bytesField(num protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), v)
}

func intField(num protowire.Number, v int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), uint64(v))
}

func wire(fields ...[]byte) []byte { return bytes.Join(fields, nil) }

package state

import (
	"fmt"
	"math/rand/v2"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
)

// generator makes random requests over few keys and leases, so that they meet.
type generator struct {
	*rand.Rand
	n int64 // requests so far: about the revision
}

func newGenerator(seed uint64) *generator {
	return &generator{Rand: rand.New(rand.NewPCG(seed, 1))}
}

func (g *generator) key() []byte { return fmt.Appendf(nil, "k%02d", g.IntN(20)) }

func (g *generator) span() (key, end []byte) {
	switch g.IntN(5) {
	case 0:
		return g.key(), []byte{0}
	case 1:
		return []byte{0}, []byte{0}
	case 2:
		return g.key(), g.key()
	}
	return g.key(), nil
}

func (g *generator) lease() int64 {
	if g.IntN(3) > 0 {
		return 0
	}
	return int64(g.IntN(5))
}

func (g *generator) rev() int64 {
	if g.IntN(3) > 0 {
		return 0
	}
	return g.Int64N(g.n/2+3) - 1
}

func (g *generator) flip(n int) bool { return g.IntN(n) == 0 }

func (g *generator) put() *pb.PutRequest {
	p := &pb.PutRequest{Key: g.key(), Value: fmt.Appendf(nil, "v%d", g.IntN(50)), Lease: g.lease(), PrevKv: g.flip(3)}
	if g.flip(8) {
		p.IgnoreValue, p.Value = true, nil
	}
	if g.flip(8) {
		p.IgnoreLease, p.Lease = true, 0
	}
	return p
}

func (g *generator) del() *pb.DeleteRangeRequest {
	key, end := g.span()
	if len(end) == 1 && !g.flip(4) {
		end = nil
	}
	if len(key) == 1 {
		key = g.key()
	}
	return &pb.DeleteRangeRequest{Key: key, RangeEnd: end, PrevKv: g.flip(3)}
}

func (g *generator) rangeRequest() *pb.RangeRequest {
	key, end := g.span()
	r := &pb.RangeRequest{Key: key, RangeEnd: end, Revision: g.rev(), KeysOnly: g.flip(5), CountOnly: g.flip(8)}
	if g.flip(3) {
		r.Limit = g.Int64N(6)
	}
	if g.flip(3) {
		r.SortTarget = pb.RangeRequest_SortTarget(g.IntN(5))
		r.SortOrder = pb.RangeRequest_SortOrder(g.IntN(3))
	}
	if g.flip(6) {
		r.MinModRevision = g.rev()
		r.MaxCreateRevision = g.rev()
	}
	return r
}

func (g *generator) compare() *pb.Compare {
	c := &pb.Compare{Result: pb.Compare_CompareResult(g.IntN(4)), Target: pb.Compare_CompareTarget(g.IntN(5))}
	c.Key, c.RangeEnd = g.span()
	switch c.Target {
	case pb.Compare_VALUE:
		c.TargetUnion = &pb.Compare_Value{Value: fmt.Appendf(nil, "v%d", g.IntN(50))}
	case pb.Compare_VERSION:
		c.TargetUnion = &pb.Compare_Version{Version: g.Int64N(4)}
	case pb.Compare_CREATE:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: g.Int64N(g.n + 2)}
	case pb.Compare_MOD:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: g.Int64N(g.n + 2)}
	case pb.Compare_LEASE:
		c.TargetUnion = &pb.Compare_Lease{Lease: g.lease()}
	}
	return c
}

func (g *generator) txn(depth int) *pb.TxnRequest {
	r := &pb.TxnRequest{}
	for range g.IntN(3) {
		r.Compare = append(r.Compare, g.compare())
	}
	for range g.IntN(4) {
		r.Success = append(r.Success, g.op(depth))
	}
	for range g.IntN(4) {
		r.Failure = append(r.Failure, g.op(depth))
	}
	return r
}

func (g *generator) op(depth int) *pb.RequestOp {
	switch n := g.IntN(10); {
	case n < 4:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: g.put()}}
	case n < 6:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: g.del()}}
	case n < 8 && depth > 0:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: g.txn(depth - 1)}}
	}
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: g.rangeRequest()}}
}

// request returns the next request; nil is a leader's empty entry.
func (g *generator) request() *pb.InternalRaftRequest {
	g.n++
	r := &pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: uint64(g.n)}}
	switch n := g.IntN(100); {
	case n < 40:
		r.Put = g.put()
	case n < 55:
		r.DeleteRange = g.del()
	case n < 75:
		r.Txn = g.txn(2)
	case n < 80:
		r.LeaseGrant = &pb.LeaseGrantRequest{ID: int64(g.IntN(5)), TTL: g.Int64N(100)}
	case n < 84:
		r.LeaseRevoke = &pb.LeaseRevokeRequest{ID: int64(g.IntN(5))}
	case n < 86:
		r.LeaseCheckpoint = &pb.LeaseCheckpointRequest{Checkpoints: []*pb.LeaseCheckpoint{{ID: int64(g.IntN(5)), Remaining_TTL: g.Int64N(50)}}}
	case n < 90:
		r.Range = g.rangeRequest()
	case n < 92:
		r.Compaction = &pb.CompactionRequest{Revision: g.Int64N(g.n/3 + 1)}
	case n < 94:
		r.Alarm = &pb.AlarmRequest{Action: pb.AlarmRequest_AlarmAction(g.IntN(3)), MemberID: g.Uint64N(3), Alarm: pb.AlarmType(g.IntN(2))}
		if g.flip(2) {
			r.Alarm.Action = pb.AlarmRequest_DEACTIVATE
		}
	case n < 95:
		r.ClusterVersionSet = &membershippb.ClusterVersionSetRequest{Ver: fmt.Sprintf("3.%d.0", g.IntN(8))}
	case n < 96:
		r.ClusterMemberAttrSet = &membershippb.ClusterMemberAttrSetRequest{Member_ID: g.Uint64N(4),
			MemberAttributes: &membershippb.Attributes{Name: fmt.Sprint("n", g.IntN(9)), ClientUrls: []string{"http://c"}}}
	case n < 97:
		r.DowngradeInfoSet = &membershippb.DowngradeInfoSetRequest{Enabled: g.flip(2), Ver: "3.6.0"}
	case n < 98:
		return nil
	default:
		r.AuthUserList = &pb.AuthUserListRequest{}
	}
	return r
}

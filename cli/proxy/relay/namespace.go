package relay

import (
	"bytes"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/server/electionpb"
	"github.com/belaydb/belay/server/lockpb"
)

// A namespace is the prefix that the keys of the proxy's clients have in the cluster. The empty one
// changes nothing.
type namespace string

// end is the first key behind the namespace.
func (ns namespace) end() []byte {
	end := []byte(ns)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return []byte{0} // nothing is behind it
}

func (ns namespace) in(key []byte) []byte { return append([]byte(ns), key...) }

// interval is a range of the client's keys in the cluster. It does not leave the namespace.
func (ns namespace) interval(key, end []byte) (inKey, inEnd []byte) {
	switch {
	case len(end) == 0:
	case len(end) == 1 && end[0] == 0:
		inEnd = ns.end()
	default:
		inEnd = ns.in(end)
	}
	return ns.in(key), inEnd
}

func (ns namespace) out(key []byte) []byte { return bytes.TrimPrefix(key, []byte(ns)) }

func (ns namespace) outKV(kv *mvccpb.KeyValue) {
	if kv != nil {
		kv.Key = ns.out(kv.Key)
	}
}

func (ns namespace) outKVs(kvs []*mvccpb.KeyValue) {
	for _, kv := range kvs {
		ns.outKV(kv)
	}
}

// request puts a request's keys into the namespace. A request that lacks its key is refused here: in
// the namespace it would have one.
func (ns namespace) request(m proto.Message) error {
	switch r := m.(type) {
	case *pb.RangeRequest:
		if len(r.Key) == 0 {
			return rpctypes.ErrGRPCEmptyKey
		}
		r.Key, r.RangeEnd = ns.interval(r.Key, r.RangeEnd)
	case *pb.PutRequest:
		if len(r.Key) == 0 {
			return rpctypes.ErrGRPCEmptyKey
		}
		r.Key = ns.in(r.Key)
	case *pb.DeleteRangeRequest:
		if len(r.Key) == 0 {
			return rpctypes.ErrGRPCEmptyKey
		}
		r.Key, r.RangeEnd = ns.interval(r.Key, r.RangeEnd)
	case *pb.TxnRequest:
		return ns.txn(r)
	case *pb.WatchRequest:
		if c := r.GetCreateRequest(); c != nil {
			if len(c.Key) == 0 {
				c.Key = []byte{0} // as the members do
			}
			c.Key, c.RangeEnd = ns.interval(c.Key, c.RangeEnd)
		}
	case *lockpb.LockRequest:
		r.Name = ns.in(r.Name)
	case *lockpb.UnlockRequest:
		r.Key = ns.in(r.Key)
	case *electionpb.CampaignRequest:
		r.Name = ns.in(r.Name)
	case *electionpb.ProclaimRequest:
		ns.inLeader(r.Leader)
	case *electionpb.ResignRequest:
		ns.inLeader(r.Leader)
	case *electionpb.LeaderRequest: // Observe has the same
		r.Name = ns.in(r.Name)
	}
	return nil
}

func (ns namespace) inLeader(k *electionpb.LeaderKey) {
	if k != nil {
		k.Name, k.Key = ns.in(k.Name), ns.in(k.Key)
	}
}

func (ns namespace) txn(r *pb.TxnRequest) error {
	for _, c := range r.Compare {
		if len(c.Key) == 0 {
			return rpctypes.ErrGRPCEmptyKey
		}
		c.Key, c.RangeEnd = ns.interval(c.Key, c.RangeEnd)
	}
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			var m proto.Message
			switch o := op.Request.(type) {
			case *pb.RequestOp_RequestRange:
				m = o.RequestRange
			case *pb.RequestOp_RequestPut:
				m = o.RequestPut
			case *pb.RequestOp_RequestDeleteRange:
				m = o.RequestDeleteRange
			case *pb.RequestOp_RequestTxn:
				m = o.RequestTxn
			default:
				continue // the members refuse it
			}
			if err := ns.request(m); err != nil {
				return err
			}
		}
	}
	return nil
}

// answer takes the keys of a response out of the namespace.
func (ns namespace) answer(m proto.Message) {
	switch r := m.(type) {
	case *pb.RangeResponse:
		ns.outKVs(r.Kvs)
	case *pb.RangeStreamResponse:
		if r.RangeResponse != nil {
			ns.outKVs(r.RangeResponse.Kvs)
		}
	case *pb.PutResponse:
		ns.outKV(r.PrevKv)
	case *pb.DeleteRangeResponse:
		ns.outKVs(r.PrevKvs)
	case *pb.TxnResponse:
		for _, op := range r.Responses {
			switch o := op.Response.(type) {
			case *pb.ResponseOp_ResponseRange:
				ns.answer(o.ResponseRange)
			case *pb.ResponseOp_ResponsePut:
				ns.answer(o.ResponsePut)
			case *pb.ResponseOp_ResponseDeleteRange:
				ns.answer(o.ResponseDeleteRange)
			case *pb.ResponseOp_ResponseTxn:
				ns.answer(o.ResponseTxn)
			}
		}
	case *pb.WatchResponse:
		for _, e := range r.Events {
			ns.outKV(e.Kv)
			ns.outKV(e.PrevKv)
		}
	case *pb.LeaseTimeToLiveResponse:
		var own [][]byte // a lease may hold keys of others
		for _, key := range r.Keys {
			if bytes.HasPrefix(key, []byte(ns)) {
				own = append(own, ns.out(key))
			}
		}
		r.Keys = own
	case *lockpb.LockResponse:
		r.Key = ns.out(r.Key)
	case *electionpb.CampaignResponse:
		if r.Leader != nil {
			r.Leader.Name, r.Leader.Key = ns.out(r.Leader.Name), ns.out(r.Leader.Key)
		}
	case *electionpb.LeaderResponse:
		ns.outKV(r.Kv)
	}
}

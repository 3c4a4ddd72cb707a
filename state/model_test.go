package state

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/mvcc"
)

var rangeAll = mvcc.RangeOptions{}

func versionSet(v string) *membershippb.ClusterVersionSetRequest {
	return &membershippb.ClusterVersionSetRequest{Ver: v}
}

// model is the newest state of the keys as a plain map: enough to foretell transactions without old
// revisions, leases and filters.
type model struct {
	rev  int64
	keys map[string]*mvccpb.KeyValue
}

func (m *model) pick(key, end []byte) []*mvccpb.KeyValue {
	var found []*mvccpb.KeyValue
	for k, kv := range m.keys {
		var in bool
		switch {
		case len(end) == 0:
			in = k == string(key)
		case len(end) == 1 && end[0] == 0:
			in = k >= string(key)
		default:
			in = k >= string(key) && k < string(end)
		}
		if in {
			found = append(found, kv)
		}
	}
	slices.SortFunc(found, func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) })
	return found
}

func (m *model) holds(c *pb.Compare) bool {
	kvs := m.pick(c.Key, c.RangeEnd)
	if len(kvs) == 0 {
		if c.Target == pb.Compare_VALUE {
			return false
		}
		kvs = []*mvccpb.KeyValue{{}}
	}
	for _, kv := range kvs {
		var a, b int64
		switch c.Target {
		case pb.Compare_VALUE:
			a = int64(strings.Compare(string(kv.Value), string(c.GetValue())))
		case pb.Compare_CREATE:
			a, b = kv.CreateRevision, c.GetCreateRevision()
		case pb.Compare_MOD:
			a, b = kv.ModRevision, c.GetModRevision()
		case pb.Compare_VERSION:
			a, b = kv.Version, c.GetVersion()
		case pb.Compare_LEASE:
			a, b = kv.Lease, c.GetLease()
		}
		ok := map[pb.Compare_CompareResult]bool{
			pb.Compare_EQUAL: a == b, pb.Compare_NOT_EQUAL: a != b, pb.Compare_GREATER: a > b, pb.Compare_LESS: a < b,
		}[c.Result]
		if !ok {
			return false
		}
	}
	return true
}

// plan fixes the branches before anything is written.
type plan struct {
	succeeded bool
	ops       []*pb.RequestOp
	nested    []*plan // parallel to ops
}

func (m *model) plan(r *pb.TxnRequest) *plan {
	p := &plan{succeeded: !slices.ContainsFunc(r.Compare, func(c *pb.Compare) bool { return !m.holds(c) })}
	p.ops = r.Success
	if !p.succeeded {
		p.ops = r.Failure
	}
	for _, op := range p.ops {
		var nested *plan
		if t := op.GetRequestTxn(); t != nil {
			nested = m.plan(t)
		}
		p.nested = append(p.nested, nested)
	}
	return p
}

func (m *model) txn(r *pb.TxnRequest) *pb.TxnResponse {
	wrote := false
	rev := func() int64 {
		if wrote {
			return m.rev + 1
		}
		return m.rev
	}
	var run func(p *plan) *pb.TxnResponse
	run = func(p *plan) *pb.TxnResponse {
		resp := &pb.TxnResponse{Header: &pb.ResponseHeader{}, Succeeded: p.succeeded}
		for i, op := range p.ops {
			out := &pb.ResponseOp{}
			switch o := op.Request.(type) {
			case *pb.RequestOp_RequestRange:
				kvs := m.pick(o.RequestRange.Key, o.RequestRange.RangeEnd)
				out.Response = &pb.ResponseOp_ResponseRange{ResponseRange: &pb.RangeResponse{
					Header: &pb.ResponseHeader{Revision: rev()}, Kvs: kvs, Count: int64(len(kvs))}}
			case *pb.RequestOp_RequestPut:
				wrote = true
				kv := &mvccpb.KeyValue{Key: o.RequestPut.Key, Value: o.RequestPut.Value, CreateRevision: rev(), ModRevision: rev(), Version: 1}
				pr := &pb.PutResponse{Header: &pb.ResponseHeader{Revision: rev()}}
				if old := m.keys[string(kv.Key)]; old != nil {
					kv.CreateRevision, kv.Version = old.CreateRevision, old.Version+1
					if o.RequestPut.PrevKv {
						pr.PrevKv = old
					}
				}
				m.keys[string(kv.Key)] = kv
				out.Response = &pb.ResponseOp_ResponsePut{ResponsePut: pr}
			case *pb.RequestOp_RequestDeleteRange:
				kvs := m.pick(o.RequestDeleteRange.Key, o.RequestDeleteRange.RangeEnd)
				for _, kv := range kvs {
					wrote = true
					delete(m.keys, string(kv.Key))
				}
				dr := &pb.DeleteRangeResponse{Header: &pb.ResponseHeader{Revision: rev()}, Deleted: int64(len(kvs))}
				if o.RequestDeleteRange.PrevKv {
					dr.PrevKvs = kvs
				}
				out.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: dr}
			case *pb.RequestOp_RequestTxn:
				out.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: run(p.nested[i])}
			}
			resp.Responses = append(resp.Responses, out)
		}
		return resp
	}
	resp := run(m.plan(r))
	m.rev = rev()
	resp.Header.Revision = m.rev
	return resp
}

// plain takes out of a transaction what the model does not know.
func plain(r *pb.TxnRequest) {
	for _, op := range append(append([]*pb.RequestOp(nil), r.Success...), r.Failure...) {
		switch o := op.Request.(type) {
		case *pb.RequestOp_RequestRange:
			o.RequestRange = &pb.RangeRequest{Key: o.RequestRange.Key, RangeEnd: o.RequestRange.RangeEnd}
		case *pb.RequestOp_RequestPut:
			p := o.RequestPut
			p.Lease, p.IgnoreLease, p.IgnoreValue = 0, false, false
		case *pb.RequestOp_RequestTxn:
			plain(o.RequestTxn)
		}
	}
}

func TestTxnModel(t *testing.T) {
	g := newGenerator(seed(t))
	r := newRig(t, Config{})
	m := &model{rev: 1, keys: map[string]*mvccpb.KeyValue{}}
	for i := 0; i < 1500; {
		var requests []*pb.InternalRaftRequest
		var want []string
		for range 1 + g.IntN(20) {
			g.n = m.rev
			txn := g.txn(3)
			plain(txn)
			requests = append(requests, &pb.InternalRaftRequest{Txn: txn})
			want = append(want, resultText(command.Result{Response: m.txn(txn)}))
			i++
		}
		var got []string
		for _, res := range r.Apply(r.next(requests...)) {
			got = append(got, resultText(res))
		}
		diff(t, "transactions", want, got)
		if t.Failed() {
			return
		}
	}
	if m.rev < 500 {
		t.Errorf("only %d revisions: the transactions do not write enough", m.rev)
	}
}

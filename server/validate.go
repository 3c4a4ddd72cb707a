package server

import (
	"bytes"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func checkRange(r *pb.RangeRequest) error {
	if len(r.GetKey()) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	if _, ok := pb.RangeRequest_SortOrder_name[int32(r.SortOrder)]; !ok {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	if _, ok := pb.RangeRequest_SortTarget_name[int32(r.SortTarget)]; !ok {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	return nil
}

func checkRangeStream(r *pb.RangeRequest) error {
	if err := checkRange(r); err != nil {
		return err
	}
	// Without an order the target is not looked at, so any target passes then: see sortedChunks.
	byKey := r.SortOrder == pb.RangeRequest_NONE ||
		r.SortTarget == pb.RangeRequest_KEY && r.SortOrder == pb.RangeRequest_ASCEND
	if !byKey {
		return status.Error(codes.Unimplemented, "RangeStream does not support custom sort orders")
	}
	if r.MinModRevision != 0 || r.MaxModRevision != 0 || r.MinCreateRevision != 0 || r.MaxCreateRevision != 0 {
		return status.Error(codes.Unimplemented, "RangeStream does not support revision filters")
	}
	return nil
}

func checkPut(r *pb.PutRequest) error {
	switch {
	case len(r.GetKey()) == 0:
		return rpctypes.ErrGRPCEmptyKey
	case r.IgnoreValue && len(r.Value) != 0:
		return rpctypes.ErrGRPCValueProvided
	case r.IgnoreLease && r.Lease != 0:
		return rpctypes.ErrGRPCLeaseProvided
	}
	return nil
}

func checkDelete(r *pb.DeleteRangeRequest) error {
	if len(r.GetKey()) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	return nil
}

// checkTxn refuses transactions that are too large, malformed, or that write a
// key twice. The sizes come first, so that the search for doubles is bounded.
func checkTxn(r *pb.TxnRequest, maxOps int) error {
	if err := checkTxnOps(r, maxOps); err != nil {
		return err
	}
	for _, branch := range [][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		if _, err := writesOf(branch); err != nil {
			return err
		}
		if _, err := deletedBy(branch, nil); err != nil {
			return err
		}
	}
	return nil
}

// deletedBy refuses a put that is to keep the value or the lease of a key that the transaction has
// deleted by then: there is none to keep. writesOf lets it pass where the delete's end is "\0", as
// etcd does, whose members then panic over it, at each start again. from is the smallest key from
// which on all keys were deleted before; nil: none were.
func deletedBy(ops []*pb.RequestOp, from []byte) ([]byte, error) {
	for _, op := range ops {
		switch o := op.GetRequest().(type) {
		case *pb.RequestOp_RequestDeleteRange:
			if d := o.RequestDeleteRange; string(d.RangeEnd) == "\x00" && (from == nil || bytes.Compare(d.Key, from) < 0) {
				from = d.Key
			}
		case *pb.RequestOp_RequestPut:
			if p := o.RequestPut; from != nil && (p.IgnoreValue || p.IgnoreLease) && bytes.Compare(p.Key, from) >= 0 {
				return nil, rpctypes.ErrGRPCDuplicateKey
			}
		case *pb.RequestOp_RequestTxn:
			before := from
			for _, branch := range [][]*pb.RequestOp{o.RequestTxn.GetSuccess(), o.RequestTxn.GetFailure()} {
				after, err := deletedBy(branch, before)
				if err != nil {
					return nil, err
				}
				if after != nil && (from == nil || bytes.Compare(after, from) < 0) {
					from = after
				}
			}
		}
	}
	return from, nil
}

// checkTxnOps: each level may have maxOps operations, less what the levels around it have.
func checkTxnOps(r *pb.TxnRequest, maxOps int) error {
	ops := max(len(r.GetCompare()), len(r.GetSuccess()), len(r.GetFailure()))
	if ops > maxOps {
		return rpctypes.ErrGRPCTooManyOps
	}
	for _, c := range r.GetCompare() {
		if len(c.Key) == 0 {
			return rpctypes.ErrGRPCEmptyKey
		}
	}
	for _, branch := range [][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		for _, op := range branch {
			if err := checkOp(op, maxOps-ops); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkOp(op *pb.RequestOp, maxOps int) error {
	switch u := op.GetRequest().(type) {
	case *pb.RequestOp_RequestRange:
		return checkRange(u.RequestRange)
	case *pb.RequestOp_RequestPut:
		return checkPut(u.RequestPut)
	case *pb.RequestOp_RequestDeleteRange:
		return checkDelete(u.RequestDeleteRange)
	case *pb.RequestOp_RequestTxn:
		return checkTxnOps(u.RequestTxn, maxOps)
	}
	return rpctypes.ErrGRPCKeyNotFound // an empty operation; etcd says it so
}

// writes is what a list of operations may write: the keys that it puts, and
// the ranges that it deletes.
type writes struct {
	puts    map[string]struct{}
	deletes spans
}

// writesOf collects the writes of a list of operations and refuses a key that
// is put twice, or put and deleted. The two branches of a nested transaction
// exclude each other, so they may put the same key; deletes may overlap.
//
// A put is held against the deletes of its own level and of the nested transactions before it, as
// etcd does. Which of the deletes in nested transactions a nested put meets thus depends on the
// order of the transactions: what etcd lets through is let through here.
func writesOf(ops []*pb.RequestOp) (writes, error) {
	w := writes{}
	for _, op := range ops {
		if d := op.GetRequestDeleteRange(); d != nil {
			w.deletes.add(spanOf(d))
		}
	}
	w.deletes.settle()
	put := func(key string) bool {
		if _, twice := w.puts[key]; twice || w.deletes.contain(key) {
			return false
		}
		if w.puts == nil {
			w.puts = make(map[string]struct{})
		}
		w.puts[key] = struct{}{}
		return true
	}
	for _, op := range ops {
		nested, ok := op.GetRequest().(*pb.RequestOp_RequestTxn)
		if !ok {
			continue
		}
		success, err := writesOf(nested.RequestTxn.GetSuccess())
		if err != nil {
			return w, err
		}
		failure, err := writesOf(nested.RequestTxn.GetFailure())
		if err != nil {
			return w, err
		}
		for key := range success.puts {
			if !put(key) {
				return w, rpctypes.ErrGRPCDuplicateKey
			}
		}
		for key := range failure.puts {
			if _, other := success.puts[key]; other {
				continue // put by the other branch, which was held against the rest
			}
			if !put(key) {
				return w, rpctypes.ErrGRPCDuplicateKey
			}
		}
		w.deletes.add(success.deletes.list...)
		w.deletes.add(failure.deletes.list...)
		w.deletes.settle()
	}
	for _, op := range ops {
		if p := op.GetRequestPut(); p != nil && !put(string(p.Key)) {
			return w, rpctypes.ErrGRPCDuplicateKey
		}
	}
	return w, nil
}

// span is a range of keys [start, end).
type span struct{ start, end string }

// spanOf gives an empty span for a range without keys, and also for one whose
// end is "\0" (all keys from start on): etcd takes that end literally here, so
// it lets a put pass beside such a delete, and so it is here.
func spanOf(d *pb.DeleteRangeRequest) span {
	if len(d.RangeEnd) == 0 {
		return span{start: string(d.Key), end: string(d.Key) + "\x00"}
	}
	return span{start: string(d.Key), end: string(d.RangeEnd)}
}

// spans is a set of keys made of spans. settle must follow add before contain.
type spans struct {
	list []span // disjoint and in order once settled
}

func (s *spans) add(list ...span) {
	for _, sp := range list {
		if sp.start < sp.end {
			s.list = append(s.list, sp)
		}
	}
}

func (s *spans) settle() {
	if len(s.list) < 2 {
		return
	}
	slices.SortFunc(s.list, func(a, b span) int { return strings.Compare(a.start, b.start) })
	out := s.list[:1]
	for _, next := range s.list[1:] {
		if last := &out[len(out)-1]; next.start <= last.end {
			last.end = max(last.end, next.end)
		} else {
			out = append(out, next)
		}
	}
	s.list = out
}

func (s *spans) contain(key string) bool {
	// The last span that starts at or before key.
	i, found := slices.BinarySearchFunc(s.list, key, func(sp span, key string) int { return strings.Compare(sp.start, key) })
	if !found {
		i--
	}
	return i >= 0 && key < s.list[i].end
}

package state

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/belaydb/belay/store"
)

// DefaultQuotaBytes is the quota where none is configured: etcd's.
const DefaultQuotaBytes = 2 << 30

// What a key or a lease costs besides its bytes, by etcd's estimate.
const (
	kvOverheadBytes    = 256
	leaseOverheadBytes = 64
)

// Cost is the estimate of how many bytes a request adds to the database; 0 for everything that must
// be allowed when it is full.
func Cost(req any) int64 {
	switch r := req.(type) {
	case *pb.PutRequest:
		return costPut(r)
	case *pb.TxnRequest:
		return costTxn(r)
	case *pb.LeaseGrantRequest:
		return leaseOverheadBytes
	}
	return 0
}

func costPut(r *pb.PutRequest) int64 {
	return kvOverheadBytes + int64(len(r.GetKey())) + int64(len(r.GetValue()))
}

// costTxn is the cost of the more expensive branch.
func costTxn(r *pb.TxnRequest) int64 {
	return max(costOps(r.GetSuccess()), costOps(r.GetFailure()))
}

func costOps(ops []*pb.RequestOp) (sum int64) {
	for _, op := range ops {
		switch r := op.GetRequest().(type) {
		case *pb.RequestOp_RequestPut:
			sum += costPut(r.RequestPut)
		case *pb.RequestOp_RequestTxn:
			sum += costTxn(r.RequestTxn)
		}
	}
	return sum
}

// quota compares the size of the database with its limit. It keeps no figure of its own: the
// store's size follows deletions, compactions and the rewriting of files, and is read at every
// write.
type quota struct {
	st    *store.Store
	limit int64 // bytes; below 0: none
}

func newQuota(st *store.Store, limit int64) quota {
	if limit == 0 {
		limit = DefaultQuotaBytes
	}
	return quota{st: st, limit: limit}
}

// fits reports whether the cost fits in addition to the present size. Any goroutine may ask.
func (q quota) fits(cost int64) bool {
	if cost == 0 || q.limit < 0 {
		return true
	}
	total, _ := q.st.Size()
	return total+cost < q.limit
}

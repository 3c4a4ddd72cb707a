package server

import (
	"context"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/rpc"
)

// What a client has asked for and does not read is kept, so a call whose answer may be large asks for
// room on its connection before it makes it; see rpc.AwaitRoom. It does so when all that it waits for
// besides is over: what it waits for may have come of others that wait for room.

// returnedBytes is what one operation that returns a key's value is taken to return.
const returnedBytes = 64 << 10

// returned is what writes that return values have returned of late, when that was more.
type returned struct{ bytes atomic.Int64 }

// foresee is mayReturn of a write.
func (w *returned) foresee(req any) int64 {
	if n := mayReturn(req); n > 0 {
		return max(n, w.bytes.Load())
	}
	return 0
}

// had notes the answer to a write that was foreseen to return something.
func (w *returned) had(size int) {
	switch most := w.bytes.Load(); {
	case int64(size) > max(most, returnedBytes):
		w.bytes.Store(int64(size))
	case most > 0:
		w.bytes.CompareAndSwap(most, most/8*7)
	}
}

// mayReturn is about how many bytes of values a request returns, if it returns any: 0, if it does not.
func mayReturn(req any) int64 {
	switch r := req.(type) {
	case *pb.RangeRequest:
		if !r.GetCountOnly() {
			return freeBytes
		}
	case *pb.PutRequest:
		if r.GetPrevKv() {
			return returnedBytes
		}
	case *pb.DeleteRangeRequest:
		if r.GetPrevKv() {
			return freeBytes
		}
	case *pb.TxnRequest:
		return txnReturns(r)
	case *pb.LeaseTimeToLiveRequest:
		if r.GetKeys() {
			return freeBytes
		}
	case *pb.LeaseLeasesRequest, *pb.AuthUserGetRequest, *pb.AuthUserListRequest, *pb.AuthRoleGetRequest, *pb.AuthRoleListRequest:
		return freeBytes
	}
	return 0
}

// txnReturns is mayReturn of the branch that returns more.
func txnReturns(r *pb.TxnRequest) int64 {
	of := func(ops []*pb.RequestOp) (n int64) {
		for _, op := range ops {
			switch o := op.GetRequest().(type) {
			case *pb.RequestOp_RequestRange:
				n += min(mayReturn(o.RequestRange), returnedBytes)
			case *pb.RequestOp_RequestPut:
				n += mayReturn(o.RequestPut)
			case *pb.RequestOp_RequestDeleteRange:
				n += min(mayReturn(o.RequestDeleteRange), returnedBytes)
			case *pb.RequestOp_RequestTxn:
				if o.RequestTxn != nil {
					n += txnReturns(o.RequestTxn)
				}
			}
		}
		return n
	}
	return max(of(r.GetSuccess()), of(r.GetFailure()))
}

// awaitRoom has a call that is no write wait for room for its answer.
func awaitRoom(ctx context.Context, req any) error {
	if n := mayReturn(req); n > 0 {
		return rpc.AwaitRoom(ctx, n)
	}
	return nil
}

// awaitRoom is awaitRoom for a call that may read much.
func (t *turn) awaitRoom(req any) error {
	start := time.Now()
	err := awaitRoom(t.Context, req)
	t.waited += time.Since(start)
	return err
}

// write proposes a write of a client, when there is room for what it may return.
func (k *kvService) write(ctx context.Context, kind requestKind, of proto.Message, req *pb.InternalRaftRequest, cost int) (command.Result, error) {
	foreseen := k.returned.foresee(of)
	if foreseen > 0 {
		start := time.Now()
		err := rpc.AwaitRoom(ctx, foreseen)
		noteWaits(ctx, waitTimes{room: time.Since(start)})
		if err != nil {
			return command.Result{}, err
		}
	}
	result, err := k.log.propose(ctx, kind, req, cost)
	noteWaits(ctx, waitTimes{room: result.Waited})
	if err == nil && foreseen > 0 {
		k.returned.had(proto.Size(result.Response))
	}
	return result, err
}

package server

import (
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/belaydb/belay/server/lockpb"
)

// lockService is v3lockpb.Lock: the same queue as an election's, without values.
type lockService struct {
	*queues
	lockpb.UnsafeLockServer
}

// Lock answers once the caller's lease holds the lock; at once if it does already.
func (l *lockService) Lock(ctx context.Context, r *lockpb.LockRequest) (*lockpb.LockResponse, error) {
	resp, err := l.lock(ctx, r)
	return resp, plainError(ctx, err)
}

func (l *lockService) lock(ctx context.Context, r *lockpb.LockRequest) (*lockpb.LockResponse, error) {
	lease, err := l.lease(ctx, r.Lease)
	if err != nil {
		return nil, err
	}
	prefix := queuePrefix(r.Name)
	key := queueKey(prefix, lease)
	// The owner is asked for in the same transaction: a free lock costs one request.
	resp, err := l.ops.Txn(ctx, &pb.TxnRequest{
		Compare: createdAt(key, 0),
		Success: []*pb.RequestOp{putOp(key, nil, lease), rangeOp(firstOf(prefix))},
		Failure: []*pb.RequestOp{rangeOp(&pb.RangeRequest{Key: key}), rangeOp(firstOf(prefix))},
	})
	if err != nil {
		return nil, err
	}
	rev := resp.Header.Revision
	if !resp.Succeeded {
		rev = resp.Responses[0].GetResponseRange().Kvs[0].CreateRevision
	}
	owner := resp.Responses[1].GetResponseRange().Kvs
	if len(owner) == 0 || owner[0].CreateRevision == rev {
		return &lockpb.LockResponse{Header: resp.Header, Key: key}, nil
	}
	header, err := l.awaitTurn(ctx, prefix, key, rev)
	if errors.Is(err, errKeyGone) {
		return nil, errLockSessionExpired
	}
	if err != nil {
		l.abandon(ctx, key)
		return nil, err
	}
	return &lockpb.LockResponse{Header: header, Key: key}, nil
}

// abandon leaves the queue.
func (l *lockService) abandon(ctx context.Context, key []byte) {
	cleanup(ctx, func(ctx context.Context) {
		_, _ = l.ops.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: key})
	})
}

// Unlock releases the lock by its key, held or waited for.
func (l *lockService) Unlock(ctx context.Context, r *lockpb.UnlockRequest) (*lockpb.UnlockResponse, error) {
	resp, err := l.ops.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: r.Key})
	if err != nil {
		return nil, plainError(ctx, err)
	}
	return &lockpb.UnlockResponse{Header: resp.Header}, nil
}

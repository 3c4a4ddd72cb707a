package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/belaydb/belay/rpc"
	"github.com/belaydb/belay/server/electionpb"
	"github.com/belaydb/belay/watch"
)

// Errors of Election and Lock, with etcd's texts. They reach the client with code Unknown, as all
// errors of these two services do in etcd, where they come out of a client inside the server.
var (
	errElectionNotLeader  = errors.New("election: not leader")
	errElectionNoLeader   = errors.New("election: no leader")
	errMissingLeaderKey   = errors.New(`"leader" field must be provided`)
	errLockSessionExpired = errors.New("mutex: session is expired")
)

// sessionTTL is the lease, in seconds, of a caller that has none. Nobody keeps it alive.
const sessionTTL = 60

// cleanupTimeout bounds the removal of a candidate's key after the caller went away.
const cleanupTimeout = 10 * time.Second

// keyedOps are the operations that Election and Lock are made of: the member's own
// services, called as a client's request would, with the caller's credentials in ctx.
type keyedOps interface {
	Range(context.Context, *pb.RangeRequest) (*pb.RangeResponse, error)
	Txn(context.Context, *pb.TxnRequest) (*pb.TxnResponse, error)
	DeleteRange(context.Context, *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error)
}

// queues orders the callers that want the same name: each writes the key name/lease in hex, and the
// owner of the oldest key is first. Election and Lock are both built on it, with the key layout of
// etcd's clientv3/concurrency, so that clients of that package and clients of the services share
// one queue.
type queues struct {
	ops    keyedOps
	grant  func(context.Context, *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error)
	hub    *watch.Hub
	header func(rev int64) *pb.ResponseHeader
	rights func(context.Context) rights
}

// lease returns the caller's lease, or a fresh one if it has none.
func (q *queues) lease(ctx context.Context, id int64) (int64, error) {
	if id != 0 {
		return id, nil
	}
	resp, err := q.grant(ctx, &pb.LeaseGrantRequest{TTL: sessionTTL})
	if err != nil {
		return 0, err
	}
	return resp.ID, nil
}

func queuePrefix(name []byte) []byte { return append(bytes.Clone(name), '/') }

func queueKey(prefix []byte, lease int64) []byte {
	return fmt.Appendf(bytes.Clone(prefix), "%x", lease)
}

// firstOf is the range request for the oldest key under a prefix.
func firstOf(prefix []byte) *pb.RangeRequest {
	return &pb.RangeRequest{
		Key: prefix, RangeEnd: afterPrefix(prefix), Limit: 1,
		SortTarget: pb.RangeRequest_CREATE, SortOrder: pb.RangeRequest_ASCEND,
	}
}

func createdAt(key []byte, rev int64) []*pb.Compare {
	return []*pb.Compare{{
		Key: key, Target: pb.Compare_CREATE, Result: pb.Compare_EQUAL,
		TargetUnion: &pb.Compare_CreateRevision{CreateRevision: rev},
	}}
}

func putOp(key, value []byte, lease int64) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: value, Lease: lease}}}
}

func rangeOp(r *pb.RangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
}

func deleteOp(key []byte) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key}}}
}

// errKeyGone: the waiter's own key was deleted, so it is no longer in the queue.
var errKeyGone = errors.New("server: own key deleted while waiting")

// awaitTurn returns when no key under prefix is older than key, which was created at rev, with the
// header of the read that found it; or with errKeyGone when key itself is gone: its lease expired
// or somebody removed it. (etcd waits on in that case, and lets Campaign succeed without a key.)
func (q *queues) awaitTurn(ctx context.Context, prefix, key []byte, rev int64) (*pb.ResponseHeader, error) {
	may := q.rights(ctx)
	for {
		resp, err := q.ops.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{ // both at one revision
			rangeOp(&pb.RangeRequest{
				Key: prefix, RangeEnd: afterPrefix(prefix), Limit: 1, MaxCreateRevision: rev - 1,
				SortTarget: pb.RangeRequest_CREATE, SortOrder: pb.RangeRequest_DESCEND,
			}),
			rangeOp(&pb.RangeRequest{Key: key}),
		}})
		if err != nil {
			return nil, err
		}
		older := resp.Responses[0].GetResponseRange().Kvs
		own := resp.Responses[1].GetResponseRange().Kvs
		switch {
		case len(own) == 0 || own[0].CreateRevision != rev:
			return nil, errKeyGone
		case len(older) == 0:
			return resp.Header, nil
		}
		// Waiting for the youngest of the older ones wakes one waiter for each release.
		ahead := bytes.Clone(older[0].Key)
		rpc.ReturnRoom(ctx) // it may be for hours, and others need it to end that
		err = q.follow(ctx, may, resp.Header.Revision+1, [][]byte{ahead, key}, nil, func(r *watch.Response) error {
			for _, ev := range r.Events {
				if ev.Type == mvccpb.Event_DELETE {
					return errFollowed
				}
			}
			return nil
		})
		// Compacted: the history since the read is gone already; the next read shows the state.
		if err != nil && !errors.Is(err, rpctypes.ErrGRPCCompacted) {
			return nil, err
		}
	}
}

// errFollowed ends follow without an error.
var errFollowed = errors.New("server: followed far enough")

// follow passes the changes of keys (or, with an end, of the range from the only key) from revision
// rev on to fn, until fn returns an error, the caller may not read them any more, or ctx ends.
func (q *queues) follow(ctx context.Context, may rights, rev int64, keys [][]byte, end []byte, fn func(*watch.Response) error) error {
	s := q.hub.NewStream()
	defer s.Close()
	var denied error
	review := func() {
		may.review(s.Ranges, func(id int64, err error) {
			denied = toGRPC(err)
			s.End(id, denied.Error())
		})
	}
	s.SetReview(review)
	for _, key := range keys {
		var err error
		begin := func() { _, err = s.Watch(watch.Request{Key: key, End: end, Start: rev}) }
		if refused := may.admit(key, end, begin); refused != nil {
			return toGRPC(refused)
		}
		if err != nil {
			return err
		}
	}
	for {
		select {
		case <-s.Ready():
		case <-may.replaced():
			review()
		case <-ctx.Done():
			return ctx.Err()
		}
		err := s.Drain(func(r *watch.Response) error {
			if denied != nil {
				return denied
			}
			if r.Canceled {
				return rpctypes.ErrGRPCCompacted
			}
			return fn(r)
		})
		switch {
		case errors.Is(err, errFollowed):
			return nil
		case err != nil:
			return err
		}
	}
}

// plainError turns an error of the member's services into what etcd's services answer: the same text
// without a code (so Unknown), or the context's own error. That the member stops stays Unavailable:
// etcd's clients see their connection end then, and try another member.
func plainError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	if code := st.Code(); (code == codes.Canceled || code == codes.DeadlineExceeded) && ctx.Err() != nil {
		return ctx.Err()
	}
	if stopped := status.Convert(rpctypes.ErrGRPCStopped); st.Code() == stopped.Code() && st.Message() == stopped.Message() {
		return err
	}
	return status.Error(codes.Unknown, st.Message())
}

// cleanup runs fn, which removes what a caller left behind, with the caller's credentials but not
// its cancellation.
func cleanup(ctx context.Context, fn func(context.Context)) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	fn(ctx)
}

// electionService is v3electionpb.Election.
type electionService struct {
	*queues
	electionpb.UnsafeElectionServer
}

// Campaign answers once the caller leads. If the caller's lease has a key in the
// queue already, it announces the new value under that key and keeps its place.
func (e *electionService) Campaign(ctx context.Context, r *electionpb.CampaignRequest) (*electionpb.CampaignResponse, error) {
	resp, err := e.campaign(ctx, r)
	return resp, plainError(ctx, err)
}

func (e *electionService) campaign(ctx context.Context, r *electionpb.CampaignRequest) (*electionpb.CampaignResponse, error) {
	lease, err := e.lease(ctx, r.Lease)
	if err != nil {
		return nil, err
	}
	prefix := queuePrefix(r.Name)
	leader := &electionpb.LeaderKey{Name: r.Name, Key: queueKey(prefix, lease), Lease: lease}
	resp, err := e.ops.Txn(ctx, &pb.TxnRequest{
		Compare: createdAt(leader.Key, 0),
		Success: []*pb.RequestOp{putOp(leader.Key, r.Value, lease)},
		Failure: []*pb.RequestOp{rangeOp(&pb.RangeRequest{Key: leader.Key})},
	})
	if err != nil {
		return nil, err
	}
	leader.Rev = resp.Header.Revision
	if !resp.Succeeded {
		kv := resp.Responses[0].GetResponseRange().Kvs[0]
		leader.Rev = kv.CreateRevision
		if !bytes.Equal(kv.Value, r.Value) {
			if _, err := e.proclaim(ctx, leader, lease, r.Value); err != nil {
				cleanup(ctx, func(ctx context.Context) { _, _ = e.resign(ctx, leader) })
				return nil, err
			}
		}
	}
	switch _, err := e.awaitTurn(ctx, prefix, leader.Key, leader.Rev); {
	case errors.Is(err, errKeyGone):
		return nil, errElectionNotLeader
	case err != nil:
		if ctx.Err() != nil {
			cleanup(ctx, func(ctx context.Context) { _, _ = e.resign(ctx, leader) })
		}
		return nil, err
	}
	return &electionpb.CampaignResponse{Header: resp.Header, Leader: leader}, nil
}

// Proclaim announces a new value if the caller still leads.
func (e *electionService) Proclaim(ctx context.Context, r *electionpb.ProclaimRequest) (*electionpb.ProclaimResponse, error) {
	if r.Leader == nil {
		return nil, errMissingLeaderKey
	}
	lease, err := e.lease(ctx, r.Leader.Lease)
	if err != nil {
		return nil, plainError(ctx, err)
	}
	h, err := e.proclaim(ctx, r.Leader, lease, r.Value)
	if err != nil {
		return nil, plainError(ctx, err)
	}
	return &electionpb.ProclaimResponse{Header: h}, nil
}

func (e *electionService) proclaim(ctx context.Context, l *electionpb.LeaderKey, lease int64, value []byte) (*pb.ResponseHeader, error) {
	resp, err := e.ops.Txn(ctx, &pb.TxnRequest{
		Compare: createdAt(l.Key, l.Rev),
		Success: []*pb.RequestOp{putOp(l.Key, value, lease)},
	})
	if err != nil {
		return nil, err
	}
	if !resp.Succeeded {
		return nil, errElectionNotLeader
	}
	return resp.Header, nil
}

// Resign gives up the caller's place, leader or not.
func (e *electionService) Resign(ctx context.Context, r *electionpb.ResignRequest) (*electionpb.ResignResponse, error) {
	if r.Leader == nil {
		return nil, errMissingLeaderKey
	}
	h, err := e.resign(ctx, r.Leader)
	if err != nil {
		return nil, plainError(ctx, err)
	}
	return &electionpb.ResignResponse{Header: h}, nil
}

func (e *electionService) resign(ctx context.Context, l *electionpb.LeaderKey) (*pb.ResponseHeader, error) {
	resp, err := e.ops.Txn(ctx, &pb.TxnRequest{
		Compare: createdAt(l.Key, l.Rev),
		Success: []*pb.RequestOp{deleteOp(l.Key)},
	})
	if err != nil {
		return nil, err
	}
	return resp.Header, nil
}

// Leader answers what the leader announced.
func (e *electionService) Leader(ctx context.Context, r *electionpb.LeaderRequest) (*electionpb.LeaderResponse, error) {
	resp, err := e.ops.Range(ctx, firstOf(queuePrefix(r.Name)))
	if err != nil {
		return nil, plainError(ctx, err)
	}
	if len(resp.Kvs) == 0 {
		return nil, errElectionNoLeader
	}
	return &electionpb.LeaderResponse{Header: resp.Header, Kv: resp.Kvs[0]}, nil
}

// Observe streams what leaders announce: always the latest, and in order, but not every
// announcement that was replaced while the leader changed.
func (e *electionService) Observe(r *electionpb.LeaderRequest, stream electionpb.Election_ObserveServer) error {
	ctx := stream.Context()
	err := e.observe(ctx, queuePrefix(r.Name), stream)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, rpctypes.ErrGRPCCompacted) {
		return nil // etcd ends the stream without an error; the client observes again
	}
	return plainError(ctx, err)
}

func (e *electionService) observe(ctx context.Context, prefix []byte, stream electionpb.Election_ObserveServer) error {
	may := e.rights(ctx)
	for {
		resp, err := e.ops.Range(ctx, firstOf(prefix))
		if err != nil {
			return err
		}
		leader := &electionpb.LeaderResponse{Header: resp.Header}
		if len(resp.Kvs) > 0 {
			leader.Kv = resp.Kvs[0]
		} else {
			err := e.follow(ctx, may, resp.Header.Revision, [][]byte{prefix}, afterPrefix(prefix), func(r *watch.Response) error {
				for _, ev := range r.Events {
					if ev.Type == mvccpb.Event_PUT {
						leader.Kv, leader.Header = ev.Kv, e.header(ev.Kv.ModRevision)
						return errFollowed
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		if err := stream.Send(leader); err != nil {
			return err
		}
		err = e.follow(ctx, may, leader.Header.Revision+1, [][]byte{leader.Kv.Key}, nil, func(r *watch.Response) error {
			for _, ev := range r.Events {
				if ev.Type == mvccpb.Event_DELETE {
					return errFollowed
				}
				if err := stream.Send(&electionpb.LeaderResponse{Header: e.header(r.Rev), Kv: ev.Kv}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
}

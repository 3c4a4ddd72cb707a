package main

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
)

// Attacks with gRPC's own client.

func dial(address string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+address, append(opts,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30), grpc.MaxCallSendMsgSize(1<<30)))...)
}

// as adds the attacker's token to ctx.
func (t *target) as(ctx context.Context) context.Context {
	if t.Token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, t.Token)
}

// calls repeats a call in n goroutines on some connections.
func calls(ctx context.Context, t *target, c *counter, n, conns int, call func(ctx context.Context, conn *grpc.ClientConn) error) error {
	var all []*grpc.ClientConn
	for range conns {
		conn, err := dial(t.Client)
		if err != nil {
			return err
		}
		defer conn.Close()
		all = append(all, conn)
	}
	c.swarm(t.as(ctx), n, func(ctx context.Context, i int) error {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		return call(ctx, all[i%conns])
	})
	return nil
}

func strangersGet(method string) func(ctx context.Context, t *target, c *counter) error {
	return func(ctx context.Context, t *target, c *counter) error {
		conn, err := dial(t.Client)
		if err != nil {
			return err
		}
		defer conn.Close()
		name := strings.Repeat("\x01", 1_400_000)
		c.paced(ctx, 20, func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			if method == "RoleGet" {
				_, err := pb.NewAuthClient(conn).RoleGet(ctx, &pb.AuthRoleGetRequest{Role: name}, grpc.UseCompressor(gzip.Name))
				return err
			}
			_, err := pb.NewAuthClient(conn).UserGet(ctx, &pb.AuthUserGetRequest{Name: name}, grpc.UseCompressor(gzip.Name))
			return err
		})
		return nil
	}
}

func deniedDeletes(ctx context.Context, t *target, c *counter) error {
	key := make([]byte, 1_400_000)
	return calls(ctx, t, c, 32, 4, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := pb.NewKVClient(conn).DeleteRange(ctx, &pb.DeleteRangeRequest{Key: key}, grpc.UseCompressor(gzip.Name))
		return err
	})
}

func longKeys(ctx context.Context, t *target, c *counter) error {
	key := make([]byte, 1_900_000)
	return calls(ctx, t, c, t.sized(64, 8), 4, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: key}, grpc.UseCompressor(gzip.Name))
		return err
	})
}

func rangeOp(r *pb.RangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
}

func txnOp(r *pb.TxnRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: r}}
}

// pub is a range of all keys that the reader may read.
func pub(change func(r *pb.RangeRequest)) *pb.RangeRequest {
	r := &pb.RangeRequest{Key: []byte("pub/"), RangeEnd: []byte("pub0")}
	change(r)
	return r
}

// nested is a transaction of outer transactions with inner ranges each.
func nested(outer, inner int, r *pb.RangeRequest) *pb.TxnRequest {
	in, out := &pb.TxnRequest{}, &pb.TxnRequest{}
	for range inner {
		in.Success = append(in.Success, rangeOp(r))
	}
	for range outer {
		out.Success = append(out.Success, txnOp(in))
	}
	return out
}

func txns(ctx context.Context, t *target, c *counter, n int, r *pb.TxnRequest) error {
	return calls(ctx, t, c, n, 1, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := pb.NewKVClient(conn).Txn(ctx, r)
		return err
	})
}

func sortedTxn(ctx context.Context, t *target, c *counter) error {
	return txns(ctx, t, c, 1, nested(30, 30, pub(func(r *pb.RangeRequest) {
		r.Limit, r.SortTarget, r.SortOrder = 1, pb.RangeRequest_VALUE, pb.RangeRequest_DESCEND
	})))
}

func countingTxn(ctx context.Context, t *target, c *counter) error {
	return txns(ctx, t, c, 1, nested(64, 64, pub(func(r *pb.RangeRequest) { r.CountOnly = true })))
}

func answeringTxn(ctx context.Context, t *target, c *counter) error {
	return txns(ctx, t, c, 1, nested(1, 127, pub(func(*pb.RangeRequest) {})))
}

func comparingTxn(ctx context.Context, t *target, c *counter) error {
	r := &pb.TxnRequest{}
	for range 128 {
		r.Compare = append(r.Compare, &pb.Compare{Key: []byte("pub/"), RangeEnd: []byte("pub0"), Target: pb.Compare_VERSION, Result: pb.Compare_GREATER, TargetUnion: &pb.Compare_Version{Version: 0}})
	}
	return txns(ctx, t, c, 4, r)
}

func deepTxn(ctx context.Context, t *target, c *counter) error {
	r := &pb.TxnRequest{}
	for range 60 {
		outer := &pb.TxnRequest{}
		for range 60 {
			outer.Success = append(outer.Success, rangeOp(&pb.RangeRequest{Key: []byte("k")}))
		}
		outer.Success = append(outer.Success, txnOp(r))
		r = outer
	}
	var deep []byte
	for range 9000 {
		op := protowire.AppendBytes(protowire.AppendTag(nil, 4, protowire.BytesType), deep)
		deep = protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), op)
	}
	broken := &pb.TxnRequest{}
	broken.ProtoReflect().SetUnknown(deep)
	return calls(ctx, t, c, 4, 1, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := pb.NewKVClient(conn).Txn(ctx, r)
		_, _ = pb.NewKVClient(conn).Txn(ctx, broken) // refused
		return err
	})
}

func readers(ctx context.Context, t *target, c *counter) error {
	return calls(ctx, t, c, t.sized(100, 10), t.sized(100, 10), func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := pb.NewKVClient(conn).Range(ctx, pub(func(*pb.RangeRequest) {}))
		return err
	})
}

// hold opens n streams on some connections and keeps them until ctx ends.
func hold(ctx context.Context, t *target, c *counter, n, conns int, open func(ctx context.Context, conn *grpc.ClientConn) error, opts ...grpc.DialOption) error {
	var all []*grpc.ClientConn
	for range conns {
		conn, err := dial(t.Client, opts...)
		if err != nil {
			return err
		}
		defer conn.Close()
		all = append(all, conn)
	}
	for i := range n {
		if ctx.Err() != nil {
			return nil
		}
		c.count(open(ctx, all[i%conns]))
	}
	<-ctx.Done()
	return nil
}

func unreadSnapshots(ctx context.Context, t *target, c *counter) error {
	return hold(ctx, t, c, 40, 40, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := pb.NewMaintenanceClient(conn).Snapshot(ctx, &pb.SnapshotRequest{})
		return err
	}, grpc.WithInitialConnWindowSize(64<<10), grpc.WithInitialWindowSize(64<<10))
}

// writes puts values of 1 MiB, perSecond of them.
func writes(ctx context.Context, t *target, perSecond int) {
	conn, err := dial(t.Client)
	if err != nil {
		return
	}
	defer conn.Close()
	value := make([]byte, mib)
	var c counter
	var puts atomic.Int64
	c.paced(ctx, perSecond, func(ctx context.Context) error {
		n := puts.Add(1)
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		_, err := pb.NewKVClient(conn).Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "pub/%02d", n%20), Value: value})
		return err
	})
}

func watch(ctx context.Context, conn *grpc.ClientConn, key, end string) (pb.Watch_WatchClient, error) {
	s, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		return nil, err
	}
	return s, s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte(key), RangeEnd: []byte(end)}}})
}

func unreadWatches(ctx context.Context, t *target, c *counter) error {
	go writes(ctx, t, t.sized(10, 5))
	return hold(ctx, t, c, t.sized(300, 30), t.sized(300, 30), func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := watch(ctx, conn, "pub/", "pub0")
		return err
	}, grpc.WithInitialConnWindowSize(64<<10), grpc.WithInitialWindowSize(64<<10))
}

func manyWatches(ctx context.Context, t *target, c *counter) error {
	conn, err := dial(t.Client)
	if err != nil {
		return err
	}
	defer conn.Close()
	s, err := watch(ctx, conn, "light/", "light0")
	if err != nil {
		return err
	}
	go func() {
		for err == nil {
			_, err := s.Recv()
			if err != nil {
				return
			}
		}
	}()
	for range t.sized(20_000, 2000) {
		err := s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("light/"), RangeEnd: []byte("light0")}}})
		if c.count(err); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return nil
}

func manyStreams(ctx context.Context, t *target, c *counter) error {
	return hold(ctx, t, c, t.sized(10_000, 1000), 4, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := pb.NewWatchClient(conn).Watch(ctx)
		return err
	})
}

func grantLeases(ctx context.Context, t *target, c *counter) error {
	return calls(ctx, t, c, 32, 4, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := pb.NewLeaseClient(conn).LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 5})
		return err
	})
}

func wrongPasswords(ctx context.Context, t *target, c *counter) error {
	conn, err := dial(t.Client)
	if err != nil {
		return err
	}
	defer conn.Close()
	c.paced(ctx, 30, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		_, err := pb.NewAuthClient(conn).Authenticate(ctx, &pb.AuthenticateRequest{Name: admin, Password: "wrong"})
		return err
	})
	return nil
}

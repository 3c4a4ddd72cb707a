package main

import (
	"context"
	"fmt"
	"math/rand/v2"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/belaydb/belay/cli/bench/load"
	"github.com/belaydb/belay/proof/cluster"
)

// conns are connections spread over the members.
type conns []*grpc.ClientConn

func dial(c *cluster.Cluster, n int) (conns, error) {
	var cs conns
	buffers := 64 << 10
	if n > 500 {
		buffers = 4 << 10 // many connections have little on each
	}
	for i := range max(n, len(c.Members)) {
		conn, err := c.Members[i%len(c.Members)].Dial(
			grpc.WithReadBufferSize(buffers), grpc.WithWriteBufferSize(buffers),
			grpc.WithInitialWindowSize(4<<20), grpc.WithInitialConnWindowSize(16<<20))
		if err != nil {
			cs.close()
			return nil, err
		}
		cs = append(cs, conn)
	}
	return cs, nil
}

func (cs conns) close() {
	for _, c := range cs {
		c.Close()
	}
}

// loop runs clients in a closed loop: each does its next operation when the previous one is
// answered. Operations that end within the window are counted, and what the members spend in it.
func loop(ctx context.Context, o options, cl *cluster.Cluster, clients int, newClient func(i int) (load.Operation, error)) (result, error) {
	var before, after costs
	var unread error
	r, err := load.Run(ctx, load.Options{
		Clients: clients, Duration: o.duration, WarmUp: o.warmup, Describe: firstLine,
		Begin: func(context.Context) (err error) { before, err = costsOf(cl); return err },
		End:   func(context.Context) { after, unread = costsOf(cl) },
	}, newClient)
	switch {
	case err != nil:
		return result{}, err
	case ctx.Err() != nil:
		return result{}, context.Cause(ctx)
	case unread != nil:
		return result{}, unread
	}
	c := r.Classes[0].Counts
	if c.N() == 0 {
		return result{}, fmt.Errorf("no operation ended well within %v: %v", o.duration, c.Errors())
	}
	return resultOf(c, r.Elapsed, before, after), nil
}

// call makes an operation of a request that does not change.
func call(conn *grpc.ClientConn, method string, request []byte) load.Operation {
	return func(ctx context.Context, _ int64) (int, error) {
		return 0, conn.Invoke(ctx, method, request, nil, load.Raw())
	}
}

// random makes an operation of a request whose keys are all the same one, out of space, by chance.
func random(conn *grpc.ClientConn, method string, t *load.Template, seed int, space uint64) load.Operation {
	r, rng := t.Request(), rand.New(rand.NewPCG(uint64(seed), 2))
	return func(ctx context.Context, _ int64) (int, error) {
		k := key(rng.Uint64N(space))
		for i := range t.Keys() {
			copy(r.Key(i), k)
		}
		err := conn.Invoke(ctx, method, r, nil, load.Raw())
		if err != nil {
			r.Renew()
		}
		return 0, err
	}
}

// fill puts keys 0..n-1 with values of the given size, 100 to a transaction.
func fill(ctx context.Context, cs conns, n, valueBytes int) error {
	return fillFrom(ctx, cs, 0, n, valueBytes)
}

// fillFrom puts keys first..n-1.
func fillFrom(ctx context.Context, cs conns, first, n, valueBytes int) error {
	const perTxn = 100
	v := value(valueBytes)
	err := each(ctx, (n-first+perTxn-1)/perTxn, 32, func(i int) error {
		txn := &pb.TxnRequest{}
		from := first + i*perTxn
		for k := from; k < min(from+perTxn, n); k++ {
			txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key(uint64(k)), Value: v}}})
		}
		_, err := pb.NewKVClient(cs[i%len(cs)]).Txn(ctx, txn)
		return err
	})
	if err != nil {
		return fmt.Errorf("load keys: %w", err)
	}
	return nil
}

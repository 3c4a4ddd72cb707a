package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/proof/cluster"
)

// rawCodec sends bytes as they are and drops answers undecoded, except into a
// *[]byte, which gets a copy. The content type stays that of protobuf.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("bench: %T is not encoded", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if out, ok := v.(*[]byte); ok && out != nil {
		*out = append((*out)[:0], data.Materialize()...)
	}
	return nil
}

var callRaw = []grpc.CallOption{grpc.ForceCodecV2(rawCodec{})}

// Methods of the calls that are timed.
const (
	methodPut       = "/etcdserverpb.KV/Put"
	methodRange     = "/etcdserverpb.KV/Range"
	methodTxn       = "/etcdserverpb.KV/Txn"
	methodWatch     = "/etcdserverpb.Watch/Watch"
	methodKeepAlive = "/etcdserverpb.Lease/LeaseKeepAlive"
)

// conns are connections spread over the members.
type conns []*grpc.ClientConn

func dial(c *cluster.Cluster, n int) (conns, error) {
	var cs conns
	for i := range max(n, len(c.Members)) {
		conn, err := c.Members[i%len(c.Members)].Dial(
			grpc.WithReadBufferSize(64<<10), grpc.WithWriteBufferSize(64<<10),
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

// encode makes a request once; requests are then patched in place.
func encode(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err) // our own constant messages
	}
	return b
}

// loop runs clients in a closed loop: each sends its next operation when the previous one is
// answered. make(i) returns client i's operation. Operations that end within the window are
// counted.
func loop(ctx context.Context, o options, cl *cluster.Cluster, clients int, make func(i int) (func(ctx context.Context, n uint64) error, error)) (result, error) {
	ops := []func(context.Context, uint64) error{}
	for i := range clients {
		op, err := make(i)
		if err != nil {
			return result{}, err
		}
		ops = append(ops, op)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	begin := time.Now().Add(o.warmup)
	end := begin.Add(o.duration)
	hists := newSlice[histogram](clients)
	var wg sync.WaitGroup
	var firstErr struct {
		sync.Mutex
		err error
	}
	for i, op := range ops {
		h := hists[i]
		wg.Go(func() {
			for n := uint64(0); ; n++ {
				start := time.Now()
				err := op(ctx, n)
				now := time.Now()
				if now.After(end) || ctx.Err() != nil {
					return
				}
				if err != nil {
					h.errors++
					firstErr.Lock()
					if firstErr.err == nil {
						firstErr.err = err
					}
					firstErr.Unlock()
					if h.errors > 100 {
						return
					}
					continue
				}
				if now.After(begin) {
					h.add(now.Sub(start))
				}
			}
		})
	}
	if err := sleepUntil(ctx, begin); err != nil {
		return result{}, err
	}
	before, err := costsOf(cl)
	if err != nil {
		return result{}, err
	}
	if err := sleepUntil(ctx, end); err != nil {
		return result{}, err
	}
	after, err := costsOf(cl)
	if err != nil {
		return result{}, err
	}
	cancel()
	wg.Wait()
	var all histogram
	for _, h := range hists {
		all.merge(h)
	}
	if all.n == 0 {
		return result{}, fmt.Errorf("no operation ended well within %v: %v", o.duration, firstErr.err)
	}
	return resultOf(&all, o.duration, before, after), nil
}

func newSlice[T any](n int) []*T {
	s := make([]*T, n)
	for i := range s {
		s[i] = new(T)
	}
	return s
}

func sleepUntil(ctx context.Context, t time.Time) error {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// fill puts keys 0..n-1 with values of the given size, 100 to a transaction.
func fill(ctx context.Context, cs conns, n, valueBytes int) error {
	const perTxn = 100
	next := make(chan int)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for i := range 32 {
		kv := pb.NewKVClient(cs[i%len(cs)])
		wg.Go(func() {
			for from := range next {
				txn := &pb.TxnRequest{}
				for k := from; k < min(from+perTxn, n); k++ {
					txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
						RequestPut: &pb.PutRequest{Key: key(uint64(k)), Value: value(valueBytes)}}})
				}
				if _, err := kv.Txn(ctx, txn); err != nil {
					cancel(fmt.Errorf("load keys: %w", err))
					return
				}
			}
		})
	}
	for from := 0; from < n && ctx.Err() == nil; from += perTxn {
		select {
		case next <- from:
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
	return context.Cause(ctx)
}

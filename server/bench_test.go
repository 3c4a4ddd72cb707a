package server

import (
	"context"
	"fmt"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/state"
)

// The benchmarks here run client and server in one process over loopback and report the CPU of both
// for each request (cpu-ns/op). What this package costs beyond grpc is the difference between
// "bare", a grpc server that answers alike and does nothing, and the others.

// answering is a replica that answers puts without applying anything: what is
// left is the path through grpc and this package.
type answering struct{ *solo }

func (answering) Propose(context.Context, *pb.InternalRaftRequest) (command.Result, error) {
	return command.Result{Response: &pb.PutResponse{Header: &pb.ResponseHeader{Revision: 2}}}, nil
}

func (a answering) ProposeThen(req *pb.InternalRaftRequest, then replica.Completion) (uint64, error) {
	then.Completed(a.Propose(context.Background(), req))
	return 0, nil
}

func (answering) Term() uint64 { return 2 }

func answers(c *Config, _ *state.Config) { c.Replica = answering{c.Replica.(*solo)} }

type bareKV struct{ pb.UnimplementedKVServer }

func (bareKV) Put(context.Context, *pb.PutRequest) (*pb.PutResponse, error) {
	return &pb.PutResponse{Header: &pb.ResponseHeader{Revision: 2, ClusterId: testCluster, MemberId: testMember, RaftTerm: 2}}, nil
}

func BenchmarkPut(b *testing.B) {
	workers := func(n uint32) func(*Config, *state.Config) {
		return func(c *Config, _ *state.Config) { c.StreamWorkers = n }
	}
	for _, clients := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("bare/clients=%d", clients), func(b *testing.B) {
			benchPut(b, clients, func(g grpc.ServiceRegistrar) { pb.RegisterKVServer(g, bareKV{}) }, grpc.NumStreamWorkers(defaultStreamWorkers))
		})
		for _, n := range []uint32{1, 4, 8, 32} {
			b.Run(fmt.Sprintf("ours/workers=%d/clients=%d", n, clients), func(b *testing.B) {
				m := newMember(b, workers(n), answers)
				benchPut(b, clients, m.RegisterGRPC, m.GRPCOptions()...)
			})
		}
	}
}

// benchPut spreads the clients over as many connections as etcd's benchmark
// does by default for a hundred clients or more: ten.
func benchPut(b *testing.B, clients int, register func(grpc.ServiceRegistrar), opts ...grpc.ServerOption) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(b, err)
	g := grpc.NewServer(opts...)
	register(g)
	go func() { _ = g.Serve(l) }()
	defer g.Stop()
	conns := make([]pb.KVClient, min(10, clients))
	for i := range conns {
		cc, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		must(b, err)
		defer cc.Close()
		conns[i] = pb.NewKVClient(cc)
	}
	ctx := metadata.AppendToOutgoingContext(context.Background(), rpctypes.MetadataClientAPIVersionKey, "3.7")
	req := &pb.PutRequest{Key: make([]byte, 32), Value: make([]byte, 256)}
	for _, c := range conns {
		_, err := c.Put(ctx, req)
		must(b, err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	before := cpuTime(b)
	var wg sync.WaitGroup
	next := make(chan struct{}, 4*clients)
	for i := range clients {
		c := conns[i%len(conns)]
		wg.Go(func() {
			for range next {
				if _, err := c.Put(ctx, req); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	for range b.N {
		next <- struct{}{}
	}
	close(next)
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkServicePut is the path without grpc's transport.
func BenchmarkServicePut(b *testing.B) {
	m := newMember(b, answers)
	info := &grpc.UnaryServerInfo{FullMethod: "/etcdserverpb.KV/Put"}
	ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs(
		rpctypes.MetadataClientAPIVersionKey, "3.7", ":authority", "127.0.0.1:2379", "content-type", "application/grpc", "user-agent", "grpc-go/1.85.0"))
	handler := func(ctx context.Context, req any) (any, error) {
		return m.Server.kv.Put(ctx, req.(*pb.PutRequest))
	}
	req := &pb.PutRequest{Key: make([]byte, 32), Value: make([]byte, 256)}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.calls.interceptUnary(ctx, req, info, handler); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkServiceRange is that path for a get of one key.
func BenchmarkServiceRange(b *testing.B) {
	m := newMember(b)
	m.put("k", "v")
	info := &grpc.UnaryServerInfo{FullMethod: "/etcdserverpb.KV/Range"}
	ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs(rpctypes.MetadataClientAPIVersionKey, "3.7"))
	handler := func(ctx context.Context, req any) (any, error) {
		return m.Server.kv.Range(ctx, req.(*pb.RangeRequest))
	}
	req := &pb.RangeRequest{Key: []byte("k")}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.calls.interceptUnary(ctx, req, info, handler); err != nil {
			b.Fatal(err)
		}
	}
}

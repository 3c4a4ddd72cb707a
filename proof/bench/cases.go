package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/cli/bench/load"
	"github.com/belaydb/belay/proof/cluster"
)

// A benchCase is one row of the table.
type benchCase struct {
	name    string
	about   string
	oneNode bool // makes no sense with more
	empty   bool // the empty server can run it
	run     func(ctx context.Context, o options, cl *cluster.Cluster) (result, error)
}

// Values are 256 bytes and keys 8, as in etcd's own benchmark, unless a case
// says otherwise. Puts go to random keys out of a million.
const (
	keyBytes   = 8
	valueBytes = 256
	keySpace   = 1_000_000
	filled     = 10_000 // keys that the read cases find
	watchers   = 100
)

func allCases() []benchCase {
	return []benchCase{
		{name: "put-1", about: "256-byte puts, 1 client", empty: true, run: puts(1, valueBytes)},
		{name: "put-100", about: "256-byte puts, 100 clients", empty: true, run: puts(100, valueBytes)},
		{name: "put-1000", about: "256-byte puts, 1,000 clients", empty: true, run: puts(1000, valueBytes)},
		{name: "get-lin-100", about: "linearizable gets of one key, 100 clients", empty: true, run: gets(100, false)},
		{name: "get-ser-100", about: "serializable gets of one key, 100 clients", empty: true, run: gets(100, true)},
		{name: "range-10k", about: "ranges of 10,000 keys with their values, 4 clients", run: ranges},
		{name: "txn-100", about: "transactions: one compare, one put, 100 clients", empty: true, run: txns(100)},
		{name: "watch-100", about: "16 writers, each waits until 100 watchers have its event; an operation is an event", run: watches},
		{name: "keepalive-100", about: "lease keepalives, 100 clients, each with a lease and a stream", run: keepAlives(100)},
		{name: "put-100k", about: "100 KB puts, 100 clients", empty: true, run: puts(100, 100<<10)},
		{name: "put-1m", about: "1 MB puts, 100 clients", empty: true, run: puts(100, 1<<20)},
		{name: "readers-100", about: "ranges of 10 MB, 100 clients; p50 and p99 are those of the puts of a light client beside them", run: readers(100)},
		{name: "restart", about: "start of the process to the first linearizable read", oneNode: true, run: restart},
	}
}

func caseNames() (names []string) {
	for _, c := range allCases() {
		names = append(names, c.name)
	}
	return names
}

func chooseCases(list string) ([]benchCase, error) {
	if list == "all" {
		return allCases(), nil
	}
	var chosen []benchCase
	for _, want := range strings.Split(list, ",") {
		prefix, isPrefix := strings.CutSuffix(want, "*")
		before := len(chosen)
		for _, c := range allCases() {
			if c.name == want || isPrefix && strings.HasPrefix(c.name, prefix) {
				chosen = append(chosen, c)
			}
		}
		if len(chosen) == before {
			return nil, fmt.Errorf("-cases: no case %q; there are %s", want, strings.Join(caseNames(), ", "))
		}
	}
	return chosen, nil
}

// key is 8 bytes, spread so that neighbours in number are not neighbours in order.
func key(n uint64) []byte {
	return binary.BigEndian.AppendUint64(nil, n*0x9e3779b97f4a7c15)
}

// value can not be compressed.
func value(n int) []byte {
	b := make([]byte, n)
	rng := rand.New(rand.NewPCG(uint64(n), 1))
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
	}
	return b
}

func withConns(o options, cl *cluster.Cluster, fn func(cs conns) (result, error)) (result, error) {
	cs, err := dial(cl, o.conns)
	if err != nil {
		return result{}, err
	}
	defer cs.close()
	return fn(cs)
}

// unary runs one request with changing keys.
func unary(ctx context.Context, o options, cl *cluster.Cluster, cs conns, clients int, method string, space uint64, message func(key []byte) proto.Message) (result, error) {
	t, err := load.NewTemplate(keyBytes, message)
	if err != nil {
		return result{}, err
	}
	return loop(ctx, o, cl, clients, func(i int) (load.Operation, error) {
		return random(cs[i%len(cs)], method, t, i, space), nil
	})
}

func putOf(valueBytes int) func(key []byte) proto.Message {
	v := value(valueBytes)
	return func(key []byte) proto.Message { return &pb.PutRequest{Key: key, Value: v} }
}

func puts(clients, valueBytes int) func(context.Context, options, *cluster.Cluster) (result, error) {
	return func(ctx context.Context, o options, cl *cluster.Cluster) (result, error) {
		return withConns(o, cl, func(cs conns) (result, error) {
			return unary(ctx, o, cl, cs, clients, load.MethodPut, keySpace, putOf(valueBytes))
		})
	}
}

func gets(clients int, serializable bool) func(context.Context, options, *cluster.Cluster) (result, error) {
	return func(ctx context.Context, o options, cl *cluster.Cluster) (result, error) {
		return withConns(o, cl, func(cs conns) (result, error) {
			if err := fill(ctx, cs, filled, valueBytes); err != nil {
				return result{}, err
			}
			// Answers are not checked below, so check once that keys are found.
			resp, err := pb.NewKVClient(cs[0]).Range(ctx, &pb.RangeRequest{Key: key(filled / 2)})
			if err == nil && len(resp.Kvs) != 1 && resp.Header.GetRevision() != emptyRevision {
				err = fmt.Errorf("a loaded key is not found")
			}
			if err != nil {
				return result{}, err
			}
			return unary(ctx, o, cl, cs, clients, load.MethodRange, filled, func(key []byte) proto.Message {
				return &pb.RangeRequest{Key: key, Serializable: serializable}
			})
		})
	}
}

func ranges(ctx context.Context, o options, cl *cluster.Cluster) (result, error) {
	return withConns(o, cl, func(cs conns) (result, error) {
		if err := fill(ctx, cs, filled, valueBytes); err != nil {
			return result{}, err
		}
		request, err := load.Encode(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
		if err != nil {
			return result{}, err
		}
		return loop(ctx, o, cl, 4, func(i int) (load.Operation, error) {
			return call(cs[i%len(cs)], load.MethodRange, request), nil
		})
	})
}

func txns(clients int) func(context.Context, options, *cluster.Cluster) (result, error) {
	return func(ctx context.Context, o options, cl *cluster.Cluster) (result, error) {
		return withConns(o, cl, func(cs conns) (result, error) {
			v := value(valueBytes)
			return unary(ctx, o, cl, cs, clients, load.MethodTxn, keySpace, func(key []byte) proto.Message {
				return &pb.TxnRequest{
					Compare: []*pb.Compare{{Key: key, Target: pb.Compare_VERSION, Result: pb.Compare_GREATER, TargetUnion: &pb.Compare_Version{Version: -1}}},
					Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: v}}}},
					Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}},
				}
			})
		})
	}
}

var bidi = &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}

func keepAlives(clients int) func(context.Context, options, *cluster.Cluster) (result, error) {
	return func(ctx context.Context, o options, cl *cluster.Cluster) (result, error) {
		return withConns(o, cl, func(cs conns) (result, error) {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			return loop(ctx, o, cl, clients, func(i int) (load.Operation, error) {
				conn := cs[i%len(cs)]
				id := int64(1000 + i)
				if _, err := pb.NewLeaseClient(conn).LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: id, TTL: 600}); err != nil {
					return nil, err
				}
				stream, err := conn.NewStream(ctx, bidi, load.MethodKeepAlive, load.Raw())
				if err != nil {
					return nil, err
				}
				request, err := load.Encode(&pb.LeaseKeepAliveRequest{ID: id})
				if err != nil {
					return nil, err
				}
				return func(context.Context, int64) (int, error) {
					if err := stream.SendMsg(request); err != nil {
						return 0, err
					}
					return 0, stream.RecvMsg(nil)
				}, nil
			})
		})
	}
}

// watches measures fan-out. Writers put to keys of their own and wait until every watcher has the
// event, so the servers' queues stay short and an operation takes as long as the slowest watcher.
func watches(ctx context.Context, o options, cl *cluster.Cluster) (result, error) {
	return withConns(o, cl, func(cs conns) (result, error) {
		ctx, fail := context.WithCancelCause(ctx)
		cancel := func() { fail(nil) }
		defer cancel()
		const writers = 16
		type writer struct {
			seen atomic.Int64 // events of this writer's puts, over all watchers
			want atomic.Int64
			all  chan struct{}
		}
		ws := make([]*writer, writers)
		for i := range ws {
			ws[i] = &writer{all: make(chan struct{}, 1)}
		}
		create, err := load.Encode(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("w/"), RangeEnd: []byte("w0")}}})
		if err != nil {
			return result{}, err
		}
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		for i := range watchers {
			stream, err := cs[i%len(cs)].NewStream(ctx, bidi, load.MethodWatch, load.Raw())
			if err != nil {
				return result{}, err
			}
			if err := stream.SendMsg(create); err != nil {
				return result{}, err
			}
			var buf []byte
			if err := stream.RecvMsg(&buf); err != nil { // the created answer
				return result{}, err
			}
			wg.Go(func() {
				for {
					if err := stream.RecvMsg(&buf); err != nil {
						if ctx.Err() == nil && err != io.EOF {
							fail(fmt.Errorf("a watch stream broke: %w", err))
						}
						return
					}
					load.ReadWatch(buf, func(key []byte, _ int64) {
						if len(key) < 3 || int(key[2]) >= writers {
							return
						}
						w := ws[key[2]]
						if w.seen.Add(1) == w.want.Load() {
							w.all <- struct{}{}
						}
					})
				}
			})
		}
		res, err := loop(ctx, o, cl, writers, func(i int) (load.Operation, error) {
			w := ws[i]
			conn := cs[i%len(cs)]
			request, err := load.Encode(&pb.PutRequest{Key: []byte{'w', '/', byte(i)}, Value: value(valueBytes)})
			if err != nil {
				return nil, err
			}
			put := call(conn, load.MethodPut, request)
			return func(ctx context.Context, n int64) (int, error) {
				w.want.Add(watchers)
				if _, err := put(ctx, n); err != nil {
					if ctx.Err() == nil {
						fail(fmt.Errorf("a put failed, so its events can not be counted: %w", err))
					}
					return 0, err
				}
				select {
				case <-w.all:
					return 0, nil
				case <-ctx.Done():
					return 0, ctx.Err()
				}
			}, nil
		})
		if err != nil {
			return res, err
		}
		// An operation is one event at one watcher.
		res.OpsPerSecond *= watchers
		res.Operations *= watchers
		res.CPUPerThousand /= watchers
		res.ClientCPU /= watchers
		res.WrittenPerOp /= watchers
		return res, nil
	})
}

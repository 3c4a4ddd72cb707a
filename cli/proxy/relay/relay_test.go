package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/cli/proxy/cache"
	"github.com/belaydb/belay/cli/proxy/upstream"
	"github.com/belaydb/belay/rpc"
)

// A fake is a member that answers with its revision, and as a test says.
type fake struct {
	pb.UnimplementedKVServer
	pb.UnimplementedLeaseServer
	pb.UnimplementedMaintenanceServer
	address  string
	revision atomic.Int64
	// value is what Range and Txn answer with.
	value atomic.Pointer[[]byte]
	asked atomic.Int64 // Ranges
	// will, if not nil, is called for each Put, Txn and RangeStream.
	will func(ctx context.Context) error
	away atomic.Bool // LeaseTimeToLive is not answered
	// revoking is told of each LeaseRevoke, which waits until it is given up.
	revoking chan struct{}
}

func newFake(t *testing.T, revision int64, will func(ctx context.Context) error) *fake {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{address: l.Addr().String(), will: will}
	f.revision.Store(revision)
	s := grpc.NewServer()
	pb.RegisterKVServer(s, f)
	pb.RegisterLeaseServer(s, f)
	pb.RegisterMaintenanceServer(s, f)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return f
}

func (f *fake) header() *pb.ResponseHeader { return &pb.ResponseHeader{Revision: f.revision.Load()} }

func (f *fake) answer(ctx context.Context) error {
	if f.will == nil {
		return nil
	}
	return f.will(ctx)
}

func (f *fake) Put(ctx context.Context, _ *pb.PutRequest) (*pb.PutResponse, error) {
	return &pb.PutResponse{Header: f.header()}, f.answer(ctx)
}

func (f *fake) Txn(ctx context.Context, _ *pb.TxnRequest) (*pb.TxnResponse, error) {
	return &pb.TxnResponse{Header: f.header()}, f.answer(ctx)
}

func (f *fake) LeaseRevoke(ctx context.Context, _ *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	f.revoking <- struct{}{}
	<-ctx.Done()
	return nil, ctx.Err()
}

func (f *fake) LeaseTimeToLive(_ context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	if f.away.Load() {
		return nil, status.Error(codes.Unavailable, "away")
	}
	return &pb.LeaseTimeToLiveResponse{Header: &pb.ResponseHeader{}, ID: r.ID}, nil
}

func (f *fake) Range(context.Context, *pb.RangeRequest) (*pb.RangeResponse, error) {
	f.asked.Add(1)
	resp := &pb.RangeResponse{Header: f.header()}
	if v := f.value.Load(); v != nil {
		resp.Kvs, resp.Count = []*mvccpb.KeyValue{{Key: []byte("k"), Value: *v}}, 1
	}
	return resp, nil
}

func (f *fake) RangeStream(_ *pb.RangeRequest, s pb.KV_RangeStreamServer) error {
	if err := f.answer(s.Context()); err != nil {
		return err
	}
	return s.Send(&pb.RangeStreamResponse{RangeResponse: &pb.RangeResponse{Header: f.header()}})
}

func (f *fake) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	return &pb.StatusResponse{Leader: 1}, nil
}

// served is a Relay with its server.
type served struct {
	*Relay
	server interface {
		grpc.ServiceRegistrar
		Serve(net.Listener) error
		GracefulStop()
		Stop()
	}
	conn *grpc.ClientConn // one of a client
}

// overBoth runs a test with a Relay before these members, over each engine.
func overBoth(t *testing.T, test func(t *testing.T, r *served), members ...*fake) {
	for _, engine := range []string{rpc.EngineBelay, rpc.EngineGRPC} {
		t.Run(engine, func(t *testing.T) { test(t, serve(t, engine, members...)) })
	}
}

func serve(t *testing.T, engine string, members ...*fake) *served {
	t.Helper()
	return serveAs(t, engine, Config{Cache: cache.Config{Bytes: 1 << 20, Staleness: time.Second}}, members...)
}

// serveAs is serve with a Config whose Cluster it sets.
func serveAs(t *testing.T, engine string, cfg Config, members ...*fake) *served {
	t.Helper()
	var endpoints []string
	for _, m := range members {
		endpoints = append(endpoints, m.address)
	}
	cluster, err := upstream.New(upstream.Config{}, endpoints)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	eventually(t, "the members are fit", func() bool { return cluster.Fit() == len(members) })
	cfg.Cluster = cluster
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Stop)
	s := &served{Relay: r}
	if engine == rpc.EngineGRPC {
		s.server = grpc.NewServer(r.GRPCOptions()...)
		r.Register(s.server)
	} else {
		var o rpc.Options
		r.RPCOptions(&o)
		own := rpc.New(o)
		r.Register(own)
		r.Hot(own)
		s.server = own
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.server.Serve(l)
	t.Cleanup(s.server.Stop)
	if s.conn, err = grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.conn.Close() })
	return s
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

func rangeOp(serializable bool) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("k"), Serializable: serializable}}}
}

// TestTxnsNeverBack: a transaction that a member answers from what it has is no older than what the
// connection has seen, as a serializable read is not.
func TestTxnsNeverBack(t *testing.T) {
	t.Parallel()
	ahead, behind := newFake(t, 10, nil), newFake(t, 5, nil)
	overBoth(t, func(t *testing.T, r *served) {
		kv := pb.NewKVClient(r.conn)
		for _, request := range []*pb.TxnRequest{
			{Success: []*pb.RequestOp{rangeOp(true)}, Failure: []*pb.RequestOp{rangeOp(true), rangeOp(true)}},
			{Compare: []*pb.Compare{{Key: []byte("k")}}},
		} {
			// A read that may be old, and that one of them does not answer, moves the connection.
			at := func(away *fake) int64 {
				away.away.Store(true)
				_, err := pb.NewLeaseClient(r.conn).LeaseTimeToLive(t.Context(), &pb.LeaseTimeToLiveRequest{ID: 1})
				away.away.Store(false)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := kv.Txn(t.Context(), request)
				if err != nil {
					t.Fatal(err)
				}
				return resp.Header.Revision
			}
			// On a slow machine a member may be taken for unfit meanwhile.
			eventually(t, "a read at the member that is ahead", func() bool { return at(behind) == 10 })
			for range 3 {
				if revision := at(ahead); revision != 10 {
					t.Fatalf("%v: revision %d after 10", request, revision)
				}
			}
		}
	}, ahead, behind)
}

// TestSerializableTxns: which transactions are answered from what one member has, and may be asked for
// twice.
func TestSerializableTxns(t *testing.T) {
	t.Parallel()
	put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k")}}}
	remove := &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("k")}}}
	nested := &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: []*pb.RequestOp{rangeOp(true)}}}}
	ops := func(list ...*pb.RequestOp) []*pb.RequestOp { return list }
	for i, c := range []struct {
		r    *pb.TxnRequest
		want bool
	}{
		{&pb.TxnRequest{}, true},
		{&pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("k")}}}, true},
		{&pb.TxnRequest{Success: ops(rangeOp(true))}, true},
		{&pb.TxnRequest{Failure: ops(rangeOp(true), rangeOp(true))}, true},
		{&pb.TxnRequest{Success: ops(rangeOp(false))}, false},
		{&pb.TxnRequest{Success: ops(rangeOp(true)), Failure: ops(rangeOp(false))}, false},
		{&pb.TxnRequest{Success: ops(rangeOp(true), put)}, false},
		{&pb.TxnRequest{Failure: ops(remove)}, false},
		{&pb.TxnRequest{Success: ops(nested)}, false},
		{&pb.TxnRequest{Success: ops(&pb.RequestOp{})}, false},
	} {
		b, err := proto.Marshal(c.r)
		if err != nil {
			t.Fatal(err)
		}
		if got := serializableTxn(b); got != c.want {
			t.Errorf("%d: %v: %v", i, c.r, got)
		}
		if len(b) > 2 && serializableTxn(b[:len(b)-1]) {
			t.Errorf("%d: what is cut off is taken for whole", i)
		}
		if !c.want {
			continue
		}
		fresh := &pb.TxnRequest{}
		if err := proto.Unmarshal(linearizableTxn(&upstream.Frame{Head: b}).Head, fresh); err != nil {
			t.Fatal(err)
		}
		for _, op := range append(fresh.Success, fresh.Failure...) {
			if op.GetRequestRange().GetSerializable() {
				t.Errorf("%d: asked again it is %v", i, fresh)
			}
		}
	}
	both, err := proto.Marshal(put)
	if err != nil {
		t.Fatal(err)
	}
	first, err := proto.Marshal(rangeOp(true))
	if err != nil {
		t.Fatal(err)
	}
	op := append(first, both...) // of a oneof the last one counts: a put
	if serializableTxn(append([]byte{2<<3 | 2, byte(len(op))}, op...)) {
		t.Error("a put behind a range in one operation is taken for a read")
	}
}

// TestCallsEnd: a call that its client gives up, by itself or by a deadline, ends at the member, and
// the client is told what it would be told there.
func TestCallsEnd(t *testing.T) {
	t.Parallel()
	var came, timed, ended atomic.Int64
	m := newFake(t, 1, func(ctx context.Context) error {
		if _, ok := ctx.Deadline(); ok {
			timed.Add(1)
		}
		came.Add(1)
		<-ctx.Done()
		ended.Add(1)
		return ctx.Err()
	})
	overBoth(t, func(t *testing.T, r *served) {
		kv := pb.NewKVClient(r.conn)
		put := func(ctx context.Context) error {
			_, err := kv.Put(ctx, &pb.PutRequest{Key: []byte("k")})
			return err
		}
		whenOneCame := func(do func()) {
			was := came.Load()
			go func() {
				for came.Load() == was && t.Context().Err() == nil {
					time.Sleep(time.Millisecond)
				}
				do()
			}()
		}
		allEnd := func() {
			t.Helper()
			eventually(t, "the calls end at the member", func() bool { return ended.Load() == came.Load() })
		}
		ctx, cancel := context.WithCancel(t.Context())
		whenOneCame(cancel)
		if err := put(ctx); status.Code(err) != codes.Canceled {
			t.Errorf("given up: %v", err)
		}
		allEnd()
		// On a slow machine the time is over before the call has come to the member.
		for was, timeout := timed.Load(), 50*time.Millisecond; timed.Load() == was; timeout *= 2 {
			if timeout > time.Minute {
				t.Fatal("the member was never told a deadline")
			}
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			if err := put(ctx); status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("out of time: %v", err)
			}
			cancel()
		}
		allEnd()
		// The connection's end ends its calls.
		whenOneCame(func() { r.conn.Close() })
		if err := put(t.Context()); err == nil {
			t.Error("answered nevertheless")
		}
		allEnd()
	}, m)
}

// TestDrain: a call that is forwarded ends before a server that stops in order has stopped, with its
// answer; one that is stopped at once ends the call at the member, too.
func TestDrain(t *testing.T) {
	t.Parallel()
	came, release := make(chan struct{}, 1), make(chan struct{}, 1)
	m := newFake(t, 1, func(ctx context.Context) error {
		came <- struct{}{}
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			came <- struct{}{}
			return ctx.Err()
		}
	})
	for _, engine := range []string{rpc.EngineBelay, rpc.EngineGRPC} {
		for _, graceful := range []bool{true, false} {
			r := serve(t, engine, m)
			answered, stopped := make(chan error, 1), make(chan struct{})
			go func() {
				_, err := pb.NewKVClient(r.conn).Put(t.Context(), &pb.PutRequest{Key: []byte("k")})
				answered <- err
			}()
			<-came
			go func() {
				defer close(stopped)
				if graceful {
					r.server.GracefulStop()
				} else {
					r.server.Stop()
				}
			}()
			if graceful {
				select {
				case <-stopped:
					t.Errorf("%s: stopped in order beside a call that is forwarded", engine)
				case <-time.After(20 * time.Millisecond): // it may come too late to show a fault, and shows none for it
				}
				release <- struct{}{}
				if err := <-answered; err != nil {
					t.Errorf("%s, stopped in order: %v", engine, err)
				}
			} else {
				if err := <-answered; status.Code(err) != codes.Unavailable {
					t.Errorf("%s, stopped at once: %v", engine, err)
				}
				<-came // the member's call has ended
			}
			<-stopped
		}
	}
}

// TestRevokeGivenUp: a revoke whose client has given up may have been done, so that what is known of
// the lease holds no longer.
func TestRevokeGivenUp(t *testing.T) {
	t.Parallel()
	m := newFake(t, 1, nil)
	m.revoking = make(chan struct{}, 1)
	overBoth(t, func(t *testing.T, r *served) {
		// A hub that does not run: what it is told stays in its inbox.
		life := hubLife{who: caller{token: "t"}, clients: 1}
		life.ctx, life.cancel = context.WithCancel(t.Context())
		hub := &keepHub{hubLife: life, relay: r.Relay, inbox: make(chan keepEvent, 100)}
		r.keeping.mu.Lock()
		r.keeping.of[life.who] = hub
		r.keeping.mu.Unlock()
		const revokes = 20
		for range revokes {
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-m.revoking; cancel() }()
			if _, err := pb.NewLeaseClient(r.conn).LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 7}); err == nil {
				t.Fatal("it was to be given up")
			}
		}
		eventually(t, "each revoke is told", func() bool { return len(hub.inbox) == revokes })
	}, m)
}

// TestMetadataPasses: what goes with a call and with its answer passes, in both directions, and with
// errors; what is about one connection does not.
func TestMetadataPasses(t *testing.T) {
	t.Parallel()
	m := newFake(t, 1, nil)
	m.will = func(ctx context.Context) error {
		in, _ := metadata.FromIncomingContext(ctx)
		if len(in["content-length"]) > 0 {
			return status.Errorf(codes.Internal, "content-length %v", in["content-length"])
		}
		if err := grpc.SetHeader(ctx, metadata.MD{"x-header": in["x-in"]}); err != nil {
			return err
		}
		if err := grpc.SetTrailer(ctx, metadata.Pairs("x-trailer-bin", "\x00\xff")); err != nil {
			return err
		}
		if len(in["x-fail"]) > 0 {
			return status.Error(codes.DataLoss, "as told")
		}
		return nil
	}
	put := func(ctx context.Context, kv pb.KVClient, o ...grpc.CallOption) error {
		_, err := kv.Put(ctx, &pb.PutRequest{Key: []byte("k")}, o...)
		return err
	}
	stream := func(ctx context.Context, kv pb.KVClient, o ...grpc.CallOption) error {
		s, err := kv.RangeStream(ctx, &pb.RangeRequest{Key: []byte("k")}, o...)
		for err == nil {
			_, err = s.Recv()
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
	overBoth(t, func(t *testing.T, r *served) {
		kv := pb.NewKVClient(r.conn)
		for i := range 4 {
			call, failing := put, i%2 == 1
			if i >= 2 {
				call = stream
			}
			md := metadata.Pairs("x-in", "one", "x-in", "two", "content-length", "8")
			if failing {
				md.Set("x-fail", "1")
			}
			var header, trailer metadata.MD
			err := call(metadata.NewOutgoingContext(t.Context(), md), kv, grpc.Header(&header), grpc.Trailer(&trailer))
			if want := map[bool]codes.Code{false: codes.OK, true: codes.DataLoss}[failing]; status.Code(err) != want {
				t.Errorf("%v, want %v", err, want)
			}
			if got := strings.Join(header.Get("x-header"), " "); got != "one two" {
				t.Errorf("header %q (%v)", got, err)
			}
			if got := strings.Join(trailer.Get("x-trailer-bin"), " "); got != "\x00\xff" {
				t.Errorf("trailer %q (%v)", got, err)
			}
		}
	}, m)
}

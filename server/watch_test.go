package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	encodingproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/rpc"
	"github.com/belaydb/belay/watch"
)

// watchedKV is a store of keys in memory that notifies a hub: as much of mvcc and
// of the KV service as watches, elections and locks need.
type watchedKV struct {
	mu      sync.Mutex
	hub     *watch.Hub
	revs    [][]*mvccpb.Event // revs[i] is revision i+2
	keys    map[string]*mvccpb.KeyValue
	compact int64
	leases  int64
	fail    func(req proto.Message) error // asked before each request
}

func newWatchedKV(t testing.TB, o watch.Options) *watchedKV {
	kv := &watchedKV{keys: map[string]*mvccpb.KeyValue{}}
	kv.hub = watch.NewHub(kv, o)
	t.Cleanup(kv.hub.Close)
	return kv
}

func (kv *watchedKV) Revision() int64 {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	return kv.rev()
}

func (kv *watchedKV) rev() int64 { return int64(len(kv.revs)) + 1 }

func (kv *watchedKV) CompactRevision() int64 {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	return kv.compact
}

func (kv *watchedKV) Events(_ context.Context, from, to int64, _ int, _ func([]byte) bool, fn func(int64, []*mvccpb.Event) error) (int64, error) {
	kv.mu.Lock()
	revs := kv.revs
	kv.mu.Unlock()
	for from = max(from, 2); from <= to && from-2 < int64(len(revs)); from++ {
		if err := fn(from, revs[from-2]); err != nil {
			return from, err
		}
	}
	return from, nil
}

func (kv *watchedKV) PrevKV(ev *mvccpb.Event) (prev *mvccpb.KeyValue, _ error) {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	if ev.Kv.ModRevision-1 < kv.compact {
		return nil, nil
	}
	for _, evs := range kv.revs[:ev.Kv.ModRevision-2] {
		for _, e := range evs {
			if bytes.Equal(e.Kv.Key, ev.Kv.Key) {
				if prev = e.Kv; e.Type == mvccpb.Event_DELETE {
					prev = nil
				}
			}
		}
	}
	return prev, nil
}

func (kv *watchedKV) header() *pb.ResponseHeader {
	return &pb.ResponseHeader{Revision: kv.rev(), ClusterId: 1, MemberId: 2, RaftTerm: 3}
}

// apply runs ops as one transaction. REQUIRES: mu held.
func (kv *watchedKV) apply(ops []*pb.RequestOp) (out []*pb.ResponseOp) {
	rev := kv.rev() + 1
	var evs []*mvccpb.Event
	for _, op := range ops {
		switch r := op.Request.(type) {
		case *pb.RequestOp_RequestPut:
			p := r.RequestPut
			n := &mvccpb.KeyValue{Key: p.Key, Value: p.Value, Lease: p.Lease, CreateRevision: rev, ModRevision: rev, Version: 1}
			if old := kv.keys[string(p.Key)]; old != nil {
				n.CreateRevision, n.Version = old.CreateRevision, old.Version+1
			}
			kv.keys[string(p.Key)] = n
			evs = append(evs, &mvccpb.Event{Kv: n})
			out = append(out, &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{}}})
		case *pb.RequestOp_RequestDeleteRange:
			d := &pb.DeleteRangeResponse{}
			for _, old := range kv.find(r.RequestDeleteRange.Key, r.RequestDeleteRange.RangeEnd) {
				delete(kv.keys, string(old.Key))
				evs = append(evs, &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: old.Key, ModRevision: rev}})
				d.Deleted++
			}
			out = append(out, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: d}})
		case *pb.RequestOp_RequestRange:
			q := r.RequestRange
			got := kv.find(q.Key, q.RangeEnd)
			got = slicesFilter(got, func(k *mvccpb.KeyValue) bool {
				return q.MaxCreateRevision == 0 || k.CreateRevision <= q.MaxCreateRevision
			})
			sort.Slice(got, func(i, j int) bool {
				return (got[i].CreateRevision < got[j].CreateRevision) == (q.SortOrder != pb.RangeRequest_DESCEND)
			})
			if q.Limit > 0 && int64(len(got)) > q.Limit {
				got = got[:q.Limit]
			}
			out = append(out, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: &pb.RangeResponse{Kvs: got}}})
		}
	}
	if len(evs) > 0 {
		kv.revs = append(kv.revs, evs)
		kv.hub.Notify(rev, evs)
	}
	return out
}

func slicesFilter(in []*mvccpb.KeyValue, keep func(*mvccpb.KeyValue) bool) (out []*mvccpb.KeyValue) {
	for _, k := range in {
		if keep(k) {
			out = append(out, k)
		}
	}
	return out
}

func (kv *watchedKV) find(key, end []byte) (out []*mvccpb.KeyValue) {
	for k, v := range kv.keys {
		if k == string(key) || len(end) > 0 && k >= string(key) && k < string(end) {
			out = append(out, v)
		}
	}
	sort.Slice(out, func(i, j int) bool { return string(out[i].Key) < string(out[j].Key) })
	return out
}

func (kv *watchedKV) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	if err := kv.check(ctx, r); err != nil {
		return nil, err
	}
	resp := &pb.TxnResponse{Succeeded: true}
	for _, c := range r.Compare {
		if len(c.Key) == 0 {
			return nil, rpctypes.ErrGRPCEmptyKey
		}
		var created int64
		if k := kv.keys[string(c.Key)]; k != nil {
			created = k.CreateRevision
		}
		resp.Succeeded = resp.Succeeded && created == c.GetCreateRevision()
	}
	ops := r.Failure
	if resp.Succeeded {
		ops = r.Success
	}
	resp.Responses = kv.apply(ops)
	resp.Header = kv.header()
	return resp, nil
}

func (kv *watchedKV) check(ctx context.Context, r proto.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if kv.fail != nil {
		return kv.fail(r)
	}
	return nil
}

func (kv *watchedKV) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	if err := kv.check(ctx, r); err != nil {
		return nil, err
	}
	resp := kv.apply([]*pb.RequestOp{rangeOp(r)})[0].GetResponseRange()
	resp.Header = kv.header()
	return resp, nil
}

func (kv *watchedKV) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	if err := kv.check(ctx, r); err != nil {
		return nil, err
	}
	if len(r.Key) == 0 {
		return nil, rpctypes.ErrGRPCEmptyKey
	}
	resp := kv.apply([]*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: r}}})[0].GetResponseDeleteRange()
	resp.Header = kv.header()
	return resp, nil
}

func (kv *watchedKV) put(key, value string) int64 {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	kv.apply([]*pb.RequestOp{putOp([]byte(key), []byte(value), 0)})
	return kv.rev()
}

func (kv *watchedKV) del(key string) {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	kv.apply([]*pb.RequestOp{deleteOp([]byte(key))})
}

// serveServices serves what register registers and returns a connection to it.
func serveServices(t testing.TB, register func(grpc.ServiceRegistrar), opts ...grpc.ServerOption) *grpc.ClientConn {
	if ownEngine() && len(opts) == 0 {
		return serveOn(t, rpc.New(rpc.Options{Codec: encoding.GetCodecV2(encodingproto.Name)}), register)
	}
	return serveOn(t, grpc.NewServer(opts...), register)
}

// serveMember is serveServices for all of a member's.
func serveMember(t testing.TB, s *Server, opts ...grpc.DialOption) *grpc.ClientConn {
	if ownEngine() {
		return serveOn(t, rpc.New(s.RPCOptions()), s.RegisterGRPC, opts...)
	}
	return serveOn(t, grpc.NewServer(s.GRPCOptions()...), s.RegisterGRPC, opts...)
}

// fixedWindows has a client offer no more than it says, however fast the connection is; else grpc-go
// measures it, and offers up to 16 MiB.
func fixedWindows() grpc.DialOption { return grpc.WithInitialConnWindowSize(1 << 16) }

// ownEngine: BELAY_RPC_ENGINE=grpc-go runs this package's tests over grpc-go's server.
func ownEngine() bool { return os.Getenv("BELAY_RPC_ENGINE") != "grpc-go" }

// callServer is what the services are registered with and served by.
type callServer interface {
	grpc.ServiceRegistrar
	Serve(net.Listener) error
	Stop()
}

func serveOn(t testing.TB, g callServer, register func(grpc.ServiceRegistrar), opts ...grpc.DialOption) *grpc.ClientConn {
	l := bufconn.Listen(1 << 16)
	register(g)
	go func() { _ = g.Serve(l) }()
	cc, err := grpc.NewClient("passthrough:///bufconn", append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close(); g.Stop() })
	return cc
}

func watchTestConfig(kv *watchedKV) watchConfig {
	return watchConfig{
		Hub: kv.hub, ClusterID: 1, MemberID: 2, Term: func() uint64 { return 3 }, ProgressInterval: time.Hour,
		MaxRequestBytes: 1 << 20,
		Rights:          func(context.Context) rights { return keyRights{} },
	}
}

// keyRights go by keys alone, and never change.
type keyRights struct{}

func (keyRights) admit(key, _ []byte, begin func()) error {
	switch {
	case bytes.HasPrefix(key, []byte("secret")):
		return rpctypes.ErrGRPCPermissionDenied
	case bytes.HasPrefix(key, []byte("old-token")):
		return rpctypes.ErrGRPCInvalidAuthToken
	case bytes.HasPrefix(key, []byte("odd")):
		return errors.New("odd")
	}
	begin()
	return nil
}

func (keyRights) replaced() <-chan struct{} { return nil }

func (keyRights) review(func() []watch.Range, func(int64, error)) {}

// streamTimeout is how long a test waits for what must come.
const streamTimeout = 10 * time.Second

// watchTester is a client's stream.
type watchTester struct {
	pb.Watch_WatchClient
	t      testing.TB
	cancel context.CancelFunc
}

func openWatch(t testing.TB, cc *grpc.ClientConn) *watchTester {
	ctx, cancel := context.WithTimeout(t.Context(), 4*streamTimeout)
	st, err := pb.NewWatchClient(cc).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cancel)
	return &watchTester{Watch_WatchClient: st, t: t, cancel: cancel}
}

func (w *watchTester) create(r *pb.WatchCreateRequest) {
	w.t.Helper()
	w.request(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}})
}

func (w *watchTester) request(r *pb.WatchRequest) {
	w.t.Helper()
	if err := w.Send(r); err != nil {
		w.t.Fatal(err)
	}
}

func (w *watchTester) recv() *pb.WatchResponse {
	w.t.Helper()
	r, err := w.Recv()
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// TestWatchScenarios runs testdata/watch over grpc. Commands: put and del (keys,
// one revision each); compact R; stream NAME; create NAME with the fields of the
// request; cancel NAME id=I; progress NAME; odd NAME (a request of no known kind);
// closesend NAME; recv NAME [n]; end NAME (the client cancels its call).
func TestWatchScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata/watch", func(t *testing.T, path string) {
		kv := newWatchedKV(t, watch.Options{})
		cc := serveServices(t, func(g grpc.ServiceRegistrar) { pb.RegisterWatchServer(g, newWatchServer(watchTestConfig(kv))) })
		streams := map[string]*watchTester{}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var out strings.Builder
			name := ""
			if len(d.CmdArgs) > 0 {
				name = d.CmdArgs[0].Key
			}
			arg := func(name string) (n int64) {
				if d.HasArg(name) {
					d.ScanArgs(t, name, &n)
				}
				return n
			}
			text := func(name string) (s string) {
				if d.HasArg(name) {
					d.ScanArgs(t, name, &s)
				}
				if s == "zero" {
					s = "\x00"
				}
				return s
			}
			st := streams[name]
			switch d.Cmd {
			case "put":
				for _, f := range strings.Fields(d.Input) {
					k, v, _ := strings.Cut(f, "=")
					kv.put(k, v)
				}
			case "del":
				for _, k := range strings.Fields(d.Input) {
					kv.del(k)
				}
			case "compact":
				kv.mu.Lock()
				kv.compact = arg("rev")
				kv.mu.Unlock()
			case "stream":
				streams[name] = openWatch(t, cc)
			case "create":
				r := &pb.WatchCreateRequest{
					Key: []byte(text("key")), RangeEnd: []byte(text("end")), StartRevision: arg("start"), WatchId: arg("id"),
					PrevKv: d.HasArg("prev"), ProgressNotify: d.HasArg("progress"), Fragment: d.HasArg("fragment"),
				}
				if d.HasArg("noput") {
					r.Filters = append(r.Filters, pb.WatchCreateRequest_NOPUT)
				}
				if d.HasArg("nodelete") {
					r.Filters = append(r.Filters, 77, pb.WatchCreateRequest_NODELETE)
				}
				st.create(r)
			case "cancel":
				st.request(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: arg("id")}}})
			case "progress":
				st.request(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
			case "odd":
				st.request(&pb.WatchRequest{})
			case "closesend":
				if err := st.CloseSend(); err != nil {
					t.Fatal(err)
				}
			case "recv":
				for range max(1, arg("n")) {
					fmt.Fprintln(&out, showWatch(st.recv()))
				}
			case "end":
				st.cancel()
				for {
					if _, err := st.Recv(); err != nil {
						fmt.Fprintln(&out, status.Code(err))
						break
					}
				}
			default:
				t.Fatalf("unknown command %s", d.Cmd)
			}
			return out.String()
		})
	})
}

func showWatch(r *pb.WatchResponse) string {
	var b strings.Builder
	h := r.Header
	fmt.Fprintf(&b, "id %d rev %d", r.WatchId, h.GetRevision())
	if h.GetClusterId() != 1 || h.GetMemberId() != 2 || h.GetRaftTerm() != 3 {
		fmt.Fprintf(&b, " header %v", h)
	}
	if r.Created {
		b.WriteString(" created")
	}
	if r.Canceled {
		b.WriteString(" canceled")
	}
	if r.CancelReason != "" {
		fmt.Fprintf(&b, " %q", r.CancelReason)
	}
	if r.CompactRevision != 0 {
		fmt.Fprintf(&b, " compact %d", r.CompactRevision)
	}
	if r.Fragment {
		b.WriteString(" fragment")
	}
	for _, ev := range r.Events {
		fmt.Fprintf(&b, "\n  %v %s=%s create %d mod %d version %d", ev.Type, ev.Kv.Key, ev.Kv.Value, ev.Kv.CreateRevision, ev.Kv.ModRevision, ev.Kv.Version)
		if p := ev.PrevKv; p != nil {
			fmt.Fprintf(&b, " was %s of %d", p.Value, p.ModRevision)
		}
	}
	return b.String()
}

// TestWatchFragments: responses are cut where etcd cuts them, and only for those who asked.
func TestWatchFragments(t *testing.T) {
	kv := newWatchedKV(t, watch.Options{})
	cfg := watchTestConfig(kv)
	cfg.MaxRequestBytes = 10<<10 - recvOverheadBytes // cut at 10 KiB
	cc := serveServices(t, func(g grpc.ServiceRegistrar) { pb.RegisterWatchServer(g, newWatchServer(cfg)) })
	st := openWatch(t, cc)
	st.create(&pb.WatchCreateRequest{Key: []byte("k"), RangeEnd: []byte("l"), Fragment: true, WatchId: 1})
	st.recv()

	var ops []*pb.RequestOp
	for i := range 50 {
		ops = append(ops, putOp(fmt.Appendf(nil, "k%02d", i), make([]byte, i*37), 0))
	}
	ops = append(ops, putOp([]byte("k99"), make([]byte, 30<<10), 0)) // larger than the bound by itself
	if _, err := kv.Txn(t.Context(), &pb.TxnRequest{Success: ops}); err != nil {
		t.Fatal(err)
	}
	var got []*mvccpb.Event
	parts := 0
	for {
		r := st.recv()
		parts++
		if r.Header.Revision != 2 || r.WatchId != 1 {
			t.Fatalf("fragment of watcher %d with revision %d", r.WatchId, r.Header.Revision)
		}
		if size := proto.Size(r); size >= 10<<10 && len(r.Events) > 1 {
			t.Errorf("a fragment of %d bytes and %d events", size, len(r.Events))
		}
		got = append(got, r.Events...)
		if !r.Fragment {
			break
		}
		// It is full: the next event would not have fitted.
		if next := kv.revs[0][len(got)]; proto.Size(r)+proto.Size(next)+3 < 10<<10 {
			t.Errorf("a fragment of only %d bytes", proto.Size(r))
		}
	}
	if parts < 3 || len(got) != len(ops) {
		t.Fatalf("%d events in %d parts", len(got), parts)
	}
	for i, ev := range got {
		if !proto.Equal(ev, kv.revs[0][i]) {
			t.Fatalf("event %d is wrong", i)
		}
	}

	plain := openWatch(t, cc)
	plain.create(&pb.WatchCreateRequest{Key: []byte("k"), RangeEnd: []byte("l"), StartRevision: 2})
	plain.recv()
	if r := plain.recv(); len(r.Events) != len(ops) || r.Fragment {
		t.Fatalf("%d events, fragment %v", len(r.Events), r.Fragment)
	}
}

// TestWatchManyOnOneStream: a thousand watchers on a stream that is read slowly lose nothing.
func TestWatchManyOnOneStream(t *testing.T) {
	kv := newWatchedKV(t, watch.Options{StreamBytes: 20 << 10})
	cc := serveServices(t, func(g grpc.ServiceRegistrar) { pb.RegisterWatchServer(g, newWatchServer(watchTestConfig(kv))) })
	st := openWatch(t, cc)
	const watchers, writes = 1000, 300
	var wg sync.WaitGroup
	wg.Go(func() { // the client sends more than it reads for a while: that must not lock up
		for i := range watchers {
			st.create(&pb.WatchCreateRequest{Key: fmt.Appendf(nil, "k%d", i%10), WatchId: int64(i + 1), StartRevision: 1})
		}
	})
	wg.Go(func() {
		for i := range writes {
			kv.put(fmt.Sprintf("k%d", i%10), "v")
		}
	})
	wg.Wait()
	created := map[int64]bool{}
	last := map[int64]int64{}
	count := 0
	for count < watchers*writes/10 {
		r := st.recv()
		switch {
		case r.Created:
			created[r.WatchId] = true
		case !created[r.WatchId]:
			t.Fatal("events before created")
		default:
			for _, ev := range r.Events {
				if ev.Kv.ModRevision <= last[r.WatchId] {
					t.Fatalf("watcher %d: revision %d after %d", r.WatchId, ev.Kv.ModRevision, last[r.WatchId])
				}
				last[r.WatchId] = ev.Kv.ModRevision
				count++
			}
		}
	}
	if len(created) != watchers || len(last) != watchers {
		t.Fatalf("%d created, %d with events", len(created), len(last))
	}
}

// TestWatchProgressNotify: an idle watcher that asked is told at the interval.
func TestWatchProgressNotify(t *testing.T) {
	kv := newWatchedKV(t, watch.Options{})
	cfg := watchTestConfig(kv)
	cfg.ProgressInterval = time.Nanosecond // becomes the least allowed
	cc := serveServices(t, func(g grpc.ServiceRegistrar) { pb.RegisterWatchServer(g, newWatchServer(cfg)) })
	st := openWatch(t, cc)
	rev := kv.put("x", "1")
	st.create(&pb.WatchCreateRequest{Key: []byte("k"), ProgressNotify: true})
	st.create(&pb.WatchCreateRequest{Key: []byte("k")})
	for created := 0; created < 2; { // a notification may come between
		if st.recv().Created {
			created++
		}
	}
	start := time.Now()
	for range 3 {
		if r := st.recv(); r.WatchId != 0 || r.Header.Revision != rev || len(r.Events) != 0 || r.Created || r.Canceled {
			t.Fatalf("got %v", r)
		}
	}
	if d := time.Since(start); d < 2*minProgressInterval {
		t.Errorf("three notifications in %v", d)
	}
}

// endedStream is a stream whose context the server ends for its own reason.
type endedStream struct {
	grpc.ServerStream
	ctx *reasonContext
}

func (s endedStream) Context() context.Context { return s.ctx }

type reasonContext struct {
	context.Context
	done   chan struct{}
	reason atomic.Pointer[error]
}

func (c *reasonContext) Done() <-chan struct{} { return c.done }

func (c *reasonContext) Err() error {
	if e := c.reason.Load(); e != nil {
		return *e
	}
	return c.Context.Err()
}

// TestWatchNoLeader: a stream that the server ends says why, though the client
// neither sends nor stops.
func TestWatchNoLeader(t *testing.T) {
	kv := newWatchedKV(t, watch.Options{})
	opened := make(chan *reasonContext, 1)
	cc := serveServices(t, func(g grpc.ServiceRegistrar) { pb.RegisterWatchServer(g, newWatchServer(watchTestConfig(kv))) },
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			c := &reasonContext{Context: ss.Context(), done: make(chan struct{})}
			opened <- c
			return h(srv, endedStream{ss, c})
		}))
	st := openWatch(t, cc)
	st.create(&pb.WatchCreateRequest{Key: []byte("k")})
	st.recv()
	c := <-opened
	reason := rpctypes.ErrGRPCNoLeader
	c.reason.Store(&reason)
	close(c.done)
	_, err := st.Recv()
	if status.Code(err) != codes.Unavailable || status.Convert(err).Message() != "etcdserver: no leader" {
		t.Fatalf("stream ended with %v", err)
	}
}

// TestWatchStreamEndsFree: what a stream took is given back when its client goes.
func TestWatchStreamEndsFree(t *testing.T) {
	kv := newWatchedKV(t, watch.Options{})
	returned := make(chan error, 1)
	cc := serveServices(t, func(g grpc.ServiceRegistrar) { pb.RegisterWatchServer(g, newWatchServer(watchTestConfig(kv))) },
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			err := h(srv, ss)
			returned <- err
			return err
		}))
	st := openWatch(t, cc)
	for range 10 {
		st.create(&pb.WatchCreateRequest{Key: []byte("k"), StartRevision: 1})
	}
	st.recv()
	st.cancel()
	if err := <-returned; !errors.Is(err, rpctypes.ErrGRPCWatchCanceled) {
		t.Fatalf("handler returned %v", err)
	}
	for {
		if _, err := st.Recv(); errors.Is(err, io.EOF) {
			t.Fatal("the stream ended without an error")
		} else if err != nil {
			break // after what was under way
		}
	}
}

// BenchmarkWatchFanOut is the whole way of a put's event to the clients of many
// streams, over grpc in memory; clients included.
func BenchmarkWatchFanOut(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("streams=%d", n), func(b *testing.B) {
			kv := newWatchedKV(b, watch.Options{})
			cc := serveServices(b, func(g grpc.ServiceRegistrar) { pb.RegisterWatchServer(g, newWatchServer(watchTestConfig(kv))) })
			var got sync.WaitGroup
			for range n {
				st := openWatchBench(b, cc)
				st.create(&pb.WatchCreateRequest{Key: []byte("k")})
				st.recv()
				go func() {
					for {
						r, err := st.Recv()
						if err != nil {
							return
						}
						got.Add(-len(r.Events))
					}
				}()
			}
			value := strings.Repeat("v", 256)
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				got.Add(n)
				kv.put("k", value)
				got.Wait()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/event")
		})
	}
}

func openWatchBench(b *testing.B, cc *grpc.ClientConn) *watchTester {
	ctx, cancel := context.WithCancel(context.Background())
	st, err := pb.NewWatchClient(cc).Watch(ctx)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(cancel)
	return &watchTester{Watch_WatchClient: st, t: b, cancel: cancel}
}

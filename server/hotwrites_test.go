package server

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/rpc"
	"github.com/belaydb/belay/state"
)

// since is what is counted beyond what was.
func (m *member) since(was map[string]float64) map[string]float64 {
	return beyond(m.counted(), was)
}

// beyond is what was counted between was and now.
func beyond(now, was map[string]float64) map[string]float64 {
	more := make(map[string]float64)
	for name, v := range now {
		if v != was[name] {
			more[name] = v - was[name]
		}
	}
	return more
}

// TestHotWrites writes the same to two members, one over grpc-go and one over Belay's own server:
// answers, errors and what is counted are the same, and the writes that should be are proposed
// without a goroutine.
func TestHotWrites(t *testing.T) {
	t.Parallel()
	limited := func(c *Config, _ *state.Config) { c.MaxTxnOps = 4 }
	both := []*member{newMember(t, limited), newMember(t, limited)}
	kvs := []pb.KVClient{
		pb.NewKVClient(serveOn(t, grpc.NewServer(both[0].GRPCOptions()...), both[0].RegisterGRPC)),
		pb.NewKVClient(serveOn(t, rpc.New(both[1].RPCOptions()), both[1].RegisterGRPC)),
	}
	plain := t.Context()
	wants := metadata.AppendToOutgoingContext(plain, rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader, rpctypes.MetadataClientAPIVersionKey, "3.7")
	odd := metadata.AppendToOutgoingContext(plain, rpctypes.MetadataClientAPIVersionKey+"-bin", "\xff")
	later, cancel := context.WithTimeout(plain, time.Hour)
	defer cancel()
	put := func(key string, edit ...func(*pb.PutRequest)) *pb.PutRequest {
		r := &pb.PutRequest{Key: []byte(key), Value: []byte("value of " + key)}
		for _, f := range edit {
			f(r)
		}
		return r
	}
	withPrev := func(r *pb.PutRequest) { r.PrevKv = true }
	del := func(key, end string, prev bool) *pb.DeleteRangeRequest {
		return &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end), PrevKv: prev}
	}
	get := func(key, end string) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key), RangeEnd: []byte(end)}}}
	}
	puts := func(keys ...string) (ops []*pb.RequestOp) {
		for _, key := range keys {
			ops = append(ops, putOp([]byte(key), []byte("by a transaction"), 0))
		}
		return ops
	}
	fails := func(err error) func(*member) {
		return func(m *member) { m.replica.set(func(r *solo) { r.proposeErr = err }) }
	}
	leader := func(id uint64) func(*member) { return func(m *member) { m.replica.setLeader(id, 0) } }
	const full = 1 << 30
	for _, c := range []struct {
		name          string
		ctx           context.Context
		before, after func(*member)
		req           proto.Message
		hot           int64 // proposals without a goroutine
	}{
		{name: "put", req: put("a"), hot: 1},
		{name: "put again", req: put("a", withPrev), hot: 1},
		{name: "nothing before", req: put("b", withPrev), hot: 1},
		{name: "with a deadline", ctx: later, req: put("a"), hot: 1},
		{name: "with a leader", ctx: wants, req: put("a"), hot: 1},
		{name: "an odd header", ctx: odd, req: put("a"), hot: 1},
		{name: "no value", req: put("c", func(r *pb.PutRequest) { r.Value = nil }), hot: 1},
		{name: "ignore value", req: put("a", func(r *pb.PutRequest) { r.Value, r.IgnoreValue = nil, true }), hot: 1},
		{name: "ignore the value of nothing", req: put("n", func(r *pb.PutRequest) { r.Value, r.IgnoreValue = nil, true }), hot: 1},
		{name: "ignore value with one", req: put("a", func(r *pb.PutRequest) { r.IgnoreValue = true })},
		{name: "ignore lease with one", req: put("a", func(r *pb.PutRequest) { r.IgnoreLease, r.Lease = true, 1 })},
		{name: "no lease", req: put("a", func(r *pb.PutRequest) { r.Lease = 77 }), hot: 1},
		{name: "no key", req: put("")},
		{name: "long key", req: put(strings.Repeat("k", DefaultKeyBytes+1))},
		{name: "large", req: put("large", func(r *pb.PutRequest) { r.Value = make([]byte, 100<<10) })},
		{name: "large before", req: put("large", withPrev), hot: 1},
		{name: "raft fails", before: fails(replica.ErrTimeout), after: fails(nil), req: put("a"), hot: 1},
		{name: "raft is busy", before: fails(replica.ErrTooManyRequests), after: fails(nil), req: put("a"), hot: 1},
		{name: "raft has stopped", before: fails(replica.ErrStopped), after: fails(nil), req: put("a"), hot: 1},
		{name: "no room", before: func(m *member) { must(t, m.cfg.Admission.Enter(full, false)) }, after: func(m *member) { m.cfg.Admission.Leave(full) }, req: put("a")},
		{name: "no leader", ctx: wants, before: leader(0), after: leader(testMember), req: put("a")},
		{name: "delete", req: del("b", "", false), hot: 1},
		{name: "delete nothing", req: del("b", "", false), hot: 1},
		{name: "delete with what was there", req: del("c", "", true), hot: 1},
		{name: "delete a range", req: del("x", "z", false), hot: 1},
		{name: "delete a range with what was there", req: del("x", "z", true)},
		{name: "delete without a key", req: del("", "", false)},
		{name: "txn", req: &pb.TxnRequest{Success: puts("a", "t"), Failure: []*pb.RequestOp{get("a", "")}}, hot: 1},
		{name: "txn that compares", req: &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("a"), Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{Version: 99}}},
			Success: puts("a"), Failure: []*pb.RequestOp{get("a", ""), get("large", "")}}, hot: 1},
		{name: "txn in a txn", req: &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: puts("u")}}}}}, hot: 1},
		{name: "txn that puts twice", req: &pb.TxnRequest{Success: puts("a", "a")}},
		{name: "txn with too much", req: &pb.TxnRequest{Success: puts("a", "b", "c", "d", "e")}},
		{name: "txn without a key", req: &pb.TxnRequest{Success: puts("")}},
		{name: "txn with a range", req: &pb.TxnRequest{Success: append(puts("a"), get("a", "z"))}},
		{name: "txn that reads", req: &pb.TxnRequest{Success: []*pb.RequestOp{get("a", "")}}},
		{name: "empty txn", req: &pb.TxnRequest{}},
	} {
		ctx := c.ctx
		if ctx == nil {
			ctx = plain
		}
		var answers [2]string
		var counted [2]map[string]float64
		for i, m := range both {
			if c.before != nil {
				c.before(m)
			}
			was, hot := m.counted(), m.replica.hot.Load()
			answers[i] = ask(ctx, kvs[i], c.req)
			counted[i] = m.since(was)
			if n := m.replica.hot.Load() - hot; n != c.hot*int64(i) {
				t.Errorf("%s: %d proposals without a goroutine, want %d", c.name, n, c.hot*int64(i))
			}
			if c.after != nil {
				c.after(m)
			}
		}
		if answers[0] != answers[1] {
			t.Errorf("%s: ours %.200s, grpc-go's %.200s", c.name, answers[1], answers[0])
		}
		if !maps.Equal(counted[0], counted[1]) {
			t.Errorf("%s: ours counts %v, grpc-go's %v", c.name, counted[1], counted[0])
		}
	}
	for _, m := range both {
		if n := m.cfg.Admission.InFlight(); n != 0 {
			t.Errorf("%d bytes are in flight when all has been answered", n)
		}
	}
}

// ask makes a request of KV and returns the answer, or the error, as text.
func ask(ctx context.Context, kv pb.KVClient, req proto.Message) string {
	var resp proto.Message
	var err error
	switch r := req.(type) {
	case *pb.PutRequest:
		resp, err = kv.Put(ctx, r)
	case *pb.DeleteRangeRequest:
		resp, err = kv.DeleteRange(ctx, r)
	case *pb.TxnRequest:
		resp, err = kv.Txn(ctx, r)
	case *pb.RangeRequest:
		resp, err = kv.Range(ctx, r)
	}
	if err != nil {
		return err.Error()
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(resp)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%x", b)
}

// TestHotWritesGivenUp: a write that its client cancels, or whose deadline passes, ends as it does
// with a handler, and leaves nothing behind.
func TestHotWritesGivenUp(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		wait time.Duration // 0: it is cancelled; long enough to be proposed within
		want codes.Code
	}{{"cancelled", 0, codes.Canceled}, {"late", time.Second, codes.DeadlineExceeded}} {
		var counted [2]map[string]float64
		for i, m := range []*member{newMember(t), newMember(t)} {
			m.replica.set(func(r *solo) { r.kept = make(map[uint64]replica.Completion) })
			var server callServer = grpc.NewServer(m.GRPCOptions()...)
			if i == 1 {
				server = rpc.New(m.RPCOptions())
			}
			kv := pb.NewKVClient(serveOn(t, server, m.RegisterGRPC))
			was := m.counted()
			ctx, cancel := context.WithCancel(t.Context())
			if c.wait > 0 {
				ctx, cancel = context.WithTimeout(t.Context(), c.wait)
			}
			if c.wait == 0 {
				go func() {
					for m.cfg.Admission.InFlight() == 0 && ctx.Err() == nil {
						time.Sleep(time.Millisecond)
					}
					cancel()
				}()
			}
			_, err := kv.Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: []byte("v")})
			cancel()
			// A client whose timer is late hears the server's answer to the same deadline.
			if code := status.Code(err); code != c.want && (c.wait == 0 || code != codes.Unavailable) {
				t.Errorf("%s: %v", c.name, err)
			}
			waitUntil(t, "it has left", func() bool { return m.cfg.Admission.InFlight() == 0 })
			waitUntil(t, "it is counted", func() bool {
				ended := false
				counted[i] = make(map[string]float64)
				for name, n := range m.since(was) {
					ended = ended || strings.HasPrefix(name, "grpc_server_handled_total")
					if c.wait > 0 { // the client ends the call at the same time as the server
						name = strings.Replace(name, codes.Canceled.String(), codes.Unavailable.String(), 1)
					}
					counted[i][name] += n
				}
				return ended
			})
			if i == 1 && m.replica.hot.Load() != 1 {
				t.Error("it was proposed with a goroutine")
			}
		}
		if !maps.Equal(counted[0], counted[1]) {
			t.Errorf("%s: ours counts %v, grpc-go's %v", c.name, counted[1], counted[0])
		}
	}
}

// TestEndedWrites: whatever is pushed is answered, once, beside others that push.
func TestEndedWrites(t *testing.T) {
	t.Parallel()
	m := newMember(t)
	kv := pb.NewKVClient(serveOn(t, rpc.New(m.RPCOptions()), m.RegisterGRPC))
	var clients sync.WaitGroup
	for c := range 16 {
		clients.Go(func() {
			for i := range 50 {
				if _, err := kv.Put(t.Context(), &pb.PutRequest{Key: fmt.Appendf(nil, "%d/%d", c, i)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	clients.Wait()
	if n := m.replica.hot.Load(); n != 16*50 {
		t.Errorf("%d proposals without a goroutine", n)
	}
	if got, err := kv.Range(t.Context(), &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, CountOnly: true}); err != nil || got.Count != 16*50 {
		t.Errorf("%v keys: %v", got, err)
	}
}

// waitUntil waits for a condition, with a deadline that only a failure meets.
func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

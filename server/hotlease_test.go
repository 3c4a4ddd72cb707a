package server

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/rpc"
	"github.com/belaydb/belay/state"
)

// trustsItself is a member that leads once and for all: no pause of the machine makes it ask again.
func trustsItself(c *Config, _ *state.Config) { c.ElectionTimeout = time.Hour }

// TestHotKeepAlives renews leases over grpc-go and over Belay's own server: answers and what is
// counted are the same.
func TestHotKeepAlives(t *testing.T) {
	t.Parallel()
	var answers [2][]string
	var counted [2]map[string]float64
	for i, m := range []*member{newMember(t, trustsItself), newMember(t, trustsItself)} {
		var server callServer = grpc.NewServer(m.GRPCOptions()...)
		register := m.RegisterGRPC
		var renewed atomic.Int32 // on the connection's reader
		if i == 1 {
			own := rpc.New(m.RPCOptions())
			server = own
			register = func(g grpc.ServiceRegistrar) {
				m.RegisterGRPC(g)
				h := &hotLease{lease: m.Server.lease, calls: m.calls, method: m.calls.metrics.grpc.method(keepAliveMethod, "bidi_stream")}
				own.HotMessages(keepAliveMethod, func(ctx context.Context, message []byte) (rpc.Message, bool) {
					answer, ok := h.serve(ctx, message)
					if ok {
						renewed.Add(1)
					}
					return answer, ok
				})
			}
		}
		leases := pb.NewLeaseClient(serveOn(t, server, register))
		for _, id := range []int64{7, -9} {
			_, err := leases.LeaseGrant(t.Context(), &pb.LeaseGrantRequest{ID: id, TTL: 100})
			must(t, err)
		}
		was := m.counted()
		stream, err := leases.LeaseKeepAlive(t.Context())
		must(t, err)
		for range 20 {
			for _, id := range []int64{7, -9, 7, 8, 0, -9, -9} {
				must(t, stream.Send(&pb.LeaseKeepAliveRequest{ID: id}))
				resp, err := stream.Recv()
				must(t, err)
				b, err := proto.MarshalOptions{Deterministic: true}.Marshal(resp)
				must(t, err)
				answers[i] = append(answers[i], string(b))
			}
		}
		must(t, stream.CloseSend())
		if _, err := stream.Recv(); err == nil {
			t.Error("an answer too many")
		}
		if i == 1 && renewed.Load() == 0 {
			t.Error("no lease was renewed without the handler")
		}
		waitUntil(t, "the stream is counted", func() bool {
			counted[i] = m.since(was)
			for name := range counted[i] {
				if strings.HasPrefix(name, "grpc_server_handled_total") {
					return true
				}
			}
			return false
		})
	}
	for i, want := range answers[0] {
		if answers[1][i] != want {
			t.Fatalf("answer %d: ours %x, grpc-go's %x", i, answers[1][i], want)
		}
	}
	if !maps.Equal(counted[0], counted[1]) {
		t.Errorf("ours counts %v, grpc-go's %v", counted[1], counted[0])
	}
}

// TestHotHandlersAreRegistered: each of the handlers without goroutines serves the method that it is
// for. That it does so when it is called is tried by TestHotGets, TestHotWrites and TestHotKeepAlives.
func TestHotHandlersAreRegistered(t *testing.T) {
	t.Parallel()
	m := newMember(t)
	own := rpc.New(m.RPCOptions())
	m.RegisterGRPC(own)
	want := []string{pb.KV_DeleteRange_FullMethodName, pb.KV_Put_FullMethodName, pb.KV_Range_FullMethodName, pb.KV_Txn_FullMethodName, pb.Lease_LeaseKeepAlive_FullMethodName}
	if got := own.HotPaths(); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	for _, wrong := range []func(){
		func() { own.Hot("/etcdserverpb.KV/Get", nil) },
		func() { own.Hot(pb.Lease_LeaseKeepAlive_FullMethodName, nil) },
		func() { own.HotMessages(pb.KV_Put_FullMethodName, nil) },
		func() { own.HotMessages("/etcdserverpb.Lease/KeepAlive", nil) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("a handler for a method that is not there")
				}
			}()
			wrong()
		}()
	}
}

// TestRenewalsThatWaitForNothing: which messages the reader answers, and which it leaves.
func TestRenewalsThatWaitForNothing(t *testing.T) {
	t.Parallel()
	message := func(id int64) []byte {
		b, err := proto.Marshal(&pb.LeaseKeepAliveRequest{ID: id})
		must(t, err)
		return b
	}
	for _, c := range []struct {
		name    string
		before  func(m *member)
		message []byte
		want    bool
	}{
		{name: "it leads, and knows", message: message(7), want: true},
		{name: "no lease", message: message(8)},
		{name: "no id", message: nil},
		{name: "damaged", message: []byte{8}},
		{name: "an id that goes on", message: append(message(7), 0x80)},
		{name: "another field", message: append(message(7), 2<<3, 1)},
		{name: "twice", message: append(message(8), message(7)...)},
		{name: "another leads", before: func(m *member) { m.replica.setLeader(5, 1) }, message: message(7)},
		{name: "nobody leads", before: func(m *member) { m.replica.setLeader(0, 1) }, message: message(7)},
		{name: "not asked for long", before: func(m *member) { m.Server.lease.confirmed.store(time.Now().Add(-time.Hour)) }, message: message(7)},
		{name: "not primary", before: func(m *member) { m.cfg.Leases.Demote(m.replica.Term()) }, message: message(7)},
		{name: "expired", before: func(m *member) { m.clock.Add(int64(101 * time.Second)) }, message: message(7)},
		{name: "checkpointed", before: func(m *member) {
			_, err := m.replica.Propose(t.Context(), &pb.InternalRaftRequest{LeaseCheckpoint: &pb.LeaseCheckpointRequest{
				Checkpoints: []*pb.LeaseCheckpoint{{ID: 7, Remaining_TTL: 50}},
			}})
			must(t, err)
		}, message: message(7)},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMember(t, trustsItself)
			_, err := m.lease.LeaseGrant(t.Context(), &pb.LeaseGrantRequest{ID: 7, TTL: 100})
			must(t, err)
			must(t, m.Server.lease.confirmLeadership(t.Context()))
			if c.before != nil {
				c.before(m)
			}
			h := &hotLease{lease: m.Server.lease, calls: m.calls, method: m.calls.metrics.grpc.method(keepAliveMethod, "bidi_stream")}
			was := m.counted()
			answer, ok := h.serve(t.Context(), c.message)
			if ok != c.want {
				t.Fatalf("answered: %v", ok)
			}
			if !ok {
				if counted := m.since(was); len(counted) > 0 {
					t.Errorf("what is left to the handler is counted: %v", counted)
				}
				return
			}
			got := new(pb.LeaseKeepAliveResponse)
			must(t, proto.Unmarshal(answer.AppendTo(nil), got))
			want := &pb.LeaseKeepAliveResponse{Header: m.headers.now(), ID: 7, TTL: 100}
			if !proto.Equal(got, want) || answer.Size() != proto.Size(want) {
				t.Errorf("%v, want %v", got, want)
			}
		})
	}
}

// FuzzReadKeepAlive: what readKeepAlive reads is what proto does.
func FuzzReadKeepAlive(f *testing.F) {
	f.Add([]byte{8, 7})
	f.Add([]byte{8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{8, 7, 8, 9})
	f.Fuzz(func(t *testing.T, b []byte) {
		id, ok := readKeepAlive(b)
		if !ok {
			return
		}
		var r pb.LeaseKeepAliveRequest
		if err := proto.Unmarshal(b, &r); err != nil || r.ID != id || len(r.ProtoReflect().GetUnknown()) > 0 {
			t.Errorf("%x: %d, proto says %v %v", b, id, &r, err)
		}
	})
}

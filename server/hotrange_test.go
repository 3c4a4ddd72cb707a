package server

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/rpc"
)

// TestHotGets asks one member over grpc-go and over Belay's own server: answers, errors and what is
// counted are the same, and the gets that should be are answered without a goroutine.
func TestHotGets(t *testing.T) {
	m := newMember(t)
	theirs := pb.NewKVClient(serveOn(t, grpc.NewServer(m.GRPCOptions()...), m.RegisterGRPC))
	ours := pb.NewKVClient(serveOn(t, rpc.New(m.RPCOptions()), m.RegisterGRPC))
	m.put("key", "value")
	m.put("gone", "x")
	_, err := m.kv.DeleteRange(t.Context(), &pb.DeleteRangeRequest{Key: []byte("gone")})
	must(t, err)
	m.put("large", strings.Repeat("x", 200<<10))
	get := func(key string, edit ...func(*pb.RangeRequest)) *pb.RangeRequest {
		r := &pb.RangeRequest{Key: []byte(key)}
		for _, f := range edit {
			f(r)
		}
		return r
	}
	local := func(r *pb.RangeRequest) { r.Serializable = true }
	barrier := func(err error) func() {
		return func() {
			m.replica.mu.Lock()
			m.replica.barrierErr = err
			m.replica.mu.Unlock()
		}
	}
	leader := func(id uint64) func() { return func() { m.replica.setLeader(id, 0) } }
	plain, late := t.Context(), func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		t.Cleanup(cancel)
		return ctx
	}()
	wants := metadata.AppendToOutgoingContext(plain, rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader, rpctypes.MetadataClientAPIVersionKey, "3.7")
	for _, c := range []struct {
		name          string
		ctx           context.Context
		before, after func()
		req           *pb.RangeRequest
		shared        int64 // read barriers without a goroutine
	}{
		{name: "linearizable", req: get("key"), shared: 1},
		{name: "serializable", req: get("key", local)},
		{name: "with a deadline", ctx: late, req: get("key"), shared: 1},
		{name: "with a leader", ctx: wants, req: get("key"), shared: 1},
		{name: "a limit", req: get("key", func(r *pb.RangeRequest) { r.Limit = 1 }), shared: 1},
		{name: "deleted", req: get("gone"), shared: 1},
		{name: "never written", req: get("never"), shared: 1},
		{name: "not in memory as a whole", req: get("large"), shared: 1},
		{name: "not in memory as a whole, serializable", req: get("large", local)},
		{name: "no key", req: get("")},
		{name: "a range", req: get("a", func(r *pb.RangeRequest) { r.RangeEnd = []byte("z") })},
		{name: "keys only", req: get("key", func(r *pb.RangeRequest) { r.KeysOnly = true })},
		{name: "count only", req: get("key", func(r *pb.RangeRequest) { r.CountOnly = true })},
		{name: "sorted", req: get("key", func(r *pb.RangeRequest) { r.SortOrder, r.SortTarget = pb.RangeRequest_DESCEND, pb.RangeRequest_MOD })},
		{name: "an odd order", req: get("key", func(r *pb.RangeRequest) { r.SortOrder = 9 })},
		{name: "an old revision", req: get("key", func(r *pb.RangeRequest) { r.Revision = 1 })},
		{name: "a future revision", req: get("key", func(r *pb.RangeRequest) { r.Revision = 1000 })},
		{name: "filtered", req: get("key", func(r *pb.RangeRequest) { r.MinModRevision = 1000 })},
		{name: "a barrier in vain", before: barrier(replica.ErrTimeout), after: barrier(nil), req: get("key"), shared: 1},
		{name: "a stopped replica", before: barrier(replica.ErrStopped), after: barrier(nil), req: get("key"), shared: 1},
		{name: "no leader", ctx: wants, before: leader(0), after: leader(testMember), req: get("key")},
		{name: "no leader, serializable", before: leader(0), after: leader(testMember), req: get("key", local)},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := c.ctx
			if ctx == nil {
				ctx = plain
			}
			if c.before != nil {
				c.before()
				defer c.after()
			}
			ask := func(kv pb.KVClient) (string, map[string]float64) {
				was := m.counted()
				resp, err := kv.Range(ctx, c.req)
				now := m.counted()
				maps.DeleteFunc(now, func(name string, v float64) bool { return v == was[name] })
				for name := range now {
					now[name] -= was[name]
				}
				if err != nil {
					return err.Error(), now
				}
				b, err := proto.MarshalOptions{Deterministic: true}.Marshal(resp)
				must(t, err)
				return fmt.Sprintf("%x", b), now
			}
			want, counted := ask(theirs)
			shared := m.replica.shared.Load()
			got, alsoCounted := ask(ours)
			if got != want {
				t.Errorf("ours %s, grpc-go's %s", got, want)
			}
			if !maps.Equal(counted, alsoCounted) {
				t.Errorf("ours counts %v, grpc-go's %v", alsoCounted, counted)
			}
			if n := m.replica.shared.Load() - shared; n != c.shared {
				t.Errorf("%d read barriers without a goroutine, want %d", n, c.shared)
			}
		})
	}
}

// counted are the counters, and how many observations each histogram has.
func (m *member) counted() map[string]float64 {
	families, err := m.reg.Gather()
	must(m.t, err)
	out := make(map[string]float64)
	for _, f := range families {
		for _, metric := range f.GetMetric() {
			name := fmt.Sprint(f.GetName(), metric.GetLabel())
			if c := metric.GetCounter(); c != nil {
				out[name] = c.GetValue()
			}
			if h := metric.GetHistogram(); h != nil {
				out[name] = float64(h.GetSampleCount())
			}
		}
	}
	return out
}

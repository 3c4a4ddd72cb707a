package server

import (
	"context"
	"maps"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/rpc"
	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/usage"
)

// TestHotCallsOfUsers has users, strangers and such who claim to be users ask two members, one over
// grpc-go and one over Belay's own server: answers, errors and what is counted are the same, and those
// whom the member knows need no goroutine.
func TestHotCallsOfUsers(t *testing.T) {
	t.Parallel()
	both := []*member{newSafeMember(t, nil), newSafeMember(t, nil)}
	kvs := []pb.KVClient{
		pb.NewKVClient(serveOn(t, grpc.NewServer(both[0].GRPCOptions()...), both[0].RegisterGRPC)),
		pb.NewKVClient(serveOn(t, rpc.New(both[1].RPCOptions()), both[1].RegisterGRPC)),
	}
	claims := func(token string) func(*member) context.Context {
		return func(m *member) context.Context {
			return metadata.AppendToOutgoingContext(m.t.Context(), "token", token)
		}
	}
	is := func(user string) func(*member) context.Context {
		return func(m *member) context.Context { return m.as(user) }
	}
	put := func(key string) *pb.PutRequest { return &pb.PutRequest{Key: []byte(key), Value: []byte("value")} }
	get := func(key string, local bool) *pb.RangeRequest {
		return &pb.RangeRequest{Key: []byte(key), Serializable: local}
	}
	requests := []struct {
		name string
		req  proto.Message
		mine bool // alice may
		get  bool
	}{
		{name: "put", req: put("b1"), mine: true},
		{name: "put elsewhere", req: put("e")},
		{name: "get", req: get("b1", false), mine: true, get: true},
		{name: "get elsewhere", req: get("e", false), get: true},
		{name: "serializable get", req: get("b1", true), mine: true},
		{name: "serializable get elsewhere", req: get("e", true)},
		{name: "get of what is not in memory", req: get("b2", false), mine: true, get: true},
		{name: "txn", req: &pb.TxnRequest{Success: []*pb.RequestOp{putOp([]byte("b1"), []byte("x"), 0)}}, mine: true},
		{name: "txn elsewhere", req: &pb.TxnRequest{Success: []*pb.RequestOp{putOp([]byte("b1"), []byte("x"), 0), putOp([]byte("e"), []byte("x"), 0)}}},
		{name: "delete", req: &pb.DeleteRangeRequest{Key: []byte("b1")}, mine: true},
		{name: "delete elsewhere", req: &pb.DeleteRangeRequest{Key: []byte("e")}},
	}
	for _, caller := range []struct {
		name  string
		ctx   func(*member) context.Context
		all   bool // it may do everything
		alice bool
	}{
		{name: "root", ctx: is("root"), all: true},
		{name: "alice", ctx: is("alice"), alice: true},
		{name: "nobody", ctx: is("")},
		{name: "a stranger", ctx: claims("abcdefghijklmnop.1")},
		{name: "a stranger who claims to have just logged in", ctx: claims("abcdefghijklmnop.18446744073709551000")},
	} {
		ctxs := [2]context.Context{caller.ctx(both[0]), caller.ctx(both[1])}
		was := [2]map[string]float64{both[0].counted(), both[1].counted()}
		for _, c := range requests {
			name := caller.name + ": " + c.name
			var answers [2]string
			var counted [2]map[string]float64
			for i, m := range both {
				hot, shared := m.replica.hot.Load(), m.replica.shared.Load()
				answers[i] = ask(ctxs[i], kvs[i], c.req)
				now := m.counted()
				counted[i], was[i] = beyond(now, was[i]), now
				write := false
				switch c.req.(type) {
				case *pb.PutRequest, *pb.DeleteRangeRequest, *pb.TxnRequest:
					write = caller.all || caller.alice && c.mine
				}
				if n := m.replica.hot.Load() - hot; (n == 1) != (write && i == 1) {
					t.Errorf("%s: %d proposals without a goroutine", name, n)
				}
				if n := m.replica.shared.Load() - shared; (n == 1) != (c.get && i == 1) {
					t.Errorf("%s: %d barriers without a goroutine", name, n)
				}
			}
			if answers[0] != answers[1] {
				t.Errorf("%s: ours %.200s, grpc-go's %.200s", name, answers[1], answers[0])
			}
			if !maps.Equal(counted[0], counted[1]) {
				t.Errorf("%s: ours counts %v, grpc-go's %v", name, counted[1], counted[0])
			}
			if refused := caller.alice && !c.mine; refused != (answers[1] == "rpc error: code = PermissionDenied desc = "+denied) {
				t.Errorf("%s: %s", name, answers[1])
			}
		}
	}
}

// TestHotGetIsJudgedFirst: a get reads what is there once its user may read it, and not what was
// overwritten before the right was granted.
func TestHotGetIsJudgedFirst(t *testing.T) {
	t.Parallel()
	m := newSafeMember(t, nil)
	root, alice := m.as("root"), m.as("alice")
	put := func(value string) {
		_, err := m.kv.Put(root, &pb.PutRequest{Key: []byte("e"), Value: []byte(value)})
		must(t, err)
	}
	put("secret")
	callers := *m.callers
	changing := &changingRules{rules: callers.rules}
	callers.rules, m.callers = changing, &callers
	kv := pb.NewKVClient(serveOn(t, rpc.New(m.RPCOptions()), m.RegisterGRPC))
	change := func() {
		put("public")
		_, err := m.auth.RoleGrantPermission(root, &pb.AuthRoleGrantPermissionRequest{Name: "alice",
			Perm: &authpb.Permission{PermType: authpb.Permission_READ, Key: []byte("e")}})
		must(t, err)
	}
	changing.next.Store(&change)
	resp, err := kv.Range(alice, &pb.RangeRequest{Key: []byte("e"), Serializable: true})
	must(t, err)
	if got := string(resp.Kvs[0].Value); got != "public" {
		t.Errorf("alice was shown %q", got)
	}
}

// TestStrangersAreLookedAtOnce: a token that nobody was given is verified once for each call, and not
// on the connection's reader or behind the barrier that others share, where its caller is only looked
// for in memory.
func TestStrangersAreLookedAtOnce(t *testing.T) {
	t.Parallel()
	simple, err := auth.NewTokens(nil, "simple", 0)
	must(t, err)
	tokens := &askedTokens{Tokens: simple}
	began := time.Now()
	m := newSafeMember(t, tokens, func(c *Config, _ *state.Config) { // who uses it is counted, too: of so few calls, of all
		c.Usage = usage.New(func() time.Time { return began })
	})
	kv := pb.NewKVClient(serveOn(t, rpc.New(m.RPCOptions()), m.RegisterGRPC))
	alice := m.as("alice")
	stranger := metadata.AppendToOutgoingContext(t.Context(), "token", "abcdefghijklmnop.1")
	for _, req := range []proto.Message{ // the put first: then the gets find the key in memory
		&pb.PutRequest{Key: []byte("b1"), Value: []byte("value")},
		&pb.RangeRequest{Key: []byte("b1")},
		&pb.RangeRequest{Key: []byte("b1"), Serializable: true},
	} {
		for _, c := range []struct {
			ctx  context.Context
			want int64
		}{{stranger, 1}, {alice, 0}} {
			before := tokens.asked.Load()
			ask(c.ctx, kv, req)
			if n := tokens.asked.Load() - before; n != c.want {
				t.Errorf("%v: %d tokens verified, not %d", req, n, c.want)
			}
		}
	}
}

// askedTokens counts the tokens that are verified; those in memory need not be.
type askedTokens struct {
	auth.Tokens
	asked atomic.Int64
}

func (a *askedTokens) Info(token string, current uint64) (auth.Identity, bool) {
	a.asked.Add(1)
	return a.Tokens.Info(token, current)
}

// changingRules are rules that change when somebody next looks at them.
type changingRules struct {
	rules
	next atomic.Pointer[func()] // nil: they do not
}

func (c *changingRules) Policy() *auth.Policy {
	if change := c.next.Swap(nil); change != nil {
		(*change)()
	}
	return c.rules.Policy()
}

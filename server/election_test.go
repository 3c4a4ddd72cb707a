package server

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/server/electionpb"
	"github.com/belaydb/belay/server/lockpb"
	"github.com/belaydb/belay/watch"
)

// queueFixture is both services over grpc and a store in memory.
type queueFixture struct {
	*watchedKV
	t        *testing.T
	election electionpb.ElectionClient
	lock     lockpb.LockClient
}

func newQueueFixture(t *testing.T) *queueFixture {
	kv := newWatchedKV(t, watch.Options{})
	q := &queues{
		ops: kv, hub: kv.hub,
		grant: func(_ context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
			kv.mu.Lock()
			defer kv.mu.Unlock()
			if r.TTL != 60 || r.ID != 0 {
				return nil, fmt.Errorf("granted %v", r)
			}
			kv.leases++
			return &pb.LeaseGrantResponse{ID: 0xabc0 + kv.leases, Header: kv.header()}, nil
		},
		header: func(rev int64) *pb.ResponseHeader {
			return &pb.ResponseHeader{Revision: rev, ClusterId: 1, MemberId: 2, RaftTerm: 3}
		},
		rights: func(context.Context) rights { return keyRights{} },
	}
	cc := serveServices(t, func(g grpc.ServiceRegistrar) {
		electionpb.RegisterElectionServer(g, &electionService{queues: q})
		lockpb.RegisterLockServer(g, &lockService{queues: q})
	})
	return &queueFixture{kv, t, electionpb.NewElectionClient(cc), lockpb.NewLockClient(cc)}
}

// until polls cond, which holds the store's lock, with a deadline.
func (f *queueFixture) until(what string, cond func() bool) {
	f.t.Helper()
	for deadline := time.Now().Add(streamTimeout); ; time.Sleep(time.Millisecond) {
		f.mu.Lock()
		ok := cond()
		f.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("waited in vain until %s", what)
		}
	}
}

func (f *queueFixture) has(key string) func() bool {
	return func() bool { return f.keys[key] != nil }
}

func (f *queueFixture) hasNot(key string) func() bool {
	return func() bool { return f.keys[key] == nil }
}

func wantUnknown(t *testing.T, err error, text string) {
	t.Helper()
	wantStatus(t, err, codes.Unknown, text)
}

func wantStatus(t *testing.T, err error, code codes.Code, text string) {
	t.Helper()
	if st := status.Convert(err); st.Code() != code || st.Message() != text {
		t.Errorf("got %v %q, want %v %q", st.Code(), st.Message(), code, text)
	}
}

type campaigned struct {
	resp *electionpb.CampaignResponse
	err  error
}

func (f *queueFixture) campaign(ctx context.Context, name string, lease int64, value string) <-chan campaigned {
	c := make(chan campaigned, 1)
	go func() {
		r, err := f.election.Campaign(ctx, &electionpb.CampaignRequest{Name: []byte(name), Lease: lease, Value: []byte(value)})
		c <- campaigned{r, err}
	}()
	return c
}

func await[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(streamTimeout):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func quiet[T any](t *testing.T, c <-chan T, why string) {
	t.Helper()
	select {
	case <-c:
		t.Fatal(why)
	default:
	}
}

func TestElectionQueue(t *testing.T) {
	f := newQueueFixture(t)
	ctx := t.Context()

	first := await(t, f.campaign(ctx, "e", 0x10, "one"))
	if first.err != nil {
		t.Fatal(first.err)
	}
	l := first.resp.Leader
	if string(l.Name) != "e" || string(l.Key) != "e/10" || l.Rev != 2 || l.Lease != 0x10 || first.resp.Header.Revision != 2 {
		t.Fatalf("leader %v", first.resp)
	}
	f.put("e0", "a key beside the election's")
	second := f.campaign(ctx, "e", 0x20, "two")
	f.until("the second waits", f.has("e/20"))
	third := f.campaign(ctx, "e", 0x30, "three")
	f.until("the third waits", f.has("e/30"))

	// The same lease again: the same place, the new value.
	again := await(t, f.campaign(ctx, "e", 0x10, "uno"))
	if again.err != nil || again.resp.Leader.Rev != 2 {
		t.Fatalf("campaign again: %v", again)
	}
	got, err := f.election.Leader(ctx, &electionpb.LeaderRequest{Name: []byte("e")})
	if err != nil || string(got.Kv.Value) != "uno" || got.Header.Revision != f.Revision() {
		t.Fatalf("leader %v, %v", got, err)
	}

	// The second leaves the queue: the third still waits for the first.
	f.del("e/20")
	wantUnknown(t, await(t, second).err, "election: not leader")
	quiet(t, third, "the third leads while the first does")
	if _, err := f.election.Proclaim(ctx, &electionpb.ProclaimRequest{Leader: l, Value: []byte("eins")}); err != nil {
		t.Fatal(err)
	}
	if r, err := f.election.Resign(ctx, &electionpb.ResignRequest{Leader: l}); err != nil || r.Header.Revision != f.Revision() {
		t.Fatalf("resign: %v, %v", r, err)
	}
	if c := await(t, third); c.err != nil || string(c.resp.Leader.Key) != "e/30" {
		t.Fatalf("third: %v", c)
	}
	if _, err := f.election.Resign(ctx, &electionpb.ResignRequest{Leader: l}); err != nil {
		t.Errorf("resigning twice: %v", err)
	}
	_, err = f.election.Proclaim(ctx, &electionpb.ProclaimRequest{Leader: l, Value: []byte("x")})
	wantUnknown(t, err, "election: not leader")
}

func TestElectionErrors(t *testing.T) {
	f := newQueueFixture(t)
	ctx := t.Context()
	_, err := f.election.Proclaim(ctx, &electionpb.ProclaimRequest{})
	wantUnknown(t, err, `"leader" field must be provided`)
	_, err = f.election.Resign(ctx, &electionpb.ResignRequest{})
	wantUnknown(t, err, `"leader" field must be provided`)
	_, err = f.election.Leader(ctx, &electionpb.LeaderRequest{Name: []byte("nobody")})
	wantUnknown(t, err, "election: no leader")
	_, err = f.election.Resign(ctx, &electionpb.ResignRequest{Leader: &electionpb.LeaderKey{}})
	wantUnknown(t, err, "etcdserver: key is not provided")

	f.fail = func(r proto.Message) error { return rpctypes.ErrGRPCLeaseNotFound }
	c := await(t, f.campaign(ctx, "e", 0x10, ""))
	wantUnknown(t, c.err, "etcdserver: requested lease not found")
	_, err = f.lock.Lock(ctx, &lockpb.LockRequest{Name: []byte("l"), Lease: 0x10})
	wantUnknown(t, err, "etcdserver: requested lease not found")
}

// TestElectionCanceled: a candidate whose client goes away leaves the queue.
func TestElectionCanceled(t *testing.T) {
	f := newQueueFixture(t)
	if c := await(t, f.campaign(t.Context(), "e", 0, "one")); c.err != nil || c.resp.Leader.Lease != 0xabc1 || string(c.resp.Leader.Key) != "e/abc1" {
		t.Fatalf("%v", c)
	}
	ctx, cancel := context.WithCancel(t.Context())
	c := f.campaign(ctx, "e", 0x20, "two")
	f.until("the second waits", f.has("e/20"))
	cancel()
	wantStatus(t, await(t, c).err, codes.Canceled, "context canceled")
	f.until("the second is gone", f.hasNot("e/20"))
}

// TestElectionCompacted: a compaction while waiting hurts nobody.
func TestElectionCompacted(t *testing.T) {
	f := newQueueFixture(t)
	if c := await(t, f.campaign(t.Context(), "e", 0x10, "one")); c.err != nil {
		t.Fatal(c.err)
	}
	reads := 0
	f.fail = func(r proto.Message) error {
		if txn, ok := r.(*pb.TxnRequest); ok && len(txn.Compare) == 0 {
			if reads++; reads == 1 { // what is watched from then on is compacted
				f.compact = 1000
			} else {
				f.compact = 0
			}
		}
		return nil
	}
	c := f.campaign(t.Context(), "e", 0x20, "two")
	f.until("it read again", func() bool { return reads == 2 })
	quiet(t, c, "two leaders")
	f.del("e/10")
	if got := await(t, c); got.err != nil {
		t.Fatal(got.err)
	}
}

func TestObserve(t *testing.T) {
	f := newQueueFixture(t)
	st, err := f.election.Observe(t.Context(), &electionpb.LeaderRequest{Name: []byte("e")})
	if err != nil {
		t.Fatal(err)
	}
	next := func(key, value string, rev int64) {
		t.Helper()
		r, err := st.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if string(r.Kv.Key) != key || string(r.Kv.Value) != value || r.Header.Revision != rev || r.Header.ClusterId != 1 || r.Header.RaftTerm != 3 {
			t.Fatalf("observed %s=%s at %v, want %s=%s at %d", r.Kv.Key, r.Kv.Value, r.Header, key, value, rev)
		}
	}
	f.put("e/1", "a")
	next("e/1", "a", 2)
	f.put("e/1", "b")
	next("e/1", "b", 3)
	f.put("e/2", "waits")
	f.put("f/1", "not ours")
	f.put("e/1", "c")
	next("e/1", "c", 6)
	f.del("e/1")
	next("e/2", "waits", 7)
	f.del("e/2")
	f.put("e/3", "d")
	r, err := st.Recv()
	if err != nil || string(r.Kv.Value) != "d" {
		t.Fatalf("observed %v, %v", r, err)
	}
}

func TestObserveEnds(t *testing.T) {
	f := newQueueFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	st, err := f.election.Observe(ctx, &electionpb.LeaderRequest{Name: []byte("e")})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := st.Recv(); status.Code(err) != codes.Canceled {
		t.Fatal(err)
	}
}

func TestLock(t *testing.T) {
	f := newQueueFixture(t)
	ctx := t.Context()
	type locked struct {
		resp *lockpb.LockResponse
		err  error
	}
	lock := func(ctx context.Context, lease int64) <-chan locked {
		c := make(chan locked, 1)
		go func() {
			r, err := f.lock.Lock(ctx, &lockpb.LockRequest{Name: []byte("l"), Lease: lease})
			c <- locked{r, err}
		}()
		return c
	}
	for range 2 { // twice with one lease is once
		got := await(t, lock(ctx, 0x1f))
		if got.err != nil || string(got.resp.Key) != "l/1f" || got.resp.Header.Revision != 2 {
			t.Fatalf("%v", got)
		}
	}
	second := lock(ctx, 0x20)
	f.until("the second waits", f.has("l/20"))
	canceled, cancel := context.WithCancel(ctx)
	third := lock(canceled, 0x30)
	f.until("the third waits", f.has("l/30"))
	fourth := lock(ctx, 0x40)
	f.until("the fourth waits", f.has("l/40"))

	cancel()
	wantStatus(t, await(t, third).err, codes.Canceled, "context canceled")
	f.until("the third is gone", f.hasNot("l/30"))
	quiet(t, second, "two hold the lock")

	u, err := f.lock.Unlock(ctx, &lockpb.UnlockRequest{Key: []byte("l/1f")})
	if err != nil || u.Header.Revision != f.Revision() {
		t.Fatalf("unlock: %v, %v", u, err)
	}
	if got := await(t, second); got.err != nil || string(got.resp.Key) != "l/20" {
		t.Fatalf("%v", got)
	}
	quiet(t, fourth, "two hold the lock")
	f.del("l/40") // as when its lease expires
	wantUnknown(t, await(t, fourth).err, "mutex: session is expired")

	_, err = f.lock.Unlock(ctx, &lockpb.UnlockRequest{})
	wantUnknown(t, err, "etcdserver: key is not provided")
}

// TestLockMany: a hundred callers hold the lock one after the other.
func TestLockMany(t *testing.T) {
	f := newQueueFixture(t)
	const callers = 100
	type held struct {
		key string
		err error
	}
	got := make(chan held, callers)
	for i := range callers {
		go func() {
			r, err := f.lock.Lock(t.Context(), &lockpb.LockRequest{Name: []byte("l"), Lease: int64(i + 1)})
			got <- held{string(r.GetKey()), err}
		}()
	}
	seen := map[string]bool{}
	for range callers {
		h := await(t, got)
		if h.err != nil || seen[h.key] || !strings.HasPrefix(h.key, "l/") {
			t.Fatalf("%v", h)
		}
		seen[h.key] = true
		quiet(t, got, "two hold the lock")
		if _, err := f.lock.Unlock(t.Context(), &lockpb.UnlockRequest{Key: []byte(h.key)}); err != nil {
			t.Fatal(err)
		}
	}
}

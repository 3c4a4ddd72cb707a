package clients

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	"go.etcd.io/etcd/client/v3/ordering"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/belaydb/belay/proof/cluster"
)

// TestRecipesThroughFailover runs what comes with etcd's Go client, all of it
// at the same time; when every recipe is in its middle the leader is killed,
// and comes back. On one member the recipes wait through the restart.
func TestRecipesThroughFailover(t *testing.T) {
	wantTime(t)
	t.Parallel() // much of it is waiting
	recipes := []struct {
		name string
		run  func(*stage) error
	}{
		{"election", election}, {"mutex", mutex},
		{"stm serializable snapshot", stmAt(concurrency.SerializableSnapshot)},
		{"stm serializable", stmAt(concurrency.Serializable)},
		{"stm repeatable reads", stmAt(concurrency.RepeatableReads)},
		{"stm read committed", stmAt(concurrency.ReadCommitted)},
		{"leasing", leasingKV}, {"ordering", orderingKV}, {"namespace", namespaced},
		{"mirror", mirrored}, {"naming", naming},
	}
	for _, e := range entries() {
		t.Run(e.String(), func(t *testing.T) {
			d := enter(t, e, "failover/")
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			loss := &loss{killed: make(chan struct{})}
			loss.missing.Store(int32(len(recipes)))
			loss.kill = func() { failover(ctx, t, d.Cluster) }
			var running sync.WaitGroup
			for _, recipe := range recipes {
				s := &stage{ctx: ctx, t: t, loss: loss, clients: make([]*clientv3.Client, 4)}
				for i := range s.clients {
					s.clients[i] = d.client(t, d.Endpoints()...)
				}
				running.Go(func() {
					begin := time.Now()
					err := recipe.run(s)
					lost := s.failed.Load()
					s.failover() // others must not wait for one that failed early
					s.background.Wait()
					switch {
					case err != nil:
						t.Errorf("%s: %v", recipe.name, err)
					case !lost:
						t.Errorf("%s has not lost its leader: it proves too little", recipe.name)
					default:
						t.Logf("%s: %v", recipe.name, time.Since(begin).Round(time.Millisecond))
					}
				})
			}
			running.Wait()
			loss.kills.Wait()
		})
	}
}

// loss is the one moment in which the leader is killed.
type loss struct {
	missing atomic.Int32  // recipes that are not ready for it yet
	killed  chan struct{} // closed when it has happened
	kill    func()        // closes nothing; returns when the member is back
	kills   sync.WaitGroup
}

// stage is what a recipe runs on.
type stage struct {
	ctx     context.Context
	t       *testing.T
	loss    *loss
	clients []*clientv3.Client // each knows all members

	failed     atomic.Bool
	background sync.WaitGroup
}

// failover says, the first time, that this recipe is in its middle, and
// returns when the leader begins to be gone.
func (s *stage) failover() {
	if s.failed.Swap(true) {
		return
	}
	if s.loss.missing.Add(-1) == 0 {
		s.loss.kills.Go(s.loss.kill)
		close(s.loss.killed)
	}
	<-s.loss.killed
}

// failover kills the leader and starts it again as soon as the others have a new one.
func failover(ctx context.Context, t *testing.T, cl *cluster.Cluster) {
	m, err := leader(ctx, cl)
	if err != nil {
		t.Error(err)
		return
	}
	if err := m.Kill(); err != nil {
		t.Error(err)
		return
	}
	for _, other := range cl.Members {
		if other != m {
			if err := other.WaitReady(ctx); err != nil {
				t.Error(err)
			}
		}
	}
	if err := m.Start(); err != nil {
		t.Error(err)
		return
	}
	if err := m.WaitReady(ctx); err != nil {
		t.Error(err)
	}
}

func leader(ctx context.Context, cl *cluster.Cluster) (*cluster.Member, error) {
	for {
		for _, m := range cl.Members {
			conn, err := m.Dial()
			if err != nil {
				return nil, err
			}
			call, cancel := context.WithTimeout(ctx, time.Second)
			resp, err := pb.NewMaintenanceClient(conn).Status(call, &pb.StatusRequest{})
			cancel()
			conn.Close()
			if err == nil && resp.Leader == resp.Header.MemberId {
				return m, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("no leader: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// passing reports whether an error is what a failover causes.
func passing(err error) bool {
	var etcd rpctypes.EtcdError
	if errors.As(err, &etcd) {
		return etcd.Code() == codes.Unavailable
	}
	code := status.Code(err)
	return errors.Is(err, errBehind) || code == codes.Unavailable || code == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded)
}

// again calls fn until it succeeds; it gives up on errors that no failover
// causes, and when the recipe's time is over. fn may find its own earlier work
// done: the answer may have been lost with the member.
func (s *stage) again(fn func(ctx context.Context) error) error {
	for {
		ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
		err := fn(ctx)
		cancel()
		if err == nil || !passing(err) || s.ctx.Err() != nil {
			return err
		}
	}
}

func (s *stage) put(c clientv3.KV, key, value string, opts ...clientv3.OpOption) error {
	return s.again(func(ctx context.Context) error {
		_, err := c.Put(ctx, key, value, opts...)
		return err
	})
}

func (s *stage) get(c clientv3.KV, key string, opts ...clientv3.OpOption) (resp *clientv3.GetResponse, err error) {
	err = s.again(func(ctx context.Context) error {
		resp, err = c.Get(ctx, key, opts...)
		return err
	})
	return resp, err
}

func (s *stage) want(c clientv3.KV, key, want string) error {
	resp, err := s.get(c, key)
	if err != nil {
		return err
	}
	got := ""
	if len(resp.Kvs) > 0 {
		got = string(resp.Kvs[0].Value)
	}
	if got != want {
		return fmt.Errorf("%s is %q, want %q", key, got, want)
	}
	return nil
}

func (s *stage) session(c *clientv3.Client) (session *concurrency.Session, err error) {
	err = s.again(func(context.Context) error {
		session, err = concurrency.NewSession(c, concurrency.WithTTL(30), concurrency.WithContext(s.ctx))
		return err
	})
	return session, err
}

// each runs fn for each client at the same time.
func (s *stage) each(fn func(i int, c *clientv3.Client) error) error {
	errs := make([]error, len(s.clients))
	var wg sync.WaitGroup
	for i, c := range s.clients {
		wg.Go(func() { errs[i] = fn(i, c) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// election has every client elected twice; the leader is lost during the
// second turn. Terms never overlap, and an observer sees every one of them.
func election(s *stage) error {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	watcher, err := s.session(s.clients[0])
	if err != nil {
		return err
	}
	defer watcher.Close()
	var mu sync.Mutex
	seen := make(map[string]bool)
	observed := concurrency.NewElection(watcher, "failover/election").Observe(ctx)
	s.background.Go(func() {
		for resp := range observed {
			mu.Lock()
			seen[string(resp.Kvs[0].Value)] = true
			mu.Unlock()
		}
	})
	sees := func(name string) bool {
		mu.Lock()
		defer mu.Unlock()
		return seen[name]
	}
	var inOffice atomic.Int32
	err = s.each(func(i int, c *clientv3.Client) error {
		for turn := range 2 {
			session, err := s.session(c)
			if err != nil {
				return err
			}
			e := concurrency.NewElection(session, "failover/election")
			name := fmt.Sprintf("%d/%d", i, turn)
			if err := s.again(func(ctx context.Context) error {
				err := e.Campaign(s.ctx, name)
				if errors.Is(err, concurrency.ErrElectionNotLeader) {
					return status.Error(codes.Unavailable, "the campaign's own key was removed after an error")
				}
				return err
			}); err != nil {
				return fmt.Errorf("campaign %s: %w", name, err)
			}
			if n := inOffice.Add(1); n != 1 {
				return fmt.Errorf("%d leaders at once", n)
			}
			if turn == 1 {
				s.failover()
			}
			for !sees(name) { // until the observer has seen this one
				if s.ctx.Err() != nil {
					return fmt.Errorf("the observer did not see %s", name)
				}
				time.Sleep(5 * time.Millisecond)
			}
			if err := s.again(func(ctx context.Context) error { return e.Proclaim(ctx, name) }); err != nil {
				return fmt.Errorf("proclaim %s: %w", name, err)
			}
			inOffice.Add(-1)
			if err := s.again(e.Resign); err != nil {
				return fmt.Errorf("resign %s: %w", name, err)
			}
			session.Close()
		}
		return nil
	})
	cancel()
	return err
}

// mutex lets clients take turns; a key that only the holder may make shows a second holder.
func mutex(s *stage) error {
	var turns atomic.Int32
	return s.each(func(i int, c *clientv3.Client) error {
		session, err := s.session(c)
		if err != nil {
			return err
		}
		defer session.Close()
		m := concurrency.NewMutex(session, "failover/mutex/")
		me := strconv.Itoa(i)
		for turn := range 6 {
			if err := s.again(func(context.Context) error { return m.Lock(s.ctx) }); err != nil {
				return fmt.Errorf("lock: %w", err)
			}
			if turns.Add(1) == 10 {
				s.failover()
			}
			if err := s.again(func(ctx context.Context) error {
				resp, err := c.Txn(ctx).
					If(m.IsOwner(), clientv3.Compare(clientv3.CreateRevision("failover/holder"), "=", 0)).
					Then(clientv3.OpPut("failover/holder", me)).
					Else(clientv3.OpGet("failover/holder")).Commit()
				if err != nil || resp.Succeeded {
					return err
				}
				if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) != 1 || string(kvs[0].Value) != me {
					return fmt.Errorf("turn %d: the lock is held, and by another: %v", turn, kvs)
				}
				return nil // our own put, whose answer was lost
			}); err != nil {
				return err
			}
			if err := s.again(func(ctx context.Context) error {
				_, err := c.Delete(ctx, "failover/holder")
				return err
			}); err != nil {
				return err
			}
			if err := s.again(m.Unlock); err != nil && !errors.Is(err, concurrency.ErrLockReleased) {
				return fmt.Errorf("unlock: %w", err)
			}
		}
		return nil
	})
}

// errBehind: the lower levels read what a member has, which may not be the accounts yet.
var errBehind = errors.New("a member that has no account yet was read")

func account(value string) (int, error) {
	if value == "" {
		return 0, errBehind
	}
	return strconv.Atoi(value)
}

// stmAt moves money between accounts at one isolation level. The sum stays,
// except with ReadCommitted, which promises nothing about what was read: there
// each client has an account of its own.
func stmAt(level concurrency.Isolation) func(*stage) error {
	return func(s *stage) error {
		const accounts, start = 4, 1000
		prefix := fmt.Sprintf("failover/stm/%d/", level)
		for i := range accounts {
			if err := s.put(s.clients[0], prefix+strconv.Itoa(i), strconv.Itoa(start)); err != nil {
				return err
			}
		}
		var moves atomic.Int32
		err := s.each(func(i int, c *clientv3.Client) error {
			for n := range 15 {
				from, to := prefix+strconv.Itoa((i+n)%accounts), prefix+strconv.Itoa((i+n+1+n%3)%accounts)
				if level == concurrency.ReadCommitted {
					from, to = prefix+strconv.Itoa(i), prefix+strconv.Itoa(i)
				}
				if moves.Add(1) == 20 {
					s.failover()
				}
				if err := s.again(func(ctx context.Context) error {
					_, err := concurrency.NewSTM(c, func(stm concurrency.STM) error {
						a, err := account(stm.Get(from))
						if err != nil {
							return err
						}
						stm.Put(from, strconv.Itoa(a-n))
						b, err := account(stm.Get(to))
						if err != nil {
							return err
						}
						stm.Put(to, strconv.Itoa(b+n))
						return nil
					}, concurrency.WithIsolation(level), concurrency.WithAbortContext(ctx), concurrency.WithPrefetch(from, to))
					return err
				}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		resp, err := s.get(s.clients[0], prefix, clientv3.WithPrefix())
		if err != nil {
			return err
		}
		sum := 0
		for _, kv := range resp.Kvs {
			n, err := strconv.Atoi(string(kv.Value))
			if err != nil {
				return err
			}
			sum += n
		}
		if sum != accounts*start || len(resp.Kvs) != accounts {
			return fmt.Errorf("%d accounts hold %d, want %d and %d", len(resp.Kvs), sum, accounts, accounts*start)
		}
		return nil
	}
}

// leasingKV: a cached read never misses another's write.
func leasingKV(s *stage) error {
	kvs := make([]clientv3.KV, 2)
	for i := range kvs {
		kv, end, err := leasing.NewKV(s.clients[i], "failover/leasing/", concurrency.WithTTL(5))
		if err != nil {
			return err
		}
		defer end()
		kvs[i] = kv
	}
	for i := range 12 {
		if i == 4 {
			s.failover()
		}
		value := strconv.Itoa(i)
		if err := s.put(kvs[i%2], "failover/cached", value); err != nil {
			return fmt.Errorf("turn %d: put: %w", i, err)
		}
		for _, kv := range []clientv3.KV{kvs[0], kvs[1], kvs[0]} {
			if err := s.want(kv, "failover/cached", value); err != nil {
				return fmt.Errorf("turn %d: %w", i, err)
			}
		}
	}
	return nil
}

// orderingKV: serializable reads through all members never go back in time,
// though the members lag by different amounts and one restarts.
func orderingKV(s *stage) error {
	c := s.clients[0]
	kv := ordering.NewKV(c.KV, ordering.NewOrderViolationSwitchEndpointClosure(c))
	last := int64(0)
	for i := range 200 {
		if i == 60 {
			s.failover()
		}
		if err := s.put(s.clients[1], "failover/ordered", strconv.Itoa(i)); err != nil {
			return err
		}
		resp, err := s.get(kv, "failover/ordered", clientv3.WithSerializable())
		if errors.Is(err, ordering.ErrNoGreaterRev) {
			// Told, rather than served something old: what the package is for.
			kv = ordering.NewKV(c.KV, ordering.NewOrderViolationSwitchEndpointClosure(c))
			continue
		}
		if err != nil {
			return err
		}
		if resp.Header.Revision < last {
			return fmt.Errorf("read %d went back from revision %d to %d", i, last, resp.Header.Revision)
		}
		last = resp.Header.Revision
	}
	return nil
}

// namespaced: keys, a watch, a lease and a lock below a prefix.
func namespaced(s *stage) error {
	const prefix = "failover/ns/"
	c := s.clients[0]
	kv, watcher, lease := namespace.NewKV(c.KV, prefix), namespace.NewWatcher(c.Watcher, prefix), namespace.NewLease(c.Lease, prefix)
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	w := watcher.Watch(ctx, "k", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	if created := <-w; !created.Created {
		return fmt.Errorf("watch: %v", created.Err())
	}
	grant, err := lease.Grant(ctx, 60)
	if err != nil {
		return err
	}
	for i := range 30 {
		if i == 10 {
			s.failover()
		}
		if err := s.put(kv, fmt.Sprintf("k%02d", i), "v", clientv3.WithLease(grant.ID)); err != nil {
			return err
		}
	}
	seen := make(map[string]bool)
	for len(seen) < 30 {
		resp, ok := <-w
		if err := resp.Err(); err != nil || !ok {
			return fmt.Errorf("watch: %v", err)
		}
		for _, e := range resp.Events {
			if !strings.HasPrefix(string(e.Kv.Key), "k") {
				return fmt.Errorf("the watch shows %q", e.Kv.Key)
			}
			seen[string(e.Kv.Key)] = true
		}
	}
	if err := s.want(s.clients[1], prefix+"k29", "v"); err != nil {
		return err
	}
	var ttl *clientv3.LeaseTimeToLiveResponse
	if err := s.again(func(ctx context.Context) error {
		ttl, err = lease.TimeToLive(ctx, grant.ID, clientv3.WithAttachedKeys())
		return err
	}); err != nil {
		return err
	}
	if len(ttl.Keys) != 30 || !strings.HasPrefix(string(ttl.Keys[0]), "k") {
		return fmt.Errorf("the lease has %d keys: %q", len(ttl.Keys), ttl.Keys)
	}
	return nil
}

// mirrored copies a prefix: what was there, and then every change, in order.
func mirrored(s *stage) error {
	const prefix, count = "failover/mirror/", 300
	for i := range count {
		if err := s.put(s.clients[0], fmt.Sprintf("%sbase/%04d", prefix, i), strconv.Itoa(i)); err != nil {
			return err
		}
	}
	syncer := mirror.NewSyncer(s.clients[1], prefix, 0)
	copied := make(map[string]string)
	responses, errs := syncer.SyncBase(s.ctx)
	for resp := range responses {
		for _, kv := range resp.Kvs {
			copied[string(kv.Key)] = string(kv.Value)
		}
	}
	if err := <-errs; err != nil {
		return err
	}
	if len(copied) != count {
		return fmt.Errorf("the base has %d keys of %d", len(copied), count)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	updates := syncer.SyncUpdates(ctx)
	failed := make(chan error, 1)
	s.background.Go(func() {
		failed <- func() error {
			for i := range count {
				if i == count/3 {
					s.failover()
				}
				var err error
				if i%4 == 0 {
					err = s.again(func(ctx context.Context) error {
						_, err := s.clients[0].Delete(ctx, fmt.Sprintf("%sbase/%04d", prefix, i))
						return err
					})
				} else {
					err = s.put(s.clients[0], fmt.Sprintf("%snew/%04d", prefix, i), strconv.Itoa(i))
				}
				if err != nil {
					return err
				}
			}
			return s.put(s.clients[0], prefix+"zz-last", "1")
		}()
	})
	revision := int64(0)
	for copied[prefix+"zz-last"] == "" {
		resp, ok := <-updates
		if err := resp.Err(); err != nil || !ok {
			return fmt.Errorf("updates: %v", err)
		}
		for _, e := range resp.Events {
			if e.Kv.ModRevision <= revision {
				return fmt.Errorf("revision %d after %d", e.Kv.ModRevision, revision)
			}
			revision = e.Kv.ModRevision
			if e.Type == clientv3.EventTypeDelete {
				delete(copied, string(e.Kv.Key))
			} else {
				copied[string(e.Kv.Key)] = string(e.Kv.Value)
			}
		}
	}
	if err := <-failed; err != nil {
		return err
	}
	resp, err := s.get(s.clients[0], prefix, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	if len(resp.Kvs) != len(copied) {
		return fmt.Errorf("the copy has %d keys, the original %d", len(copied), len(resp.Kvs))
	}
	for _, kv := range resp.Kvs {
		if copied[string(kv.Key)] != string(kv.Value) {
			return fmt.Errorf("%s is %q in the copy, %q in the original", kv.Key, copied[string(kv.Key)], kv.Value)
		}
	}
	return nil
}

// naming resolves a service that is registered in the cluster; the members themselves serve as the
// service's endpoints.
func naming(s *stage) error {
	manager, err := endpoints.NewManager(s.clients[0], "failover/naming/service")
	if err != nil {
		return err
	}
	builder, err := resolver.NewBuilder(s.clients[1])
	if err != nil {
		return err
	}
	// Two services that outlive the failover.
	serve := start(s.t, checkKind(s.t), 1)
	second := start(s.t, checkKind(s.t), 1)
	name := func(m *cluster.Cluster) string { return "failover/naming/service/" + m.Members[0].Endpoint() }
	add := func(m *cluster.Cluster) error {
		return s.again(func(ctx context.Context) error {
			return manager.AddEndpoint(ctx, name(m), endpoints.Endpoint{Addr: m.Members[0].Endpoint()})
		})
	}
	if err := add(serve); err != nil {
		return err
	}
	conn, err := grpc.NewClient("etcd:///failover/naming/service", grpc.WithResolvers(builder),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`))
	if err != nil {
		return err
	}
	defer conn.Close()
	// reaches polls until calls end at the wanted service, and only there.
	reaches := func(want *cluster.Cluster) error {
		streak := 0
		for streak < 5 {
			var p peer.Peer
			ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
			_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Peer(&p), grpc.WaitForReady(true))
			cancel()
			if err != nil && !passing(err) {
				return err
			}
			if streak++; err != nil || p.Addr.String() != want.Members[0].Endpoint() {
				streak = 0
			}
			if s.ctx.Err() != nil {
				return fmt.Errorf("calls do not reach %s: they go to %v, %v", want.Members[0].Endpoint(), p.Addr, err)
			}
		}
		return nil
	}
	if err := reaches(serve); err != nil {
		return err
	}
	s.failover()
	if err := add(second); err != nil {
		return err
	}
	if err := s.again(func(ctx context.Context) error { return manager.DeleteEndpoint(ctx, name(serve)) }); err != nil {
		return err
	}
	if err := reaches(second); err != nil {
		return err
	}
	var list endpoints.Key2EndpointMap
	if err := s.again(func(ctx context.Context) error {
		list, err = manager.List(ctx)
		return err
	}); err != nil {
		return err
	}
	if len(list) != 1 {
		return fmt.Errorf("registered are %v", list)
	}
	return nil
}

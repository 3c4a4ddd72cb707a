package proxy

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.uber.org/zap"
)

const (
	registerRetry = time.Second
	// unregisterTimeout is how long the lease of a proxy that ends may take to be revoked.
	unregisterTimeout = time.Second
)

// A resolver registers this proxy with --resolver-prefix, and knows the proxies that have. What
// clients get as the list of members is the list of proxies, so that those that follow the list stay
// with proxies.
type resolver struct {
	prefix, address string
	ttl             int
	logger          *zap.Logger
	name            string // of this host
	cancel          context.CancelFunc
	running         sync.WaitGroup

	mu      sync.Mutex
	proxies map[string]*pb.Member // by key
}

func newResolver(o *options, logger *zap.Logger) *resolver {
	r := &resolver{prefix: o.resolverPrefix, address: o.advertise, ttl: o.resolverTTL, logger: logger, proxies: make(map[string]*pb.Member)}
	r.name, _ = os.Hostname() // "" is a name, too
	return r
}

// members are the proxies, this one if none has registered.
func (r *resolver) members() (list []*pb.Member) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.proxies {
		list = append(list, m)
	}
	if len(list) == 0 {
		list = append(list, &pb.Member{Name: r.name, ClientURLs: []string{r.address}})
	}
	return list
}

// run registers until ctx ends or stop is called, if there is a prefix.
func (r *resolver) run(ctx context.Context, client *clientv3.Client) {
	if r.prefix == "" {
		return
	}
	ctx, r.cancel = context.WithCancel(ctx)
	r.running.Go(func() { r.repeat(ctx, "failed to create a session", func() error { return r.register(ctx, client) }) })
	r.running.Go(func() {
		r.repeat(ctx, "failed to establish endpoint watch", func() error { return r.follow(ctx, client) })
	})
}

// stop unregisters.
func (r *resolver) stop() {
	if r.cancel != nil {
		r.cancel()
		r.running.Wait()
	}
}

func (r *resolver) repeat(ctx context.Context, failed string, do func() error) {
	for ctx.Err() == nil {
		if err := do(); err != nil && ctx.Err() == nil {
			r.logger.Warn(failed, zap.String("prefix", r.prefix), zap.Error(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(registerRetry):
		}
	}
}

// register keeps this proxy's key until the session has expired.
func (r *resolver) register(ctx context.Context, client *clientv3.Client) error {
	session, err := concurrency.NewSession(client, concurrency.WithTTL(r.ttl), concurrency.WithContext(ctx))
	if err != nil {
		return err
	}
	defer func() {
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), unregisterTimeout)
		defer cancel()
		session.Orphan()
		_, _ = client.Revoke(bounded, session.Lease()) // else it expires
	}()
	manager, err := endpoints.NewManager(client, r.prefix)
	if err != nil {
		return err
	}
	about, err := json.Marshal(meta{r.name})
	if err != nil {
		return err
	}
	endpoint := endpoints.Endpoint{Addr: r.address, Metadata: string(about)}
	if err := manager.AddEndpoint(ctx, r.prefix+"/"+r.address, endpoint, clientv3.WithLease(session.Lease())); err != nil {
		return err
	}
	r.logger.Info("registered session with lease", zap.String("addr", r.address), zap.Int("lease-ttl", r.ttl))
	select {
	case <-ctx.Done():
	case <-session.Done():
		r.logger.Warn("session expired; possible network partition or server restart")
		r.logger.Warn("creating a new session to rejoin")
	}
	return nil
}

// meta is what etcd's proxies write beside their address.
type meta struct {
	Name string `json:"name"`
}

// follow keeps the list of proxies until the watch ends.
func (r *resolver) follow(ctx context.Context, client *clientv3.Client) error {
	manager, err := endpoints.NewManager(client, r.prefix)
	if err != nil {
		return err
	}
	watch, err := manager.NewWatchChannel(ctx)
	if err != nil {
		return err
	}
	known := make(map[string]*pb.Member) // by this watch, which begins with all there are
	for updates := range watch {
		for _, u := range updates {
			if u.Op == endpoints.Delete {
				delete(known, u.Key)
				continue
			}
			var about meta
			if text, ok := u.Endpoint.Metadata.(string); ok {
				_ = json.Unmarshal([]byte(text), &about) // of another program: without a name
			}
			known[u.Key] = &pb.Member{Name: about.Name, ClientURLs: []string{u.Endpoint.Addr}}
		}
		r.mu.Lock()
		r.proxies = make(map[string]*pb.Member, len(known))
		for key, m := range known {
			r.proxies[key] = m
		}
		r.mu.Unlock()
	}
	if ctx.Err() == nil {
		return fmt.Errorf("the watch has ended")
	}
	return nil
}

package live

import (
	"context"
	"errors"
	"net/http"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/cli/doctor/metrics"
)

// An Asker asks members one thing at a time, for who looks at a cluster again and again. Its methods
// may be called from several goroutines at a time.
type Asker struct {
	g *gatherer

	mu      sync.Mutex
	clients map[string]*clientv3.Client // by endpoint; guarded by mu
}

// NewAsker makes one; Close ends its connections.
func NewAsker(o Options) *Asker {
	a := &Asker{g: newGatherer(o), clients: map[string]*clientv3.Client{}}
	a.g.bare = true
	return a
}

// Close ends all connections.
func (a *Asker) Close() {
	a.g.http.CloseIdleConnections()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.clients {
		_ = c.Close() // nothing is lost
	}
}

// Client is a client to a member's endpoint that is kept until Close: a login for each look would
// cost the cluster a hash of a password each time. It ends with ctx. It does not wait until somebody
// answers there, unless a user has to log in.
func (a *Asker) Client(ctx context.Context, m *Member) (*clientv3.Client, error) {
	a.mu.Lock()
	c := a.clients[m.Endpoint]
	a.mu.Unlock()
	if c != nil {
		return c, nil
	}
	cfg := *a.g.o.Client
	cfg.Endpoints, cfg.Context = []string{m.Endpoint}, ctx
	if cfg.DialTimeout == 0 || cfg.DialTimeout > a.g.o.Timeout {
		cfg.DialTimeout = a.g.o.Timeout
	}
	c, err := clientv3.New(cfg)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if other := a.clients[m.Endpoint]; other != nil {
		_ = c.Close() // two asked at the same time
		return other, nil
	}
	a.clients[m.Endpoint] = c
	return c, nil
}

// Members are those that the first endpoint that answers names, with where to ask each; nil: none
// answers, and errs say why.
func (a *Asker) Members(ctx context.Context) (all []*Member, errs []string) {
	c := &Cluster{Endpoints: a.g.o.Client.Endpoints}
	a.g.members(ctx, c)
	return c.Members, append(c.Errors, c.Strangers...)
}

// Get asks a member over HTTP for a path. Status is 0 if it does not answer at all.
func (a *Asker) Get(ctx context.Context, m *Member, path string) (body []byte, status int, err error) {
	return a.GetAs(ctx, m, path, "")
}

// GetAs is Get with a user's token; "": none.
func (a *Asker) GetAs(ctx context.Context, m *Member, path, token string) (body []byte, status int, err error) {
	base := a.g.base(m)
	if base == "" {
		return nil, http.StatusNotFound, errNoHTTP
	}
	body, resp, err := a.g.answer(ctx, base+path, token)
	if resp == nil {
		return nil, 0, err
	}
	return body, resp.StatusCode, err
}

// errNoHTTP is of a member with a unix socket alone.
var errNoHTTP = errors.New("it does not answer HTTP on a port")

// Scrape asks a member for its metrics.
func (a *Asker) Scrape(ctx context.Context, m *Member) (*metrics.Scrape, error) {
	if m.MetricsURL == "" {
		m.MetricsURL = a.g.metricsURL(ctx, m)
	}
	return a.g.scrape(ctx, m)
}

// Plain is an error as a person wants it.
func Plain(err error) string { return plain(err) }

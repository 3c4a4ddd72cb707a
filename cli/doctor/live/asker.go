package live

import (
	"context"
	"errors"
	"net/http"

	"github.com/belaydb/belay/cli/doctor/metrics"
)

// An Asker asks members one thing at a time, for who looks at a cluster again and again. Its methods
// may be called from several goroutines at a time.
type Asker struct{ g *gatherer }

// NewAsker makes one; Close ends its connections.
func NewAsker(o Options) *Asker { return &Asker{newGatherer(o)} }

// Close ends connections that are idle.
func (a *Asker) Close() { a.g.http.CloseIdleConnections() }

// Members are those that the first endpoint that answers names, with where to ask each; nil: none
// answers.
func (a *Asker) Members(ctx context.Context) []*Member {
	c := &Cluster{Endpoints: a.g.o.Client.Endpoints}
	a.g.members(ctx, c)
	return c.Members
}

// Get asks a member over HTTP for a path. Status is 0 if it does not answer at all.
func (a *Asker) Get(ctx context.Context, m *Member, path string) (body []byte, status int, err error) {
	base := a.g.base(m)
	if base == "" {
		return nil, http.StatusNotFound, errNoHTTP
	}
	body, resp, err := a.g.answer(ctx, base+path)
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

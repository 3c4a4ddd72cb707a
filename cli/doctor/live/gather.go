// Package live looks at a cluster that runs. Gather asks each member for what it answers anyway,
// twice some seconds apart; Judge, which asks nobody, makes findings of it.
//
// Files: gather.go (asking), cluster.go (what was answered), judge.go (the table of checks),
// checks_*.go (the checks), tables.go (what is shown beside the findings), network.go (doctor
// network and doctor clock), usual.go (what doctor rules is tuned by).
package live

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/cli/connect"
	"github.com/belaydb/belay/cli/doctor/metrics"
)

// maxBody is how much of an answer over HTTP is read, bytes.
const maxBody = 32 << 20

// Options say what to ask.
type Options struct {
	Client    *clientv3.Config // endpoints, TLS and user
	Metrics   []string         // URLs of --listen-metrics-urls, where members have them; empty: the client URLs
	Between   time.Duration    // between the two scrapes
	Timeout   time.Duration    // of one answer
	Certified bool             // look at the certificates
}

// Gather asks the cluster. What could not be asked stands in the members' errors; err is that of
// the command line alone.
func Gather(ctx context.Context, o Options) (*Cluster, error) {
	if len(o.Client.Endpoints) == 0 {
		return nil, errors.New("no endpoint is given")
	}
	g := newGatherer(o)
	defer g.http.CloseIdleConnections()
	c := &Cluster{At: time.Now(), Endpoints: o.Client.Endpoints, User: o.Client.Username, TLS: o.Client.TLS != nil}
	g.members(ctx, c)
	slices.SortStableFunc(c.Members, func(a, b *Member) int { return natural(a.Name, b.Name) })

	var wg sync.WaitGroup
	for _, m := range c.Members {
		if m.Endpoint == "" {
			continue
		}
		wg.Go(func() { g.ask(ctx, m) })
	}
	wg.Wait()
	c.setOthersApart()
	c.Machine = here()
	if o.Between <= 0 || c.silent() {
		return c, ctx.Err()
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(o.Between):
	}
	for _, m := range c.Members {
		if m.Endpoint == "" || m.Err != nil || m.Status == nil {
			continue
		}
		wg.Go(func() {
			if m.Before != nil {
				m.After, m.MetricsErr = g.scrape(ctx, m)
			}
			m.Later, _ = g.status(ctx, m)
		})
	}
	wg.Wait()
	c.Machine = here()
	return c, ctx.Err()
}

// natural orders names as people do: m2 before m10.
func natural(a, b string) int {
	digits := func(s string) int {
		n := 0
		for n < len(s) && s[n] >= '0' && s[n] <= '9' {
			n++
		}
		return n
	}
	for a != "" && b != "" {
		n, m := digits(a), digits(b)
		if n > 0 && m > 0 {
			x, y := strings.TrimLeft(a[:n], "0"), strings.TrimLeft(b[:m], "0")
			if c := cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y)); c != 0 {
				return c
			}
			a, b = a[n:], b[m:]
			continue
		}
		if a[0] != b[0] {
			return cmp.Compare(a[0], b[0])
		}
		a, b = a[1:], b[1:]
	}
	return cmp.Compare(len(a), len(b))
}

type gatherer struct {
	o    Options
	http *http.Client
	// bare: who the members are is asked for, and not alarms and users beside it, which etcd puts
	// through the log.
	bare bool
}

// newGatherer makes one; its idle connections are to be closed.
func newGatherer(o Options) *gatherer {
	return &gatherer{o: o, http: &http.Client{Transport: &http.Transport{TLSClientConfig: o.Client.TLS, MaxIdleConnsPerHost: 1}}}
}

// client makes a client to one endpoint.
func (g *gatherer) client(ctx context.Context, endpoint string) (*clientv3.Client, error) {
	cfg := *g.o.Client
	cfg.Endpoints, cfg.Context = []string{endpoint}, ctx
	return clientv3.New(cfg)
}

// members fills in who is in the cluster, by the first endpoint that tells, and which endpoint is
// whose.
func (g *gatherer) members(ctx context.Context, c *Cluster) {
	for _, ep := range c.Endpoints {
		if err := g.membersBy(ctx, c, ep); err != nil {
			c.Errors = append(c.Errors, ep+": "+plain(err))
			continue
		}
		break
	}
	// Endpoints that are nobody's advertised URL (a tunnel, a load balancer, a name) are tried, and
	// tell who they are.
	for _, ep := range c.Endpoints {
		host := hostOf(ep)
		at := slices.IndexFunc(c.Members, func(m *Member) bool {
			return slices.ContainsFunc(m.ClientURLs, func(u string) bool { return hostOf(u) == host })
		})
		if at >= 0 {
			c.Members[at].Endpoint = ep
			continue
		}
		m := &Member{Endpoint: ep}
		st, err := g.status(ctx, m)
		if err != nil {
			if !slices.ContainsFunc(c.Errors, func(e string) bool { return strings.HasPrefix(e, ep+": ") }) {
				c.Strangers = append(c.Strangers, ep+": "+plain(err))
			}
			continue
		}
		known := c.ID != 0 // else nobody says who the members are, as with users on: those that answer are
		if !known && len(c.Members) == 0 {
			c.ID = st.Header.ClusterId
		}
		at = slices.IndexFunc(c.Members, func(m *Member) bool { return m.ID == st.Header.MemberId })
		switch {
		case st.Header.ClusterId != c.ID, known && at < 0:
			c.Others = append(c.Others, Other{Endpoint: ep, ClusterID: st.Header.ClusterId, MemberID: st.Header.MemberId})
		case at >= 0:
			c.Members[at].Endpoint = ep
		default:
			m.ID, m.Name = st.Header.MemberId, fmt.Sprintf("%x", st.Header.MemberId)
			c.Members = append(c.Members, m)
		}
	}
	// Who is not among the endpoints is asked where it says it can be.
	for _, m := range c.Members {
		m.ClusterID = c.ID
		if m.Endpoint == "" && len(m.ClientURLs) > 0 {
			m.Endpoint = m.ClientURLs[0]
		}
		m.Here = onThisMachine(m.Endpoint)
	}
}

func (g *gatherer) membersBy(ctx context.Context, c *Cluster, endpoint string) error {
	cli, err := g.client(ctx, endpoint)
	if err != nil {
		return err
	}
	defer cli.Close()
	ctx, cancel := context.WithTimeout(ctx, g.o.Timeout)
	defer cancel()
	// Not linearizable: it shall be answered when there is no quorum, too.
	resp, err := pb.NewClusterClient(cli.ActiveConnection()).MemberList(ctx, &pb.MemberListRequest{})
	if err != nil {
		return err
	}
	c.ID = resp.Header.ClusterId
	for _, x := range resp.Members {
		m := &Member{ID: x.ID, Name: x.Name, PeerURLs: x.PeerURLs, ClientURLs: x.ClientURLs, Learner: x.IsLearner, Started: x.Name != ""}
		if m.Name == "" {
			m.Name = fmt.Sprintf("%x", x.ID)
		}
		c.Members = append(c.Members, m)
	}
	if g.bare {
		return nil
	}
	if alarms, err := cli.AlarmList(ctx); err == nil {
		c.Alarms = alarms.Alarms
	} else {
		c.AlarmsErr = err
	}
	if status, err := cli.AuthStatus(ctx); err == nil {
		c.AuthKnown, c.Auth = true, status.Enabled
	}
	return nil
}

func (g *gatherer) status(ctx context.Context, m *Member) (st *clientv3.StatusResponse, err error) {
	defer func() {
		// clientv3 tries again until the time is over, and tells no more than that it is. Whether
		// nobody is there or nobody answers is what an operator wants to know.
		if err != nil && plain(err) == inTime {
			if why := connect.Probe(m.Endpoint, g.o.Client.TLS); why != nil {
				err = why
			}
		}
	}()
	cli, err := g.client(ctx, m.Endpoint)
	if err != nil {
		return nil, err
	}
	defer cli.Close()
	ctx, cancel := context.WithTimeout(ctx, g.o.Timeout)
	defer cancel()
	return cli.Status(ctx, m.Endpoint)
}

// ask fills in all that one member tells.
func (g *gatherer) ask(ctx context.Context, m *Member) {
	if m.Status, m.Err = g.status(ctx, m); m.Err != nil {
		if plainHTTP := g.base(m); plainHTTP != "" && ctx.Err() == nil {
			// It may still answer over HTTP: a member without a quorum does.
			m.Health = g.health(ctx, plainHTTP)
		}
	} else {
		m.Read = g.read(ctx, m)
	}
	m.MetricsURL = g.metricsURL(ctx, m)
	m.Before, m.MetricsErr = g.scrape(ctx, m)
	base := g.base(m)
	if base == "" {
		return
	}
	m.Clock = g.clock(ctx, base)
	m.RTT = g.roundTrips(ctx, base)
	if body, _, err := g.get(ctx, base+"/debug/belay/events?within=1h"); err == nil {
		var e Events
		if json.Unmarshal(body, &e) == nil && e.MemberID != "" {
			m.Belay = &e
		}
	}
	if g.o.Certified {
		m.Certificates = g.certificates(ctx, base)
	}
}

// read makes one linearizable read of a key that need not be there, and says how long it took.
func (g *gatherer) read(ctx context.Context, m *Member) Answer {
	cli, err := g.client(ctx, m.Endpoint)
	if err != nil {
		return Answer{Err: err}
	}
	defer cli.Close()
	ctx, cancel := context.WithTimeout(ctx, g.o.Timeout)
	defer cancel()
	begin := time.Now()
	_, err = cli.Get(ctx, "health", clientv3.WithCountOnly())
	return Answer{Took: time.Since(begin), Err: err}
}

// base is where a member speaks HTTP on its client port; "" for unix sockets.
func (g *gatherer) base(m *Member) string { return connect.HTTPBase(m.Endpoint, g.o.Client.TLS != nil) }

func (g *gatherer) get(ctx context.Context, address string) (body []byte, header http.Header, err error) {
	body, resp, err := g.answer(ctx, address, "")
	if resp == nil {
		return nil, nil, err
	}
	return body, resp.Header, err
}

// answer is get with all of the answer but its body; nil if there was none. A token says who asks.
func (g *gatherer) answer(ctx context.Context, address, token string) (body []byte, resp *http.Response, err error) {
	ctx, cancel := context.WithTimeout(ctx, g.o.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, nil, err
	}
	if token != "" {
		req.Header.Set("Authorization", token)
	}
	resp, err = g.http.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s", address, resp.Status)
	}
	return body, resp, err
}

// metricsURL is one of the metrics URLs that are given and on the member's host, or its client URL.
func (g *gatherer) metricsURL(ctx context.Context, m *Member) string {
	var same []string
	for _, u := range g.o.Metrics {
		if !strings.Contains(u, "://") {
			u = "http://" + u
		}
		parsed, err := url.Parse(u)
		if err != nil {
			continue
		}
		for _, mine := range append(slices.Clone(m.ClientURLs), m.Endpoint) {
			if host, _, _ := net.SplitHostPort(hostOf(mine)); host == parsed.Hostname() {
				same = append(same, strings.TrimSuffix(u, "/metrics")+"/metrics")
				break
			}
		}
	}
	// Where several members share a host, each says who it is.
	for _, u := range same {
		if len(same) == 1 {
			return u
		}
		body, _, err := g.get(ctx, u)
		if err == nil && strings.Contains(string(body), fmt.Sprintf("etcd_server_id{server_id=\"%x\"}", m.ID)) {
			return u
		}
	}
	if base := g.base(m); base != "" {
		return base + "/metrics"
	}
	return ""
}

func (g *gatherer) scrape(ctx context.Context, m *Member) (*metrics.Scrape, error) {
	if m.MetricsURL == "" {
		return nil, errors.New("it listens on a unix socket alone: name its metrics URL by --metrics-urls")
	}
	begin := time.Now()
	body, _, err := g.get(ctx, m.MetricsURL)
	if err != nil {
		return nil, err
	}
	return metrics.Parse(strings.NewReader(string(body)), begin)
}

func (g *gatherer) health(ctx context.Context, base string) string {
	body, _, err := g.get(ctx, base+"/health")
	if err != nil && len(body) == 0 {
		return ""
	}
	return strings.TrimSpace(string(body[:min(len(body), 300)]))
}

// clock finds how far a member's clock is from here. HTTP's Date has whole seconds: it is asked
// until the second changes, which tells the rest to within the time between two answers.
func (g *gatherer) clock(ctx context.Context, base string) Clock {
	var last time.Time
	var asked time.Time
	for range 80 {
		begin := time.Now()
		_, header, err := g.get(ctx, base+"/version")
		end := time.Now()
		if err != nil {
			return Clock{}
		}
		date, err := http.ParseTime(header.Get("Date"))
		if err != nil {
			return Clock{}
		}
		if !last.IsZero() && date.After(last) {
			// Its second began between the last question and this answer.
			middle := asked.Add(end.Sub(asked) / 2)
			return Clock{Known: true, Ahead: date.Sub(middle), Within: end.Sub(asked)/2 + time.Millisecond}
		}
		last, asked = date, begin
		select {
		case <-ctx.Done():
			return Clock{}
		case <-time.After(15 * time.Millisecond):
		}
	}
	return Clock{}
}

// roundTrips are those of small requests over one connection, from here.
func (g *gatherer) roundTrips(ctx context.Context, base string) []time.Duration {
	var all []time.Duration
	for range 10 {
		begin := time.Now()
		if _, _, err := g.get(ctx, base+"/version"); err != nil {
			return all
		}
		all = append(all, time.Since(begin))
	}
	return all
}

// certificates are those that the member shows.
func (g *gatherer) certificates(ctx context.Context, base string) []Certificate {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "https" {
		return nil
	}
	cfg := &tls.Config{}
	if g.o.Client.TLS != nil {
		cfg = g.o.Client.TLS.Clone()
	}
	cfg.InsecureSkipVerify = true //nolint:gosec // it is looked at, not trusted: nothing is sent
	ctx, cancel := context.WithTimeout(ctx, g.o.Timeout)
	defer cancel()
	conn, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil
	}
	defer conn.Close()
	var all []Certificate
	for _, cert := range conn.(*tls.Conn).ConnectionState().PeerCertificates {
		all = append(all, Certificate{Subject: cert.Subject.String(), NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, CA: cert.IsCA})
	}
	return all
}

// hostOf is host:port of an endpoint with or without scheme.
func hostOf(endpoint string) string {
	if _, rest, ok := strings.Cut(endpoint, "://"); ok {
		endpoint = rest
	}
	host, _, _ := strings.Cut(endpoint, "/")
	return strings.ReplaceAll(host, "localhost", "127.0.0.1")
}

// inTime is of who did not answer.
const inTime = "no answer in time"

// plain is an error as a person wants it.
func plain(err error) string {
	text := err.Error()
	if _, desc, ok := strings.Cut(text, "desc = "); ok {
		text = desc
	}
	if errors.Is(err, context.DeadlineExceeded) || strings.Contains(text, "context deadline exceeded") {
		return inTime
	}
	text = strings.TrimSuffix(text, "\"")
	for _, before := range []string{"dial tcp ", "dial tcp: ", "desc = \"transport: "} {
		if at := strings.LastIndex(text, before); at >= 0 {
			text = text[at+len(before):]
		}
	}
	// The address stands before it already.
	if _, what, ok := strings.Cut(text, ": connect: "); ok {
		text = what
	}
	return text
}

package rolling

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/belaydb/belay/cli/connect"
	"github.com/belaydb/belay/command"
)

// A Kind is whose program a member runs.
type Kind string

// The kinds; the zero Kind is not known.
const (
	Etcd  Kind = "etcd"
	Belay Kind = "belay"
)

// A Member is one of the cluster, with what it says of itself.
type Member struct {
	*pb.Member
	Endpoint string                   // where it answers, or would; "": nowhere that it has told
	Status   *clientv3.StatusResponse // nil: it does not answer
	Err      error                    // why it does not
	Kind     Kind                     // as far as it answers HTTP
	Version  string                   // of the cluster, as this member has it: "3.6.0"; likewise
}

// Called is a member's name, or its id if it has not started yet.
func (m *Member) Called() string {
	if m.Name == "" {
		return fmt.Sprintf("%x", m.ID)
	}
	return m.Name
}

// A Cluster is what its members say at one time.
type Cluster struct {
	ID      uint64
	Members []*Member
	Leader  uint64 // 0: none is known
	Alarms  []*pb.AlarmMember
}

// Member finds one by its id; nil: it is none.
func (c *Cluster) Member(id uint64) *Member {
	i := slices.IndexFunc(c.Members, func(m *Member) bool { return m.ID == id })
	if i < 0 {
		return nil
	}
	return c.Members[i]
}

// Voters are the members that vote.
func (c *Cluster) Voters() []*Member {
	return slices.DeleteFunc(slices.Clone(c.Members), func(m *Member) bool { return m.IsLearner })
}

// corrupt reports whether a member's data is known to differ from the others'.
func (c *Cluster) corrupt(id uint64) bool {
	return slices.ContainsFunc(c.Alarms, func(a *pb.AlarmMember) bool { return a.MemberID == id && a.Alarm == pb.AlarmType_CORRUPT })
}

// sound reports whether a member answers and has data that nothing speaks against.
func (c *Cluster) sound(m *Member) bool { return m.Status != nil && !c.corrupt(m.ID) }

// A looker asks the members, over connections that it keeps.
type looker struct {
	cfg     clientv3.Config
	timeout time.Duration // of one question
	all     *clientv3.Client
	web     *http.Client

	mu      sync.Mutex
	clients map[string]*clientv3.Client // by endpoint; guarded by mu
}

// newLooker makes one, which ends with close. ctx ends its connections, too.
func newLooker(ctx context.Context, cfg *clientv3.Config, timeout time.Duration) (*looker, error) {
	l := &looker{cfg: *cfg, timeout: timeout, clients: map[string]*clientv3.Client{}}
	l.cfg.Context = ctx
	if l.cfg.DialTimeout == 0 || l.cfg.DialTimeout > timeout {
		l.cfg.DialTimeout = timeout
	}
	l.web = &http.Client{Transport: &http.Transport{TLSClientConfig: cfg.TLS, MaxIdleConnsPerHost: 1}}
	var err error
	l.all, err = clientv3.New(l.cfg)
	return l, err
}

func (l *looker) close() {
	l.web.CloseIdleConnections()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.clients {
		_ = c.Close() // nothing is lost
	}
	if l.all != nil {
		_ = l.all.Close()
	}
}

// at is a client of one endpoint alone.
func (l *looker) at(endpoint string) (*clientv3.Client, error) {
	l.mu.Lock()
	c := l.clients[endpoint]
	l.mu.Unlock()
	if c != nil {
		return c, nil
	}
	cfg := l.cfg
	cfg.Endpoints = []string{endpoint}
	c, err := clientv3.New(cfg)
	if err != nil {
		// With a user it logs in, and tells no more than that it took too long.
		if why := connect.Probe(endpoint, cfg.TLS); silent(err) && why != nil {
			err = status.Error(codes.Unavailable, why.Error())
		}
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if other := l.clients[endpoint]; other != nil {
		_ = c.Close() // two asked at the same time
		return other, nil
	}
	l.clients[endpoint] = c
	return c, nil
}

// bounded calls fn with the time for one question.
func (l *looker) bounded(ctx context.Context, fn func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	return fn(ctx)
}

// revive is how long a connection that has failed gets to come back within one question.
const revive = 500 * time.Millisecond

// status asks one endpoint. That nobody is there is known at once: clientv3's own call would try for
// seconds.
func (l *looker) status(ctx context.Context, endpoint string) (*clientv3.StatusResponse, error) {
	c, err := l.at(endpoint)
	if err != nil {
		return nil, err
	}
	var st *pb.StatusResponse
	ask := func(timeout time.Duration, opts ...grpc.CallOption) error {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		st, err = pb.NewMaintenanceClient(c.ActiveConnection()).Status(ctx, &pb.StatusRequest{}, opts...)
		return err
	}
	if err := ask(l.timeout); status.Code(err) == codes.Unavailable {
		// It may be the failure of a while ago, which grpc remembers.
		c.ActiveConnection().ResetConnectBackoff()
		if ask(revive, grpc.WaitForReady(true)) != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	return (*clientv3.StatusResponse)(st), nil
}

// look asks who the members are, which needs a quorum, and then each of them. Endpoints of the
// command line that are nobody's advertised URL (a tunnel, another name) tell whose they are.
func (l *looker) look(ctx context.Context) (*Cluster, error) {
	c := &Cluster{}
	if err := l.bounded(ctx, func(ctx context.Context) error {
		list, err := l.all.MemberList(ctx)
		if err != nil {
			return err
		}
		c.ID = list.Header.GetClusterId()
		for _, m := range list.Members {
			c.Members = append(c.Members, &Member{Member: m})
		}
		alarms, err := l.all.AlarmList(ctx)
		if err == nil {
			c.Alarms = alarms.Alarms
		}
		return err
	}); err != nil {
		return nil, err
	}
	given := make([]*clientv3.StatusResponse, len(l.cfg.Endpoints))
	failed := make([]error, len(given))
	var asking sync.WaitGroup
	for i, ep := range l.cfg.Endpoints {
		asking.Go(func() { given[i], failed[i] = l.status(ctx, ep) })
	}
	asking.Wait()
	for i, st := range given {
		if st == nil {
			continue
		}
		// A member's id does not tell its cluster: it may come from its URLs alone.
		if m := c.Member(st.Header.GetMemberId()); m != nil && m.Status == nil && st.Header.GetClusterId() == c.ID {
			m.Endpoint, m.Status = l.cfg.Endpoints[i], st
		}
	}
	for _, m := range c.Members {
		if m.Status != nil {
			continue
		}
		m.Err = errors.New("it has not started")
		for _, u := range m.ClientURLs {
			if i := slices.Index(l.cfg.Endpoints, u); i >= 0 { // asked a moment ago
				if m.Endpoint, m.Err = u, failed[i]; m.Err == nil {
					m.Err = c.isNot(m, u, given[i])
				}
			}
		}
		if m.Endpoint != "" && m.Err != nil {
			continue
		}
		asking.Go(func() { l.ask(ctx, c, m) })
	}
	asking.Wait()
	for _, m := range c.Members {
		if m.Status == nil {
			continue
		}
		if c.Leader == 0 {
			c.Leader = m.Status.Leader
		}
		asking.Go(func() { m.Kind, m.Version = l.kind(ctx, m.Endpoint) })
	}
	asking.Wait()
	return c, ctx.Err()
}

// ask asks a member under the URLs that it advertises.
func (l *looker) ask(ctx context.Context, c *Cluster, m *Member) {
	for _, u := range m.ClientURLs {
		st, err := l.status(ctx, u)
		if err == nil {
			err = c.isNot(m, u, st)
		}
		if m.Endpoint, m.Err = u, err; err == nil {
			m.Status = st
			return
		}
	}
}

// isNot says who answered under the URL of m if that was not m.
func (c *Cluster) isNot(m *Member, u string, st *clientv3.StatusResponse) error {
	switch h := st.Header; {
	case h.GetClusterId() != c.ID:
		return fmt.Errorf("at %s a member of another cluster answers: %x of cluster %x", u, h.GetMemberId(), h.GetClusterId())
	case h.GetMemberId() != m.ID:
		return fmt.Errorf("at %s member %x answers", u, h.GetMemberId())
	}
	return nil
}

// kind asks for a page that Belay alone has, and that it shows to everybody or to root; and for the
// version of the cluster.
func (l *looker) kind(ctx context.Context, endpoint string) (kind Kind, version string) {
	base := connect.HTTPBase(endpoint, l.cfg.TLS != nil)
	if base == "" {
		return "", ""
	}
	code, _ := l.page(ctx, base+"/debug/belay/events?within=1s")
	switch code {
	case http.StatusNotFound:
		kind = Etcd
	case http.StatusOK, http.StatusUnauthorized, http.StatusForbidden:
		kind = Belay
	}
	var said struct {
		Cluster string `json:"etcdcluster"`
	}
	if _, body := l.page(ctx, base+"/version"); json.Unmarshal(body, &said) != nil {
		return kind, ""
	}
	return kind, said.Cluster
}

// page is the answer to a GET, as far as it is short; code 0: there was none.
func (l *looker) page(ctx context.Context, address string) (code int, body []byte) {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return 0, nil
	}
	resp, err := l.web.Do(req)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	body, _ = io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // half of it is none that can be read
	return resp.StatusCode, body
}

// hashTries is how often hashes are compared again that differ: a compaction may be under way at
// one member and not begun at another.
const hashTries = 5

// same compares the histories of members at one revision that all have. It returns the revision,
// or who differs.
func (l *looker) same(ctx context.Context, members []*Member, pause func(ctx context.Context) error) (rev int64, err error) {
	for range hashTries {
		if rev, err = l.sameNow(ctx, members); err == nil {
			return rev, nil
		}
		if perr := pause(ctx); perr != nil {
			return 0, perr
		}
	}
	return 0, err
}

func (l *looker) sameNow(ctx context.Context, members []*Member) (rev int64, err error) {
	for i, m := range members {
		st, err := l.status(ctx, m.Endpoint)
		if err != nil {
			return 0, fmt.Errorf("%s does not answer: %w", m.Called(), err)
		}
		if at := st.Header.GetRevision(); i == 0 || at < rev {
			rev = at
		}
	}
	hashes := make([]*clientv3.HashKVResponse, len(members))
	for i, m := range members {
		c, err := l.at(m.Endpoint)
		if err != nil {
			return 0, err
		}
		// A large history takes as long as it takes.
		if hashes[i], err = c.HashKV(ctx, m.Endpoint, rev); err != nil {
			return 0, fmt.Errorf("the hash of %s at revision %d: %w", m.Called(), rev, err)
		}
		if h, first := hashes[i], hashes[0]; h.Hash != first.Hash || h.CompactRevision != first.CompactRevision {
			return 0, fmt.Errorf("at revision %d %s has the hash %d (compacted up to %d), %s %d (%d)", rev,
				members[0].Called(), first.Hash, first.CompactRevision, m.Called(), h.Hash, h.CompactRevision)
		}
	}
	return rev, nil
}

// handOver makes a member the leader. The present leader must answer.
func (l *looker) handOver(ctx context.Context, c *Cluster, to *Member) error {
	from := c.Member(c.Leader)
	if from == nil || from.Status == nil {
		return errors.New("the leader does not answer")
	}
	cli, err := l.at(from.Endpoint)
	if err != nil {
		return err
	}
	return l.bounded(ctx, func(ctx context.Context) error {
		_, err := cli.MoveLeader(ctx, to.ID)
		if errors.Is(err, rpctypes.ErrNotLeader) {
			return nil // the next look tells who leads now
		}
		return err
	})
}

// furthest is the member with the highest applied index, of those that are sound and fit.
func (c *Cluster) furthest(fits func(m *Member) bool) (best *Member) {
	for _, m := range c.Voters() {
		if c.sound(m) && fits(m) && (best == nil || m.Status.RaftAppliedIndex > best.Status.RaftAppliedIndex) {
			best = m
		}
	}
	return best
}

// healing is a member that comes back by itself, after damage; nil: none does.
func (c *Cluster) healing() *Member {
	for _, m := range c.Members {
		if _, replaces := command.PlainURLs(m.PeerURLs); replaces != 0 {
			return m
		}
	}
	return nil
}

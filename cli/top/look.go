package top

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/cli/doctor/live"
	"github.com/belaydb/belay/cli/doctor/metrics"
	"github.com/belaydb/belay/evidence"
	"github.com/belaydb/belay/usage"
)

const (
	// askMembers is how many looks there are between two questions who the members are.
	askMembers = 15
	// askLeases is how many there are between two questions how many leases there are.
	askLeases = 5
	// recordsWithin is how far back a look at Belay's records goes once they have been read whole.
	recordsWithin = "2m"
	// tokenFor is how long a token of a user is good for the pages that want one; members forget one
	// that is not used for five minutes.
	tokenFor = 4 * time.Minute
)

// A Look is what all members told at about one time.
type Look struct {
	At        time.Time
	ClusterID uint64
	Members   []Seen
	Leases    int    // -1: not known
	Err       string // why there are no members
}

// Seen is one member in a look.
type Seen struct {
	ID        uint64
	Name      string
	Endpoint  string
	Learner   bool
	Started   bool
	Status    *clientv3.StatusResponse // nil: it did not answer
	Err       string                   // why not
	Scrape    *metrics.Scrape          // nil: none
	ScrapeErr string
	Record    *evidence.Report // nil: of etcd, or it did not answer
	Usage     *usage.Answer    // likewise, or it is not for this user
	UsageErr  string           // why not; empty: there is none to ask for
}

// An Asker looks again and again. Only one goroutine may call it.
type Asker struct {
	o       live.Options
	ask     *live.Asker
	members []*live.Member
	err     string // why nobody told who the members are
	looks   int
	known   int // leases, -1: not known
	kinds   map[uint64]*kind

	token   string
	tokenAt time.Time
}

// kind is what is known of a member's program.
type kind struct {
	whole bool // its record was read whole
	etcd  bool
}

// NewAsker makes one; Close ends it.
func NewAsker(o live.Options) *Asker {
	return &Asker{o: o, ask: live.NewAsker(o), kinds: map[uint64]*kind{}, known: -1}
}

// Close ends all connections.
func (a *Asker) Close() { a.ask.Close() }

// Look asks all members at the same time. What a member does not answer in time is missing.
func (a *Asker) Look(ctx context.Context) *Look {
	if a.looks%askMembers == 0 || len(a.members) == 0 {
		// Who does not know the members leaves those that were known.
		m, errs := a.ask.Members(ctx)
		a.err = strings.Join(errs, "; ")
		if len(m) > 0 {
			a.members = m
			slices.SortStableFunc(m, func(x, y *live.Member) int { return cmp.Compare(x.Name, y.Name) })
		}
	}
	a.looks++
	l := &Look{Members: make([]Seen, len(a.members)), Leases: -1}
	if len(a.members) == 0 {
		l.At, l.Err = time.Now(), cmp.Or(a.err, "no endpoint tells who the members are")
		return l
	}
	token := a.userToken(ctx)
	var asking sync.WaitGroup
	var together sync.Mutex
	for i, m := range a.members {
		if a.kinds[m.ID] == nil {
			a.kinds[m.ID] = new(kind)
		}
		k := a.kinds[m.ID]
		asking.Go(func() {
			s := a.seen(ctx, m, k, token)
			together.Lock()
			defer together.Unlock()
			l.Members[i] = s
			if s.Status != nil {
				l.ClusterID = s.Status.Header.ClusterId
			}
		})
	}
	asking.Wait()
	if a.looks%askLeases == 1 {
		a.known = a.leases(ctx, l)
	}
	l.Leases = a.known
	l.At = time.Now()
	return l
}

// leases asks one member that answers how many there are.
func (a *Asker) leases(ctx context.Context, l *Look) int {
	at := slices.IndexFunc(l.Members, func(s Seen) bool { return s.Status != nil && s.Status.Leader != 0 && !s.Learner })
	if at < 0 {
		return -1
	}
	c, err := a.ask.Client(ctx, a.members[at])
	if err != nil {
		return -1
	}
	ctx, cancel := context.WithTimeout(ctx, a.o.Timeout)
	defer cancel()
	all, err := c.Leases(ctx)
	if err != nil {
		return -1
	}
	return len(all.Leases)
}

// userToken is one of the user that the command line names; "" without one.
func (a *Asker) userToken(ctx context.Context) string {
	switch cfg := a.o.Client; {
	case cfg.Token != "":
		return cfg.Token
	case cfg.Username == "":
		return ""
	case time.Since(a.tokenAt) < tokenFor:
		return a.token
	}
	a.token = ""
	for _, m := range a.members {
		if m.Endpoint == "" {
			continue // it never started
		}
		c, err := a.ask.Client(ctx, m)
		if err != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, a.o.Timeout)
		got, err := c.Authenticate(ctx, a.o.Client.Username, a.o.Client.Password)
		cancel()
		if err == nil || errors.Is(err, rpctypes.ErrAuthNotEnabled) {
			a.tokenAt = time.Now()
			if got != nil {
				a.token = got.Token
			}
			return a.token
		}
	}
	return ""
}

func (a *Asker) seen(ctx context.Context, m *live.Member, k *kind, token string) (s Seen) {
	s = Seen{ID: m.ID, Name: m.Name, Endpoint: m.Endpoint, Learner: m.Learner, Started: m.Started}
	if !m.Started || m.Endpoint == "" {
		s.Err = "never started"
		return s
	}
	c, err := a.ask.Client(ctx, m) // it outlives this look
	ctx, cancel := context.WithTimeout(ctx, a.o.Timeout)
	defer cancel()
	var asking sync.WaitGroup
	other := false // a member of another cluster answers: nothing that it tells is this one's
	if err != nil {
		s.Err = live.Plain(err)
	} else {
		asking.Go(func() {
			// Not through the client's own method, which tries again until ctx ends.
			st, err := pb.NewMaintenanceClient(c.ActiveConnection()).Status(ctx, &pb.StatusRequest{})
			if err != nil {
				s.Err = live.Plain(err)
				return
			}
			if err := m.Answers(st.Header); err != nil {
				s.Err, other = live.Plain(err), true
				return
			}
			s.Status = (*clientv3.StatusResponse)(st)
		})
	}
	asking.Go(func() {
		if s.Scrape, err = a.ask.Scrape(ctx, m); err != nil {
			s.ScrapeErr = live.Plain(err)
			m.MetricsURL = "" // it may have been taken for another's
		}
	})
	if !k.etcd {
		asking.Go(func() {
			path := "/debug/belay/events"
			if k.whole {
				path += "?within=" + recordsWithin
			}
			body, status, err := a.ask.Get(ctx, m, path)
			var r evidence.Report
			switch {
			case err == nil && json.Unmarshal(body, &r) == nil && r.Member != "":
				k.whole, s.Record = true, &r
			case status == http.StatusNotFound:
				k.etcd = true
			default: // what it missed to tell is asked for when it answers again
				k.whole = false
			}
		})
		asking.Go(func() {
			body, status, err := a.ask.GetAs(ctx, m, usage.Path+"?top=50", token)
			var u usage.Answer
			switch {
			case err == nil && json.Unmarshal(body, &u) == nil:
				s.Usage = &u
			case status == http.StatusUnauthorized:
				s.UsageErr = "who uses it is for root: --user root"
			case status == http.StatusNotFound:
				s.UsageErr = "not counted: it is etcd, an older Belay, or --usage=false"
			case err != nil:
				s.UsageErr = live.Plain(err)
			}
		})
	}
	asking.Wait()
	if other {
		return Seen{ID: s.ID, Name: s.Name, Endpoint: s.Endpoint, Learner: s.Learner, Started: s.Started, Err: s.Err}
	}
	return s
}

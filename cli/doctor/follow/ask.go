package follow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/belaydb/belay/cli/doctor/live"
)

const (
	// newMembers is how many looks there are between two questions who the members are.
	newMembers = 30
	// recordsWithin is how far back a look at Belay's records goes, once they have been read whole.
	recordsWithin = 5 * time.Minute
)

// An Asker looks at a cluster again and again, over connections that it keeps: a login for each look
// would cost the cluster a hash of a password each time.
type Asker struct {
	o       live.Options
	ask     *live.Asker
	members []*live.Member
	kinds   map[uint64]kind
	looks   int
}

// kind is what is known of a member's program.
type kind struct {
	belay bool
	whole bool // its record was read whole
	asked int  // the look at which it last said what it is
}

// NewAsker makes one; Close ends it.
func NewAsker(o live.Options) *Asker {
	return &Asker{o: o, ask: live.NewAsker(o), kinds: map[uint64]kind{}}
}

// Close ends all connections.
func (a *Asker) Close() { a.ask.Close() }

// Look asks all members at the same time.
func (a *Asker) Look(ctx context.Context) Look {
	if a.looks%newMembers == 0 || len(a.members) == 0 {
		// Who does not know the members leaves those that were known.
		if m, _ := a.ask.Members(ctx); len(m) > 0 {
			a.members = m
		}
	}
	a.looks++
	l := Look{At: time.Now(), Members: make([]Seen, len(a.members))}
	kinds := make([]kind, len(a.members))
	var asking sync.WaitGroup
	for i, m := range a.members {
		kinds[i] = a.kinds[m.ID]
		asking.Go(func() { l.Members[i] = a.seen(ctx, m, &kinds[i]) })
	}
	asking.Wait()
	for i, m := range a.members {
		a.kinds[m.ID] = kinds[i]
	}
	l.At = time.Now()
	// A member that was added and never started answers nobody, and is none that fell silent.
	l.Members = slices.DeleteFunc(l.Members, func(s Seen) bool { return s.ID == 0 })
	return l
}

func (a *Asker) seen(ctx context.Context, m *live.Member, k *kind) Seen {
	if !m.Started || m.Endpoint == "" {
		return Seen{}
	}
	s := Seen{ID: m.ID, Name: m.Name}
	c, clientErr := a.ask.Client(ctx, m) // it outlives this look
	ctx, cancel := context.WithTimeout(ctx, a.o.Timeout)
	defer cancel()
	if clientErr != nil {
		s.Err = "no connection to " + m.Endpoint
	} else if st, err := pb.NewMaintenanceClient(c.ActiveConnection()).Status(ctx, &pb.StatusRequest{}); err != nil {
		s.Err, s.Refused = live.Plain(err), refused(err.Error())
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			s.Err, s.Refused = fmt.Sprintf("no answer within %s", a.o.Timeout), false
		}
	} else if err := m.Answers(st.Header); err != nil {
		s.Err = live.Plain(err)
		return s
	} else {
		s.Leader, s.Term = st.Leader, st.RaftTerm
	}
	// Belay's record may be had where the API is not: a member without a leader answers HTTP.
	if k.belay || k.asked == 0 || a.looks-k.asked >= newMembers {
		path := "/debug/belay/events"
		if k.whole {
			path += "?within=" + recordsWithin.String()
		}
		body, status, err := a.ask.Get(ctx, m, path)
		var r Record
		switch {
		case err == nil && json.Unmarshal(body, &r) == nil && r.Member != "":
			r.got = time.Now()
			k.belay, k.whole, k.asked = true, true, a.looks
			s.Belay = &r
			if s.Err != "" {
				s.Err, s.Leader, s.Term = "", idOf(r.Leader), r.Term
			}
		case status == http.StatusNotFound:
			k.belay, k.asked = false, a.looks
		default: // it does not answer: what it missed to tell is asked for when it does
			k.whole = false
		}
	}
	if s.Err == "" && !k.belay {
		if scrape, err := a.ask.Scrape(ctx, m); err == nil {
			s.Counters = CountersOf(scrape)
		} else {
			m.MetricsURL = "" // it may have been taken for another's
		}
	}
	return s
}

// Kind says in a word what the members are: Belay, etcd, or "" if nobody answered yet.
func (a *Asker) Kind() string {
	var kinds []string
	for _, k := range a.kinds {
		switch {
		case k.belay:
			kinds = append(kinds, "Belay")
		case k.asked > 0:
			kinds = append(kinds, "etcd")
		}
	}
	slices.Sort(kinds)
	return strings.Join(slices.Compact(kinds), " and ")
}

// Names are those of the members.
func (a *Asker) Names() (names []string) {
	for _, m := range a.members {
		names = append(names, m.Name)
	}
	slices.Sort(names)
	return names
}

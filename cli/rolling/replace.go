package rolling

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/belaydb/belay/internal/show"
)

const (
	// pause is between two looks.
	pause = 500 * time.Millisecond
	// lookTimeout bounds one question to one member, where --command-timeout is longer.
	lookTimeout = 3 * time.Second
	// patience is how long one step may fail: servers refuse changes until all members have been
	// connected for 5 s, and an election takes a while.
	patience = 30 * time.Second
)

// Replace is a member put in the place of another one.
type Replace struct {
	Client *clientv3.Config
	Who    string // ID or name of the member to replace
	// Of the new member; "" and nil: those of the old one.
	Name     string
	PeerURLs []string
	Learner  bool          // it stays a learner, as it does in the place of one
	Timeout  time.Duration // of one change
	// Say tells a step, and Meter shows how far the new member has come; nil: nobody looks.
	Say   func(format string, args ...any)
	Meter *show.Meter

	t     *task
	look  *looker
	asked map[step]bool // what has been said
}

// Replaced is what became of it.
type Replaced struct {
	Old, New uint64 // Old is 0 if an earlier run has removed it
	Cluster  *Cluster
	Revision int64 // at which all hashes were equal; 0: it is a learner, and was not compared
}

// GoOn is the rest of the command line that goes on with a run that was interrupted; it is known as
// soon as the cluster has been asked.
func (r *Replace) GoOn() string {
	if r.t == nil {
		return r.Who
	}
	who := r.Who
	if r.t.old != 0 {
		who = fmt.Sprintf("%x", r.t.old)
	}
	line := fmt.Sprintf("%s --name %s --peer-urls %s", who, r.t.name, strings.Join(r.t.urls, ","))
	if r.t.learner {
		line += " --learner"
	}
	return line
}

func rest(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pause):
		return nil
	}
}

// Run replaces the member, and returns when the new one is in its place or a step has failed for good.
func (r *Replace) Run(ctx context.Context) (*Replaced, error) {
	defer r.Meter.End()
	var err error
	r.asked = map[step]bool{}
	if r.look, err = newLooker(ctx, r.Client, min(r.Timeout, lookTimeout)); err != nil {
		if why := r.look.refused(err); why != nil {
			err = why
		}
		r.look.close()
		return nil, err
	}
	defer r.look.close()
	var failing time.Time // since when nothing goes on; zero: it does
	last := stepAsk
	for {
		c, s, err := r.once(ctx)
		why := r.look.refused(err)
		wait := patience
		if r.t == nil {
			wait = min(patience, r.Timeout) // nobody has answered yet: an endpoint that is wrong, most likely
		}
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err == nil && s == stepDone:
			done := &Replaced{Old: r.t.old, Cluster: c, New: r.t.next(c).ID, Revision: r.t.compared}
			return done, nil
		case err == nil:
			failing = time.Time{}
		case why != nil:
			return nil, why
		case !passing(err):
			return nil, err
		case failing.IsZero() || s != last:
			failing = time.Now()
		case time.Since(failing) > wait:
			return nil, err
		}
		last = s
		if err := rest(ctx); err != nil {
			return nil, err
		}
	}
}

// passing reports whether an error may be another one, or none, in a while.
func passing(err error) bool {
	for _, e := range []error{rpctypes.ErrUnhealthy, rpctypes.ErrMemberNotEnoughStarted, rpctypes.ErrMemberLearnerNotReady, rpctypes.ErrNoLeader,
		rpctypes.ErrNotLeader, rpctypes.ErrLeaderChanged, rpctypes.ErrTimeout, rpctypes.ErrTimeoutDueToLeaderFail, rpctypes.ErrTimeoutDueToConnectionLost,
		rpctypes.ErrBadLeaderTransferee, context.DeadlineExceeded} {
		if errors.Is(err, e) {
			return true
		}
	}
	return status.Code(err) == codes.Unavailable || status.Code(err) == codes.DeadlineExceeded
}

// once looks, and takes the next step.
func (r *Replace) once(ctx context.Context) (*Cluster, step, error) {
	c, err := r.look.look(ctx)
	if err != nil {
		return nil, stepAsk, err
	}
	if r.t == nil {
		if r.t, err = resolve(c, r.Who, r.Name, r.PeerURLs, r.Learner); err != nil {
			return c, stepAsk, err
		}
	}
	old := c.Member(r.t.old)
	if old == nil || old.Status != nil {
		r.t.silent = 0
	} else {
		r.t.silent++
	}
	s, err := r.t.decide(c)
	if err != nil || s == stepDone {
		return c, s, err
	}
	if s == stepPromote {
		if m := r.t.next(c); m.Status != nil {
			r.Meter.Show(int64(m.Status.RaftAppliedIndex), int64(max(c.furthestIndex(), m.Status.RaftAppliedIndex)))
		}
	}
	if !r.asked[s] {
		r.asked[s] = true
		r.tell(c, s)
	}
	if s == stepCompare {
		return c, s, r.compare(ctx, c)
	}
	return c, s, r.change(ctx, c, s)
}

// change takes a step that is one request.
func (r *Replace) change(ctx context.Context, c *Cluster, s step) error {
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	var err error
	switch s {
	case stepRemove:
		_, err = r.look.all.MemberRemove(ctx, r.t.old)
		if errors.Is(err, rpctypes.ErrMemberNotFound) {
			err = nil // an answer was lost
		}
	case stepAdd:
		_, err = r.look.all.MemberAddAsLearner(ctx, r.t.urls)
	case stepPromote:
		_, err = r.look.all.MemberPromote(ctx, r.t.next(c).ID)
		if errors.Is(err, rpctypes.ErrMemberLearnerNotReady) || errors.Is(err, rpctypes.ErrMemberNotLearner) {
			err = nil // it takes as long as it takes
		}
	case stepHandOver:
		err = r.look.handOver(ctx, c, c.furthest(func(m *Member) bool { return m.ID != r.t.old }))
	}
	return err
}

// compare compares the new member's data with that of all others that vote; with that of the old
// one only if there is no other.
func (r *Replace) compare(ctx context.Context, c *Cluster) error {
	var with []*Member
	for _, m := range c.Voters() {
		if m.ID != r.t.old && c.sound(m) {
			with = append(with, m)
		}
	}
	if old := c.Member(r.t.old); len(with) == 1 && old != nil && old.Status != nil {
		with = append(with, old)
	}
	if next := r.t.next(c); next.Status == nil {
		return status.Error(codes.Unavailable, fmt.Sprintf("the new member does not answer: %v", next.Err))
	}
	rev, err := r.look.same(ctx, with, rest)
	if err != nil {
		return refuse("Hint: see both members' logs and disks before one of them is removed", "the new member's data is not that of the others: %w", err)
	}
	r.t.compared = rev
	r.Say("   equal at revision %d", rev)
	return nil
}

func (c *Cluster) furthestIndex() (index uint64) {
	for _, m := range c.Members {
		if m.Status != nil {
			index = max(index, m.Status.RaftIndex)
		}
	}
	return index
}

// tell says a step as it begins.
func (r *Replace) tell(c *Cluster, s step) {
	old, next := c.Member(r.t.old), r.t.next(c)
	switch s {
	case stepAsk:
		r.Say("%s (%x) does not answer (%v); asking again", old.Called(), old.ID, old.Err)
	case stepRemove:
		r.Say("Removing %s (%x)", old.Called(), old.ID)
	case stepAdd:
		r.Say("Adding a new member as a learner, at %s", strings.Join(r.t.urls, ","))
	case stepStart:
		r.Say("Start the new member %x now, on an empty data directory, with the other flags as its neighbours have them:\n\n%s\n\nWaiting until it has started. Ctrl-C ends the waiting alone", next.ID, r.command(c, next))
	case stepPromote:
		r.Say("%x has started; waiting until it has caught up, to promote it", next.ID)
	case stepCompare:
		r.Say("%s (%x) votes; comparing its data with that of the others", next.Called(), next.ID)
	case stepHandOver:
		r.Say("%s leads; handing over before it is removed", old.Called())
	}
}

// command is the command line that starts the new member: of the program that most others run.
func (r *Replace) command(c *Cluster, next *Member) string {
	program, belays := "etcd", 0
	var initial []string
	for _, m := range c.Members {
		if m.Kind == Belay {
			belays++
		} else if m.Kind == Etcd {
			belays--
		}
		name := m.Called()
		if m.ID == next.ID {
			name = r.t.name
		}
		for _, u := range m.PeerURLs {
			initial = append(initial, name+"="+u)
		}
	}
	if belays > 0 {
		program = "belay server"
	}
	lines := []string{
		"  " + program + " --name " + r.t.name + " --data-dir EMPTY-DIRECTORY",
		"    --initial-cluster " + strings.Join(initial, ","),
		"    --initial-cluster-state existing --initial-advertise-peer-urls " + strings.Join(r.t.urls, ","),
		"    --listen-peer-urls " + listenURLs(r.t.urls),
		"    --listen-client-urls URLS --advertise-client-urls URLS",
	}
	return strings.Join(lines, " \\\n")
}

// listenURLs are where to listen for what is advertised: no name is an address to listen on.
func listenURLs(advertised []string) string {
	var listen []string
	for _, s := range advertised {
		if u, err := url.Parse(s); err == nil && u.Port() != "" {
			if _, err := netip.ParseAddr(u.Hostname()); err != nil {
				u.Host = "0.0.0.0:" + u.Port()
			}
			s = u.String()
		}
		listen = append(listen, s)
	}
	return strings.Join(listen, ",")
}

// Alarms are those of who is no member any more, which nobody else ends.
func (r *Replaced) Alarms() (left []*pb.AlarmMember) {
	for _, a := range r.Cluster.Alarms {
		if a.GetMemberID() != 0 && r.Cluster.Member(a.GetMemberID()) == nil {
			left = append(left, a)
		}
	}
	return left
}

// List is the members as of the end, as `member list` has them.
func (r *Replaced) List() *pb.MemberListResponse {
	list := &pb.MemberListResponse{Header: &pb.ResponseHeader{ClusterId: r.Cluster.ID}}
	for _, m := range r.Cluster.Members {
		list.Members = append(list.Members, m.Member)
	}
	return list
}

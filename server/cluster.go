package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/state"
)

// clusterService is etcdserverpb.Cluster.
type clusterService struct {
	members memberList
	group   group
	barrier func(context.Context) error // Replica.ReadBarrier
	callers *authorizer
	headers *headers
	leader  *forwarder
	// activeSince is Peers.ActiveSince: the zero time for a member that cannot be reached.
	activeSince func(id uint64) time.Time
	strict      bool // Config.StrictReconfigCheck
	maxLearners int
	timeout     time.Duration // of a change
	metrics     *Metrics
	logger      *zap.Logger
	pb.UnsafeClusterServer
}

// memberList is who the members are, as this one has applied it; *state.Machine has it.
type memberList interface {
	Members() []*command.Member
	Member(id uint64) *command.Member // nil: it is none
}

// group is what changes the members; replica.Replica does.
type group interface {
	ProposeChange(ctx context.Context, c *command.Change) (command.Result, error)
	// LearnerReady is nil when a learner has caught up enough to be promoted.
	LearnerReady(ctx context.Context, id uint64) error
}

// memberHeader is the header of this service, which carries no revision, as in etcd.
func (c *clusterService) memberHeader() *pb.ResponseHeader {
	h := &pb.ResponseHeader{}
	c.headers.fillWithoutRevision(h)
	return h
}

func protoMembers(members []*command.Member) []*pb.Member {
	out := make([]*pb.Member, len(members))
	for i, m := range members {
		out[i] = m.Proto()
	}
	return out
}

func (c *clusterService) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	if r.Linearizable {
		if err := c.barrier(ctx); err != nil {
			return nil, toGRPC(err)
		}
	}
	if err := c.callers.authorizeUser(ctx); err != nil {
		return nil, toGRPC(err)
	}
	return &pb.MemberListResponse{Header: c.memberHeader(), Members: protoMembers(c.members.Members())}, nil
}

func (c *clusterService) MemberAdd(ctx context.Context, r *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	urls, err := types.NewURLs(r.PeerURLs)
	if err != nil {
		return nil, rpctypes.ErrGRPCMemberBadURLs
	}
	if err := c.callers.authorizeAdmin(ctx); err != nil {
		return nil, toGRPC(err)
	}
	now := time.Now()
	m := command.Member{PeerURLs: urls.StringSlice(), IsLearner: r.IsLearner}
	m.ID = command.MemberID(m.PeerURLs, "", &now) // etcd leaves the token out here
	if err := c.mayAdd(&m); err != nil {
		return nil, toGRPC(err)
	}
	change := &command.Change{Type: raftpb.ConfChangeAddNode, MemberID: m.ID, Member: m}
	if m.IsLearner {
		change.Type, change.MaxLearners = raftpb.ConfChangeAddLearnerNode, c.maxLearners
	}
	members, err := c.configure(ctx, change)
	if err != nil {
		return nil, toGRPC(err)
	}
	return &pb.MemberAddResponse{
		Header:  c.memberHeader(),
		Member:  &pb.Member{ID: m.ID, PeerURLs: m.PeerURLs, IsLearner: m.IsLearner},
		Members: protoMembers(members),
	}, nil
}

func (c *clusterService) MemberRemove(ctx context.Context, r *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	if err := c.callers.authorizeAdmin(ctx); err != nil {
		return nil, toGRPC(err)
	}
	if err := c.mayRemove(r.ID); err != nil {
		return nil, toGRPC(err)
	}
	members, err := c.configure(ctx, &command.Change{
		Type: raftpb.ConfChangeRemoveNode, MemberID: r.ID, Member: command.Member{ID: r.ID},
	})
	if err != nil {
		return nil, toGRPC(err)
	}
	return &pb.MemberRemoveResponse{Header: c.memberHeader(), Members: protoMembers(members)}, nil
}

// MemberUpdate refuses peer URLs that no member could be reached at. etcd takes them into its log,
// and every other member panics over them, at each start again. Good ones are stored as they are
// written, as in etcd.
func (c *clusterService) MemberUpdate(ctx context.Context, r *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	if err := c.callers.authorizeAdmin(ctx); err != nil {
		return nil, toGRPC(err)
	}
	if _, err := types.NewURLs(r.PeerURLs); err != nil {
		if c.members.Member(r.ID) == nil { // or it was added a moment ago
			if err := c.barrier(ctx); err != nil {
				return nil, toGRPC(err)
			}
			if c.members.Member(r.ID) == nil {
				return nil, toGRPC(state.ErrMemberNotFound)
			}
		}
		return nil, rpctypes.ErrGRPCMemberBadURLs
	}
	members, err := c.configure(ctx, &command.Change{
		Type: raftpb.ConfChangeUpdateNode, MemberID: r.ID, Member: command.Member{ID: r.ID, PeerURLs: r.PeerURLs},
	})
	if err != nil {
		return nil, toGRPC(err)
	}
	return &pb.MemberUpdateResponse{Header: c.memberHeader(), Members: protoMembers(members)}, nil
}

func (c *clusterService) MemberPromote(ctx context.Context, r *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	if err := c.callers.authorizeAdmin(ctx); err != nil {
		return nil, toGRPC(err)
	}
	members, err := c.promote(ctx, r.ID)
	if err != nil {
		return nil, toGRPC(err)
	}
	return &pb.MemberPromoteResponse{Header: c.memberHeader(), Members: protoMembers(members)}, nil
}

// promote makes a learner a voter. Only the leader knows how far it has come.
func (c *clusterService) promote(ctx context.Context, id uint64) (members []*command.Member, err error) {
	err = c.leader.atLeader(ctx, func(ctx context.Context) error {
		members, err = c.promoteHere(ctx, id)
		return err
	}, func(ctx context.Context, to leading) error {
		return c.leader.eachURL(ctx, to, func(ctx context.Context, peerURL string) error {
			members, err = c.leader.promote(ctx, peerURL, id)
			return err
		})
	})
	return members, err
}

// promoteHere promotes as the leader; replica.ErrNotLeader if it is not.
func (c *clusterService) promoteHere(ctx context.Context, id uint64) (members []*command.Member, err error) {
	defer func() {
		switch {
		case err == nil:
			c.metrics.promoteSuccess.Inc()
		case !errors.Is(err, replica.ErrNotLeader):
			c.metrics.promoteFailures.WithLabelValues(promoteFailure(err)).Inc()
		}
	}()
	if err := c.group.LearnerReady(ctx, id); err != nil {
		if errors.Is(err, replica.ErrMemberNotFound) {
			return nil, state.ErrMemberNotFound
		}
		return nil, err
	}
	if c.strict {
		// The learner counts as started.
		voters, started := countStarted(c.voters(), 0)
		if !c.enoughStarted("rejecting member promote; started member will be less than quorum", voters+1, started+1) {
			c.logger.Warn("rejecting member promote request; not enough healthy members",
				zap.String("local-member-id", command.IDText(c.headers.memberID)),
				zap.String("requested-member-remove-id", command.IDText(id)), zap.Error(errNotEnoughStartedMembers))
			return nil, errNotEnoughStartedMembers
		}
	}
	return c.configure(ctx, &command.Change{
		Type: raftpb.ConfChangeAddNode, MemberID: id, Member: command.Member{ID: id}, IsPromote: true,
	})
}

// promoteFailure is the label Reason of a promotion that failed: etcd's texts, some of which it maps
// to others only later, for the client.
func promoteFailure(err error) string {
	switch {
	case errors.Is(err, state.ErrMemberNotFound):
		return "membership: ID not found"
	case errors.Is(err, state.ErrNotLearner):
		return "membership: can only promote a learner member"
	}
	return err.Error()
}

// configure replicates a member change and returns the members after it.
func (c *clusterService) configure(ctx context.Context, change *command.Change) ([]*command.Member, error) {
	bounded, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	result, err := c.group.ProposeChange(bounded, change)
	if err == nil {
		err = result.Err
	}
	if err != nil {
		return nil, err
	}
	c.logger.Info("applied a configuration change through raft",
		zap.String("local-member-id", command.IDText(c.headers.memberID)),
		zap.String("raft-conf-change", change.Type.String()),
		zap.String("raft-conf-change-node-id", command.IDText(change.MemberID)))
	if result.Members == nil && change.MemberID == c.headers.memberID {
		// Another member has told this one that it was removed, before it applied the removal
		// itself.
		result.Members = slices.DeleteFunc(c.members.Members(), func(m *command.Member) bool { return m.ID == change.MemberID })
	}
	return result.Members, nil
}

// voters are the members that vote, this one included if it does.
func (c *clusterService) voters() []*command.Member {
	var out []*command.Member
	for _, m := range c.members.Members() {
		if !m.IsLearner {
			out = append(out, m)
		}
	}
	return out
}

// countStarted counts the members and those that have ever started, except one.
func countStarted(members []*command.Member, except uint64) (all, started int) {
	for _, m := range members {
		if m.ID == except {
			continue
		}
		all++
		if m.IsStarted() {
			started++
		}
	}
	return all, started
}

func (c *clusterService) enoughStarted(complaint string, voters, started int) bool {
	if started >= command.Quorum(voters) {
		return true
	}
	c.logger.Warn(complaint,
		zap.Int("number-of-started-member", started), zap.Int("quorum", command.Quorum(voters)),
		zap.String("cluster-id", command.IDText(c.headers.clusterID)), zap.String("local-member-id", command.IDText(c.headers.memberID)))
	return false
}

// healthInterval is how long a member must have been reachable to count as healthy.
const healthInterval = 5 * time.Second

// connected counts the members that this one has reached for healthInterval, itself included.
func (c *clusterService) connected(members []*command.Member) int {
	since := time.Now().Add(-healthInterval)
	n := 0
	for _, m := range members {
		if m.ID == c.headers.memberID {
			n++
			continue
		}
		if t := c.activeSince(m.ID); !t.IsZero() && t.Before(since) {
			n++
		}
	}
	return n
}

// mayAdd refuses a member whose adding could leave the cluster without a
// quorum of members that run (--strict-reconfig-check).
func (c *clusterService) mayAdd(m *command.Member) error {
	if !c.strict {
		return nil
	}
	voters := c.voters()
	reject := func(why string, err error) error {
		c.logger.Warn(why, zap.String("local-member-id", command.IDText(c.headers.memberID)),
			zap.String("requested-member-add", fmt.Sprintf("%+v", *m)), zap.Error(err))
		return err
	}
	if !m.IsLearner {
		all, started := countStarted(voters, 0)
		// From one member to two: the way to grow, and to restore from one.
		firstTwo := started == 1 && all == 1
		if !firstTwo && !c.enoughStarted("rejecting member add; started member will be less than quorum", all+1, started) {
			return reject("rejecting member add request; not enough healthy members", errNotEnoughStartedMembers)
		}
	}
	if len(voters) > 1 && c.connected(voters) < command.Quorum(len(voters)+1) {
		return reject("rejecting member add request; local member has not been connected to majority peers, reconfigure breaks active quorum", errUnhealthy)
	}
	return nil
}

// mayRemove refuses a removal that could leave the rest without a quorum of members that run.
func (c *clusterService) mayRemove(id uint64) error {
	if !c.strict {
		return nil
	}
	if m := c.members.Member(id); m != nil && m.IsLearner {
		return nil
	}
	voters := c.voters()
	all, started := countStarted(voters, id)
	if !c.enoughStarted("rejecting member remove; started member will be less than quorum", all, started) {
		c.logger.Warn("rejecting member remove request; not enough healthy members",
			zap.String("local-member-id", command.IDText(c.headers.memberID)),
			zap.String("requested-member-remove-id", command.IDText(id)), zap.Error(errNotEnoughStartedMembers))
		return errNotEnoughStartedMembers
	}
	// A member that is down is not part of the active quorum.
	if id != c.headers.memberID && c.activeSince(id).IsZero() {
		return nil
	}
	if active := c.connected(voters); active-1 < 1+(len(voters)-1)/2 {
		c.logger.Warn("rejecting member remove request; local member has not been connected to all peers, reconfigure breaks active quorum",
			zap.String("local-member-id", command.IDText(c.headers.memberID)), zap.String("requested-member-remove", command.IDText(id)),
			zap.Int("active-peers", active), zap.Error(errUnhealthy))
		return errUnhealthy
	}
	return nil
}

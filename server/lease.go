package server

import (
	"context"
	"errors"
	"io"
	"math"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/replica"
)

// leaseService is etcdserverpb.Lease.
//
// Grants and revocations go through the log. Only the leader can renew and knows remaining times:
// other members ask it (forward.go).
type leaseService struct {
	leases  *lease.Table
	keys    func(id int64) ([][]byte, error) // of a lease, none if it does not exist
	log     *proposals
	callers *authorizer
	headers *headers
	quota   *quota
	leader  *forwarder
	raft    leadership
	barrier func(context.Context) error // Replica.ReadBarrier
	nextID  func() uint64
	spans   *callSpans
	metrics *Metrics
	logger  *zap.Logger

	// confirmed is when the read barrier that last proved leadership was begun, see confirmedFor.
	confirmed       atomicTime
	electionTimeout time.Duration
	pb.UnsafeLeaseServer
}

func (l *leaseService) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	if err := l.quota.check(r); err != nil {
		return nil, err
	}
	if err := l.callers.authorizeUser(ctx); err != nil {
		return nil, toGRPC(err)
	}
	// The entry has what the answer will say: another leader may have a shorter minimum.
	r.TTL = max(r.TTL, l.leases.MinTTL())
	for r.ID == 0 {
		r.ID = int64(l.nextID() & math.MaxInt64)
	}
	result, err := l.log.propose(ctx, kindLeaseGrant, &pb.InternalRaftRequest{LeaseGrant: r}, smallRequest)
	if err != nil {
		return nil, toGRPC(err)
	}
	resp := result.Response.(*pb.LeaseGrantResponse)
	if resp.Header == nil {
		resp.Header = &pb.ResponseHeader{}
	}
	l.headers.fill(resp.Header)
	return resp, nil
}

func (l *leaseService) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	if err := l.callers.authorizeUser(ctx); err != nil {
		return nil, toGRPC(err)
	}
	result, err := l.log.propose(ctx, kindLeaseRevoke, &pb.InternalRaftRequest{LeaseRevoke: r}, smallRequest)
	if err != nil {
		return nil, toGRPC(err)
	}
	resp := result.Response.(*pb.LeaseRevokeResponse)
	if resp.Header == nil {
		resp.Header = &pb.ResponseHeader{}
	}
	l.headers.fill(resp.Header)
	return resp, nil
}

func (l *leaseService) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	var resp *pb.LeaseTimeToLiveResponse
	err := l.callers.authorizeUser(ctx)
	if err == nil && !r.Keys {
		resp, err = l.timeToLive(ctx, r)
	} else if err == nil {
		// Only a caller that may read all the keys gets them.
		err = l.callers.permitted(ctx, l.callers.readLeases(r.ID), func() (err error) {
			if resp, err = l.timeToLive(ctx, r); err != nil {
				return err
			}
			return l.stillReadable(ctx, resp)
		})
	}
	if errors.Is(err, lease.ErrNotFound) {
		resp, err = &pb.LeaseTimeToLiveResponse{ID: r.ID, TTL: -1}, nil
	}
	if err != nil {
		return nil, toGRPC(err)
	}
	if resp.Header == nil {
		resp.Header = &pb.ResponseHeader{}
	}
	l.headers.fill(resp.Header)
	return resp, nil
}

func (l *leaseService) LeaseLeases(ctx context.Context, r *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	list := l.leases.List()
	ids := make([]int64, len(list))
	for i, info := range list {
		ids[i] = int64(info.ID)
	}
	if err := l.callers.permitted(ctx, l.callers.readLeases(ids...), nothing); err != nil {
		return nil, toGRPC(err)
	}
	resp := &pb.LeaseLeasesResponse{Header: l.headers.now(), Leases: make([]*pb.LeaseStatus, len(list))}
	for i, info := range list {
		resp.Leases[i] = &pb.LeaseStatus{ID: int64(info.ID)}
	}
	return resp, nil
}

// stillReadable checks the keys that are about to be sent: some may have been attached since the
// caller was let in.
func (l *leaseService) stillReadable(ctx context.Context, r *pb.LeaseTimeToLiveResponse) error {
	return l.callers.permitted(ctx, func(p *auth.Policy, who auth.Identity) error {
		return p.ReadLease(who, r.ID, func(int64) ([][]byte, error) { return r.Keys, nil })
	}, nothing)
}

// LeaseKeepAlive answers in its own goroutine so that it can end while a
// receive waits: when the leader is gone, or the server stops.
func (l *leaseService) LeaseKeepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	ended := make(chan error, 1)
	go func() { ended <- l.keepAlive(stream) }()
	select {
	case err := <-ended:
		return err
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

func (l *leaseService) keepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	ctx := stream.Context()
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			streamFailed(ctx, l.logger, l.metrics, err, "receive", "lease-keepalive", "failed to receive lease keepalive request from gRPC stream")
			return err
		}
		// The header is taken before the renewal: a lease revoked at revision R must not appear
		// alive at R or later. (It may, where another member leads and has not applied R.)
		resp := &pb.LeaseKeepAliveResponse{Header: l.headers.now(), ID: req.ID}
		if err := l.callers.permitted(ctx, l.callers.writeLease(req.ID), nothing); err != nil {
			return toGRPC(err)
		}
		resp.TTL, err = l.renew(ctx, lease.ID(req.ID))
		if errors.Is(err, lease.ErrNotFound) {
			resp.TTL, err = 0, nil
		}
		if err != nil {
			return toGRPC(err)
		}
		if err := stream.Send(resp); err != nil {
			streamFailed(ctx, l.logger, l.metrics, err, "send", "lease-keepalive", "failed to send lease keepalive response to gRPC stream")
			return err
		}
	}
}

// streamFailed logs the end of a stream, and counts it unless its client left.
func streamFailed(ctx context.Context, logger *zap.Logger, m *Metrics, err error, direction, api, msg string) {
	if clientGone(ctx, err) {
		logger.Debug(msg, zap.Error(err))
		return
	}
	logger.Warn(msg, zap.Error(err))
	m.streamFailures.WithLabelValues(direction, api).Inc()
}

// renew gives a lease its full time again and returns its TTL in seconds.
func (l *leaseService) renew(ctx context.Context, id lease.ID) (ttl int64, err error) {
	if l.spans != nil {
		traced, end := l.spans.start(ctx, &pb.LeaseKeepAliveRequest{ID: int64(id)})
		defer end()
		ctx = traced
	}
	err = l.leader.atLeader(ctx, func(ctx context.Context) error {
		ttl, err = l.renewHere(ctx, id)
		return err
	}, func(ctx context.Context, to leading) error {
		ttl, err = l.leader.renew(ctx, to, id)
		return err
	})
	return ttl, err
}

// renewHere renews as the leader. ErrNotPrimary: this member does not lead, or not yet.
func (l *leaseService) renewHere(ctx context.Context, id lease.ID) (int64, error) {
	if err := l.confirmLeadership(ctx); err != nil {
		return 0, err
	}
	term, primary := l.leases.Primary()
	if !primary {
		return 0, lease.ErrNotPrimary
	}
	ttl, checkpointed, err := l.leases.Renew(ctx, id)
	if errors.Is(err, lease.ErrNotFound) {
		// It may be granted in an entry that is not applied here yet.
		if err := l.awaitApplied(ctx); err != nil {
			return 0, err
		}
		ttl, checkpointed, err = l.leases.Renew(ctx, id)
	}
	if err != nil {
		return 0, err
	}
	// If this process was stopped for a moment since the check, another member may lead by now,
	// whose clock for this lease began before the one that was just set.
	if err := l.confirmLeadership(ctx); err != nil {
		return 0, err
	}
	if checkpointed {
		// The next leader would use the checkpoint: clear it before the client may rely on the
		// renewal. In this term, so that the next leader has it before its clocks start; otherwise
		// that leader is asked for a renewal of its own.
		req := &pb.InternalRaftRequest{LeaseCheckpoint: &pb.LeaseCheckpointRequest{
			Checkpoints: []*pb.LeaseCheckpoint{{ID: int64(id), Remaining_TTL: 0}},
		}}
		if err := l.log.inTerm(ctx, term, kindLeaseCheckpoint, req); err != nil {
			return 0, err
		}
	}
	return ttl, nil
}

// timeToLive answers with lease.ErrNotFound for an unknown lease.
func (l *leaseService) timeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (resp *pb.LeaseTimeToLiveResponse, err error) {
	err = l.leader.atLeader(ctx, func(ctx context.Context) error {
		resp, err = l.timeToLiveHere(ctx, r)
		return err
	}, func(ctx context.Context, to leading) error {
		return l.leader.eachURL(ctx, to, func(ctx context.Context, peerURL string) error {
			resp, err = l.leader.timeToLive(ctx, peerURL, r)
			return err
		})
	})
	return resp, err
}

func (l *leaseService) timeToLiveHere(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	term, primary := l.leases.Primary()
	if !primary {
		return nil, lease.ErrNotPrimary
	}
	if err := l.awaitApplied(ctx); err != nil {
		return nil, err
	}
	info, ok := l.leases.Lookup(lease.ID(r.ID))
	if !ok {
		return nil, lease.ErrNotFound
	}
	resp := &pb.LeaseTimeToLiveResponse{
		Header:     &pb.ResponseHeader{},
		ID:         r.ID,
		TTL:        int64(info.Remaining.Seconds()),
		GrantedTTL: info.TTL,
	}
	if r.Keys {
		keys, err := l.keys(r.ID)
		if err != nil {
			return nil, err
		}
		resp.Keys = keys
	}
	// If there is another leader by now, the reading of the clock means nothing.
	if now, primary := l.leases.Primary(); !primary || now != term {
		return nil, replica.ErrLeaderChanged
	}
	return resp, nil
}

// applyWait bounds the wait for this member to catch up before it answers for a lease; longer means
// a problem that the client should know about.
const applyWait = time.Second

// awaitApplied waits until this member has applied what was committed when it was called.
func (l *leaseService) awaitApplied(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, applyWait)
	defer cancel()
	err := l.barrier(bounded)
	if err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		return replica.ErrTimeoutWaitApplied
	}
	return err
}

// confirmLeadership makes sure that this member led a moment ago. A leader that was stopped for a
// while still believes that it leads when it resumes, and would answer renewals that its successor
// does not know.
//
// A read barrier that was begun at time t and succeeded proves that no other leader was elected
// before t. One that is elected after it gives each lease lease.Overlap more than it has left, at
// least, so one barrier each confirmedFor is enough for all renewals between.
//
// It does not wait for longer than this member leads: a barrier outlives a change of leader, and
// without a quorum waits for its whole timeout, while the caller could ask the next leader.
func (l *leaseService) confirmLeadership(ctx context.Context) error {
	changed := l.raft.LeaderChanged()
	if !l.raft.Status().IsLeader() {
		return lease.ErrNotPrimary
	}
	now := time.Now()
	if l.confirmedAt(now) {
		return nil
	}
	leading, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-changed:
			cancel()
		case <-leading.Done():
		}
	}()
	if err := l.barrier(leading); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		l.logger.Warn("Failed to check current member's leadership", zap.Error(err))
		return lease.ErrNotPrimary
	}
	if st := l.raft.Status(); !st.IsLeader() {
		l.logger.Warn("Current member isn't a leader",
			zap.Uint64("local-member-id", l.headers.memberID), zap.Uint64("new-lead", st.Leader))
		return lease.ErrNotPrimary
	}
	l.confirmed.store(now)
	return nil
}

// confirmedAt reports whether leadership, if this member leads, needs no barrier now.
func (l *leaseService) confirmedAt(now time.Time) bool {
	return now.Sub(l.confirmed.load()) < l.confirmedFor()
}

// confirmedFor is how long a barrier proves enough. Half of lease.Overlap is left for what the way of
// an answer takes. Leaders of other versions, and etcd's, give one election timeout of their own,
// which is this member's as a rule.
func (l *leaseService) confirmedFor() time.Duration { return min(l.electionTimeout, lease.Overlap) / 2 }

// renewNow is renewHere where nothing has to be waited for; false: something has, or it cannot be
// done. Then renewHere is to be called.
func (l *leaseService) renewNow(id lease.ID) (ttl int64, ok bool) {
	leads := func() bool { return l.raft.Status().IsLeader() && l.confirmedAt(time.Now()) }
	if !leads() {
		return 0, false
	}
	ttl, ok = l.leases.RenewNow(id)
	return ttl, ok && leads() // again: see renewHere
}

// atomicTime is a time that goroutines share; its zero value is the zero time.
type atomicTime struct{ p atomic.Pointer[time.Time] }

func (a *atomicTime) store(t time.Time) { a.p.Store(&t) }

func (a *atomicTime) load() time.Time {
	if t := a.p.Load(); t != nil {
		return *t
	}
	return time.Time{}
}

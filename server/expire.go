package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3"
	"go.uber.org/zap"

	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/replica"
)

// The leader's part in leases: it alone decides that one has expired, and says
// so by an entry that revokes it; and it notes the remaining time of leases
// that nobody renews, so that elections do not give these their full time
// again and again (etcd has that behind a gate; here it is always on, and
// costs no entry for a lease that its client keeps alive).
const (
	expiryInterval     = 500 * time.Millisecond
	maxRevokesPerTick  = 500 // 1,000 a second, as etcd
	maxPendingRevokes  = 16
	maxCheckpointBatch = 1000
)

// leadLeases makes the lease table primary while this member leads.
func (s *Server) leadLeases(ctx context.Context) {
	for ctx.Err() == nil {
		changed := s.replica.LeaderChanged()
		st := s.replica.Status()
		if !st.IsLeader() {
			ended := st.Term
			if st.State == raft.StateCandidate {
				// It does not lead in this term yet, but may: to demote that would
				// refuse its promotion, and no lease would expire in all of the term.
				ended--
			}
			s.cfg.Leases.Demote(ended)
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		s.leadTerm(ctx, st.Term, changed)
	}
}

// leadTerm runs the table as the leader of term until the leader changes.
func (s *Server) leadTerm(ctx context.Context, term uint64, changed <-chan struct{}) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-changed:
			cancel()
		case <-ctx.Done():
		}
	}()
	// The barrier returns when this member has applied the first entry of its
	// term, and with it all leases granted or renewed by entries before.
	for s.replica.ReadBarrier(ctx) != nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(s.cfg.HeartbeatInterval):
		}
	}
	if st := s.replica.Status(); !st.IsLeader() || st.Term != term {
		return // LeaderChanged is closed, or about to be
	}
	s.cfg.Leases.Promote(term, s.replica.ElectionTimeout())
	tick := time.NewTicker(expiryInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.revokeExpired(ctx)
		s.checkpointLeases(ctx)
	}
}

// revokeExpired proposes the revocation of what has expired. A leader that
// comes back from a stall finds leases expired that its successor has renewed
// since: so leadership is proved first, and each proposal is bound to the term.
func (s *Server) revokeExpired(ctx context.Context) {
	term, ids := s.cfg.Leases.Expired(maxRevokesPerTick)
	if len(ids) == 0 {
		return
	}
	if err := s.replica.ReadBarrier(ctx); err != nil {
		s.logger.Warn("Failed to check current member's leadership", zap.Error(err))
		return
	}
	if st := s.replica.Status(); !st.IsLeader() || st.Term != term {
		s.logger.Warn("Ignore the lease revoking request because current member isn't a leader",
			zap.Uint64("local-member-id", s.cfg.MemberID))
		return
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxPendingRevokes)
	for _, id := range ids {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			_, err := s.proposeInTerm(ctx, term, kindLeaseRevoke, &pb.InternalRaftRequest{Header: s.rootHeader(), LeaseRevoke: &pb.LeaseRevokeRequest{ID: int64(id)}})
			switch {
			case err == nil:
				s.leaseExpired()
			case errors.Is(err, lease.ErrNotFound): // revoked by its client meanwhile
			case ctx.Err() == nil:
				s.logger.Warn("failed to revoke lease", zap.String("lease-id", fmt.Sprintf("%016x", uint64(id))), zap.Error(err))
			}
		})
	}
	wg.Wait()
}

func (s *Server) leaseExpired() {
	if s.cfg.LeaseMetrics != nil {
		s.cfg.LeaseMetrics.Expired.Inc()
	}
}

// checkpointLeases notes remaining times. Not while a real etcd member is in
// the cluster: without its LeaseCheckpoint gate it never takes a note back
// when the lease is renewed.
func (s *Server) checkpointLeases(ctx context.Context) {
	if !s.onlyBelay.Load() {
		return
	}
	term, due := s.cfg.Leases.Checkpoints(maxCheckpointBatch)
	if len(due) == 0 {
		return
	}
	req := &pb.LeaseCheckpointRequest{Checkpoints: make([]*pb.LeaseCheckpoint, len(due))}
	for i, d := range due {
		req.Checkpoints[i] = &pb.LeaseCheckpoint{ID: int64(d.ID), Remaining_TTL: d.Remaining}
	}
	_, err := s.proposeInTerm(ctx, term, kindLeaseCheckpoint, &pb.InternalRaftRequest{LeaseCheckpoint: req})
	s.cfg.Leases.Noted(due, err == nil)
	if err != nil && ctx.Err() == nil && !errors.Is(err, replica.ErrNotLeader) {
		s.logger.Warn("failed to note the remaining time of leases", zap.Int("leases", len(due)), zap.Error(err))
	}
}

package server

import (
	"context"

	"github.com/coreos/go-semver/semver"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/leader"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
)

// What package leader does needs requests: they are made here, and counted by their kinds.

// lead makes the tasks of package leader.
func (s *Server) lead() {
	members := &leader.Members{MemberID: s.cfg.MemberID, ClusterID: s.cfg.ClusterID, All: s.state.Members, Logger: s.logger}
	if s.cfg.Peers != nil {
		members.Client = s.cfg.Peers.Client()
	}
	leads := func() bool { return s.replica.Status().IsLeader() }
	s.version = leader.NewClusterVersion(leader.ClusterVersionConfig{
		Raft: s.replica, State: s.state, Members: members, Own: s.versions,
		Set: s.setClusterVersion, EndDowngrade: s.cancelDowngrade,
		Timeout: s.cfg.RequestTimeout, DowngradeInterval: s.cfg.DowngradeInterval, Logger: s.logger,
	})
	s.expiry = leader.NewExpiry(leader.ExpiryConfig{
		MemberID: s.cfg.MemberID, Raft: s.replica, Leases: s.cfg.Leases,
		Revoke: s.revokeExpired, Note: s.noteRemaining, MayNote: s.version.OnlyBelay, Revoked: s.leaseExpired,
		Retry: s.cfg.HeartbeatInterval, Logger: s.logger,
	})
	s.compactor = leader.NewCompactor(leader.CompactorConfig{
		Auto: s.cfg.Compaction, Leads: leads, Revision: s.kvStore.Revision, Compact: s.kv.compactTo, Logger: s.logger,
	})
	s.corruption = leader.NewCorruption(leader.CorruptionConfig{
		MemberID: s.cfg.MemberID, Checks: s.cfg.CorruptionChecks, Timeout: s.cfg.RequestTimeout,
		Raft: s.replica, Data: history{s.kvStore}, Members: members,
		Raise: s.raiseCorrupt, Outcome: s.metrics.corruptionCheck, Logger: s.logger,
	})
	s.space = leader.NewSpace(leader.SpaceConfig{
		MemberID: s.cfg.MemberID, DataDir: s.cfg.DataDir, WALDir: s.cfg.WALDir,
		MinFreeBytes: s.cfg.MinFreeBytes, Disarm: s.cfg.NoSpaceDisarm,
		Leads: func() bool { return s.replica.Leader() == s.cfg.MemberID }, Alarms: s.state,
		Free: s.cfg.FreeBytes, Size: s.cfg.Store.Size, Rewrite: s.defragment, Rewriting: s.defragging.Load,
		Raise: s.raiseNoSpace, End: s.endNoSpace, Background: s.background,
		Timeout: s.cfg.RequestTimeout, Logger: s.logger,
	})
}

func (s *Server) setClusterVersion(ctx context.Context, term uint64, v *semver.Version) error {
	_, err := s.proposeInTerm(ctx, term, kindClusterVersionSet, versionRequest(v))
	return err
}

func versionRequest(v *semver.Version) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{ClusterVersionSet: &membershippb.ClusterVersionSetRequest{Ver: v.String()}}
}

func (s *Server) revokeExpired(ctx context.Context, term uint64, id lease.ID) error {
	_, err := s.proposeInTerm(ctx, term, kindLeaseRevoke,
		&pb.InternalRaftRequest{Header: s.rootHeader(), LeaseRevoke: &pb.LeaseRevokeRequest{ID: int64(id)}})
	return err
}

func (s *Server) leaseExpired() {
	if s.cfg.LeaseMetrics != nil {
		s.cfg.LeaseMetrics.Expired.Inc()
	}
}

func (s *Server) noteRemaining(ctx context.Context, term uint64, due []lease.Checkpoint) error {
	req := &pb.LeaseCheckpointRequest{Checkpoints: make([]*pb.LeaseCheckpoint, len(due))}
	for i, d := range due {
		req.Checkpoints[i] = &pb.LeaseCheckpoint{ID: int64(d.ID), Remaining_TTL: d.Remaining}
	}
	_, err := s.proposeInTerm(ctx, term, kindLeaseCheckpoint, &pb.InternalRaftRequest{LeaseCheckpoint: req})
	return err
}

// raiseNoSpace is the proposal of an alarm that this member raises of its own accord.
func (s *Server) raiseNoSpace(ctx context.Context) error {
	_, err := s.proposeOwn(ctx, kindAlarm, &pb.InternalRaftRequest{
		Header: &pb.RequestHeader{Username: command.Itself},
		Alarm:  &pb.AlarmRequest{MemberID: s.cfg.MemberID, Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE},
	})
	return err
}

func (s *Server) endNoSpace(ctx context.Context, id uint64) error {
	_, err := s.alarm(ctx, &pb.AlarmRequest{MemberID: id, Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE})
	return err
}

// raiseCorrupt does nothing if the alarm is active already.
func (s *Server) raiseCorrupt(id uint64) {
	for _, a := range s.state.Alarms() {
		if a.Alarm == pb.AlarmType_CORRUPT && a.MemberID == id {
			return
		}
	}
	s.background(func(stopped context.Context) {
		ctx, cancel := context.WithTimeout(stopped, s.cfg.RequestTimeout)
		defer cancel()
		_, err := s.alarm(ctx, &pb.AlarmRequest{MemberID: id, Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_CORRUPT})
		if err != nil && stopped.Err() == nil {
			s.logger.Warn("failed to raise the CORRUPT alarm", zap.String("member-id", command.IDText(id)), zap.Error(err))
		}
	})
}

// history is what the corruption checks read of this member, at leisure.
type history struct{ kv *mvcc.Store }

func (h history) Hash(ctx context.Context) (hash uint32, compactRev, rev int64, err error) {
	return h.kv.HashState(yielding{ctx}, 0)
}

func (h history) Position() (rev, compactRev int64) { return h.kv.Revision(), h.kv.CompactRevision() }

func (h history) CompactionHashes() []mvcc.CompactionHash { return h.kv.CompactionHashes() }

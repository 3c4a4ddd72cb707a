package server

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/coreos/go-semver/semver"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/internal/version"
	"github.com/belaydb/belay/leader"
	"github.com/belaydb/belay/replica"
)

// maintenanceService is etcdserverpb.Maintenance. Snapshot is in snapshot.go.
type maintenanceService struct {
	*Server
	snapshots        chan struct{} // a place for each file that is being sent
	snapshotsWaiting atomic.Int64  // calls that have a place, or wait for one
	snapshotStall    time.Duration // streamStall; for tests
	pb.UnsafeMaintenanceServer
}

// Alarm goes through the log even to list, as with etcd: the answer is of this
// moment.
func (m *maintenanceService) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	allowed := m.authorizeAdmin
	if r.Action == pb.AlarmRequest_GET {
		allowed = m.authorizeUser
	}
	if err := allowed(ctx); err != nil {
		return nil, toGRPC(err)
	}
	resp, err := m.alarm(ctx, r)
	if err != nil {
		return nil, toGRPC(err)
	}
	if resp.Header == nil {
		resp.Header = &pb.ResponseHeader{}
	}
	m.fill(resp.Header)
	return resp, nil
}

func (s *Server) alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	result, err := s.proposeOwn(ctx, kindAlarm, &pb.InternalRaftRequest{Alarm: r})
	if err != nil {
		return nil, err
	}
	return result.Response.(*pb.AlarmResponse), nil
}

func (m *maintenanceService) Status(ctx context.Context, r *pb.StatusRequest) (*pb.StatusResponse, error) {
	if err := m.authorizeUser(ctx); err != nil {
		return nil, toGRPC(err)
	}
	st := m.replica.Status()
	total, inUse := m.cfg.Store.Size()
	downgrade := m.state.DowngradeInfo()
	resp := &pb.StatusResponse{
		Header:           m.header(),
		Version:          version.Etcd,
		DbSize:           max(total, 1), // 0 makes etcdctl divide by it
		DbSizeInUse:      inUse,
		DbSizeQuota:      m.state.QuotaBytes(),
		Leader:           st.Leader,
		RaftIndex:        st.Committed,
		RaftAppliedIndex: st.Applied,
		RaftTerm:         st.Term,
		IsLearner:        m.isLearner(),
		DowngradeInfo:    &pb.DowngradeInfo{Enabled: downgrade.Enabled, TargetVersion: downgrade.TargetVersion},
	}
	if v := m.storageVersion(); v != nil {
		resp.StorageVersion = v.String()
	}
	if st.Leader == 0 {
		resp.Errors = append(resp.Errors, replica.ErrNoLeader.Error())
	}
	for _, a := range m.state.Alarms() {
		resp.Errors = append(resp.Errors, a.String())
	}
	return resp, nil
}

// Defragment answers at once: the store gives space back by itself, and there
// is nothing that a client should wait for. It starts a compaction of the whole
// store beside the traffic, one at a time, for those who ask because they want
// the space now. The header is nil, as with etcd.
func (m *maintenanceService) Defragment(ctx context.Context, r *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	if err := m.authorizeAdmin(ctx); err != nil {
		return nil, toGRPC(err)
	}
	m.logger.Info("starting defragment")
	m.defragment()
	m.logger.Info("finished defragment") // for who asked; the compaction says its own end
	return &pb.DefragmentResponse{}, nil
}

func (s *Server) defragment() {
	if !s.defragging.CompareAndSwap(false, true) {
		return // one runs already
	}
	s.background(func(context.Context) {
		defer s.defragging.Store(false)
		s.metrics.defragInflight.Set(1)
		defer s.metrics.defragInflight.Set(0)
		start := time.Now()
		before, inUseBefore := s.cfg.Store.Size()
		path := filepath.Join(s.cfg.DataDir, "member", "store")
		s.logger.Info("defragmenting", append([]zap.Field{zap.String("path", path)}, leader.SizeFields(before, inUseBefore)...)...)
		err := s.cfg.Store.CompactAll(s.stopped)
		took := time.Since(start)
		s.metrics.defragSeconds.Observe(took.Seconds())
		after, inUse := s.cfg.Store.Size()
		if err != nil && s.stopped.Err() == nil {
			s.logger.Warn("failed to defragment", zap.Error(err))
			return
		}
		s.logger.Info("finished defragmenting directory", append(leader.SizeFields(after, inUse), zap.String("path", path),
			zap.Int64("current-db-size-bytes-diff", after-before), zap.Int64("current-db-size-in-use-bytes-diff", inUse-inUseBefore),
			zap.Duration("took", took))...)
	})
}

func (m *maintenanceService) Hash(ctx context.Context, r *pb.HashRequest) (*pb.HashResponse, error) {
	if err := m.authorizeAdmin(ctx); err != nil {
		return nil, toGRPC(err)
	}
	t := m.newTurn(ctx)
	defer t.end()
	hash, rev, err := m.kvStore.Hash(t)
	if err != nil {
		return nil, toGRPC(err)
	}
	resp := &pb.HashResponse{Header: &pb.ResponseHeader{Revision: rev}, Hash: hash}
	m.fill(resp.Header)
	return resp, nil
}

func (m *maintenanceService) HashKV(ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	if err := m.authorizeAdmin(ctx); err != nil {
		return nil, toGRPC(err)
	}
	t := m.newTurn(ctx)
	defer t.end()
	resp, err := m.hashKV(t, r.Revision)
	if err != nil {
		return nil, toGRPC(err)
	}
	m.fill(resp.Header)
	return resp, nil
}

// hashKV also answers other members; its header has the revision alone.
func (s *Server) hashKV(ctx context.Context, rev int64) (*pb.HashKVResponse, error) {
	hash, compactRev, current, err := s.kvStore.HashKV(ctx, rev)
	if err != nil {
		return nil, err
	}
	if rev == 0 {
		rev = current
	}
	return &pb.HashKVResponse{
		Header: &pb.ResponseHeader{Revision: current}, Hash: hash, CompactRevision: compactRev, HashRevision: rev,
	}, nil
}

// MoveLeader has a nil header, as with etcd.
func (m *maintenanceService) MoveLeader(ctx context.Context, r *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	if err := m.authorizeAdmin(ctx); err != nil {
		return nil, toGRPC(err)
	}
	if m.replica.Leader() != m.cfg.MemberID {
		return nil, rpctypes.ErrGRPCNotLeader
	}
	target := m.state.Member(r.TargetID)
	if target == nil || target.IsLearner {
		return nil, rpctypes.ErrGRPCBadLeaderTransferee
	}
	if r.TargetID == m.cfg.MemberID {
		return &pb.MoveLeaderResponse{}, nil
	}
	if len(target.ClientURLs) == 0 && m.cfg.Peers.ActiveSince(r.TargetID).IsZero() {
		// It was added and has never run: there is nobody to wait for.
		m.logger.Warn("refused to transfer leadership to a member that has never started", zap.String("transferee-member-id", command.IDText(r.TargetID)))
		return nil, rpctypes.ErrGRPCBadLeaderTransferee
	}
	start := time.Now()
	m.logger.Info("leadership transfer starting",
		zap.String("local-member-id", command.IDText(m.cfg.MemberID)), zap.String("current-leader-member-id", command.IDText(m.cfg.MemberID)),
		zap.String("transferee-member-id", command.IDText(r.TargetID)))
	bounded, cancel := context.WithTimeout(ctx, m.cfg.RequestTimeout)
	defer cancel()
	if err := m.replica.TransferLeader(bounded, r.TargetID); err != nil {
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			err = replica.ErrTimeoutLeaderTransfer
		}
		return nil, toGRPC(err)
	}
	m.logger.Info("leadership transfer finished",
		zap.String("local-member-id", command.IDText(m.cfg.MemberID)), zap.String("old-leader-member-id", command.IDText(m.cfg.MemberID)),
		zap.String("new-leader-member-id", command.IDText(r.TargetID)), zap.Duration("took", time.Since(start)))
	return &pb.MoveLeaderResponse{}, nil
}

// Downgrade is a cluster's way back to the minor version before. Its rules are
// etcd's. The cluster version really goes down, so that real etcd members of
// that version may join; Belay's own members go on as they are.
func (m *maintenanceService) Downgrade(ctx context.Context, r *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	if err := m.authorizeAdmin(ctx); err != nil {
		return nil, toGRPC(err)
	}
	resp, err := m.downgrade(ctx, r)
	if err != nil {
		return nil, toGRPC(err)
	}
	resp.Header = m.header()
	return resp, nil
}

func (m *maintenanceService) downgrade(ctx context.Context, r *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	switch r.Action {
	case pb.DowngradeRequest_VALIDATE:
		if _, err := m.checkDowngrade(ctx, r.Version); err != nil {
			return nil, err
		}
	case pb.DowngradeRequest_ENABLE:
		target, err := m.checkDowngrade(ctx, r.Version)
		if err == nil {
			err = m.setDowngrade(ctx, &membershippb.DowngradeInfoSetRequest{Enabled: true, Ver: target.String()})
		}
		if err != nil {
			m.logger.Warn("reject downgrade request", zap.Error(err))
			return nil, err
		}
	case pb.DowngradeRequest_CANCEL:
		// Failing to cancel is told in the log alone: etcd answers OK.
		if err := m.cancelDowngrade(ctx); err != nil {
			m.logger.Warn("failed to cancel downgrade", zap.Error(err))
		}
	default:
		return nil, errUnknownMethod
	}
	resp := &pb.DowngradeResponse{}
	if v := m.state.ClusterVersion(); v != nil {
		resp.Version = minor(v)
	}
	return resp, nil
}

func minor(v *semver.Version) string {
	return fmt.Sprintf("%d.%d", v.Major, v.Minor)
}

// checkDowngrade says whether the cluster may go down to a version now.
func (m *maintenanceService) checkDowngrade(ctx context.Context, text string) (*semver.Version, error) {
	target, err := semver.NewVersion(text)
	if err != nil {
		target, err = semver.NewVersion(text + ".0")
	}
	if err != nil {
		return nil, errWrongDowngradeFormat
	}
	target = &semver.Version{Major: target.Major, Minor: target.Minor}
	if m.state.ClusterVersion() == nil {
		return nil, errClusterVersionUnavailable
	}
	if err := m.replica.ReadBarrier(ctx); err != nil {
		return nil, err
	}
	now := m.state.ClusterVersion()
	if target.Major != now.Major || target.Minor != now.Minor-1 {
		return nil, errInvalidDowngradeTarget
	}
	if m.state.DowngradeInfo().Enabled {
		return nil, errDowngradeInProcess
	}
	return target, nil
}

var errNoInflightDowngrade = errors.New("etcdserver: no inflight downgrade job")

func (s *Server) cancelDowngrade(ctx context.Context) error {
	if err := s.replica.ReadBarrier(ctx); err != nil {
		return err
	}
	if !s.state.DowngradeInfo().Enabled {
		return errNoInflightDowngrade
	}
	return s.setDowngrade(ctx, &membershippb.DowngradeInfoSetRequest{Enabled: false})
}

func (s *Server) setDowngrade(ctx context.Context, r *membershippb.DowngradeInfoSetRequest) error {
	_, err := s.proposeOwn(ctx, kindDowngradeInfoSet, &pb.InternalRaftRequest{DowngradeInfoSet: r})
	return err
}

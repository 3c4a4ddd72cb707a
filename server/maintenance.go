package server

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/coreos/go-semver/semver"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/internal/version"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/replica"
)

// maintenanceService is etcdserverpb.Maintenance. Snapshot is in snapshot.go.
type maintenanceService struct {
	state    maintained
	group    transferring
	kv       *mvcc.Store
	size     func() (total, inUse int64) // of the store
	log      *proposals
	callers  *authorizer
	headers  *headers
	turns    *turns
	versions *memberVersions
	defrag   *defragmenter
	// activeSince is Peers.ActiveSince: the zero time for a member that cannot be reached.
	activeSince func(id uint64) time.Time
	dataDir     string        // holds the files of snapshots while they are sent
	timeout     time.Duration // of a transfer of leadership
	life        *lifetime
	metrics     *Metrics
	logger      *zap.Logger

	snapshots        chan struct{} // a place for each file that is being sent
	snapshotsWaiting atomic.Int64  // calls that have a place, or wait for one
	snapshotStall    time.Duration // streamStall; for tests
	pb.UnsafeMaintenanceServer
}

// maintained is what this service asks of what the cluster has agreed on; *state.Machine has it.
type maintained interface {
	Member(id uint64) *command.Member // nil: it is none
	IsLearner(id uint64) bool
	Alarms() []*pb.AlarmMember
	DowngradeInfo() command.Downgrade
	QuotaBytes() int64
}

// transferring is the raft group as far as it is led; replica.Replica is one.
type transferring interface {
	Status() replica.Status
	TransferLeader(ctx context.Context, to uint64) error
	ReadBarrier(ctx context.Context) error
}

// Alarm goes through the log even to list, as in etcd, so the answer is current.
func (m *maintenanceService) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	allowed := m.callers.authorizeAdmin
	if r.Action == pb.AlarmRequest_GET {
		allowed = m.callers.authorizeUser
	}
	if err := allowed(ctx); err != nil {
		return nil, toGRPC(err)
	}
	resp, err := m.log.alarm(ctx, r)
	if err != nil {
		return nil, toGRPC(err)
	}
	if resp.Header == nil {
		resp.Header = &pb.ResponseHeader{}
	}
	m.headers.fill(resp.Header)
	return resp, nil
}

func (m *maintenanceService) Status(ctx context.Context, r *pb.StatusRequest) (*pb.StatusResponse, error) {
	if err := m.callers.authorizeUser(ctx); err != nil {
		return nil, toGRPC(err)
	}
	st := m.group.Status()
	total, inUse := m.size()
	downgrade := m.state.DowngradeInfo()
	resp := &pb.StatusResponse{
		Header:           m.headers.now(),
		Version:          version.Etcd,
		DbSize:           max(total, 1), // 0 makes etcdctl divide by it
		DbSizeInUse:      inUse,
		DbSizeQuota:      m.state.QuotaBytes(),
		Leader:           st.Leader,
		RaftIndex:        st.Committed,
		RaftAppliedIndex: st.Applied,
		RaftTerm:         st.Term,
		IsLearner:        m.state.IsLearner(m.headers.memberID),
		DowngradeInfo:    &pb.DowngradeInfo{Enabled: downgrade.Enabled, TargetVersion: downgrade.TargetVersion},
	}
	if v := m.versions.storage(); v != nil {
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

// Defragment answers when the store is compacted, or shortly before the call's deadline. It blocks
// nothing, and the store reclaims space by itself: it is for callers who want the space now. The header
// is nil, as with etcd.
func (m *maintenanceService) Defragment(ctx context.Context, r *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	if err := m.callers.authorizeAdmin(ctx); err != nil {
		return nil, toGRPC(err)
	}
	m.logger.Info("starting defragment")
	goesOn, err := m.defrag.wait(ctx, m.defrag.start())
	switch {
	case err != nil:
		return nil, toGRPC(err)
	case goesOn:
		m.logger.Info("the defragmentation goes on; its caller has no time left and is answered")
	default:
		m.logger.Info("finished defragment")
	}
	return &pb.DefragmentResponse{}, nil
}

func (m *maintenanceService) Hash(ctx context.Context, r *pb.HashRequest) (*pb.HashResponse, error) {
	if err := m.callers.authorizeAdmin(ctx); err != nil {
		return nil, toGRPC(err)
	}
	t := m.turns.newTurn(ctx)
	defer t.end()
	hash, rev, err := m.kv.Hash(t)
	if err != nil {
		return nil, toGRPC(err)
	}
	resp := &pb.HashResponse{Header: &pb.ResponseHeader{Revision: rev}, Hash: hash}
	m.headers.fill(resp.Header)
	return resp, nil
}

func (m *maintenanceService) HashKV(ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	if err := m.callers.authorizeAdmin(ctx); err != nil {
		return nil, toGRPC(err)
	}
	t := m.turns.newTurn(ctx)
	defer t.end()
	resp, err := hashKV(t, m.kv, r.Revision)
	if err != nil {
		return nil, toGRPC(err)
	}
	m.headers.fill(resp.Header)
	return resp, nil
}

// MoveLeader has a nil header, as with etcd.
func (m *maintenanceService) MoveLeader(ctx context.Context, r *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	if err := m.callers.authorizeAdmin(ctx); err != nil {
		return nil, toGRPC(err)
	}
	if m.group.Status().Leader != m.headers.memberID {
		return nil, rpctypes.ErrGRPCNotLeader
	}
	target := m.state.Member(r.TargetID)
	if target == nil || target.IsLearner {
		return nil, rpctypes.ErrGRPCBadLeaderTransferee
	}
	if r.TargetID == m.headers.memberID {
		return &pb.MoveLeaderResponse{}, nil
	}
	if len(target.ClientURLs) == 0 && m.activeSince(r.TargetID).IsZero() {
		// It was added and has never run: waiting would be in vain.
		m.logger.Warn("refused to transfer leadership to a member that has never started", zap.String("transferee-member-id", command.IDText(r.TargetID)))
		return nil, rpctypes.ErrGRPCBadLeaderTransferee
	}
	start := time.Now()
	m.logger.Info("leadership transfer starting",
		zap.String("local-member-id", command.IDText(m.headers.memberID)), zap.String("current-leader-member-id", command.IDText(m.headers.memberID)),
		zap.String("transferee-member-id", command.IDText(r.TargetID)))
	bounded, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()
	if err := m.group.TransferLeader(bounded, r.TargetID); err != nil {
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			err = replica.ErrTimeoutLeaderTransfer
		}
		return nil, toGRPC(err)
	}
	m.logger.Info("leadership transfer finished",
		zap.String("local-member-id", command.IDText(m.headers.memberID)), zap.String("old-leader-member-id", command.IDText(m.headers.memberID)),
		zap.String("new-leader-member-id", command.IDText(r.TargetID)), zap.Duration("took", time.Since(start)))
	return &pb.MoveLeaderResponse{}, nil
}

// Downgrade is a cluster's way back to the minor version before. Its rules are etcd's. The cluster
// version really goes down, so that real etcd members of that version may join; Belay's own members
// do not change.
func (m *maintenanceService) Downgrade(ctx context.Context, r *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	if err := m.callers.authorizeAdmin(ctx); err != nil {
		return nil, toGRPC(err)
	}
	resp, err := m.downgrade(ctx, r)
	if err != nil {
		return nil, toGRPC(err)
	}
	resp.Header = m.headers.now()
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
		// A failure to cancel is only logged: etcd answers OK.
		if err := m.cancelDowngrade(ctx); err != nil {
			m.logger.Warn("failed to cancel downgrade", zap.Error(err))
		}
	default:
		return nil, errUnknownMethod
	}
	resp := &pb.DowngradeResponse{}
	if v := m.versions.cluster(); v != nil {
		resp.Version = minor(v)
	}
	return resp, nil
}

func minor(v *semver.Version) string {
	return fmt.Sprintf("%d.%d", v.Major, v.Minor)
}

// checkDowngrade reports whether the cluster may go down to a version now.
func (m *maintenanceService) checkDowngrade(ctx context.Context, text string) (*semver.Version, error) {
	target, err := semver.NewVersion(text)
	if err != nil {
		target, err = semver.NewVersion(text + ".0")
	}
	if err != nil {
		return nil, errWrongDowngradeFormat
	}
	target = &semver.Version{Major: target.Major, Minor: target.Minor}
	if m.versions.cluster() == nil {
		return nil, errClusterVersionUnavailable
	}
	if err := m.group.ReadBarrier(ctx); err != nil {
		return nil, err
	}
	now := m.versions.cluster()
	if target.Major != now.Major || target.Minor != now.Minor-1 {
		return nil, errInvalidDowngradeTarget
	}
	if m.state.DowngradeInfo().Enabled {
		return nil, errDowngradeInProcess
	}
	return target, nil
}

var errNoInflightDowngrade = errors.New("etcdserver: no inflight downgrade job")

func (m *maintenanceService) cancelDowngrade(ctx context.Context) error {
	if err := m.group.ReadBarrier(ctx); err != nil {
		return err
	}
	if !m.state.DowngradeInfo().Enabled {
		return errNoInflightDowngrade
	}
	return m.setDowngrade(ctx, &membershippb.DowngradeInfoSetRequest{Enabled: false})
}

func (m *maintenanceService) setDowngrade(ctx context.Context, r *membershippb.DowngradeInfoSetRequest) error {
	_, err := m.log.own(ctx, kindDowngradeInfoSet, &pb.InternalRaftRequest{DowngradeInfoSet: r})
	return err
}

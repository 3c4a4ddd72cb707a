package server

import (
	"context"
	"slices"
	"time"

	"github.com/coreos/go-semver/semver"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/lease"
)

// ownRequests are what package leader proposes: requests are made here, and counted by their kinds.
type ownRequests struct {
	memberID  uint64
	log       *proposals
	callers   *authorizer
	alarms    func() []*pb.AlarmMember
	timeout   time.Duration // of a proposal in the background
	isRemoved func(id uint64) bool
	life      *lifetime
	logger    *zap.Logger
}

func (o *ownRequests) setVersion(ctx context.Context, term uint64, v *semver.Version) error {
	return o.log.inTerm(ctx, term, kindClusterVersionSet, versionRequest(v))
}

func versionRequest(v *semver.Version) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{ClusterVersionSet: &membershippb.ClusterVersionSetRequest{Ver: v.String()}}
}

func (o *ownRequests) revoke(ctx context.Context, term uint64, id lease.ID) error {
	return o.log.inTerm(ctx, term, kindLeaseRevoke,
		&pb.InternalRaftRequest{Header: o.callers.rootHeader(), LeaseRevoke: &pb.LeaseRevokeRequest{ID: int64(id)}})
}

func (o *ownRequests) noteRemaining(ctx context.Context, term uint64, due []lease.Checkpoint) error {
	req := &pb.LeaseCheckpointRequest{Checkpoints: make([]*pb.LeaseCheckpoint, len(due))}
	for i, d := range due {
		req.Checkpoints[i] = &pb.LeaseCheckpoint{ID: int64(d.ID), Remaining_TTL: d.Remaining}
	}
	return o.log.inTerm(ctx, term, kindLeaseCheckpoint, &pb.InternalRaftRequest{LeaseCheckpoint: req})
}

// raiseNoSpace raises the alarm as what this member raises of its own accord.
func (o *ownRequests) raiseNoSpace(ctx context.Context) error {
	_, err := o.log.own(ctx, kindAlarm, &pb.InternalRaftRequest{
		Header: &pb.RequestHeader{Username: command.Itself},
		Alarm:  &pb.AlarmRequest{MemberID: o.memberID, Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE},
	})
	return err
}

func (o *ownRequests) endNoSpace(ctx context.Context, id uint64) error {
	_, err := o.log.alarm(ctx, &pb.AlarmRequest{MemberID: id, Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE})
	return err
}

// corrupt is whom the alarm CORRUPT names; 0: nobody knows whom.
func (o *ownRequests) corrupt() (ids []uint64) {
	for _, a := range o.alarms() {
		if a.Alarm == pb.AlarmType_CORRUPT {
			ids = append(ids, a.MemberID)
		}
	}
	return ids
}

func (o *ownRequests) endCorrupt(ctx context.Context, id uint64) error {
	_, err := o.log.alarm(ctx, &pb.AlarmRequest{MemberID: id, Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_CORRUPT})
	return err
}

// raiseCorrupt does nothing if the alarm is active already, or the member was removed while it was
// compared. It does not wait.
func (o *ownRequests) raiseCorrupt(id uint64) {
	if slices.Contains(o.corrupt(), id) || id != 0 && o.isRemoved(id) {
		return
	}
	o.life.background(func(stopped context.Context) {
		ctx, cancel := context.WithTimeout(stopped, o.timeout)
		defer cancel()
		_, err := o.log.alarm(ctx, &pb.AlarmRequest{MemberID: id, Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_CORRUPT})
		if err != nil && stopped.Err() == nil {
			o.logger.Warn("failed to raise the CORRUPT alarm", zap.String("member-id", command.IDText(id)), zap.Error(err))
		}
	})
}

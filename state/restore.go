package state

import (
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/store"
)

// RestoreCluster writes the members of a new cluster, all of them voters, and the alarms that a
// snapshot file had. REQUIRES: no Machine was opened on the store yet.
func RestoreCluster(b *store.Batch, members []*command.Member, alarms []*pb.AlarmMember) error {
	cs := new(raftpb.ConfState)
	for _, m := range members {
		cs.Voters = append(cs.Voters, m.ID)
		if err := b.Set(store.MemberKey(m.ID), mustJSON(m)); err != nil {
			return err
		}
	}
	for _, a := range alarms {
		if err := b.Set(store.AlarmKey(int32(a.Alarm), a.MemberID), nil); err != nil {
			return err
		}
	}
	value, err := proto.Marshal(cs)
	return errors.Join(err, b.Set(store.ConfStateKey(), value))
}

// RestoreStored writes what a snapshot file says of a cluster that goes on: the inverse of
// ReadStored, but that which alarms members raised by themselves is not known. REQUIRES: no Machine
// was opened on the store yet.
func RestoreStored(b *store.Batch, s *command.Stored) error {
	if err := RestoreCluster(b, s.Members, s.Alarms); err != nil {
		return err
	}
	var errs []error
	for _, id := range s.Removed {
		errs = append(errs, b.Set(store.RemovedMemberKey(id), nil))
	}
	if s.Version != nil {
		errs = append(errs, b.Set(store.ClusterKey(clusterVersionName), []byte(s.Version.String())))
	}
	if s.Downgrade != (command.Downgrade{}) {
		errs = append(errs, b.Set(store.ClusterKey(downgradeName), mustJSON(s.Downgrade)))
	}
	value, err := proto.Marshal(s.ConfState)
	errs = append(errs, err, b.Set(store.ConfStateKey(), value))
	return errors.Join(errs...)
}

package command

import (
	"github.com/coreos/go-semver/semver"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
)

// Downgrade is a downgrade of the cluster in progress, or none.
type Downgrade struct {
	TargetVersion string `json:"target-version"`
	Enabled       bool   `json:"enabled"`
}

// Stored is what a store holds about the cluster itself: members, alarms, versions.
type Stored struct {
	Members   []*Member         // by ID
	Removed   []uint64          // ascending
	Alarms    []*pb.AlarmMember // by type and member
	Version   *semver.Version   // nil: not set yet
	Downgrade Downgrade
	ConfState *raftpb.ConfState // nil: no member change yet
}

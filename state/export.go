package state

import (
	"slices"

	"github.com/coreos/go-semver/semver"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/store"
)

// Stored is what a store holds about the cluster itself: members, alarms, versions.
type Stored struct {
	Members   []*command.Member // by ID
	Removed   []uint64          // ascending
	Alarms    []*pb.AlarmMember // by type and member
	Version   *semver.Version   // nil: not set yet
	Downgrade Downgrade
	ConfState *raftpb.ConfState // nil: no member change yet
}

// ReadStored reads it from a view, for copying the state elsewhere: a machine's own methods show
// the present, not the moment of the view.
func ReadStored(r store.Reader) (*Stored, error) {
	c, err := readCluster(r)
	if err != nil {
		return nil, err
	}
	cs, err := readConfState(r)
	if err != nil {
		return nil, err
	}
	s := &Stored{
		Members: c.sorted(), Alarms: c.alarms.list(pb.AlarmType_NONE),
		Version: c.version, Downgrade: c.downgrade, ConfState: cs,
	}
	for id := range c.removed {
		s.Removed = append(s.Removed, id)
	}
	slices.Sort(s.Removed)
	return s, nil
}

package state

import (
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/store"
)

// ReadStored reads it from a view, for copying the state elsewhere: a machine's own methods show
// the present, not the moment of the view.
func ReadStored(r store.Reader) (*command.Stored, error) {
	c, err := readCluster(r)
	if err != nil {
		return nil, err
	}
	cs, err := readConfState(r)
	if err != nil {
		return nil, err
	}
	s := &command.Stored{
		Members: c.sorted(), Alarms: c.alarms.list(pb.AlarmType_NONE),
		Version: c.version, Downgrade: c.downgrade, ConfState: cs,
	}
	for id := range c.removed {
		s.Removed = append(s.Removed, id)
	}
	slices.Sort(s.Removed)
	return s, nil
}

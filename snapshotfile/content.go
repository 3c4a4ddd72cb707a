package snapshotfile

import (
	"encoding/json"

	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
)

// ContentOf is what a view shows, as the content of a file. It reads from the view until the file
// is made; stored is what that view's store holds about the cluster (state.ReadStored).
func ContentOf(view *mvcc.View, stored *command.Stored) (Content, error) {
	r := view.Reader()
	c := Content{
		ConfState:  stored.ConfState,
		Members:    stored.Members,
		Removed:    stored.Removed,
		Alarms:     stored.Alarms,
		CompactRev: view.CompactRevision(),
		Revisions:  view.Revisions,
		Leases: func(each func(id, ttl, remaining int64) error) error {
			return lease.Records(r, func(id lease.ID, ttl, remaining int64) error { return each(int64(id), ttl, remaining) })
		},
	}
	c.Auth = func(each func(bucket, name string, value []byte) error) error {
		return auth.Records(r, func(rec auth.Record) error { return each(rec.Bucket(), rec.Name(), rec.Value) })
	}
	c.Index, c.Term = view.Applied()
	if stored.Version != nil {
		c.ClusterVersion = stored.Version.String()
	}
	if stored.Downgrade != (command.Downgrade{}) {
		text, err := json.Marshal(stored.Downgrade)
		if err != nil {
			return Content{}, err
		}
		c.Downgrade = text
	}
	return c, nil
}

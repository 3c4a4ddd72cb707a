package snapshotfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/command"
)

// ConfState is raft's configuration as of Index; nil: the file does not say (etcd before 3.5).
func (r *Reader) ConfState() (*raftpb.ConfState, error) {
	text := r.get("meta", "confState")
	if text == nil {
		return nil, nil
	}
	cs := new(raftpb.ConfState)
	if err := json.Unmarshal(text, cs); err != nil {
		return nil, fmt.Errorf("bucket meta, confState: %w", err)
	}
	return cs, nil
}

// Members are the cluster's members, by the text of their ids.
func (r *Reader) Members() (members []*command.Member, err error) {
	err = r.each("members", func(k, v []byte) error {
		m := new(command.Member)
		if err := json.Unmarshal(v, m); err != nil {
			return err
		}
		if id, err := strconv.ParseUint(string(k), 16, 64); err != nil || id != m.ID {
			return errors.New("that is no member")
		}
		members = append(members, m)
		return nil
	})
	return members, err
}

// Removed are the ids of former members.
func (r *Reader) Removed() (ids []uint64, err error) {
	err = r.each("members_removed", func(k, _ []byte) error {
		id, err := strconv.ParseUint(string(k), 16, 64)
		ids = append(ids, id)
		return err
	})
	return ids, err
}

// ClusterVersion and Downgrade are those of the cluster, and StorageVersion that of the file's
// schema, as they are written; empty: not set.
func (r *Reader) ClusterVersion() string { return string(r.get("cluster", "clusterVersion")) }

// Downgrade: see ClusterVersion.
func (r *Reader) Downgrade() []byte { return r.get("cluster", "downgrade") }

// StorageVersion: see ClusterVersion.
func (r *Reader) StorageVersion() string { return string(r.get("meta", "storageVersion")) }

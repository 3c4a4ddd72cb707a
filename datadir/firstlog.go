package datadir

import (
	"context"
	"encoding/json"
	"errors"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/raftlog"
)

// WriteFirstLog makes the log of a new cluster: one AddNode entry for each member, committed. It is
// written beside its final place and then renamed, so an existing log is either complete or that of
// a member that joined.
func WriteFirstLog(dir string, opts raftlog.Options, id Identity) error {
	fs := opts.FS
	temporary := dir + ".new"
	if err := fs.RemoveAll(temporary); err != nil {
		return err
	}
	var entries []*raftpb.Entry
	for i, m := range id.Members {
		context, err := json.Marshal(&command.Member{ID: m.ID, PeerURLs: m.PeerURLs, Name: m.Name})
		if err != nil {
			return err
		}
		data, err := proto.Marshal(&raftpb.ConfChange{
			Type: raftpb.ConfChangeAddNode.Enum(), NodeId: new(m.ID), Context: context,
		})
		if err != nil {
			return err
		}
		entries = append(entries, &raftpb.Entry{
			Type: raftpb.EntryConfChange.Enum(), Term: new(uint64(1)), Index: new(uint64(i + 1)), Data: data,
		})
	}
	opts.Released = func([]*raftpb.Message) {}
	log, err := raftlog.Open(temporary, opts)
	if err != nil {
		return err
	}
	log.Append(raftlog.Append{
		HardState: &raftpb.HardState{Term: new(uint64(1)), Vote: new(uint64(0)), Commit: new(uint64(len(entries)))},
		Entries:   entries,
	})
	if err := errors.Join(log.Sync(context.Background()), log.Close()); err != nil {
		return err
	}
	if err := fs.Rename(temporary, dir); err != nil {
		return err
	}
	return SyncDir(fs, fs.PathDir(dir))
}

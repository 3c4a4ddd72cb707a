package datadir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/snapshotfile"
	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/store"
)

// An etcd that leads sends a follower that is too far behind its database. A member of Belay makes
// a store of it, beside its own, from where it takes it as it takes another Belay's:
//
//	body --> db --> scratch store, sorted by key --> tables beside the store --> installed
//	         checked, removed once read
//
// Memory is bounded by the scratch store's and by the keys that have leases; the disk holds the
// database and the scratch store at the same time, then the scratch store and the tables.

// ReceiveRoom is how much of the disk a snapshot of etcd's leaves free at least, in bytes: the raft
// log beside it must go on.
const ReceiveRoom = 256 << 20

// receivedRoomStep is how many bytes of the body come between two looks at the free space.
const receivedRoomStep = 16 << 20

// Receive makes a store in dir, which the caller removes after closing it, of the database that an
// etcd sends as its snapshot of meta. It fails if the body is cut off or damaged, if it is not of
// meta's entry, term and members, or when free says that the disk has no room.
func Receive(ctx context.Context, dir string, body io.Reader, meta *raftpb.SnapshotMetadata, free func() (uint64, error)) (*store.Store, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	path := filepath.Join(dir, "db")
	if err := spool(ctx, path, body, free); err != nil {
		return nil, fmt.Errorf("datadir: receive etcd's database: %w", err)
	}
	st, err := store.Open(filepath.Join(dir, "store"), store.Options{
		FS: FS(), NoSync: true, FailFull: true, CacheBytes: scratchCacheBytes, MemTableBytes: scratchMemTableBytes,
	})
	if err == nil {
		err = snapshotfile.Read(path, true, func(f *snapshotfile.Reader) error {
			return fillReceived(ctx, st, f, meta, func() {
				if err := checkRoom(free); err != nil {
					cancel(err)
				}
			})
		})
		if cause := context.Cause(ctx); err != nil && cause != nil {
			err = cause
		}
		if err := errors.Join(err, os.Remove(path)); err != nil {
			return nil, errors.Join(fmt.Errorf("datadir: etcd's database: %w", err), st.Close())
		}
		return st, nil
	}
	return nil, fmt.Errorf("datadir: a store for etcd's database: %w", err)
}

func checkRoom(free func() (uint64, error)) error {
	n, err := free()
	if err == nil && n < ReceiveRoom {
		err = fmt.Errorf("the disk has %d MiB free, and %d MiB stay free for the raft log", n>>20, uint64(ReceiveRoom)>>20)
	}
	return err
}

// spool writes the body to a file. Nobody relies on it after a crash.
func spool(ctx context.Context, path string, body io.Reader, free func() (uint64, error)) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for {
		if err := errors.Join(checkRoom(free), ctx.Err()); err != nil {
			return err
		}
		if _, err := io.CopyN(f, body, receivedRoomStep); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// fillReceived fills a new store. look is called for every batch.
func fillReceived(ctx context.Context, st *store.Store, f *snapshotfile.Reader, meta *raftpb.SnapshotMetadata, look func()) error {
	if err := checkSchema(f); err != nil {
		return err
	}
	if f.Index() != meta.GetIndex() || f.Term() != meta.GetTerm() {
		return fmt.Errorf("it has applied entry %d of term %d; the message that brings it says %d and %d", f.Index(), f.Term(), meta.GetIndex(), meta.GetTerm())
	}
	stored, err := receivedCluster(f, meta.GetConfState())
	if err != nil {
		return err
	}
	w := filling{ctx: ctx, begin: func() *store.Batch {
		look()
		return st.NewLocalBatch()
	}}
	defer w.abort()
	revs, err := w.content(f, new(Restored))
	if err != nil {
		return err
	}
	batch := st.NewBatch(meta.GetIndex(), meta.GetTerm())
	defer batch.Close()
	return errors.Join(
		mvcc.RestoreRevision(batch, revs.current, revs.scheduled, revs.finished),
		state.RestoreStored(batch, stored),
		batch.Commit(),
	)
}

// receivedCluster is what a database says of the cluster, whose configuration the message has.
func receivedCluster(f *snapshotfile.Reader, cs *raftpb.ConfState) (*command.Stored, error) {
	s, listed, err := writtenCluster(f)
	if err != nil {
		return nil, err
	}
	s.ConfState = proto.CloneOf(cs)
	known := map[uint64]*command.Member{}
	for _, m := range listed {
		known[m.ID] = m
		if !slices.Contains(cs.GetVoters(), m.ID) && !slices.Contains(cs.GetLearners(), m.ID) {
			return nil, fmt.Errorf("member %x is in the list of members, but not in raft's configuration", m.ID)
		}
	}
	return s, configured(s, known)
}

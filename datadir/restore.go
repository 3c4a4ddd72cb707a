package datadir

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/raftlog"
	"github.com/belaydb/belay/snapshotfile"
	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/store"
)

// RestoreConfig names the snapshot file and the member whose data directory to make.
type RestoreConfig struct {
	Snapshot string // etcd's snapshot file, or its database file
	SkipHash bool   // the file has no SHA-256 at its end, or a wrong one

	// The member and its new cluster, like the server's flags of the same names. REQUIRES: config's
	// Verify has accepted them.
	Name, DataDir, WALDir, InitialCluster, InitialClusterToken string

	// BumpRevision is added to the current revision, and everything up to there counts as
	// compacted, so that no client sees a revision twice with different content; 0: neither.
	BumpRevision int64

	// Progress is told how many bytes of keys and values are written, of how many bytes the file
	// has; nil: nobody looks.
	Progress Progress
}

// Progress is told how far a step is that may take long: done of total, 0 while that is not known. It
// is called for each key, and returns at once.
type Progress func(step string, done, total int64)

// step is the progress of one step alone; nil if nobody looks.
func (p Progress) step(step string) func(done, total int64) {
	if p == nil {
		return nil
	}
	return func(done, total int64) { p(step, done, total) }
}

// Walking is ctx for a long walk over a store, of which each is told: how many versions of keys and how
// many bytes of values were read since the last call. See mvcc.Pacer.
func Walking(ctx context.Context, each func(keys, bytes int64)) context.Context {
	return walked{ctx, each}
}

type walked struct {
	context.Context
	tell func(keys, bytes int64)
}

// Pace is mvcc.Pacer's.
func (w walked) Pace(keys, bytes int64) error {
	w.tell(keys, bytes)
	return nil
}

// telling is ctx, and tells of the bytes that a walk with it reads, of which nobody knows how many
// there are.
func (p Progress) telling(ctx context.Context, step string) context.Context {
	if p == nil {
		return ctx
	}
	done := int64(0)
	return Walking(ctx, func(_, bytes int64) {
		done += bytes
		p(step, done, 0)
	})
}

// metered is a source whose reading is told of, in bytes, or in versions.
type metered struct {
	Source
	versions bool
	total    int64
	tell     Progress
}

func (s metered) Revisions(each func(main, sub int64, tombstone bool, kv *mvccpb.KeyValue) error) error {
	if s.tell == nil {
		return s.Source.Revisions(each)
	}
	done := int64(0)
	return s.Source.Revisions(func(main, sub int64, tombstone bool, kv *mvccpb.KeyValue) error {
		switch {
		case kv == nil:
		case s.versions:
			done++
		default:
			done += int64(len(kv.Key) + len(kv.Value))
		}
		s.tell("writing", done, s.total)
		return each(main, sub, tombstone, kv)
	})
}

// A Source is what data is made of: a snapshot file, or a backup. Each method reads from the
// beginning.
type Source interface {
	// Index is beyond no entry of the old cluster's raft log that the content comes from; 0: not known.
	Index() uint64
	// Revisions calls each for every version, by ascending revision; see snapshotfile.Reader.
	Revisions(each func(main, sub int64, tombstone bool, kv *mvccpb.KeyValue) error) error
	// Compactions are the newest revisions up to which a compaction was asked for, and up to which
	// it was done; -1: none.
	Compactions() (scheduled, finished int64, err error)
	// Leases calls each for every lease, once.
	Leases(each func(id, ttl, remaining int64) error) error
	// Auth calls each for every record of users, roles and their settings.
	Auth(each func(bucket, name string, value []byte) error) error
	// Alarms are the active alarms.
	Alarms() ([]*pb.AlarmMember, error)
}

// Restored says what was restored.
type Restored struct {
	Revision          int64
	Keys              int // revisions of keys, tombstones included
	Leases            int
	Member, Cluster   uint64
	Members           []*command.Member // of the new cluster
	StoreDir, WALPath string
}

const (
	restoringDir = "member.restoring" // becomes member when it is complete
	restoreTerm  = 1
	// restoreBatchBytes bounds the memory; a batch holds one version at least.
	restoreBatchBytes = 4 << 20
)

// Restore makes the data directory of one member of a new cluster from a snapshot file. Every
// member of the cluster must be made from the same file: they then hold the same, as if each had
// received the file as raft's snapshot. The old members and the cluster's version are left out, as
// in etcdutl.
//
// Crash points: what is incomplete is called member.restoring, and a start refuses a separate log
// under --wal-dir without a store beside it.
func Restore(ctx context.Context, c RestoreConfig) (r Restored, err error) {
	return restore(ctx, c, func(fill func(Source) error) error {
		size := int64(0)
		if info, err := os.Stat(c.Snapshot); err == nil { // else Read says so
			size = info.Size()
		}
		return snapshotfile.Read(c.Snapshot, c.SkipHash, func(f *snapshotfile.Reader) error {
			return fill(metered{Source: f, total: size, tell: c.Progress})
		})
	})
}

// RestoreFrom is Restore from another source than a snapshot file.
func RestoreFrom(ctx context.Context, c RestoreConfig, src Source) (Restored, error) {
	return restore(ctx, c, func(fill func(Source) error) error { return fill(metered{Source: src, tell: c.Progress}) })
}

// Scratch fills a store of its own in dir, which must not exist, and calls look with a view of it
// and how many versions were written. In the end, come what may, dir is removed. It is for trying
// whether a source can be restored: no member can be started on it.
func Scratch(ctx context.Context, dir string, src Source, look func(view *mvcc.View, versions int) error) (err error) {
	fs := FS()
	if _, err := fs.Stat(dir); err == nil {
		return fmt.Errorf("%s exists", dir)
	}
	if err := fs.MkdirAll(dir, folderMode); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var r Restored
	// Nothing of it outlives the process, so nothing is synced.
	options := store.Options{FS: fs, NoSync: true, CacheBytes: scratchCacheBytes, MemTableBytes: scratchMemTableBytes}
	if _, err := restoreStore(ctx, dir, options, src, nil, 0, &r); err != nil {
		return err
	}
	st, err := store.OpenReadOnly(dir, options)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	view := mvcc.ReadView(st)
	defer view.Close()
	if err := view.Err(); err != nil {
		return err
	}
	return look(view, r.Keys)
}

// The memory of a scratch store: it stands beside a member at work.
const (
	scratchCacheBytes    = 8 << 20
	scratchMemTableBytes = 8 << 20
)

// restore: with calls its argument with the source while that can be read.
func restore(ctx context.Context, c RestoreConfig, with func(fill func(Source) error) error) (r Restored, err error) {
	id, err := Found(c.Name, c.InitialCluster, c.InitialClusterToken)
	if err != nil {
		return r, err
	}
	fs := FS()
	paths := PathsOf(c.DataDir, c.WALDir)
	r = Restored{Member: id.Member, Cluster: id.Cluster, Members: id.Members, StoreDir: paths.Store, WALPath: paths.Log}
	if names, err := os.ReadDir(c.DataDir); err == nil && len(names) > 0 {
		return r, fmt.Errorf("data-dir %q not empty or could not be read; restore into one that does not exist", c.DataDir)
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return r, fmt.Errorf("data-dir %q not empty or could not be read: %w", c.DataDir, err)
	}
	if c.WALDir != "" {
		if _, err := os.Stat(c.WALDir); err == nil {
			return r, fmt.Errorf("wal-dir %q exists; restore into one that does not exist", c.WALDir)
		}
	}
	temporary := filepath.Join(c.DataDir, restoringDir)
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(temporary))
			_ = os.Remove(c.DataDir) // if nothing else is in it
		}
	}()
	err = with(func(src Source) error {
		if err := fs.MkdirAll(temporary, 0o700); err != nil {
			return err
		}
		logDir := filepath.Join(temporary, "log")
		if c.WALDir != "" {
			if err := fs.MkdirAll(c.WALDir, 0o700); err != nil {
				return err
			}
			logDir = paths.Log
		}
		storeDir := filepath.Join(temporary, "store")
		index, err := restoreStore(ctx, storeDir, store.Options{FS: fs}, src, id.Members, c.BumpRevision, &r)
		if err != nil {
			return err
		}
		record, err := restoreLog(logDir, id, index)
		if err != nil {
			return err
		}
		if err := keepEtcdOut(fs, temporary); err != nil {
			return err
		}
		return Write(fs, Paths{Member: temporary, Store: storeDir, Log: logDir}, record)
	})
	if err != nil {
		return r, err
	}
	if err := fs.Rename(temporary, filepath.Join(c.DataDir, "member")); err != nil {
		return r, err
	}
	return r, SyncDir(fs, c.DataDir)
}

// restoreStore fills a new store; index is its applied index.
func restoreStore(ctx context.Context, dir string, options store.Options, src Source, members []*command.Member, bump int64, r *Restored) (index uint64, err error) {
	options.FailFull = true
	st, err := store.Open(dir, options)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	w := filling{ctx: ctx, begin: func() *store.Batch {
		index++
		return st.NewBatch(index, restoreTerm)
	}}
	defer w.abort()
	revs, err := w.content(src, r)
	if err != nil {
		return 0, err
	}
	if bump > 0 {
		revs.current += bump
		revs.scheduled = revs.current
	}
	r.Revision = revs.current
	alarms, err := src.Alarms()
	if err != nil {
		return 0, err
	}
	// Beyond every entry of the old cluster, so that a late message from it counts as outdated.
	index = max(index, src.Index()) + 1
	batch := st.NewBatch(index, restoreTerm)
	defer batch.Close()
	if err := errors.Join(
		mvcc.RestoreRevision(batch, revs.current, revs.scheduled, revs.finished),
		state.RestoreCluster(batch, members, alarms),
		batch.Commit(),
	); err != nil {
		return 0, err
	}
	return index, st.Flush(ctx)
}

// filling writes the content of a snapshot file into a new store, in batches that bound the memory.
type filling struct {
	ctx   context.Context
	begin func() *store.Batch
	batch *store.Batch // nil: none is open
	room  int
}

// next is a batch with room for that many bytes.
func (w *filling) next(bytes int) (*store.Batch, error) {
	if w.batch != nil && w.room < bytes {
		if err := w.commit(); err != nil {
			return nil, err
		}
	}
	if w.batch == nil {
		w.batch, w.room = w.begin(), restoreBatchBytes
	}
	w.room -= bytes
	return w.batch, nil
}

func (w *filling) commit() error {
	if w.batch == nil {
		return nil
	}
	err := errors.Join(w.batch.Commit(), w.ctx.Err())
	w.batch = nil
	return err
}

func (w *filling) abort() {
	if w.batch != nil {
		w.batch.Close()
		w.batch = nil
	}
}

// revisions of a snapshot file; -1: no compaction.
type revisions struct{ current, scheduled, finished int64 }

// content writes keys with their history, leases, users and roles, and counts them in r.
func (w *filling) content(src Source, r *Restored) (revs revisions, err error) {
	leases := map[int64]bool{}
	if err := src.Leases(func(id, ttl, remaining int64) error {
		b, err := w.next(64)
		if err != nil {
			return err
		}
		leases[id] = true
		return lease.Restore(b, lease.ID(id), ttl, remaining)
	}); err != nil {
		return revs, err
	}
	r.Leases = len(leases)

	revs.current = 1
	attached := map[string]int64{} // keys whose newest version has a lease
	if err := src.Revisions(func(main, sub int64, tombstone bool, kv *mvccpb.KeyValue) error {
		revs.current = max(revs.current, main)
		if kv == nil {
			return nil
		}
		b, err := w.next(len(kv.Key)*2 + len(kv.Value) + 64)
		if err != nil {
			return err
		}
		r.Keys++
		if !tombstone && leases[kv.Lease] {
			attached[string(kv.Key)] = kv.Lease
		} else {
			delete(attached, string(kv.Key))
		}
		return mvcc.Restore(b, mvcc.Revision{Main: main, Sub: sub}, tombstone, kv)
	}); err != nil {
		return revs, err
	}
	// In order, so that every member that restores the file divides its batches alike, and begins
	// its log at the same index.
	for _, key := range slices.Sorted(maps.Keys(attached)) {
		b, err := w.next(len(key) + 64)
		if err != nil {
			return revs, err
		}
		if err := lease.RestoreKey(b, lease.ID(attached[key]), []byte(key)); err != nil {
			return revs, err
		}
	}
	if err := src.Auth(func(bucket, name string, value []byte) error {
		rec, err := auth.RecordOf(bucket, name, value)
		if err != nil {
			return err
		}
		b, err := w.next(len(name) + len(value) + 64)
		if err != nil {
			return err
		}
		return b.Set(rec.Key(), value)
	}); err != nil {
		return revs, err
	}
	if revs.scheduled, revs.finished, err = src.Compactions(); err != nil {
		return revs, err
	}
	revs.current = max(revs.current, revs.scheduled)
	return revs, w.commit()
}

// restoreLog makes a log that begins where the store ends.
func restoreLog(dir string, id Identity, index uint64) (Record, error) {
	none := Record{}
	log, err := raftlog.Open(dir, raftlog.Options{
		FS: FS(), MemberID: id.Member, ClusterID: id.Cluster, Logger: zap.NewNop(),
		Released: func([]*raftpb.Message) {}, Failed: func(error) {},
	})
	if err != nil {
		return none, err
	}
	cs := new(raftpb.ConfState)
	for _, m := range id.Members {
		cs.Voters = append(cs.Voters, m.ID)
	}
	_, err = log.Adopt(index, restoreTerm, cs)
	group, serr := log.Seal()
	if err := errors.Join(err, serr, log.Close()); err != nil {
		return none, err
	}
	return Record{Member: id.Member, Cluster: id.Cluster, Log: log.Metadata().LogID, Group: group}, nil
}

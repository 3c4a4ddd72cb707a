package datadir

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/raftlog"
	"github.com/belaydb/belay/snapshotfile"
	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/store"
	"github.com/belaydb/belay/walfile"
)

// A Finding is something that is wrong with a member's data.
type Finding struct {
	File   string `json:"file"`
	Offset int64  `json:"offset,omitempty"` // bytes; 0: not known, or the beginning
	Reason string `json:"reason"`
}

// Verified is what Verify found. The figures of a part that cannot be read are zero.
type Verified struct {
	Kind            string // "belay" or "etcd"
	Member, Cluster uint64

	First, Last, Commit uint64 // entries of the log; 0: it holds none
	Applied, Term       uint64 // the last entry whose effect is in the store

	Revision, Compacted       int64
	Versions                  int // of keys, deletions included
	Members, Leases, Accounts int // Accounts: users and roles
	Hash                      uint32

	Findings []Finding
	Notes    []string // what is as it may be, but worth knowing

	progress Progress
}

func (v *Verified) found(file string, offset int64, format string, args ...any) {
	v.Findings = append(v.Findings, Finding{file, offset, fmt.Sprintf(format, args...)})
}

// broken notes an error of reading a file as a finding.
func (v *Verified) broken(file string, err error) {
	if err == nil {
		return
	}
	var damage *walfile.DamageError
	if errors.As(err, &damage) {
		v.found(damage.File, damage.Offset, "%s", damage.Reason)
		return
	}
	if info := pebble.ExtractDataCorruptionInfo(err); info != nil {
		file = info.Path
	}
	v.found(file, 0, "%v", err)
}

// Verify reads everything that a stopped member's folders hold, Belay's or etcd's, and says what is
// wrong: each checksum, that the parts belong together, that what is kept twice is equal, that the
// log has what it says is committed. It changes nothing. walDir may be empty. progress, if not nil, is
// told the bytes that were read: of Belay's store in three passes, keys and values, values by revision,
// values that are hashed; of an etcd's database those that are hashed.
//
// Errors: there is no data, or a member runs on it, or ctx ended. What is wrong with the data is no
// error, but a Finding.
func Verify(ctx context.Context, dataDir, walDir string, progress Progress) (*Verified, error) {
	paths := PathsOf(dataDir, walDir)
	var v *Verified
	var err error
	switch belay, etcd := holdsOfBelay(paths), isEtcd(paths.Member); {
	case etcd && !belay:
		wal := filepath.Join(paths.Member, "wal")
		if walDir != "" {
			wal = walDir
		}
		v = &Verified{Kind: "etcd", progress: progress}
		err = v.etcd(filepath.Join(paths.Member, etcdsFolder, "db"), wal)
	case belay && !etcd:
		v = &Verified{Kind: "belay", progress: progress}
		err = v.belay(ctx, paths)
	case belay:
		v = &Verified{Kind: "belay"}
		v.found(paths.Member, 0, "it holds data of Belay and data of etcd")
	default:
		return nil, fmt.Errorf("%s holds no data of a member, Belay's or etcd's", dataDir)
	}
	if err == nil {
		err = ctx.Err()
	}
	return v, err
}

// holdsOfBelay reports whether any part of a member is there, though others may be lost.
func holdsOfBelay(paths Paths) bool {
	return exists(paths.identity()) || exists(paths.Store) || exists(filepath.Join(paths.Log, "META"))
}

func (v *Verified) belay(ctx context.Context, paths Paths) (err error) {
	switch unlock, err := lockParts(paths); {
	case err == nil:
		defer func() { err = errors.Join(err, unlock()) }()
	case !oserror.IsNotExist(err): // what is missing is said below
		return err
	}
	parts, err := Look(FS(), paths)
	if err != nil {
		v.found(paths.root(), 0, "%v", err)
	}
	if parts != nil && parts.log != nil {
		v.Member, v.Cluster = parts.log.MemberID, parts.log.ClusterID
	}
	if !exists(paths.identity()) {
		v.found(paths.identity(), 0, "it is missing; the next start writes it again, from what the raft log says")
	}
	group := v.walk(paths.Log)
	if parts != nil && parts.log != nil && group < parts.LeastGroup() {
		v.found(paths.Log, 0, "the log ends with group %d, but had group %d when it was closed last: its end is lost, or this is an old copy", group, parts.LeastGroup())
	}
	v.store(ctx, paths.Store, parts)
	v.opens(paths.Log, parts)
	switch {
	case v.Last == 0 && v.Applied == 0:
	case v.Commit > max(v.Last, v.Applied):
		v.found(paths.Log, 0, "entry %d is said to be committed, but the log ends with entry %d: its end is lost", v.Commit, v.Last)
	case v.First > v.Applied+1:
		v.found(paths.Log, 0, "the log begins with entry %d, but the store has applied only up to %d: the store is older than the log, or was removed", v.First, v.Applied)
	case v.Applied > v.Last:
		v.Notes = append(v.Notes, fmt.Sprintf("the store is ahead of the log (%d, %d): the next start continues from the store", v.Applied, v.Last))
	}
	return nil
}

// opens asks the one that decides whether a member may start with its log: what the walk calls the
// log's end may be one that only damage explains.
func (v *Verified) opens(dir string, parts *Parts) {
	if parts == nil || parts.log == nil || slices.ContainsFunc(v.Findings, func(f Finding) bool { return filepath.Dir(f.File) == dir }) {
		return // there is none, or it has been said
	}
	err := raftlog.Check(dir, nil, v.Applied)
	if corrupt, ok := errors.AsType[*raftlog.CorruptError](err); ok {
		v.found(corrupt.File, corrupt.Offset, "%s", corrupt.Reason)
		return
	}
	v.broken(dir, err)
}

// walk reads the raft log, and returns its last group.
func (v *Verified) walk(dir string) (group uint64) {
	err := raftlog.Walk(dir, nil, func(f raftlog.Found) error {
		switch f.Kind {
		case "damage":
			v.found(f.File, f.Offset, "%s", f.Reason)
		case "end":
			if f.Reason != "" {
				v.Notes = append(v.Notes, fmt.Sprintf("the log ends in %s at offset %d: %s", filepath.Base(f.File), f.Offset, f.Reason))
			}
		case "group":
			group = max(group, f.Group)
		case "base":
			v.First, v.Last = f.Index+1, f.Index
		case "hard-state", "segment":
			v.Commit = max(v.Commit, f.Commit)
			if f.Kind == "segment" && v.First == 0 {
				v.First, v.Last = f.Index+1, f.Index
			}
		case "entry":
			if v.Last > 0 && f.Index > v.Last+1 {
				v.found(f.File, f.Offset, "entry %d follows entry %d", f.Index, v.Last)
			}
			if v.First == 0 {
				v.First = f.Index
			}
			v.Last = f.Index
		}
		return nil
	})
	v.broken(dir, err)
	return group
}

// store reads every key of the store, and each version by the index of revisions.
func (v *Verified) store(ctx context.Context, dir string, parts *Parts) {
	defer func() {
		if r := recover(); r != nil { // the engine takes what a checksum vouches for as its own
			v.found(dir, 0, "the store cannot be read: %v", r)
		}
	}()
	if !exists(dir) {
		v.found(dir, 0, "the store is missing; if the raft log begins with entry 1, the next start makes it again from that")
		return
	}
	st, err := store.OpenReadOnly(dir, store.Options{})
	if err != nil {
		v.broken(dir, err)
		return
	}
	defer func() { v.broken(dir, st.Close()) }()
	v.Applied, v.Term = st.Applied()
	if parts != nil {
		if lost, err := parts.CheckStore(v.Applied); err != nil {
			v.broken(dir, err)
		} else if lost && v.Applied == 0 {
			v.Notes = append(v.Notes, "the store is empty: the next start fills it from the log")
		}
	}
	if err := v.tables(ctx, st); err != nil {
		v.broken(dir, err) // what follows would stumble over the same file
		return
	}
	view := mvcc.ReadView(st)
	defer view.Close()
	v.Revision, v.Compacted = view.Rev(), view.CompactRevision()
	err = view.Revisions(v.progress.telling(ctx, "reading by revision"), func(int64, int64, bool, []byte) error { v.Versions++; return nil })
	if err == nil {
		v.Hash, err = view.HashState(v.progress.telling(ctx, "hashing"), v.Revision)
	}
	v.broken(dir, err)
	stored, err := state.ReadStored(view.Reader())
	if v.broken(dir, err); err == nil {
		v.Members = len(stored.Members)
	}
	v.broken(dir, lease.Records(view.Reader(), func(lease.ID, int64, int64) error { v.Leases++; return nil }))
	v.broken(dir, auth.Records(view.Reader(), func(r auth.Record) error {
		if r.Bucket() != "auth" { // which says whether they are on
			v.Accounts++
		}
		return nil
	}))
}

// tables reads every key and every value, which checks each block's checksum, and that each version
// of a key can be decoded and is in the index.
func (v *Verified) tables(ctx context.Context, st *store.Store) (err error) {
	it, err := st.NewIter(&pebble.IterOptions{LowerBound: []byte{1, 0}, UpperBound: []byte{0xff, 0}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	var versions, indexed int
	read := int64(0)
	for ok := it.First(); ok; ok = it.Next() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		value, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if read += int64(len(it.Key()) + len(value)); v.progress != nil {
			v.progress("reading", read, 0)
		}
		if _, _, ok := store.ParseRevisionKey(it.Key()); ok {
			indexed++
		}
		_, key, main, sub, ok := store.ParseUserKey(it.Key())
		if !ok {
			continue
		}
		versions++
		if len(value) == 0 {
			continue // a deletion
		}
		if _, err := mvcc.ParseStored(value, int64(main)); err != nil {
			v.found(st.Dir(), 0, "the version of %q at %d.%d: %v", key, main, sub, err)
		}
	}
	if err := it.Error(); err != nil {
		return err
	}
	if versions != indexed {
		v.found(st.Dir(), 0, "%d versions of keys, but the index of revisions has %d", versions, indexed)
	}
	return nil
}

func (v *Verified) etcd(db, wal string) error {
	var applied uint64
	err := snapshotfile.Read(db, true, func(f *snapshotfile.Reader) error {
		applied = f.Index()
		f.Tell = v.progress.step("hashing")
		status, err := f.Status()
		if err != nil {
			return err
		}
		if v.Hash, v.Revision, v.Compacted, err = f.HashKV(0); err != nil && status.TotalKey > 0 {
			return err
		}
		err = f.Revisions(func(int64, int64, bool, *mvccpb.KeyValue) error { v.Versions++; return nil })
		if err != nil {
			return err
		}
		members, err := f.Members()
		if err != nil {
			return err
		}
		v.Members = len(members)
		return errors.Join(
			f.Leases(func(int64, int64, int64) error { v.Leases++; return nil }),
			f.Auth(func(bucket, _ string, _ []byte) error {
				if bucket != "auth" {
					v.Accounts++
				}
				return nil
			}))
	})
	if errors.Is(err, snapshotfile.ErrInUse) {
		return err
	}
	v.broken(db, err)
	v.Applied = applied
	log, err := walfile.Read(wal, applied)
	if err != nil {
		v.broken(wal, err)
		return nil
	}
	v.Member, v.Cluster, v.First, v.Last, v.Term, v.Commit = log.Member, log.Cluster, log.First, log.Last, log.Term, log.HardState.GetCommit()
	if log.Torn != nil {
		v.Notes = append(v.Notes, fmt.Sprintf("the end of the log is a write that a crash interrupted; etcd cuts it at its start: %v", log.Torn))
	}
	switch {
	case log.Snapshot.Index > applied:
		v.Notes = append(v.Notes, fmt.Sprintf("the log's newest snapshot is of entry %d, the database has applied entry %d: at its start etcd takes the database that came with the snapshot", log.Snapshot.Index, applied))
	case applied > max(log.Last, log.Snapshot.Index):
		v.found(wal, 0, "the database has applied entry %d, but the log ends with entry %d: its end is lost", applied, log.Last)
	case v.Commit > log.Last:
		v.found(wal, 0, "entry %d is said to be committed, but the log ends with entry %d: its end is lost", v.Commit, log.Last)
	}
	return nil
}

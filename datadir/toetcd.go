package datadir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cockroachdb/errors/oserror"
	"github.com/coreos/go-semver/semver"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/raftlog"
	"github.com/belaydb/belay/snapshotfile"
	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/store"
	"github.com/belaydb/belay/walfile"
)

// toEtcd makes etcd's data of Belay's and calls place.
func (b *building) toEtcd(ctx context.Context, place func() error) (err error) {
	fs := FS()
	paths := PathsOf(b.move.DataDir, b.move.WALDir)
	parts, err := Look(fs, paths)
	if err != nil {
		return err
	}
	if parts.Log() == nil {
		return parts.logMissing()
	}
	unlock, err := lockParts(paths)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	st, err := store.OpenReadOnly(paths.Store, store.Options{FS: fs})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	applied, term := st.Applied()
	if applied == 0 {
		return errors.New("the store has applied nothing yet: start the member once, stop it, and try again")
	}
	if lost, err := parts.CheckStore(applied); err != nil || lost {
		return err
	}
	log, err := raftlog.Look(paths.Log, fs, applied)
	if err != nil {
		return err
	}
	if log.Group < parts.LeastGroup() {
		return &raftlog.OldError{Dir: paths.Log, Group: log.Group, Least: parts.LeastGroup()}
	}
	if log.Cut != "" {
		b.note("the end of the log is a write that a crash interrupted, and was cut, as a start does: %s", log.Cut)
	}
	start, err := startOf(log, applied, term)
	if err != nil {
		return err
	}
	view := mvcc.ReadView(st)
	defer view.Close()
	stored, err := state.ReadStored(view.Reader())
	if err != nil {
		return err
	}
	start.Snapshot.ConfState = stored.ConfState
	if stored.ConfState == nil {
		return errors.New("the store knows no members yet: start the member once, stop it, and try again")
	}
	if err := b.lower(stored, start.Tail); err != nil {
		return err
	}
	r := b.r
	r.Member, r.Cluster = log.MemberID, log.ClusterID
	r.Applied, r.Term, r.Last = applied, term, applied+uint64(len(start.Tail))
	r.Commit, r.VoteTerm, r.Vote = start.HardState.GetCommit(), start.HardState.GetTerm(), start.HardState.GetVote()
	if err := b.countView(ctx, view, stored); err != nil {
		return err
	}
	b.judge(stored)
	if b.move.DryRun {
		return nil
	}
	content, err := snapshotfile.ContentOf(view, stored)
	if err != nil {
		return err
	}
	content.For = b.move.ToEtcd.Minor
	if stored.Version != nil {
		content.ClusterVersion = stored.Version.String()
	}
	folder, wal := filepath.Join(b.temporary, etcdsFolder), b.logDir("wal")
	revisions, written := content.Revisions, int64(0)
	content.Revisions = func(ctx context.Context, each func(main, sub int64, tombstone bool, value []byte) error) error {
		return revisions(ctx, func(main, sub int64, tombstone bool, value []byte) error {
			written++
			b.tell("writing", written, int64(b.r.Versions))
			return each(main, sub, tombstone, value)
		})
	}
	if err := writeDatabase(ctx, folder, content); err != nil {
		return err
	}
	membership := walfile.Membership{Members: stored.Members, Removed: stored.Removed, Version: content.ClusterVersion}
	if err := walfile.WriteSnapshot(folder, start.Snapshot, membership); err != nil {
		return err
	}
	if err := walfile.Write(wal, start); err != nil {
		return err
	}
	if err := b.compareEtcd(ctx, folder, wal, view, stored, start); err != nil {
		return fmt.Errorf("what was written differs from what was read, so nothing was changed: %w", err)
	}
	return place()
}

// lockParts keeps a member from being started on the data, and fails if one runs.
func lockParts(paths Paths) (unlock func() error, err error) {
	var locks []io.Closer
	unlock = func() error {
		var errs []error
		for _, l := range locks {
			errs = append(errs, l.Close())
		}
		return errors.Join(errs...)
	}
	for _, dir := range []string{paths.Log, paths.Store} {
		l, err := FS().Lock(filepath.Join(dir, "LOCK"))
		if err != nil {
			if !oserror.IsNotExist(err) {
				err = fmt.Errorf("a member runs on %s: stop it first (%w)", dir, err)
			}
			return nil, errors.Join(err, unlock())
		}
		locks = append(locks, l)
	}
	return unlock, nil
}

// startOf is what a start makes of log and store (raftlog.Adopt), without writing it down.
func startOf(log *raftlog.Content, applied, term uint64) (walfile.Start, error) {
	s := walfile.Start{Member: log.MemberID, Cluster: log.ClusterID, Snapshot: walfile.Position{Index: applied, Term: term}, HardState: log.HardState}
	if applied < log.Base {
		return s, fmt.Errorf("the log begins after entry %d, but the store has applied only up to %d: the store is older than the log, or was removed", log.Base, applied)
	}
	held := applied == log.Base && log.BaseTerm == term
	if i := applied - log.Base; i > 0 && i <= uint64(len(log.Entries)) {
		held = log.Entries[i-1].GetTerm() == term
	}
	if held {
		s.Tail = log.Entries[applied-log.Base:]
	} else if applied <= log.HardState.GetCommit() {
		return s, fmt.Errorf("the store has applied entry %d of term %d, but in the log that committed entry has another term: the two do not belong together", applied, term)
	} else {
		s.HardState.Commit = new(applied)
	}
	s.HardState.Commit = new(max(s.HardState.GetCommit(), applied))
	if s.HardState.GetTerm() < term {
		s.HardState.Term, s.HardState.Vote = new(term), new(uint64(0))
	}
	return s, nil
}

// lower sets the cluster's version to one that the etcd knows.
func (b *building) lower(s *command.Stored, tail []*raftpb.Entry) error {
	limit := semver.Version{Major: 3, Minor: b.move.ToEtcd.Minor}
	if s.Version != nil && limit.LessThan(semver.Version{Major: s.Version.Major, Minor: s.Version.Minor}) {
		b.note("the cluster's version is lowered from %s to %s", s.Version, &limit)
		v := limit
		s.Version = &v
	}
	for _, e := range tail {
		if e.GetType() != raftpb.EntryNormal {
			continue
		}
		request, err := command.Decode(e.GetData())
		if err != nil {
			return fmt.Errorf("entry %d of the log: %w", e.GetIndex(), err)
		}
		if set := request.GetClusterVersionSet(); set != nil {
			if v, err := semver.NewVersion(set.GetVer()); err != nil || limit.LessThan(semver.Version{Major: v.Major, Minor: v.Minor}) {
				return fmt.Errorf("entry %d of the log sets the cluster's version to %q, which that etcd does not know, and is not applied yet: start the member once, stop it, and try again", e.GetIndex(), set.GetVer())
			}
		}
	}
	return nil
}

// countView says what a store holds.
func (b *building) countView(ctx context.Context, view *mvcc.View, stored *command.Stored) error {
	r := b.r
	r.Revision, r.Compacted = view.Rev(), view.CompactRevision()
	if err := view.Revisions(ctx, func(int64, int64, bool, []byte) error { r.Versions++; return nil }); err != nil {
		return err
	}
	content, err := snapshotfile.ContentOf(view, stored)
	if err != nil {
		return err
	}
	return r.countLeasesAndUsers(content.Leases, content.Auth)
}

// writeDatabase makes etcd's database, durably.
func writeDatabase(ctx context.Context, folder string, c snapshotfile.Content) (err error) {
	if err := FS().MkdirAll(folder, folderMode); err != nil {
		return err
	}
	file, err := snapshotfile.Create(ctx, folder, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	db, err := os.OpenFile(filepath.Join(folder, "db"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	_, err = io.Copy(db, file.Reader())
	if err := errors.Join(err, db.Sync(), db.Close()); err != nil {
		return err
	}
	return SyncDir(FS(), folder)
}

// compareEtcd reads what was built for etcd and compares it with Belay's store and log.
func (b *building) compareEtcd(ctx context.Context, folder, wal string, view *mvcc.View, want *command.Stored, start walfile.Start) error {
	log, err := walfile.Read(wal, start.Snapshot.Index)
	if err != nil {
		return err
	}
	switch {
	case log.Member != start.Member || log.Cluster != start.Cluster:
		return fmt.Errorf("the new log is of member %x of cluster %x", log.Member, log.Cluster)
	case log.Snapshot.Index != start.Snapshot.Index || log.Snapshot.Term != start.Snapshot.Term || log.Term != start.Snapshot.Term:
		return fmt.Errorf("the new log begins after entry %d of term %d", log.Snapshot.Index, log.Snapshot.Term)
	case !proto.Equal(log.HardState, &raftpb.HardState{Term: new(start.HardState.GetTerm()), Vote: new(start.HardState.GetVote()), Commit: new(start.HardState.GetCommit())}):
		return fmt.Errorf("the new log has the hard state %v, not %v", log.HardState, start.HardState)
	case !slices.EqualFunc(log.Tail, start.Tail, sameEntry):
		return errors.New("the new log has other entries")
	}
	return snapshotfile.Read(filepath.Join(folder, "db"), true, func(f *snapshotfile.Reader) error {
		if f.Index() != start.Snapshot.Index {
			return fmt.Errorf("the new database has applied entry %d", f.Index())
		}
		have, err := clusterOf(folder, f, log)
		if err != nil {
			return err
		}
		if err := sameCluster(have, want); err != nil {
			return err
		}
		return b.compareContent(ctx, view, f)
	})
}

// ParseEtcdVersion reads a version of etcd that data can be made for, as "3.6" or "3.6.2".
func ParseEtcdVersion(text string) (*semver.Version, error) {
	full := strings.TrimPrefix(text, "v")
	if strings.Count(full, ".") == 1 {
		full += ".0"
	}
	v, err := semver.NewVersion(full)
	if known := newestSchema(); err != nil || v.Major != 3 || v.Minor < 4 || known.Minor < v.Minor {
		return nil, fmt.Errorf("data cannot be made for etcd %q: 3.4 to 3.%d", text, known.Minor)
	}
	return v, nil
}

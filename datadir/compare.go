package datadir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"reflect"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/raftlog"
	"github.com/belaydb/belay/snapshotfile"
	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/store"
)

// compareWith reads what was built for Belay and compares it with etcd's database and with what the
// log is to hold.
func (b *building) compareWith(ctx context.Context, paths Paths, f *snapshotfile.Reader, want *command.Stored, hs *raftpb.HardState, tail []*raftpb.Entry) (err error) {
	parts, err := Look(FS(), paths)
	if err != nil {
		return err
	}
	log, err := raftlog.Look(paths.Log, FS(), 0)
	if err != nil {
		return err
	}
	r := b.r
	switch {
	case log.Group < parts.LeastGroup():
		return fmt.Errorf("the new log ends with group %d, not %d", log.Group, parts.LeastGroup())
	case log.Base != r.Applied || log.BaseTerm != r.Term:
		return fmt.Errorf("the new log begins after entry %d of term %d", log.Base, log.BaseTerm)
	case !proto.Equal(log.HardState, hs):
		return fmt.Errorf("the new log has the hard state %v, not %v", log.HardState, hs)
	case !slices.EqualFunc(log.Entries, tail, sameEntry):
		return errors.New("the new log has other entries")
	}
	st, err := store.OpenReadOnly(paths.Store, store.Options{FS: FS()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	if index, term := st.Applied(); index != r.Applied || r.Applied > 0 && term != r.Term {
		return fmt.Errorf("the new store has applied entry %d of term %d", index, term)
	}
	if r.Applied == 0 {
		return nil
	}
	view := mvcc.ReadView(st)
	defer view.Close()
	have, err := state.ReadStored(view.Reader())
	if err != nil {
		return err
	}
	if err := sameCluster(have, want); err != nil {
		return err
	}
	return b.compareContent(ctx, view, f)
}

func sameEntry(a, b *raftpb.Entry) bool {
	return a.GetIndex() == b.GetIndex() && a.GetTerm() == b.GetTerm() && a.GetType() == b.GetType() && bytes.Equal(a.GetData(), b.GetData())
}

// sameCluster compares members, alarms, versions and configuration.
func sameCluster(a, b *command.Stored) error {
	sameIDs := func(a, b []uint64) bool {
		return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
	}
	alarms := func(s *command.Stored) map[string]bool {
		set := map[string]bool{}
		for _, a := range s.Alarms {
			set[fmt.Sprint(a.MemberID, a.Alarm)] = true
		}
		return set
	}
	members := func(s *command.Stored) map[uint64]string {
		set := map[uint64]string{}
		for _, m := range s.Members {
			set[m.ID] = fmt.Sprintf("%q %q %q %v", m.Name, m.PeerURLs, m.ClientURLs, m.IsLearner)
		}
		return set
	}
	switch {
	case !reflect.DeepEqual(members(a), members(b)):
		return fmt.Errorf("the members are %v and %v", members(a), members(b))
	case !sameIDs(a.Removed, b.Removed):
		return fmt.Errorf("the removed members are %x and %x", a.Removed, b.Removed)
	case !reflect.DeepEqual(alarms(a), alarms(b)):
		return fmt.Errorf("the alarms are %v and %v", a.Alarms, b.Alarms)
	case (a.Version == nil) != (b.Version == nil) || a.Version != nil && !a.Version.Equal(*b.Version):
		return fmt.Errorf("the cluster's versions are %v and %v", a.Version, b.Version)
	case a.Downgrade != b.Downgrade:
		return fmt.Errorf("the downgrades are %v and %v", a.Downgrade, b.Downgrade)
	case !sameIDs(a.ConfState.GetVoters(), b.ConfState.GetVoters()) || !sameIDs(a.ConfState.GetLearners(), b.ConfState.GetLearners()):
		return fmt.Errorf("raft's configurations are %v and %v", a.ConfState, b.ConfState)
	}
	return nil
}

// compareContent compares every version of every key, leases, users and roles, and HashKV.
func (b *building) compareContent(ctx context.Context, view *mvcc.View, f *snapshotfile.Reader) error {
	if err := view.Err(); err != nil {
		return err
	}
	if view.Rev() != b.r.Revision {
		return fmt.Errorf("the revisions are %d and %d", view.Rev(), b.r.Revision)
	}
	if max(view.CompactRevision(), 0) != max(b.r.Compacted, 0) {
		return fmt.Errorf("the compactions are at %d and %d", view.CompactRevision(), b.r.Compacted)
	}
	raised, err := b.compareVersions(ctx, view, f)
	if err != nil {
		return err
	}
	if err := compareLeases(view.Reader(), f); err != nil {
		return err
	}
	if err := compareAuth(view.Reader(), f); err != nil {
		return err
	}
	if raised {
		b.note("a restored snapshot has raised the revision by an entry that no key has: HashKV differs until it is compacted, so every version was compared, but not HashKV")
		return nil
	}
	revs := hashedRevisions(max(b.r.Compacted, 1), b.r.Revision, b.r.Versions)
	steps := mvcc.HashSteps(int64(b.r.Versions)) // fewer at an older revision
	hashed, total := int64(0), int64(len(revs))*steps
	hashing := Walking(ctx, func(keys, _ int64) {
		hashed = min(hashed+keys, total)
		b.tell("hashing", hashed, total)
	})
	for i, rev := range revs {
		hashed = int64(i) * steps
		b.tell("hashing", hashed, total)
		theirs, _, _, err := f.HashKV(rev)
		if err != nil {
			return err
		}
		ours, err := view.HashState(hashing, rev)
		if err != nil {
			return err
		}
		if ours != theirs {
			return fmt.Errorf("HashKV at revision %d is %d and %d", rev, ours, theirs)
		}
		b.r.Hash = ours
		b.r.Hashed = append(b.r.Hashed, rev)
	}
	return nil
}

// hashedRevisions are those at which HashKV is compared, the newest last. Each costs a pass over
// all; since every version is compared by itself, a few are enough where there are many.
func hashedRevisions(oldest, newest int64, versions int) (revs []int64) {
	const passes, versionsRead = 8, 4 << 20
	step := int64(1)
	if n := newest - oldest + 1; n*int64(versions+1) > versionsRead {
		step = max(n/passes, 1)
	}
	for rev := oldest; rev < newest; rev += step {
		revs = append(revs, rev)
	}
	return append(revs, newest)
}

// compareVersions walks both in revision order. What a compaction has made unreachable may be
// missing on either side: the two remove it at different times. raised says that the file has an
// entry that is no key's.
func (b *building) compareVersions(ctx context.Context, view *mvcc.View, f *snapshotfile.Reader) (raised bool, err error) {
	compacted, compared := b.r.Compacted, int64(0)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var failed error
	ours, stop := iter.Pull(func(yield func(snapshotfile.Version) bool) {
		failed = view.Revisions(ctx, func(main, sub int64, tombstone bool, value []byte) error {
			if !yield(snapshotfile.Version{Main: main, Sub: sub, Tombstone: tombstone, Value: value}) {
				return context.Canceled
			}
			return nil
		})
	})
	defer stop()
	theirs := f.Versions()
	mine, more := ours()
	for {
		v, err := theirs()
		if err != nil {
			return raised, err
		}
		compared++
		b.tell("comparing", compared, int64(b.r.Versions))
		if v != nil && len(v.Value) == 0 {
			raised = true
			continue
		}
		// What v is not: behind it nothing of ours may be left out.
		for more && (v == nil || mine.Main < v.Main || mine.Main == v.Main && mine.Sub < v.Sub) {
			if mine.Main > compacted {
				return raised, fmt.Errorf("revision %d.%d is in Belay's data alone", mine.Main, mine.Sub)
			}
			mine, more = ours()
		}
		if v == nil {
			return raised, failed
		}
		if failed != nil {
			return raised, failed
		}
		if !more || mine.Main != v.Main || mine.Sub != v.Sub {
			if v.Main > compacted {
				return raised, fmt.Errorf("revision %d.%d is in etcd's data alone", v.Main, v.Sub)
			}
			continue
		}
		if mine.Tombstone != v.Tombstone || !bytes.Equal(mine.Value, v.Value) {
			return raised, fmt.Errorf("revision %d.%d differs", v.Main, v.Sub)
		}
		mine, more = ours()
	}
}

func compareLeases(r store.Reader, f *snapshotfile.Reader) error {
	type times struct{ ttl, remaining int64 }
	ours, theirs := map[int64]times{}, map[int64]times{}
	err := errors.Join(
		lease.Records(r, func(id lease.ID, ttl, remaining int64) error { ours[int64(id)] = times{ttl, remaining}; return nil }),
		f.Leases(func(id, ttl, remaining int64) error { theirs[id] = times{ttl, remaining}; return nil }),
	)
	if err == nil && !reflect.DeepEqual(ours, theirs) {
		err = fmt.Errorf("the leases differ: %d and %d", len(ours), len(theirs))
	}
	return err
}

// compareAuth compares users, roles and their settings. etcd writes the revision of users and roles
// at its first start, Belay with the first of them; until then it is 1.
func compareAuth(r store.Reader, f *snapshotfile.Reader) error {
	ours, theirs := map[string]string{}, map[string]string{}
	err := errors.Join(
		auth.Records(r, func(rec auth.Record) error { ours[rec.Bucket()+"/"+rec.Name()] = string(rec.Value); return nil }),
		f.Auth(func(bucket, name string, value []byte) error { theirs[bucket+"/"+name] = string(value); return nil }),
	)
	for _, m := range []map[string]string{ours, theirs} {
		if m["auth/authRevision"] == "\x00\x00\x00\x00\x00\x00\x00\x01" {
			delete(m, "auth/authRevision")
		}
	}
	if err == nil && !reflect.DeepEqual(ours, theirs) {
		err = fmt.Errorf("users, roles or their settings differ: %d and %d records", len(ours), len(theirs))
	}
	return err
}

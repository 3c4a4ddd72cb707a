package datadir

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/coreos/go-semver/semver"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/raftlog"
	"github.com/belaydb/belay/snapshotfile"
	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/store"
	"github.com/belaydb/belay/walfile"
)

// toBelay makes Belay's data of etcd's and calls place.
func (b *building) toBelay(ctx context.Context, place func() error) error {
	folder := filepath.Join(b.member, etcdsFolder)
	wal := filepath.Join(b.member, "wal")
	if b.move.WALDir != "" {
		wal = b.move.WALDir
	} else if !exists(wal) {
		return fmt.Errorf("%s is not there: give the --wal-dir with which this member runs", wal)
	}
	return snapshotfile.Read(filepath.Join(folder, "db"), true, func(f *snapshotfile.Reader) error {
		log, err := walfile.Read(wal, f.Index())
		if err != nil {
			return err
		}
		if log.Snapshot.Index <= f.Index() {
			return b.fromEtcd(ctx, folder, f, log, place)
		}
		// The member received a snapshot from its leader, and a crash came before the database in
		// it took the place of the old one: etcd does that when it starts.
		received := filepath.Join(folder, fmt.Sprintf("%016x.snap.db", log.Snapshot.Index))
		if !exists(received) {
			return fmt.Errorf("the database has applied entry %d, but the log's newest snapshot is of entry %d, and there is no %s: these do not belong together", f.Index(), log.Snapshot.Index, received)
		}
		return snapshotfile.Read(received, true, func(f *snapshotfile.Reader) error {
			if log, err = walfile.Read(wal, f.Index()); err != nil {
				return err
			}
			if log.Snapshot.Index > f.Index() {
				return fmt.Errorf("%s has applied entry %d, but the log's newest snapshot is of entry %d: these do not belong together", received, f.Index(), log.Snapshot.Index)
			}
			return b.fromEtcd(ctx, folder, f, log, place)
		})
	})
}

// newestSchema is the newest storage version that is known.
func newestSchema() semver.Version { return *semver.New(snapshotfile.StorageVersion) }

// checkSchema refuses a database of a newer schema.
func checkSchema(f *snapshotfile.Reader) error {
	text := f.StorageVersion()
	if text == "" {
		return nil
	}
	v, err := semver.NewVersion(text)
	if err != nil {
		return fmt.Errorf("storage version %q: %w", text, err)
	}
	if known := newestSchema(); known.LessThan(semver.Version{Major: v.Major, Minor: v.Minor}) {
		return fmt.Errorf("the data is of storage version %s; this program knows those up to %s", text, snapshotfile.StorageVersion)
	}
	return nil
}

func (b *building) fromEtcd(ctx context.Context, folder string, f *snapshotfile.Reader, log *walfile.Contents, place func() error) error {
	if err := checkSchema(f); err != nil {
		return err
	}
	if log.Torn != nil {
		b.note("the end of the log is a write that a crash interrupted, and was cut, as etcd does at its start: %v", log.Torn)
	}
	applied := f.Index()
	if applied > max(log.Last, log.Snapshot.Index) {
		return fmt.Errorf("the database has applied entry %d, but the log ends with entry %d: its end is lost, and with it what this member may have voted and acknowledged. Remove the member from its cluster and add it again", applied, log.Last)
	}
	if applied > 0 && log.Term == 0 {
		return fmt.Errorf("the log does not hold entry %d, which the database has applied last, nor its term", applied)
	}
	stored, err := clusterOf(folder, f, log)
	if err != nil {
		return err
	}
	tail, dropped, err := translate(log.Tail)
	if err != nil {
		return err
	}
	if dropped > 0 {
		b.note("%d entries of etcd's API of version 2 have no effect any more", dropped)
	}
	hs := &raftpb.HardState{Term: new(log.HardState.GetTerm()), Vote: new(log.HardState.GetVote()), Commit: new(log.HardState.GetCommit())}
	last := applied + uint64(len(tail))
	*hs.Commit = max(hs.GetCommit(), applied)
	if hs.GetCommit() > last {
		return fmt.Errorf("the log says that entry %d is committed, but ends with entry %d: its end is lost", hs.GetCommit(), last)
	}
	if hs.GetTerm() < log.Term {
		*hs.Term, *hs.Vote = log.Term, 0
	}
	r := b.r
	r.Member, r.Cluster = log.Member, log.Cluster
	r.Applied, r.Term, r.Commit, r.Last, r.VoteTerm, r.Vote = applied, log.Term, hs.GetCommit(), last, hs.GetTerm(), hs.GetVote()
	if err := b.count(f); err != nil {
		return err
	}
	if b.move.DryRun {
		b.judge(stored)
		return nil
	}
	b.judge(stored)

	storeDir, logDir := filepath.Join(b.temporary, "store"), b.logDir("log")
	if err := b.migrateStore(ctx, storeDir, f, applied, log.Term, stored); err != nil {
		return err
	}
	record, err := migrateLog(ctx, logDir, log, applied, stored.ConfState, hs, tail)
	if err != nil {
		return err
	}
	if err := keepEtcdOut(FS(), b.temporary); err != nil {
		return err
	}
	paths := Paths{Member: b.temporary, Store: storeDir, Log: logDir}
	if err := Write(FS(), paths, record); err != nil {
		return err
	}
	if err := b.compareWith(ctx, paths, f, stored, hs, tail); err != nil {
		return fmt.Errorf("what was written differs from what was read, so nothing was changed: %w", err)
	}
	return place()
}

// judge says what an operator should know of the member.
func (b *building) judge(s *command.Stored) {
	r := b.r
	r.Members, r.Alarms = len(s.Members), len(s.Alarms)
	if s.Version != nil {
		r.ClusterVersion = s.Version.String()
	}
	i := slices.IndexFunc(s.Members, func(m *command.Member) bool { return m.ID == r.Member })
	switch {
	case i >= 0:
		r.Name, r.Learner = s.Members[i].Name, s.Members[i].IsLearner
	case slices.Contains(s.Removed, r.Member):
		b.note("this member was removed from its cluster: it will stop as soon as it starts")
	case len(s.Members) > 0:
		b.note("the members of the cluster do not include this one yet; the log must say so")
	}
	if n := len(s.Members); n > 1 {
		b.note("the cluster has %d members: move the own data of each, one member at a time or all of them stopped (docs/migration.md)", n)
	}
	for _, a := range s.Alarms {
		b.note("the alarm %s of member %x is active and stays so", a.Alarm, a.MemberID)
	}
	if s.Downgrade.Enabled {
		b.note("a downgrade to %s is in progress and stays so", s.Downgrade.TargetVersion)
	}
}

// count says what a database holds.
func (b *building) count(f *snapshotfile.Reader) (err error) {
	r := b.r
	if r.Revision, err = f.Revision(); err != nil {
		return err
	}
	if r.Compacted, _, err = f.Compactions(); err != nil {
		return err
	}
	next := f.Versions()
	for {
		v, err := next()
		if err != nil {
			return err
		}
		if v == nil {
			break
		}
		if len(v.Value) > 0 {
			r.Versions++
		}
	}
	return r.countLeasesAndUsers(f.Leases, f.Auth)
}

// clusterOf is what etcd's database says of the cluster, as of the entry that it has applied.
//
// From 3.5 on it holds raft's configuration as of that entry. Before, the configuration is that of
// the log's newest snapshot and the changes between; and the list of members may be ahead, since 3.4
// writes down which entry it has applied only together with keys. Those that are ahead are added
// again by the entries that follow.
func clusterOf(folder string, f *snapshotfile.Reader, log *walfile.Contents) (s *command.Stored, err error) {
	s, listed, err := writtenCluster(f)
	if err != nil {
		return nil, err
	}
	known := map[uint64]*command.Member{}
	start := log.Snapshot
	if start.Index > 0 {
		fromFile, members, err := walfile.ReadSnapshot(folder, start)
		switch {
		case err == nil:
			start = fromFile
			for _, m := range members {
				known[m.ID] = m
			}
		case !errors.Is(err, os.ErrNotExist) || start.ConfState == nil:
			return nil, err
		}
	}
	folded := new(raftpb.ConfState)
	if start.ConfState != nil {
		folded = proto.CloneOf(start.ConfState)
	}
	if err := foldConfState(folded, known, log.Changes, s.Removed); err != nil {
		return nil, err
	}
	if s.ConfState, err = f.ConfState(); err != nil {
		return nil, err
	}
	if s.ConfState == nil {
		s.ConfState = folded
	}
	if len(s.ConfState.VotersOutgoing)+len(s.ConfState.LearnersNext) > 0 {
		return nil, errors.New("the configuration is a joint one, which etcd never leaves behind")
	}
	for _, m := range listed {
		known[m.ID] = m
	}
	if err := configured(s, known); err != nil {
		return nil, err
	}
	ids := slices.Concat(s.ConfState.Voters, s.ConfState.Learners)
	later := map[uint64]*command.Member{}
	if err := foldConfState(new(raftpb.ConfState), later, log.Tail, nil); err != nil {
		return nil, err
	}
	for _, m := range listed {
		if !slices.Contains(ids, m.ID) && later[m.ID] == nil {
			return nil, fmt.Errorf("member %x is in the list of members, but neither in raft's configuration nor in the log", m.ID)
		}
	}
	return s, nil
}

// writtenCluster is what a database itself says of the cluster. listed are its members, which are
// not in s: whether they are members is raft's to say.
func writtenCluster(f *snapshotfile.Reader) (s *command.Stored, listed []*command.Member, err error) {
	s = new(command.Stored)
	if s.Alarms, err = f.Alarms(); err != nil {
		return nil, nil, err
	}
	if s.Removed, err = f.Removed(); err != nil {
		return nil, nil, err
	}
	slices.Sort(s.Removed)
	if text := f.ClusterVersion(); text != "" {
		if s.Version, err = semver.NewVersion(text); err != nil {
			return nil, nil, fmt.Errorf("cluster version %q: %w", text, err)
		}
	}
	if text := f.Downgrade(); text != nil {
		if err := json.Unmarshal(text, &s.Downgrade); err != nil {
			return nil, nil, fmt.Errorf("downgrade %q: %w", text, err)
		}
	}
	listed, err = f.Members()
	return s, listed, err
}

// configured makes those in raft's configuration the members, of whom known says the rest.
func configured(s *command.Stored, known map[uint64]*command.Member) error {
	ids := slices.Concat(s.ConfState.Voters, s.ConfState.Learners)
	for _, id := range slices.Sorted(slices.Values(ids)) {
		m := known[id]
		if m == nil {
			return fmt.Errorf("raft's configuration has member %x, but neither the list of members nor the log says who that is", id)
		}
		m = m.Clone()
		m.IsLearner = slices.Contains(s.ConfState.Learners, id)
		s.Members = append(s.Members, m)
	}
	// A removal that is ahead is repeated: until then the member is one.
	s.Removed = slices.DeleteFunc(s.Removed, func(id uint64) bool { return slices.Contains(ids, id) })
	return nil
}

// foldConfState applies the member changes in entries, as raft does, and notes whom they add.
// removed are ids that the state machine refuses to add again.
func foldConfState(cs *raftpb.ConfState, known map[uint64]*command.Member, entries []*raftpb.Entry, removed []uint64) error {
	without := func(ids []uint64, id uint64) []uint64 {
		return slices.DeleteFunc(ids, func(other uint64) bool { return other == id })
	}
	for _, e := range entries {
		c, err := changeOf(e)
		if err != nil {
			return err
		}
		if c == nil {
			continue
		}
		id := c.MemberID
		switch c.Type {
		case raftpb.ConfChangeRemoveNode:
			cs.Voters, cs.Learners = without(cs.Voters, id), without(cs.Learners, id)
		case raftpb.ConfChangeAddNode:
			if !c.IsPromote {
				known[id] = &c.Member
			}
			cs.Learners = without(cs.Learners, id)
			if !slices.Contains(cs.Voters, id) {
				cs.Voters = append(cs.Voters, id)
			}
		case raftpb.ConfChangeAddLearnerNode:
			known[id] = &c.Member
			if !slices.Contains(cs.Voters, id) && !slices.Contains(cs.Learners, id) {
				cs.Learners = append(cs.Learners, id)
			}
		}
	}
	return nil
}

// translate gives entries of etcd before 3.5 the form that etcd 3.5 gave them: members published
// themselves, and the leader set the cluster's version, by requests of the API of version 2. Other
// requests of that API have no effect, and become empty entries: their index is needed.
func translate(entries []*raftpb.Entry) (translated []*raftpb.Entry, dropped int, err error) {
	translated = slices.Clone(entries)
	for i, e := range entries {
		if e.GetType() != raftpb.EntryNormal {
			continue
		}
		request, ok, err := command.FromV2(e.GetData())
		if err != nil {
			return nil, 0, fmt.Errorf("entry %d of the log: %w", e.GetIndex(), err)
		}
		if !ok {
			continue
		}
		var data []byte
		if request == nil {
			dropped++
		} else if data, err = proto.Marshal(request); err != nil {
			return nil, 0, err
		}
		translated[i] = &raftpb.Entry{Type: raftpb.EntryNormal.Enum(), Term: new(e.GetTerm()), Index: new(e.GetIndex()), Data: data}
	}
	return translated, dropped, nil
}

// migrateStore fills a new store that has applied entry index. With index 0 it stays empty: the log
// has everything.
func (b *building) migrateStore(ctx context.Context, dir string, f *snapshotfile.Reader, index, term uint64, s *command.Stored) (err error) {
	st, err := store.Open(dir, store.Options{FS: FS(), FailFull: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	if index == 0 {
		if k, err := f.Versions()(); err != nil || k != nil {
			return errors.Join(err, errors.New("the database holds keys, but does not say which entry it has applied"))
		}
		return nil
	}
	// All batches but the last leave the applied index alone: there may be fewer entries than
	// batches, since a restored snapshot begins again at a low one. The folder is nobody's until all
	// is there.
	w := filling{ctx: ctx, begin: st.NewLocalBatch}
	defer w.abort()
	revs, err := w.content(metered{Source: f, versions: true, total: int64(b.r.Versions), tell: b.move.Progress}, new(Restored))
	if err != nil {
		return err
	}
	batch := st.NewBatch(index, term)
	defer batch.Close()
	if err := errors.Join(
		mvcc.RestoreRevision(batch, revs.current, revs.scheduled, revs.finished),
		state.RestoreStored(batch, s),
		batch.Commit(),
	); err != nil {
		return err
	}
	return st.Flush(ctx)
}

// migrateLog makes a log with the base (index, term) and what follows.
func migrateLog(ctx context.Context, dir string, from *walfile.Contents, index uint64, cs *raftpb.ConfState, hs *raftpb.HardState, tail []*raftpb.Entry) (Record, error) {
	none := Record{}
	log, err := raftlog.Open(dir, raftlog.Options{
		FS: FS(), MemberID: from.Member, ClusterID: from.Cluster, Logger: zap.NewNop(),
		Released: func([]*raftpb.Message) {}, Failed: func(error) {},
	})
	if err != nil {
		return none, err
	}
	if index > 0 {
		_, err = log.Adopt(index, from.Term, cs)
	}
	if err == nil {
		log.Append(raftlog.Append{HardState: hs, Entries: tail})
		err = log.Sync(ctx)
	}
	group, serr := log.Seal()
	if err := errors.Join(err, serr, log.Close()); err != nil {
		return none, err
	}
	return Record{Member: from.Member, Cluster: from.Cluster, Log: log.Metadata().LogID, Group: group}, nil
}

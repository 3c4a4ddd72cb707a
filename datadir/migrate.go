package datadir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coreos/go-semver/semver"

	"github.com/belaydb/belay/walfile"
)

// A Move makes a stopped member's data of etcd's form into Belay's, or back. The member stays who
// it is: its id, its cluster, its vote, what it has applied and what its log has beyond. So all
// members of a cluster can be moved, each by itself, and go on together.
//
// The new data is built in a folder of its own, made durable, read back and compared with the old,
// and only then gets its place. Crash points: before the last step there is nothing but the old
// data and a folder member.migrating that nobody looks at, and that the next run removes. The last
// step is one rename, or in place one exchange of two names, so member is always either the old
// data or the new, whole. After an exchange the old data is in member.migrating, and gets its name;
// a crash before that leaves it there, and the next run gives it the name. A log in a directory of
// its own: see apart.
type Move struct {
	// The data to move, as in the flags of the server. WALDir "": in the data directory.
	DataDir, WALDir string

	// Out and OutWALDir are where the new data goes; they must not exist, or be empty. With Out ""
	// it takes the place of the old, which is kept beside it.
	Out, OutWALDir string

	// DryRun reads and judges everything, and writes nothing.
	DryRun bool

	// Progress is told of "writing", "comparing" and "hashing" in versions of keys; nil: nobody looks.
	Progress Progress

	// ToEtcd is the version of etcd, 3.4 to 3.7, that is to run on it; nil: Belay is.
	ToEtcd *semver.Version
}

// Moved says what was moved, or would be.
type Moved struct {
	From, To string // "etcd" and "belay", or the other way
	Source   string // where the old data is now
	Target   string // where the new data is; empty after a dry run

	Member, Cluster uint64
	Name            string
	Members         int
	Learner         bool

	Applied, Term uint64 // the entry that the store has applied
	Commit, Last  uint64 // of the log
	VoteTerm      uint64 // of the hard state
	Vote          uint64

	Revision, Compacted int64 // Compacted -1: never
	Versions            int   // of keys, tombstones included
	Leases              int
	Users, Roles        int
	Alarms              int
	ClusterVersion      string

	Hash   uint32  // HashKV at Revision, of both
	Hashed []int64 // the revisions at which HashKV of both was compared
	Notes  []string
}

// countLeasesAndUsers counts what leases and auth call their argument for, as a
// snapshotfile.Content and a snapshotfile.Reader do.
func (m *Moved) countLeasesAndUsers(leases func(func(id, ttl, remaining int64) error) error, auth func(func(bucket, name string, value []byte) error) error) error {
	if err := leases(func(int64, int64, int64) error { m.Leases++; return nil }); err != nil {
		return err
	}
	return auth(func(bucket, _ string, _ []byte) error {
		switch bucket {
		case "authUsers":
			m.Users++
		case "authRoles":
			m.Roles++
		}
		return nil
	})
}

const (
	migratingDir = "member.migrating" // becomes member when it is complete
	keptEtcd     = "member.etcd"      // what an exchange leaves
	keptBelay    = "member.belay"
)

// Run moves.
func (m Move) Run(ctx context.Context) (*Moved, error) {
	r := &Moved{From: "etcd", To: "belay"}
	kept, isSource, isTarget := keptEtcd, isEtcd, isBelay
	if m.ToEtcd != nil {
		r.From, r.To, kept, isSource, isTarget = "belay", "etcd", keptBelay, isBelay, isEtcd
	}
	inPlace := m.Out == ""
	wal := m.wal()
	member := filepath.Join(m.DataDir, "member")
	source := filepath.Join(m.DataDir, migratingDir)
	r.Source = member
	if inPlace && isTarget(member) && isSource(source) {
		// An earlier run did everything but this.
		if !m.DryRun {
			if wal != nil {
				if err := wal.setAside(); err != nil {
					return nil, err
				}
			}
			if err := renameDurably(source, filepath.Join(m.DataDir, kept)); err != nil {
				return nil, err
			}
		}
		return nil, fmt.Errorf("%s is %s's already: an earlier run was interrupted after its last step; the old data is in %s", member, r.To, filepath.Join(m.DataDir, kept))
	}
	if _, err := os.Stat(filepath.Join(member, "snap")); errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("%w: run this as the user of the data, or as root", err)
	}
	if isSource(member) == isTarget(member) || isTarget(member) {
		if isTarget(member) {
			return nil, fmt.Errorf("%s is data of %s already", member, r.To)
		}
		return nil, fmt.Errorf("%s is no data of %s", member, r.From)
	}
	if inPlace && !m.DryRun {
		if isSource(source) {
			return nil, fmt.Errorf("%s holds data of %s that no run of this left: move it away", source, r.From)
		}
		if _, err := os.Lstat(filepath.Join(m.DataDir, kept)); err == nil {
			return nil, fmt.Errorf("%s is there from an earlier run: move it away, or remove it if it is not needed", filepath.Join(m.DataDir, kept))
		}
		if wal != nil {
			if err := wal.check(); err != nil {
				return nil, err
			}
		}
	}
	root := m.Out
	if inPlace {
		root = m.DataDir
	}
	b := building{move: m, r: r, wal: wal, member: member, root: root, temporary: filepath.Join(root, migratingDir)}
	if !m.DryRun {
		if err := b.prepare(inPlace); err != nil {
			return nil, err
		}
	}
	build := b.toBelay
	if m.ToEtcd != nil {
		build = b.toEtcd
	}
	err := build(ctx, func() error { return b.place(inPlace, kept) })
	if err != nil {
		return nil, errors.Join(err, b.discard())
	}
	return r, nil
}

// building is the new data on its way.
type building struct {
	move      Move
	r         *Moved
	wal       *apart // nil: the log is with the rest, or --out is given
	member    string // the old data
	root      string // the data directory of the new
	temporary string // where it is built
	made      []string
	placed    bool
}

func (b *building) tell(step string, done, total int64) {
	if b.move.Progress != nil {
		b.move.Progress(step, done, total)
	}
}

func (b *building) note(format string, args ...any) {
	b.r.Notes = append(b.r.Notes, fmt.Sprintf(format, args...))
}

// logDir is where the new log is built: in the new data, or, if it is to be apart, in its place.
func (b *building) logDir(name string) string {
	if b.wal != nil {
		return b.wal.built()
	}
	if b.move.OutWALDir == "" {
		return filepath.Join(b.temporary, name)
	}
	if b.move.ToEtcd != nil {
		return b.move.OutWALDir
	}
	return filepath.Join(b.move.OutWALDir, name)
}

// prepare makes the folders for the new data.
func (b *building) prepare(inPlace bool) error {
	dirs := []string{}
	if !inPlace {
		dirs = append(dirs, b.move.Out)
		if b.move.OutWALDir != "" {
			dirs = append(dirs, b.move.OutWALDir)
		}
	}
	for i, dir := range dirs {
		names, err := os.ReadDir(dir)
		switch {
		case errors.Is(err, os.ErrNotExist):
			b.made = append(b.made, dir)
		case err != nil:
			return err
		case len(names) == 1 && names[0].Name() == migratingDir && i == 0: // of a run that was interrupted
		case len(names) > 0:
			return fmt.Errorf("%s is not empty: give a directory that does not exist", dir)
		}
		if err := FS().MkdirAll(dir, folderMode); err != nil {
			return err
		}
		if err := SyncDir(FS(), filepath.Dir(filepath.Clean(dir))); err != nil {
			return err
		}
	}
	if b.wal != nil {
		if err := b.wal.clear(); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(b.temporary); err != nil {
		return err
	}
	return FS().MkdirAll(b.temporary, folderMode)
}

// place gives the new data its place. It is complete and durable.
func (b *building) place(inPlace bool, kept string) error {
	fs := FS()
	if err := b.giveAway(); err != nil {
		return err
	}
	if err := SyncDir(fs, b.temporary); err != nil {
		return err
	}
	b.r.Target = filepath.Join(b.root, "member")
	if !inPlace {
		b.placed = true
		return renameDurably(b.temporary, b.r.Target)
	}
	if err := SyncDir(fs, b.root); err != nil { // the name that is about to be swapped
		return err
	}
	if b.wal != nil {
		if err := b.wal.put(); err != nil {
			return err
		}
	}
	if err := exchange(b.temporary, b.member); err != nil {
		return fmt.Errorf("this system or file system cannot swap two names in one step (%w): give --out, and swap them yourself", err)
	}
	b.placed = true
	if err := SyncDir(fs, b.root); err != nil {
		return err
	}
	if b.wal != nil {
		if err := b.wal.setAside(); err != nil {
			return err
		}
		b.note("the old log is in %s", b.wal.kept())
	}
	b.r.Source = filepath.Join(b.root, kept)
	return renameDurably(b.temporary, b.r.Source)
}

// giveAway has the new data belong to who has the old: the member's user cannot read what root made.
func (b *building) giveAway() error {
	log := "log"
	if b.move.ToEtcd != nil {
		log = "wal"
	}
	for _, path := range append([]string{b.temporary, b.logDir(log)}, b.made...) {
		if err := walfile.GiveTo(path, b.member); err != nil {
			return err
		}
	}
	return nil
}

// discard removes what was built, unless it has its place.
func (b *building) discard() error {
	if b.placed || b.move.DryRun {
		return nil
	}
	err := os.RemoveAll(b.temporary)
	if b.wal != nil {
		err = errors.Join(err, b.wal.clear())
	}
	for _, dir := range b.made {
		if dir == b.move.OutWALDir {
			err = errors.Join(err, os.RemoveAll(dir))
		} else {
			_ = os.Remove(dir) // if nothing else is in it
		}
	}
	return err
}

func renameDurably(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return SyncDir(FS(), filepath.Dir(to))
}

// isEtcd and isBelay tell whose data a folder called member holds.
func isEtcd(member string) bool { return exists(filepath.Join(member, etcdsFolder, "db")) }

func isBelay(member string) bool {
	return exists(filepath.Join(member, identityFile)) && exists(filepath.Join(member, "store"))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

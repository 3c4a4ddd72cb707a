package datadir

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/peers"
	"github.com/belaydb/belay/raftlog"
	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/store"
)

// A member whose data is damaged heals (--heal): it comes back under a new id, with the others'
// data. What it promised under the old id is lost with its log, so the old id must never speak
// again, and it is the others who decide that it need not. healing.json, in the data directory, is
// how far it has come; each step is durable before the next begins.
//
//	step                                            after a kill -9 behind it
//	1 healing.json, with a nonce                    the old id does not start again: the next start asks
//	                                                the others, with the same nonce
//	2 the leader adds the heir, a learner whose id  it finds the heir by the nonce, and goes on; another
//	  follows from the nonce                        leader does too, since the list of members says it
//	3 it removes the old member                     likewise: the heir's URLs still name the old one
//	4 it gives the heir its plain URLs              likewise; the answer is the same as before
//	5 healing.json names the heir                   the next start goes on with 6, and asks nobody
//	6 log and member folder are renamed             what was renamed is not renamed again
//	7 healing.json says so                          as a member that joins, without data
//	8 the heir's log and store are made             as a member that joins: of an unfinished log nothing
//	                                                was promised
//	9 healing.json says that the heir may speak     as any learner. Is its data damaged now, it heals
//	                                                again, with a new nonce: it acknowledged entries
//	10 the leader promotes it, once it caught up    as any voter; asking again is answered with yes
//	11 healing.json is removed                      done
//
// Why no vote is lost. Every change of 2, 3, 4 and 10 is an entry that a quorum of the present voters
// has on its disks, the damaged one being among those who cannot help. So from 3 on whatever the old
// member had acknowledged is with a quorum of the rest, or was never committed; and a cluster in
// which the others are no quorum, of one or of two members, or with two of three damaged, commits
// nothing: there nothing is changed, here or there, and the log says which copy is the better one.
// The heir acknowledges nothing before 9, and votes only after 10, of which its own log knows.
//
// The leader adds at most one learner at a time in this way, asks for as many connected voters as
// are a quorum of the members before the removal, and never replaces itself, nor a member that
// speaks (server/heal.go). Two that heal at once do so one after the other.
//
// A leader that is damaged is none by the time it heals: it has handed over, or was replaced.

const (
	healingFile = "healing.json"
	// damagedPrefix begins the names of the folders with damaged data, in the data directory and in
	// --wal-dir; the time follows.
	damagedPrefix = "damaged-"
	// keptDamaged is how many damaged copies are kept, the newest.
	keptDamaged = 2
	// healsWithin bounds how often a member heals: not if keptDamaged copies are younger.
	healsWithin = time.Hour
)

// Healing is how far a member that heals has come. It is stored as healing.json.
type Healing struct {
	// Nonce is drawn for each heir, and known to nobody who has not been asked with it.
	Nonce string `json:"nonce"`
	// Member is the id whose data is damaged, and Cluster its cluster; 0: nothing readable says.
	Member  uint64 `json:"member,string,omitempty"`
	Cluster uint64 `json:"cluster,string,omitempty"`
	// Before is the nonce of which Member was the heir, and did not get so far as to be a voter.
	Before string `json:"before,omitempty"`
	Found  string `json:"found"` // what is damaged
	// Differs: the data can be read, but is not that of a quorum of the others, by a corruption check.
	Differs bool      `json:"differs,omitempty"`
	At      time.Time `json:"at"`
	// Peers are peer URLs of other members, as far as known.
	Peers []string `json:"peers,omitempty"`

	// Heir is the id to come back with; 0: the others have not agreed yet. Voter: to be promoted.
	Heir    uint64            `json:"heir,string,omitempty"`
	Voter   bool              `json:"voter,omitempty"`
	Members []*command.Member `json:"members,omitempty"` // the cluster's, with the heir
	// Aside: the damaged data is under another name. Implies Heir.
	Aside bool `json:"aside,omitempty"`
	// Speaks: the heir has a log and may have said something. Implies Aside.
	Speaks bool `json:"speaks,omitempty"`
}

// damageError is an error that says which part of a member's data is damaged, missing or not of one
// piece with the others.
type damageError struct{ error }

func (d damageError) Unwrap() error { return d.error }

func damaged(format string, args ...any) error { return damageError{fmt.Errorf(format, args...)} }

// errDiffers is in the errors of Differs.
var errDiffers = errors.New("this member's data differs from that of the others")

// Differs is the error of a member that a corruption check found to have other data than a quorum of
// the others: damage, of which it heals as of any other.
func Differs(detail string) error { return damaged("%w: %s", errDiffers, detail) }

// IsDiffering reports whether damage is that of Differs.
func IsDiffering(err error) bool { return errors.Is(err, errDiffers) }

// IsDamage reports whether an error of a member's start, or the reason why it ended, is that its
// data is damaged, missing or not of one piece: what a member can heal from. That a disk takes no
// writes is none, nor is a wrong flag.
func IsDamage(err error) bool {
	var (
		parts   damageError
		corrupt *raftlog.CorruptError
		old     *raftlog.OldError
		unfit   *raftlog.UnfitError
		path    *fs.PathError
	)
	switch {
	case err == nil:
		return false
	case errors.As(err, &parts), errors.As(err, &corrupt), errors.As(err, &old), errors.As(err, &unfit), store.IsDamage(err):
		return true
	}
	return errors.As(err, &path) && path.Op == "read" && errors.Is(path.Err, syscall.EIO)
}

// ReadHealing returns nil if the member does not heal.
func ReadHealing(fs vfs.FS, paths Paths) (*Healing, error) {
	path := fs.PathJoin(paths.root(), healingFile)
	data, err := readSmall(fs, path, maxMembersBytes)
	if data == nil {
		return nil, err
	}
	h := new(Healing)
	if err := json.Unmarshal(data, h); err != nil || h.Nonce == "" {
		return nil, damaged("%s is damaged (%v): this member was healing, and its old id must not speak again", path, err)
	}
	return h, nil
}

// Identity is that of the heir, at its first start. It fails if there was one before.
func (h *Healing) Identity() (Identity, error) {
	if h.Speaks {
		return Identity{}, damaged("the data of member %x, as which this one came back, is gone again", h.Heir)
	}
	return Identity{Member: h.Heir, Cluster: h.Cluster, Members: h.Members, Fresh: true, Joining: true}, nil
}

// Unfinished is the error of a start of a member whose old id must not speak again, and that has no
// new one yet.
func (h *Healing) Unfinished(paths Paths) error {
	return damaged("this member has asked the others for a new id since %s, because of: %s. Start it with --heal; or, if `belay ctl member list` shows that it still has its id, remove %s, and it starts with what it has",
		h.At.Format(time.RFC3339), h.Found, filepath.Join(paths.root(), healingFile))
}

// Write makes h durable.
func (h *Healing) Write(fs vfs.FS, paths Paths) error {
	data, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if err := fs.MkdirAll(paths.root(), 0o700); err != nil {
		return err
	}
	return plainPathError(WriteFile(fs, paths.root(), healingFile, data))
}

// Forget removes healing.json of a healing that has changed nothing: the others were not asked, or
// cannot agree on anything.
func (h *Healing) Forget(fs vfs.FS, paths Paths) error {
	if err := fs.Remove(fs.PathJoin(paths.root(), healingFile)); err != nil && !oserror.IsNotExist(err) {
		return plainPathError(err)
	}
	return plainPathError(SyncDir(fs, paths.root()))
}

// Done removes healing.json, and all but the newest damaged copies. It is the last step.
func (h *Healing) Done(fs vfs.FS, paths Paths, logger *zap.Logger) error {
	if logger == nil {
		logger = zap.NewNop()
	}
	if err := h.Forget(fs, paths); err != nil {
		return err
	}
	for _, dir := range paths.damagedRoots() {
		names := damagedIn(fs, dir)
		for _, name := range names[:max(0, len(names)-keptDamaged)] {
			logger.Info("removing a damaged copy of this member's data: newer ones are kept", zap.String("path", fs.PathJoin(dir, name)), zap.Int("kept", keptDamaged))
			if err := fs.RemoveAll(fs.PathJoin(dir, name)); err != nil {
				return plainPathError(err)
			}
		}
	}
	return nil
}

// damagedRoots are where damaged copies are kept: beside what they were.
func (p Paths) damagedRoots() []string {
	if p.logApart() {
		return []string{p.root(), filepath.Dir(p.Log)}
	}
	return []string{p.root()}
}

// damagedIn are the names of the damaged copies in a folder, the oldest first.
func damagedIn(fs vfs.FS, dir string) (names []string) {
	all, _ := fs.List(dir) // not there: none
	for _, name := range all {
		if strings.HasPrefix(name, damagedPrefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// DamagedCopies is how many damaged copies of a member's data are kept.
func DamagedCopies(fs vfs.FS, paths Paths) int { return len(damagedIn(fs, paths.root())) }

const damagedTime = "20060102T150405.000Z"

func (h *Healing) damagedName() string { return damagedPrefix + h.At.UTC().Format(damagedTime) }

// SetAside renames what is damaged, once the others have agreed, and says so in healing.json.
// Nothing is left under the old names then. It may be repeated.
func (h *Healing) SetAside(fs vfs.FS, paths Paths, logger *zap.Logger) error {
	if logger == nil {
		logger = zap.NewNop()
	}
	if h.Aside {
		return nil
	}
	name := h.damagedName()
	moves := [][2]string{{paths.Member, fs.PathJoin(paths.root(), name)}}
	if paths.logApart() {
		moves = append(moves, [2]string{paths.Log, fs.PathJoin(filepath.Dir(paths.Log), name)})
	}
	for _, m := range moves {
		from, to := m[0], m[1]
		if _, err := fs.Stat(from); oserror.IsNotExist(err) {
			continue // it is what is missing, or a start before this one came so far
		}
		logger.Warn("setting damaged data aside", zap.String("from", from), zap.String("to", to), zap.Int("kept", keptDamaged))
		if err := fs.Rename(from, to); err != nil {
			return fmt.Errorf("cannot set the damaged data aside: %w", plainPathError(err))
		}
		if err := SyncDir(fs, filepath.Dir(to)); err != nil {
			return fmt.Errorf("cannot set the damaged data aside: %w", plainPathError(err))
		}
	}
	h.Aside = true
	return h.Write(fs, paths)
}

// BeginHealing is the first step: it makes a new Healing durable, or returns the one that has
// begun. others are other members' peer URLs. now is by the wall clock. An error means that nothing was
// begun, and that the member does not heal.
func BeginHealing(fs vfs.FS, paths Paths, found error, others []string, now time.Time) (*Healing, error) {
	before, err := ReadHealing(fs, paths)
	if err != nil && !IsDamage(err) {
		return nil, err
	}
	h := &Healing{Nonce: rand.Text(), Found: found.Error(), Differs: IsDiffering(found), At: now}
	switch {
	case before != nil && before.Heir == 0:
		return before, nil
	case before != nil:
		h.Member, h.Cluster, h.Before, h.Peers = before.Heir, before.Cluster, before.Nonce, before.Peers
	default:
		h.Member, h.Cluster = whose(fs, paths)
	}
	if err := MayHeal(fs, paths, now); err != nil {
		return nil, fmt.Errorf("%w: %w", err, found)
	}
	for _, u := range slices.Concat(others, membersIn(fs, paths, h.Member)) {
		if !slices.Contains(h.Peers, u) {
			h.Peers = append(h.Peers, u)
		}
	}
	return h, h.Write(fs, paths)
}

// MayHeal says whether a member has healed too often to begin again; nil: it has not.
func MayHeal(fs vfs.FS, paths Paths, now time.Time) error {
	copies := damagedIn(fs, paths.root())
	if len(copies) < keptDamaged {
		return nil
	}
	oldest, err := time.Parse(damagedTime, strings.TrimPrefix(copies[len(copies)-keptDamaged], damagedPrefix))
	if err != nil || now.Sub(oldest) >= healsWithin || !now.After(oldest) {
		return nil // a name that no Belay gave bounds nothing
	}
	return fmt.Errorf("this member has healed %d times within %v, and does not again: look after its disk first, then remove %s*",
		keptDamaged, healsWithin, fs.PathJoin(paths.root(), damagedPrefix))
}

// whose is the member and cluster of the first part that can be read; 0: none can.
func whose(fs vfs.FS, paths Paths) (member, cluster uint64) {
	if meta, ok, err := raftlog.Peek(paths.Log, fs); err == nil && ok {
		return meta.MemberID, meta.ClusterID
	}
	for _, path := range []string{paths.identity(), paths.storeIdentity()} {
		if r, err := readRecord(fs, path); err == nil && r != nil {
			return r.Member, r.Cluster
		}
	}
	return 0, 0
}

// membersIn are the peer URLs of the other members that a store knows, as far as it can be read.
func membersIn(fs vfs.FS, paths Paths, own uint64) (urls []string) {
	st, err := store.OpenReadOnly(paths.Store, store.Options{FS: fs})
	if err != nil {
		return nil
	}
	defer st.Close()
	view := st.View()
	defer view.Close()
	stored, err := state.ReadStored(view)
	if err != nil {
		return nil
	}
	for _, m := range stored.Members {
		if m.ID != own {
			urls = append(urls, m.PeerURLs...)
		}
	}
	return urls
}

// LookAt reads as much as it can, and changes nothing.
//
// REQUIRES: no member runs on the folders.
func LookAt(fs vfs.FS, paths Paths, found string) peers.Copy {
	c := peers.Copy{Damage: found}
	end, _ := raftlog.Readable(paths.Log, fs) // what comes before the damage
	c.LogTerm, c.LogIndex = end.Term, end.Index
	st, err := store.OpenReadOnly(paths.Store, store.Options{FS: fs})
	if err != nil {
		return c
	}
	defer st.Close()
	c.Applied, _ = st.Applied()
	view := mvcc.ReadView(st)
	defer view.Close()
	if view.Err() == nil {
		c.Revision = view.Rev()
	}
	return c
}

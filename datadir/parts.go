package datadir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/raftlog"
)

// identityFile is the name of the file with a Record, beside the store and in it.
const identityFile = "identity.json"

// maxIdentityBytes bounds what is read of it.
const maxIdentityBytes = 64 << 10

// Paths are where the parts of one member are.
type Paths struct {
	Member string // the folder of identity.json
	Store  string
	Log    string
}

// PathsOf are the paths under --data-dir and --wal-dir; walDir "": the log is under the data
// directory. The log has a folder of its own inside walDir, which may be a mount point: the first
// log is made beside its place and renamed into it.
func PathsOf(dataDir, walDir string) Paths {
	member := filepath.Join(dataDir, "member")
	p := Paths{Member: member, Store: filepath.Join(member, "store"), Log: filepath.Join(member, "log")}
	if walDir != "" {
		p.Log = filepath.Join(walDir, "log")
	}
	return p
}

// PathsOfCopy are the paths of a copy of the data that was set aside under another name than member, in
// the data directory and, if the log is apart, in walDir: damaged-TIME, say.
func PathsOfCopy(dataDir, walDir, folder string) Paths {
	member := filepath.Join(dataDir, folder)
	p := Paths{Member: member, Store: filepath.Join(member, "store"), Log: filepath.Join(member, "log")}
	if walDir != "" {
		p.Log = filepath.Join(walDir, folder)
	}
	return p
}

// root is the data directory.
func (p Paths) root() string { return filepath.Dir(p.Member) }

// logApart reports whether the log has a directory of its own, --wal-dir.
func (p Paths) logApart() bool { return p.Log != filepath.Join(p.Member, "log") }

func (p Paths) identity() string      { return filepath.Join(p.Member, identityFile) }
func (p Paths) storeIdentity() string { return filepath.Join(p.Store, identityFile) }

// Record is the content of identity.json.
type Record struct {
	Member, Cluster uint64
	// Log is the id of the raft log (raftlog.Metadata.LogID); 0: written by a version that did not
	// record it.
	Log uint64
	// Group is the number of a group that the log has had durably; 0: none is known.
	Group uint64
}

// storedRecord is Record on disk: ids in hexadecimal.
type storedRecord struct {
	Member  string `json:"member"`
	Cluster string `json:"cluster"`
	Log     string `json:"log,omitempty"`
	Group   uint64 `json:"group,omitempty"`
}

func (r Record) encode() ([]byte, error) {
	s := storedRecord{Member: command.IDText(r.Member), Cluster: command.IDText(r.Cluster), Group: r.Group}
	if r.Log != 0 {
		s.Log = command.IDText(r.Log)
	}
	return json.Marshal(s)
}

func decodeRecord(data []byte) (r Record, err error) {
	var s storedRecord
	if err := json.Unmarshal(data, &s); err != nil {
		return r, err
	}
	r.Group = s.Group
	for _, id := range []struct {
		text string
		to   *uint64
	}{{s.Member, &r.Member}, {s.Cluster, &r.Cluster}, {s.Log, &r.Log}} {
		if id.text == "" && id.to == &r.Log {
			continue
		}
		if *id.to, err = strconv.ParseUint(id.text, 16, 64); err != nil {
			return r, err
		}
	}
	return r, nil
}

// readSmall reads a file, up to most bytes; nil: it is not there.
func readSmall(fs vfs.FS, path string, most int64) ([]byte, error) {
	f, err := fs.Open(path)
	if oserror.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	data, err := io.ReadAll(io.LimitReader(f, most)) // never nil
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	return data, nil
}

// unreadable is the error of a file that could be read and is no Record.
type unreadable struct{ error }

// readRecord returns nil if the file is not there.
func readRecord(fs vfs.FS, path string) (*Record, error) {
	data, err := readSmall(fs, path, maxIdentityBytes)
	if data == nil {
		return nil, err
	}
	r, err := decodeRecord(data)
	if err != nil {
		return nil, unreadable{fmt.Errorf("%s is damaged: %w", path, err)}
	}
	return &r, nil
}

// Parts are the existing parts of a member, as a start found them.
type Parts struct {
	fs       vfs.FS
	paths    Paths
	identity *Record           // nil: none
	store    *Record           // nil: none
	log      *raftlog.Metadata // nil: none
	bound    bool              // Bind wrote that they belong together
}

// Look reads to which member each part belongs, and changes nothing. It fails if one cannot be
// read, or if parts do not belong together. CheckStore judges what cannot be known before the store
// is open.
func Look(fs vfs.FS, paths Paths) (*Parts, error) {
	p := &Parts{fs: fs, paths: paths}
	meta, ok, err := raftlog.Peek(paths.Log, fs)
	if err != nil {
		return nil, err
	}
	if ok {
		p.log = &meta
	}
	var errs [2]error
	p.identity, errs[0] = readRecord(fs, paths.identity())
	p.store, errs[1] = readRecord(fs, paths.storeIdentity())
	switch {
	case errs[0] != nil && p.belongs(p.store):
		return nil, copyOver(errs[0], paths.identity(), paths.storeIdentity())
	case errs[1] != nil && p.belongs(p.identity):
		return nil, copyOver(errs[1], paths.storeIdentity(), paths.identity())
	}
	for _, err := range errs {
		if bad := (unreadable{}); errors.As(err, &bad) {
			return nil, damaged("%w. It says whose store and which raft log lie here. If --data-dir and --wal-dir are those that this member always had, "+
				"move it away, and the other %s under the same --data-dir too, and start again", err, identityFile)
		} else if err != nil {
			return nil, err
		}
	}
	return p, p.check()
}

// copyOver is the error of a record whose twin is well.
func copyOver(err error, path, good string) error {
	if bad := (unreadable{}); !errors.As(err, &bad) {
		return err
	}
	return damaged("%w, and %s is well, and belongs to the raft log. Copy %s over %s and start again", err, good, good, path)
}

// Log identifies the existing log; nil if there is none, and nothing else mentions one: then this
// is a first start.
func (p *Parts) Log() *raftlog.Metadata { return p.log }

// LeastGroup is the group that the log must reach (raftlog.Options.LeastGroup).
func (p *Parts) LeastGroup() (group uint64) {
	for _, r := range []*Record{p.identity, p.store} {
		if r != nil {
			group = max(group, r.Group)
		}
	}
	return group
}

func (p *Parts) check() error {
	for _, known := range []struct {
		record *Record
		path   string
	}{{p.identity, p.paths.identity()}, {p.store, p.paths.storeIdentity()}} {
		switch r := known.record; {
		case r == nil:
		case p.log == nil:
			return p.logMissing()
		case !p.ofLog(r) && (p.identity != nil && p.ofLog(p.identity) || p.store != nil && p.ofLog(p.store)):
			// Folders that were mixed up would take both records along.
			good := p.paths.identity()
			if known.path == good {
				good = p.paths.storeIdentity()
			}
			return damaged("%s is damaged: it says that this is member %x of cluster %x, but %s and the raft log in %s say member %x of cluster %x. Copy %s over it and start again",
				known.path, r.Member, r.Cluster, good, p.paths.Log, p.log.MemberID, p.log.ClusterID, good)
		case !p.ofLog(r):
			return fmt.Errorf("the store in %s belongs to member %x of cluster %x (says %s), the raft log in %s to member %x of cluster %x; they cannot run together. %s",
				p.paths.Store, r.Member, r.Cluster, known.path, p.paths.Log, p.log.MemberID, p.log.ClusterID, together)
		case r.Log != 0 && r.Log != p.log.LogID:
			return damaged("the store in %s belongs to the raft log %x (says %s), but the raft log in %s is %x: these are two histories of member %x, and they cannot run together. %s",
				p.paths.Store, r.Log, known.path, p.paths.Log, p.log.LogID, p.log.MemberID, together)
		}
	}
	return nil
}

// belongs reports whether a record is there and names the log that there is.
func (p *Parts) belongs(r *Record) bool {
	return r != nil && p.log != nil && p.ofLog(r) && r.Log == p.log.LogID
}

// ofLog reports whether a record is of the member whose log there is.
func (p *Parts) ofLog(r *Record) bool {
	return r.Member == p.log.MemberID && r.Cluster == p.log.ClusterID
}

const together = "Nothing was changed. Give the --data-dir and --wal-dir that were used together"

func (p *Parts) logMissing() error {
	return damaged("the store in %s belongs to a member, but its raft log is missing from %s: give --wal-dir as it was when the member was created. "+
		"If the log is lost, remove the member from the cluster, delete %s and join again; a single member: restore a snapshot",
		p.paths.Store, p.paths.Log, p.paths.root())
}

// CheckStore judges what only the open store shows: applied is its applied index, 0 if it is empty.
// lost means that there was a store before, and this one is empty: the log must have everything.
func (p *Parts) CheckStore(applied uint64) (lost bool, err error) {
	switch {
	case applied > 0 && p.log == nil:
		return false, p.logMissing()
	case p.identity == nil || p.identity.Log == 0 || p.store != nil:
		return false, nil
	case applied > 0:
		return false, damaged("the data in %s belongs to the raft log %x in %s, but the store in %s does not say so: it is another member's, or of before that log; they cannot run together. %s",
			p.paths.Member, p.log.LogID, p.paths.Log, p.paths.Store, together)
	}
	return true, nil
}

// Write records, in both places and durably, that all parts belong together. REQUIRES: the log and
// the store's folder exist, and the member has not sent anything yet, or sends nothing more.
func Write(fs vfs.FS, paths Paths, r Record) error {
	data, err := r.encode()
	if err != nil {
		return err
	}
	for _, dir := range []string{paths.Store, paths.Member} { // doc.go, "The order of writing"
		if err := WriteFile(fs, dir, identityFile, data); err != nil {
			return fmt.Errorf("cannot write %s: %w", fs.PathJoin(dir, identityFile), err)
		}
	}
	return nil
}

// WriteFile writes data to dir/name atomically and durably.
func WriteFile(fs vfs.FS, dir, name string, data []byte) error {
	temporary := fs.PathJoin(dir, name+".tmp")
	f, err := fs.Create(temporary, "")
	if err != nil {
		return err
	}
	_, err = f.Write(slices.Clone(data)) // a vfs.File may change its argument
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := fs.Rename(temporary, fs.PathJoin(dir, name)); err != nil {
		return err
	}
	return SyncDir(fs, dir)
}

// SyncDir makes the names in a folder durable.
func SyncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

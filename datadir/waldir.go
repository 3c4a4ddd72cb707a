package datadir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// apart is a --wal-dir in which the log of one kind takes the place of the other's, for a Move in
// place.
//
// Etcd's log is files in the directory itself, Belay's is a folder in it, so both can be there, and
// which is the member's is decided by the exchange of the data directory alone:
//
//	built       log.migrating/ or wal.migrating/     of no use to anybody; the next run removes it
//	put         log/ or *.wal                        before the exchange: not the member's yet
//	set aside   wal.etcd/ or log.belay/              after the exchange: the old one, kept
//
// Putting and setting aside are several steps, between a file that is made before them and removed
// after. If it is there, the data directory tells what the next run has to do: what was put is
// removed if the exchange has not been, and the old log is set aside if it has.
//
// An old log is not left where it was: an etcd that is started by mistake would take it for its
// own.
type apart struct {
	dir    string
	toEtcd bool
}

// wal is what Move uses; nil unless the log is apart and the move in place.
func (m Move) wal() *apart {
	if m.WALDir == "" || m.Out != "" {
		return nil
	}
	return &apart{dir: m.WALDir, toEtcd: m.ToEtcd != nil}
}

// built is where the new log is made.
func (a *apart) built() string {
	if a.toEtcd {
		return filepath.Join(a.dir, "wal.migrating")
	}
	return filepath.Join(a.dir, "log.migrating")
}

// kept is where the old one goes.
func (a *apart) kept() string {
	if a.toEtcd {
		return filepath.Join(a.dir, "log.belay")
	}
	return filepath.Join(a.dir, "wal.etcd")
}

func (a *apart) marker() string { return filepath.Join(a.dir, migratingDir) }

// etcdsFiles are the files of an etcd's log in its directory.
func etcdsFiles(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if slices.Contains([]string{".wal", ".tmp", ".broken"}, filepath.Ext(e.Name())) && !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// live are the names of a kind's log in the directory.
func (a *apart) live(etcds bool) ([]string, error) {
	if etcds {
		return etcdsFiles(a.dir)
	}
	if exists(filepath.Join(a.dir, "log")) {
		return []string{"log"}, nil
	}
	return nil, nil
}

// check refuses what would be in the way. REQUIRES: the data directory is of the old kind.
func (a *apart) check() error {
	if exists(a.kept()) {
		return fmt.Errorf("%s is there from an earlier run: move it away, or remove it if it is not needed", a.kept())
	}
	if exists(a.marker()) {
		return nil // what was put is removed
	}
	names, err := a.live(a.toEtcd)
	if err == nil && len(names) > 0 {
		err = fmt.Errorf("%s holds a log that is not this member's, %s: move it away, or remove it if it is not needed", a.dir, strings.Join(names, ", "))
	}
	return err
}

// clear removes what a run has built or put that did not come to its end.
func (a *apart) clear() error {
	if exists(a.marker()) {
		names, err := a.live(a.toEtcd)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := os.RemoveAll(filepath.Join(a.dir, name)); err != nil {
				return err
			}
		}
		if err := a.unmark(); err != nil {
			return err
		}
	}
	return os.RemoveAll(a.built())
}

func (a *apart) unmark() error {
	if err := SyncDir(FS(), a.dir); err != nil {
		return err
	}
	if err := os.Remove(a.marker()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return SyncDir(FS(), a.dir)
}

// put gives the new log its name. The exchange comes next.
func (a *apart) put() error {
	f, err := os.OpenFile(a.marker(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err := errors.Join(err, SyncDir(FS(), a.dir)); err != nil {
		return err
	}
	if !a.toEtcd {
		return renameDurably(a.built(), filepath.Join(a.dir, "log"))
	}
	entries, err := os.ReadDir(a.built())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Rename(filepath.Join(a.built(), e.Name()), filepath.Join(a.dir, e.Name())); err != nil {
			return err
		}
	}
	return errors.Join(os.Remove(a.built()), SyncDir(FS(), a.dir))
}

// setAside keeps the old log under another name. The exchange has been. It may be called again.
func (a *apart) setAside() error {
	if !exists(a.marker()) {
		return nil
	}
	names, err := a.live(!a.toEtcd)
	if err != nil {
		return err
	}
	switch {
	case len(names) == 0:
	case a.toEtcd:
		if err := renameDurably(filepath.Join(a.dir, "log"), a.kept()); err != nil {
			return err
		}
	default:
		if err := FS().MkdirAll(a.kept(), folderMode); err != nil {
			return err
		}
		for _, name := range names {
			if err := os.Rename(filepath.Join(a.dir, name), filepath.Join(a.kept(), name)); err != nil {
				return err
			}
		}
		if err := SyncDir(FS(), a.kept()); err != nil {
			return err
		}
	}
	return a.unmark()
}

// Package crash computes what a power failure may leave of a file system in memory. It is for
// tests.
//
// What was synced is kept. Of the rest each page of a file, each new name and each removed name is
// kept or lost independently: a disk writes in any order, and a journal may hold half of the
// changes to a folder. (vfs.MemFS's own CrashClone never loses a removed name.)
package crash

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Clone is what a crash may leave of fs. It keeps about percent of what was not synced, chosen by
// rng; rng may be nil for 0.
func Clone(fs *vfs.MemFS, percent int, rng *rand.Rand) (*vfs.MemFS, error) {
	clone := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
	if percent == 0 {
		return clone, nil
	}
	return clone, loseRemoved(fs, clone, "/", percent, rng)
}

// loseRemoved removes names from clone that fs no longer has.
func loseRemoved(fs, clone *vfs.MemFS, dir string, percent int, rng *rand.Rand) error {
	had, err := clone.List(dir)
	if err != nil {
		return err
	}
	slices.Sort(had)
	changed := false
	for _, name := range had {
		path := fs.PathJoin(dir, name)
		info, err := clone.Stat(path)
		if err != nil {
			return err
		}
		switch _, err := fs.Stat(path); {
		case err == nil && info.IsDir():
			if err := loseRemoved(fs, clone, path, percent, rng); err != nil {
				return err
			}
		case err != nil && rng.IntN(100) < percent:
			if err := clone.RemoveAll(path); err != nil {
				return err
			}
			changed = true
		}
	}
	if !changed {
		return nil
	}
	d, err := clone.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Kinds calls each with several results of a crash at the same moment, until it fails: with nothing
// that was not synced, with everything, and with n mixtures.
func Kinds(fs *vfs.MemFS, n int, rng *rand.Rand, each func(left *vfs.MemFS) error) error {
	percents := []int{0, 100}
	for range n {
		percents = append(percents, 1+rng.IntN(99))
	}
	for _, percent := range percents {
		left, err := Clone(fs, percent, rng)
		if err == nil {
			err = each(left)
		}
		if err != nil {
			return fmt.Errorf("with %d%% of what was not synced: %w", percent, err)
		}
	}
	return nil
}

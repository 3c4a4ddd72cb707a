// Package crash makes of a file system in memory what a power failure may leave of it. It is for
// tests.
//
// What was synced is there. Of the rest each page of a file, each new name and each removed name is
// kept or lost by itself, in any combination: a disk writes in the order that it likes, and a
// journal may hold half of what a folder went through. (vfs.MemFS's own CrashClone never loses a
// removed name.)
package crash

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Clone is what a crash may leave of fs. Of what was not synced it keeps about percent, chosen by
// rng; rng may be nil for 0.
func Clone(fs *vfs.MemFS, percent int, rng *rand.Rand) (*vfs.MemFS, error) {
	clone := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})
	if percent == 0 {
		return clone, nil
	}
	return clone, loseRemoved(fs, clone, "/", percent, rng)
}

// loseRemoved takes names away from clone that fs does not have any more.
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

// Kinds are ways in which the same moment may be left: nothing that was not synced, everything, and
// n mixtures. each is called with every one of them, until it fails.
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

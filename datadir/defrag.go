package datadir

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/belaydb/belay/snapshotfile"
	"github.com/belaydb/belay/store"
	"github.com/belaydb/belay/walfile"
)

// Defragment rewrites the store of a stopped member, Belay's or etcd's, so that it takes the least
// space, and returns which file or folder that is and its bytes before and after. wait is how long an
// etcd's database may be locked by another process; 0: for ever. A store of Belay's does this by
// itself while the member runs, so little is to be gained there.
//
// Errors: the store is missing or in use, or the disk has no room for a copy. The store is whole
// then, as at every point of a crash.
//
// progress, if not nil, is told the bytes that are written anew: of an etcd's database of at most how
// many; of Belay's store in steps, of an unknown total, since what is in the last level already is left
// there.
func Defragment(ctx context.Context, dataDir string, wait time.Duration, progress Progress) (path string, before, after int64, err error) {
	paths := PathsOf(dataDir, "")
	if !isBelay(paths.Member) {
		path = filepath.Join(paths.Member, etcdsFolder, "db")
		before, after, err = snapshotfile.Defragment(ctx, path, wait, progress.step("copying"))
		return path, before, after, err
	}
	if before, err = folderBytes(paths.Store); err != nil {
		return paths.Store, 0, 0, err
	}
	st, err := store.Open(paths.Store, store.Options{FS: FS(), FailFull: true})
	if err != nil {
		return paths.Store, 0, 0, err
	}
	st.Segments.Drop(store.NoLog) // none of the log's is written on
	if err = errors.Join(compactAll(ctx, st, progress), st.Close(), walfile.GiveTo(paths.Store, paths.Member)); err == nil {
		after, err = folderBytes(paths.Store)
	}
	return paths.Store, before, after, err
}

// compactAll compacts a store, and tells from time to time how much was written.
func compactAll(ctx context.Context, st *store.Store, progress Progress) error {
	compact := func() error {
		if err := st.Segments.Move(ctx, true, context.Context.Err); err != nil {
			return err
		}
		return st.CompactAll(ctx)
	}
	if progress == nil {
		return compact()
	}
	done := make(chan error, 1)
	go func() { done <- compact() }()
	look := time.NewTicker(500 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-look.C:
			m := st.Pebble()
			all := m.Total()
			progress("rewriting", int64(all.TableBytesCompacted+all.BlobBytesCompacted)+m.Compact.InProgressBytes, 0)
		}
	}
}

// folderBytes is the size of the files in a folder, and in those within it.
func folderBytes(dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err == nil {
			total += info.Size()
		}
		return err
	})
	return total, err
}

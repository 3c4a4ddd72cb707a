package snapshotfile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coreos/go-semver/semver"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/belaydb/belay/walfile"
)

// copyBatchBytes is how much Defragment copies in one transaction.
const copyBatchBytes = 1 << 20

// Defragment rewrites the database file of a stopped etcd member (member/snap/db) without its free
// pages, and returns its size before and after, in bytes. wait bounds the wait for a file that a
// process has locked; 0: for ever.
//
// The copy is made beside the file (db.tmp.*, which etcd removes at its start), is durable before it
// takes the file's place in one step, and keeps its permissions and its owner. At every point of a
// crash one whole database is in the file. tell is told how many bytes are copied, of at most how
// many; nil: nobody looks.
func Defragment(ctx context.Context, path string, wait time.Duration, tell func(done, total int64)) (before, after int64, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, 0, err
	}
	src, err := openLocked(path, wait)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, src.Close()) }() // it holds the lock until the end
	tmp, err := os.CreateTemp(filepath.Dir(path), "db.tmp.*")
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // it has another name if all went well
	if err := errors.Join(tmp.Chmod(info.Mode().Perm()), tmp.Close()); err != nil {
		return 0, 0, err
	}
	dst, err := bolt.Open(tmp.Name(), info.Mode().Perm(), &bolt.Options{NoFreelistSync: true, NoSync: true})
	if err != nil {
		return 0, 0, err
	}
	err = guarded(path, func() error { return copyBuckets(ctx, dst, src, info.Size(), tell) })
	err = errors.Join(err, dst.Sync(), dst.Close())
	if err != nil {
		return 0, 0, err
	}
	copied, err := os.Stat(tmp.Name())
	if err != nil {
		return 0, 0, err
	}
	if err := walfile.GiveTo(tmp.Name(), path); err != nil {
		return 0, 0, err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return 0, 0, err
	}
	return info.Size(), copied.Size(), walfile.SyncDir(filepath.Dir(path))
}

// copyBuckets copies what etcd's databases have: buckets of keys, without buckets in them.
func copyBuckets(ctx context.Context, dst, src *bolt.DB, total int64, tell func(done, total int64)) error {
	return src.View(func(from *bolt.Tx) error {
		to, err := dst.Begin(true)
		if err != nil {
			return err
		}
		defer func() { _ = to.Rollback() }() // after Commit: nothing
		size, done := 0, int64(0)
		err = from.ForEach(func(name []byte, b *bolt.Bucket) error {
			into, err := to.CreateBucketIfNotExists(name)
			if err != nil {
				return err
			}
			into.FillPercent = 0.9 // as etcd: keys come in order, and a few will be added
			return b.ForEach(func(k, v []byte) error {
				if v == nil {
					return fmt.Errorf("bucket %s, key %x: a bucket in a bucket, which no etcd writes", name, k)
				}
				done += int64(len(k) + len(v))
				if size += len(k) + len(v); size > copyBatchBytes {
					size = 0
					if tell != nil {
						tell(done, total)
					}
					if err := errors.Join(to.Commit(), ctx.Err()); err != nil {
						return err
					}
					if to, err = dst.Begin(true); err != nil {
						return err
					}
					into = to.Bucket(name)
					into.FillPercent = 0.9
				}
				return into.Put(k, v)
			})
		})
		if err != nil {
			return err
		}
		return errors.Join(to.Commit(), ctx.Err())
	})
}

// openLocked opens a database for writing, if all its pages make sense: bbolt's faults on others may
// end the process (pages.go).
func openLocked(path string, wait time.Duration) (*bolt.DB, error) {
	looked, err := open(path, bolt.Options{Timeout: wait, ReadOnly: true})
	if err != nil {
		return nil, err
	}
	err = checkPagesOf(path) // nobody writes meanwhile
	if err = errors.Join(err, looked.Close()); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", path, err)
	}
	return open(path, bolt.Options{Timeout: wait, NoFreelistSync: true})
}

func open(path string, o bolt.Options) (db *bolt.DB, err error) {
	err = guarded(path, func() error {
		db, err = bolt.Open(path, 0o600, &o)
		return err
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("%s is %w: stop that one first", path, ErrInUse)
	}
	if err != nil {
		return nil, fmt.Errorf("%s cannot be opened as a database: %w", path, err)
	}
	return db, nil
}

// guarded makes an error of bbolt's panics on pages that make no sense.
func guarded(path string, fn func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%s is damaged: %v", path, r)
		}
	}()
	return fn()
}

// oldestSchema is what a database without a storage version has.
var oldestSchema = semver.Version{Major: 3, Minor: 5}

// firstStored is the first that stands in the database.
var firstStored = semver.Version{Major: 3, Minor: 6}

// A SchemaChange is what ChangeSchema did.
type SchemaChange struct {
	From, To semver.Version // major and minor; equal: nothing was to be done
	Forced   error          // the rule that force broke; nil: none
}

// Cleared reports whether the database has no storage version now.
func (c SchemaChange) Cleared() bool { return c.To.LessThan(firstStored) }

// ChangeSchema makes the database file of a stopped etcd member one of the storage version target
// (major and minor count), as etcd's own migration does: since 3.6 the version stands in the file,
// and nothing else differs up to StorageVersion. minimal is asked, on the way down, for the least
// version that can read the member's log. force skips the rules and writes the version.
//
// Sources: etcd server/storage/schema.
func ChangeSchema(path string, wait time.Duration, target semver.Version, force bool, minimal func() (semver.Version, error)) (c SchemaChange, err error) {
	if _, err := os.Stat(path); err != nil { // bbolt would make the file
		return c, err
	}
	c.To = semver.Version{Major: target.Major, Minor: target.Minor}
	db, err := openLocked(path, wait)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	err = guarded(path, func() error {
		return db.Update(func(tx *bolt.Tx) error {
			meta := tx.Bucket([]byte("meta"))
			if meta == nil {
				return fmt.Errorf("%s has no bucket meta: it is no database of etcd", path)
			}
			if c.From, err = schemaOf(meta); err != nil {
				return err
			}
			if c.From == c.To {
				return nil
			}
			if c.Forced = mayChange(c.From, c.To, minimal); c.Forced != nil && !force {
				return c.Forced
			}
			if c.To.LessThan(firstStored) {
				return meta.Delete([]byte("storageVersion"))
			}
			return meta.Put([]byte("storageVersion"), []byte(c.To.String()))
		})
	})
	return c, err
}

// schemaOf is the storage version of a database, by etcd's rules.
func schemaOf(meta *bolt.Bucket) (v semver.Version, err error) {
	if text := meta.Get([]byte("storageVersion")); text != nil {
		found, err := semver.NewVersion(strings.TrimSpace(string(text)))
		if err != nil {
			return v, fmt.Errorf("storage version %q: %w", text, err)
		}
		return semver.Version{Major: found.Major, Minor: found.Minor}, nil
	}
	for _, field := range []struct{ key, name string }{{"confState", "confstate"}, {"term", "term"}} {
		if meta.Get([]byte(field.key)) == nil {
			return v, fmt.Errorf("missing %s information: the data is of an etcd before 3.5; start it with etcd 3.5 first", field.name)
		}
	}
	return oldestSchema, nil
}

// mayChange makes etcd's plan: a minor version at a time, and the first that is not known is named.
func mayChange(from, to semver.Version, minimal func() (semver.Version, error)) error {
	if from.Major != to.Major {
		return errors.New("cannot create migration plan: changing major storage version is not supported")
	}
	newest := *semver.New(StorageVersion)
	next := to
	if to.Minor > from.Minor {
		next.Minor = min(to.Minor, max(from.Minor, newest.Minor)+1)
	}
	for _, v := range []semver.Version{from, next} {
		if v.LessThan(oldestSchema) || newest.LessThan(v) {
			return fmt.Errorf("cannot create migration plan: version %q is not supported", v.String())
		}
	}
	if from.LessThan(to) {
		return nil
	}
	least, err := minimal()
	if err != nil {
		return err
	}
	if to.LessThan(semver.Version{Major: least.Major, Minor: least.Minor}) {
		return fmt.Errorf("cannot downgrade storage, WAL contains newer entries, as the target version (%s) is lower than the version (%s) detected from WAL logs", to.String(), least.String())
	}
	return nil
}

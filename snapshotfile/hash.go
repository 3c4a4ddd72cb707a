package snapshotfile

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/belaydb/belay/internal/crc32c"
	"github.com/belaydb/belay/mvcc"
)

// Revision is the current revision: that of the newest version, or of a compaction beyond it.
func (r *Reader) Revision() (int64, error) {
	current, _, err := r.Compactions()
	current = max(current, 1)
	if b := r.tx.Bucket([]byte("key")); b != nil && err == nil {
		if k, _ := b.Cursor().Last(); k != nil {
			main, _, _, err := parseRevision(k)
			return max(current, main), err
		}
	}
	return current, err
}

// Version is one entry of the bucket of keys as it is stored. The slices are valid until the
// transaction ends.
type Version struct {
	Main, Sub int64
	Tombstone bool
	Value     []byte // a KeyValue in protobuf; empty where a restore has only raised the revision
}

// Versions returns a function that gives each version in ascending order; nil: the end.
func (r *Reader) Versions() func() (*Version, error) {
	b := r.tx.Bucket([]byte("key"))
	if b == nil {
		return func() (*Version, error) { return nil, nil }
	}
	cursor := b.Cursor()
	k, v := cursor.First()
	return func() (*Version, error) {
		if k == nil {
			return nil, nil
		}
		main, sub, tombstone, err := parseRevision(k)
		if err != nil {
			return nil, fmt.Errorf("bucket key, key %x: %w", k, err)
		}
		version := &Version{main, sub, tombstone, v}
		k, v = cursor.Next()
		return version, nil
	}
}

// HashKV is etcd's hash of the keys and their history as of a revision, 0: the current one, as
// etcdutl hashkv computes it. Memory grows with the number of keys, as etcd's does.
func (r *Reader) HashKV(rev int64) (hash uint32, at, compact int64, err error) {
	current, err := r.Revision()
	if err != nil {
		return 0, 0, 0, err
	}
	if compact, _, err = r.Compactions(); err != nil {
		return 0, 0, 0, err
	}
	switch {
	case rev > 0 && rev < compact:
		return 0, 0, 0, mvcc.ErrCompacted
	case rev > current:
		return 0, 0, 0, mvcc.ErrFutureRev
	case rev == 0:
		rev = current
	}
	read := r.reading(2) // all versions, twice
	kept, err := r.kept(rev, read)
	if err != nil {
		return 0, 0, 0, err
	}
	sum := crc32c.Checksum([]byte("key"))
	err = r.each("key", func(k, v []byte) error {
		main, sub, tombstone, err := parseRevision(k)
		if err != nil || main > rev {
			return err
		}
		read(len(k) + len(v))
		if main <= compact && len(kept) > 0 {
			if _, ok := kept[[2]int64{main, sub}]; !ok {
				return nil
			}
		}
		if tombstone && main == compact {
			return nil
		}
		sum = crc32c.Update(crc32c.Update(sum, k), v)
		return nil
	})
	return sum, rev, compact, err
}

// reading counts bytes that are read, and tells of them, from time to time, beside those that reading
// the whole file so many times takes.
func (r *Reader) reading(times int64) func(n int) {
	if r.Tell == nil {
		return func(int) {}
	}
	const step = 1 << 20
	done, told, total := int64(0), int64(0), times*r.tx.Size()
	return func(n int) {
		if done += int64(n); done-told >= step {
			told = done
			r.Tell(done, max(done, total))
		}
	}
}

// kept are the revisions that a compaction at a revision would keep: of each key the newest at or
// below it, unless that ends the key. Where the revision itself ends the key, etcd looks no
// further, even if the same revision creates it again.
func (r *Reader) kept(at int64, read func(n int)) (map[[2]int64]struct{}, error) {
	type newest struct {
		rev   [2]int64
		live  bool
		ended bool // by at itself
	}
	keys := map[string]newest{}
	next := r.Versions()
	for {
		v, err := next()
		if err != nil {
			return nil, err
		}
		if v == nil || v.Main > at {
			break
		}
		read(len(v.Value))
		if len(v.Value) == 0 {
			continue
		}
		key, err := keyOf(v.Value)
		if err != nil {
			return nil, err
		}
		if n := keys[string(key)]; !n.ended {
			keys[string(key)] = newest{[2]int64{v.Main, v.Sub}, !v.Tombstone, v.Tombstone && v.Main == at}
		}
	}
	kept := make(map[[2]int64]struct{}, len(keys))
	for _, n := range keys {
		if n.live {
			kept[n.rev] = struct{}{}
		}
	}
	return kept, nil
}

// keyOf is field 1 of a KeyValue, which comes first.
func keyOf(value []byte) ([]byte, error) {
	num, kind, n := protowire.ConsumeTag(value)
	if n < 0 || num != 1 || kind != protowire.BytesType {
		return nil, errors.New("a version has no key")
	}
	key, m := protowire.ConsumeBytes(value[n:])
	if m < 0 {
		return nil, errors.New("a version has no key")
	}
	return key, nil
}

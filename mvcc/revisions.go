package mvcc

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/belaydb/belay/store"
)

// A walk over all revisions in their order, as snapshot files have them. The index has that order, and
// the versions that of their keys. A seek for each revision would read and unpack a block of versions
// for each, most of them many times. So many revisions are taken from the index at once, looked up in
// the order of their keys, and handed on in their own.

const (
	// batchRevisions and batchBytes bound what is in memory at once: revisions, and bytes of their keys
	// and values. A single value may be larger.
	batchRevisions = 1 << 16
	batchBytes     = 8 << 20
	// firstBatch is how many revisions are taken while nothing is known of their sizes.
	firstBatch = 1 << 12
)

// Revisions calls each for every revision that compactions leave, in order. value is the KeyValue
// in protobuf, as etcd stores it (a tombstone's has only the key); the callee may keep it.
func (v *View) Revisions(ctx context.Context, each func(main, sub int64, tombstone bool, value []byte) error) error {
	return v.RevisionsAfter(ctx, 0, each)
}

// RevisionsAfter is Revisions for those after a main revision; 0: all. The cost is that of what it
// calls each for.
func (v *View) RevisionsAfter(ctx context.Context, after int64, each func(main, sub int64, tombstone bool, value []byte) error) error {
	return v.revisions(ctx, after, batchRevisions, batchBytes, each)
}

// revisions is RevisionsAfter with bounds of its own.
func (v *View) revisions(ctx context.Context, after int64, mostRevisions, mostBytes int, each func(main, sub int64, tombstone bool, value []byte) error) (err error) {
	if v.err != nil {
		return v.err
	}
	lower, upper := store.RevisionsSpan()
	if after > 0 {
		lower = store.AppendRevisionKey(nil, uint64(after)+1, 0)
	}
	it, err := v.v.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	versions, err := v.v.NewIter(&pebble.IterOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, versions.Close()) }()

	b := revisionBatch{compact: v.compact, versions: versions, walk: paced{ctx: ctx}, mostBytes: mostBytes}
	most := min(firstBatch, mostRevisions)
	for ok := it.First(); ok; {
		b.revisions, b.keys = b.revisions[:0], b.keys[:0]
		for ; ok && len(b.revisions) < most && len(b.keys) < mostBytes; ok = it.Next() {
			value, err := it.ValueAndErr()
			if err != nil {
				return store.Explain(err)
			}
			if err := b.add(it.Key(), value); err != nil {
				return err
			}
		}
		for rest := b.revisions; len(rest) > 0; {
			n, size, err := b.load(rest)
			if err != nil {
				return err
			}
			for i := range rest[:n] {
				r := &rest[i]
				if r.kv == nil {
					continue
				}
				if err := each(r.Main, r.Sub, r.tombstone, r.kv); err != nil {
					return err
				}
				r.kv = nil
			}
			rest = rest[n:]
			most = min(max(n*mostBytes/max(size, 1), 1), mostRevisions)
		}
	}
	return store.Explain(it.Error())
}

// revisionBatch is a part of the revisions that are walked over.
type revisionBatch struct {
	compact   int64
	versions  store.Iterator
	walk      paced
	mostBytes int

	revisions []walkedRevision // in order
	keys      []byte           // of all of them
	order     []int            // scratch: places in a part of revisions, by their keys
	target    []byte           // scratch
}

type walkedRevision struct {
	Revision
	tombstone bool
	key       [2]int // from, to in keys
	kv        []byte // as each gets it; nil: not loaded, or it is left out
}

func (b *revisionBatch) add(key, value []byte) error {
	rev, tombstone, user, err := decodeRevision(key, value)
	if err != nil {
		return err
	}
	from := len(b.keys)
	b.keys = append(b.keys, user...)
	b.revisions = append(b.revisions, walkedRevision{Revision: rev, tombstone: tombstone, key: [2]int{from, len(b.keys)}})
	return nil
}

func (b *revisionBatch) key(r *walkedRevision) []byte { return b.keys[r.key[0]:r.key[1]] }

// load loads the first n of some revisions, one at least, as many as fit: size bytes.
func (b *revisionBatch) load(revisions []walkedRevision) (n, size int, err error) {
	b.order = b.order[:0]
	for i := range revisions {
		b.order = append(b.order, i)
	}
	slices.SortFunc(b.order, func(i, j int) int { // as the versions lie: the newest of a key first
		return cmp.Or(bytes.Compare(b.key(&revisions[i]), b.key(&revisions[j])), cmp.Compare(j, i))
	})
	n = len(revisions)
	for _, i := range b.order {
		if i >= n {
			continue
		}
		if !b.walk.step() {
			return 0, 0, b.walk.err
		}
		r := &revisions[i]
		if r.kv, err = b.read(r); err != nil {
			return 0, 0, err
		}
		for size += len(r.kv); size > b.mostBytes && n > 1; {
			half := n / 2
			for j := half; j < n; j++ {
				size -= len(revisions[j].kv)
				revisions[j].kv = nil
			}
			n = half
		}
	}
	return n, size, nil
}

// read reads a revision as each gets it. nil: it is left out.
func (b *revisionBatch) read(r *walkedRevision) ([]byte, error) {
	// What a compaction will still remove is left out: it is not the newest at the compact
	// revision.
	key, at := b.key(r), Revision{max(r.Main, b.compact), store.MaxSub}
	if r.Main > b.compact {
		at = r.Revision
	}
	b.target = store.AppendUserKey(b.target[:0], key, uint64(at.Main), uint32(at.Sub))
	if !b.versions.SeekPrefixGE(b.target) {
		if err := b.versions.Error(); err != nil {
			return nil, store.Explain(err)
		}
		return nil, fmt.Errorf("mvcc: revision %d.%d has no version of its key %q", r.Main, r.Sub, key)
	}
	_, _, main, sub, valid := store.ParseUserKey(b.versions.Key())
	if !valid {
		return nil, errRecord
	}
	if found := (Revision{int64(main), int64(sub)}); found != r.Revision || r.tombstone && r.Main < b.compact {
		if r.Main > b.compact {
			return nil, fmt.Errorf("mvcc: revision %d.%d has no version of its key %q", r.Main, r.Sub, key)
		}
		return nil, nil
	}
	if r.tombstone {
		return appendBytesField(nil, 1, key), nil
	}
	value, err := b.versions.ValueAndErr()
	if err != nil {
		return nil, store.Explain(err)
	}
	rec, err := decodeRecord(value, r.Main)
	if err != nil {
		return nil, err
	}
	b.walk.bytes += int64(len(value))
	kv := appendBeforeValue(make([]byte, 0, len(key)+len(value)+32), key, r.Main, rec)
	kv = append(kv, rec.value...)
	return appendIntField(kv, 6, rec.lease), nil
}

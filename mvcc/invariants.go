package mvcc

import (
	"bytes"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/belaydb/belay/internal/invariants"
	"github.com/belaydb/belay/store"
)

// The asserts of a build with the tag invariants: see package invariants. The applier makes them
// after it has published a batch, so nothing is written meanwhile but what a compaction removes.

// checkedPerBatch is how many versions a batch may cost to be looked at.
const checkedPerBatch = 64

// checkOverhead is what a check of an empty store costs, in versions.
const checkOverhead = 32

// checkInvariants compares what is kept twice. The store is the truth.
func (s *Store) checkInvariants() {
	if !invariants.Enabled || !s.checks.Due(checkedPerBatch) {
		return
	}
	it, err := s.st.NewIter(&pebble.IterOptions{})
	if err != nil {
		return // what cannot be read, here and below, is found out by whoever needs it
	}
	defer func() { _ = it.Close() }()
	live, versions, err := s.liveKeys(it)
	if err != nil {
		return
	}
	s.checks.Spent(checkOverhead + len(versions))
	s.keyCounts.check(live, s.rev.Load())
	s.exists.check(live)
	s.checkRevisionIndex(it, versions)
	s.cache.check(live, s.rev.Load())
}

// liveKeys are the keys that exist, in order, and all versions there are. The versions of a key go
// from new to old, none is beyond the published revision, and none has been created after it was
// written.
func (s *Store) liveKeys(it store.Iterator) (live []*mvccpb.KeyValue, versions map[Revision]storedVersion, err error) {
	versions = make(map[Revision]storedVersion)
	it.SetBounds(store.UserKeysSpan())
	var before []byte
	var newer Revision
	for ok := it.First(); ok; ok = it.Next() {
		_, key, main, sub, ok := store.ParseUserKey(it.Key())
		if !ok {
			return nil, nil, errRecord
		}
		rev := Revision{int64(main), int64(sub)}
		value, err := it.ValueAndErr()
		if err != nil {
			return nil, nil, store.Explain(err)
		}
		first := before == nil || !bytes.Equal(before, key)
		switch {
		case rev.Main > s.rev.Load():
			invariants.Broken("mvcc", "%q has a version at %v, and the newest revision is %d", key, rev, s.rev.Load())
		case !first && !rev.Less(newer):
			invariants.Broken("mvcc", "%q has a version at %v after one at %v", key, rev, newer)
		}
		versions[rev] = storedVersion{string(key), len(value) == 0}
		if len(value) > 0 {
			r, err := decodeRecord(value, rev.Main)
			if err != nil {
				return nil, nil, err
			}
			if r.version < 1 || r.create < 1 || r.create > rev.Main {
				invariants.Broken("mvcc", "%q at %v has version %d and was created at %d", key, rev, r.version, r.create)
			}
			if first {
				live = append(live, &mvccpb.KeyValue{Key: bytes.Clone(key), ModRevision: rev.Main, CreateRevision: r.create, Version: r.version, Lease: r.lease})
			}
		}
		before, newer = append(before[:0], key...), rev
	}
	return live, versions, store.Explain(it.Error())
}

// storedVersion is what the revision index must say of a version.
type storedVersion struct {
	key       string
	tombstone bool
}

// checkRevisionIndex holds the index of revisions against the versions: each has its entry, and
// each entry its version.
func (s *Store) checkRevisionIndex(it store.Iterator, versions map[Revision]storedVersion) {
	lower, upper := store.RevisionsSpan()
	it.SetBounds(lower, upper)
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return
		}
		rev, tombstone, key, err := decodeRevision(it.Key(), value)
		if err != nil {
			return
		}
		if v, ok := versions[rev]; !ok || v.key != string(key) || v.tombstone != tombstone {
			invariants.Broken("mvcc", "the index has %q at %v (tombstone: %t), the versions %q (%t, there: %t)", key, rev, tombstone, v.key, v.tombstone, ok)
		}
		n++
	}
	if n != len(versions) && it.Error() == nil {
		invariants.Broken("mvcc", "the index has %d revisions of %d", n, len(versions))
	}
}

// check holds every block against the keys that exist, in order, at revision rev.
func (c *keyCounts) check(live []*mvccpb.KeyValue, rev int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != countsBuilt {
		return
	}
	if c.total != int64(len(live)) || c.rev != rev {
		invariants.Broken("mvcc", "%d keys are counted at revision %d, %d exist at %d", c.total, c.rev, len(live), rev)
	}
	i, before := 0, []byte(nil)
	for gi := range c.groups {
		sum := int64(0)
		for bi, b := range c.groups[gi].blocks {
			if gi+bi == 0 && len(b.start) > 0 || gi+bi > 0 && bytes.Compare(b.start, before) <= 0 {
				invariants.Broken("mvcc", "the block of keys at %q stands after the one at %q", b.start, before)
			}
			before = b.start
			to, n := c.next(gi, bi), int64(0)
			for ; i < len(live) && (to == nil || bytes.Compare(live[i].Key, to) < 0); i++ {
				n++
			}
			if n != b.n {
				invariants.Broken("mvcc", "the block of keys at %q counts %d and has %d", b.start, b.n, n)
			}
			sum += n
		}
		if sum != c.groups[gi].n {
			invariants.Broken("mvcc", "group %d of counted keys counts %d and has %d", gi, c.groups[gi].n, sum)
		}
	}
}

// check asks for keys that exist.
func (k *existsFilter) check(live []*mvccpb.KeyValue) {
	for _, kv := range live {
		if k.never(kv.Key) {
			invariants.Broken("mvcc", "%q exists, and the filter says that it never did", kv.Key)
		}
	}
}

// check holds what is cached against the keys that exist at revision rev: a version there is the
// newest, or a tombstone.
func (c *cache) check(live []*mvccpb.KeyValue, rev int64) {
	newest := make(map[string]*mvccpb.KeyValue, len(live))
	for _, kv := range live {
		newest[string(kv.Key)] = kv
	}
	for i := range c.shards {
		sh := &c.shards[i]
		sh.mu.Lock()
		n := 0
		for _, r := range []*ring{&sh.young, &sh.hot} {
			size := int64(0)
			for e := r.head; e != nil; e = e.next {
				n, size = n+1, size+int64(e.size)
				if sh.ringOf(e) != r {
					invariants.Broken("mvcc", "%q is in the wrong order of the cache", e.kv.Key)
				}
			}
			if size != r.bytes {
				invariants.Broken("mvcc", "entries of %d bytes are in an order of the cache, which counts %d", size, r.bytes)
			}
		}
		if n != len(sh.entries) {
			invariants.Broken("mvcc", "a part of the cache has %d entries in order, %d by key", n, len(sh.entries))
		}
		for key, e := range sh.entries {
			kv := newest[key]
			switch {
			case e.kv.ModRevision > rev:
				invariants.Broken("mvcc", "%q is cached at revision %d, and the newest is %d", key, e.kv.ModRevision, rev)
			case e.kv.Version == 0 && kv != nil, e.kv.Version != 0 && (kv == nil ||
				kv.ModRevision != e.kv.ModRevision || kv.CreateRevision != e.kv.CreateRevision || kv.Version != e.kv.Version || kv.Lease != e.kv.Lease):
				invariants.Broken("mvcc", "%q is cached as %v and stored as %v", key, e.kv, kv)
			}
		}
		sh.mu.Unlock()
	}
}

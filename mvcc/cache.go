package mvcc

import (
	"hash/maphash"
	"math"
	"sync"
	"unsafe"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// cache holds the newest versions of hot keys, tombstones included, within a bound of bytes.
//
// # Why it is never stale
//
// Publish, after a batch is committed and before its revisions can be read, puts the newest version
// of every key that the batch wrote. Readers put what they read from the store. A reader may have
// read before such a write and put after it, so it passes the revision as of which its version is
// the newest (asOf: the published revision when it began), and put refuses if a later version of
// the key may have been here:
//
//   - if the key is in the cache, the entry stays: it is as new or newer;
//   - if not, any later version that was put has been evicted since. Each shard remembers the
//     highest revision it ever evicted (dropped); unless dropped <= asOf, the put is refused.
//
// A writer whose put comes after the reader's replaces it. So an entry is always the newest
// published version, or one newer than what is published. A reader at revision R takes it if its
// revision is <= R, since then nothing between it and R exists; otherwise it reads the store.
//
// Entries are protobuf messages that are shared by many readers; nobody may change them.
type cache struct {
	seed   maphash.Seed
	shards [cacheShards]shard
}

const (
	cacheShards = 64

	// cacheValueMax is the size from which a value is left out of an entry: the rest is still
	// enough for a put.
	cacheValueMax = 32 << 10

	// entryBytes estimates what an entry costs besides key and value: the KeyValue, the entry, its
	// place in the map.
	entryBytes = 320

	subUnknown = math.MaxUint32
)

type shard struct {
	mu      sync.Mutex
	entries map[string]*entry
	// Ring of all entries, newest first at head; the second chance works at its tail.
	head, tail *entry
	bytes      int64
	limit      int64
	dropped    int64
	_          [64]byte // shards on cache lines of their own
}

type entry struct {
	kv         *mvccpb.KeyValue // Version 0: a tombstone
	sub        uint32           // sub revision; subUnknown if it is not known
	whole      bool             // the value is there, if there is one
	used       bool             // read since it last was at the head
	size       int32
	prev, next *entry
}

func newCache(limit int64) *cache {
	c := &cache{seed: maphash.MakeSeed()}
	for i := range c.shards {
		c.shards[i].entries = make(map[string]*entry)
		c.shards[i].limit = limit / cacheShards
	}
	return c
}

// str views bytes as a string without copying. The keys of entries are the Key fields of messages
// that nobody changes.
func str(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func (c *cache) shard(key []byte) *shard {
	return &c.shards[maphash.Bytes(c.seed, key)%cacheShards]
}

// get returns the newest version of a key, if it is cached.
func (c *cache) get(key []byte) (kv *mvccpb.KeyValue, whole, ok bool) {
	sh := c.shard(key)
	sh.mu.Lock()
	if e := sh.entries[string(key)]; e != nil {
		e.used = true
		kv, whole, ok = e.kv, e.whole, true
	}
	sh.mu.Unlock()
	return kv, whole, ok
}

// exactly returns the version of a key at a revision with its value, if it is cached.
func (c *cache) exactly(key []byte, r Revision) (kv *mvccpb.KeyValue) {
	sh := c.shard(key)
	sh.mu.Lock()
	if e := sh.entries[string(key)]; e != nil && e.kv.ModRevision == r.Main && int64(e.sub) == r.Sub && e.whole {
		kv = e.kv
	}
	sh.mu.Unlock()
	return kv
}

// put adds a version that has just been written.
func (c *cache) put(kv *mvccpb.KeyValue, sub uint32) {
	kv, whole := trim(kv)
	sh := c.shard(kv.Key)
	sh.mu.Lock()
	if e := sh.entries[string(kv.Key)]; e != nil {
		sh.replace(e, kv, sub, whole)
	} else {
		sh.insert(kv, sub, whole)
	}
	sh.mu.Unlock()
}

// forget removes what a version that has just been written replaces. It is put and evicted at once.
func (c *cache) forget(kv *mvccpb.KeyValue) {
	sh := c.shard(kv.Key)
	sh.mu.Lock()
	if e := sh.entries[string(kv.Key)]; e != nil {
		sh.unlink(e)
		delete(sh.entries, string(kv.Key))
		sh.bytes -= int64(e.size)
	}
	sh.dropped = max(sh.dropped, kv.ModRevision)
	sh.mu.Unlock()
}

// fill adds a version that was read and was the newest as of a revision. See the comment at cache.
func (c *cache) fill(kv *mvccpb.KeyValue, asOf int64) {
	kv, whole := trim(kv)
	sh := c.shard(kv.Key)
	sh.mu.Lock()
	if e := sh.entries[string(kv.Key)]; e != nil {
		if whole && !e.whole && e.kv.ModRevision == kv.ModRevision {
			sh.replace(e, kv, subUnknown, whole)
		}
	} else if sh.dropped <= asOf {
		sh.insert(kv, subUnknown, whole)
	}
	sh.mu.Unlock()
}

func trim(kv *mvccpb.KeyValue) (_ *mvccpb.KeyValue, whole bool) {
	if len(kv.Value) <= cacheValueMax {
		return kv, true
	}
	// The key is copied too: it may share its memory with the value.
	return &mvccpb.KeyValue{
		Key: append([]byte(nil), kv.Key...), CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, Version: kv.Version, Lease: kv.Lease,
	}, false
}

// replace also gives the map the new version's key: the old one may share its memory with the old
// value.
func (sh *shard) replace(e *entry, kv *mvccpb.KeyValue, sub uint32, whole bool) {
	sh.unlink(e)
	sh.bytes -= int64(e.size)
	e.kv, e.sub, e.whole = kv, sub, whole
	sh.entries[str(kv.Key)] = e
	sh.add(e)
}

func (sh *shard) insert(kv *mvccpb.KeyValue, sub uint32, whole bool) {
	e := &entry{kv: kv, sub: sub, whole: whole}
	sh.entries[str(kv.Key)] = e
	sh.add(e)
}

// add puts an entry of the map into the ring, and evicts what is too much.
func (sh *shard) add(e *entry) {
	e.size = int32(entryBytes + len(e.kv.Key) + len(e.kv.Value))
	sh.pushHead(e)
	sh.bytes += int64(e.size)
	for sh.bytes > sh.limit && sh.tail != nil {
		e := sh.tail
		sh.unlink(e)
		if e.used && sh.head != nil {
			e.used = false
			sh.pushHead(e)
			continue
		}
		delete(sh.entries, str(e.kv.Key))
		sh.bytes -= int64(e.size)
		sh.dropped = max(sh.dropped, e.kv.ModRevision)
	}
}

func (sh *shard) pushHead(e *entry) {
	e.prev, e.next = nil, sh.head
	if sh.head != nil {
		sh.head.prev = e
	} else {
		sh.tail = e
	}
	sh.head = e
}

func (sh *shard) unlink(e *entry) {
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		sh.head = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		sh.tail = e.prev
	}
	e.prev, e.next = nil, nil
}

// reset drops everything. A reader that read before rev may not put what it read.
func (c *cache) reset(rev int64) {
	for i := range c.shards {
		sh := &c.shards[i]
		sh.mu.Lock()
		clear(sh.entries)
		sh.head, sh.tail, sh.bytes, sh.dropped = nil, nil, 0, rev
		sh.mu.Unlock()
	}
}

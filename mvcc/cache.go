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
// # What stays
//
// A version that is written is young: most are not asked for soon, and what young ones take together
// is bounded by an eighth (youngShare). One that is read while it is young is hot afterwards, and so
// is at once what a reader puts. A key that had a version before is written again, as a rule, so of
// its young one that nobody reads the value goes and the rest stays (header): the next put needs no
// more. It is forgotten if it is the only version. A hot one that is written again stays hot if it
// was read since it was written. So writes, however many, neither drive out what is read nor fill the
// memory with values that nobody asks for.
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

	// entryBytes estimates what an entry costs besides key and value: the KeyValue and its event, the
	// entry, its place in the map; headerBytes does for one whose value has gone, which has no event.
	entryBytes  = 320
	headerBytes = 240

	// headerValueMin is the least value that is worth a copy of what else there is.
	headerValueMin = 64

	// youngShare is which part of the cache young entries may take.
	youngShare = 8

	subUnknown = math.MaxUint32
)

type shard struct {
	mu      sync.Mutex
	entries map[string]*entry
	// All entries are in one of the two.
	young, hot ring
	limit      int64 // of the bytes of both
	dropped    int64
	_          [64]byte // shards on cache lines of their own
}

// A ring has entries, newest first at head; the second chance works at its tail.
type ring struct {
	head, tail *entry
	bytes      int64
}

type entry struct {
	kv         *mvccpb.KeyValue // Version 0: a tombstone
	sub        uint32           // sub revision; subUnknown if it is not known
	whole      bool             // the value is there, if there is one
	header     bool             // the value went, and nothing else is kept alive; see shard.shorten
	used       bool             // read since it last was at the head
	asked      bool             // read since it was written
	hot        bool             // in that ring, else in young
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

// get returns the newest version of a key, if it is cached. asked: for somebody who reads the key,
// and not only for the version that follows.
func (c *cache) get(key []byte, asked bool) (kv *mvccpb.KeyValue, whole, ok bool) {
	sh := c.shard(key)
	sh.mu.Lock()
	if e := sh.entries[string(key)]; e != nil {
		if asked {
			e.used, e.asked = true, true
		}
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
		sh.replace(e, kv, sub, whole, e.asked)
		e.asked = false
	} else {
		sh.insert(&entry{kv: kv, sub: sub, whole: whole})
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
			sh.replace(e, kv, subUnknown, whole, true)
			e.asked = true
		}
	} else if sh.dropped <= asOf {
		sh.insert(&entry{kv: kv, sub: subUnknown, whole: whole, hot: true, asked: true})
	}
	sh.mu.Unlock()
}

func trim(kv *mvccpb.KeyValue) (_ *mvccpb.KeyValue, whole bool) {
	if len(kv.Value) <= cacheValueMax {
		return kv, true
	}
	return withoutValue(kv), false
}

// withoutValue copies the key, too: it may share its memory with the value.
func withoutValue(kv *mvccpb.KeyValue) *mvccpb.KeyValue {
	return &mvccpb.KeyValue{
		Key: append([]byte(nil), kv.Key...), CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, Version: kv.Version, Lease: kv.Lease,
	}
}

// replace also gives the map the new version's key: the old one may share its memory with the old
// value.
func (sh *shard) replace(e *entry, kv *mvccpb.KeyValue, sub uint32, whole, hot bool) {
	sh.unlink(e)
	e.kv, e.sub, e.whole, e.hot, e.header, e.used = kv, sub, whole, hot, false, false
	sh.entries[str(kv.Key)] = e
	sh.add(e)
}

// shorten drops the value of an entry that is in no ring, unless it is small.
func (sh *shard) shorten(e *entry) {
	if e.whole && len(e.kv.Value) < headerValueMin {
		return
	}
	if e.whole {
		e.kv, e.whole = withoutValue(e.kv), false
		sh.entries[str(e.kv.Key)] = e
	}
	e.header = true
}

func (sh *shard) insert(e *entry) {
	sh.entries[str(e.kv.Key)] = e
	sh.add(e)
}

// add puts an entry of the map into its ring, and evicts what is too much.
func (sh *shard) add(e *entry) {
	sh.pushHead(e)
	for sh.young.bytes > sh.limit/youngShare {
		e := sh.young.tail
		sh.unlink(e)
		switch {
		case e.used:
			e.used, e.hot = false, true
		case e.kv.Version != 1:
			sh.shorten(e)
			e.hot = true
		default:
			sh.forgotten(e)
			continue
		}
		sh.pushHead(e)
	}
	for sh.young.bytes+sh.hot.bytes > sh.limit && sh.hot.tail != nil {
		e := sh.hot.tail
		sh.unlink(e)
		if e.used && sh.hot.head != nil {
			e.used = false
			sh.pushHead(e)
			continue
		}
		sh.forgotten(e)
	}
}

// forgotten removes an entry that is in no ring any longer.
func (sh *shard) forgotten(e *entry) {
	delete(sh.entries, str(e.kv.Key))
	sh.dropped = max(sh.dropped, e.kv.ModRevision)
}

func (sh *shard) ringOf(e *entry) *ring {
	if e.hot {
		return &sh.hot
	}
	return &sh.young
}

func (sh *shard) pushHead(e *entry) {
	r := sh.ringOf(e)
	e.size = int32(entryBytes + len(e.kv.Key) + len(e.kv.Value))
	if e.header {
		e.size -= entryBytes - headerBytes
	}
	r.bytes += int64(e.size)
	e.prev, e.next = nil, r.head
	if r.head != nil {
		r.head.prev = e
	} else {
		r.tail = e
	}
	r.head = e
}

func (sh *shard) unlink(e *entry) {
	r := sh.ringOf(e)
	r.bytes -= int64(e.size)
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		r.head = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		r.tail = e.prev
	}
	e.prev, e.next = nil, nil
}

// reset drops everything. A reader that read before rev may not put what it read.
func (c *cache) reset(rev int64) {
	for i := range c.shards {
		sh := &c.shards[i]
		sh.mu.Lock()
		clear(sh.entries)
		sh.young, sh.hot, sh.dropped = ring{}, ring{}, rev
		sh.mu.Unlock()
	}
}

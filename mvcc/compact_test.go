package mvcc

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/belaydb/belay/store"
)

// TestFailedCompactionGoesOn: a compaction that failed is tried again until it succeeds, and later
// ones follow.
func TestFailedCompactionGoesOn(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	r := newRig(t, Options{Logger: zap.New(core), CompactionSleep: -1, compactionRetry: time.Millisecond})
	for range 3 {
		r.do(op{key: "k", value: "v"})
	}
	progress := func(write func(b *store.Batch) error) {
		t.Helper()
		b := r.st.NewLocalBatch()
		if err := errors.Join(write(b), b.Commit()); err != nil {
			t.Fatal(err)
		}
	}
	progress(func(b *store.Batch) error { return b.Set(store.MetaKey(metaProgress), []byte("bad")) })
	r.apply(command{compact: 2})
	r.apply(command{compact: 3})
	deadline := time.Now().Add(30 * time.Second)
	for logs.FilterMessage("Failed compaction").Len() < 2 {
		if time.Now().After(deadline) {
			t.Fatal("a compaction that cannot be done is not said to fail twice")
		}
		time.Sleep(time.Millisecond)
	}
	progress(func(b *store.Batch) error { return b.Delete(store.MetaKey(metaProgress)) })
	select {
	case <-r.Compacted(3):
	case <-time.After(30 * time.Second):
		t.Fatal("a compaction that failed is not gone on with")
	}
	if _, err := r.Range(t.Context(), []byte("k"), nil, RangeOptions{Rev: 2}); !errors.Is(err, ErrCompacted) {
		t.Errorf("a range below the compaction gives %v", err)
	}
}

// TestRetriedCompactionHasNoHash: what a compaction removed before it failed cannot be hashed
// again, so no hash is kept for it; that of a whole one would differ, and other members would call
// this one corrupt.
func TestRetriedCompactionHasNoHash(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	r := newRig(t, Options{Logger: zap.New(core), CompactionSleep: -1, CompactionBatchLimit: 4, compactionRetry: time.Millisecond})
	for i := range 20 {
		r.do(op{key: []string{"a", "b", "c"}[i%3], value: fmt.Sprint(i)})
	}
	key := store.AppendRevisionKey(nil, 12, 0)
	value, ok, err := r.st.Get(key)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	set := func(v []byte) {
		t.Helper()
		b := r.st.NewLocalBatch()
		if err := errors.Join(b.Set(key, v), b.Commit()); err != nil {
			t.Fatal(err)
		}
	}
	set(nil) // what the third step reads is malformed, for a while
	r.apply(command{compact: 15})
	for deadline := time.Now().Add(30 * time.Second); logs.FilterMessage("Failed compaction").Len() < 1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the compaction does not fail")
		}
	}
	set(value)
	select {
	case <-r.Compacted(15):
	case <-time.After(30 * time.Second):
		t.Fatal("a compaction that failed is not gone on with")
	}
	if got := r.CompactionHashes(); len(got) != 0 {
		t.Errorf("it keeps %+v", got)
	}
	r.compactTo(18)
	if got := r.CompactionHashes(); len(got) != 1 || got[0].Revision != 18 {
		t.Errorf("the next one keeps %+v", got)
	}
}

// heapBytes is what is alive.
func heapBytes() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A wide delete leaves in the cache what it does not concern, and nothing of what it deletes, not
// even what a reader found before it.
func TestWideDeleteAndCache(t *testing.T) {
	r := newRig(t, Options{CacheBytes: cacheShards * 4 * entryBytes, wideDelete: 10, keepOverlay: 10})
	r.do(op{key: "hot", value: "v"})
	var ops []op
	for i := range 500 {
		ops = append(ops, op{key: fmt.Sprintf("k%03d", i), value: "v"})
	}
	r.do(ops...)
	read := func(key string) *mvccpb.KeyValue {
		res, err := r.Range(t.Context(), []byte(key), nil, RangeOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(res.KVs) == 0 {
			return nil
		}
		return res.KVs[0]
	}
	r.cache.put(read("hot"), subUnknown)
	old, asOf := read("k007"), r.Revision()
	r.do(op{del: true, key: "k", end: "l"})
	if _, _, ok := r.cache.get([]byte("hot"), true); !ok {
		t.Error("the wide delete drove out another key")
	}
	for i := range 500 {
		if kv, _, ok := r.cache.get(fmt.Appendf(nil, "k%03d", i), true); ok {
			t.Fatalf("the cache holds %v", kv)
		}
	}
	r.cache.fill(old, asOf)
	if kv := read("k007"); kv != nil {
		t.Error("a reader that began before the delete has brought the key back")
	}
	if len(r.scratch) != 0 {
		t.Errorf("%d keys of the batch are kept", len(r.scratch))
	}
}

// TestCacheKeepsWhatIsAskedFor: keys that are written once and not read fill an eighth of the cache,
// and leave in it what is read or written again.
func TestCacheKeepsWhatIsAskedFor(t *testing.T) {
	const limit = 8 << 20
	c := newCache(limit)
	rev := int64(0)
	put := func(key string, version int64) {
		rev++
		c.put(&mvccpb.KeyValue{Key: []byte(key), Value: make([]byte, 100), ModRevision: rev, Version: version}, 0)
	}
	has := func(key string) bool { _, _, ok := c.get([]byte(key), true); return ok }
	bytes := func() (young, all int64) {
		for i := range c.shards {
			young += c.shards[i].young.bytes
			all += c.shards[i].young.bytes + c.shards[i].hot.bytes
		}
		return young, all
	}
	keys := map[string]func(key string){
		"read while young":    func(key string) { put(key, 1); has(key) },
		"written twice":       func(key string) { put(key, 1); put(key, 2) },
		"written again later": func(key string) { put(key, 7) },
		"found by a reader":   func(key string) { c.fill(&mvccpb.KeyValue{Key: []byte(key), ModRevision: rev, Version: 1}, rev) },
	}
	for how, do := range keys {
		for i := range 1000 {
			do(fmt.Sprint(how, i))
		}
	}
	put("written once", 1)
	for i := range 30_000 {
		put(fmt.Sprint("flood", i), 1)
	}
	if young, all := bytes(); young > limit/youngShare || young < limit/youngShare/2 || all > limit {
		t.Errorf("keys that were written once take %d bytes, all keys %d of %d", young, all, limit)
	}
	if has("written once") {
		t.Error("a key that was written once is there after 30,000 others")
	}
	for how := range keys {
		for i := range 1000 {
			if !has(fmt.Sprint(how, i)) {
				t.Fatalf("key %d of those %s is gone", i, how)
			}
		}
	}
	// What is asked for has the whole cache, the least recent of it is evicted.
	for i := range 30_000 {
		put(fmt.Sprint("again", i), 2)
	}
	if _, all := bytes(); all > limit || all < limit*9/10 {
		t.Errorf("all keys take %d bytes of %d", all, limit)
	}
}

// TestCacheForgetsValuesThatNobodyReads: of a key that is written again and again and not read the
// cache keeps what the next put needs, and of one that is read between two writes the value, too.
func TestCacheForgetsValuesThatNobodyReads(t *testing.T) {
	const limit, n = 8 << 20, 6000
	c := newCache(limit)
	rev := int64(0)
	put := func(key string, version int64, valueBytes int) {
		rev++
		c.get([]byte(key), false) // as a put asks for the previous version
		c.put(&mvccpb.KeyValue{Key: []byte(key), Value: make([]byte, valueBytes), ModRevision: rev, CreateRevision: 1, Version: version, Lease: 7}, 0)
	}
	read := func(key string) (kv *mvccpb.KeyValue, whole, ok bool) { return c.get([]byte(key), true) }
	flood := func() {
		for i := range 30_000 {
			put(fmt.Sprint("flood", i), 1, 100)
		}
	}
	for version := range int64(3) {
		for i := range n {
			put(fmt.Sprint("written", i), version+1, 1000)
		}
		for i := range 1000 {
			put(fmt.Sprint("read", i), version+1, 1000)
			read(fmt.Sprint("read", i))
			put(fmt.Sprint("small", i), version+1, 10)
		}
	}
	flood()
	for i := range n {
		kv, whole, ok := read(fmt.Sprint("written", i))
		if !ok || whole || len(kv.Value) > 0 || string(kv.Key) != fmt.Sprint("written", i) || kv.Version != 3 || kv.CreateRevision != 1 || kv.ModRevision == 0 || kv.Lease != 7 {
			t.Fatalf("key %d that was written and not read: %v, whole: %t, %t", i, kv, whole, ok)
		}
	}
	for i := range 1000 {
		for _, kind := range []string{"read", "small"} {
			if kv, whole, ok := read(fmt.Sprint(kind, i)); !ok || !whole || kv.Version != 3 {
				t.Fatalf("key %d of those %s: %v, whole: %t, %t", i, kind, kv, whole, ok)
			}
		}
	}
	// Who reads it brings the value back, and the next put keeps it.
	kv, _, _ := read("written7")
	c.fill(&mvccpb.KeyValue{Key: []byte("written7"), Value: make([]byte, 1000), ModRevision: kv.ModRevision, CreateRevision: 1, Version: 3}, rev)
	put("written7", 4, 1000)
	flood()
	if _, whole, ok := read("written7"); !ok || !whole {
		t.Errorf("a key that was read before it was written again: whole: %t, %t", whole, ok)
	}
}

// TestCacheHoldsWhatItCounts: versions that are gone keep no memory alive through the keys of those
// that came after.
func TestCacheHoldsWhatItCounts(t *testing.T) {
	const n, valueBytes = 4000, 10 << 10
	counted := func(c *cache) (bytes int64) {
		for i := range c.shards {
			bytes += c.shards[i].young.bytes + c.shards[i].hot.bytes
		}
		return bytes
	}
	t.Run("replaced", func(t *testing.T) {
		c := newCache(64 << 20)
		before := heapBytes()
		for i := range n {
			key := fmt.Appendf(nil, "/registry/%06d", i)
			entry := append(key, make([]byte, valueBytes)...) // as a decoded entry has them
			c.put(&mvccpb.KeyValue{Key: entry[:len(key):len(key)], Value: entry[len(key):], ModRevision: int64(2 * i), Version: 1}, 0)
			c.put(&mvccpb.KeyValue{Key: bytes.Clone(key), ModRevision: int64(2*i + 1)}, 0)
		}
		if grown := heapBytes() - before; grown > counted(c)+n*valueBytes/2 {
			t.Errorf("the cache counts %d KiB, the heap grew by %d KiB", counted(c)>>10, grown>>10)
		}
		runtime.KeepAlive(c)
	})
	t.Run("deleted", func(t *testing.T) {
		r := newRig(t, Options{CompactionSleep: -1, NoCounts: true})
		value := string(make([]byte, 7<<10))
		for i := range n / 100 {
			var ops []op
			for j := range 100 {
				ops = append(ops, op{key: fmt.Sprintf("k%03d/%03d", i, j), value: value})
			}
			r.do(ops...)
		}
		r.flush()
		r.cache.reset(r.Revision())
		before := heapBytes()
		for i := range n / 100 {
			r.do(op{del: true, key: fmt.Sprintf("k%03d/", i), end: fmt.Sprintf("k%03d0", i), wantPrev: true})
		}
		r.flush()
		if grown := heapBytes() - before; grown > counted(r.cache)+n*valueBytes/4 {
			t.Errorf("the cache counts %d KiB, the heap grew by %d KiB", counted(r.cache)>>10, grown>>10)
		}
		runtime.KeepAlive(r)
	})
}

package store

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestBlockCacheKeepsItsBound: blocks do not fill the room of memory tables that have never been
// there, and who spares the cache leaves most of it empty.
func TestBlockCacheKeepsItsBound(t *testing.T) {
	const cacheBytes, tableBytes = 8 << 20, 8 << 20
	o := Options{FS: vfs.NewMem(), MemTableBytes: tableBytes, CacheBytes: cacheBytes}
	s, err := Open("db", o)
	if err != nil {
		t.Fatal(err)
	}
	value := make([]byte, 2<<10)
	const perBatch = 100
	written := 0
	for ; written*len(value) < 4*cacheBytes; written += perBatch {
		var pairs []string
		for i := range perBatch {
			for at := range value { // the engine compresses
				value[at] = byte(at * at * (written + i + 1) >> 3)
			}
			pairs = append(pairs, fmt.Sprintf("key-%06d", written+i), string(value))
		}
		write(t, s, pairs...)
	}
	if s.takeSample(); s.blocks.unused != 0 {
		t.Errorf("%d bytes are kept for memory tables after many of them were written", s.blocks.unused)
	}
	flush(t, s)
	closeStore(t, s)

	if s, err = Open("db", o); err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	readAll := func() (cached int64) {
		lower, upper := span(spaceCluster)
		it, err := s.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for ok := it.First(); ok; ok = it.Next() {
			n++
		}
		if err := it.Close(); err != nil || n != written {
			t.Fatalf("%d keys of %d: %v", n, written, err)
		}
		return s.Pebble().BlockCache.Size
	}
	release := s.SpareCache()
	const slack = 1 << 20 // blocks of the table that is read, and what is small
	if got := readAll(); got > cacheBytes/sparedShare+slack {
		t.Errorf("%d bytes are cached while it is spared", got)
	}
	release()
	got := readAll()
	if got > cacheBytes+slack {
		t.Errorf("%d bytes are cached, the bound is %d", got, cacheBytes)
	}
	if got < cacheBytes/2 {
		t.Errorf("%d bytes are cached after it was spared", got)
	}
}

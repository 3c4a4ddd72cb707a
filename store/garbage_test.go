package store

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A file of values in which some are still needed is written anew when there is enough garbage: no
// compaction of tables copies values any more, unless they are in very many files.
func TestGarbageBesideValuesThatStay(t *testing.T) {
	s, err := Open("db", Options{FS: vfs.NewMem(), MemTableBytes: 1 << 20, CacheBytes: 1 << 20, valuesAge: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	const (
		keys  = 100
		bytes = 32 << 10
		live  = keys * bytes
	)
	rng := rand.New(rand.NewPCG(1, 1))
	value := make([]byte, bytes) // of random bytes: the engine compresses
	for i := range value {
		value[i] = byte(rng.Uint32())
	}
	var last [keys]uint64
	rev := uint64(1)
	put := func(k int) {
		t.Helper()
		rev++
		b := s.NewBatch(rev, 1)
		key := fmt.Appendf(nil, "key-%03d", k)
		if err := b.Set(AppendUserKey(nil, key, rev, 0), value); err != nil {
			t.Fatal(err)
		}
		if last[k] != 0 {
			if err := b.DeleteSized(AppendUserKey(nil, key, last[k], 0), bytes); err != nil {
				t.Fatal(err)
			}
		}
		last[k] = rev
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	for k := range keys {
		put(k)
	}
	// Nine of ten writes go to a tenth of the keys. So each file of values has some that stay.
	for range 10 * keys {
		if rng.IntN(10) > 0 {
			put(rng.IntN(keys/10) * 10)
		} else {
			put(rng.IntN(keys))
		}
	}
	flush(t, s)
	s.Reclaim()
	deadline := time.Now().Add(time.Minute)
	for {
		s.takeSample()
		total, _ := s.Size()
		m := s.Pebble()
		if total < live*3/2 && m.Compact.BlobFileRewriteCount > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d MB of values are live, and the store has %d MB after %d files of values were written anew", live>>20, total>>20, m.Compact.BlobFileRewriteCount)
		}
		time.Sleep(10 * time.Millisecond)
	}
	for k, at := range last {
		got, ok, err := s.Get(AppendUserKey(nil, fmt.Appendf(nil, "key-%03d", k), at, 0))
		if err != nil || !ok || string(got) != string(value) {
			t.Fatalf("key %d: %d bytes, %v, %v", k, len(got), ok, err)
		}
	}
}

package mvcc

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// TestSizeFollowsCompaction: what a compaction has removed is soon no longer in use, without a
// defragmentation and without another write, whether it is in memory still or in files.
func TestSizeFollowsCompaction(t *testing.T) {
	for _, c := range []struct {
		name             string
		memTableBytes    int64
		keys, valueBytes int
	}{
		{"in memory", 64 << 20, 12, 1 << 20},
		{"large values in files", 1 << 20, 12, 1 << 20},
		{"small values in files", 1 << 20, 20_000, 300},
		{"values in files of their own", 1 << 20, 1500, 8 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, Options{CompactionSleep: -1})
			r.close()
			r.sopts.MemTableBytes = c.memTableBytes
			r.open()
			rng := rand.New(rand.NewPCG(1, 1))
			value := make([]byte, c.valueBytes)
			key := func(i int) string { return fmt.Sprintf("key-%06d", i) }
			for i := range c.keys {
				for j := range value {
					value[j] = byte(rng.Uint32())
				}
				r.do(op{key: key(i), value: string(value)})
			}
			written := int64(c.keys * c.valueBytes)
			if total, inUse := r.st.Size(); total < written || inUse < written {
				t.Fatalf("%d bytes were written, the size is %d, in use %d", written, total, inUse)
			}
			for i := 0; i < c.keys; i += 4 {
				r.do(op{del: true, key: key(i), end: key(i + 3)})
			}
			r.compactTo(r.Revision())
			for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
				_, inUse := r.st.Size()
				if inUse < written*3/4 {
					if inUse < written/5 {
						t.Fatalf("a quarter of %d bytes is left, and only %d are in use", written, inUse)
					}
					return
				}
				if time.Since(start) > 30*time.Second {
					t.Fatalf("a quarter of %d bytes is left, and %d are in use:\n%v", written, inUse, r.st.Pebble())
				}
			}
		})
	}
}

// TestCompactionKnowsWhatItRemoves: the store is told the right size of every version and revision,
// however many a key has.
func TestCompactionKnowsWhatItRemoves(t *testing.T) {
	r := newRig(t, Options{CompactionSleep: -1, CompactionBatchLimit: 7})
	rng := rand.New(rand.NewPCG(2, 2))
	for range 10 {
		for range 300 {
			o := op{key: fmt.Sprintf("key-%d", rng.IntN(8)), value: fmt.Sprintf("%*d", rng.IntN(9000), 1)}
			o.del = rng.IntN(5) == 0
			r.do(o, op{key: "twice in one transaction", value: o.value})
		}
		r.flush()
		r.compactTo(r.Revision() - int64(rng.IntN(100)))
	}
	if err := r.st.CompactAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if wrong := r.st.Pebble().Keys.MissizedTombstonesCount; wrong > 0 {
		t.Fatalf("%d of the deletes were told a wrong size", wrong)
	}
}

package mvcc

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// TestCounts grows and shrinks thousands of keys, so that blocks and groups split and merge, while
// readers at old and new revisions compare the counts with the keys.
func TestCounts(t *testing.T) {
	seed := seeds(t, 1)[0]
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	r := newRig(t, Options{countBlockKeys: 2, CompactionSleep: -1})
	var stop atomic.Bool
	var wg sync.WaitGroup
	var counted atomic.Int64
	for i := range 2 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(i+1)))
			for !stop.Load() {
				rev := max(r.Revision()-rng.Int64N(20), 1)
				from, to := countKey(rng.IntN(5000)), countKey(rng.IntN(5000))
				all, err := r.Range(context.Background(), []byte(from), []byte(to), RangeOptions{Rev: rev, KeysOnly: true})
				if err != nil {
					t.Error(err)
					return
				}
				for _, o := range []RangeOptions{{Rev: rev, CountOnly: true}, {Rev: rev, Limit: 1 + rng.Int64N(20)}} {
					got, err := r.Range(context.Background(), []byte(from), []byte(to), o)
					if err != nil || got.Count != int64(len(all.KVs)) {
						t.Errorf("range %q %q %+v counts %d, has %d: %v", from, to, o, got.Count, len(all.KVs), err)
						return
					}
				}
				if _, _, _, ok := r.keyCounts.wholeBlocks([]byte(from), []byte(to), rev); ok {
					counted.Add(1)
				}
			}
		})
	}
	live := map[string]bool{}
	for round := range 60 {
		var cmds []command
		for range 20 {
			used := map[string]bool{}
			var c command
			for range 1 + rng.IntN(8) {
				o := op{key: countKey(rng.IntN(5000))}
				if used[o.key] {
					continue
				}
				used[o.key] = true
				if o.del = round/15%2 == 1 && rng.IntN(10) > 0; o.del && rng.IntN(20) == 0 && len(c.ops) == 0 {
					o.end = o.key + "~"
					for k := range live {
						if in(k, o.key, o.end) {
							delete(live, k)
						}
					}
					c.ops = append(c.ops, o)
					break
				}
				live[o.key] = true
				if o.del {
					delete(live, o.key)
				}
				c.ops = append(c.ops, o)
			}
			cmds = append(cmds, c)
		}
		r.apply(cmds...)
	}
	stop.Store(true)
	wg.Wait()
	<-r.keyCounts.ready
	if n := r.keyCounts.keys(); n != int64(len(live)) {
		t.Errorf("%d keys counted, %d exist", n, len(live))
	}
	if counted.Load() == 0 {
		t.Error("no range was counted ahead")
	}
	res, err := r.Range(context.Background(), []byte("\x00"), []byte{0}, RangeOptions{})
	if err != nil || len(res.KVs) != len(live) {
		t.Fatal(len(res.KVs), len(live), err)
	}
	if !slices.IsSortedFunc(res.KVs, func(a, b *mvccpb.KeyValue) int { return slices.Compare(a.Key, b.Key) }) {
		t.Error("not in key order")
	}
}

func countKey(i int) string { return fmt.Sprintf("k/%d", i) }

// TestCountsInABatch: the counts of the transaction that is being written are those of its keys, at
// every revision, and are known without walking over them.
func TestCountsInABatch(t *testing.T) {
	seed := seeds(t, 1)[0]
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	r := newRig(t, Options{countBlockKeys: 2, CompactionSleep: -1})
	var all command
	for i := range 3000 {
		all.ops = append(all.ops, op{key: countKey(i)})
	}
	r.apply(all)
	<-r.keyCounts.ready
	index, _ := r.st.Applied()
	w := r.NewWriter(r.st.NewBatch(index+1, 1))
	ahead := 0
	for range 30 {
		w.Begin()
		for range rng.IntN(8) {
			var err error
			if key := []byte(countKey(rng.IntN(5000))); rng.IntN(2) == 0 {
				_, _, err = w.Put(key, []byte("v"), 0)
			} else {
				_, _, err = w.DeleteRange(key, nil, false)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		for range 10 {
			from, to := []byte(countKey(rng.IntN(5000))), []byte(countKey(rng.IntN(5000)))
			rev := max(1, w.Rev()-rng.Int64N(10))
			res, err := w.Range(context.Background(), from, to, RangeOptions{Rev: rev, KeysOnly: true})
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range []RangeOptions{{Rev: rev, CountOnly: true}, {Rev: rev, Limit: 1 + rng.Int64N(20)}} {
				got, err := w.Range(context.Background(), from, to, o)
				if err != nil || got.Count != int64(len(res.KVs)) {
					t.Fatalf("range %q %q %+v counts %d, has %d: %v", from, to, o, got.Count, len(res.KVs), err)
				}
			}
			if _, _, _, ok := r.keyCounts.wholeBlocks(from, to, min(rev, w.base)); ok && len(res.KVs) > len(w.changes) {
				ahead++
			}
		}
		w.End()
	}
	if ahead < 50 {
		t.Errorf("%d ranges were counted ahead", ahead)
	}
}

// TestBlocksThatGrowWhileSplit: a block that has grown beyond its size again while it was split is
// split again, though nothing more comes to it.
func TestBlocksThatGrowWhileSplit(t *testing.T) {
	r := newRig(t, Options{countBlockKeys: 2, CompactionSleep: -1})
	<-r.keyCounts.ready
	n := 0
	for range 100 {
		var cmds []command
		for range 20 {
			var c command
			for range 10 {
				c.ops = append(c.ops, op{key: fmt.Sprintf("%08d", n), value: "v"}) // all at the end, in one block
				n++
			}
			cmds = append(cmds, c)
		}
		r.apply(cmds...)
	}
	large := func() (key string, n int64) {
		r.keyCounts.mu.Lock()
		defer r.keyCounts.mu.Unlock()
		for _, g := range r.keyCounts.groups {
			for _, b := range g.blocks {
				if b.n > int64(2*r.keyCounts.blockKeys) {
					return string(b.start), b.n
				}
			}
		}
		return "", 0
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		key, n := large()
		if n == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the block at %q still has %d keys", key, n)
		}
	}
}

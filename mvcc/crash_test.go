package mvcc

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// TestCrash crashes at random moments, with flushes and compactions going on, and applies what the
// crash took away once more, as the raft log would. Everything must then equal the model.
func TestCrash(t *testing.T) {
	for _, seed := range seeds(t, 6) {
		t.Run(name(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			cmds := randomCommands(rng, 150)
			fs := vfs.NewCrashableMem()
			r := &rig{t: t, fs: fs, dir: "db", opts: Options{CompactionBatchLimit: 1 + rng.IntN(10), CompactionSleep: -1}}
			r.sopts.MemTableBytes, r.sopts.CacheBytes = 256<<10, 1<<20
			r.open()
			t.Cleanup(func() { r.close() })
			if rng.IntN(3) > 0 {
				r.keepValues(rng)
			}
			index, _ := r.st.Applied()
			for int(index) < len(cmds) {
				n := min(1+rng.IntN(10), len(cmds)-int(index))
				r.apply(cmds[index : int(index)+n]...)
				if rng.IntN(4) == 0 {
					if _, _, err := r.st.AsyncFlush(context.Background()); err != nil {
						t.Fatal(err)
					}
					r.segments.drop()
				}
				if rng.IntN(8) == 0 {
					if err := r.MoveValues(context.Background()); err != nil {
						t.Fatal(err)
					}
				}
				if rng.IntN(6) == 0 {
					durable := r.st.DurableIndex()
					fs = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
					r.close()
					r.fs = fs
					r.open()
					m := newModel()
					applied, _ := r.st.Applied()
					if applied < durable {
						t.Fatalf("%d was durable, %d is left", durable, applied)
					}
					for _, c := range cmds[:applied] {
						m.apply(c)
					}
					m.hashes = nil
					if m.compact >= 0 {
						<-r.Compacted(m.compact)
					}
					r.check(m, rng)
				}
				index, _ = r.st.Applied()
			}
		})
	}
}

// TestReadersAndWriter has readers of every kind beside a writer, compactions, and a cache so small
// that it evicts all the time. Each key's value is its revision, so a stale or torn read shows.
func TestReadersAndWriter(t *testing.T) {
	r := newRig(t, Options{CacheBytes: cacheShards * 1000, CompactionBatchLimit: 50, CompactionSleep: -1})
	const keys = 50
	key := func(i int) string { return fmt.Sprintf("key-%02d", i) }
	var all []op
	for i := range keys {
		all = append(all, op{key: key(i), value: "2"})
	}
	r.do(all...)
	var stop atomic.Bool
	var wg sync.WaitGroup
	ctx := context.Background()
	check := func(kv *mvccpb.KeyValue, rev int64) {
		if kv.ModRevision > rev || string(kv.Value) != fmt.Sprint(kv.ModRevision) {
			t.Errorf("read %s at %d", kvText(kv, true), rev)
		}
	}
	reader := func(seed uint64, read func(rng *rand.Rand) error) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 0))
			for !stop.Load() {
				if err := read(rng); err != nil {
					t.Error(err)
					return
				}
				runtime.Gosched()
			}
		})
	}
	newest := make([]atomic.Int64, keys)   // published mod revisions
	reader(1, func(rng *rand.Rand) error { // no point read is older than what was published before it
		i := rng.IntN(keys)
		least := newest[i].Load()
		res, err := r.Range(ctx, []byte(key(i)), nil, RangeOptions{})
		if err != nil {
			return err
		}
		if len(res.KVs) != 1 || res.KVs[0].ModRevision < least {
			return fmt.Errorf("%s: %s, but %d was published", key(i), kvsText(res.KVs, true), least)
		}
		check(res.KVs[0], res.Rev)
		return nil
	})
	reader(2, func(*rand.Rand) error { // a view is one state: the newest of all keys is its revision
		v := r.View()
		defer v.Close()
		res, err := v.Range(ctx, []byte("k"), []byte{0}, RangeOptions{})
		if err != nil {
			return err
		}
		high := int64(0)
		for _, kv := range res.KVs {
			check(kv, v.Rev())
			high = max(high, kv.ModRevision)
			one, err := v.Range(ctx, kv.Key, nil, RangeOptions{})
			if err != nil || kvsText(one.KVs, true) != kvText(kv, true) {
				return fmt.Errorf("view of %d: %s, alone %s %v", v.Rev(), kvText(kv, true), kvsText(one.KVs, true), err)
			}
		}
		if len(res.KVs) != keys || high != v.Rev() || res.Count != keys {
			return fmt.Errorf("view of %d has %d keys up to %d", v.Rev(), len(res.KVs), high)
		}
		return nil
	})
	reader(3, func(rng *rand.Rand) error { // old revisions
		rev := max(r.CompactRevision(), 2) + rng.Int64N(20)
		res, err := r.Range(ctx, []byte("k"), []byte{0}, RangeOptions{Rev: rev})
		if err != nil {
			return nil // compacted or not there yet
		}
		if len(res.KVs) != keys {
			return fmt.Errorf("%d keys at %d", len(res.KVs), rev)
		}
		for _, kv := range res.KVs {
			check(kv, rev)
		}
		return nil
	})
	reader(4, func(*rand.Rand) error { // history
		from, last := max(r.CompactRevision(), 2), int64(0)
		_, err := r.Events(ctx, from, r.Revision(), 10_000, nil, func(rev int64, events []*mvccpb.Event) error {
			if last != 0 && rev != last+1 {
				return fmt.Errorf("revision %d after %d", rev, last)
			}
			last = rev
			for _, e := range events {
				check(e.Kv, rev)
			}
			return nil
		})
		if err != nil && strings.Contains(err.Error(), "compacted") {
			return nil
		}
		return err
	})
	reader(5, func(*rand.Rand) error {
		_, _, _, err := r.HashKV(ctx, 0)
		return err
	})
	rng := rand.New(rand.NewPCG(9, 9))
	rounds := 1500
	if testing.Short() {
		rounds = 200
	}
	for range rounds {
		var cmds []command
		written := map[int]int64{}
		rev := r.Revision()
		for range 1 + rng.IntN(10) {
			rev++
			i := rng.IntN(keys)
			written[i] = rev
			cmds = append(cmds, command{ops: []op{{key: key(i), value: fmt.Sprint(rev)}}})
		}
		if rng.IntN(10) == 0 && rev > 20 {
			cmds = append(cmds, command{compact: rev - rng.Int64N(15)})
		}
		r.apply(cmds...)
		for i, rev := range written {
			newest[i].Store(rev)
		}
	}
	stop.Store(true)
	wg.Wait()
}

// TestInstallUnderReaders installs snapshots while readers read: each sees the old content or the
// new, never parts.
func TestInstallUnderReaders(t *testing.T) {
	from, to := newRig(t, Options{}), newRig(t, Options{})
	const keys = 20
	round := func(r *rig, n int) {
		var ops []op
		for i := range keys {
			ops = append(ops, op{key: fmt.Sprint("key-", i), value: fmt.Sprint(n)})
		}
		r.do(ops...)
	}
	round(from, 0)
	round(to, 0)
	var stop atomic.Bool
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			for !stop.Load() {
				v := to.View()
				var rd interface {
					Range(context.Context, []byte, []byte, RangeOptions) (RangeResult, error)
				} = v
				if i > 0 {
					rd = to.Store
				}
				res, err := rd.Range(context.Background(), []byte("key"), []byte{0}, RangeOptions{})
				if err != nil || len(res.KVs) != keys {
					t.Errorf("%d keys at %d: %v", len(res.KVs), res.Rev, err)
				}
				for _, kv := range res.KVs {
					if string(kv.Value) != string(res.KVs[0].Value) {
						t.Errorf("mixed at %d: %s", res.Rev, kvsText(res.KVs, true))
						break
					}
				}
				v.Close()
			}
		})
	}
	for n := range 30 {
		round(from, n+1)
		if n%3 == 0 {
			from.compactTo(from.Revision())
		}
		from.send(to)
		if to.Revision() != from.Revision() {
			t.Fatal(to.Revision(), from.Revision())
		}
	}
	stop.Store(true)
	wg.Wait()
}

// TestInterruptedCompaction stops a compaction of one revision on the way and goes on with a later
// one. What the first had left because it was the newest at its revision must go with the second.
func TestInterruptedCompaction(t *testing.T) {
	r, m := newRig(t, Options{CompactionBatchLimit: 1, CompactionSleep: -1}), newModel()
	apply := func(c command) {
		t.Helper()
		if got, want := r.apply(c)[0], m.apply(c); got != want {
			t.Fatalf("got %s\nwant %s", got, want)
		}
	}
	apply(command{ops: []op{{key: "a", value: "1"}}}) // 2
	apply(command{ops: []op{{key: "b", value: "1"}}}) // 3
	r.stopCompactor()
	apply(command{compact: 3})
	w := walk{s: r.Store, req: compactionRequest{rev: 3, previous: -1}, newest: map[string]newest{}}
	if next, _, done, err := w.step(Revision{}); err != nil || done || next != (Revision{3, 0}) {
		t.Fatal(next, done, err)
	}
	apply(command{ops: []op{{del: true, key: "a"}}})  // 4
	apply(command{ops: []op{{key: "b", value: "2"}}}) // 5
	apply(command{compact: 5})
	r.flush()
	r.close()
	r.open()
	<-r.Compacted(5)
	m.hashes = nil
	r.check(m, rand.New(rand.NewPCG(1, 1)))
}

// TestDroppedWriter: a writer that has read, and whose batch is not committed, since its member
// stops over what it has read, keeps nobody from closing the store.
func TestDroppedWriter(t *testing.T) {
	r := newRig(t, Options{CacheBytes: 1})
	r.do(op{key: "a", value: "1"})
	index, _ := r.st.Applied()
	b := r.st.NewBatch(index+1, 1)
	w := r.NewWriter(b)
	w.Begin()
	if kv, err := w.Prev([]byte("a"), true); err != nil || kv == nil {
		t.Fatal(kv, err)
	}
	if !w.committed.IsOpen() {
		t.Fatal("it has read nothing")
	}
	w.Drop()
	w.Drop()
	b.Close()
	r.close() // fails if somebody reads
}

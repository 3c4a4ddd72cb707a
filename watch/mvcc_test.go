package watch

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/store"
)

// realHistory is the real store of revisions; the fake beside it is the model of what was written.
type realHistory struct {
	*mvcc.Store
	st    *store.Store
	fake  fakeHistory
	index uint64
	t     testing.TB
}

func newRealHistory(t testing.TB) *realHistory {
	st, err := store.Open("data", store.Options{FS: vfs.NewMem(), CacheBytes: 1 << 20, MemTableBytes: 256 << 10})
	if err != nil {
		t.Fatal(err)
	}
	// A small cache of hot keys and small steps of compaction, to meet both sides of each.
	kv, err := mvcc.Open(st, mvcc.Options{CacheBytes: 4 << 10, CompactionBatchLimit: 50})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		kv.Close()
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return &realHistory{Store: kv, st: st, t: t}
}

func (r *realHistory) model() *fakeHistory { return &r.fake }

func (r *realHistory) write(fn func(*mvcc.Writer) error) {
	r.index++
	b := r.st.NewBatch(r.index, 1)
	defer b.Close()
	w := r.NewWriter(b)
	if err := fn(w); err != nil {
		r.t.Fatal(err)
	}
	if err := b.Commit(); err != nil {
		r.t.Fatal(err)
	}
	w.Publish()
}

func (r *realHistory) commit(ws ...write) (rev int64, events []*mvccpb.Event) {
	want, model := r.fake.commit(ws...)
	r.write(func(w *mvcc.Writer) error {
		w.Begin()
		for _, ev := range model {
			var err error
			if ev.Type == mvccpb.Event_DELETE {
				_, _, err = w.DeleteRange(ev.Kv.Key, nil, false)
			} else {
				_, _, err = w.Put(ev.Kv.Key, ev.Kv.Value, 0)
			}
			if err != nil {
				return err
			}
		}
		events, rev = w.End()
		return nil
	})
	if rev != want || len(events) != len(model) {
		r.t.Fatalf("revision %d with %d events, want %d with %d", rev, len(events), want, len(model))
	}
	return rev, events
}

func (r *realHistory) compactTo(rev int64) {
	if rev <= max(r.CompactRevision(), 0) {
		return
	}
	r.write(func(w *mvcc.Writer) error { return w.Compact(rev) })
	r.fake.compactTo(rev)
}

// TestRandomWatchersOnMVCC is TestRandomWatchers with the real store beneath.
func TestRandomWatchersOnMVCC(t *testing.T) {
	for i := range 4 {
		t.Run(fmt.Sprint(i), func(t *testing.T) { randomWatchers(t, testSeed(t)+int64(i), newRealHistory(t), 1500) })
		if t.Failed() {
			return
		}
	}
}

// BenchmarkCatchUp is how long watchers that start at the first of 20,000
// revisions take to become live, over the real store.
func BenchmarkCatchUp(b *testing.B) {
	for _, n := range []int{1, 100} {
		b.Run(fmt.Sprintf("watchers=%d", n), func(b *testing.B) {
			kv := newRealHistory(b)
			const revs = 20_000
			for i := 0; i < revs; {
				kv.write(func(w *mvcc.Writer) error {
					for range 100 {
						w.Begin()
						if _, _, err := w.Put(fmt.Appendf(nil, "key-%05d", i%5000), make([]byte, 256), 0); err != nil {
							return err
						}
						w.End()
						i++
					}
					return nil
				})
			}
			h := NewHub(kv, Options{})
			defer h.Close()
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				s := h.NewStream()
				for range n {
					_, _ = s.Watch(Request{Key: []byte("key"), End: []byte("kez"), Start: 2})
				}
				for got := 0; got < n*revs; {
					<-s.Ready()
					_ = s.Drain(func(r *Response) error { got += len(r.Events); return nil })
				}
				s.Close()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n*revs), "ns/event")
		})
	}
}

package watch

import (
	"fmt"
	"sync"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// benchHistory has revisions but no history: live watchers need none.
type benchHistory struct {
	fakeHistory
	rev int64
}

func (b *benchHistory) Revision() int64 { return b.rev }

func benchEvent(key string, rev int64) []*mvccpb.Event {
	return []*mvccpb.Event{{Kv: &mvccpb.KeyValue{Key: []byte(key), Value: make([]byte, 256), CreateRevision: 2, ModRevision: rev}}}
}

// BenchmarkNotify is what a put pays. delivered also waits until every watcher's
// sender has the event.
func BenchmarkNotify(b *testing.B) {
	for _, n := range []int{0, 1, 1000} {
		b.Run(fmt.Sprintf("watchers=%d", n), func(b *testing.B) { benchFanOut(b, n, false) })
	}
	for _, n := range []int{1, 1000} {
		b.Run(fmt.Sprintf("watchers=%d/delivered", n), func(b *testing.B) { benchFanOut(b, n, true) })
	}
}

// benchFanOut: n streams with a watcher each on the key that is written.
func benchFanOut(b *testing.B, n int, wait bool) {
	kv := &benchHistory{rev: 1}
	h := NewHub(kv, Options{StreamBytes: 1 << 40, BacklogBytes: 1 << 40})
	defer h.Close()
	quit := make(chan struct{})
	var readers, got sync.WaitGroup
	for range n {
		s := h.NewStream()
		if _, err := s.Watch(Request{Key: []byte("k")}); err != nil {
			b.Fatal(err)
		}
		_ = s.Drain(func(*Response) error { return nil })
		readers.Go(func() {
			defer s.Close()
			for {
				select {
				case <-s.Ready():
				case <-quit:
					return
				}
				_ = s.Drain(func(r *Response) error {
					if wait {
						for range r.Events {
							got.Done()
						}
					}
					return nil
				})
			}
		})
	}
	evs := benchEvent("k", 2)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		if wait {
			got.Add(n)
		}
		h.Notify(int64(2+i), evs)
		if wait {
			got.Wait()
		}
	}
	b.StopTimer()
	close(quit)
	readers.Wait()
}

// BenchmarkDispatch is the dispatcher's work for a put, with many watchers that
// watch something else.
func BenchmarkDispatch(b *testing.B) {
	for _, c := range []struct{ keys, ranges int }{{1, 0}, {100_000, 0}, {100_000, 1000}} {
		b.Run(fmt.Sprintf("keys=%d/ranges=%d", c.keys, c.ranges), func(b *testing.B) {
			kv := &benchHistory{rev: 1}
			h := NewHub(kv, Options{StreamBytes: 1 << 40})
			defer h.Close()
			s := h.NewStream()
			defer s.Close()
			for i := range c.keys {
				_, _ = s.Watch(Request{Key: fmt.Appendf(nil, "key-%06d", i)})
			}
			for i := range c.ranges {
				_, _ = s.Watch(Request{Key: fmt.Appendf(nil, "key-%06d", i*100), End: fmt.Appendf(nil, "key-%06d", i*100+50)})
			}
			_ = s.Drain(func(*Response) error { return nil })
			evs := make([][]*mvccpb.Event, 1024)
			for i := range evs {
				evs[i] = benchEvent(fmt.Sprintf("key-%06d", i*97%max(c.keys, 1)), 2)
			}
			var f fan
			h.mu.Lock()
			defer h.mu.Unlock()
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				e := evs[i%len(evs)]
				e[0].Kv.ModRevision = int64(2 + i)
				h.deliver(&f, h.live, int64(2+i), 0, e, func(*watcher) { b.Fatal("no room") })
				if i%1024 == 1023 {
					_ = s.Drain(func(*Response) error { return nil })
				}
			}
		})
	}
}

func BenchmarkWatch(b *testing.B) {
	kv := &benchHistory{rev: 1}
	h := NewHub(kv, Options{})
	defer h.Close()
	s := h.NewStream()
	defer s.Close()
	keys := make([][]byte, b.N)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "key-%06d", i)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		_, _ = s.Watch(Request{Key: keys[i]})
	}
}

package watch

import (
	"runtime"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// TestSlowWatcherHoldsWhatItIsCharged: of transactions with large values under other keys, an
// unread stream keeps only what its watcher asked for.
func TestSlowWatcherHoldsWhatItIsCharged(t *testing.T) {
	h := &fakeHistory{}
	hub := NewHub(h, Options{})
	s := hub.NewStream()
	if _, err := s.Watch(Request{Key: []byte("small")}); err != nil {
		t.Fatal(err)
	}
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	const revisions, large = 1000, 64 << 10
	for rev := hub.Revision() + 1; rev < revisions; rev++ {
		hub.Notify(rev, []*mvccpb.Event{
			{Kv: &mvccpb.KeyValue{Key: []byte("small"), Value: []byte("x"), ModRevision: rev, CreateRevision: rev}},
			{Kv: &mvccpb.KeyValue{Key: []byte("large"), Value: make([]byte, large), ModRevision: rev, CreateRevision: rev}},
		})
		time.Sleep(100 * time.Microsecond) // the dispatcher keeps up
	}
	for deadline := time.Now().Add(30 * time.Second); s.charged.Load() < revisions*100; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes wait in the stream", s.charged.Load())
		}
	}
	// The hub itself keeps RecentBytes of the newest.
	if grown := heap() - before; grown > hub.opts.RecentBytes+revisions*large/4 {
		t.Errorf("the stream is charged %d KiB, the heap grew by %d MiB", s.charged.Load()>>10, grown>>20)
	}
	runtime.KeepAlive(s)
}

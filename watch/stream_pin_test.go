package watch

import (
	"fmt"
	"maps"
	"runtime"
	"strings"
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

// TestNobodyWatchesTransactions: without watchers the events of transactions count one by one, and the
// newest transaction is kept whatever it has.
func TestNobodyWatchesTransactions(t *testing.T) {
	const room = 256
	h := &fakeHistory{}
	hub := NewHub(h, Options{RecentRevisions: room})
	defer hub.Close()
	txn := func(keys int) {
		var ws []write
		for i := range keys {
			ws = append(ws, write{key: fmt.Sprint("k", i), value: "v"})
		}
		hub.Notify(h.commit(ws...))
	}
	held := func() (revisions int64, events int) {
		for r := hub.recent.first; r <= hub.recent.rev; r++ {
			events += len(hub.recent.slots[r%room].events)
		}
		if events != hub.recent.events {
			t.Errorf("the ring holds %d events, and counts %d", events, hub.recent.events)
		}
		return hub.recent.rev - hub.recent.first + 1, events
	}
	for range 100 {
		txn(10)
	}
	if revisions, events := held(); revisions != room/unwatchedShare/10 || events != room/unwatchedShare/10*10 {
		t.Errorf("the ring holds %d revisions with %d events for nobody", revisions, events)
	}
	txn(room)
	if revisions, events := held(); revisions != 1 || events != room {
		t.Errorf("the ring holds %d revisions with %d events after a large one", revisions, events)
	}
	txn(1)
	if revisions, events := held(); revisions != 1 || events != 1 {
		t.Errorf("the ring holds %d revisions with %d events after a small one", revisions, events)
	}
}

// TestNobodyWatches: without watchers the ring keeps an eighth of the revisions that it has room for,
// and the first watcher gets what it asks for.
func TestNobodyWatches(t *testing.T) {
	const room = 256
	h := &fakeHistory{}
	hub := NewHub(h, Options{RecentRevisions: room})
	defer hub.Close()
	for range 500 {
		hub.Notify(h.commit(write{key: "k", value: "v"}))
	}
	if held := hub.recent.rev - hub.recent.first + 1; held != room/unwatchedShare {
		t.Fatalf("the ring holds %d revisions for nobody", held)
	}
	s := hub.NewStream()
	defer s.Close()
	for _, start := range []int64{3, h.Revision() - 2, 0} {
		if _, err := s.Watch(Request{Key: []byte("k"), Start: start, ID: start}); err != nil {
			t.Fatal(err)
		}
	}
	hub.Notify(h.commit(write{key: "k", value: "v"}))
	want := map[int64]int64{3: h.Revision() - 2, h.Revision() - 3: 4, 0: 1}
	got, timeout := make(map[int64]int64), time.After(30*time.Second)
	for !maps.Equal(got, want) {
		select {
		case <-s.Ready():
		case <-timeout:
			t.Fatalf("watchers got %v events, want %v", got, want)
		}
		err := s.Drain(func(r *Response) error {
			got[r.ID] += int64(len(r.Events))
			if got[r.ID] == 0 {
				delete(got, r.ID) // it was created
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestNobodyWatchesLargeValues: without watchers the bytes of the ring are those that are kept for late
// ones, not those that may wait for the dispatcher, and the first watcher misses nothing.
func TestNobodyWatchesLargeValues(t *testing.T) {
	const keep, count = 64 << 10, 200
	h := &fakeHistory{}
	hub := NewHub(h, Options{RecentBytes: keep, BacklogBytes: 16 * keep})
	defer hub.Close()
	value := strings.Repeat("v", keep/8)
	for range count {
		hub.Notify(h.commit(write{key: "k", value: value}))
	}
	if held := hub.recent.bytes; held > keep || held < keep/2 {
		t.Errorf("the ring holds %d bytes for nobody, at most %d are kept", held, keep)
	}
	s := hub.NewStream()
	defer s.Close()
	start := h.Revision() - count + 1
	if _, err := s.Watch(Request{Key: []byte("k"), Start: start}); err != nil {
		t.Fatal(err)
	}
	next, timeout := start, time.After(30*time.Second)
	for next <= h.Revision() {
		select {
		case <-s.Ready():
		case <-timeout:
			t.Fatalf("the watcher waits for revision %d of %d", next, h.Revision())
		}
		err := s.Drain(func(r *Response) error {
			for _, ev := range r.Events {
				if ev.Kv.ModRevision != next {
					t.Fatalf("revision %d came in place of %d", ev.Kv.ModRevision, next)
				}
				next++
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

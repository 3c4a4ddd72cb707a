package watch

import (
	"flag"
	"fmt"
	"math/rand"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

var seedFlag = flag.Int64("seed", 0, "seed of the random tests; 0 draws one")

// newRand is seeded so that the test can be repeated.
func newRand(t testing.TB) *rand.Rand { return rand.New(rand.NewSource(testSeed(t))) }

func testSeed(t testing.TB) int64 {
	seed := *seedFlag
	if seed == 0 {
		seed = time.Now().UnixNano()
	}
	t.Logf("repeat with: go test ./watch -run '%s' -seed %d", t.Name(), seed)
	return seed
}

// watched is a watcher as its client sees it.
type watched struct {
	req       Request
	created   int64 // header revision of the created response; 0: not yet
	seen      []*mvccpb.Event
	prevs     []*mvccpb.KeyValue
	rev       int64 // newest revision that the client knows to be complete
	compacted int64
	canceled  bool // by compaction or by us
	ours      bool
}

// client reads one stream and checks what it can while it reads.
type client struct {
	t      *testing.T
	s      *Stream
	mu     sync.Mutex
	ws     map[int64]*watched
	all    []*watched
	manual int64 // newest manual progress
	seen   int
}

func (c *client) receive(r *Response) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen++
	if r.ID == InvalidID {
		if len(r.Events) > 0 || r.Created || r.Canceled {
			c.t.Errorf("stream response with %d events, created %v, canceled %v", len(r.Events), r.Created, r.Canceled)
		}
		c.manual = r.Rev
		for id, w := range c.ws {
			if w.created == 0 || w.canceled {
				continue
			}
			if r.Rev < w.req.Start {
				c.t.Errorf("progress %d is below the start %d of watcher %d", r.Rev, w.req.Start, id)
			}
			w.rev = max(w.rev, r.Rev)
		}
		return nil
	}
	w := c.ws[r.ID]
	switch {
	case w == nil:
		c.t.Errorf("response for unknown watcher %d", r.ID)
	case w.canceled && w.ours && r.Canceled: // ended by compaction, then by the client: both are answered
	case w.canceled:
		c.t.Errorf("response for canceled watcher %d", r.ID)
	case r.Created:
		if w.created != 0 {
			c.t.Errorf("watcher %d created twice", r.ID)
		}
		w.created = r.Rev
	case w.created == 0:
		c.t.Errorf("watcher %d got a response before it was created", r.ID)
	case r.Canceled:
		w.canceled, w.compacted = true, r.CompactRev
		if r.CompactRev != 0 && r.Rev != 0 {
			c.t.Errorf("canceled by compaction with header revision %d", r.Rev)
		}
	case len(r.Events) == 0:
		if r.Rev < w.rev {
			c.t.Errorf("progress of watcher %d went back from %d to %d", r.ID, w.rev, r.Rev)
		}
		w.rev = r.Rev
	default:
		revs := 0
		last := w.rev
		for i, ev := range r.Events {
			if m := ev.Kv.ModRevision; i == 0 || m != r.Events[i-1].Kv.ModRevision {
				revs++
				if m <= last {
					c.t.Errorf("watcher %d got revision %d after it knew %d", r.ID, m, last)
				}
				last = m
			}
			w.seen = append(w.seen, ev)
			w.prevs = append(w.prevs, ev.PrevKv)
		}
		if r.Rev < last {
			c.t.Errorf("events up to %d under header revision %d", last, r.Rev)
		}
		if revs > maxResponseRevs {
			c.t.Errorf("%d revisions in a response", revs)
		}
		w.rev = last
	}
	return nil
}

// modelStore is a history that the random test can write, and the list of all that was written.
type modelStore interface {
	History
	commit(...write) (int64, []*mvccpb.Event)
	compactTo(int64)
	model() *fakeHistory
}

// TestRandomWatchers runs many watchers of all kinds against a writer, compactions
// and reloads, with bounds so small that every path is taken, and compares what
// each saw with the list of all events.
func TestRandomWatchers(t *testing.T) {
	rounds := 8
	if testing.Short() {
		rounds = 4
	}
	for i := range rounds {
		t.Run(fmt.Sprint(i), func(t *testing.T) { randomWatchers(t, testSeed(t)+int64(i), &fakeHistory{}, 3000) })
		if t.Failed() {
			return
		}
	}
}

func randomWatchers(t *testing.T, seed int64, kv modelStore, writes int) {
	rng := rand.New(rand.NewSource(seed))
	h := NewHub(kv, Options{
		StreamBytes:     int64(200 + rng.Intn(4000)),
		RecentBytes:     int64(500 + rng.Intn(8000)),
		BacklogBytes:    int64(1000 + rng.Intn(20000)),
		RecentRevisions: 8 << rng.Intn(6),
		ScanRevisions:   int64(1 + rng.Intn(100)),
		ScanBytes:       1 + rng.Intn(10000),
	})
	defer h.Close()

	reloads := rng.Intn(3) == 0
	compactions := rng.Intn(2) == 0
	key := func(r *rand.Rand) string { return fmt.Sprintf("k%02d", r.Intn(40)) }

	var stop atomic.Bool
	var clients []*client
	var readers, users sync.WaitGroup
	quit := make(chan struct{})
	for range 1 + rng.Intn(12) {
		c := &client{t: t, s: h.NewStream(), ws: make(map[int64]*watched)}
		clients = append(clients, c)
		crng := rand.New(rand.NewSource(rng.Int63()))
		slow := crng.Intn(3) == 0
		readers.Go(func() {
			srng := rand.New(rand.NewSource(crng.Int63()))
			for {
				select {
				case <-quit:
					return
				case <-c.s.Ready():
				}
				err := c.s.Drain(func(r *Response) error {
					if slow && srng.Intn(3) == 0 && !stop.Load() {
						for range srng.Intn(300) {
							runtime.Gosched()
						}
					}
					return c.receive(r)
				})
				if err != nil {
					t.Error(err)
				}
				if srng.Intn(4) == 0 {
					c.s.Tick()
				}
			}
		})
		urng := rand.New(rand.NewSource(rng.Int63()))
		users.Go(func() {
			for !stop.Load() {
				switch n := urng.Intn(20); {
				case n < 6 && len(c.all) < 40:
					req := Request{Key: []byte(key(urng))}
					switch urng.Intn(4) {
					case 0:
						req.End = []byte{0}
					case 1:
						if end := key(urng); end > string(req.Key) {
							req.End = []byte(end)
						}
					}
					cur := kv.Revision()
					switch urng.Intn(5) {
					case 0:
						req.Start = cur + 1 - int64(urng.Intn(10))
					case 1:
						req.Start = 1 + urng.Int63n(cur)
					case 2:
						req.Start = cur + int64(urng.Intn(30))
					}
					req.Start = max(req.Start, 0)
					req.NoPut, req.NoDelete = urng.Intn(8) == 0, urng.Intn(8) == 0
					req.PrevKV, req.ProgressNotify = urng.Intn(3) == 0, urng.Intn(2) == 0
					c.mu.Lock()
					w := &watched{req: req}
					// The id is known only after Watch, which may deliver at once.
					id := int64(1000 + len(c.all))
					c.ws[id] = w
					c.all = append(c.all, w)
					c.mu.Unlock()
					req.ID = id
					if _, err := c.s.Watch(req); err != nil {
						t.Errorf("watch: %v", err)
					}
				case n < 7:
					c.mu.Lock()
					var id int64
					for i, w := range c.ws {
						if w.created > 0 && !w.ours {
							id, w.ours = i, true
							break
						}
					}
					c.mu.Unlock()
					if id != 0 {
						// From here on the client does not care what comes for it.
						c.mu.Lock()
						c.ws[id] = &watched{created: 1, req: Request{}, ours: true}
						c.mu.Unlock()
						c.s.Cancel(id)
					}
				case n < 9:
					c.s.Progress()
				default:
					for range urng.Intn(200) {
						runtime.Gosched()
					}
				}
			}
		})
	}

	// The writer is the applier: it commits a few revisions, then notifies them.
	for n := 0; n < writes; {
		type note struct {
			rev int64
			evs []*mvccpb.Event
		}
		var batch []note
		for range 1 + rng.Intn(5) {
			var ws []write
			used := map[string]bool{}
			for range 1 + rng.Intn(3)*rng.Intn(2) {
				k := key(rng)
				if used[k] {
					continue
				}
				used[k] = true
				ws = append(ws, write{key: k, value: fmt.Sprintf("v%0*d", rng.Intn(60), n), del: rng.Intn(5) == 0})
			}
			rev, evs := kv.commit(ws...)
			batch = append(batch, note{rev, evs})
			n++
		}
		if reloads && rng.Intn(200) == 0 {
			h.Reload()
		} else {
			for _, b := range batch {
				h.Notify(b.rev, b.evs)
			}
		}
		if compactions && rng.Intn(300) == 0 {
			kv.compactTo(kv.Revision() - int64(rng.Intn(100)))
		}
		if rng.Intn(10) == 0 {
			runtime.Gosched()
		}
	}
	stop.Store(true)
	users.Wait()

	// Every watcher must arrive: the manual progress of its stream says that it has. A watcher with
	// a start in the future is reached by further writes.
	final := kv.Revision()
	for range 40 {
		rev, evs := kv.commit(write{key: "zzz", value: "end"})
		h.Notify(rev, evs)
	}
	deadline := time.Now().Add(20 * time.Second)
	for _, c := range clients {
		for {
			c.s.Progress()
			c.mu.Lock()
			live := 0
			for _, w := range c.ws {
				if !w.canceled {
					live++
				}
			}
			ok := c.manual >= final || live == 0
			c.mu.Unlock()
			if ok {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("a stream did not catch up: manual progress %d of %d, %d watchers", c.manual, final, live)
			}
			time.Sleep(time.Millisecond)
		}
	}
	close(quit)
	readers.Wait()

	checked := 0
	for _, c := range clients {
		for _, w := range c.all {
			if w.created == 0 {
				t.Errorf("watcher was never created")
				continue
			}
			checked += checkSeen(t, kv.model(), w, final)
		}
		c.s.Close()
	}
	m := h.metrics
	if m.streams.Load() != 0 || m.watchers.Load() != 0 || m.behind.Load() != 0 || m.pending.Load() != 0 || h.active.Load() != 0 || h.prev.Load() != 0 {
		t.Errorf("left over: %d streams, %d watchers, %d behind, %d pending, %d active, %d prev", m.streams.Load(), m.watchers.Load(), m.behind.Load(), m.pending.Load(), h.active.Load(), h.prev.Load())
	}
	t.Logf("%d events checked", checked)
}

// checkSeen compares what a watcher saw with the whole history.
func checkSeen(t *testing.T, kv *fakeHistory, w *watched, final int64) int {
	t.Helper()
	start := w.req.Start
	if start == 0 {
		start = w.created + 1
	}
	sp := span{single: len(w.req.End) == 0, start: string(w.req.Key), end: bound{key: string(w.req.End)}}
	if len(w.req.End) == 1 && w.req.End[0] == 0 {
		sp.end = bound{inf: true}
	}
	filter := &watcher{req: w.req}
	var want []*mvccpb.Event
	for i, evs := range kv.revs {
		if int64(i)+2 < start {
			continue
		}
		for _, ev := range evs {
			if sp.contains(ev.Kv.Key) && filter.accepts(ev) {
				want = append(want, ev)
			}
		}
	}
	// A watcher that ended early saw a prefix, of whole revisions.
	if w.canceled || w.ours {
		if len(w.seen) > len(want) {
			t.Errorf("saw %d events of %d", len(w.seen), len(want))
			return 0
		}
		if n := len(w.seen); n > 0 && n < len(want) && want[n].Kv.ModRevision == want[n-1].Kv.ModRevision {
			t.Errorf("revision %d was cut", want[n].Kv.ModRevision)
		}
		if w.compacted != 0 && len(w.seen) < len(want) && w.compacted <= start && start > w.created {
			t.Errorf("compacted at %d though it starts at %d", w.compacted, start)
		}
		want = want[:len(w.seen)]
	} else {
		for len(want) > len(w.seen) && want[len(want)-1].Kv.ModRevision > final {
			want = want[:len(want)-1]
		}
	}
	if len(want) != len(w.seen) {
		t.Errorf("watcher from %d (%q,%q): saw %d events, want %d", start, w.req.Key, w.req.End, len(w.seen), len(want))
		return 0
	}
	for i, ev := range want {
		got := w.seen[i]
		if got.Type != ev.Type || !proto.Equal(got.Kv, ev.Kv) {
			t.Errorf("event %d: got %v, want %v", i, got, ev)
			return 0
		}
		switch prev := w.prevs[i]; {
		case !w.req.PrevKV && prev != nil:
			t.Errorf("event %d: previous version though not asked for", i)
		case prev != nil:
			if real := kv.before(string(ev.Kv.Key), ev.Kv.ModRevision); !proto.Equal(real, prev) {
				t.Errorf("event %d: wrong previous version", i)
			}
		case w.req.PrevKV && kv.compact == 0:
			if real := kv.before(string(ev.Kv.Key), ev.Kv.ModRevision); real != nil {
				t.Errorf("event %d: previous version missing", i)
			}
		}
	}
	return len(want)
}

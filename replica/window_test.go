package replica

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/command"
)

// Small writes find no more large ones before them than the window lets in, whatever a client of the
// same member has begun; and all of them end.
func TestSmallWritesPassLargeOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		defer c.close()
		leader := c.leader()
		for _, m := range []*testMember{leader, c.others(leader)[0]} {
			m.mustPut("before", "")
			release := stallState(&m.state.applyStalled)
			var writes sync.WaitGroup
			put := func(key, value string) {
				writes.Go(func() {
					if err := m.put(c.short(), key, value); err != nil {
						t.Errorf("member %d: %s: %v", m.id, key, err)
					}
				})
			}
			const size, large = 1 << 20, 16
			for i := range large {
				put(fmt.Sprint("large", i), strings.Repeat("v", size))
			}
			time.Sleep(200 * time.Millisecond)
			put("small", "v")
			time.Sleep(200 * time.Millisecond)
			r := m.replica()
			if n := int(r.Status().Committed - r.AppliedIndex()); n > minWindow/size+1 {
				t.Errorf("member %d: the small write is behind %d others", m.id, n-1)
			}
			release()
			writes.Wait()
			for i := range large {
				if got := len(m.state.get(fmt.Sprint("large", i))); got != size {
					t.Errorf("member %d: write %d has %d bytes", m.id, i, got)
				}
			}
			w := &r.window
			w.mu.Lock()
			if m.state.get("small") == "" || w.bytes != 0 || w.waiting != 0 {
				t.Errorf("member %d: %d bytes inside, %d outside at the end", m.id, w.bytes, w.waiting)
			}
			w.mu.Unlock()
		}
	})
}

// Large writes wait while the store has much that it has not flushed, and small ones do not; all end
// when it has flushed.
func TestLargeWritesWaitForTheFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		defer c.close()
		m := c.leader()
		m.mustPut("before", "")
		w := &m.replica().window
		const size, most, writes = 256 << 10, 2 << 20, 120
		w.mu.Lock()
		w.mostUnflushed = most
		w.mu.Unlock()
		release := stallState(&m.state.flushStalled)
		var all sync.WaitGroup
		for i := range writes {
			all.Go(func() {
				if err := m.put(c.short(), fmt.Sprint("large", i), strings.Repeat("v", size)); err != nil {
					t.Errorf("write %d: %v", i, err)
				}
			})
		}
		time.Sleep(time.Second)
		applied := 0
		for i := range writes {
			applied += len(m.state.get(fmt.Sprint("large", i)))
		}
		w.mu.Lock()
		inside := int(w.size) // what had passed before so much was applied
		w.mu.Unlock()
		if applied < most || applied > most+inside+size || applied == writes*size {
			t.Errorf("%d bytes of large writes were applied while nothing was flushed, and the window has %d", applied, inside)
		}
		m.mustPut("small", "v")
		release()
		all.Wait()
		for i := range writes {
			if got := len(m.state.get(fmt.Sprint("large", i))); got != size {
				t.Errorf("write %d has %d bytes", i, got)
			}
		}
	})
}

// A large write says how long it waited for room, whether it was applied then or given up before.
func TestLargeWritesSayHowLongTheyWaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		defer c.close()
		m := c.leader()
		m.mustPut("before", "")
		w := &m.replica().window
		setMost := func(bytes int64) {
			w.mu.Lock()
			w.mostUnflushed = bytes
			w.mu.Unlock()
		}
		propose := func(patience time.Duration, bytes int) (command.Result, error) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			return m.replica().Propose(ctx, putRequest("key", strings.Repeat("v", bytes)))
		}
		const large, waits = LargeProposal, 2 * time.Second
		if result, err := propose(time.Minute, large); err != nil || result.Waited != 0 {
			t.Errorf("with room: waited %v, %v", result.Waited, err)
		}
		setMost(0) // there is no room
		if result, err := propose(time.Minute, 10); err != nil || result.Waited != 0 {
			t.Errorf("a small one: waited %v, %v", result.Waited, err)
		}
		if result, err := propose(waits, large); err == nil || result.Waited != waits {
			t.Errorf("given up after %v: waited %v, %v", waits, result.Waited, err)
		}
		go func() {
			time.Sleep(waits)
			setMost(maxUnflushed) // found at the next tick
		}()
		if result, err := propose(time.Minute, large); err != nil || result.Waited < waits || result.Waited > 2*waits {
			t.Errorf("room after %v: waited %v, %v", waits, result.Waited, err)
		}
	})
}

// On a leader whose store has much to flush large writes of all members wait: they are not taken until
// it refuses every write. Small ones do not wait.
func TestLargeWritesOfAllWaitForTheLeadersFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size, most, bound, writes = 256 << 10, 2 << 20, 48 << 20, 400
		c := newTestCluster(t, 3, func(c *testCluster) { c.maxUnsynced = bound })
		defer c.close()
		leader := c.leader()
		leader.mustPut("before", "")
		w := &leader.replica().window
		w.mu.Lock()
		w.mostUnflushed = most
		w.mu.Unlock()
		release := stallState(&leader.state.flushStalled)
		var all sync.WaitGroup
		for i := range writes {
			m := c.others(leader)[i%2]
			all.Go(func() {
				if err := m.put(c.short(), fmt.Sprint("large", i), strings.Repeat("v", size)); err != nil {
					t.Errorf("write %d: %v", i, err)
				}
			})
		}
		time.Sleep(time.Second)
		for _, m := range append(c.others(leader), leader) {
			m.mustPut("small", "v")
		}
		release()
		all.Wait()
	})
}

// The window grows while large writes take little time, and shrinks when they take long, but not
// below its least.
func TestWindowFollowsTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		defer c.close()
		m := c.leader()
		load := func() {
			for range 200 {
				go func() { _ = m.put(c.short(), "large", strings.Repeat("v", 256<<10)) }()
			}
			time.Sleep(10 * time.Second)
		}
		w := &m.replica().window
		size := func() int64 {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.size
		}
		load()
		grown := size()
		if grown < 3*minWindow || grown > maxWindow {
			t.Errorf("the window is %d bytes after 200 large writes without a delay", grown)
		}
		m.state.applyTakes.Store(int64(2 * time.Second))
		load()
		load()
		if now := size(); now != minWindow {
			t.Errorf("the window is %d bytes when each step takes 2 s, was %d", now, grown)
		}
	})
}

// In random schedules the window holds what it says: no more than its size, what is inside is in the
// inbox, and nothing stays outside while there is room.
func TestWindow(t *testing.T) {
	for range 50 {
		rng := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
		synctest.Test(t, func(t *testing.T) {
			r := &Replica{env: &env{cfg: Config{Settings: Settings{RequestTimeout: 7 * time.Second, MaxUnsyncedBytes: 512 << 20}}, metrics: NewMetrics(prometheus.NewRegistry())}}
			r.cfg.Metrics = r.metrics
			r.inbox.init()
			w := &r.window
			w.init(r)
			r.waiters.init(r.metrics, w)
			ends := make(map[uint64]int)
			var live []*proposal     // have not ended
			var begun, seen []uint64 // ids, in order: that came to the window, that came to the inbox
			passedOnce := make(map[uint64]bool)
			for step := range 400 {
				time.Sleep(time.Duration(rng.IntN(600)) * time.Millisecond)
				pick := func() *proposal {
					if len(live) == 0 {
						return nil
					}
					i := rng.IntN(len(live))
					p := live[i]
					live = slices.Delete(live, i, i+1)
					return p
				}
				switch kind := rng.IntN(20); {
				case kind < 10:
					p := &proposal{
						id: uint64(step + 1), request: putRequest("k", "v"), entry: new(raftpb.Entry), then: endCounter{ends, uint64(step + 1)},
						large: int64(LargeProposal + rng.IntN(3<<20)), // said, so that nothing large is copied
					}
					r.waiters.add(p)
					live, begun = append(live, p), append(begun, p.id)
					w.enter(p)
				case kind < 16: // applied, if raft has it
					if p := pick(); p == nil {
					} else if p.state.Load() == proposalProposed {
						w.applied([]largeEntry{{p.id, p.large}, {1 << 60, p.large}})
						r.waiters.finish(p.id, command.Result{}, nil)
					} else {
						live = append(live, p)
					}
				case kind < 18: // its client has gone
					if p := pick(); p != nil {
						p.abandon()
						r.waiters.finish(p.id, command.Result{}, ErrCanceled)
					}
				case kind < 19:
					w.sweep(time.Now())
				default:
					w.restart()
				}
				synctest.Wait()
				var in taken
				r.inbox.take(&in)
				for _, p := range in.proposals {
					if len(p.entry.Data) == 0 {
						t.Fatalf("proposal %d is not encoded", p.id)
					}
					if !p.abandoned() {
						p.markProposed()
					}
					seen, passedOnce[p.id] = append(seen, p.id), true
				}
				sum, outside := int64(0), int64(0)
				for id, p := range w.inside {
					sum += p.size
					if !passedOnce[id] {
						t.Fatalf("proposal %d is inside and not in the inbox", id)
					}
				}
				for e := w.outside.Front(); e != nil; e = e.Next() {
					outside += e.Value.(*proposal).large
				}
				first := w.outside.Front()
				switch {
				case sum != w.bytes, outside != w.waiting, w.outside.Len() != len(w.places):
					t.Fatalf("%d bytes inside, said %d; %d outside, said %d; %d places of %d", sum, w.bytes, outside, w.waiting, len(w.places), w.outside.Len())
				case w.bytes > w.size && len(w.inside) > 1 && w.shrunkAt.IsZero():
					t.Fatalf("%d bytes inside a window of %d", w.bytes, w.size)
				case w.size < minWindow || w.size > maxWindow:
					t.Fatalf("a window of %d bytes", w.size)
				case first != nil && w.fits(first.Value.(*proposal)):
					t.Fatal("the first outside would fit")
				}
			}
			for _, p := range slices.Clone(live) {
				w.applied([]largeEntry{{p.id, p.large}})
				r.waiters.finish(p.id, command.Result{}, nil)
			}
			for _, id := range begun {
				if ends[id] != 1 {
					t.Errorf("proposal %d has ended %d times", id, ends[id])
				}
			}
			if len(seen) < 20 {
				t.Errorf("%d proposals have passed: the test tries little", len(seen))
			}
		})
	}
}

// endCounter counts how often a proposal ends.
type endCounter struct {
	ends map[uint64]int
	id   uint64
}

// Completed is Completion's.
func (c endCounter) Completed(command.Result, error) { c.ends[c.id]++ }

// Three members whose clients all write large values at the same time get about as much through. The
// leader is first at the log, and hears first of what is applied: without more than that its window
// took nearly all.
func TestWindowsShareTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const members, clients, size, rate, tick = 3, 333, 100 << 10, 150 << 20, 5 * time.Millisecond
		type item struct {
			member int
			p      *proposal
			at     time.Time // when the leader has it, or a follower has applied it
		}
		var replicas [members]*Replica
		var ids [members]*command.IDGenerator
		ends := make(map[uint64]int)
		put := func(i int) {
			id := ids[i].Next()
			p := &proposal{id: id, request: putRequest("k", "v"), entry: new(raftpb.Entry), then: endCounter{ends, id}, large: size, born: time.Now()}
			replicas[i].waiters.add(p)
			replicas[i].window.enter(p)
		}
		for i := range replicas {
			r := &Replica{env: &env{cfg: Config{Settings: Settings{RequestTimeout: 7 * time.Second, MaxUnsyncedBytes: 512 << 20}, ID: uint64(i + 1)}, metrics: NewMetrics(prometheus.NewRegistry())}}
			r.cfg.Metrics = r.metrics
			r.inbox.init()
			r.window.init(r)
			r.waiters.init(r.metrics, &r.window)
			replicas[i], ids[i] = r, command.NewIDGenerator(uint64(i+1))
			for range clients {
				put(i)
			}
		}
		var log []item             // in order; committed at rate
		var back [members][]item   // on its way to the appliers of followers
		var through [members]int64 // bytes of the last 20 s
		const wayThere, wayBack = 20 * time.Millisecond, 20 * time.Millisecond
		for began := time.Now(); time.Since(began) < 40*time.Second; time.Sleep(tick) {
			synctest.Wait()
			now := time.Now()
			for i, r := range replicas {
				var in taken
				r.inbox.take(&in)
				for _, p := range in.proposals {
					p.markProposed()
					at := now
					if i > 0 {
						at = at.Add(wayThere)
					}
					log = append(log, item{i, p, at})
				}
			}
			slices.SortStableFunc(log, func(a, b item) int { return a.at.Compare(b.at) })
			for room := int64(rate) * int64(tick) / int64(time.Second); room > 0 && len(log) > 0 && !log[0].at.After(now); log = log[1:] {
				room -= size
				for i := range replicas {
					at := now
					if i > 0 {
						at = at.Add(wayBack)
					}
					back[i] = append(back[i], item{log[0].member, log[0].p, at})
				}
			}
			for i, r := range replicas {
				var entries []largeEntry
				for ; len(back[i]) > 0 && !back[i][0].at.After(now); back[i] = back[i][1:] {
					e := back[i][0]
					entries = append(entries, largeEntry{e.p.id, size})
					if e.member == i {
						r.waiters.finish(e.p.id, command.Result{}, nil)
						put(i)
						if now.Sub(began) > 20*time.Second {
							through[i] += size
						}
					}
				}
				r.window.applied(entries)
			}
		}
		if least, most := slices.Min(through[:]), slices.Max(through[:]); least < most/2 {
			t.Errorf("members got %v bytes through", through)
		}
		for i, r := range replicas {
			t.Logf("member %d: %d MB/s, a window of %d MiB", i, through[i]/20e6, r.window.size>>20)
		}
	})
}

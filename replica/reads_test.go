package replica

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestReadsMissNothing has all members write and read, while they crash, lose connections, one way or
// both, stall and hand over, and while messages come late and in another order: a read that began after
// a write was acknowledged shows it. In five members two are no quorum, and are cut off together; in
// three a question of one to the other needs nobody else.
func TestReadsMissNothing(t *testing.T) {
	for _, members := range []int{3, 5} {
		t.Run(fmt.Sprint(members), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { readsMissNothing(t, members) })
		})
	}
}

// view is a life of a member.
type view struct {
	replica *Replica
	state   *memoryState
}

func readsMissNothing(t *testing.T, members int) {
	var lateness sync.Mutex // for late
	late := rand.New(rand.NewPCG(rand.Uint64(), 0))
	c := newTestCluster(t, members, func(c *testCluster) {
		c.keepBytes, c.holdBytes = 64<<10, 256<<10
		c.latency = func(now time.Time) time.Time {
			lateness.Lock()
			defer lateness.Unlock()
			most := 10
			if late.IntN(4) == 0 {
				most = 400
			}
			return now.Add(time.Duration(late.IntN(most)) * time.Millisecond)
		}
	})
	defer c.close()
	c.leader()
	rng := rand.New(rand.NewPCG(c.rng.Uint64(), 1))
	views := make([]atomic.Pointer[view], members+1) // by id; nil: it is down
	show := func(m *testMember) { views[m.id].Store(&view{m.replica(), m.state}) }
	for _, m := range c.members {
		show(m)
	}
	stop := make(chan struct{})
	var clients sync.WaitGroup
	// loop calls fn with a random member that runs.
	loop := func(fn func(v *view, id int, r *rand.Rand)) {
		seed := rng.Uint64()
		clients.Go(func() {
			for r := rand.New(rand.NewPCG(seed, 2)); ; {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(1+r.IntN(20)) * time.Millisecond):
				}
				if id := 1 + r.IntN(members); views[id].Load() != nil {
					fn(views[id].Load(), id, r)
				}
			}
		})
	}
	acked := make([]atomic.Int64, 3) // the last write of each writer that was acknowledged
	key := func(writer int, n int64) string { return fmt.Sprint("w", writer, "-", n) }
	for w := range acked {
		n := int64(0)
		loop(func(v *view, _ int, _ *rand.Rand) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			n++ // each key is written once: one whose writer has given up may come later than the next
			if v == nil {
				return
			}
			if result, err := v.replica.Propose(ctx, putRequest(key(w, n), "x")); err == nil && result.Err == nil {
				acked[w].Store(n)
			}
		})
	}
	var reads atomic.Int64
	for range 9 {
		loop(func(v *view, id int, r *rand.Rand) {
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			defer cancel()
			w := r.IntN(len(acked))
			n := acked[w].Load()
			if v == nil || n == 0 || v.replica.ReadBarrier(ctx) != nil {
				return
			}
			shown := v.state.get(key(w, n))
			if views[id].Load() != v {
				return // it has crashed: nobody gets its answers
			}
			reads.Add(1)
			if shown == "" {
				t.Errorf("a read at member %d misses write %d of writer %d, which was acknowledged before", id, n, w)
			}
		})
	}

	pause := func(most int) { time.Sleep(time.Duration(rng.IntN(most)) * time.Millisecond) }
	crash := func(m *testMember) {
		views[m.id].Store(nil)
		m.crash()
		pause(2500)
		m.restart()
		show(m)
	}
	for range 20 {
		m := c.members[uint64(1+rng.IntN(members))]
		o := c.others(m)[rng.IntN(members-1)]
		switch rng.IntN(7) {
		case 0:
			crash(m)
		case 1:
			c.partition(m.id, true)
			pause(4000)
			c.partition(m.id, false)
		case 2: // two from the others, one of them the leader
			if m = c.leader(); m == o {
				continue
			}
			cut := func(on bool) {
				for _, x := range c.others(m) {
					if x != o {
						c.cutBoth(m.id, x.id, on)
						c.cutBoth(o.id, x.id, on)
					}
				}
			}
			cut(true)
			pause(5000)
			cut(false)
		case 3:
			way := func(on bool) {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.cut[[2]uint64{m.id, o.id}] = on
			}
			way(true)
			pause(4000)
			way(false)
		case 4:
			_ = m.replica().TransferLeader(c.short(), o.id) // or not
		case 5:
			release := m.stall()
			pause(3000)
			release()
		case 6:
			c.cutBoth(m.id, o.id, true)
			pause(1500)
			crash(o)
			pause(1500)
			c.cutBoth(m.id, o.id, false)
		}
		pause(1500)
	}
	close(stop)
	clients.Wait()
	if reads.Load() == 0 {
		t.Error("nothing was read")
	}
}

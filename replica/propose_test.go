package replica

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/belaydb/belay/command"
)

// told is the completion of a test's proposal.
type told struct {
	r   *Replica
	key string
	due time.Time // when it should have ended, at the latest

	// Set before calls is raised.
	err   error
	at    time.Time
	ahead bool // the result came before the applied index

	calls atomic.Int32
}

// Completed is Completion's.
func (e *told) Completed(result command.Result, err error) {
	e.err, e.at = err, time.Now()
	if index, _ := e.r.cfg.State.Applied(); err == nil && e.r.AppliedIndex() < index {
		e.ahead = true
	}
	e.calls.Add(1)
}

// Whatever happens to a proposal, its completion is told once, and in time; a request that is said to
// have had no effect has none, and one that is said to be applied is.
func TestEachProposalEndsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		c.leader()
		roll := c.rng.IntN
		var mu sync.Mutex
		var all []*told // guarded by mu
		var proposers sync.WaitGroup
		for id := range c.members {
			for client := range 4 {
				rng := rand.New(rand.NewPCG(c.rng.Uint64(), uint64(client)))
				proposers.Go(func() {
					var mine []*told
					for i := range 60 {
						time.Sleep(time.Duration(rng.IntN(400)) * time.Millisecond)
						r := c.members[id].replica()
						e := &told{r: r, key: fmt.Sprint(id, "-", client, "-", i), due: time.Now().Add(r.cfg.RequestTimeout + time.Second)}
						if i == 0 && client == 0 {
							if _, err := r.ProposeThen(putRequest(e.key, string(make([]byte, r.cfg.MaxRequestBytes+1))), e); !errors.Is(err, ErrRequestTooLarge) {
								t.Errorf("a request that is too large: %v", err)
							}
						}
						value := "x"
						if rng.IntN(8) == 0 {
							value = string(make([]byte, LargeProposal+rng.IntN(200<<10)))
						}
						proposal, err := r.ProposeThen(putRequest(e.key, value), e)
						if err != nil {
							if !errors.Is(err, ErrTooManyRequests) {
								t.Errorf("%s: %v", e.key, err)
							}
							continue // e is in none of the lists: it must not be told
						}
						mine = append(mine, e)
						if rng.IntN(2) == 0 {
							continue
						}
						cause, cancels := context.Canceled, 1+rng.IntN(3)
						if rng.IntN(2) == 0 {
							cause = context.DeadlineExceeded
						}
						wait := time.Duration(rng.IntN(3)*rng.IntN(1000)) * time.Millisecond
						e.due = time.Now().Add(wait + time.Millisecond)
						for range cancels {
							proposers.Go(func() {
								time.Sleep(wait)
								r.CancelProposal(proposal, cause)
							})
						}
					}
					mu.Lock()
					all = append(all, mine...)
					mu.Unlock()
				})
			}
		}
		ids := []uint64{1, 2, 3}
		for range 12 {
			time.Sleep(time.Duration(roll(2000)) * time.Millisecond)
			m := c.members[ids[roll(3)]]
			switch roll(5) {
			case 0:
				c.partition(m.id, true)
				time.Sleep(time.Duration(roll(9000)) * time.Millisecond)
				c.partition(m.id, false)
			case 1:
				m.state.applyTakes.Store(int64(roll(3000)) * int64(time.Millisecond))
				time.Sleep(time.Duration(roll(3000)) * time.Millisecond)
				m.state.applyTakes.Store(0)
			case 2: // nobody leads
				for _, id := range ids {
					c.partition(id, true)
				}
				time.Sleep(time.Duration(roll(9000)) * time.Millisecond)
				for _, id := range ids {
					c.partition(id, false)
				}
			case 3:
				m.crash()
				time.Sleep(time.Duration(roll(2000)) * time.Millisecond)
				m.restart()
			}
		}
		proposers.Wait()
		time.Sleep(3 * time.Second)
		reader := c.leader()
		if err := reader.replica().ReadBarrier(c.short()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(8 * time.Second) // RequestTimeout and a sweep
		for _, m := range c.members {
			w := &m.replica().window
			w.mu.Lock()
			if w.outside.Len() > 0 || w.waiting != 0 || len(w.places) > 0 || w.bytes != 0 || len(w.inside) > 0 {
				t.Errorf("member %d: %d proposals of %d bytes wait outside the window, %d of %d bytes are inside", m.id, w.outside.Len(), w.waiting, len(w.inside), w.bytes)
			}
			w.mu.Unlock()
		}
		now := c.members[1].replica()
		// The last ones end with their replica.
		stopped := &told{r: now, key: "stopped"}
		c.partition(1, true)
		if _, err := now.ProposeThen(putRequest(stopped.key, "x"), stopped); err != nil {
			t.Fatal(err)
		}
		now.Stop()
		after := &told{r: now, key: "after"}
		if _, err := now.ProposeThen(putRequest(after.key, "x"), after); err != nil {
			t.Fatal(err)
		}
		for _, e := range []*told{stopped, after} {
			if n := e.calls.Load(); n != 1 || !errors.Is(e.err, ErrStopped) {
				t.Errorf("%s: told %d times, %v", e.key, n, e.err)
			}
		}
		outcomes := map[string]int{}
		for _, e := range all {
			if n := e.calls.Load(); n != 1 {
				t.Errorf("%s: told %d times", e.key, n)
				continue
			}
			outcomes[fmt.Sprint(e.err)]++
			applied := reader.state.get(e.key) != ""
			switch {
			case e.at.After(e.due):
				t.Errorf("%s: told %v too late: %v", e.key, e.at.Sub(e.due), e.err)
			case e.err == nil && !applied:
				t.Errorf("%s: said to be applied, and is not", e.key)
			case applied && (errors.Is(e.err, context.Canceled) || errors.Is(e.err, context.DeadlineExceeded)):
				t.Errorf("%s: applied, and %v", e.key, e.err)
			case e.ahead:
				t.Errorf("%s: the result came before the applied index", e.key)
			}
		}
		t.Log(outcomes)
		c.close()
		for id, m := range c.members {
			if n := m.replica().metrics.Pending.Load(); n != 0 {
				t.Errorf("member %d counts %d proposals that have not ended", id, n)
			}
		}
	})
}

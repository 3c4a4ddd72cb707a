package admission

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// entering is a call that tries to enter a room.
type entering struct {
	hold *Hold
	err  error
	done chan struct{}
}

func enter(r *Room, ctx context.Context, client string, bytes int64) *entering {
	e := &entering{done: make(chan struct{})}
	go func() {
		e.hold, e.err = r.Enter(ctx, client, bytes, time.Minute)
		close(e.done)
	}()
	synctest.Wait()
	return e
}

func (e *entering) in() bool {
	select {
	case <-e.done:
		return e.err == nil
	default:
		return false
	}
}

// TestRoomIsFair: clients are let in in turn, however many calls one of them has.
func TestRoomIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRoom(100, nil)
		first := enter(r, t.Context(), "greedy", 60)
		var greedy, modest []*entering
		for range 5 {
			greedy = append(greedy, enter(r, t.Context(), "greedy", 60))
		}
		for range 2 {
			modest = append(modest, enter(r, t.Context(), "modest", 60))
		}
		if !first.in() || r.Held() != 60 {
			t.Fatalf("the first is in: %v; %d bytes are held", first.in(), r.Held())
		}
		var order []string
		for last := first; ; {
			last.hold.Release()
			synctest.Wait()
			now := []*entering(nil)
			for i, e := range greedy {
				if e.in() {
					order, now = append(order, "greedy"), append(now, e)
					greedy = slices.Delete(greedy, i, i+1)
					break
				}
			}
			for i, e := range modest {
				if e.in() {
					order, now = append(order, "modest"), append(now, e)
					modest = slices.Delete(modest, i, i+1)
					break
				}
			}
			if len(now) == 0 {
				break
			}
			if len(now) > 1 {
				t.Fatalf("%d calls of 60 bytes are in a room of 100", len(now))
			}
			last = now[0]
		}
		want := []string{"greedy", "modest", "greedy", "modest", "greedy", "greedy", "greedy"}
		if !slices.Equal(order, want) {
			t.Errorf("let in: %v, want %v", order, want)
		}
		if len(r.clients) != 0 || len(r.waiting) != 0 || r.queue.Len() != 0 {
			t.Errorf("the room remembers %d clients, %d calls", len(r.clients), len(r.waiting))
		}
	})
}

// TestRoomLeavesSome: one client leaves a quarter to others, who are let in past its calls.
func TestRoomLeavesSome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRoom(100, nil)
		a, b, c := enter(r, t.Context(), "greedy", 40), enter(r, t.Context(), "greedy", 35), enter(r, t.Context(), "greedy", 20)
		other := enter(r, t.Context(), "other", 25)
		if !a.in() || !b.in() || c.in() || !other.in() {
			t.Errorf("in: %v %v %v, the other %v", a.in(), b.in(), c.in(), other.in())
		}
		b.hold.Less(20)
		synctest.Wait()
		if !c.in() {
			t.Error("what was given back in part helped nobody")
		}
	})
}

// TestRoomAlone: whatever a call wants, alone it is let in, and it need not wait for what it was
// wrong about. Nothing small passes by a large one that waits.
func TestRoomAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRoom(100, nil)
		small := enter(r, t.Context(), "a", 1)
		large := enter(r, t.Context(), "b", 1000)
		late := enter(r, t.Context(), "c", 1)
		if !small.in() || large.in() || late.in() {
			t.Errorf("in: the small one %v, the large one %v, the late one %v", small.in(), large.in(), late.in())
		}
		small.hold.Set(500)
		small.hold.Set(0)
		synctest.Wait()
		if !large.in() || late.in() {
			t.Errorf("in: the large one %v, the late one %v", large.in(), late.in())
		}
		large.hold.Release()
		large.hold.Release()
		large.hold.Set(7)
		large.hold.Less(7)
		synctest.Wait()
		if !late.in() || r.Held() != 1 {
			t.Errorf("in: the late one %v; %d bytes are held", late.in(), r.Held())
		}
	})
}

// TestRoomGivesUp: who waits leaves with its context, or when those inside do not get on.
func TestRoomGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := 0
		r := NewRoom(100, func() { refused++ }) // with its lock, and so does this test
		stalled := enter(r, t.Context(), "stalled", 90)
		ctx, cancel := context.WithCancel(t.Context())
		cancelled, patient := enter(r, ctx, "a", 50), enter(r, t.Context(), "b", 50)
		cancel()
		<-cancelled.done
		if !errors.Is(cancelled.err, context.Canceled) {
			t.Errorf("cancelled: %v", cancelled.err)
		}
		time.Sleep(50 * time.Second)
		stalled.hold.Less(1) // it gets on
		time.Sleep(50 * time.Second)
		synctest.Wait()
		r.mu.Lock()
		early := refused
		r.mu.Unlock()
		if early != 0 {
			t.Error("refused although what is held moves")
		}
		time.Sleep(11 * time.Second)
		<-patient.done
		if !errors.Is(patient.err, ErrTooManyRequests) || refused != 1 {
			t.Errorf("after a minute without progress: %v, %d were refused", patient.err, refused)
		}
		stalled.hold.Release()
		if len(r.clients) != 0 || r.queue.Len() != 0 || r.Held() != 0 {
			t.Errorf("the room remembers %d clients, %d that wait, %d bytes", len(r.clients), r.queue.Len(), r.Held())
		}
	})
}

// TestRoomUnderLoad: calls of many clients that come, give up, correct themselves and go leave
// nothing behind.
func TestRoomUnderLoad(t *testing.T) {
	r := NewRoom(1000, nil)
	var calls sync.WaitGroup
	for i := range 50 {
		calls.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(i)))
			for range 200 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(random.IntN(1000))*time.Microsecond)
				h, err := r.Enter(ctx, fmt.Sprint(i%7), int64(random.IntN(600)), time.Minute)
				if err == nil {
					h.Set(int64(random.IntN(700)))
					runtime.Gosched()
					h.Less(int64(random.IntN(300)))
					h.Release()
				}
				cancel()
			}
		})
	}
	calls.Wait()
	if r.Held() != 0 || len(r.clients) != 0 || len(r.waiting) != 0 || r.queue.Len() != 0 {
		t.Errorf("%d bytes are held; the room remembers %d clients, %d calls", r.Held(), len(r.clients), len(r.waiting))
	}
}

// TestRoomForgotten: what is handed on and forgotten is released by the collector.
func TestRoomForgotten(t *testing.T) {
	r := NewRoom(100, nil)
	h, err := r.Enter(t.Context(), "a", 50, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	ReleaseWith(h, new([64]byte))
	for deadline := time.Now().Add(30 * time.Second); r.Held() != 0; runtime.GC() {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are held", r.Held())
		}
	}
}

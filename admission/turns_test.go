package admission

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// TestTurnsAreFair: a client with one call waits for one call of each other client, whatever they
// have waiting.
func TestTurnsAreFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := NewTurns(1, 100, 10)
		release, err := turns.Take(t.Context(), "flood")
		if err != nil {
			t.Fatal(err)
		}
		var order []string
		enter := func(client string) {
			go func() {
				release, err := turns.Take(t.Context(), client)
				if err != nil {
					t.Error(err)
					return
				}
				order = append(order, client) // under the turn
				release()
			}()
			synctest.Wait()
		}
		for range 50 {
			enter("flood")
		}
		for i := range 3 {
			enter(fmt.Sprintf("light %d", i))
		}
		release()
		synctest.Wait()
		if len(order) != 53 {
			t.Fatalf("%d turns", len(order))
		}
		if got := fmt.Sprint(order[:5]); got != "[flood light 0 light 1 light 2 flood]" {
			t.Errorf("got %s", got)
		}
		if turns.free != 1 || turns.queue.Len() != 0 || len(turns.clients) != 0 {
			t.Errorf("%+v", turns)
		}
	})
}

// TestTurnsAreBounded: a client with many waiting calls is refused, others are not; a call that
// gives up leaves nothing behind.
func TestTurnsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := NewTurns(2, 3, 2)
		for range 2 {
			if _, err := turns.Take(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		var gaveUp atomic.Int64
		wait := func(client string) {
			go func() {
				if _, err := turns.Take(ctx, client); errors.Is(err, context.Canceled) {
					gaveUp.Add(1)
				}
			}()
			synctest.Wait()
		}
		for range 3 {
			wait("a")
		}
		if _, err := turns.Take(t.Context(), "a"); !errors.Is(err, ErrTooManyWaiting) {
			t.Errorf("got %v", err)
		}
		wait("b")
		if _, err := turns.Take(t.Context(), "c"); !errors.Is(err, ErrTooManyWaiting) {
			t.Errorf("got %v", err)
		}
		cancel()
		synctest.Wait()
		if gaveUp.Load() != 4 || turns.queue.Len() != 0 || len(turns.clients) != 0 {
			t.Errorf("%d gave up, %+v", gaveUp.Load(), turns)
		}
		turns.release()
		if _, err := turns.Take(t.Context(), "c"); err != nil {
			t.Error(err)
		}
	})
}

package rolling

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/embed/belaytest"
)

// TestTurn: one run at a time. One that ended gives its turn away at once, one that was killed within
// its TTL; one that was stopped for longer finds another at work and ends.
func TestTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := belaytest.Cluster(t, 1)
		client := c.Client()
		of := func(client *clientv3.Client) *turn {
			return &turn{client: client, timeout: time.Second, say: func(string, ...any) {}}
		}
		begun, end, ended := make(chan struct{}), make(chan struct{}), make(chan error)
		work := func(ctx context.Context) error {
			begun <- struct{}{}
			select {
			case <-end:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		go func() { ended <- of(client).alone(t.Context(), work) }()
		<-begun
		time.Sleep(time.Minute) // it is renewed
		var ran atomic.Bool
		if err := of(client).alone(t.Context(), func(context.Context) error { ran.Store(true); return nil }); !errors.Is(err, errOther) || ran.Load() {
			t.Errorf("beside another: %v, ran %v", err, ran.Load())
		}
		end <- struct{}{}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if left, err := client.Leases(t.Context()); err != nil || len(left.Leases) != 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}

		// One that is killed.
		if err := of(client).take(t.Context()); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := of(client).alone(t.Context(), func(context.Context) error { ran.Store(true); return nil }); err != nil || !ran.Load() {
			t.Errorf("after one that was killed: %v, ran %v", err, ran.Load())
		}
		if waited := time.Since(began); waited > 2*turnTTL {
			t.Errorf("it waited %v", waited)
		}

		// One that was stopped for longer than its TTL, during which another began.
		first := of(client)
		if err := first.take(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(turnTTL + 5*time.Second)
		go func() { ended <- of(client).alone(t.Context(), work) }()
		<-begun
		if err := first.keep(t.Context()); !errors.Is(err, errOther) {
			t.Errorf("it goes on beside another: %v", err)
		}
		end <- struct{}{}
		if err := <-ended; err != nil {
			t.Error(err)
		}

		// One that was stopped, and nobody came.
		if err := first.take(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(turnTTL + 5*time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := first.keep(ctx); err != nil {
			t.Error(err)
		}
		if err := of(client).alone(t.Context(), func(context.Context) error { return nil }); !errors.Is(err, errOther) && err != nil {
			t.Error(err)
		}
	})
}

package server

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
)

// slowStore takes its time to compact.
type slowStore struct {
	takes time.Duration
	err   error
	times int
}

func (s *slowStore) Size() (total, inUse int64) { return 2, 1 }

func (s *slowStore) CompactAll(ctx context.Context) error {
	s.times++
	select {
	case <-time.After(s.takes):
		return s.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A caller of Defragment waits for the end, as long as he has time; then he is answered, and it goes
// on.
func TestDefragmentWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("the disk is broken")
		for _, c := range []struct {
			name          string
			takes         time.Duration
			timeout       time.Duration // of the call; 0: none
			stop          time.Duration // of the member; 0: not
			fails, want   error
			after         time.Duration // when the answer comes
			goesOn        bool
			runsAfterward bool
		}{
			{name: "in time", takes: time.Second, timeout: 5 * time.Second, after: time.Second},
			{name: "no deadline", takes: time.Hour, after: time.Hour},
			{name: "too long", takes: time.Minute, timeout: 5 * time.Second, after: 4500 * time.Millisecond, goesOn: true, runsAfterward: true},
			{name: "fails", takes: time.Second, fails: broken, want: broken, after: time.Second},
			{name: "stops", takes: time.Hour, stop: time.Second, want: rpctypes.ErrGRPCStopped, after: time.Second},
		} {
			store := &slowStore{takes: c.takes, err: c.fails}
			d := &defragmenter{store: store, life: newLifetime(), metrics: NewMetrics(prometheus.NewRegistry(), MetricsOptions{}), logger: zap.NewNop()}
			ctx, cancel := context.WithCancel(t.Context())
			if c.timeout > 0 {
				ctx, cancel = context.WithTimeout(t.Context(), c.timeout)
			}
			if c.stop > 0 {
				time.AfterFunc(c.stop, d.life.end)
			}
			began := time.Now()
			goesOn, err := d.wait(ctx, d.start())
			if took := time.Since(began); took != c.after || err != c.want || c.stop == 0 && goesOn != c.goesOn {
				t.Errorf("%s: %v after %v, goes on: %v", c.name, err, took, goesOn)
			}
			synctest.Wait()
			if d.running() != c.runsAfterward || store.times != 1 {
				t.Errorf("%s: it runs: %v, %d times", c.name, d.running(), store.times)
			}
			cancel()
			d.life.end()
			if d.running() {
				t.Errorf("%s: it runs on a member that has stopped", c.name)
			}
		}
	})
}

// Those who come while one runs share the next, since that which runs may have passed over what they
// removed.
func TestDefragmentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &slowStore{takes: time.Second}
		d := &defragmenter{store: store, life: newLifetime(), metrics: NewMetrics(prometheus.NewRegistry(), MetricsOptions{}), logger: zap.NewNop()}
		defer d.life.end()
		began := time.Now()
		d.start()
		time.Sleep(time.Second / 2)
		second := d.start()
		if d.start() != second {
			t.Error("two that came while one ran do not share the next")
		}
		if goesOn, err := d.wait(t.Context(), second); goesOn || err != nil || time.Since(began) != 2*time.Second || store.times != 2 {
			t.Errorf("%v, goes on: %v, after %v and %d times", err, goesOn, time.Since(began), store.times)
		}
		synctest.Wait()
		if d.running() {
			t.Error("it runs for nobody")
		}
		if _, err := d.wait(t.Context(), d.start()); err != nil || store.times != 3 {
			t.Errorf("once more: %v, %d times", err, store.times)
		}
	})
}

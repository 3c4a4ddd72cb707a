package check

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/check/cluster"
)

// TestStopUnderLoad stops each leader of three in order, by SIGTERM, under a load on all members: the
// leader hands over first and lets open calls end, so that no client gets an error.
func TestStopUnderLoad(t *testing.T) {
	t.Parallel()
	c := startCluster(t, cluster.Config{Kind: checkKind(t), Size: 3})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var done atomic.Int64
	var wg sync.WaitGroup
	over := make(chan struct{})
	var mu sync.Mutex
	failed := map[string]int{}
	var longest time.Duration
	run := func(what string, call func(ctx context.Context, i int) error) {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-over:
					return
				default:
				}
				start := time.Now()
				call1, cancel := context.WithTimeout(ctx, 5*time.Second)
				err := call(call1, i)
				cancel()
				took := time.Since(start)
				mu.Lock()
				longest = max(longest, took)
				if err != nil {
					failed[what+": "+err.Error()]++
				}
				mu.Unlock()
				done.Add(1)
			}
		})
	}
	for w := range 8 {
		client := admin(t, c.Members...)
		run("put", func(ctx context.Context, i int) error {
			_, err := client.Put(ctx, fmt.Sprintf("put%d", w), fmt.Sprint(i))
			return err
		})
		if w%2 == 0 {
			run("get", func(ctx context.Context, i int) error {
				_, err := client.Get(ctx, fmt.Sprintf("put%d", w))
				return err
			})
		}
	}
	lessor := admin(t, c.Members...)
	lease, err := lessor.Grant(ctx, 3)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lessor.Put(ctx, "leased", "", clientv3.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}
	kept, enough := context.WithCancel(ctx)
	defer enough()
	alive, err := lessor.KeepAlive(kept, lease.ID)
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() {
		for range alive { // taken, so that the client has no cause to complain
		}
	})
	more := func() {
		t.Helper()
		want := done.Load() + 200
		if err := eventually(ctx, func() error {
			if n := done.Load(); n < want {
				return fmt.Errorf("%d of %d calls", n, want)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 3 {
		more()
		var leader *cluster.Member
		for _, m := range c.Members {
			st, err := lessor.Status(ctx, m.Endpoint())
			if err != nil {
				t.Fatal(err)
			}
			if st.Leader == st.Header.MemberId {
				leader = m
			}
		}
		if leader == nil {
			t.Fatal("no leader")
		}
		start := time.Now()
		if err := leader.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		t.Logf("round %d: %s stopped in %v", round, leader.Name, time.Since(start).Round(time.Millisecond))
		more()
		if err := leader.Start(); err != nil {
			t.Fatal(err)
		}
		if err := leader.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if resp, err := lessor.Get(ctx, "leased"); err != nil || len(resp.Kvs) != 1 {
		t.Errorf("the lease that was kept alive: %v, %v", resp, err)
	}
	close(over)
	enough()
	wg.Wait()
	for what, n := range failed {
		t.Errorf("%d times %s", n, what)
	}
	t.Logf("%d calls, the longest %v", done.Load(), longest.Round(time.Millisecond))
}

package belaytest_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/embed/belaytest"
)

// put tries until it is acknowledged: what was under way when a leader ended may have been lost.
func put(t *testing.T, client *clientv3.Client, key, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		_, err := client.Put(ctx, key, value)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("put %s: %v", key, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func get(t *testing.T, client *clientv3.Client, key string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := client.Get(ctx, key)
	if err != nil {
		t.Fatalf("get %s: %v", key, err)
	}
	if len(r.Kvs) == 0 {
		return ""
	}
	return string(r.Kvs[0].Value)
}

// TestVirtualTime: a lease of ten minutes ends after ten minutes, which take seconds.
func TestVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := belaytest.Cluster(t, 3)
		client := c.Client()
		lease, err := client.Grant(t.Context(), 600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Put(t.Context(), "k", "v", clientv3.WithLease(lease.ID)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(9 * time.Minute)
		if get(t, client, "k") != "v" {
			t.Error("gone before the lease has ended")
		}
		time.Sleep(2 * time.Minute)
		if get(t, client, "k") != "" {
			t.Error("still there after the lease has ended")
		}
	})
}

// TestRenewalsThroughFollowers: a client that is connected to followers alone keeps its leases, over
// whatever becomes of their connections to the leader, and of the leader.
func TestRenewalsThroughFollowers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := belaytest.Cluster(t, 3)
		l := c.Leader()
		client := c.ClientOf((l + 1) % 3)
		const ttl = 20
		var leases []clientv3.LeaseID
		for i := range 10 {
			lease, err := client.Grant(t.Context(), ttl)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.Put(t.Context(), fmt.Sprint("k", i), "v", clientv3.WithLease(lease.ID)); err != nil {
				t.Fatal(err)
			}
			alive, err := client.KeepAlive(t.Context(), lease.ID)
			if err != nil {
				t.Fatal(err)
			}
			leases = append(leases, lease.ID)
			go func() {
				for range alive {
				}
			}()
		}
		time.Sleep(ttl * time.Second)
		for _, fault := range []func() (end func()){
			func() func() { c.Cut(l, (l+1)%3); return c.Join },
			func() func() { c.Kill(l); return func() { c.Restart(l) } },
			func() func() { c.Delay(200 * time.Millisecond); return c.Join },
		} {
			end := fault()
			time.Sleep(ttl / 2 * time.Second)
			end()
			time.Sleep(ttl * time.Second)
		}
		for _, id := range leases {
			if left, err := client.TimeToLive(t.Context(), id); err != nil || left.TTL < ttl/4 {
				t.Errorf("lease %x has %v seconds left: %v", id, left, err)
			}
		}
	})
}

// TestFaults: what is acknowledged survives every fault that C has.
func TestFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := belaytest.Cluster(t, 3)
		client := c.Client()
		for i, fault := range []func(leader int) (end func()){
			func(l int) func() { c.Kill(l); return func() { c.Restart(l) } },
			func(l int) func() { c.PowerOff(l); return func() { c.Restart(l) } },
			func(l int) func() { c.Stop(l); return func() { c.Restart(l) } },
			func(l int) func() { c.Isolate(l); return c.Join },
			func(l int) func() { c.Cut(l, (l+1)%3); return c.Join },
			func(l int) func() { c.StallDisk(l); return func() { c.RepairDisk(l) } },
			func(l int) func() { c.SlowDisk(l, time.Second); return func() { c.RepairDisk(l) } },
			func(l int) func() { c.Delay(100 * time.Millisecond); return c.Join },
		} {
			end := fault(c.Leader())
			for j := range 5 {
				put(t, client, fmt.Sprintf("k%d/%d", i, j), "v")
			}
			end()
			c.CheckEqual()
			for j := range 5 {
				if key := fmt.Sprintf("k%d/%d", i, j); get(t, client, key) != "v" {
					t.Errorf("%s is lost", key)
				}
			}
		}
	})
}

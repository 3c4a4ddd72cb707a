package check

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/proof/cluster"
)

// TestCorruptBytes alters one byte in the middle of each table that a member's store consists of,
// as a bad disk would, and lets it run on among healthy ones that are compared with it.
func TestCorruptBytes(t *testing.T) {
	onlyBelay(t)
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 3, Args: []string{"--corrupt-check-time=1s"}})
	bad := c.Members[1]
	tables := fillAndCorrupt(ctx, t, c, bad)
	from := logSize(bad)
	if err := bad.Start(); err != nil {
		t.Fatal(err)
	}
	// The check of the leader reads it all; the member that cannot ends, by itself.
	exits(t, bad, from, "is corrupt (restore this member from its peers", filepath.Base(tables[0]))
	rest := admin(t, c.Members[0], c.Members[2])
	if list, err := rest.AlarmList(ctx); err != nil || len(list.Alarms) != 0 {
		t.Errorf("alarms of a cluster whose data is whole: %v, %v", list, err)
	}
	if _, err := rest.Put(ctx, "after", ""); err != nil {
		t.Error(err)
	}

	// As it says: removed, emptied, added again.
	list, err := rest.MemberList(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list.Members {
		if e.Name != bad.Name {
			continue
		}
		if err := eventually(ctx, func() error { _, err := rest.MemberRemove(ctx, e.ID); return err }); err != nil {
			t.Fatal(err)
		}
	}
	if err := eventually(ctx, func() error { _, err := rest.MemberAdd(ctx, []string{bad.PeerURL}); return err }); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(bad.DataDir); err != nil {
		t.Fatal(err)
	}
	bad.SetArgs(existing)
	if err := bad.Start(); err != nil {
		t.Fatal(err)
	}
	if err := bad.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if resp, err := newClient(t, []string{bad.Endpoint()}).Get(ctx, "key", clientv3.WithPrefix(), clientv3.WithCountOnly()); err != nil || resp.Count != 2000 {
		t.Errorf("%v, %v", resp, err)
	}
}

// TestCorruptBytesAlone is the same with nobody to take over: the member keeps running, reports
// what it cannot read, and never answers without it.
func TestCorruptBytesAlone(t *testing.T) {
	onlyBelay(t)
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 1})
	m := c.Members[0]
	fillAndCorrupt(ctx, t, c, m)
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	if err := m.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	client := newClient(t, c.Endpoints())
	if resp, err := client.Get(ctx, "key", clientv3.WithPrefix()); err == nil || !strings.Contains(err.Error(), "is corrupt") {
		t.Errorf("a read over the damaged block: %d keys, %v", len(resp.Kvs), err)
	}
	if resp, err := client.Get(ctx, "key00000"); err != nil || len(resp.Kvs) != 1 {
		t.Errorf("a key in a whole block: %v, %v", resp, err)
	}
	if _, err := client.Put(ctx, "after", ""); err != nil {
		t.Error(err)
	}
}

// fillAndCorrupt writes 2,000 keys, stops m, and alters one byte in the middle of each of its
// tables.
func fillAndCorrupt(ctx context.Context, t *testing.T, c *cluster.Cluster, m *cluster.Member) (tables []string) {
	t.Helper()
	client := newClient(t, c.Endpoints())
	var wg sync.WaitGroup
	for w := range 20 {
		wg.Go(func() {
			for i := w; i < 2000; i += 20 {
				if _, err := client.Put(ctx, fmt.Sprintf("key%05d", i), strings.Repeat("value", 200)+fmt.Sprint(i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := m.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	tables, err := filepath.Glob(filepath.Join(m.DataDir, "member", "store", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("no tables: %v", err)
	}
	for _, name := range tables {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 0x10
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return tables
}

package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/proof/cluster"
)

// verify reads everything back. All members are up and the load has ended; only the watcher and the
// lease still run.
//
// lost and doubled count acknowledged writes; faults lists everything that is wrong.
func (l *load) verify(ctx context.Context, c *cluster.Cluster) (lost, doubled int, faults []string) {
	say := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	cl, err := newClient(c.Endpoints())
	if err != nil {
		return 0, 0, []string{err.Error()}
	}
	defer cl.Close()

	// What exists, according to a linearizable read.
	there := make(map[string]seenEvent)
	var rev int64
	for from := writePrefix; ; {
		resp, err := cl.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(writePrefix)), clientv3.WithLimit(5000), clientv3.WithRev(rev))
		if err != nil {
			return 0, 0, []string{"read back: " + errText(err)}
		}
		if rev == 0 {
			rev = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			there[string(kv.Key)] = seenEvent{string(kv.Key), string(kv.Value), kv.ModRevision, kv.Version}
		}
		if !resp.More {
			break
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
	for _, w := range l.acked {
		got, ok := there[w.key]
		switch {
		case !ok || got.value != w.value:
			lost++
		case got.version != 1 || got.rev != w.rev:
			doubled++
		}
	}

	// The watcher: each write that exists, once and in order, and no other.
	deadline := time.Now().Add(10 * time.Second)
	for {
		l.mu.Lock()
		n := len(l.events)
		l.mu.Unlock()
		if n >= len(there) || time.Now().After(deadline) || ctx.Err() != nil {
			break
		}
		time.Sleep(20 * time.Millisecond) // polled, until the deadline
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.watchErr != "" {
		say("the watch ended: %s", l.watchErr)
	}
	seen := make(map[string]int)
	last := int64(0)
	for _, e := range l.events {
		seen[e.key]++
		if got, ok := there[e.key]; !ok || got.rev != e.rev {
			say("the watcher saw %s at revision %d, which is not there", e.key, e.rev)
		}
		if e.rev <= last {
			say("the watcher saw revision %d after %d", e.rev, last)
		}
		last = max(last, e.rev)
	}
	missed, twice := 0, 0
	for key := range there {
		switch n := seen[key]; {
		case n == 0:
			missed++
		case n > 1:
			twice++
		}
	}
	if missed > 0 || twice > 0 {
		say("the watcher missed %d of %d events and saw %d twice", missed, len(there), twice)
	}
	if lost > 0 {
		say("%d acknowledged writes are lost", lost)
	}
	if doubled > 0 {
		say("%d acknowledged writes are there more than once", doubled)
	}
	if n := len(l.stale); n > 0 {
		say("%d stale reads, the first: %s", n, l.stale[0])
	}
	if l.leaseErr != "" {
		say("%s", l.leaseErr)
	} else if ttl, err := cl.TimeToLive(ctx, l.leaseID); err != nil || ttl.TTL <= 0 {
		say("the lease that was kept alive is gone (%v)", err)
	}
	faults = append(faults, sameHash(ctx, c, rev)...)
	if len(faults) > 8 {
		faults = append(faults[:8:8], fmt.Sprintf("and %d more", len(faults)-8))
	}
	return lost, doubled, faults
}

// sameHash requires that all members hold the same history up to rev.
func sameHash(ctx context.Context, c *cluster.Cluster, rev int64) []string {
	var hashes []uint32
	for _, m := range c.Members {
		conn, err := m.Dial()
		if err != nil {
			return []string{err.Error()}
		}
		// A linearizable read first: then this member has applied rev.
		_, err = pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte("x")})
		if err == nil {
			var h *pb.HashKVResponse
			if h, err = pb.NewMaintenanceClient(conn).HashKV(ctx, &pb.HashKVRequest{Revision: rev}); err == nil {
				hashes = append(hashes, h.Hash)
			}
		}
		conn.Close()
		if err != nil {
			return []string{fmt.Sprintf("HashKV of %s: %s", m.Name, errText(err))}
		}
	}
	if slices.ContainsFunc(hashes, func(h uint32) bool { return h != hashes[0] }) {
		return []string{fmt.Sprintf("at revision %d the members have the hashes %08x", rev, hashes)}
	}
	return nil
}

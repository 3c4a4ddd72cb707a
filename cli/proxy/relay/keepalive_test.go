package relay

import (
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestLeases: which keepalives go to the cluster, and what the others are told.
func TestLeases(t *testing.T) {
	t.Parallel()
	var asked []int64
	ls := &leases{byID: make(map[int64]*keptLease)}
	ls.ask = func(id int64) { asked = append(asked, id) }
	c, d := newKeepClient(), newKeepClient()
	start := time.Now()
	at := func(d time.Duration) time.Time { return start.Add(d) }
	expect := func(what string, requests int, clients map[*keepClient][]int64) {
		t.Helper()
		if len(asked) != requests {
			t.Errorf("%s: the cluster was asked %d times, not %d", what, len(asked), requests)
		}
		asked = nil
		for client, ttls := range clients {
			got, _ := client.take()
			if len(got) != len(ttls) {
				t.Fatalf("%s: %d answers, not %d", what, len(got), len(ttls))
			}
			for i, r := range got {
				if r.TTL != ttls[i] || r.ID != 7 {
					t.Errorf("%s: %v, not TTL %d", what, r, ttls[i])
				}
			}
		}
	}
	ls.request(c, 7, at(0))
	ls.request(d, 7, at(0))
	ls.request(c, 7, at(0))
	expect("while the cluster is asked", 1, map[*keepClient][]int64{c: nil, d: nil})
	ls.answer(&pb.LeaseKeepAliveResponse{ID: 7, TTL: 12})
	expect("its answer", 0, map[*keepClient][]int64{c: {12, 12}, d: {12}})
	ls.request(d, 7, at(1))
	ls.request(d, 7, at(2500*time.Millisecond))
	expect("soon after", 0, map[*keepClient][]int64{d: {11, 9}})
	ls.request(d, 7, at(4*time.Second))
	expect("a third of the TTL after", 1, map[*keepClient][]int64{d: nil})
	// The stream breaks before the answer.
	ls.again(func(int64) bool { return true }, at(5*time.Second))
	expect("on another stream", 1, map[*keepClient][]int64{d: nil})
	ls.answer(&pb.LeaseKeepAliveResponse{ID: 7, TTL: 12})
	expect("its answer", 0, map[*keepClient][]int64{d: {12}})
	ls.request(d, 7, at(6*time.Second))
	expect("counted from the second request", 0, map[*keepClient][]int64{d: {11}})
	ls.forget(7)
	ls.request(d, 7, at(6*time.Second))
	expect("after a revoke", 1, nil)
	ls.answer(&pb.LeaseKeepAliveResponse{ID: 7})
	expect("a lease that is gone", 0, map[*keepClient][]int64{d: {0}})
	ls.request(d, 7, at(7*time.Second))
	expect("asked again", 1, nil)
	ls.forget(7)
	ls.answer(&pb.LeaseKeepAliveResponse{ID: 7, TTL: 3600})
	expect("revoked while the cluster was asked", 0, map[*keepClient][]int64{d: {3600}})
	ls.request(d, 7, at(7*time.Second))
	expect("such an answer is not kept", 1, nil)
	ls.answer(&pb.LeaseKeepAliveResponse{ID: 7, TTL: 3600})
	expect("a long TTL", 0, map[*keepClient][]int64{d: {3600}})
	ls.request(d, 7, at(7*time.Second+maxPace))
	expect("is not believed for long", 1, nil)
	ls.fail(func(id int64) bool { return laneOf(id) == laneOf(8) }, status.Error(codes.Unavailable, "x"))
	if _, err := d.take(); err != nil {
		t.Errorf("another stream's end: %v", err)
	}
	ls.fail(func(id int64) bool { return laneOf(id) == laneOf(7) }, status.Error(codes.Unavailable, "x"))
	if _, err := d.take(); err == nil {
		t.Error("who waits is not told")
	}
	ls.request(c, 9, at(0))
	ls.answer(&pb.LeaseKeepAliveResponse{ID: 9, TTL: 12})
	ls.sweep(at(time.Second))
	if len(ls.byID) != 1 {
		t.Errorf("%d leases are known", len(ls.byID))
	}
	ls.sweep(at(4 * time.Second))
	if len(ls.byID) != 0 {
		t.Errorf("%d leases are known that nobody keeps alive", len(ls.byID))
	}
}

// TestKeepAlivesRequireLeader: who asked for it is told that there is no leader while it waits for
// nothing; others are told when they wait.
func TestKeepAlivesRequireLeader(t *testing.T) {
	t.Parallel()
	for hasLeader, told := range map[string]bool{rpctypes.MetadataHasLeader: true, "": false} {
		h := &keepHub{hubLife: hubLife{who: caller{hasLeader: hasLeader}}}
		h.leases = leases{byID: make(map[int64]*keptLease), ask: func(int64) {}}
		if told {
			h.clients = map[*keepClient]bool{}
		}
		for i := range h.lanes {
			h.lanes[i].begun = true // and never has a stream
		}
		idle, gone, waits := newKeepClient(), newKeepClient(), newKeepClient()
		for _, c := range []*keepClient{idle, gone, waits} {
			h.handle(keepEvent{kind: keepJoined, client: c})
		}
		h.handle(keepEvent{kind: keepLeft, client: gone})
		h.handle(keepEvent{kind: keepRequested, client: waits, id: 8})
		h.handle(keepEvent{kind: keepHopeless, err: rpctypes.ErrGRPCNoLeader})
		for c, want := range map[*keepClient]bool{idle: told, gone: false, waits: true} {
			if _, ended := c.take(); noLeader(ended) != want {
				t.Errorf("with hasleader %q: told %v, want it told: %v", hasLeader, ended, want)
			}
		}
	}
}

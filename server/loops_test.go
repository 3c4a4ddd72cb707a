package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/belaydb/belay/admission"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/state"
)

// run runs a loop until the test ends.
func run(t *testing.T, loop func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); loop(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

func TestWindow(t *testing.T) {
	w := window{size: 3}
	for i, want := range []int64{10, 10, 10, 11, 12} {
		w.add(int64(10 + i))
		if w.oldest() != want {
			t.Fatalf("after %d: %d, want %d", 10+i, w.oldest(), want)
		}
	}
}

func TestCompactPeriodically(t *testing.T) {
	m := newMember(t, func(c *Config, _ *state.Config) {
		c.Compaction, c.CompactPeriod = CompactPeriodic, 200*time.Millisecond
	})
	for i := range 5 {
		m.put("k", fmt.Sprint(i))
	}
	start := time.Now()
	run(t, m.autoCompact)
	until(t, "a compaction", func() bool { return m.kvStore.CompactRevision() == 6 })
	if early := time.Since(start); early < 200*time.Millisecond {
		t.Fatalf("compacted after %v: the history of a period was not kept", early)
	}
	m.put("k", "x")
	until(t, "the next", func() bool { return m.kvStore.CompactRevision() == 7 })
}

func TestCompactRetaining(t *testing.T) {
	m := newMember(t, func(c *Config, _ *state.Config) { c.Compaction, c.CompactRetained = CompactRevision, 10 })
	last := m.compactRetaining(t.Context(), 0)
	if last != 0 {
		t.Fatalf("compacted to %d with nothing to spare", last)
	}
	for i := range 20 { // revision 21
		m.put("k", fmt.Sprint(i))
	}
	m.replica.set(func(r *solo) { r.leader = 2 })
	if last = m.compactRetaining(t.Context(), last); last != 0 {
		t.Fatalf("compacted to %d while another leads", last)
	}
	m.replica.set(func(r *solo) { r.leader = testMember })
	if last = m.compactRetaining(t.Context(), last); last != 11 || m.kvStore.CompactRevision() != 11 {
		t.Fatalf("compacted to %d", last)
	}
	if again := m.compactRetaining(t.Context(), last); again != 11 {
		t.Fatalf("compacted to %d", again)
	}
	// Compacted by somebody else meanwhile: that is no failure.
	m.put("k", "x")
	_, err := m.kv.Compact(t.Context(), &pb.CompactionRequest{Revision: 15})
	must(t, err)
	if last = m.compactRetaining(t.Context(), last); last != 12 {
		t.Fatalf("compacted to %d", last)
	}
	m.put("k", "y")
	m.replica.set(func(r *solo) { r.proposeErr = errors.New("no") })
	if again := m.compactRetaining(t.Context(), last); again != 12 {
		t.Fatalf("a failed compaction counts as done: %d", again)
	}
}

func TestFullDiskRaisesAlarm(t *testing.T) {
	m := newMember(t, func(c *Config, _ *state.Config) {
		c.MinFreeBytes = 1000
		c.FreeBytes = func() (uint64, error) { return 999, nil }
	})
	run(t, m.watchSpace)
	until(t, "the alarm", m.noSpaceOfOwn)
	n := len(m.replica.requests())
	m.raiseNoSpace(func() {}) // it is active: nothing to propose
	if got := len(m.replica.requests()); got != n {
		t.Fatalf("%d requests for an alarm that is active", got-n)
	}
}

// What is committed and not applied counts by its bytes, however young it is.
func TestBacklogBytesCloseTheGate(t *testing.T) {
	m := newMember(t, func(c *Config, _ *state.Config) {
		c.BacklogBytes = func(applied, committed uint64) int64 { return int64(committed-applied) << 30 }
	})
	run(t, m.watchAdmission)
	m.replica.set(func(r *solo) { r.backlog = 3 })
	until(t, "requests to be refused", func() bool {
		_, err := m.kv.Put(t.Context(), &pb.PutRequest{Key: []byte("k")})
		return err != nil && strings.Contains(err.Error(), admission.ErrTooManyRequests.Error())
	})
	m.replica.set(func(r *solo) { r.backlog = 0 })
	until(t, "requests to be let in", func() bool {
		_, err := m.kv.Put(t.Context(), &pb.PutRequest{Key: []byte("k")})
		return err == nil
	})
}

func TestPublishTriesUntilItSucceeds(t *testing.T) {
	m := newBareMember(t)
	m.addMember(testMember, "http://127.0.0.1:2380", false, false)
	m.replica.set(func(r *solo) { r.proposeErr = replica.ErrTimeout })
	run(t, m.publish)
	select {
	case <-m.Published():
		t.Fatal("published while proposals fail")
	case <-time.After(50 * time.Millisecond):
	}
	m.replica.set(func(r *solo) { r.proposeErr = nil })
	<-m.Published()
	if got := m.state.Member(testMember); got.Name != "one" || len(got.ClientURLs) != 1 {
		t.Fatalf("%+v", got)
	}
}

// A leader that comes back from a stall finds leases expired; another leads by
// now.
func TestNoRevocationByAFormerLeader(t *testing.T) {
	m := newMember(t)
	_, err := m.lease.LeaseGrant(t.Context(), &pb.LeaseGrantRequest{ID: 7, TTL: 1})
	must(t, err)
	m.clock.Add(int64(time.Hour))
	n := len(m.replica.requests())
	m.replica.set(func(r *solo) { r.leader, r.term = 2, r.term+1 })
	m.revokeExpired(t.Context())
	// The same member leads again, in a later term, before the table has heard.
	m.replica.set(func(r *solo) { r.leader, r.term = testMember, r.term+1 })
	m.revokeExpired(t.Context())
	if got := len(m.replica.requests()); got != n || !m.cfg.Leases.Exists(7) {
		t.Fatalf("%d requests, lease there: %v", got-n, m.cfg.Leases.Exists(7))
	}
}

// A member that is handed leadership is a candidate of its new term when it
// hears that there is no leader; its leases must expire in that term.
func TestCandidateIsPromoted(t *testing.T) {
	m := newMember(t)
	m.cfg.Leases.Demote(m.replica.Status().Term)
	m.replica.set(func(r *solo) { r.candidate = true })
	m.replica.setLeader(0, 1)
	term := m.replica.Status().Term
	heard := m.replica.statuses.Load()
	run(t, m.leadLeases)
	until(t, "the loop to see the candidate", func() bool { return m.replica.statuses.Load() > heard })
	m.replica.set(func(r *solo) { r.candidate = false })
	m.replica.setLeader(testMember, 0)
	until(t, "the promotion", func() bool {
		now, primary := m.cfg.Leases.Primary()
		return primary && now == term
	})
}

func TestHumanBytes(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 9: "9 B", 999: "999 B", 1000: "1.0 kB", 20480: "20 kB", 2 << 30: "2.1 GB", 123456789: "123 MB", -4096: "-4.1 kB",
	} {
		if got := HumanBytes(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

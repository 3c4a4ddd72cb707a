package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

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

func TestCompactPeriodically(t *testing.T) {
	m := newMember(t, func(c *Config, _ *state.Config) {
		c.Compaction.Period = 200 * time.Millisecond
	})
	for i := range 5 {
		m.put("k", fmt.Sprint(i))
	}
	start := time.Now()
	run(t, m.compactor.Run)
	until(t, "a compaction", func() bool { return m.cfg.KV.CompactRevision() == 6 })
	if early := time.Since(start); early < 200*time.Millisecond {
		t.Fatalf("compacted after %v: the history of a period was not kept", early)
	}
	m.put("k", "x")
	until(t, "the next", func() bool { return m.cfg.KV.CompactRevision() == 7 })
}

// TestCompactTo: compacted by somebody else meanwhile is no failure.
func TestCompactTo(t *testing.T) {
	m := newMember(t)
	for i := range 20 { // revision 21
		m.put("k", fmt.Sprint(i))
	}
	must(t, m.Server.kv.compactTo(t.Context(), 11))
	if rev := m.cfg.KV.CompactRevision(); rev != 11 {
		t.Fatalf("compacted to %d", rev)
	}
	must(t, m.Server.kv.compactTo(t.Context(), 11))
	must(t, m.Server.kv.compactTo(t.Context(), 10))
	m.replica.set(func(r *solo) { r.proposeErr = errors.New("no") })
	if err := m.Server.kv.compactTo(t.Context(), 12); err == nil {
		t.Fatal("a failed compaction counts as done")
	}
}

// noSpace reports whether this member's NOSPACE alarm is active.
func (m *member) noSpace() bool {
	active, _ := m.cfg.State.Alarm(pb.AlarmType_NOSPACE, testMember)
	return active
}

func TestFullDiskRaisesAlarm(t *testing.T) {
	m := newMember(t, func(c *Config, _ *state.Config) {
		c.MinFreeBytes = 1000
		c.FreeBytes = func() (uint64, error) { return 999, nil }
	})
	run(t, m.space.Run)
	until(t, "the alarm", m.noSpace)
	n := len(m.replica.requests())
	m.OverQuota() // it is active: nothing to propose
	if got := len(m.replica.requests()); got != n {
		t.Fatalf("%d requests for an alarm that is active", got-n)
	}
}

// What is committed and not applied counts by its bytes, however young it is.
func TestBacklogBytesCloseTheGate(t *testing.T) {
	m := newMember(t, func(c *Config, _ *state.Config) {
		c.BacklogBytes = func(applied, committed uint64) int64 { return int64(committed-applied) << 30 }
	})
	run(t, (&backlogSample{status: m.replica.Status, bytes: m.cfg.BacklogBytes, gate: m.cfg.Admission, lag: m.cfg.Metrics.admissionLag}).run)
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
	run(t, m.publisher.run)
	select {
	case <-m.Published():
		t.Fatal("published while proposals fail")
	case <-time.After(50 * time.Millisecond):
	}
	m.replica.set(func(r *solo) { r.proposeErr = nil })
	<-m.Published()
	if got := m.cfg.State.Member(testMember); got.Name != "one" || len(got.ClientURLs) != 1 {
		t.Fatalf("%+v", got)
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
	run(t, m.expiry.Run)
	until(t, "the loop to see the candidate", func() bool { return m.replica.statuses.Load() > heard })
	m.replica.set(func(r *solo) { r.candidate = false })
	m.replica.setLeader(testMember, 0)
	until(t, "the promotion", func() bool {
		now, primary := m.cfg.Leases.Primary()
		return primary && now == term
	})
}

// TestCompactedAlready: who asks for a compaction to its end (physical) waits for it, as on etcd, also
// where another one has scheduled it.
func TestCompactedAlready(t *testing.T) {
	m := newMember(t)
	for i := range 2500 { // three steps of a compaction, with pauses
		m.put("k", fmt.Sprint(i))
	}
	_, err := m.kv.Compact(t.Context(), &pb.CompactionRequest{Revision: 2501})
	must(t, err)
	_, err = m.kv.Compact(t.Context(), &pb.CompactionRequest{Revision: 2000, Physical: true})
	if !errors.Is(rpctypes.Error(err), rpctypes.ErrCompacted) {
		t.Fatalf("a revision that is compacted already: %v", err)
	}
	select {
	case <-m.cfg.KV.Compacted(2501):
	default:
		t.Fatal("answered before the compaction had ended")
	}
}

package leader

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/peers"
)

var errTimeout = errors.New("no quorum in time")

// leading is a Raft that leads in a term.
type leading struct {
	term    uint64
	leads   bool
	barrier error
}

func (l *leading) Role() (raft.StateType, uint64) {
	if l.leads {
		return raft.StateLeader, l.term
	}
	return raft.StateFollower, l.term
}
func (l *leading) LeaderChanged() <-chan struct{}        { return nil }
func (l *leading) ReadBarrier(ctx context.Context) error { return errors.Join(l.barrier, ctx.Err()) }
func (l *leading) ElectionTimeout() time.Duration        { return time.Second }

// expired is a lease table on which leases have expired in term 2.
type expired struct{ ids []lease.ID }

func (e expired) Promote(uint64, time.Duration) bool           { return true }
func (e expired) Demote(uint64)                                {}
func (e expired) Expired(int) (uint64, []lease.ID)             { return 2, e.ids }
func (e expired) Checkpoints(int) (uint64, []lease.Checkpoint) { return 0, nil }
func (e expired) Noted([]lease.Checkpoint, bool)               {}

// promoted is a lease table that notes by how much a promotion extends.
type promoted struct {
	expired
	extend time.Duration
	done   context.CancelFunc
}

func (p *promoted) Promote(_ uint64, extend time.Duration) bool {
	p.extend = extend
	p.done()
	return true
}

// The leader before may answer renewals until others could be elected.
func TestPromotionExtendsByAnElectionTimeout(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p := &promoted{done: cancel}
	r := &leading{term: 2, leads: true}
	NewExpiry(ExpiryConfig{MemberID: 1, Raft: r, Leases: p, MayNote: func() bool { return false }}).Run(ctx)
	if p.extend != r.ElectionTimeout() {
		t.Errorf("each lease lives %v longer, want %v", p.extend, r.ElectionTimeout())
	}
}

// A leader that comes back from a stall finds leases expired; another leads by
// now, or the same one in a later term, before the table has heard.
func TestNoRevocationByAFormerLeader(t *testing.T) {
	r := &leading{term: 2, leads: true}
	var mu sync.Mutex
	var revoked []lease.ID
	expiredCount := 0
	fail := map[lease.ID]error{8: lease.ErrNotFound, 9: errors.New("no")}
	core, logs := observer.New(zap.InfoLevel)
	e := NewExpiry(ExpiryConfig{
		MemberID: 1, Raft: r, Leases: expired{[]lease.ID{7, 8, 9}}, Logger: zap.New(core),
		Revoke: func(_ context.Context, term uint64, id lease.ID) error {
			mu.Lock()
			defer mu.Unlock()
			if term != 2 {
				t.Errorf("proposed in term %d", term)
			}
			revoked = append(revoked, id)
			return fail[id]
		},
		Revoked: func() { mu.Lock(); defer mu.Unlock(); expiredCount++ },
	})
	for _, now := range []leading{{term: 3}, {term: 4, leads: true}, {term: 2, leads: true, barrier: errTimeout}} {
		*r = now
		if e.revoke(t.Context()); len(revoked) > 0 {
			t.Fatalf("%+v: revoked %x", now, revoked)
		}
	}
	*r = leading{term: 2, leads: true}
	logs.TakeAll()
	e.revoke(t.Context())
	slices.Sort(revoked)
	if !slices.Equal(revoked, []lease.ID{7, 8, 9}) || expiredCount != 1 {
		t.Errorf("revoked %x, %d have expired", revoked, expiredCount)
	}
	if l := logs.TakeAll(); len(l) != 1 || l[0].Message != "failed to revoke lease" || l[0].ContextMap()["lease-id"] != "0000000000000009" {
		t.Errorf("%v", l)
	}
}

// due is a lease table on which so many leases have expired at once.
type due struct {
	expired
	left int
}

func (d *due) Expired(limit int) (term uint64, ids []lease.ID) {
	for len(ids) < limit && d.left > 0 {
		ids = append(ids, lease.ID(d.left))
		d.left--
	}
	return 2, ids
}

// TestExpiryKeepsUp: leases that expire faster than 500 in each half second, which is what etcd
// revokes, are revoked at the tick after it all the same.
func TestExpiryKeepsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const leases = 20_000
		var revoked atomic.Int64
		e := NewExpiry(ExpiryConfig{
			MemberID: 1, Raft: &leading{term: 2, leads: true}, Leases: &due{left: leases}, MayNote: func() bool { return false },
			Revoke:  func(context.Context, uint64, lease.ID) error { time.Sleep(time.Microsecond); return nil },
			Revoked: func() { revoked.Add(1) },
		})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { e.lead(ctx, 2, nil) })
		time.Sleep(2*expiryInterval - time.Millisecond)
		if n := revoked.Load(); n != leases {
			t.Errorf("%d of %d leases are revoked before the second tick", n, leases)
		}
		cancel()
		wg.Wait()
	})
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

// rig is member 1 of a cluster whose others answer as told.
type rig struct {
	*Corruption
	leading
	own         []covered // one answer after the other, the last for ever
	compactions []mvcc.CompactionHash
	peers       func(round int, rev int64, of string) []peerHash
	alone       bool // a cluster of one

	rounds   int
	raised   []uint64
	outcomes []string
	logs     *observer.ObservedLogs
}

func newRig(r *rig) *rig {
	core, logs := observer.New(zap.InfoLevel)
	r.logs = logs
	r.Corruption = NewCorruption(CorruptionConfig{
		MemberID: 1, Timeout: time.Second, Raft: r, Data: r, Logger: zap.New(core),
		Raise:   func(id uint64) { r.raised = append(r.raised, id) },
		Outcome: func(check, outcome string) { r.outcomes = append(r.outcomes, check+" "+outcome) },
	})
	r.others = answers{r}
	return r
}

func (r *rig) Hash(context.Context) (hash uint32, compactRev, rev int64, err error) {
	h := r.own[0]
	if len(r.own) > 1 {
		r.own = r.own[1:]
	}
	return h.hash, h.compactRev, h.rev, nil
}
func (r *rig) Position() (rev, compactRev int64)       { return r.own[0].rev, r.own[0].compactRev }
func (r *rig) CompactionHashes() []mvcc.CompactionHash { return slices.Clone(r.compactions) }

func (r *rig) texts() (texts []string) {
	for _, e := range r.logs.TakeAll() {
		texts = append(texts, e.Message)
	}
	return texts
}

type answers struct{ r *rig }

func (a answers) hashes(_ context.Context, rev int64, of string, _ time.Duration) []peerHash {
	a.r.rounds++
	return a.r.peers(a.r.rounds, rev, of)
}

func (a answers) others() []*command.Member {
	if a.r.alone {
		return nil
	}
	return []*command.Member{{ID: 2}, {ID: 3}}
}

// both is what members 2 and 3 answer: a hash, or why there is none.
func both(rev, compactRev int64, hashes ...any) (peers []peerHash) {
	for i, h := range hashes {
		p := peerHash{id: uint64(i + 2), current: rev, covered: covered{rev: rev, compactRev: compactRev}}
		switch h := h.(type) {
		case int:
			p.hash = uint32(h)
		case error:
			p.err = h
		}
		peers = append(peers, p)
	}
	return peers
}

// Only what is found twice stops a cluster.
func TestPeriodicCheckLooksTwice(t *testing.T) {
	for name, c := range map[string]struct {
		first, second int // hashes of member 3
		raised        []uint64
		outcome       string
	}{
		"equal":                     {7, 7, nil, outcomeEqual},
		"different":                 {8, 8, []uint64{3}, outcomeMismatch},
		"gone when looked at again": {8, 7, nil, outcomeEqual},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(&rig{own: []covered{{9, 3, 7}}, peers: func(round int, rev int64, of string) []peerHash {
				if of != peers.HashOfState {
					t.Errorf("asked for %q", of)
				}
				return both(rev, 3, 7, []int{c.first, c.second}[round-1])
			}})
			if err := r.periodic(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(r.raised, c.raised) || !slices.Equal(r.outcomes, []string{"periodic " + c.outcome}) {
				t.Errorf("alarms for %x (want %x), %q (want %q)", r.raised, c.raised, r.outcomes, c.outcome)
			}
			if found := slices.Contains(r.texts(), "same compact revision then hashes must match"); found != (len(c.raised) > 0) {
				t.Errorf("told: %v", found)
			}
		})
	}
	// This member's own reads differ, each time.
	r := newRig(&rig{own: []covered{{9, 3, 7}, {9, 3, 8}, {9, 3, 7}, {9, 3, 8}}, peers: func(_ int, rev int64, _ string) []peerHash { return both(rev, 3, 7, 7) }})
	if err := r.periodic(t.Context()); err != nil || !slices.Equal(r.raised, []uint64{1}) {
		t.Errorf("alarms for %x, %v", r.raised, err)
	}
	r = newRig(&rig{own: []covered{{9, 3, 7}}, peers: func(_ int, rev int64, _ string) []peerHash { return both(rev, 3, 7, 7) }})
	r.barrier = errTimeout
	if err := r.periodic(t.Context()); err == nil || !slices.Equal(r.outcomes, []string{"periodic failed"}) {
		t.Errorf("without a barrier: %v, %q", err, r.outcomes)
	}
}

func TestInitialCheck(t *testing.T) {
	r := newRig(&rig{own: []covered{{9, 3, 7}}, peers: func(_ int, rev int64, _ string) []peerHash { return both(rev, 3, 7, 8) }})
	if err := r.Initial(t.Context()); err != nil || !slices.Equal(r.outcomes, []string{"initial mismatch"}) {
		t.Errorf("%v, %q", err, r.outcomes)
	}
	r = newRig(&rig{own: []covered{{9, 3, 7}}, peers: func(_ int, rev int64, _ string) []peerHash { return both(rev, 3, 8, 8) }})
	if err := r.Initial(t.Context()); err == nil || err.Error() != "1 found data inconsistency with peers" {
		t.Errorf("%v", err)
	}
	if texts := r.texts(); !slices.Contains(texts, "checkInitialHashKV failed") {
		t.Errorf("%q", texts)
	}
}

// The newest compaction that all have is compared; what could not be compared is said once.
func TestCompactionCheck(t *testing.T) {
	two := []mvcc.CompactionHash{{Revision: 3, CompactRevision: -1, Hash: 6}, {Revision: 9, CompactRevision: 3, Hash: 7}}
	for name, c := range map[string]struct {
		newest, older []any // answers about the two compactions
		raised        []uint64
		checked       int64
		outcome       string
		text          string
	}{
		"all equal":              {newest: []any{7, 7}, checked: 9, outcome: outcomeEqual, text: "successfully checked hash on whole cluster"},
		"a follower":             {newest: []any{7, 8}, raised: []uint64{3}, outcome: outcomeMismatch, text: "Detected compaction hash mismatch"},
		"one has only the older": {newest: []any{7, ErrNoCompactionHash}, older: []any{6, 6}, checked: 3, outcome: outcomeEqual, text: "Skipped peer's hash"},
		"one is down":            {newest: []any{7, errDown}, older: []any{6, errDown}, outcome: outcomeIncomplete, text: "skipped revision in compaction hash check; was not able to check all peers"},
		"one is down, and one differs in the older": {newest: []any{7, errDown}, older: []any{5, errDown}, raised: []uint64{0}, outcome: outcomeMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(&rig{compactions: two, peers: func(_ int, rev int64, of string) []peerHash {
				if of != peers.HashOfCompaction {
					t.Errorf("asked for %q", of)
				}
				if rev == 9 {
					return both(rev, 3, c.newest...)
				}
				return both(rev, -1, c.older...)
			}})
			r.compaction(t.Context())
			if texts := r.texts(); c.text != "" && !slices.Contains(texts, c.text) {
				t.Errorf("%q is not in %q", c.text, texts)
			}
			if !slices.Equal(r.raised, c.raised) || !slices.Equal(r.outcomes, []string{"compaction " + c.outcome}) || r.checkedRev != c.checked {
				t.Errorf("alarms for %x (want %x), %q (want %q), checked %d (want %d)", r.raised, c.raised, r.outcomes, c.outcome, r.checkedRev, c.checked)
			}
			// What could not be compared is not said again; what was is not asked again.
			asked := r.rounds
			r.compaction(t.Context())
			for _, text := range r.texts() {
				if strings.HasPrefix(strings.ToLower(text), "skipped") {
					t.Errorf("said again: %q", text)
				}
			}
			if c.checked == 9 && r.rounds != asked {
				t.Error("compared again what all members share")
			}
		})
	}
	// A check that has nothing to compare, once a minute for as long as the member runs, is not
	// worth a line.
	r := newRig(&rig{alone: true, compactions: two})
	r.compaction(t.Context())
	if texts := r.texts(); len(texts) > 0 {
		t.Errorf("said in a cluster of one: %q", texts)
	}
}

// alarms is a cluster's NOSPACE alarms, of members that raised them themselves.
type alarms struct {
	mu     sync.Mutex
	active []uint64 // guarded by mu
}

func (a *alarms) Alarm(_ pb.AlarmType, member uint64) (active, itself bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	active = slices.Contains(a.active, member)
	return active, active
}
func (a *alarms) AlarmActive(pb.AlarmType) bool { return len(a.Alarms()) > 0 }
func (a *alarms) Alarms() (list []*pb.AlarmMember) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range a.active {
		list = append(list, &pb.AlarmMember{MemberID: id, Alarm: pb.AlarmType_NOSPACE})
	}
	return list
}
func (a *alarms) Member(id uint64) *command.Member {
	if id == 1 {
		return &command.Member{ID: id}
	}
	return nil
}
func (a *alarms) QuotaBytes() int64 { return 800 }

// An alarm is proposed once at a time, and not at all while it is active.
func TestOneProposalOfAnAlarm(t *testing.T) {
	a := &alarms{}
	var running []func(context.Context)
	raised := 0
	s := NewSpace(SpaceConfig{
		MemberID: 1, Alarms: a, Logger: zap.NewNop(), Timeout: time.Second,
		Background: func(f func(context.Context)) { running = append(running, f) },
		Raise: func(context.Context) error {
			raised++
			a.active = []uint64{1}
			return nil
		},
	})
	s.Exceeded()
	s.Exceeded()
	if len(running) != 1 {
		t.Fatalf("%d proposals", len(running))
	}
	running[0](t.Context())
	if s.Exceeded(); len(running) != 1 || raised != 1 {
		t.Fatalf("%d proposals, raised %d times", len(running), raised)
	}
	a.active = nil
	if s.Exceeded(); len(running) != 2 {
		t.Fatalf("%d proposals after the end of the alarm", len(running))
	}
}

// What a member sees of the alarms: its own, and those of members that are none any more.
func TestObserveAlarms(t *testing.T) {
	a := &alarms{active: []uint64{1, 77}}
	s := NewSpace(SpaceConfig{
		MemberID: 1, Alarms: a, Disarm: true, MinFreeBytes: 100, Leads: func() bool { return true },
		Free: func() (uint64, error) { return 0, errors.New("no") }, Size: func() (int64, int64) { return 3, 2 },
		Rewriting: func() bool { return true },
	})
	now := time.Unix(1000, 0)
	o := s.observe(now)
	if !slices.Equal(o.left, []uint64{77}) || !o.active || !o.itself || o.freeKnown || !o.rewriting || !o.leads ||
		o.total != 3 || o.inUse != 2 || o.quota != 800 || o.minFree != 100 || o.now != now {
		t.Fatalf("%+v", o)
	}
}

// A data directory that is removed or moved under a running member is told of once, and when it is
// back; a file system that cannot be asked says nothing of the kind.
func TestGoneDirectoryIsToldOfOnce(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	var err error
	s := NewSpace(SpaceConfig{
		MemberID: 1, Alarms: &alarms{}, Leads: func() bool { return false }, Rewriting: func() bool { return false }, DataDir: "/data",
		Free: func() (uint64, error) { return 1000, err }, Size: func() (int64, int64) { return 0, 0 }, Logger: zap.New(core),
	})
	gone := fmt.Errorf("free space of /data: %w", syscall.ENOENT)
	for _, err = range []error{nil, gone, gone, errors.New("no answer"), gone, nil, nil} {
		s.observe(time.Unix(1000, 0))
	}
	var told []string
	for _, e := range logs.All() {
		told = append(told, e.Level.String()+" "+strings.SplitN(e.Message, ";", 2)[0])
	}
	if want := []string{"error the data directory is not there any more", "info the data directory is there again"}; !slices.Equal(told, want) {
		t.Errorf("%q, want %q", told, want)
	}
}

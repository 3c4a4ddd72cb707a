package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/transport"
)

// options of one run.
type options struct {
	seed     uint64
	duration time.Duration // how long faults and clients run
	mutation mutation
	kinds    string // as -sim.kind has them
	trace    bool   // keep every line of the members' logs, and print them
}

// world is one run: members, clients, what is known of both.
type world struct {
	o     options
	kinds kinds
	seed  uint64
	begin time.Time
	net   *transport.Memory

	// disksOnly: nothing but disks is broken, so there must be no election at all.
	disksOnly bool
	holds     atomic.Bool // from now on

	flags       localFlags // of every member, but in worlds of that kind
	voters      int        // at the begin
	duration    time.Duration
	clientPause time.Duration // at most, between two calls of a client

	mu        sync.Mutex
	members   map[uint64]*member
	faults    *rand.Rand // of the schedule
	crashes   *rand.Rand
	counts    map[string]int
	found     []violation
	lines     []string // the newest
	running   sync.WaitGroup
	calm      atomic.Bool // faults are over
	took      atomic.Int64
	beat      *atomic.Int64           // for the watchdog
	first     *atomic.Pointer[string] // the first violation, for the watchdog
	lastID    uint64
	baseLink  transport.Link
	link      atomic.Pointer[transport.Link] // as it is now
	oracle    oracle
	elections elections
	rights    rights
	history   history
}

func newWorld(o options, ks kinds, beat *atomic.Int64, first *atomic.Pointer[string]) *world {
	w := &world{
		o: o, kinds: ks, seed: o.seed, begin: time.Now(), net: transport.NewMemory(int64(o.seed)), members: map[uint64]*member{},
		faults: rand.New(rand.NewPCG(o.seed, 1)), crashes: rand.New(rand.NewPCG(o.seed, 2)), counts: map[string]int{},
		beat: beat, first: first,
	}
	w.flags = drawFlags(w.faults, w.seed, ks)
	w.disksOnly = len(ks) == 0 && w.faults.IntN(4) == 0
	w.voters, w.duration, w.clientPause = 3, o.duration, 150*time.Millisecond
	if ks[small] {
		w.voters = 1 + w.faults.IntN(3)
	}
	if ks[big] {
		w.clientPause = 3 * time.Second
	}
	if ks[idle] {
		w.clientPause, w.duration = time.Minute, 4*o.duration
	}
	if w.o.mutation == keepTail {
		w.disksOnly = false // its worlds need partitions
	}
	w.oracle.init(w)
	w.elections.init(w)
	w.rights.init(w)
	w.baseLink = transport.Link{Delay: time.Duration(w.faults.IntN(20)) * 100 * time.Microsecond, Jitter: time.Millisecond, Reorder: w.faults.IntN(2) == 0}
	w.setLinks(w.baseLink)
	return w
}

// now is the virtual time since the begin; the end, once the bubble is left.
func (w *world) now() time.Duration {
	if d := w.took.Load(); d != 0 {
		return time.Duration(d)
	}
	return time.Since(w.begin)
}

func (w *world) setLinks(l transport.Link) {
	w.link.Store(&l)
	w.net.SetDefault(l)
}

func (w *world) tracef(format string, args ...any) {
	line := fmt.Sprintf("%9.3f ", w.now().Seconds()) + fmt.Sprintf(format, args...)
	w.mu.Lock()
	w.lines = append(w.lines, line)
	if len(w.lines) > 20000 {
		w.lines = w.lines[10000:]
	}
	w.mu.Unlock()
}

// violation notes that something which must hold did not.
func (w *world) violation(what finding, format string, args ...any) {
	v := violation{w.now(), what, fmt.Sprintf(format, args...)}
	text := v.String()
	w.first.CompareAndSwap(nil, &text)
	w.tracef("VIOLATION %s", text)
	w.mu.Lock()
	if len(w.found) < 20 {
		w.found = append(w.found, v)
	}
	w.mu.Unlock()
}

func (w *world) failed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.found) > 0
}

func (w *world) count(what string) {
	w.mu.Lock()
	w.counts[what]++
	w.mu.Unlock()
}

func (w *world) background(f func()) { w.running.Go(f) }

// crashRand is for a CrashClone: one at a time.
func (w *world) crashRand() *rand.Rand {
	w.mu.Lock()
	defer w.mu.Unlock()
	return rand.New(rand.NewPCG(w.crashes.Uint64(), 0))
}

func (w *world) member(id uint64) *member {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.members[id]
}

func (w *world) all() []*member {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []*member
	for _, id := range slices.Sorted(maps.Keys(w.members)) {
		out = append(out, w.members[id])
	}
	return out
}

// lives are those that run.
func (w *world) lives() []*life {
	var out []*life
	for _, m := range w.all() {
		if l := m.life(); l != nil {
			out = append(out, l)
		}
	}
	return out
}

func (w *world) leader() *life {
	for _, l := range w.lives() {
		if l.replica.IsLeader() {
			return l
		}
	}
	return nil
}

// found is what a fault has cost: a start that fails is a violation.
func (w *world) start(m *member) {
	if err := m.start(); err != nil {
		if m.isDamaged() && !errors.Is(err, errPanics) {
			m.refuse(err)
			return
		}
		w.violation(noStart, "member %d does not start: %v", m.id, err)
	}
}

func (w *world) restartLater(m *member) {
	if !m.restarting.CompareAndSwap(false, true) {
		return
	}
	w.mu.Lock()
	wait := time.Duration(w.crashes.IntN(3000)) * time.Millisecond
	w.mu.Unlock()
	w.background(func() {
		time.Sleep(wait)
		m.restarting.Store(false)
		w.start(m)
	})
}

// boot starts the first members.
func (w *world) boot(n int) error {
	var ids []uint64
	for id := range n {
		ids = append(ids, uint64(id+1))
	}
	w.lastID = uint64(n)
	for _, id := range ids {
		mem, err := emptyDisk()
		if err != nil {
			return err
		}
		if err := firstLog(mem, id, ids); err != nil {
			return err
		}
		dir, err := mem.OpenDir(dataDir)
		if err != nil {
			return err
		}
		if err := dir.Sync(); err != nil {
			return err
		}
		w.members[id] = &member{w: w, id: id, mem: mem, peers: ids}
	}
	for _, m := range w.all() {
		w.start(m)
	}
	return nil
}

// join starts a member that the cluster has added.
func (w *world) join(id uint64, peers []uint64) {
	mem, err := emptyDisk()
	if err != nil {
		w.violation(noStart, "empty disk: %v", err)
		return
	}
	m := &member{w: w, id: id, mem: mem, peers: peers}
	w.mu.Lock()
	if w.members[id] != nil {
		w.mu.Unlock()
		return
	}
	w.members[id] = m
	w.mu.Unlock()
	w.count("members added")
	w.start(m)
}

// elections sees every message that leaves a member, over all its lives.
type elections struct {
	w       *world
	mu      sync.Mutex
	leaders map[uint64]uint64    // term -> who spoke as its leader
	votes   map[[2]uint64]uint64 // voter, term -> for whom
	asked   map[[2]uint64]*life  // candidate, term -> in which of its lives
	newest  uint64
	handed  time.Time // the last hand-over
}

func (e *elections) init(w *world) {
	e.w, e.leaders, e.votes, e.asked = w, map[uint64]uint64{}, map[[2]uint64]uint64{}, map[[2]uint64]*life{}
}

func (e *elections) sent(l *life, m *raftpb.Message) {
	term := m.GetTerm()
	e.mu.Lock()
	defer e.mu.Unlock()
	if m.GetType() == raftpb.MsgPreVote && e.w.holds.Load() && !e.handOverMet() {
		e.w.violation(lostLeader, "member %s has lost its leader although nothing but disks is slow: %s", l.name, e.w.describe())
	}
	if m.GetType() == raftpb.MsgTimeoutNow {
		e.handed = time.Now()
	}
	switch m.GetType() {
	case raftpb.MsgApp, raftpb.MsgHeartbeat, raftpb.MsgSnap, raftpb.MsgTimeoutNow:
		if was, ok := e.leaders[term]; ok && was != l.id {
			e.w.violation(twoLeaders, "members %d and %d both lead in term %d", was, l.id, term)
		}
		e.leaders[term] = l.id
		e.newest = max(e.newest, term)
	case raftpb.MsgVote:
		key := [2]uint64{l.id, term}
		if was := e.asked[key]; was != nil && was != l {
			e.w.violation(votedTwice, "member %s asks for votes in term %d, as %s did before it crashed", l.name, term, was.name)
		}
		e.asked[key] = l
	case raftpb.MsgVoteResp:
		if m.GetReject() {
			return
		}
		key := [2]uint64{l.id, term}
		if was, ok := e.votes[key]; ok && was != m.GetTo() {
			e.w.violation(votedTwice, "member %s votes for %d and %d in term %d", l.name, was, m.GetTo(), term)
		}
		e.votes[key] = m.GetTo()
	}
}

// handOverMet reports whether there was a hand-over just now, and the disks of a quorum had trouble
// shortly before it or since: an election takes a quorum of disks, and no leader can know what will
// be.
func (e *elections) handOverMet() bool {
	if e.handed.IsZero() || time.Since(e.handed) > 30*time.Second {
		return false
	}
	troubled, all := 0, e.w.lives()
	for _, l := range all {
		if l.disk.troubledAfter(e.handed.Add(-500 * time.Millisecond)) {
			troubled++
		}
	}
	if troubled < len(all)/2+1 {
		return false
	}
	e.w.count("pre-votes after a hand-over into a second stall")
	return true
}

func (e *elections) term() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.newest
}

// inject breaks something from time to time until the duration is over, then repairs everything.
func (w *world) inject() {
	r := w.faults
	type fault struct {
		name   string
		weight int
		do     func()
	}
	some := func() *life {
		if ls := w.lives(); len(ls) > 0 {
			return ls[r.IntN(len(ls))]
		}
		return nil
	}
	one := func(f func(l *life)) func() {
		return func() {
			l := some()
			if lead := w.leader(); lead != nil && r.IntN(3) == 0 {
				l = lead
			}
			if l != nil {
				w.tracef("  at member %s", l.name)
				f(l)
			}
		}
	}
	between := func(low, high time.Duration) time.Duration {
		return low + time.Duration(r.Int64N(int64(high-low)))
	}
	after := func(d time.Duration, f func()) {
		time.AfterFunc(d, func() {
			if !w.calm.Load() {
				f()
			}
		})
	}
	percent := func() int {
		switch r.IntN(4) {
		case 0:
			return 0
		case 1:
			return 100
		}
		return r.IntN(101)
	}
	crash := func(l *life) {
		l.m.crash(l, percent())
		w.restartLater(l.m)
	}
	subset := func(p float64) (out []*life) {
		for _, l := range w.lives() {
			if r.Float64() < p {
				out = append(out, l)
			}
		}
		return out
	}
	ids := func() (out []uint64) {
		for _, l := range w.lives() {
			out = append(out, l.id)
		}
		return out
	}
	faults := []fault{
		{"crash", 10, one(crash)},
		{"crash of some", 3, func() {
			for _, l := range subset(0.6) {
				crash(l)
			}
		}},
		{"stalled log", 8, func() {
			for _, l := range subset(0.4) {
				l.disk.logSync.shut()
				after(between(100*time.Millisecond, 8*time.Second), l.disk.logSync.open)
			}
		}},
		{"stalled disk", 4, one(func(l *life) {
			l.disk.logSync.shut()
			l.disk.storeSync.shut()
			after(between(100*time.Millisecond, 8*time.Second), func() { l.disk.logSync.open(); l.disk.storeSync.open() })
		})},
		{"slow disks", 4, func() {
			for _, l := range subset(0.5) {
				l.disk.slow.Store(int64(between(time.Millisecond, 2*time.Second)))
				after(between(time.Second, 8*time.Second), func() { l.disk.quick() })
			}
		}},
		{"log fails", 3, one(func(l *life) {
			err := errIO
			if r.IntN(2) == 0 {
				err = errNoSpace
			}
			l.broken.Store(true)
			l.disk.logError.Store(&err)
		})},
		{"store fails", 2, one(func(l *life) {
			err := errIO
			if r.IntN(2) == 0 {
				err = errNoSpace
			}
			l.broken.Store(true)
			l.disk.storeError.Store(&err)
			w.background(func() { // it waits if all memtables are full
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				_, _, _ = l.store.AsyncFlush(ctx)
			})
		})},
		{"dead log disk", 3, one(func(l *life) {
			l.disk.logSync.shut()
			after(between(5*time.Second, 20*time.Second), l.disk.logSync.open)
		})},
		{"store ahead of the log", 8, one(func(l *life) {
			// What it applies from here on its log does not have after the crash,
			// perhaps instead of a tail that was never committed.
			l.disk.logSync.shut()
			p := percent()
			after(between(300*time.Millisecond, 3*time.Second), func() {
				_, done, err := l.store.AsyncFlush(context.Background())
				if err != nil || l.dead.Load() {
					return
				}
				select {
				case <-done:
				case <-time.After(5 * time.Second):
				}
				if w.calm.Load() {
					return
				}
				l.m.crash(l, p)
				w.restartLater(l.m)
			})
		})},
		{"deposed leader, store ahead of its log", 6, func() {
			l := w.leader()
			if l == nil {
				return
			}
			// It writes a long tail that nobody else gets; later that is overwritten
			// in memory, while the disk stalls, the store is flushed into the middle of
			// it, and the crash leaves the old tail on disk.
			p := percent()
			w.net.Isolate(l.id)
			w.background(func() { w.burst(l, 100+int(l.replica.Term()%7)*100) })
			heal := between(1500*time.Millisecond, 4*time.Second)
			after(heal, func() {
				l.disk.logSync.shut()
				w.net.Heal()
			})
			after(heal+between(200*time.Millisecond, 3*time.Second), func() {
				_, done, err := l.store.AsyncFlush(context.Background())
				if err != nil || l.dead.Load() {
					return
				}
				select {
				case <-done:
				case <-time.After(5 * time.Second):
				}
				if w.calm.Load() {
					return
				}
				l.m.crash(l, p)
				w.restartLater(l.m)
			})
		}},
		{"isolated member", 6, one(func(l *life) {
			w.net.Isolate(l.id)
			after(between(500*time.Millisecond, 10*time.Second), w.net.Heal)
		})},
		{"split", 3, func() {
			var a, b []uint64
			for _, id := range ids() {
				if r.IntN(2) == 0 {
					a = append(a, id)
				} else {
					b = append(b, id)
				}
			}
			w.net.Partition(a, b)
			after(between(500*time.Millisecond, 8*time.Second), w.net.Heal)
		}},
		{"one-way cuts", 4, func() {
			for _, a := range ids() {
				for _, b := range ids() {
					if a != b && r.IntN(4) == 0 {
						w.net.Cut(a, b)
						after(between(500*time.Millisecond, 8*time.Second), func() { w.net.Mend(a, b) })
					}
				}
			}
		}},
		{"flapping member", 2, one(func(l *life) {
			n, on := 3+r.IntN(4), between(300*time.Millisecond, 3*time.Second)
			for i := range n {
				after(time.Duration(2*i)*on, func() { w.net.Isolate(l.id) })
				after(time.Duration(2*i+1)*on, w.net.Heal)
			}
		})},
		{"bad links", 5, func() {
			bad := transport.Link{
				Delay: time.Duration(r.IntN(150)) * time.Millisecond, Jitter: time.Duration(1+r.IntN(100)) * time.Millisecond,
				Loss: r.Float64() * 0.2, Reorder: r.IntN(2) == 0,
			}
			w.setLinks(bad)
			after(between(time.Second, 10*time.Second), func() { w.setLinks(w.baseLink) })
		}},
		{"pause", 7, one(func(l *life) {
			l.paused.shut()
			after(between(200*time.Millisecond, 8*time.Second), l.paused.open)
		})},
		{"hand-over", 3, one(func(l *life) {
			to := some().id // l lives, so there is one
			if to == l.id {
				w.background(func() { w.stopInOrder(l) })
				return
			}
			w.background(func() {
				ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				defer cancel()
				_ = l.replica.TransferLeader(ctx, to)
			})
		})},
		{"flush", 6, one(func(l *life) { _, _, _ = l.store.AsyncFlush(context.Background()) })},
	}
	if w.kinds[power] {
		faults = append(faults, fault{"power cut", 12, func() {
			for _, l := range w.lives() {
				l.m.crash(l, 0)
				w.restartLater(l.m)
			}
		}})
	}
	hang := func(of func(*life) []*gate, low, high time.Duration) func() {
		return one(func(l *life) {
			for _, g := range of(l) {
				g.shut()
				after(between(low, high), g.open)
			}
		})
	}
	if w.kinds[damaged] {
		faults = append(faults, fault{"damage", 12, one(func(l *life) { w.harm(l, r, percent()) })})
	}
	if w.kinds[wedged] {
		faults = append(faults, fault{"hung applier", 12, hang(func(l *life) []*gate { return []*gate{&l.applying} }, 100*time.Millisecond, 15*time.Second)})
	}
	if w.kinds[hung] {
		faults = append(faults,
			fault{"hung log", 6, hang(func(l *life) []*gate { return []*gate{&l.disk.logOps} }, 100*time.Millisecond, 10*time.Second)},
			fault{"hung store", 8, hang(func(l *life) []*gate { return []*gate{&l.disk.storeOps} }, 100*time.Millisecond, 20*time.Second)},
			fault{"hung disk", 6, hang(func(l *life) []*gate { return []*gate{&l.disk.logOps, &l.disk.storeOps} }, 100*time.Millisecond, 10*time.Second)},
			fault{"stalled store", 6, hang(func(l *life) []*gate { return []*gate{&l.disk.storeSync} }, 100*time.Millisecond, 20*time.Second)},
		)
	}
	if w.disksOnly {
		for w.leader() == nil || len(w.lives()) < 3 {
			time.Sleep(tickInterval)
		}
		time.Sleep(2 * election)
		w.count("worlds where only disks break")
		w.holds.Store(true)
		faults = slices.DeleteFunc(faults, func(f fault) bool {
			return !slices.Contains([]string{"stalled log", "stalled disk", "slow disks", "dead log disk", "flush"}, f.name)
		})
	}
	total := 0
	for i, f := range faults {
		if w.o.mutation == keepTail && f.name == "deposed leader, store ahead of its log" {
			// The one fault that needs the rule. At its usual weight it took up to 60
			// seeds, which is minutes on a slow machine.
			faults[i].weight *= 10
		}
		total += faults[i].weight
	}
	// Some seeds heap faults on each other, others let the cluster recover.
	pace := 1 + time.Duration(r.IntN(5))
	if w.kinds[idle] {
		pace *= 4
	}
	for w.now() < w.duration && !w.failed() {
		time.Sleep(between(100*time.Millisecond, pace*2*time.Second))
		pick := r.IntN(total)
		for _, f := range faults {
			if pick -= f.weight; pick < 0 {
				w.count(f.name)
				w.tracef("fault: %s", f.name)
				f.do()
				break
			}
		}
	}
	w.calm.Store(true)
	w.tracef("the faults end")
	w.repair()
}

// stopInOrder ends a life as node does: a leader hands over first, and others that live know
// that it leaves. It loses nothing.
func (w *world) stopInOrder(l *life) {
	for _, other := range w.lives() {
		if other != l {
			other.replica.TellDisk(l.id, replica.DiskReport{Leaving: true})
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if _, err := l.replica.HandOver(ctx); err == nil {
		w.count("leaders that stopped in order")
	}
	if w.calm.Load() {
		return
	}
	l.m.crash(l, 100)
	w.restartLater(l.m)
}

// repair ends all faults that last.
func (w *world) repair() {
	w.net.Heal()
	w.setLinks(w.baseLink)
	for _, a := range w.all() {
		for _, b := range w.all() {
			if a.id != b.id {
				w.net.SetLink(a.id, b.id, w.baseLink)
			}
		}
	}
	for _, m := range w.all() {
		if l := m.life(); l != nil {
			l.disk.repair()
			l.paused.open()
			l.applying.open()
		}
	}
}

// burst proposes n puts at once and does not wait long for them.
func (w *world) burst(l *life, n int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { _ = w.putOnce(ctx, l, fmt.Sprintf("burst/%d", i%10), fmt.Sprint(i)) })
	}
	wg.Wait()
}

// changeMembers adds, promotes and removes members until the faults end.
func (w *world) changeMembers() {
	r := rand.New(rand.NewPCG(w.seed, 3))
	for !w.calm.Load() {
		time.Sleep(time.Duration(1000+r.IntN(6000)) * time.Millisecond)
		ls := w.lives()
		if len(ls) == 0 || w.calm.Load() || w.disksOnly {
			continue
		}
		l := ls[r.IntN(len(ls))]
		ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
		w.changeOnce(ctx, r, l)
		cancel()
	}
}

func (w *world) changeOnce(ctx context.Context, r *rand.Rand, l *life) {
	if l.replica.ReadBarrier(ctx) != nil || l.dead.Load() {
		return
	}
	var voters, learners, ids []uint64
	for _, m := range l.machine.Members() {
		ids = append(ids, m.ID)
		if m.IsLearner {
			learners = append(learners, m.ID)
		} else {
			voters = append(voters, m.ID)
		}
	}
	for _, id := range ids {
		if w.member(id) == nil {
			w.join(id, ids)
			return
		}
	}
	if w.replaceDamaged(ctx, l) {
		return
	}
	up := 0
	for _, id := range voters {
		if m := w.member(id); m != nil && m.life() != nil {
			up++
		}
	}
	change := func(what string, c *command.Change) bool {
		w.tracef("member change: %s %d at %s", what, c.MemberID, l.name)
		result, err := l.replica.ProposeChange(ctx, c)
		if err == nil {
			err = result.Err
		}
		if err != nil {
			w.tracef("member change: %s %d: %v", what, c.MemberID, err)
			return false
		}
		w.count(what)
		return true
	}
	fewest, most := 3, 5
	if w.kinds[small] {
		fewest, most = 1, 3
	}
	if w.kinds[damaged] {
		// Two cannot do without one: none is taken away, not even by a removal that
		// is under way while a disk breaks, or after the damage that nobody has met.
		fewest = 3
	}
	switch {
	case len(learners) > 0 && r.IntN(4) > 0:
		lead := w.leader()
		if lead == nil || lead.replica.LearnerReady(ctx, learners[0]) != nil {
			return
		}
		change("promote", &command.Change{Type: raftpb.ConfChangeAddNode, MemberID: learners[0], Member: command.Member{ID: learners[0]}, IsPromote: true})
	case len(ids) < most && len(learners) == 0 && (most == 5 || r.IntN(2) == 0):
		w.mu.Lock()
		w.lastID++
		id := w.lastID
		w.mu.Unlock()
		if change("add", &command.Change{Type: raftpb.ConfChangeAddLearnerNode, MemberID: id, Member: command.Member{ID: id, PeerURLs: []string{peerURL(id)}, IsLearner: true}, MaxLearners: l.flags.maxLearners}) {
			w.join(id, append(ids, id))
		}
	case len(voters) > fewest && up == len(voters) || len(learners) > 0:
		id := ids[r.IntN(len(ids))]
		if !slices.Contains(learners, id) && !(len(voters) > fewest && up == len(voters)) {
			return
		}
		change("remove", &command.Change{Type: raftpb.ConfChangeRemoveNode, MemberID: id, Member: command.Member{ID: id}})
	}
}

// settle waits until the cluster works again and checks that all members are alike.
func (w *world) settle(changes <-chan struct{}) {
	<-changes // the last one may be under way
	if w.failed() {
		return
	}
	const (
		serves  = 60 * time.Second
		catchUp = 90 * time.Second
	)
	deadline := time.Now().Add(serves)
	// Members added by a change whose answer was lost are started, those that
	// crashed start by themselves.
	var members []uint64
	for {
		if time.Now().After(deadline) {
			w.violation(stuck, "%s after the faults ended the cluster does not serve: %s", serves, w.describe())
			return
		}
		w.repair()
		time.Sleep(500 * time.Millisecond)
		ls := w.lives()
		if len(ls) == 0 {
			continue
		}
		l := ls[int(w.now()/time.Second)%len(ls)]
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		err := l.replica.ReadBarrier(ctx)
		gone := err == nil && w.replaceDamaged(ctx, l)
		cancel()
		if err != nil || gone || l.machine.IsRemoved(l.id) {
			continue
		}
		members = nil
		missing := false
		for _, m := range l.machine.Members() {
			members = append(members, m.ID)
			missing = missing || w.member(m.ID) == nil
		}
		for _, id := range members {
			if w.member(id) == nil {
				w.join(id, members)
			} else if w.member(id).life() == nil {
				missing = true
			}
		}
		if !missing {
			break
		}
	}
	// Every member serves reads and writes.
	for _, id := range members {
		l := w.member(id).life()
		for try := 0; l != nil || !w.member(id).hasRefused(); try++ {
			if l == nil {
				w.violation(stopped, "member %d went away in the calm", id)
				return
			}
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			err := l.replica.ReadBarrier(ctx)
			if err == nil {
				err = w.putOnce(ctx, l, "settled", fmt.Sprint(id))
			}
			cancel()
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				w.violation(stuck, "%s after the faults ended member %d does not serve: %v; %s", serves, id, err, w.describe())
				return
			}
			time.Sleep(200 * time.Millisecond)
			if w.member(id).hasRefused() {
				break
			}
			if l = w.member(id).life(); l == nil {
				w.violation(stopped, "member %d went away in the calm", id)
				return
			}
		}
	}
	w.tracef("all %d members serve again", len(members))
	calmTerm := w.elections.term()
	w.expectExpiry(40 * time.Second) // leases that nobody renews
	time.Sleep(5 * time.Second)
	if now := w.elections.term(); now != calmTerm {
		w.violation(lostLeader, "there was an election in the calm: term %d, was %d; %s", now, calmTerm, w.describe())
	}
	deadline = time.Now().Add(catchUp)
	for !w.equalApplied(members) {
		if time.Now().After(deadline) {
			w.violation(stuck, "%s after the faults ended the members are not alike: %s", catchUp, w.describe())
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	w.compareMembers(members)
}

func (w *world) equalApplied(members []uint64) bool {
	first := uint64(0)
	for _, id := range members {
		l := w.member(id).life()
		if l == nil && w.member(id).hasRefused() {
			continue
		}
		if l == nil {
			return false
		}
		st := l.replica.Status()
		if first == 0 {
			first = st.Applied
		}
		if st.Applied != first || st.Committed != first {
			return false
		}
	}
	return true
}

// compareMembers checks that members which have applied the same entries hold the same.
func (w *world) compareMembers(members []uint64) {
	first := ""
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, id := range members {
		m := w.member(id)
		l := m.life()
		if l == nil && m.hasRefused() {
			continue
		}
		if rev := l.kv.CompactRevision(); rev > 0 {
			select {
			case <-l.kv.Compacted(rev):
			case <-ctx.Done():
				if m.isDamaged() {
					continue // it may wait for what it cannot read
				}
				w.violation(stuck, "member %s does not finish its compaction of %d", l.name, rev)
				return
			}
		}
		hashKV, compacted, rev, err := l.kv.HashKV(ctx, 0)
		if err != nil && m.isDamaged() {
			continue
		}
		if err != nil {
			w.violation(unreadable, "HashKV at %s: %v", l.name, err)
			return
		}
		hash, _, err := l.kv.Hash(ctx)
		if err != nil && m.isDamaged() {
			continue
		}
		if err != nil {
			w.violation(unreadable, "Hash at %s: %v", l.name, err)
			return
		}
		var list []string
		for _, m := range l.machine.Members() {
			list = append(list, fmt.Sprintf("%d/%v", m.ID, m.IsLearner))
		}
		cs := l.machine.ConfState()
		voters, learners := slices.Clone(cs.GetVoters()), slices.Clone(cs.GetLearners())
		slices.Sort(voters)
		slices.Sort(learners)
		text := fmt.Sprintf("auth revision %d revision %d compacted %d HashKV %08x Hash %08x members %v voters %v learners %v", l.machine.Policy().Revision(), rev, compacted, hashKV, hash, list, voters, learners)
		if first == "" {
			first = text
		}
		if text != first {
			w.violation(diverged, "member %d has %s, but member %d %s", members[0], first, id, text)
		}
	}
	w.tracef("all alike: %s", first)
}

// describe is the state of all members in a line each.
func (w *world) describe() string {
	var b strings.Builder
	for _, m := range w.all() {
		l := m.life()
		if l == nil {
			m.mu.Lock()
			fmt.Fprintf(&b, "\n    %d: down, removed %v", m.id, m.removed)
			m.mu.Unlock()
			continue
		}
		st := l.replica.Status()
		first, _ := l.log.FirstIndex()
		last, _ := l.log.LastIndex()
		fmt.Fprintf(&b, "\n    %s: %v term %d leader %d applied %d committed %d log %d-%d members", l.name, st.State, st.Term, st.Leader, st.Applied, st.Committed, first, last)
		for _, x := range l.machine.Members() {
			fmt.Fprintf(&b, " %d", x.ID)
			if x.IsLearner {
				b.WriteByte('L')
			}
		}
	}
	return b.String()
}

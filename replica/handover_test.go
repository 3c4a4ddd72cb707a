package replica

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.etcd.io/raft/v3/raftpb"
)

// load is writers and readers at all members, until it is stopped.
type load struct {
	t      *testing.T
	stop   chan struct{}
	wg     sync.WaitGroup
	mu     sync.Mutex
	writes map[string]string // acknowledged
	// Worst latencies since take, and failures.
	worstWrite, worstRead time.Duration
	count                 int
	failures              []string
}

// startLoad runs writers that each write every pause with a 5 s timeout, and as many readers.
func startLoad(c *testCluster, writers int, pause time.Duration, valueBytes int) *load {
	l := &load{t: c.t, stop: make(chan struct{}), writes: map[string]string{}}
	value := strings.Repeat("v", valueBytes)
	for w := range writers {
		m := c.members[uint64(w%len(c.members)+1)]
		run := func(f func(ctx context.Context, i int) error, worst *time.Duration) {
			l.wg.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-l.stop:
						return
					case <-time.After(pause):
					}
					ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
					begin := time.Now()
					err := f(ctx, i)
					took := time.Since(begin)
					cancel()
					l.mu.Lock()
					*worst = max(*worst, took)
					if err != nil {
						l.failures = append(l.failures, fmt.Sprintf("member %d: %v", m.id, err))
					}
					l.mu.Unlock()
				}
			})
		}
		run(func(ctx context.Context, i int) error {
			key, value := fmt.Sprintf("w%d-%d", w, i), fmt.Sprint(i, value)
			err := m.put(ctx, key, value)
			if err == nil {
				l.mu.Lock()
				l.writes[key] = value
				l.count++
				l.mu.Unlock()
			}
			return err
		}, &l.worstWrite)
		run(func(ctx context.Context, _ int) error { return m.replica().ReadBarrier(ctx) }, &l.worstRead)
	}
	return l
}

// take returns the worst latencies and the number of writes since it was last called.
func (l *load) take() (write, read time.Duration, writes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	write, read, writes = l.worstWrite, l.worstRead, l.count
	l.worstWrite, l.worstRead, l.count = 0, 0, 0
	return write, read, writes
}

func (l *load) end(c *testCluster) {
	l.t.Helper()
	close(l.stop)
	l.wg.Wait()
	for i, f := range l.failures {
		if i < 5 {
			l.t.Errorf("a request failed: %s", f)
		}
	}
	for _, m := range c.members {
		if err := m.replica().ReadBarrier(c.short()); err != nil {
			l.t.Errorf("member %d: %v", m.id, err)
		}
		for key, value := range l.writes {
			if got := m.state.get(key); got != value {
				l.t.Fatalf("member %d has %.20q of %s, acknowledged %.20q", m.id, got, key, value)
			}
		}
	}
}

// The disk of a leader never comes back, under load at all members: leadership moves
// within the bound, nobody sees an error, the old leader follows and serves its
// clients, and its disk catches up once it is there again.
func TestLeaderWithDeadDiskHandsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, keepLog)
		defer c.close()
		old := c.leader()
		term := old.replica().Term()
		l := startLoad(c, 6, 20*time.Millisecond, 100)
		time.Sleep(time.Second)
		write, read, writes := l.take()
		t.Logf("before: worst write %v, worst read %v, %d writes", write, read, writes)
		release := old.stall()
		begin := time.Now()
		for old.replica().IsLeader() {
			time.Sleep(10 * time.Millisecond)
			if time.Since(begin) > 10*time.Second {
				t.Fatal("the leader with the dead disk leads on")
			}
		}
		if took := time.Since(begin); took < 5*time.Second || took > 6*time.Second {
			t.Errorf("leadership was handed over after %v", took)
		}
		time.Sleep(time.Second)
		write, read, _ = l.take()
		t.Logf("stall and hand-over: worst write %v, worst read %v", write, read)
		if write > 300*time.Millisecond || read > 300*time.Millisecond {
			t.Errorf("the hand-over took %v for a write, %v for a read", write, read)
		}
		next := c.leader()
		if next == old || next.replica().Term() != term+1 {
			t.Errorf("member %d leads in term %d; the stalled one was member %d in term %d", next.id, next.replica().Term(), old.id, term)
		}
		time.Sleep(55 * time.Second)
		write, read, writes = l.take()
		t.Logf("a minute with a dead disk: worst write %v, worst read %v, %d writes", write, read, writes)
		if write > 100*time.Millisecond || read > 100*time.Millisecond {
			t.Errorf("with a follower's disk dead a write took %v, a read %v", write, read)
		}
		if err := old.replica().CheckDisk(); err == nil || old.replica().Disk().State != DiskDead {
			t.Errorf("the old leader says %v of its disk: %+v", err, old.replica().Disk())
		}
		release()
		time.Sleep(12 * time.Second) // stalled, slow and healthy: diskCalm each, and a tick
		if err := old.replica().CheckDisk(); err != nil || old.replica().Disk().State != DiskHealthy || old.log.Unsynced().Bytes > 100<<10 {
			t.Errorf("after its return the disk is %v, %+v, %+v", err, old.replica().Disk(), old.log.Unsynced())
		}
		if next.replica().Term() != term+1 || !next.replica().IsLeader() {
			t.Errorf("there was an election: term %d, was %d", next.replica().Term(), term)
		}
		if n := value(t, old.replica().metrics.HandOvers.WithLabelValues(reasonDisk)); n != 1 {
			t.Errorf("belay_handovers_total counts %v", n)
		}
		if state := value(t, old.replica().metrics.DiskState); state != 0 {
			t.Errorf("belay_disk_state is %v", state)
		}
		l.end(c)
		// And it may lead again.
		if err := next.replica().TransferLeader(c.short(), old.id); err != nil {
			t.Error(err)
		}
	})
}

// A tail of the log that was durable and then replaced by a snapshot is not durable any more,
// whatever comes behind the snapshot: an early answer must not count it.
func TestEarlyAnswerAfterSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 5)
		defer c.close()
		old := c.leader()
		behind := c.others(old)[0]
		rest := c.others(old)[1:]
		for _, m := range rest {
			c.partition(m.id, true)
		}
		c.mu.Lock()
		for _, a := range rest {
			for _, b := range rest {
				c.cut[[2]uint64{a.id, b.id}] = false
			}
		}
		c.mu.Unlock()
		// A long tail that no quorum has, on the disks of two.
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		defer cancel()
		var tail sync.WaitGroup
		for i := range 1000 {
			tail.Go(func() { _ = old.put(ctx, fmt.Sprint("tail", i), "v") })
		}
		time.Sleep(400 * time.Millisecond)
		before := old.replica().CommittedIndex()
		if last, _ := behind.log.LastIndex(); last < before+900 {
			t.Fatalf("the tail reaches %d, committed is %d", last, before)
		}
		tail.Wait()
		time.Sleep(5 * time.Second)
		for i := range 400 {
			rest[0].mustPut(fmt.Sprint("k", i), "v")
		}
		release := behind.stall()
		for _, m := range rest {
			c.cutBoth(m.id, behind.id, false)
		}
		leader := rest[0]
		for _, m := range rest {
			if m.replica().IsLeader() {
				leader = m
			}
		}
		for i := range 1000 { // beyond the old tail
			time.Sleep(5 * time.Millisecond)
			leader.mustPut(fmt.Sprint("after", i), "v")
		}
		if first, _ := behind.log.FirstIndex(); first <= before+50 {
			t.Fatalf("the follower got no snapshot: its log begins at %d", first)
		}
		if match, _ := leader.replica().Progress(c.short(), behind.id); match > before {
			t.Errorf("the leader counts on entry %d of a member that has the log durable up to %d only", match, before)
		}
		release()
		behind.mustRead("after999", "v")
	})
}

// Nothing that is sent to the leader arrives, while the others hear its heartbeats:
// once it has found out it has to have them elect another at once.
func TestLeaderThatHearsNobodyNamesAnother(t *testing.T) {
	for seed := range 5 {
		synctest.Test(t, func(t *testing.T) {
			c := newTestCluster(t, 3)
			defer c.close()
			old := c.leader()
			time.Sleep(time.Duration(seed) * old.replica().cfg.electionTimeout() / 5) // where in raft's count of answers it begins
			c.mu.Lock()
			for _, m := range c.others(old) {
				c.cut[[2]uint64{m.id, old.id}] = true
			}
			c.mu.Unlock()
			begin := time.Now()
			for c.others(old)[0].replica().Status().Leader == old.id || c.others(old)[0].replica().Status().Leader == 0 {
				time.Sleep(10 * time.Millisecond)
			}
			if took, bound := time.Since(begin), 2*old.replica().cfg.electionTimeout()+300*time.Millisecond; took > bound {
				t.Errorf("a new leader after %v, want one within %v", took, bound)
			}
			c.leader().mustPut("k", "v")
		})
	}
}

func (c *testCluster) cutBoth(a, b uint64, on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut[[2]uint64{a, b}], c.cut[[2]uint64{b, a}] = on, on
}

// keepLog has the log kept for followers that lag, as by default.
func keepLog(c *testCluster) { c.keepBytes = 0 }

// slow makes each sync take d from now on, until it is released.
func (m *testMember) slow(d time.Duration) (release func()) {
	m.syncTakes.Store(int64(d))
	return func() { m.syncTakes.Store(0) }
}

// Every sync of the leader takes 2.14 s, one after another.
func TestLeaderWithSlowDiskLeads(t *testing.T) {
	for _, who := range []string{"leader", "follower"} {
		t.Run(who, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newTestCluster(t, 3, keepLog)
				defer c.close()
				leader := c.leader()
				term := leader.replica().Term()
				l := startLoad(c, 6, 20*time.Millisecond, 100)
				time.Sleep(time.Second)
				m := leader
				if who == "follower" {
					m = c.others(leader)[0]
				}
				l.take()
				release := m.slow(2140 * time.Millisecond)
				time.Sleep(10 * time.Second)
				write, read, writes := l.take()
				t.Logf("worst write %v, worst read %v, %d writes in 10 s", write, read, writes)
				if write > 100*time.Millisecond || read > 100*time.Millisecond {
					t.Errorf("a write took %v, a read %v", write, read)
				}
				if m.replica().Disk().State != DiskSlow {
					t.Errorf("the disk is %v", m.replica().Disk().State)
				}
				release()
				time.Sleep(10 * time.Second)
				if !leader.replica().IsLeader() || leader.replica().Term() != term {
					t.Error("the leader changed")
				}
				l.end(c)
			})
		})
	}
}

// Two followers stall for longer than the bound: the leader stays, reads go on,
// writes wait and then complete.
func TestStalledFollowersCauseNoElection(t *testing.T) {
	stalledDisks(t, func(c *testCluster, leader *testMember) []*testMember { return c.others(leader) })
}

// All disks stall, as on one shared pool.
func TestAllDisksStalled(t *testing.T) {
	stalledDisks(t, func(c *testCluster, leader *testMember) []*testMember { return append(c.others(leader), leader) })
}

// The leader's and one follower's disk stall: the other follower could not win.
func TestLeaderAndFollowerStalled(t *testing.T) {
	stalledDisks(t, func(c *testCluster, leader *testMember) []*testMember {
		return []*testMember{leader, c.others(leader)[0]}
	})
}

func stalledDisks(t *testing.T, who func(*testCluster, *testMember) []*testMember) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		defer c.close()
		leader := c.leader()
		term := leader.replica().Term()
		leader.mustPut("k", "before")
		var release []func()
		for _, m := range who(c, leader) {
			release = append(release, m.stall())
		}
		var wg sync.WaitGroup
		failed := make(chan error, 100)
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		done := false
		for i := range 9 {
			m := c.members[uint64(i%3+1)]
			wg.Go(func() {
				// Longer than the replica's own patience of 7 s would be an error; the
				// stall here is shorter than that.
				if err := m.put(ctx, fmt.Sprint("k", i), "v"); err != nil {
					failed <- err
				}
				if !done {
					failed <- errors.New("a write was acknowledged without a quorum of disks")
				}
			})
		}
		for range 60 {
			time.Sleep(100 * time.Millisecond)
			for _, m := range c.members {
				begin := time.Now()
				m.mustRead("k", "before")
				if took := time.Since(begin); took > 100*time.Millisecond {
					t.Fatalf("a read at member %d took %v", m.id, took)
				}
			}
		}
		done = true
		for _, f := range release {
			f()
		}
		wg.Wait()
		close(failed)
		for err := range failed {
			t.Error(err)
		}
		if !leader.replica().IsLeader() || leader.replica().Term() != term {
			t.Errorf("the leader changed; term %d, was %d", leader.replica().Term(), term)
		}
	})
}

// A follower whose disk is dead takes no more than the bound into its memory,
// and has everything once the disk is back.
func TestFollowerWithDeadDiskIsBounded(t *testing.T) {
	const bound, value, total = 32 << 20, 1 << 20, 256 << 20
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, func(c *testCluster) { c.maxUnsynced, c.keepBytes = bound, 16<<20 })
		defer c.close()
		leader := c.leader()
		follower := c.others(leader)[0]
		release := follower.stall()
		var most int64
		text := strings.Repeat("x", value)
		for i := range total / value {
			leader.mustPut(fmt.Sprint("k", i%16), fmt.Sprint(i)+text)
			most = max(most, follower.log.Unsynced().Bytes)
			time.Sleep(20 * time.Millisecond)
		}
		t.Logf("at most %d MiB unsynced", most>>20)
		if most > bound+8<<20 || most < bound/2 {
			t.Errorf("the follower held %d MiB that its disk has not", most>>20)
		}
		if !leader.replica().IsLeader() {
			t.Error("the leader changed")
		}
		release()
		leader.mustPut("last", "v")
		follower.mustRead("last", "v")
	})
}

// A leader's own unsynced tail is bounded, then writes are refused, and again taken
// when the disk is back.
func TestUnsyncedTailIsBounded(t *testing.T) {
	const bound = 4 << 20
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, func(c *testCluster) { c.maxUnsynced = bound })
		defer c.close()
		leader := c.leader()
		release := leader.stall()
		text := strings.Repeat("x", 1<<20)
		refused := false
		for range 10 {
			if err := leader.put(c.short(), "k", text); err != nil {
				if !errors.Is(err, ErrTooManyRequests) {
					t.Fatal(err)
				}
				refused = true
			}
		}
		if u := leader.log.Unsynced(); !refused || u.Bytes > bound+2<<20 {
			t.Errorf("refused: %v; unsynced: %+v", refused, u)
		}
		leader.mustRead("k", text)
		// Who asks a follower is told as soon.
		begin := time.Now()
		if err := c.others(leader)[0].put(c.short(), "k", text); !errors.Is(err, ErrTooManyRequests) || time.Since(begin) > time.Second {
			t.Errorf("a follower says %v after %v", err, time.Since(begin))
		}
		release()
		time.Sleep(time.Second)
		leader.mustPut("k", "v")
		c.others(leader)[0].mustPut("k", "v")
	})
}

// Leadership moves again and again, by request, under load at all members: nobody sees
// an error, although proposals that followers forward arrive while it moves.
func TestTransfersUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, keepLog)
		defer c.close()
		leader := c.leader()
		term := leader.replica().Term()
		l := startLoad(c, 12, 2*time.Millisecond, 100)
		for i := range 20 {
			next := c.others(leader)[i%2]
			begin := time.Now()
			if err := leader.replica().TransferLeader(c.short(), next.id); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begin); took > 300*time.Millisecond {
				t.Errorf("a transfer took %v", took)
			}
			leader = next
			time.Sleep(200 * time.Millisecond)
		}
		write, read, writes := l.take()
		t.Logf("worst write %v, worst read %v, %d writes", write, read, writes)
		if write > 300*time.Millisecond || read > 600*time.Millisecond {
			t.Errorf("worst write %v, worst read %v", write, read)
		}
		if leader.replica().Term() != term+20 {
			t.Errorf("term %d after 20 transfers from term %d", leader.replica().Term(), term)
		}
		l.end(c)
	})
}

// A leader that stops hands over to a member whose disk works.
func TestHandOverAtStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		defer c.close()
		leader := c.leader()
		bad, good := c.others(leader)[0], c.others(leader)[1]
		release := bad.stall()
		defer release()
		leader.mustPut("k", "v")
		time.Sleep(7 * time.Second)
		// good needs a vote that does not wait for a disk: ours.
		to, err := leader.replica().HandOver(c.short())
		if err != nil || to != good.id {
			t.Fatalf("handed over to %d, %v; member %d has the good disk", to, err, good.id)
		}
		if _, err := leader.replica().HandOver(c.short()); !errors.Is(err, ErrNotLeader) && !errors.Is(err, ErrBadLeaderTransferee) {
			t.Errorf("a follower hands over: %v", err)
		}
	})
}

// TestHandOverAtStopOnSlowDisks: on a machine where a sync takes longer than a transfer may that
// writes wait for, a leader that stops hands over all the same. Without it, whatever the others
// forward in its last moment is lost, and their clients wait for the request timeout.
func TestHandOverAtStopOnSlowDisks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, keepLog)
		defer c.close()
		leader := c.leader()
		l := startLoad(c, 12, 5*time.Millisecond, 100)
		for _, m := range c.members {
			m.syncTakes.Store(int64(400 * time.Millisecond))
		}
		for range 5 {
			time.Sleep(2 * time.Second)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			to, err := leader.replica().HandOver(ctx)
			cancel()
			if err != nil || leader.replica().IsLeader() {
				t.Errorf("handed over to %d: %v", to, err)
				break
			}
			leader = c.leader()
		}
		for _, m := range c.members {
			m.syncTakes.Store(0)
		}
		l.end(c)
	})
}

// TestHandOverAtStopTriesAnother: the member that is asked to lead first answers no more. The leader
// that stops asks another one when raft has given the transfer up.
func TestHandOverAtStopTriesAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, keepLog)
		defer c.close()
		leader := c.leader()
		leader.mustPut("k", "v")
		var first atomic.Uint64
		c.dropping(func(m *raftpb.Message) bool {
			if m.GetType() == raftpb.MsgTimeoutNow {
				first.CompareAndSwap(0, m.GetTo())
			}
			return m.GetType() == raftpb.MsgTimeoutNow && m.GetTo() == first.Load()
		})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		to, err := leader.replica().HandOver(ctx)
		if err != nil || to == first.Load() || leader.replica().IsLeader() {
			t.Errorf("handed over to %d, %v; member %d was asked first", to, err, first.Load())
		}
	})
}

// Raft forgets at each election timeout who is active. A leader that is stopped just
// then hands over all the same.
func TestHandOverAtAnyMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, func(c *testCluster) {
			c.latency = func(now time.Time) time.Time { return now.Add(30 * time.Millisecond) }
		})
		defer c.close()
		c.leader().mustPut("k", "v")
		for i := range 60 {
			leader := c.leader()
			time.Sleep(2*time.Second + time.Duration(i)*25*time.Millisecond)
			if to, err := leader.replica().HandOver(c.short()); err != nil || to == leader.id {
				t.Errorf("after %d ms: %d, %v", i*25, to, err)
			}
		}
	})
}

func value(t *testing.T, m prometheus.Metric) float64 {
	t.Helper()
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		t.Fatal(err)
	}
	return d.GetCounter().GetValue() + d.GetGauge().GetValue()
}

// TestStopPrefersWhoAnswers: a leader that stops hands over to a member that answers now, not to one
// that answered a moment ago and sleeps since.
func TestStopPrefersWhoAnswers(t *testing.T) {
	for sleeper := range 2 {
		synctest.Test(t, func(t *testing.T) {
			c := newTestCluster(t, 3)
			defer c.close()
			leader := c.leader()
			leader.mustPut("k", "v")
			others := c.others(leader)
			leader.AskDisks([]uint64{others[0].id, others[1].id})
			time.Sleep(200 * time.Millisecond)
			asleep := others[sleeper]
			asleep.mute.Store(true)
			c.dropping(func(m *raftpb.Message) bool { return m.GetTo() == asleep.id || m.GetFrom() == asleep.id })
			ctx, cancel := context.WithTimeout(t.Context(), leader.replica().cfg.electionTimeout())
			defer cancel()
			to, err := leader.replica().HandOver(ctx)
			if want := others[1-sleeper].id; to != want || err != nil {
				t.Errorf("handed over to %x, %v, want %x", to, err, want)
			}
		})
	}
}

// TestStopAvoidsWhoLeaves: two members stop at once. The leader does not hand over to the other one,
// which has said so, even if an earlier answer of it comes late.
func TestStopAvoidsWhoLeaves(t *testing.T) {
	for leaving := range 2 {
		synctest.Test(t, func(t *testing.T) {
			c := newTestCluster(t, 3)
			defer c.close()
			leader := c.leader()
			leader.mustPut("k", "v")
			others := c.others(leader)
			leader.replica().TellDisk(others[leaving].id, DiskReport{Leaving: true})
			leader.replica().TellDisk(others[leaving].id, DiskReport{})
			to, err := leader.replica().HandOver(c.short())
			if want := others[1-leaving].id; to != want || err != nil {
				t.Errorf("handed over to %x, %v, want %x", to, err, want)
			}
		})
	}
}

// TestStopAsksWhoCameBack: the other members have stopped and started again, one after the other. The
// leader that stops now hands over to one of them, although both said lately that they stop.
func TestStopAsksWhoCameBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		defer c.close()
		leader := c.leader()
		leader.mustPut("k", "v")
		for _, m := range c.others(leader) {
			m.mute.Store(true) // it has not been asked since
			leader.replica().TellDisk(m.id, DiskReport{Leaving: true})
			time.Sleep(time.Millisecond)
			m.back.Store(time.Now().UnixNano())
		}
		if to, err := leader.replica().HandOver(c.short()); err != nil || to == leader.id {
			t.Errorf("handed over to %x, %v", to, err)
		}
	})
}

package replica

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/command"
)

// After its crash the member's durable commit index may lie below its last acknowledged write (it
// is written lazily); no read may be answered from there, although raft would.
func TestOneMemberLeadsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		defer c.close()
		begin := time.Now()
		m := c.leader()
		if took := time.Since(begin); took > time.Second {
			t.Errorf("the only member took %v to lead", took)
		}
		m.mustPut("a", "1")
		m.mustRead("a", "1")
		m.crash()
		m.restart()
		m.mustRead("a", "1")
	})
}

func TestThreeMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		defer c.close()
		leader := c.leader()
		leader.mustPut("at", "leader")
		for _, m := range c.others(leader) {
			m.mustPut("at", fmt.Sprint(m.id)) // forwarded
			m.mustRead("at", fmt.Sprint(m.id))
			leader.mustRead("at", fmt.Sprint(m.id))
		}
		var wg sync.WaitGroup
		for i := range 500 {
			wg.Go(func() {
				m := c.members[uint64(i%3+1)]
				m.mustPut(fmt.Sprint("k", i), "v")
				m.mustRead(fmt.Sprint("k", i), "v")
			})
		}
		wg.Wait()
	})
}

// The reason why Belay exists: a leader whose disk does not answer goes on
// leading, committing, applying and reading.
func TestLeaderWithStalledDiskServes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		defer c.close()
		leader := c.leader()
		term := leader.replica().Term()
		release := leader.stall()
		for i := range 380 { // shorter than what the disk watch waits for
			begin := time.Now()
			leader.mustPut(fmt.Sprint("k", i), "v")
			leader.mustRead(fmt.Sprint("k", i), "v")
			if took := time.Since(begin); took > 100*time.Millisecond {
				t.Fatalf("write %d took %v while the leader's disk stalled", i, took)
			}
			time.Sleep(10 * time.Millisecond)
		}
		if !leader.replica().IsLeader() || leader.replica().Term() != term {
			t.Fatalf("the leader changed: term %d, was %d", leader.replica().Term(), term)
		}
		if leader.log.Unsynced().Entries < 380 {
			t.Fatalf("the disk did not stall: %+v", leader.log.Unsynced())
		}
		release()
		synctest.Wait()
		if u := leader.log.Unsynced(); u.Entries != 0 {
			t.Fatalf("after the stall %+v is unsynced", u)
		}
	})
}

func TestFollowerWithStalledDiskReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		defer c.close()
		leader := c.leader()
		follower := c.others(leader)[0]
		release := follower.stall()
		for i := range 100 {
			leader.mustPut("k", fmt.Sprint(i))
			follower.mustRead("k", fmt.Sprint(i))
			time.Sleep(100 * time.Millisecond)
		}
		release()
	})
}

// With two disks of three stalled no write may be acknowledged; when one comes back, all are.
func TestWritesWaitForAQuorumOfDisks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		defer c.close()
		leader := c.leader()
		leader.mustPut("k", "before")
		release1 := leader.stall()
		release2 := c.others(leader)[0].stall()
		done := make(chan error, 1)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		go func() { done <- leader.put(ctx, "k", "after") }()
		time.Sleep(5 * time.Second)
		select {
		case err := <-done:
			t.Fatalf("a write was answered (%v) with one disk of three", err)
		default:
		}
		leader.mustRead("k", "before")
		if !leader.replica().IsLeader() {
			t.Fatal("the leader lost its lead although its messages flow")
		}
		release2()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		release1()
	})
}

func TestPartitionedLeaderServesNoStaleRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		defer c.close()
		old := c.leader()
		old.mustPut("k", "old")
		c.partition(old.id, true)
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		if err := old.put(ctx, "lost", "x"); err == nil {
			t.Fatal("a leader without followers acknowledged a write")
		}
		next := c.leader()
		if next == old {
			t.Fatal("the cut off leader still passes read barriers")
		}
		next.mustPut("k", "new")
		if err := old.replica().ReadBarrier(c.short()); err == nil {
			t.Fatal("the cut off member passed a read barrier")
		}
		c.partition(old.id, false)
		old.mustRead("k", "new")
		old.mustRead("lost", "")
	})
}

// TestReadersGoOnWithTheNextLeader: a reader whose leader is cut off learns nothing of it; etcd's gets
// an error.
func TestReadersGoOnWithTheNextLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		defer c.close()
		old := c.leader()
		other := c.others(old)[0]
		c.partition(old.id, true)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := other.replica().ReadBarrier(ctx); err != nil {
			t.Fatal(err)
		}
		if next := other.replica().Leader(); next == old.id || next == 0 {
			t.Fatalf("answered while %x was the leader", next)
		}
	})
}

// TestReunitedLeaderLeadsAgain: who led before a quorum went out of reach campaigns as soon as it
// is back, rather than at a random time up to two election timeouts later.
func TestReunitedLeaderLeadsAgain(t *testing.T) {
	atOnce := 0
	for range 10 {
		synctest.Test(t, func(t *testing.T) {
			c := newTestCluster(t, 2)
			defer c.close()
			old := c.leader()
			other := c.others(old)[0]
			other.crash()
			for old.replica().Leader() != 0 {
				time.Sleep(100 * time.Millisecond)
			}
			time.Sleep(5 * time.Second)
			other.restart()
			time.Sleep(500 * time.Millisecond) // a tick, and what messages and disks take
			synctest.Wait()
			if old.replica().IsLeader() {
				atOnce++
			}
		})
	}
	if atOnce < 7 { // now and then the other campaigns in the same moment
		t.Fatalf("in %d of 10 runs a leader half a second after both members run again", atOnce)
	}
}

func TestLaggingFollowerGetsSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, func(c *testCluster) { c.segmentBytes = smallSegment })
		defer c.close()
		leader := c.leader()
		behind := c.others(leader)[0]
		c.partition(behind.id, true)
		time.Sleep(2 * holdInactive)
		for i := range 400 { // FlushEntries is 50, KeepBytes 1: the log is dropped
			leader.mustPut(fmt.Sprint("k", i), "v")
			time.Sleep(10 * time.Millisecond)
		}
		if first := leader.log.Oldest(); first <= behind.replica().AppliedIndex() {
			t.Fatalf("the log still begins at %d", first)
		}
		c.partition(behind.id, false)
		behind.mustRead("k399", "v")
		leader.mustPut("k", "on")
		behind.mustRead("k", "on")
		behind.crash()
		behind.restart()
		behind.mustRead("k399", "v")
		behind.mustRead("k", "on")
		if c.snapshotsSent.Load() != 1 {
			t.Errorf("%d snapshots were sent", c.snapshotsSent.Load())
		}
	})
}

// While a snapshot is on its way, and until who got it has caught up, the log is
// kept for it: else it would need another one when it has the first, and so on for
// as long as more is written meanwhile than KeepBytes.
func TestOneSnapshotIsEnough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, func(c *testCluster) {
			c.snapshotTakes, c.holdBytes, c.segmentBytes = 20*time.Second, 1<<20, smallSegment
		})
		defer c.close()
		leader := c.leader()
		behind := c.others(leader)[0]
		c.partition(behind.id, true)
		time.Sleep(2 * holdInactive) // so that the leader has given it up
		for i := range 400 {         // FlushEntries is 50, KeepBytes 1: the log is dropped
			leader.mustPut(fmt.Sprint("k", i), "v")
			time.Sleep(10 * time.Millisecond)
		}
		if first := leader.log.Oldest(); first <= behind.replica().AppliedIndex() {
			t.Fatalf("the log still begins at %d", first)
		}
		c.partition(behind.id, false)
		time.Sleep(2 * time.Second)
		for i := range 4000 {
			time.Sleep(10 * time.Millisecond)
			leader.mustPut(fmt.Sprint("k", i%400), "w")
			if i < 1500 && !leader.replica().flusher.hold.Load() {
				t.Fatalf("the log is not held %d ms after the snapshot began", 2000+i*10)
			}
		}
		behind.mustRead("k399", "w")
		if n := c.snapshotsSent.Load(); n != 1 {
			t.Errorf("%d snapshots were sent", n)
		}
		time.Sleep(5 * time.Second) // it has caught up
		for i := range 200 {
			leader.mustPut(fmt.Sprint("k", i), "x")
			time.Sleep(10 * time.Millisecond)
		}
		if first, _ := leader.log.FirstIndex(); first+150 < leader.replica().AppliedIndex() { // it may be the next one
			t.Errorf("the log still begins at %d", first)
		}
	})
}

// A follower that gets a snapshot while its disk stalls takes the entries that
// follow it into memory. Raft must know that its log reaches so far: what it
// promised of them may be committed before it hears that the snapshot is stable.
func TestLogGrowsBehindPendingSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, func(c *testCluster) { c.segmentBytes = smallSegment })
		defer c.close()
		leader := c.leader()
		behind := c.others(leader)[0]
		c.partition(behind.id, true)
		time.Sleep(2 * holdInactive) // so that the leader has given it up
		for i := range 400 {
			leader.mustPut(fmt.Sprint("k", i), "v")
			time.Sleep(10 * time.Millisecond)
		}
		if oldest := leader.log.Oldest(); oldest <= behind.replica().AppliedIndex() {
			t.Fatalf("the log of the leader still begins at %d", oldest)
		}
		release := behind.stall()
		c.partition(behind.id, false)
		time.Sleep(2 * time.Second)
		c.partition(behind.id, true)
		base, _ := behind.log.LastIndex()
		if first, _ := behind.log.FirstIndex(); first != base+1 || first <= 400 {
			t.Fatalf("the log of the follower is %d to %d: no snapshot waits for the disk", first, base)
		}
		// What the leader would send: an entry, and once a quorum has it, its commit.
		leader.mustPut("after", "v")
		entries, err := leader.log.Entries(base+1, base+2, math.MaxUint64)
		if err != nil {
			t.Fatal(err)
		}
		baseTerm, _ := leader.log.Term(base)
		for _, m := range []*raftpb.Message{
			{Type: raftpb.MsgApp.Enum(), Index: new(base), LogTerm: new(baseTerm), Entries: entries, Commit: new(base)},
			{Type: raftpb.MsgHeartbeat.Enum(), Commit: new(base + 1)},
		} {
			m.From, m.To, m.Term = new(leader.id), new(behind.id), new(leader.replica().Term())
			if err := behind.replica().Process(m); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		c.partition(behind.id, false)
		synctest.Wait()
		release()
		behind.mustRead("after", "v")
	})
}

// Votes wait for the disk, and where each sync takes longer than an election
// timeout they come late. They must count all the same: with a new election at each
// timeout there would never be a leader.
func TestElectionWithSlowDisks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		defer c.close()
		old := c.leader()
		old.mustPut("k", "v")
		term := old.replica().Term()
		for _, m := range c.others(old) {
			m.slow(2140 * time.Millisecond)
		}
		old.crash()
		begin := time.Now()
		for took := time.Duration(0); ; took = time.Since(begin) {
			if a, b := c.others(old)[0].replica(), c.others(old)[1].replica(); a.IsLeader() || b.IsLeader() {
				t.Logf("a leader after %v, term %d was %d", took, a.Term(), term)
				break
			}
			if took > 90*time.Second { // two that campaign at once split the votes, which costs 6 s each time
				t.Fatalf("no leader after %v", took)
			}
			time.Sleep(100 * time.Millisecond)
		}
		for _, m := range c.others(old) {
			m.mustRead("k", "v")
		}
		old.restart()
	})
}

func TestTransferLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		defer c.close()
		leader := c.leader()
		to := c.others(leader)[1]
		ctx := c.short()
		if err := to.replica().TransferLeader(ctx, leader.id); !errors.Is(err, ErrNotLeader) {
			t.Errorf("transfer at a follower: %v", err)
		}
		if err := leader.replica().TransferLeader(ctx, 99); !errors.Is(err, ErrBadLeaderTransferee) {
			t.Errorf("transfer to a stranger: %v", err)
		}
		begin := time.Now()
		if err := leader.replica().TransferLeader(ctx, to.id); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 300*time.Millisecond {
			t.Errorf("the transfer took %v", took)
		}
		to.mustPut("k", "v")
	})
}

func TestMemberChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		defer c.close()
		leader := c.leader()
		gone := c.others(leader)[0]
		result, err := leader.replica().ProposeChange(c.short(), &command.Change{Type: raftpb.ConfChangeAddNode, MemberID: refusedMember, Member: command.Member{ID: refusedMember}})
		if err != nil || result.Err == nil {
			t.Fatalf("a refused change: %+v, %v", result, err)
		}
		result, err = leader.replica().ProposeChange(c.short(), &command.Change{Type: raftpb.ConfChangeRemoveNode, MemberID: gone.id})
		if err != nil || result.Err != nil {
			t.Fatalf("%+v, %v", result, err)
		}
		c.partition(gone.id, true)
		leader.mustPut("k", "two of two")
	})
}

// Member changes that come together, from leader and followers, each get their result: raft would
// turn those that come too early into empty entries, and who proposed them would wait in vain.
func TestMemberChangesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		defer c.close()
		c.leader()
		var wg sync.WaitGroup
		for i := range 12 {
			m := c.members[uint64(i%3+1)]
			wg.Go(func() {
				id := uint64(10 + i)
				change := &command.Change{Type: raftpb.ConfChangeAddLearnerNode, MemberID: id, Member: command.Member{ID: id, IsLearner: true}}
				if _, err := m.replica().ProposeChange(c.short(), change); err != nil {
					t.Errorf("change %d at member %d: %v", i, m.id, err)
				}
			})
		}
		wg.Wait()
		for _, m := range c.members {
			m.mustRead("", "")
			if n := len(m.state.ConfState().Learners); n != 12 {
				t.Errorf("member %d has %d learners of 12", m.id, n)
			}
		}
	})
}

// Proposals that come while there is no leader wait for one; they end in the caller's own context
// error when that is not in time, and are then never applied.
func TestProposalsWaitForALeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		defer c.close()
		leader := c.leader()
		follower := c.others(leader)[0]
		c.partition(follower.id, true)
		for follower.replica().Leader() != 0 {
			time.Sleep(100 * time.Millisecond)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := follower.put(ctx, "late", "x"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a put without a leader ends with %v", err)
		}
		done := make(chan error, 1)
		go func() { done <- follower.put(context.Background(), "held", "v") }()
		time.Sleep(2 * time.Second)
		c.partition(follower.id, false)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		follower.mustRead("held", "v")
		follower.mustRead("late", "")
	})
}

// Members crash in turn and together, with stalled disks among them, under a
// load of writers; nothing acknowledged may be lost.
func TestCrashesLoseNothingAcknowledged(t *testing.T) {
	for range 5 {
		synctest.Test(t, func(t *testing.T) {
			c := newTestCluster(t, 3)
			defer c.close()
			var mu sync.Mutex
			acknowledged := map[string]string{}
			load := func(round int) {
				var wg sync.WaitGroup
				for w := range 8 {
					m := c.members[uint64(w%3+1)]
					wg.Go(func() {
						for i := range 20 {
							ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
							key, value := fmt.Sprintf("k%d-%d-%d", round, w, i), fmt.Sprint(round, w, i)
							err := m.put(ctx, key, value)
							cancel()
							// An answer of a member whose disk is cloned already
							// reaches nobody, and may rest on a sync that is lost.
							if err == nil && !m.dead.Load() {
								mu.Lock()
								acknowledged[key] = value
								mu.Unlock()
							}
							time.Sleep(20 * time.Millisecond)
						}
					})
				}
				time.Sleep(time.Duration(c.rng.IntN(400)) * time.Millisecond)
				all := c.rng.IntN(3) == 0
				for id := uint64(1); id <= 3; id++ {
					if c.rng.IntN(3) == 0 {
						c.members[id].stall()
						time.Sleep(time.Duration(c.rng.IntN(300)) * time.Millisecond)
					}
					if all || c.rng.IntN(3) == 0 {
						c.members[id].crash()
					}
				}
				wg.Wait()
				for id := uint64(1); id <= 3; id++ {
					m := c.members[id]
					if gate := m.stalled.Swap(nil); gate != nil {
						close(*gate)
					}
					select {
					case <-m.replica().Stopped():
						m.restart()
					default:
					}
				}
			}
			for round := range 6 {
				load(round)
				c.leader()
				for key, value := range acknowledged {
					for _, m := range c.members {
						m.mustRead(key, value)
						break
					}
				}
			}
			if len(acknowledged) == 0 {
				t.Fatal("nothing was acknowledged: the test tests nothing")
			}
		})
	}
}

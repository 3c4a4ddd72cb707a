package replica

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/command"
)

// hardCrash loses all that was not synced, of the log and of the store.
func (m *testMember) hardCrash() {
	m.dead.Store(true)
	clone := m.disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 0, RNG: m.c.rng})
	if gate := m.stalled.Swap(nil); gate != nil {
		close(*gate)
	}
	synctest.Wait()
	m.replica().Stop()
	log := m.log
	go log.Close()
	m.disk = clone
	left := m.state.durable
	m.state = newMemoryState()
	if left != nil {
		m.state.replace(left)
	}
	synctest.Wait()
}

// A member must not lead a term that its disk does not know: after a crash it would
// use the term again, and have other entries at the same indexes acknowledged.
func TestCandidateStoresItsTermFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, keepLog)
		defer c.close()
		old := c.leader()
		next := c.others(old)[0]
		old.mustPut("before", "v")
		release := next.stall()
		go func() { _ = old.replica().TransferLeader(c.short(), next.id) }() // it may fail
		for range 50 {
			time.Sleep(10 * time.Millisecond)
			if next.replica().IsLeader() {
				t.Fatalf("it leads term %d, which its disk does not know", next.replica().Term())
			}
		}
		release()
		for c.leader() == nil {
			time.Sleep(10 * time.Millisecond)
		}
		c.leader().mustPut("k", "v")
		next.mustRead("k", "v")
	})
}

// The only voter leads however slow its disk is.
func TestAloneWithSlowDisk(t *testing.T) {
	for _, d := range []time.Duration{50 * time.Millisecond, 150 * time.Millisecond, time.Second, 3 * time.Second} {
		t.Run(fmt.Sprint(d), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newTestCluster(t, 1)
				defer c.close()
				m := c.leader()
				m.mustPut("a", "1")
				m.slow(d)
				m.crash()
				m.restart()
				for begin := time.Now(); !m.replica().IsLeader(); time.Sleep(10 * time.Millisecond) {
					if time.Since(begin) > time.Minute {
						t.Fatalf("no leader after a minute, term %d", m.replica().Term())
					}
				}
			})
		})
	}
}

// A follower applies many entries as one task, of which the store has parts made
// durable before raft is told that any is applied. The log keeps what raft may still
// read, or the next election ends the process.
func TestCampaignWhileReplaying(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, func(c *testCluster) { c.keepBytes = 200 << 10 })
		defer c.close()
		leader := c.leader()
		behind := c.others(leader)[0]
		leader.mustPut("k", "v")
		behind.state.applyTakes.Store(int64(3 * time.Second))
		const n = 10000
		done := make(chan struct{}, n)
		for i := range n {
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				defer cancel()
				_ = leader.put(ctx, fmt.Sprint("k", i), "0123456789012345678901234567890123456789") // may be cut off below
				done <- struct{}{}
			}()
			if i%500 == 499 {
				time.Sleep(10 * time.Millisecond)
			}
		}
		for range n {
			<-done
		}
		behind.hardCrash()
		behind.state.applyTakes.Store(int64(3 * time.Second))
		behind.restart()
		for range 40 {
			time.Sleep(250 * time.Millisecond)
			first, _ := behind.log.FirstIndex()
			var told uint64
			if err := behind.replica().inbox.ask(c.short(), behind.replica().stopped, loopFunc(func(l *loop) { told = l.node.BasicStatus().Applied })); err != nil {
				t.Fatal(err)
			}
			if first > told+1 {
				t.Fatalf("raft was told that %d is applied; the log begins at %d", told, first)
			}
		}
	})
}

// The voters that come with a snapshot count as those of a change do.
func TestVotersOfSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 4)
		defer c.close()
		leader := c.leader()
		behind, gone := c.others(leader)[0], c.others(leader)[1]
		c.partition(behind.id, true)
		result, err := leader.replica().ProposeChange(c.short(), &command.Change{Type: raftpb.ConfChangeRemoveNode, MemberID: gone.id})
		if err != nil || result.Err != nil {
			t.Fatal(result, err)
		}
		time.Sleep(5 * time.Second) // so that the leader has given it up
		for i := range 400 {
			leader.mustPut(fmt.Sprint("k", i), "v")
		}
		c.partition(behind.id, false)
		c.partition(gone.id, true)
		behind.mustRead("k399", "v")
		if got := *behind.replica().pub.voters.Load(); len(got) != 3 {
			t.Errorf("it counts %v as voters; %d was removed", got, gone.id)
		}
	})
}

// A leader that was removed answers no reads, although raft counts one voter and
// would ask nobody: that voter may have elected itself.
func TestRemovedLeaderReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 2)
		defer c.close()
		a := c.leader()
		b := c.others(a)[0]
		a.mustPut("k", "old")
		c.dropping(func(m *raftpb.Message) bool { return m.GetType() == raftpb.MsgTimeoutNow }) // b does not take over
		go a.replica().ProposeChange(context.Background(), &command.Change{Type: raftpb.ConfChangeRemoveNode, MemberID: a.id})
		for len(b.state.ConfState().GetVoters()) > 1 {
			time.Sleep(10 * time.Millisecond)
		}
		c.partition(a.id, true) // its transport refuses a, which is removed
		for !b.replica().IsLeader() {
			time.Sleep(10 * time.Millisecond)
		}
		b.mustPut("k", "new")
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if err := a.replica().ReadBarrier(ctx); err == nil && a.state.get("k") != "new" {
			t.Error("a stale read")
		}
	})
}

// A reader that comes while an older question waits for a leader has its own time.
func TestReaderHasItsOwnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		defer c.close()
		leader := c.leader()
		m := c.others(leader)[0]
		leader.mustPut("k", "v")
		c.partition(m.id, true)
		time.Sleep(3 * time.Second)
		early, late := make(chan error, 2), make(chan error, 1)
		for i := range 2 {
			go func() {
				time.Sleep(time.Duration(i) * 20 * time.Millisecond) // the second begins the next question
				early <- m.replica().ReadBarrier(context.Background())
			}()
		}
		time.Sleep(6800 * time.Millisecond)
		go func() { late <- m.replica().ReadBarrier(context.Background()) }()
		time.Sleep(600 * time.Millisecond)
		c.partition(m.id, false)
		if err := <-late; err != nil {
			t.Errorf("a reader of 0.6 s ago: %v", err)
		}
		if err := <-early; err != ErrTimeout {
			t.Errorf("a reader of 7.4 s ago: %v", err)
		}
		<-early
	})
}

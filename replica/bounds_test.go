package replica

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/evidence"
)

// The bound of these tests, and how much of the log a member may have in memory by it: a
// follower the bound twice (committed, and what its leader has not committed), either what
// one round of its loop takes in.
const (
	testBound = 4 << 20
	testHeld  = 2*testBound + 2<<20
)

func bounded(c *testCluster) { c.maxUnsynced = testBound }

// flood puts n values of 100 KiB through m, several at a time, each with a second's
// patience, and counts those that were refused.
func flood(m *testMember, n int) (refused int) { return floodOf(m, n, 100<<10) }

// floodOfSmall is flood with as many bytes in values that do not wait at the window.
func floodOfSmall(m *testMember, n int) (refused int) { return floodOf(m, 10*n, 10<<10) }

func floodOf(m *testMember, n, size int) (refused int) {
	value := strings.Repeat("v", size)
	var mu sync.Mutex
	for first := 0; first < n; first += 10 {
		var wg sync.WaitGroup
		for i := first; i < min(first+10, n); i++ {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				if m.put(ctx, fmt.Sprint("k", i%100), value) == ErrTooManyRequests {
					mu.Lock()
					refused++
					mu.Unlock()
				}
			})
		}
		wg.Wait()
	}
	return refused
}

// putWhenTaken puts as soon as m is not refused any more.
func (m *testMember) putWhenTaken(key, value string) {
	m.c.t.Helper()
	for range 300 {
		err := m.put(m.c.short(), key, value)
		if err == nil {
			return
		}
		if err != ErrTooManyRequests {
			m.c.t.Fatalf("put %s at member %d: %v", key, m.id, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	m.c.t.Fatalf("member %d still refuses after 30 s", m.id)
}

func (m *testMember) memory() int64 {
	mem, _ := m.log.Bytes()
	return mem
}

// sameAs waits until m has applied all that other has.
func (m *testMember) sameAs(other *testMember) {
	m.c.t.Helper()
	want := other.replica().AppliedIndex()
	for range 600 {
		if m.replica().AppliedIndex() >= want {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	m.c.t.Fatalf("member %d has applied %d of %d after a minute", m.id, m.replica().AppliedIndex(), want)
}

// Both followers' disks stall. They go on answering heartbeats, so the leader leads on, and
// commits nothing: what it is given, by its clients or through followers, it has to keep.
func TestUncommittedLogIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, bounded)
		defer c.close()
		leader := c.leader()
		leader.mustPut("k", "v")
		term := leader.replica().Term()
		others := c.others(leader)
		releases := []func(){others[0].stall(), others[1].stall()}
		refused := flood(leader, 200)
		if refused == 0 {
			t.Error("the leader refused nobody")
		}
		refusedThere := flood(others[0], 100)
		if refusedThere == 0 {
			t.Error("nobody was refused of those who came through a follower")
		}
		for _, m := range []*testMember{leader, others[0], others[1]} {
			if mem := m.memory(); mem > testHeld {
				t.Errorf("member %d has %d bytes of log in memory; the bound is %d", m.id, mem, testBound)
			}
		}
		if b := value(t, leader.replica().metrics.Held); b < testBound/2 {
			t.Errorf("the metric says that %v bytes are held", b)
		}
		wantRecorded(t, leader, "refusing  the disks of other members", evidence.Refusing)
		for _, release := range releases {
			release()
		}
		leader.putWhenTaken("k", "w")
		others[0].putWhenTaken("k", "x")
		if !leader.replica().IsLeader() || leader.replica().Term() != term {
			t.Error("leadership moved")
		}
		others[1].mustRead("k", "x")
	})
}

// A member change is taken by a leader that refuses writes: replacing a member whose disk
// does nothing is the way out.
func TestOverloadedLeaderTakesMemberChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, bounded)
		defer c.close()
		leader := c.leader()
		other := c.others(leader)[0]
		release := stallState(&leader.state.flushStalled)
		refused := floodOfSmall(leader, 200)
		for i, m := range []*testMember{leader, other} {
			id := uint64(8 + i)
			result, err := m.replica().ProposeChange(c.short(), &command.Change{
				Type: raftpb.ConfChangeAddLearnerNode, MemberID: id, Member: command.Member{ID: id, IsLearner: true},
			})
			if err != nil || result.Err != nil {
				t.Errorf("through member %d: %v %v", m.id, err, result.Err)
			}
		}
		if refused == 0 {
			t.Error("nothing was refused")
		}
		release()
		leader.putWhenTaken("k", "v")
	})
}

// A follower's state machine hangs, or its store does not get durable, while its log's disk
// is well. The follower falls behind instead of keeping everything, disturbs nobody, and
// catches up by itself.
func TestFollowerBehindIsBounded(t *testing.T) {
	for _, at := range []string{"apply", "flush"} {
		synctest.Test(t, func(t *testing.T) {
			c := newTestCluster(t, 3, bounded, func(c *testCluster) { c.keepBytes = 1 << 20 })
			defer c.close()
			leader := c.leader()
			leader.mustPut("k", "v")
			term := leader.replica().Term()
			behind := c.others(leader)[0]
			gate := &behind.state.applyStalled
			if at == "flush" {
				gate = &behind.state.flushStalled
			}
			release := stallState(gate)
			large := strings.Repeat("v", 100<<10)
			for i := range 600 {
				leader.putWhenTaken(fmt.Sprint("k", i%100), large)
			}
			time.Sleep(time.Minute)
			if mem := behind.memory(); mem > testHeld {
				t.Errorf("%s: the follower has %d bytes of log in memory; the bound is %d", at, mem, testBound)
			}
			if mem := leader.memory(); mem > testHeld {
				t.Errorf("%s: the leader has %d bytes of log in memory; the bound is %d", at, mem, testBound)
			}
			if !leader.replica().IsLeader() || leader.replica().Term() != term {
				t.Errorf("%s: leadership moved", at)
			}
			release()
			leader.putWhenTaken("k", "w")
			behind.sameAs(leader)
			behind.mustRead("k", "w")
		})
	}
}

// The same at the leader, that is written to by its own clients and through followers.
func TestLeaderBehindIsBounded(t *testing.T) {
	for _, at := range []string{"apply", "flush"} {
		synctest.Test(t, func(t *testing.T) {
			c := newTestCluster(t, 3, bounded, func(c *testCluster) { c.keepBytes = 1 << 20 })
			defer c.close()
			leader := c.leader()
			leader.mustPut("k", "v")
			gate := &leader.state.applyStalled
			if at == "flush" {
				gate = &leader.state.flushStalled
			}
			release := stallState(gate)
			for _, m := range []*testMember{c.others(leader)[0], leader, c.others(leader)[1]} {
				flood(m, 200)
			}
			if mem := leader.memory(); mem > testHeld {
				t.Errorf("%s: the member that led has %d bytes of log in memory; the bound is %d", at, mem, testBound)
			}
			release()
			next := c.leader() // the one with the stalled store may have handed over
			next.putWhenTaken("k", "w")
			for _, m := range c.members {
				m.sameAs(next) // it is fed, and takes no more than its bound at a time
				m.mustRead("k", "w")
			}
		})
	}
}

// What the log's memory has let go of counts as well: it is in the store's until that has flushed it.
func TestUnflushedIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1, bounded, func(c *testCluster) { c.keepBytes = 256 << 10 })
		defer c.close()
		m := c.leader()
		m.mustPut("k", "v")
		release := stallState(&m.state.flushStalled)
		if refused := floodOfSmall(m, 200); refused == 0 {
			t.Error("20 MB were taken while nothing was flushed")
		}
		if n := m.replica().flusher.unflushed.Load(); n > testHeld {
			t.Errorf("%d bytes are not flushed; the bound is %d", n, testBound)
		}
		release()
		m.putWhenTaken("k", "w")
	})
}

// Followers are full of what nobody could commit, and their leader goes. The next one can commit
// that only together with an entry of its own term, which another one that is as full has to take.
func TestFullFollowersElectAndCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, bounded)
		defer c.close()
		leader := c.leader()
		leader.mustPut("k", "v")
		others := c.others(leader)
		releases := []func(){others[0].stall(), others[1].stall()}
		flood(leader, 200)
		c.partition(leader.id, true)
		for _, release := range releases {
			release()
		}
		next := c.leader()
		if next == leader {
			t.Fatal("a member without the others leads")
		}
		next.putWhenTaken("k", "w")
		c.partition(leader.id, false)
		leader.mustRead("k", "w")
	})
}

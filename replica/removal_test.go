package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/evidence"
)

func removal(id uint64) *command.Change {
	return &command.Change{Type: raftpb.ConfChangeRemoveNode, MemberID: id, Member: command.Member{ID: id}}
}

// mustChange has a member change applied, proposed by m.
func (m *testMember) mustChange(change *command.Change) {
	m.c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if result, err := m.replica().ProposeChange(ctx, change); err != nil || result.Err != nil {
		m.c.t.Fatalf("change %v of member %d: %v, %v", change.Type, change.MemberID, result.Err, err)
	}
}

// join starts a member that another one has added.
func (c *testCluster) join(id uint64) *testMember {
	m := &testMember{id: id, c: c, disk: vfs.NewCrashableMem(), state: newMemoryState(), ring: evidence.NewRing(0)}
	c.mu.Lock()
	c.members[id] = m
	c.mu.Unlock()
	m.restart()
	return m
}

// eventually waits until done.
func (c *testCluster) eventually(what string, done func() bool) {
	c.t.Helper()
	for begin := time.Now(); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Since(begin) > 5*time.Minute {
			c.t.Fatalf("not in five minutes: %s", what)
		}
	}
}

// tells waits until m is told that it was removed: its transport asks again and again.
func (c *testCluster) tells(m *testMember) {
	c.t.Helper()
	c.eventually("a removed member is told", func() bool {
		for _, other := range c.others(m) {
			other.tellRemoved()
		}
		return m.told.Load()
	})
}

// Two voters, one is removed, which is answered. The one that is left must lead after
// a crash that keeps nothing but what was synced, however quiet the cluster was.
func TestRemovalSurvivesCrash(t *testing.T) {
	for _, wait := range []time.Duration{0, 5 * time.Second, 50 * time.Second} {
		t.Run(fmt.Sprint(wait), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newTestCluster(t, 2)
				defer c.close()
				a := c.leader()
				b := c.others(a)[0]
				a.mustPut("k", "v")
				a.mustChange(removal(b.id))
				time.Sleep(wait)
				c.partition(b.id, true) // it is gone
				a.hardCrash()
				a.restart()
				c.eventually("the member that is left leads", func() bool { return a.replica().IsLeader() })
				a.mustPut("k", "w")
			})
		})
	}
}

// Four voters, one is removed; all of the three that are left lose power, and one of them
// does not come back. Two of three are enough.
func TestRemovalSurvivesPowerFailure(t *testing.T) {
	for _, who := range []string{"leader", "follower"} {
		t.Run(who, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newTestCluster(t, 4)
				defer c.close()
				leader := c.leader()
				rest := c.others(leader)
				gone, proposer := rest[2], leader
				if who == "follower" {
					proposer = rest[0]
				}
				leader.mustPut("k", "v")
				proposer.mustChange(removal(gone.id))
				time.Sleep(time.Second) // the others hear of it
				c.partition(gone.id, true)
				left := []*testMember{leader, rest[0], rest[1]}
				for _, m := range left {
					m.hardCrash()
				}
				lost := left[c.rng.IntN(3)]
				c.partition(lost.id, true)
				for _, m := range left {
					m.restart()
				}
				c.eventually("two of three lead", func() bool {
					return slices.ContainsFunc(left, func(m *testMember) bool { return m != lost && m.replica().IsLeader() })
				})
			})
		})
	}
}

// The leader's disk stalls while a removal is committed by the others. The loop goes on, the answer
// does not come, the removed member is told nothing; all that when the disk is back.
func TestRemovalWaitsForDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 4, keepLog)
		defer c.close()
		leader := c.leader()
		gone := c.others(leader)[0]
		leader.mustPut("k", "v")
		release := leader.stall()
		for _, m := range c.others(leader)[1:] {
			c.cutBoth(m.id, gone.id, true) // their disks are well: they would tell the member that is removed
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if result, err := leader.replica().ProposeChange(ctx, removal(gone.id)); err == nil {
			t.Errorf("answered %v although the disk has nothing of it", result)
		}
		if !leader.state.isRemoved(gone.id) {
			t.Error("the removal is not applied")
		}
		if !leader.replica().RemovalPending(gone.id) || gone.told.Load() {
			t.Error("the removed member is told before it is durable")
		}
		leader.mustPut("k", "w") // nothing else waits
		release()
		c.tells(gone)
	})
}

// Two voters; one is removed while writes are under way, and the leader crashes when it has
// committed the removal and neither its disk has that nor all of the log. The removed
// member has the longer log: it has to lead, or nobody does.
func TestRemovedFollowerStaysElectable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 2, keepLog)
		defer c.close()
		a := c.leader()
		b := c.others(a)[0]
		a.mustPut("k", "v")
		// What b acknowledges of the removal is late: a write follows it before it is committed.
		release := b.stall()
		go a.replica().ProposeChange(c.short(), removal(b.id))
		time.Sleep(20 * time.Millisecond) // a's disk has the removal
		a.stall()
		go func() { _ = a.put(c.short(), "k", "w") }()
		time.Sleep(20 * time.Millisecond)
		release()
		c.eventually("the removal is committed", func() bool { return len(a.state.ConfState().GetVoters()) == 1 })
		time.Sleep(150 * time.Millisecond) // b hears of it
		if b.told.Load() {
			t.Fatal("it was told before the removal was durable")
		}
		a.hardCrash()
		a.restart()
		c.eventually("one of the two serves", func() bool { return a.put(c.short(), "k", "x") == nil })
		c.tells(b)
	})
}

// A leader that is to be removed hands over first, whoever is asked, and the member that
// is asked answers without an error.
func TestLeaderHandsOverBeforeItsRemoval(t *testing.T) {
	for voters := 2; voters <= 4; voters++ {
		for _, who := range []string{"leader", "follower"} {
			t.Run(fmt.Sprint(voters, " ", who), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := newTestCluster(t, voters)
					defer c.close()
					leader := c.leader()
					rest := c.others(leader)
					asked := leader
					if who == "follower" {
						asked = rest[0]
					}
					term := leader.replica().Term()
					leader.mustPut("k", "v")
					asked.mustChange(removal(leader.id))
					now := term // of the successor: not all of the others need have heard of it
					for _, m := range c.members {
						now = max(now, m.replica().Term())
					}
					if now == term {
						t.Error("the leader has proposed its own removal")
					}
					c.tells(leader)
					c.partition(leader.id, true) // it is gone
					for _, m := range rest {
						m.hardCrash()
					}
					for _, m := range rest {
						m.restart()
					}
					rest[0].mustPut("k", "w")
				})
			})
		}
	}
}

// Where nobody takes over, the leader proposes its removal itself. It stays until it is told, so
// that the others can have its vote, and has nothing in its log behind the removal that they lack.
func TestLeaderRemovesItself(t *testing.T) {
	for voters := 2; voters <= 3; voters++ {
		t.Run(fmt.Sprint(voters), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newTestCluster(t, voters, keepLog, func(c *testCluster) {
					c.latency = func(now time.Time) time.Time { return now.Add(5 * time.Millisecond) } // writes come before the acknowledgement
				})
				defer c.close()
				leader := c.leader()
				rest := c.others(leader)
				var at uint64 // index of the removal
				lost := true  // nobody takes over, and nobody hears of what comes after the removal, its commit included
				c.dropping(func(m *raftpb.Message) bool {
					if m.GetFrom() != leader.id {
						return false
					}
					behind := at > 0 && m.GetCommit() >= at
					for _, e := range m.GetEntries() {
						if removedBy(e) == leader.id {
							at = e.GetIndex()
						}
						behind = behind || (at > 0 && e.GetIndex() > at)
					}
					return lost && (m.GetType() == raftpb.MsgTimeoutNow || behind)
				})
				ctx, stop := context.WithCancel(context.Background())
				var writing sync.WaitGroup
				for i := range 4 {
					writing.Go(func() {
						for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
							_ = leader.put(ctx, fmt.Sprint(i), "v")
						}
					})
				}
				answered := make(chan error, 1)
				go func() {
					_, err := leader.replica().ProposeChange(context.Background(), removal(leader.id))
					answered <- err
				}()
				c.eventually("the removal is applied", func() bool { return leader.state.isRemoved(leader.id) })
				time.Sleep(200 * time.Millisecond)
				for _, m := range rest {
					c.cutBoth(leader.id, m.id, true)
				}
				time.Sleep(3 * time.Second)
				if leader.told.Load() || len(answered) > 0 {
					t.Error("it was told, or has answered, although nobody else knows")
				}
				c.mu.Lock()
				lost = false
				c.mu.Unlock()
				for _, m := range rest {
					c.cutBoth(leader.id, m.id, false)
				}
				c.eventually("another member leads", func() bool {
					return slices.ContainsFunc(rest, func(m *testMember) bool { return m.replica().IsLeader() })
				})
				c.tells(leader)
				stop()
				writing.Wait()
				if err := <-answered; err != nil && !errors.Is(err, ErrTimeout) {
					t.Error(err)
				}
				c.partition(leader.id, true) // it is gone
				rest[0].mustPut("k", "w")
			})
		})
	}
}

// A follower asks to be removed, and nothing that the others send reaches it afterwards: it is
// answered when it is told.
func TestRemovalIsAnsweredByBeingTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		defer c.close()
		leader := c.leader()
		gone := c.others(leader)[0]
		leader.mustPut("k", "v")
		c.dropping(func(m *raftpb.Message) bool {
			return m.GetTo() == gone.id && m.GetCommit() > 0 && len(m.GetEntries()) == 0 // no commit
		})
		gone.mustChange(removal(gone.id))
		if !gone.told.Load() {
			t.Error("answered before another member had said so")
		}
	})
}

// What another member forwards must not stop all of them once it is committed.
func TestForwardedProposalsAreChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1)
		defer c.close()
		m := c.leader()
		change := func(cc *raftpb.ConfChange) *raftpb.Entry {
			data, err := proto.Marshal(cc)
			if err != nil {
				t.Fatal(err)
			}
			return &raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Data: data}
		}
		good := change(removal(7).Encode())
		bad := [][]*raftpb.Entry{
			nil,
			{{Type: raftpb.EntryConfChange.Enum(), Data: []byte("no protobuf")}},
			{{Type: raftpb.EntryConfChangeV2.Enum()}},
			{change(&raftpb.ConfChange{Type: raftpb.ConfChangeAddNode.Enum(), NodeId: new(uint64(7)), Context: []byte("{}")})},
			{change(&raftpb.ConfChange{Type: raftpb.ConfChangeAddNode.Enum(), NodeId: new(uint64(7)), Context: []byte("no JSON")})},
			{good, good},
			{{}, good},
		}
		for _, entries := range bad {
			if err := m.replica().Process(&raftpb.Message{Type: raftpb.MsgProp.Enum(), From: new(uint64(2)), To: new(m.id), Entries: entries}); err == nil {
				t.Errorf("taken: %v", entries)
			}
		}
		if err := m.replica().Process(&raftpb.Message{Type: raftpb.MsgProp.Enum(), From: new(uint64(2)), To: new(m.id), Entries: []*raftpb.Entry{good}}); err != nil {
			t.Error(err)
		}
		m.mustPut("k", "v")
	})
}

// The only voter was restarted, leads, and has not committed anything in its term. The
// second member was promoted just before, which the first does not know of any more: so
// it serves linearizable reads, and must not be answered with what the disk had for committed.
func TestQuestionsWaitForTheFirstCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1, keepLog)
		defer c.close()
		a := c.leader()
		a.mustPut("k", "old")
		a.mustChange(&command.Change{Type: raftpb.ConfChangeAddLearnerNode, MemberID: 2, Member: command.Member{ID: 2, IsLearner: true}})
		b := c.join(2)
		a.mustPut("x", "1")
		b.mustRead("k", "old")
		a.mustPut("x", "2")
		time.Sleep(time.Second)

		// The promotion and, behind it, a write are on their way to the disk of a together, since it is
		// busy with another write.
		release := a.stall()
		busy := make(chan error, 1)
		go func() { busy <- a.put(context.Background(), "x", "3") }()
		time.Sleep(20 * time.Millisecond)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		go a.replica().ProposeChange(ctx, &command.Change{Type: raftpb.ConfChangeAddNode, MemberID: 2, Member: command.Member{ID: 2}, IsPromote: true})
		time.Sleep(20 * time.Millisecond)
		cut := func(from, to uint64, on bool) {
			c.mu.Lock()
			c.cut[[2]uint64{from, to}] = on
			c.mu.Unlock()
		}
		cut(1, 2, true) // the write's append is lost
		written := make(chan error, 1)
		go func() { written <- a.put(context.Background(), "k", "new") }()
		time.Sleep(20 * time.Millisecond)
		cut(2, 1, true) // what b answers is late
		release()
		synctest.Wait()
		if err := errors.Join(<-busy, <-written); err != nil {
			t.Fatal(err)
		}
		cut(1, 2, false)
		time.Sleep(150 * time.Millisecond) // one heartbeat: b learns that the promotion is committed
		if voters := b.state.ConfState().GetVoters(); len(voters) != 2 {
			t.Fatal("b does not know of its promotion")
		}
		// The promotion's commit is durable at a by now. A member that is new to the
		// configuration asks the same of one whose disk has lost it, so take it away.
		a.hardCrash()
		a.syncTakes.Store(int64(2 * time.Second))
		cut(2, 1, false)
		a.restart()
		b.mustRead("k", "new")
		a.syncTakes.Store(0)
	})
}

// The simple form, with a learner (which the server lets no linearizable read through).
func TestQuestionsOfLearnersWaitForTheFirstCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 1, keepLog)
		defer c.close()
		a := c.leader()
		a.mustPut("k", "old")
		a.mustChange(&command.Change{Type: raftpb.ConfChangeAddLearnerNode, MemberID: 2, Member: command.Member{ID: 2, IsLearner: true}})
		b := c.join(2)
		a.mustPut("x", "1")
		b.mustRead("k", "old")
		c.partition(2, true)
		a.mustPut("k", "new")
		a.hardCrash()
		a.syncTakes.Store(int64(2 * time.Second))
		c.partition(2, false)
		a.restart()
		b.mustRead("k", "new")
		a.syncTakes.Store(0)
	})
}

// How far a learner has come is measured by what is committed, not by the leader's own
// disk, which may stall.
func TestLearnerReadyWithStalledLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, keepLog)
		defer c.close()
		leader := c.leader()
		leader.mustChange(&command.Change{Type: raftpb.ConfChangeAddLearnerNode, MemberID: 4, Member: command.Member{ID: 4, IsLearner: true}})
		c.join(4)
		leader.mustPut("k", "v")
		c.eventually("the learner is ready", func() bool { return leader.replica().LearnerReady(c.short(), 4) == nil })
		defer leader.stall()()
		c.partition(4, true) // the learner hears nothing any more
		for i := range 3000 {
			leader.mustPut(fmt.Sprint("k", i%10), "v")
		}
		if err := leader.replica().LearnerReady(c.short(), 4); !errors.Is(err, ErrLearnerNotReady) {
			t.Errorf("a learner that lacks nearly all of the log: %v", err)
		}
		c.partition(4, false)
	})
}

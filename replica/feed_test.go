package replica

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
)

// smallSegment is about the smallest of the log.
const smallSegment = 16 << 10

// fedBytes is what the member has fed.
func (m *testMember) fedBytes() int64 { return int64(counted(m.c.t, m.replica().metrics.FedBytes)) }

func counted(t *testing.T, c prometheus.Metric) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue() + m.GetGauge().GetValue()
}

// settled waits until all members have applied the same, and compares what they have.
func (c *testCluster) settled() {
	c.t.Helper()
	leader := c.leader()
	leader.mustPut("settled", "yes")
	values := func(m *testMember) map[string]string {
		m.state.mu.Lock()
		defer m.state.mu.Unlock()
		return maps.Clone(m.state.values)
	}
	for _, m := range c.members {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		for m.replica().ReadBarrier(ctx) != nil {
			if ctx.Err() != nil {
				c.t.Fatalf("member %d applied %d, the leader %d: it does not catch up", m.id, m.replica().AppliedIndex(), leader.replica().AppliedIndex())
			}
		}
		if !maps.Equal(values(m), values(leader)) {
			c.t.Errorf("member %d holds other values than the leader", m.id)
		}
	}
}

// load puts 2 KiB each 20 ms, through any member, until stop; ok if one is not taken.
func (c *testCluster) load(wg *sync.WaitGroup, stop <-chan struct{}) {
	value := strings.Repeat("v", 2<<10)
	for w := range 2 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(40 * time.Millisecond):
				}
				for _, m := range c.members {
					if m.dead.Load() || !m.replica().IsLeader() {
						continue
					}
					ctx, cancel := context.WithTimeout(context.Background(), time.Second)
					_ = m.put(ctx, fmt.Sprint("k", w, "-", i%50), fmt.Sprint(value, i)) // who is not taken tries the next
					cancel()
					break
				}
			}
		})
	}
}

// A follower that is behind the log in memory, but not behind that on disk, gets it from there.
func TestFollowerIsFedFromDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, func(c *testCluster) { c.segmentBytes = smallSegment })
		defer c.close()
		leader := c.leader()
		behind := c.others(leader)[0]
		c.partition(behind.id, true)
		for i := range 2000 { // FlushEntries is 50, KeepBytes 1: memory drops them
			leader.mustPut(fmt.Sprint("k", i%300), fmt.Sprint(i))
		}
		if first, _ := leader.log.FirstIndex(); first < behind.replica().AppliedIndex()+1000 {
			t.Fatalf("the log in memory still begins at %d", first)
		}
		if leader.log.HeldBytes() == 0 {
			t.Error("nothing is held on disk")
		}
		c.partition(behind.id, false)
		c.settled()
		if n := c.snapshotsSent.Load(); n > 0 {
			t.Errorf("%d snapshots were sent", n)
		}
		if leader.fedBytes() == 0 {
			t.Error("nothing was fed")
		}
		// What was held goes when nobody needs it.
		for i := range 200 {
			leader.mustPut(fmt.Sprint("k", i), "x")
			time.Sleep(10 * time.Millisecond)
		}
		if held := leader.log.HeldBytes(); held > 2*smallSegment { // the last tick may be some entries old
			t.Errorf("%d bytes are still held", held)
		}
	})
}

// After a stall of its disk a follower has acknowledged little, and it has all. That the
// leader's memory does not reach back to what it has acknowledged is no reason to send it
// anything, be it the log or a snapshot.
func TestFollowerThatHasAllIsSentNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		defer c.close()
		leader := c.leader()
		stalled := c.others(leader)[0]
		// Raft streams to a member that has answered this leader. Before, it sends one append and
		// waits for the disk, and the follower would lack all that comes.
		for streams := false; !streams; time.Sleep(10 * time.Millisecond) {
			if err := leader.replica().inbox.ask(c.short(), leader.replica().stopped, loopFunc(func(l *loop) {
				streams = l.progress(stalled.id).State == tracker.StateReplicate
			})); err != nil {
				t.Fatal(err)
			}
		}
		release := stalled.stall()
		for i := range 500 { // FlushEntries is 50, KeepBytes 1: memory drops them
			leader.mustPut(fmt.Sprint("k", i), "v")
		}
		leader.replica().ReportUnreachable(stalled.id) // one message is lost
		time.Sleep(5 * time.Second)
		if first, _ := leader.log.FirstIndex(); first < 400 {
			t.Fatalf("the log in memory still begins at %d", first)
		}
		release()
		c.settled()
		if n, fed := c.snapshotsSent.Load(), leader.fedBytes(); n > 0 || fed > 0 {
			t.Errorf("%d snapshots and %d bytes of log were sent", n, fed)
		}
	})
}

// While a snapshot is on its way more is written than memory holds: the rest comes from
// disk, and no second snapshot is needed, for as long as the load may last.
func TestSnapshotUnderLoadEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, func(c *testCluster) {
			c.keepBytes, c.holdBytes, c.snapshotTakes, c.segmentBytes = 64<<10, 512<<10, 10*time.Second, 64<<10
		})
		defer c.close()
		leader := c.leader()
		behind := c.others(leader)[0]
		c.partition(behind.id, true)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		c.load(&wg, stop) // 100 KiB/s: 1 MiB while one snapshot is on its way
		time.Sleep(2 * holdInactive)
		c.partition(behind.id, false)
		time.Sleep(30 * time.Second)
		if lag := leader.replica().CommittedIndex() - behind.replica().AppliedIndex(); lag > 100 {
			t.Errorf("it is still %d entries behind", lag)
		}
		time.Sleep(2 * time.Minute)
		if sent := c.snapshotsSent.Load(); sent != 1 {
			t.Errorf("%d snapshots were sent", sent)
		}
		if mem, _ := leader.log.Bytes(); mem > 1<<20 {
			t.Errorf("the log holds %d bytes in memory", mem)
		}
		close(stop)
		wg.Wait()
		c.settled()
	})
}

// What is held on disk is bounded: beyond it a follower gets a snapshot again.
func TestHeldLogIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bound = 256 << 10
		c := newTestCluster(t, 3, func(c *testCluster) { c.segmentBytes, c.holdDiskBytes = smallSegment, bound })
		defer c.close()
		leader := c.leader()
		behind := c.others(leader)[0]
		c.partition(behind.id, true)
		value := strings.Repeat("v", 2<<10)
		for i := range 500 {
			leader.mustPut(fmt.Sprint("k", i%100), value)
			if held := leader.log.HeldBytes(); held > bound {
				t.Fatalf("%d bytes are held", held)
			}
		}
		if held := leader.log.HeldBytes(); held < bound/2 {
			t.Errorf("only %d bytes are held", held)
		}
		c.partition(behind.id, false)
		c.settled()
		if n := c.snapshotsSent.Load(); n != 1 {
			t.Errorf("%d snapshots were sent", n)
		}
	})
}

// Appends of a feed are lost, one in three: it goes on from what the follower has.
func TestFeedBearsLosses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, func(c *testCluster) { c.segmentBytes = 1 << 20 })
		defer c.close()
		leader := c.leader()
		behind := c.others(leader)[0]
		c.partition(behind.id, true)
		value := strings.Repeat("v", 100<<10)
		for i := range 300 {
			leader.mustPut(fmt.Sprint("k", i%10), fmt.Sprint(value, i))
		}
		rng := rand.New(rand.NewPCG(c.rng.Uint64(), 1)) // every third would be the same one of each attempt
		c.mu.Lock()
		c.lose = func(m *raftpb.Message) bool {
			return m.GetTo() == behind.id && m.GetType() == raftpb.MsgApp && rng.IntN(3) == 0
		}
		c.mu.Unlock()
		c.partition(behind.id, false)
		time.Sleep(5 * time.Minute)
		if lag := leader.replica().CommittedIndex() - behind.replica().AppliedIndex(); lag > 0 {
			t.Errorf("it is still %d entries behind", lag)
		}
		if fed := leader.fedBytes(); fed == 0 || fed > 300<<20 {
			t.Errorf("%d bytes were fed", fed)
		}
		if n := c.snapshotsSent.Load(); n > 0 {
			t.Errorf("%d snapshots were sent", n)
		}
	})
}

// Catching up is interrupted at any moment, by crashes of either side, by another leader,
// by lost connections and stalled disks; in the end all hold the same.
func TestCatchingUpInterrupted(t *testing.T) {
	for round := range 3 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newTestCluster(t, 3, func(c *testCluster) {
					c.keepBytes, c.holdBytes, c.snapshotTakes, c.segmentBytes = 16<<10, 64<<10, 3*time.Second, 64<<10
				})
				defer c.close()
				rng := rand.New(rand.NewPCG(c.rng.Uint64(), 1))
				stop := make(chan struct{})
				var wg sync.WaitGroup
				c.load(&wg, stop)
				for range 3 {
					leader := c.leader()
					behind := c.others(leader)[rng.IntN(2)]
					c.partition(behind.id, true)
					time.Sleep(time.Duration(1+rng.IntN(120)) * time.Second)
					c.partition(behind.id, false)
					for range 1 + rng.IntN(3) {
						// A snapshot takes 3 s, an election up to 2; what is fed a moment.
						time.Sleep(time.Duration(rng.IntN(5000)) * time.Millisecond)
						switch rng.IntN(6) {
						case 0, 1:
							behind.crash()
							time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
							behind.restart()
						case 2:
							leader.crash()
							time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
							leader.restart()
						case 3:
							_ = leader.replica().TransferLeader(c.short(), c.others(leader)[rng.IntN(2)].id) // or not
						case 4:
							release := behind.stall()
							time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
							release()
						case 5:
							c.partition(behind.id, true)
							time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
							c.partition(behind.id, false)
						}
					}
				}
				close(stop)
				wg.Wait()
				c.settled()
			})
		})
	}
}

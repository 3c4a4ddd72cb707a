package replica

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/belaydb/belay/evidence"
)

// storeStalls are the ways in which a store hangs.
var storeStalls = map[string]func(*testMember) (release func()){
	"a batch": func(m *testMember) func() { return stallState(&m.state.applyStalled) },
	"a flush": func(m *testMember) func() { return stallState(&m.state.flushStalled) },
	"a file operation": func(m *testMember) func() {
		now := time.Now()
		m.storeBusy.Store(&now)
		return func() { m.storeBusy.Store(nil) }
	},
}

// A leader whose store hangs, while the disk of its log is well, commits on and answers
// nothing, or keeps ever more in memory. It hands over to a member whose store is well, once.
func TestLeaderWithStalledStoreHandsOver(t *testing.T) {
	for name, stall := range storeStalls {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newTestCluster(t, 3)
				defer c.close()
				leader := c.leader()
				leader.mustPut("k", "v")
				others := c.others(leader)
				release := stall(leader)
				for i := range 100 { // more than a flush waits for
					ctx, cancel := context.WithTimeout(context.Background(), time.Second)
					_ = others[i%2].put(ctx, fmt.Sprint("k", i), "v")
					cancel()
				}
				begin := time.Now()
				for leader.replica().IsLeader() && time.Since(begin) < 8*time.Second {
					time.Sleep(10 * time.Millisecond)
				}
				if leader.replica().IsLeader() {
					t.Fatal("it still leads")
				}
				next := c.leader()
				term := next.replica().Term()
				if term != leader.replica().Term() {
					t.Error("there was another election")
				}
				if err := leader.replica().CheckDisk(); err == nil {
					t.Error("it says that it is well")
				}
				if n := value(t, leader.replica().metrics.HandOvers.WithLabelValues(reasonStore)); n != 1 {
					t.Errorf("%v hand-overs are counted", n)
				}
				if n := value(t, leader.replica().metrics.StoreState); n < float64(DiskStalled) {
					t.Errorf("the metric says %v", n)
				}
				wantRecorded(t, leader, "store-stalled", evidence.StoreStalled)
				wantRecorded(t, leader, fmt.Sprintf("hand-over %x store", next.id), evidence.HandOver)
				next.mustPut("k", "w")
				for _, m := range others {
					m.mustPut("l", "w")
				}
				time.Sleep(2 * time.Minute)
				if now := c.leader(); now != next || now.replica().Term() != term {
					t.Errorf("member %d leads in term %d; leadership had gone to %d in term %d", now.id, now.replica().Term(), next.id, term)
				}
				release()
				leader.mustRead("k", "w")
				time.Sleep(10 * time.Second)
				if err := leader.replica().CheckDisk(); err != nil {
					t.Errorf("the store is well again: %v", err)
				}
				wantRecorded(t, leader, "store-better", evidence.StoreBetter)
			})
		})
	}
}

// All stores hang, or take as long to compute the same: leadership stays where it is.
func TestLeadershipStaysWhenAllStoresStall(t *testing.T) {
	for name, stall := range storeStalls {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				core, logs := observer.New(zapcore.WarnLevel)
				c := newTestCluster(t, 3, func(c *testCluster) { c.logger = zap.New(core) })
				defer c.close()
				leader := c.leader()
				leader.mustPut("k", "v")
				term := leader.replica().Term()
				var releases []func()
				for _, m := range c.members {
					releases = append(releases, stall(m))
				}
				for i := range 100 {
					ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
					_ = leader.put(ctx, fmt.Sprint("k", i), "v")
					cancel()
				}
				time.Sleep(2 * time.Minute)
				if st := leader.replica().Status(); st.State != raft.StateLeader || st.Term != term {
					t.Errorf("member %d is %v in term %d; it led in term %d", leader.id, st.State, st.Term, term)
				}
				if logs.FilterMessage("the disk of this leader has stalled, but it goes on leading").Len() == 0 {
					t.Error("it does not say why it goes on leading")
				}
				for _, release := range releases {
					release()
				}
				leader.mustPut("k", "w")
				for _, m := range c.others(leader) {
					m.mustRead("k", "w")
				}
			})
		})
	}
}

// A member whose store hangs is not one to hand leadership to, whatever the reason: the disk of
// the leader's log, a stop.
func TestNobodyHandsOverToAStalledStore(t *testing.T) {
	for name, stall := range storeStalls {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newTestCluster(t, 3)
				defer c.close()
				leader := c.leader()
				leader.mustPut("k", "v")
				ill, well := c.others(leader)[0], c.others(leader)[1]
				release := stall(ill)
				for i := range 60 { // more than a flush waits for
					leader.mustPut(fmt.Sprint("k", i), "v")
				}
				time.Sleep(10 * time.Second)
				disk := leader.stall()
				for i := 0; leader.replica().IsLeader() && i < 100; i++ {
					_ = leader.put(c.short(), "k", "v") // may come while leadership moves
					time.Sleep(100 * time.Millisecond)
				}
				if now := c.leader(); now != well {
					t.Errorf("leadership went to member %d because of a disk", now.id)
				}
				disk()
				time.Sleep(10 * time.Second)
				if to, err := well.replica().HandOver(c.short()); err != nil || to != leader.id {
					t.Errorf("leadership went to %d at a stop: %v", to, err)
				}
				release()
			})
		})
	}
}

// A snapshot whose installation hangs is the store's work as well.
func TestInstallThatHangsIsSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// The leader's disk keeps too little of the log for what the other lacks.
		c := newTestCluster(t, 3, func(c *testCluster) { c.segmentBytes, c.holdDiskBytes = smallSegment, 1 })
		defer c.close()
		leader := c.leader()
		behind := c.others(leader)[0]
		c.partition(behind.id, true)
		for i := range 300 {
			leader.mustPut(fmt.Sprint("k", i), strings.Repeat("v", 4<<10))
		}
		release := stallState(&behind.installStalled)
		c.partition(behind.id, false)
		time.Sleep(20 * time.Second)
		if err := behind.replica().CheckDisk(); err == nil || behind.replica().Disk().State != DiskHealthy {
			t.Errorf("%v, %+v", err, behind.replica().Disk())
		}
		release()
		leader.mustPut("k", "w")
		behind.mustRead("k", "w")
	})
}

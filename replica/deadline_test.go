package replica

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/command"
)

// The state machine of a member hangs in a batch, as it does when the store's disk
// takes nothing and the store's memory is full. Whoever waits for something to be
// applied there is told so in time, at the leader and at a follower.
func TestCallsEndWhileApplyingHangs(t *testing.T) {
	for _, leads := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			const requestTimeout = 7 * time.Second
			c := newTestCluster(t, 3)
			defer c.close()
			m := c.leader()
			if !leads {
				m = c.others(m)[0]
			}
			m.mustPut("k", "v")
			m.state.applyTakes.Store(int64(time.Hour))
			change := func(ctx context.Context) error {
				_, err := m.replica().ProposeChange(ctx, &command.Change{
					Type: raftpb.ConfChangeAddLearnerNode, MemberID: 9, Member: command.Member{ID: 9, IsLearner: true},
				})
				return err
			}
			calls := []struct {
				name string
				call func(context.Context) error
			}{
				{"put", func(ctx context.Context) error { return m.put(ctx, "k", "w") }},
				{"read", m.replica().ReadBarrier},
				{"read without waiting", func(ctx context.Context) error { return barrierThen(ctx, m.replica()) }},
				{"change", change},
			}
			type ended struct {
				name  string
				bound time.Duration
				took  time.Duration
				err   error
			}
			ends := make(chan ended)
			n := 0
			for _, c := range calls {
				for _, bound := range []time.Duration{time.Second, 0} {
					n++
					go func() {
						ctx, begin := context.Background(), time.Now()
						if bound > 0 {
							var cancel context.CancelFunc
							ctx, cancel = context.WithTimeout(ctx, bound)
							defer cancel()
						}
						err := c.call(ctx)
						ends <- ended{c.name, bound, time.Since(begin), err}
					}()
				}
				time.Sleep(50 * time.Millisecond) // the first put is in the batch that hangs, the rest behind it
			}
			for range n {
				e := <-ends
				limit := e.bound
				if limit == 0 {
					limit = requestTimeout + time.Second // ended by a sweep each half second
				}
				if e.err == nil || e.took > limit {
					t.Errorf("leads %v: %s with a deadline of %v ended after %v: %v", leads, e.name, e.bound, e.took, e.err)
				}
				if e.bound == 0 && !errors.Is(e.err, ErrTimeout) && !errors.Is(e.err, ErrTimeoutLeaderFail) {
					t.Errorf("leads %v: %s without a deadline ended with %v", leads, e.name, e.err)
				}
			}
			m.state.applyTakes.Store(0)
			time.Sleep(time.Hour + time.Minute)
			m.mustRead("k", "w") // the outcome was unknown, not a refusal
		})
	}
}

// barrierThen is ReadBarrier by way of ReadBarrierThen.
func barrierThen(ctx context.Context, r *Replica) error {
	done := make(chan error, 1)
	r.ReadBarrierThen(func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Readers that do not wait share the questions of those that do, on every member, and hear of a stop.
func TestReadersThatDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		defer c.close()
		leader := c.leader()
		leader.mustPut("k", "v")
		for _, m := range append(c.others(leader), leader) {
			const readers = 20
			ends := make(chan error, 2*readers)
			for range readers {
				m.replica().ReadBarrierThen(func(err error) { ends <- err })
				go func() { ends <- m.replica().ReadBarrier(c.short()) }()
			}
			for range cap(ends) {
				if err := <-ends; err != nil {
					t.Errorf("member %d: %v", m.id, err)
				}
			}
		}
		r := leader.replica()
		r.Stop()
		if err := barrierThen(c.short(), r); !errors.Is(err, ErrStopped) {
			t.Errorf("after a stop: %v", err)
		}
	})
}

// A received snapshot that raft does not want is removed from the disk, and the disk stalls.
func TestLoopDoesNotWaitForDiscard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3)
		defer c.close()
		leader := c.leader()
		leader.mustPut("k", "v")
		term := leader.replica().Term()
		// It came while this member followed another; now it leads.
		old := &raftpb.Message{
			Type: raftpb.MsgSnap.Enum(), From: new(c.others(leader)[0].id), To: new(leader.id), Term: new(term),
			Snapshot: &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(1)), Term: new(uint64(1)), ConfState: leader.state.ConfState()}},
		}
		for range 2 { // the second takes the place of the first
			leader.replica().ProcessSnapshot(old, func() error { return nil }, func() { time.Sleep(time.Minute) })
		}
		begin := time.Now()
		err := leader.replica().ReadBarrier(c.short())
		if took := time.Since(begin); err != nil || took > time.Second {
			t.Errorf("a read took %v: %v", took, err)
		}
		time.Sleep(10 * time.Second)
		if now := c.leader(); now != leader || now.replica().Term() != term {
			t.Errorf("member %d leads in term %d; it was %d in term %d", now.id, now.replica().Term(), leader.id, term)
		}
	})
}

package replica

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/evidence"
)

// stalledOp is a kind of operation that does not end before over is closed.
type stalledOp struct {
	kind errorfs.OpKind
	over chan struct{}
	met  atomic.Bool // somebody waits
}

func (m *testMember) stallOps(kind errorfs.OpKind) (s *stalledOp, release func()) {
	s = &stalledOp{kind: kind, over: make(chan struct{})}
	m.opStalled.Store(s)
	return s, func() {
		if m.opStalled.CompareAndSwap(s, nil) {
			close(s.over)
		}
	}
}

// TestLoopWaitsForNoFileOperation stalls every kind of file operation in turn, for half a minute,
// under the leader and under a follower, while the log begins segments, is compacted, and snapshots
// that nobody wants are removed. The ticks of the raft loop come in time throughout; so in virtual
// time: at once.
func TestLoopWaitsForNoFileOperation(t *testing.T) {
	kinds := []errorfs.OpKind{
		errorfs.OpCreate, errorfs.OpLink, errorfs.OpOpen, errorfs.OpOpenDir, errorfs.OpRemove, errorfs.OpRemoveAll, errorfs.OpRename,
		errorfs.OpReuseForWrite, errorfs.OpMkdirAll, errorfs.OpLock, errorfs.OpList, errorfs.OpFilePreallocate, errorfs.OpStat,
		errorfs.OpGetDiskUsage, errorfs.OpFileRead, errorfs.OpFileReadAt, errorfs.OpFileWrite, errorfs.OpFileWriteAt,
		errorfs.OpFileStat, errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo, errorfs.OpFileFlush,
	}
	met := map[errorfs.OpKind]bool{}
	for _, kind := range kinds {
		for _, leads := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				c := newTestCluster(t, 3)
				defer c.close()
				leader := c.leader()
				m := leader
				if !leads {
					m = c.others(leader)[0]
				}
				large := strings.Repeat("v", 50<<10)
				load := func() {
					for i := range 60 { // three segments, a flush and a compaction
						ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
						_ = leader.put(ctx, fmt.Sprint("k", i), large)
						cancel()
					}
				}
				load()
				time.Sleep(time.Second)
				op, release := m.stallOps(kind)
				begin := time.Now()
				m.offerStaleSnapshot(c.others(m)[0].id)
				load()
				m.offerStaleSnapshot(c.others(m)[0].id)
				time.Sleep(time.Until(begin.Add(30 * time.Second)))
				c.leader() // somebody leads and answers
				release()
				met[kind] = met[kind] || op.met.Load()
				c.leader().mustPut("k", "last")
				for _, m := range c.members {
					m.mustRead("k", "last")
					if late := recorded(m, evidence.LateTick); len(late) > 0 {
						t.Errorf("kind %d under the leader %v: member %d: %q", kind, leads, m.id, late)
					}
				}
			})
		}
	}
	for _, kind := range []errorfs.OpKind{errorfs.OpOpen, errorfs.OpRename, errorfs.OpRemoveAll, errorfs.OpFileWriteAt, errorfs.OpFileSync, errorfs.OpFileSyncData} {
		if !met[kind] {
			t.Errorf("no operation of kind %d was met: the test tries nothing", kind)
		}
	}
}

// offerStaleSnapshot has a snapshot come, from a member, that m does not want: its files are
// on m's disk, as package store has them, and go again.
func (m *testMember) offerStaleSnapshot(from uint64) {
	fs := errorfs.Wrap(m.disk, m)
	msg := &raftpb.Message{
		Type: raftpb.MsgSnap.Enum(), From: new(from), To: new(m.id), Term: new(m.replica().Term()),
		Snapshot: &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(1)), Term: new(uint64(1)), ConfState: m.state.ConfState()}},
	}
	go func() { // as the transport receives it
		_ = fs.MkdirAll("incoming", 0o700)
		if f, err := fs.Create("incoming/1.sst", vfs.WriteCategoryUnspecified); err == nil {
			_ = f.Close()
		}
		m.replica().ProcessSnapshot(msg, func() error { return nil }, func() { _ = fs.RemoveAll("incoming") })
	}()
}

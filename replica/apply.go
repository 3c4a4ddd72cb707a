package replica

import (
	"context"
	"fmt"
	"sync"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
)

// A batch that the state machine applies in one go is cut at these, so that
// its results are not held back by much.
const (
	// One batch of the store. From 16 MiB on the engine takes a batch as it is,
	// instead of copying it into a memtable: large values get there.
	maxApplyBatchBytes   = 20 << 20
	maxApplyBatchEntries = 2048
)

// applyTask is one MsgStorageApply, or a snapshot to install.
type applyTask struct {
	entries   []*raftpb.Entry
	responses []*raftpb.Message // stepped when all entries are applied

	install   func() error
	installed chan error // capacity 1
}

// applier is the queue between the loop and the applier goroutine. Its length
// is bounded by raft, which hands out at most maxApplyingBytes of entries that
// it was not told are applied.
type applier struct {
	mu    sync.Mutex
	tasks []applyTask
	wake  chan struct{} // capacity 1: tasks is not empty

	// Owned by the applier goroutine.
	batch     []command.Entry
	waiting   []*proposal // for each entry of batch, who waits here; nil: nobody
	bytes     int
	lastTerm  uint64
	lastIndex uint64
}

func (a *applier) init() { a.wake = make(chan struct{}, 1) }

func (a *applier) enqueue(t applyTask) {
	a.mu.Lock()
	a.tasks = append(a.tasks, t)
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

func (r *Replica) runApplier() {
	a := &r.applier
	a.lastIndex, a.lastTerm = r.cfg.State.Applied()
	var tasks []applyTask
	for {
		select {
		case <-r.stopped:
			return
		case <-a.wake:
		}
		a.mu.Lock()
		tasks, a.tasks = a.tasks, tasks[:0]
		a.mu.Unlock()
		for i := range tasks {
			t := &tasks[i]
			if t.install != nil {
				r.applyBatch()
				t.installed <- r.runInstall(t.install)
				continue
			}
			for _, e := range t.entries {
				if !r.addEntry(e) {
					return
				}
			}
			if i+1 == len(tasks) || tasks[i+1].install != nil || a.bytes >= maxApplyBatchBytes/2 {
				r.applyBatch()
			}
			// Told when queued entries are in the batch or applied: raft only
			// uses it to bound what it hands out and to hold back a second
			// member change, which addEntry applies at once.
			r.inbox.local(t.responses...)
		}
		clear(tasks)
		r.metrics.Applied.Set(float64(r.applied.Load()))
	}
}

// addEntry puts an entry into the batch, applying what must not wait. It
// returns false when the replica stops.
func (r *Replica) addEntry(e *raftpb.Entry) bool {
	a := &r.applier
	index, term := e.GetIndex(), e.GetTerm()
	if index <= a.lastIndex {
		return true // the store was flushed ahead of the log, or came as a snapshot
	}
	if index != a.lastIndex+1 {
		r.cfg.Failed(fmt.Errorf("replica: entry %d was handed to the applier after entry %d", index, a.lastIndex))
		return false
	}
	a.lastIndex, a.lastTerm = index, term
	if e.GetType() != raftpb.EntryNormal {
		r.applyBatch()
		return r.applyChange(e)
	}
	entry := command.Entry{Index: index, Term: term}
	var p *proposal
	if data := e.GetData(); len(data) > 0 {
		if id := command.RequestID(data); id != 0 {
			p = r.waiters.find(id)
		}
		if p != nil && p.request != nil {
			entry.Request = p.request
		} else {
			request, err := command.Decode(data)
			if err != nil {
				r.cfg.Failed(fmt.Errorf("replica: committed entry %d of term %d cannot be decoded: %w", index, term, err))
				return false
			}
			entry.Request = request
		}
		a.bytes += len(data)
	}
	if entry.Unawaited = p == nil; p != nil {
		entry.GivenUp = &p.gone
	}
	a.batch = append(a.batch, entry)
	a.waiting = append(a.waiting, p)
	if a.bytes >= maxApplyBatchBytes || len(a.batch) >= maxApplyBatchEntries {
		r.applyBatch()
	}
	return true
}

// applyBatch applies what addEntry gathered and hands out the results.
func (r *Replica) applyBatch() {
	a := &r.applier
	if len(a.batch) == 0 {
		return
	}
	r.work.applying.start()
	results := r.cfg.State.Apply(a.batch)
	r.work.applying.stop()
	r.nowApplied(a.batch[len(a.batch)-1].Index)
	for i, p := range a.waiting {
		if p != nil {
			r.waiters.finish(p.id, results[i], nil)
		}
	}
	r.flusher.note(uint64(len(a.batch)), int64(a.bytes))
	clear(a.batch)
	clear(a.waiting)
	a.batch, a.waiting, a.bytes = a.batch[:0], a.waiting[:0], 0
}

// nowApplied publishes the applied index. It comes before any result is handed
// out: whoever got a result may expect a read at this member to show it.
func (r *Replica) nowApplied(index uint64) {
	r.applied.Store(index)
	r.reads.advance(index)
	r.cfg.Log.SetSnapshotMeta(index, r.applier.lastTerm, r.cfg.State.ConfState())
}

// applyChange applies one member change: the state machine judges it, raft
// takes the new configuration, the state machine stores both.
func (r *Replica) applyChange(e *raftpb.Entry) bool {
	fail := func(err error) bool {
		r.cfg.Failed(fmt.Errorf("replica: committed member change at index %d: %w", e.GetIndex(), err))
		return false
	}
	cc, change, err := decodeChange(e)
	if err != nil {
		return fail(err)
	}
	entry := command.Entry{Index: e.GetIndex(), Term: e.GetTerm(), Change: change}
	if entry.Refused = r.cfg.State.CheckChange(change); entry.Refused != nil {
		cc.NodeId = new(raft.None) // raft's own convention for a change that is none
	}
	applying := &changeApplied{change: cc, index: entry.Index}
	if r.inbox.ask(context.Background(), r.stopped, applying) != nil {
		return false
	}
	entry.ConfState = applying.confState
	applied := appliedChange{id: change.ID}
	if change.Type == raftpb.ConfChangeRemoveNode && entry.Refused == nil {
		applied.removes = change.MemberID
		r.changes.removing(change.MemberID) // before anyone can see that it is applied
	}
	r.work.applying.start()
	applied.result = r.cfg.State.ApplyChange(entry)
	r.work.applying.stop()
	r.nowApplied(entry.Index)
	if r.cfg.MembersChanged != nil && entry.Refused == nil {
		r.cfg.MembersChanged()
	}
	r.changes.add(applied)
	r.flusher.note(1, int64(len(e.GetData())))
	return true
}

// changeApplied has raft take a committed member change as its configuration.
type changeApplied struct {
	change    *raftpb.ConfChange
	index     uint64            // of its entry
	confState *raftpb.ConfState // the configuration with it
}

func (c *changeApplied) handle(l *loop) {
	c.confState = l.node.ApplyConfChange(c.change)
	l.publishVoters()
	if c.index >= l.removal && l.removal != 0 {
		l.findRemoval(c.index + 1)
	}
}

func decodeChange(e *raftpb.Entry) (*raftpb.ConfChange, *command.Change, error) {
	if e.GetType() != raftpb.EntryConfChange {
		return nil, nil, fmt.Errorf("entry type %s is not one that etcd 3.7 writes", e.GetType())
	}
	cc := new(raftpb.ConfChange)
	if err := proto.Unmarshal(e.GetData(), cc); err != nil {
		return nil, nil, err
	}
	change, err := command.DecodeChange(cc)
	return cc, change, err
}

// installSnapshot is called by the log's writer goroutine; the installation
// itself is the applier's work, behind everything it was given before.
func (r *Replica) installSnapshot(s *raftpb.Snapshot, install func() error) error {
	meta := s.GetMetadata()
	first, err := r.cfg.Log.FirstIndex()
	if err != nil {
		return err
	}
	r.logger.Info("applying snapshot",
		zap.Uint64("current-snapshot-index", first-1), // the base of the log
		zap.Uint64("current-applied-index", r.applied.Load()),
		zap.Uint64("incoming-leader-snapshot-index", meta.GetIndex()),
		zap.Uint64("incoming-leader-snapshot-term", meta.GetTerm()))
	r.installing.Store(true)
	defer r.installing.Store(false)
	t := applyTask{installed: make(chan error, 1)}
	t.install = func() error {
		if meta.GetIndex() <= r.applier.lastIndex {
			return fmt.Errorf("replica: raft accepted a snapshot at index %d behind the applied index %d", meta.GetIndex(), r.applier.lastIndex)
		}
		if err := install(); err != nil {
			return err
		}
		index, term := r.cfg.State.Applied()
		if index != meta.GetIndex() {
			return fmt.Errorf("replica: installed a snapshot at index %d, raft accepted %d", index, meta.GetIndex())
		}
		r.applier.lastIndex, r.applier.lastTerm = index, term
		r.raiseFlushed(index)
		r.nowApplied(index)
		if r.cfg.MembersChanged != nil {
			r.cfg.MembersChanged()
		}
		r.logger.Info("applied snapshot",
			zap.Uint64("current-snapshot-index", index),
			zap.Uint64("current-applied-index", r.applied.Load()),
			zap.Uint64("incoming-leader-snapshot-index", meta.GetIndex()),
			zap.Uint64("incoming-leader-snapshot-term", meta.GetTerm()))
		return nil
	}
	r.applier.enqueue(t)
	select {
	case err := <-t.installed:
		return err
	case <-r.stopped:
		return ErrStopped
	}
}

func (r *Replica) runInstall(install func() error) error {
	r.work.applying.start()
	err := install()
	r.work.applying.stop()
	if err != nil {
		r.cfg.Failed(fmt.Errorf("replica: install snapshot: %w", err))
	}
	return err
}

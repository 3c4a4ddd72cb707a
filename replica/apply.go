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

// The bounds of a batch that the state machine applies at once, so that its results are not delayed
// by much.
const (
	// One batch of the store. From 16 MiB on the engine takes a batch as it is, instead of copying
	// it into a memtable; large values reach that.
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

// applier is the queue between the loop and the applier goroutine. Its length is bounded by raft,
// which hands out at most maxApplyingBytes of entries beyond those that it knows to be applied.
type applier struct {
	*env
	inbox   *inbox
	waiters *waiters
	reads   *reads
	keeper  *keeper
	flusher *flusher
	work    *storeWork

	mu    sync.Mutex
	tasks []applyTask
	wake  chan struct{} // capacity 1: tasks is not empty

	// Owned by the applier goroutine.
	batch     []command.Entry
	waiting   []*proposal // for each entry of batch, who waits here; nil: nobody
	large     []largeEntry
	bytes     int
	lastTerm  uint64
	lastIndex uint64
}

func (a *applier) init(r *Replica) {
	*a = applier{
		env: r.env, inbox: &r.inbox, waiters: &r.waiters, reads: &r.reads, keeper: &r.keeper, flusher: &r.flusher, work: &r.work,
		wake: make(chan struct{}, 1),
	}
}

func (a *applier) enqueue(t applyTask) {
	a.mu.Lock()
	a.tasks = append(a.tasks, t)
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

func (a *applier) run() {
	a.lastIndex, a.lastTerm = a.cfg.State.Applied()
	var tasks []applyTask
	for {
		select {
		case <-a.stopped:
			return
		case <-a.wake:
		}
		a.mu.Lock()
		tasks, a.tasks = a.tasks, tasks[:0]
		a.mu.Unlock()
		for i := range tasks {
			t := &tasks[i]
			if t.install != nil {
				a.applyBatch()
				t.installed <- a.runInstall(t.install)
				continue
			}
			for _, e := range t.entries {
				if !a.addEntry(e) {
					return
				}
			}
			if i+1 == len(tasks) || tasks[i+1].install != nil || a.bytes >= maxApplyBatchBytes/2 {
				a.applyBatch()
			}
			// Sent when queued entries are in the batch or applied: raft uses it only to bound what
			// it hands out and to hold back a second member change, which addEntry applies at once.
			a.inbox.local(t.responses...)
		}
		clear(tasks)
		a.metrics.Applied.Set(float64(a.pub.applied.Load()))
	}
}

// addEntry puts an entry into the batch, applying what must not wait. It returns false when the
// replica stops. The methods that follow are for the applier's goroutine alone.
func (a *applier) addEntry(e *raftpb.Entry) bool {
	index, term := e.GetIndex(), e.GetTerm()
	if index <= a.lastIndex {
		return true // the store was flushed ahead of the log, or came as a snapshot
	}
	if index != a.lastIndex+1 {
		a.cfg.Failed(fmt.Errorf("replica: entry %d was handed to the applier after entry %d", index, a.lastIndex))
		return false
	}
	a.lastIndex, a.lastTerm = index, term
	if e.GetType() != raftpb.EntryNormal {
		a.applyBatch()
		return a.applyChange(e)
	}
	entry := command.Entry{Index: index, Term: term}
	var p *proposal
	if data := e.GetData(); len(data) > 0 {
		if id := command.RequestID(data); id != 0 {
			p = a.waiters.find(id)
			if len(data) >= LargeProposal {
				a.large = append(a.large, largeEntry{id, int64(len(data))})
			}
		}
		if p != nil && p.request != nil {
			entry.Request = p.request
		} else {
			request, err := command.Decode(data)
			if err != nil {
				a.cfg.Failed(fmt.Errorf("replica: committed entry %d of term %d cannot be decoded: %w", index, term, err))
				return false
			}
			entry.Request = request
		}
		if place, ok := a.cfg.Log.Places().Of(index, term); ok {
			entry.Data, entry.Place = data, place
		}
		a.bytes += len(data)
	}
	if entry.Unawaited = p == nil; p != nil {
		entry.GivenUp = &p.gone
	}
	a.batch = append(a.batch, entry)
	a.waiting = append(a.waiting, p)
	if a.bytes >= maxApplyBatchBytes || len(a.batch) >= maxApplyBatchEntries {
		a.applyBatch()
	}
	return true
}

// applyBatch applies what addEntry collected and delivers the results.
func (a *applier) applyBatch() {
	if len(a.batch) == 0 {
		return
	}
	a.work.applying.start()
	results := a.cfg.State.Apply(a.batch)
	a.work.applying.stop()
	last := &a.batch[len(a.batch)-1] // lastIndex and lastTerm may be those of a change that follows
	a.nowApplied(last.Index, last.Term)
	for i, p := range a.waiting {
		if p != nil {
			a.waiters.finish(p.id, results[i], nil)
		}
	}
	a.waiters.window.applied(a.large)
	placed := 0
	for i := range a.batch {
		placed += min(a.batch[i].Placed, len(a.batch[i].Data)) // several puts may refer to one value
	}
	a.flusher.note(uint64(len(a.batch)), int64(a.bytes), int64(placed))
	clear(a.batch)
	clear(a.waiting)
	a.batch, a.waiting, a.large, a.bytes = a.batch[:0], a.waiting[:0], a.large[:0], 0
}

// nowApplied publishes the applied index. It is called before any result is delivered: a caller
// with a result may expect a read on this member to show it.
func (a *applier) nowApplied(index, term uint64) {
	a.pub.applied.Store(index)
	a.reads.advance(index)
	a.cfg.Log.SetSnapshotMeta(index, term, a.cfg.State.ConfState())
}

// applyChange applies one member change: the state machine judges it, raft
// takes the new configuration, the state machine stores both.
func (a *applier) applyChange(e *raftpb.Entry) bool {
	fail := func(err error) bool {
		a.cfg.Failed(fmt.Errorf("replica: committed member change at index %d: %w", e.GetIndex(), err))
		return false
	}
	cc, change, err := decodeChange(e)
	if err != nil {
		return fail(err)
	}
	entry := command.Entry{Index: e.GetIndex(), Term: e.GetTerm(), Change: change}
	if entry.Refused = a.cfg.State.CheckChange(change); entry.Refused != nil {
		cc.NodeId = new(raft.None) // raft's own convention for a change that is none
	}
	applying := &changeApplied{change: cc, index: entry.Index}
	if a.inbox.ask(context.Background(), a.stopped, applying) != nil {
		return false
	}
	entry.ConfState = applying.confState
	applied := appliedChange{id: change.ID}
	if change.Type == raftpb.ConfChangeRemoveNode && entry.Refused == nil {
		applied.removes = change.MemberID
		a.keeper.removing(change.MemberID) // before anyone can see that it is applied
	}
	a.work.applying.start()
	applied.result = a.cfg.State.ApplyChange(entry)
	a.work.applying.stop()
	a.nowApplied(entry.Index, entry.Term)
	if a.cfg.MembersChanged != nil && entry.Refused == nil {
		a.cfg.MembersChanged()
	}
	a.keeper.add(applied)
	a.flusher.note(1, int64(len(e.GetData())), 0)
	return true
}

// changeApplied makes a committed member change raft's configuration.
type changeApplied struct {
	change    *raftpb.ConfChange
	index     uint64            // of its entry
	confState *raftpb.ConfState // the configuration with it
}

func (c *changeApplied) handle(l *loop) {
	c.confState = l.node.ApplyConfChange(c.change)
	l.publishVoters()
	if c.index >= l.removal.index && l.removal.index != 0 {
		l.removal.find(c.index + 1)
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

// installSnapshot is called by the log's writer goroutine; the applier does the installation, after
// everything it was given before.
func (a *applier) installSnapshot(s *raftpb.Snapshot, install func() error) error {
	meta := s.GetMetadata()
	first, err := a.cfg.Log.FirstIndex()
	if err != nil {
		return err
	}
	a.logger.Info("applying snapshot",
		zap.Uint64("current-snapshot-index", first-1), // the base of the log
		zap.Uint64("current-applied-index", a.pub.applied.Load()),
		zap.Uint64("incoming-leader-snapshot-index", meta.GetIndex()),
		zap.Uint64("incoming-leader-snapshot-term", meta.GetTerm()))
	a.pub.installing.Store(true)
	defer a.pub.installing.Store(false)
	t := applyTask{installed: make(chan error, 1)}
	t.install = func() error {
		if meta.GetIndex() <= a.lastIndex {
			return fmt.Errorf("replica: raft accepted a snapshot at index %d behind the applied index %d", meta.GetIndex(), a.lastIndex)
		}
		if err := install(); err != nil {
			return err
		}
		index, term := a.cfg.State.Applied()
		if index != meta.GetIndex() {
			return fmt.Errorf("replica: installed a snapshot at index %d, raft accepted %d", index, meta.GetIndex())
		}
		a.lastIndex, a.lastTerm = index, term
		a.pub.raiseFlushed(index)
		a.nowApplied(index, term)
		a.waiters.window.restart()
		if a.cfg.MembersChanged != nil {
			a.cfg.MembersChanged()
		}
		a.logger.Info("applied snapshot",
			zap.Uint64("current-snapshot-index", index),
			zap.Uint64("current-applied-index", a.pub.applied.Load()),
			zap.Uint64("incoming-leader-snapshot-index", meta.GetIndex()),
			zap.Uint64("incoming-leader-snapshot-term", meta.GetTerm()))
		return nil
	}
	a.enqueue(t)
	select {
	case err := <-t.installed:
		return err
	case <-a.stopped:
		return ErrStopped
	}
}

func (a *applier) runInstall(install func() error) error {
	a.work.applying.start()
	err := install()
	a.work.applying.stop()
	if err != nil {
		a.cfg.Failed(fmt.Errorf("replica: install snapshot: %w", err))
	}
	return err
}

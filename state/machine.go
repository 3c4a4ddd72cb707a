package state

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/store"
	"github.com/cockroachdb/pebble/v2"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// Sink is told of every transaction that changed keys, in revision order, after it can be read. It must not block: the
// applier waits for it.
type Sink interface {
	Notify(rev int64, events []*mvccpb.Event)
}

// Config is what a machine works with.
type Config struct {
	Store  *store.Store
	KV     *mvcc.Store
	Leases *lease.Table

	// Logger is where the machine reports and, at level fatal, stops the process. Without one it panics instead.
	Logger  *zap.Logger
	Metrics *Metrics // default: not registered
	Sink    Sink     // default: none

	// Tokens are this member's; nil: nobody gets one.
	Tokens auth.Tokens
	// OldTokens is the last entry of the log when the process started. A simple token of an entry up to it is not known
	// again, however much of the log is applied anew: it may have ended, and would begin another whole life. A token that
	// another member gave in place of an entry that was never committed is not known either; its user logs in again.
	OldTokens uint64

	MemberID, ClusterID uint64 // for log lines and metrics

	// QuotaBytes is the size at which the database is full. 0: DefaultQuotaBytes; below 0: no limit.
	QuotaBytes int64

	// MaxAnswerBytes bounds the keys and values that one request may have read. 0: no bound.
	MaxAnswerBytes int64

	// OnNoSpace, where set, is called by the applier goroutine after a write was applied although this member's database is
	// over its quota. It must not wait.
	OnNoSpace func()

	// WarningApply is from which duration a request is logged as slow. Default 100 ms.
	WarningApply time.Duration

	// OnMembership, where set, is called by the applier goroutine after the member list may have changed: a member change
	// or a snapshot. Members and IsRemoved tell the news.
	OnMembership func()
}

// Machine is the state machine of one member.
type Machine struct {
	cfg     Config
	logger  *zap.Logger
	metrics *Metrics
	quota   quota

	applied   atomic.Pointer[position]
	confState atomic.Pointer[raftpb.ConfState]

	// published is what readers see of members, alarms and versions; it is immutable. work is the applier's: published, or a changed
	// copy of it that is in the open batch and becomes published after the commit.
	published atomic.Pointer[cluster]
	work      *cluster

	// policy is what readers see of users and roles; policyWork is the applier's, with the changes of the open batch.
	policy     atomic.Pointer[policyNow]
	policyWork *auth.Policy
	writers    writers

	// The open batch; nil between batches.
	b     *store.Batch
	w     *mvcc.Writer
	bytes int64 // rough bytes in it, for the quota
	now   struct {
		index uint64
		kind  kind
	} // what is being applied, for the message of a stop

	// changes collects the transactions of the open batch for the sink.
	changes []transaction
}

type position struct{ index, term uint64 }

type transaction struct {
	rev    int64
	events []*mvccpb.Event
}

// Open reads what the store holds.
func Open(cfg Config) (*Machine, error) {
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(nil)
	}
	if cfg.WarningApply <= 0 {
		cfg.WarningApply = 100 * time.Millisecond
	}
	m := &Machine{cfg: cfg, logger: cfg.Logger, metrics: cfg.Metrics, quota: newQuota(cfg.Store, cfg.QuotaBytes)}
	if m.logger == nil {
		m.logger = zap.NewNop()
	}
	if err := m.load(); err != nil {
		return nil, err
	}
	return m, nil
}

// load takes everything that is mirrored in memory from the store.
func (m *Machine) load() error {
	c, err := readCluster(m.cfg.Store)
	if err != nil {
		return err
	}
	cs, err := readConfState(m.cfg.Store)
	if err != nil {
		return err
	}
	if err := m.loadPolicy(); err != nil {
		return err
	}
	m.work = c
	m.publishCluster()
	m.confState.Store(cs)
	index, term := m.cfg.Store.Applied()
	m.applied.Store(&position{index, term})
	return nil
}

// Reload takes over what the store holds after a snapshot was installed: keys, leases, members, alarms. Package mvcc
// and lease are reloaded from here too.
func (m *Machine) Reload() error {
	if err := m.cfg.KV.Reload(); err != nil {
		return err
	}
	if err := m.cfg.Leases.Reload(m.cfg.Store); err != nil {
		return err
	}
	if err := m.load(); err != nil {
		return err
	}
	if m.cfg.OnMembership != nil {
		m.cfg.OnMembership()
	}
	return nil
}

// Install replaces the whole state by a received snapshot, durably, and reloads. REQUIRES: no Apply runs or starts meanwhile.
func (m *Machine) Install(in *store.Incoming) error {
	m.metrics.snapshotRunning.Inc()
	defer m.metrics.snapshotRunning.Dec()
	if err := m.cfg.Store.Install(in); err != nil {
		return err
	}
	return m.Reload()
}

// Applied is the last entry whose effects can be read.
func (m *Machine) Applied() (index, term uint64) {
	p := m.applied.Load()
	return p.index, p.term
}

// ConfState is raft's configuration as of the applied index; nil before the first change. It must not be modified.
func (m *Machine) ConfState() *raftpb.ConfState { return m.confState.Load() }

// Flush starts to make everything applied so far durable: when done closes, everything up to index survives a crash.
// ctx bounds the start, which waits where the disk has stalled for long.
func (m *Machine) Flush(ctx context.Context) (index uint64, done <-chan struct{}, err error) {
	return m.cfg.Store.AsyncFlush(ctx)
}

// ClusterID is the configured one.
func (m *Machine) ClusterID() uint64 { return m.cfg.ClusterID }

// Apply applies consecutive committed entries, none of them a member change, as one store batch, and gives one result
// for each. Entries at or below the applied index give zero results.
func (m *Machine) Apply(entries []command.Entry) []command.Result {
	results := make([]command.Result, len(entries))
	index, _ := m.Applied()
	skip := 0
	for skip < len(entries) && entries[skip].Index <= index {
		skip++
	}
	fresh, out := entries[skip:], results[skip:]
	if len(fresh) == 0 {
		return results
	}
	last := fresh[len(fresh)-1]

	defer m.stopOnPanic()
	start := time.Now()
	m.open(last.Index, last.Term)
	m.b.Expect(expectedBytes(fresh))
	for i := range fresh {
		e := &fresh[i]
		index++
		m.now.index, m.now.kind = e.Index, kindNone
		switch {
		case e.Index != index:
			m.stop(fmt.Sprintf("entry %d is to be applied after entry %d", e.Index, index-1))
		case e.Change != nil:
			m.stop("a member change is among the entries of a batch")
		}
		if e.Request == nil {
			continue
		}
		start = m.applyEntry(e, &out[i], start)
	}
	m.commit(last.Index, last.Term, len(fresh))
	return results
}

// expectedBytes is about what the puts of entries will write.
func expectedBytes(entries []command.Entry) (n int) {
	for i := range entries {
		if put := entries[i].Request.GetPut(); put != nil {
			n += 2*len(put.Key) + len(put.Value) + 128
		}
	}
	return n
}

// open starts a batch.
func (m *Machine) open(index, term uint64) {
	m.b = m.cfg.Store.NewBatch(index, term)
	m.w = m.cfg.KV.NewWriter(m.b)
	m.bytes = 0
}

// commit makes the open batch permanent, then visible, then known; the order is part of the package's promise.
func (m *Machine) commit(index, term uint64, entries int) {
	start := time.Now()
	if err := m.b.Commit(); err != nil {
		m.stop(fmt.Sprintf("cannot write to the database: %v", err))
	}
	if took := time.Since(start); took > m.cfg.WarningApply {
		m.warnSlowCommit(took, index, entries)
	}
	// Before the keys: who reads what this batch wrote, and looks at the policy afterwards, must see its rules too.
	m.publishPolicy()
	m.w.Publish()
	m.b, m.w = nil, nil
	m.publishCluster()
	m.applied.Store(&position{index, term})
	if m.cfg.Sink != nil {
		for i := range m.changes {
			m.cfg.Sink.Notify(m.changes[i].rev, m.changes[i].events)
		}
	}
	clear(m.changes)
	m.changes = m.changes[:0]
}

// fatalStop is what stop panics with when the logger did not end the process, so that stopOnPanic lets it pass.
type fatalStop struct{ error }

// stop ends the process: this member's state can no longer be trusted to equal the others'.
func (m *Machine) stop(why string) {
	m.logger.Fatal("cannot apply a committed entry; stopping, so that this member's data does not part from the cluster's",
		zap.Uint64("index", m.now.index), zap.Stringer("kind", m.now.kind), zap.String("reason", why))
	panic(fatalStop{fmt.Errorf("state: cannot apply entry %d (%s): %s", m.now.index, m.now.kind, why)})
}

func (m *Machine) stopOnPanic() {
	switch p := recover().(type) {
	case nil:
	case fatalStop:
		panic(p)
	default:
		m.stop(fmt.Sprintf("broken invariant: %v\n%s", p, debug.Stack()))
	}
}

// orStop lets an error for the client pass and stops for any other: those come from reading the store.
func (m *Machine) orStop(what string, err error) error {
	switch {
	case err == nil:
	case errors.Is(err, mvcc.ErrCompacted), errors.Is(err, mvcc.ErrFutureRev),
		errors.Is(err, ErrEmptyKey), errors.Is(err, ErrInvalidSortOption), errors.Is(err, mvcc.ErrTooLarge):
	default:
		m.stop(fmt.Sprintf("%s: %v", what, err))
	}
	return err
}

// ConfStateOf is raft's configuration as a view of the store has it: of the same moment as the view's applied index.
func ConfStateOf(r store.Reader) (*raftpb.ConfState, error) { return readConfState(r) }

func readConfState(r store.Reader) (*raftpb.ConfState, error) {
	b, ok, err := r.Get(store.ConfStateKey())
	if err != nil || !ok {
		return nil, err
	}
	cs := new(raftpb.ConfState)
	if err := proto.Unmarshal(b, cs); err != nil {
		return nil, fmt.Errorf("state: stored raft configuration: %w", err)
	}
	return cs, nil
}

// revisionHeader is a header as Apply fills it.
func (m *Machine) revisionHeader() *pb.ResponseHeader { return &pb.ResponseHeader{Revision: m.w.Rev()} }

func (m *Machine) set(key, value []byte) {
	if err := m.b.Set(key, value); err != nil {
		m.stop(fmt.Sprintf("cannot write to the batch: %v", err))
	}
}

func (m *Machine) delete(key []byte) {
	if err := m.b.Delete(key); err != nil {
		m.stop(fmt.Sprintf("cannot write to the batch: %v", err))
	}
}

// eachKey calls fn for every key of a span; key and value are valid during the call only.
func eachKey(r store.Reader, span func() (lower, upper []byte), fn func(key, value []byte) error) (err error) {
	lower, upper := span()
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if err := fn(it.Key(), value); err != nil {
			return err
		}
	}
	return it.Error()
}

package state

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/internal/invariants"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/store"
)

// Sink gets every transaction that changed keys, in revision order, after it can be read. It must
// not block: the applier waits for it.
type Sink interface {
	Notify(rev int64, events []*mvccpb.Event)
}

// Config is what a machine works with.
type Config struct {
	Store  *store.Store
	KV     *mvcc.Store
	Leases *lease.Table

	// Logger takes the machine's lines and, at level fatal, stops the process. Without one it
	// panics instead.
	Logger  *zap.Logger
	Metrics *Metrics // default: not registered
	Sink    Sink     // default: none

	// Tokens are this member's; nil: nobody gets one.
	Tokens auth.Tokens
	// OldTokens is the last entry of the log when the process started. Simple tokens of entries up
	// to it are not valid again, however much of the log is reapplied: they may have ended, and
	// would start another whole life. A token that another member issued for an entry at this index
	// that was never committed is not known either; its user logs in again.
	OldTokens uint64

	MemberID, ClusterID uint64 // for log lines and metrics

	// QuotaBytes is the size at which the database is full. 0: DefaultQuotaBytes; below 0: no
	// limit.
	QuotaBytes int64

	// MaxAnswerBytes bounds the keys and values that one request may have read. 0: no bound.
	MaxAnswerBytes int64

	// OnNoSpace, where set, is called by the applier goroutine after a write was applied although
	// this member's database is over its quota. It must not wait.
	OnNoSpace func()

	// Damaged, where set, is called before the process ends because an entry cannot be applied over
	// damaged files of the store. It may wait for a disk.
	Damaged func(error)

	// WarningApply is from which duration a request is logged as slow. Default 100 ms.
	WarningApply time.Duration

	// OnMembership, if set, is called by the applier goroutine after the member list may have
	// changed, by a member change or a snapshot. Members and IsRemoved then return the new state.
	OnMembership func()
}

// Machine is the state machine of one member: what it publishes, for any goroutine, and the entry
// points of the applier goroutine. An application does the work on an open batch.
type Machine struct {
	cfg     Config
	logger  *zap.Logger
	metrics *Metrics
	quota   quota

	// applied is the last entry whose effects can be read: the applied index of the last committed
	// batch. It moves after everything else of that batch is published.
	applied   atomic.Pointer[position]
	confState atomic.Pointer[raftpb.ConfState] // raft's configuration as of applied; nil before the first change

	// published and policy are members, alarms and versions, and users and roles, as of the last
	// committed batch. What they point to never changes. They are never nil once Open has returned.
	published atomic.Pointer[cluster]
	policy    atomic.Pointer[policyNow]

	// The rest belongs to the applier goroutine.

	writers writers     // across batches; what it has learned holds for its policy only
	spare   application // the memory of every batch in turn; begin hands it out
	checks  invariants.Budget
}

type position struct{ index, term uint64 }

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

// load reads everything that is mirrored in memory from the store.
func (m *Machine) load() error {
	if err := m.loadPolicy(); err != nil {
		return err
	}
	return m.loadCluster()
}

// loadCluster is load without users and roles.
func (m *Machine) loadCluster() error {
	c, err := readCluster(m.cfg.Store)
	if err != nil {
		return err
	}
	cs, err := readConfState(m.cfg.Store)
	if err != nil {
		return err
	}
	m.publishCluster(c)
	m.confState.Store(cs)
	index, term := m.cfg.Store.Applied()
	m.applied.Store(&position{index, term})
	return nil
}

// Reload reads the store again after a snapshot was installed: keys, leases, members, alarms. It
// also reloads packages mvcc and lease.
func (m *Machine) Reload() error {
	// Before the keys, as in commit: nobody reads what came after a change of the rules by those of
	// before.
	if err := m.loadPolicy(); err != nil {
		return err
	}
	if err := m.cfg.KV.Reload(); err != nil {
		return err
	}
	if err := m.cfg.Leases.Reload(m.cfg.Store); err != nil {
		return err
	}
	if err := m.loadCluster(); err != nil {
		return err
	}
	if m.cfg.OnMembership != nil {
		m.cfg.OnMembership()
	}
	return nil
}

// Install replaces the whole state by a received snapshot, durably, and reloads. REQUIRES: no Apply
// runs or starts meanwhile.
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

// ConfState is raft's configuration as of the applied index; nil before the first change. It must
// not be modified.
func (m *Machine) ConfState() *raftpb.ConfState { return m.confState.Load() }

// Flush starts to make everything applied so far durable: when done closes, everything up to index
// survives a crash. ctx bounds the start, which may wait for a disk that has stalled for long.
func (m *Machine) Flush(ctx context.Context) (index uint64, done <-chan struct{}, err error) {
	return m.cfg.Store.AsyncFlush(ctx)
}

// ClusterID is the configured one.
func (m *Machine) ClusterID() uint64 { return m.cfg.ClusterID }

// Apply applies consecutive committed entries, none of them a member change, as one store batch,
// and returns one result for each. Entries at or below the applied index have zero results.
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

	a := m.begin(last.Index, last.Term)
	defer a.stopOnPanic()
	start := time.Now()
	a.b.Expect(m.expectedBytes(fresh))
	for i := range fresh {
		e := &fresh[i]
		index++
		a.at.index, a.at.kind = e.Index, kindNone
		switch {
		case e.Index != index:
			a.stop(fmt.Sprintf("entry %d is to be applied after entry %d", e.Index, index-1))
		case e.Change != nil:
			a.stop("a member change is among the entries of a batch")
		}
		if e.Request == nil {
			continue
		}
		start = a.applyEntry(e, &out[i], start)
	}
	a.commit(last.Index, last.Term, len(fresh))
	return results
}

// expectedBytes estimates the bytes that the puts of entries will write into the store.
func (m *Machine) expectedBytes(entries []command.Entry) (n int) {
	for i := range entries {
		if put := entries[i].Request.GetPut(); put != nil && (!entries[i].Place.IsSet() || len(put.Value) < m.cfg.Store.Segments.LeastEntry()) {
			n += 2*len(put.Key) + len(put.Value) + 128
		}
	}
	return n
}

// ConfStateOf is raft's configuration as a view of the store has it: of the same moment as the
// view's applied index.
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

package lease

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/belaydb/belay/internal/invariants"
	"github.com/belaydb/belay/store"
)

// ID names a lease. 0 means no lease.
type ID int64

// MaxTTL is the longest TTL in seconds; longer ones would overflow a time.Duration.
const MaxTTL = 9_000_000_000

var (
	ErrNotFound    = errors.New("etcdserver: requested lease not found")
	ErrExists      = errors.New("etcdserver: lease already exists")
	ErrTTLTooLarge = errors.New("etcdserver: too large lease TTL")

	// ErrNotPrimary means that only the leader can answer or renew; ask it.
	ErrNotPrimary = errors.New("not a primary lessor")
)

// Options are the settings of a table; zero values have the defaults named.
type Options struct {
	// MinTTL, in seconds, replaces every shorter TTL. etcd: the election timeout times 1.5, rounded
	// up. Default 0.
	MinTTL int64

	// RevokeRate is how many leases a second Promote lets expire: fewer than a leader can revoke, so
	// that a new one has room for its clients' writes. Default 1000.
	RevokeRate int

	// RetryInterval is the time after which Expired reports a lease again that still exists.
	// Default 3 s.
	RetryInterval time.Duration

	// CheckpointInterval is the longest time between two checkpoints of a lease that nobody renews.
	// Default 5 min. Leases shorter than twice that are checkpointed at half their TTL.
	CheckpointInterval time.Duration

	// Clock is the source of time. It must not go backwards. Default time.Now.
	Clock func() time.Time

	Metrics *Metrics // default: not registered
}

// Info is what is known of one lease.
type Info struct {
	ID  ID
	TTL int64 // granted, seconds

	// Remaining is the time to expiry: negative where that has passed, math.MaxInt64 on a member
	// that is not primary.
	Remaining time.Duration
}

// Table is the lease table of one member. See the package's documentation for who may call what.
type Table struct {
	opts Options
	base time.Time // Clock at Open; times below are nanoseconds since

	mu     sync.RWMutex // held before lookMu
	leases map[ID]*entry

	// While primary: the term for which Promote was called, and a channel that Demote closes.
	primary bool
	term    uint64
	demoted chan struct{}
	// demotedTerm is the highest term in which this member is known not to lead, or no longer.
	demotedTerm uint64

	lookMu sync.Mutex
	// expiries is empty unless primary; else it has every lease, at an expiry that it had. Renewals
	// move an expiry on, but one that Promote has extended or spread may have been moved back
	// since: by that much the lease lives longer.
	expiries    heap
	checkpoints heap // empty unless primary; else every lease long enough to be checkpointed
	checks      invariants.Budget
}

// entry is one lease.
type entry struct {
	id  ID
	ttl int64 // seconds, as stored; see Table.fullTTL

	// remaining is the last checkpoint in seconds; 0: none.
	remaining atomic.Int64

	// expiry is when the lease expires, or never. Renew moves it and Expired marks it (reported), both
	// by compare-and-swap, so that a lease is never both renewed and revoked.
	expiry atomic.Int64

	// doubt: a checkpoint was proposed, and whether it will be applied is not known.
	doubt atomic.Bool

	// noting is set from the report of a checkpoint until Noted; Renew waits for it to be closed.
	noting atomic.Pointer[chan struct{}]

	// Guarded by lookMu.
	expiryPlace, checkpointPlace int
	understated                  bool // the checkpoint must be taken back; see takeBackIfUnderstated

	gone chan struct{} // closed when the lease is revoked
}

const never = math.MaxInt64 // this member is not primary

// reported marks the expiry of a lease that Expired has reported: below 0, where no expiry is.
func reported(at int64) int64 { return -1 - at }

// expiredAt is the time of an expiry that reported marked.
func expiredAt(mark int64) int64 { return -1 - mark }

// Open reads the leases from the store.
func Open(r store.Reader, opts Options) (*Table, error) {
	if opts.RevokeRate <= 0 {
		opts.RevokeRate = 1000
	}
	if opts.RetryInterval <= 0 {
		opts.RetryInterval = 3 * time.Second
	}
	if opts.CheckpointInterval <= 0 {
		opts.CheckpointInterval = 5 * time.Minute
	}
	if opts.Clock == nil {
		opts.Clock = time.Now
	}
	if opts.Metrics == nil {
		opts.Metrics = NewMetrics(nil)
	}
	t := &Table{opts: opts, base: opts.Clock()}
	t.expiries.place = func(e *entry) *int { return &e.expiryPlace }
	t.checkpoints.place = func(e *entry) *int { return &e.checkpointPlace }
	if err := t.Reload(r); err != nil {
		return nil, err
	}
	return t, nil
}

func (t *Table) now() int64 { return int64(t.opts.Clock().Sub(t.base)) }

func newEntry(id ID, ttl, remaining int64) *entry {
	e := &entry{id: id, ttl: ttl, expiryPlace: -1, checkpointPlace: -1, gone: make(chan struct{})}
	e.remaining.Store(remaining)
	e.expiry.Store(never)
	return e
}

// fullTTL is the TTL that clients see, in seconds.
func (t *Table) fullTTL(e *entry) int64 { return max(e.ttl, t.opts.MinTTL) }

// Reload forgets everything and reads the leases from the store, after a snapshot was installed.
func (t *Table) Reload(r store.Reader) error {
	leases := map[ID]*entry{}
	if err := readRecords(r, func(id ID, ttl, remaining int64) {
		leases[id] = newEntry(id, ttl, remaining)
	}); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, old := range t.leases {
		if leases[id] == nil {
			close(old.gone)
		}
	}
	t.leases = leases
	t.lookMu.Lock()
	defer t.lookMu.Unlock()
	t.expiries.clear()
	t.checkpoints.clear()
	if t.primary {
		t.startClocks(0)
	}
	t.checkInvariants()
	return nil
}

// MinTTL is Options.MinTTL.
func (t *Table) MinTTL() int64 { return t.opts.MinTTL }

// Grant adds a lease and returns its TTL, which is at least MinTTL.
func (t *Table) Grant(b *store.Batch, id ID, ttl int64) (granted int64, err error) {
	switch {
	case id == 0:
		return 0, ErrNotFound
	case ttl > MaxTTL:
		return 0, ErrTTLTooLarge
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.leases[id] != nil {
		return 0, ErrExists
	}
	e := newEntry(id, max(ttl, 0), 0)
	if err := t.writeRecord(b, e); err != nil {
		return 0, err
	}
	t.leases[id] = e
	granted = t.fullTTL(e)
	if t.primary {
		t.lookMu.Lock()
		t.startClock(e, t.now(), 0)
		t.checkInvariants()
		t.lookMu.Unlock()
	}
	t.opts.Metrics.granted.Inc()
	t.opts.Metrics.ttl.Observe(float64(granted))
	return granted, nil
}

// Revoke removes a lease. REQUIRES: its keys are deleted and detached in the same batch.
func (t *Table) Revoke(b *store.Batch, id ID) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.leases[id]
	if e == nil {
		return ErrNotFound
	}
	if err := deleteRecord(b, id); err != nil {
		return err
	}
	delete(t.leases, id)
	close(e.gone)
	t.lookMu.Lock()
	t.expiries.remove(e)
	t.checkpoints.remove(e)
	t.checkInvariants()
	t.lookMu.Unlock()
	t.opts.Metrics.revoked.Inc()
	return nil
}

// Checkpoint records what was left of a lease's TTL, in seconds, for the next primary; 0 or less
// clears the record. It does not touch the running expiry. An unknown lease is no error: it may
// have been revoked since.
func (t *Table) Checkpoint(b *store.Batch, id ID, remaining int64) error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	e := t.leases[id]
	if e == nil {
		return nil
	}
	e.remaining.Store(max(remaining, 0))
	if remaining <= 0 {
		e.doubt.Store(false) // what was proposed before it was applied before it, or never will be
	}
	if t.primary && remaining > 0 {
		t.takeBackIfUnderstated(e, remaining)
	}
	return t.writeRecord(b, e)
}

// Exists reports whether the lease exists. The applier asks before it attaches a key.
func (t *Table) Exists(id ID) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.leases[id] != nil
}

// Lookup returns what is known about a lease.
func (t *Table) Lookup(id ID) (Info, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	e := t.leases[id]
	if e == nil {
		return Info{}, false
	}
	return t.info(e, t.now()), true
}

// List returns all leases in the order of their expiry, those of one expiry by id.
func (t *Table) List() []Info {
	t.mu.RLock()
	now := t.now()
	infos := make([]Info, 0, len(t.leases))
	for _, e := range t.leases {
		infos = append(infos, t.info(e, now))
	}
	t.mu.RUnlock()
	slices.SortFunc(infos, func(a, b Info) int {
		return cmp.Or(cmp.Compare(a.Remaining, b.Remaining), cmp.Compare(a.ID, b.ID))
	})
	return infos
}

func (t *Table) info(e *entry, now int64) Info {
	info := Info{ID: e.id, TTL: t.fullTTL(e)}
	switch at := e.expiry.Load(); {
	case at == never:
		info.Remaining = math.MaxInt64
	case at < 0:
		info.Remaining = time.Duration(expiredAt(at) - now)
	default:
		info.Remaining = time.Duration(at - now)
	}
	return info
}

// Len is the number of leases.
func (t *Table) Len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.leases)
}

func (t *Table) writeRecord(b *store.Batch, e *entry) error {
	if err := writeRecord(b, e.id, e.ttl, e.remaining.Load()); err != nil {
		return fmt.Errorf("lease: write lease %016x: %w", uint64(e.id), err)
	}
	return nil
}

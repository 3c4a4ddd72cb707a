package leader

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/raft/v3"
	"go.uber.org/zap"

	"github.com/belaydb/belay/lease"
)

// The leader's part in leases: only it decides that one has expired, by an entry that revokes it;
// and it checkpoints the remaining time of leases that nobody renews, so that elections do not keep
// giving these their full time (in etcd a feature gate; here always on, without an entry for a
// lease that its client keeps alive).
const (
	expiryInterval     = 500 * time.Millisecond
	maxRevokesAtOnce   = 500 // before leadership is confirmed again
	maxPendingRevokes  = 128 // beside the writes of clients; etcd: 16
	maxCheckpointBatch = 1000
)

// Leases is the clock of the leases; *lease.Table is one.
type Leases interface {
	Promote(term uint64, extend time.Duration) bool
	Demote(term uint64)
	// Expired and Checkpoints report for the term that the table was promoted in.
	Expired(limit int) (term uint64, ids []lease.ID)
	Checkpoints(limit int) (term uint64, due []lease.Checkpoint)
	Noted(due []lease.Checkpoint, applied bool)
}

// ExpiryConfig is what Expiry needs.
type ExpiryConfig struct {
	MemberID uint64
	Raft     Raft
	Leases   Leases
	// Revoke and Note propose as the leader of term.
	Revoke func(ctx context.Context, term uint64, id lease.ID) error
	Note   func(ctx context.Context, term uint64, due []lease.Checkpoint) error
	// MayNote reports whether checkpoints are allowed. They are not while a real etcd member is in
	// the cluster: without its LeaseCheckpoint gate it never clears one when the lease is renewed.
	MayNote func() bool
	Revoked func()        // counts the leases that expired
	Retry   time.Duration // between two tries of a term's first read barrier
	Logger  *zap.Logger   // nil: none
}

// Expiry makes the lease table primary while this member leads, and proposes what follows from the
// table's clock.
type Expiry struct{ cfg ExpiryConfig }

// NewExpiry makes it; it does not touch the table before Run.
func NewExpiry(cfg ExpiryConfig) *Expiry {
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	return &Expiry{cfg}
}

// tenure is the state in which the lease table should be.
type tenure struct {
	leads bool
	// term is the one in which the member leads or, if it does not lead, the newest one in which it
	// no longer can: the table is demoted up to it.
	term uint64
}

// tenureOf derives it from raft's state and term.
func tenureOf(state raft.StateType, term uint64) tenure {
	switch state {
	case raft.StateLeader:
		return tenure{true, term}
	case raft.StateCandidate:
		// It does not lead in this term yet, but may: demoting the term would refuse its promotion,
		// and no lease would expire in the whole term.
		return tenure{false, term - 1}
	}
	return tenure{false, term}
}

// holds reports whether the member is still the leader of a term.
func (t tenure) holds(term uint64) bool { return t.leads && t.term == term }

// Run drives the table until ctx ends.
func (e *Expiry) Run(ctx context.Context) {
	for ctx.Err() == nil {
		changed := e.cfg.Raft.LeaderChanged()
		t := tenureOf(e.cfg.Raft.Role())
		if t.leads {
			e.lead(ctx, t.term, changed)
			continue
		}
		e.cfg.Leases.Demote(t.term)
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// lead drives the table as the leader of term until the leader changes.
func (e *Expiry) lead(ctx context.Context, term uint64, changed <-chan struct{}) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-changed:
			cancel()
		case <-ctx.Done():
		}
	}()
	// The barrier returns when this member has applied the first entry of its term, and so all
	// leases granted or renewed by earlier entries.
	for e.cfg.Raft.ReadBarrier(ctx) != nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(e.cfg.Retry):
		}
	}
	if !tenureOf(e.cfg.Raft.Role()).holds(term) {
		return // LeaderChanged is closed, or about to be
	}
	e.cfg.Leases.Promote(term, e.cfg.Raft.ElectionTimeout())
	tick := time.NewTicker(expiryInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// etcd revokes 500 leases at a tick, whatever is due. Where more are granted, they expire
		// minutes late. What keeps revocations from crowding out other writes is that no more of
		// them wait at a time than of the writes of a busy client.
		for more := true; more; {
			more = e.revoke(ctx)
			e.note(ctx)
		}
	}
}

// revoke proposes the revocation of what has expired. A leader that comes back from a stall finds
// leases expired that its successor has renewed since. So it confirms its leadership first, and
// each proposal is bound to the term. It reports whether more may have expired; what could not be
// revoked has not, for a while (lease.Options.RetryInterval).
func (e *Expiry) revoke(ctx context.Context) (more bool) {
	term, ids := e.cfg.Leases.Expired(maxRevokesAtOnce)
	if len(ids) == 0 {
		return false
	}
	if err := e.cfg.Raft.ReadBarrier(ctx); err != nil {
		e.cfg.Logger.Warn("Failed to check current member's leadership", zap.Error(err))
		return false
	}
	if !tenureOf(e.cfg.Raft.Role()).holds(term) {
		e.cfg.Logger.Warn("Ignore the lease revoking request because current member isn't a leader",
			zap.Uint64("local-member-id", e.cfg.MemberID))
		return false
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxPendingRevokes)
	for _, id := range ids {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			err := e.cfg.Revoke(ctx, term, id)
			switch {
			case err == nil:
				e.cfg.Revoked()
			case errors.Is(err, lease.ErrNotFound): // revoked by its client meanwhile
			case ctx.Err() == nil:
				e.cfg.Logger.Warn("failed to revoke lease", zap.String("lease-id", fmt.Sprintf("%016x", uint64(id))), zap.Error(err))
			}
		})
	}
	wg.Wait()
	return len(ids) == maxRevokesAtOnce && ctx.Err() == nil
}

// note proposes checkpoints of remaining times.
func (e *Expiry) note(ctx context.Context) {
	if !e.cfg.MayNote() {
		return
	}
	term, due := e.cfg.Leases.Checkpoints(maxCheckpointBatch)
	if len(due) == 0 {
		return
	}
	err := e.cfg.Note(ctx, term, due)
	e.cfg.Leases.Noted(due, err == nil)
	if err != nil && ctx.Err() == nil && tenureOf(e.cfg.Raft.Role()).holds(term) {
		e.cfg.Logger.Warn("failed to note the remaining time of leases", zap.Int("leases", len(due)), zap.Error(err))
	}
}

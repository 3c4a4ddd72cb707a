package lease

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// checkpointMinTTL is the shortest TTL in seconds for which a checkpoint is worth an entry.
const checkpointMinTTL = 5

// Overlap is how much longer than it has left a new primary lets each lease live, at least. The leader
// before, which may not know that it was replaced, answers renewals for that long at most after the
// election of the next: both sides hold to it whatever election timeout their members were given, since
// during a rolling change of that flag these differ.
const Overlap = time.Second

// Checkpoint is what is left of one lease's TTL.
type Checkpoint struct {
	ID        ID
	Remaining int64 // seconds, rounded up
}

// Renew gives the lease its full TTL from now on and returns that TTL in seconds.
//
// If checkpointed is true the caller must clear the checkpoint by an entry (Checkpoint with 0)
// before it answers its client; otherwise the next leader would let the lease expire too early.
//
// A lease that has expired is about to be revoked; Renew then waits for the revocation and returns
// ErrNotFound, or ErrNotPrimary if this member is demoted first, or the context's error.
func (t *Table) Renew(ctx context.Context, id ID) (ttl int64, checkpointed bool, err error) {
	for {
		t.mu.RLock()
		e, primary, demoted := t.leases[id], t.primary, t.demoted
		if !primary {
			t.mu.RUnlock()
			return 0, false, ErrNotPrimary
		}
		if e == nil {
			t.mu.RUnlock()
			return 0, false, ErrNotFound
		}
		ttl = t.fullTTL(e)
		old, now := e.expiry.Load(), t.now()
		if old > now {
			swapped := e.expiry.CompareAndSwap(old, now+ttl*int64(time.Second))
			noting := e.noting.Load() // after the swap: see Checkpoints
			checkpointed = e.remaining.Load() > 0 || e.doubt.Load()
			t.mu.RUnlock()
			if !swapped {
				continue // another renewal, or Expired was faster
			}
			if noting != nil {
				// A checkpoint of what was left before this renewal is on its way through the log.
				// An answer now would promise more than the next leader would know.
				select {
				case <-*noting:
					checkpointed = e.remaining.Load() > 0 || e.doubt.Load()
				case <-e.gone:
					return 0, false, ErrNotFound
				case <-demoted:
					return 0, false, ErrNotPrimary
				case <-ctx.Done():
					return 0, false, ctx.Err()
				}
			}
			t.opts.Metrics.renewed.Inc()
			return ttl, checkpointed, nil
		}
		t.mu.RUnlock()
		select {
		case <-e.gone:
			return 0, false, ErrNotFound
		case <-demoted:
			return 0, false, ErrNotPrimary
		case <-ctx.Done():
			return 0, false, ctx.Err()
		}
	}
}

// RenewNow is Renew where nothing has to be waited for, neither a revocation, a checkpoint that is on
// its way or must be cleared, nor whoever changes the table. Otherwise it returns false, and Renew is
// to be called, though the lease may have its full TTL already. It waits for nothing.
func (t *Table) RenewNow(id ID) (ttl int64, ok bool) {
	if !t.mu.TryRLock() {
		return 0, false
	}
	defer t.mu.RUnlock()
	e := t.leases[id]
	if e == nil || !t.primary {
		return 0, false
	}
	ttl = t.fullTTL(e)
	old, now := e.expiry.Load(), t.now()
	if old <= now || !e.expiry.CompareAndSwap(old, now+ttl*int64(time.Second)) {
		return 0, false
	}
	if e.noting.Load() != nil || e.remaining.Load() > 0 || e.doubt.Load() { // after the swap: see Checkpoints
		return 0, false
	}
	t.opts.Metrics.renewed.Inc()
	return ttl, true
}

// Primary reports whether this member decides expiries, and as leader of which term.
func (t *Table) Primary() (term uint64, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.term, t.primary
}

// Promote makes this member primary for a term that it leads. Each lease gets what was left of it
// plus extend, this member's election timeout, or Overlap if that is longer; where more leases would
// expire in a second than may be revoked in one, they are spread. It returns false, and does nothing,
// if this term or a later one was demoted already.
func (t *Table) Promote(term uint64, extend time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if term <= t.demotedTerm || (t.primary && term <= t.term) {
		return false
	}
	if t.primary {
		close(t.demoted) // callers that wait for a revocation of the earlier term must try again
	}
	t.primary, t.term, t.demoted = true, term, make(chan struct{})
	t.lookMu.Lock()
	defer t.lookMu.Unlock()
	t.expiries.clear()
	t.checkpoints.clear()
	t.startClocks(max(extend, Overlap))
	t.checkInvariants()
	return true
}

// Demote says that this member does not lead in term, or no longer. Leases stop expiring here. A
// later Promote for this term or an earlier one is ignored.
func (t *Table) Demote(term uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.demotedTerm = max(t.demotedTerm, term)
	if !t.primary || term < t.term {
		return
	}
	t.primary = false
	close(t.demoted)
	for _, e := range t.leases {
		e.expiry.Store(never)
	}
	t.lookMu.Lock()
	t.expiries.clear()
	t.checkpoints.clear()
	t.checkInvariants()
	t.lookMu.Unlock()
}

// startClocks starts the expiry of all leases. REQUIRES: mu and lookMu held, the heaps empty.
func (t *Table) startClocks(extend time.Duration) {
	now := t.now()
	for _, e := range t.leases {
		t.startClock(e, now, extend)
	}
	if len(t.leases) >= t.opts.RevokeRate {
		t.spread()
	}
}

// startClock starts the expiry of one lease. REQUIRES: mu and lookMu held.
func (t *Table) startClock(e *entry, now int64, extend time.Duration) {
	at := now + t.left(e)*int64(time.Second) + int64(extend)
	e.expiry.Store(at)
	t.expiries.set(e, at)
	if t.fullTTL(e) >= checkpointMinTTL {
		t.checkpoints.set(e, t.checkpointAt(e, at))
	}
}

// left is what a new primary gives a lease, in seconds: the checkpoint, or the full TTL.
func (t *Table) left(e *entry) int64 {
	full := t.fullTTL(e)
	if r := e.remaining.Load(); r > 0 && r < full {
		return r
	}
	return full
}

// spread moves expiries apart so that no second has more than three quarters of the revoke rate:
// leases that piled up while there was no leader must not use up the whole rate. REQUIRES: mu and
// lookMu held.
func (t *Table) spread() {
	all := make([]*entry, 0, len(t.leases))
	for _, e := range t.leases {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.expiry.Load(), b.expiry.Load()), cmp.Compare(a.id, b.id))
	})
	perSecond := max(1, t.opts.RevokeRate*3/4)
	// Leases are assigned to windows of one second each; what does not fit into one expires at the
	// start of the next.
	windowStart, inWindow := all[0].expiry.Load(), 0
	for _, e := range all {
		at := e.expiry.Load()
		if at >= windowStart+int64(time.Second) {
			windowStart, inWindow = at, 0
		} else if inWindow >= perSecond {
			windowStart, inWindow = windowStart+int64(time.Second), 0
		}
		inWindow++
		if at < windowStart {
			e.expiry.Store(windowStart)
			t.expiries.set(e, windowStart)
			if e.checkpointPlace >= 0 {
				t.checkpoints.set(e, t.checkpointAt(e, windowStart))
			}
		}
	}
}

// Expired reports up to limit leases that have expired, and the term; only the leader of that term
// may revoke them. Each is reported once in RetryInterval until it is gone. A member that is not
// primary reports none.
func (t *Table) Expired(limit int) (term uint64, ids []ID) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if !t.primary {
		return 0, nil
	}
	t.lookMu.Lock()
	defer t.lookMu.Unlock()
	now := t.now()
	for len(ids) < limit && t.expiries.len() > 0 && t.expiries.at[0] <= now {
		e := t.expiries.items[0]
		at := e.expiry.Load()
		if at > now { // renewed since it got this place
			t.expiries.set(e, at)
			continue
		}
		if at >= 0 && !e.expiry.CompareAndSwap(at, reported(at)) {
			continue // renewed just now: look again
		}
		ids = append(ids, e.id)
		t.expiries.set(e, now+int64(t.opts.RetryInterval))
	}
	t.checkInvariants()
	return t.term, ids
}

// Checkpoints reports up to limit leases whose remaining TTL should be recorded by an entry, and
// the term; only the leader of that term may propose it. A lease is reported when nobody has
// renewed it for half its TTL, or CheckpointInterval, and again after half of what is then left.
// Remaining 0 clears an earlier checkpoint.
//
// The caller must call Noted with the result once the entry is applied or given up; until then
// renewals of these leases wait.
func (t *Table) Checkpoints(limit int) (term uint64, due []Checkpoint) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if !t.primary {
		return 0, nil
	}
	t.lookMu.Lock()
	defer t.lookMu.Unlock()
	now := t.now()
	for len(due) < limit && t.checkpoints.len() > 0 && t.checkpoints.at[0] <= now {
		e := t.checkpoints.items[0]
		at := e.expiry.Load()
		if at <= now { // it expires, or was reported: nothing left to note; Revoke takes it out
			t.checkpoints.set(e, now+int64(t.opts.RetryInterval))
			continue
		}
		if e.understated {
			e.understated = false
			if e.remaining.Load() > 0 {
				due = append(due, Checkpoint{ID: e.id})
			}
			t.checkpoints.set(e, t.checkpointAt(e, at))
			continue
		}
		if next := t.checkpointAt(e, at); next > now { // renewed since it got this place
			t.checkpoints.set(e, next)
			continue
		}
		// Set the mark first, then read the expiry again, while Renew moves the expiry and then
		// looks for the mark: at least one of the two sees the other.
		noting := make(chan struct{})
		e.noting.Store(&noting)
		if at = e.expiry.Load(); at <= now || t.checkpointAt(e, at) > now {
			e.noting.Store(nil)
			close(noting)
			continue // looked at again: reported, or renewed just now
		}
		left := (at - now + int64(time.Second) - 1) / int64(time.Second)
		if left < t.fullTTL(e) {
			due = append(due, Checkpoint{ID: e.id, Remaining: left})
		} else {
			e.noting.Store(nil)
			close(noting)
		}
		step := min(int64(t.opts.CheckpointInterval), max((at-now)/2, int64(time.Second)))
		t.checkpoints.set(e, now+step)
	}
	t.checkInvariants()
	return t.term, due
}

// Noted ends the wait of renewals of leases that Checkpoints has reported. applied says whether the
// entry was applied. One that timed out may still be applied, by the next leader: until a
// checkpoint of 0 is applied, every renewal must clear it.
func (t *Table) Noted(due []Checkpoint, applied bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, c := range due {
		if e := t.leases[c.ID]; e != nil {
			if !applied && c.Remaining > 0 {
				e.doubt.Store(true)
			}
			if noting := e.noting.Swap(nil); noting != nil {
				close(*noting)
			}
		}
	}
}

// takeBackIfUnderstated checks a checkpoint that was just applied on the primary. A lease that was
// renewed between the report and its entry has been promised more than the checkpoint says, and its
// renewal did not know of the checkpoint: so the next report must clear it. REQUIRES: mu held, e in
// the table.
func (t *Table) takeBackIfUnderstated(e *entry, remaining int64) {
	now, at := t.now(), e.expiry.Load()
	if at < 0 || remaining >= t.fullTTL(e) || at-now <= (remaining+1)*int64(time.Second) {
		return
	}
	t.lookMu.Lock()
	defer t.lookMu.Unlock()
	if e.checkpointPlace >= 0 {
		e.understated = true
		t.checkpoints.set(e, now)
	}
}

// checkpointAt is when a lease that expires at the given time and is not renewed should be
// checkpointed first.
func (t *Table) checkpointAt(e *entry, expiry int64) int64 {
	full := t.fullTTL(e) * int64(time.Second)
	return expiry - full + min(full/2, int64(t.opts.CheckpointInterval))
}

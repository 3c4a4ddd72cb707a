package lease

import "github.com/belaydb/belay/internal/invariants"

// The asserts of a build with the tag invariants: see package invariants.

// checkedPerCall is how many leases a call may cost to be looked at.
const checkedPerCall = 64

// checkInvariants holds the heaps against the leases. REQUIRES: mu and lookMu held.
func (t *Table) checkInvariants() {
	if !invariants.Enabled || !t.checks.Due(checkedPerCall) {
		return
	}
	t.checks.Spent(len(t.leases))
	t.expiries.check("expiries")
	t.checkpoints.check("checkpoints")
	if !t.primary {
		if n, m := t.expiries.len(), t.checkpoints.len(); n+m > 0 {
			invariants.Broken("lease", "%d expiries and %d checkpoints are awaited by a member that is not primary", n, m)
		}
		return
	}
	if n := t.expiries.len(); n != len(t.leases) {
		invariants.Broken("lease", "of %d leases %d have an expiry", len(t.leases), n)
	}
	for id, e := range t.leases {
		if e.id != id || e.expiryPlace < 0 {
			invariants.Broken("lease", "lease %x is called %x and stands at %d of the expiries", int64(id), int64(e.id), e.expiryPlace)
		}
	}
	for _, e := range t.checkpoints.items {
		if t.leases[e.id] != e {
			invariants.Broken("lease", "lease %x is to be checkpointed and does not exist", int64(e.id))
		}
	}
}

// check: no lease comes before the one above it, and each knows its place.
func (h *heap) check(name string) {
	if len(h.at) != len(h.items) {
		invariants.Broken("lease", "%s has %d times of %d leases", name, len(h.at), len(h.items))
	}
	for i, e := range h.items {
		if *h.place(e) != i {
			invariants.Broken("lease", "in %s lease %x stands at %d and believes that it stands at %d", name, int64(e.id), i, *h.place(e))
		}
		if up := (i - 1) / 2; i > 0 && h.at[i] < h.at[up] {
			invariants.Broken("lease", "in %s the time %d stands below %d", name, h.at[i], h.at[up])
		}
	}
}

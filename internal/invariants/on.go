//go:build invariants

package invariants

// Enabled says whether this is a build with the tag invariants.
const Enabled = true

// Budget spreads the cost of one check over the calls that could make it: small states are checked
// at each call, and large ones as seldom as keeps the cost of a call bounded. The zero value makes
// the first. It has no lock: it belongs to whoever may make the check.
type Budget struct{ debt int }

// Due says whether the check is to be made now. Each call pays for earn things that were looked at.
func (b *Budget) Due(earn int) bool {
	b.debt = max(b.debt-earn, 0)
	return b.debt == 0
}

// Spent is told at how many things a check has looked.
func (b *Budget) Spent(size int) { b.debt += size }

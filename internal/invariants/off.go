//go:build !invariants

package invariants

// Enabled says whether this is a build with the tag invariants.
const Enabled = false

// Budget spreads the cost of one check over the calls that could make it. In this build it holds
// nothing.
type Budget struct{}

// Due says whether a check is to be made now: in this build never.
func (b *Budget) Due(int) bool { return false }

// Spent is told at how many things a check has looked.
func (b *Budget) Spent(int) {}

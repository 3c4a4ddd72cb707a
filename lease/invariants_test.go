//go:build invariants

package lease

import (
	"strings"
	"testing"

	"github.com/belaydb/belay/internal/invariants"
)

// TestInvariantsBreak breaks each invariant on purpose: the assert must say so.
func TestInvariantsBreak(t *testing.T) {
	for _, c := range []struct {
		name string
		harm func(r *rig)
		want string
	}{
		{"nothing", func(*rig) {}, ""},
		{"order of times", func(r *rig) { r.expiries.at[5] = -1 }, "stands below"},
		{"places", func(r *rig) {
			h := &r.expiries
			h.items[3], h.items[4] = h.items[4], h.items[3]
		}, "believes that it stands at"},
		{"times without leases", func(r *rig) { r.checkpoints.at = append(r.checkpoints.at, 1) }, "checkpoints has"},
		{"lease without an expiry", func(r *rig) { r.expiries.remove(r.leases[3]) }, "of 10 leases 9 have an expiry"},
		{"lease under another id", func(r *rig) { r.leases[3].id = 99 }, "lease 3 is called 63"},
		{"checkpoint of a lease that is gone", func(r *rig) {
			r.checkpoints.set(newEntry(99, 1000, 0), 1<<40)
		}, "is to be checkpointed and does not exist"},
		{"not primary", func(r *rig) { r.primary = false }, "by a member that is not primary"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, Options{})
			for id := range ID(10) {
				r.grant(id+1, 1000+int64(id))
			}
			r.Promote(1, 0)
			r.mu.Lock()
			defer r.mu.Unlock()
			r.lookMu.Lock()
			defer r.lookMu.Unlock()
			c.harm(r)
			r.checks = invariants.Budget{}
			text := invariants.Caught(r.checkInvariants)
			if c.want == "" && text != "" || !strings.Contains(text, c.want) {
				t.Errorf("got %q, want %q", text, c.want)
			}
		})
	}
}

package state

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/internal/invariants"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/store"
)

// The asserts of a build with the tag invariants: see package invariants. The applier makes them
// after it has published a batch. mvcc makes its own.

// checkedPerBatch is how many keys, leases and members a batch may cost to be looked at.
const checkedPerBatch = 64

// checkOverhead is what a check of an empty state costs, in keys.
const checkOverhead = 256

// checkInvariants holds what is mirrored in memory, and what is stored twice, against the store.
func (m *Machine) checkInvariants() {
	if !invariants.Enabled || !m.checks.Due(checkedPerBatch) {
		return
	}
	n, err := m.checkLeases()
	m.checks.Spent(checkOverhead + n)
	if err == nil {
		err = m.checkMirror()
	}
	if err != nil {
		invariants.Broken("state", "%v", err)
	}
}

// checkLeases: every lease of the table is stored, and the reverse; every key that exists and has a
// lease is attached to it, and nothing else is attached.
func (m *Machine) checkLeases() (looked int, err error) {
	stored := 0
	if err := lease.Records(m.cfg.Store, func(id lease.ID, _, _ int64) error {
		stored++
		if !m.cfg.Leases.Exists(id) {
			return fmt.Errorf("lease %x is stored and not in the table", int64(id))
		}
		return nil
	}); err != nil {
		return stored, err
	}
	if n := m.cfg.Leases.Len(); n != stored {
		return stored, fmt.Errorf("%d leases are in the table and %d stored", n, stored)
	}
	attached := make(map[string]int64)
	if err := eachKey(m.cfg.Store, store.AllLeaseAttachmentsSpan, func(k, _ []byte) error {
		id, key, ok := store.ParseLeaseAttachmentKey(k)
		if !ok {
			return fmt.Errorf("an attachment to a lease has the key %x", k)
		}
		if !m.cfg.Leases.Exists(lease.ID(id)) {
			return fmt.Errorf("%q is attached to lease %x, which does not exist", key, id)
		}
		if other, ok := attached[string(key)]; ok {
			return fmt.Errorf("%q is attached to two leases, %x and %x", key, other, id)
		}
		attached[string(key)] = id
		return nil
	}); err != nil {
		return stored, err
	}
	leased := len(attached)
	all, err := m.cfg.KV.Range(context.Background(), []byte{0}, []byte{0}, mvcc.RangeOptions{KeysOnly: true})
	if err != nil {
		return stored, err
	}
	for _, kv := range all.KVs {
		if id, ok := attached[string(kv.Key)]; kv.Lease != 0 && (!ok || id != kv.Lease) {
			return stored, fmt.Errorf("%q has lease %x and is attached to %x", kv.Key, kv.Lease, id)
		}
		if kv.Lease != 0 {
			leased--
		}
	}
	if leased != 0 {
		return stored, fmt.Errorf("%d keys more are attached to leases than have one", leased)
	}
	return stored + len(attached) + len(all.KVs), nil
}

// checkMirror: members, alarms, versions, users, roles and the applied index that readers see are
// those of the store.
func (m *Machine) checkMirror() error {
	c, err := readCluster(m.cfg.Store)
	if err != nil {
		return err
	}
	if now, stored := m.published.Load().text(), c.text(); now != stored {
		return fmt.Errorf("of the cluster is published\n%sand stored\n%s", now, stored)
	}
	p, err := auth.Load(m.cfg.Store, nil)
	if err != nil {
		return err
	}
	if now := m.Policy(); now.Enabled() != p.Enabled() || now.Revision() != p.Revision() {
		return fmt.Errorf("users and roles are at revision %d (enabled: %t) and stored at %d (%t)", now.Revision(), now.Enabled(), p.Revision(), p.Enabled())
	}
	index, term := m.cfg.Store.Applied()
	if i, t := m.Applied(); i != index || t != term {
		return fmt.Errorf("entry %d of term %d is applied, and the store has %d of %d", i, t, index, term)
	}
	return nil
}

// text is all of c, in words.
func (c *cluster) text() string {
	return fmt.Sprintf("members %s\nremoved %v\nversion %v\ndowngrade %v\nalarms %v\n",
		mustJSON(c.sorted()), slices.Sorted(maps.Keys(c.removed)), c.version, c.downgrade, c.alarms)
}

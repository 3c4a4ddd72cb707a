package config

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// A gate is one of etcd's feature gates.
type gate struct {
	name  string
	stage string // ALPHA or BETA
	def   bool   // etcd's default
	// fixed is what Belay does whatever the gate's value is, with the reason; nil: the gate has its
	// effect.
	fixed  *bool
	reason string
}

// Gates whose state other code asks for.
const (
	GateInitialCorruptCheck    = "InitialCorruptCheck"
	GateCompactHashCheck       = "CompactHashCheck"
	GateSetMemberLocalAddr     = "SetMemberLocalAddr"
	gateLeaseCheckpoint        = "LeaseCheckpoint"
	gateLeaseCheckpointPersist = "LeaseCheckpointPersist"
	gateAllAlpha               = "AllAlpha"
	gateAllBeta                = "AllBeta"
)

func gates() []gate {
	fixed := func(name, stage string, def, here bool, reason string) gate {
		return gate{name: name, stage: stage, def: def, fixed: &here, reason: reason}
	}
	return []gate{
		{name: gateAllAlpha, stage: "ALPHA"},
		{name: gateAllBeta, stage: "BETA"},
		{name: GateCompactHashCheck, stage: "ALPHA"},
		fixed("FastLeaseKeepAlive", "BETA", true, true, "keepalives never wait for what is not applied"),
		{name: GateInitialCorruptCheck, stage: "ALPHA"},
		fixed(gateLeaseCheckpoint, "ALPHA", false, true, "remaining times of leases are always kept through a change of leader"),
		fixed(gateLeaseCheckpointPersist, "ALPHA", false, true, "remaining times of leases are always kept through a restart"),
		fixed("PriorityRequest", "ALPHA", false, true, "what frees resources is always let in first"),
		{name: GateSetMemberLocalAddr, stage: "ALPHA"},
		fixed("StopGRPCServiceOnDefrag", "ALPHA", false, false, "a defragmentation stops nothing"),
		fixed("TxnModeWriteWithSharedBuffer", "BETA", true, true, "there is no buffer of a transaction to share"),
	}
}

// Gates is --feature-gates: the value given for each gate. The two gates for whole stages are
// applied to the gates of their stage that were not named.
type Gates map[string]bool

// Enabled is a gate's state in etcd's sense: the given value, or etcd's default.
func (g Gates) Enabled(name string) bool {
	if on, said := g[name]; said {
		return on
	}
	i := slices.IndexFunc(gates(), func(known gate) bool { return known.name == name })
	return i >= 0 && gates()[i].def
}

// set takes name=bool,name=bool,...; its errors are etcd's.
func (g Gates) set(list string) error {
	said := map[string]bool{}
	for part := range strings.SplitSeq(list, ",") {
		if part == "" {
			continue
		}
		name, value, ok := strings.Cut(part, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if !ok {
			return fmt.Errorf("missing bool value for %s", name)
		}
		on, err := strconv.ParseBool(value)
		if err != nil {
			return fmt.Errorf("invalid value of %s=%s, err: %w", name, value, err)
		}
		said[name] = on
	}
	known := gates()
	for _, name := range slices.Sorted(maps.Keys(said)) {
		if !slices.ContainsFunc(known, func(k gate) bool { return k.name == name }) {
			return fmt.Errorf("unrecognized feature gate: %s", name)
		}
		g[name] = said[name]
	}
	for _, all := range []struct{ name, stage string }{{gateAllAlpha, "ALPHA"}, {gateAllBeta, "BETA"}} {
		on, ok := said[all.name]
		if !ok {
			continue
		}
		for _, k := range known {
			if _, named := g[k.name]; !named && k.stage == all.stage {
				g[k.name] = on
			}
		}
	}
	return nil
}

// checkGates refuses what etcd refuses.
func (c *Config) checkGates() error {
	if c.Gates.Enabled(gateLeaseCheckpointPersist) && !c.Gates.Enabled(gateLeaseCheckpoint) {
		return fmt.Errorf("enabling feature gate %s requires enabling feature gate %s", gateLeaseCheckpointPersist, gateLeaseCheckpoint)
	}
	return nil
}

// Features are the gates that have an effect here, for the metric that reports them.
func (c *Config) Features() map[string]bool {
	all := map[string]bool{GateCompactHashCheck: c.CompactHashCheck}
	for _, name := range []string{gateAllAlpha, gateAllBeta, GateInitialCorruptCheck, GateSetMemberLocalAddr} {
		all[name] = c.Gates.Enabled(name)
	}
	return all
}

// gatesWithoutEffect are the gates that were set to something that Belay does not do.
func (c *Config) gatesWithoutEffect() (all []gate) {
	for _, k := range gates() {
		// AllAlpha sets every gate of its stage; only a gate that is named can be meant.
		if on, said := c.Gates[k.name]; said && k.fixed != nil && on != *k.fixed && !c.Gates[gateAllAlpha] && !c.Gates[gateAllBeta] {
			all = append(all, k)
		}
	}
	return all
}

// gatesValue is the flag.
type gatesValue struct{ gates *Gates }

func (v gatesValue) Set(s string) error { return (*v.gates).set(s) }

func (v gatesValue) String() string {
	if v.gates == nil {
		return ""
	}
	var pairs []string
	for _, name := range slices.Sorted(maps.Keys(*v.gates)) {
		pairs = append(pairs, fmt.Sprintf("%s=%t", name, (*v.gates)[name]))
	}
	return strings.Join(pairs, ",")
}

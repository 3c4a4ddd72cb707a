package datadir

import (
	"fmt"
	"slices"

	"github.com/belaydb/belay/command"
)

// Flags are what a member's flags say about it at a start.
type Flags struct {
	Name                string
	PeerURLs            []string // that it advertises
	InitialCluster      string
	InitialClusterToken string
}

// CheckOwner refuses the data of one member under flags that describe another member of the
// cluster: two processes would act as one member. A new name or a new URL alone is no reason, since
// both may change. members are those that the store knows.
func (p *Parts) CheckOwner(id Identity, members []*command.Member, flags Flags) error {
	i := slices.IndexFunc(members, func(m *command.Member) bool { return m.ID == id.Member })
	if i < 0 || members[i].Name == "" {
		return p.checkYoung(id, flags)
	}
	own := members[i]
	if own.Name == flags.Name {
		return nil
	}
	advertised := slices.Sorted(slices.Values(flags.PeerURLs))
	for _, m := range members {
		urls := slices.Sorted(slices.Values(m.PeerURLs))
		if m.ID != own.ID && (m.Name == flags.Name || slices.Equal(urls, advertised)) {
			return p.othersData(own.ID, own.Name, m.ID, m.Name)
		}
	}
	return nil
}

// checkYoung is the same for data whose store does not know the members yet, since only the log has
// them. A new cluster's members have ids that follow from the flags.
func (p *Parts) checkYoung(id Identity, flags Flags) error {
	told, err := Found(flags.Name, flags.InitialCluster, flags.InitialClusterToken)
	if err != nil || told.Cluster != id.Cluster || told.Member == id.Member {
		return nil // not the flags of the cluster's beginning, or those of this member
	}
	i := slices.IndexFunc(told.Members, func(m *command.Member) bool { return m.ID == id.Member })
	if i < 0 {
		return nil
	}
	return p.othersData(id.Member, told.Members[i].Name, told.Member, flags.Name)
}

func (p *Parts) othersData(own uint64, ownName string, flags uint64, flagsName string) error {
	return fmt.Errorf("the data in %s (log in %s) is that of member %x, named %q, but the flags are those of member %x, named %q; give this member its own --data-dir",
		p.paths.root(), p.paths.Log, own, ownName, flags, flagsName)
}

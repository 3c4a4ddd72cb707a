package datadir

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/belaydb/belay/command"
)

// An Identity is a member's identity in its cluster.
type Identity struct {
	Member, Cluster uint64
	// Members are the cluster's members, sorted by id, before the state machine knows them: from
	// --initial-cluster or from the running cluster that is joined. Nil if there is a log.
	Members []*command.Member
	// Fresh: there was no log, and this start makes the first one.
	Fresh bool
	// Joining: the cluster exists already, and this member gets the state from it. Implies Fresh.
	Joining bool
}

// Founds reports whether this start makes the first log of a new cluster.
func (id *Identity) Founds() bool { return id.Fresh && !id.Joining }

// initialMembers turns --initial-cluster into members with their ids, sorted by
// id, as every member of a new cluster computes them alike.
func initialMembers(initialCluster, token string) ([]*command.Member, error) {
	byName := map[string][]string{}
	for _, part := range strings.Split(initialCluster, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		name, u, ok := strings.Cut(part, "=")
		if !ok || name == "" || u == "" {
			return nil, fmt.Errorf("--initial-cluster: %q is not of the form name=peer-url", part)
		}
		byName[name] = append(byName[name], u)
	}
	if len(byName) == 0 {
		return nil, errors.New("initial cluster unset and no discovery endpoints found")
	}
	var members []*command.Member
	for name, urls := range byName {
		sort.Strings(urls)
		members = append(members, &command.Member{
			ID: command.MemberID(urls, token, nil), Name: name, PeerURLs: urls,
		})
	}
	slices.SortFunc(members, func(a, b *command.Member) int {
		return strings.Compare(fmt.Sprintf("%016x", a.ID), fmt.Sprintf("%016x", b.ID))
	})
	seen := map[string]bool{}
	for i, m := range members {
		for _, u := range m.PeerURLs {
			if seen[u] {
				return nil, fmt.Errorf("initial cluster %q has duplicate url", initialCluster)
			}
			seen[u] = true
		}
		if i > 0 && m.ID == members[i-1].ID {
			return nil, fmt.Errorf("initial cluster %q has two members with the id %x", initialCluster, m.ID)
		}
	}
	return members, nil
}

func clusterID(members []*command.Member) uint64 {
	ids := make([]uint64, len(members))
	for i, m := range members {
		ids[i] = m.ID
	}
	return command.ClusterID(ids)
}

// Found is this member's Identity in a cluster of these members.
func Found(name, initialCluster, token string) (Identity, error) {
	members, err := initialMembers(initialCluster, token)
	if err != nil {
		return Identity{}, err
	}
	own := memberByName(members, name)
	if own == nil {
		return Identity{}, fmt.Errorf("couldn't find local name %q in the initial cluster configuration", name)
	}
	return Identity{Member: own.ID, Cluster: clusterID(members), Members: members, Fresh: true}, nil
}

func memberByName(members []*command.Member, name string) *command.Member {
	if i := slices.IndexFunc(members, func(m *command.Member) bool { return m.Name == name }); i >= 0 {
		return members[i]
	}
	return nil
}

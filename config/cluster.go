package config

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.uber.org/zap"

	"github.com/belaydb/belay/discovery"
)

// Member is one member of --initial-cluster.
type Member struct {
	Name string
	URLs []url.URL // sorted
}

// Members reads --initial-cluster; sorted by name.
func (c *Config) Members() ([]Member, error) { return parseMembers(c.InitialCluster) }

func parseMembers(initialCluster string) ([]Member, error) {
	byName := map[string][]string{}
	for part := range strings.SplitSeq(initialCluster, ",") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		byName[name] = append(byName[name], value)
	}
	var members []Member
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		urls, err := types.NewURLs(byName[name])
		if err != nil {
			return nil, fmt.Errorf("error setting up initial cluster: %w", err)
		}
		members = append(members, Member{Name: name, URLs: urls})
	}
	return members, nil
}

// verifyTimeout is how long Verify may try to resolve host names.
const verifyTimeout = 30 * time.Second

// Verify is what a member checks before it makes or joins a cluster, when it has no data yet: that
// initialCluster knows it, under its advertised URLs if the cluster is new, and no URL twice.
func (c *Config) Verify(ctx context.Context, logger *zap.Logger, initialCluster string) error {
	if logger == nil {
		logger = zap.NewNop()
	}
	members, err := parseMembers(initialCluster)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(members, func(m Member) bool { return m.Name == c.Name })
	if i < 0 {
		return fmt.Errorf("couldn't find local name %q in the initial cluster configuration", c.Name)
	}
	if c.InitialClusterState == "new" {
		if err := c.verifyAdvertised(ctx, logger, members[i]); err != nil {
			return err
		}
	}
	if err := unique("initial cluster", initialCluster); err != nil {
		return err
	}
	if c.InitialClusterState == "existing" && len(c.Discovery.Endpoints) > 0 {
		return errors.New("discovery URL should not be set when joining existing initial cluster")
	}
	return nil
}

func hasMember(members []Member, name string) bool {
	return slices.ContainsFunc(members, func(m Member) bool { return m.Name == name })
}

// unique refuses a repeated URL; what names the list, for the error.
func unique(what, initialCluster string) error {
	members, err := parseMembers(initialCluster)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, m := range members {
		for _, u := range m.URLs {
			if seen[u.String()] {
				return fmt.Errorf("%s %s has duplicate url", what, writeMembers(members...))
			}
			seen[u.String()] = true
		}
	}
	return nil
}

// verifyAdvertised compares the URLs that --initial-cluster gives this member with those it
// advertises: as text, and if they differ, as addresses.
func (c *Config) verifyAdvertised(ctx context.Context, logger *zap.Logger, own Member) error {
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	err := discovery.SameURLs(ctx, logger, c.AdvertisePeerURLs, own.URLs)
	if err == nil {
		return nil
	}
	without := func(a, b []url.URL) (missing []string) {
		for _, u := range a {
			if !slices.ContainsFunc(b, func(v url.URL) bool { return u.String() == v.String() }) {
				missing = append(missing, u.String())
			}
		}
		return missing
	}
	advertised := JoinURLs(c.AdvertisePeerURLs)
	if missing := without(own.URLs, c.AdvertisePeerURLs); len(missing) > 0 {
		for i := range missing {
			missing[i] = c.Name + "=" + missing[i]
		}
		return fmt.Errorf("--initial-cluster has %s but missing from --initial-advertise-peer-urls=%s (%w)", strings.Join(missing, ","), advertised, err)
	}
	if missing := without(c.AdvertisePeerURLs, own.URLs); len(missing) > 0 {
		return fmt.Errorf("--initial-advertise-peer-urls has %s but missing from --initial-cluster=%s", strings.Join(missing, ","), writeMembers(Member{c.Name, c.AdvertisePeerURLs}))
	}
	return fmt.Errorf("failed to resolve %s to match --initial-cluster=%s (%w)", advertised, writeMembers(Member{c.Name, c.AdvertisePeerURLs}), err)
}

func writeMembers(members ...Member) string {
	var pairs []string
	for _, m := range members {
		for _, u := range m.URLs {
			pairs = append(pairs, m.Name+"="+u.String())
		}
	}
	slices.Sort(pairs)
	return strings.Join(pairs, ",")
}

func texts(urls []url.URL) (all []string) {
	for i := range urls {
		all = append(all, urls[i].String())
	}
	slices.Sort(all)
	return all
}

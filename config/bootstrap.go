package config

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"go.uber.org/zap"

	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/discovery"
)

// checkDiscovery checks that at most one way to the members of a new cluster was given.
func (c *Config) checkDiscovery() error {
	ways := 0
	for _, given := range []bool{c.InitialCluster != "", c.DiscoverySRV != "", len(c.Discovery.Endpoints) > 0} {
		if given {
			ways++
		}
	}
	if ways > 1 {
		return errors.New(`multiple discovery or bootstrap flags are set. Choose one of "initial-cluster", "discovery-endpoints" or "discovery-srv"`)
	}
	if (c.Discovery.Token != "") != (len(c.Discovery.Endpoints) > 0) {
		return errors.New("both --discovery-token and --discovery-endpoints must be set")
	}
	for _, endpoint := range c.Discovery.Endpoints {
		if strings.TrimSpace(endpoint) == "" {
			return errors.New("--discovery-endpoints must not contain empty endpoints")
		}
	}
	return nil
}

// Seeds finds the members, by the way that the flags say, and verifies what must be so of them. logger
// nil: no log; dns nil: the system's.
func (c *Config) Seeds(ctx context.Context, logger *zap.Logger, dns discovery.Lookup) (datadir.Seeds, error) {
	if logger == nil {
		logger = zap.NewNop()
	}
	seeds := datadir.Seeds{InitialCluster: c.InitialCluster, Token: c.InitialClusterToken}
	switch {
	case len(c.Discovery.Endpoints) > 0:
		own := writeMembers(Member{c.Name, c.AdvertisePeerURLs})
		seeds.InitialCluster, seeds.Token = own, c.Discovery.Token
		seeds.Join = func(ctx context.Context, id uint64) (string, error) {
			logger.Info("Bootstrapping cluster using v3 discovery.")
			found, err := discovery.Join(ctx, logger, c.Discovery, id, own, func(s string) error { _, err := parseMembers(s); return err })
			if err != nil {
				return "", err
			}
			if err := unique("discovery cluster", found); err != nil {
				return "", err
			}
			return found, nil
		}
	case c.DiscoverySRV != "":
		if dns == nil {
			dns = net.DefaultResolver
		}
		found, err := discovery.SRV(ctx, logger, dns, discovery.Records{Domain: c.DiscoverySRV, Suffix: c.DiscoverySRVName, Name: c.Name, Advertise: c.AdvertisePeerURLs})
		if found == "" && err != nil {
			return seeds, fmt.Errorf("error setting up initial cluster: %w", err)
		}
		seeds.InitialCluster = found
		if strings.Contains(found, "https://") && c.PeerTLS.TrustedCAFile == "" {
			seeds.ServerName = c.DiscoverySRV
		}
		members, err := parseMembers(found)
		if err != nil {
			return seeds, err
		}
		if !hasMember(members, c.Name) {
			return seeds, fmt.Errorf("error setting up initial cluster: cannot find local etcd member %q in SRV records", c.Name)
		}
	}
	return seeds, c.Verify(ctx, logger, seeds.InitialCluster)
}

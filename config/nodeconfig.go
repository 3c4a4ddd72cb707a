package config

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/node"
)

// NodeConfig is what package node runs. The configuration is valid.
func (c *Config) NodeConfig(logger *zap.Logger) node.Config {
	if logger == nil {
		logger = zap.NewNop()
	}
	return node.Config{
		Settings: c.Settings, Tracing: c.tracing(),
		JoinExisting: c.InitialClusterState == "existing",
		Seeds:        func(ctx context.Context) (datadir.Seeds, error) { return c.Seeds(ctx, logger, nil) },
		Discovers:    len(c.Discovery.Endpoints) > 0,
		TickInterval: c.HeartbeatInterval, ElectionTicks: c.ElectionTicks(),
		TuneTimeouts:     !c.Explicit["heartbeat-interval"] && !c.Explicit["election-timeout"],
		SnapshotCountSet: c.Explicit["snapshot-count"],
		MaxRequestBytes:  int(c.MaxRequestBytes), MaxTxnOps: int(c.MaxTxnOps), LaxAuth: !c.StrictAuth,
		AutoCompaction: node.AutoCompaction{Mode: c.CompactionMode, Period: c.CompactionPeriod, Revisions: c.CompactionRevisions},
		BcryptCost:     int(c.BcryptCost), AuthTokenTTL: time.Duration(c.AuthTokenTTL) * time.Second,
		CompactHashCheckTime: onlyIf(c.CompactHashCheck, c.CompactHashCheckTime), DiskStallHandOver: orNever(c.DiskStallHandOver),
		SnapshotCatchupEntries: c.SnapshotCatchupEntries, BootstrapDefragMegabytes: c.BootstrapDefragMegabytes,
		MemberLocalAddr: c.Gates.Enabled(GateSetMemberLocalAddr), Features: c.Features(), ExtensiveMetrics: c.Metrics == "extensive",
		Logger: logger,
	}
}

func (c *Config) tracing() *node.Tracing {
	if !c.Tracing {
		return nil
	}
	return &node.Tracing{Address: c.TracingAddress, ServiceName: c.TracingServiceName, InstanceID: c.TracingInstanceID, PerMillion: c.TracingPerMillion}
}

// orNever turns the flags' 0, meaning never, into a negative value: 0 means the default in the
// packages' options.
func orNever(d time.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return d
}

// onlyIf is d if a feature is on, and 0, for never, if not.
func onlyIf(on bool, d time.Duration) time.Duration {
	if !on {
		return 0
	}
	return d
}

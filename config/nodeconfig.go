package config

import (
	"context"
	"os"
	"runtime/debug"
	"time"

	"go.uber.org/zap"

	"github.com/belaydb/belay/budget"
	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/node"
)

// NodeConfig is what package node runs. The configuration is valid.
func (c *Config) NodeConfig(logger *zap.Logger) node.Config {
	if logger == nil {
		logger = zap.NewNop()
	}
	memory, settings := c.budget(logger)
	return node.Config{
		Settings: settings, Budget: memory, Tracing: c.tracing(),
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

// budget divides what --memory-budget says, of the memory that there is for this process. The
// settings are those of the configuration, with the bounds that no flag has set as their shares are.
func (c *Config) budget(logger *zap.Logger) (budget.Budget, node.Settings) {
	there := budget.Find(os.DirFS("/"), debug.SetMemoryLimit(-1))
	size, err := budget.ParseSize(c.MemoryBudget)
	if err != nil { // Validate has refused it
		panic(err)
	}
	bytes := size.Of(there)
	switch {
	case bytes <= there.Bytes:
	case size.Bytes > 0:
		logger.Warn("--memory-budget is more than there is; the kernel ends this member when it takes it",
			zap.String("memory-budget", c.MemoryBudget), zap.Int64("there-is-bytes", there.Bytes), zap.String("says", string(there.Source)))
	default:
		logger.Warn("there is less memory than a member wants at least; the kernel may end it",
			zap.Int64("least-bytes", budget.Least), zap.Int64("there-is-bytes", there.Bytes), zap.String("says", string(there.Source)))
	}
	b, s := budget.Divide(bytes, there), c.Settings
	for _, bound := range []struct {
		flag       string
		set, share *int64
	}{
		{"max-unsynced-bytes", &s.MaxUnsyncedBytes, &b.Parts.Log},
		{"max-receive-bytes", &s.Limits.ReceiveBytes, &b.Parts.Receiving},
		{"max-answer-bytes", &s.Limits.AnswerBytes, &b.Parts.Answer},
	} {
		switch {
		case !c.Explicit[bound.flag]:
			*bound.set = *bound.share
		case *bound.set > 0: // negative: no limit, and nothing to show
			*bound.share = *bound.set
		}
	}
	return b, s
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

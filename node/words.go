package node

import (
	"fmt"
	"net/url"
	"runtime"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/internal/show"
	"github.com/belaydb/belay/internal/version"
	"github.com/belaydb/belay/raftlog"
	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/store"
)

// What a member logs as it starts and stops, with etcd's texts: operators look for these lines
// first, and scripts wait for them.

// An announcer says it, in the member's log. Its methods belong to the goroutine that starts and
// stops the member, sayRemoved apart, which any may call.
type announcer struct {
	cfg         *Config
	logger      *zap.Logger
	initialized bool // there was data at the start; sayDataDir finds out
}

func urlStrings(urls []url.URL) []string {
	out := make([]string, len(urls))
	for i := range urls {
		out[i] = urls[i].String()
	}
	return out
}

// sayDataDir is called before anything is touched.
func (a *announcer) sayDataDir() {
	fields := []zap.Field{zap.String("data-dir", a.cfg.DataDir), zap.String("dir-type", "member")}
	if _, err := a.cfg.FS.Stat(a.cfg.paths().Member); err == nil {
		a.initialized = true
		a.logger.Info("server has already been initialized", fields...)
		return
	}
	a.logger.Info("Initialize and start etcd server", append(fields[:1], zap.String("dir-type", "empty"))...)
}

// sayConfig is etcd's one long line, without what has no counterpart.
func (a *announcer) sayConfig() {
	c := a.cfg
	state := "new"
	if c.JoinExisting {
		state = "existing"
	}
	quota := c.QuotaBytes
	if quota == 0 {
		quota = 2 << 30
	}
	a.logger.Info("starting an etcd server",
		zap.String("etcd-version", version.Etcd),
		zap.String("belay-version", version.Belay),
		zap.String("go-version", runtime.Version()),
		zap.String("go-os", runtime.GOOS),
		zap.String("go-arch", runtime.GOARCH),
		zap.Int("max-cpu-set", runtime.GOMAXPROCS(0)),
		zap.Int("max-cpu-available", runtime.NumCPU()),
		zap.Bool("member-initialized", a.initialized),
		zap.String("name", c.Name),
		zap.String("data-dir", c.DataDir),
		zap.String("wal-dir", c.WALDir),
		zap.String("wal-dir-dedicated", c.WALDir),
		zap.String("member-dir", a.cfg.paths().Member),
		zap.String("heartbeat-interval", c.TickInterval.String()),
		zap.String("election-timeout", c.electionTimeout().String()),
		zap.Bool("initial-election-tick-advance", c.AdvanceTicks),
		zap.Uint64("snapshot-count", c.flushEntries()),
		zap.Uint64("snapshot-catchup-entries", c.SnapshotCatchupEntries),
		zap.Strings("initial-advertise-peer-urls", urlStrings(c.AdvertisePeerURLs)),
		zap.Strings("listen-peer-urls", urlStrings(c.ListenPeerURLs)),
		zap.Strings("advertise-client-urls", urlStrings(c.AdvertiseClientURLs)),
		zap.Strings("listen-client-urls", urlStrings(c.ListenClientURLs)),
		zap.Strings("listen-metrics-urls", urlStrings(c.ListenMetricsURLs)),
		zap.Strings("cors", allIfNone(c.CORS)),
		zap.Strings("host-whitelist", allIfNone(c.HostWhitelist)),
		zap.String("initial-cluster", c.InitialCluster),
		zap.String("initial-cluster-state", state),
		zap.String("initial-cluster-token", c.InitialClusterToken),
		zap.Int64("quota-backend-bytes", quota),
		zap.Int("max-request-bytes", c.MaxRequestBytes),
		zap.Uint32("max-concurrent-streams", c.maxStreams()),
		zap.Bool("pre-vote", c.PreVote),
		zap.Bool("initial-corrupt-check", c.InitialCorruptCheck),
		zap.String("corrupt-check-time-interval", c.CorruptCheckTime.String()),
		zap.Duration("compact-check-time-interval", c.CompactHashCheckTime),
		zap.String("auto-compaction-mode", c.AutoCompaction.Mode),
		zap.Duration("auto-compaction-retention", c.AutoCompaction.Period),
		zap.String("auto-compaction-interval", c.AutoCompaction.Period.String()),
		zap.Int("max-learners", c.MaxLearners),
		zap.String("v2-deprecation", "write-only")) // as etcd says whatever the flag is
}

// sayBudget logs how the memory is divided.
func (a *announcer) sayBudget() {
	b := a.cfg.Budget
	if b.Bytes == 0 {
		return
	}
	fields := []zap.Field{zap.String("budget", show.LogBytes(b.Bytes)), zap.Int64("budget-bytes", b.Bytes),
		zap.String("there-is", show.LogBytes(b.Limit.Bytes)), zap.String("says", string(b.Limit.Source))}
	for _, p := range b.Table() {
		fields = append(fields, zap.String(p.Name, show.LogBytes(p.Bytes)))
	}
	a.logger.Info("divided the memory budget", fields...)
	if taken := b.Taken(); taken > b.Bytes {
		a.logger.Warn("flags let parts of this member take more memory than the budget; raise --memory-budget, or lower --max-unsynced-bytes or --max-receive-bytes",
			zap.Int64("budget-bytes", b.Bytes), zap.Int64("parts-bytes", taken))
	}
}

func allIfNone(list []string) []string {
	if len(list) == 0 {
		return []string{"*"}
	}
	sorted := slices.Clone(list)
	slices.Sort(sorted)
	return sorted
}

// sayStore is called after the opening of the store.
func (a *announcer) sayStore(st *store.Store, took time.Duration) {
	a.logger.Info("opened backend db", zap.String("path", a.cfg.paths().Store), zap.Duration("took", took))
	total, inUse := st.Size()
	if index, _ := st.Applied(); index > 0 {
		a.logger.Info("recovered v3 backend",
			zap.Int64("backend-size-bytes", total), zap.String("backend-size", show.LogBytes(total)),
			zap.Int64("backend-size-in-use-bytes", inUse), zap.String("backend-size-in-use", show.LogBytes(inUse)))
	}
	if threshold := int64(a.cfg.BootstrapDefragMegabytes) << 20; threshold > 0 {
		// Free space is reclaimed all the time, so there is never as much as the flag asks for.
		a.logger.Info("Skipping defragmentation",
			zap.Int64("current-db-size-bytes", total), zap.String("current-db-size", show.LogBytes(total)),
			zap.Int64("current-db-size-in-use-bytes", inUse), zap.String("current-db-size-in-use", show.LogBytes(inUse)),
			zap.Int64("bootstrap-defrag-threshold-bytes", threshold), zap.String("bootstrap-defrag-threshold", show.LogBytes(threshold)))
	}
}

// sayMember logs who this member is, and what it knew of the others.
func (a *announcer) sayMember(id datadir.Identity, machine *state.Machine, log *raftlog.Log) {
	cluster, member := zap.String("cluster-id", command.IDText(id.Cluster)), zap.String("local-member-id", command.IDText(id.Member))
	for _, m := range machine.Members() {
		a.logger.Info("recovered/added member from store", cluster, member,
			zap.String("recovered-remote-peer-id", command.IDText(m.ID)), zap.Strings("recovered-remote-peer-urls", m.PeerURLs),
			zap.Bool("recovered-remote-peer-is-learner", m.IsLearner))
	}
	v := machine.ClusterVersion()
	if v != nil {
		a.logger.Info("set cluster version from store", zap.String("cluster-version", fmt.Sprintf("%d.%d", v.Major, v.Minor)))
		machine.SayCapabilities(v)
	}
	if id.Fresh {
		a.logger.Info("starting local member", member, cluster)
	} else {
		hard, _, err := log.InitialState()
		if err == nil {
			a.logger.Info("restarting local member", cluster, member, zap.Uint64("commit-index", hard.GetCommit()))
		}
	}
	fields := []zap.Field{member, zap.String("local-server-version", version.Etcd)}
	if v != nil {
		fields = append(fields, cluster, zap.String("cluster-version", fmt.Sprintf("%d.%d", v.Major, v.Minor)))
	} else {
		fields = append(fields, zap.String("cluster-version", "to_be_decided"))
	}
	a.logger.Info("starting etcd server", fields...)
}

// sayServing is called when every port answers.
func (a *announcer) sayServing(member uint64) {
	a.logger.Info("now serving peer/client/metrics", zap.String("local-member-id", command.IDText(member)),
		zap.Strings("initial-advertise-peer-urls", urlStrings(a.cfg.AdvertisePeerURLs)),
		zap.Strings("listen-peer-urls", urlStrings(a.cfg.ListenPeerURLs)),
		zap.Strings("advertise-client-urls", urlStrings(a.cfg.AdvertiseClientURLs)),
		zap.Strings("listen-client-urls", urlStrings(append(append([]url.URL(nil), a.cfg.ListenClientURLs...), a.cfg.ListenClientHTTPURLs...))),
		zap.Strings("listen-metrics-urls", urlStrings(a.cfg.ListenMetricsURLs)))
}

// sayStop is called when the member begins to stop and when it has stopped.
func (a *announcer) sayStop(what string) {
	a.logger.Info(what, zap.String("name", a.cfg.Name), zap.String("data-dir", a.cfg.DataDir),
		zap.Strings("advertise-peer-urls", urlStrings(a.cfg.AdvertisePeerURLs)),
		zap.Strings("advertise-client-urls", urlStrings(a.cfg.AdvertiseClientURLs)))
}

// sayRemoved is called before the end of a member that was removed.
func (a *announcer) sayRemoved() {
	a.logger.Warn("server error", zap.Error(ErrRemoved))
	a.logger.Warn("data-dir used by this member must be removed")
}

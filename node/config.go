package node

import (
	"context"
	"math"
	"net"
	"net/url"
	"os"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/coreos/go-semver/semver"
	"go.uber.org/zap"

	"github.com/belaydb/belay/budget"
	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/leader"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/server"
)

// Config is one member's configuration, already validated. Sizes are bytes. A zero means the
// default of the part that uses it.
type Config struct {
	Settings
	Tracing *Tracing // nil: none

	// Seeds, if set, is asked in place of InitialCluster and its token before this member makes
	// or joins a cluster, when it has no data yet.
	Seeds     func(context.Context) (datadir.Seeds, error)
	Discovers bool // Seeds asks another cluster; ignored once there is data
	// JoinExisting: the cluster runs already, and this member was added to it.
	JoinExisting bool

	TickInterval     time.Duration // heartbeat interval
	ElectionTicks    int           // election timeout in ticks
	TuneTimeouts     bool          // the election timeout may follow the measured round trips, from ElectionTicks up
	SnapshotCountSet bool          // SnapshotCount was given; see flushEntries
	MaxRequestBytes  int
	MaxTxnOps        int
	LaxAuth          bool // see server.Config
	AutoCompaction   AutoCompaction

	// Budget is what the member's parts may take. Without one each has the bound of a machine with
	// memory to spare.
	Budget budget.Budget

	BcryptCost           int           // of passwords' hashes; 0: 10
	AuthTokenTTL         time.Duration // of simple tokens; 0: 5 min
	CompactHashCheckTime time.Duration // between checks of compactions' hashes; 0: none
	DiskStallHandOver    time.Duration // negative: never

	// etcd's flags without effect here, for the log lines that scripts wait for.
	SnapshotCatchupEntries   uint64
	BootstrapDefragMegabytes uint

	// Features are feature gates as configured, for the metric.
	Features map[string]bool
	// MemberLocalAddr: connections to other members come from the first IP address
	// that AdvertisePeerURLs names and that is not the loopback's.
	MemberLocalAddr  bool
	ExtensiveMetrics bool

	FS vfs.FS // default: the operating system's
	// Listen, if set, opens the sockets in place of the operating system; flag is the one that the
	// URL came from.
	Listen func(u url.URL, flag string) (net.Listener, error)
	// Over, if set, is put over the way in which other members are dialed; for `belay dev`.
	Over func(Dial) Dial
	// NoSignals leaves the process's signals alone. Otherwise the member watches SIGCONT, which tells
	// it that the process was stopped.
	NoSignals bool
	Logger    *zap.Logger // nil: none
	// LogDropped returns how many log lines were dropped, for the metric; nil: none.
	LogDropped func() uint64
	// LogStalled returns how long the log's output has not taken a line; nil: unknown.
	LogStalled func() time.Duration
}

// Dial opens a connection to another member, as net.Dialer's DialContext does.
type Dial = func(ctx context.Context, network, address string) (net.Conn, error)

// Limits are the server's, for packages that do not import it.
type Limits = server.Limits

// DefaultLimits are those without a flag.
func DefaultLimits() Limits {
	return Limits{KeyBytes: server.DefaultKeyBytes, TxnTotalOps: server.DefaultTxnTotalOps,
		TxnRangeKeys: server.DefaultTxnRangeKeys, TxnRangeBytes: server.DefaultTxnRangeBytes, AnswerBytes: server.DefaultAnswerBytes,
		ReceiveBytes: server.DefaultReceiveBytes}
}

// AutoCompaction is --auto-compaction-mode and --auto-compaction-retention.
type AutoCompaction struct {
	Mode      string        // "periodic" or "revision"
	Period    time.Duration // periodic; 0: off
	Revisions int64         // revision; 0: off
}

// leaders converts it for package leader.
func (a AutoCompaction) leaders() leader.AutoCompaction {
	switch a.Mode {
	case "periodic":
		return leader.AutoCompaction{Period: a.Period}
	case "revision":
		return leader.AutoCompaction{Retained: a.Revisions}
	}
	return leader.AutoCompaction{}
}

// services are what was chosen about the services.
func (c *Config) services() server.Settings {
	return server.Settings{
		MaxRequestBytes: c.MaxRequestBytes, MaxTxnOps: c.MaxTxnOps, WarnUnaryRequest: c.WarningRequest, Limits: c.Limits, AnswersBytes: c.Budget.Parts.Answers,
		MaxConcurrentStreams: c.MaxConcurrentStreams, WatchProgressInterval: c.WatchProgressInterval,
		KeepaliveMinTime: c.KeepaliveMinTime, KeepaliveInterval: c.KeepaliveInterval, KeepaliveTimeout: c.KeepaliveTimeout,
		CORS: c.CORS, CORSSimpleRequests: c.CORSSimpleRequests, HostWhitelist: c.HostWhitelist, EnablePprof: c.EnablePprof, WebView: c.WebView,
		BcryptCost: c.BcryptCost, LaxAuth: c.LaxAuth, StrictReconfigCheck: c.StrictReconfigCheck, MaxLearners: c.maxLearners(),
		Compaction:        c.AutoCompaction.leaders(),
		CorruptionChecks:  leader.CorruptionChecks{Interval: c.CorruptCheckTime, CompactionInterval: c.CompactHashCheckTime},
		DowngradeInterval: c.DowngradeCheckTime, MaxClusterVersion: c.maxClusterVersion(), NoSpaceDisarm: c.NoSpaceDisarm,
	}
}

// onDisk reports whether the member's files are the operating system's, whatever is put over them:
// what is written past FS belongs beside them then, and not beside those of a test in memory.
func (c *Config) onDisk() bool { return vfs.Root(c.FS) == vfs.Root(datadir.FS()) }

// spoolDir is where files lie while snapshots are sent: they are the operating system's always.
func (c *Config) spoolDir() string {
	if c.onDisk() {
		return c.DataDir
	}
	return os.TempDir()
}

// replication is what was chosen about the replica.
func (c *Config) replication() replica.Settings {
	return replica.Settings{
		TickInterval: c.TickInterval, ElectionTicks: c.ElectionTicks, PreVote: c.PreVote, AdvanceTicks: c.AdvanceTicks,
		MaxRequestBytes: c.MaxRequestBytes, MaxUnsyncedBytes: c.MaxUnsyncedBytes, DiskStallHandOver: c.DiskStallHandOver,
		TuneTimeouts: c.TuneTimeouts, FlushEntries: c.flushEntries(), KeepBytes: c.Budget.Parts.LogKept, HoldBytes: c.Budget.LogInMemory(),
	}
}

func (c *Config) paths() datadir.Paths { return datadir.PathsOf(c.DataDir, c.WALDir) }

// flushEntries is the largest number of entries between two flushes of the applied state, unless
// bytes or time require one earlier.
func (c *Config) flushEntries() uint64 {
	if c.SnapshotCountSet {
		return c.SnapshotCount
	}
	return replica.DefaultFlushEntries
}

// maxStreams is the bound on streams; HTTP/2 has no value for no bound.
func (c *Config) maxStreams() uint32 {
	if c.MaxConcurrentStreams == 0 {
		return math.MaxUint32
	}
	return c.MaxConcurrentStreams
}

func (c *Config) electionTimeout() time.Duration {
	return time.Duration(c.ElectionTicks) * c.TickInterval
}

// maxLearners is --max-learners in server's terms, where 0 is its default.
func (c *Config) maxLearners() int {
	if c.MaxLearners == 0 {
		return -1
	}
	return c.MaxLearners
}

// maxClusterVersion is nil for none. Package config has refused what is no version.
func (c *Config) maxClusterVersion() *semver.Version {
	v, err := datadir.ParseEtcdVersion(c.MaxClusterVersion)
	if err != nil {
		return nil
	}
	return v
}

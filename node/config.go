package node

import (
	"context"
	"math"
	"net/url"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"

	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/leader"
	"github.com/belaydb/belay/listen"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/server"
)

// Config is one member's configuration, already validated. Sizes are bytes.
// A zero means the default of the part that it is handed to.
type Config struct {
	Name    string
	DataDir string // holds member/log and member/store
	WALDir  string // in place of DataDir/member/log; empty: none

	ListenPeerURLs, AdvertisePeerURLs     []url.URL
	ListenClientURLs, AdvertiseClientURLs []url.URL

	ListenClientHTTPURLs []url.URL // if any, ListenClientURLs serve gRPC alone
	ListenMetricsURLs    []url.URL

	// TLS of the two sides; ports with a plain URL ignore it.
	ClientTLS, PeerTLS         listen.TLSInfo
	ClientAutoTLS, PeerAutoTLS bool // certificates of its own, if none are given
	SelfSignedYears            uint // how long these last
	CipherSuites               []string
	TLSMinVersion              string // TLS1.2, TLS1.3
	TLSMaxVersion              string
	ReusePort, ReuseAddress    bool     // socket options
	CORS                       []string // origins; none or "*": all
	CORSSimpleRequests         bool     // see server.Config
	HostWhitelist              []string // of plain HTTP; none or "*": all
	EnableGateway              bool     // JSON on /v3/
	Tracing                    *Tracing // nil: none

	InitialCluster      string // name=peer-url,...
	InitialClusterToken string
	// Seeds, if set, is asked in place of the two above before this member makes
	// or joins a cluster, when it has no data yet.
	Seeds     func(context.Context) (datadir.Seeds, error)
	Discovers bool // Seeds asks another cluster; without meaning once there is data
	// ForceNewCluster makes this member the only one of its cluster.
	ForceNewCluster bool
	// JoinExisting: the cluster runs already, and this member was added to it.
	JoinExisting bool

	TickInterval  time.Duration // heartbeat interval
	ElectionTicks int           // election timeout in ticks
	AdvanceTicks  bool
	TuneTimeouts  bool // the election timeout may follow the measured round trips, from ElectionTicks up
	PreVote       bool
	// SnapshotCount is etcd's --snapshot-count: entries between two flushes of
	// the applied state. Used only if SnapshotCountSet; see flushEntries.
	SnapshotCount    uint64
	SnapshotCountSet bool
	MaxRequestBytes  int
	MaxTxnOps        int
	QuotaBytes       int64
	NoSpaceDisarm    bool // see server.Config
	LaxAuth          bool // see server.Config
	StrictReconfig   bool
	MaxLearners      int
	AutoCompaction   AutoCompaction
	ProgressInterval time.Duration // of watch progress notifications
	SlowApply        time.Duration // --warning-apply-duration
	SlowRequest      time.Duration // --warning-unary-request-duration
	CompactionBatch  int
	CompactionSleep  time.Duration
	NoSync           bool

	MaxConcurrentStreams uint32
	KeepaliveMinTime     time.Duration
	KeepaliveInterval    time.Duration
	KeepaliveTimeout     time.Duration

	InitialCorruptCheck bool          // compare with the peers before serving
	CorruptCheckTime    time.Duration // between periodic corruption checks; 0: none
	AuthToken           string        // kind and options of tokens, as etcd's --auth-token; empty: nobody gets one
	BcryptCost          int           // of passwords' hashes; 0: 10
	AuthTokenTTL        time.Duration // of simple tokens; 0: 5 min

	CompactHashCheckTime time.Duration // between checks of compactions' hashes; 0: none

	// Flags of etcd's without effect here, for the lines of the log that scripts wait for.
	SnapshotCatchupEntries   uint64
	BootstrapDefragMegabytes uint

	DowngradeCheckTime time.Duration // between two looks whether a downgrade is done; 0: never
	// Features are feature gates as configured, for the metric.
	Features map[string]bool
	// MemberLocalAddr: connections to other members come from the first IP address
	// that AdvertisePeerURLs names and that is not the loopback's.
	MemberLocalAddr bool

	PeerReadTimeout  time.Duration
	PeerWriteTimeout time.Duration

	DiskStallHandOver time.Duration // negative: never
	MaxUnsyncedBytes  int64

	Limits Limits

	EnablePprof      bool
	ExtensiveMetrics bool

	FS     vfs.FS      // default: the operating system's
	Logger *zap.Logger // nil: none
	// LogDropped tells how many log lines were dropped, for the metric; nil: none.
	LogDropped func() uint64
	// LogStalled tells how long the log's output has not taken a line; nil: unknown.
	LogStalled func() time.Duration
}

// Limits are the server's, for who does not know the server.
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

// leaders is what the leader goes by.
func (a AutoCompaction) leaders() leader.AutoCompaction {
	switch a.Mode {
	case "periodic":
		return leader.AutoCompaction{Period: a.Period}
	case "revision":
		return leader.AutoCompaction{Retained: a.Revisions}
	}
	return leader.AutoCompaction{}
}

func (c *Config) paths() datadir.Paths { return datadir.PathsOf(c.DataDir, c.WALDir) }

// flushEntries is how many entries lie between two flushes of the applied state at
// most, if bytes and time do not ask for one earlier.
func (c *Config) flushEntries() uint64 {
	if c.SnapshotCountSet {
		return c.SnapshotCount
	}
	return replica.DefaultFlushEntries
}

// maxStreams is what HTTP/2 knows no value for when it is without bound.
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

package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/tlsutil"

	"github.com/belaydb/belay/budget"
	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/discovery"
	"github.com/belaydb/belay/logsink"
	"github.com/belaydb/belay/neighbours"
	"github.com/belaydb/belay/node"
)

// Program is the name that the process goes by: it decides over the default data directory, the
// help and the version text.
type Program string

const (
	Belay Program = "belay"
	Etcd  Program = "etcd"
)

const (
	// defaultName is etcd's name of a member that was given none.
	defaultName = "default"

	defaultPeerURL   = "http://localhost:2380"
	defaultClientURL = "http://localhost:2379"

	maxElectionTimeout = 50 * time.Second
	minRaftTimeout     = 5 * time.Second
	// A disk that syncs in less is merely slow, and a transfer needs time itself.
	minDiskStallHandOver = time.Second
	// Room for a few requests of the largest size.
	minUnsyncedBytes = 16 << 20
)

// Modes of automatic compaction.
const (
	CompactionPeriodic = "periodic"
	CompactionRevision = "revision"
)

// Config is one member's configuration. Sizes are bytes. Load and Validate leave no field that must
// not be empty empty.
type Config struct {
	node.Settings

	InitialClusterState string // "new" or "existing"
	DiscoverySRV        string // --discovery-srv
	DiscoverySRVName    string
	Discovery           discovery.Config // of --discovery-endpoints; Token and Endpoints are both set, or neither

	HeartbeatInterval time.Duration // one tick; whole milliseconds
	ElectionTimeout   time.Duration // whole milliseconds

	MemoryBudget string // --memory-budget, as given; empty: the default share of what there is

	StrictAuth      bool // rights end at once, for streams and JWTs too
	MaxRequestBytes uint
	MaxTxnOps       uint

	CompactionMode      string // --auto-compaction-mode
	CompactionRetention string // --auto-compaction-retention, as given
	// CompactionPeriod and CompactionRevisions are what Validate makes of the two; 0: off.
	CompactionPeriod    time.Duration
	CompactionRevisions int64

	// Gates are what --feature-gates says. InitialCorruptCheck and CompactHashCheck are what Load
	// makes of two of them.
	Gates            Gates
	CompactHashCheck bool // compare the hashes of compactions
	BcryptCost       uint
	AuthTokenTTL     uint // of simple tokens, in seconds

	CompactHashCheckTime time.Duration // between two such comparisons; above 0

	Spans
	Inert

	Metrics string // "basic" or "extensive"

	Logger         string
	LogLevel       string
	LogFormat      string
	LogForPerson   bool // Load: the log goes to a terminal, and no format was given
	LogOutputs     []string
	LogRotation    bool
	LogRotationSet string // lumberjack's settings as JSON

	DiskStallHandOver time.Duration // 0: never
	// Explicit holds the names of the flags that were given, by argument, environment or file.
	Explicit map[string]bool

	given map[string]string // their values, as they were written
}

// Default is the configuration without any flag.
func Default() *Config {
	mustURLs := func(s string) []url.URL {
		urls, err := ParseURLs(s)
		if err != nil {
			panic(err)
		}
		return urls
	}
	return &Config{
		Settings: node.Settings{
			Cluster: node.Cluster{
				DowngradeCheckTime:  5 * time.Second,
				Name:                defaultName,
				InitialCluster:      defaultName + "=" + defaultPeerURL,
				InitialClusterToken: "etcd-cluster",
				StrictReconfigCheck: true,
				MaxLearners:         1,
			},
			Ports: node.Ports{
				ListenPeerURLs:       mustURLs(defaultPeerURL),
				ListenClientURLs:     mustURLs(defaultClientURL),
				AdvertisePeerURLs:    mustURLs(defaultPeerURL),
				AdvertiseClientURLs:  mustURLs(defaultClientURL),
				RPCEngine:            node.EngineBelay,
				MaxConcurrentStreams: 1<<32 - 1,
				KeepaliveMinTime:     5 * time.Second,
				KeepaliveInterval:    2 * time.Hour,
				KeepaliveTimeout:     20 * time.Second,
				RaftReadTimeout:      minRaftTimeout,
				RaftWriteTimeout:     minRaftTimeout,
				EnableGateway:        true,
				SelfSignedYears:      1,
				TLSMinVersion:        string(tlsutil.TLSVersion12),
				CORS:                 []string{"*"},
				HostWhitelist:        []string{"*"},
			},
			Raft: node.Raft{
				AdvanceTicks:     true,
				PreVote:          true,
				MaxUnsyncedBytes: 512 << 20,
				SnapshotCount:    10000,
			},
			Data: node.Data{
				NoSpaceDisarm:  true,
				Usage:          true,
				AuthToken:      "simple",
				Limits:         node.DefaultLimits(),
				WarningApply:   100 * time.Millisecond,
				WarningRequest: 300 * time.Millisecond,
				Backup:         defaultBackup(),
			},
		},
		Spans:                defaultSpans(),
		Inert:                defaultInert(),
		Discovery:            discovery.Default(),
		Gates:                Gates{},
		InitialClusterState:  "new",
		HeartbeatInterval:    100 * time.Millisecond,
		ElectionTimeout:      time.Second,
		StrictAuth:           true,
		CompactHashCheck:     true, // costs a few small questions a minute
		CompactHashCheckTime: time.Minute,
		BcryptCost:           10,
		AuthTokenTTL:         300,
		DiskStallHandOver:    5 * time.Second,
		MaxRequestBytes:      1536 << 10,
		MaxTxnOps:            128,
		CompactionMode:       CompactionPeriodic,
		CompactionRetention:  "0",
		Metrics:              "basic",
		Logger:               "zap",
		LogLevel:             "info",
		LogFormat:            "json",
		LogOutputs:           []string{logsink.OutputDefault},
		LogRotationSet:       logsink.DefaultRotation,
		Explicit:             map[string]bool{},
	}
}

// Log is the part of the configuration that logsink builds the logger from.
func (c *Config) Log() logsink.Config {
	return logsink.Config{Logger: c.Logger, Level: c.LogLevel, Format: c.LogFormat, Outputs: c.LogOutputs, Rotate: c.LogRotation, Rotation: c.LogRotationSet}
}

// ElectionTicks is the election timeout in ticks.
func (c *Config) ElectionTicks() int { return int(c.ElectionTimeout / c.HeartbeatInterval) }

// ErrAdvertiseUnset is the one error of Validate that etcd logs twice.
var ErrAdvertiseUnset = errors.New("--advertise-client-urls is required when --listen-client-urls is set explicitly")

// Validate checks everything but the logger, in etcd's order and with its texts, and computes the
// fields that follow from others.
func (c *Config) Validate() error {
	for _, urls := range [][]url.URL{c.ListenPeerURLs, c.ListenClientURLs, c.ListenClientHTTPURLs, c.ListenMetricsURLs} {
		if err := checkBind(urls); err != nil {
			return err
		}
	}
	if err := checkHosts(c.AdvertisePeerURLs); err != nil {
		return fmt.Errorf(`--initial-advertise-peer-urls %q must be "host:port" (%w)`, JoinURLs(c.AdvertisePeerURLs), err)
	}
	if err := checkHosts(c.AdvertiseClientURLs); err != nil {
		return fmt.Errorf(`--advertise-client-urls %q must be in the format "host:port", "unix:/path/to/socket" or "unixs:/path/to/socket" (%w)`, JoinURLs(c.AdvertiseClientURLs), err)
	}
	if c.InitialClusterState != "new" && c.InitialClusterState != "existing" {
		return fmt.Errorf("unexpected clusterState %q", c.InitialClusterState)
	}
	if err := c.checkDiscovery(); err != nil {
		return err
	}
	tick, election := c.HeartbeatInterval.Milliseconds(), c.ElectionTimeout.Milliseconds()
	switch {
	case tick <= 0:
		return fmt.Errorf("--heartbeat-interval must be >0 (set to %dms)", tick)
	case election <= 0:
		return fmt.Errorf("--election-timeout must be >0 (set to %dms)", election)
	case 5*tick > election:
		return fmt.Errorf("--election-timeout[%vms] should be at least as 5 times as --heartbeat-interval[%vms]", election, tick)
	case c.ElectionTimeout > maxElectionTimeout:
		return fmt.Errorf("--election-timeout[%vms] is too long, and should be set less than %vms", election, maxElectionTimeout.Milliseconds())
	}
	if len(c.ListenClientURLs) > 0 && len(c.AdvertiseClientURLs) == 0 {
		return ErrAdvertiseUnset
	}
	switch c.CompactionMode {
	case CompactionPeriodic, CompactionRevision:
	case "":
		return errors.New("undefined auto-compaction-mode")
	default:
		return fmt.Errorf("unknown auto-compaction-mode %q", c.CompactionMode)
	}
	if err := c.checkTracing(); err != nil {
		return err
	}
	if err := c.checkGates(); err != nil {
		return err
	}
	if c.CompactHashCheckTime <= 0 {
		return fmt.Errorf("--compact-hash-check-time must be >0 (set to %v)", c.CompactHashCheckTime)
	}
	if err := c.checkTLS(); err != nil {
		return err
	}
	// etcd checks the rest only when it starts its parts, after it listens. A wrong flag is better
	// reported before.
	if err := c.compaction(); err != nil {
		return err
	}
	for _, l := range []struct {
		flag string
		urls []url.URL
	}{{"--listen-peer-urls", c.ListenPeerURLs}, {"--listen-client-urls", c.ListenClientURLs}, {"--initial-advertise-peer-urls", c.AdvertisePeerURLs}} {
		if len(l.urls) == 0 {
			return fmt.Errorf("%s must name at least one URL", l.flag)
		}
	}
	if c.DiskStallHandOver != 0 && c.DiskStallHandOver < minDiskStallHandOver {
		return fmt.Errorf("--disk-stall-handover must be 0, for never, or at least %v (set to %v)", minDiskStallHandOver, c.DiskStallHandOver)
	}
	if c.NeighboursRecordBytes != 0 && c.NeighboursRecordBytes < neighbours.LeastRecord {
		return fmt.Errorf("--neighbours-record-bytes must be 0, for none, or at least %d (set to %d)", neighbours.LeastRecord, c.NeighboursRecordBytes)
	}
	if c.MaxUnsyncedBytes < minUnsyncedBytes {
		return fmt.Errorf("--max-unsynced-bytes must be at least %d (set to %d)", minUnsyncedBytes, c.MaxUnsyncedBytes)
	}
	if _, err := budget.ParseSize(c.MemoryBudget); err != nil {
		return fmt.Errorf("--memory-budget is %q: %w", c.MemoryBudget, err)
	}
	if c.MaxClusterVersion != "" {
		if _, err := datadir.ParseEtcdVersion(c.MaxClusterVersion); err != nil {
			return fmt.Errorf("--max-cluster-version must be a version of etcd from 3.4 on that this program knows, as 3.6 (set to %q)", c.MaxClusterVersion)
		}
	}
	if err := c.Backup.Check(); err != nil {
		return err
	}
	if c.CorruptCheckTime < 0 { // etcd panics
		return fmt.Errorf("--corrupt-check-time must be 0, for never, or more (set to %v)", c.CorruptCheckTime)
	}
	if c.MaxLearners < 0 {
		return fmt.Errorf("--max-learners must not be negative (set to %d)", c.MaxLearners)
	}
	return nil
}

// compaction computes CompactionPeriod and CompactionRevisions. A number without a unit means hours
// or revisions.
func (c *Config) compaction() error {
	c.CompactionPeriod, c.CompactionRevisions = 0, 0
	if c.CompactionRetention == "" { // only from a file
		c.CompactionRetention = "0"
	}
	if n, err := strconv.Atoi(c.CompactionRetention); err == nil && n >= 0 {
		if c.CompactionMode == CompactionRevision {
			c.CompactionRevisions = int64(n)
		} else {
			c.CompactionPeriod = time.Duration(n) * time.Hour
		}
		return nil
	}
	d, err := time.ParseDuration(c.CompactionRetention)
	if err != nil {
		return fmt.Errorf("error parsing CompactionRetention: %w", err)
	}
	if c.CompactionMode == CompactionRevision && d >= 0 {
		c.CompactionRevisions = int64(d) // as etcd; Load warns
		return nil
	}
	if d < 0 {
		return fmt.Errorf("--auto-compaction-retention must not be negative (set to %v)", d)
	}
	c.CompactionPeriod = d
	return nil
}

// checkBind refuses a host name to listen on, but localhost.
func checkBind(urls []url.URL) error {
	for _, u := range urls {
		if u.Scheme == "unix" || u.Scheme == "unixs" {
			continue
		}
		host, _, err := net.SplitHostPort(u.Host)
		if err != nil {
			return err
		}
		if host != "localhost" && net.ParseIP(host) == nil {
			return fmt.Errorf("expected IP in URL for binding (%s)", u.String())
		}
	}
	return nil
}

func checkHosts(urls []url.URL) error {
	for _, u := range urls {
		if u.Scheme == "unix" || u.Scheme == "unixs" {
			continue
		}
		host, _, err := net.SplitHostPort(u.Host)
		if err != nil {
			return err
		}
		if host == "" {
			return fmt.Errorf("unexpected empty host (%s)", u.String())
		}
	}
	return nil
}

// JoinURLs writes URLs as a flag takes them.
func JoinURLs(urls []url.URL) string {
	text := make([]string, len(urls))
	for i := range urls {
		text[i] = urls[i].String()
	}
	return strings.Join(text, ",")
}

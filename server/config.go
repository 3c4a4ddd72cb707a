package server

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/url"
	"time"

	"github.com/coreos/go-semver/semver"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/crypto/bcrypt"

	"github.com/belaydb/belay/admission"
	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/evidence"
	"github.com/belaydb/belay/leader"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/store"
	"github.com/belaydb/belay/timemap"
	"github.com/belaydb/belay/usage"
	"github.com/belaydb/belay/watch"
)

// Replica is what the services need of the raft group; replica.Replica implements it, and tests
// have one that applies at once. Each part of the server is given what it needs of it.
type Replica interface {
	proposer
	group
	leader.Raft
	Status() replica.Status
	TransferLeader(ctx context.Context, to uint64) error
	// ReadBarrierThen is ReadBarrier that does not wait.
	ReadBarrierThen(func(error))
	Leader() uint64 // 0: none known
	Term() uint64
	NextID() uint64
}

// Peers is what the services need of the connections between members; transport.Transport
// implements it.
type Peers interface {
	// ActiveSince is the zero time for a member that cannot be reached.
	ActiveSince(id uint64) time.Time
	// Client makes requests to other members' peer URLs.
	Client() *http.Client
	// Open opens a connection to another member; see peers.Open.
	Open(ctx context.Context, id uint64, path, protocol string) (io.ReadWriteCloser, error)
}

// Config is what New needs. Zero values have the defaults told in brackets.
type Config struct {
	MemberID  uint64
	ClusterID uint64
	// Name and ClientURLs are what this member publishes about itself.
	Name       string
	ClientURLs []string
	// Version is Belay's own, shown by /version.
	Version string
	// DataDir is named in log lines.
	DataDir string
	// SpoolDir holds the temporary files of snapshots that clients ask for; empty: DataDir. What an
	// earlier life left there is removed if it is DataDir.
	SpoolDir string
	WALDir   string // of the raft log if FreeBytes counts its file system too; for log lines

	Replica Replica
	Peers   Peers // nil: other members cannot be reached
	State   *state.Machine
	Store   *store.Store
	KV      *mvcc.Store
	Leases  *lease.Table
	Hub     *watch.Hub
	// Tokens are the same as State's.
	Tokens    auth.Tokens
	Admission *admission.Gate // [one of its own]

	Logger   *zap.Logger
	Metrics  *Metrics
	Gatherer prometheus.Gatherer // what /metrics shows
	// Registerer takes the series of the /metrics handler itself; may be nil.
	Registerer prometheus.Registerer
	// LeaseMetrics are the lease table's, for expired leases; may be nil.
	LeaseMetrics *lease.Metrics
	Tracing      *Tracing // nil: none
	// BacklogBytes is the size of the log's entries between two indexes, for
	// admission by what is not yet applied; nil: admission goes by age alone.
	BacklogBytes func(applied, committed uint64) int64
	// FreeBytes is the free space of the file system that has least [Store.FreeBytes].
	FreeBytes func() (uint64, error)

	// ReadyChecks are checks of /readyz in addition to etcd's.
	ReadyChecks []HealthCheck
	// Events is what /debug/belay/events serves, recent events or all; nil: there is no such path.
	Events func(within time.Duration) evidence.Report
	// Neighbours writes what /debug/belay/neighbours serves, the samples that end after since; nil:
	// there is no such path.
	Neighbours func(w io.Writer, since time.Time) error
	// Usage counts who uses this member, and usage.Path serves it; nil: it is not counted, and there
	// is no such path.
	Usage *usage.Tracker
	// Revisions is what timemap.Path serves; nil: there is no such path.
	Revisions func(query url.Values) (timemap.Answer, error)
	// Backups is what pathBackup serves, to root alone where there are users; nil: there is no such
	// path.
	Backups http.Handler

	// Heal: as the leader, this member puts an heir in the place of a member that heals. IsEtcd says of
	// which members it is known that they are no Belay, LogEnd the raft log's last entry. MayHeal says
	// whether this member has healed too often, and Differs stops it, so that it heals, because its
	// data is not that of the others; it does not wait. All are needed for it.
	Heal    bool
	IsEtcd  func(id uint64) bool
	LogEnd  func() (index, term uint64)
	MayHeal func() error
	Differs func(found string)

	RequestTimeout    time.Duration // [5 s and two election timeouts]
	ElectionTimeout   time.Duration // [1 s]
	HeartbeatInterval time.Duration // [100 ms]
	ClientCertAuth    bool          // clients show certificates

	Settings
}

// Settings are what an operator chooses about the services. Zero values have the defaults told
// in brackets.
type Settings struct {
	// Requests, beside what Limits bounds.
	MaxRequestBytes  int           // [1.5 MiB]
	MaxTxnOps        int           // on one level of a transaction [128]
	WarnUnaryRequest time.Duration // what takes longer is logged [300 ms]
	Limits           Limits
	// AnswersBytes is how much memory large answers may take together, from when they are read until
	// they are sent; others wait [no bound].
	AnswersBytes int64

	// Connections and streams.
	MaxConcurrentStreams  uint32        // of a connection [no bound]
	StreamWorkers         uint32        // [defaultStreamWorkers]
	KeepaliveMinTime      time.Duration // a client that pings more often is disconnected [5 s]
	KeepaliveInterval     time.Duration // [2 h]
	KeepaliveTimeout      time.Duration // [20 s]
	WatchProgressInterval time.Duration // [10 min]

	// HTTP.
	CORS []string // origins that browsers may ask from; none or "*": all
	// CORSSimpleRequests: pages of any origin may send what needs no preflight to the gateway.
	CORSSimpleRequests bool
	HostWhitelist      []string // hosts of plain HTTP requests; none or "*": all
	EnablePprof        bool
	WebView            bool // pathView is served

	// Users.
	BcryptCost int // of passwords' hashes [10]
	// LaxAuth is etcd's way with rights that end: streams go on, and a JWT of an older auth
	// revision is good for administration.
	LaxAuth bool

	// Members.
	StrictReconfigCheck bool
	// MaxLearners bounds the learners that this member adds to the cluster [1]; below 0: none.
	MaxLearners int

	// What members do by themselves.
	Compaction       leader.AutoCompaction
	CorruptionChecks leader.CorruptionChecks
	// MaxClusterVersion is the version to which the leader raises the cluster's at most; nil: that of
	// the members.
	MaxClusterVersion *semver.Version
	DowngradeInterval time.Duration // between two looks whether a downgrade is done; 0: never
	MinFreeBytes      uint64        // free space of the file system below which NOSPACE is raised [128 MiB]
	// NoSpaceDisarm: this member disarms a NOSPACE alarm that it raised itself when it has room
	// again.
	NoSpaceDisarm bool
}

func (c *Config) setDefaults() error {
	if c.Replica == nil || c.State == nil || c.KV == nil || c.Leases == nil || c.Store == nil {
		return errors.New("server: Config needs Replica, State, Store, KV and Leases")
	}
	if c.SpoolDir == "" {
		c.SpoolDir = c.DataDir
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.ElectionTimeout, time.Second)
	def(&c.HeartbeatInterval, 100*time.Millisecond)
	def(&c.RequestTimeout, 5*time.Second+2*c.ElectionTimeout)
	def(&c.WarnUnaryRequest, 300*time.Millisecond)
	def(&c.KeepaliveMinTime, 5*time.Second)
	def(&c.KeepaliveInterval, 2*time.Hour)
	def(&c.KeepaliveTimeout, 20*time.Second)
	def(&c.WatchProgressInterval, 10*time.Minute)
	if c.MaxRequestBytes == 0 {
		c.MaxRequestBytes = 1536 << 10
	}
	if c.MaxTxnOps == 0 {
		c.MaxTxnOps = 128
	}
	if c.MaxConcurrentStreams == 0 {
		c.MaxConcurrentStreams = math.MaxUint32
	}
	if c.MaxLearners == 0 {
		c.MaxLearners = 1
	}
	if c.FreeBytes == nil {
		c.FreeBytes = c.Store.FreeBytes
	}
	if c.MinFreeBytes == 0 {
		c.MinFreeBytes = 128 << 20
	}
	if c.StreamWorkers == 0 {
		c.StreamWorkers = defaultStreamWorkers
	}
	c.Limits.setDefaults()
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	if c.BcryptCost < bcrypt.MinCost || c.BcryptCost > bcrypt.MaxCost {
		if c.BcryptCost != 0 {
			c.Logger.Warn("use default bcrypt cost instead of the invalid given cost", zap.Int("min-cost", bcrypt.MinCost),
				zap.Int("max-cost", bcrypt.MaxCost), zap.Int("default-cost", bcrypt.DefaultCost), zap.Int("given-cost", c.BcryptCost))
		}
		c.BcryptCost = bcrypt.DefaultCost
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics(nil, MetricsOptions{})
	}
	if c.Admission == nil {
		c.Admission = admission.New(admission.Options{})
	}
	return nil
}

// defaultStreamWorkers is how many goroutines of grpc-go's server serve calls; beyond them it starts
// one for each call. A worker's stack has grown to what a request needs and stays so, while a new
// goroutine grows its own again (7 % of the CPU of a put). More did not help: a put waits for its
// result in its worker, and with 1,024 of them handing calls out costs what the stacks saved (puts
// of 1,000 clients on 2 cores: 38 us of CPU each with 8, 40 to 45 with 1,024).
const defaultStreamWorkers = 8

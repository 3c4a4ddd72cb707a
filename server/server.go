package server

import (
	"context"
	"errors"
	"math"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-semver/semver"
	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"

	"github.com/belaydb/belay/admission"
	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/evidence"
	"github.com/belaydb/belay/leader"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/snapshotfile"
	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/store"
	"github.com/belaydb/belay/watch"
)

// Replica is what the services need of the raft group; replica.Replica is one,
// the tests have another that applies at once.
type Replica interface {
	Propose(ctx context.Context, req *pb.InternalRaftRequest) (command.Result, error)
	// ProposeAs is Propose that is given up with ErrNotLeader unless this member
	// leads in term when raft is handed the request.
	ProposeAs(ctx context.Context, term uint64, req *pb.InternalRaftRequest) (command.Result, error)
	ProposeChange(ctx context.Context, c *command.Change) (command.Result, error)
	// ReadBarrier returns when this member has applied every write that was
	// acknowledged before the call.
	ReadBarrier(ctx context.Context) error
	TransferLeader(ctx context.Context, to uint64) error
	// LearnerReady is nil when a learner has caught up enough to be promoted.
	LearnerReady(ctx context.Context, id uint64) error
	// Status is consistent in itself: leader, term and role are of one moment.
	Status() replica.Status
	Leader() uint64 // 0: none known
	Term() uint64
	LeaderChanged() <-chan struct{}
	ElectionTimeout() time.Duration // this member's, as it is now
	NextID() uint64
}

// Peers is what the services need of the connections between members;
// transport.Transport is one.
type Peers interface {
	// ActiveSince is the zero time for a member that cannot be reached.
	ActiveSince(id uint64) time.Time
	// Client speaks to other members' peer URLs.
	Client() *http.Client
}

// Config is what New needs. Zero values have the defaults told.
type Config struct {
	MemberID  uint64
	ClusterID uint64
	// Name and ClientURLs are what this member publishes of itself.
	Name       string
	ClientURLs []string
	// Version is Belay's own, told by /version.
	Version string
	// DataDir holds the temporary files of snapshots that clients ask for.
	DataDir string

	Replica Replica
	Peers   Peers
	State   *state.Machine
	Store   *store.Store
	KV      *mvcc.Store
	Leases  *lease.Table
	Hub     *watch.Hub
	// Tokens are the ones that State was given.
	Tokens    auth.Tokens
	Admission *admission.Gate

	Logger   *zap.Logger
	Metrics  *Metrics
	Gatherer prometheus.Gatherer // what /metrics shows
	// Registerer takes the series of the /metrics handler itself; may be nil.
	Registerer prometheus.Registerer
	// LeaseMetrics are the lease table's, for expired leases; may be nil.
	LeaseMetrics *lease.Metrics
	// BacklogBytes is the size of the log's entries between two indexes, for
	// admission by what is not yet applied; nil: admission goes by age alone.
	BacklogBytes func(applied, committed uint64) int64

	// ReadyChecks are checked by /readyz besides etcd's own.
	ReadyChecks []HealthCheck
	// Events is what /debug/belay/events serves, of the last so long or all; nil:
	// there is no such path.
	Events func(within time.Duration) evidence.Report

	MaxRequestBytes      int           // 1.5 MiB
	MaxTxnOps            int           // 128
	MaxConcurrentStreams uint32        // no bound
	WALDir               string        // of the raft log if FreeBytes counts its file system too; for log lines
	DowngradeInterval    time.Duration // between two looks whether a downgrade is done; 0: never
	MinFreeBytes         uint64        // free space of the file system below which NOSPACE is raised; 128 MiB
	// NoSpaceDisarm: a NOSPACE alarm that this member raised itself is disarmed by it when it has room again.
	NoSpaceDisarm       bool
	FreeBytes           func() (uint64, error) // that space, of the file system that has least; Store.FreeBytes
	RequestTimeout      time.Duration          // 5 s and two election timeouts
	ElectionTimeout     time.Duration          // 1 s
	HeartbeatInterval   time.Duration          // 100 ms
	StrictReconfigCheck bool
	// MaxLearners bounds the learners that this member adds to the cluster. 0: 1; below 0: none.
	MaxLearners       int
	WarnUnaryRequest  time.Duration // 300 ms
	KeepaliveMinTime  time.Duration // 5 s
	KeepaliveInterval time.Duration // 2 h
	KeepaliveTimeout  time.Duration // 20 s
	StreamWorkers     uint32        // see defaultStreamWorkers
	EnablePprof       bool
	CORS              []string // origins that browsers may ask from; none or "*": all
	HostWhitelist     []string // hosts of plain HTTP requests; none or "*": all
	ClientCertAuth    bool     // clients show certificates
	// CORSSimpleRequests: pages of any origin may send what needs no preflight to the gateway.
	CORSSimpleRequests bool
	// LaxAuth is etcd's way with rights that end: streams go on, and a JWT of an older auth revision is good for
	// administration.
	LaxAuth    bool
	BcryptCost int      // of passwords' hashes; 10
	Tracing    *Tracing // nil: none

	WatchProgressInterval time.Duration // 10 min

	Compaction       leader.AutoCompaction
	CorruptionChecks leader.CorruptionChecks

	Limits Limits
}

func (c *Config) setDefaults() error {
	if c.Replica == nil || c.State == nil || c.KV == nil || c.Leases == nil || c.Store == nil {
		return errors.New("server: Config needs Replica, State, Store, KV and Leases")
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

// defaultStreamWorkers is how many goroutines serve calls; beyond them grpc
// starts one for each call. A worker's stack has grown to what a request needs
// and stays so, while a new goroutine grows its own again (7 % of the CPU of
// a put). More did not help: a put waits for its result in its worker, and with
// 1,024 of them handing calls out costs what the stacks saved (puts of 1,000
// clients on 2 cores: 38 us of CPU each with 8, 40 to 45 with 1,024).
const defaultStreamWorkers = 8

// Server is the member's services. Its exported methods may be called from any
// goroutine.
type Server struct {
	cfg     Config
	logger  *zap.Logger
	metrics *Metrics
	debug   bool // debug logging is on: every request is logged

	replica Replica
	state   *state.Machine
	kvStore *mvcc.Store

	kv          *kvService
	lease       *leaseService
	cluster     *clusterService
	maintenance *maintenanceService
	auth        *authService
	health      *health.Server

	// What this member does by itself; see lead.
	version    *leader.ClusterVersion
	expiry     *leader.Expiry
	compactor  *leader.Compactor
	corruption *leader.Corruption
	space      *leader.Space

	leaderStreams leaderStreams
	versionKnown  atomic.Bool // the cluster version was seen once: it never goes away again
	published     chan struct{}
	defragging    atomic.Bool      // a compaction of the whole store runs
	confirmed     atomicTime       // when the read barrier that last proved leadership was begun
	hashing       *admission.Turns // of computing bcrypt
	reading       *admission.Turns // of reading much; see turn
	codec         *countingCodec

	stop    context.CancelFunc
	stopped context.Context // done when Stop was called
	loopsMu sync.Mutex      // held to start a loop and to stop: none starts while Stop waits
	loops   sync.WaitGroup
}

// New makes the services. Nothing runs until Start; the handlers may be
// mounted before.
func New(cfg Config) (*Server, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	s := &Server{
		cfg:       cfg,
		logger:    cfg.Logger,
		metrics:   cfg.Metrics,
		debug:     cfg.Logger.Core().Enabled(zap.DebugLevel),
		replica:   cfg.Replica,
		state:     cfg.State,
		kvStore:   cfg.KV,
		health:    health.NewServer(),
		published: make(chan struct{}),
	}
	s.hashing = admission.NewTurns(max(1, runtime.GOMAXPROCS(0)/2), maxHashingCalls, maxHashingClients)
	s.reading = admission.NewTurns(max(1, runtime.GOMAXPROCS(0)-1), math.MaxInt, math.MaxInt)
	s.codec = newCountingCodec(s.metrics)
	revision := func() float64 { return float64(s.state.Policy().Revision()) }
	s.metrics.authRevision.Store(&revision)
	s.leaderStreams.open = make(map[*endableContext]struct{})
	s.stopped, s.stop = context.WithCancel(context.Background())
	s.kv = &kvService{Server: s}
	s.lease = &leaseService{Server: s}
	s.cluster = &clusterService{Server: s}
	s.maintenance = &maintenanceService{Server: s, snapshots: make(chan struct{}, maxSnapshots), snapshotStall: streamStall}
	s.auth = &authService{Server: s}
	s.lead()
	if cfg.CorruptionChecks.CompactionInterval > 0 {
		s.metrics.feature.WithLabelValues("CompactHashCheck", "ALPHA").Set(1)
	}
	s.metrics.setServerID(cfg.MemberID)
	if cfg.DataDir != "" {
		if err := snapshotfile.RemoveLeftovers(cfg.DataDir); err != nil {
			s.logger.Warn("failed to remove what an interrupted snapshot left", zap.String("data-dir", cfg.DataDir), zap.Error(err))
		}
	}
	s.metrics.quota.Set(float64(cfg.State.QuotaBytes()))
	s.logQuota()
	return s, nil
}

// RegisterGRPC registers every service with a server that was made with
// GRPCOptions.
func (s *Server) RegisterGRPC(g *grpc.Server) {
	s.registerKV(g)
	pb.RegisterLeaseServer(g, s.lease)
	pb.RegisterClusterServer(g, s.cluster)
	pb.RegisterMaintenanceServer(g, s.maintenance)
	pb.RegisterAuthServer(g, s.auth)
	s.registerHealth(g)
	s.registerWatch(g)
	s.registerElection(g)
	s.registerLock(g)
}

// Start runs the loops of this member: publishing itself, and what a leader
// does by itself. They end with Stop.
func (s *Server) Start() {
	for _, loop := range []func(context.Context){
		s.publish, s.watchLeader, s.expiry.Run, s.version.Run, s.compactor.Run,
		s.space.Run, s.watchAdmission, s.watchDescriptors, s.corruption.Run, s.watchQuorum,
	} {
		s.background(loop)
	}
}

// background runs f in a goroutine that Stop waits for, with a context that ends then; not at
// all once Stop was called.
func (s *Server) background(f func(stopped context.Context)) {
	s.loopsMu.Lock()
	defer s.loopsMu.Unlock()
	if s.stopped.Err() == nil {
		s.loops.Go(func() { f(s.stopped) })
	}
}

// Stop ends the loops, and the calls that would last: streams, campaigns and
// locks end with `server stopped`. The grpc and HTTP servers are stopped by who
// made them.
func (s *Server) Stop() {
	s.loopsMu.Lock()
	s.stop()
	s.loopsMu.Unlock()
	s.loops.Wait()
}

// Published is closed once this member has told the cluster its name and
// client URLs, which proves that it takes part: from then on it serves.
func (s *Server) Published() <-chan struct{} { return s.published }

// MembersChanged wakes what depends on the member list. replica calls it after
// each member change; it never blocks.
func (s *Server) MembersChanged() { s.version.MembersChanged() }

// OverQuota raises the NOSPACE alarm of this member: its database would be, or is, larger than
// its quota. It does not wait.
func (s *Server) OverQuota() { s.space.Exceeded() }

// CheckInitial compares this member's data with the others' before it serves. It may run before
// Start, once the peers' addresses are known; an error says that this member must not serve.
func (s *Server) CheckInitial(ctx context.Context) error { return s.corruption.Initial(ctx) }

// capable says whether requests may be served: the cluster has agreed on a
// version.
func (s *Server) capable() bool {
	if s.versionKnown.Load() {
		return true
	}
	if s.state.ClusterVersion() == nil {
		return false
	}
	s.versionKnown.Store(true)
	return true
}

// storageVersion is the schema that etcd would have on disk at this cluster
// version, nil as long as that is unknown.
func (s *Server) storageVersion() *semver.Version {
	v := s.state.ClusterVersion()
	if v == nil || v.LessThan(semver.Version{Major: 3, Minor: 6}) {
		return nil
	}
	return &semver.Version{Major: v.Major, Minor: v.Minor}
}

// isLearner says whether this member is a learner in the member list.
func (s *Server) isLearner() bool {
	return s.state.IsLearner(s.cfg.MemberID)
}

// fill completes a header whose revision may be set; revision 0 becomes the
// current one.
func (s *Server) fill(h *pb.ResponseHeader) {
	s.fillWithoutRevision(h)
	if h.Revision == 0 {
		h.Revision = s.kvStore.Revision()
	}
}

func (s *Server) fillWithoutRevision(h *pb.ResponseHeader) {
	h.ClusterId = s.cfg.ClusterID
	h.MemberId = s.cfg.MemberID
	h.RaftTerm = s.replica.Term()
}

// header is a header of now.
func (s *Server) header() *pb.ResponseHeader {
	h := &pb.ResponseHeader{}
	s.fill(h)
	return h
}

// propose replicates a request of a client and returns what applying it
// answered. cost is about what it holds in memory, for admission. The error is
// the request's own or raft's, still to be mapped by toGRPC.
func (s *Server) propose(ctx context.Context, kind requestKind, req *pb.InternalRaftRequest, cost int) (command.Result, error) {
	if s.state.Policy().Enabled() && req.Authenticate == nil {
		header, err := s.admittedHeader(ctx, req)
		if err != nil {
			return command.Result{}, err
		}
		req.Header = header
	}
	return s.proposeAs(ctx, kind, req, cost, false)
}

// proposeOwn is propose for what the member itself asks for: it finds room
// where clients do not.
func (s *Server) proposeOwn(ctx context.Context, kind requestKind, req *pb.InternalRaftRequest) (command.Result, error) {
	return s.proposeAs(ctx, kind, req, 64, true)
}

// proposeInTerm is proposeOwn for what only the leader of a term may ask for.
func (s *Server) proposeInTerm(ctx context.Context, term uint64, kind requestKind, req *pb.InternalRaftRequest) (command.Result, error) {
	start := time.Now()
	result, err := s.replica.ProposeAs(ctx, term, req)
	s.metrics.observeRequest(kind, err == nil, time.Since(start).Seconds())
	if err == nil {
		err = result.Err
	}
	return result, err
}

func (s *Server) proposeAs(ctx context.Context, kind requestKind, req *pb.InternalRaftRequest, cost int, own bool) (result command.Result, err error) {
	if err = s.cfg.Admission.Enter(cost, own); err != nil {
		return
	}
	start := time.Now()
	result, err = s.replica.Propose(ctx, req)
	s.proposed(kind, cost, start, err == nil)
	if err == nil {
		err = result.Err
	}
	return
}

// proposed is what is left to do once a proposal has ended; see
// Replica.Propose for why it is apart.
//
//go:noinline
func (s *Server) proposed(kind requestKind, cost int, start time.Time, success bool) {
	s.cfg.Admission.Leave(cost)
	s.metrics.observeRequest(kind, success, time.Since(start).Seconds())
}

// atomicTime is a time that goroutines share; its zero value is the zero time.
type atomicTime struct{ p atomic.Pointer[time.Time] }

func (a *atomicTime) store(t time.Time) { a.p.Store(&t) }

func (a *atomicTime) load() time.Time {
	if t := a.p.Load(); t != nil {
		return *t
	}
	return time.Time{}
}

package server

import (
	"context"
	"io"
	"math"
	"net/http"
	"path/filepath"
	"runtime"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/keepalive"

	"github.com/belaydb/belay/admission"
	"github.com/belaydb/belay/leader"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/peers"
	"github.com/belaydb/belay/rpc"
	"github.com/belaydb/belay/server/electionpb"
	"github.com/belaydb/belay/server/lockpb"
	"github.com/belaydb/belay/snapshotfile"
)

// Server is the member's services: it makes the parts, gives each what it needs of the others,
// and starts and ends them. Its exported methods may be called from any goroutine.
type Server struct {
	cfg Config // with its defaults; not changed after New

	// What the services are made of.
	life    *lifetime
	callers *authorizer
	log     *proposals
	headers *headers
	turns   *turns
	calls   *calls
	usage   *usageOf

	kv          *kvService
	lease       *leaseService
	cluster     *clusterService
	maintenance *maintenanceService
	auth        *authService
	health      *health.Server
	pages       *pages
	peers       *peerAnswers
	healing     *healing // nil: it does not heal others

	// What this member does by itself.
	publisher  *publisher
	version    *leader.ClusterVersion
	expiry     *leader.Expiry
	compactor  *leader.Compactor
	corruption *leader.Corruption
	outlier    *leader.Outlier // nil: without Heal
	space      *leader.Space
}

// New makes the services. Nothing runs until Start; the handlers may be mounted before.
func New(cfg Config) (*Server, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, life: newLifetime(), health: health.NewServer(), turns: newTurns(cfg.Metrics, cfg.AnswersBytes)}
	s.makeParts()
	s.makeServices()
	s.makePublisher()
	s.makeTasks()
	if cfg.CorruptionChecks.CompactionInterval > 0 {
		cfg.Metrics.feature.WithLabelValues("CompactHashCheck", "ALPHA").Set(1)
	}
	revision := func() float64 { return float64(cfg.State.Policy().Revision()) }
	cfg.Metrics.authRevision.Store(&revision)
	cfg.Metrics.setServerID(cfg.MemberID)
	cfg.Metrics.quota.Set(float64(cfg.State.QuotaBytes()))
	cfg.Metrics.diskFreeMinimum.Set(float64(cfg.MinFreeBytes))
	if cfg.SpoolDir == cfg.DataDir && cfg.DataDir != "" {
		if err := snapshotfile.RemoveLeftovers(cfg.DataDir); err != nil {
			cfg.Logger.Warn("failed to remove what an interrupted snapshot left", zap.String("data-dir", cfg.DataDir), zap.Error(err))
		}
	}
	logQuota(cfg.Logger, cfg.State.QuotaBytes())
	return s, nil
}

// makeParts makes what several services need.
func (s *Server) makeParts() {
	cfg := &s.cfg
	s.callers = &authorizer{
		rules: cfg.State, tokens: cfg.Tokens, barrier: cfg.Replica.ReadBarrier, leaseKeys: s.leaseKeys,
		clientCertAuth: cfg.ClientCertAuth, lax: cfg.LaxAuth, maxRequestBytes: cfg.MaxRequestBytes, logger: cfg.Logger,
	}
	s.log = &proposals{replica: cfg.Replica, gate: cfg.Admission, callers: s.callers, metrics: cfg.Metrics}
	s.headers = &headers{clusterID: cfg.ClusterID, memberID: cfg.MemberID, term: cfg.Replica.Term, revision: cfg.KV.Revision}
	s.usage = &usageOf{tracker: cfg.Usage, callers: s.callers}
	s.calls = &calls{
		usage:  s.usage,
		leader: cfg.Replica.Leader, clusterVersion: cfg.State.ClusterVersion,
		isLearner: func() bool { return cfg.State.IsLearner(cfg.MemberID) },
		spans:     newSpans(cfg.Tracing), codec: newCountingCodec(cfg.Metrics), life: s.life,
		requestTimeout: cfg.RequestTimeout, electionTimeout: cfg.ElectionTimeout, warnAfter: cfg.WarnUnaryRequest,
		debug: cfg.Logger.Core().Enabled(zap.DebugLevel), metrics: cfg.Metrics, logger: cfg.Logger,
		streams: leaderStreams{open: make(map[*endableContext]struct{})},
	}
}

// leaseKeys are the keys of a lease, none if it does not exist.
func (s *Server) leaseKeys(id int64) ([][]byte, error) {
	return s.cfg.Leases.Keys(s.cfg.Store, lease.ID(id))
}

// peerClient speaks to other members; nil: they cannot be reached.
func (s *Server) peerClient() *http.Client {
	if s.cfg.Peers == nil {
		return nil
	}
	return s.cfg.Peers.Client()
}

func (s *Server) activeSince(id uint64) time.Time {
	if s.cfg.Peers == nil {
		return time.Time{}
	}
	return s.cfg.Peers.ActiveSince(id)
}

func (s *Server) makeServices() {
	cfg := &s.cfg
	atLeader := &forwarder{
		memberID: cfg.MemberID, raft: cfg.Replica, member: cfg.State.Member, client: s.peerClient(),
		timeout: cfg.RequestTimeout, life: s.life, metrics: cfg.Metrics,
		renewals: &renewals{raft: cfg.Replica, life: s.life, logger: cfg.Logger},
	}
	if cfg.Peers != nil {
		atLeader.renewals.open = func(ctx context.Context, id uint64) (io.ReadWriteCloser, error) {
			return cfg.Peers.Open(ctx, id, peers.PathRenewals, peers.ProtocolRenewals)
		}
	}
	versions := &memberVersions{belay: cfg.Version, cluster: cfg.State.ClusterVersion}
	bound := &quota{fits: cfg.State.QuotaFits, exceeded: s.OverQuota}
	s.kv = &kvService{
		kv: cfg.KV, barrier: cfg.Replica.ReadBarrier, log: s.log, callers: s.callers, headers: s.headers,
		quota: bound, usage: s.usage, turns: s.turns, codec: s.calls.codec, slow: cfg.State,
		limits: cfg.Limits, maxTxnOps: cfg.MaxTxnOps, maxRequestBytes: cfg.MaxRequestBytes,
		life: s.life, metrics: cfg.Metrics,
	}
	s.lease = &leaseService{
		leases: cfg.Leases, keys: s.leaseKeys, log: s.log, callers: s.callers, headers: s.headers, quota: bound,
		leader: atLeader, raft: cfg.Replica, barrier: cfg.Replica.ReadBarrier, nextID: cfg.Replica.NextID,
		spans: s.calls.spans, metrics: cfg.Metrics, logger: cfg.Logger, electionTimeout: cfg.ElectionTimeout,
	}
	s.cluster = &clusterService{
		members: cfg.State, group: cfg.Replica, barrier: cfg.Replica.ReadBarrier, callers: s.callers, headers: s.headers,
		leader: atLeader, activeSince: s.activeSince, strict: cfg.StrictReconfigCheck, maxLearners: cfg.MaxLearners,
		timeout: cfg.RequestTimeout, metrics: cfg.Metrics, logger: cfg.Logger,
	}
	s.maintenance = &maintenanceService{
		state: cfg.State, group: cfg.Replica, kv: cfg.KV, size: cfg.Store.Size, log: s.log, callers: s.callers,
		headers: s.headers, turns: s.turns, versions: versions,
		defrag: &defragmenter{
			store: wholeStore{cfg.Store, cfg.KV}, path: filepath.Join(cfg.DataDir, "member", "store"), life: s.life, metrics: cfg.Metrics, logger: cfg.Logger,
		},
		activeSince: s.activeSince, dataDir: cfg.SpoolDir, timeout: cfg.RequestTimeout, life: s.life,
		metrics: cfg.Metrics, logger: cfg.Logger,
		snapshots: make(chan struct{}, maxSnapshots), snapshotStall: streamStall,
	}
	s.auth = &authService{
		log: s.log, callers: s.callers, headers: s.headers, life: s.life, limits: cfg.Limits, cost: cfg.BcryptCost,
		hashing: admission.NewTurns(max(1, runtime.GOMAXPROCS(0)/2), maxHashingCalls, maxHashingClients), logger: cfg.Logger,
	}
	s.pages = &pages{
		memberID: cfg.MemberID, state: cfg.State, versions: versions, status: cfg.Replica.Status, probe: s.kv.probe,
		usage: s.usage, usageName: cfg.Name, events: cfg.Events, neighbours: cfg.Neighbours, revisions: cfg.Revisions, backups: cfg.Backups, admin: s.callers.authorizeAdmin, gatherer: cfg.Gatherer, registerer: cfg.Registerer, readyChecks: cfg.ReadyChecks,
		requestTimeout: cfg.RequestTimeout, profiles: cfg.EnablePprof, debug: s.calls.debug, metrics: cfg.Metrics, logger: cfg.Logger,
	}
	s.peers = &peerAnswers{
		clusterID: cfg.ClusterID, members: cfg.State.Members, downgrade: cfg.State.DowngradeInfo, barrier: cfg.Replica.ReadBarrier,
		callers: s.callers, cluster: s.cluster, lease: s.lease,
		renewals: &renewalAnswers{
			memberID: cfg.MemberID, lease: s.lease, member: cfg.State.Member, removed: cfg.State.IsRemoved, life: s.life,
			logger: cfg.Logger, lines: make(map[uint64]*peers.Line),
		},
		hashes: history{cfg.KV}, version: s.pages.serveVersion, logger: cfg.Logger,
	}
}

// makeHealing makes what helps members that heal, and has this one heal when its data is not that of
// the others.
func (s *Server) makeHealing(own *ownRequests) {
	cfg := &s.cfg
	if !cfg.Heal {
		return
	}
	s.healing = &healing{
		name: cfg.Name, memberID: cfg.MemberID, clusterID: cfg.ClusterID, cluster: s.cluster,
		status: cfg.Replica.Status, barrier: cfg.Replica.ReadBarrier, isRemoved: cfg.State.IsRemoved, isEtcd: cfg.IsEtcd, copy: s.copy,
		corrupt: own.corrupt, endCorrupt: own.endCorrupt, agree: s.corruption.Agree, background: s.life.background,
		client: s.peerClient(), busy: make(chan struct{}, 1), logger: cfg.Logger,
	}
	s.outlier = leader.NewOutlier(leader.OutlierConfig{
		MemberID: cfg.MemberID, Corrupt: own.corrupt, Members: cfg.State.Members,
		Connected: func(id uint64) bool { return !s.activeSince(id).IsZero() }, IsEtcd: cfg.IsEtcd,
		Agree: s.corruption.Agree, MayHeal: cfg.MayHeal, Leave: cfg.Differs, Logger: cfg.Logger,
	})
}

func (s *Server) makePublisher() {
	s.publisher = &publisher{
		memberID: s.cfg.MemberID, clusterID: s.cfg.ClusterID, name: s.cfg.Name, clientURLs: s.cfg.ClientURLs, log: s.log,
		timeout: s.cfg.RequestTimeout, pause: s.cfg.HeartbeatInterval, logger: s.cfg.Logger, done: make(chan struct{}),
	}
}

// makeTasks makes what package leader does on this member.
func (s *Server) makeTasks() {
	cfg := &s.cfg
	own := &ownRequests{
		memberID: cfg.MemberID, log: s.log, callers: s.callers, alarms: cfg.State.Alarms,
		isRemoved: cfg.State.IsRemoved, timeout: cfg.RequestTimeout, life: s.life, logger: cfg.Logger,
	}
	members := &leader.Members{MemberID: cfg.MemberID, ClusterID: cfg.ClusterID, All: cfg.State.Members, Client: s.peerClient(), Logger: cfg.Logger}
	s.version = leader.NewClusterVersion(leader.ClusterVersionConfig{
		Raft: cfg.Replica, State: cfg.State, Members: members, Own: s.pages.versions.all,
		Set: own.setVersion, EndDowngrade: s.maintenance.cancelDowngrade,
		Highest: cfg.MaxClusterVersion, Timeout: cfg.RequestTimeout, DowngradeInterval: cfg.DowngradeInterval, Logger: cfg.Logger,
	})
	s.expiry = leader.NewExpiry(leader.ExpiryConfig{
		MemberID: cfg.MemberID, Raft: cfg.Replica, Leases: cfg.Leases,
		Revoke: own.revoke, Note: own.noteRemaining, MayNote: s.version.OnlyBelay, Revoked: s.leaseExpired,
		Retry: cfg.HeartbeatInterval, Logger: cfg.Logger,
	})
	s.compactor = leader.NewCompactor(leader.CompactorConfig{
		Auto: cfg.Compaction, Leads: func() bool { return cfg.Replica.Status().IsLeader() },
		Revision: cfg.KV.Revision, Compact: s.kv.compactTo, Logger: cfg.Logger,
	})
	s.corruption = leader.NewCorruption(leader.CorruptionConfig{
		MemberID: cfg.MemberID, Checks: cfg.CorruptionChecks, Timeout: cfg.RequestTimeout,
		Raft: cfg.Replica, Data: history{cfg.KV}, Members: members,
		Raise: own.raiseCorrupt, Outcome: cfg.Metrics.corruptionCheck, Logger: cfg.Logger,
	})
	s.space = leader.NewSpace(leader.SpaceConfig{
		MemberID: cfg.MemberID, DataDir: cfg.DataDir, WALDir: cfg.WALDir,
		MinFreeBytes: cfg.MinFreeBytes, Disarm: cfg.NoSpaceDisarm,
		Leads: func() bool { return cfg.Replica.Leader() == cfg.MemberID }, Alarms: cfg.State,
		Free: cfg.FreeBytes, Seen: func(free uint64) { cfg.Metrics.diskFree.Set(float64(free)) }, Size: cfg.Store.Size, Rewrite: func() { s.maintenance.defrag.start() }, Rewriting: s.maintenance.defrag.running,
		Raise: own.raiseNoSpace, End: own.endNoSpace, Background: s.life.background,
		Timeout: cfg.RequestTimeout, Logger: cfg.Logger,
	})
	s.makeHealing(own)
}

func (s *Server) leaseExpired() {
	if s.cfg.LeaseMetrics != nil {
		s.cfg.LeaseMetrics.Expired.Inc()
	}
}

// GRPCOptions are the options that a grpc.Server for RegisterGRPC must be made with. The caller
// adds credentials.
func (s *Server) GRPCOptions() []grpc.ServerOption {
	o := s.RPCOptions()
	opts := []grpc.ServerOption{
		grpc.ForceServerCodecV2(o.Codec),
		grpc.UnaryInterceptor(o.Unary),
		grpc.StreamInterceptor(o.Stream),
		grpc.MaxRecvMsgSize(o.MaxRecvBytes),
		grpc.MaxSendMsgSize(o.MaxSendBytes),
		grpc.MaxHeaderListSize(uint32(o.MaxHeaderBytes)),
		grpc.MaxConcurrentStreams(o.MaxStreams),
		grpc.NumStreamWorkers(s.cfg.StreamWorkers),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: o.KeepaliveMinTime, PermitWithoutStream: o.PermitWithoutStream}),
		grpc.KeepaliveParams(o.Keepalive),
	}
	if s.cfg.Tracing != nil {
		opts = append(opts, s.cfg.Tracing.Option)
	}
	return opts
}

// RPCOptions are what a server for RegisterGRPC must be made with, whichever it is; Belay's own takes
// them as they are. It has no tracing.
func (s *Server) RPCOptions() rpc.Options {
	receive := s.cfg.Limits.MaxReceive()
	return rpc.Options{
		// 1,000 calls that wait hold half of what may have come of incomplete requests, and those that
		// need not wait the greater part of the rest; of these, no more than what the proposals among
		// them, of which half counts, may hold in flight beside small ones.
		StreamWindow: max(1, receive/2048), LongBytes: min(receive/8*3, s.cfg.Admission.MaxInFlight()/2*3),
		Codec: s.calls.codec, Unary: s.calls.interceptUnary, Stream: s.calls.interceptStream,
		MaxRecvBytes: s.cfg.MaxRequestBytes + recvOverheadBytes, MaxSendBytes: math.MaxInt32,
		MaxHeaderBytes: maxHeaderBytes, MaxStreams: s.cfg.MaxConcurrentStreams,
		AnswerBytes:      s.cfg.AnswersBytes,
		KeepaliveMinTime: s.cfg.KeepaliveMinTime,
		Keepalive:        keepalive.ServerParameters{Time: s.cfg.KeepaliveInterval, Timeout: s.cfg.KeepaliveTimeout},
	}
}

// RegisterGRPC registers every service with a server that was made with GRPCOptions or RPCOptions.
func (s *Server) RegisterGRPC(g grpc.ServiceRegistrar) {
	registerKV(g, s.calls, s.kv)
	if own, ok := g.(*rpc.Server); ok {
		callers := s.callers.atOnce()
		h := &hotRange{
			kv: s.kv, calls: s.calls, barrier: s.cfg.Replica.ReadBarrierThen, callers: callers, store: s.cfg.KV,
			method: s.calls.metrics.grpc.method(rangeMethod, "unary"),
		}
		own.Hot(rangeMethod, h.serve)
		for _, m := range (&hotWrites{kv: s.kv, calls: s.calls, callers: callers}).methods() {
			own.Hot(m.path, m.serve)
		}
	}
	pb.RegisterLeaseServer(g, s.lease)
	if own, ok := g.(*rpc.Server); ok {
		h := &hotLease{lease: s.lease, calls: s.calls, method: s.calls.metrics.grpc.method(keepAliveMethod, "bidi_stream")}
		own.HotMessages(keepAliveMethod, h.serve)
	}
	pb.RegisterClusterServer(g, s.cluster)
	pb.RegisterMaintenanceServer(g, s.maintenance)
	pb.RegisterAuthServer(g, s.auth)
	registerHealth(g, s.health, s.cfg.Logger)
	rightsOf := func(ctx context.Context) rights { return s.callers.rightsOf(ctx) }
	pb.RegisterWatchServer(g, newWatchServer(watchConfig{
		Hub:              s.cfg.Hub,
		ClusterID:        s.cfg.ClusterID,
		MemberID:         s.cfg.MemberID,
		Term:             s.cfg.Replica.Term,
		MaxRequestBytes:  s.cfg.MaxRequestBytes,
		ProgressInterval: s.cfg.WatchProgressInterval,
		Logger:           s.cfg.Logger,
		Rights:           rightsOf,
		Usage:            s.usage,
		Failed:           func(kind string) { s.cfg.Metrics.streamFailures.WithLabelValues(kind, "watch").Inc() },
	}))
	q := &queues{
		ops: s.kv, grant: s.lease.LeaseGrant, hub: s.cfg.Hub,
		header: func(rev int64) *pb.ResponseHeader {
			h := &pb.ResponseHeader{Revision: rev}
			s.headers.fill(h)
			return h
		},
		rights: rightsOf,
	}
	electionpb.RegisterElectionServer(g, &electionService{queues: q})
	lockpb.RegisterLockServer(g, &lockService{queues: q})
}

// RegisterPeers registers what the server answers on the peer port.
func (s *Server) RegisterPeers(mux *peers.Mux) {
	s.peers.register(mux)
	if s.healing != nil {
		s.healing.register(mux)
	}
}

// copy is how much this member has.
func (s *Server) copy() peers.Copy {
	st := s.cfg.Replica.Status()
	c := peers.Copy{Applied: st.Applied, Revision: s.cfg.KV.Revision()}
	c.LogIndex, c.LogTerm = s.cfg.LogEnd()
	return c
}

// HTTPHandler serves the client port's HTTP: versions, health, metrics, profiles, and the JSON
// gateway if there is a connection for it to call this member's gRPC server on.
func (s *Server) HTTPHandler(gateway *grpc.ClientConn) (http.Handler, error) {
	mux := http.NewServeMux()
	s.pages.register(mux)
	if s.cfg.WebView {
		view := &webView{pages: s.pages, kv: s.kv, members: s.cfg.State.Members, hosts: s.cfg.HostWhitelist, quota: s.cfg.State.QuotaBytes(),
			size: func() int64 { total, _ := s.cfg.Store.Size(); return total }}
		view.register(mux)
	}
	if gateway != nil {
		g, err := newGateway(gateway, s.cfg.MaxRequestBytes)
		if err != nil {
			return nil, err
		}
		mux.Handle("/v3/", newWebsocketProxy(g, s.cfg.Logger, jsonOverhead*int64(s.cfg.MaxRequestBytes+recvOverheadBytes), s.life.stopped))
	}
	return s.guard(mux, gateway != nil), nil
}

// guard is what requests to the client port's HTTP pass first.
func (s *Server) guard(next http.Handler, gateway bool) *accessControl {
	return &accessControl{
		next: next, gateway: gateway, authOn: s.callers.enabled, hosts: s.cfg.HostWhitelist, cors: s.cfg.CORS,
		simpleRequests: s.cfg.CORSSimpleRequests, clientCertAuth: s.cfg.ClientCertAuth, logger: s.cfg.Logger,
	}
}

// MetricsHandler is what --listen-metrics-urls serve: only metrics and health.
func (s *Server) MetricsHandler() http.Handler {
	mux := http.NewServeMux()
	s.pages.handleMetricsAndHealth(mux)
	return mux
}

// Start runs the loops of this member: publishing itself, sampling, and what a leader
// does by itself. They end with Stop.
func (s *Server) Start() {
	cfg := &s.cfg
	backlog := &backlogSample{status: cfg.Replica.Status, bytes: cfg.BacklogBytes, gate: cfg.Admission, lag: cfg.Metrics.admissionLag}
	descriptors := &descriptorSample{used: cfg.Metrics.fdUsed, limit: cfg.Metrics.fdLimit, logger: cfg.Logger}
	for _, loop := range []func(context.Context){
		s.publisher.run, s.calls.watchLeader, backlog.run, descriptors.run,
		s.expiry.Run, s.version.Run, s.compactor.Run, s.corruption.Run, s.space.Run,
	} {
		s.life.background(loop)
	}
	if s.outlier != nil {
		s.life.background(s.outlier.Run)
	}
	if cfg.Peers != nil {
		q := &quorumSample{own: cfg.MemberID, members: cfg.State.Members, activeSince: s.activeSince, leader: cfg.Replica.Leader, logger: cfg.Logger}
		s.life.background(q.run)
	}
}

// Stop ends the loops, and the calls that would last: streams, campaigns and locks end with `server
// stopped`. The grpc and HTTP servers are stopped by who made them.
func (s *Server) Stop() { s.life.end() }

// Published is closed once this member has told the cluster its name and
// client URLs, which proves that it takes part: from then on it serves.
func (s *Server) Published() <-chan struct{} { return s.publisher.done }

// MembersChanged wakes what depends on the member list. replica calls it after
// each member change; it never blocks.
func (s *Server) MembersChanged() { s.version.MembersChanged() }

// OverQuota raises the NOSPACE alarm of this member: its database would be, or is, larger than
// its quota. It does not wait. REQUIRES: New has returned.
func (s *Server) OverQuota() { s.space.Exceeded() }

// CheckInitial compares this member's data with the others' before it serves. It may run before
// Start, once the peers' addresses are known; an error says that this member must not serve.
func (s *Server) CheckInitial(ctx context.Context) error { return s.corruption.Initial(ctx) }

package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.etcd.io/raft/v3"
	"go.uber.org/zap"

	"github.com/belaydb/belay/admission"
	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/backup"
	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/evidence"
	"github.com/belaydb/belay/internal/version"
	"github.com/belaydb/belay/leader"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/listen"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/neighbours"
	"github.com/belaydb/belay/peers"
	"github.com/belaydb/belay/raftlog"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/server"
	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/store"
	"github.com/belaydb/belay/timemap"
	"github.com/belaydb/belay/transport"
	"github.com/belaydb/belay/watch"
)

// Node is one running member. Its parts are made by the goroutine of Start, each before what uses
// it runs, and never replaced: other goroutines read these fields without a lock. A part is nil
// where Start has not come so far, which closeParts alone must expect. What others may change is
// behind peersMu, or atomic.
type Node struct {
	cfg    Config
	logger *zap.Logger
	id     datadir.Identity

	store        *store.Store
	kv           *mvcc.Store
	leases       *lease.Table
	tokens       auth.Tokens
	leaseMetrics *lease.Metrics
	hub          *watch.Hub
	state        *state.Machine
	log          *raftlog.Log
	replica      *replica.Replica
	transport    *transport.Transport
	server       *server.Server
	snapshots    sync.WaitGroup // being read, to be sent or backed up
	disks        *peerDisks
	witness      *witness
	neighbours   *neighbours.Keeper             // nil: no record
	founder      *datadir.Founder               // nil: this member did not make the first log at this start
	times        atomic.Pointer[timemap.Keeper] // nil before the member serves
	backups      *backup.Maker                  // nil: none are made

	ports   ports
	dialing dialing
	words   announcer
	tracing *server.Tracing // nil: none
	// stopTracing sends the last spans; nil: no tracing.
	stopTracing func()
	registry    *prometheus.Registry

	peersMu sync.Mutex
	peers   map[uint64][]string // what transport was told of

	metrics      *Metrics
	certificates *certificates

	storeWorks  context.Context         // ends when the store can write no more; its cause says why
	storeFailed context.CancelCauseFunc // ends storeWorks

	life     life
	fatal    chan error     // reasons why the member cannot go on; the first counts, and later ones may be dropped
	parts    *datadir.Parts // as they were found
	hasState bool           // there was something to serve at the start, in the store or in the log
	recovery recovery
	serving  chan struct{} // closed when gRPC clients are let in
	stop     chan struct{} // closed when Stop begins
	stopOnce sync.Once
	told     sync.Once   // by a peer, that it was removed
	removed  atomic.Bool // as a peer has told
}

// ErrRemoved ends a member that was removed from its cluster.
var ErrRemoved = errors.New("the member has been permanently removed from the cluster")

// Start builds a member's parts from the lowest floor up and serves. If it returns an error,
// nothing is left running. The end of ctx ends it while it waits for other members, or for a
// discovery service; once it has returned ctx means nothing.
func Start(ctx context.Context, cfg Config) (_ *Node, err error) {
	n := newNode(cfg)
	cfg = n.cfg
	defer func() {
		if err != nil {
			n.closeParts()
		}
	}()
	n.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if cfg.LogDropped != nil {
		n.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "belay_log_dropped_total", Help: "Log lines dropped because the log's writer could not keep up.",
		}, func() float64 { return float64(cfg.LogDropped()) }))
	}

	// The ports first: a second start of a running member must fail before it touches the data.
	n.words.sayDataDir()
	if err := n.ports.listen(); err != nil {
		return nil, err
	}
	n.dialing.security = n.ports.toPeers
	n.certificates = newCertificates(map[string]*listen.Security{"client": n.ports.clientSecurity, "peer": n.ports.peerSecurity}, n.logger, n.metrics.notAfter)
	n.certificates.look(time.Now())
	n.words.sayConfig()
	n.words.sayBudget()
	n.metrics.divided(cfg.Budget)
	if err := n.openData(); err != nil {
		return nil, err
	}
	n.metrics.damaged.Set(float64(datadir.DamagedCopies(cfg.FS, cfg.paths())))
	n.witness.keep()
	if err := n.openLog(ctx); err != nil {
		return nil, err
	}
	if cfg.Tracing != nil {
		if err := n.startTracing(cfg.Tracing); err != nil {
			return nil, err
		}
	}
	if err := n.assemble(); err != nil {
		return nil, err
	}
	if cfg.InitialCorruptCheck && !n.id.Fresh {
		if err := n.server.CheckInitial(ctx); err != nil {
			if _, ok := errors.AsType[leader.OutlierError](err); ok && cfg.Heal {
				return nil, datadir.Differs(err.Error())
			}
			return nil, err
		}
	}
	n.words.sayMember(n.id, n.state, n.log)
	n.serve()
	return n, nil
}

// newNode is a member without any parts yet.
func newNode(cfg Config) *Node {
	if cfg.FS == nil {
		cfg.FS = datadir.FS()
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	n := &Node{
		cfg:      cfg,
		logger:   cfg.Logger,
		fatal:    make(chan error, 8),
		peers:    make(map[uint64][]string),
		registry: prometheus.NewRegistry(),
		serving:  make(chan struct{}),
		stop:     make(chan struct{}),
	}
	n.storeWorks, n.storeFailed = context.WithCancelCause(context.Background())
	n.metrics = NewMetrics(n.registry)
	n.words = announcer{cfg: &n.cfg, logger: n.logger}
	n.dialing.logger, n.dialing.advertised, n.dialing.fromAdvertised = n.logger, cfg.AdvertisePeerURLs, cfg.MemberLocalAddr
	n.dialing.over = cfg.Over
	n.ports.portsEnv = portsEnv{cfg: &n.cfg, logger: n.logger, counts: n.metrics, serving: n.serving, stopping: n.life.ends, failed: n.fail}
	n.witness = newWitness(&n.cfg, n.logger, n.registry, n.freeBytes)
	return n
}

// Failed delivers the reason when the member has to stop: ErrRemoved, or a
// broken disk or invariant. Stop it then.
func (n *Node) Failed() <-chan error { return n.fatal }

// fail ends the member. It may be called from the raft loop, since it does not wait; but the reader
// of Failed gets the reason only when the others have been told.
func (n *Node) fail(err error) {
	go func() {
		var done sync.WaitGroup
		done.Go(func() { n.witness.ends(err) })
		if n.life.ran() && !n.life.ends() && !errors.Is(err, ErrRemoved) {
			// A leader whose log fails promises nothing more, but it still leads: hand over, so
			// that the others need not wait for an election timeout.
			done.Go(func() { n.handOver(n.cfg.electionTimeout()) })
		}
		done.Wait()
		select {
		case n.fatal <- err:
		default:
		}
	}()
}

// assemble builds what runs: the network, the replica, the services.
func (n *Node) assemble() (err error) {
	messages := &peerHandler{logger: n.logger, store: n.store, kv: n.kv, state: n.state, hub: n.hub, witness: n.witness, sending: &n.snapshots, removed: n.isRemoved,
		dataDir: n.cfg.spoolDir(), files: make(chan struct{}, filesForEtcd)}
	n.transport = transport.New(transport.Config{
		MemberID: n.id.Member, ClusterID: n.id.Cluster, URLs: urlStrings(n.cfg.AdvertisePeerURLs), Version: version.Belay,
		Logger: n.logger, Metrics: transport.NewMetrics(n.registry), Handler: messages, Source: messages,
		DialTimeout: time.Second + n.cfg.electionTimeout(), ReadTimeout: n.cfg.RaftReadTimeout, WriteTimeout: n.cfg.RaftWriteTimeout,
		// What raft considers sent must find room in the queues.
		BulkQueueBytes: replica.MaxInflightBytes + 32<<20, QueueMessages: 1 << 17,
		// A message holds at least one entry, however large, and its buffer is copied as it grows.
		PostBytes: max(64<<20, 4*int64(n.cfg.MaxRequestBytes)),
		TLS:       n.dialing.tls, DialContext: n.dialing.dial(),
		Started: func(id uint64) bool { m := n.state.Member(id); return m != nil && len(m.ClientURLs) > 0 },
		Removed: n.toldRemoved,
	})
	n.disks = newPeerDisks(n)
	if n.id.Founds() {
		n.founder = datadir.NewFounder(datadir.FounderEnv{
			Member: n.id.Member, Client: n.dialing.client(time.Second), URLs: n.peerURLs, KnownBy: n.transport.KnownBy,
			Leader: func() uint64 { return n.replica.Leader() }, LeaderChanged: func() <-chan struct{} { return n.replica.LeaderChanged() },
			Failed: n.fail, Logger: n.logger,
		})
		messages.founder = n.founder
	}
	n.replica, err = replica.New(replica.Config{
		ID: n.id.Member, Log: n.log, State: n.state, Segments: n.kv, Network: n.transport,
		Logger: n.logger, Metrics: replica.NewMetrics(n.registry),
		PeerDisks: n.disks, StoreDisk: n.storeDisk, RoundTrips: n.witness.links, Evidence: n.witness.ring,
		MembersChanged: n.membersChanged, Failed: n.fail,
		Settings: n.cfg.replication(),
	})
	if err != nil {
		return err
	}
	messages.replica = n.replica
	if err := n.makeBackups(); err != nil {
		return err
	}
	n.witness.meet(member{self: n.id.Member, state: n.state, replica: n.replica, client: n.transport.Client(), urls: n.peerURLs})
	n.server, err = server.New(server.Config{
		MemberID: n.id.Member, ClusterID: n.id.Cluster,
		Name: n.cfg.Name, ClientURLs: urlStrings(n.cfg.AdvertiseClientURLs),
		Version: version.Belay, DataDir: n.cfg.DataDir, WALDir: n.cfg.WALDir, SpoolDir: n.cfg.spoolDir(),
		Replica: n.replica, Peers: n.transport, State: n.state, Store: n.store, KV: n.kv,
		Leases: n.leases, Hub: n.hub, Tokens: n.tokens, Admission: admission.New(admission.Options{MaxInFlightBytes: n.cfg.Budget.Parts.Proposals}),
		Logger: n.logger, Gatherer: n.registry, Registerer: n.registry, LeaseMetrics: n.leaseMetrics,
		Metrics: server.NewMetrics(n.registry, server.MetricsOptions{Extensive: n.cfg.ExtensiveMetrics, Features: n.cfg.Features}),
		Heal:    n.cfg.Heal, IsEtcd: func(id uint64) bool { return n.transport.PeerKind(id) == transport.KindEtcd }, LogEnd: func() (uint64, uint64) { return lastEntry(n.log) },
		MayHeal: func() error { return datadir.MayHeal(n.cfg.FS, n.cfg.paths(), time.Now()) }, Differs: func(found string) { n.fail(datadir.Differs(found)) },
		Tracing: n.tracing, BacklogBytes: n.log.BytesBetween, FreeBytes: n.freeBytes,
		ReadyChecks: []server.HealthCheck{
			{Name: "disk", Check: func(context.Context) error { return n.replica.CheckDisk() }},
		},
		Usage:           n.usage(),
		Events:          n.witness.report,
		Neighbours:      n.tellNeighbours,
		Revisions:       n.revisionsAt,
		Backups:         backupsPage(n.backups),
		ElectionTimeout: n.cfg.electionTimeout(), HeartbeatInterval: n.cfg.TickInterval,
		ClientCertAuth: n.cfg.ClientTLS.ClientCertAuth,
		Settings:       n.cfg.services(),
	})
	if err != nil {
		return err
	}
	n.addFirstPeers()
	return nil
}

// addFirstPeers gives the transport its peers before the state machine has applied anything: the
// members that it restored, or those that it was started with.
func (n *Node) addFirstPeers() {
	members := n.state.Members()
	if len(members) == 0 {
		for _, m := range n.id.Members {
			if m.ID == n.id.Member {
				continue
			}
			if n.id.Joining {
				// Only answered until this member's state says that they are peers.
				n.transport.AddRemote(m.ID, m.PeerURLs)
				continue
			}
			n.transport.AddPeer(m.ID, m.PeerURLs)
			n.peers[m.ID] = m.PeerURLs
		}
		n.witness.links.SetPeers(slices.Collect(maps.Keys(n.peers)))
		return
	}
	n.syncPeers()
}

// membersChanged runs after the member list changed, and again when that is durable. A member does
// not act on its own removal by itself: it keeps voting until another member tells it.
func (n *Node) membersChanged() {
	n.server.MembersChanged()
	if !n.state.IsRemoved(n.id.Member) {
		n.syncPeers()
	}
}

// isRemoved reports whether another member was removed and no crash of this one can undo that: it
// may be told, which ends it.
func (n *Node) isRemoved(id uint64) bool {
	return n.state.IsRemoved(id) && !n.replica.RemovalPending(id)
}

// toldRemoved is called, perhaps often, when a peer says that this member was removed. The peer has
// that on its disk, but others may still have to learn it, so this one keeps voting for a moment.
func (n *Node) toldRemoved(err error) {
	n.replica.ToldRemoved()
	n.told.Do(func() {
		n.words.sayRemoved()
		n.removed.Store(true)
		time.AfterFunc(n.cfg.electionTimeout(), func() { n.fail(fmt.Errorf("%w (a peer says: %v)", ErrRemoved, err)) })
	})
}

// peerURLs are a member's URLs as last given to the transport.
func (n *Node) peerURLs(id uint64) []string {
	n.peersMu.Lock()
	defer n.peersMu.Unlock()
	return slices.Clone(n.peers[id])
}

// syncPeers makes the transport follow the member list.
func (n *Node) syncPeers() {
	n.peersMu.Lock()
	defer n.peersMu.Unlock()
	now := make(map[uint64][]string)
	for _, m := range n.state.Members() { // with the lock: an older list must not come after a newer one
		if m.ID != n.id.Member {
			now[m.ID] = m.PeerURLs
		}
	}
	for id := range n.peers {
		if _, ok := now[id]; ok {
			continue
		}
		if !n.isRemoved(id) {
			// The first entries of a new cluster add its members one by one; those not yet added
			// still are peers. So is one whose removal a crash could undo.
			now[id] = n.peers[id]
			continue
		}
		n.transport.RemovePeer(id)
	}
	for id, urls := range now {
		switch known, ok := n.peers[id]; {
		case !ok:
			n.transport.AddPeer(id, urls)
		case !slices.Equal(known, urls):
			n.transport.UpdatePeer(id, urls)
		}
	}
	n.peers = now
	n.witness.links.SetPeers(slices.Collect(maps.Keys(now)))
}

// serve starts everything.
func (n *Node) serve() {
	n.ports.servePeers(n.peerHTTP())
	if err := n.replica.Start(); err != nil {
		n.fail(err)
		return
	}
	if n.founder != nil {
		go n.founder.Watch(n.stop)
	}
	go n.certificates.watch(n.stop)
	n.life.enter(running)
	n.server.Start()
	n.witness.start()
	n.keepNeighbours()
	n.startTimes()
	if n.recovery.state != nil {
		n.recovery.ended.Go(func() { n.recovery.end(n) })
	}
	n.startBackups()
	n.ports.serveClients(n.server)
	go n.letCallsIn(n.hasState)
	n.ports.serveMetrics(n.server.MetricsHandler())
	n.words.sayServing(n.id.Member)
}

// peerHTTP is what the peer port serves: each part registers what it answers.
func (n *Node) peerHTTP() http.Handler {
	mux := peers.NewMux(n.transport.Members)
	raft := n.transport.Handler()
	mux.Handle(peers.PathRaft, "", peers.Anyone, raft.ServeHTTP) // it checks the sender itself
	mux.Handle(peers.PathRaft+"/", "", peers.Anyone, raft.ServeHTTP)
	n.server.RegisterPeers(mux)
	n.witness.register(mux)
	n.disks.register(mux)
	registerBackups(n.backups, mux)
	return mux
}

// withoutQuorum is how long a member that has a state keeps gRPC clients waiting for a leader. Then
// they get what it can answer alone: serializable reads, its status.
const withoutQuorum = 5 * time.Second

// letCallsIn lets gRPC clients in when the member can answer them. One that still has to catch up,
// perhaps by a snapshot of some gigabytes, would only keep them waiting while the other members
// answer quickly.
func (n *Node) letCallsIn(hasState bool) {
	var alone <-chan time.Time
	if hasState {
		alone = time.After(withoutQuorum)
	}
	select {
	case <-n.Ready():
	case <-alone:
	case <-n.stop:
		return // the ports are closed
	}
	close(n.serving)
}

// Ready is closed when the member serves: it has published its name, which needs a leader and a
// committed entry.
func (n *Node) Ready() <-chan struct{} { return n.server.Published() }

// Versioned reports whether the cluster has agreed on its version, the last step of its start.
func (n *Node) Versioned() bool { return n.state.ClusterVersion() != nil }

// MemberID and ClusterID identify this member.
func (n *Node) MemberID() uint64  { return n.id.Member }
func (n *Node) ClusterID() uint64 { return n.id.Cluster }

// Leader is the member that this one follows, or itself; 0: none.
func (n *Node) Leader() uint64 { return n.replica.Leader() }

// gracefulStop bounds how long open calls may take to end at a stop, and how long the other members
// may take to learn of a new leader.
const gracefulStop = 3 * time.Second

// Stop hands leadership over if this member leads others, lets open calls end,
// stops the parts from the top floor down, and makes what was applied durable
// so that the next start has nothing to replay. Safe to call twice.
func (n *Node) Stop() {
	n.stopOnce.Do(func() {
		n.life.enter(stopping)
		close(n.stop)
		n.words.sayStop("closing etcd server")
		n.witness.lastWords(evidence.Stopping, "asked to stop")
		led, handedOver := n.handOver(max(n.cfg.electionTimeout(), gracefulStop))
		patience := gracefulStop
		if n.removed.Load() {
			patience = 0 // what waits for the cluster's answer would wait in vain
		}
		n.ports.stopClients(n.server.Stop, patience, lastAnswers, n.replica.Stop)
		if led == handedOver && n.replica != nil && cameToLead(n.replica, n.cfg.electionTimeout()) {
			_, again := n.handOver(max(n.cfg.electionTimeout(), gracefulStop))
			handedOver = handedOver || again
		}
		if handedOver {
			n.seeOthersFollow()
		}
		n.closeParts()
		n.words.sayStop("closed etcd server")
	})
}

// cameToLead reports whether a member that did not lead does now, or is being elected and leads within
// patience: a leader that stops at the same time has handed over to it when it could not know that
// this one stops as well.
func cameToLead(r *replica.Replica, patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		changed := r.LeaderChanged()
		if state, _ := r.Role(); state != raft.StateCandidate {
			return state == raft.StateLeader
		}
		select {
		case <-changed:
		case <-r.Stopped():
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// handOver moves leadership away from a leader that stops, so that nobody waits for an election
// timeout. It reports whether this member led, and whether it leads no more. On a slow machine the
// election may take longer than patience.
func (n *Node) handOver(patience time.Duration) (led, handedOver bool) {
	if n.replica == nil {
		return false, false
	}
	ids := []zap.Field{zap.String("local-member-id", command.IDText(n.id.Member)), zap.String("current-leader-member-id", command.IDText(n.replica.Leader()))}
	if !n.replica.IsLeader() {
		n.logger.Info("skipped leadership transfer; local server is not leader", ids...)
		return false, false
	}
	if voters := slices.DeleteFunc(n.state.Members(), func(m *command.Member) bool { return m.IsLearner }); len(voters) == 1 {
		n.logger.Info("skipped leadership transfer for single voting member cluster", ids...)
		return true, false
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	n.logger.Info("leadership transfer starting", ids...)
	switch best, err := n.replica.HandOver(ctx); {
	case errors.Is(err, replica.ErrBadLeaderTransferee):
		n.logger.Info("leadership transfer skipped: no other member could lead", zap.String("local-member-id", command.IDText(n.id.Member)))
	case err != nil:
		n.logger.Warn("leadership transfer failed", zap.String("local-member-id", command.IDText(n.id.Member)),
			zap.String("transferee-member-id", command.IDText(best)), zap.Error(err))
	default:
		n.logger.Info("leadership transfer finished", zap.String("local-member-id", command.IDText(n.id.Member)),
			zap.String("old-leader-member-id", command.IDText(n.id.Member)), zap.String("new-leader-member-id", command.IDText(best)), zap.Duration("took", time.Since(start)))
	}
	return true, !n.replica.IsLeader()
}

// seeOthersFollow waits, after a hand-over, until the other members know of it, and until what they
// forwarded before they did has been passed on. One that does not know,
// because it is slow or far away, still forwards what its clients write to this member, which
// passes it on: it must still run, or those writes are lost and their clients wait for a timeout.
// It waits for a member that hangs until gracefulStop.
func (n *Node) seeOthersFollow() {
	ctx, cancel := context.WithTimeout(context.Background(), gracefulStop)
	defer cancel()
	own := command.IDText(n.id.Member)
	var asking sync.WaitGroup
	for _, m := range n.state.Members() {
		if m.ID == n.id.Member || n.transport.ActiveSince(m.ID).IsZero() {
			continue
		}
		asking.Go(func() {
			for ctx.Err() == nil {
				answer, err := n.witness.ping(ctx, m.ID)
				if err == nil && answer.Leader != own || err != nil && n.transport.ActiveSince(m.ID).IsZero() {
					return
				}
				select {
				case <-time.After(20 * time.Millisecond):
				case <-ctx.Done():
				}
			}
		})
	}
	asking.Wait()
	// What they sent before they knew is on its way here, and on a machine without CPU to spare for
	// longer than a tick: until none has come for a tick, and none waits here.
	for before := n.replica.Status().Forwarded; ctx.Err() == nil; {
		select {
		case <-time.After(n.cfg.TickInterval):
		case <-ctx.Done():
		}
		st := n.replica.Status()
		if st.Forwarded == before && st.Passed == st.Forwarded && n.transport.Queued() == 0 {
			return
		}
		before = st.Forwarded
	}
}

// closeParts stops what exists, from the top floor down.
func (n *Node) closeParts() {
	if !n.life.ran() {
		n.life.enter(abandoned)
	}
	n.ports.close()
	if n.stopTracing != nil {
		n.stopTracing()
	}
	if n.server != nil && n.ports.grpc == nil {
		n.server.Stop()
	}
	if n.hub != nil {
		n.hub.Close()
	}
	if n.disks != nil {
		n.disks.stop()
	}
	n.witness.stop()
	if n.neighbours != nil {
		n.neighbours.Close(flushTimeout)
	}
	n.stopTimes()
	n.recovery.ended.Wait()
	if n.transport != nil {
		n.transport.Stop()
	}
	if n.replica != nil {
		n.replica.Stop()
	}
	if n.kv != nil {
		n.kv.Close()
	}
	if n.store != nil && n.snapshotsEnd() {
		n.closeStore()
	}
	if n.log != nil {
		n.parts.Close(n.log, n.logger)
	}
}

// snapshotsEnd waits for the goroutines that read a snapshot for sending, which the transport has
// stopped: the store must not be closed before they end.
func (n *Node) snapshotsEnd() bool {
	ended := make(chan struct{})
	go func() { n.snapshots.Wait(); close(ended) }()
	select {
	case <-ended:
		return true
	case <-time.After(5 * time.Second): // its disk hangs
		n.logger.Warn("the store is not closed: a snapshot of it is still being read; the next start replays the raft log")
		return false
	}
}

// closeStore flushes what was applied, unless the disk fails or does not answer, and closes the store.
// The log has what is not flushed.
func (n *Node) closeStore() {
	ctx, cancel := context.WithTimeout(n.storeWorks, 10*time.Second)
	defer cancel()
	_ = n.store.Flush(ctx) // its error is that of ctx, or was logged where it occurred
	if failed := context.Cause(n.storeWorks); failed != nil {
		n.logger.Warn("the store could not be flushed", zap.Error(failed))
	} else if ctx.Err() != nil {
		n.logger.Warn("the store could not be flushed in 10s; the next start replays the raft log")
	}
	if err := n.store.Close(); err != nil {
		n.logger.Warn("failed to close the store", zap.Error(err))
	}
}

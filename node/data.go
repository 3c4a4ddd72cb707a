package node

import (
	"context"
	"fmt"
	"math"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/raftlog"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/store"
	"github.com/belaydb/belay/watch"
)

// openData opens the store in the data directory, and builds the state machine's multi-version
// part on it. Nothing of raft is known yet but the applied index.
func (n *Node) openData() (err error) {
	paths := n.cfg.paths()
	if err := n.recovery.look(n); err != nil {
		return err
	}
	if n.parts, err = datadir.Prepare(n.cfg.FS, paths); err != nil {
		return err // before the store is created beside parts that cannot be used
	}
	opening := time.Now()
	st, err := store.Open(paths.Store, store.Options{
		FS: n.cfg.FS, Logger: n.logger, Metrics: store.NewMetrics(n.registry), NoSync: n.cfg.UnsafeNoFsync, MaxOpenFiles: n.ports.connections.storeFiles,
		CacheBytes: n.cfg.Budget.Parts.Blocks, MemTableBytes: n.cfg.Budget.Parts.MemTable,
		Failed: func(err error) { n.storeFailed(err); n.fail(err) }, Corrupt: n.storeCorrupt,
	})
	if err != nil {
		return err
	}
	n.store = st
	applied, _ := st.Applied()
	lost, err := n.parts.CheckStore(applied)
	if err != nil {
		return err
	}
	if lost {
		n.logger.Warn("the store is missing, it is made again from the raft log", zap.String("path", paths.Store), zap.String("wal-dir", paths.Log))
	}
	n.words.sayStore(st, time.Since(opening))
	n.kv, err = mvcc.Open(st, mvcc.Options{
		Logger: n.logger, Metrics: mvcc.NewMetrics(n.registry),
		CompactionBatchLimit: n.cfg.CompactionBatchLimit, CompactionSleep: n.cfg.CompactionSleep,
		CacheBytes: n.cfg.Budget.Parts.HotKeys, ExistsFilterBytes: int(n.cfg.Budget.Parts.ExistsFilter),
	})
	return err
}

// identify finds the identity of a member without data, asking the others.
func (n *Node) identify(ctx context.Context) (datadir.Identity, error) {
	seeds := datadir.Seeds{InitialCluster: n.cfg.InitialCluster, Token: n.cfg.InitialClusterToken}
	if n.cfg.Seeds != nil {
		var err error
		if seeds, err = n.cfg.Seeds(ctx); err != nil {
			return datadir.Identity{}, err
		}
	}
	n.dialing.serverName = seeds.ServerName
	client := n.dialing.client(time.Second + n.cfg.electionTimeout())
	defer client.CloseIdleConnections()
	return datadir.Newcomer{
		Name: n.cfg.Name, Seeds: seeds, Existing: n.cfg.JoinExisting, MaxLearners: n.cfg.MaxLearners, Client: client, Logger: n.logger,
	}.Identify(ctx)
}

// openLog finds this member's identity, makes the first log if there is none, opens it and the state
// beside it, and makes the log adopt the store's applied index.
func (n *Node) openLog(ctx context.Context) error {
	o := opening{n: n, existed: n.parts.Log() != nil}
	if err := o.identity(ctx); err != nil {
		return err
	}
	for _, step := range []func() error{o.log, o.state, o.join} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// opening is a member whose log is being opened.
type opening struct {
	n         *Node
	existed   bool   // there was a log
	lastIndex uint64 // its end, once it is open
}

// identity is that of the existing log, of a member that heals, or found by asking the others.
func (o *opening) identity(ctx context.Context) (err error) {
	n := o.n
	switch meta := n.parts.Log(); {
	case meta != nil:
		if n.cfg.Discovers {
			n.logger.Warn("discovery token is ignored since cluster already initialized; valid logs are found", zap.String("wal-dir", n.cfg.paths().Log))
		}
		n.id = datadir.Identity{Member: meta.MemberID, Cluster: meta.ClusterID}
	case n.recovery.state != nil:
		n.id, err = n.recovery.state.Identity()
	default:
		n.id, err = n.identify(ctx)
	}
	return err
}

// log makes the first log if this member founds the cluster, and opens it.
func (o *opening) log() (err error) {
	n := o.n
	dir := n.cfg.paths().Log
	opts := raftlog.Options{
		FS: n.cfg.FS, MemberID: n.id.Member, ClusterID: n.id.Cluster, LeastGroup: n.parts.LeastGroup(), Logger: n.logger, NoSync: n.cfg.UnsafeNoFsync,
		MemoryBytes: n.cfg.Budget.LogInMemory(),
	}
	if n.id.Founds() {
		n.logger.Info("bootstrapping a new cluster",
			zap.String("cluster-id", command.IDText(n.id.Cluster)),
			zap.String("local-member-id", command.IDText(n.id.Member)),
			zap.String("initial-cluster", n.cfg.InitialCluster))
		if err := datadir.WriteFirstLog(dir, opts, n.id); err != nil {
			return fmt.Errorf("cannot write the first raft log in %s: %w", dir, err)
		}
	}
	opts.Metrics, opts.Keeper = raftlog.NewMetrics(n.registry), n.store.Segments
	opts.Applied, _ = n.store.Applied()
	opts.Released = func(ms []*raftpb.Message) { n.replica.Released(ms) }
	opts.Failed = func(err error) {
		n.fail(fmt.Errorf("the raft log in %s cannot be written: %w. The member stops; %s", dir, err, store.AfterFailure(err, n.cfg.FS, dir)))
	}
	if n.log, err = raftlog.Open(dir, opts); err != nil {
		return err
	}
	n.parts.WarnOfSmallDisks(n.logger)
	o.lastIndex, err = n.log.LastIndex()
	return err
}

// state opens the leases, the watches and the state machine over the store.
func (o *opening) state() (err error) {
	n := o.n
	n.leaseMetrics = lease.NewMetrics(n.registry)
	n.leases, err = lease.Open(n.store, lease.Options{Metrics: n.leaseMetrics, MinTTL: minLeaseTTL(n.cfg.electionTimeout())})
	if err != nil {
		return err
	}
	n.hub = watch.NewHub(n.kv, watch.Options{Logger: n.logger, Metrics: watch.NewMetrics(n.registry),
		QueueBytes: n.cfg.Budget.Parts.Watches, RecentBytes: n.cfg.Budget.Parts.Recent, BacklogBytes: n.cfg.Budget.Parts.Backlog})
	n.tokens, err = auth.NewTokens(n.logger, n.cfg.AuthToken, n.cfg.AuthTokenTTL)
	if err != nil {
		n.logger.Warn("failed to create token provider", zap.Error(err))
		return err
	}
	n.state, err = state.Open(state.Config{
		Tokens: n.tokens, OldTokens: o.lastIndex,
		Store: n.store, KV: n.kv, Leases: n.leases, Sink: n.hub,
		Logger: n.logger, Metrics: state.NewMetrics(n.registry),
		MemberID: n.id.Member, ClusterID: n.id.Cluster, QuotaBytes: n.cfg.QuotaBytes,
		WarningApply: n.cfg.WarningApply, MaxAnswerBytes: n.cfg.Limits.MaxAnswer(),
		OnNoSpace: func() { n.server.OverQuota() }, // server is set before anything is applied
		Damaged:   n.recovery.note(n),
	})
	return err
}

// join checks that the data is this member's, makes the log adopt what the store has applied, and
// records that they belong together: until then the member has said nothing to anybody.
func (o *opening) join() error {
	n := o.n
	flags := datadir.Flags{Name: n.cfg.Name, PeerURLs: urlStrings(n.cfg.AdvertisePeerURLs), InitialCluster: n.cfg.InitialCluster, InitialClusterToken: n.cfg.InitialClusterToken}
	if err := n.parts.CheckOwner(n.id, n.state.Members(), flags); err != nil {
		return err
	}
	index, term := n.store.Applied()
	replaced, err := n.log.Adopt(index, term, n.state.ConfState())
	if err != nil {
		return err
	}
	if replaced {
		n.logger.Info("the store was flushed ahead of the raft log; the log begins again at the applied index",
			zap.Uint64("applied-index", index), zap.Uint64("applied-term", term))
	}
	if err := n.parts.Bind(n.log, n.cfg.UnsafeNoFsync, n.logger); err != nil {
		return err
	}
	if err := n.recovery.maySpeak(n); err != nil {
		return err
	}
	n.hasState = o.existed && (index > 0 || o.lastIndex > 0)
	if o.existed && n.cfg.ForceNewCluster {
		return datadir.Alone{
			Member: n.id.Member, Cluster: n.id.Cluster, Name: flags.Name, PeerURLs: flags.PeerURLs, Applied: index, Logger: n.logger,
		}.ForceNewCluster(n.log, n.state)
	}
	return nil
}

// storeCorrupt ends a member that cannot read what it stored, if the others can do without it: they
// serve its clients better. Otherwise it keeps running, and answers what it can; what it cannot
// read is an error, never left out of an answer. It may be called while the store is being opened,
// which then fails by itself.
func (n *Node) storeCorrupt(err error) {
	if !n.life.ran() || n.life.ends() {
		return
	}
	var voters []uint64
	for _, m := range n.state.Members() {
		if !m.IsLearner {
			voters = append(voters, m.ID)
		}
	}
	if !replica.OthersDecide(n.id.Member, voters, func(id uint64) bool { return !n.transport.ActiveSince(id).IsZero() }) {
		return // the store has logged it
	}
	n.fail(fmt.Errorf("%w. The member stops, the others go on without it", err))
}

// freeBytes is the free space of the store's file system or of the raft log's, whichever has less.
func (n *Node) freeBytes() (uint64, error) {
	free, err := n.store.FreeBytes()
	if err != nil || n.cfg.WALDir == "" {
		return free, err
	}
	usage, err := n.cfg.FS.GetDiskUsage(n.cfg.paths().Log)
	if err != nil {
		return 0, fmt.Errorf("free space of %s: %w", n.cfg.paths().Log, err)
	}
	return min(free, usage.AvailBytes), nil
}

// minLeaseTTL is the shortest time to live of a lease, in seconds: one and a half election
// timeouts, so that an election cannot outlast it.
func minLeaseTTL(electionTimeout time.Duration) int64 {
	return int64(math.Ceil(3 * electionTimeout.Seconds() / 2))
}

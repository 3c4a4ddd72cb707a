package node

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/raftlog"
	"github.com/belaydb/belay/snapshotfile"
	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/store"
	"github.com/belaydb/belay/watch"
)

// openData makes the data directory if need be, opens the store, and builds
// the state machine on it. Nothing of raft is known yet but the applied index.
func (n *Node) openData() error {
	fs := n.cfg.FS
	if _, err := fs.Stat(fs.PathJoin(n.cfg.DataDir, "member", "snap", "db")); err == nil {
		if parts, err := datadir.Look(fs, n.cfg.paths()); err != nil || parts.Log() != nil {
			return fmt.Errorf("%s has data of Belay, and beside it data of an etcd that was started there later; nothing in it was changed. To go on with Belay's, move member/snap and member/wal away; what clients wrote to that etcd is in those alone", n.cfg.DataDir)
		}
		return fmt.Errorf("%s is a data directory of etcd, not of Belay; nothing in it was changed. Choose another --data-dir; `belay util snapshot restore` makes one of etcd's data (README, \"Moving from etcd\")", n.cfg.DataDir)
	}
	if err := fs.MkdirAll(fs.PathJoin(n.cfg.DataDir, "member"), 0o700); err != nil {
		return fmt.Errorf("cannot access data directory: %w", plainPathError(err))
	}
	// The names of both folders must survive a power failure like what is in them.
	for _, dir := range []string{n.cfg.DataDir, fs.PathDir(n.cfg.DataDir)} {
		if err := datadir.SyncDir(fs, dir); err != nil {
			return fmt.Errorf("cannot access data directory: %w", plainPathError(err))
		}
	}
	if err := n.checkWritable(n.cfg.DataDir); err != nil {
		return fmt.Errorf("cannot access data directory: %w", err)
	}
	if err := keepEtcdOut(fs, fs.PathJoin(n.cfg.DataDir, "member")); err != nil {
		return fmt.Errorf("cannot access data directory: %w", plainPathError(err))
	}
	if err := snapshotfile.RemoveLeftovers(n.cfg.DataDir); err != nil {
		return fmt.Errorf("cannot remove what an interrupted snapshot left: %w", plainPathError(err))
	}
	var err error
	if n.parts, err = datadir.Look(fs, n.cfg.paths()); err != nil {
		return plainPathError(err) // before the store is created beside parts that cannot be used
	}
	opening := time.Now()
	st, err := store.Open(n.cfg.storeDir(), store.Options{
		FS: fs, Logger: n.logger, Metrics: store.NewMetrics(n.registry), NoSync: n.cfg.NoSync, MaxOpenFiles: n.connections.storeFiles,
		Failed: n.fail, Corrupt: n.storeCorrupt,
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
		n.logger.Warn("the store is missing, it is made again from the raft log", zap.String("path", n.cfg.storeDir()), zap.String("wal-dir", n.cfg.logDir()))
	}
	n.sayStore(time.Since(opening))
	n.kv, err = mvcc.Open(st, mvcc.Options{
		Logger: n.logger, Metrics: mvcc.NewMetrics(n.registry),
		CompactionBatchLimit: n.cfg.CompactionBatch, CompactionSleep: n.cfg.CompactionSleep,
	})
	return err
}

// keepEtcdOut puts a file where etcd has a folder. An etcd that is started on this
// data directory by mistake would find nothing of its own and serve an empty
// cluster; with the file in its way it ends, and its error names the file.
func keepEtcdOut(fs vfs.FS, dir string) error {
	if _, err := fs.Stat(fs.PathJoin(dir, etcdsFolder)); err == nil || !oserror.IsNotExist(err) {
		return err
	}
	return datadir.WriteFile(fs, dir, etcdsFolder, []byte("This is a data directory of Belay. The file keeps an etcd from starting here with nothing.\n"))
}

const etcdsFolder = "snap"

// saySmall warns of a file system on which the free space that is kept for the end
// (minFreeBytes), the log and a little data have no room together.
func (n *Node) saySmall() {
	dirs := []string{n.cfg.storeDir()}
	if n.cfg.WALDir != "" {
		dirs = append(dirs, n.cfg.logDir())
	}
	for _, dir := range dirs {
		usage, err := n.cfg.FS.GetDiskUsage(dir)
		if err == nil && usage.TotalBytes < smallestDisk {
			n.logger.Warn("the file system is smaller than a member needs: with less than 128 MiB free, writes are refused",
				zap.String("path", dir), zap.Uint64("total-bytes", usage.TotalBytes), zap.Uint64("available-bytes", usage.AvailBytes), zap.Uint64("wanted-bytes", smallestDisk))
		}
	}
}

const smallestDisk = 512 << 20

func (n *Node) checkWritable(dir string) error {
	fs := n.cfg.FS
	name := fs.PathJoin(dir, ".touch")
	f, err := fs.Create(name, "")
	if err != nil {
		return plainPathError(err)
	}
	return errors.Join(f.Close(), fs.Remove(name))
}

// plainPathError leaves of an error what a person needs: the path and the
// operating system's words.
func plainPathError(err error) error {
	var pathError *os.PathError
	if errors.As(err, &pathError) {
		return pathError
	}
	return err
}

// openLog finds out who this member is, makes the first log if there is none,
// opens it, and has it adopt the store's applied index.
func (n *Node) openLog() (err error) {
	dir, fs := n.cfg.logDir(), n.cfg.FS
	meta := n.parts.Log()
	if meta != nil {
		if n.cfg.Discovers {
			n.logger.Warn("discovery token is ignored since cluster already initialized; valid logs are found", zap.String("wal-dir", dir))
		}
		n.id = identity{member: meta.MemberID, cluster: meta.ClusterID}
	} else if n.id, err = n.bootstrap(); err != nil {
		return err
	}
	opts := raftlog.Options{
		FS: fs, MemberID: n.id.member, ClusterID: n.id.cluster, LeastGroup: n.parts.LeastGroup(), Logger: n.logger, NoSync: n.cfg.NoSync,
	}
	if n.id.fresh && !n.id.joining {
		n.logger.Info("bootstrapping a new cluster",
			zap.String("cluster-id", fmt.Sprintf("%x", n.id.cluster)),
			zap.String("local-member-id", fmt.Sprintf("%x", n.id.member)),
			zap.String("initial-cluster", n.cfg.InitialCluster))
		if err := writeFirstLog(dir, opts, n.id); err != nil {
			return fmt.Errorf("cannot write the first raft log in %s: %w", dir, err)
		}
	}
	opts.Metrics = raftlog.NewMetrics(n.registry)
	opts.Applied, _ = n.store.Applied()
	opts.Released = func(ms []*raftpb.Message) { n.replica.Released(ms) }
	opts.Failed = func(err error) {
		n.fail(fmt.Errorf("the raft log in %s cannot be written: %w. The member stops; nothing acknowledged is lost. Check the disk, then start it again", dir, err))
	}
	if n.log, err = raftlog.Open(dir, opts); err != nil {
		return err
	}
	n.saySmall()

	n.leaseMetrics = lease.NewMetrics(n.registry)
	n.leases, err = lease.Open(n.store, lease.Options{Metrics: n.leaseMetrics, MinTTL: minLeaseTTL(n.electionTimeout())})
	if err != nil {
		return err
	}
	n.hub = watch.NewHub(n.kv, watch.Options{Logger: n.logger, Metrics: watch.NewMetrics(n.registry)})
	n.tokens, err = auth.NewTokens(n.logger, n.cfg.AuthToken, n.cfg.AuthTokenTTL)
	if err != nil {
		n.logger.Warn("failed to create token provider", zap.Error(err))
		return err
	}
	lastIndex, err := n.log.LastIndex()
	if err != nil {
		return err
	}
	n.state, err = state.Open(state.Config{
		Tokens: n.tokens, OldTokens: lastIndex,
		Store: n.store, KV: n.kv, Leases: n.leases, Sink: n.hub,
		Logger: n.logger, Metrics: state.NewMetrics(n.registry),
		MemberID: n.id.member, ClusterID: n.id.cluster, QuotaBytes: n.cfg.QuotaBytes,
		WarningApply: n.cfg.SlowApply, MaxAnswerBytes: n.cfg.Limits.MaxAnswer(),
		OnNoSpace: func() { n.server.OverQuota() }, // it is there before anything is applied
	})
	if err != nil {
		return err
	}
	if err := n.refuseOthersData(); err != nil {
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
	if err := n.recordParts(); err != nil {
		return err
	}
	n.hasState = meta != nil && (index > 0 || lastIndex > 0)
	if meta != nil && n.cfg.ForceNewCluster {
		return n.forceNewCluster()
	}
	return nil
}

// recordParts is the last thing of a start before the member speaks: from here on no other log, nor an
// older copy of this one, passes for the one beside this store.
func (n *Node) recordParts() error {
	group, err := n.log.Mark()
	if err != nil {
		return err
	}
	err = n.writeParts(group)
	n.recorded = err == nil
	if errors.Is(err, syscall.ENOSPC) && n.parts.LeastGroup() > 0 && !n.cfg.NoSync {
		// What is recorded still holds, and whoever makes room must be able to start the member.
		n.logger.Warn("the disk is full: the raft log's position was not recorded, so an older copy of the log would not be noticed", zap.Error(err))
		return nil
	}
	return err
}

func (n *Node) writeParts(group uint64) error {
	err := datadir.Write(n.cfg.FS, n.cfg.paths(), datadir.Record{
		Member: n.id.member, Cluster: n.id.cluster, Log: n.log.Metadata().LogID, Group: group,
	})
	return plainPathError(err)
}

// refuseOthersData stops a member whose flags describe one member of the
// cluster while its data is another's: two processes would speak with one
// voice. A new name or a new URL alone is no reason, both may change.
func (n *Node) refuseOthersData() error {
	own := n.state.Member(n.id.member)
	if own == nil || own.Name == "" {
		return n.refuseYoungData()
	}
	if own.Name == n.cfg.Name {
		return nil
	}
	advertised := urlStrings(n.cfg.AdvertisePeerURLs)
	slices.Sort(advertised)
	for _, m := range n.state.Members() {
		urls := slices.Sorted(slices.Values(m.PeerURLs))
		if m.ID != n.id.member && (m.Name == n.cfg.Name || slices.Equal(urls, advertised)) {
			return n.othersData(own.ID, own.Name, m.ID, m.Name)
		}
	}
	return nil
}

// refuseYoungData is the same for data whose store does not know the members yet,
// since the log alone has them. A new cluster's members have ids that follow from
// the flags.
func (n *Node) refuseYoungData() error {
	flags, err := foundCluster(n.cfg.Name, n.cfg.InitialCluster, n.cfg.InitialClusterToken)
	if err != nil || flags.cluster != n.id.cluster || flags.member == n.id.member {
		return nil // not the flags of the cluster's beginning, or those of this member
	}
	i := slices.IndexFunc(flags.members, func(m *command.Member) bool { return m.ID == n.id.member })
	if i < 0 {
		return nil
	}
	return n.othersData(n.id.member, flags.members[i].Name, flags.member, n.cfg.Name)
}

func (n *Node) othersData(own uint64, ownName string, flags uint64, flagsName string) error {
	return fmt.Errorf("the data in %s (log in %s) is that of member %x, named %q, but the flags are those of member %x, named %q; give this member its own --data-dir",
		n.cfg.DataDir, n.cfg.logDir(), own, ownName, flags, flagsName)
}

// storeCorrupt ends a member that cannot read what it stored, if the others can do without it: its
// clients are better served by them. Else it goes on, and answers what it can; what it cannot read is
// an error, never an answer without it. It may be called while the store is opened, which then fails
// by itself.
func (n *Node) storeCorrupt(err error) {
	if !n.leads.Load() || n.stopping.Load() {
		return
	}
	voters, others := 0, 0
	for _, m := range n.state.Members() {
		if m.IsLearner {
			continue
		}
		voters++
		if m.ID != n.id.member && !n.transport.ActiveSince(m.ID).IsZero() {
			others++
		}
	}
	if others <= voters/2 {
		return // the store has said it
	}
	n.fail(fmt.Errorf("%w. The member stops, the others go on without it", err))
}

// freeBytes is the free space of the store's file system or of the raft log's,
// whichever has less.
func (n *Node) freeBytes() (uint64, error) {
	free, err := n.store.FreeBytes()
	if err != nil || n.cfg.WALDir == "" {
		return free, err
	}
	usage, err := n.cfg.FS.GetDiskUsage(n.cfg.logDir())
	if err != nil {
		return 0, fmt.Errorf("free space of %s: %w", n.cfg.logDir(), err)
	}
	return min(free, usage.AvailBytes), nil
}

func (n *Node) storeHasData() bool {
	index, _ := n.store.Applied()
	return index > 0
}

// minLeaseTTL is the shortest time to live that a lease is given, in seconds:
// one and a half election timeouts, so that an election cannot outlast it.
func minLeaseTTL(electionTimeout time.Duration) int64 {
	return int64(math.Ceil(3 * electionTimeout.Seconds() / 2))
}

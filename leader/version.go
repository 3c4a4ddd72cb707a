package leader

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/coreos/go-semver/semver"
	"go.etcd.io/raft/v3"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/internal/version"
)

// MinClusterVersion is the cluster's version while not all members' versions are known.
const MinClusterVersion = version.MinCluster

// versionInterval is how often the leader checks the members' versions.
const versionInterval = 4 * time.Second

// ClusterState is what the cluster has agreed on; *state.Machine implements it.
type ClusterState interface {
	ClusterVersion() *semver.Version // nil: none yet
	DowngradeInfo() command.Downgrade
}

// ClusterVersionConfig is what ClusterVersion needs.
type ClusterVersionConfig struct {
	Raft    Raft
	State   ClusterState
	Members *Members
	Own     func() Versions // of this member
	// Set proposes the cluster's version as the leader of term; EndDowngrade that the downgrade is
	// over.
	Set          func(ctx context.Context, term uint64, v *semver.Version) error
	EndDowngrade func(ctx context.Context) error
	// Highest is the version to which the cluster's is raised at most; nil: that of its members.
	Highest *semver.Version
	// Timeout bounds the requests to the others, and a proposal.
	Timeout time.Duration
	// DowngradeInterval is the time between two checks whether a downgrade is done; 0: it never
	// ends by itself.
	DowngradeInterval time.Duration
	Logger            *zap.Logger // nil: none
}

// ClusterVersion keeps, on the leader, the cluster's version at the lowest of its members': clients
// and members enable features by it. It also ends a completed downgrade.
type ClusterVersion struct {
	cfg       ClusterVersionConfig
	wake      chan struct{} // capacity 1: the version may have to change
	onlyBelay atomic.Bool   // this member leads, and every member was Belay's at the last look
}

// NewClusterVersion makes it; it does nothing before Run.
func NewClusterVersion(cfg ClusterVersionConfig) *ClusterVersion {
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	return &ClusterVersion{cfg: cfg, wake: make(chan struct{}, 1)}
}

// MembersChanged makes the leader check again. It never blocks, and may be called from any
// goroutine.
func (c *ClusterVersion) MembersChanged() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// OnlyBelay reports whether this member leads and knows that all members are Belay's. It may be
// called from any goroutine.
func (c *ClusterVersion) OnlyBelay() bool { return c.onlyBelay.Load() }

// Run checks while this member leads, until ctx ends.
func (c *ClusterVersion) Run(ctx context.Context) {
	tick := time.NewTicker(versionInterval)
	defer tick.Stop()
	var downgrade <-chan time.Time // never
	if c.cfg.DowngradeInterval > 0 {
		looks := time.NewTicker(c.cfg.DowngradeInterval)
		defer looks.Stop()
		downgrade = looks.C
	}
	look := c.Update
	for ctx.Err() == nil {
		changed := c.cfg.Raft.LeaderChanged()
		if state, term := c.cfg.Raft.Role(); state == raft.StateLeader {
			look(ctx, term)
		} else {
			c.onlyBelay.Store(false)
		}
		look = c.Update
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-downgrade:
			look = c.endDowngrade
		case <-changed:
		case <-c.wake:
		}
	}
}

// endDowngrade ends a downgrade when all members run its target.
func (c *ClusterVersion) endDowngrade(ctx context.Context, _ uint64) {
	downgrade := c.cfg.State.DowngradeInfo()
	if !downgrade.Enabled || c.cfg.Raft.ReadBarrier(ctx) != nil {
		return
	}
	done, lines := downgradeDone(c.ask(ctx), downgrade.TargetVersion)
	say(c.cfg.Logger, lines)
	if !done {
		return
	}
	c.cfg.Logger.Info("the cluster has been downgraded", zap.String("cluster-version", downgrade.TargetVersion))
	if err := c.cfg.EndDowngrade(ctx); err != nil {
		c.cfg.Logger.Warn("failed to cancel downgrade", zap.Error(err))
	}
}

// Update checks once, as the leader of term, and proposes another version if necessary.
func (c *ClusterVersion) Update(ctx context.Context, term uint64) {
	// Not before the first entry of the term: an entry that is not applied here yet may set the
	// version.
	if err := c.cfg.Raft.ReadBarrier(ctx); err != nil {
		return
	}
	found := c.ask(ctx)
	c.onlyBelay.Store(allBelay(found))
	next, lines := nextVersion(c.cfg.State.ClusterVersion(), c.cfg.State.DowngradeInfo(), found, c.cfg.Highest)
	say(c.cfg.Logger, lines)
	if next == nil {
		return
	}
	bounded, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	err := c.cfg.Set(bounded, term, next)
	switch {
	case err == nil:
		c.cfg.Logger.Info("cluster version is updated", zap.String("cluster-version", minor(next)))
	case ctx.Err() != nil:
		c.cfg.Logger.Warn("aborting cluster version update; server is stopped", zap.Error(err))
	default:
		c.cfg.Logger.Warn("failed to update cluster version", zap.Error(err))
	}
}

// ask returns the versions of all members; those that do not answer have nil.
func (c *ClusterVersion) ask(ctx context.Context) map[uint64]*Versions {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	found := c.cfg.Members.versions(ctx)
	own := c.cfg.Own()
	if own.Belay == "" {
		own.Belay = "unknown" // still one of ours
	}
	found[c.cfg.Members.MemberID] = &own
	return found
}

// nextVersion is the version to be set, nil if it stays. found has every member, with nil for
// those whose version is not known. It is not raised beyond highest, if that is not nil.
func nextVersion(current *semver.Version, downgrade command.Downgrade, found map[uint64]*Versions, highest *semver.Version) (next *semver.Version, lines []line) {
	lowest, lines := lowestVersion(found)
	raised := lowest
	if lowest != nil && highest != nil && highest.LessThan(*cut(lowest)) {
		raised = highest
	}
	switch {
	case current == nil && lowest == nil:
		next = semver.New(MinClusterVersion)
	case current == nil:
		next = cut(raised)
	case lowest == nil:
		return nil, lines
	case downgrade.Enabled:
		target, err := semver.NewVersion(downgrade.TargetVersion)
		if err != nil || target.Equal(*current) {
			return nil, lines
		}
		oneBelow := func(v *semver.Version) bool { return target.Major == v.Major && target.Minor == v.Minor-1 }
		if !oneBelow(current) || !oneBelow(lowest) {
			return nil, append(lines, fault("Cannot downgrade from cluster-version to downgrade-target",
				zap.String("downgrade-target", downgrade.TargetVersion), zap.String("cluster-version", current.String())))
		}
		next = cut(target)
	case current.Major == lowest.Major && current.LessThan(*cut(raised)):
		next = cut(raised)
	default:
		return nil, lines
	}
	if current == nil {
		return next, append(lines, info("setting up initial cluster version using v3 API", zap.String("cluster-version", minor(next))))
	}
	return next, append(lines, info("updating cluster version using v3 API", zap.String("from", minor(current)), zap.String("to", minor(next))))
}

// lowestVersion is the lowest server version, nil if one is not known.
func lowestVersion(found map[uint64]*Versions) (lowest *semver.Version, lines []line) {
	own := semver.New(version.Etcd)
	for _, id := range slices.Sorted(maps.Keys(found)) {
		f := found[id]
		if f == nil {
			return nil, lines
		}
		member := zap.String("remote-member-id", command.IDText(id))
		v, err := semver.NewVersion(f.Server)
		if err != nil {
			return nil, append(lines, warn("failed to parse server version of remote member",
				member, zap.String("remote-member-version", f.Server), zap.Error(err)))
		}
		if own.LessThan(*v) {
			lines = append(lines, warn("leader found higher-versioned member",
				zap.String("local-member-version", version.Etcd), member, zap.String("remote-member-version", f.Server)))
		}
		if lowest == nil || v.LessThan(*lowest) {
			lowest = v
		}
	}
	return lowest, lines
}

// downgradeDone reports whether all members run the downgrade's target.
func downgradeDone(found map[uint64]*Versions, target string) (done bool, lines []line) {
	t, err := semver.NewVersion(target)
	if err != nil {
		return false, nil
	}
	for _, id := range slices.Sorted(maps.Keys(found)) {
		f := found[id]
		if f == nil {
			return false, nil
		}
		v, err := semver.NewVersion(f.Server)
		if err != nil {
			return false, nil
		}
		if v.Major != t.Major || v.Minor != t.Minor {
			return false, []line{warn("remotes server has mismatching etcd version", zap.String("remote-member-id", command.IDText(id)),
				zap.String("current-server-version", minor(v)), zap.String("target-version", minor(t)))}
		}
	}
	return true, nil
}

// allBelay reports whether all members are known to be Belay's.
func allBelay(found map[uint64]*Versions) bool {
	for _, f := range found {
		if f == nil || f.Belay == "" {
			return false
		}
	}
	return len(found) > 0
}

// cut reduces a version to major and minor, as the cluster's version has it.
func cut(v *semver.Version) *semver.Version {
	return &semver.Version{Major: v.Major, Minor: v.Minor}
}

func minor(v *semver.Version) string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

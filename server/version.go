package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-semver/semver"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/peers"
	"github.com/belaydb/belay/replica"
)

// publish tells the cluster this member's name and client URLs, by an entry,
// until that has succeeded once.
func (s *Server) publish(ctx context.Context) {
	attributes := &membershippb.Attributes{Name: s.cfg.Name, ClientUrls: s.cfg.ClientURLs}
	fields := []zap.Field{
		zap.String("local-member-id", idText(s.cfg.MemberID)),
		zap.String("local-member-attributes", fmt.Sprintf("{Name:%s ClientURLs:%v}", s.cfg.Name, s.cfg.ClientURLs)),
		zap.Duration("publish-timeout", s.cfg.RequestTimeout),
	}
	for {
		bounded, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
		_, err := s.proposeOwn(bounded, kindClusterMemberAttrSet, &pb.InternalRaftRequest{
			ClusterMemberAttrSet: &membershippb.ClusterMemberAttrSetRequest{Member_ID: s.cfg.MemberID, MemberAttributes: attributes},
		})
		cancel()
		switch {
		case err == nil:
			close(s.published)
			s.logger.Info("published local member to cluster through raft", append(fields, zap.String("cluster-id", idText(s.cfg.ClusterID)))...)
			return
		case ctx.Err() != nil || errors.Is(err, replica.ErrStopped):
			s.logger.Warn("stopped publish because server is stopping", fields...)
			return
		}
		s.logger.Warn("failed to publish local member to cluster through raft", append(fields, zap.Error(err))...)
		// Nearly all failures have taken the whole timeout. The others must not
		// become a busy loop.
		select {
		case <-ctx.Done():
		case <-time.After(s.cfg.HeartbeatInterval):
		}
	}
}

// versionInterval is how often the leader looks at the members' versions.
const versionInterval = 4 * time.Second

// monitorVersion keeps, on the leader, the cluster's version at the lowest of
// its members': clients and members switch features on by it. It also ends a
// downgrade that is done.
func (s *Server) monitorVersion(ctx context.Context) {
	tick := time.NewTicker(versionInterval)
	defer tick.Stop()
	var downgrade <-chan time.Time // never
	if s.cfg.DowngradeInterval > 0 {
		looks := time.NewTicker(s.cfg.DowngradeInterval)
		defer looks.Stop()
		downgrade = looks.C
	}
	look := s.updateVersion
	for ctx.Err() == nil {
		changed := s.replica.LeaderChanged()
		if st := s.replica.Status(); st.IsLeader() {
			look(ctx, st.Term)
		} else {
			s.onlyBelay.Store(false)
		}
		look = s.updateVersion
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-downgrade:
			look = s.endDowngrade
		case <-changed:
		case <-s.wake:
		}
	}
}

// endDowngrade ends a downgrade when all members run its target.
func (s *Server) endDowngrade(ctx context.Context, _ uint64) {
	downgrade := s.state.DowngradeInfo()
	if !downgrade.Enabled || s.replica.ReadBarrier(ctx) != nil || !s.downgradeReached(s.memberVersions(ctx), downgrade.TargetVersion) {
		return
	}
	s.logger.Info("the cluster has been downgraded", zap.String("cluster-version", downgrade.TargetVersion))
	if err := s.cancelDowngrade(ctx); err != nil {
		s.logger.Warn("failed to cancel downgrade", zap.Error(err))
	}
}

func (s *Server) updateVersion(ctx context.Context, term uint64) {
	// Not before the first entry of the term: the version may be decided in
	// one that is not applied here yet.
	if err := s.replica.ReadBarrier(ctx); err != nil {
		return
	}
	found := s.memberVersions(ctx)
	s.noteKinds(found)
	downgrade := s.state.DowngradeInfo()
	current := s.state.ClusterVersion()
	next := s.decideVersion(current, s.lowestVersion(found), downgrade.Enabled, downgrade.TargetVersion)
	if next == nil {
		return
	}
	if current == nil {
		s.logger.Info("setting up initial cluster version using v3 API", zap.String("cluster-version", minor(next)))
	} else {
		s.logger.Info("updating cluster version using v3 API", zap.String("from", minor(current)), zap.String("to", minor(next)))
	}
	bounded, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
	defer cancel()
	_, err := s.proposeInTerm(bounded, term, kindClusterVersionSet, versionRequest(next))
	switch {
	case err == nil:
		s.logger.Info("cluster version is updated", zap.String("cluster-version", minor(next)))
	case errors.Is(err, replica.ErrStopped):
		s.logger.Warn("aborting cluster version update; server is stopped", zap.Error(err))
	default:
		s.logger.Warn("failed to update cluster version", zap.Error(err))
	}
}

func versionRequest(v *semver.Version) *pb.InternalRaftRequest {
	return &pb.InternalRaftRequest{ClusterVersionSet: &membershippb.ClusterVersionSetRequest{Ver: v.String()}}
}

// decideVersion is the version to be set, nil if it stays. lowest is nil while
// some member's version is not known.
func (s *Server) decideVersion(current, lowest *semver.Version, downgrading bool, target string) *semver.Version {
	cut := func(v *semver.Version) *semver.Version { return &semver.Version{Major: v.Major, Minor: v.Minor} }
	if current == nil {
		if lowest == nil {
			return semver.New(MinClusterVersion)
		}
		return cut(lowest)
	}
	if lowest == nil {
		return nil
	}
	if downgrading {
		t, err := semver.NewVersion(target)
		if err != nil || t.Equal(*current) {
			return nil
		}
		oneBelow := func(v *semver.Version) bool { return t.Major == v.Major && t.Minor == v.Minor-1 }
		if !oneBelow(current) || !oneBelow(cut(lowest)) {
			s.logger.Error("Cannot downgrade from cluster-version to downgrade-target",
				zap.String("downgrade-target", target), zap.String("cluster-version", current.String()))
			return nil
		}
		return cut(t)
	}
	if current.Major == lowest.Major && current.LessThan(*cut(lowest)) {
		return cut(lowest)
	}
	return nil
}

// memberVersions asks every member for its versions, all at once; a member
// that does not answer has nil.
func (s *Server) memberVersions(ctx context.Context) map[uint64]*versions {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout)
	defer cancel()
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		found = make(map[uint64]*versions)
	)
	for _, m := range s.state.Members() {
		if m.ID == s.cfg.MemberID {
			own := s.versions()
			if own.Belay == "" {
				own.Belay = "unknown" // ours all the same
			}
			mu.Lock()
			found[m.ID] = &own
			mu.Unlock()
			continue
		}
		wg.Go(func() {
			v, err := s.versionOf(ctx, m)
			if err != nil {
				s.logger.Warn("failed to get version", zap.String("remote-member-id", idText(m.ID)), zap.Error(err))
			}
			mu.Lock()
			found[m.ID] = v
			mu.Unlock()
		})
	}
	wg.Wait()
	return found
}

func (s *Server) versionOf(ctx context.Context, m *command.Member) (*versions, error) {
	if s.cfg.Peers == nil {
		return nil, errors.New("server: no way to other members")
	}
	lastErr := errors.New("server: member has no peer URLs")
	for _, u := range m.PeerURLs {
		v, err := s.versionAt(ctx, u)
		if err == nil {
			return v, nil
		}
		s.logger.Warn("failed to reach the peer URL", zap.String("address", strings.TrimSuffix(u, "/")+peers.PathVersion),
			zap.String("remote-member-id", idText(m.ID)), zap.Error(err))
		lastErr = err
	}
	return nil, lastErr
}

func (s *Server) versionAt(ctx context.Context, peerURL string) (*versions, error) {
	a, err := peers.At(ctx, s.cfg.Peers.Client(), peerURL, peers.Question{Path: peers.PathVersion})
	if err != nil {
		return nil, err
	}
	var v versions
	if err := json.Unmarshal(a.Body, &v); err != nil {
		return nil, fmt.Errorf("answer of %s: %w", a.URL, err)
	}
	return &v, nil
}

// lowestVersion is the lowest server version, nil if one is not known.
func (s *Server) lowestVersion(found map[uint64]*versions) *semver.Version {
	var lowest *semver.Version
	own := semver.New(EtcdVersion)
	for id, f := range found {
		if f == nil {
			return nil
		}
		v, err := semver.NewVersion(f.Server)
		if err != nil {
			s.logger.Warn("failed to parse server version of remote member",
				zap.String("remote-member-id", idText(id)), zap.String("remote-member-version", f.Server), zap.Error(err))
			return nil
		}
		if own.LessThan(*v) {
			s.logger.Warn("leader found higher-versioned member",
				zap.String("local-member-version", EtcdVersion), zap.String("remote-member-id", idText(id)),
				zap.String("remote-member-version", f.Server))
		}
		if lowest == nil || v.LessThan(*lowest) {
			lowest = v
		}
	}
	return lowest
}

// downgradeReached says whether all members run the downgrade's target.
func (s *Server) downgradeReached(found map[uint64]*versions, target string) bool {
	t, err := semver.NewVersion(target)
	if err != nil {
		return false
	}
	for id, f := range found {
		if f == nil {
			return false
		}
		v, err := semver.NewVersion(f.Server)
		if err != nil {
			return false
		}
		if v.Major != t.Major || v.Minor != t.Minor {
			s.logger.Warn("remotes server has mismatching etcd version", zap.String("remote-member-id", idText(id)),
				zap.String("current-server-version", minor(v)), zap.String("target-version", minor(t)))
			return false
		}
	}
	return true
}

// noteKinds notes whether all members are known to be Belay's.
func (s *Server) noteKinds(found map[uint64]*versions) {
	only := len(found) > 0
	for _, f := range found {
		only = only && f != nil && f.Belay != ""
	}
	s.onlyBelay.Store(only)
}

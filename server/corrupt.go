package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/peers"
)

// Members apply the same entries, so their keys and histories are equal at
// every revision. Three checks compare hashes of them, in etcd's way and words:
//
//   - initial, before a member that has data serves: its own data with its
//     peers'. On a mismatch it does not start, unless most members agree with
//     it (etcd starts with none that differs from any);
//   - periodic, by the leader: the newest revision of all members. A pass over
//     all keys on each member;
//   - compaction, by the leader: the hashes that each member has kept of its
//     last compactions. Nothing is read for it.
//
// A mismatch raises the CORRUPT alarm for the members whose hash is not that of
// most members; if no hash is that of most, for member 0, which means that
// nobody knows. (etcd's periodic check blames the follower always; here both
// checks have the rule of the compaction check.) The alarm stops writes, and
// the reads that go through the log, until an operator disarms it.
//
// A false alarm would stop a healthy cluster, so the periodic check alarms only
// for what it finds twice, and hashes are compared only when both members say
// that they cover the same: see peers.HeaderHashOf.

// CorruptionChecks of Config. A check whose interval is 0 is not made.
type CorruptionChecks struct {
	Interval           time.Duration // of the periodic check, of the leader
	CompactionInterval time.Duration // of the compaction check, of the leader
}

// covered is a hash and what it covers: the keys and their history as of rev,
// after a compaction of compactRev.
type covered struct {
	rev, compactRev int64
	hash            uint32
}

// peerHash is a peer's answer.
type peerHash struct {
	id        uint64
	endpoints []string
	covered
	current int64 // the peer's revision at the time
	err     error // in place of an answer
}

// hasher is what the checks need of a member; Server is one.
type hasher interface {
	hashHere(ctx context.Context) (covered, error)
	// positionHere is this member's revision and its compaction's.
	positionHere() (rev, compactRev int64)
	compactionHashes() []mvcc.CompactionHash
	// hasPeers tells if there are other members.
	hasPeers() bool
	// hashesThere asks all other members at once.
	hashesThere(ctx context.Context, rev int64, of string, patience time.Duration) []peerHash
	readBarrier(ctx context.Context) error
	// raiseCorrupt raises the alarm in the background; 0 means that nobody knows who.
	raiseCorrupt(id uint64)
}

// corruption is the three checks. Not more than one of them runs at a time.
type corruption struct {
	local    uint64
	timeout  time.Duration // of one question to a member, on top of what its hash may take
	member   hasher
	logger   *zap.Logger
	outcomes func(check, outcome string) // counts

	checkedRev int64 // newest compaction whose hash all members were seen to share

	// What the last compaction check could not compare, and what this one
	// cannot: it is said once, not each minute that a member is down.
	said, saying map[string]bool
}

// What a check came to.
const (
	outcomeEqual      = "equal"
	outcomeMismatch   = "mismatch"
	outcomeIncomplete = "incomplete" // some member could not be compared
	outcomeFailed     = "failed"

	checkInitial    = "initial"
	checkPeriodic   = "periodic"
	checkCompaction = "compaction"
)

// patience is how long a peer may take for a hash that took this member so
// long: the timeout alone would never do for large data.
func (c *corruption) patience(own time.Duration) time.Duration { return c.timeout + 4*own }

// initial compares this member's data with its peers' before it serves. An
// error says that it must not.
func (c *corruption) initial(ctx context.Context) error {
	c.logger.Info("starting initial corruption check", zap.String("local-member-id", idText(c.local)), zap.Duration("timeout", c.timeout))
	start := time.Now()
	own, err := c.member.hashHere(ctx)
	if err != nil {
		c.outcomes(checkInitial, outcomeFailed)
		return fmt.Errorf("%s failed to fetch hash (%w)", idText(c.local), err)
	}
	peers := c.member.hashesThere(ctx, own.rev, peers.HashOfState, c.patience(time.Since(start)))
	same, different, unknown := 1, 0, 0
	for _, p := range peers {
		fields := []zap.Field{
			zap.String("local-member-id", idText(c.local)),
			zap.Int64("local-member-revision", own.rev),
			zap.Int64("local-member-compact-revision", own.compactRev),
			zap.Uint32("local-member-hash", own.hash),
			zap.String("remote-peer-id", idText(p.id)),
			zap.Strings("remote-peer-endpoints", p.endpoints),
		}
		if p.err != nil {
			unknown++
			fields = append(fields, zap.Error(p.err))
			switch {
			case errors.Is(p.err, rpctypes.ErrFutureRev):
				c.logger.Warn("cannot fetch hash from slow remote peer", fields...)
			case errors.Is(p.err, rpctypes.ErrCompacted):
				c.logger.Warn("cannot fetch hash from remote peer; local member is behind", fields...)
			case errors.Is(p.err, rpctypes.ErrClusterIDMismatch):
				c.logger.Warn("cluster ID mismatch", fields...)
			}
			continue
		}
		fields = append(fields,
			zap.Int64("remote-peer-revision", p.current),
			zap.Int64("remote-peer-compact-revision", p.compactRev),
			zap.Uint32("remote-peer-hash", p.hash))
		switch {
		case p.compactRev != own.compactRev:
			unknown++
			if p.hash != own.hash {
				c.logger.Warn("found different compact revision values from remote peer", fields...)
			}
		case p.hash != own.hash:
			different++
			c.logger.Warn("found different hash values from remote peer", fields...)
		default:
			same++
		}
	}
	switch {
	case different == 0:
		c.outcomes(checkInitial, map[bool]string{true: outcomeEqual, false: outcomeIncomplete}[unknown == 0])
		c.logger.Info("initial corruption checking passed; no corruption", zap.String("local-member-id", idText(c.local)))
		return nil
	case same >= quorumOf(len(peers)+1):
		c.outcomes(checkInitial, outcomeMismatch)
		c.logger.Warn("initial corruption checking passed; most members have this member's data, some have not",
			zap.String("local-member-id", idText(c.local)), zap.Int("equal-members", same), zap.Int("different-members", different))
		return nil
	}
	c.outcomes(checkInitial, outcomeMismatch)
	return fmt.Errorf("%s found data inconsistency with peers", idText(c.local))
}

func quorumOf(members int) int { return members/2 + 1 }

// finding is one way in which members differ.
type finding struct {
	text    string
	fields  []zap.Field
	culprit uint64
}

// periodic compares the newest revision of all members. REQUIRES: this member
// leads, or little is found out.
func (c *corruption) periodic(ctx context.Context) error {
	checked, total, found, err := c.compare(ctx)
	if err == nil && len(found) > 0 {
		// Once more: only what stays is worth stopping the cluster for.
		checked, total, found, err = c.compare(ctx)
	}
	if err != nil {
		c.outcomes(checkPeriodic, outcomeFailed)
		return err
	}
	culprits := map[uint64]bool{}
	for _, f := range found {
		c.logger.Warn(f.text, f.fields...)
		culprits[f.culprit] = true
	}
	for _, id := range slices.Sorted(maps.Keys(culprits)) {
		c.member.raiseCorrupt(id)
	}
	c.logger.Info("finished peer corruption check", zap.Int("number-of-peers-checked", checked))
	switch {
	case len(found) > 0:
		c.outcomes(checkPeriodic, outcomeMismatch)
	case checked < total:
		c.outcomes(checkPeriodic, outcomeIncomplete)
	default:
		c.outcomes(checkPeriodic, outcomeEqual)
	}
	return nil
}

func (c *corruption) compare(ctx context.Context) (checked, total int, found []finding, err error) {
	start := time.Now()
	h, err := c.member.hashHere(ctx)
	if err != nil {
		return 0, 0, nil, err
	}
	patience := c.patience(time.Since(start))
	peers := c.member.hashesThere(ctx, h.rev, peers.HashOfState, patience)
	// What a peer had applied when it answered is committed; after the barrier
	// it is applied here.
	bounded, cancel := context.WithTimeout(ctx, c.timeout)
	err = c.member.readBarrier(bounded)
	cancel()
	if err != nil {
		return 0, 0, nil, err
	}
	h2, err := c.member.hashHere(ctx)
	if err != nil {
		return 0, 0, nil, err
	}
	rev, compactRev := c.member.positionHere()

	if h2.hash != h.hash && h2.rev == h.rev && h2.compactRev == h.compactRev {
		found = append(found, finding{"found hash mismatch", []zap.Field{
			zap.Int64("revision-1", h.rev), zap.Int64("compact-revision-1", h.compactRev), zap.Uint32("hash-1", h.hash),
			zap.Int64("revision-2", h2.rev), zap.Int64("compact-revision-2", h2.compactRev), zap.Uint32("hash-2", h2.hash),
		}, c.local})
	}
	groups := map[uint32][]uint64{h.hash: {c.local}}
	for _, p := range peers {
		if p.err != nil {
			continue
		}
		checked++
		if p.current > rev {
			found = append(found, finding{"revision from follower must be less than or equal to leader's", []zap.Field{
				zap.Int64("leader-revision", rev), zap.Int64("follower-revision", p.current),
				zap.String("follower-peer-id", idText(p.id)),
			}, p.id})
		}
		if p.compactRev > compactRev {
			found = append(found, finding{"compact revision from follower must be less than or equal to leader's", []zap.Field{
				zap.Int64("leader-compact-revision", compactRev), zap.Int64("follower-compact-revision", p.compactRev),
				zap.String("follower-peer-id", idText(p.id)),
			}, p.id})
		}
		if p.compactRev == h.compactRev {
			groups[p.hash] = append(groups[p.hash], p.id)
		}
	}
	culprits := minority(groups, len(peers)+1)
	for _, p := range peers {
		if p.err != nil || p.compactRev != h.compactRev || p.hash == h.hash {
			continue
		}
		fields := []zap.Field{
			zap.Int64("leader-compact-revision", h.compactRev), zap.Uint32("leader-hash", h.hash),
			zap.Int64("follower-compact-revision", p.compactRev), zap.Uint32("follower-hash", p.hash),
			zap.String("follower-peer-id", idText(p.id)),
		}
		for _, id := range culprits {
			found = append(found, finding{"same compact revision then hashes must match", fields, id})
		}
	}
	return checked, len(peers), found, nil
}

// minority names the members whose hash is not that of most of the cluster's
// members: nobody if there is one hash, 0 if no hash is that of most.
func minority(groups map[uint32][]uint64, members int) (ids []uint64) {
	if len(groups) == 1 {
		return nil
	}
	quorum := false
	for _, group := range groups {
		if len(group) >= quorumOf(members) {
			quorum = true
		} else {
			ids = append(ids, group...)
		}
	}
	if !quorum {
		return []uint64{0}
	}
	slices.Sort(ids)
	return ids
}

// compaction compares the hashes that members kept of their last compactions,
// the newest that all of them have first.
func (c *corruption) compaction(ctx context.Context) {
	hashes := slices.DeleteFunc(c.member.compactionHashes(), func(h mvcc.CompactionHash) bool { return h.Revision <= c.checkedRev })
	if len(hashes) == 0 || !c.member.hasPeers() {
		return // once a minute, by default: silence is enough
	}
	c.logger.Info("starting compact hash check", zap.String("local-member-id", idText(c.local)), zap.Duration("timeout", c.timeout))
	slices.Reverse(hashes)
	c.saying = map[string]bool{}
	defer func() { c.said = c.saying }()
	count, outcome := 0, outcomeEqual
	for _, h := range hashes {
		if ctx.Err() != nil {
			return
		}
		peers := c.member.hashesThere(ctx, h.Revision, peers.HashOfCompaction, c.timeout)
		if len(peers) == 0 {
			continue
		}
		count++
		if outcome = c.compareCompaction(h, peers); outcome != outcomeIncomplete {
			break
		}
	}
	c.logger.Info("finished compaction hash check", zap.Int("number-of-hashes-checked", count))
	if count > 0 {
		c.outcomes(checkCompaction, outcome)
	}
}

func (c *corruption) compareCompaction(h mvcc.CompactionHash, peers []peerHash) (outcome string) {
	groups := map[uint32][]uint64{h.Hash: {c.local}}
	checked := 0
	for _, p := range peers {
		reason := ""
		switch {
		case errors.Is(p.err, errNoCompactionHash):
			reason = "the peer keeps no hash of this compaction"
		case p.err != nil:
			reason = "no response"
		case p.compactRev != h.CompactRevision:
			reason = fmt.Sprintf("the peer's CompactRevision %d doesn't match leader's CompactRevision %d", p.compactRev, h.CompactRevision)
		default:
			checked++
			groups[p.hash] = append(groups[p.hash], p.id)
			continue
		}
		c.warnOnce(fmt.Sprint(h.Revision, p.id, reason), "Skipped peer's hash",
			zap.Int("number-of-peers", len(peers)), zap.String("leader-id", idText(c.local)),
			zap.String("peer-id", idText(p.id)), zap.String("reason", reason))
	}
	if len(groups) == 1 {
		if checked < len(peers) {
			c.warnOnce(fmt.Sprint(h.Revision, checked), "skipped revision in compaction hash check; was not able to check all peers",
				zap.Int("number-of-peers-checked", checked), zap.Int("number-of-peers", len(peers)),
				zap.Int64("revision", h.Revision), zap.Int64("compactRevision", h.CompactRevision))
			return outcomeIncomplete
		}
		c.logger.Info("successfully checked hash on whole cluster", zap.Int("number-of-peers-checked", checked),
			zap.Int64("revision", h.Revision), zap.Int64("compactRevision", h.CompactRevision))
		c.checkedRev = max(c.checkedRev, h.Revision)
		return outcomeEqual
	}

	culprits := minority(groups, len(peers)+1)
	fields := []zap.Field{
		zap.String("leader-id", idText(c.local)), zap.Int64("leader-revision", h.Revision),
		zap.Int64("leader-compact-revision", h.CompactRevision), zap.Uint32("leader-hash", h.Hash),
	}
	known := culprits[0] != 0
	if !known {
		c.logger.Error("Detected compaction hash mismatch but cannot identify the corrupted members, so intentionally set the memberID as 0", fields...)
	}
	for _, id := range culprits {
		c.member.raiseCorrupt(id)
	}
	for _, hash := range slices.Sorted(maps.Keys(groups)) {
		group := groups[hash]
		if known && !slices.Contains(culprits, group[0]) {
			continue // most members
		}
		names := make([]string, len(group))
		for i, id := range group {
			names[i] = idText(id)
		}
		c.logger.Error("Detected compaction hash mismatch", append(slices.Clone(fields),
			zap.Uint32("peer-hash", hash), zap.String("peer-ids", strings.Join(names, ",")), zap.Bool("quorum-exist", known))...)
	}
	return outcomeMismatch
}

func (c *corruption) warnOnce(what, text string, fields ...zap.Field) {
	c.saying[what] = true
	if !c.said[what] {
		c.logger.Warn(text, fields...)
	}
}

// CheckInitial is the initial check. It may run before Start, once the peers'
// addresses are known; an error says that this member must not serve.
func (s *Server) CheckInitial(ctx context.Context) error {
	err := s.corruption.initial(ctx)
	if err != nil {
		s.logger.Error("checkInitialHashKV failed", zap.Error(err))
	}
	return err
}

// watchCorruption runs the two checks of a leader, one after the other.
func (s *Server) watchCorruption(ctx context.Context) {
	var periodic, compaction <-chan time.Time
	if every := s.cfg.CorruptionChecks.Interval; every > 0 {
		s.logger.Info("enabled corruption checking", zap.String("local-member-id", idText(s.cfg.MemberID)), zap.Duration("interval", every))
		tick := time.NewTicker(every)
		defer tick.Stop()
		periodic = tick.C
	}
	if every := s.cfg.CorruptionChecks.CompactionInterval; every > 0 {
		tick := time.NewTicker(every)
		defer tick.Stop()
		compaction = tick.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-periodic:
			if s.replica.Status().IsLeader() {
				if err := s.corruption.periodic(ctx); err != nil && ctx.Err() == nil {
					s.logger.Warn("failed to check hash KV", zap.Error(err))
				}
			}
		case <-compaction:
			if s.replica.Status().IsLeader() {
				s.corruption.compaction(ctx)
			}
		}
	}
}

func (s *Server) hashHere(ctx context.Context) (covered, error) {
	hash, compactRev, rev, err := s.kvStore.HashState(yielding{ctx}, 0)
	return covered{rev, compactRev, hash}, err
}

func (s *Server) positionHere() (rev, compactRev int64) {
	return s.kvStore.Revision(), s.kvStore.CompactRevision()
}

func (s *Server) compactionHashes() []mvcc.CompactionHash { return s.kvStore.CompactionHashes() }

func (s *Server) readBarrier(ctx context.Context) error { return s.replica.ReadBarrier(ctx) }

// raiseCorrupt does nothing if the alarm is active already.
func (s *Server) raiseCorrupt(id uint64) {
	for _, a := range s.state.Alarms() {
		if a.Alarm == pb.AlarmType_CORRUPT && a.MemberID == id {
			return
		}
	}
	s.background(func() {
		ctx, cancel := context.WithTimeout(s.stopped, s.cfg.RequestTimeout)
		defer cancel()
		_, err := s.alarm(ctx, &pb.AlarmRequest{MemberID: id, Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_CORRUPT})
		if err != nil && s.stopped.Err() == nil {
			s.logger.Warn("failed to raise the CORRUPT alarm", zap.String("member-id", idText(id)), zap.Error(err))
		}
	})
}

func (s *Server) hasPeers() bool { return len(s.peersToAsk()) > 0 }

func (s *Server) peersToAsk() (members []*command.Member) {
	for _, m := range s.state.Members() {
		if m.ID != s.cfg.MemberID && len(m.PeerURLs) > 0 {
			members = append(members, m)
		}
	}
	return members
}

func (s *Server) hashesThere(ctx context.Context, rev int64, of string, patience time.Duration) []peerHash {
	members := s.peersToAsk()
	answers := make([]peerHash, len(members))
	var wg sync.WaitGroup
	for i, m := range members {
		wg.Go(func() {
			a := &answers[i]
			a.id, a.endpoints = m.ID, m.PeerURLs
			for _, u := range m.PeerURLs {
				bounded, cancel := context.WithTimeout(ctx, patience)
				a.covered, a.current, a.err = s.hashAt(bounded, u, rev, of)
				cancel()
				if a.err == nil {
					return
				}
				// That a member did not keep a compaction's hash, or that it is behind, is no failure of asking.
				say := s.logger.Warn
				if of == peers.HashOfCompaction {
					say = s.logger.Debug
				}
				say("failed hash kv request", zap.String("local-member-id", idText(s.cfg.MemberID)),
					zap.Int64("requested-revision", rev), zap.String("remote-peer-endpoint", u), zap.Error(a.err))
			}
		})
	}
	wg.Wait()
	return answers
}

// hashAt asks the member behind a peer URL.
func (s *Server) hashAt(ctx context.Context, peerURL string, rev int64, of string) (h covered, current int64, err error) {
	if s.cfg.Peers == nil {
		return h, 0, errors.New("server: no way to other members")
	}
	body, err := json.Marshal(&pb.HashKVRequest{Revision: rev})
	if err != nil {
		return h, 0, err
	}
	header := http.Header{}
	header.Set("Content-Type", "application/json")
	header.Set(peers.HeaderCluster, idText(s.cfg.ClusterID))
	header.Set(peers.HeaderHashOf, of)
	a, err := peers.At(ctx, s.cfg.Peers.Client(), peerURL, peers.Question{Path: peers.PathHashKV, Header: header, Body: body})
	if err != nil {
		return h, 0, err
	}
	text := string(a.Body)
	switch {
	case a.Status == http.StatusBadRequest && strings.Contains(text, mvcc.ErrCompacted.Error()):
		return h, 0, rpctypes.ErrCompacted
	case a.Status == http.StatusBadRequest && strings.Contains(text, mvcc.ErrFutureRev.Error()):
		return h, 0, rpctypes.ErrFutureRev
	case a.Status == http.StatusBadRequest && strings.Contains(text, errNoCompactionHash.Error()):
		return h, 0, errNoCompactionHash
	case a.Status == http.StatusPreconditionFailed && strings.Contains(text, "cluster ID mismatch"):
		return h, 0, rpctypes.ErrClusterIDMismatch
	case a.Status != http.StatusOK:
		return h, 0, fmt.Errorf("unknown error: %s", strings.TrimSpace(text))
	}
	var r pb.HashKVResponse
	if err := json.Unmarshal(a.Body, &r); err != nil {
		return h, 0, err
	}
	return covered{rev, r.CompactRevision, r.Hash}, r.Header.GetRevision(), nil
}

// errNoCompactionHash answers a peer that asks for the hash of a compaction
// that this process has not done, or does not remember.
var errNoCompactionHash = errors.New("no hash of a compaction of this revision is kept")

// hashFor answers another member; its header has the revision alone.
func (s *Server) hashFor(ctx context.Context, rev int64, of string) (*pb.HashKVResponse, error) {
	switch of {
	case peers.HashOfState:
		hash, compactRev, current, err := s.kvStore.HashState(yielding{ctx}, rev)
		if err != nil {
			return nil, err
		}
		return &pb.HashKVResponse{
			Header: &pb.ResponseHeader{Revision: current}, Hash: hash, CompactRevision: compactRev, HashRevision: rev,
		}, nil
	case peers.HashOfCompaction:
		if !slices.ContainsFunc(s.kvStore.CompactionHashes(), func(h mvcc.CompactionHash) bool { return h.Revision == rev }) {
			return nil, errNoCompactionHash
		}
	}
	return s.hashKV(yielding{ctx}, rev)
}

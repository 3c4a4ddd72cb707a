package leader

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/mvcc"
)

// Members apply the same entries, so their keys and histories are equal at every revision. Three
// checks compare hashes of them, with etcd's rules and texts:
//
//   - initial, before a member that has data serves: its own data with its peers'. On a mismatch it
//     does not start, unless the majority agrees with it (in etcd no member starts that differs
//     from any other);
//   - periodic, by the leader: the newest revision of all members. A pass over
//     all keys on each member;
//   - compaction, by the leader: the hashes that each member has kept of its last compactions. This
//     reads no data.
//
// A mismatch raises the CORRUPT alarm for the members whose hash differs from the majority's;
// without a majority, for member 0, which means that nobody knows. (etcd's periodic check always
// blames the follower; here both checks have the rule of the compaction check.) The alarm stops
// writes, and the reads that go through the log, until an operator disarms it.
//
// A false alarm would stop a healthy cluster, so the periodic check raises the alarm only for what
// it finds twice, and hashes are compared only when both members say that they cover the same: see
// peers.HeaderHashOf.
//
// This file compares; checks.go asks.

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

// The outcome of a check.
const (
	outcomeEqual      = "equal"
	outcomeMismatch   = "mismatch"
	outcomeIncomplete = "incomplete" // some member could not be compared
	outcomeFailed     = "failed"
)

// verdict is the result of a comparison.
type verdict struct {
	outcome  string
	culprits []uint64 // sorted, without duplicates; 0: not known. Empty unless there is a mismatch
	lines    []line
	unfit    bool // of the initial check: this member must not serve
	alone    bool // beside unfit: the others are a quorum that agrees
}

// compareInitial compares this member's data, before it serves, with that of its peers.
func compareInitial(local uint64, own covered, peers []peerHash) (v verdict) {
	same, different, unknown := 1, 0, 0
	member := zap.String("local-member-id", command.IDText(local))
	tell := func(text string, fields []zap.Field) { v.lines = append(v.lines, warn(text, fields...)) }
	for _, p := range peers {
		fields := []zap.Field{
			member,
			zap.Int64("local-member-revision", own.rev),
			zap.Int64("local-member-compact-revision", own.compactRev),
			zap.Uint32("local-member-hash", own.hash),
			zap.String("remote-peer-id", command.IDText(p.id)),
			zap.Strings("remote-peer-endpoints", p.endpoints),
		}
		if p.err != nil {
			unknown++
			if text := whyNoHash(p.err); text != "" {
				tell(text, append(fields, zap.Error(p.err)))
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
				tell("found different compact revision values from remote peer", fields)
			}
		case p.hash != own.hash:
			different++
			tell("found different hash values from remote peer", fields)
		default:
			same++
		}
	}
	switch {
	case different == 0:
		v.outcome = outcomeEqual
		if unknown > 0 {
			v.outcome = outcomeIncomplete
		}
		v.lines = append(v.lines, info("initial corruption checking passed; no corruption", member))
	case same >= command.Quorum(len(peers)+1):
		v.outcome = outcomeMismatch
		tell("initial corruption checking passed; most members have this member's data, some have not",
			[]zap.Field{member, zap.Int("equal-members", same), zap.Int("different-members", different)})
	default:
		v.outcome, v.unfit = outcomeMismatch, true
		var known []peerHash
		for _, p := range peers {
			if p.err == nil && p.compactRev == own.compactRev {
				known = append(known, p)
			}
		}
		a := agreement(local, own, true, known)
		v.alone = !a.Own && len(a.Equal) >= command.Quorum(len(peers)+1)
	}
	return v
}

// whyNoHash is what the initial check logs about a peer that cannot be compared; empty for one that
// could not be asked, which is logged already.
func whyNoHash(err error) string {
	switch {
	case errors.Is(err, rpctypes.ErrFutureRev):
		return "cannot fetch hash from slow remote peer"
	case errors.Is(err, rpctypes.ErrCompacted):
		return "cannot fetch hash from remote peer; local member is behind"
	case errors.Is(err, rpctypes.ErrClusterIDMismatch):
		return "cluster ID mismatch"
	}
	return ""
}

// newest is what the periodic check has seen at the newest revision.
type newest struct {
	local         uint64
	first, second covered // this member's hash before the others were asked, and after
	// rev and compactRev are this member's position at the end. What a peer had applied when
	// it answered was committed, and is applied here by then.
	rev, compactRev int64
	peers           []peerHash
}

// compareNewest compares the newest revision of all members.
func compareNewest(o newest) (v verdict) {
	guilty := map[uint64]bool{}
	found := func(culprit uint64, text string, fields ...zap.Field) {
		guilty[culprit] = true
		v.lines = append(v.lines, warn(text, fields...))
	}
	h := o.first
	if o.second.hash != h.hash && o.second.rev == h.rev && o.second.compactRev == h.compactRev {
		found(o.local, "found hash mismatch",
			zap.Int64("revision-1", h.rev), zap.Int64("compact-revision-1", h.compactRev), zap.Uint32("hash-1", h.hash),
			zap.Int64("revision-2", o.second.rev), zap.Int64("compact-revision-2", o.second.compactRev), zap.Uint32("hash-2", o.second.hash))
	}
	checked := 0
	groups := map[uint32][]uint64{h.hash: {o.local}}
	for _, p := range o.peers {
		if p.err != nil {
			continue
		}
		checked++
		follower := zap.String("follower-peer-id", command.IDText(p.id))
		if p.current > o.rev {
			found(p.id, "revision from follower must be less than or equal to leader's",
				zap.Int64("leader-revision", o.rev), zap.Int64("follower-revision", p.current), follower)
		}
		if p.compactRev > o.compactRev {
			found(p.id, "compact revision from follower must be less than or equal to leader's",
				zap.Int64("leader-compact-revision", o.compactRev), zap.Int64("follower-compact-revision", p.compactRev), follower)
		}
		if p.compactRev == h.compactRev {
			groups[p.hash] = append(groups[p.hash], p.id)
		}
	}
	culprits := minority(groups, len(o.peers)+1)
	for _, p := range o.peers {
		if p.err != nil || p.compactRev != h.compactRev || p.hash == h.hash {
			continue
		}
		for _, id := range culprits {
			found(id, "same compact revision then hashes must match",
				zap.Int64("leader-compact-revision", h.compactRev), zap.Uint32("leader-hash", h.hash),
				zap.Int64("follower-compact-revision", p.compactRev), zap.Uint32("follower-hash", p.hash),
				zap.String("follower-peer-id", command.IDText(p.id)))
		}
	}
	v.culprits = slices.Sorted(maps.Keys(guilty))
	if guilty[0] { // there are two hashes at least
		v.lines = append(v.lines, undecided(groups))
	}
	switch {
	case len(guilty) > 0:
		v.outcome = outcomeMismatch
	case checked < len(o.peers):
		v.outcome = outcomeIncomplete
	default:
		v.outcome = outcomeEqual
	}
	v.lines = append(v.lines, info("finished peer corruption check", zap.Int("number-of-peers-checked", checked)))
	return v
}

// undecided is said beside an alarm of member 0: which members have the same, the most first.
func undecided(groups map[uint32][]uint64) line {
	hashes := slices.SortedFunc(maps.Keys(groups), func(a, b uint32) int {
		return cmp.Or(cmp.Compare(len(groups[b]), len(groups[a])), cmp.Compare(slices.Min(groups[a]), slices.Min(groups[b])))
	})
	copies := make([]string, len(hashes))
	for i, h := range hashes {
		copies[i] = fmt.Sprintf("hash %d: %s", h, idList(groups[h]))
	}
	better := "not known: no copy is had by more members than the others; compare with a backup's HashKV"
	if len(groups[hashes[0]]) > len(groups[hashes[1]]) {
		better = idList(groups[hashes[0]])
	}
	return fault("the members' data differs, and no majority of them has the same: nobody is replaced by the others' data until the alarm CORRUPT of member 0 is disarmed",
		zap.Strings("copies", copies), zap.String("better-copy", better))
}

// minority names the members whose hash differs from that of the majority of the cluster's members:
// nobody if there is only one hash, 0 if there is no majority.
func minority(groups map[uint32][]uint64, members int) (ids []uint64) {
	if len(groups) == 1 {
		return nil
	}
	quorum := false
	for _, group := range groups {
		if len(group) >= command.Quorum(members) {
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

// compareCompaction compares the hash that this member has kept of a compaction with those of its
// peers. Its lines about what could not be compared are logged once each.
func compareCompaction(local uint64, h mvcc.CompactionHash, peers []peerHash) (v verdict) {
	groups := map[uint32][]uint64{h.Hash: {local}}
	checked := 0
	for _, p := range peers {
		reason := ""
		switch {
		case errors.Is(p.err, ErrNoCompactionHash):
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
		skipped := warn("Skipped peer's hash",
			zap.Int("number-of-peers", len(peers)), zap.String("leader-id", command.IDText(local)),
			zap.String("peer-id", command.IDText(p.id)), zap.String("reason", reason))
		skipped.once = fmt.Sprint(h.Revision, p.id, reason)
		v.lines = append(v.lines, skipped)
	}
	if len(groups) == 1 {
		fields := []zap.Field{zap.Int64("revision", h.Revision), zap.Int64("compactRevision", h.CompactRevision)}
		if checked < len(peers) {
			v.outcome = outcomeIncomplete
			skipped := warn("skipped revision in compaction hash check; was not able to check all peers",
				append([]zap.Field{zap.Int("number-of-peers-checked", checked), zap.Int("number-of-peers", len(peers))}, fields...)...)
			skipped.once = fmt.Sprint(h.Revision, checked)
			v.lines = append(v.lines, skipped)
			return v
		}
		v.outcome = outcomeEqual
		v.lines = append(v.lines, info("successfully checked hash on whole cluster",
			append([]zap.Field{zap.Int("number-of-peers-checked", checked)}, fields...)...))
		return v
	}

	v.outcome, v.culprits = outcomeMismatch, minority(groups, len(peers)+1)
	fields := []zap.Field{
		zap.String("leader-id", command.IDText(local)), zap.Int64("leader-revision", h.Revision),
		zap.Int64("leader-compact-revision", h.CompactRevision), zap.Uint32("leader-hash", h.Hash),
	}
	known := v.culprits[0] != 0
	if !known {
		v.lines = append(v.lines, undecided(groups))
		v.lines = append(v.lines, fault("Detected compaction hash mismatch but cannot identify the corrupted members, so intentionally set the memberID as 0", fields...))
	}
	for _, hash := range slices.Sorted(maps.Keys(groups)) {
		group := groups[hash]
		if known && !slices.Contains(v.culprits, group[0]) {
			continue // most members
		}
		names := make([]string, len(group))
		for i, id := range group {
			names[i] = command.IDText(id)
		}
		v.lines = append(v.lines, fault("Detected compaction hash mismatch", append(slices.Clone(fields),
			zap.Uint32("peer-hash", hash), zap.String("peer-ids", strings.Join(names, ",")), zap.Bool("quorum-exist", known))...))
	}
	return v
}

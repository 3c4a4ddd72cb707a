package replica

import (
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/evidence"
)

// backlog is the log that this member cannot drop, in bytes, by what it waits for. It is in memory:
// in the log's, or, if it is applied, in the store's. An entry is dropped when the store has its
// effect durably, so anything that makes no progress, here or on other members, makes the log
// longer. Config.MaxUnsyncedBytes bounds the parts.
type backlog struct {
	unsynced    int64 // for the disk of the raft log
	unflushed   int64 // applied; for the disk of the store
	unapplied   int64 // committed; for the applier
	uncommitted int64 // for the disks of other members
}

// held is the part of the log that the store does not have durably. What is unsynced is part of it,
// unless the store was flushed ahead of the log.
func (b backlog) held() int64 { return b.unflushed + b.unapplied + b.uncommitted }

// cause is what the largest part waits for.
func (b backlog) cause() string {
	switch most := max(b.unsynced, b.unflushed, b.unapplied, b.uncommitted); most {
	case b.unsynced:
		return "the disk of its raft log"
	case b.unflushed:
		return "the disk of its store"
	case b.unapplied:
		return "its applier"
	}
	return "the disks of other members"
}

// room is how much more of the log this member may take.
type room struct {
	*core
	flusher  *flusher
	left     int64 // bytes; counted down as messages are admitted, and anew at each append and tick
	refusing bool  // as last logged: there is none left
}

func (r *room) backlog() backlog {
	log := r.cfg.Log
	flushed := r.pub.flushed.Load()
	applied := max(r.pub.applied.Load(), flushed)
	committed := max(r.pub.committed.Load(), applied)
	return backlog{
		unsynced: log.Unsynced().Bytes,
		// The log may have let go of it (Log.Trim); then the store's memory has it.
		unflushed:   max(log.BytesBetween(flushed, applied), r.flusher.unflushed.Load()),
		unapplied:   log.BytesBetween(applied, committed),
		uncommitted: log.BytesBetween(committed, r.lastIndex()),
	}
}

// check notes how much more of the log this member may take. It is called for each append.
func (r *room) check() {
	bound := r.cfg.MaxUnsyncedBytes
	r.left = bound - r.cfg.Log.Unsynced().Bytes
	// If the whole log is small there is room, without further checks.
	mem, _ := r.cfg.Log.Bytes()
	if mem += r.flusher.unflushed.Load(); mem <= bound/2 {
		r.left = min(r.left, bound-mem)
	} else {
		r.left = r.in(r.backlog())
	}
	r.pub.overload.Store(r.left <= 0)
}

// in is how much more this member may take with a backlog; 0 or less: nothing.
//
// Without room a leader refuses proposals, and a follower drops appends, which raft takes for lost:
// it falls behind. A follower does not count uncommitted entries, which the leader bounds:
// otherwise two followers full of them could not take the one entry of a new leader's term that
// would commit them, and nothing would ever change. What remains shrinks by this member's own work;
// heartbeats tell it what is committed.
func (r *room) in(b backlog) int64 {
	held := b.held()
	if !r.raftLeads() {
		held -= b.uncommitted
	}
	return r.cfg.MaxUnsyncedBytes - max(held, b.unsynced)
}

// admit reports whether a message with entries is accepted, and counts it if so. An inbox may hold
// more than there is room for.
func (r *room) admit(m *raftpb.Message) bool {
	if r.left <= 0 {
		return false
	}
	r.left -= entryBytes(m)
	return true
}

// watch runs at each tick: it reports the backlog, and starts a flush of the store if that would
// make it smaller.
func (r *room) watch() {
	b := r.backlog()
	r.metrics.Held.Set(float64(b.held()))
	r.left = r.in(b)
	over := r.left <= 0
	r.pub.overload.Store(over)
	if b.unflushed >= r.cfg.MaxUnsyncedBytes/4 {
		r.flusher.wake()
	}
	if over {
		r.cfg.Evidence.Record(evidence.Event{Kind: evidence.Refusing, Value: max(b.held(), b.unsynced), Note: b.cause()})
	}
	if over == r.refusing {
		return
	}
	r.refusing = over
	fields := []zap.Field{
		zap.String("local-member-id", command.IDText(r.cfg.ID)), zap.Int64("bound-bytes", r.cfg.MaxUnsyncedBytes),
		zap.Int64("unsynced-bytes", b.unsynced), zap.Int64("unflushed-bytes", b.unflushed),
		zap.Int64("unapplied-bytes", b.unapplied), zap.Int64("uncommitted-bytes", b.uncommitted),
	}
	if over {
		r.metrics.Refusing.Set(1)
		r.logger.Warn("too much of the raft log waits in memory; new writes are refused", append(fields, zap.String("waits-for", b.cause()))...)
	} else {
		r.metrics.Refusing.Set(0)
		r.logger.Info("the raft log in memory is below its bound again; new writes are taken", fields...)
	}
}

package replica

import (
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/evidence"
)

// backlog is what this member holds of the log in memory and cannot drop, in bytes, by what
// it waits for. An entry is dropped when the store has its effect durably, so whatever
// does not get on, here or at the others, makes the log longer: each part is looked at, and
// Config.MaxUnsyncedBytes bounds them.
type backlog struct {
	unsynced    int64 // for the disk of the raft log
	unflushed   int64 // applied; for the disk of the store
	unapplied   int64 // committed; for the applier
	uncommitted int64 // for the disks of other members
}

// held is what the log holds above what the store has durably. What is unsynced is part of
// it, unless the store was flushed ahead of the log.
func (b backlog) held() int64 { return b.unflushed + b.unapplied + b.uncommitted }

// cause is what most of it waits for.
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

func (l *loop) backlog() backlog {
	log := l.cfg.Log
	flushed := l.pub.flushed.Load()
	applied := max(l.pub.applied.Load(), flushed)
	committed := max(l.pub.committed.Load(), applied)
	last, _ := log.LastIndex() // the log in memory cannot fail
	return backlog{
		unsynced:    log.Unsynced().Bytes,
		unflushed:   log.BytesBetween(flushed, applied),
		unapplied:   log.BytesBetween(applied, committed),
		uncommitted: log.BytesBetween(committed, last),
	}
}

// checkBacklog notes how much more of the log this member may take. It is called for each
// append.
func (l *loop) checkBacklog() {
	bound := l.cfg.MaxUnsyncedBytes
	l.room = bound - l.cfg.Log.Unsynced().Bytes
	// What the log holds altogether tells that there is room without looking further.
	if mem, _ := l.cfg.Log.Bytes(); mem <= bound/2 {
		l.room = min(l.room, bound-mem)
	} else {
		l.room = l.roomIn(l.backlog())
	}
	l.pub.overload.Store(l.room <= 0)
}

// roomIn is how much more this member may take with a backlog; 0 or less: nothing.
//
// A leader refuses proposals. A follower drops appends, which raft takes for lost: it is
// behind then. It does not count what is not committed, which the leader bounds. Else two
// followers that are full of it could not take the one entry of a new leader's term that
// would commit it, and nothing would ever change. What is left gets smaller by this
// member's own work alone; that it may, is said by heartbeats.
func (l *loop) roomIn(b backlog) int64 {
	held := b.held()
	if l.node.BasicStatus().RaftState != raft.StateLeader {
		held -= b.uncommitted
	}
	return l.cfg.MaxUnsyncedBytes - max(held, b.unsynced)
}

// admit says whether a message with entries is taken, and counts it if so. An inbox holds
// more than there may be room for.
func (l *loop) admit(m *raftpb.Message) bool {
	if l.room <= 0 {
		return false
	}
	l.room -= entryBytes(m)
	return true
}

// watchBacklog runs at each tick: it tells of the backlog, and has the store flushed if that
// is what would make it smaller.
func (l *loop) watchBacklog() {
	b := l.backlog()
	l.metrics.Held.Set(float64(b.held()))
	l.room = l.roomIn(b)
	over := l.room <= 0
	l.pub.overload.Store(over)
	if b.unflushed >= l.cfg.MaxUnsyncedBytes/4 {
		l.flusher.wake()
	}
	if over {
		l.cfg.Evidence.Record(evidence.Event{Kind: evidence.Refusing, Value: max(b.held(), b.unsynced), Note: b.cause()})
	}
	if over == l.refusing {
		return
	}
	l.refusing = over
	fields := []zap.Field{
		zap.String("local-member-id", idText(l.cfg.ID)), zap.Int64("bound-bytes", l.cfg.MaxUnsyncedBytes),
		zap.Int64("unsynced-bytes", b.unsynced), zap.Int64("unflushed-bytes", b.unflushed),
		zap.Int64("unapplied-bytes", b.unapplied), zap.Int64("uncommitted-bytes", b.uncommitted),
	}
	if over {
		l.metrics.Refusing.Set(1)
		l.logger.Warn("too much of the raft log waits in memory; new writes are refused", append(fields, zap.String("waits-for", b.cause()))...)
	} else {
		l.metrics.Refusing.Set(0)
		l.logger.Info("the raft log in memory is below its bound again; new writes are taken", fields...)
	}
}

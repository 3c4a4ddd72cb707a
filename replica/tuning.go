package replica

import (
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/evidence"
)

// # Timeouts that follow the network
//
// Raft counts ticks, and the counts of a RawNode are fixed; so what is tuned is the length of a
// tick of raft. The loop keeps ticking at Config.TickInterval, for the disk watch, waiting reads
// and heartbeats: a leader whose raft ticks more slowly is made to send its heartbeats at the old
// pace all the same (MsgBeat), for the more come, the fewer can be lost in a row. So what a member
// chooses changes when it loses patience, with its leader (election timeout) or with its followers
// (CheckQuorum), and nothing that others see of it. Members that have chosen differently work
// together: the impatient one asks for pre-votes, which the patient ones refuse while they hear
// from the leader. No read depends on it (ReadOnlySafe).
//
// The way not taken: raft ticks of another length for heartbeats too. Then a
// patient leader would beat too rarely for impatient followers.

// RoundTrips are measured by the owner of the connections.
type RoundTrips interface {
	// RoundTrip is how long one to a member takes, mostly, and at worst (the third
	// longest of the last minute); not ok: not known. It must not block.
	RoundTrip(id uint64) (median, tail time.Duration, ok bool)
}

const (
	// maxElectionTimeout bounds a tuned election timeout. Longer ones are left to the flag: the
	// failure of a leader goes unnoticed that long.
	maxElectionTimeout = 5 * time.Second
	timeoutStep        = 250 * time.Millisecond
	// An election timeout is the configured one plus so many round trips and gaps.
	timeoutFactor = 3
	// lowerAfter is how long a shorter timeout must have been enough.
	lowerAfter   = 2 * time.Minute
	retuneEvery  = time.Second
	worstGapLife = 2 * time.Minute
)

// timeouts chooses this member's election timeout. Its methods are pure; the loop calls
// all of them.
type timeouts struct {
	auto    bool
	base    time.Duration // the configured election timeout: the least
	current time.Duration // 0: base

	tuned   time.Time
	lower   time.Duration // the longest that was wanted since lowerAt
	lowerAt time.Time

	// The longest times between two messages of one leader in one term, the
	// longest first, with their times. The third counts: twice may be an accident.
	gaps [3]gap

	credit time.Duration // of raft's next tick
}

type gap struct {
	took time.Duration
	at   time.Time
}

// observeGap notes a time without a word from the leader, after which it spoke.
func (t *timeouts) observeGap(now time.Time, took time.Duration) {
	for i := range t.gaps {
		if now.Sub(t.gaps[i].at) >= worstGapLife {
			t.gaps[i] = gap{}
		}
		if took > t.gaps[i].took {
			copy(t.gaps[i+1:], t.gaps[i:])
			t.gaps[i] = gap{took, now}
			return
		}
	}
}

func (t *timeouts) worstGap(now time.Time) time.Duration {
	if g := t.gaps[len(t.gaps)-1]; now.Sub(g.at) < worstGapLife {
		return g.took
	}
	return 0
}

// want is the election timeout for a round trip (the tail of it) and a gap
// between heartbeats, in whole steps.
func (t *timeouts) want(roundTrip, gap, heartbeat time.Duration) time.Duration {
	extra := max(roundTrip, gap-heartbeat)
	// On a local network the base is ample: etcd's advice is ten round trips.
	if timeoutFactor*extra < t.base/2 {
		return t.base
	}
	want := t.base + timeoutFactor*extra
	want = (want + timeoutStep - 1) / timeoutStep * timeoutStep
	return max(t.base, min(want, maxElectionTimeout))
}

// choose follows want: up at once, down when less has been enough for long.
func (t *timeouts) choose(now time.Time, want time.Duration) (changed bool) {
	if t.current == 0 {
		t.current = t.base
	}
	if want > t.current {
		t.current, t.lower, t.lowerAt = want, 0, now
		return true
	}
	if t.lowerAt.IsZero() {
		t.lowerAt = now
	}
	t.lower = max(t.lower, want)
	if now.Sub(t.lowerAt) < lowerAfter {
		return false
	}
	changed = t.lower < t.current
	t.current, t.lower, t.lowerAt = max(t.lower, t.base), 0, now
	return changed
}

// election is the election timeout as it is now.
func (t *timeouts) election() time.Duration {
	if t.current == 0 {
		return t.base
	}
	return t.current
}

// heartbeat is called when the leader speaks after took, where heartbeats leave at each
// interval; since inTime this loop's ticks come in time.
func (t *timeouts) heartbeat(now time.Time, took, interval time.Duration, inTime time.Time) {
	// While this loop stood still nothing could come in.
	if !t.auto || took <= 2*interval || inTime.After(now.Add(-took)) {
		return
	}
	t.observeGap(now, took)
}

// tickRaft is called at each tick: it gives raft its own, if it is time.
func (l *loop) tickRaft(now time.Time) {
	t := &l.timeouts
	if !t.auto {
		l.node.Tick()
		return
	}
	if now.Sub(t.tuned) >= retuneEvery {
		t.tuned = now
		l.tune(now)
	}
	t.credit += l.cfg.TickInterval
	each := t.election() / time.Duration(l.cfg.ElectionTicks)
	if t.credit >= each {
		t.credit = min(t.credit-each, each)
		l.node.Tick()
		return
	}
	if l.raftLeads() {
		// The leader's clock pauses for this tick, but its heartbeat is sent. A local message needs
		// a local sender.
		_ = l.node.Step(&raftpb.Message{Type: raftpb.MsgBeat.Enum(), From: new(raft.LocalAppendThread)})
	}
}

func (l *loop) tune(now time.Time) {
	t := &l.timeouts
	want := t.want(l.roundTrip(), t.worstGap(now), l.cfg.TickInterval)
	before := t.election()
	if t.choose(now, want) {
		l.metrics.ElectionTimeout.Set(t.current.Seconds())
		l.cfg.Evidence.Record(evidence.Event{Kind: evidence.Timeouts, Took: t.current})
		l.logger.Info("the election timeout follows the measured round trips",
			zap.String("local-member-id", command.IDText(l.cfg.ID)), zap.Duration("election-timeout", t.current), zap.Duration("was", before),
			zap.Duration("round-trip", l.roundTrip()), zap.Duration("longest-gap-between-heartbeats", t.worstGap(now)),
			zap.Duration("configured", t.base))
	}
	l.pub.electionNow.Store(int64(t.current))
}

// roundTrip is the one that counts: to the leader, and for a leader or a member
// that would lead, to the nearest members that make a quorum with it.
func (l *loop) roundTrip() time.Duration {
	if l.cfg.RoundTrips == nil {
		return 0
	}
	voters := l.voters()
	var tails []time.Duration
	toLeader := time.Duration(0)
	for _, id := range voters {
		if id == l.cfg.ID {
			continue
		}
		_, tail, ok := l.cfg.RoundTrips.RoundTrip(id)
		if !ok {
			continue
		}
		if id == l.leader {
			toLeader = tail
		}
		at := len(tails)
		for at > 0 && tails[at-1] > tail {
			at--
		}
		tails = append(tails, 0)
		copy(tails[at+1:], tails[at:])
		tails[at] = tail
	}
	others := len(voters) / 2 // besides this member
	if others == 0 || len(tails) < others {
		return toLeader
	}
	return max(toLeader, tails[others-1])
}

// ElectionTimeout is this member's, as tuned by now.
func (r *Replica) ElectionTimeout() time.Duration {
	if d := r.pub.electionNow.Load(); d > 0 {
		return time.Duration(d)
	}
	return r.cfg.electionTimeout()
}

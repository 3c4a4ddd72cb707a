package replica

import (
	"fmt"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/evidence"
	"github.com/belaydb/belay/peers"
)

// What the loop records of itself (package evidence). It is called from the loop and
// allocates nothing, but where the leader changes.

const (
	// recordLateTick: a tick that comes so late is worth an event.
	recordLateTick = 100 * time.Millisecond
	// recordBacklog and recordQueue: entries not applied, bytes in the inbox.
	recordBacklog = 5000
	recordQueue   = 32 << 20
	// standstill: a tick that comes so late tells that this process did not run, and
	// what it measured meanwhile says nothing of anything else.
	standstill = 500 * time.Millisecond
)

// leadership is what the loop keeps to say why the leader changed.
type leadership struct {
	heard    time.Time     // the leader's last message; or when it became the leader
	from     uint64        // whose that was
	inTime   time.Time     // since when the loop's own ticks come in time
	ran      time.Time     // since when the loop has not stood still
	campaign time.Duration // nothing had come from the leader for so long when this member last asked for votes
	// askedBy asked us to campaign (MsgTimeoutNow), and higher spoke in a higher
	// term, since the last change.
	askedBy    uint64
	left       uint64 // stepped down without a quorum and named this member
	higher     uint64
	higherType raftpb.MessageType
}

// recordTick is called at each tick, before raft hears of it.
func (l *loop) recordTick(now time.Time) {
	late := time.Duration(0)
	if !l.lastTick.IsZero() {
		late = max(0, now.Sub(l.lastTick)-l.cfg.TickInterval)
	}
	if late >= recordLateTick {
		l.cfg.Evidence.Record(evidence.Event{Kind: evidence.LateTick, Took: late})
	}
	lead := &l.leadership
	// While the loop stood still it could hear nobody.
	if late >= l.cfg.TickInterval/2 || lead.inTime.IsZero() {
		lead.inTime = now
	}
	if late >= standstill || lead.ran.IsZero() {
		lead.ran = now
	}
	if l.leader != raft.None && l.leader != l.cfg.ID && lead.from == l.leader {
		since := lead.heard
		if since.Before(lead.inTime) {
			since = lead.inTime
		}
		if silent := now.Sub(since); silent >= l.timeouts.election(l)/2 {
			l.cfg.Evidence.Record(evidence.Event{Kind: evidence.LateHeartbeat, Peer: l.leader, Took: now.Sub(lead.heard)})
		}
	}
	if n := l.pub.committed.Load() - min(l.pub.applied.Load(), l.pub.committed.Load()); n >= recordBacklog {
		l.cfg.Evidence.Record(evidence.Event{Kind: evidence.Backlog, Value: int64(n)})
	}
	if waiting := l.inbox.queued(); waiting >= recordQueue {
		l.cfg.Evidence.Record(evidence.Event{Kind: evidence.Queue, Value: waiting})
	}
}

// recordMessage is called for each message of a peer, before raft has it.
func (l *loop) recordMessage(m *raftpb.Message, now time.Time) {
	lead := &l.leadership
	from := m.GetFrom()
	switch m.GetType() {
	case raftpb.MsgApp, raftpb.MsgHeartbeat, raftpb.MsgSnap:
		if m.GetTerm() >= l.term {
			if from == l.leader && lead.from == from && m.GetTerm() == l.term {
				l.timeouts.heartbeat(l, now, now.Sub(lead.heard))
			}
			lead.heard, lead.from = now, from
		}
	case raftpb.MsgTimeoutNow:
		if string(m.GetContext()) == peers.ContextQuorum {
			lead.left = from
		} else {
			lead.askedBy = from
		}
	}
	if m.GetTerm() > l.term && m.GetType() != raftpb.MsgPreVote && m.GetType() != raftpb.MsgPreVoteResp && !raft.IsLocalMsgTarget(from) {
		lead.higher, lead.higherType = from, m.GetType()
	}
}

// recordState is called when the leader, the term or this member's role changed.
func (l *loop) recordState(was raft.StateType, previous uint64, now time.Time) {
	r, lead := l.cfg.Evidence, &l.leadership
	silent := time.Duration(0)
	if !lead.heard.IsZero() && lead.from != raft.None {
		silent = now.Sub(lead.heard)
	}
	switch {
	case l.state == raft.StatePreCandidate && was != raft.StatePreCandidate, l.state == raft.StateCandidate && was == raft.StateFollower:
		if previous == raft.None {
			previous = l.lastLeader
		}
		lead.campaign = silent
		if lead.askedBy == raft.None && lead.left == raft.None && l.lastLeader != raft.None {
			r.Record(evidence.Event{Kind: evidence.Campaign, Peer: l.lastLeader, Took: silent, Term: l.term})
		}
	}
	if was == raft.StateLeader && l.state != raft.StateLeader {
		e := evidence.Event{Kind: evidence.SteppedDown, Peer: lead.higher, Term: l.term, Note: "too few members answered for an election timeout"}
		switch t := l.disk.transfer; {
		case t != nil:
			e.Note = "it handed over, reason: " + t.reason
		case lead.higher != raft.None:
			e.Note = fmt.Sprintf("%x spoke in a higher term (%s)", lead.higher, lead.higherType)
		}
		r.Record(e)
	}
	if l.leader == previous {
		return
	}
	switch l.leader {
	case raft.None:
		if was != raft.StateLeader {
			r.Record(evidence.Event{Kind: evidence.LostLeader, Peer: previous, Took: silent, Term: l.term})
		}
		return
	case l.cfg.ID:
		e := evidence.Event{Kind: evidence.Elected, Peer: l.lastLeader, Took: lead.campaign, Term: l.term, Note: "no leader was known"}
		switch {
		case lead.askedBy != raft.None:
			e.Note = fmt.Sprintf("%s by %x", evidence.AskedToLead, lead.askedBy)
		case lead.left != raft.None:
			e.Note = fmt.Sprintf("%x had stepped down because too few members answered it", lead.left)
		case l.lastLeader == l.cfg.ID:
			e.Note = "it had lost its quorum and found it again"
		case l.lastLeader != raft.None:
			e.Note = fmt.Sprintf("nothing had come from %x for %v", l.lastLeader, lead.campaign.Round(10*time.Millisecond))
		}
		r.Record(e)
	default:
		r.Record(evidence.Event{Kind: evidence.Followed, Peer: l.leader, Took: silent, Term: l.term})
	}
	lead.askedBy, lead.left, lead.higher = raft.None, raft.None, raft.None
	lead.heard, lead.from = now, l.leader
}

// recordDisk is called at each tick with what the disk watch saw.
func (l *loop) recordDisk(before, state DiskState, s diskSample) {
	r := l.cfg.Evidence
	if state < before {
		r.Record(evidence.Event{Kind: evidence.DiskBetter, Note: state.String()})
	}
	took := max(s.oldest, s.took)
	if took < diskSlow {
		return
	}
	kind := evidence.DiskSlow
	switch {
	case state == DiskDead && s.oldest >= diskSlow:
		kind = evidence.DiskDead
	case state == DiskStalled && s.oldest >= diskSlow:
		kind = evidence.DiskStalled
	}
	r.Record(evidence.Event{Kind: kind, Took: took})
}

package replica

import (
	"fmt"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/evidence"
	"github.com/belaydb/belay/peers"
)

// What the loop records about itself (package evidence). It is called from the loop and allocates
// only when the leader changes.

const (
	// recordLateTick is how late a tick must be for an event.
	recordLateTick = 100 * time.Millisecond
	// recordBacklog and recordQueue: entries not applied, bytes in the inbox.
	recordBacklog = 5000
	recordQueue   = 32 << 20
	// standstill: a tick this late means that this process did not run, and its measurements from
	// that time say nothing about anything else.
	standstill = 500 * time.Millisecond
)

// recorder is what the loop keeps to say why the leader changed.
type recorder struct {
	*core
	inbox    *inbox
	timeouts *timeouts
	handOver *handOver

	heard    time.Time     // the leader's last message; or when it became the leader
	from     uint64        // whose that was
	inTime   time.Time     // since when the loop's own ticks come in time
	ran      time.Time     // since when the loop has not stood still
	campaign time.Duration // how long nothing had come from the leader when this member last asked for votes
	// askedBy asked us to campaign (MsgTimeoutNow), and higher spoke in a higher
	// term, since the last change.
	askedBy    uint64
	left       uint64 // stepped down without a quorum and named this member
	higher     uint64
	higherType raftpb.MessageType
}

// tick is called at each tick, before raft hears of it.
func (rec *recorder) tick(now time.Time, late time.Duration) {
	if late >= recordLateTick {
		rec.cfg.Evidence.Record(evidence.Event{Kind: evidence.LateTick, Took: late})
	}
	// While the loop did not run it could hear nobody.
	if late >= rec.cfg.TickInterval/2 || rec.inTime.IsZero() {
		rec.inTime = now
	}
	if late >= standstill || rec.ran.IsZero() {
		rec.ran = now
	}
	if rec.leader != raft.None && rec.leader != rec.cfg.ID && rec.from == rec.leader {
		since := rec.heard
		if since.Before(rec.inTime) {
			since = rec.inTime
		}
		if silent := now.Sub(since); silent >= rec.timeouts.election()/2 {
			rec.cfg.Evidence.Record(evidence.Event{Kind: evidence.LateHeartbeat, Peer: rec.leader, Took: now.Sub(rec.heard)})
		}
	}
	if n := rec.pub.committed.Load() - min(rec.pub.applied.Load(), rec.pub.committed.Load()); n >= recordBacklog {
		rec.cfg.Evidence.Record(evidence.Event{Kind: evidence.Backlog, Value: int64(n)})
	}
	if waiting := rec.inbox.queued(); waiting >= recordQueue {
		rec.cfg.Evidence.Record(evidence.Event{Kind: evidence.Queue, Value: waiting})
	}
}

// message is called for each message of a peer, before raft has it.
func (rec *recorder) message(m *raftpb.Message, now time.Time) {
	from := m.GetFrom()
	switch m.GetType() {
	case raftpb.MsgApp, raftpb.MsgHeartbeat, raftpb.MsgSnap:
		if m.GetTerm() >= rec.term {
			if from == rec.leader && rec.from == from && m.GetTerm() == rec.term {
				rec.timeouts.heartbeat(now, now.Sub(rec.heard), rec.cfg.TickInterval, rec.inTime)
			}
			rec.heard, rec.from = now, from
		}
	case raftpb.MsgTimeoutNow:
		if string(m.GetContext()) == peers.ContextQuorum {
			rec.left = from
		} else {
			rec.askedBy = from
		}
	}
	if m.GetTerm() > rec.term && m.GetType() != raftpb.MsgPreVote && m.GetType() != raftpb.MsgPreVoteResp && !raft.IsLocalMsgTarget(from) {
		rec.higher, rec.higherType = from, m.GetType()
	}
}

// roleChanged is called when the leader, the term or this member's role changed.
func (rec *recorder) roleChanged(was raft.StateType, previous uint64, now time.Time) {
	r := rec.cfg.Evidence
	silent := time.Duration(0)
	if !rec.heard.IsZero() && rec.from != raft.None {
		silent = now.Sub(rec.heard)
	}
	switch {
	case rec.state == raft.StatePreCandidate && was != raft.StatePreCandidate, rec.state == raft.StateCandidate && was == raft.StateFollower:
		if previous == raft.None {
			previous = rec.lastLeader
		}
		rec.campaign = silent
		if rec.askedBy == raft.None && rec.left == raft.None && rec.lastLeader != raft.None {
			r.Record(evidence.Event{Kind: evidence.Campaign, Peer: rec.lastLeader, Took: silent, Term: rec.term})
		}
	}
	if was == raft.StateLeader && rec.state != raft.StateLeader {
		e := evidence.Event{Kind: evidence.SteppedDown, Peer: rec.higher, Term: rec.term, Note: "too few members answered for an election timeout"}
		switch t := rec.handOver.transfer; {
		case t != nil:
			e.Note = "it handed over, reason: " + t.reason
		case rec.higher != raft.None:
			e.Note = fmt.Sprintf("%x spoke in a higher term (%s)", rec.higher, rec.higherType)
		}
		r.Record(e)
	}
	if rec.leader == previous {
		return
	}
	switch rec.leader {
	case raft.None:
		if was != raft.StateLeader {
			r.Record(evidence.Event{Kind: evidence.LostLeader, Peer: previous, Took: silent, Term: rec.term})
		}
		return
	case rec.cfg.ID:
		e := evidence.Event{Kind: evidence.Elected, Peer: rec.lastLeader, Took: rec.campaign, Term: rec.term, Note: "no leader was known"}
		switch {
		case rec.askedBy != raft.None:
			e.Note = fmt.Sprintf("%s by %x", evidence.AskedToLead, rec.askedBy)
		case rec.left != raft.None:
			e.Note = fmt.Sprintf("%x had stepped down because too few members answered it", rec.left)
		case rec.lastLeader == rec.cfg.ID:
			e.Note = "it had lost its quorum and found it again"
		case rec.lastLeader != raft.None:
			e.Note = fmt.Sprintf("nothing had come from %x for %v", rec.lastLeader, rec.campaign.Round(10*time.Millisecond))
		}
		r.Record(e)
	default:
		r.Record(evidence.Event{Kind: evidence.Followed, Peer: rec.leader, Took: silent, Term: rec.term})
	}
	rec.askedBy, rec.left, rec.higher = raft.None, raft.None, raft.None
	rec.heard, rec.from = now, rec.leader
}

// record is called at each tick with what the disk watch saw.
func (d *disks) record(before, state DiskState, s diskSample) {
	r := d.cfg.Evidence
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

package replica

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/evidence"
	"github.com/belaydb/belay/peers"
)

// defaultDiskStallHandOver is Config.DiskStallHandOver's default. A group that begins a segment
// takes two syncs, of the file and of the directory: with syncs of 2.14 s, which should cause no
// hand-over, that is 4.28 s without progress.
const defaultDiskStallHandOver = 5 * time.Second

const (
	// diskAskInterval is how often a leader whose disk is in doubt asks the others.
	diskAskInterval = 500 * time.Millisecond
	// slowTransfer: the transfer to a member that has not got the log by then is given up, so that
	// writes no longer wait for it. Not that of a leader that stops: without another leader they
	// would wait for an election, and those that were forwarded to it would be lost.
	slowTransfer = 300 * time.Millisecond
)

// handOver is leadership on its way from this member to another: the decision, and the
// transfer by which raft carries it out.
type handOver struct {
	*core
	disks *disks

	reports map[uint64]toldReport // what the others said of their disks
	asked   time.Time             // when they were asked last
	why     noHandOver            // this leader's disk has stalled and it leads on; as last logged
	whyNot  time.Time             // since when there is such a reason; zero: there is none
	// transfer is the one under way, whoever began it; nil: none. It is set while raft has a
	// transferee, and on until the new leader is known or nobody leads for too long.
	transfer *transfer
	// leaves: this member stops, and proposes nothing until another one leads or HandOver ends. Raft
	// takes proposals again when it gives a transfer up after an election timeout. By then the other
	// member may well have been asked to campaign, and be waiting for its disk: with entries that it
	// lacks nobody would vote for it, and there would be no leader at all.
	leaves bool
	// ends is where the log of this leader ended at the last ticks, the newest last; empty
	// where it does not lead.
	ends []logEnd
	// successor is whom this leader would ask to lead if it lost its quorum; 0: nobody.
	successor uint64
	// removalBegan is since when this leader tries to hand over because it is to be removed;
	// zero: it does not.
	removalBegan time.Time
}

// logEnd is the index with which the log ended at a time.
type logEnd struct {
	at    time.Time
	index uint64
}

// maxLogEnds is how many ticks handOver.ends goes back.
const maxLogEnds = 16

// noteEnd records where the log of a leader ends.
func (h *handOver) noteEnd(now time.Time, last uint64) {
	if len(h.ends) == maxLogEnds {
		h.ends = append(h.ends[:0], h.ends[1:]...)
	}
	h.ends = append(h.ends, logEnd{now, last})
}

// late is for how long the log has been longer than match.
func (h *handOver) late(now time.Time, match uint64) time.Duration {
	for _, end := range h.ends {
		if end.index > match {
			return now.Sub(end.at)
		}
	}
	return 0
}

type toldReport struct {
	DiskReport
	at time.Time
}

type transfer struct {
	to     uint64
	began  time.Time
	reason string
	ended  chan struct{} // closed when it has ended, one way or the other
}

// TellDisk takes a member's report about its disk. Any goroutine may call it.
func (r *Replica) TellDisk(id uint64, d DiskReport) {
	r.inbox.request(diskTold{id, d})
}

// diskTold is a member's report about its disk.
type diskTold struct {
	id     uint64
	report DiskReport
}

func (t diskTold) handle(l *loop) {
	// What it answered before it began to leave may come late.
	if l.handOver.leaving(t.id, time.Now()) && !t.report.Leaving {
		return
	}
	l.handOver.reports[t.id] = toldReport{t.report, time.Now()}
}

// leaving reports whether a member has said that it stops, and has not come back since.
func (h *handOver) leaving(id uint64, now time.Time) bool {
	told := h.reports[id]
	return told.Leaving && now.Sub(told.at) < diskReportLife && !h.cfg.Network.ActiveSince(id).After(told.at)
}

// peerViews are the other voters, and how many vote in all. With a joint
// configuration there are none: leadership stays until it is over.
func (h *handOver) peerViews(now time.Time) (others []peerView, voters int) {
	config := h.node.Status().Config
	if len(config.Voters[1]) > 0 {
		return nil, 0
	}
	first, _ := h.cfg.Log.FirstIndex()
	h.node.WithProgress(func(id uint64, kind raft.ProgressType, p tracker.Progress) {
		if kind != raft.ProgressTypePeer {
			return
		}
		voters++
		if id == h.cfg.ID {
			return
		}
		v := peerView{id: id, match: p.Match}
		v.active = p.RecentActive && p.State != tracker.StateSnapshot && p.Match+1 >= first && !h.cfg.Network.ActiveSince(id).IsZero()
		if told, ok := h.reports[id]; ok && now.Sub(told.at) < diskReportLife {
			v.report, v.known = told.DiskReport, true
			v.active = v.active && !h.leaving(id, now)
		}
		v.behind = h.cfg.Log.BytesAfter(p.Match)
		v.late = h.late(now, p.Match)
		if h.cfg.RoundTrips != nil {
			if median, _, ok := h.cfg.RoundTrips.RoundTrip(id); ok {
				v.late = max(0, v.late-median)
			}
		}
		others = append(others, v)
	})
	return others, voters
}

// The reasons under which belay_handovers_total counts.
const (
	reasonDisk    = "disk" // of the raft log
	reasonStore   = "store"
	reasonStop    = "stop"
	reasonRequest = "request"
	reasonRemoval = "removal" // this leader is to be removed
)

func (h *handOver) begin(now time.Time, to uint64, reason string) {
	if h.transfer != nil {
		close(h.transfer.ended) // raft drops it
	}
	h.transfer = &transfer{to: to, began: now, reason: reason, ended: make(chan struct{})}
	h.cfg.Evidence.Record(evidence.Event{Kind: evidence.HandOver, Peer: to, Note: reason})
	h.node.TransferLeader(to)
}

// watchTransfer makes sure that a transfer ends, one way or the other. Raft itself gives up after
// an election timeout.
func (h *handOver) watchTransfer(now time.Time) {
	t := h.transfer
	if t == nil {
		return
	}
	status := h.node.BasicStatus()
	if status.RaftState != raft.StateLeader {
		// It was accepted. leaderChanged sees the new leader.
		if now.Sub(t.began) > 2*h.cfg.electionTimeout() {
			h.transferFailed(now)
		}
		return
	}
	if status.LeadTransferee != t.to {
		h.transferFailed(now)
		return
	}
	if now.Sub(t.began) < slowTransfer || t.reason == reasonRequest || t.reason == reasonStop {
		return
	}
	last := h.lastIndex()
	if p, ok := h.node.Status().Progress[t.to]; ok && p.Match < last {
		// It was not told to campaign yet, so it will not: a transfer to ourselves makes raft drop
		// the one to another member.
		h.node.TransferLeader(h.cfg.ID)
		h.transferFailed(now)
	}
}

func (h *handOver) transferFailed(now time.Time) {
	t := h.transfer
	h.transfer = nil
	defer close(t.ended)
	h.disks.log.failed(now, t.to)
	if t.reason == reasonRequest {
		return // the caller gets the error
	}
	h.logger.Warn("leadership was not handed over: the other member did not take it in time",
		zap.String("local-member-id", command.IDText(h.cfg.ID)), zap.String("transferee-member-id", command.IDText(t.to)),
		zap.String("reason", t.reason), zap.Duration("took", now.Sub(t.began)))
}

// leaderChanged is called when the leader is another than before, or none.
// before is who led last, of those known.
func (h *handOver) leaderChanged(now time.Time, before uint64) {
	w := &h.disks.log
	if h.leader != raft.None {
		h.removalBegan, h.leaves = time.Time{}, false
	}
	if h.leader == h.cfg.ID {
		w.calmed()
		h.why = ""
		if before != raft.None && before != h.cfg.ID {
			w.previous, w.previousEnd = before, now
		}
	}
	t := h.transfer
	if t == nil || h.leader == raft.None || h.leader == h.cfg.ID {
		return
	}
	h.transfer = nil
	close(t.ended)
	if t.reason == reasonDisk || t.reason == reasonStore {
		w.handedOver = now
	}
	h.metrics.HandOvers.WithLabelValues(t.reason).Inc()
	h.logger.Info("leadership was handed over",
		zap.String("local-member-id", command.IDText(h.cfg.ID)), zap.String("new-leader-member-id", command.IDText(h.leader)),
		zap.String("transferee-member-id", command.IDText(t.to)), zap.String("reason", t.reason), zap.Duration("took", now.Sub(t.began)))
}

// noteSuccessor keeps which other voter has most of the log, for nameSuccessor: when raft
// has stepped down it has forgotten.
func (h *handOver) noteSuccessor() {
	h.successor = raft.None
	var match uint64
	h.node.WithProgress(func(id uint64, kind raft.ProgressType, p tracker.Progress) {
		if kind != raft.ProgressTypePeer || id == h.cfg.ID || p.Match < match {
			return
		}
		told := h.reports[id]
		if h.leaving(id, time.Now()) || max(told.State, told.Store) >= DiskStalled && time.Since(told.at) < diskReportLife {
			return // its vote would wait, or its clients; or it is about to go
		}
		if p.Match > match || h.successor == raft.None {
			h.successor, match = id, p.Match
		}
	})
}

// nameSuccessor names another leader after this one has stepped down because too few members
// answered it. Where only what is sent to it is lost, the others have heard its heartbeats up to
// now and would begin to wait for an election timeout. It promises nothing, so the disk is not
// waited for; where the message is lost too, the others elect a leader as they would have.
func (h *handOver) nameSuccessor() {
	if h.successor == raft.None {
		return
	}
	h.logger.Info("too few members answered this leader, so it stepped down; another is asked to lead",
		zap.String("local-member-id", command.IDText(h.cfg.ID)), zap.String("transferee-member-id", command.IDText(h.successor)))
	h.cfg.Network.Send([]*raftpb.Message{{
		Type: raftpb.MsgTimeoutNow.Enum(), From: new(h.cfg.ID), To: new(h.successor), Term: new(h.term), Context: []byte(peers.ContextQuorum),
	}})
	h.successor = raft.None
}

// HandOver gives leadership to the member that is best placed to lead: the one with most of the log
// and a healthy disk. It returns once another member leads, be it that one or not; one that does not
// take it in an election timeout is not waited for, and the next best is asked. A member that
// stops calls it so that nobody waits for an election timeout. ErrBadLeaderTransferee: there is none.
func (r *Replica) HandOver(ctx context.Context) (to uint64, err error) {
	defer r.inbox.request(stays{})
	for {
		if to, err = (&successorRequest{}).run(ctx, r); err != nil {
			return 0, err
		}
		q := &transferRequest{to: to, reason: reasonStop}
		if err = q.run(ctx, r); !errors.Is(err, errNotTaken) {
			return to, err
		}
	}
}

// stays ends handOver.leaves: whoever leads goes on.
type stays struct{}

func (stays) handle(l *loop) {
	if l.handOver.leaves {
		l.handOver.leaves = false
		l.pending.retry()
	}
}

// successorRequest asks which member is best placed to lead.
type successorRequest struct {
	since    time.Time // when the members were asked for their disks
	id       uint64    // none: nobody
	answered bool      // it has told of its disk since then
}

// run asks the members for their disks, and returns the one that is best placed to lead.
func (q *successorRequest) run(ctx context.Context, r *Replica) (to uint64, err error) {
	q.since = time.Now()
	if r.cfg.PeerDisks != nil {
		r.cfg.PeerDisks.AskDisks(slices.DeleteFunc(slices.Clone(*r.pub.voters.Load()), func(id uint64) bool { return id == r.cfg.ID }))
		select {
		case <-time.After(r.cfg.TickInterval):
		case <-ctx.Done():
		}
	}
	// One that has answered now does not sleep. And at each election timeout raft briefly forgets
	// which followers are active: it knows again after the next heartbeats.
	missing := func(try int) bool {
		return to == raft.None && try <= activeTries || r.cfg.PeerDisks != nil && !q.answered && try <= answerTries
	}
	for try := 0; err == nil && missing(try); try++ {
		if try > 0 {
			select {
			case <-time.After(r.cfg.TickInterval):
			case <-ctx.Done():
				return 0, ErrBadLeaderTransferee
			}
		}
		if err = r.inbox.ask(ctx, r.stopped, q); err == nil {
			to = q.id
		}
	}
	if err == nil && to == raft.None {
		err = ErrBadLeaderTransferee
	}
	return to, err
}

func (q *successorRequest) handle(l *loop) { q.id, q.answered = l.handOver.best(q.since) }

// activeTries and answerTries are how many heartbeats a leader that stops waits for a member that
// could lead, and for one that answers besides. An etcd answers no question about its disk.
const activeTries, answerTries = 5, 2

// best is the member that is best placed to lead, of those that answer and whose disk does well;
// none: there is nobody. One that has told of its disk since a moment is preferred: what it told
// before says nothing about now.
func (h *handOver) best(since time.Time) (to uint64, answered bool) {
	peers, _ := h.peerViews(time.Now())
	told := func(p *peerView) bool { return p.known && !h.reports[p.id].at.Before(since) }
	var best *peerView
	for i := range peers {
		p := &peers[i]
		if !p.active || (p.known && max(p.report.State, p.report.Store) >= DiskStalled) {
			continue
		}
		far := func(p *peerView) int {
			switch {
			case p.behind > maxTransfereeBehind:
				return 2
			case !told(p):
				return 1
			}
			return 0
		}
		if best == nil || far(p) < far(best) || (far(p) == far(best) && h.disks.log.better(time.Now(), p, best)) {
			best = p
		}
	}
	if best == nil {
		return raft.None, false
	}
	return best.id, told(best)
}

// notLeading runs at each tick of a member that does not lead.
func (h *handOver) notLeading() {
	h.disks.log.calmed()
	h.why, h.ends = "", h.ends[:0]
}

// watchDisks runs at each tick of a leader: it hands over if a disk of this member has
// stalled and another member can do better, or says why not.
func (h *handOver) watchDisks(now time.Time, log, store diskSample, unsynced int64) {
	w := &h.disks.log
	if log.oldest < diskSlow/2 && w.state == DiskHealthy && store.oldest < diskSlow {
		w.calmed()
		return
	}
	if h.cfg.PeerDisks != nil && now.Sub(h.asked) >= diskAskInterval {
		h.asked = now
		var ids []uint64
		for _, id := range h.voters() {
			if id != h.cfg.ID {
				ids = append(ids, id)
			}
		}
		h.cfg.PeerDisks.AskDisks(ids)
	}
	if h.transfer != nil {
		return
	}
	to, reason, why := h.stalled(now, log, store)
	if to != raft.None {
		h.logger.Warn("the disk of this leader has stalled; handing leadership over",
			zap.String("local-member-id", command.IDText(h.cfg.ID)), zap.String("transferee-member-id", command.IDText(to)), zap.String("of", reason),
			zap.Duration("oldest-sync", log.oldest), zap.Duration("oldest-work-of-store", store.oldest), zap.Int64("unsynced-bytes", unsynced))
		h.begin(now, to, reason)
		return
	}
	// Not at once: at each election timeout raft briefly forgets which followers are active.
	if why == "" {
		h.whyNot = time.Time{}
	} else if h.whyNot.IsZero() {
		h.whyNot = now
	}
	if why != "" && now.Sub(h.whyNot) < h.cfg.electionTimeout() {
		return
	}
	if why != "" && why != h.why {
		h.logger.Warn("the disk of this leader has stalled, but it goes on leading",
			zap.String("local-member-id", command.IDText(h.cfg.ID)), zap.Duration("oldest-sync", log.oldest),
			zap.Duration("oldest-work-of-store", store.oldest), zap.String("reason", string(why)))
	}
	if why != "" || max(log.oldest, store.oldest) < diskSlow {
		h.why = why
	}
}

// stalled returns the member that a leader should hand over to now because of its disks, and the
// reason; 0: none, and why not if that is to be logged.
func (h *handOver) stalled(now time.Time, log, store diskSample) (to uint64, reason string, why noHandOver) {
	w := &h.disks.log
	peers, voters := h.peerViews(now)
	if log.oldest >= diskSlow || store.oldest < diskSlow {
		last := h.lastIndex()
		to, why = w.decide(now, log, last, voters, peers)
		return to, reasonDisk, why
	}
	to, why = w.decideStore(now, store, h.pub.committed.Load(), voters, peers)
	return to, reasonStore, why
}

// TransferLeader hands leadership to a voter and returns once it leads. No election timeout passes.
// Errors: ErrNotLeader, ErrBadLeaderTransferee (not a voter), ErrTimeoutLeaderTransfer.
func (r *Replica) TransferLeader(ctx context.Context, to uint64) error {
	return (&transferRequest{to: to, reason: reasonRequest}).run(ctx, r)
}

// transferRequest has leadership moved to a voter.
type transferRequest struct {
	to     uint64
	reason string
	err    error // ErrNotLeader or ErrBadLeaderTransferee: nothing was begun
	// ended is closed when the transfer has ended; nil: none was begun.
	ended chan struct{}
}

// errNotTaken: a leader that stops leads on, since the member that it asked did not take leadership.
var errNotTaken = errors.New("replica: the other member did not take leadership")

// run asks the loop, and waits until the voter leads. To one that stops any other leader is as good,
// and it hears of a transfer that was given up: errNotTaken.
func (q *transferRequest) run(ctx context.Context, r *Replica) error {
	changed := r.LeaderChanged()
	if err := r.inbox.ask(ctx, r.stopped, q); err != nil {
		return err
	}
	if q.err != nil {
		return q.err
	}
	stops := q.reason == reasonStop
	for leader := r.Leader(); leader != q.to && (!stops || leader == raft.None || leader == r.cfg.ID); leader = r.Leader() {
		select {
		case <-changed:
			changed = r.LeaderChanged()
		case <-q.ended:
			if stops && r.IsLeader() {
				return errNotTaken
			}
			q.ended = nil
		case <-ctx.Done():
			return ErrTimeoutLeaderTransfer
		case <-r.stopped:
			return ErrStopped
		}
	}
	return nil
}

func (q *transferRequest) handle(l *loop) {
	status := l.node.Status()
	_, voter := status.Config.Voters.IDs()[q.to]
	switch {
	case status.RaftState != raft.StateLeader:
		q.err = ErrNotLeader
	case !voter:
		q.err = ErrBadLeaderTransferee
	case q.to != l.cfg.ID:
		l.handOver.begin(time.Now(), q.to, q.reason)
		q.ended = l.handOver.transfer.ended
		l.handOver.leaves = q.reason == reasonStop
	}
}

// removalTimeouts is for how many election timeouts a leader tries to hand over before
// it proposes its own removal itself.
const removalTimeouts = 2

// beforeRemoval hands leadership over, if this member has it, and reports whether that is under
// way: the change is then forwarded to the new leader, which proposes the removal of this member.
// The code that would propose the removal calls it repeatedly.
func (h *handOver) beforeRemoval(now time.Time) bool {
	status := h.node.BasicStatus()
	if status.RaftState != raft.StateLeader || len(h.voters()) == 1 {
		return false
	}
	if h.removalBegan.IsZero() || now.Sub(h.removalBegan) >= h.cfg.RequestTimeout {
		h.removalBegan = now
	}
	if now.Sub(h.removalBegan) >= removalTimeouts*h.cfg.electionTimeout() {
		h.logger.Warn("nobody took leadership over; this leader proposes its own removal", zap.String("local-member-id", command.IDText(h.cfg.ID)))
		if status.LeadTransferee != raft.None {
			h.node.TransferLeader(h.cfg.ID) // makes raft drop a transfer to another member
		}
		return false
	}
	h.forRemoval(now)
	return true
}

// forRemoval hands leadership over because of this member's removal, unless a transfer
// is under way.
func (h *handOver) forRemoval(now time.Time) {
	if h.transfer != nil || h.node.BasicStatus().LeadTransferee != raft.None {
		return
	}
	if to, _ := h.best(time.Time{}); to != raft.None {
		h.begin(now, to, reasonRemoval)
	}
}

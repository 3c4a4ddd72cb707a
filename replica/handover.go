package replica

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"go.uber.org/zap"

	"github.com/belaydb/belay/evidence"
	"github.com/belaydb/belay/peers"
)

// defaultDiskStallHandOver is Config.DiskStallHandOver's default. A group that
// begins a segment takes two syncs, of the file and of the directory: with syncs of
// 2.14 s, which should move nobody, that is 4.28 s without progress.
const defaultDiskStallHandOver = 5 * time.Second

const (
	// diskAskInterval is how often a leader whose disk is in doubt asks the others.
	diskAskInterval = 500 * time.Millisecond
	// slowTransfer: a transferee that has not got the log by then is given up, so
	// that writes wait no longer for it.
	slowTransfer = 300 * time.Millisecond
)

// diskLoop is what the raft loop keeps for the disk watch.
type diskLoop struct {
	watch   diskWatch
	store   diskWatch // its state alone; who is handed over to is for watch to say
	syncs   uint64    // ended, when last looked
	asked   time.Time
	reports map[uint64]toldReport
	why     noHandOver // as last logged
	whyNot  time.Time  // since when there is a reason not to hand over
	// transfer under way, made by the watch or by HandOver.
	transfer *transfer

	// Of the last append of the leader that was accepted.
	acceptedTerm, acceptedIndex uint64
	// truncated is the term in which entries of the log were last replaced.
	truncated uint64
	// acknowledged is the last term in which acknowledgeEarly did so.
	acknowledged uint64
	sample       diskSample // of the last tick
	// ends is where the log of this leader ended at the last ticks, the newest last.
	ends []logEnd
}

// logEnd says that the log ended with index at a time.
type logEnd struct {
	at    time.Time
	index uint64
}

// maxLogEnds is how many ticks diskLoop.ends goes back.
const maxLogEnds = 16

// noteEnd keeps where the log of a leader ends.
func (d *diskLoop) noteEnd(now time.Time, last uint64) {
	if len(d.ends) == maxLogEnds {
		d.ends = append(d.ends[:0], d.ends[1:]...)
	}
	d.ends = append(d.ends, logEnd{now, last})
}

// late is for how long the log has been longer than match.
func (d *diskLoop) late(now time.Time, match uint64) time.Duration {
	for _, end := range d.ends {
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
}

// TellDisk takes what a member said of its disk. Any goroutine.
func (r *Replica) TellDisk(id uint64, d DiskReport) {
	r.inbox.request(diskTold{id, d})
}

// diskTold is what a member said of its disk.
type diskTold struct {
	id     uint64
	report DiskReport
}

func (t diskTold) handle(l *loop) {
	if l.disk.reports == nil {
		l.disk.reports = make(map[uint64]toldReport)
	}
	l.disk.reports[t.id] = toldReport{t.report, time.Now()}
}

func idText(id uint64) string { return fmt.Sprintf("%x", id) }

// peerViews are the other voters, and how many vote in all. With a joint
// configuration there are none: leadership stays until it is over.
func (l *loop) peerViews(now time.Time) (peers []peerView, voters int) {
	config := l.node.Status().Config
	if len(config.Voters[1]) > 0 {
		return nil, 0
	}
	first, _ := l.cfg.Log.FirstIndex()
	l.node.WithProgress(func(id uint64, kind raft.ProgressType, p tracker.Progress) {
		if kind != raft.ProgressTypePeer {
			return
		}
		voters++
		if id == l.cfg.ID {
			return
		}
		v := peerView{id: id, match: p.Match}
		v.active = p.RecentActive && p.State != tracker.StateSnapshot && p.Match+1 >= first && !l.cfg.Network.ActiveSince(id).IsZero()
		if told, ok := l.disk.reports[id]; ok && now.Sub(told.at) < diskReportLife {
			v.report, v.known = told.DiskReport, true
		}
		v.behind = l.cfg.Log.BytesAfter(p.Match)
		v.late = l.disk.late(now, p.Match)
		if l.cfg.RoundTrips != nil {
			if median, _, ok := l.cfg.RoundTrips.RoundTrip(id); ok {
				v.late = max(0, v.late-median)
			}
		}
		peers = append(peers, v)
	})
	return peers, voters
}

// The reasons under which belay_handovers_total counts.
const (
	reasonDisk    = "disk" // of the raft log
	reasonStore   = "store"
	reasonStop    = "stop"
	reasonRequest = "request"
	reasonRemoval = "removal" // this leader is to be removed
)

func (l *loop) beginTransfer(now time.Time, to uint64, reason string) {
	l.disk.transfer = &transfer{to: to, began: now, reason: reason}
	l.cfg.Evidence.Record(evidence.Event{Kind: evidence.HandOver, Peer: to, Note: reason})
	l.node.TransferLeader(to)
}

// watchTransfer sees to it that a transfer ends, one way or the other. Raft
// itself gives up after an election timeout.
func (l *loop) watchTransfer(now time.Time) {
	t := l.disk.transfer
	if t == nil {
		return
	}
	status := l.node.BasicStatus()
	if status.RaftState != raft.StateLeader {
		// It was taken. Who leads now is seen by leaderChanged.
		if now.Sub(t.began) > 2*l.cfg.electionTimeout() {
			l.transferFailed(now)
		}
		return
	}
	if status.LeadTransferee != t.to {
		l.transferFailed(now)
		return
	}
	if now.Sub(t.began) < slowTransfer || t.reason == reasonRequest {
		return
	}
	last, _ := l.cfg.Log.LastIndex()
	if p, ok := l.node.Status().Progress[t.to]; ok && p.Match < last {
		// It was not told to campaign yet, so it will not: a transfer to ourselves
		// is how raft is told to drop the one to another.
		l.node.TransferLeader(l.cfg.ID)
		l.transferFailed(now)
	}
}

func (l *loop) transferFailed(now time.Time) {
	t := l.disk.transfer
	l.disk.transfer = nil
	l.disk.watch.failed(now, t.to)
	if t.reason == reasonRequest {
		return // who asked is told
	}
	l.logger.Warn("leadership was not handed over: the other member did not take it in time",
		zap.String("local-member-id", idText(l.cfg.ID)), zap.String("transferee-member-id", idText(t.to)),
		zap.String("reason", t.reason), zap.Duration("took", now.Sub(t.began)))
}

// leaderChanged is called when the leader is another than before, or none.
// before is who led last, of those known.
func (l *loop) leaderChanged(now time.Time, before uint64) {
	w := &l.disk.watch
	if l.leader != raft.None {
		l.yieldBegan = time.Time{}
	}
	if l.leader == l.cfg.ID {
		w.calmed()
		l.disk.why = ""
		if before != raft.None && before != l.cfg.ID {
			w.previous, w.previousEnd = before, now
		}
	}
	t := l.disk.transfer
	if t == nil || l.leader == raft.None || l.leader == l.cfg.ID {
		return
	}
	l.disk.transfer = nil
	if t.reason == reasonDisk || t.reason == reasonStore {
		w.handedOver = now
	}
	l.metrics.HandOvers.WithLabelValues(t.reason).Inc()
	l.logger.Info("leadership was handed over",
		zap.String("local-member-id", idText(l.cfg.ID)), zap.String("new-leader-member-id", idText(l.leader)),
		zap.String("transferee-member-id", idText(t.to)), zap.String("reason", t.reason), zap.Duration("took", now.Sub(t.began)))
}

// noteHeir keeps which other voter has most of the log, for bequeath: when raft
// has stepped down it has forgotten.
func (l *loop) noteHeir() {
	l.heir = raft.None
	var match uint64
	l.node.WithProgress(func(id uint64, kind raft.ProgressType, p tracker.Progress) {
		if kind != raft.ProgressTypePeer || id == l.cfg.ID || p.Match < match {
			return
		}
		if told := l.disk.reports[id]; max(told.State, told.Store) >= DiskStalled && time.Since(told.at) < diskReportLife {
			return // its vote would wait, or its clients
		}
		if p.Match > match || l.heir == raft.None {
			l.heir, match = id, p.Match
		}
	})
}

// bequeath names another leader after this one has stepped down because too few
// members answered it. Where only what is sent to it is lost, the others have
// heard its heartbeats up to now and would begin to wait for an election timeout.
// It promises nothing, so the disk is not waited for; where the message is lost
// too, the others elect a leader as they would have.
func (l *loop) bequeath() {
	if l.heir == raft.None {
		return
	}
	l.logger.Info("too few members answered this leader, so it stepped down; another is asked to lead",
		zap.String("local-member-id", idText(l.cfg.ID)), zap.String("transferee-member-id", idText(l.heir)))
	l.cfg.Network.Send([]*raftpb.Message{{
		Type: raftpb.MsgTimeoutNow.Enum(), From: new(l.cfg.ID), To: new(l.heir), Term: new(l.term), Context: []byte(peers.ContextQuorum),
	}})
	l.heir = raft.None
}

// HandOver gives leadership to the member that is best placed to lead: it has
// most of the log and its disk does well. It returns once that member leads. A
// member that stops calls it so that nobody waits for an election timeout.
// ErrBadLeaderTransferee: there is nobody.
func (r *Replica) HandOver(ctx context.Context) (to uint64, err error) {
	if r.cfg.PeerDisks != nil {
		r.cfg.PeerDisks.AskDisks(slices.DeleteFunc(slices.Clone(*r.pub.voters.Load()), func(id uint64) bool { return id == r.cfg.ID }))
		// Whoever has not answered by then counts as unknown.
		select {
		case <-time.After(r.cfg.TickInterval):
		case <-ctx.Done():
		}
	}
	// Raft forgets for a moment, at each election timeout, who is active: it knows after
	// the next heartbeats.
	for try := 0; err == nil && to == raft.None && try <= activeTries; try++ {
		if try > 0 {
			select {
			case <-time.After(r.cfg.TickInterval):
			case <-ctx.Done():
				return 0, ErrBadLeaderTransferee
			}
		}
		var q successorRequest
		if err = r.inbox.ask(ctx, r.stopped, &q); err == nil {
			to = q.id
		}
	}
	switch {
	case err != nil:
		return 0, err
	case to == raft.None:
		return 0, ErrBadLeaderTransferee
	}
	return to, r.transfer(ctx, to, reasonStop)
}

// successorRequest asks who is best placed to lead.
type successorRequest struct {
	id uint64 // none: nobody
}

func (q *successorRequest) handle(l *loop) { q.id = l.bestHeir() }

// activeTries is how many heartbeats a leader that stops waits for a member that
// could lead.
const activeTries = 5

// bestHeir is the member that is best placed to lead, of those that answer and
// whose disk does well; none: there is nobody.
func (l *loop) bestHeir() (to uint64) {
	peers, _ := l.peerViews(time.Now())
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
			case !p.known:
				return 1
			}
			return 0
		}
		if best == nil || far(p) < far(best) || (far(p) == far(best) && l.disk.watch.better(time.Now(), p, best)) {
			best = p
		}
	}
	if best != nil {
		to = best.id
	}
	return to
}

// handOverStalled says to whom a leader should hand over now because of its disks, and by
// which reason; 0: to nobody, and why not if that is to be told.
func (l *loop) handOverStalled(now time.Time, log, store diskSample) (to uint64, reason string, why noHandOver) {
	w := &l.disk.watch
	peers, voters := l.peerViews(now)
	if log.oldest >= diskSlow || store.oldest < diskSlow {
		last, _ := l.cfg.Log.LastIndex() // the log in memory cannot fail
		to, why = w.decide(now, log, last, voters, peers)
		return to, reasonDisk, why
	}
	to, why = w.decideStore(now, store, l.pub.committed.Load(), voters, peers)
	return to, reasonStore, why
}

// TransferLeader hands leadership to a voter and returns once it leads. No
// election timeout passes. Errors: ErrNotLeader, ErrBadLeaderTransferee (not a
// voter), ErrTimeoutLeaderTransfer.
func (r *Replica) TransferLeader(ctx context.Context, to uint64) error {
	return r.transfer(ctx, to, reasonRequest)
}

func (r *Replica) transfer(ctx context.Context, to uint64, reason string) error {
	changed := r.LeaderChanged()
	q := &transferRequest{to: to, reason: reason}
	if err := r.inbox.ask(ctx, r.stopped, q); err != nil {
		return err
	}
	if q.err != nil {
		return q.err
	}
	for r.Leader() != to {
		select {
		case <-changed:
			changed = r.LeaderChanged()
		case <-ctx.Done():
			return ErrTimeoutLeaderTransfer
		case <-r.stopped:
			return ErrStopped
		}
	}
	return nil
}

// transferRequest has leadership moved to a voter.
type transferRequest struct {
	to     uint64
	reason string
	err    error // ErrNotLeader or ErrBadLeaderTransferee: nothing was begun
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
		l.beginTransfer(time.Now(), q.to, q.reason)
	}
}

// yieldTimeouts is for how many election timeouts a leader tries to hand over before
// it proposes its own removal itself.
const yieldTimeouts = 2

// yields hands leadership over, if this member has it, and says whether that is
// under way: the successor, to whom the change is forwarded then, is to propose that
// this member is removed.
func (l *loop) yields(now time.Time) bool {
	status := l.node.BasicStatus()
	if status.RaftState != raft.StateLeader || len(*l.pub.voters.Load()) == 1 {
		return false
	}
	if l.yieldBegan.IsZero() || now.Sub(l.yieldBegan) >= l.cfg.RequestTimeout {
		l.yieldBegan = now
	}
	if now.Sub(l.yieldBegan) >= yieldTimeouts*l.cfg.electionTimeout() {
		l.logger.Warn("nobody took leadership over; this leader proposes its own removal", zap.String("local-member-id", idText(l.cfg.ID)))
		if status.LeadTransferee != raft.None {
			l.node.TransferLeader(l.cfg.ID) // which is how raft is told to drop one to another
		}
		return false
	}
	l.passOn(now)
	return true
}

// passOn hands leadership over because of this member's removal, unless a transfer
// is under way.
func (l *loop) passOn(now time.Time) {
	if l.disk.transfer != nil || l.node.BasicStatus().LeadTransferee != raft.None {
		return
	}
	if to := l.bestHeir(); to != raft.None {
		l.beginTransfer(now, to, reasonRemoval)
	}
}

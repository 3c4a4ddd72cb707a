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
	"github.com/belaydb/belay/raftlog"
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

// Disk says how this member's disk does.
func (r *Replica) Disk() DiskReport {
	if d := r.pub.diskReport.Load(); d != nil {
		return *d
	}
	return DiskReport{}
}

// CheckDisk returns what is wrong with the disk of the raft log, or with the store, when
// it has stalled for longer than a leader would go on leading.
func (r *Replica) CheckDisk() error {
	d := r.Disk()
	if d.State < DiskStalled {
		return d.checkStore()
	}
	return fmt.Errorf("the disk of the raft log is %s: no sync has ended for %v, %d bytes wait; replace the disk or the member if it stays so",
		d.State, d.Oldest.Round(100*time.Millisecond), d.UnsyncedBytes)
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

// sampleDisk reads how the log's disk does.
func (l *loop) sampleDisk() (diskSample, DiskReport) {
	stats, unsynced := l.cfg.Log.Stats(), l.cfg.Log.Unsynced()
	// The sync in flight tells most. But a writer that hangs in making a new
	// segment file has none, and is seen by what waits although no sync ends.
	oldest := unsynced.Oldest
	if stats.Syncs > 0 {
		oldest = min(oldest, stats.SinceLast)
	}
	if l.pub.installing.Load() {
		oldest = 0 // it waits for a snapshot to be installed
	}
	s := diskSample{oldest: max(oldest, stats.InFlight)}
	if stats.Syncs != l.disk.syncs {
		l.disk.syncs, s.took = stats.Syncs, stats.Last
	}
	return s, DiskReport{Oldest: s.oldest, Median: stats.Median, UnsyncedBytes: unsynced.Bytes}
}

// watchDisk runs at each tick.
func (l *loop) watchDisk(now time.Time) {
	s, report := l.sampleDisk()
	s = l.withoutStandstill(now, s)
	report.Oldest = s.oldest
	store := l.watchStore(now, &report)
	l.disk.sample = s
	w := &l.disk.watch
	since := w.since
	before := w.observe(now, s)
	if before != w.state {
		l.logDisk(before, s, report, now.Sub(since))
	}
	l.recordDisk(before, w.state, s)
	report.State = w.state
	l.pub.diskReport.Store(&report)
	l.metrics.disk(report, l.pub.committed.Load()-min(l.pub.applied.Load(), l.pub.committed.Load()))

	l.watchTransfer(now)
	if l.node.BasicStatus().RaftState != raft.StateLeader {
		w.calmed()
		l.disk.why, l.disk.ends = "", l.disk.ends[:0]
		l.lagging = time.Time{}
		clear(l.catching)
		l.flusher.hold.Store(false)
		l.releaseDisk()
		l.acknowledgeEarly(s)
		return
	}
	last, _ := l.cfg.Log.LastIndex() // the log in memory cannot fail
	l.disk.noteEnd(now, last)
	l.noteHeir()
	l.noteLagging(now)
	l.watchFeeds(now)
	l.holdDisk(now)
	if s.oldest < diskSlow/2 && w.state == DiskHealthy && store.oldest < diskSlow {
		w.calmed()
		return
	}
	if l.cfg.PeerDisks != nil && now.Sub(l.disk.asked) >= diskAskInterval {
		l.disk.asked = now
		var ids []uint64
		for _, id := range *l.pub.voters.Load() {
			if id != l.cfg.ID {
				ids = append(ids, id)
			}
		}
		l.cfg.PeerDisks.AskDisks(ids)
	}
	if l.disk.transfer != nil {
		return
	}
	to, reason, why := l.handOverStalled(now, s, store)
	if to != raft.None {
		l.logger.Warn("the disk of this leader has stalled; handing leadership over",
			zap.String("local-member-id", idText(l.cfg.ID)), zap.String("transferee-member-id", idText(to)), zap.String("of", reason),
			zap.Duration("oldest-sync", s.oldest), zap.Duration("oldest-work-of-store", store.oldest), zap.Int64("unsynced-bytes", report.UnsyncedBytes))
		l.beginTransfer(now, to, reason)
		return
	}
	// Not at once: raft forgets for a moment, at each election timeout, who is active.
	if why == "" {
		l.disk.whyNot = time.Time{}
	} else if l.disk.whyNot.IsZero() {
		l.disk.whyNot = now
	}
	if why != "" && now.Sub(l.disk.whyNot) < l.cfg.electionTimeout() {
		return
	}
	if why != "" && why != l.disk.why {
		l.logger.Warn("the disk of this leader has stalled, but it goes on leading",
			zap.String("local-member-id", idText(l.cfg.ID)), zap.Duration("oldest-sync", s.oldest),
			zap.Duration("oldest-work-of-store", store.oldest), zap.String("reason", string(why)))
	}
	if why != "" || max(s.oldest, store.oldest) < diskSlow {
		l.disk.why = why
	}
}

func idText(id uint64) string { return fmt.Sprintf("%x", id) }

func (l *loop) logDisk(before DiskState, s diskSample, report DiskReport, lasted time.Duration) {
	w := &l.disk.watch
	fields := []zap.Field{
		zap.String("local-member-id", idText(l.cfg.ID)),
		zap.Stringer("was", before), zap.Duration("was-for", lasted),
		zap.Duration("oldest-sync", s.oldest), zap.Duration("last-sync-took", s.took), zap.Duration("median-sync", report.Median),
		zap.Int64("unsynced-bytes", report.UnsyncedBytes),
	}
	if w.state < before {
		fields = append(fields, zap.Duration("worst", w.worst))
		if w.state == DiskHealthy {
			l.logger.Info("the disk of the raft log is healthy again", fields...)
			w.healthyAgain()
		} else {
			l.logger.Warn("the disk of the raft log does better but is still "+w.state.String(), fields...)
		}
		return
	}
	switch w.state {
	case DiskSlow:
		l.logger.Warn("the disk of the raft log is slow", append(fields,
			zap.String("advice", "nobody waits for it while a quorum of other disks is fast; find what else writes to this disk, or give the raft log its own with --wal-dir"))...)
	case DiskStalled:
		l.logger.Error("the disk of the raft log has stalled", append(fields,
			zap.String("advice", "this member promises nothing until its disk answers, and a leader hands over if another member can; look at the disk and at the kernel's log"))...)
	case DiskDead:
		l.logger.Error("the disk of the raft log does not answer any more", append(fields,
			zap.String("advice", "if it does not come back, remove this member and add a new one; the cluster has no disk to lose meanwhile unless it has five members"))...)
	}
}

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
	reasonDisk    = string(evidence.ForDisk)
	reasonStore   = string(evidence.ForStore)
	reasonStop    = string(evidence.ForStop)
	reasonRequest = string(evidence.ForRequest)
	reasonRemoval = string(evidence.ForRemoval)
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

// acknowledgeEarly tells the leader how much of its log this follower has on its
// disk, when a sync takes long. It says what raft's own answers to the last
// appends will say later, for a part of them: up to the lesser of what is
// durable and what matches the leader's log. So it promises nothing that is
// not durable.
//
// What it is for: a leader that has heard nothing yet of a follower, since it
// leads only since a moment ago, sends it one append and waits for the answer,
// which here waits for the disk. So a follower with a stalled disk would get
// nothing new, apply nothing, and its clients would wait: those of a leader
// that handed over because of its disk, say. Any answer makes raft stream.
func (l *loop) acknowledgeEarly(s diskSample) {
	if s.oldest < l.cfg.TickInterval || l.leader == raft.None || l.leader == l.cfg.ID {
		return
	}
	mark := l.pub.durable.Load()
	if mark == nil || mark.term < l.disk.truncated || l.disk.acceptedTerm != l.term {
		return
	}
	index := min(mark.index, l.disk.acceptedIndex)
	if index == 0 || index == l.disk.acceptedIndex {
		return // nothing, or raft's own answer is out
	}
	l.disk.acknowledged = l.term
	l.cfg.Network.Send([]*raftpb.Message{{
		Type: raftpb.MsgAppResp.Enum(), From: new(l.cfg.ID), To: new(l.leader), Term: new(l.term),
		Index: new(index), Context: []byte(peers.ContextEarly),
	}})
}

// withoutCommitted cuts off what of an append is committed here already. Raft takes
// nothing of an append that begins below the commit index: it answers with that
// index, and the leader goes on from there. Where that answer waits for the disk,
// the entries beyond would be missing, and all that follow rejected.
func (l *loop) withoutCommitted(m *raftpb.Message) *raftpb.Message {
	n := uint64(len(m.GetEntries()))
	if n == 0 || m.GetIndex() >= l.pub.committed.Load() {
		return m
	}
	// m.Index may have been passed since that was published, but not the other way.
	commit := l.node.BasicStatus().GetCommit()
	if m.GetIndex()+n <= commit {
		return m
	}
	term, err := l.cfg.Log.Term(commit)
	if err != nil {
		return m // a snapshot that is not in the log yet
	}
	return &raftpb.Message{
		Type: m.Type, To: m.To, From: m.From, Term: m.Term, Commit: m.Commit,
		Index: new(commit), LogTerm: new(term), Entries: m.GetEntries()[commit-m.GetIndex():],
	}
}

// noteAppend keeps what acknowledgeEarly needs to know of an append.
func (l *loop) noteAppend(a *raftlog.Append) {
	last, _ := l.cfg.Log.LastIndex() // the log in memory cannot fail
	if a.Snapshot != nil || (len(a.Entries) > 0 && a.Entries[0].GetIndex() <= last) {
		l.disk.truncated = l.node.BasicStatus().GetTerm()
	}
	for _, m := range a.Responses {
		if m.GetType() != raftpb.MsgAppResp || m.GetReject() {
			continue
		}
		if m.GetTerm() > l.disk.acceptedTerm {
			l.disk.acceptedTerm, l.disk.acceptedIndex = m.GetTerm(), 0
		}
		if m.GetTerm() == l.disk.acceptedTerm {
			l.disk.acceptedIndex = max(l.disk.acceptedIndex, m.GetIndex())
		}
	}
}

// takesEarlyAck says whether a leader should give raft an early answer. One from
// before the first entry that the leader still has in memory would have raft send a
// snapshot to a disk that stalls.
func (l *loop) takesEarlyAck(m *raftpb.Message) bool {
	first, err := l.cfg.Log.FirstIndex()
	return err == nil && m.GetIndex()+1 >= first
}

package replica

import (
	"bytes"
	"fmt"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/peers"
	"github.com/belaydb/belay/raftlog"
)

const (
	maxMessageBytes = 1 << 20 // raft splits appends at this size (etcd's MaxSizePerMsg)
	// Appends that one follower has not acknowledged, and their bytes. The answer to an append
	// waits for the follower's disk, and a follower that gets nothing new applies nothing: so these
	// bounds decide how long it keeps serving while its disk stalls. What it cannot take it refuses
	// (Config.MaxUnsyncedBytes). etcd has 512, which lasts a fraction of a second.
	maxInflightCount  = 1 << 16
	maxInflightBytes  = MaxInflightBytes
	maxApplyingBytes  = 32 << 20               // committed entries handed to the applier and not applied yet
	maxProposalBytes  = 4 << 20                // one MsgProp; more waiting proposals make more messages
	readRetryInterval = 500 * time.Millisecond // etcd's readIndexRetryTime
)

// MaxInflightBytes is how much may be on its way to one follower, its disk included. A Network that
// queues less would drop what raft considers sent.
const MaxInflightBytes = 128 << 20

// loop is the state that only the raft goroutine touches. Its parts each have a file; they share
// core, and what a part needs of another it holds.
type loop struct {
	core

	// Shared with other goroutines, through the methods of these types.
	inbox   *inbox
	waiters *waiters
	applier *applier

	pending   pending      // what waits before raft
	questions questions    // ReadIndex: those of this member, and of others
	disks     disks        // what the disks do
	handOver  handOver     // of leadership
	early     earlyAnswers // of a follower
	followers followers    // that are behind
	removal   ownRemoval   // of this member
	room      room         // for more of the log
	recorder  recorder     // what went wrong, for package evidence
	timeouts  timeouts
	// heartbeats of this member, as a leader: which answers may come
	heartbeats heartbeats

	apart bool // without a leader, this member, that led last, had no quorum in reach at the last tick

	// incoming are received snapshots whose MsgSnap raft has, by index, until raft asks to install
	// them or ignores them.
	incoming map[uint64]incomingSnapshot
	// snapshotPending is the index of the last snapshot given to the log whose
	// MsgStorageAppendResp raft has not had yet; 0: none.
	snapshotPending uint64
	// votePending is the term of the last vote given to the log.
	votePending uint64
	// voteBegan and voteEnded are when it was given, and when it was seen on the disk.
	voteBegan, voteEnded time.Time

	// refusedLogged is when a refused message of a peer was last logged.
	refusedLogged time.Time

	ticks    int
	lastTick time.Time         // zero: there was none
	taken    taken             // of the inbox; empty but in step
	out      []*raftpb.Message // scratch: messages of one Ready for the network
	stepNext []*raftpb.Message // responses to step before the next Ready
}

type incomingSnapshot struct {
	install func() error
	discard func()
}

func newRawNode(e *env) (*raft.RawNode, error) {
	applied := e.pub.applied.Load()
	return raft.NewRawNode(&raft.Config{
		ID:                       e.cfg.ID,
		ElectionTick:             e.cfg.ElectionTicks,
		HeartbeatTick:            1,
		Storage:                  e.cfg.Log,
		Applied:                  applied,
		AsyncStorageWrites:       true,
		MaxSizePerMsg:            maxMessageBytes,
		MaxCommittedSizePerReady: maxApplyingBytes,
		MaxInflightMsgs:          maxInflightCount,
		MaxInflightBytes:         maxInflightBytes,
		CheckQuorum:              true,
		PreVote:                  e.cfg.PreVote,
		ReadOnlyOption:           raft.ReadOnlySafe,
		Logger:                   raftLogger{e.logger.Named("raft").WithOptions(zap.AddCallerSkip(1)).Sugar()},
	})
}

// newLoop makes the loop, which nobody but its goroutine touches from then on.
func newLoop(r *Replica, node *raft.RawNode) *loop {
	l := &loop{
		core:     core{env: r.env, node: node},
		inbox:    &r.inbox,
		waiters:  &r.waiters,
		applier:  &r.applier,
		incoming: make(map[uint64]incomingSnapshot),
		timeouts: timeouts{auto: r.cfg.TuneTimeouts, base: r.cfg.electionTimeout()},
	}
	c := &l.core
	l.recorder = recorder{core: c, inbox: &r.inbox, timeouts: &l.timeouts, handOver: &l.handOver}
	l.disks.init(c, &r.work, &l.recorder)
	l.handOver = handOver{core: c, disks: &l.disks, reports: make(map[uint64]toldReport)}
	l.early = earlyAnswers{core: c}
	l.followers.init(c, &r.inbox, &r.flusher)
	l.removal = ownRemoval{core: c}
	l.room = room{core: c, flusher: &r.flusher}
	// Request contexts must not repeat across restarts of this member while
	// a leader may still hold old ones.
	l.questions.init(c, &r.reads, r.proposer.ids.Next())
	l.pending = pending{
		door:      &raftDoor{core: c, removal: &l.removal, handOver: &l.handOver, buffers: &r.buffers, window: &r.window, room: &l.room},
		timeout:   r.cfg.RequestTimeout,
		mostLarge: min(maxHeldLargeBytes, r.cfg.MaxUnsyncedBytes/2),
	}
	return l
}

// run is the loop's goroutine.
func (l *loop) run() {
	defer l.close()
	l.removal.find(l.pub.applied.Load() + 1)
	l.firstElection()

	ticker := time.NewTicker(l.cfg.TickInterval)
	defer ticker.Stop()
	for {
		select {
		case <-l.stopped:
			return
		case <-ticker.C:
			l.tick()
		case <-l.inbox.wake:
		}
		l.step()
		l.questions.start()
		l.handleReady()
	}
}

// firstElection makes a single member lead at once, and others campaign soon (Config.AdvanceTicks).
func (l *loop) firstElection() {
	l.publishVoters()
	alone := l.campaignAlone()
	if !l.cfg.AdvanceTicks {
		l.logger.Info("skipping initial election tick advance", zap.Int("election-ticks", l.cfg.ElectionTicks))
	} else {
		l.logger.Info("starting initial election tick advance", zap.Int("election-ticks", l.cfg.ElectionTicks))
		forward, what := l.cfg.ElectionTicks-2, "initialized peer connections; fast-forwarding election ticks"
		if alone {
			forward, what = l.cfg.ElectionTicks-1, "started as single-node; fast-forwarding election ticks"
		}
		l.logger.Info(what, zap.String("local-member-id", command.IDText(l.cfg.ID)),
			zap.Int("forward-ticks", forward), zap.Duration("forward-duration", time.Duration(forward)*l.cfg.TickInterval),
			zap.Int("election-ticks", l.cfg.ElectionTicks), zap.Duration("election-timeout", l.cfg.electionTimeout()))
		if !alone { // else it has campaigned already
			for range forward {
				l.node.Tick()
			}
		}
	}
	l.handleReady()
}

// campaignAlone starts an election if this member is the only voter: nobody
// could object, so there is nothing to wait for. Raft ignores it while member
// changes wait to be applied; tick tries again.
func (l *loop) campaignAlone() bool {
	voters := l.voters()
	if len(voters) != 1 || voters[0] != l.cfg.ID || l.leader != raft.None {
		return false
	}
	if l.node.BasicStatus().RaftState != raft.StateFollower {
		return false // it has campaigned, and its vote is on the way to its disk
	}
	if err := l.node.Campaign(); err != nil {
		l.logger.Warn("failed to campaign as the only voter", zap.Error(err))
	}
	return true
}

// campaignReunited starts an election when a quorum has come back into reach of the member that led
// before it was lost: a cluster of one that grows to two loses it until the second runs, and would
// wait for a random time up to two election timeouts then. One member alone does so, or they would
// split the votes.
func (l *loop) campaignReunited() {
	if l.leader != raft.None || l.lastLeader != l.cfg.ID || l.raftLeads() {
		l.apart = false
		return
	}
	apart := !l.quorumActiveSince(time.Now())
	reunited := l.apart && !apart
	l.apart = apart
	if !reunited {
		return
	}
	if err := l.node.Campaign(); err != nil {
		l.logger.Warn("failed to campaign with the quorum that is back", zap.Error(err))
	}
}

func (l *loop) publishVoters() {
	var ids []uint64
	for id := range l.node.Status().Config.Voters.IDs() {
		ids = append(ids, id)
	}
	l.pub.voters.Store(&ids)
}

func (l *loop) tick() {
	now := time.Now()
	if !l.lastTick.IsZero() {
		l.metrics.LoopDelay.Observe(l.late(now).Seconds())
	}
	l.recorder.tick(now, l.late(now))
	l.countLateHeartbeats(now)
	l.lastTick = now
	if !l.voteWaits(now) {
		l.tickRaft(now)
	}
	l.campaignAlone()
	l.campaignReunited()
	l.ticks++
	if l.ticks%5 == 0 {
		l.waiters.expire(l.env, time.Now())
		l.waiters.window.sweep(time.Now())
		l.pending.dropAbandoned()
	}
	l.room.watch()
	l.watchDisks(now)
	if l.removed() {
		l.handOver.forRemoval(now)
	}
	l.questions.retry(now)
	l.pending.retry()
}

// late is by how much a tick that comes now is late.
func (l *loop) late(now time.Time) time.Duration {
	if l.lastTick.IsZero() {
		return 0
	}
	return max(0, now.Sub(l.lastTick)-l.cfg.TickInterval)
}

// voteWaits reports whether a vote of this member is on its way to its disk, or those that it asked
// for to other disks. The election timeout must not run meanwhile: with syncs that take longer than
// it, a candidate, and whoever voted for it, would begin the next election before the votes of this
// one are out, again and again.
func (l *loop) voteWaits(now time.Time) bool {
	if l.leader != raft.None {
		return false
	}
	if l.votePending > l.pub.voteDurable.Load() {
		l.voteEnded = time.Time{}
		return true
	}
	if l.voteEnded.IsZero() {
		l.voteEnded = now
	}
	// A candidate's requests left only now; the others' votes may take as long as its own.
	others := min(l.voteEnded.Sub(l.voteBegan), voteWaitTimeouts*l.cfg.electionTimeout())
	return l.state == raft.StateCandidate && now.Sub(l.voteEnded) < others
}

// voteWaitTimeouts bounds, in election timeouts, how long a candidate waits for
// the disks of others because its own was slow.
const voteWaitTimeouts = 5

// step feeds raft everything that waits in the inbox.
func (l *loop) step() {
	l.inbox.take(&l.taken)
	for _, q := range l.taken.requests {
		q.handle(l)
	}
	var now time.Time
	if len(l.taken.messages) > 0 {
		now = time.Now()
	}
	for _, m := range l.taken.messages {
		if m.GetType() == raftpb.MsgProp {
			l.pub.passed.Add(1)
		}
		if !l.takes(m, now) {
			continue
		}
		l.recorder.message(m, now)
		switch m.GetType() {
		case raftpb.MsgProp:
			switch {
			case proposesChange(m):
				l.pending.takeChange(m, now)
			case l.room.admit(m):
				l.pending.take(m, now)
			default:
				l.refuse(m)
			}
			continue
		case raftpb.MsgApp:
			if len(m.GetEntries()) > 0 && !l.room.admit(m) {
				continue // a lost message to raft, which will send it again
			}
			m = l.removal.hide(l.early.withoutCommitted(m))
		case raftpb.MsgHeartbeat:
			m = l.removal.hide(m)
		case raftpb.MsgReadIndex:
			if !l.questions.holds(m) {
				l.questions.answer(m)
			}
			continue
		case raftpb.MsgAppResp:
			if string(m.GetContext()) == peers.ContextEarly && !l.early.takes(m) {
				continue
			}
			if ids, ok := bytes.CutPrefix(m.GetContext(), []byte(peers.ContextRefused)); ok {
				l.waiters.refuse(ids)
				continue
			}
		case raftpb.MsgStorageAppendResp:
			if m.GetSnapshot().GetMetadata().GetIndex() >= l.snapshotPending {
				l.snapshotPending = 0
			}
		}
		// Errors are of messages that need no answer: from a peer that raft does
		// not know (any more).
		_ = l.node.Step(m)
		if m.GetType() == raftpb.MsgAppResp && len(l.followers.feeds) > 0 {
			l.followers.noteFed(m)
		}
		if es := m.GetEntries(); m.GetType() == raftpb.MsgStorageApplyResp && len(es) > 0 {
			l.pub.raftApplied.Store(es[len(es)-1].GetIndex())
		}
	}
	if len(l.taken.proposals) > 0 {
		l.pending.propose(l.taken.proposals)
	}
	l.pending.proposeChanges()
	if len(l.pending.large) > 0 {
		l.pending.retryLarge(time.Now())
	}
	l.taken.clear()
}

// handleReady does what raft asks for until it asks for nothing more. Nothing in here waits.
func (l *loop) handleReady() {
	for l.node.HasReady() {
		rd := l.node.Ready()
		l.publish(&rd)
		l.followers.endFeeds()
		for i := range rd.ReadStates {
			l.questions.answered(&rd.ReadStates[i])
		}
		l.out = l.out[:0]
		var requests []*raftpb.Message // for votes
		for _, m := range rd.Messages {
			if m.GetType() == raftpb.MsgVote {
				// To ask for votes in a term is a promise, too: not to use the term again.
				// Otherwise this member could crash, forget the term, and lead it a second time
				// with other entries at the same indexes. So the request waits for the disk, as its
				// own vote does.
				requests = append(requests, m)
				continue
			}
			switch m.GetTo() {
			case raft.LocalAppendThread:
				l.append(m, requests)
				requests = nil
			case raft.LocalApplyThread:
				l.applier.enqueue(applyTask{entries: m.GetEntries(), responses: m.GetResponses()})
			default:
				if m.GetType() == raftpb.MsgSnap {
					l.followers.startFeed(m)
					continue
				}
				switch m.GetType() {
				case raftpb.MsgHeartbeat:
					l.heartbeats.sent(m)
				case raftpb.MsgReadIndex:
					l.questions.vouch(m)
				}
				l.out = append(l.out, m)
			}
		}
		if len(requests) > 0 {
			panic("replica: raft asks for votes in a term that it does not store")
		}
		if len(l.out) > 0 {
			l.cfg.Network.Send(l.out)
			clear(l.out)
		}
		for _, m := range l.stepNext {
			_ = l.node.Step(m)
		}
		clear(l.stepNext)
		l.stepNext = l.stepNext[:0]
		l.questions.sendHeld()
	}
	if l.pending.unsettled() {
		l.pending.settle(l.lastIndex())
		l.removal.proposed = false
	}
	for index, in := range l.incoming {
		// Raft has seen it and did not want it: it was not newer than the log.
		delete(l.incoming, index)
		l.discard(in)
	}
}

// discard removes the files of a received snapshot in a goroutine of its own: on a stalled disk
// that takes as long as the stall. Stop waits for it, as it does for the applier: whoever uses the
// directory next must be alone in it.
func (l *loop) discard(in incomingSnapshot) { l.running.Go(in.discard) }

// append gives one MsgStorageAppend to the log. Responses that only say "readable" are stepped
// before the next Ready; promises are left to the log, and so are requests for votes in the term
// that it stores. REQUIRES: raft's order.
func (l *loop) append(m *raftpb.Message, requests []*raftpb.Message) {
	a := raftlog.Append{Entries: m.GetEntries(), Responses: requests}
	if m.Term != nil || m.Vote != nil || m.Commit != nil {
		a.HardState = &raftpb.HardState{Term: new(m.GetTerm()), Vote: new(m.GetVote()), Commit: new(m.GetCommit())}
	}
	if s := m.GetSnapshot(); !raft.IsEmptySnap(s) {
		index := s.GetMetadata().GetIndex()
		in, ok := l.incoming[index]
		if !ok {
			l.cfg.Failed(fmt.Errorf("replica: raft accepted a snapshot at index %d whose state was never received", index))
			return
		}
		delete(l.incoming, index)
		a.Snapshot = s
		a.Install = func() error { return l.applier.installSnapshot(s, in.install) }
		l.snapshotPending = index
		l.publishVoters() // raft has taken the snapshot's configuration already
	}
	for _, response := range m.GetResponses() {
		switch {
		case response.GetType() == raftpb.MsgStorageAppendResp && l.snapshotPending == 0:
			l.stepNext = append(l.stepNext, response)
		case response.GetType() == raftpb.MsgAppResp && response.GetReject():
			// It promises nothing, and the leader must know: otherwise a follower whose disk stalls
			// gets nothing more once it has missed one append.
			l.out = append(l.out, response)
		default:
			if response.GetType() == raftpb.MsgVoteResp && !response.GetReject() {
				l.votePending = max(l.votePending, response.GetTerm())
				l.voteBegan = time.Now()
			}
			a.Responses = append(a.Responses, response)
		}
	}
	l.early.note(&a)
	if a.Snapshot != nil {
		l.removal.index = 0 // it is not in what comes behind the snapshot
	}
	l.removal.note(a.Entries)
	if l.early.acknowledged != l.term {
		l.early.acknowledge(l.disks.sample) // the first append of a new leader: not only at the next tick
	}
	l.cfg.Log.Append(a)
	l.room.check()
}

// Released takes responses whose promise is now durable. The log's writer
// goroutine calls it, in order.
func (r *Replica) Released(responses []*raftpb.Message) {
	r.pub.noteDurable(responses)
	for _, m := range responses {
		if m.GetType() == raftpb.MsgVoteResp && !m.GetReject() && m.GetTerm() > r.pub.voteDurable.Load() {
			r.pub.voteDurable.Store(m.GetTerm()) // only this goroutine stores
		}
	}
	var own, others []*raftpb.Message
	for _, m := range responses {
		if m.GetTo() == r.cfg.ID {
			own = append(own, m)
		} else {
			others = append(others, m)
		}
	}
	// Raft should know of its own log before anyone can act on what it promises.
	r.inbox.local(own...)
	if len(others) > 0 {
		r.cfg.Network.Send(others)
	}
}

// publish makes what changed in a Ready visible to other goroutines.
func (l *loop) publish(rd *raft.Ready) {
	if rd.HardState != nil && !raft.IsEmptyHardState(rd.HardState) {
		l.term = rd.HardState.GetTerm()
		if commit := rd.HardState.GetCommit(); commit > l.pub.committed.Load() {
			l.pub.committed.Store(commit)
			l.metrics.Committed.Set(float64(commit))
		}
	}
	changed := false
	previous := l.leader
	if s := rd.SoftState; s != nil {
		changed = s.Lead != l.leader
		l.leader, l.state = s.Lead, s.RaftState
	}
	old := l.pub.status.Load()
	if old.Leader == l.leader && old.Term == l.term && old.State == l.state {
		return
	}
	basic := l.node.BasicStatus()
	l.pub.status.Store(&Status{
		ID: l.cfg.ID, Leader: l.leader, Term: basic.GetTerm(), Vote: basic.GetVote(), State: l.state,
		Transferee: basic.LeadTransferee,
	})
	l.term = basic.GetTerm()
	l.metrics.leader(l.leader, l.leader == l.cfg.ID, changed)
	l.recorder.roleChanged(old.State, previous, time.Now())
	if old.State == raft.StateLeader && l.state == raft.StateFollower && old.Term == l.term && l.leader == raft.None {
		l.handOver.nameSuccessor()
	}
	if !changed {
		return
	}
	l.logLeader(previous)
	l.pub.lead.note(l.leader)
	if l.state == raft.StateLeader {
		// Changes of earlier leaders may wait in the log to be applied.
		l.pending.changeProposed()
		l.removal.proposed = false
		// Do not wait for the next tick: a compaction before it would ignore the followers.
		l.followers.holdDisk(time.Now())
	}
	l.handOver.leaderChanged(time.Now(), l.lastLeader)
	if l.leader != raft.None {
		l.lastLeader = l.leader
		l.pending.retry()
		l.waiters.window.restart()
		l.questions.reissue()
	}
}

// logLeader logs a change of leader as raft's Node does, which RawNode leaves to us, with the same
// wording: operators search for it.
func (l *loop) logLeader(previous uint64) {
	logger := l.logger.Named("raft").Sugar()
	switch {
	case l.leader == raft.None:
		logger.Infof("raft.node: %x lost leader %x at term %d", l.cfg.ID, previous, l.term)
	case previous == raft.None:
		logger.Infof("raft.node: %x elected leader %x at term %d", l.cfg.ID, l.leader, l.term)
	default:
		logger.Infof("raft.node: %x changed leader from %x to %x at term %d", l.cfg.ID, previous, l.leader, l.term)
	}
}

// close runs when the loop ends: every waiting call gets its error.
func (l *loop) close() {
	l.waiters.closeAll()
	for _, in := range l.incoming {
		l.discard(in)
	}
	l.questions.reads.closeAll(l.questions.rounds)
}

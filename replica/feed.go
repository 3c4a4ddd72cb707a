package replica

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/raftlog"
)

// Feeding: a follower that needs entries which the leader's memory no longer holds gets
// them from the leader's files, and a snapshot only if those do not reach back so far.
//
// Raft has one answer for such a follower: a MsgSnap, after which it sends nothing until the
// follower acknowledges an entry from which the log in memory continues. Raft does not care how the
// follower gets there. So the loop does not send that MsgSnap but starts a feed, a goroutine that
// sends ordinary appends beside raft:
//
//	MsgSnap of raft --> probe --> from the files, entry by entry --> raft goes on by itself
//	                      |
//	                      +-----> the snapshot, at whose end raft sends a MsgSnap again,
//	                              since the log has moved on; and so to the probe
//
// It sends what a leader of this term may send: committed entries, after an entry and its term,
// which the follower checks. So a feed can do no harm whatever it assumes about the follower, and
// whoever leads by now; at worst it is useless. The follower, which may be of another version, or
// etcd, sees nothing unusual.
//
// It succeeds because a follower takes entries much faster than clients can write them: no other
// member is involved, and one sync covers many entries. While a follower that answers is behind,
// the leader keeps the files that it needs (raftlog.Log.Hold), up to Config.HoldDiskBytes, so one
// snapshot is enough; memory is bounded by mostFed here and by what the follower takes there.
//
// The probe is an empty append after the first entry in memory. A follower that has that entry
// needs none from the files, for example one whose disk has stalled and that has acknowledged
// little. Any other answers with what it has.
const (
	// feedPoll is how often the end of the files is checked again.
	feedPoll = 50 * time.Millisecond
	// feedUseless is how many election timeouts pass without an answer until the leader lets raft
	// decide again.
	feedUseless = 10
)

// feed is the catching up of one follower.
type feed struct {
	*env
	inbox *inbox

	id   uint64
	term uint64          // in which this member leads
	snap *raftpb.Message // raft's MsgSnap, to be sent if need be
	stop chan struct{}   // closed by the loop
	wake chan struct{}   // capacity 1: there is something new below

	match atomic.Uint64 // what the follower has acknowledged

	window feedWindow // the goroutine's

	mu    sync.Mutex
	hint  rejection
	fresh bool // hint was not used yet
}

// rejection is the answer of a follower that lacks the entry before those of an append: at index
// its log has an entry of that term, which may be a common one.
type rejection struct{ index, term uint64 }

// errSnapshot: the follower needs a snapshot.
var errSnapshot = errors.New("the log on disk does not reach back to what the follower has")

var errFeedEnded = errors.New("replica: the feed was ended")

// startFeed takes a MsgSnap of raft.
func (fs *followers) startFeed(m *raftpb.Message) {
	id := m.GetTo()
	fs.endFeed(id)
	f := &feed{
		env: fs.env, inbox: fs.inbox, id: id, term: m.GetTerm(), snap: m,
		stop: make(chan struct{}), wake: make(chan struct{}, 1), window: newFeedWindow(),
	}
	f.match.Store(fs.progress(id).Match)
	fs.feeds[id] = f
	fs.fed[id] = time.Now()
	fs.metrics.Feeds.Set(float64(len(fs.feeds)))
	fs.running.Add(1)
	go func() {
		defer fs.running.Done()
		f.run()
	}()
}

func (fs *followers) endFeed(id uint64) {
	if f := fs.feeds[id]; f != nil {
		close(f.stop)
		delete(fs.feeds, id)
		fs.metrics.Feeds.Set(float64(len(fs.feeds)))
	}
}

// endFeeds ends those of an earlier leadership.
func (fs *followers) endFeeds() {
	for id, f := range fs.feeds {
		if fs.state != raft.StateLeader || f.term != fs.term {
			fs.endFeed(id)
		}
	}
}

// noteFed passes m, a MsgAppResp that raft has processed, to the feed of its sender.
func (fs *followers) noteFed(m *raftpb.Message) {
	f := fs.feeds[m.GetFrom()]
	if f == nil || m.GetTerm() != f.term {
		return
	}
	fs.fed[f.id] = time.Now()
	p := fs.progress(f.id)
	if p.State != tracker.StateSnapshot {
		fs.logger.Info("a follower has caught up with the log in memory", zap.String("remote-peer-id", command.IDText(f.id)), zap.Uint64("match", p.Match))
		fs.endFeed(f.id)
		return
	}
	if m.GetReject() {
		f.mu.Lock()
		f.hint, f.fresh = rejection{m.GetRejectHint(), m.GetLogTerm()}, true
		f.mu.Unlock()
	}
	f.match.Store(p.Match)
	f.signal()
}

func (f *feed) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// watchFeeds runs at each tick of a leader: it ends the feeds of followers that are gone, do not
// answer, or have caught up without one.
func (fs *followers) watchFeeds(now time.Time) {
	for id := range fs.feeds {
		p := fs.progress(id)
		switch {
		case p.State != tracker.StateSnapshot: // removed, too
			fs.endFeed(id)
		case p.RecentActive:
			fs.fed[id] = now
		case now.Sub(fs.fed[id]) > feedUseless*fs.cfg.electionTimeout():
			fs.endFeed(id)
			fs.node.ReportSnapshot(id, raft.SnapshotFailure)
		}
	}
}

// snapshotNeeded: the follower of a feed needs a snapshot.
type snapshotNeeded struct{ feed *feed }

func (n snapshotNeeded) handle(l *loop) { l.followers.sendSnapshot(n.feed) }

// sendSnapshot gives the network the MsgSnap of a feed that needs it. The loop calls it.
func (fs *followers) sendSnapshot(f *feed) {
	if fs.feeds[f.id] != f {
		return
	}
	fs.endFeed(f.id)
	p := fs.progress(f.id)
	if p.State != tracker.StateSnapshot || !fs.raftLeads() {
		return
	}
	// The snapshot will have the present state or a later one. What comes after it is needed next.
	fs.wanted[f.id] = max(fs.wanted[f.id], f.snap.GetSnapshot().GetMetadata().GetIndex())
	fs.cfg.Network.Send([]*raftpb.Message{f.snap})
}

func (f *feed) run() {
	at, err := f.probe()
	for err == nil {
		at, err = f.send(at)
	}
	switch {
	case errors.Is(err, errFeedEnded):
	case errors.Is(err, errSnapshot), errors.Is(err, raftlog.ErrNotHeld):
		if !errors.Is(err, errSnapshot) {
			// Damage in what is kept only for others does not end this member.
			f.logger.Warn("cannot read the raft log for a follower that is behind; it gets a snapshot",
				zap.String("remote-peer-id", command.IDText(f.id)), zap.Error(err))
		}
		f.inbox.request(snapshotNeeded{f})
	default:
		panic(err) // there are no others
	}
}

// wait returns when something has happened, or after d. errFeedEnded: the feed is to end.
func (f *feed) wait(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-f.stop:
		return errFeedEnded
	case <-f.stopped:
		return errFeedEnded
	case <-f.wake:
	case <-timer.C:
	}
	return nil
}

// rejected takes the last rejection, if there is a new one.
func (f *feed) rejected() (rejection, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fresh := f.fresh
	f.fresh = false
	return f.hint, fresh
}

// append sends entries that follow the entry (index, term).
func (f *feed) append(index, term uint64, entries []*raftpb.Entry) {
	f.cfg.Network.Send([]*raftpb.Message{{
		Type: raftpb.MsgApp.Enum(), From: new(f.cfg.ID), To: new(f.id), Term: new(f.term),
		Index: new(index), LogTerm: new(term), Entries: entries, Commit: new(f.pub.committed.Load()),
	}})
}

// probe finds an entry that the follower has and from which the files continue. errSnapshot: there
// is none.
func (f *feed) probe() (from uint64, err error) {
	probed, _ := f.cfg.Log.Base()
	var sent time.Time
	for {
		if retry := f.cfg.electionTimeout(); time.Since(sent) >= retry {
			base, term := f.cfg.Log.Base()
			f.append(base, term, nil)
			sent = time.Now()
		}
		if err := f.wait(f.cfg.electionTimeout()); err != nil {
			return 0, err
		}
		if hint, ok := f.rejected(); ok {
			return f.check(hint)
		}
		// It has what the first probe asked for, and memory has moved on since. If it has
		// acknowledged less, its answers are to earlier appends, and more may come without any
		// help.
		if match := f.match.Load(); match >= probed {
			return f.check(rejection{index: match})
		}
	}
}

// reaches reports whether the files hold entry index, or have begun with the first of all.
func (f *feed) reaches(index uint64) bool { return max(index, 1) >= f.cfg.Log.Oldest() }

// check reports whether the files continue from what a follower says it has.
func (f *feed) check(hint rejection) (from uint64, err error) {
	log := f.cfg.Log
	if match := f.match.Load(); match >= hint.index {
		hint = rejection{index: match} // it has that
	}
	switch {
	case !f.reaches(hint.index):
		return 0, errSnapshot
	case hint.term == 0: // acknowledged, or an empty log
		return hint.index, nil
	}
	rd, err := log.Read(hint.index)
	if err != nil {
		return 0, err
	}
	defer rd.Close()
	base, baseTerm := log.Base()
	entries, err := rd.Next(1, base, baseTerm)
	switch {
	case err != nil:
		return 0, err
	case len(entries) == 0 || entries[0].GetTerm() != hint.term:
		// The end of its log is that of a deposed leader. It could be probed further, but a
		// follower that lacks so much and has such an end is rare.
		return 0, errSnapshot
	}
	return hint.index, nil
}

// send sends what follows entry from, which the follower has, until the follower reports that it
// lacks something, or stops answering; then it returns where to continue.
func (f *feed) send(from uint64) (next uint64, err error) {
	log := f.cfg.Log
	rd, err := log.Read(max(from, 1)) // entry from itself, for its term
	if err != nil {
		return 0, err
	}
	defer rd.Close()
	var index, term uint64 // the last entry that was sent; 0: none yet
	f.logger.Info("sending a follower the raft log on disk, which goes further back than that in memory",
		zap.String("remote-peer-id", command.IDText(f.id)), zap.Uint64("from-index", from))

	w := &f.window
	w.begin()
	began, moved, match := time.Now(), time.Now(), f.match.Load()
	for {
		if m := f.match.Load(); m != match {
			match, moved = m, time.Now()
		}
		w.matched(match)
		if hint, ok := f.rejected(); ok {
			// Each of the appends that follow a lost one is rejected. One of these is enough.
			if hint.index != from || time.Since(began) > f.cfg.electionTimeout() {
				return f.check(hint)
			}
		}
		if !w.empty() && time.Since(moved) > 2*f.cfg.electionTimeout() {
			w.lost() // or its disk stalls
			return f.probe()
		}
		if w.full() {
			if err := f.wait(f.cfg.electionTimeout()); err != nil {
				return 0, err
			}
			continue
		}
		base, baseTerm := log.Base()
		entries, err := rd.Next(maxMessageBytes, base, baseTerm)
		if err != nil {
			return 0, err
		}
		if len(entries) > 0 && index == 0 && from > 0 {
			index, term = from, entries[0].GetTerm()
			entries = entries[1:]
		}
		if len(entries) == 0 {
			// The files hold nothing more that is committed. Once the follower acknowledges an
			// entry that is in memory, raft continues.
			if err := f.wait(feedPoll); err != nil {
				return 0, err
			}
			continue
		}
		f.append(index, term, entries)
		if w.empty() {
			moved = time.Now()
		}
		e := entries[len(entries)-1]
		index, term = e.GetIndex(), e.GetTerm()
		size := int64(0)
		for _, e := range entries {
			size += int64(len(e.GetData())) + 32
		}
		w.sent(index, size)
		f.metrics.FedBytes.Add(float64(size))
		select {
		case <-f.stop:
			return 0, errFeedEnded
		case <-f.stopped:
			return 0, errFeedEnded
		default:
		}
	}
}

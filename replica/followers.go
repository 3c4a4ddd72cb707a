package replica

import (
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"

	"github.com/belaydb/belay/raftlog"
)

// followers is what a leader keeps of members that are behind. All of it is empty where this
// member does not lead, but fed, which may keep times of an earlier leadership.
type followers struct {
	*core
	inbox   *inbox
	flusher *flusher

	// catching are the followers that get a snapshot, or got one and have yet to catch
	// up; lagging is when one of them was last active, zero: none was.
	catching map[uint64]bool
	lagging  time.Time
	// feeds are the followers that get what is on disk; fed is when they were heard of last.
	feeds map[uint64]*feed
	fed   map[uint64]time.Time
	// wanted is the entry after which each follower needs the log, and heard when it was
	// active: see holdDisk.
	wanted map[uint64]uint64
	heard  map[uint64]time.Time
}

func (fs *followers) init(c *core, in *inbox, f *flusher) {
	*fs = followers{
		core: c, inbox: in, flusher: f,
		catching: make(map[uint64]bool), feeds: make(map[uint64]*feed), fed: make(map[uint64]time.Time),
		wanted: make(map[uint64]uint64), heard: make(map[uint64]time.Time),
	}
}

// watch runs at each tick of a leader.
func (fs *followers) watch(now time.Time) {
	fs.noteLagging(now)
	fs.watchFeeds(now)
	fs.holdDisk(now)
}

// notLeading runs at each tick of a member that does not lead.
func (fs *followers) notLeading() {
	fs.lagging = time.Time{}
	clear(fs.catching)
	fs.flusher.hold.Store(false)
	fs.flusher.behind.Store(false)
	fs.flusher.followed.Store(true) // it may lead soon
	fs.releaseDisk()
}

// noteLagging tells the flusher whether an active follower gets a snapshot, or got one and still
// has to catch up.
func (fs *followers) noteLagging(now time.Time) {
	fs.node.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		switch {
		case p.State == tracker.StateSnapshot:
			fs.catching[id] = true
		case fs.catching[id] && fs.cfg.Log.BytesAfter(p.Match) <= fs.cfg.KeepBytes/2:
			delete(fs.catching, id)
		}
		if fs.catching[id] && p.RecentActive {
			fs.lagging = now
		}
	})
	// Not at once: at each election timeout raft briefly forgets which followers are active.
	fs.flusher.hold.Store(!fs.lagging.IsZero() && now.Sub(fs.lagging) < 2*fs.cfg.electionTimeout())
}

// holdInactive is how long the log on disk is held for a follower that is not heard from: it may be
// restarting.
const holdInactive = 10 * time.Second

// holdDisk tells the log which part of it the followers need from the files. It runs at each tick
// of a leader.
func (fs *followers) holdDisk(now time.Time) {
	after, known, behind := uint64(raftlog.NoHold), make(map[uint64]bool, len(fs.wanted)), false
	fs.node.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		if id == fs.cfg.ID {
			return
		}
		known[id] = true
		if p.RecentActive || fs.heard[id].IsZero() { // a new leader has heard of nobody
			fs.heard[id] = now
		}
		// A snapshot that is on its way raises it as well: sendSnapshot.
		fs.wanted[id] = max(fs.wanted[id], p.Match)
		if now.Sub(fs.heard[id]) < holdInactive {
			after = min(after, fs.wanted[id])
		}
		// Half of what is kept for those that keep up: it goes on falling behind until it is
		// looked at again.
		behind = behind || fs.cfg.Log.BytesAfter(p.Match) > fs.cfg.KeepBytes/nearShare/2
	})
	fs.flusher.behind.Store(behind)
	fs.flusher.followed.Store(len(known) > 0)
	for id := range fs.wanted {
		if !known[id] {
			delete(fs.wanted, id)
			delete(fs.heard, id)
			delete(fs.fed, id)
		}
	}
	fs.cfg.Log.Hold(after, fs.cfg.HoldDiskBytes)
	fs.tellHeld()
}

// releaseDisk releases what holdDisk held, on a member that does not lead.
func (fs *followers) releaseDisk() {
	clear(fs.wanted)
	clear(fs.heard)
	fs.cfg.Log.Hold(raftlog.NoHold, 0)
	fs.tellHeld()
}

func (fs *followers) tellHeld() {
	fs.metrics.KeptBytes.Set(float64(fs.cfg.Log.HeldBytes()))
	fs.metrics.FirstKept.Set(float64(fs.cfg.Log.Oldest()))
}

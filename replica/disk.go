package replica

import (
	"cmp"
	"encoding/json"
	"fmt"
	"time"
)

// DiskState is the state of the disk of a member's raft log, or of its store (store.go).
type DiskState int

const (
	DiskHealthy DiskState = iota
	DiskSlow              // syncs take long; the only consequence is a log line
	DiskStalled           // a sync lasts longer than the hand-over bound
	DiskDead              // a sync lasts so long that it may never end
)

var diskStateNames = [...]string{"healthy", "slow", "stalled", "dead"}

func (s DiskState) String() string { return diskStateNames[s] }

// MarshalText and UnmarshalText encode a state by its name.
func (s DiskState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func (s *DiskState) UnmarshalText(text []byte) error {
	for i, name := range diskStateNames {
		if name == string(text) {
			*s = DiskState(i)
			return nil
		}
	}
	return fmt.Errorf("replica: no disk state is called %q", text)
}

const (
	// diskSlow is the time from which a disk is slow: etcd, too, calls a sync slow from one second
	// on.
	diskSlow = time.Second
	// diskQuick is how fast a disk must be for leadership to be handed over because of it: an
	// election waits until the votes of a quorum are on disk, and nobody leads in the meantime.
	// Only a leader whose disk is practically dead hands over to disks that are merely not stalled.
	diskQuick = 300 * time.Millisecond
	// diskDead is the time from which a disk is called dead in the log; no decision depends on it.
	diskDead = 30 * time.Second
	// diskCalm is how long a disk must be better before its state gets better.
	diskCalm = 5 * time.Second
	// handOverInterval is the shortest time between two hand-overs by a member because of its disk.
	handOverInterval = 30 * time.Second
	// previousLeaderDoubt is how long the previous leader gets leadership back only if its disk is
	// healthy, not if it is merely not stalled.
	previousLeaderDoubt = time.Minute
	// After a failed transfer: the time until the next, which doubles each time up to
	// handOverInterval, since writes wait during an attempt; and how long the member that did not
	// take over is a last choice.
	handOverRetry   = 2 * time.Second
	transfereeDoubt = time.Minute
	// A transferee may lack so much of the log: it has to come over and to its
	// disk before it can lead, and proposals wait meanwhile.
	maxTransfereeBehind = 4 << 20
	// diskReportLife is how long what a member said of its disk is believed.
	diskReportLife = 2 * time.Second
)

// DiskReport is what a member reports about its disks, in metrics and to others.
type DiskReport struct {
	State DiskState
	// Oldest is for how long there has been something to make durable without any
	// sync ending: the age of the sync in flight, mostly.
	Oldest        time.Duration
	Median        time.Duration // of the last syncs
	UnsyncedBytes int64
	// About the store: its state, how long it has had work without progress, and the index of the
	// last applied entry. A member that reports nothing about its store counts as having applied
	// nothing.
	Store       DiskState
	StoreOldest time.Duration
	Applied     uint64
	// Leaving: the member stops, or fails, and should not be asked to lead.
	Leaving bool
}

type diskReportJSON struct {
	State         DiskState `json:"state"`
	Oldest        float64   `json:"oldest_seconds"`
	Median        float64   `json:"median_seconds"`
	UnsyncedBytes int64     `json:"unsynced_bytes"`
	Store         DiskState `json:"store_state"`
	StoreOldest   float64   `json:"store_oldest_seconds"`
	Applied       uint64    `json:"applied_index"`
	Leaving       bool      `json:"leaving,omitempty"`
}

// MarshalJSON writes times in seconds.
func (r DiskReport) MarshalJSON() ([]byte, error) {
	return json.Marshal(diskReportJSON{
		r.State, r.Oldest.Seconds(), r.Median.Seconds(), r.UnsyncedBytes, r.Store, r.StoreOldest.Seconds(), r.Applied, r.Leaving,
	})
}

// UnmarshalJSON is the inverse.
func (r *DiskReport) UnmarshalJSON(data []byte) error {
	var j diskReportJSON
	j.State = -1
	if err := json.Unmarshal(data, &j); err != nil {
		return err
	}
	if j.State < 0 || j.Oldest < 0 || j.Median < 0 || j.UnsyncedBytes < 0 || j.StoreOldest < 0 {
		return fmt.Errorf("replica: a disk report without a state or with negative numbers: %.100q", data)
	}
	seconds := func(s float64) time.Duration { return time.Duration(min(s, 1e9) * float64(time.Second)) }
	*r = DiskReport{j.State, seconds(j.Oldest), seconds(j.Median), j.UnsyncedBytes, j.Store, seconds(j.StoreOldest), j.Applied, j.Leaving}
	return nil
}

// PeerDisks asks other members for the state of their disks.
type PeerDisks interface {
	// AskDisks starts to ask the members ids and returns at once. Their answers come through
	// Replica.TellDisk; a member that does not answer adds nothing.
	AskDisks(ids []uint64)
}

// diskWatch judges the disk under the raft log and decides when a leader should hand over because
// of it, and to whom. It does no I/O and reads no clock: the loop feeds it at each tick.
//
// It judges the age of the oldest work without progress, not the time that a write waits: with
// syncs of 2.14 s each, a write that comes during one sync is durable with the next, so it waits
// for up to 4.28 s although the disk is only slow. The bound is on a single sync. A disk that is
// always slow is no reason to move: its leader commits at the pace of the followers, and a second
// move would not help.
type diskWatch struct {
	handOverAfter time.Duration // 0: never

	state   DiskState
	since   time.Time     // of state
	worst   time.Duration // oldest work or longest sync since the disk was last healthy
	calm    time.Time     // since when it does better than state; zero: it does not
	calmMax DiskState     // the worst level since then

	stallIndex  uint64 // end of the log early in the present stall; 0: no stall
	storeIndex  uint64 // what was committed early in the present stall of the store; 0: no stall
	tried       time.Time
	attempts    int                  // in the present stall
	gaveUp      map[uint64]time.Time // members that did not take a transfer, when
	handedOver  time.Time            // the last that succeeded
	previous    uint64               // led before this member did
	previousEnd time.Time
}

// diskSample is what the loop sees at a tick.
type diskSample struct {
	oldest time.Duration // age of the oldest work without progress
	took   time.Duration // by the last sync, if one has ended since the last sample
}

func (w *diskWatch) level(s diskSample) DiskState {
	stalled := w.handOverAfter
	if stalled == 0 {
		stalled = defaultDiskStallHandOver
	}
	switch {
	case s.oldest >= max(diskDead, 2*stalled):
		return DiskDead
	case s.oldest >= stalled:
		return DiskStalled
	case s.oldest >= diskSlow, s.took >= diskSlow:
		return DiskSlow
	}
	return DiskHealthy
}

// observe takes a sample and returns the state before it. A state gets worse at once, and better
// when the disk has been better for diskCalm.
func (w *diskWatch) observe(now time.Time, s diskSample) (before DiskState) {
	before = w.state
	if w.since.IsZero() {
		w.since = now
	}
	level := w.level(s)
	w.worst = max(w.worst, s.oldest, s.took)
	switch {
	case level > w.state:
		w.state, w.since, w.calm = level, now, time.Time{}
	case level == w.state:
		w.calm = time.Time{}
	case w.calm.IsZero():
		w.calm, w.calmMax = now, level
	default:
		w.calmMax = max(w.calmMax, level)
		if now.Sub(w.calm) >= diskCalm {
			w.state, w.since, w.calm = w.calmMax, now, time.Time{}
		}
	}
	return before
}

// calmed ends the account of a leader's stall.
func (w *diskWatch) calmed() { w.stallIndex, w.storeIndex, w.tried, w.attempts = 0, 0, time.Time{}, 0 }

// healthyAgain ends the account of worst.
func (w *diskWatch) healthyAgain() { w.worst = 0 }

// peerView is a voter other than the leader, as the leader sees it.
type peerView struct {
	id     uint64
	match  uint64
	behind int64 // bytes of the log beyond match
	// late is for how long, a round trip aside, it has not acknowledged the oldest entry beyond
	// match. Its report about its disk is older than its acknowledgements.
	late   time.Duration
	active bool // raft and the network hear from it, and it gets appends
	report DiskReport
	known  bool // report is recent
}

// noHandOver is why a leader with a stalled disk keeps leading. Empty: there is no reason.
type noHandOver string

const (
	nobodyElse   noHandOver = "there are no other voting members"
	nobodyBetter noHandOver = "no other member has proved that its disk does better and that it has the log"
	noQuorum     noHandOver = "too few other members have healthy disks: a new leader could not be elected"
	tooSoon      noHandOver = "leadership was handed over because of this disk only a moment ago"
	switchedOff  noHandOver = "--disk-stall-handover is 0"
	noStore      noHandOver = "no other member has proved that its store does better and that it has the log"
)

// decide returns the member to hand over to now; 0: none. With a stalled disk it returns why not.
// last is the end of the log, voters how many members vote, this one included.
//
// A peer is chosen only if two things show that its disk works: its own report, and the log, of
// which it has acknowledged, and so synced, entries appended when our stall had lasted a while. The
// same must hold for enough peers to elect it without us, since our vote waits for our disk.
func (w *diskWatch) decide(now time.Time, s diskSample, last uint64, voters int, peers []peerView) (to uint64, why noHandOver) {
	if s.oldest < diskSlow {
		w.calmed()
		return 0, ""
	}
	if w.stallIndex == 0 {
		w.stallIndex = last
	}
	if wait, why := w.notNow(now, s.oldest, peers); wait {
		return 0, why
	}
	bound := diskQuick
	if s.oldest >= diskDead {
		bound = diskSlow
	}
	var best *peerView
	electors := 0
	for i := range peers {
		p := &peers[i]
		if !p.active || !p.known || p.match < w.stallIndex || p.report.State > DiskSlow || p.report.Oldest >= bound || p.late >= bound ||
			(s.oldest < diskDead && p.report.Median >= diskQuick) {
			continue
		}
		electors++
		if p.report.Store < DiskStalled {
			best = w.pick(now, p, best)
		}
	}
	return w.try(now, best, electors, voters, nobodyBetter)
}

// try hands over to best, if there is one and enough members can elect it; nobody says that there is
// none.
func (w *diskWatch) try(now time.Time, best *peerView, electors, voters int, nobody noHandOver) (to uint64, why noHandOver) {
	switch {
	case best == nil:
		return 0, nobody
	case electors <= voters/2:
		return 0, noQuorum
	}
	w.tried, w.attempts = now, w.attempts+1
	return best.id, ""
}

// notNow reports whether it is too early to hand over for a stall of that age, or to do so again, and
// the reason if it is to be logged.
func (w *diskWatch) notNow(now time.Time, stalled time.Duration, peers []peerView) (wait bool, why noHandOver) {
	switch {
	case w.handOverAfter == 0 && stalled >= defaultDiskStallHandOver:
		return true, switchedOff
	case w.handOverAfter == 0 || stalled < w.handOverAfter:
		return true, ""
	case len(peers) == 0:
		return true, nobodyElse
	case !w.handedOver.IsZero() && now.Sub(w.handedOver) < handOverInterval:
		return true, tooSoon
	case !w.tried.IsZero() && now.Sub(w.tried) < min(handOverRetry<<min(w.attempts-1, 10), handOverInterval):
		return true, ""
	}
	return false, ""
}

// pick is the better one of best (nil for none) and p, if p may lead at all.
func (w *diskWatch) pick(now time.Time, p, best *peerView) *peerView {
	if p.behind > maxTransfereeBehind {
		return best
	}
	if p.id == w.previous && now.Sub(w.previousEnd) < previousLeaderDoubt && max(p.report.State, p.report.Store) != DiskHealthy {
		return best
	}
	if best == nil || w.better(now, p, best) {
		return p
	}
	return best
}

// better orders the members that could take over.
func (w *diskWatch) better(now time.Time, a, b *peerView) bool {
	// Of those that failed, the one that failed longest ago comes first.
	doubt := func(p *peerView) time.Duration {
		if at, ok := w.gaveUp[p.id]; ok && now.Sub(at) < transfereeDoubt {
			return transfereeDoubt - now.Sub(at)
		}
		return 0
	}
	return cmp.Or(
		cmp.Compare(doubt(a), doubt(b)),
		cmp.Compare(a.report.Store, b.report.Store),
		cmp.Compare(a.report.State, b.report.State),
		cmp.Compare(latencyClass(a.report.Median), latencyClass(b.report.Median)),
		cmp.Compare(b.match, a.match),
		cmp.Compare(a.id, b.id),
	) < 0
}

// latencyClass ignores differences of less than a factor of about two.
func latencyClass(d time.Duration) int {
	class := 0
	for d >= time.Millisecond {
		d /= 2
		class++
	}
	return class
}

// failed records that a transfer failed.
func (w *diskWatch) failed(now time.Time, to uint64) {
	if w.gaveUp == nil {
		w.gaveUp = make(map[uint64]time.Time)
	}
	w.gaveUp[to] = now
}

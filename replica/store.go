package replica

import (
	"fmt"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/evidence"
)

// StoreDisk is what a store reports about its files.
type StoreDisk struct {
	// Oldest is how long the oldest operation on a file has been under way; 0: there is none.
	Oldest time.Duration
	// SinceProgress is how long ago a write or sync last succeeded; 0: none has yet.
	SinceProgress time.Duration
}

// storeWork is what the state machine is doing. A store with a dead disk shows in three ways: an
// operation on a file that does not end; a flush without progress, when operations end but fail;
// and, once the store's memory is full, a batch that does not end.
//
// The last may also be a batch that takes that long to compute. That happens on all members, so
// leadership stays where it is; and that this member answers nothing meanwhile is worth reporting
// as well.
type storeWork struct {
	applying, flushing stopwatch
}

// stopwatch is a point in time, or none, that one goroutine sets and others read.
type stopwatch struct{ began atomic.Pointer[time.Time] }

func (s *stopwatch) start() { now := time.Now(); s.began.Store(&now) }

func (s *stopwatch) stop() { s.began.Store(nil) }

// age is for how long it has run; 0: it does not.
func (s *stopwatch) age(now time.Time) time.Duration {
	if began := s.began.Load(); began != nil {
		return now.Sub(*began)
	}
	return 0
}

// sampleStore is for how long the store has had something to do and has not got on.
func (d *disks) sampleStore(now time.Time) diskSample {
	flushing := d.work.flushing.age(now)
	oldest := d.work.applying.age(now)
	if d.cfg.StoreDisk != nil {
		disk := d.cfg.StoreDisk()
		if disk.SinceProgress > 0 {
			flushing = min(flushing, disk.SinceProgress)
		}
		oldest = max(oldest, disk.Oldest)
	}
	return d.withoutStandstill(now, diskSample{oldest: max(oldest, flushing)})
}

// watchStore runs at each tick, before the disk of the raft log is looked at.
func (d *disks) watchStore(now time.Time, report *DiskReport) diskSample {
	s := d.sampleStore(now)
	w := &d.store
	since := w.since
	before := w.observe(now, s)
	report.Store, report.StoreOldest, report.Applied = w.state, s.oldest, d.pub.applied.Load()
	if w.state >= DiskStalled && s.oldest >= diskSlow {
		d.cfg.Evidence.Record(evidence.Event{Kind: evidence.StoreStalled, Took: s.oldest})
	}
	if before == w.state || max(before, w.state) < DiskStalled {
		return s
	}
	fields := []zap.Field{
		zap.String("local-member-id", command.IDText(d.cfg.ID)), zap.Stringer("was", before), zap.Duration("was-for", now.Sub(since)),
		zap.Duration("oldest-work", s.oldest), zap.Duration("oldest-batch", d.work.applying.age(now)), zap.Duration("oldest-flush", d.work.flushing.age(now)),
	}
	switch {
	case w.state < DiskStalled:
		d.cfg.Evidence.Record(evidence.Event{Kind: evidence.StoreBetter, Took: w.worst})
		d.logger.Info("the store gets on again", append(fields, zap.Duration("worst", w.worst))...)
		w.healthyAgain()
	case w.state == DiskStalled && before < DiskStalled:
		d.logger.Error("the store has stalled", append(fields,
			zap.String("advice", "nothing is applied, or what is applied does not become durable; a leader hands over if another member can; look at the disk under the data directory and at the kernel's log"))...)
	case w.state == DiskDead:
		d.logger.Error("the store does not get on any more", append(fields,
			zap.String("advice", "if its disk does not come back, remove this member and add a new one"))...)
	}
	return s
}

// checkStore is CheckDisk for the store.
func (d DiskReport) checkStore() error {
	if d.Store < DiskStalled {
		return nil
	}
	return fmt.Errorf("the store is %s: it has had something to do and has not got on for %v, %d is applied; replace the disk under it or the member if it stays so",
		d.Store, d.StoreOldest.Round(100*time.Millisecond), d.Applied)
}

// decideStore is decide for a leader whose store has stalled while the disk of its raft
// log has not: it replicates and commits, but it answers nothing, or keeps ever more in
// memory. committed is the commit index, voters as for decide.
//
// A peer is chosen only if it reports a healthy store and has applied what was committed when our
// stall had lasted a while. Our own vote works here.
func (w *diskWatch) decideStore(now time.Time, s diskSample, committed uint64, voters int, peers []peerView) (to uint64, why noHandOver) {
	if w.storeIndex == 0 {
		w.storeIndex = committed
	}
	if wait, why := w.notNow(now, s.oldest, peers); wait {
		return 0, why
	}
	var best *peerView
	electors := 0
	if w.state == DiskHealthy {
		electors = 1 // this member
	}
	for i := range peers {
		p := &peers[i]
		if !p.active || !p.known || p.report.State > DiskSlow || p.report.Oldest >= diskQuick || p.report.Median >= diskQuick {
			continue
		}
		electors++
		if p.report.Store == DiskHealthy && p.report.StoreOldest < diskSlow && p.report.Applied >= w.storeIndex {
			best = w.pick(now, p, best)
		}
	}
	return w.try(now, best, electors, voters, noStore)
}

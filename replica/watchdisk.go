package replica

import (
	"fmt"
	"time"

	"go.etcd.io/raft/v3"
	"go.uber.org/zap"
)

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

// withoutStandstill takes from the age of a sync the time before this process went on:
// one that was stopped for 10 s has no disk that stalled for so long.
func (l *loop) withoutStandstill(now time.Time, s diskSample) diskSample {
	ran := now.Sub(l.leadership.ran)
	return diskSample{oldest: min(s.oldest, ran), took: min(s.took, ran)}
}

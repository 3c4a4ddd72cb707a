package replica

import (
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
)

// Disk returns the state of this member's disks.
func (r *Replica) Disk() DiskReport {
	if d := r.pub.diskReport.Load(); d != nil {
		return *d
	}
	return DiskReport{}
}

// CheckDisk returns an error if the disk of the raft log, or the store, has stalled for longer than
// a leader would keep leading.
func (r *Replica) CheckDisk() error {
	d := r.Disk()
	if d.State < DiskStalled {
		return d.checkStore()
	}
	return fmt.Errorf("the disk of the raft log is %s: no sync has ended for %v, %d bytes wait; replace the disk or the member if it stays so",
		d.State, d.Oldest.Round(100*time.Millisecond), d.UnsyncedBytes)
}

// disks is what the loop sees of the disks under the raft log and the store.
type disks struct {
	*core
	work *storeWork
	rec  *recorder

	log    diskWatch  // under the raft log; what a leader does about either disk is in its account
	store  diskWatch  // its state alone
	syncs  uint64     // of the log that had ended when last looked
	sample diskSample // of the log at the last tick
}

func (d *disks) init(c *core, work *storeWork, rec *recorder) {
	after := max(c.cfg.DiskStallHandOver, 0)
	*d = disks{core: c, work: work, rec: rec, log: diskWatch{handOverAfter: after}, store: diskWatch{handOverAfter: after}}
}

// watch checks both at a tick, logs what has changed and publishes the report.
func (d *disks) watch(now time.Time) (log, store diskSample, report DiskReport) {
	log, report = d.sampleLog()
	log = d.withoutStandstill(now, log)
	report.Oldest = log.oldest
	store = d.watchStore(now, &report)
	d.sample = log
	since := d.log.since
	before := d.log.observe(now, log)
	if before != d.log.state {
		d.logState(before, log, report, now.Sub(since))
	}
	d.record(before, d.log.state, log)
	report.State = d.log.state
	d.pub.diskReport.Store(&report)
	d.metrics.disk(report, d.pub.committed.Load()-min(d.pub.applied.Load(), d.pub.committed.Load()))
	return log, store, report
}

// sampleLog reads how the log's disk does.
func (d *disks) sampleLog() (diskSample, DiskReport) {
	stats, unsynced := d.cfg.Log.Stats(), d.cfg.Log.Unsynced()
	// The sync in flight is the main sign. But a writer that hangs in creating a new segment file
	// has none, and shows by what waits although no sync ends.
	oldest := unsynced.Oldest
	if stats.Syncs > 0 {
		oldest = min(oldest, stats.SinceLast)
	}
	if d.pub.installing.Load() {
		oldest = 0 // it waits for a snapshot to be installed
	}
	s := diskSample{oldest: max(oldest, stats.InFlight)}
	if stats.Syncs != d.syncs {
		d.syncs, s.took = stats.Syncs, stats.Last
	}
	return s, DiskReport{Oldest: s.oldest, Median: stats.Median, UnsyncedBytes: unsynced.Bytes}
}

// watchDisks runs at each tick.
func (l *loop) watchDisks(now time.Time) {
	log, store, report := l.disks.watch(now)
	l.handOver.watchTransfer(now)
	if !l.raftLeads() {
		l.handOver.notLeading()
		l.followers.notLeading()
		l.early.acknowledge(log)
		return
	}
	l.handOver.noteEnd(now, l.lastIndex())
	l.handOver.noteSuccessor()
	l.followers.watch(now)
	l.handOver.watchDisks(now, log, store, report.UnsyncedBytes)
}

func (d *disks) logState(before DiskState, s diskSample, report DiskReport, lasted time.Duration) {
	w := &d.log
	fields := []zap.Field{
		zap.String("local-member-id", command.IDText(d.cfg.ID)),
		zap.Stringer("was", before), zap.Duration("was-for", lasted),
		zap.Duration("oldest-sync", s.oldest), zap.Duration("last-sync-took", s.took), zap.Duration("median-sync", report.Median),
		zap.Int64("unsynced-bytes", report.UnsyncedBytes),
	}
	if w.state < before {
		fields = append(fields, zap.Duration("worst", w.worst))
		if w.state == DiskHealthy {
			d.logger.Info("the disk of the raft log is healthy again", fields...)
			w.healthyAgain()
		} else {
			d.logger.Warn("the disk of the raft log does better but is still "+w.state.String(), fields...)
		}
		return
	}
	switch w.state {
	case DiskSlow:
		d.logger.Warn("the disk of the raft log is slow", append(fields,
			zap.String("advice", "nobody waits for it while a quorum of other disks is fast; find what else writes to this disk, or give the raft log its own with --wal-dir"))...)
	case DiskStalled:
		d.logger.Error("the disk of the raft log has stalled", append(fields,
			zap.String("advice", "this member promises nothing until its disk answers, and a leader hands over if another member can; look at the disk and at the kernel's log"))...)
	case DiskDead:
		d.logger.Error("the disk of the raft log does not answer any more", append(fields,
			zap.String("advice", "if it does not come back, remove this member and add a new one; the cluster has no disk to lose meanwhile unless it has five members"))...)
	}
}

// withoutStandstill excludes from the age of a sync the time before this process resumed: a process
// that was stopped for 10 s does not have a disk that stalled that long.
func (d *disks) withoutStandstill(now time.Time, s diskSample) diskSample {
	ran := now.Sub(d.rec.ran)
	return diskSample{oldest: min(s.oldest, ran), took: min(s.took, ran)}
}

package leader

import (
	"context"
	"time"

	"go.uber.org/zap"
)

// AutoCompaction is the rule by which the history is compacted automatically; the zero value
// disables it.
type AutoCompaction struct {
	// Period, if above 0, is how much history to keep, by time.
	Period time.Duration
	// Retained, if above 0 and without a Period, is how many revisions to keep.
	Retained int64
}

// retentionInterval is how often compaction by revision checks; maxPeriodicInterval is the longest
// time between two periodic compactions.
const (
	retentionInterval   = 5 * time.Minute
	maxPeriodicInterval = time.Hour
	samplesPerInterval  = 10
)

// CompactorConfig is what Compactor needs.
type CompactorConfig struct {
	Auto     AutoCompaction
	Leads    func() bool
	Revision func() int64
	// Compact compacts to a revision; it is no error if the history is compacted further already.
	Compact func(ctx context.Context, rev int64) error
	Logger  *zap.Logger // nil: none
}

// Compactor compacts while this member leads; followers only record revisions, to continue where
// the leader was.
type Compactor struct{ cfg CompactorConfig }

// NewCompactor makes it.
func NewCompactor(cfg CompactorConfig) *Compactor {
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	return &Compactor{cfg}
}

// Run compacts until ctx ends; it returns at once if auto compaction is disabled.
func (c *Compactor) Run(ctx context.Context) {
	s := newSchedule(c.cfg.Auto, time.Now(), c.cfg.Revision())
	if s == nil {
		return
	}
	tick := time.NewTicker(s.interval())
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if rev, due := s.look(time.Now(), c.cfg.Revision(), c.cfg.Leads()); due {
			c.compact(ctx, s, rev)
		}
	}
}

func (c *Compactor) compact(ctx context.Context, s schedule, rev int64) {
	say := s.words()
	fields := []zap.Field{zap.Int64("revision", rev), say.setting}
	c.cfg.Logger.Info(say.starting, fields...)
	start := time.Now()
	if err := c.cfg.Compact(ctx, rev); err != nil {
		c.cfg.Logger.Warn(say.failed, append(fields, zap.Duration("retry-interval", s.interval()), zap.Error(err))...)
		return
	}
	c.cfg.Logger.Info(say.completed, append(fields, zap.Duration("took", time.Since(start)))...)
	s.done(time.Now(), rev)
}

// schedule decides when to compact, and to which revision. look is called once per interval.
type schedule interface {
	interval() time.Duration
	// look gets this member's revision, and returns the revision to compact to, if it is time.
	look(now time.Time, rev int64, leads bool) (to int64, due bool)
	// done says that the compaction to a revision succeeded. Without it, the next look returns the
	// same again.
	done(now time.Time, rev int64)
	words() compactionWords
}

// compactionWords are etcd's log lines about one mode, with the field for its setting.
type compactionWords struct {
	starting, completed, failed string
	setting                     zap.Field
}

// newSchedule starts with a revision; it is nil if auto compaction is disabled.
func newSchedule(auto AutoCompaction, now time.Time, rev int64) schedule {
	switch {
	case auto.Period > 0:
		p := &periodic{period: auto.Period, wait: auto.Period, lastTime: now}
		p.revs.size = int(p.period/p.interval()) + 1
		p.revs.add(rev)
		return p
	case auto.Retained > 0:
		return &retention{keep: auto.Retained}
	}
	return nil
}

// window records revisions over time: oldest is the one of a period ago.
type window struct {
	revs []int64
	size int
}

func (w *window) add(rev int64) {
	w.revs = append(w.revs, rev)
	if len(w.revs) > w.size {
		w.revs = w.revs[1:]
	}
}

func (w *window) oldest() int64 { return w.revs[0] }

// periodic samples the revision ten times in each span (the period, or an hour if that is shorter),
// and from one period on compacts once a span to the revision of a period ago. After a failure it
// retries with the next sample.
type periodic struct {
	period   time.Duration
	revs     window
	wait     time.Duration // until the next compaction, after lastTime: a period at first, then a span
	last     int64         // what was compacted to
	lastTime time.Time
}

func (p *periodic) span() time.Duration     { return min(p.period, maxPeriodicInterval) }
func (p *periodic) interval() time.Duration { return p.span() / samplesPerInterval }

func (p *periodic) look(now time.Time, rev int64, leads bool) (to int64, due bool) {
	to = p.revs.oldest()
	p.revs.add(rev)
	if !leads || now.Sub(p.lastTime) < p.wait || to == p.last {
		return 0, false
	}
	p.wait = p.span()
	return to, true
}

func (p *periodic) done(now time.Time, rev int64) { p.last, p.lastTime = rev, now }

func (p *periodic) words() compactionWords {
	return compactionWords{"starting auto periodic compaction", "completed auto periodic compaction", "failed auto periodic compaction",
		zap.Duration("compact-period", p.period)}
}

// retention keeps the newest revisions.
type retention struct {
	keep int64
	last int64 // what was compacted to
}

func (r *retention) interval() time.Duration { return retentionInterval }

func (r *retention) look(_ time.Time, rev int64, leads bool) (to int64, due bool) {
	to = rev - r.keep
	return to, leads && to > 0 && to != r.last
}

func (r *retention) done(_ time.Time, rev int64) { r.last = rev }

func (r *retention) words() compactionWords {
	return compactionWords{"starting auto revision compaction", "completed auto revision compaction", "failed auto revision compaction",
		zap.Int64("revision-compaction-retention", r.keep)}
}

package server

import (
	"context"
	"errors"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/mvcc"
)

// CompactionMode says by what the history is compacted automatically.
type CompactionMode int

const (
	CompactNever CompactionMode = iota
	// CompactPeriodic keeps the history of the last Config.CompactPeriod.
	CompactPeriodic
	// CompactRevision keeps the last Config.CompactRetained revisions.
	CompactRevision
)

// compactInterval is how often revision mode compacts, and the longest that
// periodic mode lets pass between two compactions.
const (
	revisionCompactInterval    = 5 * time.Minute
	maxPeriodicCompactInterval = time.Hour
	periodicSamplesPerInterval = 10
)

// autoCompact compacts while this member leads; the others only take note of
// revisions, to go on from where the leader was.
func (s *Server) autoCompact(ctx context.Context) {
	switch {
	case s.cfg.Compaction == CompactPeriodic && s.cfg.CompactPeriod > 0:
		s.compactPeriodically(ctx)
	case s.cfg.Compaction == CompactRevision && s.cfg.CompactRetained > 0:
		s.compactByRevision(ctx)
	}
}

// window remembers revisions over time: oldest is the one of a period ago.
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

// compactPeriodically samples the revision ten times in each interval (the
// period, or an hour if that is shorter), and from one period on compacts once
// an interval to the revision of a period ago. After a failure it tries again
// with the next sample.
func (s *Server) compactPeriodically(ctx context.Context) {
	period := s.cfg.CompactPeriod
	interval := min(period, maxPeriodicCompactInterval)
	sample := interval / periodicSamplesPerInterval
	revs := window{size: int(period/sample) + 1}
	wait := period // until the first compaction; an interval after that
	last, lastTime := int64(0), time.Now()
	tick := time.NewTicker(sample)
	defer tick.Stop()
	for {
		revs.add(s.kvStore.Revision())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		rev := revs.oldest()
		if !s.replica.Status().IsLeader() || time.Since(lastTime) < wait || rev == last {
			continue
		}
		wait = interval
		fields := []zap.Field{zap.Int64("revision", rev), zap.Duration("compact-period", period)}
		s.logger.Info("starting auto periodic compaction", fields...)
		start := time.Now()
		if err := s.compactTo(ctx, rev); err != nil {
			s.logger.Warn("failed auto periodic compaction", append(fields, zap.Duration("retry-interval", sample), zap.Error(err))...)
			continue
		}
		s.logger.Info("completed auto periodic compaction", append(fields, zap.Duration("took", time.Since(start)))...)
		last, lastTime = rev, time.Now()
	}
}

func (s *Server) compactByRevision(ctx context.Context) {
	last := int64(0)
	tick := time.NewTicker(revisionCompactInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			last = s.compactRetaining(ctx, last)
		}
	}
}

// compactRetaining keeps the newest revisions as configured. It takes and
// returns the revision that was last compacted to.
func (s *Server) compactRetaining(ctx context.Context, last int64) int64 {
	rev := s.kvStore.Revision() - s.cfg.CompactRetained
	if !s.replica.Status().IsLeader() || rev <= 0 || rev == last {
		return last
	}
	fields := []zap.Field{zap.Int64("revision", rev), zap.Int64("revision-compaction-retention", s.cfg.CompactRetained)}
	s.logger.Info("starting auto revision compaction", fields...)
	start := time.Now()
	if err := s.compactTo(ctx, rev); err != nil {
		s.logger.Warn("failed auto revision compaction", append(fields, zap.Duration("retry-interval", revisionCompactInterval), zap.Error(err))...)
		return last
	}
	s.logger.Info("completed auto revision compaction", append(fields, zap.Duration("took", time.Since(start)))...)
	return rev
}

// compactTo compacts; what is compacted already is no error.
func (s *Server) compactTo(ctx context.Context, rev int64) error {
	_, err := s.kv.compact(ctx, &pb.CompactionRequest{Revision: rev})
	if errors.Is(err, mvcc.ErrCompacted) {
		return nil
	}
	return err
}

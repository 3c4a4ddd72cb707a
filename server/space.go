package server

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
)

const (
	defaultQuotaBytes = 2 << 30
)

// logQuota says which space quota holds, in etcd's words. Belay's store has no
// cliff at 8 GiB, so there is no warning beyond it.
func (s *Server) logQuota() {
	bytes := s.state.QuotaBytes()
	fields := []zap.Field{zap.String("quota-name", "v3-applier"), zap.Int64("quota-size-bytes", bytes)}
	switch {
	case bytes < 0:
		s.logger.Info("disabled backend quota", fields...)
	case bytes == defaultQuotaBytes:
		s.logger.Info("enabled backend quota with default value", append(fields, zap.String("quota-size", HumanBytes(bytes)))...)
	default:
		s.logger.Info("enabled backend quota", append(fields, zap.String("quota-size", HumanBytes(bytes)))...)
	}
}

// checkQuota refuses a request that would grow the database beyond its quota,
// and raises the NOSPACE alarm for the whole cluster.
func (s *Server) checkQuota(req any) error {
	if s.state.QuotaFits(req) {
		return nil
	}
	s.OverQuota()
	return rpctypes.ErrGRPCNoSpace
}

// OverQuota raises the NOSPACE alarm of this member: its database would be, or is,
// larger than its quota. It does not wait.
func (s *Server) OverQuota() {
	s.raiseNoSpace(func() {
		bytes := s.state.QuotaBytes()
		s.logger.Warn("message exceeded backend quota; raising alarm",
			zap.Int64("quota-size-bytes", bytes), zap.String("quota-size", HumanBytes(bytes)), zap.Error(errors.New("etcdserver: no space")),
			zap.String("what-to-do", "delete or compact, or restart with a larger --quota-backend-bytes; then disarm the NOSPACE alarm"))
	})
}

// raiseNoSpace proposes the alarm in the background, once at a time: the
// clients that are refused need not wait for it. say tells why, as often as
// that is tried.
func (s *Server) raiseNoSpace(say func()) {
	if s.noSpaceOfOwn() || !s.quotaAlarm.CompareAndSwap(false, true) {
		return
	}
	if s.noSpaceOfOwn() { // since the look above
		s.quotaAlarm.Store(false)
		return
	}
	say()
	s.background(func() {
		defer s.quotaAlarm.Store(false)
		ctx, cancel := context.WithTimeout(s.stopped, s.cfg.RequestTimeout)
		defer cancel()
		err := s.raiseItself(ctx, pb.AlarmType_NOSPACE)
		if err != nil && s.stopped.Err() == nil {
			s.logger.Warn("failed to raise the NOSPACE alarm", zap.Error(err))
		}
	})
}

// noSpaceOfOwn says whether this member's NOSPACE alarm is active.
func (s *Server) noSpaceOfOwn() bool {
	active, _ := s.state.Alarm(pb.AlarmType_NOSPACE, s.cfg.MemberID)
	return active
}

// watchSpace looks at the file systems under the store and the raft log. A disk that is full
// stops the member, for what is acknowledged must be written; so the cluster
// stops taking writes before, by the alarm that operators know. Here it is looked too whether the alarm may end.
func (s *Server) watchSpace(ctx context.Context) {
	tick := time.NewTicker(spaceLook)
	defer tick.Stop()
	for {
		free, err := s.cfg.FreeBytes()
		if err == nil && free < s.cfg.MinFreeBytes && !s.noSpaceOfOwn() {
			s.logger.Warn("the file system of the data directory is nearly full; raising alarm",
				zap.String("data-dir", s.cfg.DataDir), zap.String("wal-dir", s.cfg.WALDir),
				zap.Uint64("free-bytes", free), zap.Uint64("minimum-free-bytes", s.cfg.MinFreeBytes),
				zap.String("what-to-do", "free space or enlarge the volume, then disarm the NOSPACE alarm"))
			s.raiseNoSpace(func() {})
		}
		if err != nil { // what cannot be known has not raised the alarm either
			free = math.MaxInt64
		}
		s.makeRoom(free)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// watchAdmission samples the apply backlog for the gate.
func (s *Server) watchAdmission(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			st := s.replica.Status()
			var backlog int64
			if s.cfg.BacklogBytes != nil && st.Committed > st.Applied {
				backlog = s.cfg.BacklogBytes(st.Applied, st.Committed)
			}
			lag := s.cfg.Admission.Observe(now, st.Committed, st.Applied, backlog)
			s.metrics.admissionLag.Set(lag.Seconds())
		}
	}
}

// HumanBytes writes a size as etcd's log lines do: powers of ten, two digits.
func HumanBytes(n int64) string {
	if n < 0 {
		return "-" + HumanBytes(-n)
	}
	if n < 10 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), 0
	for value >= 1000 && unit < 6 {
		value /= 1000
		unit++
	}
	name := [...]string{"B", "kB", "MB", "GB", "TB", "PB", "EB"}[unit]
	if value < 10 && unit > 0 {
		return fmt.Sprintf("%.1f %s", value, name)
	}
	return fmt.Sprintf("%.0f %s", value, name)
}

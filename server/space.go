package server

import (
	"context"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"github.com/belaydb/belay/internal/show"
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
		s.logger.Info("enabled backend quota with default value", append(fields, zap.String("quota-size", show.LogBytes(bytes)))...)
	default:
		s.logger.Info("enabled backend quota", append(fields, zap.String("quota-size", show.LogBytes(bytes)))...)
	}
}

// checkQuota refuses a request that would grow the database beyond its quota,
// and raises the NOSPACE alarm for the whole cluster.
func (s *Server) checkQuota(req any) error {
	if s.state.QuotaFits(req) {
		return nil
	}
	s.space.Exceeded()
	return rpctypes.ErrGRPCNoSpace
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

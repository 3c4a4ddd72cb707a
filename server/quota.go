package server

import (
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"github.com/belaydb/belay/internal/show"
)

const (
	defaultQuotaBytes = 2 << 30
)

// logQuota logs which space quota holds, in etcd's words. Belay's store has no cliff at 8 GiB,
// so there is no warning beyond it.
func logQuota(logger *zap.Logger, bytes int64) {
	fields := []zap.Field{zap.String("quota-name", "v3-applier"), zap.Int64("quota-size-bytes", bytes)}
	switch {
	case bytes < 0:
		logger.Info("disabled backend quota", fields...)
	case bytes == defaultQuotaBytes:
		logger.Info("enabled backend quota with default value", append(fields, zap.String("quota-size", show.LogBytes(bytes)))...)
	default:
		logger.Info("enabled backend quota", append(fields, zap.String("quota-size", show.LogBytes(bytes)))...)
	}
}

// quota refuses what would grow the database beyond its quota.
type quota struct {
	fits     func(req any) bool // state.Machine.QuotaFits
	exceeded func()             // raises the NOSPACE alarm for the whole cluster, without waiting
}

func (q *quota) check(req any) error {
	if q.fits(req) {
		return nil
	}
	q.exceeded()
	return rpctypes.ErrGRPCNoSpace
}

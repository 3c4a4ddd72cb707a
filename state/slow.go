package state

import (
	"fmt"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/command"
)

// The lines below have etcd's messages and fields; values and passwords are redacted as etcd
// redacts them. Text is made only for what is written (a flood of such lines is sampled), and never
// more than RequestText's bound: the applier makes it, on every member.

func (a *application) warnSlow(took time.Duration, r *pb.InternalRaftRequest, out *command.Result) {
	a.m.slow(took, 0, r, "", func() string { return sizeText(out.Response) }, out.Err)
}

func (a *application) warnFailed(took time.Duration, r *pb.InternalRaftRequest, out *command.Result) {
	if line := a.m.logger.Check(zap.WarnLevel, "failed to apply request"); line != nil {
		line.Write(
			zap.Duration("took", took),
			zap.String("request", RequestText(r)),
			zap.String("response", sizeText(out.Response)),
			zap.Error(out.Err))
	}
}

// warnSlowCommit logs a batch whose write into the store took long; no single request in it is to
// blame.
func (a *application) warnSlowCommit(took time.Duration, last uint64, entries int) {
	a.m.metrics.slowApplies.Inc()
	a.m.logger.Warn("committing applied entries to the database took too long",
		zap.Duration("took", took), zap.Duration("expected-duration", a.m.cfg.WarningApply),
		zap.Int("entries", entries), zap.Uint64("last-index", last), zap.Int64("bytes", a.bytes))
}

// WarnSlowRange logs a read-only range that took longer than the warning duration; waited is the
// part of it spent waiting for a turn to read. Any goroutine may call it.
func (m *Machine) WarnSlowRange(took, waited time.Duration, r *pb.RangeRequest, resp *pb.RangeResponse, err error) {
	if took <= m.cfg.WarningApply {
		return
	}
	m.slow(took, waited, r, "read-only range ", func() string {
		if resp == nil {
			return ""
		}
		return rangeText(len(resp.Kvs), proto.Size(resp))
	}, err)
}

// WarnSlowKeys is WarnSlowRange for an answer that is no message: it has so many keys, and is of size
// bytes; 0: there is none.
func (m *Machine) WarnSlowKeys(took, waited time.Duration, r *pb.RangeRequest, keys, size int, err error) {
	if took <= m.cfg.WarningApply {
		return
	}
	m.slow(took, waited, r, "read-only range ", func() string {
		if size == 0 {
			return ""
		}
		return rangeText(keys, size)
	}, err)
}

func rangeText(keys, size int) string {
	return fmt.Sprintf("range_response_count:%d size:%d", keys, size)
}

// WarnSlowTxn logs a read-only transaction that took longer than the warning duration, as
// WarnSlowRange does. Any goroutine may call it.
func (m *Machine) WarnSlowTxn(took, waited time.Duration, r *pb.TxnRequest, resp *pb.TxnResponse, err error) {
	if took <= m.cfg.WarningApply {
		return
	}
	m.slow(took, waited, r, "read-only txn ", func() string {
		if resp == nil {
			return ""
		}
		var counts []string
		for _, op := range resp.Responses[:min(len(resp.Responses), logMessages)] {
			if rr := op.GetResponseRange(); rr != nil {
				counts = append(counts, fmt.Sprintf("range_response_count:%d", len(rr.Kvs)))
			}
		}
		return fmt.Sprintf("responses:<%s> size:%d", strings.Join(counts, " "), proto.Size(resp))
	}, err)
}

func (m *Machine) slow(took, waited time.Duration, request proto.Message, prefix string, response func() string, err error) {
	m.metrics.slowApplies.Inc()
	if line := m.logger.Check(zap.WarnLevel, "apply request took too long"); line != nil {
		fields := []zap.Field{
			zap.Duration("took", took),
			zap.Duration("expected-duration", m.cfg.WarningApply),
			zap.String("prefix", prefix),
			zap.String("request", RequestText(request)),
			zap.String("response", response()),
			zap.Error(err),
		}
		if waited > 0 {
			fields = append(fields, zap.Duration("waited for a turn", waited))
		}
		line.Write(fields...)
	}
}

func sizeText(resp proto.Message) string {
	if resp == nil {
		return ""
	}
	return fmt.Sprintf("size:%d", proto.Size(resp))
}

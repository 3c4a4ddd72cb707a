package state

import (
	"fmt"
	"strings"
	"time"

	"github.com/belaydb/belay/command"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// The lines below have etcd's messages and fields; values and passwords are redacted as etcd redacts them. Text is made
// only for what is logged.

func (m *Machine) warnSlow(took time.Duration, r *pb.InternalRaftRequest, out *command.Result) {
	m.slow(took, requestText(r), "", sizeText(out.Response), out.Err)
}

func (m *Machine) warnFailed(took time.Duration, r *pb.InternalRaftRequest, out *command.Result) {
	if !m.lg.Core().Enabled(zap.WarnLevel) {
		return
	}
	m.lg.Warn("failed to apply request",
		zap.Duration("took", took),
		zap.String("request", requestText(r)),
		zap.String("response", sizeText(out.Response)),
		zap.Error(out.Err))
}

// requestText is what of a request may be logged. etcd shows the letters of a simple token here; the rest of it is an
// index that can be guessed.
func requestText(r *pb.InternalRaftRequest) string {
	if r.Authenticate.GetSimpleToken() != "" {
		r = &pb.InternalRaftRequest{Header: r.Header, Authenticate: &pb.InternalAuthenticateRequest{Name: r.Authenticate.Name, SimpleToken: "redacted"}}
	}
	return (&pb.InternalRaftStringer{Request: r}).String()
}

// warnSlowCommit tells of a batch whose write into the store took long; no single request of it is to blame.
func (m *Machine) warnSlowCommit(took time.Duration, last uint64, entries int) {
	m.stats.slowApplies.Inc()
	m.lg.Warn("committing applied entries to the database took too long",
		zap.Duration("took", took), zap.Duration("expected-duration", m.cfg.WarningApply),
		zap.Int("entries", entries), zap.Uint64("last-index", last), zap.Int64("bytes", m.bytes))
}

// WarnSlowRange logs a read-only range that took longer than the warning duration. Any goroutine may call it.
func (m *Machine) WarnSlowRange(took time.Duration, r *pb.RangeRequest, resp *pb.RangeResponse, err error) {
	if took <= m.cfg.WarningApply {
		return
	}
	text := ""
	if resp != nil {
		text = fmt.Sprintf("range_response_count:%d size:%d", len(resp.Kvs), proto.Size(resp))
	}
	m.slow(took, r.String(), "read-only range ", text, err)
}

// WarnSlowTxn logs a read-only transaction that took longer than the warning duration. Any goroutine may call it.
func (m *Machine) WarnSlowTxn(took time.Duration, r *pb.TxnRequest, resp *pb.TxnResponse, err error) {
	if took <= m.cfg.WarningApply {
		return
	}
	text := ""
	if resp != nil {
		var counts []string
		for _, op := range resp.Responses {
			if rr := op.GetResponseRange(); rr != nil {
				counts = append(counts, fmt.Sprintf("range_response_count:%d", len(rr.Kvs)))
			}
		}
		text = fmt.Sprintf("responses:<%s> size:%d", strings.Join(counts, " "), proto.Size(resp))
	}
	m.slow(took, pb.NewLoggableTxnRequest(r).String(), "read-only txn ", text, err)
}

func (m *Machine) slow(took time.Duration, request, prefix, response string, err error) {
	m.stats.slowApplies.Inc()
	m.lg.Warn("apply request took too long",
		zap.Duration("took", took),
		zap.Duration("expected-duration", m.cfg.WarningApply),
		zap.String("prefix", prefix),
		zap.String("request", request),
		zap.String("response", response),
		zap.Error(err))
}

func sizeText(resp proto.Message) string {
	if resp == nil {
		return ""
	}
	return fmt.Sprintf("size:%d", proto.Size(resp))
}

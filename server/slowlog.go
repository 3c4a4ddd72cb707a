package server

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/state"
)

// logRequestStats writes etcd's `request stats`: a warning for a request that took longer than
// --warning-unary-request-duration, a debug line for all others when debug logging is on. The field
// names have spaces; operators' queries know them so. Values are told by their size only. What it has
// waited for comes in fields of Belay's own.
func (c *calls) logRequestStats(ctx context.Context, method string, req, resp any, start time.Time, took time.Duration, waited waitTimes) {
	level := zap.DebugLevel
	if took > c.warnAfter && !c.debug {
		level = zap.WarnLevel
	}
	line := c.logger.Check(level, "request stats")
	if line == nil {
		return // sampled away: no text is made for it
	}
	remote := "No remote client info."
	if p, ok := peer.FromContext(ctx); ok {
		remote = p.Addr.String()
	}
	st := requestStatsOf(req, resp)
	fields := []zap.Field{
		zap.Time("start time", start),
		zap.Duration("time spent", took),
		zap.String("remote", remote),
		zap.String("response type", method),
		zap.Int64("request count", st.requestCount),
		zap.Int("request size", st.requestSize),
		zap.Int64("response count", st.responseCount),
		zap.Int("response size", st.responseSize),
		zap.String("request content", st.content),
	}
	if waited.turn >= leastWait {
		fields = append(fields, zap.Duration("waited for a turn", waited.turn))
	}
	if waited.room >= leastWait {
		fields = append(fields, zap.Duration("waited for room", waited.room))
	}
	line.Write(fields...)
}

// leastWait is from where on a wait is worth a field.
const leastWait = time.Millisecond

type requestStats struct {
	requestCount, responseCount int64
	requestSize, responseSize   int
	content                     string
}

// requestStatsOf describes the key-value requests; others are all -1, and so
// are failed ones of a type that only the response tells, as with etcd.
func requestStatsOf(req, resp any) (st requestStats) {
	switch r := resp.(type) {
	case *pb.RangeResponse, *rangeReply:
		if q, ok := req.(*pb.RangeRequest); ok {
			st.requestSize, st.content = proto.Size(q), state.RequestText(q)
		}
		if got := replyOf(r); got.message != nil {
			st.responseCount, st.responseSize = got.message.Count, got.size()
		}
	case *pb.PutResponse:
		if q, ok := req.(*pb.PutRequest); ok {
			st.requestCount, st.requestSize = 1, proto.Size(q)
			st.content = state.RequestText(q)
		}
		if r != nil {
			st.responseSize = proto.Size(r)
		}
	case *pb.DeleteRangeResponse:
		if q, ok := req.(*pb.DeleteRangeRequest); ok {
			st.requestSize, st.content = proto.Size(q), state.RequestText(q)
		}
		if r != nil {
			st.responseCount, st.responseSize = r.Deleted, proto.Size(r)
		}
	case *pb.TxnResponse:
		if q, ok := req.(*pb.TxnRequest); ok && r != nil {
			ops := q.Failure
			if r.Succeeded {
				ops = q.Success
			}
			st.requestCount = int64(len(ops))
			for _, op := range ops {
				st.requestSize += proto.Size(op)
			}
			st.content = state.RequestText(q)
		}
		if r != nil {
			st.responseSize = proto.Size(r)
		}
	default:
		st = requestStats{requestCount: -1, requestSize: -1, responseCount: -1, responseSize: -1}
	}
	return st
}

package server

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
)

// Tracing, if set, makes OpenTelemetry spans of calls.
type Tracing struct {
	Tracer trace.Tracer
	// Option makes the grpc server take part: it reads the caller's span from
	// the metadata and begins one for each call.
	Option grpc.ServerOption
}

// callSpans makes etcd's spans of calls. A nil one makes none.
type callSpans struct{ tracer trace.Tracer }

func newSpans(t *Tracing) *callSpans {
	if t == nil {
		return nil
	}
	return &callSpans{t.Tracer}
}

// traced wraps a call so that it has etcd's span of its own inside grpc's. It is
// applied once, when a call is registered: without tracing it costs nothing.
func traced[Req, Resp any](s *callSpans, call func(context.Context, *Req) (*Resp, error)) func(context.Context, *Req) (*Resp, error) {
	if s == nil {
		return call
	}
	return func(ctx context.Context, req *Req) (*Resp, error) {
		ctx, end := s.start(ctx, req)
		defer end()
		return call(ctx, req)
	}
}

// start begins the span that etcd has for a request, if it has one. REQUIRES: s is not nil.
func (s *callSpans) start(ctx context.Context, req any) (context.Context, func()) {
	name, attributes := etcdSpan(req)
	if name == "" {
		return ctx, func() {}
	}
	ctx, span := s.tracer.Start(ctx, name, trace.WithAttributes(attributes...))
	return ctx, func() { span.End() }
}

func etcdSpan(req any) (string, []attribute.KeyValue) {
	switch r := req.(type) {
	case *pb.RangeRequest:
		return "range", []attribute.KeyValue{
			attribute.String("range_begin", string(r.Key)), attribute.String("range_end", string(r.RangeEnd)),
			attribute.Int64("rev", r.Revision), attribute.Int64("limit", r.Limit),
			attribute.Bool("count_only", r.CountOnly), attribute.Bool("keys_only", r.KeysOnly),
		}
	case *pb.PutRequest:
		return "put", []attribute.KeyValue{attribute.String("key", string(r.Key))}
	case *pb.DeleteRangeRequest:
		return "delete_range", []attribute.KeyValue{attribute.String("range_begin", string(r.Key)), attribute.String("range_end", string(r.RangeEnd))}
	case *pb.TxnRequest:
		key, kind, lease := firstOperations(r.Success)
		readOnly, nested, _ := txnReads(r)
		return "txn", []attribute.KeyValue{
			attribute.String("compare_first_key", firstCompareKey(r.Compare)), attribute.String("success_first_key", key),
			attribute.String("success_first_type", kind), attribute.Int64("success_first_lease", lease),
			attribute.Int("compare_len", len(r.Compare)), attribute.Int("success_len", len(r.Success)),
			attribute.Int("failure_len", len(r.Failure)), attribute.Bool("read_only", readOnly && !nested),
		}
	case *pb.CompactionRequest:
		return "compact", []attribute.KeyValue{attribute.Bool("is_physical", r.Physical), attribute.Int64("rev", r.Revision)}
	case *pb.LeaseGrantRequest:
		return "lease_grant", []attribute.KeyValue{attribute.Int64("id", r.ID), attribute.Int64("ttl", r.TTL)}
	case *pb.LeaseRevokeRequest:
		return "lease_revoke", []attribute.KeyValue{attribute.Int64("id", r.ID)}
	case *pb.LeaseKeepAliveRequest:
		return "lease_renew", []attribute.KeyValue{attribute.Int64("id", r.ID)}
	}
	return "", nil
}

func firstCompareKey(compares []*pb.Compare) string {
	for _, c := range compares {
		if len(c.GetKey()) > 0 {
			return string(c.Key)
		}
	}
	return ""
}

// firstOperations describes a branch as etcd does: the first key that is not
// empty, the first operation's kind, the first put's lease (-1: no put).
func firstOperations(ops []*pb.RequestOp) (key, kind string, lease int64) {
	lease = -1
	for _, operation := range ops {
		k, name := "", ""
		switch op := operation.GetRequest().(type) {
		case *pb.RequestOp_RequestRange:
			k, name = string(op.RequestRange.GetKey()), "range"
		case *pb.RequestOp_RequestPut:
			k, name = string(op.RequestPut.GetKey()), "put"
			if lease == -1 {
				lease = op.RequestPut.GetLease()
			}
		case *pb.RequestOp_RequestDeleteRange:
			k, name = string(op.RequestDeleteRange.GetKey()), "delete_range"
		case *pb.RequestOp_RequestTxn:
			name = "txn"
		}
		if key == "" {
			key = k
		}
		if kind == "" {
			kind = name
		}
	}
	return key, kind, lease
}

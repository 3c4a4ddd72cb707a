package server

import (
	"context"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// registerKV registers the KV service with its unary calls as streams that
// take one message and send one, which is what grpc makes of them anyway. It
// saves the closures of grpc's own handler and of the interceptor for each
// call, and, which weighs more, their stack frames: a goroutine that waits for
// its request and then for its result now does so within the 4 KiB that it
// begins with. Growing the stack was 6 % of the CPU of a put.
func (s *Server) registerKV(g *grpc.Server) {
	desc := pb.KV_ServiceDesc
	desc.Methods = nil
	desc.Streams = append(slices.Clip(desc.Streams),
		unaryStream(s, "Range", s.kv.Range),
		unaryStream(s, "Put", s.kv.Put),
		unaryStream(s, "DeleteRange", s.kv.DeleteRange),
		unaryStream(s, "Txn", s.kv.Txn),
		unaryStream(s, "Compact", s.kv.Compact),
	)
	g.RegisterService(&desc, s.kv)
}

func unaryStream[Req, Resp any](s *Server, name string, call func(context.Context, *Req) (*Resp, error)) grpc.StreamDesc {
	method := "/" + pb.KV_ServiceDesc.ServiceName + "/" + name
	m := s.metrics.grpc.method(method, "unary")
	call = traced(s, call)
	// Before and after the wait in functions of their own, so that what they
	// need of the stack is not held meanwhile.
	answer := func(ctx context.Context, req *Req) (*Resp, error) {
		start := time.Now()
		err := s.beginCall(ctx, m, method, req)
		var resp *Resp
		if err == nil {
			resp, err = call(ctx, req)
		}
		s.endCall(ctx, m, method, req, resp, err, start)
		return resp, err
	}
	return grpc.StreamDesc{
		StreamName: name,
		Handler: func(_ any, stream grpc.ServerStream) error {
			req := new(Req)
			if err := stream.RecvMsg(req); err != nil {
				return err
			}
			resp, err := answer(stream.Context(), req)
			if err != nil {
				return err
			}
			return stream.SendMsg(resp)
		},
	}
}

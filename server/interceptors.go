package server

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"
	"unicode/utf8"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// GRPCOptions are the options that a grpc.Server for RegisterGRPC must be made
// with. Credentials are the caller's to add.
func (s *Server) GRPCOptions() []grpc.ServerOption {
	opts := []grpc.ServerOption{
		grpc.ForceServerCodecV2(s.codec),
		grpc.UnaryInterceptor(s.interceptUnary),
		grpc.StreamInterceptor(s.interceptStream),
		grpc.MaxRecvMsgSize(s.cfg.MaxRequestBytes + recvOverheadBytes),
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.MaxConcurrentStreams(s.cfg.MaxConcurrentStreams),
		grpc.NumStreamWorkers(s.cfg.StreamWorkers),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: s.cfg.KeepaliveMinTime, PermitWithoutStream: false}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: s.cfg.KeepaliveInterval, Timeout: s.cfg.KeepaliveTimeout}),
	}
	if s.cfg.Tracing != nil {
		opts = append(opts, s.cfg.Tracing.Option)
	}
	return opts
}

// maxHeaderBytes is what the headers of one call may take when they are unpacked. grpc's own limit is 16 MiB, which
// a client packs into some KB: unpacking such headers again and again took a processor.
const maxHeaderBytes = 256 << 10

// recvOverheadBytes is what a received message may have beyond the largest
// request: etcd's allowance for the encoding around it.
const recvOverheadBytes = 512 << 10

// interceptUnary is the one interceptor of unary calls: a chain of separate
// ones (etcd has three or four) costs a closure and an allocation each. The
// calls of KV do the same without an interceptor; see registerKV.
func (s *Server) interceptUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	m := s.metrics.grpc.method(info.FullMethod, "unary")
	start := time.Now()

	var resp any
	err := s.beginCall(ctx, m, info.FullMethod, req)
	if s.cfg.Tracing != nil {
		traced, end := s.startSpan(ctx, req)
		defer end()
		ctx = traced
	}
	if err == nil && m.mayWait {
		ended := s.endable(ctx)
		resp, err = handler(ended, req)
		ended.cancel(nil)
	} else if err == nil {
		resp, err = handler(ctx, req)
	}
	s.endCall(ctx, m, info.FullMethod, req, resp, err, start)
	return resp, err
}

// beginCall counts a unary call and refuses it if no handler should see it.
//
//go:noinline
func (s *Server) beginCall(ctx context.Context, m *methodMetrics, method string, req any) error {
	m.started.Inc()
	m.received.Inc()
	err := s.mayCall(ctx, req, method, &s.metrics.unaryVersions)
	if err == nil && requiresLeader(ctx) && s.replica.Leader() == 0 {
		err = rpctypes.ErrGRPCNoLeader
	}
	return err
}

// endCall counts the end of a unary call, and logs it if it was slow.
//
//go:noinline
func (s *Server) endCall(ctx context.Context, m *methodMetrics, method string, req, resp any, err error, start time.Time) {
	m.sent.Inc()
	m.handledWith(s.metrics.grpc, codeOf(err)).Inc()
	took := time.Since(start)
	if m.seconds != nil {
		m.seconds.Observe(took.Seconds())
	}
	if took > s.cfg.WarnUnaryRequest || s.debug {
		s.logRequestStats(ctx, method, req, resp, start, took)
	}
}

// mayCall refuses what no handler should see: calls before the cluster's
// version is known, most calls on a learner, a client version that is not
// text. It counts the request by that version.
func (s *Server) mayCall(ctx context.Context, req any, method string, versions *versionCounters) error {
	if !s.capable() && !s.becameCapable(ctx) {
		return rpctypes.ErrGRPCNotCapable
	}
	if s.isLearner() && !allowedOnLearner(req, method) {
		return rpctypes.ErrGRPCNotSupportedForLearner
	}
	version := unknownVersion
	if v := metadata.ValueFromIncomingContext(ctx, rpctypes.MetadataClientAPIVersionKey); len(v) > 0 {
		version = v[0]
		if !utf8.ValidString(version) {
			return rpctypes.ErrGRPCInvalidClientAPIVersion
		}
	}
	versions.inc(version)
	return nil
}

// becameCapable waits, on a member that has just been started for the first
// time, until the cluster's version is decided: up to RequestTimeout. A client
// that is as fast as the member would have its first calls refused otherwise,
// with an error that nobody retries; etcd does not answer connections so early.
func (s *Server) becameCapable(ctx context.Context) bool {
	const interval = 5 * time.Millisecond // of looking; nobody tells of it
	tick := time.NewTicker(interval)
	defer tick.Stop()
	deadline := time.NewTimer(s.cfg.RequestTimeout)
	defer deadline.Stop()
	for !s.capable() {
		select {
		case <-tick.C:
		case <-deadline.C:
			return false
		case <-ctx.Done():
			return false
		case <-s.stopped.Done():
			return false
		}
	}
	return true
}

const snapshotMethod = "/etcdserverpb.Maintenance/Snapshot"

// allowedOnLearner: a learner tells of itself and reads locally, nothing else.
// req is nil for streams.
func allowedOnLearner(req any, method string) bool {
	switch r := req.(type) {
	case nil:
		return method == snapshotMethod
	case *pb.StatusRequest:
		return true
	case *pb.RangeRequest:
		return r.Serializable
	}
	return false
}

func requiresLeader(ctx context.Context) bool {
	v := metadata.ValueFromIncomingContext(ctx, rpctypes.MetadataRequireLeaderKey)
	return len(v) > 0 && v[0] == rpctypes.MetadataHasLeader
}

// codeOf is the code that grpc will put on the wire for a handler's error.
func codeOf(err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	if st, ok := status.FromError(err); ok {
		return st.Code()
	}
	return status.FromContextError(err).Code()
}

// interceptStream is interceptUnary for streams.
func (s *Server) interceptStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	m := s.metrics.grpc.method(info.FullMethod, streamKind(info.IsClientStream, info.IsServerStream))
	m.started.Inc()
	start := time.Now()

	err := s.mayCall(stream.Context(), nil, info.FullMethod, &s.metrics.streamVersions)
	if err == nil {
		ctx := s.endable(stream.Context())
		counted := &countedStream{ServerStream: stream, method: m, ctx: ctx}
		if requiresLeader(ctx) {
			err = s.withLeader(ctx, func() error { return handler(srv, counted) })
		} else {
			err = handler(srv, counted)
		}
		ctx.cancel(nil)
	}

	m.handledWith(s.metrics.grpc, codeOf(err)).Inc()
	if m.seconds != nil {
		m.seconds.Observe(time.Since(start).Seconds())
	}
	return err
}

// countedStream counts messages and carries a context of ours.
type countedStream struct {
	grpc.ServerStream
	method *methodMetrics
	ctx    *endableContext
}

func (c *countedStream) Context() context.Context { return c.ctx }

func (c *countedStream) SendMsg(m any) error {
	err := c.ServerStream.SendMsg(m)
	if err == nil {
		c.method.sent.Inc()
	}
	return err
}

func (c *countedStream) RecvMsg(m any) error {
	err := c.ServerStream.RecvMsg(m)
	if err == nil {
		c.method.received.Inc()
	}
	return err
}

// endableContext is the context of a call that may last: the server ends it,
// and then its Err is the reason, so that a handler that returns ctx.Err()
// answers it.
type endableContext struct {
	context.Context
	cancel context.CancelCauseFunc
}

// endable makes a context that ends when the server stops. Its cancel must be
// called.
func (s *Server) endable(ctx context.Context) *endableContext {
	inner, cancel := context.WithCancelCause(ctx)
	forget := context.AfterFunc(s.stopped, func() { cancel(rpctypes.ErrGRPCStopped) })
	return &endableContext{Context: inner, cancel: func(cause error) { forget(); cancel(cause) }}
}

func (c *endableContext) Err() error {
	if c.Context.Err() == nil {
		return nil
	}
	if cause := context.Cause(c.Context); cause == rpctypes.ErrGRPCNoLeader || cause == rpctypes.ErrGRPCStopped {
		return cause
	}
	return c.Context.Err()
}

// leaderStreams are the open streams that want a leader: they are ended with
// `no leader` once there has been none for long. New calls are refused at
// once; a stream costs more to set up again, so it is given three election
// timeouts.
type leaderStreams struct {
	mu   sync.Mutex
	open map[*endableContext]struct{} // guarded by mu
}

const leaderlessElections = 3

func (s *Server) withLeader(ctx *endableContext, call func() error) error {
	if s.replica.Leader() == 0 {
		return rpctypes.ErrGRPCNoLeader
	}
	ls := &s.leaderStreams
	ls.mu.Lock()
	ls.open[ctx] = struct{}{}
	ls.mu.Unlock()
	defer func() {
		ls.mu.Lock()
		delete(ls.open, ctx)
		ls.mu.Unlock()
	}()
	return call()
}

// cancelAll ends all streams that want a leader.
func (ls *leaderStreams) cancelAll() {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for ctx := range ls.open {
		ctx.cancel(rpctypes.ErrGRPCNoLeader)
	}
}

// watchLeader runs until ctx ends.
func (s *Server) watchLeader(ctx context.Context) {
	tick := time.NewTicker(s.cfg.ElectionTimeout)
	defer tick.Stop()
	without := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if s.replica.Leader() != 0 {
			without = 0
			continue
		}
		if without++; without >= leaderlessElections {
			s.leaderStreams.cancelAll()
		}
	}
}

// clientGone says that a stream failed because its client left, which is not
// worth a warning.
func clientGone(ctx context.Context, err error) bool {
	if ctx.Err() != nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	st, ok := status.FromError(err)
	if !ok {
		return false
	}
	switch st.Code() {
	case codes.Canceled, codes.DeadlineExceeded:
		return true
	case codes.Unavailable:
		msg := st.Message()
		return msg == "client disconnected" || len(msg) > 22 && msg[:14] == "stream error: " && msg[len(msg)-8:] == "; CANCEL"
	}
	return false
}

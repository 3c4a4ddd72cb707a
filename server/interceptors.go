package server

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/coreos/go-semver/semver"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// calls is what every call of gRPC passes.
type calls struct {
	leader         func() uint64          // 0: none known
	clusterVersion func() *semver.Version // nil: not decided yet
	isLearner      func() bool            // this member is one
	spans          *callSpans             // nil: none
	codec          *countingCodec
	life           *lifetime
	requestTimeout time.Duration
	// electionTimeout: streams that want a leader end when there has been none for
	// leaderlessElections of them.
	electionTimeout time.Duration
	warnAfter       time.Duration // what takes longer is logged
	debug           bool          // debug logging is on: every request is logged
	metrics         *Metrics
	usage           *usageOf
	logger          *zap.Logger

	versionKnown atomic.Bool   // the cluster version was seen once: it never goes away again
	streams      leaderStreams // that want a leader
}

// capable reports whether requests may be served: the cluster has agreed on a version.
func (c *calls) capable() bool {
	if c.versionKnown.Load() {
		return true
	}
	if c.clusterVersion() == nil {
		return false
	}
	c.versionKnown.Store(true)
	return true
}

// maxHeaderBytes bounds the uncompressed headers of one call. grpc's own limit is 16 MiB, which a
// client can compress to some KB: decompressing such headers again and again kept a processor busy.
const maxHeaderBytes = 256 << 10

// recvOverheadBytes is how much longer than the largest request a received message may be: etcd's
// allowance for the encoding.
const recvOverheadBytes = 512 << 10

// interceptUnary is the one interceptor of unary calls: a chain of separate
// ones (etcd has three or four) costs a closure and an allocation each. The
// calls of KV do the same without an interceptor; see registerKV.
func (c *calls) interceptUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	m := c.metrics.grpc.method(info.FullMethod, "unary")
	start := time.Now()

	var resp any
	err := c.beginCall(ctx, m, info.FullMethod, req)
	if err == nil {
		err = awaitRoom(ctx, req)
	}
	if c.spans != nil {
		traced, end := c.spans.start(ctx, req)
		defer end()
		ctx = traced
	}
	if err == nil && m.mayWait {
		ended := c.life.endable(ctx)
		resp, err = handler(ended, req)
		ended.cancel(nil)
	} else if err == nil {
		resp, err = handler(ctx, req)
	}
	c.endCall(ctx, m, info.FullMethod, req, resp, err, start, waitTimes{})
	return resp, err
}

// beginCall counts a unary call and refuses it if no handler should see it.
//
//go:noinline
func (c *calls) beginCall(ctx context.Context, m *methodMetrics, method string, req any) error {
	m.started.Inc()
	m.received.Inc()
	err := c.mayCall(ctx, req, method, &c.metrics.unaryVersions)
	if err == nil && requiresLeader(ctx) && c.leader() == 0 {
		err = rpctypes.ErrGRPCNoLeader
	}
	return err
}

// endCall counts the end of a unary call, and logs it if it was slow.
//
//go:noinline
func (c *calls) endCall(ctx context.Context, m *methodMetrics, method string, req, resp any, err error, start time.Time, waited waitTimes) {
	m.sent.Inc()
	m.handledWith(c.metrics.grpc, codeOf(err)).Inc()
	took := time.Since(start)
	if m.seconds != nil {
		m.seconds.Observe(took.Seconds())
	}
	c.usage.call(ctx, req, resp, err)
	if took > c.warnAfter || c.debug {
		c.logRequestStats(ctx, method, req, resp, start, took, waited)
	}
}

// mayCall refuses calls that no handler should see: before the cluster's version is known, most
// calls on a learner, and those with a client version that is not text. It counts the request by
// that version.
func (c *calls) mayCall(ctx context.Context, req any, method string, versions *versionCounters) error {
	if !c.capable() && !c.becameCapable(ctx) {
		return rpctypes.ErrGRPCNotCapable
	}
	if c.isLearner() && !allowedOnLearner(req, method) {
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

// becameCapable waits, on a member that has just been started for the first time, until the
// cluster's version is decided: up to RequestTimeout. Otherwise a fast client would have its first
// calls refused, with an error that no client retries; etcd does not answer connections so early.
func (c *calls) becameCapable(ctx context.Context) bool {
	const interval = 5 * time.Millisecond // between two checks; nothing signals it
	tick := time.NewTicker(interval)
	defer tick.Stop()
	deadline := time.NewTimer(c.requestTimeout)
	defer deadline.Stop()
	for !c.capable() {
		select {
		case <-tick.C:
		case <-deadline.C:
			return false
		case <-ctx.Done():
			return false
		case <-c.life.stopped.Done():
			return false
		}
	}
	return true
}

const snapshotMethod = "/etcdserverpb.Maintenance/Snapshot"

// allowedOnLearner reports whether a learner takes the call: only its status and local reads. req
// is nil for streams.
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
func (c *calls) interceptStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	m := c.metrics.grpc.method(info.FullMethod, streamKind(info.IsClientStream, info.IsServerStream))
	m.started.Inc()
	start := time.Now()

	err := c.mayCall(stream.Context(), nil, info.FullMethod, &c.metrics.streamVersions)
	if err == nil {
		ctx := c.life.endable(stream.Context())
		counted := &countedStream{ServerStream: stream, method: m, ctx: ctx, usage: c.usage}
		if requiresLeader(ctx) {
			err = c.withLeader(ctx, func() error { return handler(srv, counted) })
		} else {
			err = handler(srv, counted)
		}
		ctx.cancel(nil)
	}

	m.handledWith(c.metrics.grpc, codeOf(err)).Inc()
	if m.seconds != nil {
		m.seconds.Observe(time.Since(start).Seconds())
	}
	return err
}

// countedStream counts messages and has its own context.
type countedStream struct {
	grpc.ServerStream
	method *methodMetrics
	ctx    *endableContext
	usage  *usageOf
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
		c.usage.message(c.ctx, m)
	}
	return err
}

// leaderStreams are the open streams that require a leader: they end with `no leader` once there
// has been none for three election timeouts. New calls are refused at once, but a stream is more
// expensive to set up again.
type leaderStreams struct {
	mu   sync.Mutex
	open map[*endableContext]struct{} // guarded by mu
}

const leaderlessElections = 3

func (c *calls) withLeader(ctx *endableContext, call func() error) error {
	if c.leader() == 0 {
		return rpctypes.ErrGRPCNoLeader
	}
	ls := &c.streams
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

// cancelAll ends all streams that require a leader.
func (ls *leaderStreams) cancelAll() {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for ctx := range ls.open {
		ctx.cancel(rpctypes.ErrGRPCNoLeader)
	}
}

// watchLeader runs until ctx ends.
func (c *calls) watchLeader(ctx context.Context) {
	tick := time.NewTicker(c.electionTimeout)
	defer tick.Stop()
	without := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if c.leader() != 0 {
			without = 0
			continue
		}
		if without++; without >= leaderlessElections {
			c.streams.cancelAll()
		}
	}
}

// clientGone reports that a stream failed because its client left, which is not worth a warning.
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

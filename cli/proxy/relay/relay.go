package relay

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/cli/proxy/cache"
	"github.com/belaydb/belay/cli/proxy/upstream"
	"github.com/belaydb/belay/rpc"
)

// Config is what a Relay is made from.
type Config struct {
	Cluster   *upstream.Set
	Namespace string // of all keys; "": none
	// MemberList, if not nil, are the members that clients are told in place of the cluster's.
	MemberList func() []*pb.Member
	// OneFloor: no response is older than what any connection has had.
	OneFloor bool
	// LogPayloads logs every message.
	LogPayloads bool
	// FragmentBytes is the size from which responses are split for watches that asked for it [2 MiB].
	FragmentBytes int
	// UnreadBytes bounds what forwarded answers hold that clients have not read, together, over an
	// rpc.Server [128 MiB].
	UnreadBytes int64
	// Cache, if Bytes is not 0, is what reads are answered from. Prefix is the Namespace.
	Cache   cache.Config
	Metrics *Metrics    // [unregistered]
	Logger  *zap.Logger // nil: none
}

// A Relay answers calls.
type Relay struct {
	cfg      Config
	ns       namespace
	methods  map[string]*method
	unknown  *method
	payloads *payloadLog
	floor    *atomic.Int64 // nil: each connection has its own
	watching watching
	keeping  keeping
	caching  *caching    // nil: none
	server   *rpc.Server // that answers are bounded on; nil: none
	// forwarded is how many unary calls are, or wait for room to be.
	forwarded atomic.Int64
	stopping  chan struct{} // closed when the streams that would not end by themselves end
	stop      func()
}

// New makes a Relay.
func New(cfg Config) (*Relay, error) {
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(nil)
	}
	if cfg.FragmentBytes == 0 {
		cfg.FragmentBytes = 2 << 20
	}
	if cfg.UnreadBytes == 0 {
		cfg.UnreadBytes = 128 << 20
	}
	r := &Relay{cfg: cfg, ns: namespace(cfg.Namespace)}
	var err error
	if r.methods, err = allMethods(); err != nil {
		return nil, err
	}
	for _, m := range r.methods {
		m.counts = cfg.Metrics.method(m.kind(), m.service, m.name)
	}
	// One for all: clients make no series of their own.
	r.unknown = &method{service: "unknown", name: "unknown", clientStreams: true, serverStreams: true}
	r.unknown.counts = cfg.Metrics.method(r.unknown.kind(), "unknown", "unknown")
	if cfg.LogPayloads {
		r.payloads = &payloadLog{cfg.Logger}
	}
	r.stopping = make(chan struct{})
	r.stop = sync.OnceFunc(func() { close(r.stopping) })
	r.keeping.hubs = newHubs(func(l hubLife) *keepHub { return newKeepHub(r, l) })
	r.watching.hubs = newHubs(func(l hubLife) *watchHub { return newWatchHub(r, l) })
	if cfg.OneFloor {
		r.floor = new(atomic.Int64)
	}
	if cfg.Cache.Bytes > 0 {
		r.caching = newCaching(r)
	}
	return r, nil
}

// Stop ends the clients' watches and keepalives with Unavailable, now and later: their clients go on at
// another proxy.
func (r *Relay) Stop() {
	r.stop()
	r.caching.stop()
}

func errStopping() error { return status.Error(codes.Unavailable, "belay proxy: shutting down") }

// Register has the Relay answer the calls of a server that was made with GRPCOptions, or with
// RPCOptions' fields.
func (r *Relay) Register(g grpc.ServiceRegistrar) {
	if own, ok := g.(*rpc.Server); ok {
		r.server = own
	}
	descs := make(map[string]*grpc.ServiceDesc)
	for _, m := range r.methods {
		d := descs[m.service]
		if d == nil {
			d = &grpc.ServiceDesc{ServiceName: m.service}
			descs[m.service] = d
		}
		// One that does not stream is registered like the others: its messages are passed on, not
		// decoded by grpc.
		d.Streams = append(d.Streams, grpc.StreamDesc{
			StreamName: m.name, ClientStreams: m.clientStreams, ServerStreams: m.serverStreams,
			Handler: func(_ any, s grpc.ServerStream) error { return r.handle(m, m.full, s) },
		})
	}
	for _, d := range descs {
		g.RegisterService(d, nil)
	}
}

// handleUnknown answers what the proxy does not know: members may.
func (r *Relay) handleUnknown(_ any, s grpc.ServerStream) error {
	full, _ := grpc.MethodFromServerStream(s)
	return r.handle(r.unknown, full, s)
}

// RPCOptions sets what an rpc.Server for Register must be made with.
func (r *Relay) RPCOptions(o *rpc.Options) {
	o.Codec, o.Unknown, o.AnswerBytes = upstream.Codec(), r.handleUnknown, r.cfg.UnreadBytes
	o.Connected = func(ctx context.Context) (context.Context, func()) {
		c := r.newConnection()
		return context.WithValue(ctx, connectionKey{}, c), c.end
	}
}

// GRPCOptions are those that a grpc.Server for Register must be made with.
func (r *Relay) GRPCOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(upstream.Codec()), grpc.UnknownServiceHandler(r.handleUnknown), grpc.StatsHandler(connections{r}),
	}
}

// A connection is one of a client: what it has seen, and what it is being sent.
type connection struct {
	client  *upstream.Client
	ledger  *ledger // nil: there is no cache
	answers answers
	last    asker // of its reader
}

type connectionKey struct{}

func (r *Relay) newConnection() *connection {
	c := &connection{client: upstream.NewClient(r.floor)}
	if r.caching != nil {
		c.ledger = &ledger{all: &r.caching.sending}
	}
	return c
}

// end notes that the connection has ended.
func (c *connection) end() {
	if c.ledger != nil {
		c.ledger.end()
	}
}

// connections gives each connection of a grpc.Server its state.
type connections struct{ *Relay }

func (c connections) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	return context.WithValue(ctx, connectionKey{}, c.newConnection())
}

func (connections) HandleConn(ctx context.Context, s stats.ConnStats) {
	if c, ok := ctx.Value(connectionKey{}).(*connection); ok {
		if _, ended := s.(*stats.ConnEnd); ended {
			c.end()
		}
	}
}

func (connections) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }
func (connections) HandleRPC(context.Context, stats.RPCStats)                       {}

// A call is one call of a client.
type call struct {
	*Relay
	method *method
	full   string
	stream grpc.ServerStream
	*connection
	// ctx is for the call to a member: the client's metadata, which is md, and its deadline.
	ctx context.Context
	md  metadata.MD
}

func (r *Relay) handle(m *method, full string, s grpc.ServerStream) error {
	in, _ := metadata.FromIncomingContext(s.Context())
	c := &call{Relay: r, method: m, full: full, stream: s, md: passed(in)}
	c.ctx = metadata.NewOutgoingContext(s.Context(), c.md)
	if c.connection, _ = s.Context().Value(connectionKey{}).(*connection); c.connection == nil {
		c.connection = r.newConnection() // net/http has got the call: it is a connection of its own
		defer c.connection.end()
	}
	c.method.counts.started.Inc()
	err := c.answer()
	if err != nil && s.Context().Err() != nil && status.Code(err) == codes.Unknown {
		err = status.FromContextError(s.Context().Err()).Err()
	}
	c.method.counts.ended(status.Code(err))
	return err
}

func (c *call) answer() error {
	switch {
	case c.full == watchMethod:
		return c.watch()
	case c.full == keepAliveMethod:
		return c.keepAlive()
	case c.method.clientStreams:
		return c.both()
	case c.method.serverStreams:
		return c.many()
	}
	return c.one()
}

// receive takes a message from the client.
func (c *call) receive() (*upstream.Frame, error) {
	f := &upstream.Frame{}
	if err := c.stream.RecvMsg(f); err != nil {
		return nil, err
	}
	c.method.counts.received.Inc()
	c.payloads.request(c.stream.Context(), c.method, f.Head)
	if c.ns == "" || c.method.request == nil {
		return f, nil
	}
	m, err := decode(c.method.request, f.Head)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "grpc: error unmarshalling request: %v", err)
	}
	if err := c.ns.request(m); err != nil {
		return nil, err
	}
	return encode(m)
}

func encode(m proto.Message) (*upstream.Frame, error) {
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &upstream.Frame{Head: b}, nil
}

// send gives a message to the client.
func (c *call) send(f *upstream.Frame) error {
	if members := c.cfg.MemberList; members != nil && c.full == memberListMethod {
		var err error
		if f, err = withMembers(f, members()); err != nil {
			return err
		}
	}
	if c.ns != "" && c.method.answer != nil {
		m, err := decode(c.method.answer, f.Head)
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		c.ns.answer(m)
		if f, err = encode(m); err != nil {
			return err
		}
	}
	c.payloads.answer(c.stream.Context(), c.method, f.Head)
	c.method.counts.sent.Inc()
	return c.stream.SendMsg(f)
}

func withMembers(f *upstream.Frame, members []*pb.Member) (*upstream.Frame, error) {
	r := &pb.MemberListResponse{}
	if err := proto.Unmarshal(f.Head, r); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	r.Members = members
	return encode(r)
}

// one is a unary call.
func (c *call) one() error {
	f, err := c.receive()
	if err != nil {
		return err
	}
	if c.full == rangeMethod {
		if answered, err := c.fromCache(f); answered {
			return err
		}
	}
	resp, err := c.forward(c.method.ask(f))
	if len(resp.Header) > 0 {
		if err := c.stream.SetHeader(passed(resp.Header)); err != nil {
			return err
		}
	}
	c.stream.SetTrailer(passed(resp.Trailer))
	c.forgetLease(c.method, f)
	if err != nil {
		return err
	}
	c.client.Advance(resp.Frame.Revision())
	return c.send(&resp.Frame)
}

// forward asks a member, when there is room for the answer.
func (c *call) forward(q upstream.Request) (*upstream.Response, error) {
	ctx := c.stream.Context()
	if !rpc.HasRoom(ctx) {
		return c.cfg.Cluster.Call(c.ctx, c.client, q)
	}
	c.forwarded.Add(1)
	defer c.forwarded.Add(-1)
	for n := c.foresee(c.connection, c.method, &q); ; {
		if n > 0 {
			if err := rpc.AwaitRoom(ctx, n); err != nil {
				return &upstream.Response{}, status.FromContextError(err).Err()
			}
		}
		resp, err := c.cfg.Cluster.Call(c.ctx, c.client, q)
		if n = c.again(&q, err); n == 0 {
			c.answers.had(&q, resp.Frame.Size())
			return resp, err
		}
	}
}

// forgetLease has no keepalive be answered from what was known of a lease that the call has changed, or
// may have.
func (r *Relay) forgetLease(m *method, f *upstream.Frame) {
	if m.full != revokeMethod && m.full != grantMethod {
		return
	}
	request, err := decode(m.request, f.Head)
	if err != nil {
		return
	}
	if of, ok := request.(interface{ GetID() int64 }); ok && of.GetID() != 0 {
		r.keeping.forget(of.GetID())
	}
}

// many is a call with one request and a stream of answers. Until the first answer has come it may be
// asked elsewhere.
func (c *call) many() error {
	f, err := c.receive()
	if err != nil {
		return err
	}
	s, first, cancel, err := c.begin(f)
	defer cancel()
	if s == nil {
		return err
	}
	return c.passOn(s, first, err)
}

// passOn gives the client the first answer of a stream, which err says of, and those that follow, with
// what goes with them, and returns how the stream has ended.
func (c *call) passOn(s grpc.ClientStream, first *upstream.Frame, err error) error {
	// It does not wait: a message has come, or the end.
	if header, err := s.Header(); err == nil {
		if err := c.stream.SetHeader(passed(header)); err != nil {
			return err
		}
	}
	if err == nil {
		c.seen(first)
		if err = c.send(first); err != nil {
			return err
		}
		err = c.copyAnswers(s)
	}
	c.stream.SetTrailer(passed(s.Trailer()))
	if errors.Is(err, io.EOF) {
		return nil
	}
	return upstream.Lost(err)
}

// begin opens a call with one request at a member and waits for its first answer. While that is an
// error after which the call may be asked again, or one that is too old, others are asked. cancel
// ends the call. The stream is nil if none was opened, and io.EOF an end without an answer.
func (c *call) begin(f *upstream.Frame) (s grpc.ClientStream, first *upstream.Frame, cancel context.CancelFunc, err error) {
	const attempts = 4
	floor := c.client.Seen()
	for count := 1; ; count++ {
		var ctx context.Context
		ctx, cancel = context.WithCancel(c.ctx)
		if s, _, err = c.cfg.Cluster.Open(ctx, c.client, &grpc.StreamDesc{ServerStreams: true}, c.full); err != nil {
			return nil, nil, cancel, err
		}
		first = &upstream.Frame{}
		if err = s.SendMsg(f); err == nil || errors.Is(err, io.EOF) { // with EOF, RecvMsg has the error
			if err = s.CloseSend(); err == nil {
				err = s.RecvMsg(first)
			}
		}
		again := false
		if count < attempts && c.ctx.Err() == nil {
			switch {
			case err == nil && c.full == rangeStream && serializable(f.Head) && first.Nested() < floor:
				// Only the last part of a long one says how old it is.
				f, again = linearizable(f), true
			case status.Code(err) == codes.Unavailable:
				again = c.method.read
			}
		}
		if !again {
			return s, first, cancel, err
		}
		cancel()
	}
}

// copyAnswers gives the client what comes, until it ends; io.EOF: well.
func (c *call) copyAnswers(s grpc.ClientStream) error {
	for {
		f := &upstream.Frame{}
		if err := s.RecvMsg(f); err != nil {
			return err
		}
		c.seen(f)
		if err := c.send(f); err != nil {
			return err
		}
	}
}

// seen has no later read of the client be older than a part of a stream.
func (c *call) seen(f *upstream.Frame) {
	if c.full == rangeStream {
		c.client.Advance(f.Nested())
	} else {
		c.client.Advance(f.Revision())
	}
}

// both is a call with streams in both directions.
func (c *call) both() error {
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	s, _, err := c.cfg.Cluster.Open(ctx, c.client, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, c.full)
	if err != nil {
		return err
	}
	refused := make(chan error, 1)
	// Not waited for: it ends with the call.
	go func() {
		for {
			f, err := c.receive()
			if errors.Is(err, io.EOF) {
				_ = s.CloseSend() // RecvMsg has its error
				return
			}
			if err == nil {
				err = s.SendMsg(f)
			}
			if errors.Is(err, io.EOF) {
				return // RecvMsg has the error
			}
			if err != nil {
				refused <- err
				cancel()
				return
			}
		}
	}()
	first := &upstream.Frame{}
	err = s.RecvMsg(first)
	err = c.passOn(s, first, err)
	select {
	case err := <-refused:
		return err
	default:
	}
	return err
}

// passed is the metadata that is meant for the other end, not for this connection; nil: none.
func passed(md metadata.MD) (out metadata.MD) {
	for key, values := range md {
		switch {
		case strings.HasPrefix(key, ":"), strings.HasPrefix(key, "grpc-"):
		// The length is that of the message as it came, packed perhaps, and without the namespace.
		case key == "content-type", key == "content-length", key == "user-agent", key == "te", key == "host":
		default:
			if out == nil {
				out = make(metadata.MD, len(md))
			}
			out[key] = values
		}
	}
	return out
}

package rpc

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
)

// Options of a Server. Those without a default must be set.
type Options struct {
	// Codec reads and writes messages, whatever the content type's subtype.
	Codec encoding.CodecV2
	// Unary and Stream are what calls pass before their handlers; nil: nothing.
	Unary  grpc.UnaryServerInterceptor
	Stream grpc.StreamServerInterceptor
	// Unknown serves the calls of all paths that are not registered, on which both sides may stream;
	// nil: they are refused.
	Unknown grpc.StreamHandler
	// Connected is told of each connection once its handshake is over, with the context of its calls,
	// which has the peer; it returns the one that they get, and what is called, once, when the
	// connection has ended and holds none of its answers any more (nil: nothing). It must not wait.
	// nil: nobody.
	Connected func(ctx context.Context) (calls context.Context, ended func())
	// Credentials make the handshake; nil: there is none, and nothing is known of the client.
	Credentials credentials.TransportCredentials
	// Tap may refuse a call before it has a goroutine. It is called with a connection's lock held
	// and must not wait. nil: all are let in. ctx has the connection's peer.
	Tap func(ctx context.Context, method string) error
	// MaxRecvBytes and MaxSendBytes bound a message without its compression [4 MiB, 2 GiB].
	MaxRecvBytes, MaxSendBytes int
	// StreamWindow is how many bytes of a message may come before its length is looked at: 16,384 to
	// 65,535 [65,535]. LongBytes bounds what longer ones of all connections hold beyond that, until
	// their unary calls end [192 MiB]: more of them wait at their clients. One alone may be longer.
	StreamWindow, LongBytes int64
	// LongWaited is told of each long message that is let in how long it has waited. It must not wait.
	// nil: nobody.
	LongWaited func(time.Duration)
	// LongRefused is told of a client on whose connection too many long messages wait, so that one is
	// refused. It must not wait. nil: nobody.
	LongRefused func(client net.Addr)
	// AnswerBytes bounds what answers to unary calls of all connections hold, of those that ask for
	// room, until their clients have taken them [256 MiB]; see Call.Reserve and AwaitRoom.
	AnswerBytes int64
	// Unread is told of a client that does not take an answer of so many bytes while others wait for
	// room, so that its call is ended. It is called with locks held and must not wait. nil: nobody.
	Unread func(client net.Addr, bytes int64)
	// MaxHeaderBytes bounds the headers of a call, in the sense of HTTP/2's header list [256 KiB].
	MaxHeaderBytes int
	// MaxStreams bounds the open calls of a connection; 0: no bound.
	MaxStreams uint32
	// KeepaliveMinTime is how often a client may ping [5 min]; PermitWithoutStream: also while it
	// has no call.
	KeepaliveMinTime    time.Duration
	PermitWithoutStream bool
	// Keepalive is the server's side, as grpc-go has it; 0 is never for the ages. Time is a second at
	// least.
	Keepalive keepalive.ServerParameters
	// For tests: they have no time, and h2spec's requests are no calls.
	pingOften, anyRequest bool
	patience              time.Duration // longPatience
}

// A method is what serves a path: one of unary and stream.
type method struct {
	unary  *grpc.MethodDesc
	stream *grpc.StreamDesc
	info   grpc.StreamServerInfo
	hot    Hot        // nil: none
	each   HotMessage // nil: none
	impl   any
}

// A DirectCodec is a Codec that knows messages which append themselves to what leaves on a connection.
type DirectCodec interface {
	encoding.CodecV2
	// Direct is what Marshal would be asked for; false: it is to be asked.
	Direct(message any) (Message, bool)
}

// A Server serves gRPC. It is a grpc.ServiceRegistrar: what is registered, before the first Serve,
// is called as grpc.Server would. Any goroutine may use it then.
type Server struct {
	opts     Options
	long     *longWindows
	room     answerRoom
	methods  map[string]*method  // by path; not changed after the first Serve
	others   *method             // Options.Unknown; nil: none
	services map[string]struct{} // the names of the registered ones
	work     chan func()         // to idle workers
	idle     atomic.Int32        // workers
	born     time.Time

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	shaking   map[net.Conn]struct{} // connections before their handshake's end
	conns     map[*conn]struct{}
	stopped   bool
	quit      chan struct{}  // closed by Stop and GracefulStop, once no connection is left
	quitOnce  sync.Once      // for quit
	serving   sync.WaitGroup // connections
	handlers  sync.WaitGroup
}

// New makes a Server; Stop it.
func New(o Options) *Server {
	o.setDefaults()
	s := &Server{
		opts: o, long: newLongWindows(o.LongBytes, o.patience), methods: make(map[string]*method), services: make(map[string]struct{}), work: make(chan func()), born: time.Now(),
		listeners: make(map[net.Listener]struct{}), shaking: make(map[net.Conn]struct{}), conns: make(map[*conn]struct{}), quit: make(chan struct{}),
	}
	s.room = answerRoom{most: o.AnswerBytes, often: roomInterval, every: takeInterval, calls: maxWaits, small: maxSmall, unread: o.Unread, freed: make(chan struct{}, 1), waiting: make(map[*conn]struct{})}
	if o.Unknown != nil {
		s.others = &method{stream: &grpc.StreamDesc{Handler: o.Unknown, ClientStreams: true, ServerStreams: true}}
	}
	return s
}

// RegisterService is grpc.ServiceRegistrar's.
func (s *Server) RegisterService(d *grpc.ServiceDesc, impl any) {
	s.services[d.ServiceName] = struct{}{}
	for i := range d.Methods {
		m := &d.Methods[i]
		s.methods["/"+d.ServiceName+"/"+m.MethodName] = &method{unary: m, impl: impl}
	}
	for i := range d.Streams {
		m := &d.Streams[i]
		path := "/" + d.ServiceName + "/" + m.StreamName
		s.methods[path] = &method{stream: m, impl: impl,
			info: grpc.StreamServerInfo{FullMethod: path, IsClientStream: m.ClientStreams, IsServerStream: m.ServerStreams}}
	}
}

// lookUp is what serves a path; nil: nothing does.
func (s *Server) lookUp(path string) *method {
	if m := s.methods[path]; m != nil {
		return m
	}
	if len(path) > 0 && path[0] == '/' && strings.LastIndexByte(path, '/') > 0 {
		return s.others
	}
	return nil // it names no method, which grpc-go refuses in any case
}

// unknown says what is not registered.
func (s *Server) unknown(path string) string {
	name, ok := strings.CutPrefix(path, "/")
	i := strings.LastIndex(name, "/")
	if !ok || i < 0 {
		return fmt.Sprintf("malformed method name: %q", path)
	}
	if _, ok := s.services[name[:i]]; ok {
		return fmt.Sprintf("unknown method %v for service %v", name[i+1:], name[:i])
	}
	return fmt.Sprintf("unknown service %v", name[:i])
}

// keptWorkers is how many goroutines stay for what comes next when they have nothing to do. To make a
// new one costs little, but its stack has to grow again: a seventh of the CPU of a read from the store.
const keptWorkers = 64

// run has a goroutine do f, which Stop waits for. It does not wait.
func (s *Server) run(f func()) {
	s.handlers.Add(1)
	select {
	case s.work <- f:
	default:
		go s.worker(f)
	}
}

// worker does f, and what comes next, until there is nothing and enough others wait for it, or the
// server has stopped.
func (s *Server) worker(f func()) {
	for {
		f()
		s.handlers.Done()
		if s.idle.Add(1) > keptWorkers {
			s.idle.Add(-1)
			return
		}
		select {
		case f = <-s.work:
			s.idle.Add(-1)
		case <-s.quit:
			return
		}
	}
}

// Serve accepts connections until l fails or the server stops: then the error is nil, or
// grpc.ErrServerStopped if it had stopped before.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		l.Close()
		return grpc.ErrServerStopped
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	for pause := time.Duration(0); ; {
		nc, err := l.Accept()
		if err == nil {
			pause = 0
			s.begin(nc)
			continue
		}
		s.mu.Lock()
		stopped := s.stopped
		s.mu.Unlock()
		if stopped {
			return nil
		}
		if te, ok := err.(interface{ Temporary() bool }); !ok || !te.Temporary() {
			s.mu.Lock()
			delete(s.listeners, l)
			s.mu.Unlock()
			return err
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-s.quit:
			timer.Stop()
		}
	}
}

// begin serves a connection in a goroutine of its own.
func (s *Server) begin(nc net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		nc.Close()
		return
	}
	s.serving.Add(1)
	s.shaking[nc] = struct{}{}
	go func() {
		defer s.serving.Done()
		s.serveConn(nc)
	}()
}

func (s *Server) serveConn(accepted net.Conn) {
	_ = accepted.SetDeadline(time.Now().Add(handshakeTimeout)) // a failure shows in the first read
	nc := accepted
	var info credentials.AuthInfo
	var err error
	if s.opts.Credentials != nil {
		nc, info, err = s.opts.Credentials.ServerHandshake(accepted)
	}
	if err != nil {
		s.mu.Lock()
		delete(s.shaking, accepted)
		s.mu.Unlock()
		accepted.Close()
		return
	}
	_ = nc.SetWriteDeadline(time.Time{}) // as above
	c := newConn(s, nc, peer.Peer{Addr: nc.RemoteAddr(), LocalAddr: nc.LocalAddr(), AuthInfo: info})
	s.mu.Lock()
	delete(s.shaking, accepted)
	if s.stopped {
		s.mu.Unlock()
		c.close(grpc.ErrServerStopped)
		return
	}
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	c.keep()
	c.serve()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
}

// Stop closes all connections at once. Handlers learn of it by their contexts, and may run on.
func (s *Server) Stop() {
	for _, c := range s.stop() {
		go c.close(grpc.ErrServerStopped) // with TLS it may wait for seconds, for a client that takes nothing
	}
	s.serving.Wait()
	s.quitOnce.Do(func() { close(s.quit) })
}

// GracefulStop takes no new connections and calls, and returns when all calls have ended. Stop may
// be called meanwhile to end them.
func (s *Server) GracefulStop() {
	for _, c := range s.stop() {
		c.drain("graceful_stop")
	}
	s.serving.Wait()
	s.handlers.Wait()
	s.quitOnce.Do(func() { close(s.quit) })
}

// stop ends accepting, and the connections that have come no further than to their handshakes, and
// returns the others.
func (s *Server) stop() (conns []*conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	for l := range s.listeners {
		_ = l.Close() // it is gone either way
	}
	clear(s.listeners)
	for nc := range s.shaking {
		_ = nc.Close() // as above
	}
	for c := range s.conns {
		conns = append(conns, c)
	}
	return conns
}

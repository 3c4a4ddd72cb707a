package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/tap"

	"github.com/belaydb/belay/listen"
	"github.com/belaydb/belay/rpc"
	"github.com/belaydb/belay/server"
)

// A portsEnv is what ports need of their member.
type portsEnv struct {
	cfg    *Config
	logger *zap.Logger
	counts *Metrics
	// serving is closed when gRPC clients are let in.
	serving <-chan struct{}
	// stopping says that listeners are expected to end. From any goroutine, like failed.
	stopping func() bool
	// failed ends the member; it waits for nothing.
	failed func(error)
}

// A callServer serves gRPC: grpc.Server, or Belay's own.
type callServer interface {
	grpc.ServiceRegistrar
	Serve(net.Listener) error
	// GracefulStop waits for the calls; Stop ends them.
	GracefulStop()
	Stop()
}

// ports are a member's listeners and what serves them: for peers, for clients
// (gRPC, HTTP or both), and for metrics alone. They belong to the goroutine that
// starts and stops the member: listen comes first, then serve*, then stopClients, then close,
// which may also come after a listen that failed.
type ports struct {
	portsEnv
	connections connections

	peers   []*port
	clients []*port
	metrics []*port

	peerSecurity   *listen.Security // nil: no TLS
	toPeers        *listen.Security // how peers are dialed; nil: without a certificate, to whom the system trusts
	clientSecurity *listen.Security

	memory  *listen.Memory   // where the gateway reaches grpc
	gateway *grpc.ClientConn // nil: no gateway
	// grpc serves all client ports; nil before serveClients.
	grpc callServer
	// receiving bounds what clients have sent of requests that are not complete.
	receiving *listen.Receiving
	// overHTTP serves the calls that net/http gets; nil: it gets none.
	overHTTP *grpc.Server
	// http are the servers of peers, one for each port, then of clients, then of metrics.
	http []*http.Server
}

// port is one listener.
type port struct {
	address    string // as the flag says
	secure     bool   // with TLS
	plain      bool   // without; both may be
	grpc, http bool
	inner      net.Listener
	front      *listen.Front // nil: HTTP without TLS and without gRPC
}

// close ends listening; open connections are those of the servers.
func (p *port) close() {
	if p.front != nil {
		_ = p.front.Close() // it is gone either way
		return
	}
	_ = p.inner.Close()
}

// errNoMetricsTLS is etcd's text.
var errNoMetricsTLS = errors.New("client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url")

// listen opens every port and reads every certificate, so that an operator's mistakes show before
// any data is touched.
func (ps *ports) listen() error {
	if err := ps.bound(); err != nil {
		return err
	}
	if err := ps.listenPeers(); err != nil {
		return err
	}
	if err := ps.listenClients(); err != nil {
		return err
	}
	return ps.listenMetrics()
}

// side is the kind of a listener, in etcd's words.
type side struct{ name, ignored, starting, rejected string }

func forClients() side {
	return side{"client", "ignoring client auto TLS since certs given", "starting with client TLS", "rejected connection on client endpoint"}
}

func forPeers() side {
	return side{"peer", "ignoring peer auto TLS since certs given", "starting with peer TLS", "rejected connection on peer endpoint"}
}

// security reads one side's certificates, or makes them. nil: none are given.
func (ps *ports) security(of side, info listen.TLSInfo, auto bool, listenURLs []url.URL, opts listen.SecurityOptions) (*listen.Security, error) {
	if err := listen.Restrict(&info, ps.cfg.CipherSuites, ps.cfg.TLSMinVersion, ps.cfg.TLSMaxVersion); err != nil {
		return nil, err
	}
	if auto && !info.Empty() {
		ps.logger.Warn(of.ignored)
	} else if auto {
		var hosts []string
		for _, u := range listenURLs {
			hosts = append(hosts, u.Host)
		}
		own, err := listen.SelfSigned(ps.logger, filepath.Join(ps.cfg.DataDir, "fixtures", of.name), hosts, ps.cfg.SelfSignedYears)
		if err != nil {
			return nil, fmt.Errorf("failed to get %s self-signed certs: %w", of.name, err)
		}
		own.CipherSuites, own.MinVersion, own.MaxVersion = info.CipherSuites, info.MinVersion, info.MaxVersion
		info = own
	}
	if info.Empty() {
		return nil, nil
	}
	ps.logger.Info(of.starting, zap.String("tls-info", info.String()), zap.Strings("cipher-suites", ps.cfg.CipherSuites))
	opts.Logger = ps.logger
	opts.Rejected = of.rejected
	security, err := listen.NewSecurity(info, opts)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", of.files(info), err)
	}
	return security, nil
}

// files names the flags and files of one side's TLS: errors about the content of a file name
// neither.
func (of side) files(info listen.TLSInfo) string {
	prefix := "--"
	if of.name == "peer" {
		prefix = "--peer-"
	}
	var given []string
	for _, f := range []struct{ flag, value string }{
		{"cert-file", info.CertFile}, {"key-file", info.KeyFile}, {"client-cert-file", info.ClientCertFile},
		{"client-key-file", info.ClientKeyFile}, {"trusted-ca-file", info.TrustedCAFile},
	} {
		if f.value != "" {
			given = append(given, prefix+f.flag+"="+f.value)
		}
	}
	return "cannot use the files of " + strings.Join(given, ", ")
}

func (ps *ports) socketOptions() *listen.SocketOptions {
	return &listen.SocketOptions{ReusePort: ps.cfg.ReusePort, ReuseAddress: ps.cfg.ReuseAddress}
}

func (ps *ports) listenPeers() (err error) {
	ps.logger.Info("configuring peer listeners", zap.Strings("listen-peer-urls", urlStrings(ps.cfg.ListenPeerURLs)))
	// The peer port speaks HTTP/1 only. Streams use the bare connection, which HTTP/2 would not
	// allow.
	ps.peerSecurity, err = ps.security(forPeers(), ps.cfg.PeerTLS, ps.cfg.PeerAutoTLS, ps.cfg.ListenPeerURLs,
		listen.SecurityOptions{CheckSAN: true, Protocols: []string{"http/1.1"}})
	if err != nil {
		return err
	}
	if ps.toPeers, err = ps.dialing(); err != nil {
		return err
	}
	for _, u := range ps.cfg.ListenPeerURLs {
		if u.Scheme == "http" {
			if !ps.cfg.PeerTLS.Empty() {
				ps.logger.Warn("scheme is HTTP while key and cert files are present; ignoring key and cert files", zap.String("peer-url", u.String()))
			}
			if ps.cfg.PeerTLS.ClientCertAuth {
				ps.logger.Warn("scheme is HTTP while --peer-client-cert-auth is enabled; ignoring client cert auth for this URL", zap.String("peer-url", u.String()))
			}
		}
		if listen.Secure(u) && ps.peerSecurity == nil {
			return fmt.Errorf("cannot listen on TLS for %s: KeyFile and CertFile are not presented", u.Host)
		}
		ps.warnOfOpenPeerPort(u)
		p, err := ps.open(u, "--listen-peer-urls", ps.connections.peer, false, true)
		if err != nil {
			return err
		}
		ps.peers = append(ps.peers, p)
		if p.secure {
			p.front = listen.NewFront(p.inner, listen.FrontOptions{Security: ps.peerSecurity, HTTP: true, MaxPending: listen.MaxPending(ps.connections.peer.Max())})
		}
	}
	return nil
}

// dialing is the security of connections to other members: that of the peer port, or of a file of
// authorities alone, as a member has one whose own TLS somebody else terminates.
func (ps *ports) dialing() (*listen.Security, error) {
	info := ps.cfg.PeerTLS
	if ps.peerSecurity != nil || info.TrustedCAFile == "" {
		return ps.peerSecurity, nil
	}
	if err := listen.Restrict(&info, ps.cfg.CipherSuites, ps.cfg.TLSMinVersion, ps.cfg.TLSMaxVersion); err != nil {
		return nil, err
	}
	s, err := listen.NewTrust(info, ps.logger)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", forPeers().files(info), err)
	}
	return s, nil
}

// warnOfOpenPeerPort logs what a peer port means that asks members for no certificate.
func (ps *ports) warnOfOpenPeerPort(u url.URL) {
	if onlyLocal(u) || (listen.Secure(u) && ps.peerSecurity.WantsCertificates()) {
		return
	}
	ps.logger.Warn("whoever reaches the peer port can read and write everything, users and roles or not, and end members: it asks for no certificates; use https with --peer-client-cert-auth and --peer-trusted-ca-file, or keep others from reaching it",
		zap.String("peer-url", u.String()))
}

// onlyLocal reports whether a URL can be reached only from this machine.
func onlyLocal(u url.URL) bool {
	if strings.HasPrefix(u.Scheme, "unix") || u.Hostname() == "localhost" {
		return true
	}
	address, err := netip.ParseAddr(u.Hostname())
	return err == nil && address.Unmap().IsLoopback()
}

func (ps *ports) open(u url.URL, flag string, kind portKind, grpc, http bool) (*port, error) {
	open := ps.cfg.Listen
	if open == nil {
		open = func(u url.URL, flag string) (net.Listener, error) { return listen.Open(u, flag, ps.socketOptions()) }
	}
	l, err := open(u, flag)
	if err != nil {
		return nil, err
	}
	return &port{address: l.Addr().String(), secure: listen.Secure(u), plain: !listen.Secure(u), grpc: grpc, http: http, inner: kind.Listener(l)}, nil
}

func (ps *ports) listenClients() (err error) {
	ps.logger.Info("configuring client listeners", zap.Strings("listen-client-urls", urlStrings(ps.cfg.ListenClientURLs)))
	all := append(append([]url.URL(nil), ps.cfg.ListenClientURLs...), ps.cfg.ListenClientHTTPURLs...)
	// Files that no port uses are not read, as in etcd: they may be left from another configuration.
	if slices.ContainsFunc(slices.Concat(all, ps.cfg.ListenMetricsURLs), listen.Secure) {
		if ps.clientSecurity, err = ps.security(forClients(), ps.cfg.ClientTLS, ps.cfg.ClientAutoTLS, all, listen.SecurityOptions{}); err != nil {
			return err
		}
	}
	if ps.cfg.EnablePprof {
		ps.logger.Info("pprof is enabled", zap.String("path", "/debug/pprof"))
	}
	for _, u := range all {
		if !listen.Secure(u) {
			if !ps.cfg.ClientTLS.Empty() {
				ps.logger.Warn("scheme is http or unix while key and cert files are present; ignoring key and cert files", zap.String("client-url", u.String()))
			}
			if ps.cfg.ClientTLS.ClientCertAuth {
				ps.logger.Warn("scheme is http or unix while --client-cert-auth is enabled; ignoring client cert auth for this URL", zap.String("client-url", u.String()))
			}
		} else if ps.clientSecurity == nil {
			return fmt.Errorf("TLS key/cert (--cert-file, --key-file) must be provided for client url %s with HTTPS scheme", u.String())
		}
	}
	byAddress := make(map[string]bool) // of --listen-client-urls
	split := len(ps.cfg.ListenClientHTTPURLs) > 0
	for _, u := range ps.cfg.ListenClientURLs {
		_, address := listen.Address(u)
		byAddress[address] = true
	}
	opened := make(map[string]*port)
	for i, u := range all {
		httpOnly := i >= len(ps.cfg.ListenClientURLs)
		_, address := listen.Address(u)
		if httpOnly && byAddress[address] {
			return fmt.Errorf("cannot bind both --listen-client-urls and --listen-client-http-urls on the same url %s", u.String())
		}
		flag := "--listen-client-urls"
		if httpOnly {
			flag = "--listen-client-http-urls"
		}
		if p := opened[address]; p != nil { // http and https on one address
			p.secure, p.plain = p.secure || listen.Secure(u), p.plain || !listen.Secure(u)
			continue
		}
		p, err := ps.open(u, flag, ps.connections.client, !httpOnly, httpOnly || !split)
		if err != nil {
			return err
		}
		opened[address] = p
		ps.clients = append(ps.clients, p)
	}
	ps.receiving = ps.newReceiving()
	for _, p := range ps.clients {
		opts := listen.FrontOptions{Receiving: ps.receiving, Plain: p.plain, GRPC: p.grpc, HTTP: p.http, MaxStreams: ps.cfg.maxStreams(),
			MaxPending: listen.MaxPending(ps.connections.client.Max()), Ready: ps.serving}
		if p.secure {
			opts.Security = ps.clientSecurity
		}
		p.front = listen.NewFront(p.inner, opts)
	}
	return nil
}

func (ps *ports) listenMetrics() error {
	var security *listen.Security
	for _, u := range ps.cfg.ListenMetricsURLs {
		if listen.Secure(u) && security == nil {
			if ps.clientSecurity == nil {
				return errNoMetricsTLS
			}
			// The client side's files and rules, and names are checked as on the peer port.
			security = ps.clientSecurity.CheckingSAN()
		}
		p, err := ps.open(u, "--listen-metrics-urls", ps.connections.metrics, false, true)
		if err != nil {
			return err
		}
		p.address = u.String()
		ps.metrics = append(ps.metrics, p)
		if p.secure {
			p.front = listen.NewFront(p.inner, listen.FrontOptions{Security: security, HTTP: true, MaxStreams: ps.cfg.maxStreams(),
				MaxPending: listen.MaxPending(ps.connections.metrics.Max())})
		}
	}
	return nil
}

const (
	// clientHeaderTimeout bounds how long the headers of a client's request may take;
	// otherHeaderTimeout those of a member's or a scraper's, including the first byte.
	clientHeaderTimeout = 5 * time.Minute
	otherHeaderTimeout  = 5 * time.Second
	// otherIdleTimeout ends their idle connections: members close theirs after a minute.
	otherIdleTimeout = 2 * time.Minute
)

// otherServer serves members and scrapers, with short timeouts.
func (ps *ports) otherServer(h http.Handler) *http.Server {
	s := ps.httpServer(h)
	s.ReadHeaderTimeout, s.IdleTimeout = otherHeaderTimeout, otherIdleTimeout
	return s
}

func (ps *ports) httpServer(h http.Handler) *http.Server {
	s := &http.Server{Handler: h, ReadHeaderTimeout: clientHeaderTimeout, ErrorLog: quietLog(ps.logger)}
	listen.FollowHeaders(s)
	ps.http = append(ps.http, s)
	return s
}

// serveHTTP serves a port that speaks HTTP alone.
func (ps *ports) serveHTTP(p *port, s *http.Server) {
	if p.front != nil {
		ps.served(p.front.Serve(s))
		return
	}
	ps.served(s.Serve(p.inner))
}

func (ps *ports) servePeers(handler http.Handler) {
	for _, p := range ps.peers {
		s := ps.otherServer(handler)
		go ps.serveHTTP(p, s)
		ps.logger.Info("serving peer traffic", zap.String("address", p.address))
	}
}

func (ps *ports) serveMetrics(handler http.Handler) {
	for _, p := range ps.metrics {
		s := ps.otherServer(handler)
		go ps.serveHTTP(p, s)
		ps.logger.Info("serving metrics", zap.String("address", p.address))
	}
}

// serveClients starts the gRPC server, one for all ports, and HTTP.
func (ps *ports) serveClients(srv *server.Server) {
	ps.grpc = ps.newCallServer(srv)
	srv.RegisterGRPC(ps.grpc)
	if ps.cfg.EnableGateway {
		if err := ps.startGateway(); err != nil {
			ps.failed(fmt.Errorf("registerGateway failed: %w", err))
			return
		}
	}
	handler, err := srv.HTTPHandler(ps.gateway)
	if err != nil {
		ps.failed(fmt.Errorf("registerGateway failed: %w", err))
		return
	}
	if slices.ContainsFunc(ps.clients, func(p *port) bool { return p.secure && p.grpc && p.http }) {
		handler = ps.callsOverHTTP(srv, handler)
	}
	for _, p := range ps.clients {
		var s *http.Server
		traffic := "grpc"
		if p.http {
			s = ps.httpServer(handler)
			if traffic = "http"; p.grpc {
				traffic = "grpc+http"
			}
		}
		if p.grpc {
			go func() { ps.served(ps.grpc.Serve(p.front.GRPC())) }()
		}
		go func() { ps.served(p.front.Serve(s)) }()
		fields := []zap.Field{zap.String("traffic", traffic), zap.String("address", p.address)}
		if p.grpc {
			fields = append(fields, zap.String("rpc-engine", ps.engine()))
		}
		if p.plain {
			ps.logger.Info("serving client traffic insecurely; this is strongly discouraged!", fields...)
		}
		if p.secure {
			ps.logger.Info("serving client traffic securely", fields...)
		}
	}
}

// newCallServer makes what serves the client ports' gRPC.
func (ps *ports) newCallServer(srv *server.Server) callServer {
	if ps.engine() == EngineGRPC {
		return grpc.NewServer(append(srv.GRPCOptions(), grpc.Creds(listen.Credentials()), grpc.InTapHandle(ps.receiving.Tap))...)
	}
	opts := srv.RPCOptions()
	opts.Credentials = listen.Credentials()
	opts.Tap = func(ctx context.Context, method string) error {
		_, err := ps.receiving.Tap(ctx, &tap.Info{FullMethodName: method})
		return err
	}
	opts.LongRefused = ps.longRefused()
	opts.LongWaited = func(took time.Duration) { ps.counts.longWait.Observe(took.Seconds()) }
	opts.Unread = ps.unread()
	calls := rpc.New(opts)
	ps.counts.calls.Store(calls)
	return calls
}

// engine is which server that is.
func (ps *ports) engine() string {
	if ps.cfg.Tracing != nil {
		return EngineGRPC
	}
	return rpc.Engine(ps.cfg.RPCEngine)
}

// callsOverHTTP serves gRPC calls that come on a connection of net/http: a proxy that pools its
// connections sends calls and other requests on the same one. It needs a server of its own, which
// knows how to end such calls.
func (ps *ports) callsOverHTTP(srv *server.Server, h http.Handler) http.Handler {
	ps.overHTTP = grpc.NewServer(srv.GRPCOptions()...)
	srv.RegisterGRPC(ps.overHTTP)
	return listen.CallsApart(ps.overHTTP, h)
}

// startGateway connects the JSON gateway to the gRPC server.
func (ps *ports) startGateway() (err error) {
	ps.memory = listen.NewMemory()
	ps.gateway, err = grpc.NewClient("passthrough:///memory",
		grpc.WithContextDialer(ps.memory.Dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)))
	if err != nil {
		return err
	}
	go func() { ps.served(ps.grpc.Serve(ps.memory)) }()
	return nil
}

// served handles the end of a listener's loop; an unexpected end is fatal.
func (ps *ports) served(err error) {
	if err == nil || errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) || errors.Is(err, grpc.ErrServerStopped) || ps.stopping() {
		return
	}
	ps.failed(fmt.Errorf("listener failed: %w", err))
}

// lastAnswers bounds how long calls that were given up may take to be answered.
const lastAnswers = 500 * time.Millisecond

// stopClients lets open calls end, but not for longer than patience. Then giveUp has those that wait
// end with an error that says so, which a connection that breaks would not tell; last bounds how long
// that takes.
func (ps *ports) stopClients(endStreams func(), patience, last time.Duration, giveUp func()) {
	if ps.grpc == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, p := range ps.clients {
		p.close()
	}
	late, end := context.WithTimeout(context.Background(), patience+last)
	defer end()
	var ending sync.WaitGroup
	for _, s := range ps.http[len(ps.peers):] {
		ending.Go(func() { _ = s.Shutdown(late) }) // later calls are closed with the ports
	}
	ending.Go(ps.grpc.GracefulStop)
	stopped := make(chan struct{})
	go func() { ending.Wait(); close(stopped) }()
	endStreams() // that would never end by themselves
	select {
	case <-stopped:
	case <-ctx.Done():
		go giveUp() // a disk that hangs may keep it waiting
		select {
		case <-stopped:
		case <-late.Done():
			ps.grpc.Stop()
		}
	}
	if ps.overHTTP != nil {
		ps.overHTTP.Stop()
	}
}

// close closes what is still open.
func (ps *ports) close() {
	for _, p := range ps.peers {
		ps.logger.Info("stopping serving peer traffic", zap.String("address", p.address))
	}
	for _, ports := range [][]*port{ps.clients, ps.metrics, ps.peers} {
		for _, p := range ports {
			p.close()
		}
	}
	if ps.memory != nil {
		ps.memory.Close()
	}
	for _, s := range ps.http {
		s.Close()
	}
	for _, p := range ps.peers {
		ps.logger.Info("stopped serving peer traffic", zap.String("address", p.address))
	}
	if ps.gateway != nil {
		_ = ps.gateway.Close()
	}
}

// quietLog sends net/http's messages (such as a client that left during a handshake) to the debug
// level.
func quietLog(logger *zap.Logger) *log.Logger {
	l, err := zap.NewStdLogAt(logger, zap.DebugLevel)
	if err != nil {
		return log.New(io.Discard, "", 0)
	}
	return l
}

package node

import (
	"context"
	"crypto/tls"
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

	"github.com/belaydb/belay/listen"
	"github.com/belaydb/belay/peers"
)

// listeners are a member's ports and what serves them: for peers, for clients
// (gRPC, HTTP or both), and for metrics alone.
type listeners struct {
	peers   []*port
	clients []*port
	metrics []*port

	peerSecurity   *listen.Security // nil: no TLS
	clientSecurity *listen.Security

	memory  *listen.Memory   // where the gateway reaches grpc
	gateway *grpc.ClientConn // nil: no gateway
	grpc    *grpc.Server
	// receiving bounds what clients have sent of requests that are not complete.
	receiving *listen.Receiving
	// overHTTP serves the calls that net/http gets; nil: it gets none.
	overHTTP *grpc.Server
	http     []*http.Server
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

// listen opens every port and reads every certificate: what an operator may
// have got wrong shows before any data is touched.
func (n *Node) listen() error {
	if err := n.bound(); err != nil {
		return err
	}
	if err := n.listenPeers(); err != nil {
		return err
	}
	if err := n.listenClients(); err != nil {
		return err
	}
	return n.listenMetrics()
}

// side is whom a listener is for, in etcd's words.
type side struct{ name, ignored, starting, rejected string }

func forClients() side {
	return side{"client", "ignoring client auto TLS since certs given", "starting with client TLS", "rejected connection on client endpoint"}
}

func forPeers() side {
	return side{"peer", "ignoring peer auto TLS since certs given", "starting with peer TLS", "rejected connection on peer endpoint"}
}

// security reads one side's certificates, or makes them. nil: none are given.
func (n *Node) security(of side, info listen.TLSInfo, auto bool, listenURLs []url.URL, opts listen.SecurityOptions) (*listen.Security, error) {
	if err := listen.Restrict(&info, n.cfg.CipherSuites, n.cfg.TLSMinVersion, n.cfg.TLSMaxVersion); err != nil {
		return nil, err
	}
	if auto && !info.Empty() {
		n.logger.Warn(of.ignored)
	} else if auto {
		var hosts []string
		for _, u := range listenURLs {
			hosts = append(hosts, u.Host)
		}
		own, err := listen.SelfSigned(n.logger, filepath.Join(n.cfg.DataDir, "fixtures", of.name), hosts, n.cfg.SelfSignedYears)
		if err != nil {
			return nil, fmt.Errorf("failed to get %s self-signed certs: %w", of.name, err)
		}
		own.CipherSuites, own.MinVersion, own.MaxVersion = info.CipherSuites, info.MinVersion, info.MaxVersion
		info = own
	}
	if info.Empty() {
		return nil, nil
	}
	n.logger.Info(of.starting, zap.String("tls-info", info.String()), zap.Strings("cipher-suites", n.cfg.CipherSuites))
	opts.Logger = n.logger
	opts.Rejected = of.rejected
	security, err := listen.NewSecurity(info, opts)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", of.files(info), err)
	}
	return security, nil
}

// files names the flags and files of one side's TLS: errors about what is in a file name neither.
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

func (n *Node) socketOptions() *listen.SocketOptions {
	return &listen.SocketOptions{ReusePort: n.cfg.ReusePort, ReuseAddress: n.cfg.ReuseAddress}
}

func (n *Node) listenPeers() (err error) {
	n.logger.Info("configuring peer listeners", zap.Strings("listen-peer-urls", urlStrings(n.cfg.ListenPeerURLs)))
	// The peer port speaks HTTP/1 only. A connection is streamed on as it is,
	// which HTTP/2 would not allow.
	n.ports.peerSecurity, err = n.security(forPeers(), n.cfg.PeerTLS, n.cfg.PeerAutoTLS, n.cfg.ListenPeerURLs,
		listen.SecurityOptions{CheckSAN: true, Protocols: []string{"http/1.1"}})
	if err != nil {
		return err
	}
	for _, u := range n.cfg.ListenPeerURLs {
		if u.Scheme == "http" {
			if !n.cfg.PeerTLS.Empty() {
				n.logger.Warn("scheme is HTTP while key and cert files are present; ignoring key and cert files", zap.String("peer-url", u.String()))
			}
			if n.cfg.PeerTLS.ClientCertAuth {
				n.logger.Warn("scheme is HTTP while --peer-client-cert-auth is enabled; ignoring client cert auth for this URL", zap.String("peer-url", u.String()))
			}
		}
		if listen.Secure(u) && n.ports.peerSecurity == nil {
			return fmt.Errorf("cannot listen on TLS for %s: KeyFile and CertFile are not presented", u.Host)
		}
		n.warnOfOpenPeerPort(u)
		p, err := n.open(u, "--listen-peer-urls", n.connections.peer, false, true)
		if err != nil {
			return err
		}
		n.ports.peers = append(n.ports.peers, p)
		if p.secure {
			p.front = listen.NewFront(p.inner, listen.FrontOptions{Security: n.ports.peerSecurity, HTTP: true, MaxPending: listen.MaxPending(n.connections.peer.Max())})
		}
	}
	return nil
}

// warnOfOpenPeerPort says what a port means that asks no certificate of members.
func (n *Node) warnOfOpenPeerPort(u url.URL) {
	if onlyLocal(u) || (listen.Secure(u) && n.ports.peerSecurity.WantsCertificates()) {
		return
	}
	n.logger.Warn("whoever reaches the peer port can read and write everything, users and roles or not, and end members: it asks for no certificates; use https with --peer-client-cert-auth and --peer-trusted-ca-file, or keep others from reaching it",
		zap.String("peer-url", u.String()))
}

// onlyLocal says whether a URL is reached from this machine alone.
func onlyLocal(u url.URL) bool {
	if strings.HasPrefix(u.Scheme, "unix") || u.Hostname() == "localhost" {
		return true
	}
	address, err := netip.ParseAddr(u.Hostname())
	return err == nil && address.Unmap().IsLoopback()
}

func (n *Node) open(u url.URL, flag string, kind portKind, grpc, http bool) (*port, error) {
	l, err := listen.Open(u, flag, n.socketOptions())
	if err != nil {
		return nil, err
	}
	return &port{address: l.Addr().String(), secure: listen.Secure(u), plain: !listen.Secure(u), grpc: grpc, http: http, inner: kind.Listener(l)}, nil
}

func (n *Node) listenClients() (err error) {
	n.logger.Info("configuring client listeners", zap.Strings("listen-client-urls", urlStrings(n.cfg.ListenClientURLs)))
	all := append(append([]url.URL(nil), n.cfg.ListenClientURLs...), n.cfg.ListenClientHTTPURLs...)
	if n.ports.clientSecurity, err = n.security(forClients(), n.cfg.ClientTLS, n.cfg.ClientAutoTLS, all, listen.SecurityOptions{}); err != nil {
		return err
	}
	if n.cfg.EnablePprof {
		n.logger.Info("pprof is enabled", zap.String("path", "/debug/pprof"))
	}
	for _, u := range all {
		if !listen.Secure(u) {
			if !n.cfg.ClientTLS.Empty() {
				n.logger.Warn("scheme is http or unix while key and cert files are present; ignoring key and cert files", zap.String("client-url", u.String()))
			}
			if n.cfg.ClientTLS.ClientCertAuth {
				n.logger.Warn("scheme is http or unix while --client-cert-auth is enabled; ignoring client cert auth for this URL", zap.String("client-url", u.String()))
			}
		} else if n.ports.clientSecurity == nil {
			return fmt.Errorf("TLS key/cert (--cert-file, --key-file) must be provided for client url %s with HTTPS scheme", u.String())
		}
	}
	byAddress := make(map[string]bool) // of --listen-client-urls
	split := len(n.cfg.ListenClientHTTPURLs) > 0
	for _, u := range n.cfg.ListenClientURLs {
		_, address := listen.Address(u)
		byAddress[address] = true
	}
	opened := make(map[string]*port)
	for i, u := range all {
		httpOnly := i >= len(n.cfg.ListenClientURLs)
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
		p, err := n.open(u, flag, n.connections.client, !httpOnly, httpOnly || !split)
		if err != nil {
			return err
		}
		opened[address] = p
		n.ports.clients = append(n.ports.clients, p)
	}
	n.ports.receiving = n.newReceiving()
	for _, p := range n.ports.clients {
		opts := listen.FrontOptions{Receiving: n.ports.receiving, Plain: p.plain, GRPC: p.grpc, HTTP: p.http, MaxStreams: n.maxStreams(),
			MaxPending: listen.MaxPending(n.connections.client.Max()), Ready: n.serving}
		if p.secure {
			opts.Security = n.ports.clientSecurity
		}
		p.front = listen.NewFront(p.inner, opts)
	}
	return nil
}

// maxStreams is what HTTP/2 knows no value for when it is without bound.
func (n *Node) maxStreams() uint32 {
	if n.cfg.MaxConcurrentStreams == 0 {
		return math.MaxUint32
	}
	return n.cfg.MaxConcurrentStreams
}

func (n *Node) listenMetrics() error {
	var security *listen.Security
	for _, u := range n.cfg.ListenMetricsURLs {
		if listen.Secure(u) && security == nil {
			if n.ports.clientSecurity == nil {
				return errNoMetricsTLS
			}
			// The client side's files and rules, and names are checked as on the peer port.
			security = n.ports.clientSecurity.CheckingSAN()
		}
		p, err := n.open(u, "--listen-metrics-urls", n.connections.metrics, false, true)
		if err != nil {
			return err
		}
		p.address = u.String()
		n.ports.metrics = append(n.ports.metrics, p)
		if p.secure {
			p.front = listen.NewFront(p.inner, listen.FrontOptions{Security: security, HTTP: true, MaxStreams: n.maxStreams(),
				MaxPending: listen.MaxPending(n.connections.metrics.Max())})
		}
	}
	return nil
}

// peerTLS is how this member speaks to others, for one connection; nil:
// certificates as the system trusts them.
func (n *Node) peerTLS() *tls.Config {
	var c *tls.Config
	if n.ports.peerSecurity != nil {
		c = n.ports.peerSecurity.ClientConfig()
	}
	if n.peerServerName == "" {
		return c
	}
	if c == nil {
		c = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	c = c.Clone()
	c.ServerName = n.peerServerName
	return c
}

// peerClient asks other members before there is a transport, or apart from it.
func (n *Node) peerClient(dialTimeout time.Duration) *http.Client {
	return peers.NewClient(peers.NewRoundTripper(peers.Options{TLS: n.peerTLS, Dial: n.peerDialer(), DialTimeout: dialTimeout}))
}

// peerDialer dials other members; nil: as the system likes. It is found once: the search is logged.
func (n *Node) peerDialer() func(context.Context, string, string) (net.Conn, error) {
	n.dialerOnce.Do(func() { n.dialer = n.findPeerDialer() })
	return n.dialer
}

func (n *Node) findPeerDialer() func(context.Context, string, string) (net.Conn, error) {
	if !n.cfg.MemberLocalAddr {
		return nil
	}
	advertised := zap.Strings("advertise-peer-urls", urlStrings(n.cfg.AdvertisePeerURLs))
	n.logger.Info("searching for a suitable member local address in AdvertisePeerURLs", advertised)
	for _, u := range n.cfg.AdvertisePeerURLs {
		address, err := netip.ParseAddr(u.Hostname())
		if err != nil || address.IsLoopback() || address.IsUnspecified() {
			continue
		}
		n.logger.Info("setting member local address", zap.String("LocalAddr", address.String()))
		tcp := net.Dialer{KeepAlive: 30 * time.Second, LocalAddr: &net.TCPAddr{IP: address.AsSlice(), Zone: address.Zone()}}
		return func(ctx context.Context, network, address string) (net.Conn, error) {
			if network == "unix" {
				return (&net.Dialer{}).DialContext(ctx, network, address)
			}
			return tcp.DialContext(ctx, network, address)
		}
	}
	n.logger.Warn("unable to set a member local address due to lack of suitable local addresses", advertised)
	return nil
}

const (
	// clientHeaderTimeout bounds how long a client's request may take to say what it
	// wants; otherHeaderTimeout a member's, or a scraper's, the first byte included.
	clientHeaderTimeout = 5 * time.Minute
	otherHeaderTimeout  = 5 * time.Second
	// otherIdleTimeout ends their connections that nothing is asked over: members give
	// theirs up after a minute.
	otherIdleTimeout = 2 * time.Minute
)

// otherServer serves members and scrapers, which waste no time.
func (n *Node) otherServer(h http.Handler) *http.Server {
	s := n.httpServer(h)
	s.ReadHeaderTimeout, s.IdleTimeout = otherHeaderTimeout, otherIdleTimeout
	return s
}

func (n *Node) httpServer(h http.Handler) *http.Server {
	s := &http.Server{Handler: h, ReadHeaderTimeout: clientHeaderTimeout, ErrorLog: quietLog(n.logger)}
	listen.FollowHeaders(s)
	n.ports.http = append(n.ports.http, s)
	return s
}

// serveHTTP serves a port that speaks HTTP alone.
func (n *Node) serveHTTP(p *port, s *http.Server) {
	if p.front != nil {
		n.served(p.front.Serve(s))
		return
	}
	n.served(s.Serve(p.inner))
}

// peerHTTP is what the peer port serves: each part registers what it answers.
func (n *Node) peerHTTP() http.Handler {
	mux := peers.NewMux(n.transport.Members)
	raft := n.transport.Handler()
	mux.Handle(peers.PathRaft, "", peers.Anyone, raft.ServeHTTP) // it judges by itself who may
	mux.Handle(peers.PathRaft+"/", "", peers.Anyone, raft.ServeHTTP)
	n.server.RegisterPeers(mux)
	n.witness.register(mux)
	n.disks.register(mux)
	return mux
}

func (n *Node) servePeers() {
	for _, p := range n.ports.peers {
		s := n.otherServer(n.peerHTTP())
		go n.serveHTTP(p, s)
		n.logger.Info("serving peer traffic", zap.String("address", p.address))
	}
}

func (n *Node) serveMetrics() {
	for _, p := range n.ports.metrics {
		s := n.otherServer(n.server.MetricsHandler())
		go n.serveHTTP(p, s)
		n.logger.Info("serving metrics", zap.String("address", p.address))
	}
}

// serveClients starts the gRPC server, one for all ports, and HTTP.
func (n *Node) serveClients() {
	n.ports.grpc = grpc.NewServer(append(n.server.GRPCOptions(), grpc.Creds(listen.Credentials()), grpc.InTapHandle(n.ports.receiving.Tap))...)
	n.server.RegisterGRPC(n.ports.grpc)
	if n.cfg.EnableGateway {
		if err := n.startGateway(); err != nil {
			n.fail(fmt.Errorf("registerGateway failed: %w", err))
			return
		}
	}
	handler, err := n.server.HTTPHandler(n.ports.gateway)
	if err != nil {
		n.fail(fmt.Errorf("registerGateway failed: %w", err))
		return
	}
	if slices.ContainsFunc(n.ports.clients, func(p *port) bool { return p.secure && p.grpc && p.http }) {
		handler = n.callsOverHTTP(handler)
	}
	for _, p := range n.ports.clients {
		var s *http.Server
		traffic := "grpc"
		if p.http {
			s = n.httpServer(handler)
			if traffic = "http"; p.grpc {
				traffic = "grpc+http"
			}
		}
		if p.grpc {
			go func() { n.served(n.ports.grpc.Serve(p.front.GRPC())) }()
		}
		go func() { n.served(p.front.Serve(s)) }()
		fields := []zap.Field{zap.String("traffic", traffic), zap.String("address", p.address)}
		if p.plain {
			n.logger.Info("serving client traffic insecurely; this is strongly discouraged!", fields...)
		}
		if p.secure {
			n.logger.Info("serving client traffic securely", fields...)
		}
	}
}

// callsOverHTTP serves gRPC calls that come on a connection of net/http: a proxy
// that pools its connections sends calls and other requests on the same one. It
// takes a server of its own, which knows how to end such calls.
func (n *Node) callsOverHTTP(h http.Handler) http.Handler {
	n.ports.overHTTP = grpc.NewServer(n.server.GRPCOptions()...)
	n.server.RegisterGRPC(n.ports.overHTTP)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 && strings.Contains(r.Header.Get("Content-Type"), "application/grpc") {
			n.ports.overHTTP.ServeHTTP(w, r)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// startGateway connects the JSON gateway to the gRPC server.
func (n *Node) startGateway() (err error) {
	n.ports.memory = listen.NewMemory()
	n.ports.gateway, err = grpc.NewClient("passthrough:///memory",
		grpc.WithContextDialer(n.ports.memory.Dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)))
	if err != nil {
		return err
	}
	go func() { n.served(n.ports.grpc.Serve(n.ports.memory)) }()
	return nil
}

// served takes the end of a listener's loop; an end that nobody asked for is
// fatal.
func (n *Node) served(err error) {
	if err == nil || errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) || errors.Is(err, grpc.ErrServerStopped) || n.stopping.Load() {
		return
	}
	n.fail(fmt.Errorf("listener failed: %w", err))
}

// stopClients lets open calls end, but not for longer than gracefulStop.
func (n *Node) stopClients() {
	if n.ports.grpc == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), gracefulStop)
	defer cancel()
	for _, p := range n.ports.clients {
		p.close()
	}
	var ending sync.WaitGroup
	for _, s := range n.ports.http[len(n.ports.peers):] {
		ending.Go(func() { _ = s.Shutdown(ctx) }) // what is late is closed with the ports
	}
	ending.Go(n.ports.grpc.GracefulStop)
	stopped := make(chan struct{})
	go func() { ending.Wait(); close(stopped) }()
	n.server.Stop() // ends streams that would never end by themselves
	select {
	case <-stopped:
	case <-ctx.Done():
		n.ports.grpc.Stop()
	}
	if n.ports.overHTTP != nil {
		n.ports.overHTTP.Stop()
	}
}

// closePorts closes what is still open.
func (n *Node) closePorts() {
	for _, p := range n.ports.peers {
		n.logger.Info("stopping serving peer traffic", zap.String("address", p.address))
	}
	for _, ports := range [][]*port{n.ports.clients, n.ports.metrics, n.ports.peers} {
		for _, p := range ports {
			p.close()
		}
	}
	if n.ports.memory != nil {
		n.ports.memory.Close()
	}
	for _, s := range n.ports.http {
		s.Close()
	}
	for _, p := range n.ports.peers {
		n.logger.Info("stopped serving peer traffic", zap.String("address", p.address))
	}
	if n.ports.gateway != nil {
		_ = n.ports.gateway.Close()
	}
}

// quietLog gives net/http's complaints (a client that went away in a
// handshake, say) to the debug level.
func quietLog(logger *zap.Logger) *log.Logger {
	l, err := zap.NewStdLogAt(logger, zap.DebugLevel)
	if err != nil {
		return log.New(io.Discard, "", 0)
	}
	return l
}

package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/tap"

	"github.com/belaydb/belay/cli/proxy/relay"
	"github.com/belaydb/belay/listen"
	"github.com/belaydb/belay/logsink"
	"github.com/belaydb/belay/rpc"
	"github.com/belaydb/belay/server"
)

const (
	// maxReceiveBytes bounds what clients have sent of requests that are not complete, together;
	// maxPreludeBytes what connections have sent before there is a request.
	maxReceiveBytes = 256 << 20
	maxPreludeBytes = 32 << 20
	maxHeaderBytes  = 64 << 10
	readBufferBytes = 8 << 10
	// gracefulStop is how long calls may go on when the proxy ends.
	gracefulStop = 2 * time.Second
	// headerTimeout bounds how long the headers of an HTTP request may take.
	headerTimeout = 5 * time.Second
	idleTimeout   = 2 * time.Minute
)

// ports are the listeners of a proxy. They are used from the goroutine that starts and stops it.
type ports struct {
	o      *options
	logger *zap.Logger
	failed func(error)

	security   *listen.Security // nil: without TLS
	clients    *listen.Bound
	receiving  *listen.Receiving
	front      *listen.Front
	metrics    net.Listener // nil: none
	metricsTLS bool

	memory *listen.Memory // where the proxy reaches itself
	grpc   callServer     // nil before serve
	// overHTTP serves the calls that net/http gets; nil: it gets none.
	overHTTP *grpc.Server
	http     []*http.Server
}

// A callServer serves gRPC: grpc.Server, or Belay's own.
type callServer interface {
	grpc.ServiceRegistrar
	Serve(net.Listener) error
	// GracefulStop waits for the calls; Stop ends them.
	GracefulStop()
	Stop()
}

// openPorts listens and reads the certificates.
func openPorts(o *options, logger *zap.Logger, failed func(error)) (opened *ports, err error) {
	ps := &ports{o: o, logger: logger, failed: failed, memory: listen.NewMemory()}
	defer func() {
		if err != nil {
			ps.stop()
		}
	}()
	if ps.security, err = ps.tls(); err != nil {
		return nil, err
	}
	most, err := maxConnections(server.DescriptorLimit())
	if err != nil {
		return nil, err
	}
	// Clients bring these lines about, so each comes seldom.
	var many, incomplete, unbegun logsink.Seldom
	ps.clients = listen.NewBound(most, func(bool) {
		if count, due := many.Due(); due {
			logger.Warn("too many connections; closed those that said nothing, or new ones", zap.Int("closed", count), zap.Int("open-at-most", ps.clients.Max()))
		}
	})
	ps.receiving = listen.NewReceiving(maxReceiveBytes, func(closed bool, held int64, remote string) {
		if count, due := incomplete.Due(); due {
			logger.Warn("refused calls, or closed their connections: too much has come of requests that are not complete",
				zap.Int("refused", count), zap.Bool("closed", closed), zap.Int64("held-bytes", held), zap.String("remote-addr", remote))
		}
	})
	inner, err := net.Listen("tcp", o.listenAddr)
	if err != nil {
		return nil, err
	}
	preludes := listen.NewPreludes(maxPreludeBytes, func(held int64, remote string) {
		if count, due := unbegun.Due(); due {
			logger.Warn("closed connections that held most of what may have come of TLS handshakes and headers that are not complete",
				zap.Int("closed", count), zap.Int64("held-bytes", held), zap.String("remote-addr", remote))
		}
	})
	ps.front = listen.NewFront(preludes.Listener(ps.clients.Listener(inner)), listen.FrontOptions{
		Security: ps.security, GRPC: true, HTTP: true, MaxStreams: o.maxConcurrentStreams,
		MaxPending: listen.MaxPending(ps.clients.Max()), Receiving: ps.receiving,
	})
	logger.Info("listening for gRPC proxy client requests", zap.String("address", o.listenAddr))
	if o.metricsAddr != "" {
		if ps.metrics, err = ps.openMetrics(); err != nil {
			return nil, err
		}
	}
	return ps, nil
}

// maxConnections is how many clients there may be with this limit of descriptors (0: none). A proxy
// keeps some for itself: its log, and connections to the members and for its pages. It has no
// files.
func maxConnections(descriptors uint64) (int, error) {
	const own = 512
	switch {
	case descriptors == 0 || descriptors > math.MaxInt32:
		return math.MaxInt32, nil
	case descriptors <= listen.ReservedDescriptors:
		return 0, listen.ErrFewDescriptors
	case descriptors <= 2*own:
		return int(descriptors-listen.ReservedDescriptors)/2 + 1, nil
	}
	return int(descriptors - own), nil
}

// tls reads the certificates of the side that clients see, or makes them; nil: none are given.
func (ps *ports) tls() (*listen.Security, error) {
	o := ps.o
	info := o.listenTLS
	if info.CertFile == "" && info.KeyFile == "" && info.TrustedCAFile == "" {
		if !o.autoTLS {
			return nil, nil
		}
		host, _, err := net.SplitHostPort(o.listenAddr)
		if err != nil {
			return nil, err
		}
		crl := info.CRLFile
		if info, err = listen.SelfSigned(ps.logger, filepath.Join(o.dataDir, "fixtures", "proxy"), []string{host}, o.selfSignedYears); err != nil {
			return nil, fmt.Errorf("--auto-tls: %w", err)
		}
		info.CRLFile = crl
	}
	if err := listen.Restrict(&info, o.cipherSuites, o.tlsMin, o.tlsMax); err != nil {
		return nil, err
	}
	ps.logger.Info("gRPC proxy server TLS", zap.String("tls-info", info.String()))
	security, err := listen.NewSecurity(info, listen.SecurityOptions{Logger: ps.logger, Rejected: "rejected connection on client endpoint"})
	if err != nil {
		return nil, fmt.Errorf("cannot use the files of --cert-file=%s --key-file=%s --trusted-ca-file=%s: %w", info.CertFile, info.KeyFile, info.TrustedCAFile, err)
	}
	return security, nil
}

func (ps *ports) openMetrics() (net.Listener, error) {
	u, err := url.Parse(ps.o.metricsAddr)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("cannot parse %q: --metrics-addr is http://host:port, or https", ps.o.metricsAddr)
	}
	if ps.metricsTLS = u.Scheme == "https"; ps.metricsTLS && ps.security == nil {
		return nil, fmt.Errorf("--metrics-addr=%s: https needs --cert-file and --key-file, or --auto-tls", ps.o.metricsAddr)
	}
	l, err := net.Listen("tcp", u.Host)
	if err != nil {
		return nil, err
	}
	ps.logger.Info("gRPC proxy listening for metrics", zap.String("address", u.String()))
	return l, nil
}

// serve answers calls and requests for pages.
func (ps *ports) serve(r *relay.Relay, pages pages) {
	if rpc.Engine(ps.o.rpcEngine) == rpc.EngineGRPC {
		ps.grpc = grpc.NewServer(append(ps.grpcOptions(r), grpc.Creds(listen.Credentials()), grpc.InTapHandle(ps.receiving.Tap))...)
		r.Register(ps.grpc)
	} else {
		own := rpc.New(ps.rpcOptions(r))
		r.Register(own)
		r.Hot(own)
		ps.grpc = own
	}
	go func() { ps.served(ps.grpc.Serve(ps.front.GRPC())) }()
	go func() { ps.served(ps.grpc.Serve(ps.memory)) }()
	if ps.security != nil {
		ps.overHTTP = grpc.NewServer(ps.grpcOptions(r)...)
		r.Register(ps.overHTTP)
		pages.clients = listen.CallsApart(ps.overHTTP, pages.clients)
	}
	client := ps.httpServer(pages.clients)
	go func() { ps.served(ps.front.Serve(client)) }()
	if ps.metrics != nil {
		s := ps.httpServer(pages.metrics)
		ps.logger.Info("gRPC proxy server metrics URL serving")
		if ps.metricsTLS {
			front := listen.NewFront(ps.metrics, listen.FrontOptions{Security: ps.security, HTTP: true})
			go func() { ps.served(front.Serve(s)) }()
		} else {
			go func() { ps.served(s.Serve(ps.metrics)) }()
		}
	}
}

// rpcOptions are those of Belay's own server, but for what the Relay adds.
func (ps *ports) rpcOptions(r *relay.Relay) rpc.Options {
	var waiting, unread logsink.Seldom
	o := rpc.Options{
		Credentials: listen.Credentials(),
		Tap: func(ctx context.Context, method string) error {
			_, err := ps.receiving.Tap(ctx, &tap.Info{FullMethodName: method})
			return err
		},
		MaxRecvBytes: ps.o.maxSend + sendOverheadBytes, MaxHeaderBytes: maxHeaderBytes, MaxStreams: ps.o.maxConcurrentStreams,
		// As on a member: the long requests that are let in hold less than what may have come of all.
		LongBytes: maxReceiveBytes / 8 * 3,
		LongRefused: func(client net.Addr) {
			if count, due := waiting.Due(); due {
				ps.logger.Warn("refused calls: too many long requests wait on their connection", zap.Int("refused", count), zap.Stringer("remote-addr", client))
			}
		},
		Unread: func(client net.Addr, bytes int64) {
			if count, due := unread.Due(); due {
				ps.logger.Warn("ended calls whose clients did not take the answers while others waited for room", zap.Int("ended", count),
					zap.Stringer("remote-addr", client), zap.Int64("answer-bytes", bytes))
			}
		},
		KeepaliveMinTime: max(0, ps.o.keepaliveMin),
		Keepalive:        keepalive.ServerParameters{Time: max(0, ps.o.keepaliveInterval), Timeout: max(0, ps.o.keepaliveTimeout)},
	}
	r.RPCOptions(&o)
	return o
}

// grpcOptions are those of grpc-go's server in its place, without what a connection of net/http has.
func (ps *ports) grpcOptions(r *relay.Relay) []grpc.ServerOption {
	opts := append(r.GRPCOptions(),
		grpc.MaxRecvMsgSize(ps.o.maxSend+sendOverheadBytes), grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.MaxConcurrentStreams(ps.o.maxConcurrentStreams),
		// What a connection costs while nothing is said on it are its buffers.
		grpc.ReadBufferSize(readBufferBytes))
	if ps.o.keepaliveMin > 0 {
		opts = append(opts, grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: ps.o.keepaliveMin}))
	}
	if ps.o.keepaliveInterval > 0 || ps.o.keepaliveTimeout > 0 {
		opts = append(opts, grpc.KeepaliveParams(keepalive.ServerParameters{Time: ps.o.keepaliveInterval, Timeout: ps.o.keepaliveTimeout}))
	}
	return opts
}

func (ps *ports) httpServer(h http.Handler) *http.Server {
	s := &http.Server{Handler: h, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, ErrorLog: log.New(io.Discard, "", 0)}
	listen.FollowHeaders(s)
	ps.http = append(ps.http, s)
	return s
}

// served handles the end of a listener's loop; an unexpected one ends the proxy.
func (ps *ports) served(err error) {
	if err == nil || errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) || errors.Is(err, grpc.ErrServerStopped) {
		return
	}
	ps.failed(fmt.Errorf("listener failed: %w", err))
}

// stop closes the listeners, gives calls gracefulStop to end, and ends them.
func (ps *ports) stop() {
	if ps.front != nil {
		_ = ps.front.Close() // it is gone either way
		ps.logger.Info("stop listening gRPC proxy client requests", zap.String("address", ps.o.listenAddr))
	}
	if ps.metrics != nil {
		_ = ps.metrics.Close()
	}
	if ps.grpc != nil {
		late := time.AfterFunc(gracefulStop, ps.grpc.Stop)
		ps.grpc.GracefulStop()
		late.Stop()
	}
	if ps.overHTTP != nil {
		ps.overHTTP.Stop()
	}
	for _, s := range ps.http {
		s.Close()
	}
	ps.memory.Close()
}

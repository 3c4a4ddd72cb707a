package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// dialTimeout is how long an endpoint may take to accept a connection before the next is tried.
	dialTimeout = 5 * time.Second
	// copyBytes is what a connection holds in each direction where the kernel does not splice.
	copyBytes = 32 << 10
)

// Config is what a Gateway is made from.
type Config struct {
	ListenAddr string
	Endpoints  []string      // host:port, or URLs
	Records    []*net.SRV    // of DNS, for Endpoints; nil: Endpoints are equal
	RetryDelay time.Duration // [5 m] between tries of an endpoint that is left out
	Logger     *zap.Logger   // nil: none
}

// A Gateway is a listener and where its connections go.
type Gateway struct {
	cfg      Config
	logger   *zap.Logger
	listener net.Listener
	remotes  remotes
}

// New listens. Its errors have etcd's texts.
func New(ctx context.Context, cfg Config) (*Gateway, error) {
	if cfg.RetryDelay <= 0 {
		cfg.RetryDelay = 5 * time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	if len(cfg.Endpoints) == 0 && len(cfg.Records) == 0 {
		return nil, errors.New("no endpoints found")
	}
	if cfg.Records == nil {
		for _, endpoint := range cfg.Endpoints {
			record, err := recordOf(endpoint)
			if err != nil {
				return nil, err
			}
			cfg.Records = append(cfg.Records, record)
		}
	}
	if err := checkLoop(ctx, cfg); err != nil {
		return nil, err
	}
	g := &Gateway{cfg: cfg, logger: cfg.Logger, remotes: remotes{random: rand.IntN}}
	for _, record := range cfg.Records {
		g.remotes.all = append(g.remotes.all, newRemote(record))
	}
	var err error
	if g.listener, err = net.Listen("tcp", cfg.ListenAddr); err != nil {
		return nil, err
	}
	return g, nil
}

func recordOf(endpoint string) (*net.SRV, error) {
	address := endpoint
	if u, err := url.Parse(endpoint); err == nil && u.Host != "" {
		address = u.Host
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("error parsing endpoint %q", address)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 {
		return nil, fmt.Errorf("error parsing endpoint %q: its port is no number", address)
	}
	return &net.SRV{Target: host, Port: uint16(number)}, nil
}

// checkLoop refuses a gateway that would pass connections to itself.
func checkLoop(ctx context.Context, cfg Config) error {
	host, port, err := net.SplitHostPort(cfg.ListenAddr)
	if err != nil {
		return fmt.Errorf("failed to validate listen address: %s", cfg.ListenAddr)
	}
	own := make(map[string]bool)
	if host != "" {
		addresses, err := net.DefaultResolver.LookupHost(ctx, host)
		if err != nil {
			return fmt.Errorf("failed to resolve listen host: %s", host)
		}
		for _, a := range addresses {
			own[a] = true
		}
	}
	for _, record := range cfg.Records {
		addresses, err := net.DefaultResolver.LookupHost(ctx, record.Target)
		if err != nil {
			return fmt.Errorf("failed to resolve endpoint host: %s", record.Target)
		}
		if strconv.Itoa(int(record.Port)) != port {
			continue
		}
		for _, a := range addresses {
			if own[a] {
				return fmt.Errorf("SRV or endpoint (%s:%d->%s:%d) should not resolve to the gateway listen addr (%s)", record.Target, record.Port, a, record.Port, cfg.ListenAddr)
			}
		}
	}
	return nil
}

// Addr is where it listens.
func (g *Gateway) Addr() net.Addr { return g.listener.Addr() }

// Run passes connections on until ctx ends, which closes them; it returns when all are closed.
func (g *Gateway) Run(ctx context.Context) error {
	g.logger.Info("ready to proxy client requests", zap.Strings("endpoints", g.remotes.addresses()))
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = g.listener.Close() })()
	running.Go(func() { g.monitor(ctx) })
	for {
		client, err := g.listener.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = client.Close()
			}
			return nil
		}
		if err != nil {
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() { // too many open files
				g.logger.Warn("failed to accept a connection", zap.Error(err))
				select {
				case <-time.After(100 * time.Millisecond):
					continue
				case <-ctx.Done():
					return nil
				}
			}
			return err
		}
		running.Go(func() { g.serve(ctx, client) })
	}
}

// serve passes one connection on.
func (g *Gateway) serve(ctx context.Context, client net.Conn) {
	defer client.Close()
	tried := make(map[*remote]bool)
	var member net.Conn
	for member == nil {
		to := g.remotes.pick(tried)
		if to == nil || ctx.Err() != nil {
			return
		}
		tried[to] = true
		var err error
		dialer := net.Dialer{Timeout: dialTimeout}
		if member, err = dialer.DialContext(ctx, "tcp", to.address); err != nil {
			member = nil
			if ctx.Err() == nil && g.remotes.set(to, true) {
				g.logger.Warn("deactivated endpoint", zap.String("address", to.address), zap.Duration("interval", g.cfg.RetryDelay), zap.Error(err))
			}
		} else if g.remotes.set(to, false) {
			g.logger.Info("activated", zap.String("address", to.address))
		}
	}
	defer member.Close()
	defer context.AfterFunc(ctx, func() { _ = client.Close(); _ = member.Close() })()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pass(client, member)
	}()
	pass(member, client)
	<-done
}

// pass copies one direction. Its end is passed on, and an error ends both.
func pass(to, from net.Conn) {
	if _, err := io.CopyBuffer(to, from, make([]byte, copyBytes)); err == nil {
		if half, ok := to.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
			return
		}
	}
	_ = to.Close()
	_ = from.Close()
}

// monitor tries the endpoints that are left out.
func (g *Gateway) monitor(ctx context.Context) {
	ticker := time.NewTicker(g.cfg.RetryDelay)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, r := range g.remotes.inactive() {
			dialer := net.Dialer{Timeout: dialTimeout}
			conn, err := dialer.DialContext(ctx, "tcp", r.address)
			switch {
			case err == nil:
				_ = conn.Close()
				if g.remotes.set(r, false) {
					g.logger.Info("activated", zap.String("address", r.address))
				}
			case ctx.Err() == nil:
				g.logger.Warn("failed to activate endpoint (stay inactive for another interval)", zap.String("address", r.address),
					zap.Duration("interval", g.cfg.RetryDelay), zap.Error(err))
			}
		}
	}
}

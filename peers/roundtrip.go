package peers

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"strings"
	"time"
)

// Options are how a RoundTripper connects. Timeouts of 0 mean none.
type Options struct {
	// TLS is called for each connection of https and unixs, since the trusted authorities may
	// change [the system's certificates].
	TLS func() *tls.Config
	// Dial opens a connection; network is "tcp" or "unix" [a net.Dialer].
	Dial        func(ctx context.Context, network, address string) (net.Conn, error)
	DialTimeout time.Duration
	// ReadTimeout and WriteTimeout bound how long the other side may send nothing, or take nothing.
	ReadTimeout, WriteTimeout time.Duration
	WriteBuffer               int // bytes [4 KiB]
	// Reuse keeps connections for further requests. REQUIRES: no ReadTimeout, which would end idle
	// ones.
	Reuse bool
}

// handshakeTimeout bounds a TLS handshake.
const handshakeTimeout = 10 * time.Second

// tlsFor is the configuration for a connection to addr, whose host the other side's
// certificate must name unless the configuration says another.
func (o *Options) tlsFor(addr string) *tls.Config {
	var cfg *tls.Config
	if o.TLS != nil {
		cfg = o.TLS()
	}
	if cfg == nil {
		cfg = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if cfg.ServerName == "" {
		cfg = cfg.Clone()
		if host, _, err := net.SplitHostPort(addr); err == nil {
			cfg.ServerName = host
		} else {
			cfg.ServerName = addr
		}
	}
	return cfg
}

// A RoundTripper is an http.Transport that knows etcd's unix and unixs URLs, and whose connections
// give up when the other side takes no bytes, or sends none, for too long.
type RoundTripper struct {
	tcp  *http.Transport
	unix *http.Transport
}

// NewRoundTripper makes a RoundTripper; it opens nothing yet.
func NewRoundTripper(o Options) *RoundTripper {
	if o.Dial == nil {
		o.Dial = (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext
	}
	newTransport := func(network string) *http.Transport {
		t := &http.Transport{
			DialContext: func(ctx context.Context, n, addr string) (net.Conn, error) {
				if o.DialTimeout > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, o.DialTimeout)
					defer cancel()
				}
				if network != "" {
					n = network
					// An etcd socket URL has a name and perhaps a port, which together are the
					// file's name.
					addr = strings.TrimSuffix(strings.TrimSuffix(addr, ":443"), ":80")
				}
				c, err := o.Dial(ctx, n, addr)
				if err != nil {
					return nil, err
				}
				return &timeoutConn{Conn: c, read: o.ReadTimeout, write: o.WriteTimeout}, nil
			},
			MaxIdleConnsPerHost: -1,
			IdleConnTimeout:     time.Minute,
			WriteBufferSize:     o.WriteBuffer,
			DisableCompression:  true,
		}
		t.DialTLSContext = func(ctx context.Context, n, addr string) (net.Conn, error) {
			conn, err := t.DialContext(ctx, n, addr)
			if err != nil {
				return nil, err
			}
			ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
			defer cancel()
			c := tls.Client(conn, o.tlsFor(addr))
			if err := c.HandshakeContext(ctx); err != nil {
				conn.Close()
				return nil, err
			}
			return c, nil
		}
		if o.Reuse {
			t.MaxIdleConnsPerHost = 16
		}
		return t
	}
	return &RoundTripper{tcp: newTransport(""), unix: newTransport("unix")}
}

// RoundTrip implements http.RoundTripper.
func (rt *RoundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	if !strings.HasPrefix(req.URL.Scheme, "unix") {
		return rt.tcp.RoundTrip(req)
	}
	req = req.Clone(req.Context())
	req.URL.Scheme = "http" + strings.TrimPrefix(req.URL.Scheme, "unix")
	return rt.unix.RoundTrip(req)
}

// CloseIdleConnections closes the connections that no request uses.
func (rt *RoundTripper) CloseIdleConnections() {
	rt.tcp.CloseIdleConnections()
	rt.unix.CloseIdleConnections()
}

// A timeoutConn sets a deadline before each read and write.
type timeoutConn struct {
	net.Conn
	read, write time.Duration
}

func (c *timeoutConn) Read(b []byte) (int, error) {
	if c.read > 0 {
		if err := c.SetReadDeadline(time.Now().Add(c.read)); err != nil {
			return 0, err
		}
	}
	return c.Conn.Read(b)
}

func (c *timeoutConn) Write(b []byte) (int, error) {
	if c.write > 0 {
		if err := c.SetWriteDeadline(time.Now().Add(c.write)); err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(b)
}

package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// A roundTripper is an http.Transport that knows etcd's unix and unixs URLs, and whose connections
// give up when the other side takes no bytes, or sends none, for too long.
type roundTripper struct {
	tcp  *http.Transport
	unix *http.Transport
}

// newRoundTripper makes a roundTripper. A timeout of 0 means none. With reuse, connections are kept
// for further requests; connections with a read timeout never are, for they time out when idle.
func newRoundTripper(cfg *Config, readTimeout, writeTimeout time.Duration, writeBuffer int, reuse bool) *roundTripper {
	dial := cfg.DialContext
	if dial == nil {
		dial = (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext
	}
	dialTimeout := cfg.DialTimeout
	newTransport := func(network string) *http.Transport {
		t := &http.Transport{
			DialContext: func(ctx context.Context, n, addr string) (net.Conn, error) {
				ctx, cancel := context.WithTimeout(ctx, dialTimeout)
				defer cancel()
				if network != "" {
					n = network
					// An etcd socket URL has a name and perhaps a port, which together are the file's name.
					addr = strings.TrimSuffix(strings.TrimSuffix(addr, ":443"), ":80")
				}
				c, err := dial(ctx, n, addr)
				if err != nil {
					return nil, err
				}
				return &timeoutConn{Conn: c, read: readTimeout, write: writeTimeout}, nil
			},
			TLSClientConfig:     cfg.TLS,
			TLSHandshakeTimeout: 10 * time.Second,
			MaxIdleConnsPerHost: -1,
			IdleConnTimeout:     time.Minute,
			WriteBufferSize:     writeBuffer,
			DisableCompression:  true,
		}
		if reuse {
			t.MaxIdleConnsPerHost = 16
		}
		return t
	}
	return &roundTripper{tcp: newTransport(""), unix: newTransport("unix")}
}

func (rt *roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	if !strings.HasPrefix(req.URL.Scheme, "unix") {
		return rt.tcp.RoundTrip(req)
	}
	req = req.Clone(req.Context())
	req.URL.Scheme = "http" + strings.TrimPrefix(req.URL.Scheme, "unix")
	return rt.unix.RoundTrip(req)
}

func (rt *roundTripper) CloseIdleConnections() {
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

// parseURLs checks peer URLs as etcd does and sorts them.
func parseURLs(list []string) ([]*url.URL, error) {
	if len(list) == 0 {
		return nil, errors.New("no valid URLs given")
	}
	var urls []*url.URL
	for _, s := range list {
		s = strings.TrimSpace(s)
		u, err := url.Parse(s)
		if err != nil {
			return nil, err
		}
		switch u.Scheme {
		case "http", "https":
			if _, _, err := net.SplitHostPort(u.Host); err != nil {
				return nil, fmt.Errorf(`URL address does not have the form "host:port": %s`, s)
			}
			if u.Path != "" {
				return nil, fmt.Errorf("URL must not contain a path: %s", s)
			}
		case "unix", "unixs":
		default:
			return nil, fmt.Errorf("URL scheme must be http, https, unix, or unixs: %s", s)
		}
		urls = append(urls, u)
	}
	slices.SortFunc(urls, func(a, b *url.URL) int { return strings.Compare(a.String(), b.String()) })
	return urls, nil
}

// A urlPicker stays with one of a peer's URLs until it fails.
type urlPicker struct {
	mu     sync.Mutex
	urls   []*url.URL
	picked int
}

func (p *urlPicker) update(urls []*url.URL) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.urls, p.picked = urls, 0
}

// pick returns the URL to use now; nil if the peer has none.
func (p *urlPicker) pick() *url.URL {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.urls) == 0 {
		return nil
	}
	return p.urls[p.picked]
}

// unreachable turns to the next URL, if u is the one in use.
func (p *urlPicker) unreachable(u *url.URL) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.urls) > 0 && p.urls[p.picked] == u {
		p.picked = (p.picked + 1) % len(p.urls)
	}
}

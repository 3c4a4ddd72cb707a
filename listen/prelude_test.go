package listen

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
)

// preludeServer is a port as members have them, whose preludes are bounded: its Preludes, its
// address, and how many connections were closed.
func preludeServer(t *testing.T, max int64, opts FrontOptions) (p *Preludes, address string, closed *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed = &atomic.Int64{}
	p = NewPreludes(max, func(held int64, remote string) {
		if held <= smallPrelude || remote == "" {
			t.Errorf("closed %q, which held %d", remote, held)
		}
		closed.Add(1)
	})
	inner := p.Listener(NewBound(1000, func(bool) {}).Listener(l))
	s := echoServer()
	FollowHeaders(s)
	served := make(chan struct{})
	if opts == (FrontOptions{}) { // the peer port without TLS
		go func() { _ = s.Serve(inner); close(served) }()
		t.Cleanup(func() { s.Close(); <-served })
		return p, l.Addr().String(), closed
	}
	opts.Receiving = NewReceiving(1<<40, nil)
	f := NewFront(inner, opts)
	g := grpc.NewServer(grpc.Creds(Credentials()), grpc.MaxHeaderListSize(maxCallHeaderBytes),
		grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error { return stream.SendMsg(&emptypb.Empty{}) }))
	go g.Serve(f.GRPC())
	go func() { _ = f.Serve(s); close(served) }()
	t.Cleanup(func() { f.Close(); s.Close(); g.Stop(); <-served })
	return p, l.Addr().String(), closed
}

// fields are headers, encoded, of a request of grpc or another.
func fields(t *testing.T, contentType string, more ...hpack.HeaderField) []byte {
	t.Helper()
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for _, f := range append([]hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/t.T/Call"},
		{Name: ":authority", Value: "t"}, {Name: "content-type", Value: contentType}, {Name: "te", Value: "trailers"}}, more...) {
		if err := e.WriteField(f); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// tlsBytes are what a client of TLS sends in its first flight, whose last byte does not come, made
// as long as a server reads it.
func tlsBytes() []byte {
	const size = 60_000
	hello := append([]byte{1, size >> 16, size >> 8 & 0xff, size & 0xff}, make([]byte, size-1)...)
	var out []byte
	for len(hello) > 0 {
		n := min(len(hello), 16<<10)
		out = append(append(out, tlsHandshake, 3, 1, byte(n>>8), byte(n)), hello[:n]...)
		hello = hello[n:]
	}
	return out
}

// What connections send before there is a request is bounded over all, whatever they speak and on
// whatever port; and a client that behaves is served meanwhile, on an old connection and on new
// ones.
func TestPreludesAreBounded(t *testing.T) {
	a := newAuthority(t, "ca")
	a.issue("server", nil)
	security, err := NewSecurity(TLSInfo{CertFile: a.path("server.pem"), KeyFile: a.path("server-key.pem")}, SecurityOptions{})
	if err != nil {
		t.Fatal(err)
	}
	plain := FrontOptions{GRPC: true, HTTP: true}
	secure := FrontOptions{Security: security, GRPC: true, HTTP: true}
	call, other := fields(t, "application/grpc"), fields(t, "application/json")
	part := fields(t, "", hpack.HeaderField{Name: "x", Value: strings.Repeat("y", 200), Sensitive: true})[len(fields(t, "")):]
	part = bytes.Repeat(part, 16<<10/len(part))
	lines := "GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("y", 60<<10)
	// begin sends headers without an end; earlier requests may come first.
	begin := func(first ...[]byte) func(io.ReadWriter) error {
		return func(c io.ReadWriter) error {
			if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
				return err
			}
			f := http2.NewFramer(c, c)
			if err := f.WriteSettings(); err != nil {
				return err
			}
			id := uint32(1)
			for _, block := range first[1:] {
				if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true, EndStream: true}); err != nil {
					return err
				}
				id += 2
			}
			if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first[0]}); err != nil {
				return err
			}
			for range 8 {
				if err := f.WriteContinuation(id, false, part); err != nil {
					return err
				}
			}
			return nil
		}
	}
	text := func(s string) func(io.ReadWriter) error {
		return func(c io.ReadWriter) error { _, err := io.WriteString(c, s); return err }
	}
	for name, tt := range map[string]struct {
		opts     FrontOptions
		protocol string // of TLS; "": bare bytes, to whatever port
		send     func(io.ReadWriter) error
	}{
		"handshake":                 {secure, "", text(string(tlsBytes()))},
		"first call over TLS":       {secure, "h2", begin(call)},
		"first request over TLS":    {secure, "h2", begin(other)},
		"second call over TLS":      {secure, "h2", begin(call, call)},
		"second request over TLS":   {secure, "h2", begin(other, other)},
		"HTTP/1 over TLS":           {secure, "http/1.1", text(lines)},
		"request over TLS, no gRPC": {FrontOptions{Security: security, HTTP: true}, "h2", begin(other)},
		"call over TLS, no HTTP":    {FrontOptions{Security: security, GRPC: true}, "h2", begin(call)},
		"call":                      {plain, "", begin(call)},
		"second call":               {plain, "", begin(call, call)},
		"HTTP/1":                    {plain, "", text(lines)},
		"HTTP/1, second request":    {plain, "", text("GET / HTTP/1.1\r\nHost: x\r\n\r\n" + lines)},
		"peer port":                 {FrontOptions{}, "", text(lines)},
	} {
		t.Run(name, func(t *testing.T) {
			const bound, conns = 2 << 20, 32
			p, address, closed := preludeServer(t, bound, tt.opts)
			cfg := a.client("", "h2", "http/1.1")
			ask := func(c *http.Client) {
				t.Helper()
				scheme := "http://"
				if tt.opts.Security != nil {
					scheme = "https://"
				}
				resp, err := c.Get(scheme + address + "/")
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
			}
			askNew := func() {
				t.Helper()
				if tt.opts.GRPC && !tt.opts.HTTP {
					return
				}
				tr := &http.Transport{TLSClientConfig: cfg.Clone(), ForceAttemptHTTP2: true}
				defer tr.CloseIdleConnections()
				ask(&http.Client{Transport: tr, Timeout: time.Minute})
			}
			callNew := func() {
				t.Helper()
				if !tt.opts.GRPC {
					return
				}
				creds := insecure.NewCredentials()
				if tt.opts.Security != nil {
					creds = credentials.NewTLS(cfg.Clone())
				}
				c, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if err := c.Invoke(ctx, "/t.T/Call", &emptypb.Empty{}, &emptypb.Empty{}); err != nil {
					t.Fatal(err)
				}
			}
			askNew()
			callNew()
			var wg sync.WaitGroup
			open := make(chan net.Conn, conns)
			for range 4 {
				wg.Go(func() {
					for range conns / 4 {
						conn, err := net.Dial("tcp", address)
						if err != nil {
							t.Error(err)
							return
						}
						open <- conn
						if err := conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
							t.Error(err)
						}
						if tt.protocol != "" {
							secured := tls.Client(conn, a.client("", tt.protocol))
							if secured.Handshake() != nil {
								continue // it was closed
							}
							conn = secured
						}
						go io.Copy(io.Discard, conn) //nolint:errcheck // until it is closed
						_ = tt.send(conn)            // or it was closed
					}
				})
			}
			wg.Wait()
			close(open)
			eventually(t, "connections are closed", func() bool { return closed.Load() > 0 })
			eventually(t, "the rest stays under the bound", func() bool { return p.Held() <= bound && p.Held() > 0 })
			askNew()
			callNew()
			for conn := range open {
				conn.Close()
			}
			eventually(t, "all is given back", func() bool { return p.Held() == 0 })
		})
	}
}

// Who sends long headers and ends them holds nothing afterwards, however often, and is never
// closed.
func TestPreludesEnd(t *testing.T) {
	a := newAuthority(t, "ca")
	a.issue("server", nil)
	security, err := NewSecurity(TLSInfo{CertFile: a.path("server.pem"), KeyFile: a.path("server-key.pem")}, SecurityOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, secure := range []bool{false, true} {
		for _, h2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("secure %v, HTTP/2 %v", secure, h2), func(t *testing.T) {
				opts, scheme := FrontOptions{GRPC: true, HTTP: true}, "http://"
				if secure {
					opts.Security, scheme = security, "https://"
				}
				p, address, closed := preludeServer(t, 1<<20, opts)
				tr := &http.Transport{TLSClientConfig: a.client("", "http/1.1"), Protocols: new(http.Protocols)}
				defer tr.CloseIdleConnections()
				tr.Protocols.SetHTTP1(!h2)
				tr.Protocols.SetHTTP2(h2)
				tr.Protocols.SetUnencryptedHTTP2(h2 && !secure)
				if h2 {
					tr.TLSClientConfig = a.client("", "h2")
				}
				client := &http.Client{Transport: tr, Timeout: time.Minute}
				for i := range 20 {
					r, err := http.NewRequest(http.MethodPost, scheme+address+"/t.T/Call", strings.NewReader("body"))
					if err != nil {
						t.Fatal(err)
					}
					r.Header.Set("X", strings.Repeat("y", 40<<10))
					if h2 && i%2 == 0 { // a call, or a request among calls
						r.Header.Set("Content-Type", "application/grpc")
						r.Header.Set("Te", "trailers")
					} else if h2 && !secure {
						continue // nobody serves it there
					}
					resp, err := client.Do(r)
					if err != nil {
						t.Fatal(err)
					}
					if _, err := io.Copy(io.Discard, resp.Body); err != nil {
						t.Fatal(err)
					}
					resp.Body.Close()
				}
				eventually(t, "all is given back", func() bool { return p.Held() == 0 })
				if closed.Load() > 0 {
					t.Errorf("closed %d", closed.Load())
				}
			})
		}
	}
}

// Of those that hold the same, the oldest is closed; who holds less than is counted never is.
func TestPreludesCloseTheOldest(t *testing.T) {
	var refused []int64
	p := NewPreludes(5*smallPrelude, func(held int64, _ string) { refused = append(refused, held) })
	conns := make([]*scripted, 4)
	preludes := make([]*prelude, len(conns))
	for i := range conns {
		conns[i] = &scripted{}
		preludes[i] = &prelude{of: p, conn: conns[i]}
	}
	preludes[0].hold(smallPrelude)
	for _, c := range preludes[1:] {
		c.hold(2 * smallPrelude)
	}
	if len(refused) != 1 || refused[0] != 2*smallPrelude || conns[0].closed || !conns[1].closed || conns[2].closed || conns[3].closed {
		t.Fatalf("refused %v, closed %v %v %v %v", refused, conns[0].closed, conns[1].closed, conns[2].closed, conns[3].closed)
	}
	if p.Held() != 4*smallPrelude {
		t.Errorf("held %d", p.Held())
	}
	preludes[1].hold(3 * smallPrelude) // it counts for nothing any more
	preludes[3].hold(4 * smallPrelude) // and now it holds most
	if len(refused) != 2 || !conns[3].closed || p.Held() != 2*smallPrelude {
		t.Errorf("refused %v, held %d", refused, p.Held())
	}
}

// Long headers of HTTP/1 are read one connection at a time, and whoever reads gives its turn back
// by whatever it does next.
func TestPreludesTakeTurns(t *testing.T) {
	p := NewPreludes(1<<40, nil)
	conn := func() *preludeConn {
		inner := &scripted{in: bytes.NewBuffer(make([]byte, 1<<20)), most: 1 << 20}
		c := &preludeConn{Conn: inner}
		c.prelude = prelude{of: p, conn: inner}
		c.prelude.count(http1Weight)
		return c
	}
	read := func(c *preludeConn) {
		if n, err := c.Read(make([]byte, 4<<10)); n != 4<<10 || err != nil {
			t.Errorf("read %d, %v", n, err)
		}
	}
	for name, next := range map[string]func(*preludeConn) error{
		"reads":         func(c *preludeConn) error { c.Conn.(*scripted).in.Reset(); _, _ = c.Read(make([]byte, 1)); return nil },
		"writes":        func(c *preludeConn) error { _, err := c.Write(nil); return err },
		"closes":        func(c *preludeConn) error { return c.Close() },
		"has a request": func(c *preludeConn) error { c.prelude.count(0); return nil },
	} {
		first, second := conn(), conn()
		read(first)
		done := make(chan struct{})
		go func() { read(second); close(done) }()
		eventually(t, "the second has read", func() bool { return second.prelude.counted.Load() > 0 })
		select {
		case <-done:
			t.Fatalf("%s: two had a turn", name)
		default:
		}
		if err := next(first); err != nil {
			t.Fatal(err)
		}
		<-done
		if err := second.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(p.turn) != 0 {
		t.Error("a turn was not given back")
	}
}

package listen

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
)

// secureFront is a Front with TLS, and what it logs.
func secureFront(t *testing.T, info TLSInfo, opts SecurityOptions) (*Front, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	opts.Logger, opts.Rejected = zap.New(core), "rejected connection on client endpoint"
	security, err := NewSecurity(info, opts)
	if err != nil {
		t.Fatal(err)
	}
	return serveFront(t, FrontOptions{Security: security, GRPC: true, HTTP: true, MaxStreams: 77}), logs
}

// askHTTP makes one request with a client of its own.
func askHTTP(f *Front, cfg *tls.Config, http2Only bool) (string, error) {
	transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	if http2Only {
		transport.Protocols = new(http.Protocols)
		transport.Protocols.SetHTTP2(true)
	}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: 30 * time.Second}).Get("https://" + f.Addr().String() + "/")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// serveHealth serves gRPC and tells the common name of each caller.
func serveHealth(t *testing.T, f *Front) <-chan string {
	t.Helper()
	callers := make(chan string, 64)
	s := grpc.NewServer(grpc.Creds(Credentials()), grpc.UnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			p, _ := peer.FromContext(ctx)
			name := "no TLS"
			if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
				name = "no certificate"
				if len(info.State.VerifiedChains) > 0 {
					name = info.State.VerifiedChains[0][0].Subject.CommonName
				}
			}
			callers <- name
			return next(ctx, req)
		}))
	healthpb.RegisterHealthServer(s, health.NewServer())
	go func() { _ = s.Serve(f.GRPC()) }()
	t.Cleanup(s.Stop)
	return callers
}

func askGRPC(t *testing.T, f *Front, cfg *tls.Config) error {
	t.Helper()
	conn, err := grpc.NewClient(f.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	return err
}

func TestOnePortManyProtocols(t *testing.T) {
	a := newAuthority(t, "ca")
	a.issue("server", nil)
	a.issue("alice", nil)
	f, logs := secureFront(t, a.info("server"), SecurityOptions{})
	callers := serveHealth(t, f)
	for _, c := range []struct {
		protocols []string
		http2Only bool
		want      string
	}{
		{nil, false, "GET HTTP/2.0 TLS"}, // h2 and http/1.1
		{nil, true, "GET HTTP/2.0 TLS"},
		{[]string{"http/1.1"}, false, "GET HTTP/1.1 TLS"},
	} {
		cfg := a.client("alice", c.protocols...)
		got, err := "", error(nil)
		if c.protocols != nil {
			transport := &http.Transport{TLSClientConfig: cfg}
			resp, getErr := (&http.Client{Transport: transport}).Get("https://" + f.Addr().String())
			if err = getErr; err == nil {
				body, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				got = string(body)
			}
			transport.CloseIdleConnections()
		} else {
			got, err = askHTTP(f, cfg, c.http2Only)
		}
		if err != nil || got != c.want {
			t.Errorf("%v, HTTP/2 only %v: %q, %v; want %q", c.protocols, c.http2Only, got, err, c.want)
		}
	}
	// gRPC goes to grpc, also from a client that would take HTTP/1.
	for _, protocols := range [][]string{{"h2"}, {"h2", "http/1.1"}} {
		if err := askGRPC(t, f, a.client("alice", protocols...)); err != nil {
			t.Errorf("gRPC with %v: %v", protocols, err)
		}
		if got := <-callers; got != "alice" {
			t.Errorf("caller %q", got)
		}
	}
	// What a proxy passes on may be followed by anything.
	passed := &http.Client{Transport: &http.Transport{TLSClientConfig: a.client("alice"), ForceAttemptHTTP2: true}}
	defer passed.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+f.Addr().String(), strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("X-Forwarded-For", "10.0.0.1")
	resp, err := passed.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "POST HTTP/2.0 TLS" {
		t.Errorf("%q, %v", body, err)
	}
	for _, e := range logs.All() {
		if e.Level >= zap.WarnLevel {
			t.Errorf("logged %q %v", e.Message, e.ContextMap())
		}
	}
}

// http and https on the same address.
func TestPlainBesideTLS(t *testing.T) {
	a := newAuthority(t, "ca")
	a.issue("server", nil)
	security, err := NewSecurity(TLSInfo{CertFile: a.path("server.pem"), KeyFile: a.path("server-key.pem")}, SecurityOptions{Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	f := serveFront(t, FrontOptions{Security: security, Plain: true, GRPC: true, HTTP: true})
	callers := serveHealth(t, f)
	if got, err := askHTTP(f, a.client(""), false); err != nil || got != "GET HTTP/2.0 TLS" {
		t.Errorf("%q, %v", got, err)
	}
	if err := askGRPC(t, f, a.client("")); err != nil || <-callers != "no certificate" {
		t.Error(err)
	}
	resp, err := http.Get("http://" + f.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "GET HTTP/1.1" {
		t.Errorf("%q, %v", body, err)
	}
	conn, err := grpc.NewClient(f.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil || <-callers != "no TLS" {
		t.Error(err)
	}
}

// A gRPC client may connect long before its first call, and ping meanwhile; what
// it was told of streams is what the server allows.
func TestPrefaceByHand(t *testing.T) {
	a := newAuthority(t, "ca")
	a.issue("server", nil)
	f, _ := secureFront(t, TLSInfo{CertFile: a.path("server.pem"), KeyFile: a.path("server-key.pem")}, SecurityOptions{})
	callers := serveHealth(t, f)
	conn, err := tls.Dial("tcp", f.Addr().String(), a.client("", "h2"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	next := func() http2.Frame {
		t.Helper()
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		return frame
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	settings, ok := next().(*http2.SettingsFrame) // before a word of ours
	if !ok {
		t.Fatal("the first frame is not SETTINGS")
	}
	if v, _ := settings.Value(http2.SettingMaxConcurrentStreams); v != 77 {
		t.Fatalf("told %d streams, want 77", v)
	}
	_, err = io.WriteString(conn, http2.ClientPreface)
	must(err)
	must(framer.WriteSettings())
	must(framer.WritePing(false, [8]byte{1, 2}))
	if p, ok := next().(*http2.PingFrame); !ok || !p.IsAck() || p.Data != [8]byte{1, 2} {
		t.Fatal("the ping was not answered")
	}
	var block strings.Builder
	enc := hpack.NewEncoder(&block)
	for _, field := range [][2]string{
		{":method", "POST"}, {":scheme", "https"}, {":path", "/grpc.health.v1.Health/Check"}, {":authority", "localhost"},
		{"te", "trailers"}, {"x-long", strings.Repeat("v", 900)}, {"content-type", "application/grpc"},
	} {
		must(enc.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}))
	}
	// The headers in three frames, padded, and the acknowledgement of the SETTINGS late.
	text := block.String()
	must(framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte(text[:10]), PadLength: 7}))
	must(framer.WriteContinuation(1, false, []byte(text[10:20])))
	must(framer.WriteContinuation(1, true, []byte(text[20:])))
	must(framer.WriteSettingsAck())
	must(framer.WriteData(1, true, make([]byte, 5)))
	for {
		switch frame := next().(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				must(framer.WriteSettingsAck())
			}
		case *http2.GoAwayFrame:
			t.Fatalf("GOAWAY %v %q", frame.ErrCode, frame.DebugData())
		case *http2.MetaHeadersFrame:
			if !frame.StreamEnded() {
				continue
			}
			for _, field := range frame.Fields {
				if field.Name == "grpc-status" && field.Value == "0" {
					if got := <-callers; got != "no certificate" {
						t.Fatalf("caller %q", got)
					}
					return
				}
			}
			t.Fatalf("trailers %v", frame.Fields)
		}
	}
}

func TestRejected(t *testing.T) {
	a := newAuthority(t, "ca")
	other := newAuthority(t, "other")
	a.issue("server", nil)
	a.issue("good", nil)
	other.issue("stranger", nil)
	a.issue("elsewhere", func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = []net.IP{{10, 1, 1, 1}}, nil })
	a.issue("expired", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	a.issue("nameless", func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, nil })
	a.revoke(a.issue("revoked", nil))

	for _, c := range []struct {
		name   string
		change func(*TLSInfo)
		client *tls.Config
		want   string // in the log; "" admitted
	}{
		{"good", nil, a.client("good"), ""},
		{"no certificate", nil, a.client(""), "tls: client didn't provide a certificate"},
		{"stranger", nil, withCertificate(a.client(""), other.client("stranger")), "certificate signed by unknown authority"},
		{"expired", nil, a.client("expired"), "certificate has expired"},
		{"elsewhere", nil, a.client("elsewhere"), "certificate is valid for 10.1.1.1, not 127.0.0.1"},
		{"nameless", nil, a.client("nameless"), ""},
		{"names are not asked", func(i *TLSInfo) { i.SkipClientSANVerify = true }, a.client("elsewhere"), ""},
		{"revoked", func(i *TLSInfo) { i.CRLFile = a.path("crl.der") }, a.client("revoked"), "transport: certificate serial "},
		{"not revoked", func(i *TLSInfo) { i.CRLFile = a.path("crl.der") }, a.client("good"), ""},
		{"no list", func(i *TLSInfo) { i.CRLFile = a.path("none.der") }, a.client("good"), "none.der: no such file"},
		{"common name", func(i *TLSInfo) { i.AllowedCNs = []string{"x", "good"} }, a.client("good"), ""},
		{"other common name", func(i *TLSInfo) { i.AllowedCNs = []string{"x"} }, a.client("good"), "client certificate authentication failed"},
		{"host", func(i *TLSInfo) { i.AllowedHostnames = []string{"x", "localhost"} }, a.client("good"), ""},
		{"other host", func(i *TLSInfo) { i.AllowedHostnames = []string{"x"} }, a.client("good"), "client certificate authentication failed"},
		{"old version", func(i *TLSInfo) { i.MinVersion = tls.VersionTLS13 }, withMaxVersion(a.client("good"), tls.VersionTLS12), "unsupported versions"},
	} {
		t.Run(c.name, func(t *testing.T) {
			info := a.info("server")
			if c.change != nil {
				c.change(&info)
			}
			f, logs := secureFront(t, info, SecurityOptions{CheckSAN: true})
			for range 2 { // the second time the session may be resumed: the rules hold all the same
				c.client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
				_, err := askHTTP(f, c.client, false)
				if (err == nil) != (c.want == "") {
					t.Fatalf("%v, want %q", err, c.want)
				}
			}
			rejected := logs.FilterMessage("rejected connection on client endpoint")
			if c.want == "" {
				if rejected.Len() > 0 {
					t.Fatalf("logged %v", rejected.All()[0].ContextMap())
				}
				return
			}
			if rejected.Len() == 0 {
				t.Fatal("the refusal was not logged")
			}
			fields := rejected.All()[0].ContextMap()
			if text := fmt.Sprint(fields["error"]); !strings.Contains(text, c.want) || fields["remote-addr"] == "" {
				t.Fatalf("logged %v, want %q", fields, c.want)
			}
		})
	}
}

// withCertificate shows the certificate of from, whatever the server asks for.
func withCertificate(c, from *tls.Config) *tls.Config {
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &from.Certificates[0], nil }
	return c
}

func withMaxVersion(c *tls.Config, version uint16) *tls.Config {
	c.MaxVersion = version
	return c
}

type fakeNames struct {
	addr map[string][]string
	host map[string][]string
}

func (n fakeNames) LookupAddr(_ context.Context, addr string) ([]string, error) {
	if names, ok := n.addr[addr]; ok {
		return names, nil
	}
	return nil, errors.New("no such address")
}

func (n fakeNames) LookupHost(_ context.Context, host string) ([]string, error) {
	if addresses, ok := n.host[host]; ok {
		return addresses, nil
	}
	return nil, errors.New("no such host " + host)
}

func TestCheckSAN(t *testing.T) {
	names := fakeNames{
		addr: map[string][]string{"10.0.0.1": {"a.example.", "x.b.example."}},
		host: map[string][]string{"c.example": {"10.0.0.9", "10.0.0.2"}},
	}
	for _, c := range []struct {
		remote string
		ips    []net.IP
		dns    []string
		want   string
	}{
		{"10.0.0.1:1", nil, nil, ""},
		{"10.0.0.1:1", []net.IP{{10, 0, 0, 1}}, nil, ""},
		{"10.0.0.3:1", []net.IP{{10, 0, 0, 1}}, nil, "x509: certificate is valid for 10.0.0.1, not 10.0.0.3"},
		{"10.0.0.1:1", nil, []string{"a.example"}, ""},
		{"10.0.0.1:1", nil, []string{"*.b.example"}, ""},
		{"10.0.0.1:1", nil, []string{"*.a.example"}, `tls: "10.0.0.1" does not match any of DNSNames ["*.a.example"]`},
		{"10.0.0.2:1", nil, []string{"c.example"}, ""},
		{"10.0.0.2:1", []net.IP{{10, 0, 0, 1}}, []string{"c.example"}, ""},
		{"10.0.0.4:1", nil, []string{"c.example"}, `tls: "10.0.0.4" does not match any of DNSNames ["c.example"] (no such address)`},
		{"10.0.0.4:1", nil, []string{"d.example"}, `tls: "10.0.0.4" does not match any of DNSNames ["d.example"] (no such host d.example)`},
	} {
		remote, err := net.ResolveTCPAddr("tcp", c.remote)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if err := checkSAN(t.Context(), &x509.Certificate{IPAddresses: c.ips, DNSNames: c.dns}, remote, names); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s from %v %v: %q, want %q", c.remote, c.ips, c.dns, got, c.want)
		}
	}
}

// Renewed files are used from the next connection on, and while they do not fit
// together the last pair goes on.
func TestReload(t *testing.T) {
	a := newAuthority(t, "ca")
	first := a.issue("server", nil)
	f, logs := secureFront(t, TLSInfo{CertFile: a.path("server.pem"), KeyFile: a.path("server-key.pem")}, SecurityOptions{})
	shown := func() string {
		t.Helper()
		conn, err := tls.Dial("tcp", f.Addr().String(), a.client("", "http/1.1"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	if got := shown(); got != first.String() {
		t.Fatalf("shown %s, want %s", got, first)
	}
	second := a.issue("server", nil)
	if got := shown(); got != second.String() {
		t.Fatalf("shown %s, want %s", got, second)
	}
	a.issue("next", nil)
	if err := os.Rename(a.path("next.pem"), a.path("server.pem")); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if got := shown(); got != second.String() {
			t.Fatalf("with a key that does not fit: shown %s, want %s", got, second)
		}
	}
	if n := logs.FilterMessage("failed to create peer certificate").Len(); n != 1 {
		t.Fatalf("told %d times", n)
	}
	if err := os.Rename(a.path("next-key.pem"), a.path("server-key.pem")); err != nil {
		t.Fatal(err)
	}
	if got := shown(); got == second.String() {
		t.Fatal("the third certificate is not shown")
	}
	if err := os.Remove(a.path("server.pem")); err != nil {
		t.Fatal(err)
	}
	shown()
	if logs.FilterMessage("failed to find peer cert files").Len() != 1 {
		t.Fatal("missing files were not told")
	}
}

// Clients that begin a handshake and say no more delay nobody.
func TestSlowHandshakes(t *testing.T) {
	a := newAuthority(t, "ca")
	a.issue("server", nil)
	f, _ := secureFront(t, TLSInfo{CertFile: a.path("server.pem"), KeyFile: a.path("server-key.pem")}, SecurityOptions{})
	serveHealth(t, f)
	for i := range 300 {
		dialAndWrite(t, f, "\x16\x03\x01\x02\x00"[:i%6])
	}
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			if _, err := askHTTP(f, a.client("", "h2", "http/1.1"), false); err != nil {
				t.Error(err)
			}
			if err := askGRPC(t, f, a.client("")); err != nil {
				t.Error(err)
			}
		})
	}
	clients.Wait()
}

// A connection without a call does not outlive the port.
func TestCloseEndsWaiting(t *testing.T) {
	a := newAuthority(t, "ca")
	a.issue("server", nil)
	f, _ := secureFront(t, TLSInfo{CertFile: a.path("server.pem"), KeyFile: a.path("server-key.pem")}, SecurityOptions{})
	conn, err := tls.Dial("tcp", f.Addr().String(), a.client("", "h2"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := http2.NewFramer(conn, nil).WriteSettings(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, frameHeaderBytes)); err != nil { // its SETTINGS
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("still open")
	}
}

// What the server reads is what came, but for the pings before the first request
// and the first acknowledgement.
func FuzzPreface(f *testing.F) {
	const settings, ack = "\x00\x00\x00\x04\x00\x00\x00\x00\x00", "\x00\x00\x00\x04\x01\x00\x00\x00\x00"
	const ping = "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678"
	const headers, data = "\x00\x00\x01\x01\x04\x00\x00\x00\x01\x82", "\x00\x00\x03\x00\x00\x00\x00\x00\x01abc"
	f.Add([]byte(settings + ack + headers + data + ack))
	f.Add([]byte(settings + ping + headers + data + ack + ping))
	f.Add([]byte(settings + ping + ack + ping + "\x00\x00\x02\x01\x08\x00\x00\x00\x01\x01\x82\x00" + "\x00\x00\x00\x09\x04\x00\x00\x00\x01"))
	f.Fuzz(func(t *testing.T, in []byte) {
		c := &prefacedConn{Conn: tls.Client(silence{}, &tls.Config{}), in: strings.NewReader(string(in)), ackDue: true}
		if _, err := c.readUntilHeaders(func([]byte) error { return nil }); err != nil {
			return
		}
		got, _ := io.ReadAll(c)
		var want []byte
		acked, inRequests := false, false
		for rest := in; len(rest) > 0; {
			if len(rest) < frameHeaderBytes {
				if acked {
					want = append(want, rest...)
				}
				break
			}
			frame := rest[:min(len(rest), frameHeaderBytes+payloadBytes(rest))]
			rest = rest[len(frame):]
			kind, flags := http2.FrameType(frame[3]), http2.Flags(frame[4])
			switch {
			case !inRequests && kind == http2.FramePing:
				continue
			// Before the first request any number may be taken out: none but the
			// first answers anything.
			case kind == http2.FrameSettings && flags.Has(http2.FlagSettingsAck) && (!inRequests || !acked && payloadBytes(frame) == 0):
				acked = true
				continue
			case kind == http2.FrameHeaders || kind == http2.FrameContinuation:
				inRequests = inRequests || flags.Has(http2.FlagHeadersEndHeaders)
			}
			want = append(want, frame...)
		}
		if inRequests && string(got) != string(want) {
			t.Fatalf("gave %q of %q, want %q", got, in, want)
		}
	})
}

// silence is a connection that nothing comes from.
type silence struct{}

func (silence) Read([]byte) (int, error)         { return 0, io.EOF }
func (silence) Write(p []byte) (int, error)      { return len(p), nil }
func (silence) Close() error                     { return nil }
func (silence) LocalAddr() net.Addr              { return memoryAddr{} }
func (silence) RemoteAddr() net.Addr             { return memoryAddr{} }
func (silence) SetDeadline(time.Time) error      { return nil }
func (silence) SetReadDeadline(time.Time) error  { return nil }
func (silence) SetWriteDeadline(time.Time) error { return nil }

// The authorities are read again as well: an old one, both, the new one alone. A session that the
// old one's certificate began is not resumed; a file in no order changes nothing and is told once.
func TestReloadAuthorities(t *testing.T) {
	old, next := newAuthority(t, "old"), newAuthority(t, "new")
	old.issue("server", nil)
	old.issue("client", nil)
	next.issue("client", nil)
	next.issue("server", nil)
	bundle := old.path("bundle.pem")
	write := func(parts ...[]byte) {
		t.Helper()
		if err := os.WriteFile(bundle+".new", bytes.Join(parts, nil), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(bundle+".new", bundle); err != nil {
			t.Fatal(err)
		}
	}
	ca := func(a *authority) []byte {
		t.Helper()
		b, err := os.ReadFile(a.path("ca.pem"))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	write(ca(old))
	info := old.info("server")
	info.TrustedCAFile = bundle
	f, logs := secureFront(t, info, SecurityOptions{})
	serveHealth(t, f)
	sessions := tls.NewLRUClientSessionCache(8)
	ask := func(a *authority, resuming bool) error {
		t.Helper()
		cfg := a.client("client")
		cfg.RootCAs = old.client("").RootCAs
		if resuming {
			cfg.ClientSessionCache = sessions
		}
		_, err := askHTTP(f, cfg, false)
		return err
	}
	dial := func(a *authority) error { // as members do
		t.Helper()
		l, err := tls.Listen("tcp", "127.0.0.1:0", a.serverConfig("server"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			if conn, err := l.Accept(); err == nil {
				_ = conn.(*tls.Conn).Handshake()
				conn.Close()
			}
		}()
		cfg := f.opts.Security.ClientConfig().Clone()
		cfg.ServerName = "localhost"
		conn, err := tls.Dial("tcp", l.Addr().String(), cfg)
		if err == nil {
			conn.Close()
		}
		return err
	}
	check := func(phase string, oldIn, nextIn bool) {
		t.Helper()
		if err := ask(old, true); (err == nil) != oldIn {
			t.Errorf("%s: the old authority's client: %v", phase, err)
		}
		if err := ask(next, false); (err == nil) != nextIn {
			t.Errorf("%s: the new authority's client: %v", phase, err)
		}
		if err := dial(old); (err == nil) != oldIn {
			t.Errorf("%s: the old authority's server: %v", phase, err)
		}
		if err := dial(next); (err == nil) != nextIn {
			t.Errorf("%s: the new authority's server: %v", phase, err)
		}
	}
	check("old", true, false)
	write(ca(old), []byte("# and its successor\n"), ca(next))
	check("both", true, true)
	write([]byte("nothing"))
	check("no certificate", true, true)
	if err := os.Remove(bundle); err != nil {
		t.Fatal(err)
	}
	check("no file", true, true)
	write(ca(next))
	check("new", false, true)
	if n := logs.FilterMessageSnippet("failed to read the certificates of authorities").Len(); n != 2 {
		t.Errorf("told %d times of what could not be read", n)
	}
}

// What a client sends before its first request is bounded: pings as grpc's server
// bounds them, and the bytes that are kept.
func TestBeforeTheFirstRequest(t *testing.T) {
	a := newAuthority(t, "ca")
	a.issue("server", nil)
	f, _ := secureFront(t, TLSInfo{CertFile: a.path("server.pem"), KeyFile: a.path("server-key.pem")}, SecurityOptions{})
	serveHealth(t, f)
	begin := func() *http2.Framer {
		t.Helper()
		conn, err := tls.Dial("tcp", f.Addr().String(), a.client("", "h2"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
			t.Fatal(err)
		}
		framer := http2.NewFramer(conn, conn)
		if err := framer.WriteSettings(); err != nil {
			t.Fatal(err)
		}
		return framer
	}
	framer := begin()
	for i := range byte(4) {
		if err := framer.WritePing(false, [8]byte{i}); err != nil {
			t.Fatal(err)
		}
	}
	answered := 0
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatalf("after %d answers: %v", answered, err)
		}
		if p, ok := frame.(*http2.PingFrame); ok && p.IsAck() {
			answered++
		}
		if g, ok := frame.(*http2.GoAwayFrame); ok {
			if g.ErrCode != http2.ErrCodeEnhanceYourCalm || string(g.DebugData()) != "too_many_pings" || answered != 3 {
				t.Errorf("%d answers, then GOAWAY %v %q", answered, g.ErrCode, g.DebugData())
			}
			break
		}
	}
	for what, send := range map[string]func(*http2.Framer) error{
		"many small frames": func(f *http2.Framer) (err error) {
			for i := 0; i < 1000 && err == nil; i++ {
				err = f.WriteWindowUpdate(0, 1)
			}
			return nil // the server may have hung up by now
		},
		"a large frame":   func(f *http2.Framer) error { return f.WriteRawFrame(0x77, 0, 0, make([]byte, 8<<10)) },
		"unasked answers": func(f *http2.Framer) error { return f.WritePing(true, [8]byte{}) },
	} {
		framer := begin()
		if err := send(framer); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		for {
			if _, err := framer.ReadFrame(); err != nil {
				if isTimeout(err) {
					t.Errorf("%s: the connection lives", what)
				}
				break
			}
		}
	}
}

package node

import (
	"context"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/belaydb/belay/listen"
)

// An operator is told what a peer port means that asks for no certificates.
func TestOpenPeerPortIsWarnedOf(t *testing.T) {
	dir := t.TempDir()
	info, err := listen.SelfSigned(zap.NewNop(), dir, []string{"127.0.0.1:1"}, 1)
	if err != nil {
		t.Fatal(err)
	}
	open, err := listen.NewSecurity(info, listen.SecurityOptions{Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	info.ClientCertAuth, info.TrustedCAFile = true, info.CertFile
	closed, err := listen.NewSecurity(info, listen.SecurityOptions{Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		url      string
		security *listen.Security
		warns    bool
	}{
		{"http://127.0.0.1:2380", nil, false},
		{"http://[::1]:2380", nil, false},
		{"http://localhost:2380", nil, false},
		{"unix://name:1", nil, false},
		{"http://0.0.0.0:2380", nil, true},
		{"http://:2380", nil, true},
		{"http://[::]:2380", nil, true},
		{"http://10.0.0.1:2380", nil, true},
		{"http://10.0.0.1:2380", closed, true}, // http takes no notice of certificates
		{"https://10.0.0.1:2380", open, true},
		{"https://10.0.0.1:2380", closed, false},
		{"https://m1.example:2380", closed, false},
		{"http://m1.example:2380", nil, true},
	} {
		u, err := url.Parse(c.url)
		if err != nil {
			t.Fatal(err)
		}
		core, logs := observer.New(zap.WarnLevel)
		ps := &ports{portsEnv: portsEnv{logger: zap.New(core)}, peerSecurity: c.security}
		ps.warnOfOpenPeerPort(*u)
		if warned := logs.FilterMessageSnippet("whoever reaches the peer port can read and write everything").Len() == 1; warned != c.warns {
			t.Errorf("%s, with certificates asked for %v: warned %v", c.url, c.security == closed, warned)
		}
	}
}

// What cannot be used of certificates is told with flag and file: the errors of crypto/tls name
// neither.
func TestUnusableCertificate(t *testing.T) {
	text := filepath.Join(t.TempDir(), "notes.txt")
	if err := os.WriteFile(text, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	ps := &ports{portsEnv: portsEnv{cfg: &Config{}, logger: zap.NewNop()}}
	for _, tc := range []struct {
		of    side
		file  string
		wants []string
	}{
		{forClients(), text, []string{"--cert-file=" + text, "--key-file=" + text, "PEM"}},
		{forPeers(), text, []string{"--peer-cert-file=" + text, "PEM"}},
		{forPeers(), text + ".missing", []string{"--peer-key-file=" + text + ".missing", "no such file"}},
	} {
		_, err := ps.security(tc.of, listen.TLSInfo{CertFile: tc.file, KeyFile: tc.file}, false, []url.URL{}, listen.SecurityOptions{})
		for _, want := range tc.wants {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v\nwant %q in it", err, want)
			}
		}
	}
}

// A member whose peer port has no TLS of its own, since somebody terminates it, trusts the
// authorities that its flag names when it dials the others, as etcd does.
func TestPeersAreTrustedByTheirAuthorityAlone(t *testing.T) {
	other := httptest.NewTLSServer(http.NotFoundHandler())
	defer other.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ file, want string }{
		{ca, ""}, {"", "unknown authority"}, {ca + ".missing", "--peer-trusted-ca-file=" + ca + ".missing"},
	} {
		ps := &ports{portsEnv: portsEnv{cfg: &Config{Settings: Settings{Ports: Ports{PeerTLS: listen.TLSInfo{TrustedCAFile: tc.file}}}}, logger: zap.NewNop()}}
		err := ps.listenPeers()
		if err == nil {
			d := &dialing{logger: zap.NewNop(), security: ps.toPeers}
			var answer *http.Response
			if answer, err = d.client(time.Minute).Get(other.URL); err == nil {
				err = answer.Body.Close()
			}
		}
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("with --peer-trusted-ca-file=%q: %v, want %q", tc.file, err, tc.want)
		}
	}
}

// Certificates that no client port uses may be missing, as on etcd; one port with TLS needs them.
func TestCertificatesThatNoPortUses(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing.pem")
	l := &lone{dir: shortDir(t)}
	cfg := l.config()
	cfg.ClientTLS = listen.TLSInfo{CertFile: missing, KeyFile: missing}
	var err error
	if l.n, err = Start(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	l.put(t, "key", 1)
	l.stop()
	cfg = l.config()
	cfg.ClientTLS = listen.TLSInfo{CertFile: missing, KeyFile: missing}
	cfg.ListenMetricsURLs = []url.URL{{Scheme: "unixs", Path: filepath.Join(l.dir, "metrics")}}
	if l.n, err = Start(context.Background(), cfg); err == nil {
		l.stop()
	}
	if err == nil || !strings.Contains(err.Error(), "--cert-file="+missing) {
		t.Errorf("with a port for metrics over TLS: %v", err)
	}
}

// A call that cannot end before the member stops is answered, and its client need not guess from a
// connection that breaks.
func TestLateCallsAreAnswered(t *testing.T) {
	begun, given := make(chan struct{}), make(chan struct{})
	s := grpc.NewServer(grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error {
		close(begun)
		<-given
		return rpctypes.ErrGRPCStopped
	}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	c, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	answered := make(chan error, 1)
	go func() {
		answered <- c.Invoke(t.Context(), "/etcdserverpb.KV/Put", &pb.PutRequest{}, &pb.PutResponse{}, grpc.WaitForReady(true))
	}()
	<-begun
	ps := &ports{grpc: s}
	ps.stopClients(func() {}, 0, time.Minute, func() { close(given) })
	if err := <-answered; !errors.Is(err, rpctypes.ErrGRPCStopped) {
		t.Errorf("the call ended with %v", err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestEngine: what only grpc-go can do has it serve.
func TestEngine(t *testing.T) {
	for _, tc := range []struct{ debug, flag, want string }{
		{"", "", EngineBelay}, {"", EngineGRPC, EngineGRPC}, {"http2debug=2", EngineBelay, EngineGRPC}, {"madvdontneed=1", EngineBelay, EngineBelay},
	} {
		t.Setenv("GODEBUG", tc.debug)
		cfg := &Config{}
		cfg.RPCEngine = tc.flag
		ps := &ports{portsEnv: portsEnv{cfg: cfg}}
		if got := ps.engine(); got != tc.want {
			t.Errorf("GODEBUG=%s --rpc-engine=%s: %s, want %s", tc.debug, tc.flag, got, tc.want)
		}
	}
}

package check

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/proof/cluster"
)

// issuer is an Authority whose mistakes end the test.
type issuer struct {
	*cluster.Authority
	t *testing.T
}

func newIssuer(t *testing.T, name string) *issuer {
	t.Helper()
	a, err := cluster.NewAuthority(t.TempDir(), name)
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{a, t}
}

func (i *issuer) issue(name string, change func(*x509.Certificate)) *big.Int {
	i.t.Helper()
	serial, err := i.Issue(name, change)
	if err != nil {
		i.t.Fatal(err)
	}
	return serial
}

func (i *issuer) client(name string) *tls.Config {
	i.t.Helper()
	cfg, err := i.Client(name)
	if err != nil {
		i.t.Fatal(err)
	}
	return cfg
}

// etcdctl runs the real etcdctl and returns its output without port numbers.
func etcdctl(t *testing.T, m *cluster.Member, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, EtcdTools(t).Etcdctl, append([]string{"--endpoints=" + m.ClientURL}, args...)...)
	out, err := cmd.CombinedOutput()
	text := string(out)
	if err != nil {
		text += err.Error()
	}
	return ctlNoise.ReplaceAllString(ownPort.ReplaceAllString(text, "127.0.0.1:P"), `$1`)
}

var (
	ownPort = regexp.MustCompile(`127\.0\.0\.1:\d+`)
	// ctlNoise is what differs from run to run: times, addresses of memory, and
	// which of write and read found out first that the connection is gone.
	ctlNoise = regexp.MustCompile(`(?:"ts":"[^"]*",|took = [0-9.]+m?s|"target":"[^"]*",|(latest balancer error: )[^}]*)`)
)

// rejectedLines are the member's log lines of refused connections, as field ->
// value without ports and serials.
func rejectedLines(t *testing.T, m *cluster.Member) (lines []string) {
	t.Helper()
	data, err := os.ReadFile(m.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var fields map[string]any
		if json.Unmarshal([]byte(line), &fields) != nil || !strings.HasPrefix(fmt.Sprint(fields["msg"]), "rejected connection on") {
			continue
		}
		if cut.MatchString(fmt.Sprint(fields["error"])) {
			continue // a member that went away, or a client that heard of its refusal first
		}
		delete(fields, "ts")
		delete(fields, "caller")
		b, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		text := ownPort.ReplaceAllString(string(b), "127.0.0.1:P")
		lines = append(lines, currentTime.ReplaceAllString(text, "current time T"))
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

var cut = regexp.MustCompile(`reset by peer|EOF|broken pipe|i/o timeout`)

var currentTime = regexp.MustCompile(`current time \S+ is after \S+Z`)

// sameRejections waits until both have logged the same refusals.
func sameRejections(t *testing.T, belay, etcd *cluster.Member) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := eventually(ctx, func() error {
		got, want := rejectedLines(t, belay), rejectedLines(t, etcd)
		if len(got) == 0 || !slices.Equal(got, want) {
			return fmt.Errorf("log of belay:\n%s\nof etcd:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// The same clients, good and bad, against both: the same answers, the same words
// in etcdctl, the same lines in the log.
func TestTLSLikeEtcd(t *testing.T) {
	t.Parallel()
	a, other := newIssuer(t, "check"), newIssuer(t, "stranger")
	a.issue("server", nil)
	a.issue("good", nil)
	a.issue("expired", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	a.issue("serveronly", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	other.issue("stranger", nil)
	if err := a.Revoke(a.issue("revoked", nil)); err != nil {
		t.Fatal(err)
	}
	var metrics, httpOnly [2]string
	n := 0
	belay, etcd := startBoth(t, func(c *cluster.Config) {
		for _, to := range []*string{&metrics[n], &httpOnly[n]} {
			port, err := cluster.FreePort()
			if err != nil {
				t.Fatal(err)
			}
			*to = fmt.Sprintf("https://127.0.0.1:%d", port)
		}
		c.TLS = a.client("good")
		c.Args = []string{
			"--cert-file=" + a.Cert("server"), "--key-file=" + a.Key("server"), "--trusted-ca-file=" + a.CA(), "--client-cert-auth",
			"--client-crl-file=" + a.CRL(), "--listen-metrics-urls=" + metrics[n],
		}
		n++
	})
	var runs sync.WaitGroup
	few := make(chan struct{}, 4) // at once: a handshake that takes too long is no rejection
	for _, c := range []struct {
		name string
		from *issuer
		ca   string
		more []string
	}{
		{"good", a, a.CA(), nil},
		{"", a, a.CA(), nil},
		{"expired", a, a.CA(), nil},
		{"serveronly", a, a.CA(), nil},
		{"revoked", a, a.CA(), nil},
		{"stranger", other, a.CA(), nil},
		{"good", a, other.CA(), nil},
		{"good", a, a.CA(), []string{"--insecure-skip-tls-verify"}},
	} {
		args := append([]string{"--cacert=" + c.ca}, c.more...)
		if c.name != "" {
			args = append(args, "--cert="+c.from.Cert(c.name), "--key="+c.from.Key(c.name))
		}
		welcome := c.name == "good" && c.ca == a.CA()
		if !welcome {
			args = append(args, "--command-timeout=5s", "--dial-timeout=5s")
		}
		args = append(args, "put", "a", "1")
		var answers [2]string
		for i, m := range []*cluster.Member{belay, etcd} {
			runs.Go(func() {
				few <- struct{}{}
				defer func() { <-few }()
				answers[i] = etcdctl(t, m, args...)
			})
		}
		defer func() {
			if answers[0] != answers[1] {
				t.Errorf("etcdctl %v\nbelay: %s\netcd:  %s", args, answers[0], answers[1])
			}
			if welcome != (answers[0] == "OK\n") {
				t.Errorf("etcdctl %v: %s", args, answers[0])
			}
		}()
	}
	runs.Wait()
	sameRejections(t, belay, etcd)

	// HTTP/2 and HTTP/1 on the same port.
	for _, protocols := range [][]string{nil, {"http/1.1"}} {
		cfg := a.client("good")
		cfg.NextProtos = protocols
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: protocols == nil}}
		compareHTTP(t, client, []httpCase{
			{path: "/v3/kv/range", body: `{"key":"YQ=="}`}, {path: "/v3/kv/range", body: `{"key":1}`}, {path: "/version", method: "POST"},
			{path: "/health"}, {path: "/v3/kv/range", method: "OPTIONS"}, {path: "/nothing"}, {path: "/livez", header: "Host: whoever.example"},
			{path: "/v3/watch", body: `{"create_request":{"key":"YQ=="}}`, lines: 1},
		}, belay.ClientURL, etcd.ClientURL)
		compareHTTP(t, client, []httpCase{{path: "/health"}, {path: "/version"}}, metrics[0], metrics[1])
		client.CloseIdleConnections()
	}
	// Calls and other requests of a proxy on one connection.
	for _, m := range []*cluster.Member{belay, etcd} {
		if err := mixedConnection(t, m, a.client("good")); err != nil {
			t.Errorf("%s: %v", m.LogPath, err)
		}
	}
	// A port for metrics asks for the same certificate: it is no way past the list.
	for _, url := range metrics {
		for _, name := range []string{"", "revoked", "expired"} {
			if status, err := getWith(a.client(name), url+"/health"); err == nil {
				t.Errorf("%s answered %s to %q", url, status, name)
			}
		}
	}
}

// mixedConnection asks for the health, makes a call, and asks again on the same HTTP/2 connection.
func mixedConnection(t *testing.T, m *cluster.Member, cfg *tls.Config) error {
	t.Helper()
	dials := 0
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: cfg, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials++
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
	message, err := proto.Marshal(&pb.RangeRequest{Key: []byte("a")})
	if err != nil {
		return err
	}
	for _, call := range []bool{false, true, false, true} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, m.ClientURL+"/health", nil)
		if call {
			req, err = http.NewRequestWithContext(t.Context(), http.MethodPost, m.ClientURL+"/etcdserverpb.KV/Range",
				bytes.NewReader(append([]byte{0, 0, 0, 0, byte(len(message))}, message...)))
		}
		if err != nil {
			return err
		}
		if call {
			req.Header.Set("Content-Type", "application/grpc")
			req.Header.Set("Te", "trailers")
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if status := resp.Trailer.Get("Grpc-Status"); err != nil || resp.StatusCode != http.StatusOK || call && status != "0" {
			return fmt.Errorf("call %v: %s, grpc status %q, %v", call, resp.Status, status, err)
		}
	}
	if dials != 1 {
		return fmt.Errorf("%d connections", dials)
	}
	return nil
}

func getWith(cfg *tls.Config, url string) (string, error) {
	transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.Status, err
}

// A revoked client gets in by no listener, with HTTP on ports of its own
// (there was a way around the list in etcd).
func TestRevokedOnSeparatePorts(t *testing.T) {
	t.Parallel()
	a := newIssuer(t, "check")
	a.issue("server", nil)
	a.issue("good", nil)
	bad := a.issue("revoked", nil)
	port, err := cluster.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	httpURL := fmt.Sprintf("https://127.0.0.1:%d", port)
	c := startTLS(t, 1, a, func(c *cluster.Config) {
		c.Args = append(c.Args, "--client-crl-file="+a.CRL(), "--listen-client-http-urls="+httpURL)
	})
	if _, err := getWith(a.client("revoked"), httpURL+"/health"); err != nil {
		t.Fatal(err)
	}
	if err := callWith(t, c.Members[0], a.client("revoked")); err != nil {
		t.Fatal(err)
	}
	// The list is read again when it changes.
	if err := a.Revoke(bad); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/health", "/v3/kv/range", "/metrics"} {
		if status, err := getWith(a.client("revoked"), httpURL+path); err == nil {
			t.Errorf("%s: %s", path, status)
		}
	}
	if err := callWith(t, c.Members[0], a.client("revoked")); err == nil {
		t.Error("a revoked client reads")
	}
	if err := callWith(t, c.Members[0], a.client("good")); err != nil {
		t.Error(err)
	}
	if _, err := getWith(a.client("good"), httpURL+"/health"); err != nil {
		t.Error(err)
	}
}

// startTLS starts Belay with certificates "server" and clients that are "good".
func startTLS(t *testing.T, size int, a *issuer, change func(*cluster.Config)) *cluster.Cluster {
	t.Helper()
	cfg := cluster.Config{Kind: cluster.Belay, Binary: Belay(t), Size: size, Dir: t.TempDir(), TLS: a.client("good"), Args: []string{
		"--cert-file=" + a.Cert("server"), "--key-file=" + a.Key("server"), "--trusted-ca-file=" + a.CA(), "--client-cert-auth",
	}}
	if change != nil {
		change(&cfg)
	}
	return startSecure(t, cfg)
}

func startSecure(t *testing.T, cfg cluster.Config) *cluster.Cluster {
	t.Helper()
	c, err := cluster.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.Tails(15))
		}
		c.Close()
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

// callWith makes one call on a connection of its own.
func callWith(t *testing.T, m *cluster.Member, cfg *tls.Config) error {
	t.Helper()
	conn, err := dialWith(m, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err = pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte("a")})
	return err
}

// Three members present certificates to each other, as etcd's do; the peer port refuses clients
// without one, or with the wrong one, with etcd's texts.
func TestPeerTLS(t *testing.T) {
	t.Parallel()
	a, other := newIssuer(t, "check"), newIssuer(t, "stranger")
	for _, name := range []string{"server", "good", "member"} {
		a.issue(name, nil)
	}
	a.issue("elsewhere", func(c *x509.Certificate) {
		c.Subject.CommonName, c.DNSNames, c.IPAddresses = "member", nil, []net.IP{{10, 9, 8, 7}}
	})
	a.issue("fellow", func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = []string{"nowhere.invalid"}, nil })
	revoked := a.issue("revoked", func(c *x509.Certificate) { c.Subject.CommonName = "member" })
	other.issue("stranger", nil)
	if err := a.Revoke(revoked); err != nil {
		t.Fatal(err)
	}
	peerFlags := []string{
		"--peer-cert-file=" + a.Cert("member"), "--peer-key-file=" + a.Key("member"), "--peer-trusted-ca-file=" + a.CA(),
		"--peer-client-cert-auth", "--peer-cert-allowed-cn=x,member,fellow", "--peer-crl-file=" + a.CRL(),
	}
	c := startTLS(t, 3, a, func(c *cluster.Config) {
		c.PeerTLS, c.Args = true, append(append(c.Args, peerFlags...), "--strict-reconfig-check=false")
	})
	rejoin(t, c)
	flags := []string{"--cacert=" + a.CA(), "--cert=" + a.Cert("good"), "--key=" + a.Key("good")}
	for i, m := range c.Members {
		if got := etcdctl(t, m, append(flags, "put", "a", fmt.Sprint(i))...); got != "OK\n" {
			t.Fatalf("put: %s", got)
		}
		if got := etcdctl(t, c.Members[(i+1)%3], append(flags, "get", "a")...); got != fmt.Sprintf("a\n%d\n", i) {
			t.Fatalf("get: %s", got)
		}
	}
	if got := etcdctl(t, c.Members[0], append(flags, "endpoint", "health", "--cluster")...); strings.Count(got, "is healthy") != 3 {
		t.Fatal(got)
	}

	e := startSecure(t, cluster.Config{Kind: cluster.Etcd, Binary: EtcdTools(t).Etcd, Size: 1, Dir: t.TempDir(), PeerTLS: true, Args: peerFlags})
	for _, who := range []struct {
		name string
		from *issuer
		want string // "" gets in
	}{
		{"member", a, ""}, {"", a, "x"}, {"good", a, "x"}, {"elsewhere", a, "x"}, {"fellow", a, "x"}, {"revoked", a, "x"}, {"stranger", other, "x"},
	} {
		for _, m := range []*cluster.Member{c.Members[0], e.Members[0]} {
			cfg := a.client("")
			if who.name != "" {
				cfg.GetClientCertificate = who.from.client(who.name).GetClientCertificate
			}
			// etcd's peer port takes HTTP/2 in the handshake and speaks HTTP/1.
			transport := &http.Transport{TLSClientConfig: cfg}
			resp, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Get(m.PeerURL + "/version")
			if err == nil {
				resp.Body.Close()
			}
			transport.CloseIdleConnections()
			if (err == nil) != (who.want == "") {
				t.Errorf("%q at %s: %v", who.name, m.LogPath, err)
			}
		}
	}
	sameRejections(t, c.Members[0], e.Members[0])
}

// rejoin replaces the last member by a new one of the same name, which asks the
// others over TLS who it is.
func rejoin(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := c.Members[0].Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	admin, last := pb.NewClusterClient(conn), c.Members[len(c.Members)-1]
	list, err := admin.MemberList(ctx, &pb.MemberListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	// Not the leader: it would take an election's time.
	lastConn, err := last.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer lastConn.Close()
	status, err := pb.NewMaintenanceClient(lastConn).Status(ctx, &pb.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if status.Leader == status.Header.MemberId {
		to := slices.IndexFunc(list.Members, func(m *pb.Member) bool { return m.ID != status.Leader })
		if _, err := pb.NewMaintenanceClient(lastConn).MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: list.Members[to].ID}); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range list.Members {
		if m.Name == last.Name {
			if _, err := admin.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: m.ID}); err != nil {
				t.Fatal(err)
			}
		}
	}
	select {
	case <-last.Exited():
	case <-ctx.Done():
		t.Fatal("the removed member still runs")
	}
	last.Kill()
	if err := os.RemoveAll(last.DataDir); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{last.PeerURL}}); err != nil {
		t.Fatal(err)
	}
	last.SetArgs(func(args []string) []string { return append(args, "--initial-cluster-state=existing") })
	if err := last.Start(); err != nil {
		t.Fatal(err)
	}
	if err := last.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}

// Certificates that nobody had to make.
func TestAutoTLS(t *testing.T) {
	t.Parallel()
	c := startSecure(t, cluster.Config{Kind: cluster.Belay, Binary: Belay(t), Size: 3, Dir: t.TempDir(),
		TLS: &tls.Config{InsecureSkipVerify: true}, PeerTLS: true, Args: []string{"--auto-tls", "--peer-auto-tls", "--self-signed-cert-validity=3"}})
	conn, err := tls.Dial("tcp", c.Members[0].Endpoint(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cert := conn.ConnectionState().PeerCertificates[0]
	if years := cert.NotAfter.Sub(cert.NotBefore) / (365 * 24 * time.Hour); years != 3 || cert.VerifyHostname("127.0.0.1") != nil {
		t.Errorf("%d years, for %v %v", years, cert.IPAddresses, cert.DNSNames)
	}
	if got := etcdctl(t, c.Members[2], "--insecure-skip-tls-verify", "put", "a", "1"); got != "OK\n" {
		t.Error(got)
	}
	for _, side := range []string{"client", "peer"} {
		if _, err := os.Stat(filepath.Join(c.Members[1].DataDir, "fixtures", side, "cert.pem")); err != nil {
			t.Error(err)
		}
	}
}

// Certificates are renewed again and again while clients connect and call, and
// silent connections lie on the port: no request fails.
func TestRenewUnderLoad(t *testing.T) {
	t.Parallel()
	a := newIssuer(t, "check")
	a.issue("server", nil)
	a.issue("good", nil)
	a.issue("member", nil)
	c := startTLS(t, 3, a, func(c *cluster.Config) {
		c.PeerTLS = true
		c.Args = append(c.Args, "--peer-cert-file="+a.Cert("member"), "--peer-key-file="+a.Key("member"), "--peer-trusted-ca-file="+a.CA(), "--peer-client-cert-auth")
	})
	for range 400 {
		conn, err := net.Dial("tcp", c.Members[0].Endpoint())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte{0x16, 3, 1, 2}); err != nil {
			t.Fatal(err)
		}
	}
	var stop atomic.Bool
	var calls atomic.Int64
	serials := make(chan string, 1<<16)
	var clients sync.WaitGroup
	for i := range 6 {
		m, cfg := c.Members[i%3], a.client("good")
		cfg.VerifyConnection = func(s tls.ConnectionState) error {
			select {
			case serials <- s.PeerCertificates[0].SerialNumber.String():
			default:
			}
			return nil
		}
		clients.Go(func() {
			for !stop.Load() {
				if err := callWith(t, m, cfg); err != nil {
					t.Errorf("gRPC: %v", err)
					return
				}
				if _, err := getWith(cfg, m.ClientURL+"/health"); err != nil {
					t.Errorf("HTTP: %v", err)
					return
				}
				calls.Add(2)
			}
		})
	}
	seen := make(map[string]bool)
	for range 8 {
		before := calls.Load()
		a.issue("member", nil)
		want := a.issue("server", nil).String()
		deadline := time.After(30 * time.Second)
		for !seen[want] || calls.Load() < before+12 {
			select {
			case s := <-serials:
				seen[s] = true
			case <-deadline:
				t.Fatalf("the certificate %s was not seen", want)
			}
		}
	}
	stop.Store(true)
	clients.Wait()
	t.Logf("%d calls, %d certificates", calls.Load(), len(seen))
}

// Sockets of the file system, plain and with TLS; what a dead member left there is in nobody's way.
func TestUnixSockets(t *testing.T) {
	t.Parallel()
	a := newIssuer(t, "check")
	a.issue("server", nil)
	a.issue("good", nil)
	dir, err := os.MkdirTemp("", "s") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/plain", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()

	c, err := cluster.New(cluster.Config{Kind: cluster.Belay, Binary: Belay(t), Size: 1, Dir: t.TempDir(), TLS: a.client("good"), Args: []string{
		"--cert-file=" + a.Cert("server"), "--key-file=" + a.Key("server"), "--trusted-ca-file=" + a.CA(), "--socket-reuse-port", "--socket-reuse-address",
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	m := c.Members[0]
	m.SetArgs(func(args []string) []string {
		return append(args, "--listen-client-urls="+m.ClientURL+",unix://"+dir+"/plain,unixs://"+dir+"/secure")
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	for name, security := range map[string]credentials.TransportCredentials{
		"plain": insecure.NewCredentials(), "secure": credentials.NewTLS(serverName(a.client("good"), "localhost")),
	} {
		conn, err := grpc.NewClient("unix:"+dir+"/"+name, grpc.WithTransportCredentials(security))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pb.NewKVClient(conn).Put(ctx, &pb.PutRequest{Key: []byte("a")}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		conn.Close()
	}
	// --socket-reuse-port lets others have the port too.
	l, err := listenReusing(ctx, m.Endpoint())
	if err != nil {
		t.Error(err)
	} else {
		l.Close()
	}
	if err := m.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func serverName(cfg *tls.Config, name string) *tls.Config {
	cfg.ServerName = name
	return cfg
}

// dialWith connects with other TLS than the cluster's.
func dialWith(m *cluster.Member, cfg *tls.Config) (*grpc.ClientConn, error) {
	return m.Dial(grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
}

// Who shows a certificate without a name is known on the gateway as he is in calls: he may ask for
// the members, as Patroni does before it logs in, and nothing that takes rights.
func TestNamelessCertificateAtGateway(t *testing.T) {
	t.Parallel()
	a := newIssuer(t, "check")
	a.issue("server", nil)
	a.issue("root", nil)
	a.issue("nameless", func(c *x509.Certificate) { c.Subject = pkix.Name{} })
	belay, etcd := startBoth(t, func(c *cluster.Config) {
		c.TLS = a.client("root")
		c.Args = []string{"--cert-file=" + a.Cert("server"), "--key-file=" + a.Key("server"), "--trusted-ca-file=" + a.CA(), "--client-cert-auth", "--bcrypt-cost=4"}
	})
	answers := make(map[string][]int)
	for _, m := range []*cluster.Member{belay, etcd} {
		for _, args := range [][]string{{"user", "add", "root:pw"}, {"user", "grant-role", "root", "root"}, {"auth", "enable"}} {
			if got := etcdctl(t, m, append([]string{"--cacert=" + a.CA(), "--cert=" + a.Cert("root"), "--key=" + a.Key("root")}, args...)...); strings.Contains(got, "Error") {
				t.Fatal(got)
			}
		}
		transport := &http.Transport{TLSClientConfig: a.client("nameless"), ForceAttemptHTTP2: true}
		defer transport.CloseIdleConnections()
		client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
		ask := func(url, path, body string) int {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+path, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			// Without Accept, as Patroni: etcd takes it for a call of its own certificate's.
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			return resp.StatusCode
		}
		for path, body := range map[string]string{
			"/v3/cluster/member/list": `{}`, "/v3/maintenance/status": `{}`, "/v3/lease/leases": `{}`, "/v3/auth/user/list": `{}`,
			"/v3/kv/range": `{"key":"YQ=="}`, "/v3/kv/put": `{"key":"YQ=="}`, "/v3/kv/compaction": `{"revision":"1"}`,
		} {
			answers[path] = append(answers[path], ask(m.ClientURL, path, body))
		}
	}
	for path, codes := range answers {
		known := path == "/v3/cluster/member/list" || path == "/v3/maintenance/status" || path == "/v3/lease/leases"
		if codes[0] != codes[1] || known != (codes[0] == http.StatusOK) {
			t.Errorf("%s: %d, on etcd %d", path, codes[0], codes[1])
		}
	}
}

// Connections that never finish the handshake, or never begin it, and floods of HTTP on the TLS
// port do not keep anybody else from calling: new clients get in, a watch continues, a lease stays
// alive.
func TestIdleHandshakesAndFloods(t *testing.T) {
	t.Parallel()
	a := newIssuer(t, "check")
	a.issue("server", nil)
	a.issue("good", nil)
	c := startTLS(t, 1, a, nil)
	m := c.Members[0]
	conn, err := dialWith(m, a.client("good"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	kv := pb.NewKVClient(conn)
	lease, err := pb.NewLeaseClient(conn).LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 60})
	if err != nil {
		t.Fatal(err)
	}
	alive, err := pb.NewLeaseClient(conn).LeaseKeepAlive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	watch, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := watch.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("live")}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	// lives does everything once that must still work.
	lives := func(when string) {
		t.Helper()
		if _, err := kv.Put(ctx, &pb.PutRequest{Key: []byte("live"), Value: []byte(when)}); err != nil {
			t.Fatalf("%s: put: %v", when, err)
		}
		if resp, err := watch.Recv(); err != nil || len(resp.Events) != 1 || string(resp.Events[0].Kv.Value) != when {
			t.Fatalf("%s: watch: %v, %v", when, resp, err)
		}
		if err := alive.Send(&pb.LeaseKeepAliveRequest{ID: lease.ID}); err != nil {
			t.Fatalf("%s: keep alive: %v", when, err)
		}
		if resp, err := alive.Recv(); err != nil || resp.TTL != 60 {
			t.Fatalf("%s: keep alive: %v, %v", when, resp, err)
		}
		if err := callWith(t, m, a.client("good")); err != nil {
			t.Fatalf("%s: a new client: %v", when, err)
		}
		if status, err := getWith(a.client("good"), m.ClientURL+"/health"); err != nil || status != "200 OK" {
			t.Fatalf("%s: a new HTTP client: %s, %v", when, status, err)
		}
	}
	lives("before")

	// A third each: silent, a record that is cut short, a whole ClientHello and
	// no answer to what comes back.
	hello := clientHello(t, a.client("good"))
	for i := range 501 {
		idle, err := net.Dial("tcp", m.Endpoint())
		if err != nil {
			t.Fatal(err)
		}
		defer idle.Close()
		if _, err := idle.Write([][]byte{nil, hello[:len(hello)/2], hello}[i%3]); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 5 {
		lives(fmt.Sprintf("500 idle handshakes, turn %d", i))
	}

	var stop atomic.Bool
	var requests atomic.Int64
	var flood sync.WaitGroup
	defer func() {
		stop.Store(true)
		flood.Wait()
	}()
	for i := range 24 {
		cfg := a.client("good")
		if i%2 == 0 {
			cfg.NextProtos = []string{"http/1.1"}
		}
		transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: i%2 == 1, DisableKeepAlives: i%8 == 0}
		client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
		flood.Go(func() {
			defer transport.CloseIdleConnections()
			for n := i; !stop.Load(); n++ {
				path := []string{"/health", "/metrics", "/v3/kv/range", "/nothing"}[n%4]
				resp, err := client.Post(m.ClientURL+path, "application/json", strings.NewReader(`{"key":"AA==","range_end":"AA=="}`))
				if err != nil {
					continue // a flood may be turned away
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				requests.Add(1)
			}
		})
	}
	for i := range 8 {
		before := requests.Load()
		lives(fmt.Sprintf("a flood of HTTP, turn %d", i))
		if err := eventually(ctx, func() error { // the flood is running, and continues
			if requests.Load() < before+50 {
				return fmt.Errorf("%d requests", requests.Load())
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d requests of HTTP meanwhile", requests.Load())
}

// clientHello returns the first record that a client sends.
func clientHello(t *testing.T, cfg *tls.Config) []byte {
	t.Helper()
	here, there := net.Pipe()
	defer there.Close()
	cfg.ServerName, cfg.NextProtos = "localhost", []string{"h2"}
	go func() {
		_ = tls.Client(here, cfg).Handshake() // ends when there is closed
		here.Close()
	}()
	buf := make([]byte, 16<<10)
	n, err := there.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

// TestCtlSaysWhatIsWrongWithTLS: a failed call reports the handshake, and only endpoints that
// failed.
func TestCtlSaysWhatIsWrongWithTLS(t *testing.T) {
	onlyBelay(t)
	t.Parallel()
	a, err := cluster.NewAuthority(t.TempDir(), "clients")
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := cluster.NewAuthority(t.TempDir(), "another")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"server", "client"} {
		for _, from := range []*cluster.Authority{a, stranger} {
			if _, err := from.Issue(name, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	cfg := cluster.Config{Kind: cluster.Belay, Size: 1, Args: []string{
		"--cert-file=" + a.Cert("server"), "--key-file=" + a.Key("server"), "--trusted-ca-file=" + a.CA(), "--client-cert-auth"}}
	if cfg.TLS, err = a.Client("client"); err != nil {
		t.Fatal(err)
	}
	secure := startCluster(t, cfg).Members[0]
	plain := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 1}).Members[0]
	binary := binaryOf(t, cluster.Belay)
	good := []string{"--cacert=" + a.CA(), "--cert=" + a.Cert("client"), "--key=" + a.Key("client")}
	https := "https://" + secure.Endpoint()
	for _, c := range []struct {
		about string
		args  []string
		hints []string // the lines, in their order
	}{
		{"plain text to TLS", []string{"--endpoints=" + secure.Endpoint(), "get", "a"}, []string{secure.Endpoint() + " speaks TLS: give it as " + https}},
		{"another authority", []string{"--endpoints=" + https, "--cacert=" + stranger.CA(), "get", "a"}, []string{https + " cannot be reached by TLS: tls: failed to verify certificate"}},
		{"no certificate", []string{"--endpoints=" + https, "--cacert=" + a.CA(), "get", "a"}, []string{https + " cannot be reached by TLS: tls: certificate required"}},
		{"a stranger's certificate", []string{"--endpoints=" + https, "--cacert=" + a.CA(), "--cert=" + stranger.Cert("client"), "--key=" + stranger.Key("client"), "get", "a"},
			[]string{https + " cannot be reached by TLS: tls:"}},
		{"one of two is down", []string{"--endpoints=" + plain.Endpoint() + ",127.0.0.1:1", "endpoint", "status"}, []string{"no server at 127.0.0.1:1: connection refused"}},
		{"as it should be", append(good, "--endpoints="+https, "get", "a"), nil},
	} {
		cmd := exec.CommandContext(t.Context(), binary, append([]string{"ctl", "--command-timeout=2s"}, c.args...)...)
		var said bytes.Buffer
		cmd.Stderr = &said
		if err := cmd.Run(); (err == nil) != (c.hints == nil) {
			t.Errorf("%s: %v", c.about, err)
		}
		var hints []string
		for line := range strings.Lines(said.String()) {
			if hint, ok := strings.CutPrefix(line, "Hint: "); ok {
				hints = append(hints, hint)
			}
		}
		if len(hints) != len(c.hints) {
			t.Errorf("%s: %q", c.about, said.String())
			continue
		}
		for i, want := range c.hints {
			if !strings.HasPrefix(hints[i], want) {
				t.Errorf("%s: %q, want %q", c.about, hints[i], want)
			}
		}
	}
}

// The authority of clients and members is replaced while both serve: the old one,
// both in a bundle, certificates of the new one, the new one alone. No request fails,
// and at the end a certificate of the old one opens no port.
func TestNewAuthorityUnderLoad(t *testing.T) {
	t.Parallel()
	old, next := newIssuer(t, "old"), newIssuer(t, "new")
	dir := t.TempDir()
	both := x509.NewCertPool() // clients trust both throughout
	for _, a := range []*issuer{old, next} {
		for _, name := range []string{"server", "member", "good"} {
			a.issue(name, nil)
		}
		pem, err := os.ReadFile(a.CA())
		if err != nil {
			t.Fatal(err)
		}
		both.AppendCertsFromPEM(pem)
	}
	// put replaces dir/name in one go by the content of the files.
	put := func(name string, files ...string) {
		t.Helper()
		var data []byte
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			data = append(data, b...)
		}
		if err := os.WriteFile(filepath.Join(dir, name+".new"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, name+".new"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	var client atomic.Pointer[tls.Config]
	show := func(a *issuer) {
		for _, name := range []string{"server", "member"} {
			put(name+"-key.pem", a.Key(name))
			put(name+".pem", a.Cert(name))
		}
		cfg := a.client("good")
		cfg.RootCAs = both
		client.Store(cfg)
	}
	put("ca.pem", old.CA())
	show(old)
	file := func(name string) string { return filepath.Join(dir, name) }
	c := startSecure(t, cluster.Config{Kind: cluster.Belay, Binary: Belay(t), Size: 3, Dir: t.TempDir(), TLS: client.Load(), PeerTLS: true, Args: []string{
		"--cert-file=" + file("server.pem"), "--key-file=" + file("server-key.pem"), "--trusted-ca-file=" + file("ca.pem"), "--client-cert-auth",
		"--peer-cert-file=" + file("member.pem"), "--peer-key-file=" + file("member-key.pem"), "--peer-trusted-ca-file=" + file("ca.pem"), "--peer-client-cert-auth",
	}})
	var stop atomic.Bool
	var calls atomic.Int64
	var clients sync.WaitGroup
	for i := range 4 {
		m := c.Members[i%2] // the third is started again and again
		clients.Go(func() {
			for !stop.Load() {
				cfg := client.Load().Clone()
				if err := callWith(t, m, cfg); err != nil {
					t.Errorf("gRPC: %v", err)
					return
				}
				if _, err := getWith(cfg, m.ClientURL+"/health"); err != nil {
					t.Errorf("HTTP: %v", err)
					return
				}
				calls.Add(2)
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	// settle has the clients call some more, and a member meet the others afresh.
	settle := func(phase string) {
		t.Helper()
		m := c.Members[2]
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		if err := eventually(ctx, func() error { return callWith(t, m, client.Load().Clone()) }); err != nil {
			t.Fatalf("%s: a member that starts again: %v", phase, err)
		}
		before := calls.Load()
		if err := eventually(ctx, func() error {
			if calls.Load() < before+40 && !t.Failed() {
				return errors.New("clients are waited for")
			}
			return nil
		}); err != nil {
			t.Fatalf("%s: %v", phase, err)
		}
	}
	settle("old")
	put("ca.pem", old.CA(), next.CA())
	settle("both")
	show(next)
	settle("new certificates")
	put("ca.pem", next.CA())
	settle("new")
	stop.Store(true)
	clients.Wait()
	for _, m := range c.Members {
		cfg := old.client("good")
		cfg.RootCAs = both
		if err := callWith(t, m, cfg); err == nil {
			t.Errorf("%s: the old authority's client is served", m.Name)
		}
		cfg = old.client("member")
		cfg.RootCAs = both
		if got, err := getWith(cfg, m.PeerURL+"/version"); err == nil {
			t.Errorf("%s: the old authority's member is served: %s", m.Name, got)
		}
	}
	t.Logf("%d calls", calls.Load())
}

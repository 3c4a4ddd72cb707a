package transport

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/proof/cluster"
)

// TestInteropEtcd puts our transport into one raft group with a real etcd: three members, of which
// one is the etcd binary named by BELAY_ETCD, or built by make tools, and two are a RawNode behind
// a Transport. It sees each side lead the other, entries of 1 MB, forwarded proposals, and etcd's
// snapshot to a member that fell behind: plain, and with certificates that both sides want of each
// other.
func TestInteropEtcd(t *testing.T) {
	for name, g := range map[string]*guard{"plain": nil, "TLS": newGuard(t)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			interopEtcd(t, g)
		})
	}
}

// guard is one certificate that trusts itself and serves every member.
type guard struct {
	cert, key string // files
	cfg       *tls.Config
}

func newGuard(t *testing.T) *guard {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "interop"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	g := &guard{cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem")}
	for file, block := range map[string]*pem.Block{g.cert: {Type: "CERTIFICATE", Bytes: der}, g.key: {Type: "EC PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pair, err := tls.LoadX509KeyPair(g.cert, g.key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(pair.Leaf)
	g.cfg = &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	return g
}

// config is what a member of ours speaks; nil without a guard.
func (g *guard) config() *tls.Config {
	if g == nil {
		return nil
	}
	return g.cfg.Clone()
}

func interopEtcd(t *testing.T, g *guard) {
	binary := os.Getenv("BELAY_ETCD")
	if binary == "" { // where make tools puts it
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		if binary = filepath.Join(cache, "belay-etcdtools", etcdVersion, "etcd"); testing.Short() {
			t.Skip("starts a real etcd; not with -short")
		}
		if _, err := os.Stat(binary); err != nil {
			t.Skip("set BELAY_ETCD to an etcd 3.7 binary, or run make tools")
		}
	}
	ports := freePorts(t, 4)
	scheme := "http://"
	if g != nil {
		scheme = "https://"
	}
	peers := []string{scheme + ports[0], scheme + ports[1], scheme + ports[2]}
	client := "http://" + ports[3]
	ids := make([]uint64, 3)
	var sum []byte
	for i, u := range peers {
		ids[i] = testMemberID(u)
	}
	sorted := slices.Sorted(slices.Values(ids))
	for _, id := range sorted {
		sum = be(sum, id)
	}
	h := sha1.Sum(sum)
	cluster := beUint(h[:8])

	cmd := exec.Command(binary, "--name=m0", "--data-dir="+filepath.Join(t.TempDir(), "etcd"),
		"--listen-peer-urls="+peers[0], "--initial-advertise-peer-urls="+peers[0],
		"--listen-client-urls="+client, "--advertise-client-urls="+client, "--initial-cluster-token=interop",
		"--initial-cluster=m0="+peers[0]+",m1="+peers[1]+",m2="+peers[2],
		"--snapshot-count=50", "--snapshot-catchup-entries=10", "--log-outputs=stderr")
	if g != nil {
		cmd.Args = append(cmd.Args, "--peer-cert-file="+g.cert, "--peer-key-file="+g.key, "--peer-trusted-ca-file="+g.cert, "--peer-client-cert-auth")
	}
	var log lockedBuffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("etcd's log:\n%s", log.String())
		}
	})
	var bootstrap []raft.Peer
	for _, id := range sorted {
		i := slices.Index(ids, id)
		ctx, err := json.Marshal(map[string]any{"id": id, "peerURLs": []string{peers[i]}, "name": fmt.Sprintf("m%d", i)})
		if err != nil {
			t.Fatal(err)
		}
		bootstrap = append(bootstrap, raft.Peer{ID: id, Context: ctx})
	}
	disks := []*raft.MemoryStorage{nil, raft.NewMemoryStorage(), raft.NewMemoryStorage()}
	b := startRaftMember(t, g.config(), cluster, ids, peers, 1, disks[1], bootstrap)
	c := startRaftMember(t, g.config(), cluster, ids, peers, 2, disks[2], bootstrap)

	var seen []string
	put := func(key, value string) {
		t.Helper()
		body := fmt.Sprintf(`{"key":%q,"value":%q}`, base64.StdEncoding.EncodeToString([]byte(key)), base64.StdEncoding.EncodeToString([]byte(value)))
		eventually(t, "a put through etcd", func() bool {
			resp, err := http.Post(client+"/v3/kv/put", "application/json", strings.NewReader(body))
			if err != nil {
				return false
			}
			defer resp.Body.Close()
			_, _ = io.Copy(io.Discard, resp.Body)
			return resp.StatusCode == http.StatusOK
		})
		seen = append(seen, key)
	}
	leads := func(id uint64) {
		t.Helper()
		eventually(t, fmt.Sprintf("member %x to lead", id), func() bool {
			if b.leader() == id && c.leader() == id {
				return true
			}
			for _, m := range []*raftMember{b, c} {
				if m.leader() == m.id {
					m.do(func(rn *raft.RawNode) { rn.TransferLeader(id) })
				}
			}
			if b.leader() == ids[0] {
				body := fmt.Sprintf(`{"targetID":"%d"}`, id)
				if resp, err := http.Post(client+"/v3/maintenance/transfer-leadership", "application/json", strings.NewReader(body)); err == nil {
					resp.Body.Close()
				}
			}
			time.Sleep(20 * time.Millisecond)
			return false
		})
	}
	for round, leader := range []uint64{ids[0], ids[1], ids[0], ids[2]} {
		leads(leader)
		for i := range 20 {
			put(fmt.Sprintf("k%d-%d", round, i), "v")
		}
		put(fmt.Sprintf("big%d", round), strings.Repeat("x", 1<<20))
		for _, m := range []*raftMember{b, c} {
			eventually(t, "all puts to be applied", func() bool { return m.has(seen) })
		}
	}
	if k := b.PeerKind(ids[0]); k != KindEtcd {
		t.Errorf("etcd counts as %q", k)
	}
	if k := b.PeerKind(ids[2]); k != KindBelay {
		t.Errorf("our own member counts as %q", k)
	}
	eventually(t, "a round trip to etcd", func() bool { return b.RTT(ids[0]) > 0 })
	for _, msg := range []string{"established TCP streaming connection with remote peer", "peer became active"} {
		if !strings.Contains(log.String(), msg) {
			t.Errorf("etcd never logged %q", msg)
		}
	}
	for _, msg := range []string{"failed to decode", "request cluster ID mismatch", "ignored streaming request", "panic"} {
		if strings.Contains(log.String(), msg) {
			t.Errorf("etcd logged %q", msg)
		}
	}

	// A member that missed more than etcd keeps is sent a bbolt file.
	leads(ids[0])
	c.stop()
	for i := range 200 {
		put(fmt.Sprintf("late%d", i), "v")
	}
	c = startRaftMember(t, g.config(), cluster, ids, peers, 2, disks[2], nil)
	eventually(t, "etcd's snapshot", func() bool { return c.snapshotKind() == KindEtcd })
	seen = nil
	put("after", "v")
	eventually(t, "an append after the snapshot", func() bool { return c.has(seen) })
	if !strings.Contains(log.String(), "sent database snapshot") {
		t.Error("etcd does not say that the snapshot was received")
	}
}

func be(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(b, v) }
func beUint(b []byte) uint64       { return binary.BigEndian.Uint64(b) }

func testMemberID(url string) uint64 {
	h := sha1.Sum([]byte(url + "interop"))
	return beUint(h[:8])
}

func freePorts(t *testing.T, n int) (addrs []string) {
	t.Helper()
	first, err := cluster.FreePorts(n)
	if err != nil {
		t.Fatal(err)
	}
	for port := first; port < first+n; port++ {
		addrs = append(addrs, fmt.Sprint("127.0.0.1:", port))
	}
	return addrs
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// raftMember is the least that makes a raft member: a RawNode in memory and a Transport.
type raftMember struct {
	*Transport
	id   uint64
	srv  *http.Server
	done chan struct{}
	quit chan struct{}
	in   chan func(*raft.RawNode)

	mu       sync.Mutex
	lead     uint64
	keys     map[string]bool
	snapshot string
}

func startRaftMember(t *testing.T, security *tls.Config, cluster uint64, ids []uint64, urls []string, i int, storage *raft.MemoryStorage, bootstrap []raft.Peer) *raftMember {
	m := &raftMember{id: ids[i], keys: map[string]bool{}, in: make(chan func(*raft.RawNode)), quit: make(chan struct{}), done: make(chan struct{})}
	rn, err := raft.NewRawNode(&raft.Config{ID: m.id, ElectionTick: 10, HeartbeatTick: 1, Storage: storage, MaxSizePerMsg: 1 << 20,
		MaxInflightMsgs: 512, CheckQuorum: true, PreVote: true, Logger: quiet{}})
	if err != nil {
		t.Fatal(err)
	}
	if bootstrap != nil {
		if err := rn.Bootstrap(bootstrap); err != nil {
			t.Fatal(err)
		}
	}
	m.Transport = New(Config{MemberID: m.id, ClusterID: cluster, URLs: []string{urls[i]}, Handler: m, Logger: zap.NewNop(), TLS: func() *tls.Config { return security }})
	mux := http.NewServeMux()
	mux.Handle("/raft", m.Transport.Handler())
	mux.Handle("/raft/", m.Transport.Handler())
	mux.HandleFunc("/version", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"etcdserver":%q,"etcdcluster":"3.7.0"}`, etcdVersion)
	})
	ln, err := net.Listen("tcp", strings.TrimPrefix(strings.TrimPrefix(urls[i], "http://"), "https://"))
	if err != nil {
		t.Fatal(err)
	}
	if security != nil {
		ln = tls.NewListener(ln, security)
	}
	m.srv = &http.Server{Handler: mux}
	go func() { _ = m.srv.Serve(ln) }()
	for j, id := range ids {
		if j != i {
			m.AddPeer(id, []string{urls[j]})
		}
	}
	go m.run(rn, storage)
	t.Cleanup(m.stop)
	return m
}

func (m *raftMember) run(rn *raft.RawNode, storage *raft.MemoryStorage) {
	defer close(m.done)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-m.quit:
			return
		case <-tick.C:
			rn.Tick()
		case fn := <-m.in:
			fn(rn)
		}
		for rn.HasReady() {
			rd := rn.Ready()
			if !raft.IsEmptySnap(rd.Snapshot) {
				_ = storage.ApplySnapshot(rd.Snapshot)
			}
			if !raft.IsEmptyHardState(rd.HardState) {
				_ = storage.SetHardState(rd.HardState)
			}
			_ = storage.Append(rd.Entries)
			m.Send(rd.Messages)
			for _, e := range rd.CommittedEntries {
				m.apply(rn, e)
			}
			rn.Advance(rd)
			m.mu.Lock()
			m.lead = rn.BasicStatus().Lead
			m.mu.Unlock()
		}
	}
}

func (m *raftMember) apply(rn *raft.RawNode, e *raftpb.Entry) {
	if e.GetType() == raftpb.EntryConfChange {
		cc := &raftpb.ConfChange{}
		if err := proto.Unmarshal(e.Data, cc); err != nil {
			panic(err)
		}
		rn.ApplyConfChange(cc)
		return
	}
	req := &pb.InternalRaftRequest{}
	if err := proto.Unmarshal(e.Data, req); err != nil {
		panic(err)
	}
	if put := req.GetPut(); put != nil {
		m.mu.Lock()
		m.keys[string(put.GetKey())] = true
		m.mu.Unlock()
	}
}

func (m *raftMember) do(fn func(*raft.RawNode)) {
	select {
	case m.in <- fn:
	case <-m.quit:
	}
}

func (m *raftMember) leader() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lead
}

func (m *raftMember) has(keys []string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range keys {
		if !m.keys[k] {
			return false
		}
	}
	return true
}

func (m *raftMember) snapshotKind() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.snapshot
}

func (m *raftMember) stop() {
	select {
	case <-m.quit:
		return
	default:
	}
	close(m.quit)
	<-m.done
	m.Transport.Stop()
	_ = m.srv.Close()
}

func (m *raftMember) Process(ctx context.Context, msg *raftpb.Message) error {
	m.do(func(rn *raft.RawNode) { _ = rn.Step(msg) })
	return nil
}
func (m *raftMember) ReportUnreachable(id uint64) {
	m.do(func(rn *raft.RawNode) { rn.ReportUnreachable(id) })
}
func (m *raftMember) ReportSnapshot(id uint64, ok bool) {
	status := raft.SnapshotFinish
	if !ok {
		status = raft.SnapshotFailure
	}
	m.do(func(rn *raft.RawNode) { rn.ReportSnapshot(id, status) })
}
func (m *raftMember) IsRemoved(id uint64) bool { return false }
func (m *raftMember) ReceiveSnapshot(ctx context.Context, msg *raftpb.Message, body io.Reader, kind string) error {
	b, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	if len(b) < 4096 || binary.LittleEndian.Uint32(b[16:]) != 0xED0CDAED {
		return fmt.Errorf("the body of %d bytes is no bbolt file", len(b))
	}
	m.mu.Lock()
	m.snapshot = kind
	m.mu.Unlock()
	return m.Process(ctx, msg)
}

// quiet is a raft.Logger that says nothing.
type quiet struct{}

func (quiet) Debug(...any)            {}
func (quiet) Debugf(string, ...any)   {}
func (quiet) Error(...any)            {}
func (quiet) Errorf(string, ...any)   {}
func (quiet) Info(...any)             {}
func (quiet) Infof(string, ...any)    {}
func (quiet) Warning(...any)          {}
func (quiet) Warningf(string, ...any) {}
func (quiet) Fatal(v ...any)          { panic(fmt.Sprint(v...)) }
func (quiet) Fatalf(f string, v ...any) {
	panic(fmt.Sprintf(f, v...))
}
func (quiet) Panic(v ...any)            { panic(fmt.Sprint(v...)) }
func (quiet) Panicf(f string, v ...any) { panic(fmt.Sprintf(f, v...)) }

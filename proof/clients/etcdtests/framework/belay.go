//go:build etcd_integration

// Package integration, here, is part of etcd's package of that name, which starts the members that
// etcd's integration tests want in the process of the test: ../../integration_test.go puts this file
// into a copy of it, in place of the methods of Member that it has, so that the members are Belay's.
// All else of the package, and the tests, are etcd's.
package integration

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-semver/semver"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/version"
	"go.etcd.io/etcd/client/pkg/v3/testutil"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/config"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"go.etcd.io/etcd/server/v3/storage/backend"

	belay "github.com/belaydb/belay/config"
	"github.com/belaydb/belay/node"
)

// Server is a Belay with what the package and the tests ask of an etcdserver.EtcdServer.
type Server struct {
	Cfg config.ServerConfig

	member  *Member
	node    *node.Node
	links   *links
	stop    sync.Once
	stopped chan struct{} // closed when the node has ended
}

// Launch starts the member on its listeners. It does not wait until it serves.
func (m *Member) Launch() (err error) {
	if m.Server, err = start(m); err != nil {
		return fmt.Errorf("failed to initialize the etcd server: %w", err)
	}
	if m.GRPCURL != "" && m.Client == nil {
		m.Client, err = NewClientV3(m)
	}
	return err
}

// Close ends the member.
func (m *Member) Close() {
	if m.GRPCBridge != nil {
		m.GRPCBridge.Close()
		m.GRPCBridge = nil
	}
	if m.ServerClient != nil { // a test has set it
		m.ServerClient.Close()
		m.ServerClient = nil
	}
	if m.Server != nil {
		m.Server.Stop()
	}
	m.Closed = true
}

// InjectPartition cuts the connections between m and others.
func (m *Member) InjectPartition(_ testutil.TB, others ...*Member) { m.separate(others, true) }

// RecoverPartition ends InjectPartition.
func (m *Member) RecoverPartition(_ testutil.TB, others ...*Member) { m.separate(others, false) }

func (m *Member) separate(others []*Member, cut bool) {
	for _, other := range others {
		m.Server.links.set(other.PeerURLs[0].Host, cut)
		other.Server.links.set(m.PeerURLs[0].Host, cut)
	}
}

// Pause cuts m off from all others.
func (m *Member) Pause() { m.Server.links.set(everybody, true) }

// Resume ends Pause.
func (m *Member) Resume() { m.Server.links.set(everybody, false) }

func start(m *Member) (*Server, error) {
	cfg, err := belay.Parse(flags(m), m.Logger)
	if err != nil {
		return nil, err
	}
	nc := cfg.NodeConfig(m.Logger)
	open := map[string]net.Listener{}
	for i, u := range m.PeerURLs {
		if i < len(m.PeerListeners) {
			open[u.Host] = m.PeerListeners[i]
		}
	}
	for i, u := range m.ClientURLs {
		if i < len(m.ClientListeners) {
			open[u.Host] = m.ClientListeners[i]
		}
	}
	if m.GRPCListener != nil {
		u := url.URL{Scheme: m.clientScheme(), Host: m.GRPCListener.Addr().String()}
		open[u.Host] = m.GRPCListener
		nc.ListenClientURLs = append(nc.ListenClientURLs, u)
	}
	s := &Server{Cfg: m.ServerConfig, member: m, links: &links{cut: map[string]bool{}, open: map[*link]bool{}}, stopped: make(chan struct{})}
	nc.Listen = func(u url.URL, flag string) (net.Listener, error) {
		l := open[u.Host]
		if l == nil { // of Clone, which is not to be reached
			return net.Listen("tcp", "127.0.0.1:0")
		}
		l = &closedOnce{Listener: l}
		if flag == "--listen-peer-urls" {
			l = &peerListener{l, s.links}
		}
		return l, nil
	}
	nc.Over = s.links.over
	nc.NoSignals = true
	secure(&nc, m)
	if s.node, err = node.Start(context.Background(), nc); err != nil {
		return nil, err
	}
	go func() {
		select {
		case <-s.node.Failed():
			s.Stop()
		case <-s.stopped:
		}
	}()
	return s, nil
}

// flags are those of `belay server` for what the test wants of a member.
func flags(m *Member) []string {
	state := "existing"
	if m.NewCluster {
		state = "new"
	}
	c, w := &m.ServerConfig, &m.Wanted
	given := []string{
		"--name=" + c.Name, "--data-dir=" + c.DataDir,
		"--listen-peer-urls=" + c.PeerURLs.String(), "--initial-advertise-peer-urls=" + c.PeerURLs.String(),
		"--listen-client-urls=" + c.ClientURLs.String(), "--advertise-client-urls=" + c.ClientURLs.String(),
		"--initial-cluster=" + c.InitialPeerURLsMap.String(), "--initial-cluster-state=" + state, "--initial-cluster-token=" + c.InitialClusterToken,
		"--auth-token=" + c.AuthToken,
		"--memory-budget=512MiB",
	}
	add := func(name string, value any) { given = append(given, fmt.Sprintf("--%s=%v", name, value)) }
	add("heartbeat-interval", c.TickMs)
	add("election-timeout", c.TickMs*uint(c.ElectionTicks))
	add("initial-election-tick-advance", c.InitialElectionTickAdvance)
	add("pre-vote", c.PreVote)
	add("snapshot-count", c.SnapshotCount)
	add("quota-backend-bytes", c.QuotaBackendBytes)
	add("max-txn-ops", c.MaxTxnOps)
	add("max-request-bytes", c.MaxRequestBytes)
	add("max-learners", c.MaxLearners)
	add("bcrypt-cost", c.BcryptCost)
	add("strict-reconfig-check", c.StrictReconfigCheck)
	add("force-new-cluster", c.ForceNewCluster)
	add("warning-apply-duration", c.WarningApplyDuration)
	add("warning-unary-request-duration", c.WarningUnaryRequestDuration)
	progress := c.WatchProgressNotifyInterval
	if progress == 0 {
		progress = v3rpc.GetProgressReportInterval() // which tests set
	}
	for name, value := range map[string]time.Duration{
		"corrupt-check-time": c.CorruptCheckTime, "watch-progress-notify-interval": progress,
		"grpc-keepalive-min-time": w.GRPCKeepAliveMinTime, "grpc-keepalive-interval": w.GRPCKeepAliveInterval, "grpc-keepalive-timeout": w.GRPCKeepAliveTimeout,
	} {
		if value > 0 {
			add(name, value)
		}
	}
	if c.Metrics != "" {
		add("metrics", c.Metrics)
	}
	if engine := os.Getenv("BELAY_RPC_ENGINE"); engine != "" {
		add("rpc-engine", engine)
	}
	return given
}

// secure gives the member its certificates.
func secure(nc *node.Config, m *Member) {
	if m.PeerTLSInfo != nil {
		nc.PeerTLS = *m.PeerTLSInfo
	}
	if m.ClientTLSInfo == nil {
		return
	}
	nc.ClientTLS = *m.ClientTLSInfo
	for _, suite := range m.ClientTLSInfo.CipherSuites {
		nc.CipherSuites = append(nc.CipherSuites, tls.CipherSuiteName(suite))
	}
	names := map[uint16]string{tls.VersionTLS12: "TLS1.2", tls.VersionTLS13: "TLS1.3"}
	nc.TLSMinVersion, nc.TLSMaxVersion = names[m.ClientTLSInfo.MinVersion], names[m.ClientTLSInfo.MaxVersion]
}

// MemberID is the member's.
func (s *Server) MemberID() types.ID { return types.ID(s.node.MemberID()) }

// Lead is the member that this one follows; 0: none.
func (s *Server) Lead() uint64 { return s.node.Leader() }

// Leader is Lead.
func (s *Server) Leader() types.ID { return types.ID(s.node.Leader()) }

// ReadyNotify is closed when the member serves.
func (s *Server) ReadyNotify() <-chan struct{} { return s.node.Ready() }

// StopNotify is closed when the member has ended.
func (s *Server) StopNotify() <-chan struct{} { return s.stopped }

// Stop ends the member.
func (s *Server) Stop() {
	s.stop.Do(func() {
		s.node.Stop()
		close(s.stopped)
	})
	<-s.stopped
}

// ClusterVersion is nil before the cluster has one. The tests look at no more than that.
func (s *Server) ClusterVersion() *semver.Version {
	if !s.node.Versioned() {
		return nil
	}
	return semver.New(version.Version)
}

// AppliedIndex is the last entry that the member has applied; 0: it does not answer.
func (s *Server) AppliedIndex() uint64 {
	ctx, cancel := context.WithTimeout(context.Background(), RequestWaitTimeout)
	defer cancel()
	status, err := s.member.Client.Status(ctx, s.member.GRPCURL)
	if err != nil {
		return 0
	}
	return status.RaftAppliedIndex
}

// Alarm asks the member for one over its port.
func (s *Server) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	return ToGRPC(s.member.Client).Maintenance.Alarm(ctx, r)
}

// What follows is inside an etcd and nowhere else. It is here so that the files of the tests compile;
// the tests that call it are left out by name.

func (s *Server) Backend() backend.Backend                        { return nil }
func (s *Server) CorruptionChecker() etcdserver.CorruptionChecker { return nil }
func (s *Server) FirstCommitInTermNotify() <-chan struct{}        { return nil }
func (s *Server) TryTransferLeadershipOnShutdown() error          { return errors.ErrUnsupported }

// closedOnce is a listener of a socket file, whose Close removes the file each time, also that of the
// member's next start.
type closedOnce struct {
	net.Listener
	once sync.Once
	err  error
}

func (l *closedOnce) Close() error {
	l.once.Do(func() { l.err = l.Listener.Close() })
	return l.err
}

// everybody stands for all other members in links.cut.
const everybody = ""

// links are a member's connections to the others, which can be cut: they break, and none is made.
type links struct {
	mu   sync.Mutex
	cut  map[string]bool // by the other's address; everybody: all
	open map[*link]bool
}

// A link is an open connection to an address; to everybody, if it came from a member that is not
// known.
type link struct {
	net.Conn
	links   *links
	address string
}

func (l *links) over(next node.Dial) node.Dial {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := next(ctx, network, address)
		if err != nil {
			return nil, err
		}
		if k := l.add(conn, address); k != nil {
			return k, nil
		}
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
	}
}

// add returns nil for a connection that is cut.
func (l *links) add(conn net.Conn, address string) *link {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut[everybody] || l.cut[address] {
		_ = conn.Close() // nobody has used it
		return nil
	}
	k := &link{conn, l, address}
	l.open[k] = true
	return k
}

func (l *links) set(address string, cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut[address] = cut
	for k := range l.open {
		if cut && (address == everybody || address == k.address) {
			_ = k.Conn.Close() // its user sees it
		}
	}
}

func (k *link) Close() error {
	k.links.mu.Lock()
	delete(k.links.open, k)
	k.links.mu.Unlock()
	return k.Conn.Close()
}

// peerListener is where a member's links from others come in.
type peerListener struct {
	net.Listener
	links *links
}

func (l *peerListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if k := l.links.add(conn, everybody); k != nil {
			return k, nil
		}
	}
}

// Package local starts members in this process, for packages embed and belaytest: flags become a
// configuration, and ports are sockets of the system or of a Network.
package local

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/belaydb/belay/config"
	"github.com/belaydb/belay/listen"
	"github.com/belaydb/belay/node"
)

// A Spec says what to start.
type Spec struct {
	Name string
	Dir  string // the data directory
	FS   vfs.FS // it is on; nil: the operating system's

	Flags  []string // of `belay server`, but those that Spec has
	Logger *zap.Logger

	// Network and Host are where the member listens for URLs that are not given.
	Network    *Network
	Host       string
	PeerURLs   []string // on sockets; port 0: the system chooses
	ClientURLs []string // likewise
	// Initial is --initial-cluster; empty: the member alone, or what Flags say.
	Initial string

	// Over is put over the way to other members; nil: nothing is.
	Over func(node.Dial) node.Dial
}

// PeerURL is where other members of the Network reach a host.
func PeerURL(host string) string { return "http://" + Address(host, PeerPort) }

func clientURL(host string) string { return "http://" + Address(host, ClientPort) }

// taken are the flags whose place is in Spec, with its name in embed.Options.
func taken() map[string]string {
	return map[string]string{
		"name": "Name", "data-dir": "Dir", "listen-client-urls": "ClientURLs", "listen-peer-urls": "PeerURLs",
		"config-file": "", "version": "", "heal": "", "log-outputs": "Logger", "log-level": "Logger", "log-format": "Logger",
		"logger": "Logger", "enable-log-rotation": "Logger", "log-rotation-config-json": "Logger",
	}
}

func checkFlags(flags []string) error {
	for _, f := range flags {
		name, _, _ := strings.Cut(strings.TrimLeft(f, "-"), "=")
		field, ok := taken()[name]
		switch {
		case !strings.HasPrefix(f, "-"):
			return fmt.Errorf("%q is not a flag: each has the form --name=value", f)
		case !ok:
		case field == "":
			return fmt.Errorf("--%s is for the command line alone", name)
		default:
			return fmt.Errorf("--%s is not among the flags here: Options.%s says it", name, field)
		}
	}
	return nil
}

// A Member runs, or has ended.
type Member struct {
	Name string

	node     *node.Node
	network  *Network
	client   []string // endpoints
	inMemory bool     // these are on network

	stop sync.Once
	done chan struct{}
	err  error // why it ended by itself; set before done is closed
}

// Start begins to run a member. It returns before the member serves: see Ready. If it fails, also
// because ctx ends, nothing is left running.
func Start(ctx context.Context, s Spec) (_ *Member, err error) {
	if s.Logger == nil {
		s.Logger = zap.NewNop()
	}
	if err := checkFlags(s.Flags); err != nil {
		return nil, err
	}
	sockets := sockets{network: s.Network}
	defer func() {
		if err != nil {
			sockets.close()
		}
	}()
	m := &Member{Name: s.Name, network: s.Network, done: make(chan struct{}), inMemory: len(s.ClientURLs) == 0}
	peers, err := sockets.open(s.PeerURLs, PeerURL(s.Host), "--listen-peer-urls")
	if err != nil {
		return nil, err
	}
	if m.client, err = sockets.open(s.ClientURLs, clientURL(s.Host), "--listen-client-urls"); err != nil {
		return nil, err
	}
	flags := []string{
		"--name=" + s.Name, "--data-dir=" + s.Dir, "--listen-peer-urls=" + strings.Join(peers, ","), "--listen-client-urls=" + strings.Join(m.client, ","),
	}
	for name, value := range map[string]string{
		"initial-advertise-peer-urls": strings.Join(peers, ","), "advertise-client-urls": strings.Join(m.client, ","), "initial-cluster": s.Initial,
	} {
		if value != "" && !slices.ContainsFunc(s.Flags, func(f string) bool { return strings.HasPrefix(strings.TrimLeft(f, "-"), name+"=") }) {
			flags = append(flags, "--"+name+"="+value)
		}
	}
	cfg, err := config.Parse(append(flags, s.Flags...), s.Logger)
	if err != nil {
		return nil, err
	}
	nc := cfg.NodeConfig(s.Logger)
	nc.Listen = sockets.take
	nc.FS = s.FS
	nc.NoSignals = true // they are the program's
	nc.Over = func(next node.Dial) node.Dial {
		if len(s.PeerURLs) == 0 {
			next = func(ctx context.Context, _, address string) (net.Conn, error) {
				return s.Network.Dial(ctx, s.Host, address)
			}
		}
		if s.Over != nil {
			next = s.Over(next)
		}
		return next
	}
	if m.node, err = node.Start(ctx, nc); err != nil {
		return nil, err
	}
	sockets.close() // those that nobody took
	go m.watch()
	return m, nil
}

// watch ends a member that cannot go on.
func (m *Member) watch() {
	select {
	case err := <-m.node.Failed():
		m.stop.Do(func() {
			m.node.Stop()
			m.err = err
			close(m.done)
		})
	case <-m.node.Stopping():
	}
}

// Stop ends a member in order, and waits for its end.
func (m *Member) Stop() {
	m.stop.Do(func() {
		m.node.Stop()
		close(m.done)
	})
	<-m.done
}

// Done is closed when the member has ended.
func (m *Member) Done() <-chan struct{} { return m.done }

// Err is why the member ended by itself; nil before Done, and if it was stopped.
func (m *Member) Err() error {
	select {
	case <-m.done:
		return m.err
	default:
		return nil
	}
}

// Ready waits until the member serves.
func (m *Member) Ready(ctx context.Context) error {
	select {
	case <-m.node.Ready():
		return nil
	case <-m.done:
		if m.err != nil {
			return m.err
		}
		return fmt.Errorf("member %s was stopped before it served", m.Name)
	case <-ctx.Done():
		return fmt.Errorf("member %s does not serve yet: %w", m.Name, context.Cause(ctx))
	}
}

// ID is the member's, as `endpoint status` shows it.
func (m *Member) ID() uint64 { return m.node.MemberID() }

// Leader is the ID of the member that this one follows; 0: none.
func (m *Member) Leader() uint64 { return m.node.Leader() }

// Endpoints are its client URLs. Those of a Network only Client reaches.
func (m *Member) Endpoints() []string { return slices.Clone(m.client) }

// Client makes a client of members. Close it.
func Client(members ...*Member) (*clientv3.Client, error) {
	cfg := clientv3.Config{Logger: zap.NewNop()}
	for _, m := range members {
		cfg.Endpoints = append(cfg.Endpoints, m.client...)
		if m.inMemory {
			network := m.network
			cfg.DialOptions = []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
				return network.Dial(ctx, "", address)
			})}
		}
	}
	return clientv3.New(cfg)
}

// sockets are ports that are open before the member is, which makes port 0 known to it.
type sockets struct {
	network *Network
	mu      sync.Mutex
	opened  map[string]net.Listener // by URL
}

// open returns the URLs that are really listened on. Without any, the Network's is taken, which the
// member opens itself.
func (s *sockets) open(urls []string, otherwise, flag string) (found []string, err error) {
	if len(urls) == 0 {
		return []string{otherwise}, nil
	}
	parsed, err := config.ParseURLs(strings.Join(urls, ","))
	if err != nil {
		return nil, err
	}
	for _, u := range parsed {
		if u.Port() == "0" {
			l, err := listen.Open(u, flag, &listen.SocketOptions{})
			if err != nil {
				return nil, err
			}
			u.Host = l.Addr().String()
			if s.opened == nil {
				s.opened = map[string]net.Listener{}
			}
			s.opened[u.String()] = l
		}
		found = append(found, u.String())
	}
	return found, nil
}

// take is node.Config's Listen.
func (s *sockets) take(u url.URL, flag string) (net.Listener, error) {
	s.mu.Lock()
	l := s.opened[u.String()]
	delete(s.opened, u.String())
	s.mu.Unlock()
	switch {
	case l != nil:
		return l, nil
	case strings.HasPrefix(u.Host, "127.88."):
		return s.network.Listen(u.Host)
	}
	return listen.Open(u, flag, &listen.SocketOptions{})
}

func (s *sockets) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, l := range s.opened {
		delete(s.opened, key)
		_ = l.Close()
	}
}

package embed

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.uber.org/zap"
)

// DefaultName is the name of a member that was given none.
const DefaultName = "default"

// startTimeout bounds the wait for a cluster that answers nothing.
const startTimeout = 60 * time.Second

// Config has the fields of embed.Config that tests set. Of a cluster of more
// than one member it describes the first; the others listen on free ports.
type Config struct {
	Name                string
	Dir                 string // data directory
	InitialCluster      string // ignored: StartEtcd knows its members
	ListenPeerUrls      []url.URL
	ListenClientUrls    []url.URL
	AdvertisePeerUrls   []url.URL
	AdvertiseClientUrls []url.URL
	ClientTLSInfo       transport.TLSInfo

	UnsafeNoFsync               bool
	QuotaBackendBytes           int64         // 0: the server's default
	WatchProgressNotifyInterval time.Duration // 0: the server's default

	ZapLoggerBuilder func(*Config) error // not called: a process logs by itself
}

// NewConfig returns a configuration with the default name and nothing else.
func NewConfig() *Config { return &Config{Name: DefaultName} }

// InitialClusterFromName returns what --initial-cluster would be for one member.
func (c *Config) InitialClusterFromName(name string) string {
	var urls []string
	for _, u := range c.AdvertisePeerUrls {
		urls = append(urls, name+"="+u.String())
	}
	return strings.Join(urls, ",")
}

// NewZapLoggerBuilder is there to be called; the logger is not used.
func NewZapLoggerBuilder(*zap.Logger) func(*Config) error {
	return func(*Config) error { return nil }
}

// Etcd is a started cluster.
type Etcd struct {
	Server *Server

	members  []*member
	watchers sync.WaitGroup // goroutines that write to errs
	errs     chan error     // of members that ended by themselves; room for all; closed by Close
	closing  chan struct{}  // closed by Close
	once     sync.Once
}

type member struct {
	name, dir          string
	client, peer       []url.URL // listened on
	advClient, advPeer []url.URL
	log                string
	cmd                *exec.Cmd
	exited             chan struct{} // closed after Wait
	err                error         // of Wait; valid once exited is closed
}

// Server is what tests ask of the server inside an Etcd.
type Server struct {
	etcd  *Etcd
	ready chan struct{} // closed
}

// Cluster lists the members' addresses.
type Cluster struct{ urls []string }

// ReadyNotify is closed: StartEtcd has waited.
func (s *Server) ReadyNotify() <-chan struct{} { return s.ready }

// Stop ends all members.
func (s *Server) Stop() { s.etcd.Close() }

// Cluster returns the members.
func (s *Server) Cluster() *Cluster {
	c := &Cluster{}
	for _, m := range s.etcd.members {
		c.urls = append(c.urls, texts(m.advClient)...)
	}
	return c
}

// ClientURLs returns the members' client addresses.
func (c *Cluster) ClientURLs() []string { return c.urls }

// Err reports a member that ended by itself; Close closes it.
func (e *Etcd) Err() <-chan error { return e.errs }

// Close kills all members and waits until they are gone.
func (e *Etcd) Close() {
	e.once.Do(func() {
		close(e.closing)
		for _, m := range e.members {
			_ = m.cmd.Process.Kill() // it may be gone already
		}
		for _, m := range e.members {
			<-m.exited
		}
		e.watchers.Wait()
		close(e.errs)
		e.tellUsage()
	})
}

// tellUsage adds a line to the file BELAY_CLIENTS_USAGE, if there is one named: the seconds of CPU
// time that the members took in all. REQUIRES: all members have exited.
func (e *Etcd) tellUsage() {
	file := os.Getenv("BELAY_CLIENTS_USAGE")
	if file == "" {
		return
	}
	var took time.Duration
	for _, m := range e.members {
		took += m.cmd.ProcessState.UserTime() + m.cmd.ProcessState.SystemTime()
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return // a caller sees that nothing is there
	}
	defer f.Close()
	fmt.Fprintf(f, "%.2f\n", took.Seconds())
}

// StartEtcd starts a cluster and returns when every member answers.
func StartEtcd(cfg *Config) (*Etcd, error) {
	program := strings.Fields(os.Getenv("BELAY_CLIENTS_SERVER"))
	if len(program) == 0 {
		return nil, errors.New("embed: BELAY_CLIENTS_SERVER does not name a server to start")
	}
	size := 1
	if s := os.Getenv("BELAY_CLIENTS_SIZE"); s != "" {
		var err error
		if size, err = strconv.Atoi(s); err != nil || size < 1 {
			return nil, fmt.Errorf("embed: BELAY_CLIENTS_SIZE is %q", s)
		}
	}
	e := &Etcd{errs: make(chan error, size), closing: make(chan struct{})}
	e.Server = &Server{etcd: e, ready: make(chan struct{})}
	members, err := layOut(cfg, size)
	if err != nil {
		return nil, err
	}
	var initial []string
	for _, m := range members {
		for _, u := range m.advPeer {
			initial = append(initial, m.name+"="+u.String())
		}
	}
	for _, m := range members {
		if err := m.start(program, cfg, strings.Join(initial, ",")); err != nil {
			e.Close()
			return nil, err
		}
		e.members = append(e.members, m)
	}
	for _, m := range members {
		e.watchers.Go(func() {
			<-m.exited
			select {
			case <-e.closing:
			default:
				e.errs <- fmt.Errorf("embed: member %s ended: %v\n%s", m.name, m.err, tail(m.log))
			}
		})
	}
	if err := e.awaitReady(cfg); err != nil {
		e.Close()
		return nil, err
	}
	close(e.Server.ready)
	return e, nil
}

// layOut assigns each member a name, a folder and addresses.
func layOut(cfg *Config, size int) ([]*member, error) {
	logs := os.Getenv("BELAY_CLIENTS_LOGS")
	if logs == "" {
		logs = cfg.Dir
	}
	scheme := "http"
	if len(cfg.ListenClientUrls) > 0 {
		scheme = cfg.ListenClientUrls[0].Scheme
	}
	var members []*member
	for i := range size {
		m := &member{
			name: cfg.Name, dir: filepath.Join(cfg.Dir, fmt.Sprintf("m%d", i+1)),
			client: cfg.ListenClientUrls, peer: cfg.ListenPeerUrls,
			advClient: cfg.AdvertiseClientUrls, advPeer: cfg.AdvertisePeerUrls,
			log:    filepath.Join(logs, fmt.Sprintf("%d-m%d.log", time.Now().UnixNano(), i+1)),
			exited: make(chan struct{}),
		}
		if i > 0 || len(m.client) == 0 || len(m.peer) == 0 {
			m.name = fmt.Sprintf("%s%d", cfg.Name, i+1)
			ports, err := freePorts(2)
			if err != nil {
				return nil, err
			}
			m.client = []url.URL{{Scheme: scheme, Host: net.JoinHostPort("localhost", strconv.Itoa(ports[0]))}}
			m.peer = []url.URL{{Scheme: "http", Host: net.JoinHostPort("localhost", strconv.Itoa(ports[1]))}}
			m.advClient, m.advPeer = m.client, m.peer
		}
		members = append(members, m)
	}
	return members, nil
}

// freePorts returns ports on which nobody listens now.
func freePorts(count int) ([]int, error) {
	var ports []int
	for range count {
		l, err := net.Listen("tcp", "localhost:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

func texts(urls []url.URL) []string {
	var s []string
	for _, u := range urls {
		s = append(s, u.String())
	}
	return s
}

func (m *member) start(program []string, cfg *Config, initial string) error {
	args := append(program[1:len(program):len(program)],
		"--name", m.name,
		"--data-dir", m.dir,
		"--listen-client-urls", strings.Join(texts(m.client), ","),
		"--advertise-client-urls", strings.Join(texts(m.advClient), ","),
		"--listen-peer-urls", strings.Join(texts(m.peer), ","),
		"--initial-advertise-peer-urls", strings.Join(texts(m.advPeer), ","),
		"--initial-cluster", initial,
		"--initial-cluster-state", "new",
		"--log-level", "warn",
	)
	if cfg.UnsafeNoFsync {
		args = append(args, "--unsafe-no-fsync")
	}
	if cfg.QuotaBackendBytes != 0 {
		args = append(args, "--quota-backend-bytes", strconv.FormatInt(cfg.QuotaBackendBytes, 10))
	}
	if cfg.WatchProgressNotifyInterval != 0 {
		args = append(args, "--watch-progress-notify-interval", cfg.WatchProgressNotifyInterval.String())
	}
	for flag, value := range map[string]string{
		"--cert-file": cfg.ClientTLSInfo.CertFile, "--key-file": cfg.ClientTLSInfo.KeyFile,
		"--trusted-ca-file": cfg.ClientTLSInfo.TrustedCAFile,
	} {
		if value != "" {
			args = append(args, flag, value)
		}
	}
	log, err := os.Create(m.log)
	if err != nil {
		return err
	}
	defer log.Close() // the process has its own
	m.cmd = exec.Command(program[0], args...)
	m.cmd.Stdout, m.cmd.Stderr = log, log
	dieWithParent(m.cmd)
	if err := m.cmd.Start(); err != nil {
		return fmt.Errorf("embed: start %s: %w", m.name, err)
	}
	go func() {
		m.err = m.cmd.Wait()
		close(m.exited)
	}()
	return nil
}

// awaitReady waits until each member is healthy, which takes a linearizable read.
func (e *Etcd) awaitReady(cfg *Config) error {
	config, err := cfg.ClientTLSInfo.ClientConfig()
	if err != nil {
		return err
	}
	transport := &http.Transport{TLSClientConfig: config}
	client := &http.Client{Transport: transport, Timeout: 2 * time.Second}
	defer transport.CloseIdleConnections()
	deadline := time.After(startTimeout)
	for _, m := range e.members {
		for last := error(nil); ; {
			resp, err := client.Get(m.advClient[0].String() + "/health")
			if err == nil {
				resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					break
				}
				err = errors.New(resp.Status)
			}
			last = err
			select {
			case <-m.exited:
				return fmt.Errorf("embed: member %s ended: %v\n%s", m.name, m.err, tail(m.log))
			case <-deadline:
				return fmt.Errorf("embed: member %s is not healthy after %v: %w\n%s", m.name, startTimeout, last, tail(m.log))
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	return nil
}

// tail returns the end of a log.
func tail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-2000):])
}

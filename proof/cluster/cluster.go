package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Kind tells which program a member runs.
type Kind string

// The kinds there are.
const (
	Belay Kind = "belay"
	Etcd  Kind = "etcd"
)

// Config says what to start.
type Config struct {
	Kind   Kind
	Binary string // path of the program
	Size   int    // members, at least 1
	// Dir gets one folder and one log file for each member. It must exist.
	Dir string
	// Args are added to every member's command line.
	Args []string
	// Env is added to every member's environment, as KEY=value.
	Env []string
	// TLS, if set, is the clients' configuration, and the client URLs are https.
	TLS *tls.Config
	// PeerTLS makes the peer URLs https.
	PeerTLS bool
	// DataDir, if set, overrides where member i keeps its data.
	DataDir func(i int) string
}

// Cluster is a fixed set of members of one kind.
type Cluster struct {
	Members []*Member
	cfg     Config
}

// Member is one process, or the place where one was and will be again.
type Member struct {
	Name      string
	ClientURL string // http://127.0.0.1:port, or https
	PeerURL   string
	DataDir   string
	LogPath   string

	cfg  Config
	args []string

	mu     sync.Mutex
	cmd    *exec.Cmd
	log    *os.File
	exited chan struct{} // closed when cmd has been waited for
	err    error         // of Wait; valid once exited is closed
}

// New lays out a cluster: names, ports and folders. It starts nothing.
func New(cfg Config) (*Cluster, error) {
	if cfg.Size < 1 || cfg.Binary == "" || cfg.Dir == "" {
		return nil, errors.New("cluster: Config needs Size, Binary and Dir")
	}
	if cfg.Kind != Belay && cfg.Kind != Etcd {
		return nil, fmt.Errorf("cluster: unknown kind %q", cfg.Kind)
	}
	c := &Cluster{cfg: cfg}
	var initial []string
	for i := range cfg.Size {
		client, err := FreePort()
		if err != nil {
			return nil, err
		}
		peer, err := FreePort()
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("m%d", i+1)
		m := &Member{
			Name:      name,
			ClientURL: fmt.Sprintf("http://127.0.0.1:%d", client),
			PeerURL:   fmt.Sprintf("http://127.0.0.1:%d", peer),
			DataDir:   filepath.Join(cfg.Dir, name),
			LogPath:   filepath.Join(cfg.Dir, name+".log"),
			cfg:       cfg,
		}
		if cfg.TLS != nil {
			m.ClientURL = strings.Replace(m.ClientURL, "http", "https", 1)
		}
		if cfg.PeerTLS {
			m.PeerURL = strings.Replace(m.PeerURL, "http", "https", 1)
		}
		if cfg.DataDir != nil {
			m.DataDir = cfg.DataDir(i)
		}
		c.Members = append(c.Members, m)
		initial = append(initial, name+"="+m.PeerURL)
	}
	for _, m := range c.Members {
		m.args = []string{
			"--name", m.Name,
			"--data-dir", m.DataDir,
			"--listen-client-urls", m.ClientURL,
			"--advertise-client-urls", m.ClientURL,
			"--listen-peer-urls", m.PeerURL,
			"--initial-advertise-peer-urls", m.PeerURL,
			"--initial-cluster", strings.Join(initial, ","),
			"--initial-cluster-state", "new",
			"--initial-cluster-token", "check",
		}
		m.args = append(m.args, cfg.Args...)
	}
	return c, nil
}

// Become makes the members run another program from their next start on, with the same ports,
// folders and flags.
func (c *Cluster) Become(kind Kind, binary string) {
	c.cfg.Kind, c.cfg.Binary = kind, binary
	for _, m := range c.Members {
		m.Become(kind, binary)
	}
}

// Become makes this member alone run another program from its next start on.
func (m *Member) Become(kind Kind, binary string) { m.cfg.Kind, m.cfg.Binary = kind, binary }

// Kind is the program that the member runs, or will run.
func (m *Member) Kind() Kind { return m.cfg.Kind }

// Start starts all members and waits until each of them answers.
func (c *Cluster) Start(ctx context.Context) error {
	for _, m := range c.Members {
		if err := m.Start(); err != nil {
			return err
		}
	}
	return c.WaitReady(ctx)
}

// WaitReady waits until each member answers a linearizable read.
func (c *Cluster) WaitReady(ctx context.Context) error {
	for _, m := range c.Members {
		if err := m.WaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Close kills what still runs.
func (c *Cluster) Close() {
	for _, m := range c.Members {
		m.Kill()
	}
}

// Endpoints are the members' client addresses, host:port.
func (c *Cluster) Endpoints() []string {
	var eps []string
	for _, m := range c.Members {
		eps = append(eps, m.Endpoint())
	}
	return eps
}

// Tails returns the last lines of each member's log, for a failure's message.
func (c *Cluster) Tails(lines int) string {
	var b strings.Builder
	for _, m := range c.Members {
		fmt.Fprintf(&b, "--- %s %s, last %d lines of its log:\n%s\n", c.cfg.Kind, m.Name, lines, m.LogTail(lines))
	}
	return b.String()
}

// Endpoint is the client address, host:port.
func (m *Member) Endpoint() string {
	_, address, _ := strings.Cut(m.ClientURL, "://")
	return address
}

// Args returns the command line without the program, for a copy of it.
func (m *Member) Args() []string {
	if m.cfg.Kind == Belay {
		return append([]string{"server"}, m.args...)
	}
	return append([]string(nil), m.args...)
}

// SetArgs replaces the flags (without the sub-command) for the next Start.
func (m *Member) SetArgs(edit func(args []string) []string) {
	m.args = edit(append([]string(nil), m.args...))
}

// Start starts the process and returns at once. REQUIRES: the member is not running.
func (m *Member) Start() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd != nil {
		return fmt.Errorf("cluster: %s is already running", m.Name)
	}
	log, err := os.OpenFile(m.LogPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	cmd := exec.Command(m.cfg.Binary, m.Args()...)
	cmd.Env = append(m.cleanEnv(), m.cfg.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = m.cfg.Dir
	setParentDeath(cmd)
	if err := cmd.Start(); err != nil {
		log.Close()
		return fmt.Errorf("cluster: start %s: %w", m.Name, err)
	}
	exited := make(chan struct{})
	m.cmd, m.log, m.exited, m.err = cmd, log, exited, nil
	go func() {
		err := cmd.Wait()
		m.mu.Lock()
		m.err = err
		m.mu.Unlock()
		log.Close()
		close(exited)
	}()
	return nil
}

// cleanEnv is our environment without variables that would configure the member. BELAY_RPC_ENGINE is
// the --rpc-engine of each Belay that has none, so that every proof can be tried over either.
func (m *Member) cleanEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "ETCD_") && !strings.HasPrefix(kv, "BELAY_") {
			env = append(env, kv)
		}
	}
	given := slices.ContainsFunc(m.cfg.Args, func(arg string) bool { return strings.HasPrefix(arg, "--rpc-engine") })
	if engine := os.Getenv("BELAY_RPC_ENGINE"); engine != "" && !given && m.cfg.Kind == Belay {
		env = append(env, "ETCD_RPC_ENGINE="+engine)
	}
	return env
}

// Exited is closed when the process has ended. nil if it was never started.
func (m *Member) Exited() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.exited
}

// ExitErr returns what Wait returned; valid once Exited is closed.
func (m *Member) ExitErr() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// PID of the running process, 0 if there is none.
func (m *Member) PID() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd == nil {
		return 0
	}
	return m.cmd.Process.Pid
}

// Kill ends the process with SIGKILL and waits until it is gone. A member that
// does not run is left alone.
func (m *Member) Kill() error { return m.end(syscall.SIGKILL, context.Background()) }

// Stop asks the process to end (SIGTERM) and waits until it is gone; when ctx
// ends first, the process is killed and ctx's error returned.
func (m *Member) Stop(ctx context.Context) error { return m.end(syscall.SIGTERM, ctx) }

// Signal sends a signal to the running process, SIGSTOP for example.
func (m *Member) Signal(sig os.Signal) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd == nil {
		return fmt.Errorf("cluster: %s is not running", m.Name)
	}
	return m.cmd.Process.Signal(sig)
}

func (m *Member) end(sig syscall.Signal, ctx context.Context) error {
	m.mu.Lock()
	cmd, exited := m.cmd, m.exited
	m.mu.Unlock()
	if cmd == nil {
		return nil
	}
	_ = cmd.Process.Signal(sig) // it may have ended by itself
	var err error
	select {
	case <-exited:
	case <-ctx.Done():
		err = fmt.Errorf("cluster: %s did not stop: %w", m.Name, ctx.Err())
		_ = cmd.Process.Kill()
		<-exited
	}
	m.mu.Lock()
	m.cmd = nil
	m.mu.Unlock()
	return err
}

// WaitReady waits until the member answers a linearizable read. It returns
// early when the process has exited.
func (m *Member) WaitReady(ctx context.Context) error {
	conn, err := m.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	kv := pb.NewKVClient(conn)
	exited := m.Exited()
	var last error
	for {
		call, cancel := context.WithTimeout(ctx, time.Second)
		_, last = kv.Range(call, &pb.RangeRequest{Key: []byte("ready?")}, grpc.WaitForReady(true))
		cancel()
		// With authentication on, an anonymous read is refused after its read barrier.
		if last == nil || strings.Contains(last.Error(), rpctypes.ErrorDesc(rpctypes.ErrGRPCUserEmpty)) {
			return nil
		}
		select {
		case <-exited:
			return fmt.Errorf("cluster: %s exited (%v) before it answered; its log ends:\n%s", m.Name, m.ExitErr(), m.LogTail(20))
		case <-ctx.Done():
			return fmt.Errorf("cluster: %s does not answer: %w (last: %v); its log ends:\n%s", m.Name, ctx.Err(), last, m.LogTail(20))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Dial returns a plain gRPC connection to this member alone, made on first use.
func (m *Member) Dial(opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	security := insecure.NewCredentials()
	if m.cfg.TLS != nil {
		security = credentials.NewTLS(m.cfg.TLS)
	}
	return grpc.NewClient("passthrough:///"+m.Endpoint(), append([]grpc.DialOption{
		grpc.WithTransportCredentials(security),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30), grpc.MaxCallSendMsgSize(1<<30)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.2, MaxDelay: 200 * time.Millisecond},
			MinConnectTimeout: 20 * time.Second, // a refused connection fails at once all the same
		}),
	}, opts...)...)
}

// Usage of the running process.
func (m *Member) Usage() (Usage, error) { return ProcessUsage(m.PID()) }

// LogTail returns the last lines of the member's output.
func (m *Member) LogTail(lines int) string {
	f, err := os.Open(m.LogPath)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	const most = 64 << 10
	if st, err := f.Stat(); err == nil && st.Size() > most {
		_, _ = f.Seek(-most, io.SeekEnd)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	all = all[max(0, len(all)-lines):]
	for i, line := range all {
		if len(line) > 400 {
			all[i] = line[:400] + "..."
		}
	}
	return strings.Join(all, "\n")
}

// LastWords is the last line of the member's output that reports something serious, or else the
// last line.
func (m *Member) LastWords() string {
	lines := strings.Split(m.LogTail(60), "\n")
	for _, line := range slices.Backward(lines) {
		for _, grave := range []string{`"level":"fatal"`, `"level":"panic"`, "panic:", "fatal error:"} {
			if strings.Contains(line, grave) {
				return line
			}
		}
	}
	return lines[len(lines)-1]
}

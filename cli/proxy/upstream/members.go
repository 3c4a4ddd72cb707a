package upstream

import (
	"context"
	"crypto/tls"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

const (
	// ProbeInterval is the time between two questions for a member's status, probeTimeout how long it
	// has for the answer.
	ProbeInterval = 2 * time.Second
	probeTimeout  = time.Second

	// streamWindowBytes is what a member may send of one stream before the proxy has passed it on;
	// together with maxFrameBytes it bounds what a call costs. connWindowBytes is for all of a
	// connection's streams; grpc gives it back without waiting for a stream's reader.
	streamWindowBytes = 1 << 20
	connWindowBytes   = 16 << 20
)

// Config is what a Set is made from.
type Config struct {
	TLS *tls.Config // nil: none, unless an endpoint asks for it
	// KeepaliveTime is how long a connection is silent before it is pinged (0: never), KeepaliveTimeout
	// how long the answer may take [20 s].
	KeepaliveTime, KeepaliveTimeout time.Duration
	PermitWithoutStream             bool
	MaxRecvBytes                    int // of one message [2 GiB]
	// Patience is how long a call waits until a member can be reached [10 s].
	Patience time.Duration
	Logger   *zap.Logger // nil: none
}

// A Set is the members of the cluster, as far as they are known.
type Set struct {
	cfg    Config
	logger *zap.Logger
	next   atomic.Uint32 // round robin
	ctx    context.Context
	stop   context.CancelFunc

	mu      sync.Mutex
	members []*Member
	// forget is how long a member that is not connected still counts for its cluster [1 min]. Meanwhile
	// no member of another cluster is asked in its place; then one is, since the others may never come
	// back, as when one member alone was restored from a backup.
	forget  time.Duration
	changed chan struct{} // closed, and replaced, when a member's state has changed
}

// A Member is one member of the cluster.
type Member struct {
	set      *Set
	Endpoint string
	Secure   bool // with TLS
	conn     *grpc.ClientConn
	stop     context.CancelFunc
	// connected has room for one, and gets one when the connection is ready.
	connected chan struct{}

	// Guarded by the Set's mu.
	ready bool
	// healthy: the last answer to a probe said that it serves.
	healthy bool
	leader  uint64
	// cluster is the id of the cluster that it last said it is of, 0 until it has; other that most
	// endpoints are of another one. What is written there cannot be read at the others.
	cluster uint64
	other   bool
	lost    time.Time // when the connection ended last
	// serving ends when the member is not fit for calls any more; there is a new one when it is again.
	serving context.Context
	unfit   context.CancelFunc
}

// New makes a Set of the endpoints, each once. It connects in the background.
func New(cfg Config, endpoints []string) (*Set, error) {
	if cfg.Patience == 0 {
		cfg.Patience = 10 * time.Second
	}
	if cfg.KeepaliveTimeout == 0 {
		cfg.KeepaliveTimeout = 20 * time.Second
	}
	if cfg.MaxRecvBytes == 0 {
		cfg.MaxRecvBytes = math.MaxInt32
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	s := &Set{cfg: cfg, logger: cfg.Logger, changed: make(chan struct{}), forget: time.Minute}
	s.ctx, s.stop = context.WithCancel(context.Background())
	if err := s.Update(endpoints); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close ends all connections.
func (s *Set) Close() {
	s.stop()
	s.mu.Lock()
	members := s.members
	s.members = nil
	s.mu.Unlock()
	for _, m := range members {
		m.close()
	}
}

func (m *Member) close() {
	m.stop()
	_ = m.conn.Close()
}

// Update makes the endpoints those of the Set. Connections that remain are left alone; calls that
// run on another one end.
func (s *Set) Update(endpoints []string) error {
	parsed := make(map[string]endpoint)
	for _, text := range endpoints {
		e, err := parse(text, s.cfg.TLS != nil)
		if err != nil {
			return err
		}
		parsed[text] = e
	}
	if len(parsed) == 0 {
		return fmt.Errorf("no endpoints")
	}
	var members, gone []*Member
	defer func() {
		for _, m := range gone {
			m.close()
		}
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	for _, m := range s.members {
		if _, kept := parsed[m.Endpoint]; kept {
			members = append(members, m)
			delete(parsed, m.Endpoint)
		} else {
			gone = append(gone, m)
		}
	}
	for _, text := range endpoints { // in the order of the flag
		e, missing := parsed[text]
		if !missing {
			continue
		}
		delete(parsed, text)
		m, err := s.connect(text, e)
		if err != nil {
			return err
		}
		members = append(members, m)
	}
	s.members = members
	if s.setOthersApart(nil) {
		close(s.changed)
		s.changed = make(chan struct{})
	}
	return nil
}

func (s *Set) connect(text string, e endpoint) (*Member, error) {
	creds := insecure.NewCredentials()
	if e.secure {
		c := &tls.Config{MinVersion: tls.VersionTLS12}
		if s.cfg.TLS != nil {
			c = s.cfg.TLS.Clone()
		}
		if c.ServerName == "" {
			c.ServerName = e.serverName
		}
		creds = credentials.NewTLS(c)
	}
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithAuthority(e.serverName),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, e.network, e.address)
		}),
		grpc.WithIdleTimeout(0),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithNoProxy(),
		grpc.WithStatsHandler(sentHandler{}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		grpc.WithStaticStreamWindowSize(streamWindowBytes),
		grpc.WithStaticConnWindowSize(connWindowBytes),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(s.cfg.MaxRecvBytes), grpc.MaxCallSendMsgSize(math.MaxInt32)),
	}
	if s.cfg.KeepaliveTime > 0 {
		opts = append(opts, grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: s.cfg.KeepaliveTime, Timeout: s.cfg.KeepaliveTimeout, PermitWithoutStream: s.cfg.PermitWithoutStream,
		}))
	}
	conn, err := grpc.NewClient("passthrough:///"+e.address, opts...)
	if err != nil {
		return nil, fmt.Errorf("endpoint %q: %w", text, err)
	}
	m := &Member{set: s, Endpoint: text, Secure: e.secure, conn: conn, connected: make(chan struct{}, 1)}
	var ctx context.Context
	ctx, m.stop = context.WithCancel(s.ctx)
	m.serving, m.unfit = context.WithCancel(ctx)
	go m.keepConnected(ctx)
	go m.probe(ctx)
	return m, nil
}

// keepConnected follows the connection, and connects again at once when it has ended.
func (m *Member) keepConnected(ctx context.Context) {
	for {
		state := m.conn.GetState()
		switch state {
		case connectivity.Idle:
			m.conn.Connect()
		case connectivity.Shutdown:
			m.update(func() { m.ready = false })
			return
		}
		m.update(func() {
			// A connection that is new is believed in until a probe says otherwise.
			if ready := state == connectivity.Ready; ready != m.ready {
				m.ready, m.healthy = ready, ready
				if !ready {
					m.lost = time.Now()
				}
			}
		})
		if state == connectivity.Ready {
			select {
			case m.connected <- struct{}{}:
			default:
			}
		}
		if !m.conn.WaitForStateChange(ctx, state) {
			return
		}
	}
}

// probe asks the member how it is, and, as soon as there is a connection, of which cluster.
func (m *Member) probe(ctx context.Context) {
	client := pb.NewMaintenanceClient(m.conn)
	timer := time.NewTimer(rand.N(ProbeInterval))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.connected:
			bounded, cancel := context.WithTimeout(ctx, probeTimeout)
			if r, err := client.Status(bounded, &pb.StatusRequest{}); err == nil {
				m.update(func() { m.cluster = r.Header.GetClusterId() })
			}
			cancel()
			continue
		case <-timer.C:
		}
		if m.conn.GetState() == connectivity.Ready {
			bounded, cancel := context.WithTimeout(ctx, probeTimeout)
			r, err := client.Status(bounded, &pb.StatusRequest{})
			cancel()
			m.update(func() {
				switch code := status.Code(err); {
				case code == codes.Unavailable || code == codes.DeadlineExceeded || code == codes.Canceled:
					m.healthy = false
				case err != nil: // it answers
					m.healthy = true
				default:
					m.healthy, m.leader, m.cluster = r.Leader != 0 && !r.IsLearner, r.Leader, r.Header.GetClusterId()
				}
			})
		}
		timer.Reset(ProbeInterval)
	}
}

// update changes the member's state and tells who waits, and who should not go on waiting for it.
func (m *Member) update(change func()) {
	s := m.set
	s.mu.Lock()
	defer s.mu.Unlock()
	wasFit, wasReady, wasOf := m.fit(), m.ready, m.cluster
	change()
	told := wasReady != m.ready
	if m.cluster != wasOf || m.other {
		told = s.setOthersApart(m) || told
	}
	if m.passOn(wasFit) || told {
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

// setOthersApart finds out anew which members are of another cluster than most, or, of as many, than
// the first. It reports whether another one than m is fit now, or is no longer. REQUIRES: mu is held.
func (s *Set) setOthersApart(m *Member) (changed bool) {
	count, most := map[uint64]int{}, uint64(0)
	for _, o := range s.members {
		if o.cluster != 0 && (o.ready || time.Since(o.lost) < s.forget) {
			count[o.cluster]++
		}
	}
	for _, o := range s.members {
		if count[o.cluster] > count[most] {
			most = o.cluster
		}
	}
	for _, o := range s.members {
		wasFit, wasOther := o.fit(), o.other
		if o.other = most != 0 && o.cluster != 0 && o.cluster != most; o.other && !wasOther {
			s.logger.Error("an endpoint is of another cluster; no calls go to it", zap.String("endpoint", o.Endpoint),
				zap.String("cluster-id", fmt.Sprintf("%x", o.cluster)), zap.String("cluster-id-of-others", fmt.Sprintf("%x", most)))
		}
		if o != m {
			changed = o.passOn(wasFit) || changed
		}
	}
	return changed
}

// passOn reports whether the member is fit now and was not, or the other way round, and ends what
// runs on one that is no longer. REQUIRES: the Set's mu is held.
func (m *Member) passOn(wasFit bool) (changed bool) {
	s, fit := m.set, m.fit()
	switch {
	case wasFit && !fit:
		s.logger.Warn("a member is not fit for calls; they go to others", zap.String("endpoint", m.Endpoint), zap.Bool("connected", m.ready))
		m.unfit()
	case fit && !wasFit:
		s.logger.Info("calls go to a member", zap.String("endpoint", m.Endpoint))
		if m.serving.Err() != nil {
			m.serving, m.unfit = context.WithCancel(s.ctx)
		}
	}
	return fit != wasFit
}

// fit reports whether calls may go to the member. REQUIRES: the Set's mu is held.
func (m *Member) fit() bool { return m.ready && m.healthy && !m.other }

// A Client is one connection of a client of the proxy: where its calls go, and what it has seen.
type Client struct {
	member atomic.Pointer[Member]
	// seen is the newest revision that a response had.
	seen *atomic.Int64
}

// NewClient makes a Client. It never reads an older state than seen has: nil is a floor of its own,
// one that several share is a floor for all of them.
func NewClient(seen *atomic.Int64) *Client {
	if seen == nil {
		seen = new(atomic.Int64)
	}
	return &Client{seen: seen}
}

// Pick is the member that a client's next call goes to, but none of except if there is another one.
// ctx bounds the wait for one, as does Config.Patience. The context ends when the member is not fit
// for calls any more.
func (s *Set) Pick(ctx context.Context, c *Client, except ...*Member) (*Member, context.Context, error) {
	var expired <-chan time.Time
	for {
		s.mu.Lock()
		m := s.choose(c, except)
		changed := s.changed
		var serving context.Context
		if m != nil {
			serving = m.serving
		}
		s.mu.Unlock()
		if m != nil {
			if c != nil {
				c.member.Store(m)
			}
			return m, serving, nil
		}
		if expired == nil {
			timer := time.NewTimer(s.cfg.Patience)
			defer timer.Stop()
			expired = timer.C
		}
		select {
		case <-changed:
		case <-expired:
			return nil, nil, status.Error(codes.Unavailable, "belay proxy: no member of the cluster can be reached")
		case <-ctx.Done():
			return nil, nil, status.FromContextError(ctx.Err()).Err()
		}
	}
}

// choose takes the client's member, or the next in turn, of the fit ones; a member that is merely
// connected if there are none: it has the error for the client. nil: there is none.
func (s *Set) choose(c *Client, except []*Member) *Member {
	if c != nil {
		// Nearly always; the lists below take memory for each call.
		if m := c.member.Load(); m != nil && m.fit() && slices.Contains(s.members, m) && !slices.Contains(except, m) {
			return m
		}
	}
	var fit, ready, excepted []*Member
	for _, m := range s.members {
		switch {
		case !m.ready || m.other:
		case slices.Contains(except, m):
			excepted = append(excepted, m)
		case m.healthy:
			fit = append(fit, m)
		default:
			ready = append(ready, m)
		}
	}
	for _, candidates := range [][]*Member{fit, ready, excepted} {
		if len(candidates) == 0 {
			continue
		}
		if c != nil && slices.Contains(candidates, c.member.Load()) {
			return c.member.Load()
		}
		return candidates[int(s.next.Add(1))%len(candidates)]
	}
	return nil
}

// Endpoints are the members' addresses, as flags and the member list have them.
func (s *Set) Endpoints() (list []string) {
	for _, m := range s.Members() {
		list = append(list, m.Endpoint)
	}
	return list
}

// Members are the members; their number is that of the upstream connections.
func (s *Set) Members() []*Member {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.members)
}

// Fit is how many members calls may go to.
func (s *Set) Fit() (count int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.members {
		if m.fit() {
			count++
		}
	}
	return count
}

package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-semver/semver"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/peers"
)

// Handler is what the transport needs of the member it serves. All methods may be called from many
// goroutines at once.
type Handler interface {
	// Process takes one raft message that a peer sent. It owns m and everything that m refers to.
	// Each stream of each peer is read by one goroutine, which waits for Process: a slow Process
	// delays only that stream of that peer. Proposals have a goroutine of their own, because they
	// may wait for a leader.
	Process(ctx context.Context, m *raftpb.Message) error
	// ReportUnreachable and ReportSnapshot are called from a goroutine of their own, never from
	// Send.
	ReportUnreachable(id uint64)
	ReportSnapshot(id uint64, ok bool)
	// IsRemoved reports whether a member was removed for good. It is called for every message.
	IsRemoved(id uint64) bool
	// ReceiveSnapshot stores the stream body, then steps m. kind is KindBelay or KindEtcd: the
	// format of the body. An error fails the sender's request; the sender tries again.
	ReceiveSnapshot(ctx context.Context, m *raftpb.Message, body io.Reader, kind string) error
}

// SnapshotSource opens the body that goes with a MsgSnap, in the form that the receiver reads. It
// may replace the snapshot in m by exactly what it streams. It is called in the goroutine that sends
// the snapshot; ctx ends when the snapshot need not be sent any more.
type SnapshotSource interface {
	OpenSnapshot(ctx context.Context, m *raftpb.Message, to Software) (body io.ReadCloser, err error)
}

// Software is what a member runs. Version is that of etcd's protocol, which is etcd's own if Kind is
// KindEtcd.
type Software struct {
	Kind    Kind
	Version *semver.Version // nil: not known, and not asked for where Kind is KindBelay
}

// Kind says what software a peer runs, and so whose snapshot format it reads.
type Kind = string

const (
	KindUnknown Kind = ""
	KindBelay   Kind = "belay"
	KindEtcd    Kind = "etcd"
)

// Config configures a Transport. Zero values mean the default in brackets.
type Config struct {
	MemberID  uint64
	ClusterID uint64
	URLs      []string // this member's advertised peer URLs, told to peers
	Version   string   // Belay's own version, told to peers ["dev"]

	Logger  *zap.Logger    // [none]
	Metrics *Metrics       // [unregistered]
	Handler Handler        // required
	Source  SnapshotSource // nil: a MsgSnap fails at once

	DialTimeout  time.Duration // [2 s]; etcd: 1 s + election timeout
	ReadTimeout  time.Duration // [5 s] a stream without a byte for so long is lost; link heartbeats come every third of it
	WriteTimeout time.Duration // [5 s] for each 256 KiB

	TLS         func() *tls.Config                                                // client side of https and unixs peers, for each connection
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error) // [net.Dialer]

	BulkQueueBytes    int64 // [64 MiB] appends and proposals waiting for one peer
	ControlQueueBytes int64 // [8 MiB] all other messages waiting for one peer
	QueueMessages     int   // [4096] messages in either queue
	PostBytes         int64 // [64 MiB] bodies of POSTs to /raft being received from one peer, and so the largest message of a POST
	PostBytesInAll    int64 // [128 MiB] the same, of all peers
	MaxSnapshots      int   // [4] snapshots sent at the same time

	// Started reports whether this member knows another one as having run: every request to that
	// member carries the answer. A member that has lost its data, and whose own requests get no
	// answer, learns it in this way before it handles the request. [requests do not carry it]
	Started func(id uint64) bool

	// Removed is called, perhaps often and from any goroutine, when a peer says that this member
	// was removed from the cluster. It must not call Stop.
	Removed func(err error)
}

func (c *Config) setDefaults() {
	if c.Version == "" {
		c.Version = "dev"
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics(nil)
	}
	if c.Removed == nil {
		c.Removed = func(error) {}
	}
	setDefault(&c.DialTimeout, 2*time.Second)
	setDefault(&c.ReadTimeout, 5*time.Second)
	setDefault(&c.WriteTimeout, 5*time.Second)
	setDefault(&c.BulkQueueBytes, 64<<20)
	setDefault(&c.ControlQueueBytes, 8<<20)
	setDefault(&c.QueueMessages, 4096)
	setDefault(&c.PostBytes, 64<<20)
	setDefault(&c.PostBytesInAll, max(128<<20, 2*c.PostBytes))
	setDefault(&c.MaxSnapshots, 4)
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Transport carries raft messages between this member and its peers over HTTP.
type Transport struct {
	cfg     Config
	logger  *zap.Logger
	id      string // cfg.MemberID in hexadecimal
	cluster string // cfg.ClusterID in hexadecimal

	streamRT   *peers.RoundTripper // streams: read and write timeouts, no reuse
	requestRT  *peers.RoundTripper // pipeline, probes, Client
	snapshotRT *peers.RoundTripper // snapshots: large write buffer

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // every goroutine of the transport except those of the HTTP server

	reports   *reporter
	snapshots chan struct{} // a slot for each snapshot being sent
	receiving atomic.Bool   // a snapshot is being received
	reception *reception    // of POSTs to /raft

	refusals, badMessages occasionally // lines of the log about them

	// peers is replaced, never modified: Send reads it without a lock.
	peers   atomic.Pointer[map[uint64]*peer]
	mu      sync.Mutex // guards replacing peers, and the rest
	stopped bool
	asking  bool      // members are being asked about an unknown sender
	asked   time.Time // when that ended last
}

// New makes a Transport without peers. It listens nowhere: serve Handler on the peer listener.
func New(cfg Config) *Transport {
	cfg.setDefaults()
	t := &Transport{
		cfg:     cfg,
		logger:  cfg.Logger,
		id:      command.IDText(cfg.MemberID),
		cluster: command.IDText(cfg.ClusterID),
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	options := peers.Options{TLS: cfg.TLS, Dial: cfg.DialContext, DialTimeout: cfg.DialTimeout, WriteTimeout: cfg.WriteTimeout, WriteBuffer: 4 << 10}
	request, stream, snapshot := options, options, options
	request.Reuse = true
	stream.ReadTimeout = cfg.ReadTimeout
	snapshot.WriteTimeout, snapshot.WriteBuffer = snapshotStall, 256<<10
	t.requestRT, t.streamRT, t.snapshotRT = peers.NewRoundTripper(request), peers.NewRoundTripper(stream), peers.NewRoundTripper(snapshot)
	t.reports = newReporter(cfg.Handler)
	t.reception = &reception{maxBytes: cfg.PostBytesInAll, maxPeerBytes: cfg.PostBytes, by: make(map[uint64]*receptionOf)}
	t.snapshots = make(chan struct{}, t.cfg.MaxSnapshots)
	t.peers.Store(&map[uint64]*peer{})
	t.wg.Go(func() { t.reports.run(t.ctx) })
	return t
}

// Client is an HTTP client for the peers' other paths (/members, /version, /leases, ...). It has no
// timeout of its own: use a request with a context. Its requests name the sender, as all of the
// peer protocol do, and share connections with those.
func (t *Transport) Client() *http.Client { return peers.NewClient(named{t}) }

// named adds the sender to requests that lack it, and passes them to requestRT.
type named struct{ t *Transport }

func (n named) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Header.Get(peers.HeaderFrom) == "" {
		r = r.Clone(r.Context()) // a RoundTripper leaves its request as it is
		r.Header.Set(peers.HeaderFrom, n.t.id)
		r.Header.Set(peers.HeaderCluster, n.t.cluster)
	}
	return n.t.requestRT.RoundTrip(r)
}

// Open opens a connection to a peer on which protocol is spoken; see peers.Open. The transport does
// not end it.
func (t *Transport) Open(ctx context.Context, id uint64, path, protocol string) (io.ReadWriteCloser, error) {
	p := t.peer(id)
	if p == nil {
		return nil, fmt.Errorf("no peer has the id %s", command.IDText(id))
	}
	u := p.urls.pick()
	if u == nil {
		return nil, errNoURL
	}
	target := *u
	target.Path = path
	header := http.Header{}
	t.setRequestHeaders(header, id)
	header.Set(peers.HeaderTo, p.name)
	conn, err := peers.Open(ctx, t.requestRT, target.String(), header, protocol)
	if err != nil && !errors.Is(err, peers.ErrNotUpgraded) {
		p.urls.unreachable(u)
	}
	return conn, err
}

// Send queues messages to their peers and returns at once. A message without room is dropped and
// its peer reported unreachable, so that raft slows down. The transport reads the messages until
// they are written: neither they nor their entries may change any more.
func (t *Transport) Send(msgs []*raftpb.Message) {
	peers := *t.peers.Load()
	for _, m := range msgs {
		to := m.GetTo()
		if to == 0 {
			continue // left out on purpose by its maker
		}
		p := peers[to]
		if p == nil {
			t.logger.Debug("ignored message send request; unknown remote peer target",
				zap.String("type", m.GetType().String()), zap.String("unknown-target-peer-id", command.IDText(to)))
			if m.GetType() == raftpb.MsgSnap {
				t.reports.snapshot(to, false)
			}
			continue
		}
		p.send(m)
	}
}

// AddPeer starts talking to a member. Adding it again changes nothing.
func (t *Transport) AddPeer(id uint64, urls []string) { t.add(id, urls, false) }

// AddRemote makes a member reachable from which a request came and which this one does not know as
// a member yet. A remote has no streams. AddPeer replaces it.
func (t *Transport) AddRemote(id uint64, urls []string) { t.add(id, urls, true) }

// maxRemotes bounds the members that we remember only because of their requests.
const maxRemotes = 64

func (t *Transport) add(id uint64, urls []string, remote bool) {
	if id == 0 || id == t.cfg.MemberID {
		return
	}
	parsed, err := parseURLs(urls)
	if err != nil {
		t.logger.Warn("failed to parse the URLs of a peer",
			zap.String("local-member-id", t.id), zap.String("remote-peer-id", command.IDText(id)), zap.Strings("remote-peer-urls", urls), zap.Error(err))
		if remote {
			return
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped {
		return
	}
	peers := *t.peers.Load()
	old := peers[id]
	if old != nil && (remote || !old.remote) {
		return
	}
	if remote {
		n := 0
		for _, p := range peers {
			if p.remote {
				n++
			}
		}
		if n >= maxRemotes || t.cfg.Handler.IsRemoved(id) {
			return
		}
	}
	p := newPeer(t, id, parsed, remote)
	if old != nil {
		old.stop()
		p.kind.Store(old.kind.Load())
	}
	peers = maps.Clone(peers)
	peers[id] = p
	t.peers.Store(&peers)
	msg := "added remote peer"
	if remote {
		msg = "added new remote peer"
	}
	p.start()
	t.logger.Info(msg, zap.String("local-member-id", t.id), zap.String("remote-peer-id", command.IDText(id)), zap.Strings("remote-peer-urls", urls))
}

// UpdatePeer replaces a peer's URLs. Established streams are kept.
func (t *Transport) UpdatePeer(id uint64, urls []string) {
	p := t.peer(id)
	if p == nil {
		return
	}
	parsed, err := parseURLs(urls)
	if err != nil {
		t.logger.Warn("failed to parse the URLs of a peer",
			zap.String("local-member-id", t.id), zap.String("remote-peer-id", command.IDText(id)), zap.Strings("remote-peer-urls", urls), zap.Error(err))
		return
	}
	p.urls.update(parsed)
	t.logger.Info("updated remote peer", zap.String("local-member-id", t.id),
		zap.String("updated-remote-peer-id", command.IDText(id)), zap.Strings("updated-remote-peer-urls", urls))
}

// RemovePeer ends the connections to a peer. It does not wait for them.
func (t *Transport) RemovePeer(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	peers := *t.peers.Load()
	p := peers[id]
	if p == nil {
		t.logger.Warn("skipped removing already removed peer", zap.String("local-member-id", t.id), zap.String("removed-remote-peer-id", command.IDText(id)))
		return
	}
	peers = maps.Clone(peers)
	delete(peers, id)
	t.peers.Store(&peers)
	p.stop()
	t.logger.Info("removed remote peer", zap.String("local-member-id", t.id), zap.String("removed-remote-peer-id", command.IDText(id)))
}

func (t *Transport) peer(id uint64) *peer { return (*t.peers.Load())[id] }

// ActiveSince is the time since which the connection to a peer has worked without a break; the zero
// time if it does not work now.
func (t *Transport) ActiveSince(id uint64) time.Time {
	if p := t.peer(id); p != nil {
		return p.status.activeSince()
	}
	return time.Time{}
}

// Queued is how many bytes wait to be written to peers' streams, about.
func (t *Transport) Queued() (n int64) {
	for _, p := range *t.peers.Load() {
		if !p.remote {
			n += p.bulk.box.queued() + p.control.box.queued()
		}
	}
	return n
}

// RTT is the smoothed time of a request to a peer and back; 0 if none was answered yet.
func (t *Transport) RTT(id uint64) time.Duration {
	if p := t.peer(id); p != nil {
		return time.Duration(p.rtt.Load())
	}
	return 0
}

// PeerKind returns what software a peer runs, by its last handshake: every request and answer of
// Belay carries a header of its own.
func (t *Transport) PeerKind(id uint64) Kind {
	if p := t.peer(id); p != nil {
		return p.kindNow()
	}
	return KindUnknown
}

// Stop ends all connections and waits for the transport's goroutines. Handler methods that are
// running get a canceled context. The transport sends nothing afterwards.
func (t *Transport) Stop() {
	t.mu.Lock()
	t.stopped = true
	peers := *t.peers.Load()
	t.peers.Store(&map[uint64]*peer{})
	t.mu.Unlock()
	for _, p := range peers {
		p.stop()
	}
	t.cancel()
	t.wg.Wait()
	t.streamRT.CloseIdleConnections()
	t.requestRT.CloseIdleConnections()
	t.snapshotRT.CloseIdleConnections()
}

func (t *Transport) removed(err error) { t.cfg.Removed(err) }

func (t *Transport) setRequestHeaders(h http.Header, to uint64) {
	h.Set(peers.HeaderFrom, t.id)
	h.Set(peers.HeaderVersion, etcdVersion)
	h.Set(peers.HeaderMinCluster, minClusterVersion)
	h.Set(peers.HeaderCluster, t.cluster)
	h.Set(peers.HeaderBelay, t.cfg.Version)
	if t.cfg.Started != nil {
		you := peers.YouNew
		if t.cfg.Started(to) {
			you = peers.YouStarted
		}
		h.Set(peers.HeaderYou, you)
	}
	if len(t.cfg.URLs) > 0 {
		h.Set(peers.HeaderPeerURLs, strings.Join(t.cfg.URLs, ","))
	}
}

func (t *Transport) setResponseHeaders(h http.Header) {
	h.Set(peers.HeaderCluster, t.cluster)
	h.Set(peers.HeaderBelay, t.cfg.Version)
}

// kindOf reads the marker of Belay in a peer's headers.
func kindOf(h http.Header) Kind {
	if h.Get(peers.HeaderBelay) != "" {
		return KindBelay
	}
	return KindEtcd
}

// A reporter calls the handler's Report methods from its own goroutine, so that Send may be called
// from the loop that they report to.
type reporter struct {
	h    Handler
	wake chan struct{} // capacity 1

	mu           sync.Mutex
	unreachables map[uint64]bool
	results      map[uint64]bool // of snapshots, by peer
}

func newReporter(h Handler) *reporter {
	return &reporter{h: h, wake: make(chan struct{}, 1), unreachables: map[uint64]bool{}, results: map[uint64]bool{}}
}

func (r *reporter) unreachable(id uint64) {
	r.mu.Lock()
	r.unreachables[id] = true
	r.mu.Unlock()
	r.signal()
}

func (r *reporter) snapshot(id uint64, ok bool) {
	r.mu.Lock()
	r.results[id] = ok
	r.mu.Unlock()
	r.signal()
}

func (r *reporter) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *reporter) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		}
		r.mu.Lock()
		unreachables, results := r.unreachables, r.results
		r.unreachables, r.results = map[uint64]bool{}, map[uint64]bool{}
		r.mu.Unlock()
		for id := range unreachables {
			r.h.ReportUnreachable(id)
		}
		for id, ok := range results {
			r.h.ReportSnapshot(id, ok)
		}
	}
}

// KnownBy returns what a peer's last request said about this member: whether the peer knows it as
// having run. said is false for a peer that has sent no request, or does not run Belay.
func (t *Transport) KnownBy(id uint64) (started, said bool) {
	p := t.peer(id)
	if p == nil {
		return false, false
	}
	you := p.you.Load()
	if you == nil {
		return false, false
	}
	return *you == peers.YouStarted, true
}

package transport

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// Handler is what the transport needs of the member it serves.
type Handler interface {
	// Process takes one raft message that a peer sent. It owns m and all it refers to.
	Process(ctx context.Context, m *raftpb.Message) error
	ReportUnreachable(id uint64)
	ReportSnapshot(id uint64, ok bool)
	IsRemoved(id uint64) bool
	// ReceiveSnapshot stores the stream body (of the given kind) durably enough to step m, then steps m.
	ReceiveSnapshot(ctx context.Context, m *raftpb.Message, body io.Reader, kind string) error
}

// SnapshotSource opens the body that goes with a MsgSnap. It may replace the
// snapshot metadata in m by exactly what it streams.
type SnapshotSource interface {
	OpenSnapshot(m *raftpb.Message) (body io.ReadCloser, err error)
}

// Config is what a Transport is made of.
type Config struct {
	MemberID  uint64
	ClusterID uint64
	URLs      []string // this member's advertised peer URLs
	Version   string   // Belay's own version, told to peers

	Logger  *zap.Logger
	Metrics *Metrics
	Handler Handler
	Source  SnapshotSource

	DialTimeout  time.Duration
	ReadTimeout  time.Duration
	WriteTimeout time.Duration
	TLS          *tls.Config
	DialContext  func(ctx context.Context, network, addr string) (net.Conn, error)
	// Removed is called when a peer says that this member is no longer part of the cluster.
	Removed func(err error)
}

// Kind says what software a peer runs.
type Kind string

const (
	KindUnknown Kind = ""
	KindBelay   Kind = "belay"
	KindEtcd    Kind = "etcd"
)

// Transport carries raft messages between members.
type Transport struct{ cfg Config }

func New(cfg Config) *Transport { return &Transport{cfg: cfg} }

func (t *Transport) Handler() http.Handler               { return http.NewServeMux() }
func (t *Transport) Client() *http.Client                { return &http.Client{} }
func (t *Transport) Send(msgs []*raftpb.Message)         {}
func (t *Transport) AddPeer(id uint64, urls []string)    {}
func (t *Transport) AddRemote(id uint64, urls []string)  {}
func (t *Transport) UpdatePeer(id uint64, urls []string) {}
func (t *Transport) RemovePeer(id uint64)                {}
func (t *Transport) ActiveSince(id uint64) time.Time     { return time.Time{} }
func (t *Transport) RTT(id uint64) time.Duration         { return 0 }
func (t *Transport) PeerKind(id uint64) Kind             { return KindUnknown }
func (t *Transport) Stop()                               {}

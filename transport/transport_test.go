package transport

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/peers"
)

// member is a Handler and a SnapshotSource that remember.
type member struct {
	messages    chan *raftpb.Message
	unreachable chan uint64
	reports     chan bool
	process     func(m *raftpb.Message) error // nil: to messages
	receive     func(m *raftpb.Message, body io.Reader, kind string) error
	open        func(m *raftpb.Message, to Software) (io.ReadCloser, error)

	mu   sync.Mutex
	gone map[uint64]bool
}

func newMember() *member {
	return &member{messages: make(chan *raftpb.Message, 1<<16), unreachable: make(chan uint64, 1<<10), reports: make(chan bool, 16), gone: map[uint64]bool{}}
}

func (h *member) Process(ctx context.Context, m *raftpb.Message) error {
	if h.process != nil {
		return h.process(m)
	}
	select {
	case h.messages <- m:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (h *member) ReportUnreachable(id uint64) {
	select {
	case h.unreachable <- id:
	default:
	}
}
func (h *member) ReportSnapshot(id uint64, ok bool) { h.reports <- ok }
func (h *member) IsRemoved(id uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.gone[id]
}
func (h *member) remove(id uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gone[id] = true
}
func (h *member) ReceiveSnapshot(ctx context.Context, m *raftpb.Message, body io.Reader, kind string) error {
	return h.receive(m, body, kind)
}
func (h *member) OpenSnapshot(_ context.Context, m *raftpb.Message, to Software) (io.ReadCloser, error) {
	return h.open(m, to)
}

// a node is a Transport on a listener.
type node struct {
	*Transport
	h    *member
	url  string
	reg  *prometheus.Registry
	logs *observer.ObservedLogs
	srv  *httptest.Server
}

const testCluster = 0xc1

func startNode(t *testing.T, id uint64, change func(*Config)) *node {
	t.Helper()
	return startNodeOn(t, id, change, httptest.NewServer)
}

// startNodeOn starts a node on a server of any kind.
func startNodeOn(t *testing.T, id uint64, change func(*Config), serve func(http.Handler) *httptest.Server) *node {
	t.Helper()
	n := &node{h: newMember(), reg: prometheus.NewRegistry()}
	core, logs := observer.New(zap.DebugLevel)
	n.logs = logs
	var mu sync.Mutex
	var handler http.Handler
	n.srv = serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		h := handler
		mu.Unlock()
		h.ServeHTTP(w, r)
	}))
	n.url = n.srv.URL
	cfg := Config{MemberID: id, ClusterID: testCluster, URLs: []string{n.url}, Logger: zap.New(core), Metrics: NewMetrics(n.reg), Handler: n.h, Source: n.h}
	if change != nil {
		change(&cfg)
	}
	n.Transport = New(cfg)
	mu.Lock()
	handler = n.Transport.Handler()
	mu.Unlock()
	t.Cleanup(func() {
		n.Transport.Stop()
		n.srv.CloseClientConnections()
		n.srv.Close()
	})
	return n
}

// join makes nodes peers of each other and waits until all streams are established.
func join(t *testing.T, nodes ...*node) {
	t.Helper()
	for _, a := range nodes {
		for _, b := range nodes {
			a.AddPeer(b.cfg.MemberID, []string{b.url})
		}
	}
	for _, a := range nodes {
		for _, b := range nodes {
			if a != b {
				eventually(t, "streams to stand", func() bool {
					p := a.peer(b.cfg.MemberID)
					return p.bulk.attached.Load() && p.control.attached.Load()
				})
			}
		}
	}
}

// eventually polls cond for at most ten seconds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waited 30 s for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// valueOf reads a counter.
func valueOf(c prometheus.Metric) float64 {
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		panic(err)
	}
	return m.GetCounter().GetValue()
}

// await takes the next value of c within ten seconds.
func await[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		t.Fatalf("waited ten seconds for %s", what)
		panic("unreachable")
	}
}

func message(typ raftpb.MessageType, from, to, index uint64, data ...[]byte) *raftpb.Message {
	m := &raftpb.Message{Type: typ.Enum(), From: new(from), To: new(to), Term: new(uint64(1)), LogTerm: new(uint64(1)), Index: new(index)}
	for i, d := range data {
		m.Entries = append(m.Entries, &raftpb.Entry{Index: new(index + 1 + uint64(i)), Term: new(uint64(1)), Data: d})
	}
	return m
}

// plainWriter is a ResponseWriter that does not give its connection away, as with HTTP/2.
type plainWriter struct{ w http.ResponseWriter }

func (p plainWriter) Header() http.Header         { return p.w.Header() }
func (p plainWriter) Write(b []byte) (int, error) { return p.w.Write(b) }
func (p plainWriter) WriteHeader(code int)        { p.w.WriteHeader(code) }
func (p plainWriter) Flush()                      { p.w.(http.Flusher).Flush() }

func TestMessagesArriveInOrder(t *testing.T) {
	insecure := func(c *Config) { c.TLS = func() *tls.Config { return &tls.Config{InsecureSkipVerify: true} } }
	for _, kind := range []struct {
		name   string
		change func(*Config)
		serve  func(http.Handler) *httptest.Server
	}{
		{"plain", nil, httptest.NewServer},
		{"TLS", insecure, httptest.NewTLSServer},
		{"no hijack", nil, func(h http.Handler) *httptest.Server {
			return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(plainWriter{w}, r) }))
		}},
	} {
		t.Run(kind.name, func(t *testing.T) {
			messagesArriveInOrder(t, startNodeOn(t, 1, kind.change, kind.serve), startNodeOn(t, 2, kind.change, kind.serve))
		})
	}
}

func messagesArriveInOrder(t *testing.T, a, b *node) {
	join(t, a, b)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	var sent []*raftpb.Message
	for i := range uint64(200) {
		m := message(raftpb.MsgApp, 1, 2, i, []byte(fmt.Sprint(i)))
		if i%50 == 0 {
			m.Entries[0].Data = big
		}
		m.Commit = new(i)
		sent = append(sent, m)
		a.Send([]*raftpb.Message{m})
	}
	for _, want := range sent {
		if got := await(t, "an append", b.h.messages); !proto.Equal(got, want) {
			t.Fatalf("got append at %d with %d bytes, want %d with %d", got.GetIndex(), proto.Size(got), want.GetIndex(), proto.Size(want))
		}
	}
	for i, typ := range []raftpb.MessageType{raftpb.MsgAppResp, raftpb.MsgHeartbeat, raftpb.MsgVote, raftpb.MsgReadIndex, raftpb.MsgProp} {
		m := message(typ, 2, 1, uint64(i))
		if typ == raftpb.MsgProp {
			m.Entries = []*raftpb.Entry{{Data: []byte("x")}}
		}
		b.Send([]*raftpb.Message{m})
		if got := await(t, typ.String(), a.h.messages); !proto.Equal(got, m) {
			t.Fatalf("got %v, want %v", got, m)
		}
	}
	if a.ActiveSince(2).IsZero() || b.ActiveSince(1).IsZero() {
		t.Fatal("the peers are not active")
	}
	eventually(t, "a round trip", func() bool { return a.RTT(2) > 0 && b.RTT(1) > 0 })
	if a.PeerKind(2) != KindBelay || a.PeerKind(9) != KindUnknown {
		t.Fatalf("kinds: %q and %q", a.PeerKind(2), a.PeerKind(9))
	}
	if n := valueOf(a.cfg.Metrics.sentBytes.WithLabelValues("2")); n < 4<<20 {
		t.Fatalf("etcd_network_peer_sent_bytes_total{To=2} is %v", n)
	}
	if n := valueOf(b.cfg.Metrics.receivedBytes.WithLabelValues("1")); n < 4<<20 {
		t.Fatalf("etcd_network_peer_received_bytes_total{From=1} is %v", n)
	}
}

// TestHeartbeatsOvertakeAppends: a member that is stuck in appends still gets heartbeats, and a
// queue full of appends refuses none.
func TestHeartbeatsOvertakeAppends(t *testing.T) {
	a, b := startNode(t, 1, func(c *Config) { c.BulkQueueBytes = 1 << 20 }), startNode(t, 2, nil)
	stuck := make(chan struct{})
	t.Cleanup(func() { close(stuck) }) // before the nodes stop, which wait for their handlers
	heartbeats := make(chan *raftpb.Message, 100)
	b.h.process = func(m *raftpb.Message) error {
		if m.GetType() == raftpb.MsgApp {
			<-stuck
			return nil
		}
		heartbeats <- m
		return nil
	}
	join(t, a, b)
	// Far more than the queue, the sockets' buffers and the reader hold. What is refused is counted
	// within Send: to wait for the report of it would mean to send as fast as possible until
	// another goroutine gets its turn.
	data := make([]byte, 1<<20)
	const most = 256
	refused := func() int { return int(valueOf(a.peer(2).m.sentFailures)) }
	sent := 0
	for ; refused() == 0; sent++ {
		if sent == most {
			t.Fatalf("an append queue of 1 MiB took %d appends of 1 MiB", sent)
		}
		start := time.Now()
		a.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, uint64(sent), data)})
		if took := time.Since(start); took > 10*time.Second {
			t.Fatalf("Send took %v", took)
		}
	}
	if id := await(t, "the report of a peer that takes no more", a.h.unreachable); id != 2 {
		t.Fatalf("peer %d is reported", id)
	}
	for i := range uint64(20) {
		a.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 1, 2, i)})
		if m := await(t, "a heartbeat behind appends", heartbeats); m.GetIndex() != i {
			t.Fatalf("heartbeat %d came as %d", i, m.GetIndex())
		}
	}
	if a.logs.FilterMessage("dropped internal Raft message since sending buffer is full").Len() == 0 {
		t.Fatal("drops were not logged")
	}
}

// TestProposalsWaitAlone: a proposal that waits for a leader holds up nothing else.
func TestProposalsWaitAlone(t *testing.T) {
	a, b := startNode(t, 1, nil), startNode(t, 2, nil)
	stuck := make(chan struct{})
	others := make(chan *raftpb.Message, 100)
	b.h.process = func(m *raftpb.Message) error {
		if m.GetType() == raftpb.MsgProp {
			<-stuck
			return errors.New("no leader")
		}
		others <- m
		return nil
	}
	join(t, a, b)
	a.Send([]*raftpb.Message{{Type: raftpb.MsgProp.Enum(), From: new(uint64(1)), To: new(uint64(2)), Entries: []*raftpb.Entry{{Data: []byte("p")}}}})
	a.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, 1), message(raftpb.MsgHeartbeat, 1, 2, 2)})
	await(t, "a message", others)
	await(t, "a message", others)
	close(stuck)
}

// TestPeerComesBack: a dead peer is reported, found again, and gets messages again.
func TestPeerComesBack(t *testing.T) {
	a := startNode(t, 1, nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	start := func(ln net.Listener) (*Transport, *member, *http.Server) {
		h := newMember()
		tr := New(Config{MemberID: 2, ClusterID: testCluster, Handler: h})
		tr.AddPeer(1, []string{a.url})
		srv := &http.Server{Handler: tr.Handler()}
		go func() { _ = srv.Serve(ln) }()
		return tr, h, srv
	}
	b, h, srv := start(ln)
	a.AddPeer(2, []string{"http://" + addr})
	a.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 1, 2, 1)}) // by pipeline or stream
	await(t, "the first message", h.messages)
	eventually(t, "streams to stand", func() bool { p := a.peer(2); return p.bulk.attached.Load() && p.control.attached.Load() })

	b.Stop()
	_ = srv.Close()
	eventually(t, "the peer to be inactive", func() bool {
		a.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 1, 2, 2)})
		return a.ActiveSince(2).IsZero()
	})
	if id := await(t, "a report", a.h.unreachable); id != 2 {
		t.Fatalf("member %d was reported", id)
	}

	ln, err = net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	b, h, srv = start(ln)
	defer srv.Close()
	defer b.Stop()
	eventually(t, "a message to arrive again", func() bool {
		a.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 1, 2, 3)})
		select {
		case <-h.messages:
			return true
		default:
			return false
		}
	})
	eventually(t, "the peer to be active", func() bool { return !a.ActiveSince(2).IsZero() })
	for _, msg := range []string{"peer became active", "peer became inactive (message send to peer failed)", "lost TCP streaming connection with remote peer"} {
		if a.logs.FilterMessage(msg).Len() == 0 {
			t.Errorf("no log line %q", msg)
		}
	}
}

// TestSilentPeer: a peer that accepts and never sends is given up after the read timeout.
func TestSilentPeer(t *testing.T) {
	a := startNode(t, 1, func(c *Config) { c.ReadTimeout = 150 * time.Millisecond })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dials := make(chan net.Conn, 100)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			dials <- c
		}
	}()
	a.AddPeer(2, []string{"http://" + ln.Addr().String()})
	for range 6 {
		await(t, "another dial", dials)
	}
}

// TestIdleStreamsLive: link heartbeats keep idle streams up beyond the read timeout.
func TestIdleStreamsLive(t *testing.T) {
	short := func(c *Config) { c.ReadTimeout = 4 * time.Second } // a busy machine holds a heartbeat up
	a, b := startNode(t, 1, short), startNode(t, 2, short)
	join(t, a, b)
	before := valueOf(b.cfg.Metrics.receivedBytes.WithLabelValues("1"))
	time.Sleep(6 * time.Second) // the time itself is what is tested
	if n := a.logs.FilterMessage("lost TCP streaming connection with remote peer").Len(); n != 0 {
		t.Fatalf("idle streams were lost %d times", n)
	}
	if after := valueOf(b.cfg.Metrics.receivedBytes.WithLabelValues("1")); after == before {
		t.Fatal("no link heartbeat came")
	}
}

// TestStatusCodes asks for everything that must be refused, and compares with etcd's answers.
func TestStatusCodes(t *testing.T) {
	a := startNode(t, 1, nil)
	a.AddPeer(2, []string{"http://127.0.0.1:1"})
	a.h.remove(3)
	a.h.process = func(m *raftpb.Message) error { return errors.New("cannot") }
	good := map[string]string{"X-Server-From": "2", "X-Server-Version": "3.7.3", "X-Min-Cluster-Version": "3.0.0", "X-Etcd-Cluster-ID": "c1", "X-Raft-To": "1"}
	msg := func(from, to uint64, typ raftpb.MessageType) string {
		return string(marshalMessage(message(typ, from, to, 1)))
	}
	for _, c := range []struct {
		name, method, path, body string
		change                   map[string]string
		code                     int
		answer                   string
	}{
		{"probe", "GET", "/raft/probing", "", nil, 200, `{"OK":true`},
		{"pipeline by GET", "GET", "/raft", "", nil, 405, "Method Not Allowed"},
		{"stream by POST", "POST", "/raft/stream/message/2", "", nil, 405, "Method Not Allowed"},
		{"other cluster", "POST", "/raft", "", map[string]string{"X-Etcd-Cluster-ID": "c2"}, 412, "cluster ID mismatch"},
		{"other cluster, stream", "GET", "/raft/stream/msgapp/2", "", map[string]string{"X-Etcd-Cluster-ID": ""}, 412, "cluster ID mismatch"},
		{"too old", "POST", "/raft", "", map[string]string{"X-Server-Version": "2.3.8"}, 412, "incompatible version"},
		{"no version", "POST", "/raft", "", map[string]string{"X-Server-Version": ""}, 412, "incompatible version"},
		{"bad version", "POST", "/raft", "", map[string]string{"X-Server-Version": "new"}, 412, "incompatible version"},
		{"wants more", "POST", "/raft/snapshot", "", map[string]string{"X-Min-Cluster-Version": "4.0.0"}, 412, "incompatible version"},
		{"bad path", "GET", "/raft/stream/other/2", "", nil, 404, "invalid path"},
		{"bad id", "GET", "/raft/stream/message/xyz", "", nil, 404, "invalid from"},
		{"removed", "GET", "/raft/stream/message/3", "", nil, 410, "removed member"},
		{"unknown", "GET", "/raft/stream/message/77", "", map[string]string{"X-PeerURLs": "http://127.0.0.1:2,nonsense"}, 404, "error sender not found"},
		{"for another", "GET", "/raft/stream/message/2", "", map[string]string{"X-Raft-To": "5"}, 412, "to field mismatch"},
		{"garbage", "POST", "/raft", "\xff\xff", nil, 400, "error unmarshalling raft message"},
		{"message for another", "POST", "/raft", msg(2, 5, raftpb.MsgVote), nil, 412, `{"message":"cannot process message to mismatch member"}`},
		{"message of the removed", "POST", "/raft", msg(3, 1, raftpb.MsgVote), nil, 403, `{"message":"cannot process message from removed member"}`},
		{"snapshot without body", "POST", "/raft", msg(2, 1, raftpb.MsgSnap), nil, 400, "wrong raft message type"},
		{"refused by raft", "POST", "/raft", msg(2, 1, raftpb.MsgVote), nil, 500, "error processing raft message"},
		{"snapshot, cut short", "POST", "/raft/snapshot", "\x00\x00\x00\x00\x00\x00\x00\x09abc", nil, 400, "failed to decode raft message (unexpected EOF)"},
		{"snapshot, far too long", "POST", "/raft/snapshot", "\x00\x00\x00\x10\x00\x00\x00\x00", nil, 400, "failed to decode raft message (transport: message exceeds the size limit: 68719476736 bytes, limit 67108864)"},
		{"snapshot, wrong type", "POST", "/raft/snapshot", "\x00\x00\x00\x00\x00\x00\x00\x06\x08\x05\x10\x01\x18\x02", nil, 400, "wrong raft message type"},
	} {
		req, err := http.NewRequest(c.method, a.url+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range good {
			req.Header.Set(k, v)
		}
		for k, v := range c.change {
			req.Header.Set(k, v)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.code || !strings.HasPrefix(string(body), c.answer) {
			t.Errorf("%s: %d %q, want %d %q", c.name, resp.StatusCode, body, c.code, c.answer)
		}
		if c.code != 405 && c.path != "/raft/probing" && resp.Header.Get("X-Etcd-Cluster-ID") != "c1" {
			t.Errorf("%s: no cluster id in the answer", c.name)
		}
	}
}

// TestAnotherMemberAnswers: members have changed places, so messages reach the wrong one. Nobody
// was removed.
func TestAnotherMemberAnswers(t *testing.T) {
	etcds := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // what etcd answers
		w.Header().Set("X-Etcd-Cluster-ID", "c1")
		http.Error(w, `{"message":"cannot process message to mismatch member"}`, http.StatusForbidden)
	}))
	t.Cleanup(etcds.Close)
	third := startNode(t, 3, nil)
	for _, url := range []string{third.url, etcds.URL} {
		a := startNode(t, 1, func(c *Config) { c.Removed = func(err error) { t.Errorf("%s: %v", url, err) } })
		a.h.open = func(*raftpb.Message, Software) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader("x")), nil
		}
		a.AddPeer(2, []string{url})
		third.AddPeer(1, []string{a.url})
		a.Send([]*raftpb.Message{message(raftpb.MsgVote, 1, 2, 1)})
		await(t, "a report that nobody took it", a.h.unreachable)
		snapshot := message(raftpb.MsgSnap, 1, 2, 1)
		snapshot.Snapshot = &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(5)), Term: new(uint64(1))}}
		a.Send([]*raftpb.Message{snapshot})
		await(t, "a report that the snapshot failed", a.h.reports)
	}
}

// TestRemovedMemberLearnsIt by the stream's 410 and by the pipeline's 403.
func TestRemovedMemberLearnsIt(t *testing.T) {
	removed := make(chan error, 100)
	a, b := startNode(t, 1, nil), startNode(t, 2, func(c *Config) {
		c.Removed = func(err error) {
			select {
			case removed <- err:
			default:
			}
		}
	})
	a.h.remove(2)
	b.AddPeer(1, []string{a.url})
	if err := await(t, "the news", removed); !errors.Is(err, errMemberRemoved) {
		t.Fatal(err)
	}
	b.Send([]*raftpb.Message{message(raftpb.MsgVote, 2, 1, 1)})
	eventually(t, "a refused message to be reported", func() bool { return len(b.h.unreachable) > 0 })
}

// TestRemote: a member that does not know the sender yet still answers it.
func TestRemote(t *testing.T) {
	a, b := startNode(t, 1, nil), startNode(t, 2, nil)
	a.AddPeer(2, []string{b.url})
	a.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 1, 2, 7)})
	await(t, "a message from an unknown member", b.h.messages)
	eventually(t, "the remote to be known", func() bool { p := b.peer(1); return p != nil && p.remote })
	b.Send([]*raftpb.Message{message(raftpb.MsgHeartbeatResp, 2, 1, 7)})
	await(t, "the answer", a.h.messages)
	b.AddPeer(1, []string{a.url})
	if b.peer(1).remote {
		t.Fatal("AddPeer did not replace the remote")
	}
	eventually(t, "streams to stand", func() bool { return a.peer(2).bulk.attached.Load() && b.peer(1).control.attached.Load() })
	b.RemovePeer(1)
	b.RemovePeer(1)
	if b.peer(1) != nil || b.logs.FilterMessage("skipped removing already removed peer").Len() != 1 {
		t.Fatal("the peer was not removed")
	}
}

// slowBody counts how often it was closed.
type slowBody struct {
	io.Reader
	closed chan struct{}
}

func (b *slowBody) Close() error { close(b.closed); return nil }

func TestSnapshot(t *testing.T) {
	a, b := startNode(t, 1, nil), startNode(t, 2, nil)
	join(t, a, b)
	const size = 8 << 20
	m := func() *raftpb.Message {
		m := message(raftpb.MsgSnap, 1, 2, 0)
		m.Snapshot = &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(10)), Term: new(uint64(1))}}
		return m
	}
	var body *slowBody
	open := func() {
		a.h.open = func(m *raftpb.Message, to Software) (io.ReadCloser, error) {
			if to.Kind != KindBelay {
				t.Errorf("the receiver is taken for %q", to.Kind)
			}
			m.Snapshot.Metadata.Index = new(uint64(12)) // what it streams is newer
			body = &slowBody{Reader: io.LimitReader(zeros{}, size), closed: make(chan struct{})}
			return body, nil
		}
	}
	type got struct {
		index uint64
		n     int64
		kind  string
	}
	received := make(chan got, 1)
	var fail error
	b.h.receive = func(m *raftpb.Message, r io.Reader, kind string) error {
		n, err := io.Copy(io.Discard, r)
		if err != nil {
			return err
		}
		received <- got{m.GetSnapshot().GetMetadata().GetIndex(), n, kind}
		return fail
	}
	for range 2 {
		open()
		a.Send([]*raftpb.Message{m()})
		if g := await(t, "the snapshot", received); g != (got{12, size, KindBelay}) {
			t.Fatalf("received %+v", g)
		}
		if !await(t, "a report", a.h.reports) {
			t.Fatal("success was reported as failure")
		}
		await(t, "the body to be closed", body.closed)
	}
	fail = errors.New("disk full")
	open()
	a.Send([]*raftpb.Message{m()})
	await(t, "the snapshot", received)
	if await(t, "a report", a.h.reports) {
		t.Fatal("a refused snapshot was reported as success")
	}
	await(t, "the body to be closed", body.closed)
	a.h.open = func(*raftpb.Message, Software) (io.ReadCloser, error) { return nil, errors.New("no view") }
	a.Send([]*raftpb.Message{m()})
	if await(t, "a report", a.h.reports) {
		t.Fatal("a snapshot that did not open was reported as success")
	}
	if s, f := valueOf(a.cfg.Metrics.snapshotSend.WithLabelValues("2")), valueOf(a.cfg.Metrics.snapshotSendFailures.WithLabelValues("2")); s != 2 || f != 2 {
		t.Fatalf("%v sent, %v failed", s, f)
	}
	if r := valueOf(b.cfg.Metrics.snapshotReceive.WithLabelValues("1")); r != 2 {
		t.Fatalf("%v received", r)
	}
}

// zeros reads zeros for ever.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// TestSnapshotsBounded: of many snapshots at once, some are refused at once, and no append waits.
func TestSnapshotsBounded(t *testing.T) {
	a := startNode(t, 1, func(c *Config) { c.MaxSnapshots = 1 })
	b, c := startNode(t, 2, nil), startNode(t, 3, nil)
	join(t, a, b)
	join(t, a, c)
	release := make(chan struct{})
	receive := func(m *raftpb.Message, r io.Reader, kind string) error {
		_, err := io.Copy(io.Discard, r)
		<-release
		return err
	}
	b.h.receive, c.h.receive = receive, receive
	a.h.open = func(*raftpb.Message, Software) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("x")), nil
	}
	for _, to := range []uint64{2, 2, 3} { // the second to 2 joins the first
		m := message(raftpb.MsgSnap, 1, to, 0)
		m.Snapshot = &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(10)), Term: new(uint64(1))}}
		a.Send([]*raftpb.Message{m})
	}
	if await(t, "the refusal", a.h.reports) {
		t.Fatal("two snapshots at once")
	}
	a.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, 3, []byte("x"))})
	await(t, "an append beside a snapshot", b.h.messages)
	close(release)
	if !await(t, "the report", a.h.reports) {
		t.Fatal("the first snapshot failed")
	}
}

// TestSnapshotForEtcd: a peer without Belay's marker is sent what its version of etcd reads, and
// never the store's own stream, which it would write down as its database.
func TestSnapshotForEtcd(t *testing.T) {
	a := startNode(t, 1, nil)
	var version atomic.Pointer[string]
	bodies := make(chan string, 1)
	etcd := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch text := version.Load(); {
		case r.URL.Path == "/raft/probing":
			fmt.Fprintf(w, `{"OK":true,"Now":%q}`, time.Now().Format(time.RFC3339Nano))
		case r.URL.Path == "/version" && text != nil:
			fmt.Fprintf(w, `{"etcdserver":%q,"etcdcluster":"3.5.0"}`, *text)
		case r.URL.Path == "/raft/snapshot":
			if r.Header.Get(peers.HeaderSnapshot) != "" {
				t.Error("the body is marked as Belay's")
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			bodies <- string(body[len(body)-8:])
			w.WriteHeader(http.StatusNoContent)
		default:
			http.Error(w, "error sender not found", http.StatusNotFound)
		}
	}))
	defer etcd.Close()
	var closed chan struct{}
	a.h.open = func(m *raftpb.Message, to Software) (io.ReadCloser, error) {
		if to.Kind != KindEtcd || to.Version.String() != "3.5.35" {
			t.Errorf("the receiver is taken for %v", to)
		}
		closed = make(chan struct{})
		return &slowBody{Reader: strings.NewReader("database"), closed: closed}, nil
	}
	a.AddPeer(2, []string{etcd.URL})
	send := func() bool {
		m := message(raftpb.MsgSnap, 1, 2, 0)
		m.Snapshot = &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(10)), Term: new(uint64(1))}}
		a.Send([]*raftpb.Message{m})
		return await(t, "the report", a.h.reports)
	}
	for _, text := range []string{"", "nonsense"} { // nothing is opened for who does not say what it is
		if text != "" {
			version.Store(&text)
		}
		if send() {
			t.Fatalf("a snapshot was sent to a peer of version %q", text)
		}
	}
	version.Store(new("3.5.35"))
	if !send() {
		t.Fatal("failure")
	}
	if body := await(t, "the body", bodies); body != "database" {
		t.Fatalf("the body ends with %q", body)
	}
	await(t, "the body to be closed", closed)
	if a.PeerKind(2) != KindEtcd {
		t.Fatalf("kind %q", a.PeerKind(2))
	}
}

// TestStop: nothing is left running, whatever was under way.
func TestStop(t *testing.T) {
	a, b := startNode(t, 1, nil), startNode(t, 2, nil)
	join(t, a, b)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for _, n := range []*node{a, b} {
		wg.Go(func() {
			for i := uint64(0); ; i++ {
				select {
				case <-stop:
					return
				default:
					n.Send([]*raftpb.Message{message(raftpb.MsgApp, n.cfg.MemberID, 3-n.cfg.MemberID, i, []byte("x")), message(raftpb.MsgHeartbeat, n.cfg.MemberID, 3-n.cfg.MemberID, i)})
				}
			}
		})
	}
	await(t, "traffic", b.h.messages)
	a.Stop()
	b.Stop()
	close(stop)
	wg.Wait()
	a.AddPeer(3, []string{"http://127.0.0.1:1"})
	if a.peer(3) != nil {
		t.Fatal("a stopped transport took a peer")
	}
}

func TestURLs(t *testing.T) {
	for _, c := range []struct {
		in   []string
		want string
	}{
		{nil, "no valid URLs given"},
		{[]string{"ftp://a:1"}, "URL scheme must be http, https, unix, or unixs: ftp://a:1"},
		{[]string{"http://a"}, `URL address does not have the form "host:port": http://a`},
		{[]string{"http://a:1/"}, "URL must not contain a path: http://a:1/"},
		{[]string{"http://b:1", "unix://x", " https://a:1"}, "[http://b:1 https://a:1 unix://x]"},
	} {
		urls, err := parseURLs(c.in)
		got := fmt.Sprint(urls)
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%v: %s, want %s", c.in, got, c.want)
		}
	}
	// A peer moves on to its next address when one fails.
	urls, _ := parseURLs([]string{"http://a:1", "http://b:1"})
	p := &urlPicker{urls: urls}
	first := p.pick()
	p.unreachable(urls[1]) // not the one in use
	if p.pick() != first {
		t.Error("an idle address failed and the picker moved")
	}
	p.unreachable(first)
	if p.pick() == first {
		t.Error("the picker stays with a dead address")
	}
}

func BenchmarkSend(b *testing.B) {
	for _, c := range []struct{ size, window int }{{256, 256}, {1 << 20, 8}} {
		b.Run(fmt.Sprint(c.size), func(b *testing.B) { benchmarkSend(b, c.size, c.window) })
	}
}

// benchmarkSend sends appends of one entry over loopback, window of them under way.
func benchmarkSend(b *testing.B, size, window int) {
	data := make([]byte, size)
	h := newMember()
	arrived := make(chan struct{}, 1<<16)
	h.process = func(m *raftpb.Message) error { arrived <- struct{}{}; return nil }
	recv := New(Config{MemberID: 2, ClusterID: testCluster, Handler: h})
	defer recv.Stop()
	srvR := httptest.NewServer(recv.Handler())
	defer srvR.Close()
	send := New(Config{MemberID: 1, ClusterID: testCluster, Handler: newMember()})
	defer send.Stop()
	srvS := httptest.NewServer(send.Handler())
	defer srvS.Close()
	send.AddPeer(2, []string{srvR.URL})
	recv.AddPeer(1, []string{srvS.URL})
	for !send.peer(2).bulk.attached.Load() {
		time.Sleep(time.Millisecond)
	}
	b.ReportAllocs()
	b.SetBytes(int64(size))
	inFlight := 0
	for i := uint64(0); b.Loop(); i++ {
		send.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, i, data)})
		if inFlight++; inFlight == window {
			<-arrived
			inFlight--
		}
	}
	for ; inFlight > 0; inFlight-- {
		<-arrived
	}
}

// TestDriftIsSure: an answer that came late tells nothing of the peer's clock, which was read at any
// time of the round trip.
func TestDriftIsSure(t *testing.T) {
	for _, c := range []struct {
		drift, rtt time.Duration
		sure       bool
	}{
		{1012 * time.Millisecond, 2030 * time.Millisecond, false}, // of a peer that stood still
		{-1500 * time.Millisecond, 3 * time.Second, false},
		{1100 * time.Millisecond, time.Millisecond, true},
		{-1100 * time.Millisecond, time.Millisecond, true},
		{900 * time.Millisecond, time.Millisecond, false},
		{3 * time.Second, 2 * time.Second, true},
	} {
		if got := driftIsSure(c.drift, c.rtt); got != c.sure {
			t.Errorf("drift %v, round trip %v: %v", c.drift, c.rtt, got)
		}
	}
}

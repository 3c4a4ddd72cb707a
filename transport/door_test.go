package transport

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/peers"
)

// goodHeaders are those of member 2 to member 1.
func goodHeaders() map[string]string {
	return map[string]string{"X-Server-From": "2", "X-Server-Version": "3.7.3", "X-Min-Cluster-Version": "3.0.0", "X-Etcd-Cluster-ID": "c1",
		"X-Raft-To": "1", "X-PeerURLs": "http://127.0.0.1:1"}
}

// head is a request without its body, of which length bytes are announced.
func head(method, path string, length int64, change map[string]string) string {
	headers := goodHeaders()
	for k, v := range change {
		headers[k] = v
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n", method, path, length)
	for k, v := range headers {
		if v != "" {
			fmt.Fprintf(&b, "%s: %s\r\n", k, v)
		}
	}
	return b.String() + "\r\n"
}

// raw opens a connection to a node and writes text on it.
func raw(t *testing.T, n *node, text string) net.Conn {
	t.Helper()
	return rawFrom(t, n, "127.0.0.1", text)
}

func rawFrom(t *testing.T, n *node, host, text string) net.Conn {
	t.Helper()
	c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(host)}}).Dial("tcp", strings.TrimPrefix(n.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	return c
}

// answered reads the answer on a connection.
func answered(t *testing.T, c net.Conn) (code int, body string) {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return resp.StatusCode, ""
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func post(t *testing.T, n *node, m *raftpb.Message, change map[string]string) (code int) {
	t.Helper()
	b := marshalMessage(m)
	code, _ = answered(t, raw(t, n, head("POST", "/raft", int64(len(b)), change)+string(b)))
	return code
}

func (n *node) refused(why string) float64 {
	return valueOf(n.cfg.Metrics.refused.WithLabelValues(why))
}

// membersServer answers as the /members of a member does.
func membersServer(t *testing.T, members string) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/members" {
			http.NotFound(w, r)
			return
		}
		_, _ = io.WriteString(w, members)
	}))
	t.Cleanup(s.Close)
	return s
}

// A sender that is no member is answered before a byte of the body has come.
func TestStrangersAreRefusedByHeaders(t *testing.T) {
	a := startNode(t, 1, nil)
	a.AddPeer(2, []string{membersServer(t, `[{"id":1,"peerURLs":["http://127.0.0.1:1"]},{"id":2}]`).URL})
	a.h.remove(3)
	for _, c := range []struct {
		name   string
		change map[string]string
		code   int
		why    string
	}{
		{"no sender", map[string]string{"X-Server-From": ""}, 404, refusedSender},
		{"a sender that is no id", map[string]string{"X-Server-From": "zz"}, 404, refusedSender},
		{"nobody", map[string]string{"X-Server-From": "0"}, 404, refusedSender},
		{"this member", map[string]string{"X-Server-From": "1"}, 404, refusedSender},
		{"an unknown member", map[string]string{"X-Server-From": "77"}, 404, refusedSender},
		{"a removed member", map[string]string{"X-Server-From": "3"}, 403, refusedRemoved},
		{"another cluster", map[string]string{"X-Etcd-Cluster-ID": "c2"}, 412, refusedCluster},
		{"no cluster", map[string]string{"X-Etcd-Cluster-ID": ""}, 412, refusedCluster},
		{"another version", map[string]string{"X-Server-Version": "2.0.0"}, 412, refusedVersion},
		{"for another member", map[string]string{"X-Raft-To": "5"}, 412, refusedReceiver},
	} {
		for _, path := range []string{"/raft", "/raft/snapshot"} {
			before := a.refused(c.why)
			conn := raw(t, a, head("POST", path, 400<<20, c.change))
			code, body := answered(t, conn)
			if code != c.code {
				t.Errorf("%s, %s: %d %q", c.name, path, code, body)
			}
			if n, err := conn.Read(make([]byte, 1)); err == nil {
				t.Errorf("%s, %s: %d bytes more", c.name, path, n)
			} else if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
				t.Errorf("%s, %s: the connection was left open", c.name, path)
			}
			if a.refused(c.why) != before+1 {
				t.Errorf("%s, %s: it was not counted", c.name, path)
			}
		}
	}
	for name, change := range map[string]map[string]string{
		"no sender": {"X-Server-From": ""}, "another sender": {"X-Server-From": "4"},
	} {
		if code, body := answered(t, raw(t, a, head("GET", "/raft/stream/message/2", 0, change))); code != 412 {
			t.Errorf("a stream, %s: %d %q", name, code, body)
		}
	}
	if len(a.h.messages) != 0 || a.peer(77) != nil {
		t.Error("the stranger is known")
	}
}

// A member that was away meets one that has joined meanwhile: the others tell who that is.
func TestUnknownSenders(t *testing.T) {
	const list = `[{"id":7,"peerURLs":["http://127.0.0.1:7"]},{"id":2,"peerURLs":["http://127.0.0.1:2"]}]`
	good, gone := membersServer(t, list), membersServer(t, list)
	gone.Close()
	vote := func(from uint64) (*raftpb.Message, map[string]string) {
		return message(raftpb.MsgVote, from, 1, 1), map[string]string{"X-Server-From": command.IDText(from)}
	}
	t.Run("told by a member", func(t *testing.T) {
		a := startNode(t, 1, nil)
		a.AddPeer(2, []string{good.URL})
		a.AddPeer(3, []string{gone.URL})
		m, headers := vote(7)
		if code := post(t, a, m, headers); code != 404 {
			t.Errorf("at first: %d", code)
		}
		eventually(t, "the member to be let in", func() bool { return post(t, a, m, headers) == 204 })
		if p := a.peer(7); p == nil || p.urls.pick().String() != "http://127.0.0.1:7" {
			t.Error("its address is not what the others say")
		}
		m, headers = vote(8)
		for range 3 {
			if code := post(t, a, m, headers); code != 404 {
				t.Errorf("a stranger: %d", code)
			}
			eventually(t, "the members to have been asked", func() bool {
				a.mu.Lock()
				defer a.mu.Unlock()
				return !a.asking && time.Since(a.asked) > askInterval
			})
		}
	})
	t.Run("nobody tells", func(t *testing.T) {
		a := startNode(t, 1, nil)
		a.AddPeer(3, []string{gone.URL})
		m, headers := vote(7)
		eventually(t, "the member to be let in", func() bool { return post(t, a, m, headers) == 204 })
	})
	t.Run("nobody is known", func(t *testing.T) {
		a := startNode(t, 1, nil)
		if code := post(t, a, message(raftpb.MsgVote, 7, 1, 1), map[string]string{"X-Server-From": "7", "X-PeerURLs": ""}); code != 404 {
			t.Errorf("one that could not be answered: %d", code)
		}
		m, headers := vote(7)
		if code := post(t, a, m, headers); code != 204 {
			t.Errorf("%d", code)
		}
	})
}

// Announced bytes cost nothing, received bytes are bounded for each sender and in all, and others
// are not affected.
func TestPostsAreBounded(t *testing.T) {
	const perPeer, inAll = 4 << 20, 6 << 20
	a := startNode(t, 1, func(c *Config) { c.PostBytes, c.PostBytesInAll = perPeer, inAll })
	for id := uint64(2); id < 6; id++ {
		a.AddPeer(id, []string{"http://127.0.0.1:1"})
	}
	held := func() int64 {
		a.reception.mu.Lock()
		defer a.reception.mu.Unlock()
		return a.reception.bytes
	}
	piece := strings.Repeat("x", 1<<20)
	var open []net.Conn
	for i := range 40 {
		from := map[string]string{"X-Server-From": command.IDText(uint64(2 + i%2))}
		c := raw(t, a, head("POST", "/raft", 400<<20, from))
		open = append(open, c)
		_, _ = io.WriteString(c, piece) // refused meanwhile: that is what is tried
		if n := held(); n > inAll {
			t.Fatalf("%d bytes are held", n)
		}
	}
	eventually(t, "some to be refused", func() bool { return a.refused(refusedBusy) >= 10 })
	if n := held(); n > inAll {
		t.Errorf("%d bytes are held", n)
	}
	// A member that has nothing to do with it.
	if code := post(t, a, message(raftpb.MsgVote, 5, 1, 1), map[string]string{"X-Server-From": "5"}); code != 204 {
		t.Errorf("another member: %d", code)
	}
	for _, c := range open {
		c.Close()
	}
	eventually(t, "all to be given back", func() bool {
		a.reception.mu.Lock()
		defer a.reception.mu.Unlock()
		return a.reception.bytes == 0 && a.reception.posts == 0 && len(a.reception.by) == 0
	})
	// As large as may be, and a little larger.
	large := message(raftpb.MsgProp, 2, 1, 0, make([]byte, perPeer/2-postChunk))
	if code := post(t, a, large, nil); code != 204 {
		t.Errorf("a large one: %d", code)
	}
	large = message(raftpb.MsgProp, 2, 1, 0, make([]byte, perPeer))
	if code := post(t, a, large, nil); code != 503 {
		t.Errorf("one that is too large: %d", code)
	}
	// Of unknown length.
	b := marshalMessage(message(raftpb.MsgProp, 2, 1, 0, make([]byte, 1<<20)))
	text := strings.Replace(head("POST", "/raft", 0, nil), "Content-Length: 0", "Transfer-Encoding: chunked", 1)
	if code, body := answered(t, raw(t, a, fmt.Sprintf("%s%x\r\n%s\r\n0\r\n\r\n", text, len(b), b))); code != 204 {
		t.Errorf("in chunks: %d %q", code, body)
	}
}

// One snapshot is received at a time, and its sender has the place before it sends.
func TestSnapshotSlot(t *testing.T) {
	a := startNode(t, 1, nil)
	a.AddPeer(2, []string{membersServer(t, `[]`).URL})
	a.AddPeer(3, []string{"http://127.0.0.1:1"})
	first := raw(t, a, head("POST", "/raft/snapshot", 1<<40, nil)+"\x00\x00")
	eventually(t, "the first to have the place", a.receiving.Load)
	if code, _ := answered(t, raw(t, a, head("POST", "/raft/snapshot", 1<<40, map[string]string{"X-Server-From": "3"}))); code != 503 {
		t.Errorf("a second: %d", code)
	}
	first.Close()
	eventually(t, "the place to be free", func() bool { return !a.receiving.Load() })
	if code, _ := answered(t, raw(t, a, head("POST", "/raft/snapshot", 1<<40, map[string]string{"X-Server-From": "9"}))); code != 404 {
		t.Errorf("a stranger: %d", code)
	}
	// Sent by one member in the name of another.
	m := message(raftpb.MsgSnap, 3, 1, 1)
	m.Snapshot = &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(5)), Term: new(uint64(1))}}
	b := marshalMessage(m)
	text := head("POST", "/raft/snapshot", int64(8+len(b)), nil) + string(be(nil, uint64(len(b)))) + string(b)
	if code, body := answered(t, raw(t, a, text)); code != 400 {
		t.Errorf("in another's name: %d %q", code, body)
	}
}

// deadlines is a ResponseWriter that remembers its read deadlines.
type deadlines struct {
	http.ResponseWriter
	set []time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error { d.set = append(d.set, t); return nil }

// A sender of a byte now and then does not keep the place for snapshots; a slow disk here does not
// lose it.
func TestTricklingSnapshotEnds(t *testing.T) {
	d := &deadlines{ResponseWriter: httptest.NewRecorder()}
	s := &stallReader{r: zeros{}, rc: http.NewResponseController(d)}
	for range 100 {
		if _, err := s.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		s.left -= time.Second / 4 // so long each byte took
	}
	if left := time.Until(d.set[99]); left > snapshotStall-24*time.Second {
		t.Errorf("after 100 bytes in 25 s there are %v left", left)
	}
	for range snapshotStep/1024 + 1 {
		if _, err := s.Read(make([]byte, 1024)); err != nil {
			t.Fatal(err)
		}
	}
	if left := time.Until(d.set[len(d.set)-1]); left < snapshotStall-20*time.Second {
		t.Errorf("after 64 KiB more there are %v left", left)
	}
}

// A message comes from the member that sends it, unless it was meant for the leader and passed on.
func TestMessagesAreOfTheirSender(t *testing.T) {
	a := startNode(t, 1, nil)
	a.AddPeer(2, []string{"http://127.0.0.1:1"})
	a.AddPeer(3, []string{"http://127.0.0.1:1"})
	try := func(m *raftpb.Message) int { t.Helper(); return post(t, a, m, nil) }
	for typ := range raftpb.MessageType_name {
		typ := raftpb.MessageType(typ)
		want := 204
		switch typ {
		case raftpb.MsgHup, raftpb.MsgBeat, raftpb.MsgUnreachable, raftpb.MsgSnapStatus, raftpb.MsgCheckQuorum, raftpb.MsgForgetLeader,
			raftpb.MsgStorageAppend, raftpb.MsgStorageAppendResp, raftpb.MsgStorageApply, raftpb.MsgStorageApplyResp, raftpb.MsgSnap:
			want = 400
		}
		if got := try(message(typ, 2, 1, 1)); got != want {
			t.Errorf("%s of its sender: %d", typ, got)
		}
		passedOn := typ == raftpb.MsgProp || typ == raftpb.MsgReadIndex || typ == raftpb.MsgTransferLeader
		for from, may := range map[uint64]bool{3: passedOn, 1: passedOn, 77: false, 0: false} {
			want := 400
			if may {
				want = 204
			}
			if got := try(message(typ, from, 1, 1)); got != want {
				t.Errorf("%s from %d, sent by 2: %d", typ, from, got)
			}
		}
	}
	for _, typ := range []int32{-1, 24, 1 << 30} {
		if got := try(message(raftpb.MessageType(typ), 2, 1, 1)); got != 400 {
			t.Errorf("type %d: %d", typ, got)
		}
	}
}

// The same holds on streams.
func TestStreamedMessagesAreOfTheirSender(t *testing.T) {
	liar := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/raft/stream/message/") {
			http.NotFound(w, r)
			return
		}
		var b batch
		for _, m := range []*raftpb.Message{
			message(raftpb.MsgHeartbeat, 3, 1, 1), message(raftpb.MsgVote, 1, 1, 1), message(raftpb.MsgHup, 2, 1, 1),
			message(raftpb.MessageType(-5), 2, 1, 1), message(raftpb.MsgHeartbeat, 2, 1, 42),
		} {
			messageEncoder{}.encode(&b, m)
		}
		b.pieces(func(p []byte) { _, _ = w.Write(p) })
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	a := startNode(t, 1, nil)
	a.AddPeer(3, []string{"http://127.0.0.1:1"})
	a.AddPeer(2, []string{liar.URL})
	t.Cleanup(func() { liar.CloseClientConnections(); liar.Close() })
	if m := await(t, "the honest message", a.h.messages); m.GetFrom() != 2 || m.GetIndex() != 42 {
		t.Errorf("got %v", m)
	}
	if n := a.refused(refusedMessage); n != 4 {
		t.Errorf("%v were counted", n)
	}
}

// A stream goes to whoever asks for it as its member; that is logged, at most once a second.
func TestStreamsTakenOver(t *testing.T) {
	a := startNode(t, 1, nil)
	a.AddPeer(2, []string{"http://127.0.0.1:1"})
	ask := func(host string) (net.Conn, int) {
		t.Helper()
		c := rawFrom(t, a, host, head("GET", "/raft/stream/message/2", 0, nil))
		code, _ := answered(t, c)
		return c, code
	}
	stands := func(c net.Conn) bool { // of a stream that gets nothing but heartbeats
		w := a.peer(2).control.standing.Load()
		return w != nil && w.address == c.LocalAddr().String()
	}
	taken := func() float64 { return valueOf(a.cfg.Metrics.takenOver.WithLabelValues("2")) }
	first, code := ask("127.0.0.1")
	if code != 200 {
		t.Fatalf("%d", code)
	}
	eventually(t, "the first stream", func() bool { return stands(first) })
	begin := time.Now()
	if _, code := ask("127.0.0.2"); code != 503 && time.Since(begin) < streamHold {
		t.Errorf("another address, at once: %d", code)
	}
	var second net.Conn
	eventually(t, "the stream to be given to another address", func() bool {
		second, code = ask("127.0.0.2")
		return code == 200
	})
	eventually(t, "the second stream", func() bool { return stands(second) })
	if n := taken(); n != 1 {
		t.Errorf("%v were counted", n)
	}
	if a.logs.FilterMessageSnippet("is taken over from another address").Len() != 1 {
		t.Error("it was not told")
	}
	// The same member dials again: it need not wait.
	third, code := ask("127.0.0.2")
	if code != 200 {
		t.Errorf("the same address: %d", code)
	}
	eventually(t, "the third stream", func() bool { return stands(third) })
	if n := taken(); n != 2 {
		t.Errorf("%v were counted", n)
	}
	// One that is gone is nobody's.
	third.Close()
	eventually(t, "the end of the third stream", func() bool { return !a.peer(2).control.standing.Load().stands() })
	fourth, code := ask("127.0.0.1")
	if code != 200 {
		t.Errorf("after the end of the one before: %d", code)
	}
	eventually(t, "the fourth stream", func() bool { return stands(fourth) })
	if n := taken(); n != 2 {
		t.Errorf("%v were counted", n)
	}
}

// What is for members alone.
func TestMembersOnly(t *testing.T) {
	a := startNode(t, 1, nil)
	a.AddPeer(2, []string{membersServer(t, `[]`).URL})
	ok := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })
	for _, c := range []struct {
		anonymous bool
		headers   map[string]string
		code      int
	}{
		{false, nil, 404},
		{true, nil, 204},
		{false, map[string]string{"X-Server-From": "2"}, 204},
		{true, map[string]string{"X-Server-From": "2", "X-Etcd-Cluster-Id": "c1"}, 204},
		{true, map[string]string{"X-Server-From": "77"}, 403},
		{false, map[string]string{"X-Server-From": "77"}, 404},
		{true, map[string]string{"X-Etcd-Cluster-Id": "c2"}, 412},
		{false, map[string]string{"X-Server-From": "2", "X-Etcd-Cluster-Id": "c2"}, 412},
	} {
		r := httptest.NewRequest("POST", "/", strings.NewReader("body"))
		for k, v := range c.headers {
			r.Header.Set(k, v)
		}
		w := httptest.NewRecorder()
		a.Members(ok, c.anonymous).ServeHTTP(w, r)
		if w.Code != c.code {
			t.Errorf("%v, anonymous %v: %d", c.headers, c.anonymous, w.Code)
		}
	}
	// The transport's own client is let in.
	b := startNodeOn(t, 2, nil, func(http.Handler) *httptest.Server { return httptest.NewServer(a.Members(ok, false)) })
	req, err := http.NewRequestWithContext(context.Background(), "GET", b.url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := b.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 204 {
		t.Errorf("%d", resp.StatusCode)
	}
}

// A member of another cluster is refused in etcd's words on every path: operators look for them.
func TestOtherClusterInEtcdsWords(t *testing.T) {
	ok := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })
	for path, handler := range map[string]func(*node) http.Handler{
		"/raft/stream/message/2": func(a *node) http.Handler { return a.Handler() },
		"/raft":                  func(a *node) http.Handler { return a.Handler() },
		"/leases":                func(a *node) http.Handler { return a.Members(ok, true) },
		"/belay/ping":            func(a *node) http.Handler { return a.Members(ok, false) },
	} {
		a := startNode(t, 1, nil)
		method := "GET"
		if path == "/raft" {
			method = "POST"
		}
		r := httptest.NewRequest(method, path, nil)
		r.Header.Set(peers.HeaderFrom, "2")
		r.Header.Set(peers.HeaderCluster, "c2")
		r.Header.Set(peers.HeaderVersion, "3.7.0")
		w := httptest.NewRecorder()
		handler(a).ServeHTTP(w, r)
		lines := a.logs.FilterMessage("request cluster ID mismatch").All()
		if w.Code != http.StatusPreconditionFailed || len(lines) != 1 || lines[0].ContextMap()["remote-peer-cluster-id"] != "c2" || lines[0].ContextMap()["remote-address"] != r.RemoteAddr {
			t.Errorf("%s: %d, log %v", path, w.Code, a.logs.All())
		}
	}
}

func TestReceptionUnderLoad(t *testing.T) {
	c := &reception{maxBytes: 1000, maxPeerBytes: 600, by: map[uint64]*receptionOf{}}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for range 2000 {
				id := uint64(r.IntN(3))
				if !c.begin(id) {
					continue
				}
				held := int64(0)
				for range r.IntN(4) {
					if n := int64(r.IntN(300)); c.grow(id, n) {
						held += n
					}
				}
				c.mu.Lock()
				if c.bytes > c.maxBytes || c.by[id].bytes > c.maxPeerBytes {
					t.Errorf("%d in all, %d of one", c.bytes, c.by[id].bytes)
				}
				c.mu.Unlock()
				c.end(id, held)
			}
		})
	}
	wg.Wait()
	if c.bytes != 0 || c.posts != 0 || len(c.by) != 0 {
		t.Errorf("left: %d bytes, %d posts, %d senders", c.bytes, c.posts, len(c.by))
	}
}

// Whatever can be decoded is judged.
func FuzzCheckSender(f *testing.F) {
	r := rand.New(rand.NewPCG(11, 12))
	for range 50 {
		f.Add(marshalMessage(randomMessage(r)))
	}
	f.Add([]byte{1 << 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}) // of type -1
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := unmarshalMessage(bytes.Clone(data))
		if err != nil {
			return
		}
		err = checkSender(m, 2, 1, func(id uint64) bool { return id == 3 })
		if from := m.GetFrom(); err == nil && from != 1 && from != 2 && from != 3 {
			t.Fatalf("taken: %v", m)
		}
	})
}

package server

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/peer"

	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/usage"
)

// usageOfAll asks for the page and finds a share; the zero one if it is not told.
func (m *member) usageShare(of usage.Kind, by usage.Measure, name string) usage.Share {
	m.t.Helper()
	w := m.get(usage.Path + "?top=100")
	var a usage.Answer
	if err := json.Unmarshal(w.Body.Bytes(), &a); w.Code != http.StatusOK || err != nil {
		m.t.Fatalf("%d %s", w.Code, w.Body)
	}
	for _, s := range a.Top {
		if s.Of == of.String() && s.By == by.String() && s.Name == name {
			return s
		}
	}
	return usage.Share{}
}

// TestUsage: every kind of call counts for what it touches, by the shares that it has.
func TestUsage(t *testing.T) {
	t.Parallel()
	// Its clock stands still: nothing is forgotten, however slow the machine is.
	began := time.Now()
	m := newMember(t, func(c *Config, _ *state.Config) { c.Usage = usage.New(func() time.Time { return began }) })
	ctx := t.Context()
	stream, err := pb.NewWatchClient(m.conn).Watch(ctx)
	must(t, err)
	must(t, stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("a/"), RangeEnd: []byte("a0")}}}))
	_, err = stream.Recv()
	must(t, err)
	for range 6 { // 6 operations of 10: puts below a/
		m.put("a/x/1", "value")
	}
	put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("b/1"), Value: []byte("v")}}}
	_, err = m.kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{put}, Failure: []*pb.RequestOp{
		{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("never/1")}}},
	}})
	must(t, err)
	_, err = m.kv.Range(ctx, &pb.RangeRequest{Key: []byte("a/"), RangeEnd: []byte("a0")})
	must(t, err)
	_, err = m.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("b/"), RangeEnd: []byte("b0")})
	must(t, err)
	chunks, err := m.kv.RangeStream(ctx, &pb.RangeRequest{Key: []byte("b/"), RangeEnd: []byte("b0")})
	must(t, err)
	_, err = chunks.Recv()
	must(t, err)
	if _, err = m.kv.Put(ctx, &pb.PutRequest{}); err == nil {
		t.Fatal("a put without a key was taken")
	}
	for {
		r, err := stream.Recv()
		must(t, err)
		if r.Header.Revision >= 7 {
			break
		}
	}
	for _, c := range []struct {
		of    usage.Kind
		by    usage.Measure
		name  string
		share float64
	}{
		{usage.Prefix, usage.Requests, "a/", 0.7},
		{usage.Prefix, usage.Requests, "b/", 0.3},
		{usage.Prefix, usage.Churn, "b/", 2.0 / 8},
		{usage.Prefix, usage.Requests, "never/", 0},
		{usage.Watch, usage.Churn, "a/*", 1},
	} {
		// The first requests of a tracker are all told.
		if s := m.usageShare(c.of, c.by, c.name); s.Share < c.share-1e-9 || s.Share > c.share+1e-9 {
			t.Errorf("%v %s by %v: %+v, want %v", c.of, c.name, c.by, s, c.share)
		}
	}
	until(t, "the watch's events count for it", func() bool { return m.usageShare(usage.Watch, usage.Keys, "a/*").Share == 1 })
	for _, query := range []string{"?top=0", "?top=101", "?top=x"} {
		if w := m.get(usage.Path + query); w.Code != http.StatusBadRequest {
			t.Errorf("%s: %d", query, w.Code)
		}
	}
	if w := newMember(t).get(usage.Path); w.Code != http.StatusNotFound {
		t.Errorf("a member that does not count answers %d", w.Code)
	}
}

// TestUsageIsRoots: with users on, root alone sees names, on the client port and that of metrics; and
// no page of another origin does in any case.
func TestUsageIsRoots(t *testing.T) {
	t.Parallel()
	began := time.Now()
	counted := func(c *Config, _ *state.Config) { c.Usage = usage.New(func() time.Time { return began }) }
	open, m := newMember(t, counted), newSafeMember(t, nil, counted)
	ask := func(h http.Handler, set func(*http.Request)) int {
		r := httptest.NewRequest(http.MethodGet, usage.Path, nil)
		set(r)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code == http.StatusOK && w.Header().Get("Access-Control-Allow-Origin") != "" {
			t.Error("the answer allows other origins")
		}
		if w.Code != http.StatusOK && strings.Contains(w.Body.String(), "secret") {
			t.Errorf("a refusal tells %s", w.Body)
		}
		return w.Code
	}
	bearing := func(token string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Authorization", token) }
	}
	nobody := func(*http.Request) {}
	ports := func(m *member) map[string]http.Handler {
		return map[string]http.Handler{"client": m.httpHandler(), "metrics": m.MetricsHandler()}
	}
	open.put("secret/x", "v")
	for port, h := range ports(open) {
		if code := ask(h, nobody); code != http.StatusOK {
			t.Errorf("%s: without users: %d", port, code)
		}
		if code := ask(h, func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") }); code != http.StatusForbidden {
			t.Errorf("%s: a page of another origin: %d", port, code)
		}
	}
	_, err := m.kv.Put(m.as("root"), &pb.PutRequest{Key: []byte("secret/y")})
	must(t, err)
	login := func(name string) string {
		got, err := m.auth.Authenticate(t.Context(), &pb.AuthenticateRequest{Name: name, Password: name + "'s"})
		must(t, err)
		return got.Token
	}
	root, alice := login("root"), login("alice")
	for port, h := range ports(m) {
		for who, c := range map[string]struct {
			set  func(*http.Request)
			code int
		}{
			"nobody": {nobody, http.StatusUnauthorized}, "a stranger": {bearing("x.1"), http.StatusUnauthorized},
			"alice": {bearing(alice), http.StatusUnauthorized}, "root": {bearing(root), http.StatusOK}, "Bearer root": {bearing("Bearer " + root), http.StatusOK},
		} {
			if code := ask(h, c.set); code != c.code {
				t.Errorf("%s: %s: %d, want %d", port, who, code, c.code)
			}
		}
	}
	found := false
	for _, s := range m.cfg.Usage.Answer(10).Top {
		found = found || s.Of == "user" && s.Name == "root"
	}
	if !found {
		t.Errorf("nothing is told of root: %+v", m.cfg.Usage.Answer(10).Top)
	}
}

// TestClientOf names clients by their addresses, whatever a listener has put around these.
func TestClientOf(t *testing.T) {
	type wrapped struct{ net.Addr }
	for want, addr := range map[string]net.Addr{
		"10.0.0.7": &net.TCPAddr{IP: net.ParseIP("::ffff:10.0.0.7"), Port: 2379},
		"fe80::1":  &net.TCPAddr{IP: net.ParseIP("fe80::1"), Port: 2379},
		"unix":     &net.UnixAddr{Name: "@", Net: "unix"},
	} {
		for _, a := range []net.Addr{addr, wrapped{addr}} {
			ctx := peer.NewContext(t.Context(), &peer.Peer{Addr: a})
			if got := clientOf(ctx); got != want {
				t.Errorf("%T %v is %q, want %q", a, a, got, want)
			}
		}
	}
}

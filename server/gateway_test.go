package server

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/belaydb/belay/state"
)

// gateway serves the client port's HTTP with a gateway.
func (m *member) gateway() *httptest.Server {
	m.t.Helper()
	h, err := m.HTTPHandler(m.conn)
	must(m.t, err)
	s := httptest.NewServer(h)
	m.t.Cleanup(s.Close)
	return s
}

func postJSON(t *testing.T, url string, body io.Reader) (int, string) {
	t.Helper()
	resp, err := http.Post(url, "application/json", body)
	must(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, string(b)
}

func TestGateway(t *testing.T) {
	m := newMember(t)
	url := m.gateway().URL
	for _, c := range []struct{ path, body, want string }{
		{"kv/put", `{"key":"Zm9v","value":"YmFy"}`, `"revision":"2"`},
		{"kv/range", `{"key":"Zm9v"}`, `"count":"1"`},
		{"lease/grant", `{"TTL":"100","ID":"7"}`, `"ID":"7"`},
		{"lock/lock", `{"name":"bA==","lease":"7"}`, `"key":"bC83"`},
		{"election/campaign", `{"name":"ZQ==","lease":"7","value":"dg=="}`, `"lease":"7"`},
		{"election/leader", `{"name":"ZQ=="}`, `"value":"dg=="`},
	} {
		if code, got := postJSON(t, url+"/v3/"+c.path, strings.NewReader(c.body)); code != 200 || !strings.Contains(strings.ReplaceAll(got, " ", ""), c.want) {
			t.Errorf("%s: %d %s", c.path, code, got)
		}
	}
}

// One request is bounded, a stream of them is not, and no length of text that
// says nothing takes memory.
func TestGatewayBounds(t *testing.T) {
	m := newMember(t)
	url := m.gateway().URL
	limit := jsonOverhead * (m.cfg.MaxRequestBytes + recvOverheadBytes)
	long := func(n int) io.Reader {
		return io.MultiReader(strings.NewReader(`{"key":"YQ==","value":"`), io.LimitReader(letters{}, int64(n)), strings.NewReader(`"}`))
	}
	if code, got := postJSON(t, url+"/v3/kv/put", long(1<<20)); code != 200 {
		t.Errorf("1 MiB: %d %s", code, got)
	}
	if code, got := postJSON(t, url+"/v3/kv/put", long(limit)); code != 400 || !strings.Contains(got, "request body is larger than") {
		t.Errorf("long: %d %s", code, got)
	}
	_, _ = postJSON(t, url+"/v3/lease/grant", strings.NewReader(`{"TTL":"100","ID":"7"}`))
	spaces := strings.Repeat(" ", limit/16)
	var stream []io.Reader
	const requests = 20
	for range requests {
		stream = append(stream, strings.NewReader(`{"ID":"7"}`+spaces+"\n"))
	}
	code, got := postJSON(t, url+"/v3/lease/keepalive", io.MultiReader(stream...))
	if code != 200 || strings.Count(got, `"TTL"`) != requests || strings.Contains(got, "error") {
		t.Errorf("stream: %d %.300s", code, got)
	}
}

// letters is an endless text.
type letters struct{}

func (letters) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'A'
	}
	return len(p), nil
}

// What the gateway is told of a client's certificate is never the client's own word.
func TestCertifiedHeader(t *testing.T) {
	nameless := &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{}}}}
	for _, c := range []struct {
		name     string
		certAuth bool
		state    *tls.ConnectionState
		want     string
	}{
		{"plain", true, nil, ""}, {"TLS without a certificate", true, &tls.ConnectionState{}, ""},
		{"certificates do not count", false, nameless, ""}, {"a certificate", true, nameless, "yes"},
	} {
		var got []string
		a := &accessControl{gateway: true, authOn: func() bool { return true }, clientCertAuth: c.certAuth, logger: zap.NewNop(),
			next: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Values(certifiedHeader) })}
		r := httptest.NewRequest(http.MethodPost, "/v3/kv/range", nil)
		r.TLS = c.state
		r.Header.Set("grpc-metadata-belay-certified", "forged")
		a.ServeHTTP(httptest.NewRecorder(), r)
		if strings.Join(got, ",") != c.want {
			t.Errorf("%s: %q", c.name, got)
		}
	}
	// In a call that does not come from our own gateway it says nothing.
	safe := newSafeMember(t, nil, func(c *Config, _ *state.Config) { c.ClientCertAuth = true })
	_, err := safe.cluster.MemberList(metadata.AppendToOutgoingContext(t.Context(), certifiedKey, "yes"), &pb.MemberListRequest{})
	checkStatus(t, err, codes.InvalidArgument, "etcdserver: user name is empty")
}

func TestAccessControl(t *testing.T) {
	named := &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{Subject: pkix.Name{CommonName: "root"}}}}}
	nameless := &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{}}}}
	for _, c := range []struct {
		name        string
		hosts, cors []string
		certAuth    bool
		authOff     bool
		noGateway   bool
		state       *tls.ConnectionState
		path        string
		host        string
		origin      string
		code        int
		allowOrigin string
	}{
		{name: "all", path: "/x", host: "h", code: 204, allowOrigin: "*"},
		{name: "host", hosts: []string{"good"}, path: "/x", host: "good:1", code: 204, allowOrigin: "*"},
		{name: "other host", hosts: []string{"good"}, path: "/x", host: "bad", code: 421},
		{name: "TLS asks for no host", hosts: []string{"good"}, state: nameless, path: "/x", host: "bad", code: 204, allowOrigin: "*"},
		{name: "origin", cors: []string{"http://a"}, path: "/x", host: "h", origin: "http://a", code: 204, allowOrigin: "http://a"},
		{name: "origin whose port goes without saying", cors: []string{"http://a:80"}, path: "/x", host: "h", origin: "http://a", code: 204, allowOrigin: "http://a"},
		{name: "likewise, of TLS and IPv6", cors: []string{"https://[::1]:443"}, path: "/x", host: "h", origin: "https://[::1]", code: 204, allowOrigin: "https://[::1]"},
		{name: "another port", cors: []string{"http://a:80"}, path: "/x", host: "h", origin: "http://a:81", code: 204},
		{name: "another scheme", cors: []string{"http://a:80"}, path: "/x", host: "h", origin: "https://a", code: 204},
		{name: "other origin", cors: []string{"http://a"}, path: "/x", host: "h", origin: "http://b", code: 204},
		{name: "name on the gateway", certAuth: true, state: named, path: "/v3/kv/range", host: "h", code: 400},
		{name: "name on the old path", certAuth: true, state: named, path: "/v3beta/kv/range", host: "h", code: 400},
		{name: "name elsewhere", certAuth: true, state: named, path: "/health", host: "h", code: 204, allowOrigin: "*"},
		{name: "no name", certAuth: true, state: nameless, path: "/v3/kv/range", host: "h", code: 204, allowOrigin: "*"},
		{name: "names are not asked for", state: named, path: "/v3/kv/range", host: "h", code: 204, allowOrigin: "*"},
		{name: "no users", certAuth: true, authOff: true, state: named, path: "/v3/kv/range", host: "h", code: 204, allowOrigin: "*"},
		{name: "no gateway", certAuth: true, noGateway: true, state: named, path: "/v3/kv/range", host: "h", code: 204, allowOrigin: "*"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := &accessControl{gateway: !c.noGateway, authOn: func() bool { return !c.authOff },
				hosts: c.hosts, cors: c.cors, clientCertAuth: c.certAuth, logger: zap.NewNop(),
				next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if strings.HasPrefix(r.URL.Path, "/v3beta/") {
						t.Error("the old path came through")
					}
					w.WriteHeader(http.StatusNoContent)
				})}
			r := httptest.NewRequest(http.MethodPost, c.path, nil)
			r.TLS, r.Host = c.state, c.host
			if c.origin != "" {
				r.Header.Set("Origin", c.origin)
			}
			r.Header.Set("Content-Type", "application/json")
			w := httptest.NewRecorder()
			a.ServeHTTP(w, r)
			if w.Code != c.code || w.Header().Get("Access-Control-Allow-Origin") != c.allowOrigin {
				t.Errorf("%d, origin %q: %s", w.Code, w.Header().Get("Access-Control-Allow-Origin"), w.Body)
			}
		})
	}
}

// A page of another origin puts nothing without a preflight, and opens no websocket unless --cors
// lets its origin; what is no browser, or comes from where it goes to, notices nothing.
func TestPagesOfOtherOrigins(t *testing.T) {
	m := newMember(t)
	h, err := m.HTTPHandler(m.conn)
	must(t, err)
	access := h.(*accessControl)
	server := httptest.NewServer(access)
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	const evil = "http://evil.example"
	json, form, text := "application/json", "application/x-www-form-urlencoded", "text/plain;charset=UTF-8"
	all := []string{"*"}
	for _, c := range []struct {
		name           string
		cors           []string
		lax            bool
		contentType    string
		origin, site   string
		post, upgrades int
	}{
		{"curl -d", all, false, form, "", "", 200, 101},
		{"curl -d, other cors", []string{"http://a"}, false, form, "", "", 200, 101},
		{"no type, as Python's requests", all, false, "", "", "", 200, 101},
		{"text, as fetch in Node.js", all, false, text, "", "", 200, 101},
		{"page, form", all, false, form, evil, "cross-site", 415, 101},
		{"page, form, without Sec-Fetch-Site", all, false, form, evil, "", 415, 101},
		{"page, text", all, false, text, evil, "cross-site", 415, 101},
		{"page, text, upper case", all, false, "Text/Plain", evil, "", 415, 101},
		{"page, multipart", all, false, "multipart/form-data; boundary=x", evil, "", 415, 101},
		{"page, no type, as a Blob without one", all, false, "", evil, "", 415, 101},
		{"page, a type that is none", all, false, "text/plain;;x", evil, "", 415, 101},
		{"page that hides its origin", all, false, text, "null", "", 415, 101},
		{"page that hides its origin, other cors", []string{"http://a"}, false, text, "null", "cross-site", 415, 403},
		{"page of another port", all, false, text, "http://localhost:3000", "same-site", 415, 101},
		{"page, JSON: preflight has let it", all, false, json, evil, "cross-site", 200, 101},
		{"page, nothing set", nil, false, text, evil, "", 415, 101},
		{"page, other cors", []string{"http://a"}, false, text, evil, "cross-site", 415, 403},
		{"page, its origin is named", []string{"http://a", evil}, false, text, evil, "cross-site", 200, 101},
		{"page, its origin is named with the port of its scheme", []string{evil + ":80"}, false, text, evil, "cross-site", 200, 101},
		{"page, the flag", all, true, text, evil, "cross-site", 200, 101},
		{"page, the flag, other cors", []string{"http://a"}, true, text, evil, "cross-site", 200, 403},
		{"own page", []string{"http://a"}, false, text, "http://" + host, "same-origin", 200, 101},
		{"own page of an older browser", []string{"http://a"}, false, text, "http://" + host, "", 200, 101},
		{"own page behind a proxy with another name", []string{"http://a"}, false, text, "https://ui.example", "same-origin", 200, 101},
	} {
		t.Run(c.name, func(t *testing.T) {
			access.cors, access.simpleRequests = c.cors, c.lax
			before := m.cfg.KV.Revision()
			send := func(method, body string, header map[string]string) *http.Response {
				r, err := http.NewRequest(method, server.URL+"/v3/kv/put", strings.NewReader(body))
				must(t, err)
				if c.origin != "" {
					r.Header.Set("Origin", c.origin)
				}
				if c.site != "" {
					r.Header.Set("Sec-Fetch-Site", c.site)
				}
				for name, value := range header {
					r.Header.Set(name, value)
				}
				if c.contentType != "" && method == http.MethodPost {
					r.Header.Set("Content-Type", c.contentType)
				}
				resp, err := server.Client().Do(r)
				must(t, err)
				return resp
			}
			resp := send(http.MethodPost, `{"key":"Zm9v","value":"YmFy"}`, nil)
			body, err := io.ReadAll(resp.Body)
			must(t, err)
			_ = resp.Body.Close()
			if resp.StatusCode != c.post {
				t.Errorf("POST: %s %s", resp.Status, body)
			}
			if wrote := m.cfg.KV.Revision() > before; wrote != (c.post == 200) {
				t.Errorf("written: %v", wrote)
			}
			if c.post != 200 && !strings.Contains(string(body), "--cors-simple-requests") {
				t.Errorf("%s does not say what to do", body)
			}
			resp = send(http.MethodGet, "", map[string]string{"Connection": "Upgrade", "Upgrade": "websocket",
				"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="})
			_ = resp.Body.Close()
			if resp.StatusCode != c.upgrades {
				t.Errorf("websocket: %s", resp.Status)
			}
		})
	}
}

// With --strict-auth=false rights end as in etcd.
func TestLaxAuth(t *testing.T) {
	m, token := newSigningMember(t)
	m.callers.lax = true
	alice := m.watchAs(m.as("alice"))
	alice.created("b", "")
	old := token("root", m.cfg.State.Policy().Revision())
	must(t, deleteUser(m.as("root"), m.auth))
	must(t, unrelated(old, m.auth))
	_, err := m.maintenance.HashKV(old, &pb.HashKVRequest{})
	must(t, err)
	_, err = m.kv.Put(m.as("root"), &pb.PutRequest{Key: []byte("b")})
	must(t, err)
	if r := alice.recv(); len(r.Events) != 1 {
		t.Fatalf("%v", r)
	}
}

// callsAtWork counts the calls that have begun and not ended, by the metrics.
func (m *member) callsAtWork() (n float64) {
	for line := range strings.Lines(m.get("/metrics").Body.String()) {
		value := func() float64 {
			fields := strings.Fields(line)
			v, err := strconv.ParseFloat(fields[len(fields)-1], 64)
			must(m.t, err)
			return v
		}
		switch {
		case strings.HasPrefix(line, "grpc_server_started_total{"):
			n += value()
		case strings.HasPrefix(line, "grpc_server_handled_total{"):
			n -= value()
		}
	}
	return n
}

// A call through the gateway ends when its client has gone, however the body was: it
// may be broken, with much behind the place where it is, or longer than its message. net/http
// looks for the end of a connection only when the body has been read.
func TestGatewayNoticesThatTheClientHasGone(t *testing.T) {
	m := newMember(t)
	url := m.gateway().URL
	for _, c := range []struct{ path, body string }{
		{"lease/grant", `{"TTL":"100","ID":"7"}`},
		{"lease/grant", `{"TTL":"100","ID":"8"}`},
		{"lock/lock", `{"name":"bA==","lease":"7"}`},
		{"election/campaign", `{"name":"ZQ==","lease":"7","value":"dg=="}`},
	} {
		if code, got := postJSON(t, url+"/v3/"+c.path, strings.NewReader(c.body)); code != 200 {
			t.Fatalf("%s: %d %s", c.path, code, got)
		}
	}
	more := strings.Repeat(" ", 100_000) + "\n"
	for name, c := range map[string]struct{ path, body string }{
		"a watch, broken":      {"watch", strings.Repeat("[", 100_000)},
		"a watch, broken late": {"watch", `{"create_request":{"key":"YQ=="}}` + strings.Repeat("[", 100_000)},
		"a watch, too long":    {"watch", `{"create_request":{"key":"YQ=="}}` + strings.Repeat(" ", jsonOverhead*(m.cfg.MaxRequestBytes+recvOverheadBytes)+100_000)},
		"a watch":              {"watch", `{"create_request":{"key":"YQ=="}}` + more},
		"keepalive, broken":    {"lease/keepalive", strings.Repeat("[", 100_000)},
		"observe":              {"election/observe", `{"name":"ZQ=="}` + more},
		"a lock that is held":  {"lock/lock", `{"name":"bA==","lease":"8"}` + more},
		"a campaign":           {"election/campaign", `{"name":"ZQ==","lease":"8","value":"dg=="}` + more},
	} {
		for _, chunked := range []bool{false, true} {
			conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
			must(t, err)
			head := "POST /v3/" + c.path + " HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
			if chunked {
				_, err = fmt.Fprintf(conn, "%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", head, len(c.body), c.body)
			} else {
				_, err = fmt.Fprintf(conn, "%sContent-Length: %d\r\n\r\n%s", head, len(c.body), c.body)
			}
			must(t, err)
			if !strings.Contains(name, "keepalive") {
				until(t, name+" to be at work", func() bool { return m.callsAtWork() == 1 })
			}
			must(t, conn.Close())
			until(t, fmt.Sprintf("the end of %s (chunked: %v)", name, chunked), func() bool { return m.callsAtWork() == 0 })
		}
	}
}

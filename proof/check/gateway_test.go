package check

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/belaydb/belay/proof/cluster"
)

// An httpCase is one request to the client port.
type httpCase struct {
	path   string
	body   string // "" without
	method string // "" POST with a body, else GET
	header string // "Name: value"
	lines  int    // of a stream that is read so far; 0 the whole answer
	status bool   // compare the status and headers alone
}

func (c httpCase) String() string {
	return strings.TrimSpace(c.method + " " + c.path + " " + c.body + " " + c.header)
}

// gatewayCases run in order: later ones see what earlier ones wrote.
func gatewayCases() []httpCase {
	post := func(path string, bodies ...string) (all []httpCase) {
		for _, b := range bodies {
			all = append(all, httpCase{path: "/v3/" + path, body: b})
		}
		return all
	}
	foo := `{"key":"Zm9v"}`
	return slices.Concat(
		post("kv/put", `{"key":"Zm9v","value":"YmFy"}`, `{"key":"Zm9v","value":"YmFy","prev_kv":true}`, `{"key":"Zm9v","value":"YmFy","prevKv":true}`),
		post("kv/range", foo, `{"key":"AA==","range_end":"AA==","limit":"1","sort_order":"DESCEND","sort_target":"KEY"}`,
			`{"key":"AA==","range_end":"AA==","limit":1,"sort_order":2}`, `{"key":"bm9uZQ"}`, `{"key":"-_8="}`, `{"key":"Zm9v","revision":"99999"}`,
			`{"key":""}`, `{}`, `not json`, `{"key":`, `{"key":1}`, `{"key":"***"}`, `{"nothing":1,"key":"Zm9v"}`, `{"key":"Zm9v","sort_order":"NONSENSE"}`,
			`{"key":"Zm9v","limit":"abc"}`, `[1]`, foo+foo, `{"key":"Zm9v","count_only":true}`, `{"key":"Zm9v","keysOnly":true}`),
		[]httpCase{
			{path: "/v3/kv/range"}, {path: "/v3/kv/range", method: "POST"}, {path: "/v3/kv/range", method: "PUT", body: "{}"},
			{path: "/v3/kv/range", method: "DELETE"}, {path: "/v3/kv/range", method: "OPTIONS"}, {path: "/v3/kv/range", method: "HEAD"},
			{path: "/v3/kv/nothing", body: "{}"}, {path: "/v3/kv/range/", body: "{}"}, {path: "/v3", body: "{}"}, {path: "/v3/", body: "{}"},
			{path: "/v3beta/kv/range", body: foo}, {path: "/v3alpha/kv/range", body: foo}, {path: "/v2/keys"}, {path: "/"}, {path: "/nothing"},
		},
		post("kv/deleterange", `{"key":"Zm9v","prev_kv":true}`, foo),
		post("kv/txn",
			`{"compare":[{"result":"EQUAL","target":"CREATE","key":"Zm9v","create_revision":"0"}],"success":[{"request_put":{"key":"Zm9v","value":"YQ=="}}],"failure":[{"requestRange":{"key":"Zm9v"}}]}`,
			`{"compare":[{"target":"CREATE","key":"Zm9v","createRevision":"0"}],"success":[{"requestPut":{"key":"Zm9v","value":"YQ=="}}],"failure":[{"requestRange":{"key":"Zm9v"}}]}`,
			`{"success":[{}]}`, `{"success":[{"request_put":{"key":"YQ=="}},{"request_put":{"key":"YQ=="}}]}`,
			`{"success":[{"request_txn":{"success":[{"request_delete_range":{"key":"YQ=="}}]}}]}`),
		post("kv/compaction", `{"revision":"2"}`, `{"revision":"2","physical":true}`, `{"revision":"2000"}`),
		post("lease/grant", `{"TTL":"100","ID":"77"}`, `{"TTL":"100","ID":"77"}`, `{"TTL":"99999999999"}`),
		post("lease/timetolive", `{"ID":"78","keys":true}`), post("kv/lease/timetolive", `{"ID":"78"}`),
		post("lease/leases", `{}`), post("kv/lease/leases", `{}`), []httpCase{{path: "/v3/kv/lease/leases"}},
		post("lease/keepalive", `{"ID":"77"}`, `{"ID":"78"}`, `{"ID":"77"}{"ID":"77"}`, `{"ID":`),
		post("lease/revoke", `{"ID":"77"}`, `{"ID":"7f"}`), post("kv/lease/revoke", `{"ID":"77"}`),
		post("cluster/member/list", `{}`, `{"linearizable":true}`), post("cluster/member/add", `{"peerURLs":["x"]}`, `{"peerURLs":[]}`),
		post("cluster/member/remove", `{"ID":"1"}`), post("cluster/member/promote", `{"ID":"1"}`),
		post("cluster/member/update", `{"ID":"1","peerURLs":["http://127.0.0.1:1"]}`),
		post("maintenance/alarm", `{}`, `{"action":"GET"}`, `{"action":"DEACTIVATE","alarm":"NOSPACE"}`),
		post("maintenance/status", `{}`), post("maintenance/defragment", `{}`),
		post("maintenance/hash", `{}`), post("maintenance/hashkv", `{}`, `{"revision":"1000"}`),
		post("maintenance/transfer-leadership", `{"targetID":"1"}`),
		post("maintenance/downgrade", `{"action":"VALIDATE","version":"x"}`),
		post("auth/status", `{}`), post("auth/authenticate", `{"name":"root","password":"x"}`), post("auth/disable", `{}`),
		post("lock/unlock", `{"key":"YQ=="}`, `{bad`), []httpCase{{path: "/v3/lock/lock"}, {path: "/v3/election/observe"}},
		post("election/leader", `{"name":"bm9uZQ=="}`, `{"name":`), post("election/resign", `{}`), post("election/proclaim", `{}`),
		post("lease/grant", `{"TTL":"100","ID":"55"}`), post("lock/lock", `{"name":"bG9jaw==","lease":"55"}`),
		post("election/campaign", `{"name":"ZQ==","lease":"55","value":"dg=="}`), post("election/leader", `{"name":"ZQ=="}`),
		[]httpCase{
			{path: "/v3/election/observe", body: `{"name":"ZQ=="}`, lines: 1},
			{path: "/v3/watch", body: `{"create_request":{"key":"Zm9v","start_revision":"3"}}`, lines: 2},
			{path: "/v3/watch", body: `{"create_request":{"key":"Zm9v","start_revision":"1"}}`, lines: 2},
			{path: "/v3/watch", body: `{"createRequest":{"key":"Zm9v","startRevision":"-3"}}`, lines: 1},
			{path: "/v3/watch", body: `{"create_request":{"key":"Zm9v","range_end":"Zm8="}}`, lines: 1},
			{path: "/v3/watch"},
			// As JSON: what a page sends without being asked about it is refused, which etcd does
			// not.
			{path: "/v3/kv/range", body: foo, header: "Origin: http://a.example\nContent-Type: application/json"},
			{path: "/v3/kv/range", body: foo, header: "Accept: text/plain"},
			{path: "/v3/kv/range", body: foo, header: "Content-Type: application/x"},
			{path: "/v3/kv/range", body: foo, header: "TE: trailers"},
			{path: "/v3/kv/range", body: foo, header: "Grpc-Timeout: 1n"}, {path: "/v3/kv/range", body: foo, header: "Grpc-Timeout: x"},
			{path: "/v3/kv/range", body: foo, header: "Grpc-Metadata-hasleader: true"},
			{path: "/v3/kv/range", body: foo, header: "Authorization: Bearer nonsense"},
			{path: "/health"}, {path: "/health", method: "POST"}, {path: "/health?serializable=true"}, {path: "/livez"}, {path: "/livez?verbose"},
			{path: "/livez/serializable_read"}, {path: "/readyz/data_corruption"}, {path: "/readyz/linearizable_read"}, {path: "/readyz/nothing"},
			{path: "/health", method: "OPTIONS"}, {path: "/nothing", method: "OPTIONS"}, {path: "/version", method: "POST"},
			{path: "/debug/vars", status: true}, {path: "/debug/vars", method: "POST"}, {path: "/debug/pprof/"}, {path: "/debug/requests"},
			{path: "/config/local/log"}, {path: "/metrics", method: "HEAD", status: true},
		})
}

// sameHeaders are compared; the length depends on the spaces that protojson puts
// in by chance of the build.
var sameHeaders = []string{"Content-Type", "Allow", "Trailer", "X-Content-Type-Options", "Transfer-Encoding",
	"Access-Control-Allow-Origin", "X-Server-Version", "X-Min-Cluster-Version", "Access-Control-Allow-Methods", "Access-Control-Allow-Headers", "Grpc-Metadata-Content-Type"}

// own are what each server makes up for itself.
var own = []struct {
	pattern *regexp.Regexp
	by      string
}{
	{regexp.MustCompile(`"storageVersion":"3\.\d`), `"storageVersion":"3.N`}, // etcd's follows a moment after the start
	{regexp.MustCompile(`"(cluster_id|member_id|ID|leader|raft_term|raftTerm|raftIndex|raftAppliedIndex|dbSize|dbSizeInUse)":"\d{2,}"`), `"$1":"N"`},
	{regexp.MustCompile(`"(raft_term|raftTerm)":"\d+"`), `"$1":"N"`},
	{regexp.MustCompile(`"hash":\d+`), `"hash":N`},
	{regexp.MustCompile(`"(id|cluster_id|member_id)":\d{4,}`), `"$1":N`},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "127.0.0.1:P"},
}

// ask makes the request and writes what came back, without what differs by chance.
func (c httpCase) ask(client *http.Client, url string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	method := c.method
	if method == "" {
		method = http.MethodGet
		if c.body != "" {
			method = http.MethodPost
		}
	}
	var body io.Reader
	if c.body != "" {
		body = strings.NewReader(c.body)
	}
	req, err := http.NewRequestWithContext(ctx, method, url+c.path, body)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(c.header) {
		if name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ": "); ok {
			req.Header.Set(name, value)
		}
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var out strings.Builder
	fmt.Fprintln(&out, resp.Status)
	for _, name := range sameHeaders {
		if v := resp.Header.Values(name); len(v) > 0 {
			fmt.Fprintf(&out, "%s: %s\n", name, strings.Join(v, ", "))
		}
	}
	if c.status {
		return out.String(), nil
	}
	var data []byte
	if c.lines > 0 {
		buffer := make([]byte, 32<<10)
		for bytes.Count(data, []byte{'\n'}) < c.lines {
			n, err := resp.Body.Read(buffer)
			if data = append(data, buffer[:n]...); err != nil {
				return "", fmt.Errorf("%w after %q", err, data)
			}
		}
		data = bytes.Join(bytes.SplitAfterN(data, []byte{'\n'}, c.lines+1)[:c.lines], nil) // no more than is compared
	} else if data, err = io.ReadAll(resp.Body); err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		out.WriteString(plainJSON(line))
	}
	return out.String(), nil
}

// plainJSON takes out spaces, which protobuf changes with each build on purpose, and what is the
// server's own.
func plainJSON(line string) string {
	var compact bytes.Buffer
	if json.Compact(&compact, []byte(line)) == nil {
		line = compact.String() + "\n"
	}
	line = strings.ReplaceAll(line, "\u00a0", " ")
	for _, o := range own {
		line = o.pattern.ReplaceAllString(line, o.by)
	}
	return line
}

// startBoth starts a Belay and an etcd, one member each.
func startBoth(t *testing.T, change func(*cluster.Config)) (belay, etcd *cluster.Member) {
	t.Helper()
	for _, side := range []struct {
		cfg cluster.Config
		to  **cluster.Member
	}{
		{cluster.Config{Kind: cluster.Belay, Binary: Belay(t)}, &belay},
		{cluster.Config{Kind: cluster.Etcd, Binary: EtcdTools(t).Etcd}, &etcd},
	} {
		side.cfg.Size, side.cfg.Dir = 1, t.TempDir()
		if change != nil {
			change(&side.cfg)
		}
		c, err := cluster.New(side.cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if t.Failed() {
				t.Log(c.Tails(15))
			}
			c.Close()
		})
		*side.to = c.Members[0]
		if err := c.Members[0].Start(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, m := range []*cluster.Member{belay, etcd} {
		if err := m.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	return belay, etcd
}

func compareHTTP(t *testing.T, client *http.Client, cases []httpCase, belay, etcd string) {
	t.Helper()
	for _, c := range cases {
		got, err := c.ask(client, belay)
		if err != nil {
			t.Fatalf("%s: belay: %v", c, err)
		}
		want, err := c.ask(client, etcd)
		if err != nil {
			t.Fatalf("%s: etcd: %v", c, err)
		}
		if got != want {
			t.Errorf("%s\nbelay: %s\netcd:  %s", c, got, want)
		}
	}
}

// The same HTTP requests to both give the same answers.
func TestGatewayLikeEtcd(t *testing.T) {
	t.Parallel()
	belay, etcd := startBoth(t, nil)
	compareHTTP(t, http.DefaultClient, gatewayCases(), belay.ClientURL, etcd.ClientURL)
	compareWebsockets(t, belay.ClientURL, etcd.ClientURL)
}

// The questions that members and scripts ask at the peer port.
func TestPeerPortLikeEtcd(t *testing.T) {
	t.Parallel()
	belay, etcd := startBoth(t, nil)
	compareHTTP(t, http.DefaultClient, []httpCase{
		{path: "/members"}, {path: "/members", method: "POST"}, {path: "/members/"}, {path: "/members/1"},
		{path: "/members/promote/1", method: "POST"}, {path: "/members/promote/x", method: "POST"}, {path: "/members/promote/1"},
		{path: "/members/hashkv"}, {path: "/members/hashkv", method: "GET", body: `{"revision":0}`}, {path: "/members/hashkv", method: "GET", body: `{"revision":100}`},
		{path: "/members/hashkv", method: "GET", body: `{`}, {path: "/members/hashkv", method: "POST", body: `{}`},
		{path: "/members/hashkv", method: "GET", body: `{"revision":0}`, header: "X-Etcd-Cluster-ID: 1"},
		{path: "/leases"}, {path: "/leases", body: "nonsense"}, {path: "/leases", body: "\x08\x07"}, {path: "/leases", method: "POST"},
		{path: "/leases/internal"}, {path: "/leases/internal", body: "nonsense"}, {path: "/leases/internal", body: "\x0a\x02\x08\x07"},
		{path: "/downgrade/enabled"}, {path: "/downgrade/enabled", method: "POST"}, {path: "/version", method: "POST"},
		{path: "/raft"}, {path: "/raft", body: "x"}, {path: "/raft/stream/msgapp/1"}, {path: "/raft/stream/other/1"}, {path: "/raft/nothing"},
		{path: "/raft/snapshot"}, {path: "/raft/snapshot", body: "x"}, {path: "/raft/probing", status: true},
		{path: "/"}, {path: "/metrics"}, {path: "/health"}, {path: "/v3/kv/range", body: "{}"}, {path: "/debug/vars"},
	}, belay.PeerURL, etcd.PeerURL)
}

// compareWebsockets sends requests and reads messages on every kind of call.
func compareWebsockets(t *testing.T, belay, etcd string) {
	t.Helper()
	for _, c := range []struct {
		path     string
		requests []string
		answers  int
	}{
		{"/v3/watch", []string{`{"create_request":{"key":"d3M=","watch_id":"5"}}`, `{"create_request":{"key":"d3M=","start_revision":"-1"}}`, `{"cancel_request":{"watch_id":"5"}}`}, 3},
		{"/v3/lease/keepalive", []string{`{"ID":"55"}`, `{"ID":"56"}`}, 2},
		{"/v3/nothing", nil, 1},
		{"/v3/watch", []string{`{bad`}, 0},
	} {
		var answers [2]string
		for i, url := range []string{belay, etcd} {
			conn, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(url, "http")+c.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Fatal(err)
			}
			for _, r := range c.requests {
				if err := conn.WriteMessage(websocket.TextMessage, []byte(r)); err != nil {
					t.Fatal(err)
				}
			}
			for range c.answers {
				_, message, err := conn.ReadMessage()
				if err != nil {
					t.Fatalf("%s %s %q: %v", url, c.path, c.requests, err)
				}
				answers[i] += plainJSON(string(message))
			}
			conn.Close()
		}
		if answers[0] != answers[1] {
			t.Errorf("websocket %s %q\nbelay: %s\netcd:  %s", c.path, c.requests, answers[0], answers[1])
		}
	}
}

// Hosts, origins, no gateway, HTTP on ports of its own.
func TestHTTPAccessLikeEtcd(t *testing.T) {
	t.Parallel()
	var urls [2][2]string // HTTP and metrics, of Belay and etcd
	n := 0
	belay, etcd := startBoth(t, func(c *cluster.Config) {
		for i := range urls[n] {
			port, err := cluster.FreePort()
			if err != nil {
				t.Fatal(err)
			}
			urls[n][i] = fmt.Sprintf("http://127.0.0.1:%d", port)
		}
		c.Args = []string{"--host-whitelist=good.example,127.0.0.1", "--cors=http://a.example:80,http://b.example:80", "--enable-grpc-gateway=false",
			"--listen-client-http-urls=" + urls[n][0], "--listen-metrics-urls=" + urls[n][1], "--enable-pprof"}
		n++
	})
	foo := `{"key":"Zm9v"}`
	client := &http.Client{Transport: hostHeader{http.DefaultTransport}}
	compareHTTP(t, client, []httpCase{
		{path: "/v3/kv/range", body: foo}, {path: "/version", method: "OPTIONS"},
		{path: "/version", header: "Host: bad.example", method: "POST"}, {path: "/health", header: "Host: bad.example:22"},
		{path: "/health", header: "Host: good.example"}, {path: "/health", header: "Host: good.example:1"}, {path: "/health", header: "Host: GOOD.example"},
		{path: "/health", header: "Origin: http://a.example:80"}, {path: "/health", header: "Origin: http://c.example:80"},
		{path: "/health", method: "OPTIONS", header: "Origin: http://b.example:80"},
		{path: "/debug/pprof/cmdline", status: true}, {path: "/debug/pprof/nothing"}, {path: "/debug/pprof/heap", status: true}, {path: "/metrics", status: true},
	}, urls[0][0], urls[1][0])
	// The metrics port asks for no host and has nothing else.
	compareHTTP(t, client, []httpCase{
		{path: "/health"}, {path: "/health", header: "Host: bad.example"}, {path: "/livez?verbose"}, {path: "/metrics", status: true},
		{path: "/version"}, {path: "/debug/vars"}, {path: "/"}, {path: "/v3/kv/range", body: foo},
	}, urls[0][1], urls[1][1])
	// The gRPC port speaks no HTTP any more.
	for _, m := range []*cluster.Member{belay, etcd} {
		if resp, err := http.Get(m.ClientURL + "/version"); err == nil {
			resp.Body.Close()
			t.Errorf("%s serves HTTP: %s", m.ClientURL, resp.Status)
		}
	}
}

// hostHeader moves a Host header where net/http wants it.
type hostHeader struct{ http.RoundTripper }

func (h hostHeader) RoundTrip(r *http.Request) (*http.Response, error) {
	if host := r.Header.Get("Host"); host != "" {
		r = r.Clone(r.Context())
		r.Header.Del("Host")
		r.Host = host
	}
	return h.RoundTripper.RoundTrip(r)
}

package server

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/state"
	"github.com/belaydb/belay/usage"
)

func viewing(c *Config, _ *state.Config) {
	began := time.Now()
	c.WebView, c.Usage = true, usage.New(func() time.Time { return began })
}

// TestWebView: the page is off unless asked for, runs nothing but its own file, asks nobody but its
// member, and shows keys and what is left of their history.
func TestWebView(t *testing.T) {
	t.Parallel()
	if w := newMember(t).get(pathView); w.Code != http.StatusNotFound {
		t.Errorf("a member that was not asked serves it: %d", w.Code)
	}
	m := newMember(t, viewing)
	if w := httptest.NewRecorder(); true {
		m.MetricsHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, pathView, nil))
		if w.Code != http.StatusNotFound {
			t.Errorf("the port of metrics serves it: %d", w.Code)
		}
	}
	for _, file := range []string{"", "style.css", "view.js"} {
		w := m.get(pathView + file)
		policy := w.Header().Get("Content-Security-Policy")
		if w.Code != http.StatusOK || !strings.HasPrefix(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") || strings.Contains(policy, "http") {
			t.Errorf("%q: %d, policy %q", file, w.Code, policy)
		}
		body := w.Body.String()
		if found := regexp.MustCompile(`https?://|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|\son\w+=|style=|<script>`).FindString(strings.ReplaceAll(body, "http://www.w3.org/2000/svg", "")); found != "" {
			t.Errorf("%q has %q: the policy forbids it, or text could become more than text", file, found)
		}
		post := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, pathView+file, nil)
		r.Host = "localhost:2379"
		m.httpHandler().ServeHTTP(post, r)
		if post.Code != http.StatusMethodNotAllowed {
			t.Errorf("%q takes POST: %d", file, post.Code)
		}
	}
	if w := m.get(pathView + "nothing"); w.Code != http.StatusNotFound {
		t.Errorf("another path: %d", w.Code)
	}

	evil := "a/<img src=x onerror=alert(1)>\x00\xff"
	m.put(evil, "one")
	m.put(evil, strings.Repeat("v", viewBytes+1))
	for i := range viewKeys {
		m.put("b/"+strings.Repeat("x", i+1), "")
	}
	ask := func(path string, query url.Values, to any) {
		t.Helper()
		w := m.get(pathView + "api/" + path + "?" + query.Encode())
		if err := json.Unmarshal(w.Body.Bytes(), to); w.Code != http.StatusOK || err != nil || w.Header().Get("Content-Type") != "application/json" {
			t.Fatalf("%s: %d %s %v", path, w.Code, w.Body, err)
		}
		if strings.Contains(w.Body.String(), "<") {
			t.Errorf("%s has markup: %s", path, w.Body)
		}
	}
	base64Of := base64.StdEncoding.EncodeToString
	var first, rest viewList
	ask("keys", nil, &first)
	if len(first.Keys) != viewKeys || string(first.Keys[0].Key) != evil || first.Keys[0].Version != 2 || first.Next == nil {
		t.Errorf("keys %+v", first)
	}
	ask("keys", url.Values{"from": {base64Of(first.Next)}, "prefix": {base64Of([]byte("b/"))}}, &rest)
	if len(rest.Keys) != 1 || rest.Next != nil {
		t.Errorf("the rest %+v", rest)
	}
	var early viewList
	ask("keys", url.Values{"revision": {"2"}}, &early)
	if len(early.Keys) != 1 || early.Keys[0].Version != 1 {
		t.Errorf("at revision 2: %+v", early)
	}
	var history struct {
		Versions []viewVersion
		Note     string
	}
	ask("history", url.Values{"key": {base64Of([]byte(evil))}}, &history)
	if v := history.Versions; len(v) != 2 || !v[0].Cut || v[0].Bytes != viewBytes+1 || len(v[0].Value) != viewBytes || string(v[1].Value) != "one" {
		t.Errorf("history %+v", history)
	}
	_, err := m.kv.Compact(t.Context(), &pb.CompactionRequest{Revision: 3, Physical: true})
	must(t, err)
	ask("history", url.Values{"key": {base64Of([]byte(evil))}}, &history)
	if len(history.Versions) != 1 || !strings.Contains(history.Note, "compacted") {
		t.Errorf("after a compaction: %+v", history)
	}
	var st struct {
		Leader  string
		Members []viewMember
	}
	ask("state", nil, &st)
	if st.Leader == "" || len(st.Members) != 1 {
		t.Errorf("state %+v", st)
	}
	for _, bad := range []string{"keys?prefix=!", "keys?revision=x", "keys?revision=-1", "history?key=", "history?key=!"} {
		if w := m.get(pathView + "api/" + bad); w.Code != http.StatusBadRequest {
			t.Errorf("%s: %d", bad, w.Code)
		}
	}
}

// TestWebViewIsRoots: with users on, the files of the page are anybody's, and what they show is
// root's.
func TestWebViewIsRoots(t *testing.T) {
	t.Parallel()
	m := newSafeMember(t, nil, viewing)
	for _, c := range []struct {
		user string
		code int
	}{{"", http.StatusUnauthorized}, {"alice", http.StatusUnauthorized}, {"root", http.StatusOK}} {
		token := ""
		if c.user != "" {
			got, err := m.auth.Authenticate(t.Context(), &pb.AuthenticateRequest{Name: c.user, Password: c.user + "'s"})
			must(t, err)
			token = got.Token
		}
		for _, path := range []string{"state", "keys", "history?key=YQ=="} {
			r := httptest.NewRequest(http.MethodGet, pathView+"api/"+path, nil)
			r.Host = "[::1]:2379"
			r.Header.Set("Authorization", token)
			w := httptest.NewRecorder()
			m.httpHandler().ServeHTTP(w, r)
			if w.Code != c.code {
				t.Errorf("%q asks for %s: %d, want %d", c.user, path, w.Code, c.code)
			}
			r.Header.Set("Sec-Fetch-Site", "cross-site")
			w = httptest.NewRecorder()
			m.httpHandler().ServeHTTP(w, r)
			if w.Code != http.StatusForbidden {
				t.Errorf("a page of another origin asks for %s: %d", path, w.Code)
			}
		}
	}
}

// TestWebViewHosts: over plain HTTP the page answers under addresses and the cluster's own names alone;
// a name that somebody had resolve to the member is not one of them.
func TestWebViewHosts(t *testing.T) {
	t.Parallel()
	m := newMember(t, viewing)
	v := &webView{hosts: []string{"listed.example"}, members: func() []*command.Member {
		return []*command.Member{{ClientURLs: []string{"http://Named.Example:2379", "unix:///a"}}}
	}}
	for host, want := range map[string]bool{
		"127.0.0.1": true, "::1": true, "[::1]": true, "10.1.2.3": true, "localhost": true, "LOCALHOST.": true, "a.localhost": true,
		"named.example": true, "named.example.": true, "listed.example": true,
		"evil.example": false, "localhost.evil.example": false, "127.0.0.1.evil.example": false, "": false,
	} {
		if got := v.named(host); got != want {
			t.Errorf("%q: %v", host, got)
		}
	}
	if v.hosts = []string{"*"}; v.named("evil.example") {
		t.Error("the default of --host-whitelist names all")
	}
	for _, path := range []string{"", "view.js", "api/state", "api/keys", "api/history?key=YQ=="} {
		for _, tc := range []struct {
			host string
			tls  *tls.ConnectionState
			want bool
		}{{"evil.example:2379", nil, false}, {"evil.example:2379", new(tls.ConnectionState), true}, {"127.0.0.1:2379", nil, true}} {
			w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, pathView+path, nil)
			r.Host, r.TLS = tc.host, tc.tls
			m.httpHandler().ServeHTTP(w, r)
			if (w.Code != http.StatusMisdirectedRequest) != tc.want {
				t.Errorf("%s at %s, TLS %v: %d %s", path, tc.host, tc.tls != nil, w.Code, w.Body)
			}
		}
	}
}

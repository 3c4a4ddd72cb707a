package server

import (
	"bytes"
	"embed"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/peers"
)

// pathView is where the web view is, on the client port (--web-view).
const pathView = "/belay/"

// webFiles are the page: they are the same on every member, and tell nothing.
//
//go:embed webview/index.html webview/style.css webview/view.js
var webFiles embed.FS

const (
	// viewKeys is how many keys one answer has, viewVersions how many versions of one, and viewBytes
	// how much of each value.
	viewKeys     = 100
	viewVersions = 20
	viewBytes    = 4 << 10
)

// viewPolicy lets the page load its own three files and ask this member, and nothing else: text that
// a client has put into a key cannot become a script, even if the page had a mistake, and no other
// page can frame it.
const viewPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// webView is a page that shows this member to who may administrate it. It changes nothing.
type webView struct {
	pages   *pages
	kv      *kvService
	members func() []*command.Member
	hosts   []string // Config.HostWhitelist
	quota   int64
	size    func() int64
}

// register registers the page and what it asks.
func (v *webView) register(mux *http.ServeMux) {
	handle := func(path string, serve http.HandlerFunc) {
		mux.HandleFunc(pathView+path, func(w http.ResponseWriter, r *http.Request) {
			if r.TLS == nil && !v.named(hostOf(r)) {
				http.Error(w, fmt.Sprintf("the name %q is none of this cluster's: open the page by an address, by localhost, by a name in --advertise-client-urls of a member, or by one that --host-whitelist lists", hostOf(r)), http.StatusMisdirectedRequest)
				return
			}
			serve(w, r)
		})
	}
	for path, file := range map[string]struct{ name, contentType string }{
		"{$}":       {"index.html", "text/html; charset=utf-8"},
		"style.css": {"style.css", "text/css; charset=utf-8"},
		"view.js":   {"view.js", "text/javascript; charset=utf-8"},
	} {
		body, err := webFiles.ReadFile("webview/" + file.name)
		if err != nil {
			panic(err) // it is in the binary
		}
		handle(path, func(w http.ResponseWriter, r *http.Request) {
			if !peers.AllowMethod(w, r, http.MethodGet) {
				return
			}
			h := w.Header()
			h.Set("Content-Type", file.contentType)
			h.Set("Content-Security-Policy", viewPolicy)
			h.Set("X-Content-Type-Options", "nosniff")
			h.Set("X-Frame-Options", "DENY")
			h.Set("Referrer-Policy", "no-referrer")
			h.Set("Cross-Origin-Opener-Policy", "same-origin")
			h.Set("Cross-Origin-Resource-Policy", "same-origin")
			h.Set("Cache-Control", "no-store")
			_, _ = w.Write(body) // the client has left
		})
	}
	handle("api/state", v.pages.rootOnly(v.serveState))
	handle("api/keys", v.pages.rootOnly(v.serveKeys))
	handle("api/history", v.pages.rootOnly(v.serveHistory))
}

// named reports whether a plain request may name a host. A page of anybody's can have its own name
// resolve to a member's address (DNS rebinding), and is then of the same origin as the member: only
// the name that the browser asked for tells them apart. An address cannot be rebound, and with TLS the
// certificate has the name.
func (v *webView) named(host string) bool {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if net.ParseIP(strings.Trim(host, "[]")) != nil || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	if !slices.Contains(v.hosts, "*") && slices.Contains(v.hosts, host) {
		return true
	}
	for _, m := range v.members() {
		for _, text := range m.ClientURLs {
			if u, err := url.Parse(text); err == nil && host != "" && strings.EqualFold(u.Hostname(), host) {
				return true
			}
		}
	}
	return false
}

type viewMember struct {
	ID         string   `json:"id"`
	Name       string   `json:"name"`
	Learner    bool     `json:"learner"`
	ClientURLs []string `json:"client_urls"`
}

func (v *webView) serveState(w http.ResponseWriter, _ *http.Request) {
	st := v.pages.status()
	members, alarms := []viewMember{}, []string{}
	names := map[uint64]string{}
	for _, m := range v.members() {
		members = append(members, viewMember{command.IDText(m.ID), m.Name, m.IsLearner, m.ClientURLs})
		names[m.ID] = m.Name
	}
	for _, a := range v.pages.state.Alarms() {
		alarms = append(alarms, fmt.Sprintf("%s of %s", a.Alarm, names[a.MemberID]))
	}
	leader := ""
	if st.Leader != 0 {
		leader = command.IDText(st.Leader)
	}
	role := "follower"
	switch {
	case st.IsLeader():
		role = "leader"
	case v.pages.state.IsLearner(v.pages.memberID):
		role = "learner"
	}
	peers.AnswerJSON(w, map[string]any{
		"member_id": command.IDText(v.pages.memberID), "name": v.pages.usageName, "role": role, "leader": leader, "term": st.Term,
		"revision": v.kv.kv.Revision(), "db_bytes": v.size(), "quota_bytes": v.quota, "alarms": alarms, "members": members,
		"usage": v.pages.usage.tracker != nil,
	})
}

type viewKey struct {
	Key     []byte `json:"key"` // base64, as all bytes here
	Create  int64  `json:"create_revision"`
	Mod     int64  `json:"mod_revision"`
	Version int64  `json:"version"`
	Lease   string `json:"lease,omitempty"`
}

type viewList struct {
	Revision int64     `json:"revision"`
	Keys     []viewKey `json:"keys"`
	Next     []byte    `json:"next,omitempty"` // where the rest begins
	Note     string    `json:"note,omitempty"`
}

// read reads keys as this member has them: who asks is root, or there are no users.
func (v *webView) read(r *http.Request, q *pb.RangeRequest) (*pb.RangeResponse, error) {
	t := v.kv.turns.newTurn(r.Context())
	defer t.end()
	q.Serializable = true
	return v.kv.rangeLocal(t, q, theMember)
}

// serveKeys lists keys without values: ?prefix= and ?from= (base64), ?revision=.
func (v *webView) serveKeys(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	prefix, err1 := bytesIn(query, "prefix")
	from, err2 := bytesIn(query, "from")
	revision, err3 := revisionIn(query)
	if err := errors.Join(err1, err2, err3); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	key, end := prefix, afterPrefix(prefix)
	if bytes.Compare(from, key) > 0 {
		key = from
	}
	if len(key) == 0 {
		key = []byte{0}
	}
	resp, err := v.read(r, &pb.RangeRequest{Key: key, RangeEnd: end, Revision: revision, Limit: viewKeys + 1, KeysOnly: true})
	out := viewList{Keys: []viewKey{}, Revision: revision}
	if err != nil {
		out.Note = toGRPC(err).Error()
		peers.AnswerJSON(w, out)
		return
	}
	if out.Revision == 0 {
		out.Revision = v.kv.kv.Revision()
	}
	kvs := resp.Kvs
	if len(kvs) > viewKeys {
		out.Next, kvs = kvs[viewKeys].Key, kvs[:viewKeys]
	}
	for _, kv := range kvs {
		k := viewKey{Key: kv.Key, Create: kv.CreateRevision, Mod: kv.ModRevision, Version: kv.Version}
		if kv.Lease != 0 {
			k.Lease = strconv.FormatInt(kv.Lease, 16)
		}
		out.Keys = append(out.Keys, k)
	}
	peers.AnswerJSON(w, out)
}

type viewVersion struct {
	Mod     int64  `json:"mod_revision"`
	Version int64  `json:"version"`
	Bytes   int    `json:"value_bytes"`
	Value   []byte `json:"value"`
	Cut     bool   `json:"cut"`
}

// serveHistory tells the last versions of a key (?key=, base64) that compaction has left, as far as
// the key has existed without a break.
func (v *webView) serveHistory(w http.ResponseWriter, r *http.Request) {
	key, err := bytesIn(r.URL.Query(), "key")
	if err == nil && len(key) == 0 {
		err = errors.New("key is empty")
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	out := struct {
		Versions []viewVersion `json:"versions"`
		Note     string        `json:"note,omitempty"`
	}{Versions: []viewVersion{}}
	for revision := int64(0); ; {
		if len(out.Versions) == viewVersions {
			out.Note = "older ones: belay ctl history"
			break
		}
		resp, err := v.read(r, &pb.RangeRequest{Key: key, Revision: revision})
		if errors.Is(err, mvcc.ErrCompacted) {
			out.Note = "older ones are compacted"
			break
		}
		if err != nil {
			out.Note = toGRPC(err).Error()
			break
		}
		if len(resp.Kvs) == 0 {
			if revision == 0 {
				out.Note = "it does not exist now"
			}
			break
		}
		kv := resp.Kvs[0]
		out.Versions = append(out.Versions, versionOf(kv))
		if revision = kv.ModRevision - 1; revision <= 0 {
			break
		}
	}
	peers.AnswerJSON(w, out)
}

func versionOf(kv *mvccpb.KeyValue) viewVersion {
	shown := kv.Value[:min(len(kv.Value), viewBytes)]
	return viewVersion{Mod: kv.ModRevision, Version: kv.Version, Bytes: len(kv.Value), Value: shown, Cut: len(shown) < len(kv.Value)}
}

func bytesIn(query url.Values, name string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(query.Get(name))
	if err != nil {
		return nil, fmt.Errorf("%s is not base64", name)
	}
	return b, nil
}

func revisionIn(query url.Values) (int64, error) {
	text := query.Get("revision")
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, errors.New("revision must be a number from 0 on")
	}
	return n, nil
}

// afterPrefix is the end of the range of all keys with a prefix, as in a request.
func afterPrefix(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return []byte{0}
}

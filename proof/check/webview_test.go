package check

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/proof/cluster"
)

// viewPictures is where the pictures of the web view are written, or skips a test without it.
func viewPictures(t *testing.T) string {
	t.Helper()
	onlyBelay(t)
	dir := os.Getenv("BELAY_WEBVIEW")
	if dir == "" {
		t.Skip("make webview; BELAY_WEBVIEW is the directory for its pictures")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// theWidths are those that the page is looked at in.
var theWidths = []struct {
	name          string
	width, height int
	phone         bool
}{{"desktop", 1280, 900, false}, {"phone", 390, 844, true}}

// TestWebView opens the page of a member of three in Chromium, as wide as a desk's and as a phone's:
// what it shows is what the members say, without a reload when leadership moves; no request goes to
// anybody else and the console is silent.
func TestWebView(t *testing.T) {
	dir := viewPictures(t)
	b := newBrowser(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 3, Args: []string{"--web-view"}})
	m := c.Members[0]
	client := newClient(t, []string{m.Endpoint()})
	fillView(ctx, t, client)
	for _, w := range theWidths {
		p := b.open(t, m.ClientURL+"/belay/", w.width, w.height, w.phone)
		showsTheCluster(ctx, t, p, c, client)
		showsTheKeys(ctx, t, p, client)
		to := c.Members[1]
		if leaderOf(ctx, t, c, client) == to {
			to = c.Members[2]
		}
		if err := moveLeader(ctx, c, to, ""); err != nil {
			t.Fatal(err)
		}
		showsTheCluster(ctx, t, p, c, client)
		p.until(t, "the change of leader", func() bool {
			var bars int
			p.value(t, "document.querySelectorAll('#leaders rect[height=\"46\"]').length", &bars)
			return bars >= 2
		})
		p.fits(t, m)
		p.picture(t, filepath.Join(dir, w.name+".png"))
	}

	// A link to a prefix and a key, and a member that is gone and comes back.
	p := b.open(t, m.ClientURL+"/belay/#prefix=/fruit/pears/&key=/config/web", 1280, 900, false)
	p.until(t, "the keys of the link", func() bool { return len(p.rows(t, "#keys")) == 20 && len(p.rows(t, "#versions")) == 2 })
	p.fits(t, m)
	if err := m.Stop(ctx); err != nil && !strings.Contains(err.Error(), "signal: terminated") {
		t.Fatal(err)
	}
	p.until(t, "the member's absence", func() bool { return strings.Contains(p.text(t, "#trouble"), "does not answer") })
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	p.until(t, "its return", func() bool { return p.text(t, "#trouble") == "" && p.text(t, "#summary") != "" })
	for _, line := range p.said() {
		if !strings.Contains(line, "Failed to load resource: net::ERR_") && !strings.Contains(line, "status of 503") {
			t.Errorf("the console says %s", line)
		}
	}
}

// fillView writes what the page is to show: most requests under one prefix, and a key with a history.
func fillView(ctx context.Context, t *testing.T, client *clientv3.Client) {
	t.Helper()
	put := func(key, value string) {
		if _, err := client.Put(ctx, key, value); err != nil {
			t.Fatal(err)
		}
	}
	put("/config/web", "one")
	put("/config/web", "two")
	put("/config/<img src=x onerror=alert(1)>", "<script>alert(1)</script>")
	put("/config/"+strings.Repeat("long", 60), strings.Repeat("long value ", 300))
	for i := range 400 {
		put(fmt.Sprintf("/fruit/pears/%d", i%20), strings.Repeat("p", 100))
	}
}

// showsTheCluster holds when the page tells of members, leader, round trips, syncs, requests, events
// and who uses it what the members say themselves.
func showsTheCluster(ctx context.Context, t *testing.T, p *page, c *cluster.Cluster, client *clientv3.Client) {
	t.Helper()
	list, err := client.MemberList(ctx)
	if err != nil {
		t.Fatal(err)
	}
	leader := leaderOf(ctx, t, c, client).Name
	p.until(t, "the leader", func() bool {
		st, err := client.Status(ctx, client.Endpoints()[0])
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(p.text(t, "#summary"), fmt.Sprintf("leader %s, term %d, revision %d,", leader, st.RaftTerm, st.Header.Revision)) &&
			strings.HasPrefix(p.text(t, "#name"), "m1 (")
	})
	rows := p.rows(t, "#members")
	for _, m := range list.Members {
		role := "voter"
		if m.Name == leader {
			role = "leader"
		}
		want := []string{m.Name, role, fmt.Sprintf("%x", m.ID), m.ClientURLs[0]}
		if !slices.ContainsFunc(rows, func(row []string) bool { return slices.Equal(row, want) }) {
			t.Errorf("no row %q in %q", want, rows)
		}
	}
	if len(rows) != len(list.Members) {
		t.Errorf("members %q", rows)
	}
	p.until(t, "round trips to the others", func() bool {
		rows := p.rows(t, "#links")
		return len(rows) == len(list.Members)-1 && !slices.ContainsFunc(rows, func(row []string) bool { return row[1] == "-" })
	})
	p.until(t, "the event of the election", func() bool {
		return slices.ContainsFunc(p.rows(t, "#events"), func(row []string) bool { return row[1] == "followed" || row[1] == "elected" })
	})
	p.until(t, "the requests", func() bool {
		return slices.ContainsFunc(p.rows(t, "#requests"), func(row []string) bool { return row[0] == "Put" && row[2] != "-" && row[3] != "-" })
	})
	p.until(t, "the syncs", func() bool {
		return strings.Contains(p.text(t, "#fsync"), "p99") && !strings.Contains(p.text(t, "#fsync"), "p50 -")
	})
	p.value(t, "document.getElementById('by').value = 'keys', document.getElementById('by').dispatchEvent(new Event('change'))", nil)
	p.until(t, "the hot prefix", func() bool {
		rows := p.rows(t, "#usage")
		if len(rows) == 0 || rows[0][0] != "/fruit/pears/" {
			return false
		}
		share, err := strconv.ParseFloat(strings.TrimSuffix(rows[0][1], " %"), 64)
		return err == nil && share > 80
	})
}

// showsTheKeys uses the browser of keys as a person does.
func showsTheKeys(ctx context.Context, t *testing.T, p *page, client *clientv3.Client) {
	t.Helper()
	search := func(prefix, revision string) {
		p.value(t, fmt.Sprintf(`document.getElementById('prefix').value = %q, document.getElementById('revision').value = %q,
			document.querySelector('#browse button[type=submit]').click()`, prefix, revision), nil)
	}
	got, err := client.Get(ctx, "/config/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	search("/config/", "")
	p.until(t, "the keys", func() bool {
		rows := p.rows(t, "#keys")
		if len(rows) != len(got.Kvs) {
			return false
		}
		for i, kv := range got.Kvs {
			if rows[i][0] != string(kv.Key) || rows[i][2] != fmt.Sprint(kv.ModRevision) || rows[i][3] != fmt.Sprint(kv.Version) {
				return false
			}
		}
		return true
	})
	p.value(t, "[...document.querySelectorAll('#keys button.key')].find(b => b.innerText === '/config/web').click()", nil)
	now, err := client.Get(ctx, "/config/web")
	if err != nil {
		t.Fatal(err)
	}
	last, first := fmt.Sprint(now.Kvs[0].ModRevision), fmt.Sprint(now.Kvs[0].CreateRevision)
	p.until(t, "the history", func() bool {
		rows := p.rows(t, "#versions")
		return len(rows) == 2 && slices.Equal(rows[0], []string{last, "2", "3 B", "two"}) && slices.Equal(rows[1], []string{first, "1", "3 B", "one"})
	})
	if got := p.text(t, "#historyOf"); got != "History of /config/web" {
		t.Errorf("the history is headed %q", got)
	}
	search("/config/", first)
	p.until(t, "the keys of then", func() bool { rows := p.rows(t, "#keys"); return len(rows) == 1 && rows[0][3] == "1" })
	search("/config/", "")
	p.until(t, "the keys of now", func() bool { return len(p.rows(t, "#keys")) == len(got.Kvs) })
	p.value(t, "[...document.querySelectorAll('#keys button.key')].find(b => b.innerText.includes('longlong')).click()", nil)
	p.until(t, "a long key's history", func() bool { rows := p.rows(t, "#versions"); return len(rows) == 1 && rows[0][2] == "3.3 kB" })
	var markup int
	p.value(t, "document.querySelectorAll('main img, main script').length", &markup)
	if markup != 0 {
		t.Error("a key's text became markup")
	}
}

// fits: the page is not wider than its window, all that it asked for is the member's, and its
// console has said nothing.
func (p *page) fits(t *testing.T, m *cluster.Member) {
	t.Helper()
	var wide struct{ Content, Window int }
	p.value(t, "({Content: document.documentElement.scrollWidth, Window: document.documentElement.clientWidth})", &wide)
	if wide.Content > wide.Window {
		t.Errorf("the page is %d wide, its window %d", wide.Content, wide.Window)
	}
	for _, line := range p.said() {
		t.Errorf("the console says %s", line)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.asked) < 5 {
		t.Errorf("it asked for %q only", p.asked)
	}
	for _, url := range p.asked {
		if !strings.HasPrefix(url, m.ClientURL+"/") && url != "data:," {
			t.Errorf("it asked for %s", url)
		}
	}
}

// TestWebViewUsers is the page with TLS and users: it shows nothing before root logs in, says why
// somebody else sees nothing, and forgets the login with the page.
func TestWebViewUsers(t *testing.T) {
	dir := viewPictures(t)
	a := newIssuer(t, "ca")
	a.issue("server", nil)
	a.issue("good", nil)
	text, err := os.ReadFile(a.Cert("server"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	b := newBrowser(t, base64.StdEncoding.EncodeToString(sum[:]))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c := startSecure(t, cluster.Config{Kind: cluster.Belay, Binary: Belay(t), Size: 1, Dir: t.TempDir(), TLS: a.client("good"), Args: []string{
		"--cert-file=" + a.Cert("server"), "--key-file=" + a.Key("server"), "--web-view",
	}})
	m := c.Members[0]
	open := func(user, password string) *clientv3.Client {
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{m.Endpoint()}, TLS: a.client("good"), Username: user, Password: password, DialTimeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		return client
	}
	client := open("", "")
	fillView(ctx, t, client)
	for _, user := range []string{"root", "alice"} {
		if _, err := client.UserAdd(ctx, user, user+"'s"); err != nil {
			t.Fatal(err)
		}
		if _, err := client.RoleAdd(ctx, user); err != nil {
			t.Fatal(err)
		}
		if _, err := client.UserGrantRole(ctx, user, user); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.AuthEnable(ctx); err != nil {
		t.Fatal(err)
	}
	client = open("root", "root's")
	for _, w := range theWidths {
		p := b.open(t, m.ClientURL+"/belay/", w.width, w.height, w.phone)
		needsLogin := func() {
			p.until(t, "the login", func() bool { return p.text(t, "#login") != "" && p.text(t, "#main") == "" })
		}
		login := func(user, password string) {
			p.value(t, fmt.Sprintf("document.getElementById('user').value = %q, document.getElementById('password').value = %q, document.querySelector('#login button').click()", user, password), nil)
		}
		needsLogin()
		p.picture(t, filepath.Join(dir, w.name+"-login.png"))
		login("root", "wrong")
		p.until(t, "the refusal", func() bool { return strings.Contains(p.text(t, "#trouble"), "no login: ") })
		needsLogin()
		login("alice", "alice's")
		p.until(t, "the refusal of alice", func() bool { return strings.Contains(p.text(t, "#trouble"), "alice sees nothing here: ") })
		needsLogin()
		for _, line := range p.said() { // the browser's own lines about answers that refuse
			if !strings.HasPrefix(line, "network error: Failed to load resource: the server responded with a status of 40") {
				t.Errorf("the console says %s", line)
			}
		}
		login("root", "root's")
		showsTheCluster(ctx, t, p, c, client)
		showsTheKeys(ctx, t, p, client)
		p.fits(t, m)
		p.picture(t, filepath.Join(dir, w.name+"-users.png"))
		var kept int
		p.value(t, "document.cookie.length + localStorage.length + sessionStorage.length", &kept)
		if kept != 0 {
			t.Error("the page keeps something")
		}
		p.call(t, "Page.reload", nil, nil)
		needsLogin()
	}
}

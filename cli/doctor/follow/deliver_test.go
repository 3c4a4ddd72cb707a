package follow

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// nasty is a report with what a shell, a line or Slack would take for its own.
var nasty = Report{
	Event: LeaderChange, Time: time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC), From: "m1; touch owned", To: "m2", Term: 7,
	Member: "m1; touch owned", Cause: "disk-slow", Sure: likely, Without: 1.5, Evidence: []string{"a sync & <more>", "$(touch owned) `touch owned`\nX=1"}, Advice: "look at \"it\"",
}

// troubles collects what went wrong.
type troubles struct {
	mu  sync.Mutex
	all []string
}

func (tr *troubles) add(text string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.all = append(tr.all, text)
}

func (tr *troubles) String() string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return strings.Join(tr.all, "\n")
}

// deliver puts reports and waits until they are delivered.
func deliver(t *testing.T, o Receivers, reports ...Report) string {
	t.Helper()
	var tr troubles
	o.Trouble, o.Again = tr.add, time.Millisecond
	if o.AtMost.Count == 0 {
		o.AtMost = Rate{100, time.Hour}
	}
	d := NewDeliverer(t.Context(), o)
	for _, r := range reports {
		d.Put(r)
	}
	d.Close()
	return tr.String()
}

// receiver is a webhook's other end, which answers with the codes given, the last again and again.
func receiver(t *testing.T, codes ...int) (url string, got func() []string) {
	t.Helper()
	var mu sync.Mutex
	var all []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s, %q, %v", r.Method, r.Header.Get("Content-Type"), err)
		}
		all = append(all, r.URL.Path+" "+string(body))
		w.WriteHeader(codes[min(len(all), len(codes))-1])
	}))
	t.Cleanup(s.Close)
	return s.URL, func() []string { mu.Lock(); defer mu.Unlock(); return all }
}

func TestWebhooks(t *testing.T) {
	// Alertmanager's API v2: POST /api/v2/alerts, a list of postableAlert, which has these fields.
	url, got := receiver(t, 200)
	where, err := CheckWebhook(url, FormAlertmanager)
	if err != nil {
		t.Fatal(err)
	}
	if trouble := deliver(t, Receivers{Webhook: where, Form: FormAlertmanager, Labels: map[string]string{"cluster": "prod"}}, nasty); trouble != "" {
		t.Error(trouble)
	}
	path, body, _ := strings.Cut(strings.Join(got(), "\n"), " ")
	var alerts []struct {
		Labels       map[string]string `json:"labels"`
		Annotations  map[string]string `json:"annotations"`
		StartsAt     time.Time         `json:"startsAt"`
		EndsAt       time.Time         `json:"endsAt"`
		GeneratorURL string            `json:"generatorURL"`
	}
	dec := json.NewDecoder(strings.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&alerts); err != nil || path != "/api/v2/alerts" || len(alerts) != 1 {
		t.Fatalf("%s: %v: %s", path, err, body)
	}
	a := alerts[0]
	if !a.StartsAt.Equal(nasty.Time) || a.Labels["alertname"] != "EtcdLeaderChanged" || a.Labels["cause"] != "disk-slow" || a.Labels["member"] != nasty.Member ||
		a.Labels["cluster"] != "prod" || a.Labels["severity"] == "" || a.Annotations["advice"] != nasty.Advice || !strings.Contains(a.Annotations["summary"], "m2 leads in term 7") {
		t.Errorf("%+v", a)
	}
	for name, value := range a.Labels {
		if value == "" {
			t.Errorf("label %s is empty", name)
		}
	}

	// A receiver that is started again takes what came meanwhile.
	url, got = receiver(t, 500, 429, 503, 503, 503, 503, 200)
	if trouble := deliver(t, Receivers{Webhook: url + "/services/secret", Form: FormSlack}, nasty); trouble != "webhook: 500 Internal Server Error; it is tried again" {
		t.Error(trouble)
	}
	if len(got()) != 7 {
		t.Errorf("asked %d times", len(got()))
	}
	var message map[string]string
	path, body, _ = strings.Cut(got()[6], " ")
	if err := json.Unmarshal([]byte(body), &message); err != nil || path != "/services/secret" || len(message) != 1 || !strings.Contains(message["text"], "a sync &amp; &lt;more&gt;") || !strings.Contains(message["text"], "m1; touch owned -&gt; m2, term 7") {
		t.Errorf("%s: %v: %q", path, err, message)
	}

	url, got = receiver(t, 400)
	trouble := deliver(t, Receivers{Webhook: url, Form: FormJSON}, nasty)
	if len(got()) != 1 || !strings.Contains(trouble, "400 Bad Request") {
		t.Errorf("asked %d times: %s", len(got()), trouble)
	}
	var back Report
	if err := json.Unmarshal([]byte(strings.TrimPrefix(got()[0], "/ ")), &back); err != nil || fmt.Sprint(back) != fmt.Sprint(nasty) {
		t.Errorf("%+v, %v", back, err)
	}
	// Nobody there: the URL, which may be a secret, is not told.
	trouble = deliver(t, Receivers{Webhook: "http://127.0.0.1:1/services/secret", Form: FormSlack}, nasty)
	if !strings.Contains(trouble, "connection refused") || strings.Contains(trouble, "secret") {
		t.Error(trouble)
	}
	for _, c := range [][3]string{
		{"http://a/", FormAlertmanager, "http://a/api/v2/alerts"}, {"https://a/x/api/v2/alerts", FormAlertmanager, "https://a/x/api/v2/alerts"},
		{"https://a/", FormSlack, "https://a/"}, {"a:80", FormSlack, ""}, {"", FormJSON, ""}, {"http://a", "teams", ""}, {"file:///etc/passwd", FormJSON, ""},
	} {
		if have, err := CheckWebhook(c[0], c[1]); have != c[2] || (err == nil) != (c[2] != "") {
			t.Errorf("%v: %q, %v", c, have, err)
		}
	}
}

func TestAtMost(t *testing.T) {
	url, got := receiver(t, 200)
	trouble := deliver(t, Receivers{Webhook: url, Form: FormJSON, AtMost: Rate{2, time.Hour}}, nasty, nasty, nasty, nasty)
	if len(got()) != 2 || strings.Count(trouble, "--at-most") != 1 {
		t.Errorf("%d were sent: %s", len(got()), trouble)
	}
	// The next that is sent says how many were not.
	var tr troubles
	d := NewDeliverer(t.Context(), Receivers{Webhook: url, Form: FormJSON, AtMost: Rate{1, time.Hour}, Trouble: tr.add})
	d.Put(nasty)
	d.Put(nasty)
	d.Put(nasty)
	d.sent[0] = d.sent[0].Add(-time.Hour)
	d.Put(nasty)
	d.Close()
	if all := got(); len(all) != 4 || !strings.Contains(all[3], `"left_out":2`) {
		t.Errorf("%q", all)
	}
	for text, want := range map[string]Rate{"10/1h": {10, time.Hour}, "1/90s": {1, 90 * time.Second}, "0/1h": {}, "10": {}, "x/1h": {}, "10/1": {}, "10/1ms": {}, "-1/1h": {}, "5x/1h": {}} {
		if have, err := ParseRate(text); (err == nil) != (want.Count > 0) || err == nil && have != want {
			t.Errorf("%s: %v, %v", text, have, err)
		}
	}
}

func TestExec(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the commands are of a shell")
	}
	dir := t.TempDir()
	t.Chdir(dir)
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\ncat > in\nenv | grep ^BELAY_ > env\nprintf '%s|' \"$@\" > args\necho told\nexit 3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	trouble := deliver(t, Receivers{Exec: []string{script, "one", "$(two)"}}, nasty)
	if !strings.Contains(trouble, "says: told") || !strings.Contains(trouble, "exit status 3") {
		t.Error(trouble)
	}
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	var back Report
	if err := json.Unmarshal([]byte(read("in")), &back); err != nil || back.Member != nasty.Member {
		t.Errorf("%+v, %v", back, err)
	}
	if read("args") != "one|$(two)|" {
		t.Errorf("%q", read("args"))
	}
	for _, want := range []string{"BELAY_EVENT=leader-change\n", "BELAY_OLD_LEADER=m1; touch owned\n", "BELAY_TERM=7\n", "BELAY_WITHOUT_LEADER_SECONDS=1.500\n", "BELAY_SURE=likely\n", "`touch owned` X=1\n"} {
		if !strings.Contains(read("env"), want) {
			t.Errorf("no %q in %s", want, read("env"))
		}
	}
	if _, err := os.Stat("owned"); err == nil {
		t.Error("what stands in a report was run")
	}

	// One that does not end is killed with all that it started, and the next report still comes.
	hangs := filepath.Join(dir, "hangs")
	if err := os.WriteFile(hangs, []byte("#!/bin/sh\necho x >> ran\nsleep 3600 &\nwait\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	trouble = deliver(t, Receivers{Exec: []string{hangs}, Time: 500 * time.Millisecond}, nasty, nasty)
	if strings.Count(trouble, "it did not end within 500ms and was killed") != 2 || strings.Count(read("ran"), "x") != 2 {
		t.Errorf("%s, ran %q", trouble, read("ran"))
	}
	if trouble := deliver(t, Receivers{Exec: []string{"/does/not/exist"}}, nasty); !strings.Contains(trouble, "no such file") {
		t.Error(trouble)
	}
	// The end of follow does not wait for one.
	ctx, cancel := context.WithCancel(t.Context())
	d := NewDeliverer(ctx, Receivers{Exec: []string{hangs}, AtMost: Rate{1, time.Hour}, Trouble: func(string) {}, Time: time.Hour})
	d.Put(nasty)
	cancel()
	d.Close()
}

package dev

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// What a terminal shows of a member's log: a row for each event, what repeats itself once a minute,
// verdicts whole.
func TestView(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.Local)
	var out, full strings.Builder
	v := &view{width: func() int { return 60 }, now: func() time.Time { return now }}
	p := &prefixer{mu: &sync.Mutex{}, w: &out, prefix: "m1 | ", view: v, columns: 5, full: &full}
	var all strings.Builder
	log := func(line string) {
		line = now.UTC().Format(time.RFC3339Nano) + "\t" + line + "\n"
		all.WriteString(line)
		if _, err := p.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	shows := func(what string, rows ...string) {
		t.Helper()
		want := ""
		for _, row := range rows {
			want += "m1 | " + row + "\n"
			if len(row)+5 > 60 {
				t.Errorf("%s: %d columns: %s", what, len(row)+5, row)
			}
		}
		if out.String() != want {
			t.Errorf("%s:\n%swant:\n%s", what, out.String(), want)
		}
		out.Reset()
	}
	gone := func(peer string) string {
		return "warn\ttransport/probe.go:44\tprober detected unhealthy status\t" + `{"remote-peer-id": "` + peer + `", "rtt": "1ms", "error": "dial tcp 127.0.0.1:22003: connect: connection refused"}`
	}
	log("info\tnode/node.go:1\tstarting an etcd server\t" + `{"a": 1}`)
	log("debug\traft\tv3/raft.go:2\tsomething")
	shows("info and debug")
	log("info\traft\tv3@v3.7.0/raft.go:1704\td0b59a2f78288dfd became leader at term 3")
	shows("a leader", "12:00:00 leads, in term 3")
	log(gone("1"))
	shows("the first", "12:00:00 warn prober detected unhealthy status: dial...")
	for range 50 {
		now = now.Add(time.Second)
		log(gone("1"))
	}
	shows("repeated")
	log(gone("2"))
	shows("of another", "12:00:50 warn prober detected unhealthy status: dial...")
	now = now.Add(11 * time.Second)
	log(gone("1"))
	shows("a minute later", "12:01:01 warn prober detected unhealthy status (50 t...")
	log("error\tx.go:1\tbad\t" + `{"error": "worse"}`)
	shows("an error", "12:01:01 error bad: worse")
	log("warn\tevidence/inspector.go:257\tverdict on an incident\t" +
		`{"incident": "election", "cause": "member-killed", "members": ["m2"], "evidence": ["m2 is not running", "nothing had come from it"], "advice": "see why the process ended"}`)
	shows("a verdict", "12:01:01 verdict: member-killed (m2): m2 is not",
		"         running; nothing had come from it. Advice: see", "         why the process ended")
	if _, err := fmt.Fprint(p, "panic: x\n"); err != nil {
		t.Fatal(err)
	}
	shows("a trace", "panic: x")
	if full.String() != all.String()+"panic: x\n" {
		t.Error("the file has not all of it")
	}
	v.colour = true
	log("warn\tx.go:1\tcoloured")
	shows("in colour", "12:01:01 \x1b[33mwarn\x1b[0m coloured")
}

func TestServerArgs(t *testing.T) {
	o := Options{Members: 1, ServerArgs: []string{"--auto-tls", "--peer-cert-file", "/x y", "-peer-auto-tls=false", "--client-cert-auth=true"}}
	if m := o.members()[0]; m.clientURL() != "https://127.0.0.1:2379" || m.peerURL() != "https://127.0.0.1:2380" || m.client() != "https://127.0.0.1:2379" {
		t.Errorf("%+v", m)
	}
	if !o.certificates().ClientCertAuth || o.serverText("peer-cert-file") != "/x y" {
		t.Errorf("%+v", o.certificates())
	}
	o.ServerArgs = []string{"--auto-tls=false"}
	if m := o.members()[0]; m.clientURL() != "http://127.0.0.1:2379" {
		t.Errorf("%+v", m)
	}
}

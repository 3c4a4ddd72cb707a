package rolling

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// kinds makes a picture with who runs what: a letter for each member, b for a Belay, 5, 6 and so on
// for an etcd of that minor version, 0 for one that does not say. cluster is its minor version.
func kinds(text, what, cluster string) *Cluster {
	c := picture(text)
	for i, m := range c.Members {
		m.Version = "3." + cluster + ".0"
		if m.Status == nil {
			continue
		}
		m.Status.Version = "3.7.3"
		switch k := what[i]; k {
		case 'b':
			m.Kind = Belay
		case '0':
		default:
			m.Kind, m.Status.Version = Etcd, "3."+string(k)+".9"
		}
	}
	return c
}

func TestPlan(t *testing.T) {
	for _, tc := range []struct {
		cluster, kinds, version string
		to                      Kind
		etcd                    string
		want                    string
	}{
		{"a b* c", "666", "6", Belay, "", "a c b"},
		{"a* b c", "b66", "6", Belay, "", "b c"},
		{"a b* c", "b6b", "6", Belay, "", "b"},
		{"a b* c", "bbb", "7", Belay, "", ""},
		{"a* b c~ d", "5555", "5", Belay, "", "c b d a"}, // who has no vote first
		{"a* b c d-", "7770", "7", Belay, "", "d b c a"}, // an earlier run stopped it
		{"a b* c", "bbb", "6", Etcd, "", "a c b"},
		{"a b* c", "bb6", "6", Etcd, "3.6", "a b"},
		{"a b* c", "bbb", "7", Etcd, "3.6", "a c b, lower to 3.6"},
		// Refused.
		{"a* b", "66", "6", Belay, "", "no quorum"},
		{"a*", "6", "6", Belay, "", "no quorum"},
		{"a* b- c-", "600", "6", Belay, "", "b and c do not answer"},
		{"a* b! c", "666", "6", Belay, "", "there are alarms"},
		{"a b c", "666", "6", Belay, "", "no member knows a leader"},
		{"a* b c", "664", "4", Belay, "", "is an etcd 3.4.9"},
		{"a* b c", "668", "6", Belay, "", "is an etcd 3.8.9"},
		{"a* b c", "556", "5", Belay, "", "several minor versions"},
		{"a* b c", "660", "6", Belay, "", "does not say over HTTP"},
		{"a* b c d?~", "6660", "6", Belay, "", "has never started"},
		{"a* b c", "666", "", Belay, "", "which version the cluster has"},
		{"a* b c", "bbb", "7", Etcd, "3.5", "an etcd 3.5 cannot join it"},
		{"a* b c", "bbb", "7", Etcd, "3.4", "can share a cluster with Belay"},
		{"a* b c", "bb6", "6", Etcd, "3.7", "the etcds of this cluster are of 3.6"},
		{"a* b c@c?replaces=3?~ d", "bbbb", "7", Etcd, "", "heals"},
	} {
		got := ""
		p, err := newPlan(kinds(tc.cluster, tc.kinds, tc.version), tc.to, tc.etcd, Commands{})
		if err != nil {
			got = err.Error()
		} else {
			var names []string
			for _, m := range p.order {
				names = append(names, m.Name)
			}
			if got = strings.Join(names, " "); p.downgrade {
				got += ", lower to " + p.version
			}
		}
		if got != tc.want && (err == nil || !strings.Contains(got, tc.want)) {
			t.Errorf("%s, %s, 3.%s, to %s %s: %s, want %s", tc.cluster, tc.kinds, tc.version, tc.to, tc.etcd, got, tc.want)
		}
	}
}

func TestPlanText(t *testing.T) {
	commands := Commands{DataDir: "/data/{{.Name}}", WALDir: "/wal/{{slice .Name 0 1}}", Stop: "ssh {{.Host}} systemctl stop {{.From}}", Start: "start {{.ID}} {{.To}} {{.Version}} {{.PeerURL}} {{.ClientURL}}"}
	p, err := newPlan(kinds("a b* c", "6b6", "6"), Belay, "", commands)
	if err != nil {
		t.Fatal(err)
	}
	text, err := p.text()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"--endpoints b snapshot save", "Cluster 63: 3 members, b leads.", "2 become Belay", "ssh a systemctl stop etcd", "belay util migrate --data-dir /data/c --wal-dir /wal/c --in-place\n",
		"start 3 belay 3.6 http://c c", "--max-cluster-version=3.6", "--to-etcd=3.6",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	p, err = newPlan(kinds("a b* c", "bbb", "6"), Etcd, "", commands)
	if err != nil {
		t.Fatal(err)
	}
	text, err = p.text()
	hand := strings.Index(text, "move-leader 1\n            (to a)")
	if err != nil || hand < strings.Index(text, "\nb (b)") || !strings.Contains(text, "--in-place --to-etcd=3.6\n") {
		t.Errorf("%v: %s", err, text)
	}
	if err := commands.Check(); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"{{.Nam}}", "{{"} {
		if err := (Commands{Stop: bad}).Check(); err == nil || !strings.Contains(err.Error(), "--stop-command") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestDo: a command's words are shown, and data that an earlier run has migrated is no failure; without
// a command somebody is asked.
func TestDo(t *testing.T) {
	var out bytes.Buffer
	m := &Move{Out: &out, StepTimeout: time.Minute, In: strings.NewReader("done\n")}
	m.listen()
	at := place{Name: "a", Host: "h"}
	for _, tc := range []struct{ what, command, want string }{
		{"stop", "echo said; exit 0", ""},
		{"stop", "echo said >&2; exit 3", "exit status 3"},
		{"migrate", "echo said: DIR/member is data of belay already; exit 1", ""},
		{"migrate", "echo said: DIR/member is etcd\\'s already: and more; exit 1", ""},
		{"start", "echo said: DIR/member is data of belay already; exit 1", "exit status 1"},
		{"start", "sleep 5 & echo said", ""}, // it does not wait for what goes on
	} {
		out.Reset()
		err := m.do(t.Context(), at, doing{what: tc.what, command: tc.command})
		if (err == nil) != (tc.want == "") || err != nil && err.Error() != tc.want || !strings.Contains(out.String(), "said") {
			t.Errorf("%s: %v, %s", tc.command, err, out.String())
		}
	}
	if err := m.do(t.Context(), at, doing{what: "stop", how: "the etcd"}); err != nil || !strings.Contains(out.String(), "On a (h), stop: the etcd") {
		t.Errorf("%v: %s", err, out.String())
	}
	if err := m.do(t.Context(), at, doing{what: "start"}); err == nil {
		t.Error("nobody answered")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (&Move{Out: &out}).ask(ctx, ""); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestNobodyThere: that nobody listens is known at once, again and again.
func TestNobodyThere(t *testing.T) {
	l, err := newLooker(t.Context(), &clientv3.Config{Endpoints: []string{"127.0.0.1:1"}}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	m := &Member{Member: &pb.Member{ID: 1, ClientURLs: []string{"http://127.0.0.1:1"}}}
	for range 2 {
		if l.ask(t.Context(), &Cluster{}, m); m.Status != nil || m.Err == nil || m.Endpoint != "http://127.0.0.1:1" {
			t.Errorf("%+v", m)
		}
	}
}

package check

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.yaml.in/yaml/v3"

	"github.com/belaydb/belay/proof/cluster"
)

// A doctorRule is one of `belay doctor rules`.
type doctorRule struct {
	Record, Alert, Expr, For string
	Labels, Annotations      map[string]string
}

func (r doctorRule) name() string { return r.Record + r.Alert }

// doctorRules are those that belay prints, as they are and as text.
func doctorRules(t *testing.T, args ...string) (rules []doctorRule, text []byte) {
	t.Helper()
	text, err := exec.CommandContext(t.Context(), Belay(t), append([]string{"doctor", "rules"}, args...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct{ Rules []doctorRule }
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		rules = append(rules, g.Rules...)
	}
	return rules, text
}

// measured are the parts of a rule's expression that must have series on any cluster: what is
// measured, and the guards, each without what begins with the comparison. absent() of what is there
// has none.
func (r doctorRule) measured() (parts []string) {
	comparison := regexp.MustCompile(`^(==|<|>|<=|>=) `)
	part := ""
	flush := func() {
		if part = strings.TrimSpace(part); part != "" {
			parts = append(parts, part)
		}
		part = ""
	}
	skipping := false
	for line := range strings.Lines(r.Expr) {
		switch {
		case comparison.MatchString(line):
			skipping = true
		case strings.HasPrefix(line, "and "):
			flush()
			skipping = false
			guard := strings.TrimPrefix(line, "and ")
			if on := regexp.MustCompile(`^on \([^)]*\) \((.*)\)\s*$`).FindStringSubmatch(guard); on != nil {
				guard = on[1]
			}
			if at := regexp.MustCompile(` (==|<|>|<=|>=) [\d.e+]+\s*$`).FindStringIndex(guard); at != nil {
				guard = guard[:at[0]]
			}
			part = guard
		case !skipping:
			part += line
		}
	}
	flush()
	for i, p := range parts {
		if inner, ok := strings.CutPrefix(p, "absent("); ok {
			parts[i] = strings.TrimSuffix(inner, ")")
		}
	}
	return parts
}

// doctorPanels are the queries of a dashboard by their panel's title, as Grafana would send them.
func doctorPanels(t *testing.T, kind cluster.Kind, job string) map[string][]string {
	t.Helper()
	text, err := exec.CommandContext(t.Context(), Belay(t), "doctor", "dashboard", "--for", string(kind)).Output()
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	queries := map[string][]string{}
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			queries[p.Title] = append(queries[p.Title], strings.NewReplacer("$__rate_interval", "5m", "$job", job, "$instance", ".*").Replace(target.Expr))
		}
	}
	return queries
}

var hours = regexp.MustCompile(`< (\d+) \* 3600`)

// hastenRules is hasten for what doctor prints, which compares with hours, too. Days, of
// certificates, stay: the clock is not hastened.
func hastenRules(text string) string {
	text = hours.ReplaceAllStringFunc(text, func(s string) string {
		n, _ := strconv.Atoi(hours.FindStringSubmatch(s)[1])
		return "< " + strconv.Itoa(n*3600/faster)
	})
	return hasten(text)
}

// wantSeries checks that each rule measures something, and that each panel shows something.
func (p *prometheus) wantSeries(ctx context.Context, rules []doctorRule, panels map[string][]string) {
	p.t.Helper()
	want := func(what, expr string) {
		if err := patiently(ctx, func() error {
			values, err := p.query(ctx, hastenRules(expr))
			if err == nil && len(values) == 0 {
				err = errors.New("no series")
			}
			return err
		}); err != nil {
			p.t.Errorf("%s: %s: %v", what, expr, err)
		}
	}
	for _, r := range rules {
		for _, part := range r.measured() {
			want(r.name(), part)
		}
	}
	for title, queries := range panels {
		for _, q := range queries {
			want("panel "+title, q)
		}
	}
}

// machines are the alerts that depend on how fast a machine is, which a test cannot promise.
var machines = []string{
	"FsyncSlow", "CommitSlow", "RoundTripSlow", "HeartbeatsLate", "LoopLate", "SlowApplies", "DiskStalled", "StoreStalled",
	"IncidentVerdict", "ReadersWait", "LongRequestsWait", "ProposalsPending", "ApplyBehind", "LeaderChanges", "SlowWatchers", "RequestsFailed",
}

func ofMachine(alert string) bool {
	return slices.ContainsFunc(machines, func(m string) bool { return strings.HasSuffix(alert, m) })
}

// TestMeasured: an expression is taken apart as it is meant.
func TestMeasured(t *testing.T) {
	for expr, want := range map[string][]string{
		"up{a=\"b\"}\n== 0": {`up{a="b"}`},
		"absent(up{})":      {"up{}"},
		"a\n/ b\n> 1\nand on (job) (min by (job) (up) == 1)\nand x > 0.1": {"a\n/ b", "min by (job) (up)", "x"},
		"(a or 0 * b)\n> 0": {"(a or 0 * b)"},
	} {
		if have := (doctorRule{Expr: expr}).measured(); !slices.Equal(have, want) {
			t.Errorf("%q: %q, want %q", expr, have, want)
		}
	}
}

// TestDoctorRules has a real Prometheus evaluate what `belay doctor rules` prints, over three members
// of each kind that are well, and then are not: each rule measures something, each panel of the
// dashboard shows something, and nothing fires or is about to; then a quota is reached, members die,
// and those alerts fire that are about this, and no others.
//
// It takes minutes: `make rules`.
func TestDoctorRules(t *testing.T) {
	if os.Getenv("BELAY_RULES") == "" {
		t.Skip("takes minutes: make rules (BELAY_RULES=1)")
	}
	program(t, "prometheus")
	program(t, "promtool")
	for _, kind := range []cluster.Kind{cluster.Etcd, cluster.Belay} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			testDoctorRules(t, kind)
		})
	}
}

func testDoctorRules(t *testing.T, kind cluster.Kind) {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	binary, prefix := Belay(t), "Belay"
	// Members without TLS have no certificates that could expire.
	args := []string{"--quota-backend-bytes", strconv.Itoa(48 << 20), "--peer-auto-tls"}
	if kind == cluster.Etcd {
		binary, prefix = EtcdTools(t).Etcd, "Etcd"
	}
	c := startCluster(t, cluster.Config{Kind: kind, Binary: binary, Size: 3, Dir: t.TempDir(), Args: args, PeerTLS: true})
	const selector = `job="etcd"` // as startPrometheus names it
	rules, text := doctorRules(t, "--for", string(kind), "--selector", selector, "--tune", "--endpoints", c.Members[0].ClientURL)
	p := startPrometheus(t, c, []byte(hastenRules(string(text))))

	client := newClient(t, c.Endpoints())
	client.Watch(ctx, "load")
	lease, err := client.Grant(ctx, 600)
	if err != nil {
		t.Fatal(err)
	}
	loaded, stopLoad := context.WithCancel(ctx)
	defer stopLoad()
	go func() {
		for n := 0; loaded.Err() == nil; n++ {
			call, cancel := context.WithTimeout(loaded, time.Second)
			_, _ = client.Put(call, "load", strconv.Itoa(n), clientv3.WithLease(lease.ID))
			_, _ = client.Get(call, "load")
			cancel()
			select {
			case <-loaded.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()

	// Well.
	p.wantSeries(ctx, rules, doctorPanels(t, kind, "etcd"))
	if err := patiently(ctx, func() error {
		for _, state := range []string{"pending", "firing"} {
			names, err := p.alerts(ctx, state)
			if err != nil {
				return err
			}
			for _, name := range names {
				if !ofMachine(strings.Split(name, "/")[0]) {
					return fmt.Errorf("%s is %s although all is well", name, state)
				}
			}
		}
		return nil
	}); err != nil {
		t.Error(err)
	}

	// Full: the quota is reached.
	value := make([]byte, 256<<10)
	random := rand.NewChaCha8([32]byte{1}) // what can be compressed takes no space
	p.fire(ctx, func() {
		for n := range 20 {
			call, cancel := context.WithTimeout(ctx, 5*time.Second)
			_, _ = random.Read(value)
			_, _ = client.Put(call, fmt.Sprint("fill", n, time.Now().UnixNano()), string(value))
			cancel()
		}
	}, prefix+"QuotaNear/warning", prefix+"AlarmNoSpace/critical")
	p.silent(ctx, prefix, "MemberDown/warning", "QuorumLost/critical", "NoLeader/critical", "AlarmCorrupt/critical", "NotScraped/critical")

	// A member is dead.
	leader := leaderOf(ctx, t, c, client)
	victims := slices.DeleteFunc(slices.Clone(c.Members), func(m *cluster.Member) bool { return m == leader })
	if err := victims[0].Kill(); err != nil {
		t.Fatal(err)
	}
	p.fire(ctx, nil, prefix+"MemberDown/warning")
	p.silent(ctx, prefix, "QuorumLost/critical", "NoLeader/critical")
	if kind == cluster.Belay {
		p.fire(ctx, nil, prefix+"IncidentVerdict/warning")
	}
	// Another, and with it the quorum.
	if err := victims[1].Kill(); err != nil {
		t.Fatal(err)
	}
	p.fire(ctx, nil, prefix+"QuorumLost/critical", prefix+"NoLeader/critical")
}

// patiently is eventually for what takes up to two minutes: windows of an hour, and a quota that is
// filled by a busy machine.
func patiently(ctx context.Context, try func() error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for ctx.Err() == nil {
		if err = eventually(ctx, try); err == nil {
			return nil
		}
	}
	return err
}

// fire waits until all of these fire, doing something meanwhile.
func (p *prometheus) fire(ctx context.Context, meanwhile func(), want ...string) {
	p.t.Helper()
	if err := patiently(ctx, func() error {
		if meanwhile != nil {
			meanwhile()
		}
		have, err := p.firing(ctx)
		for _, name := range want {
			if err == nil && !slices.Contains(have, name) {
				err = fmt.Errorf("%s does not fire; %v do", name, have)
			}
		}
		return err
	}); err != nil {
		p.t.Error(err)
	}
}

// silent waits until none of these fires: one that did because scrapes were missed, of which two in a
// row are a minute here, does not stay.
func (p *prometheus) silent(ctx context.Context, prefix string, names ...string) {
	p.t.Helper()
	if err := patiently(ctx, func() error {
		have, err := p.firing(ctx)
		for _, name := range names {
			if slices.Contains(have, prefix+name) {
				err = fmt.Errorf("%s%s fires", prefix, name)
			}
		}
		return err
	}); err != nil {
		p.t.Error(err)
	}
}

// alerts returns the names of the alerts in a state, as name/severity.
func (p *prometheus) alerts(ctx context.Context, state string) (names []string, err error) {
	var data struct {
		Alerts []struct {
			State  string
			Labels map[string]string
		}
	}
	if err := p.get(ctx, "/api/v1/alerts", &data); err != nil {
		return nil, err
	}
	for _, a := range data.Alerts {
		if name := a.Labels["alertname"] + "/" + a.Labels["severity"]; a.State == state && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

package check

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/proof/cluster"
)

// alert is one of the community's alerts on etcd (contrib/mixin): its expression, cut before the
// comparison that makes an alert of it, and how long it must hold.
type alert struct {
	name, severity, holds string
	measures              string // must return series
	fires                 string // the rest of the expression
	slow                  bool   // depends on the machine's speed, which a test cannot promise
}

const failed = `grpc_server_handled_total{job=~".*etcd.*", grpc_code=~"Unknown|FailedPrecondition|ResourceExhausted|Internal|Unavailable|DataLoss|DeadlineExceeded"}[5m]`

func alerts() []alert {
	const sel = `{job=~".*etcd.*"}`
	failing := `100 * sum(rate(` + failed + `)) without (grpc_type, grpc_code) / sum(rate(grpc_server_handled_total` + sel + `[5m])) without (grpc_type, grpc_code)`
	fsync := `histogram_quantile(0.99, rate(etcd_disk_wal_fsync_duration_seconds_bucket` + sel + `[5m]))`
	return []alert{
		{name: "etcdMembersDown", severity: "warning", holds: "20m",
			measures: `max without (endpoint) (sum without (instance) (up` + sel + ` == bool 0) or count without (To) (sum without (instance) (rate(etcd_network_peer_sent_failures_total` + sel + `[120s])) > 0.01))`, fires: `> 0`},
		{name: "etcdInsufficientMembers", severity: "critical", holds: "3m",
			measures: `sum(up` + sel + ` == bool 1) without (instance)`, fires: `< ((count(up` + sel + `) without (instance) + 1) / 2)`},
		{name: "etcdNoLeader", severity: "critical", holds: "1m", measures: `etcd_server_has_leader` + sel, fires: `== 0`},
		{name: "etcdHighNumberOfLeaderChanges", severity: "warning", holds: "5m",
			measures: `increase((max without (instance) (etcd_server_leader_changes_seen_total` + sel + `) or 0*absent(etcd_server_leader_changes_seen_total` + sel + `))[15m:1m])`, fires: `>= 4`},
		{name: "etcdHighNumberOfFailedGRPCRequests", severity: "warning", holds: "10m", measures: failing, fires: `> 1`},
		{name: "etcdHighNumberOfFailedGRPCRequests", severity: "critical", holds: "5m", measures: failing, fires: `> 5`},
		{name: "etcdGRPCRequestsSlow", severity: "critical", holds: "10m", slow: true,
			measures: `histogram_quantile(0.99, sum(rate(grpc_server_handling_seconds_bucket{job=~".*etcd.*", grpc_method!="Defragment", grpc_type="unary"}[5m])) without(grpc_type))`, fires: `> 0.15`},
		{name: "etcdMemberCommunicationSlow", severity: "warning", holds: "10m", slow: true,
			measures: `histogram_quantile(0.99, rate(etcd_network_peer_round_trip_time_seconds_bucket` + sel + `[5m]))`, fires: `> 0.15`},
		{name: "etcdHighNumberOfFailedProposals", severity: "warning", holds: "15m",
			measures: `rate(etcd_server_proposals_failed_total` + sel + `[15m])`, fires: `> 5`},
		{name: "etcdHighFsyncDurations", severity: "warning", holds: "10m", slow: true, measures: fsync, fires: `> 0.5`},
		{name: "etcdHighFsyncDurations", severity: "critical", holds: "10m", slow: true, measures: fsync, fires: `> 1`},
		{name: "etcdHighCommitDurations", severity: "warning", holds: "10m", slow: true,
			measures: `histogram_quantile(0.99, rate(etcd_disk_backend_commit_duration_seconds_bucket` + sel + `[5m]))`, fires: `> 0.25`},
		{name: "etcdDatabaseQuotaLowSpace", severity: "critical", holds: "10m",
			measures: `(last_over_time(etcd_mvcc_db_total_size_in_bytes` + sel + `[5m]) / last_over_time(etcd_server_quota_backend_bytes` + sel + `[5m]))*100`, fires: `> 95`},
		{name: "etcdExcessiveDatabaseGrowth", severity: "warning", holds: "10m",
			measures: `predict_linear(etcd_mvcc_db_total_size_in_bytes` + sel + `[4h], 4*60*60)`, fires: `> etcd_server_quota_backend_bytes` + sel},
		{name: "etcdDatabaseHighFragmentationRatio", severity: "warning", holds: "10m",
			measures: `(last_over_time(etcd_mvcc_db_total_size_in_use_in_bytes` + sel + `[5m]) / last_over_time(etcd_mvcc_db_total_size_in_bytes` + sel + `[5m]))`,
			fires:    `< 0.5 and etcd_mvcc_db_total_size_in_use_in_bytes` + sel + ` > 104857600`},
	}
}

// panels are what the community's dashboards ask for.
func panels() []string {
	const sel = `{job="etcd"}`
	streams := func(service string) string {
		s := `{job="etcd",grpc_service="etcdserverpb.` + service + `",grpc_type="bidi_stream"}`
		return `sum(grpc_server_started_total` + s + `) - sum(grpc_server_handled_total` + s + `)`
	}
	return []string{
		`sum(etcd_server_has_leader` + sel + `)`,
		`sum(rate(grpc_server_started_total{job="etcd",grpc_type="unary"}[5m]))`,
		`sum(rate(grpc_server_handled_total{job="etcd",grpc_type="unary",grpc_code=~"Unknown|Unavailable|DeadlineExceeded"}[5m]))`,
		streams("Watch"), streams("Lease"),
		`etcd_mvcc_db_total_size_in_bytes` + sel,
		`histogram_quantile(0.99, sum(rate(etcd_disk_wal_fsync_duration_seconds_bucket` + sel + `[5m])) by (instance, le))`,
		`histogram_quantile(0.99, sum(rate(etcd_disk_backend_commit_duration_seconds_bucket` + sel + `[5m])) by (instance, le))`,
		`process_resident_memory_bytes` + sel,
		`rate(etcd_network_client_grpc_received_bytes_total` + sel + `[5m])`,
		`rate(etcd_network_client_grpc_sent_bytes_total` + sel + `[5m])`,
		`sum(rate(etcd_network_peer_received_bytes_total` + sel + `[5m])) by (instance)`,
		`sum(rate(etcd_network_peer_sent_bytes_total` + sel + `[5m])) by (instance)`,
		`changes(etcd_server_leader_changes_seen_total` + sel + `[1d])`,
		`histogram_quantile(0.99, sum by (instance, le) (rate(etcd_network_peer_round_trip_time_seconds_bucket` + sel + `[5m])))`,
		`sum(rate(etcd_server_proposals_failed_total` + sel + `[5m]))`,
		`sum(etcd_server_proposals_pending` + sel + `)`,
		`sum(rate(etcd_server_proposals_committed_total` + sel + `[5m]))`,
		`sum(rate(etcd_server_proposals_applied_total` + sel + `[5m]))`,
		`etcd_server_quota_backend_bytes` + sel,
		`sum(rate(etcd_server_slow_apply_total` + sel + `[5m]))`,
	}
}

// faster is by how much time runs faster than in production: every window and
// every waiting time of a rule is divided by it, and a scrape comes each 250 ms
// in place of 30 s. Thresholds are rates and ratios, and stay.
const faster = 120

var (
	window  = regexp.MustCompile(`\b(\d+)([smhd])\b`)
	seconds = map[string]int{"s": 1, "m": 60, "h": 3600, "d": 86400}
)

func hasten(text string) string {
	text = strings.ReplaceAll(text, "4*60*60", strconv.Itoa(4*60*60/faster))
	return window.ReplaceAllStringFunc(text, func(s string) string {
		m := window.FindStringSubmatch(s)
		n, _ := strconv.Atoi(m[1])
		return fmt.Sprintf("%dms", n*seconds[m[2]]*1000/faster)
	})
}

func ruleFile(list []alert, change func(string) string) []byte {
	var b bytes.Buffer
	b.WriteString("groups:\n- name: etcd\n  rules:\n")
	for _, a := range list {
		fmt.Fprintf(&b, "  - alert: %s\n    expr: %s\n    for: %s\n    labels: {severity: %s}\n    annotations: {summary: %q}\n",
			a.name, strconv.Quote(change(a.measures+" "+a.fires)), change(a.holds), a.severity, "see "+a.name)
	}
	return b.Bytes()
}

// prometheus is a running server that watches a cluster.
type prometheus struct {
	t    *testing.T
	base string
	log  string
}

func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("needs %s in PATH (Debian's package prometheus)", name)
	}
	return path
}

func startPrometheus(t *testing.T, c *cluster.Cluster, rules []byte) *prometheus {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	config := write("prometheus.yml", fmt.Appendf(nil, `global: {scrape_interval: 250ms, scrape_timeout: 250ms, evaluation_interval: 250ms}
rule_files: [%s]
scrape_configs:
- job_name: etcd
  static_configs: [{targets: [%s]}]
`, write("rules.yml", rules), strings.Join(c.Endpoints(), ", ")))
	if out, err := exec.Command(program(t, "promtool"), "check", "config", config).CombinedOutput(); err != nil {
		t.Fatalf("promtool check config: %v\n%s", err, out)
	}
	port, err := cluster.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	p := &prometheus{t: t, base: fmt.Sprintf("http://127.0.0.1:%d", port), log: filepath.Join(dir, "log")}
	log, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program(t, "prometheus"), "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+strings.TrimPrefix(p.base, "http://"), "--log.level=warn")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
	})
	return p
}

func (p *prometheus) get(ctx context.Context, path string, into any) error {
	body, err := getBody(ctx, p.base+path)
	if err != nil {
		return err
	}
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("%s: %.200s", path, body)
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", path, answer.Error)
	}
	return json.Unmarshal(answer.Data, into)
}

// query returns the values of the series that an expression returns now.
func (p *prometheus) query(ctx context.Context, expr string) (values []float64, err error) {
	var data struct {
		Result []struct{ Value [2]any }
	}
	if err := p.get(ctx, "/api/v1/query?query="+url.QueryEscape(expr), &data); err != nil {
		return nil, err
	}
	for _, r := range data.Result {
		text, _ := r.Value[1].(string)
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, err
		}
		values = append(values, v)
	}
	return values, nil
}

// firing returns the names of the alerts that fire, as name/severity.
func (p *prometheus) firing(ctx context.Context) (names []string, err error) {
	return p.alerts(ctx, "firing")
}

// fires waits until all of these alerts fire, doing something meanwhile.
func (p *prometheus) fires(ctx context.Context, meanwhile func(), want ...string) {
	p.t.Helper()
	if err := eventually(ctx, func() error {
		if meanwhile != nil {
			meanwhile()
		}
		have, err := p.firing(ctx)
		if err != nil {
			return err
		}
		for _, w := range want {
			if !slices.Contains(have, w) {
				return fmt.Errorf("%s does not fire; %v do", w, have)
			}
		}
		return nil
	}); err != nil {
		p.t.Error(err)
	}
}

// TestPrometheusAlerts runs the real Prometheus with the community's alerts over
// three members: every expression of alerts and dashboards returns series,
// nothing fires while all is well, and the right ones fire when leadership keeps
// moving, when a member is killed, and when the quorum is gone.
func TestPrometheusAlerts(t *testing.T) {
	program(t, "prometheus")
	program(t, "promtool")
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	kind := checkKind(t)
	c := startCluster(t, cluster.Config{Kind: kind, Binary: binaryOf(t, kind), Size: 3, Dir: t.TempDir(), Args: []string{"--metrics=extensive"}})
	list := alerts()

	// As published, too, they are rules.
	published := filepath.Join(t.TempDir(), "published.yml")
	if err := os.WriteFile(published, ruleFile(list, func(s string) string { return s }), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(program(t, "promtool"), "check", "rules", published).CombinedOutput(); err != nil {
		t.Fatalf("promtool check rules: %v\n%s", err, out)
	}
	p := startPrometheus(t, c, ruleFile(list, hasten))

	// A little load, all the time, with a watch and a lease that stay.
	client := newClient(t, c.Endpoints())
	loaded, stopLoad := context.WithCancel(ctx)
	defer stopLoad()
	client.Watch(loaded, "load")
	lease, err := client.Grant(ctx, 60)
	if err != nil {
		t.Fatal(err)
	}
	alive, err := client.KeepAlive(loaded, lease.ID)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for range alive { // drained
		}
	}()
	go func() {
		for n := 0; loaded.Err() == nil; n++ {
			call, cancel := context.WithTimeout(loaded, time.Second)
			_, _ = client.Put(call, "load", strconv.Itoa(n)) // fails when the quorum is gone
			_, _ = client.Get(call, "load")
			cancel()
			select {
			case <-loaded.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()

	// All is well. Every expression returns something.
	returns := func(expr string) error {
		return eventually(ctx, func() error {
			values, err := p.query(ctx, hasten(expr))
			if err == nil && len(values) == 0 {
				err = errors.New("no series")
			}
			return err
		})
	}
	if err := eventually(ctx, func() error {
		up, err := p.query(ctx, `sum(up{job="etcd"})`)
		if err == nil && !slices.Equal(up, []float64{3}) {
			err = fmt.Errorf("members up: %v", up)
		}
		return err
	}); err != nil {
		log, _ := os.ReadFile(p.log)
		t.Fatalf("%v\n%s", err, log)
	}
	for _, a := range list {
		if err := returns(a.measures); err != nil {
			t.Errorf("%s: %s: %v", a.name, a.measures, err)
		}
	}
	for _, expr := range panels() {
		if err := returns(expr); err != nil {
			t.Errorf("%s: %v", expr, err)
		}
	}
	for _, service := range []string{"Watch", "Lease"} {
		expr := panels()[3+slices.Index([]string{"Watch", "Lease"}, service)]
		if err := eventually(ctx, func() error { // a scrape may have been missed
			values, err := p.query(ctx, expr)
			if err == nil && (len(values) != 1 || values[0] < 1) {
				err = fmt.Errorf("%v", values)
			}
			return err
		}); err != nil {
			t.Errorf("open streams of %s: %v", service, err)
		}
	}
	// The longest of the alerts that could fire by now must have had its time.
	began, err := p.query(ctx, `min(timestamp(up{job="etcd"}))`)
	if err != nil || len(began) != 1 {
		t.Fatal(began, err)
	}
	if err := eventually(ctx, func() error {
		now, err := p.query(ctx, `min(timestamp(up{job="etcd"}))`)
		if err == nil && now[0]-began[0] < 7.5 {
			err = errors.New("not yet")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	// One that fired because of missed scrapes does not stay.
	if err := eventually(ctx, func() error {
		have, err := p.firing(ctx)
		if err != nil {
			return err
		}
		for _, name := range have {
			if slices.ContainsFunc(list, func(a alert) bool { return a.slow && a.name+"/"+a.severity == name }) {
				t.Logf("%s fires: this machine is slow", name)
				continue
			}
			return fmt.Errorf("%s fires although all is well", name)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}

	// Leadership is moved again and again.
	members, err := client.MemberList(ctx)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	p.fires(ctx, func() {
		n++
		target := members.Members[n%3].ID
		for _, m := range c.Members {
			one, err := m.Dial()
			if err != nil {
				continue
			}
			call, cancel := context.WithTimeout(ctx, time.Second)
			_, _ = pb.NewMaintenanceClient(one).MoveLeader(call, &pb.MoveLeaderRequest{TargetID: target}) // only the leader does it
			cancel()
			one.Close()
		}
	}, "etcdHighNumberOfLeaderChanges/warning")

	// A member dies.
	leader := leaderOf(ctx, t, c, client)
	victims := slices.DeleteFunc(slices.Clone(c.Members), func(m *cluster.Member) bool { return m == leader })
	if err := victims[0].Kill(); err != nil {
		t.Fatal(err)
	}
	p.fires(ctx, nil, "etcdMembersDown/warning")
	have, err := p.firing(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"etcdInsufficientMembers/critical", "etcdNoLeader/critical", "etcdDatabaseQuotaLowSpace/critical"} {
		if slices.Contains(have, name) {
			t.Errorf("%s fires with two of three members", name)
		}
	}
	// Another one, and with it the quorum.
	if err := victims[1].Kill(); err != nil {
		t.Fatal(err)
	}
	p.fires(ctx, nil, "etcdMembersDown/warning", "etcdInsufficientMembers/critical", "etcdNoLeader/critical", "etcdHighNumberOfFailedGRPCRequests/critical")
	for _, name := range []string{"etcd_server_proposals_failed_total", "etcd_network_peer_sent_failures_total", "etcd_network_disconnected_peers_total"} {
		if err := eventually(ctx, func() error {
			values, err := p.query(ctx, "sum("+name+")")
			if err == nil && (len(values) != 1 || values[0] == 0) {
				err = fmt.Errorf("%s: %v", name, values)
			}
			return err
		}); err != nil {
			t.Errorf("without a quorum: %v", err)
		}
	}
}

func leaderOf(ctx context.Context, t *testing.T, c *cluster.Cluster, client *clientv3.Client) (leader *cluster.Member) {
	t.Helper()
	if err := eventually(ctx, func() error {
		for _, m := range c.Members {
			st, err := client.Status(ctx, m.Endpoint())
			if err == nil && st.Leader == st.Header.MemberId {
				leader = m
				return nil
			}
		}
		return errors.New("no leader")
	}); err != nil {
		t.Fatal(err)
	}
	return leader
}

// TestPromtoolMetrics: promtool complains of Belay's metrics only where it
// complains of etcd's, whose names they are.
func TestPromtoolMetrics(t *testing.T) {
	promtool := program(t, "promtool")
	complaints := func(kind cluster.Kind) []string {
		c := startCluster(t, cluster.Config{Kind: kind, Binary: binaryOf(t, kind), Size: 1, Dir: t.TempDir(), Args: []string{"--metrics=extensive"}})
		text, err := getBody(t.Context(), c.Members[0].ClientURL+"/metrics")
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(promtool, "check", "metrics")
		cmd.Stdin = bytes.NewReader(text)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 3) { // 3: it has complaints
			t.Fatalf("promtool check metrics: %v\n%s", err, out)
		}
		return strings.Split(strings.TrimSpace(string(out)), "\n")
	}
	theirs := complaints(cluster.Etcd)
	for _, line := range complaints(cluster.Belay) {
		if !slices.Contains(theirs, line) {
			t.Error(line)
		}
	}
}

package rules

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/belaydb/belay/cli/doctor/histogram"
	"github.com/belaydb/belay/cli/doctor/metrics"
)

func options(kind Kind) Options {
	return Options{Kind: kind, Selector: `job="x"`, By: []string{"job"}, Runbook: Runbook, Bounds: NewBounds(kind, DefaultTimers)}
}

// promtool is Prometheus' own judge of rule files.
func promtool(t *testing.T, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("needs promtool in PATH (Debian's package prometheus)")
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	return string(out), err
}

func write(t *testing.T, dir, name string, into func(*bytes.Buffer) error) string {
	t.Helper()
	var b bytes.Buffer
	if err := into(&b); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestCheck: promtool takes the files in both forms, with selectors and labels as people have them.
func TestCheck(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, kind := range []Kind{Etcd, Belay} {
		for i, o := range []Options{
			options(kind),
			{Kind: kind, Selector: DefaultSelector(kind), By: []string{"cluster", "namespace"}, Runbook: "http://wiki/x", Bounds: NewBounds(kind, Timers{500 * time.Millisecond, 5 * time.Second}), Notes: []string{"a: \"b\""}},
			{Kind: kind, Selector: `job=~"a|b",name="with \"quotes\" and \\"`, By: []string{"job"}, Runbook: Runbook, Bounds: NewBounds(kind, DefaultTimers)},
		} {
			f := Make(o)
			files := []string{
				write(t, dir, fmt.Sprint(kind, i, ".yml"), func(b *bytes.Buffer) error { return f.YAML(b) }),
				write(t, dir, fmt.Sprint(kind, i, ".json"), func(b *bytes.Buffer) error { return f.JSON(b) }),
			}
			if out, err := promtool(t, append([]string{"check", "rules", "--lint=all", "--lint-fatal"}, files...)...); err != nil {
				t.Errorf("%v: %v\n%s", o, err, out)
			}
		}
	}
}

// at is a series of the member at instance, with more labels as in `,To="b"`.
func at(metric, instance, more, values string) string {
	return fmt.Sprintf(`%s{job="x",instance="%s"%s} %s`, metric, instance, more, values)
}

func m1(metric, values string) []string { return []string{at(metric, "m1", "", values)} }

// spread is a histogram of which everything lies between two bounds of its buckets, so many a minute.
func spread(metric, instance, more string, low, high float64, n int) []string {
	bucket := func(le string, each int) string {
		return at(metric+"_bucket", instance, more+fmt.Sprintf(`,le="%s"`, le), fmt.Sprintf("0+%dx200", each))
	}
	return []string{
		bucket(number(low), 0), bucket(number(high), n), bucket("+Inf", n),
		at(metric+"_count", instance, more, fmt.Sprintf("0+%dx200", n)),
	}
}

// handled are calls of two codes, so many a minute.
func handled(code string, bad, good int) []string {
	const how = `,grpc_type="unary",grpc_service="etcdserverpb.KV",grpc_method="Put",grpc_code=`
	return []string{
		at("grpc_server_handled_total", "m1", how+`"OK"`, fmt.Sprintf("0+%dx60", good)),
		at("grpc_server_handled_total", "m1", how+`"`+code+`"`, fmt.Sprintf("0+%dx60", bad)),
	}
}

// fired is an alert that has to be there: its labels besides its name and severity, and its figure.
type fired struct {
	severity string
	labels   map[string]string
	value    string
}

// labels are job and names with their values.
func labels(pairs ...string) map[string]string {
	l := map[string]string{"job": "x"}
	for i := 0; i < len(pairs); i += 2 {
		l[pairs[i]] = pairs[i+1]
	}
	return l
}

// A trial is of one alert: it fires at the time on what is bad, with just these, and on nothing that
// is good.
type trial struct {
	alert string
	kind  Kind // empty: both
	time  string
	bad   []string
	want  []fired
	good  [][]string
}

func one(severity, value string, pairs ...string) []fired {
	return []fired{{severity, labels(append([]string{"instance", "m1"}, pairs...)...), value}}
}

func both(value string, pairs ...string) []fired {
	return append(one(warning, value, pairs...), one(critical, value, pairs...)...)
}

func cluster(severity, value string, pairs ...string) []fired {
	return []fired{{severity, labels(pairs...), value}}
}

func trials() []trial {
	up := func(values ...string) (all []string) {
		for i, v := range values {
			all = append(all, at("up", fmt.Sprintf("m%d", i+1), "", v+"+0x200"))
		}
		return all
	}
	peers := func(active string, ups ...string) []string {
		return append(up(ups...),
			at("etcd_network_active_peers", "m1", `,Local="a",Remote="b"`, active+"+0x20"),
			at("etcd_network_known_peers", "m1", `,Local="a",Remote="a"`, "1+0x20"), at("etcd_network_known_peers", "m1", `,Local="a",Remote="b"`, "1+0x20"))
	}
	known := func(n int, ups ...string) []string {
		all := up(ups...)
		for i := range n {
			all = append(all, at("etcd_network_known_peers", "m1", fmt.Sprintf(`,Local="a",Remote="%d"`, i), "1+0x20"))
		}
		return all
	}
	version := func(second string) []string {
		return []string{at("etcd_server_version", "m1", `,server_version="3.5.1"`, "1+0x200"), at("etcd_server_version", "m2", `,server_version="`+second+`"`, "1+0x200")}
	}
	sized := func(size, quota string) []string {
		return []string{at("etcd_mvcc_db_total_size_in_bytes", "m1", "", size), at("etcd_server_quota_backend_bytes", "m1", "", quota)}
	}
	room := func(free string) []string {
		return append(m1("belay_disk_free_bytes", free+"+0x20"), m1("belay_disk_free_minimum_bytes", "134217728+0x20")...)
	}
	alarmed := func(kind, value string) []string {
		return append(up("1"), at("etcd_debugging_server_alarms", "m1", `,server_id="1",alarm_type="`+kind+`"`, value+"+0x5"))
	}
	gap := func(committed string) []string {
		return append(m1("etcd_server_proposals_committed_total", committed+"+0x10"), m1("etcd_server_proposals_applied_total", "0+0x10")...)
	}
	used := func(use, size string) []string {
		return append(m1("etcd_mvcc_db_total_size_in_use_in_bytes", use+"+0x70"), m1("etcd_mvcc_db_total_size_in_bytes", size+"+0x70")...)
	}
	history := func(compacted string) []string {
		return append(m1("etcd_debugging_mvcc_current_revision", "6000000+0x70"), m1("etcd_debugging_mvcc_compact_revision", compacted+"+0x70")...)
	}
	loop := func(low, high float64) []string {
		return append(spread("belay_loop_delay_seconds", "m1", "", low, high, 600), m1("belay_election_timeout_seconds", "1+0x20")...)
	}
	fsync := func(instance string, low, high float64) []string { return spread(fsyncs, instance, "", low, high, 600) }
	trip := func(low, high float64, n int) []string { return spread(roundTrips, "m1", `,To="b"`, low, high, n) }
	certificate := func(values string) []string {
		return []string{at("belay_certificate_not_after_timestamp_seconds", "m1", `,side="client",file="/a.crt"`, values)}
	}
	refused := func(metric, more, values string) []string { return []string{at(metric, "m1", more, values)} }
	join := func(all ...[]string) []string { return slices.Concat(all...) }

	return []trial{
		// members
		{"NotScraped", "", "6m", []string{`up{job="other",instance="m1"} 1+0x10`}, cluster(critical, ""), [][]string{up("0")}},
		{"MemberDown", "", "4m", up("0", "1", "1"), one(warning, "0"), [][]string{up("1", "1", "1")}},
		{"QuorumLost", "", "2m", up("1", "0", "0"), cluster(critical, "1"), [][]string{
			up("1", "1", "0"),
			// A learner that went down is no voter that is missing.
			append(up("1", "1", "0", "0"), at("etcd_server_is_learner", "m4", "", "1 stale"), at("etcd_server_is_learner", "m1", "", "0+0x5")),
		}},
		{"MemberNotScraped", "", "16m", known(3, "1", "1"), cluster(warning, "3"), [][]string{known(3, "1", "1", "0")}},
		{"MemberStuck", "", "15m", []string{at("etcd_server_proposals_applied_total", "m1", "", "5+0x20"), at("etcd_server_proposals_applied_total", "m2", "", "5+60x20")}, one(warning, "0"), [][]string{
			{at("etcd_server_proposals_applied_total", "m1", "", "5+60x20"), at("etcd_server_proposals_applied_total", "m2", "", "5+60x20")},
			{at("etcd_server_proposals_applied_total", "m1", "", "5+0x20"), at("etcd_server_proposals_applied_total", "m2", "", "5+0x20")}, // nobody writes
		}},
		{"MemberBehind", Belay, "31m", m1("belay_log_feeds", "1+0x40"), one(warning, "1"), [][]string{m1("belay_log_feeds", "1+0x20 0+0x20")}},
		{"MemberRestarts", "", "8m", m1("process_start_time_seconds", "100 200 200 300 300 400 400 400 400"), one(warning, "3"), [][]string{m1("process_start_time_seconds", "100 200 200 200 200 400 400 400 400")}},
		{"LearnerForgotten", "", "61m", m1("etcd_server_is_learner", "1+0x70"), one(warning, "1"), [][]string{m1("etcd_server_is_learner", "1+0x30 0+0x70")}},
		{"VersionsDiffer", "", "181m", version("3.6.1"), cluster(warning, "2"), [][]string{version("3.5.1")}},
		{"CorruptionFound", Belay, "1m", append(up("1"), refused("belay_corruption_checks_total", `,check="periodic",result="mismatch"`, "1+0x5")...), one(critical, "1"), [][]string{append(up("1"), refused("belay_corruption_checks_total", `,check="periodic",result="equal"`, "1+0x5")...)}},
		{"BackupTooOld", Belay, "6m", m1("belay_backup_too_old", "1+0x10"), one(critical, "1"), [][]string{m1("belay_backup_too_old", "0+0x10"), up("1")}},

		// leadership
		{"NoLeader", "", "2m", m1("etcd_server_has_leader", "0+0x5"), one(critical, "0"), [][]string{m1("etcd_server_has_leader", "1+0x5"), m1("etcd_server_has_leader", "1 0 1 0 1 0")}},
		{"LeaderChanges", "", "60m", m1("etcd_server_leader_changes_seen_total", "1+1x4 5+0x60"), cluster(warning, "4"), [][]string{m1("etcd_server_leader_changes_seen_total", "1+1x3 4+0x60")}},
		{"HeartbeatsLate", "", "21m", m1("etcd_server_heartbeat_send_failures_total", "0+1x30"), one(warning, "15"), [][]string{m1("etcd_server_heartbeat_send_failures_total", "0 1 2 3 3+0x30")}},
		{"LoopLate", Belay, "11m", loop(0.512, 1.024), one(warning, "1.019s"), [][]string{loop(0, 0.001)}},
		{"IncidentVerdict", Belay, "5m", refused("belay_verdicts_total", `,cause="disk-slow"`, "0 0 0 1 1 1"), cluster(warning, "1", "cause", "disk-slow"), [][]string{
			refused("belay_verdicts_total", `,cause="member-stopped"`, "0 0 0 1 1 1"), refused("belay_verdicts_total", `,cause="disk-slow"`, "1+0x5"),
		}},

		// disk
		{"FsyncSlow", Etcd, "36m", fsync("m1", 0.008, 0.016), one(warning, "15.92ms"), [][]string{fsync("m1", 0, 0.001), spread(fsyncs, "m1", "", 0.008, 0.016, 3)}},
		{"FsyncSlow", Etcd, "11m", fsync("m1", 0.512, 1.024), one(critical, "1.019s"), [][]string{fsync("m1", 0.256, 0.5)}},
		{"FsyncSlow", Belay, "16m", join(fsync("m1", 0.512, 1.024), fsync("m2", 0, 0.001), fsync("m3", 0, 0.001)), one(warning, "1.019s"), [][]string{fsync("m1", 0.256, 0.5)}},
		{"FsyncSlow", Belay, "8m", join(fsync("m1", 0.512, 1.024), fsync("m2", 0.512, 1.024), fsync("m3", 0, 0.001)), cluster(critical, "1.019s"), [][]string{join(fsync("m1", 0.512, 1.024), fsync("m2", 0, 0.001), fsync("m3", 0, 0.001))}},
		{"CommitSlow", Etcd, "36m", spread(commits, "m1", "", 0.016, 0.032, 60), one(warning, "31.84ms"), [][]string{spread(commits, "m1", "", 0.008, 0.016, 60)}},
		{"CommitSlow", Etcd, "8m", spread(commits, "m1", "", 0.256, 0.512, 60), one(critical, "509.4ms"), [][]string{spread(commits, "m1", "", 0.128, 0.25, 60)}},
		{"DiskStalled", Belay, "6m", m1("belay_disk_state", "1+0x10"), one(warning, "1"), [][]string{m1("belay_disk_state", "0+0x10")}},
		{"DiskStalled", Belay, "1m", m1("belay_disk_state", "2+0x10"), one(critical, "2"), [][]string{m1("belay_disk_state", "1+0x10")}},
		{"StoreStalled", Belay, "1m", m1("belay_store_state", "3+0x10"), one(critical, "3"), [][]string{m1("belay_store_state", "1+0x10")}},
		{"LogRefusing", Belay, "1m", m1("belay_log_refusing", "1+0x10"), one(critical, "1"), [][]string{m1("belay_log_refusing", "0+0x10")}},

		// network
		{"RoundTripSlow", "", "40m", trip(0.0512, 0.1024, 2), one(warning, "101.9ms", "To", "b"), [][]string{trip(0, 0.0001, 2)}},
		{"RoundTripSlow", "", "40m", trip(0.2048, 0.4096, 2), both("407.6ms", "To", "b"), [][]string{trip(0.0128, 0.0256, 2)}},
		{"PeerDisconnected", "", "6m", peers("0", "1", "1"), one(warning, "0", "Local", "a"), [][]string{peers("1", "1", "1"), peers("0", "1", "0")}},
		{"PeerMessagesLost", "", "8m", append(up("1", "1"), refused("etcd_network_peer_sent_failures_total", `,To="b"`, "0+60x20")...), one(warning, "1.0"), [][]string{
			append(up("1", "1"), refused("etcd_network_peer_sent_failures_total", `,To="b"`, "5+0x20")...), append(up("1", "0"), refused("etcd_network_peer_sent_failures_total", `,To="b"`, "0+60x20")...),
		}},
		{"PeerRequestsRefused", Belay, "17m", refused("belay_peer_requests_refused_total", `,why="cluster"`, "0+6x30"), one(warning, "0.10", "why", "cluster"), [][]string{refused("belay_peer_requests_refused_total", `,why="cluster"`, "0+6x5 30+0x30")}},
		{"RaftMessagesRefused", Belay, "3m", refused("belay_raft_messages_refused_total", `,why="term"`, "0 0 1 1"), one(warning, "1", "why", "term"), [][]string{refused("belay_raft_messages_refused_total", `,why="term"`, "1+0x5")}},
		{"StreamsTakenOver", Belay, "30m", refused("belay_peer_streams_taken_over_total", `,To="b"`, "0+1x60"), one(warning, "30", "To", "b"), [][]string{refused("belay_peer_streams_taken_over_total", `,To="b"`, "0+1x5 5+0x60")}},

		// requests
		{"ProposalsPending", "", "6m", m1("etcd_server_proposals_pending", "200+0x10"), one(warning, "200"), [][]string{m1("etcd_server_proposals_pending", "100+0x10"), m1("etcd_server_proposals_pending", "200 200 200 3 200 200 200")}},
		{"ProposalsFailed", "", "20m", m1("etcd_server_proposals_failed_total", "0+10x30"), one(warning, "150"), [][]string{m1("etcd_server_proposals_failed_total", "0+1x30")}},
		{"ApplyBehind", Etcd, "3m", gap("2000"), one(warning, "2000"), [][]string{gap("900")}},
		{"ApplyBehind", Etcd, "3m", gap("4800"), both("4800"), [][]string{gap("0")}},
		{"ApplyBehind", Belay, "3m", m1("belay_server_apply_lag_seconds", "2+0x10"), one(warning, "2s"), [][]string{m1("belay_server_apply_lag_seconds", "0.5+0x10")}},
		{"ApplyBehind", Belay, "3m", m1("belay_server_apply_lag_seconds", "4.5+0x10"), both("4.5s"), [][]string{m1("belay_server_apply_lag_seconds", "0+0x10")}},
		{"SlowApplies", "", "17m", m1("etcd_server_slow_apply_total", "0+60x30"), one(warning, "1.0"), [][]string{m1("etcd_server_slow_apply_total", "0+3x30")}},
		{"RequestsFailed", "", "12m", handled("Unavailable", 60, 2940), one(warning, "2%"), [][]string{handled("FailedPrecondition", 60, 2940), handled("Unavailable", 60, 12000), handled("Unavailable", 1, 9)}},
		{"RequestsFailed", "", "8m", handled("Unavailable", 600, 5400), one(critical, "10%"), [][]string{handled("Canceled", 600, 5400)}},
		{"ReadersWait", Belay, "12m", spread("belay_reader_wait_seconds", "m1", "", 1.6384, 6.5536, 60), one(warning, "6.504s"), [][]string{spread("belay_reader_wait_seconds", "m1", "", 0, 0.0001, 60)}},
		{"LongRequestsWait", Belay, "12m", spread("belay_long_request_wait_seconds", "m1", "", 1.6384, 6.5536, 60), one(warning, "6.504s"), [][]string{spread("belay_long_request_wait_seconds", "m1", "", 0, 0.0001, 60)}},
		{"ReceivingRefused", Belay, "3m", refused("belay_receiving_refused_total", `,what="call"`, "0 0 1 1"), one(warning, "1", "what", "call"), [][]string{refused("belay_receiving_refused_total", `,what="call"`, "3+0x5")}},
		{"ConnectionsRefused", Belay, "3m", refused("belay_connections_refused_total", `,port="client",state="new"`, "0 0 1 1"), one(warning, "1", "port", "client"), [][]string{refused("belay_connections_refused_total", `,port="client",state="new"`, "3+0x5")}},

		// space
		{"QuotaNear", "", "11m", sized("85+0x20", "100+0x20"), one(warning, "85%"), [][]string{sized("70+0x20", "100+0x20"), sized("85+0x20", "0+0x20"), sized("85+0x20", "-1+0x20")}},
		{"QuotaNear", "", "6m", sized("96+0x20", "100+0x20"), one(critical, "96%"), [][]string{sized("85+0x20", "100+0x20")}},
		{"QuotaFullSoon", "", "120m", sized("1000000000+60000x200", "1043200500+0x200"), one(warning, "10h 0m 0s"), [][]string{sized("1000000000+0x200", "1043200500+0x200"), sized("_x70 1000000000+60000x200", "1043200500+0x200"), sized("1000000000+60000x200", "0+0x200")}},
		{"QuotaFullSoon", "", "120m", sized("1000000000+60000x200", "1014400500+0x200"), both("2h 0m 0s"), [][]string{sized("1000000000+600x200", "1014400500+0x200")}},
		{"DiskNearlyFull", Belay, "11m", room("838860800"), one(warning, "800Mi"), [][]string{room("2147483648")}},
		{"DiskNearlyFull", Belay, "1m", room("209715200"), one(critical, "200Mi"), [][]string{room("838860800")}},
		{"AlarmNoSpace", "", "1m", alarmed("NOSPACE", "1"), cluster(critical, "1"), [][]string{alarmed("NOSPACE", "0"), alarmed("CORRUPT", "1"), up("1")}},
		{"AlarmCorrupt", "", "1m", alarmed("CORRUPT", "1"), cluster(critical, "1"), [][]string{alarmed("CORRUPT", "0"), alarmed("NOSPACE", "1"), up("1")}},
		{"Fragmented", Etcd, "61m", used("200000000", "600000000"), one(warning, "33.33%"), [][]string{used("400000000", "600000000"), used("200000000", "500000000")}},
		{"HistoryKept", "", "61m", history("500000"), one(warning, "5.5M"), [][]string{history("2000000")}},

		// watches
		{"SlowWatchers", "", "16m", m1("etcd_debugging_mvcc_slow_watcher_total", "3+0x20"), one(warning, "3"), [][]string{m1("etcd_debugging_mvcc_slow_watcher_total", "3+0x10 0+0x10")}},
		{"EventsPending", "", "6m", m1("etcd_debugging_mvcc_pending_events_total", "20000+0x20"), one(warning, "20000"), [][]string{m1("etcd_debugging_mvcc_pending_events_total", "9000+0x20")}},
		{"LeaseChurn", "", "17m", m1("etcd_debugging_lease_granted_total", "0+60000x30"), cluster(warning, "1000"), [][]string{m1("etcd_debugging_lease_granted_total", "0+600x30")}},

		// process
		{"Descriptors", "", "6m", append(m1("process_open_fds", "90+0x10"), m1("process_max_fds", "100+0x10")...), one(critical, "90%"), [][]string{append(m1("process_open_fds", "70+0x10"), m1("process_max_fds", "100+0x10")...)}},
		{"CertificateExpires", Belay, "1m", certificate("1728000+0x5"), one(warning, "19d 23h 59m 0s", "side", "client", "file", "/a.crt"), [][]string{certificate("3000000+0x5")}},
		{"CertificateExpires", Belay, "1m", certificate("259200+0x5"), both("2d 23h 59m 0s", "side", "client", "file", "/a.crt"), [][]string{certificate("31536000+0x5")}},
		{"LogDropped", Belay, "3m", m1("belay_log_dropped_total", "0 0 5 5"), one(warning, "5"), [][]string{m1("belay_log_dropped_total", "5+0x5")}},
	}
}

var placeholder = regexp.MustCompile(`\{\{ \$labels\.(\w+) \}\}|\{\{ \$value[^}]*\}\}`)

// said is an annotation as Prometheus would write it.
func (f fired) said(template string) string {
	return placeholder.ReplaceAllStringFunc(template, func(m string) string {
		if label := placeholder.FindStringSubmatch(m)[1]; label != "" {
			return f.labels[label]
		}
		return f.value
	})
}

// together says which trials may lie in one storage: each has a job of its own, and none makes the
// alert of another one fire. promtool takes most of its time to make storages.
func together(alert string) int {
	switch alert {
	case "MemberDown", "QuotaNear", "AlarmCorrupt":
		return 1
	case "QuorumLost":
		return 2
	case "NotScraped":
		return 3
	case "VersionsDiffer", "QuotaFullSoon", "LearnerForgotten", "LeaderChanges", "Fragmented", "HistoryKept":
		return 4 // these take an hour and more: the others are not evaluated for as long
	}
	return 0
}

// What promtool reads.
type (
	inputSeries struct{ Series, Values string }
	alertTest   struct {
		EvalTime  string           `yaml:"eval_time"`
		Alertname string           `yaml:"alertname"`
		Expected  []map[string]any `yaml:"exp_alerts"`
	}
	ruleTest struct {
		Name     string        `yaml:"name"`
		Interval string        `yaml:"interval"`
		Input    []inputSeries `yaml:"input_series"`
		Alerts   []alertTest   `yaml:"alert_rule_test"`
	}
)

// only has the alerts of one part of together, and what they use.
func only(f File, o Options, part int) (some File) {
	text := ""
	for _, g := range slices.Backward(f.Groups) {
		kept := Group{Name: g.Name}
		for _, r := range g.Rules {
			if r.Alert != "" && together(strings.TrimPrefix(r.Alert, o.name(""))) == part || r.Record != "" && strings.Contains(text, r.Record) {
				kept.Rules = append(kept.Rules, r)
				text += r.Expr
			}
		}
		some.Groups = append([]Group{kept}, some.Groups...)
	}
	return some
}

// TestAlerts has promtool evaluate each alert: it fires, with its figure in its text, on series that
// are bad, and is silent on series that are not. No alert is left out.
func TestAlerts(t *testing.T) {
	t.Parallel()
	for _, kind := range []Kind{Etcd, Belay} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			dir, o := t.TempDir(), options(kind)
			o.Selector = `job=~"x.*"`
			file := Make(o)
			made := map[string]Rule{}
			for _, g := range file.Groups {
				for _, r := range g.Rules {
					if r.Alert != "" {
						made[r.Alert+"/"+r.Labels["severity"]] = r
					}
				}
			}
			tests := map[[2]int]*ruleTest{} // by together, and which series of its alert they are
			sets := map[string]int{}        // of each alert
			tried := map[string]bool{}
			jobs := 0
			add := func(tr trial, from []string, want []fired) {
				at := [2]int{together(tr.alert), sets[tr.alert]}
				sets[tr.alert]++
				jobs++
				job := fmt.Sprint("x", jobs)
				one := tests[at]
				if one == nil {
					one = &ruleTest{Name: fmt.Sprint(at), Interval: "1m"}
					tests[at] = one
				}
				for _, line := range from {
					name, values, _ := strings.Cut(line, "} ")
					one.Input = append(one.Input, inputSeries{strings.Replace(name, `job="x"`, `job="`+job+`"`, 1) + "}", values})
				}
				expected := []map[string]any{}
				for _, f := range want {
					key := o.name(tr.alert) + "/" + f.severity
					r, ok := made[key]
					if !ok {
						t.Fatalf("%s: there is no such alert", key)
					}
					tried[key] = true
					if tr.alert == "NotScraped" {
						delete(f.labels, "job") // there is nothing that could say it
					} else {
						f.labels["job"] = job
					}
					says := map[string]string{}
					for name, template := range r.Annotations {
						says[name] = f.said(template)
					}
					labels := maps.Clone(f.labels)
					labels["severity"] = f.severity
					expected = append(expected, map[string]any{"exp_labels": labels, "exp_annotations": says})
				}
				one.Alerts = append(one.Alerts, alertTest{tr.time, o.name(tr.alert), expected})
			}
			for _, tr := range trials() {
				if tr.kind != "" && tr.kind != kind {
					continue
				}
				add(tr, tr.bad, tr.want)
				if len(tr.good) == 0 {
					t.Errorf("%s is tried on no good series", tr.alert)
				}
				for _, good := range tr.good {
					add(tr, good, nil)
				}
			}
			for key := range made {
				if !tried[key] {
					t.Errorf("%s is never made to fire", key)
				}
			}
			args := []string{"test", "rules"}
			for part := range 5 {
				var of []*ruleTest
				for at, one := range tests {
					if at[0] == part {
						of = append(of, one)
					}
				}
				name := fmt.Sprint("rules", part, ".yml")
				write(t, dir, name, func(b *bytes.Buffer) error { return only(file, o, part).YAML(b) })
				args = append(args, write(t, dir, fmt.Sprint("test", part, ".yml"), func(b *bytes.Buffer) error {
					return yaml.NewEncoder(b).Encode(map[string]any{"rule_files": []string{name}, "evaluation_interval": "1m", "tests": of})
				}))
			}
			if out, err := promtool(t, args...); err != nil {
				t.Errorf("promtool test rules: %v\n%s", err, out)
			}
		})
	}
}

// TestRunbook: each alert has a section in the runbook, each section an alert, and each tells what is
// seen, what to run, what that prints and what to do.
func TestRunbook(t *testing.T) {
	page, err := os.ReadFile("../../../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	for _, s := range strings.Split(string(page), "\n## ")[1:] {
		name, text, _ := strings.Cut(s, "\n")
		sections[name] = text
	}
	alerts := map[string]bool{}
	for _, kind := range []Kind{Etcd, Belay} {
		o := options(kind)
		o.Runbook = "BOOK"
		for _, g := range Make(o).Groups {
			for _, r := range g.Rules {
				if r.Alert == "" {
					continue
				}
				base := strings.TrimPrefix(r.Alert, o.name(""))
				alerts[base] = true
				if want := "BOOK#" + strings.ToLower(base); r.Annotations["runbook_url"] != want {
					t.Errorf("%s: %s, want %s", r.Alert, r.Annotations["runbook_url"], want)
				}
				text := sections[base]
				if text == "" {
					t.Errorf("docs/runbook.md has no section %s", base)
					continue
				}
				for _, part := range []string{"**Symptom.**", "**Run.**", "**Prints.**", "**Do.**"} {
					if !strings.Contains(text, part) {
						t.Errorf("docs/runbook.md, %s: no %s", base, part)
					}
				}
			}
		}
	}
	// The table of doctor.md names each once.
	table, err := os.ReadFile("../../../docs/doctor.md")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(table), "| of | alerts |")
	list, _, _ = strings.Cut(list, "\n\n")
	for name := range alerts {
		if strings.Count(list, "`"+name+"`") != 1 {
			t.Errorf("docs/doctor.md does not name %s once", name)
		}
	}
	if n := strings.Count(list, "`") / 2; n != len(alerts) {
		t.Errorf("docs/doctor.md names %d alerts, there are %d", n, len(alerts))
	}
	for name := range sections {
		if !alerts[name] {
			t.Errorf("docs/runbook.md: %s is no alert", name)
		}
	}
}

// TestForm: what Prometheus does not ask for and people do.
func TestForm(t *testing.T) {
	for _, kind := range []Kind{Etcd, Belay} {
		for _, g := range Make(options(kind)).Groups {
			for _, r := range g.Rules {
				if !strings.Contains(r.Expr, `job="x"`) {
					t.Errorf("%s%s selects nothing: %s", r.Record, r.Alert, r.Expr)
				}
				for _, word := range []string{"SEL", "BY", "CLUSTER", "MEMBER", "PROGRAM"} {
					if text := fmt.Sprint(r); regexp.MustCompile(`\b` + word + `\b`).MatchString(text) {
						t.Errorf("%s%s: %s is left", r.Record, r.Alert, word)
					}
				}
				if r.Alert == "" {
					continue
				}
				if s := r.Labels["severity"]; s != critical && s != warning {
					t.Errorf("%s: severity %q", r.Alert, s)
				}
				if s := r.Annotations["summary"]; s == "" || strings.Contains(s, "{{") {
					t.Errorf("%s: summary %q", r.Alert, s)
				}
				if d := r.Annotations["description"]; !strings.Contains(d, "$value") && !strings.HasSuffix(r.Alert, "NotScraped") {
					t.Errorf("%s: its description has no figure: %q", r.Alert, d)
				}
			}
		}
	}
	// What means nothing for Belay is not watched there.
	for _, g := range Make(options(Belay)).Groups {
		for _, r := range g.Rules {
			for _, metric := range []string{"etcd_disk_backend_commit", "etcd_disk_defrag", "etcd_mvcc_db_total_size_in_use"} {
				if strings.Contains(r.Expr, metric) {
					t.Errorf("%s%s looks at %s", r.Record, r.Alert, metric)
				}
			}
		}
	}
}

// histogramOf is one with n observations between two bounds.
func histogramOf(t *testing.T, metric string, n int, low, high float64) histogram.Series {
	t.Helper()
	text := fmt.Sprintf("# TYPE %[1]s histogram\n%[1]s_bucket{le=\"%[2]g\"} 0\n%[1]s_bucket{le=\"%[3]g\"} %[4]d\n%[1]s_bucket{le=\"+Inf\"} %[4]d\n%[1]s_sum 1\n%[1]s_count %[4]d\n", metric, low, high, n)
	s, err := metrics.Parse(strings.NewReader(text), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return histogram.Of("m1", nil, s, []string{metric}, nil)[0]
}

func TestTune(t *testing.T) {
	plain := NewBounds(Etcd, DefaultTimers)
	if plain.FsyncSlow != 0.010 || plain.FsyncBad != 0.5 || plain.TripSlow != 0.050 || plain.TripBad != 0.25 {
		t.Errorf("for the default timers the bounds are those of doctor's findings: %+v", plain)
	}
	far := NewBounds(Etcd, Timers{500 * time.Millisecond, 5 * time.Second})
	if far.TripSlow != 0.25 || far.TripBad != 1.25 || far.FsyncBad != 2.5 {
		t.Errorf("%+v", far)
	}
	if b := NewBounds(Belay, Timers{500 * time.Millisecond, 5 * time.Second}); b.FsyncBad != 0.5 {
		t.Errorf("Belay's leaders wait for no disk: %+v", b)
	}

	for _, tc := range []struct {
		name string
		m    Measured
		want func(*Bounds)
		note string
	}{
		{"fast", Measured{Series: []histogram.Series{histogramOf(t, fsyncs, 1000, 0.001, 0.002)}}, func(*Bounds) {}, "the default; the longest p99 is 2"},
		{"few", Measured{Series: []histogram.Series{histogramOf(t, fsyncs, 50, 0.016, 0.032)}}, func(*Bounds) {}, "fewer than 100 observations"},
		{"slow", Measured{Series: []histogram.Series{histogramOf(t, fsyncs, 1000, 0.016, 0.032)}}, func(b *Bounds) { b.FsyncSlow = 0.096 }, "3 times the longest p99, 32 ms (m1)"},
		{"very slow", Measured{Series: []histogram.Series{histogramOf(t, fsyncs, 1000, 0.512, 1.024)}}, func(b *Bounds) { b.FsyncSlow = 0.25 }, "look into that first"},
		{"far", Measured{Series: []histogram.Series{histogramOf(t, roundTrips, 1000, 0.0256, 0.0512)}}, func(b *Bounds) { b.TripSlow = 0.11 }, "2 times the longest p99"},
		{"leases", Measured{Grants: 70}, func(b *Bounds) { b.LeaseGrants = 210 }, "210 grants a second"},
		{"full", Measured{Sizes: []Size{{"m1", 90, 100}, {"m2", 10, 0}}}, func(*Bounds) {}, "m1 is at 90 % now"},
	} {
		b, notes := Tune(Etcd, plain, tc.m)
		want := plain
		tc.want(&want)
		if b != want {
			t.Errorf("%s: %+v, want %+v", tc.name, b, want)
		}
		if all := strings.Join(notes, "\n"); !strings.Contains(all, tc.note) {
			t.Errorf("%s: no %q in\n%s", tc.name, tc.note, all)
		}
	}
	// Belay's alerts use no bound that its disks could raise.
	if b, notes := Tune(Belay, NewBounds(Belay, DefaultTimers), Measured{Series: []histogram.Series{histogramOf(t, fsyncs, 1000, 0.016, 0.032)}}); b != NewBounds(Belay, DefaultTimers) || strings.Contains(strings.Join(notes, ""), "fsync") {
		t.Errorf("%+v %q", b, notes)
	}
	for in, want := range map[float64]float64{0.0123: 0.013, 0.1: 0.1, 210: 210, 213: 220, 0: 0} {
		if got := round(in); got != want {
			t.Errorf("round(%g) = %g, want %g", in, got, want)
		}
	}
}

package rules

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/belaydb/belay/cli/doctor/bounds"
	"github.com/belaydb/belay/cli/doctor/metrics"
)

// Severities: critical is for what clients notice or will within hours, warning for what wants to be
// looked at in working hours.
const (
	critical = "critical"
	warning  = "warning"
)

// A record is a series that several alerts use, or that costs much to make. Labels of the target
// stay, so that the selector selects it, too.
type record struct {
	name, expr string
	only       Kind // empty: both
}

const (
	fsyncP99   = "instance:etcd_disk_wal_fsync_duration_seconds:p99_5m"
	commitP99  = "instance:etcd_disk_backend_commit_duration_seconds:p99_5m"
	tripP99    = "instance_to:etcd_network_peer_round_trip_time_seconds:p99_15m"
	loopP99    = "instance:belay_loop_delay_seconds:p99_5m"
	failedPart = "instance:grpc_server_unary_failed:ratio_5m"
	quotaPart  = "instance:etcd_mvcc_db_total_size:quota_ratio"
)

// failed are the calls that the cluster failed, a second.
func failed() string {
	return "sum without (grpc_type, grpc_service, grpc_method, grpc_code) (rate(grpc_server_handled_total{SEL,grpc_type=\"unary\",grpc_code=~\"" +
		strings.Join(bounds.FailedCodes(), "|") + "\"}[5m]))"
}

func records() []record {
	p99 := func(metric, over string) string {
		return "histogram_quantile(0.99, rate(" + metric + "_bucket{SEL}[" + over + "]))"
	}
	return []record{
		{fsyncP99, p99(fsyncs, "5m"), ""},
		{commitP99, p99(commits, "5m"), Etcd},
		{tripP99, p99(roundTrips, "15m"), ""},
		{loopP99, p99("belay_loop_delay_seconds", "5m"), Belay},
		{failedPart, failed() + "\n/ sum without (grpc_type, grpc_service, grpc_method, grpc_code) (rate(grpc_server_handled_total{SEL,grpc_type=\"unary\"}[5m]))", ""},
		// Without a quota the metric is 0 or less.
		{quotaPart, "etcd_mvcc_db_total_size_in_bytes{SEL} / (etcd_server_quota_backend_bytes{SEL} > 0)", ""},
	}
}

// An alert is a row of the table. In its texts SEL is the selector, BY the labels of a cluster,
// CLUSTER and MEMBER what the alert's labels say, PROGRAM etcd or Belay.
type alert struct {
	name     string // without the kind; its section of the runbook
	only     Kind   // empty: both
	severity string
	holds    string   // empty: at once
	measure  string   // what is measured, one expression
	when     string   // the comparison
	and      []string // guards
	summary  string   // without figures
	says     string   // with the figure
}

// A part is a group of alerts.
type part struct {
	name   string
	alerts func(Options) []alert
}

func parts() []part {
	return []part{
		{"members", members}, {"leadership", leadership}, {"disk", disks}, {"network", network},
		{"requests", requests}, {"space", space}, {"watches", watches}, {"process", process},
	}
}

// over and its like write a comparison.
func over(bound float64) string   { return "> " + number(bound) }
func atLeast(n float64) string    { return ">= " + number(n) }
func number(f float64) string     { return strconv.FormatFloat(f, 'g', -1, 64) }
func percent(part float64) string { return number(100*part) + " %" }
func secs(f float64) string       { return metrics.Seconds(f) }
func days(d time.Duration) string { return fmt.Sprintf("%d days", d/(24*time.Hour)) }

// orZero is a measure of what has no series before it happened first; by are its labels.
func orZero(measure, by string) string {
	return "(" + measure + " or 0 * max by (" + by + ") (up{SEL}))"
}

// allUp guards what a member that is down explains.
const allUp = "on (BY) (min by (BY) (up{SEL}) == 1)"

func members(Options) []alert {
	const applied = "etcd_server_proposals_applied_total{SEL}"
	// A learner that is down says no longer that it is one.
	const voters = "up{SEL} unless on (BY, instance) last_over_time(etcd_server_is_learner{SEL}[1d]) == 1"
	return []alert{
		{
			name: "NotScraped", severity: critical, holds: "5m",
			measure: "absent(up{SEL})",
			summary: "Prometheus has no target of this PROGRAM cluster.",
			says:    "0 targets match SEL: nothing is known of the members, and no other alert of them can fire.",
		},
		{
			name: "MemberDown", severity: warning, holds: "3m",
			measure: "up{SEL}", when: "== 0",
			summary: "A member does not answer.",
			says:    "MEMBER has answered none of Prometheus' requests for 3 minutes (up is {{ $value }}).",
		},
		{
			name: "QuorumLost", severity: critical, holds: "1m",
			measure: "sum by (BY) (" + voters + ")", when: "< floor(count by (BY) (" + voters + ") / 2) + 1",
			summary: "Too few members answer for a quorum.",
			says:    "{{ $value }} voters of CLUSTER answer, fewer than a majority: nothing can be written, and linearizable reads fail.",
		},
		{
			name: "MemberNotScraped", severity: warning, holds: "15m",
			measure: "max by (BY) (count by (BY, instance) (etcd_network_known_peers{SEL} == 1))", when: "> count by (BY) (up{SEL})",
			summary: "The cluster has more members than Prometheus asks.",
			says:    "The members of CLUSTER know {{ $value }} members, and fewer are scraped: alerts are blind for the others.",
		},
		{
			name: "MemberStuck", severity: warning, holds: "10m",
			measure: "rate(" + applied + "[5m])", when: "== 0",
			and:     []string{"on (BY) (max by (BY) (rate(" + applied + "[5m])) > 0.2)"},
			summary: "A member applies nothing while others do.",
			says:    "MEMBER applies {{ $value }} entries a second, and others apply more: reads there are of the past.",
		},
		{
			name: "MemberBehind", only: Belay, severity: warning, holds: "30m",
			measure: "belay_log_feeds{SEL}", when: "> 0",
			summary: "A follower is far behind and does not catch up.",
			says:    "MEMBER, which leads, has been sending the log on its disk to {{ $value }} followers for 30 minutes.",
		},
		{
			name: "MemberRestarts", severity: warning,
			measure: "changes(process_start_time_seconds{SEL}[1h])", when: atLeast(bounds.Restarts),
			summary: "A member starts again and again.",
			says:    "MEMBER has started {{ $value }} times within an hour.",
		},
		{
			name: "LearnerForgotten", severity: warning, holds: "1h",
			measure: "etcd_server_is_learner{SEL}", when: "== 1",
			summary: "A learner has not been promoted.",
			says:    "MEMBER has been a learner for an hour (etcd_server_is_learner is {{ $value }}): it copies the data and does not vote.",
		},
		{
			name: "VersionsDiffer", severity: warning, holds: "3h",
			measure: "count by (BY) (count by (BY, server_version) (etcd_server_version{SEL}))", when: "> 1",
			summary: "Members run different versions.",
			says:    "The members of CLUSTER have run {{ $value }} versions for 3 hours: an upgrade was not finished.",
		},
		{
			name: "CorruptionFound", only: Belay, severity: critical,
			measure: orZero("sum by (BY, instance) (belay_corruption_checks_total{SEL,result=\"mismatch\"})", "BY, instance"), when: "> 0",
			summary: "Members' data differ.",
			says:    "{{ $value }} comparisons of MEMBER's data with the others' have found a difference.",
		},
		{
			name: "BackupTooOld", only: Belay, severity: critical, holds: "5m",
			measure: "belay_backup_too_old{SEL}", when: "== 1",
			summary: "No good backup is being made.",
			says:    "MEMBER leads, and the last good backup is older than it may be (belay_backup_too_old is {{ $value }}).",
		},
	}
}

func leadership(Options) []alert {
	return []alert{
		{
			name: "NoLeader", severity: critical, holds: "1m",
			measure: "etcd_server_has_leader{SEL}", when: "== 0",
			summary: "A member knows no leader.",
			says:    "MEMBER has known no leader for a minute (etcd_server_has_leader is {{ $value }}): writes and linearizable reads there fail.",
		},
		{
			name: "LeaderChanges", severity: warning,
			measure: "max by (BY) (increase(etcd_server_leader_changes_seen_total{SEL}[1h]))", when: atLeast(bounds.LeaderChanges),
			summary: "The leader changes often.",
			says:    "CLUSTER has had {{ $value | printf \"%.0f\" }} changes of leader within an hour; during each, requests wait or fail.",
		},
		{
			name: "HeartbeatsLate", severity: warning, holds: "5m",
			measure: "increase(etcd_server_heartbeat_send_failures_total{SEL}[15m])", when: over(bounds.LateHeartbeats),
			summary: "A leader sends its heartbeats late.",
			says:    "MEMBER has sent {{ $value | printf \"%.0f\" }} heartbeats late within 15 minutes; followers begin an election when none comes for the election timeout.",
		},
		{
			name: "LoopLate", only: Belay, severity: warning, holds: "5m",
			measure: loopP99 + "{SEL}", when: "> belay_election_timeout_seconds{SEL} / 2",
			summary: "A member gets too little CPU for raft.",
			says:    "The p99 of how late MEMBER's ticks come is {{ $value | humanizeDuration }}, more than half an election timeout.",
		},
		{
			name: "IncidentVerdict", only: Belay, severity: warning,
			measure: "sum by (BY, cause) (increase(belay_verdicts_total{SEL,cause!~\"member-stopped|transfer-requested\"}[15m]))", when: "> 0",
			summary: "The leader has given a verdict on an incident.",
			says:    "CLUSTER: {{ $value | printf \"%.0f\" }} verdicts within 15 minutes name the cause {{ $labels.cause }}.",
		},
	}
}

func disks(o Options) []alert {
	const enough = "increase(etcd_disk_wal_fsync_duration_seconds_count{SEL}[5m]) >= 20"
	fsync := "{{ $value | humanizeDuration }}"
	all := []alert{
		{
			name: "FsyncSlow", only: Etcd, severity: warning, holds: "30m",
			measure: fsyncP99 + "{SEL}", when: over(o.Bounds.FsyncSlow), and: []string{enough},
			summary: "The disk of a member's log is slow.",
			says:    "The p99 of MEMBER's fsyncs is " + fsync + ", over " + secs(o.Bounds.FsyncSlow) + "; every write waits for a quorum of these.",
		},
		{
			name: "FsyncSlow", only: Etcd, severity: critical, holds: "5m",
			measure: fsyncP99 + "{SEL}", when: over(o.Bounds.FsyncBad), and: []string{enough},
			summary: "The disk of a member's log is so slow that it may not lead.",
			says:    "The p99 of MEMBER's fsyncs is " + fsync + ", over " + secs(o.Bounds.FsyncBad) + ", half an election timeout: heartbeats wait for them.",
		},
		{
			name: "FsyncSlow", only: Belay, severity: warning, holds: "10m",
			measure: fsyncP99 + "{SEL}", when: over(o.Bounds.FsyncBad), and: []string{enough},
			summary: "The disk of a member's log is slow.",
			says:    "The p99 of MEMBER's syncs is " + fsync + ", over " + secs(o.Bounds.FsyncBad) + "; nobody waits for it while a quorum of the other disks is fast.",
		},
		{
			name: "FsyncSlow", only: Belay, severity: critical, holds: "5m",
			// Writes wait for the faster half of the disks and one more, which the median is.
			measure: "quantile by (BY) (0.5, " + fsyncP99 + "{SEL})", when: over(o.Bounds.FsyncBad),
			summary: "The disks of a quorum are slow.",
			says:    "Half of the members of CLUSTER have a p99 of syncs of " + fsync + " and more: every write waits as long.",
		},
		{
			name: "CommitSlow", only: Etcd, severity: warning, holds: "30m",
			measure: commitP99 + "{SEL}", when: over(o.Bounds.CommitSlow),
			summary: "Commits of a member's database are slow.",
			says:    "The p99 of MEMBER's commits is " + fsync + ", over " + secs(o.Bounds.CommitSlow) + ".",
		},
		{
			name: "CommitSlow", only: Etcd, severity: critical, holds: "5m",
			measure: commitP99 + "{SEL}", when: over(o.Bounds.CommitBad),
			summary: "Commits of a member's database are very slow.",
			says:    "The p99 of MEMBER's commits is " + fsync + ", over " + secs(o.Bounds.CommitBad) + ": requests wait while the database is written.",
		},
		{
			name: "DiskStalled", only: Belay, severity: warning, holds: "5m",
			measure: "belay_disk_state{SEL}", when: ">= 1",
			summary: "Syncs of a member's log take a second and more.",
			says:    "The disk of MEMBER's log has been in state {{ $value }} or worse for 5 minutes (1 slow, 2 stalled, 3 dead).",
		},
		{
			name: "DiskStalled", only: Belay, severity: critical,
			measure: "belay_disk_state{SEL}", when: ">= 2",
			summary: "The disk of a member's log does not answer.",
			says:    "The disk of MEMBER's log is in state {{ $value }} (2 stalled, 3 dead): it promises nothing, and a leader hands over.",
		},
		{
			name: "StoreStalled", only: Belay, severity: critical,
			measure: "belay_store_state{SEL}", when: ">= 2",
			summary: "A member's store makes no progress.",
			says:    "The store of MEMBER is in state {{ $value }} (2 stalled, 3 dead): writes wait in memory, up to --max-unsynced-bytes.",
		},
		{
			name: "LogRefusing", only: Belay, severity: critical,
			measure: "belay_log_refusing{SEL}", when: "== 1",
			summary: "A member takes no more log into memory.",
			says:    "MEMBER holds --max-unsynced-bytes of log that its disk has not taken (belay_log_refusing is {{ $value }}): a leader refuses writes, a follower falls behind.",
		},
	}
	return all
}

func network(o Options) []alert {
	const enough = "increase(etcd_network_peer_round_trip_time_seconds_count{SEL}[15m]) >= 5"
	trip := "The p99 of round trips from MEMBER to {{ $labels.To }} is {{ $value | humanizeDuration }}, over "
	return []alert{
		{
			name: "RoundTripSlow", severity: warning, holds: "15m",
			measure: tripP99 + "{SEL}", when: over(o.Bounds.TripSlow), and: []string{enough},
			summary: "Round trips between two members are long.",
			says:    trip + secs(o.Bounds.TripSlow) + ", half a heartbeat interval or what is usual here; each write waits for one to a quorum.",
		},
		{
			name: "RoundTripSlow", severity: critical, holds: "15m",
			measure: tripP99 + "{SEL}", when: over(o.Bounds.TripBad), and: []string{enough},
			summary: "Round trips between two members are long enough to cost a leader its place.",
			says:    trip + secs(o.Bounds.TripBad) + ", a quarter of an election timeout.",
		},
		{
			name: "PeerDisconnected", severity: warning, holds: "5m",
			measure: "sum without (Remote) (etcd_network_active_peers{SEL})",
			when:    "< count without (Remote) (etcd_network_known_peers{SEL} == 1) - 1",
			and:     []string{allUp},
			summary: "A member is not connected to all others, though all answer Prometheus.",
			says:    "MEMBER is connected to {{ $value }} members, fewer than there are.",
		},
		{
			name: "PeerMessagesLost", severity: warning, holds: "5m",
			measure: orZero("sum by (BY, instance) (rate(etcd_network_peer_sent_failures_total{SEL}[5m]))", "BY, instance"), when: "> 0.1",
			and:     []string{allUp},
			summary: "Messages between members are lost, though all answer Prometheus.",
			says:    "MEMBER loses {{ $value | printf \"%.1f\" }} messages to other members a second.",
		},
		{
			name: "PeerRequestsRefused", only: Belay, severity: warning, holds: "15m",
			measure: "sum by (BY, instance, why) (rate(belay_peer_requests_refused_total{SEL}[5m]))", when: "> 0.01",
			summary: "Somebody connects to the peer port who is no member.",
			says:    "MEMBER refuses {{ $value | printf \"%.2f\" }} requests a second on its peer port, because of: {{ $labels.why }}.",
		},
		{
			name: "RaftMessagesRefused", only: Belay, severity: warning,
			measure: "sum by (BY, instance, why) (increase(belay_raft_messages_refused_total{SEL}[15m]))", when: "> 0",
			summary: "Somebody sends raft messages that no member sends.",
			says:    "MEMBER has refused {{ $value | printf \"%.0f\" }} raft messages within 15 minutes, because of: {{ $labels.why }}.",
		},
		{
			name: "StreamsTakenOver", only: Belay, severity: warning,
			measure: "sum by (BY, instance, To) (increase(belay_peer_streams_taken_over_total{SEL}[1h]))", when: "> 10",
			summary: "A member dials again and again, or somebody claims to be it.",
			says:    "Streams of {{ $labels.To }} at MEMBER were taken over {{ $value | printf \"%.0f\" }} times within an hour.",
		},
	}
}

func requests(o Options) []alert {
	all := []alert{
		{
			name: "ProposalsPending", severity: warning, holds: "5m",
			measure: "etcd_server_proposals_pending{SEL}", when: over(bounds.PendingProposals),
			summary: "Many writes wait.",
			says:    "{{ $value }} proposals of MEMBER wait to be committed.",
		},
		{
			name: "ProposalsFailed", severity: warning,
			measure: "increase(etcd_server_proposals_failed_total{SEL}[15m])", when: over(bounds.FailedProposals),
			summary: "Writes fail.",
			says:    "{{ $value | printf \"%.0f\" }} proposals of MEMBER have failed within 15 minutes.",
		},
	}
	for _, level := range []struct {
		severity, holds string
		gap, lag        float64
	}{{warning, "2m", bounds.ApplyGapSlow, bounds.ApplyLagSlow}, {critical, "1m", bounds.ApplyGapBad, bounds.ApplyLagBad}} {
		all = append(all, alert{
			name: "ApplyBehind", only: Etcd, severity: level.severity, holds: level.holds,
			measure: "etcd_server_proposals_committed_total{SEL} - etcd_server_proposals_applied_total{SEL}", when: over(level.gap),
			summary: "A member applies more slowly than is written.",
			says:    "{{ $value }} entries are committed and not applied by MEMBER; from 5,000 on it refuses requests.",
		}, alert{
			name: "ApplyBehind", only: Belay, severity: level.severity, holds: level.holds,
			measure: "belay_server_apply_lag_seconds{SEL}", when: over(level.lag),
			summary: "A member applies more slowly than is written.",
			says:    "The oldest committed entry has waited {{ $value | humanizeDuration }} for MEMBER to apply it; from 5 s on it refuses writes.",
		})
	}
	all = append(all, alert{
		name: "SlowApplies", severity: warning, holds: "15m",
		measure: "rate(etcd_server_slow_apply_total{SEL}[5m])", when: over(bounds.SlowApplies),
		summary: "Requests take long to apply.",
		says:    "{{ $value | printf \"%.1f\" }} requests a second take MEMBER over 100 ms to apply; whatever is written waits behind them.",
	})
	for _, level := range []struct {
		severity, holds string
		part            float64
	}{{warning, "10m", bounds.FailedSome}, {critical, "5m", bounds.FailedMany}} {
		all = append(all, alert{
			name: "RequestsFailed", severity: level.severity, holds: level.holds,
			measure: failedPart + "{SEL}", when: over(level.part), and: []string{failed() + " > 0.1"},
			summary: "Requests fail.",
			says:    "{{ $value | humanizePercentage }} of the requests to MEMBER fail, over " + percent(level.part) + ".",
		})
	}
	return append(all,
		alert{
			name: "ReadersWait", only: Belay, severity: warning, holds: "10m",
			measure: "histogram_quantile(0.99, rate(belay_reader_wait_seconds_bucket{SEL}[5m]))", when: "> 1",
			summary: "Large reads wait for a processor.",
			says:    "The p99 of how long large reads wait for their turn at MEMBER is {{ $value | humanizeDuration }}.",
		},
		alert{
			name: "LongRequestsWait", only: Belay, severity: warning, holds: "10m",
			measure: "histogram_quantile(0.99, rate(belay_long_request_wait_seconds_bucket{SEL}[5m]))", when: "> 1",
			summary: "Long requests wait until others have been carried out.",
			says:    "The p99 of how long requests of more than 64 KiB wait until MEMBER lets them in is {{ $value | humanizeDuration }}.",
		},
		alert{
			name: "ReceivingRefused", only: Belay, severity: warning,
			measure: "sum by (BY, instance, what) (increase(belay_receiving_refused_total{SEL}[15m]))", when: "> 0",
			summary: "Clients begin requests and do not complete them, or send too much at once.",
			says:    "MEMBER has refused {{ $value | printf \"%.0f\" }} times within 15 minutes to hold more of what clients had not completed: {{ $labels.what }}.",
		},
		alert{
			name: "ConnectionsRefused", only: Belay, severity: warning,
			measure: "sum by (BY, instance, port) (increase(belay_connections_refused_total{SEL}[15m]))", when: "> 0",
			summary: "There are more connections than the limit of file descriptors allows.",
			says:    "MEMBER has closed {{ $value | printf \"%.0f\" }} connections on its {{ $labels.port }} port within 15 minutes.",
		},
	)
}

func space(Options) []alert {
	const size, quota = "etcd_mvcc_db_total_size_in_bytes{SEL}", "etcd_server_quota_backend_bytes{SEL}"
	hours := func(d time.Duration) string { return fmt.Sprintf("%d * 3600", d/time.Hour) }
	full := func(severity string, within time.Duration) alert {
		return alert{
			name: "QuotaFullSoon", severity: severity, holds: "30m",
			measure: "((" + quota + " > 0) - " + size + ") / clamp_min(deriv(" + size + "[2h]), 1)", when: "< " + hours(within),
			// What is filled for the first time grows fast, and stops.
			and:     []string{size + " offset 1h > 0"},
			summary: "A database grows into its quota.",
			says:    "As it has grown within 2 hours, MEMBER's database is at its quota in {{ $value | humanizeDuration }}; then the cluster refuses writes.",
		}
	}
	near := func(severity, holds string, part float64) alert {
		return alert{
			name: "QuotaNear", severity: severity, holds: holds,
			measure: quotaPart + "{SEL}", when: over(part),
			summary: "A database is near its quota.",
			says:    "MEMBER's database is at {{ $value | humanizePercentage }} of its quota; at the quota the cluster refuses writes.",
		}
	}
	free := func(severity, holds string, times int) alert {
		return alert{
			name: "DiskNearlyFull", only: Belay, severity: severity, holds: holds,
			measure: "belay_disk_free_bytes{SEL}", when: fmt.Sprintf("< %d * belay_disk_free_minimum_bytes{SEL}", times),
			summary: "A member's disk is nearly full.",
			says:    "MEMBER may write {{ $value | humanize1024 }}B more to its disk; a member without room has the whole cluster refuse writes.",
		}
	}
	return []alert{
		near(warning, "10m", bounds.QuotaNear), near(critical, "5m", bounds.QuotaFull),
		full(warning, bounds.FullSoon), full(critical, bounds.FullNow),
		free(warning, "10m", bounds.DiskNear), free(critical, "", bounds.DiskFull),
		{
			name: "AlarmNoSpace", severity: critical,
			measure: orZero("count by (BY) (etcd_debugging_server_alarms{SEL,alarm_type=\"NOSPACE\"} > 0)", "BY"), when: "> 0",
			summary: "The alarm NOSPACE is raised: the cluster refuses writes.",
			says:    "{{ $value }} members of CLUSTER report the alarm NOSPACE.",
		},
		{
			name: "AlarmCorrupt", severity: critical,
			measure: orZero("count by (BY) (etcd_debugging_server_alarms{SEL,alarm_type=\"CORRUPT\"} > 0)", "BY"), when: "> 0",
			summary: "The alarm CORRUPT is raised: members' data differ.",
			says:    "{{ $value }} members of CLUSTER report the alarm CORRUPT.",
		},
		{
			name: "Fragmented", only: Etcd, severity: warning, holds: "1h",
			measure: "etcd_mvcc_db_total_size_in_use_in_bytes{SEL} / " + size, when: "< " + number(1-bounds.FreeShare),
			and:     []string{size + " > " + number(bounds.FreeFile)},
			summary: "Most of a database file is free space.",
			says:    "Only {{ $value | humanizePercentage }} of MEMBER's database file is in use; all of it counts against the quota.",
		},
		{
			name: "HistoryKept", severity: warning, holds: "1h",
			measure: "etcd_debugging_mvcc_current_revision{SEL} - clamp_min(etcd_debugging_mvcc_compact_revision{SEL}, 0)", when: over(bounds.HistoryKept),
			summary: "Much history is kept.",
			says:    "MEMBER keeps {{ $value | humanize }} revisions since the last compaction.",
		},
	}
}

func watches(o Options) []alert {
	return []alert{
		{
			name: "SlowWatchers", severity: warning, holds: "15m",
			measure: "etcd_debugging_mvcc_slow_watcher_total{SEL}", when: "> 0",
			summary: "Watchers are behind.",
			says:    "{{ $value }} watchers of MEMBER are behind and get their events late.",
		},
		{
			name: "EventsPending", severity: warning, holds: "5m",
			measure: "etcd_debugging_mvcc_pending_events_total{SEL}", when: over(bounds.PendingEvents),
			summary: "Many events wait for their watchers.",
			says:    "{{ $value }} events of MEMBER wait to be sent to watchers.",
		},
		{
			name: "LeaseChurn", severity: warning, holds: "15m",
			measure: "max by (BY) (rate(etcd_debugging_lease_granted_total{SEL}[5m]))", when: over(o.Bounds.LeaseGrants),
			summary: "Leases are granted at a high rate.",
			says:    "CLUSTER grants {{ $value | printf \"%.0f\" }} leases a second; each is a write, and each that ends another.",
		},
	}
}

func process(Options) []alert {
	expires := func(severity string, within time.Duration) alert {
		return alert{
			name: "CertificateExpires", only: Belay, severity: severity,
			measure: "belay_certificate_not_after_timestamp_seconds{SEL} - time()", when: fmt.Sprintf("< %d * 24 * 3600", within/(24*time.Hour)),
			summary: "A certificate expires soon.",
			says:    "The certificate in {{ $labels.file }} of MEMBER expires in {{ $value | humanizeDuration }}, less than " + days(within) + "; then every new connection fails.",
		}
	}
	return []alert{
		{
			name: "Descriptors", severity: critical, holds: "5m",
			measure: "process_open_fds{SEL} / process_max_fds{SEL}", when: over(bounds.Descriptors),
			summary: "A member is short of file descriptors.",
			says:    "MEMBER has {{ $value | humanizePercentage }} of its file descriptors open; at the limit it takes no connection.",
		},
		expires(warning, bounds.CertificateSoon), expires(critical, bounds.CertificateNow),
		{
			name: "LogDropped", only: Belay, severity: warning,
			measure: "increase(belay_log_dropped_total{SEL}[15m])", when: "> 0",
			summary: "Lines of a member's log are lost.",
			says:    "MEMBER has dropped {{ $value | printf \"%.0f\" }} lines of its log within 15 minutes, because its output takes too few.",
		},
	}
}

package main

import (
	"github.com/belaydb/belay/cli/doctor/bounds"
	"github.com/belaydb/belay/cli/doctor/rules"
)

const (
	member = "{{instance}}"
	link   = "{{instance}} to {{To}}"
)

// rows are the dashboard's, in the order in which one looks: does it work, how fast, and then why
// not.
func rows(kind rules.Kind) []row {
	rate := func(metric string) string { return "rate(" + metric + "[$__rate_interval])" }
	// quantiles of a histogram, for each member or what else legend tells apart.
	quantiles := func(metric, more, by, legend string) []query {
		q := func(part string) string {
			return "histogram_quantile(" + part + ", sum by (" + by + ", le) (" + rate(metric+"_bucket{SEL"+more+"}") + "))"
		}
		return []query{{q("0.99"), legend + " p99"}, {q("0.5"), legend + " p50"}}
	}
	one := func(expr, legend string) []query { return []query{{expr, legend}} }
	streams := func(service string) string {
		s := `{SEL,grpc_service="etcdserverpb.` + service + `",grpc_type="bidi_stream"}`
		return "sum by (instance) (grpc_server_started_total" + s + ") - sum by (instance) (grpc_server_handled_total" + s + ")"
	}
	const size, quota = "etcd_mvcc_db_total_size_in_bytes{SEL}", "etcd_server_quota_backend_bytes{SEL}"
	b := rules.NewBounds(kind, rules.DefaultTimers)
	fsyncLines := []float64{b.FsyncSlow, b.FsyncBad}
	if kind == rules.Belay {
		fsyncLines = []float64{b.FsyncBad}
	}
	return []row{
		{"Overview", []panel{
			{title: "Members that answer", big: true, unit: "short", queries: one(`sum(up{SEL})`, ""), says: "Of those that Prometheus asks."},
			{title: "Members that are known", big: true, unit: "short", queries: one(`max(count by (instance) (etcd_network_known_peers{SEL} == 1))`, ""), says: "What members say; learners, and members that never started, count."},
			{title: "Leader", big: true, unit: "short", queries: one(`max by (instance) (etcd_server_is_leader{SEL} == 1) or max by (instance) (0 * etcd_server_has_leader{SEL}) unless on () etcd_server_is_leader{SEL} == 1`, member), says: "Who leads; where nobody does, every member with 0."},
			{title: "Changes of leader, 1 h", big: true, unit: "short", lines: []float64{1, bounds.LeaderChanges}, queries: one(`max(increase(etcd_server_leader_changes_seen_total{SEL}[1h]))`, ""), says: "A restart of a member counts as one or two."},
			{title: "Requests that fail", big: true, unit: "percentunit", lines: []float64{bounds.FailedSome, bounds.FailedMany}, queries: one(`sum(rate(grpc_server_handled_total{SEL,grpc_type="unary",grpc_code!~"OK|Canceled|NotFound|AlreadyExists|InvalidArgument|FailedPrecondition|OutOfRange|PermissionDenied|Unauthenticated|Unimplemented|Aborted"}[5m])) / sum(rate(grpc_server_handled_total{SEL,grpc_type="unary"}[5m]))`, ""), says: "Because of the cluster, or perhaps; a client's own mistakes are not counted."},
			{title: "Full", big: true, unit: "percentunit", lines: []float64{bounds.QuotaNear, bounds.QuotaFull}, queries: one("max("+size+" / ("+quota+" > 0))", ""), says: "The fullest database, of its quota; at the quota the cluster refuses writes."},
			{title: "Who leads", unit: "short", max: 1, queries: one(`etcd_server_is_leader{SEL}`, member), says: "1 for the leader."},
			{title: "Who knows a leader", unit: "short", max: 1, queries: one(`etcd_server_has_leader{SEL}`, member), says: "0: writes and linearizable reads there fail."},
			{title: "Changes of leader", unit: "short", queries: one(`increase(etcd_server_leader_changes_seen_total{SEL}[$__rate_interval])`, member), says: "During each, requests wait or fail."},
			{title: "Verdicts", only: rules.Belay, unit: "short", queries: one(`sum by (cause) (increase(belay_verdicts_total{SEL}[$__rate_interval]))`, "{{cause}}"), says: "What leaders found to be the cause of incidents; their logs name the member."},
			{title: "Handovers of leadership", only: rules.Belay, unit: "short", queries: one(`sum by (reason) (increase(belay_handovers_total{SEL}[$__rate_interval]))`, "{{reason}}"), says: "disk and store: because it stalled; stop, request and removal are yours."},
			{title: "Alarms", unit: "short", lines: []float64{1}, queries: one(`sum by (alarm_type) (etcd_debugging_server_alarms{SEL}) or 0 * max(up{SEL})`, "{{alarm_type}}"), says: "NOSPACE: writes are refused. CORRUPT: members' data differ."},
		}},
		{"Latency", []panel{
			{title: "Requests", unit: "s", queries: quantiles("etcd_server_request_duration_seconds", `,success="true"`, "type", "{{type}}"), says: "By what was asked, as the members measure it."},
			{title: "Calls", unit: "reqps", queries: one(`sum by (grpc_method) (rate(grpc_server_started_total{SEL,grpc_type="unary"}[$__rate_interval])) > 0 or sum by () (rate(grpc_server_started_total{SEL,grpc_type="unary"}[$__rate_interval]))`, "{{grpc_method}}"), says: "Methods that are called; the line without a name is all of them."},
			{title: "Failed calls", unit: "reqps", queries: one(`sum by (instance, grpc_code) (rate(grpc_server_handled_total{SEL,grpc_code!="OK"}[$__rate_interval])) > 0 or sum by () (rate(grpc_server_handled_total{SEL,grpc_code!="OK"}[$__rate_interval]))`, "{{instance}} {{grpc_code}}"), says: "All codes but OK; Canceled is a client that went away."},
			{title: "Proposals", unit: "ops", queries: []query{{rate("etcd_server_proposals_committed_total{SEL}"), member + " committed"}, {rate("etcd_server_proposals_applied_total{SEL}"), member + " applied"}}, says: "Members that fall behind apply less than others commit."},
			{title: "Proposals that wait", unit: "short", lines: []float64{bounds.PendingProposals}, queries: one(`etcd_server_proposals_pending{SEL}`, member), says: "Writes that are not committed yet."},
			{title: "Proposals that failed", unit: "ops", queries: one(rate("etcd_server_proposals_failed_total{SEL}"), member), says: "Without a leader, or in time."},
			{title: "Not applied yet", only: rules.Etcd, unit: "short", lines: []float64{bounds.ApplyGapSlow, bounds.ApplyGapBad}, queries: one(`etcd_server_proposals_committed_total{SEL} - etcd_server_proposals_applied_total{SEL}`, member), says: "Entries; from 5,000 on requests are refused."},
			{title: "Not applied yet", only: rules.Belay, unit: "s", lines: []float64{bounds.ApplyLagSlow, bounds.ApplyLagBad}, queries: one(`belay_server_apply_lag_seconds{SEL}`, member), says: "How long the oldest committed entry waits; from 5 s on writes are refused."},
			{title: "Slow applies, read indexes, heartbeats", unit: "ops", queries: []query{{rate("etcd_server_slow_apply_total{SEL}"), member + " apply"}, {rate("etcd_server_slow_read_indexes_total{SEL}"), member + " read index"}, {rate("etcd_server_heartbeat_send_failures_total{SEL}"), member + " heartbeat"}}, says: "What took over 100 ms to apply, reads that waited for the leader, heartbeats that a leader sent late."},
			{title: "Large reads that wait", only: rules.Belay, unit: "short", queries: one(`belay_readers_waiting{SEL}`, member), says: "For a processor: more is being read than this member can serve."},
			{title: "Long requests that wait", only: rules.Belay, unit: "short", queries: one(`belay_long_requests_waiting{SEL}`, member), says: "At their clients, until others have been carried out."},
		}},
		{"Disk", []panel{
			{title: "Syncs of the log", unit: "s", lines: fsyncLines, queries: quantiles("etcd_disk_wal_fsync_duration_seconds", "", "instance", member), says: "Every write waits for a quorum of these."},
			{title: "Syncs", unit: "ops", queries: one(rate("etcd_disk_wal_fsync_duration_seconds_count{SEL}"), member), says: "Of the log."},
			{title: "Written to the log", unit: "Bps", queries: one(rate("etcd_disk_wal_write_bytes_total{SEL}"), member), says: "By this member."},
			{title: "Commits of the database", only: rules.Etcd, unit: "s", lines: []float64{b.CommitSlow, b.CommitBad}, queries: quantiles("etcd_disk_backend_commit_duration_seconds", "", "instance", member), says: "Requests wait while the database is written."},
			{title: "Defragmentation", only: rules.Etcd, unit: "short", max: 1, queries: one(`etcd_disk_defrag_inflight{SEL}`, member), says: "1: it answers nothing."},
			{title: "State of the log's disk", only: rules.Belay, unit: "short", max: 3, lines: []float64{1, 2}, queries: one(`belay_disk_state{SEL}`, member), says: "1 slow, 2 stalled, 3 dead; what operations.md calls them."},
			{title: "Oldest sync in flight", only: rules.Belay, unit: "s", lines: []float64{bounds.SlowSync.Seconds()}, queries: one(`belay_disk_sync_oldest_seconds{SEL}`, member), says: "A disk that does not answer is seen here and in no histogram."},
			{title: "Log in memory", only: rules.Belay, unit: "bytes", queries: []query{{`belay_log_held_bytes{SEL}`, member + " held"}, {`belay_log_unsynced_bytes{SEL}`, member + " not on disk"}}, says: "Bounded by --max-unsynced-bytes."},
			{title: "Refuses for lack of memory", only: rules.Belay, unit: "short", max: 1, queries: one(`belay_log_refusing{SEL}`, member), says: "1: --max-unsynced-bytes are held."},
			{title: "State of the store", only: rules.Belay, unit: "short", max: 3, lines: []float64{1, 2}, queries: one(`belay_store_state{SEL}`, member), says: "1 slow, 2 stalled, 3 dead."},
			{title: "Store without progress", only: rules.Belay, unit: "s", lines: []float64{bounds.SlowSync.Seconds()}, queries: one(`belay_store_oldest_seconds{SEL}`, member), says: "For how long."},
			{title: "Apply backlog", only: rules.Belay, unit: "short", queries: one(`belay_apply_backlog_entries{SEL}`, member), says: "Entries; growing: the store cannot keep up."},
		}},
		{"Network", []panel{
			{title: "Round trips between members", unit: "s", lines: []float64{b.TripSlow, b.TripBad}, queries: quantiles("etcd_network_peer_round_trip_time_seconds", "", "instance, To", link)[:1], says: "p99. A busy CPU at either end looks the same."},
			{title: "Connected to", unit: "short", queries: one(`sum by (instance) (etcd_network_active_peers{SEL})`, member), says: "How many other members."},
			{title: "Messages lost", unit: "ops", queries: one(`sum by (instance, To) (rate(etcd_network_peer_sent_failures_total{SEL}[$__rate_interval])) or 0 * max by (instance) (up{SEL})`, link), says: "That could not be sent to a member."},
			{title: "Between members", unit: "Bps", queries: []query{{`sum by (instance) (rate(etcd_network_peer_sent_bytes_total{SEL}[$__rate_interval]))`, member + " sent"}, {`sum by (instance) (rate(etcd_network_peer_received_bytes_total{SEL}[$__rate_interval]))`, member + " received"}}, says: "Bytes of raft's messages."},
			{title: "To and from clients", unit: "Bps", queries: []query{{rate("etcd_network_client_grpc_sent_bytes_total{SEL}"), member + " sent"}, {rate("etcd_network_client_grpc_received_bytes_total{SEL}"), member + " received"}}, says: "Bytes of gRPC messages."},
			{title: "Election timeout", only: rules.Belay, unit: "s", queries: []query{{`belay_election_timeout_seconds{SEL}`, member}, {`belay_heartbeat_interval_seconds{SEL}`, member + " heartbeat"}}, says: "Above its configured value: links are slow or lossy."},
			{title: "Log for followers that are behind", only: rules.Belay, unit: "Bps", queries: one(rate("belay_log_fed_bytes_total{SEL}"), member), says: "Read from the leader's disk."},
			{title: "Refused on the peer port", only: rules.Belay, unit: "ops", queries: []query{{`sum by (instance, why) (rate(belay_peer_requests_refused_total{SEL}[$__rate_interval]))`, member + " request: {{why}}"}, {`sum by (instance, why) (rate(belay_raft_messages_refused_total{SEL}[$__rate_interval]))`, member + " message: {{why}}"}}, says: "What no member of this cluster sends."},
		}},
		{"Size and quota", []panel{
			{title: "Database", unit: "bytes", queries: []query{{size, member}, {`etcd_mvcc_db_total_size_in_use_in_bytes{SEL}`, member + " in use"}, {"min(" + quota + ")", "quota"}}, says: "The quota is of the whole size."},
			{title: "Of the quota", unit: "percentunit", max: 1, lines: []float64{bounds.QuotaNear, bounds.QuotaFull}, queries: one(size+" / ("+quota+" > 0)", member), says: "At the quota the cluster refuses writes."},
			{title: "Free on disk", only: rules.Belay, unit: "bytes", queries: []query{{`belay_disk_free_bytes{SEL}`, member}, {"max(belay_disk_free_minimum_bytes{SEL})", "NOSPACE is raised below"}}, says: "Of the data's disk, or the log's if that has less."},
			{title: "Keys", unit: "short", queries: one(`etcd_debugging_mvcc_keys_total{SEL}`, member), says: "That are there now."},
			{title: "Revisions since the last compaction", unit: "short", lines: []float64{bounds.HistoryKept}, queries: one(`etcd_debugging_mvcc_current_revision{SEL} - clamp_min(etcd_debugging_mvcc_compact_revision{SEL}, 0)`, member), says: "All of them stay in the database."},
			{title: "Puts, deletes, transactions", unit: "ops", queries: []query{{rate("etcd_mvcc_put_total{SEL}"), member + " put"}, {rate("etcd_mvcc_delete_total{SEL}"), member + " delete"}, {rate("etcd_mvcc_txn_total{SEL}"), member + " txn"}}, says: "As applied: alike on all members."},
		}},
		{"Watches and leases", []panel{
			{title: "Watchers", unit: "short", queries: one(`etcd_debugging_mvcc_watcher_total{SEL}`, member), says: "On this member."},
			{title: "Watchers that are behind", unit: "short", lines: []float64{1}, queries: one(`etcd_debugging_mvcc_slow_watcher_total{SEL}`, member), says: "They get their events late."},
			{title: "Events that wait", unit: "short", lines: []float64{bounds.PendingEvents}, queries: one(`etcd_debugging_mvcc_pending_events_total{SEL}`, member), says: "To be sent to watchers."},
			{title: "Open streams", unit: "short", queries: []query{{streams("Watch"), member + " watch"}, {streams("Lease"), member + " lease"}}, says: "Of clients."},
			{title: "Leases", unit: "ops", lines: []float64{b.LeaseGrants}, queries: []query{{"max(" + rate("etcd_debugging_lease_granted_total{SEL}") + ")", "granted"}, {"max(" + rate("etcd_debugging_lease_revoked_total{SEL}") + ")", "revoked"}, {"sum(" + rate("etcd_debugging_lease_renewed_total{SEL}") + ")", "renewed"}}, says: "A grant and a revocation are writes."},
		}},
		{"Process", []panel{
			{title: "CPU", unit: "short", queries: one(rate("process_cpu_seconds_total{SEL}"), member), says: "Processors."},
			{title: "Memory", unit: "bytes", queries: one(`process_resident_memory_bytes{SEL}`, member), says: "Resident."},
			{title: "File descriptors", unit: "percentunit", lines: []float64{bounds.Descriptors}, queries: one(`process_open_fds{SEL} / process_max_fds{SEL}`, member), says: "Of the limit."},
			{title: "Up for", unit: "s", queries: one(`time() - process_start_time_seconds{SEL}`, member), says: "Since the process started."},
			{title: "Goroutines", unit: "short", queries: one(`go_goroutines{SEL}`, member), says: "Grow with connections, streams and watches."},
			{title: "How late raft's ticks come", only: rules.Belay, unit: "s", queries: quantiles("belay_loop_delay_seconds", "", "instance", member)[:1], says: "p99. Half an election timeout: too little CPU."},
			{title: "Connections", only: rules.Belay, unit: "short", queries: one(`belay_connections_open{SEL}`, member+" {{port}}"), says: "By kind of port."},
			{title: "Incomplete requests", only: rules.Belay, unit: "bytes", queries: []query{{`belay_receiving_bytes{SEL}`, member}, {`belay_prelude_bytes{SEL}`, member + " {{port}} headers"}}, says: "Bounded by --max-receive-bytes."},
			{title: "Lines of log dropped", only: rules.Belay, unit: "ops", queries: one(rate("belay_log_dropped_total{SEL}"), member), says: "The output takes too few."},
		}},
	}
}

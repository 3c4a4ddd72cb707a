package replica

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the member's raft metrics under etcd's names and types (several
// that end in _total are gauges there, and so here).
type Metrics struct {
	HasLeader       prometheus.Gauge
	IsLeader        prometheus.Gauge
	LeaderChanges   prometheus.Counter
	Committed       prometheus.Gauge
	Applied         prometheus.Gauge
	Failed          prometheus.Counter
	ReadIndexSlow   prometheus.Counter
	ReadIndexFailed prometheus.Counter
	HeartbeatsLate  prometheus.Counter

	// Belay's own, of the disk watch and the loop.
	DiskState    prometheus.Gauge
	DiskOldest   prometheus.Gauge
	StoreState   prometheus.Gauge
	StoreOldest  prometheus.Gauge
	Unsynced     prometheus.Gauge
	Held         prometheus.Gauge
	Refusing     prometheus.Gauge
	LargeWaiting prometheus.Gauge
	LargeWindow  prometheus.Gauge
	LoopDelay    prometheus.Histogram
	ApplyBacklog prometheus.Gauge
	HandOvers    *prometheus.CounterVec
	// Refused counts messages of peers that no member sends, by what is wrong with them.
	Refused *prometheus.CounterVec
	// Of followers that are behind the log in memory.
	Feeds     prometheus.Gauge
	FedBytes  prometheus.Counter
	KeptBytes prometheus.Gauge
	FirstKept prometheus.Gauge
	// ElectionTimeout and Heartbeat are this member's, as they are now.
	ElectionTimeout prometheus.Gauge
	Heartbeat       prometheus.Gauge

	// Pending is exported as etcd_server_proposals_pending.
	Pending atomic.Int64
}

// NewMetrics makes the metrics and registers them unless reg is nil.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "etcd", Subsystem: "server", Name: name, Help: help})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "etcd", Subsystem: "server", Name: name, Help: help})
	}
	m := &Metrics{
		HasLeader:       gauge("has_leader", "Whether this member knows a leader: 1 or 0."),
		IsLeader:        gauge("is_leader", "Whether this member leads: 1 or 0."),
		LeaderChanges:   counter("leader_changes_seen_total", "Changes of leader that this member has seen."),
		Committed:       gauge("proposals_committed_total", "Index of the newest entry known to be committed."),
		Applied:         gauge("proposals_applied_total", "Index of the newest applied entry."),
		Failed:          counter("proposals_failed_total", "Proposals that got no result."),
		ReadIndexSlow:   counter("slow_read_indexes_total", "Read index questions unanswered for so long that they were asked again."),
		HeartbeatsLate:  counter("heartbeat_send_failures_total", "Heartbeats of a leader that left more than two intervals after the one before, for each peer."),
		ReadIndexFailed: counter("read_indexes_failed_total", "Read index questions that timed out."),
	}
	own := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "belay", Name: name, Help: help})
	}
	m.DiskState = own("disk_state", "How the disk of the raft log does: 0 healthy, 1 slow, 2 stalled, 3 dead.")
	m.DiskOldest = own("disk_sync_oldest_seconds", "For how long something has waited to be made durable without any sync ending: the age of the sync in flight.")
	m.StoreState = own("store_state", "How the store does: 0 healthy, 1 slow, 2 stalled, 3 dead.")
	m.StoreOldest = own("store_oldest_seconds", "For how long the store has had something to apply or to make durable and has not got on.")
	m.Unsynced = own("log_unsynced_bytes", "Bytes of the raft log that are in memory and not yet durable.")
	m.Held = own("log_held_bytes", "Bytes of the raft log that memory cannot let go: not committed, not applied or not durable in the store.")
	m.Refusing = own("log_refusing", "Whether writes are refused, or appends by a follower, since too much of the raft log waits in memory: 1 or 0.")
	m.LargeWaiting = own("large_proposals_waiting_bytes", "Bytes of large writes of this member's clients that wait until the large ones before them are applied, so that small writes need not.")
	m.LargeWindow = own("large_proposals_window_bytes", "Bytes of large writes of this member's clients that may be on their way through the raft log at a time.")
	m.ApplyBacklog = own("apply_backlog_entries", "Entries that are committed and not yet applied.")
	m.ElectionTimeout = own("election_timeout_seconds", "The election timeout of this member: as configured, or longer where it follows the measured round trips.")
	m.Heartbeat = own("heartbeat_interval_seconds", "The interval at which this member sends heartbeats when it leads.")
	m.LoopDelay = prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: "belay", Name: "loop_delay_seconds",
		Help:    "How late the ticks of the raft loop came: the member had too little CPU, or the loop was busy.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
	})
	m.Feeds = own("log_feeds", "Followers further behind than the raft log in memory that are being sent the log on disk, or asked what they have.")
	m.KeptBytes = own("log_kept_bytes", "Bytes of the raft log on disk that are kept only for followers that are behind.")
	m.FirstKept = own("log_first_index", "Index of the first entry of the raft log on disk: how far back a follower can be given the log.")
	m.FedBytes = prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "belay", Name: "log_fed_bytes_total", Help: "Bytes of the raft log that were read from disk and sent to followers.",
	})
	m.HandOvers = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "belay", Name: "handovers_total",
		Help: "Times that this member handed leadership over, by reason: the disk of its raft log, its store, its stop, a request, its removal.",
	}, []string{"reason"})
	for _, reason := range []string{reasonDisk, reasonStore, reasonStop, reasonRequest, reasonRemoval} {
		m.HandOvers.WithLabelValues(reason)
	}
	m.Refused = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "belay", Name: "raft_messages_refused_total",
		Help: "Raft messages that came from the peer port and that no member sends, by what is wrong: their form, an entry, the term, what they acknowledge.",
	}, []string{"why"})
	for _, why := range []string{refusedForm, refusedEntry, refusedTerm, refusedAck} {
		m.Refused.WithLabelValues(why)
	}
	pending := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "etcd", Subsystem: "server", Name: "proposals_pending",
		Help: "Proposals that wait for their result.",
	}, func() float64 { return float64(m.Pending.Load()) })
	if reg != nil {
		reg.MustRegister(m.HasLeader, m.IsLeader, m.LeaderChanges, m.Committed, m.Applied, m.Failed,
			m.ReadIndexSlow, m.ReadIndexFailed, pending, m.HeartbeatsLate,
			m.DiskState, m.DiskOldest, m.StoreState, m.StoreOldest, m.Unsynced, m.Held, m.Refusing, m.LargeWaiting, m.LargeWindow, m.ApplyBacklog, m.LoopDelay, m.HandOvers, m.Refused,
			m.ElectionTimeout, m.Heartbeat, m.Feeds, m.FedBytes, m.KeptBytes, m.FirstKept)
	}
	return m
}

func (m *Metrics) disk(d DiskReport, applyBacklog uint64) {
	m.DiskState.Set(float64(d.State))
	m.DiskOldest.Set(d.Oldest.Seconds())
	m.StoreState.Set(float64(d.Store))
	m.StoreOldest.Set(d.StoreOldest.Seconds())
	m.Unsynced.Set(float64(d.UnsyncedBytes))
	m.ApplyBacklog.Set(float64(applyBacklog))
}

func (m *Metrics) leader(leader uint64, isLeader, changed bool) {
	set := func(g prometheus.Gauge, on bool) {
		if on {
			g.Set(1)
		} else {
			g.Set(0)
		}
	}
	set(m.HasLeader, leader != 0)
	set(m.IsLeader, isLeader)
	if changed && leader != 0 {
		m.LeaderChanges.Inc()
	}
}

package state

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the metrics of the state machine, under etcd's names.
type Metrics struct {
	applySeconds    *prometheus.HistogramVec
	slowApplies     prometheus.Counter
	alarms          *prometheus.GaugeVec
	clusterVersion  *prometheus.GaugeVec
	knownPeers      *prometheus.GaugeVec
	isLearner       prometheus.Gauge
	snapshotRunning prometheus.Gauge

	// apply holds the series of applySeconds that have been used; only the applier goroutine
	// touches it. A series is made at its first use, so that a scrape shows what happened and not
	// every request there is.
	apply [kindCount][2]prometheus.Observer
}

// NewMetrics makes the metrics and registers them, unless reg is nil.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		applySeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "etcd", Subsystem: "server", Name: "apply_duration_seconds",
			Help:    "Time to apply one raft request to the state machine, by kind of request; the shared commit of its batch not included.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 20), // 0.1 ms to 52 s
		}, []string{"version", "op", "success"}),
		slowApplies: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "etcd", Subsystem: "server", Name: "slow_apply_total",
			Help: "Requests and reads that took longer to apply than the warning duration.",
		}),
		alarms: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "etcd_debugging", Subsystem: "server", Name: "alarms",
			Help: "Alarms by member and type: 1 while active.",
		}, []string{"server_id", "alarm_type"}),
		clusterVersion: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "etcd", Subsystem: "cluster", Name: "version",
			Help: "1 for the label of the version that the cluster runs at.",
		}, []string{"cluster_version"}),
		knownPeers: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "etcd", Subsystem: "network", Name: "known_peers",
			Help: "1 for each member of the cluster that this member knows, itself included; 0 for removed ones.",
		}, []string{"Local", "Remote"}),
		isLearner: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "etcd", Subsystem: "server", Name: "is_learner",
			Help: "1 if this member is a learner.",
		}),
		snapshotRunning: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "etcd", Subsystem: "server", Name: "snapshot_apply_in_progress_total",
			Help: "1 while a received snapshot is being installed.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.applySeconds, m.slowApplies, m.alarms, m.clusterVersion, m.knownPeers, m.isLearner, m.snapshotRunning)
	}
	return m
}

// observe records the time of one applied request. Only the applier goroutine calls it.
func (m *Metrics) observe(k kind, success bool, took time.Duration) {
	i := 0
	if success {
		i = 1
	}
	o := m.apply[k][i]
	if o == nil {
		o = m.applySeconds.WithLabelValues("v3", k.String(), strconv.FormatBool(success))
		m.apply[k][i] = o
	}
	o.Observe(float64(took.Microseconds()) / 1e6)
}

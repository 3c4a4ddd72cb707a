package raftlog

import "github.com/prometheus/client_golang/prometheus"

// Metrics of the log, with etcd's names, so that its dashboards and alerts keep
// working. write_bytes_total is a gauge in etcd, hence here.
type Metrics struct {
	fsync      prometheus.Histogram
	write      prometheus.Histogram
	writeBytes prometheus.Gauge
}

// NewMetrics makes the metrics and registers them; with a nil reg they work unregistered.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	buckets := prometheus.ExponentialBuckets(0.001, 2, 14)
	m := &Metrics{
		fsync: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "etcd_disk_wal_fsync_duration_seconds",
			Help:    "Time of each fdatasync of the raft log.",
			Buckets: buckets,
		}),
		write: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "etcd_disk_wal_write_duration_seconds",
			Help:    "Time of each write to the raft log, without its fdatasync.",
			Buckets: buckets,
		}),
		writeBytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "etcd_disk_wal_write_bytes_total",
			Help: "Bytes written to the raft log since the start.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.fsync, m.write, m.writeBytes)
	}
	return m
}

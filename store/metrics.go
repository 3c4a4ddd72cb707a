package store

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the storage metrics, under etcd's names. Defragmentation and the snapshots for
// clients are counted by package server, which decides on them.
type Metrics struct {
	commitSeconds prometheus.Histogram
	writeSeconds  prometheus.Histogram

	views atomic.Int64          // open views
	store atomic.Pointer[Store] // the gauges ask it
}

// NewMetrics makes the metrics and registers them, unless reg is nil.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	histogram := func(namespace, name, help string, start float64, count int) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Subsystem: "disk", Name: name, Help: help,
			Buckets: prometheus.ExponentialBuckets(start, 2, count),
		})
	}
	m := &Metrics{
		commitSeconds: histogram("etcd", "backend_commit_duration_seconds",
			"Time to commit one batch of applied entries to the store (to its memory: the raft log is what makes it durable).", 0.001, 14),
		writeSeconds: histogram("etcd_debugging", "backend_commit_write_duration_seconds",
			"Time a commit spent in the storage engine.", 0.001, 14),
	}
	if reg == nil {
		return m
	}
	gauge := func(name, help string, value func() float64) prometheus.GaugeFunc {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "etcd", Subsystem: "mvcc", Name: name, Help: help}, value)
	}
	size := func(part func(total, inUse int64) int64) func() float64 {
		return func() float64 {
			s := m.store.Load()
			if s == nil {
				return 0
			}
			return float64(part(s.Size()))
		}
	}
	segments := func(part func(SegmentStats) int64) func() float64 {
		return func() float64 {
			s := m.store.Load()
			if s == nil {
				return 0
			}
			return float64(part(s.Segments.Stats()))
		}
	}
	reg.MustRegister(m.commitSeconds, m.writeSeconds,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "belay_kept_segments", Help: "Segments of the raft log that are kept for large values, to which the store refers instead of writing them once more.",
		}, segments(func(s SegmentStats) int64 { return int64(s.Files) })),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "belay_kept_segments_bytes", Help: "Bytes of kept segments; of those that the raft log still writes, the values that are referred to.",
		}, segments(func(s SegmentStats) int64 { return s.Bytes })),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "belay_kept_segments_live_bytes", Help: "Bytes of values in kept segments to which the store refers.",
		}, segments(func(s SegmentStats) int64 { return s.Live })),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "belay_kept_values_moved_bytes_total", Help: "Bytes of values moved from kept segments into the store, because little else in the segments was needed.",
		}, segments(func(s SegmentStats) int64 { return s.Moved })),
		// etcd's B+tree has these two phases, an LSM does not; dashboards find them empty rather
		// than missing.
		histogram("etcd_debugging", "backend_commit_rebalance_duration_seconds", "Always empty: the store has no pages to rebalance.", 0.001, 14),
		histogram("etcd_debugging", "backend_commit_spill_duration_seconds", "Always empty: the store has no pages to spill.", 0.001, 14),
		gauge("db_total_size_in_bytes", "Bytes that the store takes on disk and in memory before its next flush.",
			size(func(total, _ int64) int64 { return total })),
		gauge("db_total_size_in_use_in_bytes", "Bytes of the store that hold current data.",
			size(func(_, inUse int64) int64 { return inUse })),
		gauge("db_open_read_transactions", "Open consistent views of the store.",
			func() float64 { return float64(m.views.Load()) }),
	)
	return m
}

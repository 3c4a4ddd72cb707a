package mvcc

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the metrics about keys and their history, under etcd's names; those about watchers
// belong to package watch.
type Metrics struct {
	puts, deletes, ranges, txns prometheus.Counter
	putBytes                    prometheus.Gauge

	hashSeconds, hashRevSeconds prometheus.Histogram

	compactionPause      prometheus.Histogram
	compactionTotal      prometheus.Histogram
	indexCompactionPause prometheus.Histogram
	compactionLast       prometheus.Gauge
	compactionKeys       prometheus.Counter

	store atomic.Pointer[Store] // the gauges ask it
}

// NewMetrics makes the metrics and registers them, unless reg is nil.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	var all []prometheus.Collector
	counter := func(namespace, name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Subsystem: "mvcc", Name: name, Help: help})
		all = append(all, c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: debugging, Subsystem: "mvcc", Name: name, Help: help})
		all = append(all, g)
		return g
	}
	histogram := func(namespace, name, help string, start float64, count int) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Subsystem: "mvcc", Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(start, 2, count),
		})
		all = append(all, h)
		return h
	}
	m := &Metrics{
		puts:     counter("etcd", "put_total", "Puts applied by this member."),
		deletes:  counter("etcd", "delete_total", "Deletes applied by this member."),
		ranges:   counter("etcd", "range_total", "Ranges read on this member."),
		txns:     counter("etcd", "txn_total", "Transactions of more than one operation on this member."),
		putBytes: gauge("total_put_size_in_bytes", "Bytes of all keys and values put on this member."),

		hashSeconds:    histogram("etcd", "hash_duration_seconds", "Time to hash the whole store.", .01, 15),
		hashRevSeconds: histogram("etcd", "hash_rev_duration_seconds", "Time to hash the keys and their history up to a revision.", .01, 15),

		compactionPause:      histogram(debugging, "db_compaction_pause_duration_milliseconds", "Time of one step of a compaction.", 1, 13),
		compactionTotal:      histogram(debugging, "db_compaction_total_duration_milliseconds", "Time from the start of a compaction to its last step.", 100, 14),
		indexCompactionPause: histogram(debugging, "index_compaction_pause_duration_milliseconds", "Always empty: there is no index in memory whose compaction would pause anything.", 0.5, 14),
		compactionLast:       gauge("db_compaction_last", "Unix time of the last finished compaction."),
		compactionKeys:       counter(debugging, "db_compaction_keys_total", "Versions of keys removed by compactions."),
	}
	revision := func(name, help string, value func(*Store) int64) {
		all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: debugging, Subsystem: "mvcc", Name: name, Help: help}, func() float64 {
			if s := m.store.Load(); s != nil {
				return float64(value(s))
			}
			return 0
		}))
	}
	revision("keys_total", "Keys that exist; 0 while they are first counted, in the background after a start.", func(s *Store) int64 { return s.keyCounts.keys() })
	revision("current_revision", "Newest revision that can be read.", (*Store).Revision)
	revision("compact_revision", "Revision of the last compaction that was asked for.", (*Store).CompactRevision)
	if reg != nil {
		reg.MustRegister(all...)
	}
	return m
}

const debugging = "etcd_debugging"

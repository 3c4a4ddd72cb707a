package server

import "github.com/prometheus/client_golang/prometheus"

// registerEmpty registers families of etcd's that have no meaning here, and stay empty or zero, so
// that dashboards and alerts that use them find a series. Belay has no snapshot files and no v2
// store; etcd's server has its proxy's families because the proxy is part of the program.
func registerEmpty(r prometheus.Registerer) {
	counter := func(name string) prometheus.Collector {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: "Always zero: there is no v2 store."})
	}
	byAction := func(name string) prometheus.Collector {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: "Always empty: there is no v2 store."}, []string{"action"})
	}
	seconds := func(name string, start float64, buckets int) prometheus.Collector {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: "Always empty: there are no snapshot files.",
			Buckets: prometheus.ExponentialBuckets(start, 2, buckets)})
	}
	proxys := func(name string) prometheus.GaugeOpts {
		return prometheus.GaugeOpts{Name: "etcd_grpc_proxy_" + name, Help: "Always zero on a member: of a proxy."}
	}
	r.MustRegister(
		prometheus.NewGauge(proxys("cache_hits_total")), prometheus.NewGauge(proxys("cache_keys_total")), prometheus.NewGauge(proxys("cache_misses_total")),
		prometheus.NewGauge(proxys("watchers_coalescing_total")), prometheus.NewCounter(prometheus.CounterOpts(proxys("events_coalescing_total"))),
		counter("etcd_debugging_store_expires_total"),
		counter("etcd_debugging_store_watch_requests_total"),
		prometheus.NewGauge(prometheus.GaugeOpts{Name: "etcd_debugging_store_watchers", Help: "Always zero: there is no v2 store."}),
		byAction("etcd_debugging_store_reads_total"), byAction("etcd_debugging_store_reads_failed_total"),
		byAction("etcd_debugging_store_writes_total"), byAction("etcd_debugging_store_writes_failed_total"),
		seconds("etcd_debugging_snap_save_marshalling_duration_seconds", .001, 14),
		seconds("etcd_debugging_snap_save_total_duration_seconds", .001, 14),
		seconds("etcd_snap_db_fsync_duration_seconds", .001, 14),
		seconds("etcd_snap_db_save_total_duration_seconds", .1, 10),
		seconds("etcd_snap_fsync_duration_seconds", .001, 14),
	)
}

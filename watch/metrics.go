package watch

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts what the hub does, under etcd's names. The gauges are read when
// scraped; the hot path only adds to atomics.
type Metrics struct {
	streams  atomic.Int64 // open streams
	watchers atomic.Int64 // watchers that are not ended
	behind   atomic.Int64 // those of them that are not live
	pending  atomic.Int64 // events queued in streams
	sent     atomic.Int64 // events handed to a stream's sender
}

// NewMetrics returns metrics registered with reg, or unregistered ones if reg is nil.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{}
	if reg == nil {
		return m
	}
	gauge := func(name, help string, v *atomic.Int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "etcd_debugging", Subsystem: "mvcc", Name: name, Help: help,
		}, func() float64 { return float64(v.Load()) })
	}
	reg.MustRegister(
		gauge("watch_stream_total", "Watch streams open now.", &m.streams),
		gauge("watcher_total", "Watchers open now.", &m.watchers),
		gauge("slow_watcher_total", "Watchers that are behind the live feed now.", &m.behind),
		gauge("pending_events_total", "Events queued for watch streams and not sent yet.", &m.pending),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Namespace: "etcd_debugging", Subsystem: "mvcc", Name: "events_total",
			Help: "Events sent to watchers by this member.",
		}, func() float64 { return float64(m.sent.Load()) }),
	)
	return m
}

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

	// Observed by the sender of a stream: sending events, the same divided by the
	// number of events, sending a control response, a progress tick. In seconds.
	SendEvents, SendPerEvent, SendControl, SendProgress prometheus.Histogram
}

// NewMetrics returns metrics registered with reg, or unregistered ones if reg is nil.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "etcd_debugging", Subsystem: "server", Name: "watch_send_loop_" + name + "_seconds",
			Help: help, Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		})
	}
	m := &Metrics{
		SendEvents:   histogram("watch_stream_duration", "How long it took to send a response with events."),
		SendPerEvent: histogram("watch_stream_duration_per_event", "How long it took to send a response with events, divided by their number."),
		SendControl:  histogram("control_stream_duration", "How long it took to send a created, canceled or progress response."),
		SendProgress: histogram("progress_duration", "How long it took to find out whom to tell progress."),
	}
	if reg == nil {
		return m
	}
	gauge := func(name, help string, v *atomic.Int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "etcd_debugging", Subsystem: "mvcc", Name: name, Help: help,
		}, func() float64 { return float64(v.Load()) })
	}
	reg.MustRegister(m.SendEvents, m.SendPerEvent, m.SendControl, m.SendProgress,
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

package node

import (
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/belaydb/belay/budget"
	"github.com/belaydb/belay/listen"
	"github.com/belaydb/belay/rpc"
)

// Metrics are those of the member's ports.
type Metrics struct {
	notAfter *prometheus.GaugeVec   // of certificates, by side and file
	refused  *prometheus.CounterVec // connections, by port and state
	healing  prometheus.Gauge
	damaged  prometheus.Gauge
	bounds   *boundsCollector
	// About incomplete requests.
	receivingRefused *prometheus.CounterVec // calls, connections, and connections for their headers
	receiving        atomic.Pointer[listen.Receiving]
	calls            atomic.Pointer[rpc.Server] // nil: grpc-go serves them
	longWait         prometheus.Histogram
	unreadEnded      prometheus.Counter

	budget prometheus.Gauge     // 0: none
	shares *prometheus.GaugeVec // of the budget, by part
}

// NewMetrics registers them.
func NewMetrics(r prometheus.Registerer) *Metrics {
	label := []string{"port"}
	m := &Metrics{
		notAfter: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "belay_certificate_not_after_timestamp_seconds",
			Help: "When a TLS certificate that this member shows or trusts expires, in seconds since 1970.",
		}, []string{"side", "file"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "belay_connections_refused_total",
			Help: "Connections that were closed because too many were open on that kind of port.",
		}, []string{"port", "state"}),
		bounds: &boundsCollector{
			open:  prometheus.NewDesc("belay_connections_open", "Connections that are open on that kind of port.", label, nil),
			limit: prometheus.NewDesc("belay_connections_limit", "How many connections may be open on that kind of port.", label, nil),
			preludes: prometheus.NewDesc("belay_prelude_bytes",
				"Bytes that are kept of TLS handshakes and headers that are not complete, on that kind of port.", label, nil),
			of: make(map[string]portKind),
		},
	}
	m.healing = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "belay_healing", Help: "1 while this member, whose data was damaged, has come back under a new id and is not yet what it was.",
	})
	m.damaged = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "belay_damaged_copies", Help: "Copies of damaged data of this member that are kept in its data directory.",
	})
	r.MustRegister(m.healing, m.damaged)
	m.budget = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "belay_memory_budget_bytes", Help: "Memory that this member may take (--memory-budget).",
	})
	m.shares = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "belay_memory_share_bytes", Help: "Memory that each part of this member may take of the budget. Some are within others.",
	}, []string{"part"})
	r.MustRegister(m.budget, m.shares)
	m.receivingRefused = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "belay_receiving_refused_total",
		Help: "Calls that were refused, and connections that were closed, because their connection held too many bytes of incomplete requests, or of incomplete headers.",
	}, []string{"what"})
	for _, what := range []string{"call", "connection", "headers"} {
		m.receivingRefused.WithLabelValues(what)
	}
	r.MustRegister(m.notAfter, m.refused, m.bounds, m.receivingRefused, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "belay_receiving_bytes", Help: "Bytes that have come of gRPC requests that are not complete.",
	}, func() float64 {
		if r := m.receiving.Load(); r != nil {
			return float64(r.Held())
		}
		return 0
	}))
	m.longWait = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "belay_long_request_wait_seconds", Help: "How long long gRPC requests have waited at their clients until they were let in.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 4, 10),
	})
	windows := func(of func(used, waiting int64) int64) func() float64 {
		return func() float64 {
			if s := m.calls.Load(); s != nil {
				return float64(of(s.LongWindows()))
			}
			return 0
		}
	}
	r.MustRegister(m.longWait, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "belay_long_requests_bytes", Help: "Bytes of long gRPC requests that were let in: that come, or whose calls have not ended.",
	}, windows(func(used, _ int64) int64 { return used })), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "belay_long_requests_waiting", Help: "Long gRPC requests that wait at their clients until others have ended.",
	}, windows(func(_, waiting int64) int64 { return waiting })))
	m.unreadEnded = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "belay_unread_answers_ended_total", Help: "Unary gRPC calls that were ended because their clients did not take the answers while others waited for room.",
	})
	r.MustRegister(m.unreadEnded, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "belay_unread_answers_bytes", Help: "Bytes of answers to unary gRPC calls that their clients have not taken yet, and that are reserved for those that are being made.",
	}, func() float64 {
		if s := m.calls.Load(); s != nil {
			return float64(s.UnreadBytes())
		}
		return 0
	}))
	return m
}

// divided shows a budget.
func (m *Metrics) divided(b budget.Budget) {
	m.budget.Set(float64(b.Bytes))
	for _, p := range b.Table() {
		m.shares.WithLabelValues(p.Name).Set(float64(p.Bytes))
	}
}

// boundsCollector reads the bounds of each kind of port at a scrape.
type boundsCollector struct {
	open, limit, preludes *prometheus.Desc

	mu sync.Mutex
	of map[string]portKind // by port
}

func (c *boundsCollector) add(port string, k portKind) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.of[port] = k
}

func (c *boundsCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.open
	ch <- c.limit
	ch <- c.preludes
}

func (c *boundsCollector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for port, k := range c.of {
		ch <- prometheus.MustNewConstMetric(c.open, prometheus.GaugeValue, float64(k.Open()), port)
		ch <- prometheus.MustNewConstMetric(c.limit, prometheus.GaugeValue, float64(k.Max()), port)
		ch <- prometheus.MustNewConstMetric(c.preludes, prometheus.GaugeValue, float64(k.preludes.Held()), port)
	}
}

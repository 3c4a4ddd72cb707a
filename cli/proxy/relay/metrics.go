package relay

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
)

// Metrics are what a proxy counts about calls.
type Metrics struct {
	started, handled, received, sent *prometheus.CounterVec

	// The names of etcd's proxy.
	watchersCoalescing prometheus.Gauge
	eventsCoalescing   prometheus.Counter
	cacheKeys          prometheus.Gauge
	cacheHits          prometheus.Gauge
	cacheMisses        prometheus.Gauge

	watches, sources prometheus.Gauge
	parked           prometheus.Counter
	keepalives       prometheus.Counter
	queued           prometheus.Gauge
	cacheBytes       prometheus.Gauge
	sendingBytes     prometheus.Gauge
	barriers         prometheus.Counter
}

// NewMetrics makes the metrics; reg nil means unregistered but working.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	labels := []string{"grpc_type", "grpc_service", "grpc_method"}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "grpc", Subsystem: "server", Name: name, Help: help}, labels)
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "etcd", Subsystem: "grpc_proxy", Name: name, Help: help})
	}
	m := &Metrics{
		started:            counter("started_total", "RPCs that began on this server.", labels...),
		handled:            counter("handled_total", "RPCs that ended on this server, with success or not, by code.", append(labels[:3:3], "grpc_code")...),
		received:           counter("msg_received_total", "Messages received by this server's RPCs.", labels...),
		sent:               counter("msg_sent_total", "Messages sent by this server's RPCs.", labels...),
		watchersCoalescing: gauge("watchers_coalescing_total", "Watches of clients that share another client's watch of the cluster now."),
		eventsCoalescing: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "etcd", Subsystem: "grpc_proxy", Name: "events_coalescing_total",
			Help: "Events that clients got from another client's watch of the cluster."}),
		cacheKeys:   gauge("cache_keys_total", "Keys or ranges in the cache."),
		cacheHits:   gauge("cache_hits_total", "Reads answered from the cache."),
		cacheMisses: gauge("cache_misses_total", "Reads that the cluster answered."),
	}
	own := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "belay", Subsystem: "proxy", Name: name, Help: help})
	}
	m.watches = own("watches", "Watches of clients.")
	m.sources = own("upstream_watches", "Watches of the cluster that they make.")
	m.queued = own("watch_queue_bytes", "Events that are queued for clients.")
	m.parked = prometheus.NewCounter(prometheus.CounterOpts{Namespace: "belay", Subsystem: "proxy", Name: "slow_watches_total",
		Help: "Watches that had to wait because their client did not read, and caught up on their own."})
	m.cacheBytes = own("cache_bytes", "What the cache holds: keys, values and answers.")
	m.sendingBytes = own("cache_sending_bytes", "Answers from the cache that are on their way to clients, each counted once.")
	m.barriers = prometheus.NewCounter(prometheus.CounterOpts{Namespace: "belay", Subsystem: "proxy", Name: "cache_barriers_total",
		Help: "Linearizable reads of nothing that the cluster was asked on behalf of all reads that waited for one."})
	m.keepalives = prometheus.NewCounter(prometheus.CounterOpts{Namespace: "belay", Subsystem: "proxy", Name: "upstream_keepalives_total",
		Help: "Keepalives of leases that were sent to the cluster."})
	if reg != nil {
		reg.MustRegister(m.keepalives, m.watches, m.sources, m.queued, m.parked, m.cacheBytes, m.sendingBytes, m.barriers)
		reg.MustRegister(m.started, m.handled, m.received, m.sent, m.watchersCoalescing, m.eventsCoalescing, m.cacheKeys, m.cacheHits, m.cacheMisses)
	}
	return m
}

// methodCounts are one method's counters.
type methodCounts struct {
	started, received, sent prometheus.Counter
	handled                 *prometheus.CounterVec    // by code
	well                    func() prometheus.Counter // of handled, those that succeeded
}

func (m *Metrics) method(kind, service, name string) *methodCounts {
	c := &methodCounts{
		started: m.started.WithLabelValues(kind, service, name), received: m.received.WithLabelValues(kind, service, name), sent: m.sent.WithLabelValues(kind, service, name),
		handled: m.handled.MustCurryWith(prometheus.Labels{"grpc_type": kind, "grpc_service": service, "grpc_method": name}),
	}
	c.well = sync.OnceValue(func() prometheus.Counter { return c.handled.WithLabelValues(codes.OK.String()) })
	return c
}

func (c *methodCounts) ended(code codes.Code) {
	if code == codes.OK {
		c.well().Inc()
	} else {
		c.handled.WithLabelValues(code.String()).Inc()
	}
}

package lease

import "github.com/prometheus/client_golang/prometheus"

// Metrics are the lease metrics of etcd's names.
type Metrics struct {
	granted, revoked, renewed prometheus.Counter
	ttl                       prometheus.Histogram

	// Expired counts leases revoked because they expired; whoever proposes the revocations counts
	// those that were applied.
	Expired prometheus.Counter
}

// NewMetrics makes the metrics and registers them, unless reg is nil.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	counter := func(subsystem, name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "etcd_debugging", Subsystem: subsystem, Name: name, Help: help,
		})
	}
	m := &Metrics{
		granted: counter("lease", "granted_total", "Leases granted on this member."),
		revoked: counter("lease", "revoked_total", "Leases revoked on this member, expired ones included."),
		renewed: counter("lease", "renewed_total", "Lease renewals that this member answered as leader."),
		Expired: counter("server", "lease_expired_total", "Leases that this member, as leader, had revoked because they expired."),
		ttl: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "etcd_debugging", Subsystem: "lease", Name: "ttl_total",
			Help:    "TTLs of the granted leases in seconds.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 24), // 1 s to 97 days
		}),
	}
	if reg != nil {
		reg.MustRegister(m.granted, m.revoked, m.renewed, m.Expired, m.ttl)
	}
	return m
}

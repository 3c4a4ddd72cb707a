package server

import (
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/belaydb/belay/admission"
	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/internal/version"
)

// Metrics are the series that this package owns, under etcd's names and types.
type Metrics struct {
	grpc *grpcMetrics

	sentBytes, receivedBytes prometheus.Counter
	clientRequests           *prometheus.CounterVec
	unaryVersions            versionCounters
	streamVersions           versionCounters
	requestSeconds           *prometheus.HistogramVec
	requestKinds             [kindCount][2]atomic.Pointer[prometheus.Observer] // [kind][0 failed, 1 succeeded]
	rangeSeconds             *prometheus.HistogramVec
	ranges                   [2]atomic.Pointer[prometheus.Observer] // [0 failed, 1 succeeded]

	// StreamFailures counts by type (receive, send) and API (watch, lease-keepalive).
	streamFailures *prometheus.CounterVec

	healthSuccess, healthFailures prometheus.Counter
	healthcheck                   *prometheus.GaugeVec
	healthchecks                  *prometheus.CounterVec

	promoteSuccess  prometheus.Counter
	promoteFailures *prometheus.CounterVec
	serverID        *prometheus.GaugeVec
	feature         *prometheus.GaugeVec
	quota           prometheus.Gauge
	diskFree        prometheus.Gauge // set by leader.Space
	diskFreeMinimum prometheus.Gauge
	authRevision    atomic.Pointer[func() float64] // set by New
	fdUsed, fdLimit prometheus.Gauge
	admissionLag    prometheus.Gauge
	defragInflight  prometheus.Gauge
	defragSeconds   prometheus.Histogram
	snapshotSeconds prometheus.Histogram
	readersWaiting  prometheus.Gauge
	readerWait      prometheus.Histogram
	answers         atomic.Pointer[admission.Room] // nil: there is none
	answersRefused  prometheus.Counter
	corruption      *prometheus.CounterVec
	forwarded       [renewalWays]prometheus.Counter // attempts to have the leader renew a lease
}

// How the leader is asked to renew a lease.
const (
	byConnection = iota
	byRequest
	renewalWays
)

// MetricsOptions of NewMetrics.
type MetricsOptions struct {
	// Extensive adds grpc_server_handling_seconds (--metrics=extensive).
	Extensive bool
	// Features are the feature gates that are on or off by configuration; features has the others.
	Features map[string]bool
}

// initialServices are the services whose series exist from the start.
func initialServices() []*grpc.ServiceDesc {
	return []*grpc.ServiceDesc{
		&pb.KV_ServiceDesc, &pb.Watch_ServiceDesc, &pb.Lease_ServiceDesc, &pb.Cluster_ServiceDesc,
		&pb.Auth_ServiceDesc, &pb.Maintenance_ServiceDesc, &healthpb.Health_ServiceDesc,
	}
}

// NewMetrics makes the metrics and registers them unless reg is nil.
func NewMetrics(reg prometheus.Registerer, o MetricsOptions) *Metrics {
	gauge := func(sub, name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "etcd", Subsystem: sub, Name: name, Help: help})
	}
	counter := func(sub, name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "etcd", Subsystem: sub, Name: name, Help: help})
	}
	gaugeVec := func(sub, name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "etcd", Subsystem: sub, Name: name, Help: help}, labels)
	}
	counterVec := func(sub, name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "etcd", Subsystem: sub, Name: name, Help: help}, labels)
	}
	m := &Metrics{
		grpc:           newGRPCMetrics(reg, o.Extensive, initialServices()),
		sentBytes:      counter("network", "client_grpc_sent_bytes_total", "Bytes of messages sent to clients over gRPC."),
		receivedBytes:  counter("network", "client_grpc_received_bytes_total", "Bytes of messages received from clients over gRPC."),
		clientRequests: counterVec("server", "client_requests_total", "Requests of clients by the API version that they name.", "type", "client_api_version"),
		requestSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "etcd", Subsystem: "server", Name: "request_duration_seconds",
			Help:    "How long requests took on this member, by type: replicated ones from proposal to result, reads from the barrier to the answer.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}, []string{"type", "success"}),
		streamFailures:  counterVec("network", "server_stream_failures_total", "Streams with clients that failed.", "Type", "API"),
		healthSuccess:   counter("server", "health_success", "Calls of /health that answered true."),
		healthFailures:  counter("server", "health_failures", "Calls of /health that answered false."),
		healthcheck:     gaugeVec("server", "healthcheck", "Last result of each check of /livez and /readyz: 1 or 0.", "type", "name"),
		healthchecks:    counterVec("server", "healthchecks_total", "Checks of /livez and /readyz that ran, by result.", "type", "name", "status"),
		promoteSuccess:  counter("server", "learner_promote_successes", "Learners promoted while this member led."),
		promoteFailures: counterVec("server", "learner_promote_failures", "Promotions of learners that failed while this member led.", "Reason"),
		serverID:        gaugeVec("server", "id", "1 for this member's id, in hexadecimal.", "server_id"),
		feature:         gaugeVec("server", "feature_enabled", "Whether a feature is on: 1 or 0.", "name", "stage"),
		quota:           gauge("server", "quota_backend_bytes", "Space quota in bytes."),
		diskFree: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "belay", Subsystem: "disk", Name: "free_bytes",
			Help: "What this member may still write to the disk of its data, or to the log's if that has less.",
		}),
		diskFreeMinimum: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "belay", Subsystem: "disk", Name: "free_minimum_bytes",
			Help: "With less than this in belay_disk_free_bytes the member raises NOSPACE.",
		}),
		fdUsed:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "os_fd_used", Help: "File descriptors in use, read every ten minutes."}),
		fdLimit: prometheus.NewGauge(prometheus.GaugeOpts{Name: "os_fd_limit", Help: "Limit of file descriptors."}),
		admissionLag: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "belay", Subsystem: "server", Name: "apply_lag_seconds", Help: "How long the oldest committed entry has waited to be applied.",
		}),
		defragInflight: gauge("disk", "defrag_inflight", "Whether a defragmentation (a compaction of the whole store) runs: 1 or 0."),
		defragSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "etcd", Subsystem: "disk", Name: "backend_defrag_duration_seconds",
			Help: "How long the store's compactions that Defragment asked for took, in the background.", Buckets: prometheus.ExponentialBuckets(.1, 2, 13),
		}),
		snapshotSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "etcd", Subsystem: "disk", Name: "backend_snapshot_duration_seconds",
			Help: "How long writing the store into etcd's snapshot format took.", Buckets: prometheus.ExponentialBuckets(.01, 2, 17),
		}),
	}
	m.readersWaiting = prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "belay", Name: "readers_waiting", Help: "Calls that read much and wait for their turn.",
	})
	m.readerWait = prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: "belay", Name: "reader_wait_seconds", Help: "How long calls that read much have waited for each of their turns.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 4, 10),
	})
	m.answersRefused = prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "belay", Name: "answers_refused_total",
		Help: "Calls that read much and were refused because the answers to others left no room for theirs, and were not read.",
	})
	answers := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "belay", Name: "answers_bytes", Help: "Memory held by large answers that are being read, encoded or sent.",
	}, func() float64 {
		if room := m.answers.Load(); room != nil {
			return float64(room.Held())
		}
		return 0
	})
	m.rangeSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "etcd", Subsystem: "server", Name: "range_duration_seconds",
		Help:    "How long ranges took to read, without the read barrier before them.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 2, 20), // 0.1 ms to 52 s
	}, []string{"success"})
	m.corruption = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "belay", Name: "corruption_checks_total",
		Help: "Comparisons of this member's data with that of the others, by check (initial, periodic, compaction) and result (equal, mismatch, incomplete, failed).",
	}, []string{"check", "result"})
	forwarded := prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "belay", Subsystem: "lease", Name: "renewals_forwarded_total",
		Help: "Renewals of leases that this member has asked the leader for, by way: over the connection for them (connection), or by a request each (request).",
	}, []string{"by"})
	m.forwarded[byConnection], m.forwarded[byRequest] = forwarded.WithLabelValues("connection"), forwarded.WithLabelValues("request")
	m.unaryVersions.init(m.clientRequests, "unary")
	m.streamVersions.init(m.clientRequests, "stream")
	serverVersion := gaugeVec("server", "version", "1 for the etcd version that this member speaks.", "server_version")
	goVersion := gaugeVec("server", "go_version", "1 for the Go version that this member was built with.", "server_go_version")
	serverVersion.WithLabelValues(version.Etcd).Set(1)
	goVersion.WithLabelValues(runtime.Version()).Set(1)
	for _, f := range features() {
		if on, said := o.Features[f.name]; said {
			f.value = 0
			if on {
				f.value = 1
			}
		}
		m.feature.WithLabelValues(f.name, f.stage).Set(f.value)
	}
	if reg != nil {
		reg.MustRegister(m.sentBytes, m.receivedBytes, m.clientRequests, m.requestSeconds, m.rangeSeconds, m.streamFailures,
			m.healthSuccess, m.healthFailures, m.healthcheck, m.healthchecks, m.promoteSuccess,
			m.promoteFailures, m.serverID, m.feature, m.quota, m.diskFree, m.diskFreeMinimum, m.fdUsed, m.fdLimit, m.admissionLag, m.defragInflight, m.defragSeconds,
			m.snapshotSeconds, m.readersWaiting, m.readerWait, m.answersRefused, answers, m.corruption, forwarded, serverVersion, goVersion, m.authRevisionGauge())
		registerEmpty(reg)
	}
	return m
}

type feature struct {
	name, stage string
	value       float64
}

// features are etcd's feature gates as Belay behaves: keepalives are always
// fast and leases always checkpointed; the rest is off.
func features() []feature {
	return []feature{
		{"AllAlpha", "ALPHA", 0}, {"AllBeta", "BETA", 0}, {"CompactHashCheck", "ALPHA", 0},
		{"FastLeaseKeepAlive", "BETA", 1}, {"InitialCorruptCheck", "ALPHA", 0},
		{"LeaseCheckpoint", "ALPHA", 1}, {"LeaseCheckpointPersist", "ALPHA", 1}, {"PriorityRequest", "ALPHA", 1},
		{"SetMemberLocalAddr", "ALPHA", 0}, {"StopGRPCServiceOnDefrag", "ALPHA", 0}, {"TxnModeWriteWithSharedBuffer", "BETA", 1},
	}
}

func (m *Metrics) corruptionCheck(check, outcome string) {
	m.corruption.WithLabelValues(check, outcome).Inc()
}

func (m *Metrics) setServerID(id uint64) { m.serverID.WithLabelValues(command.IDText(id)).Set(1) }

// requestKind is a request type as etcd_server_request_duration_seconds names
// it. A new kind goes into kindNames too.
type requestKind int

const (
	kindRange requestKind = iota
	kindPut
	kindDeleteRange
	kindTxn
	kindReadonlyTxn
	kindCompaction
	kindLeaseGrant
	kindLeaseRevoke
	kindLeaseCheckpoint
	kindAlarm
	kindClusterVersionSet
	kindClusterMemberAttrSet
	kindDowngradeInfoSet
	kindAuthenticate
	kindAuthEnable
	kindAuthDisable
	kindAuthStatus
	kindAuthUserAdd
	kindAuthUserDelete
	kindAuthUserChangePassword
	kindAuthUserGrantRole
	kindAuthUserGet
	kindAuthUserRevokeRole
	kindAuthRoleAdd
	kindAuthRoleGrantPermission
	kindAuthRoleGet
	kindAuthRoleRevokePermission
	kindAuthRoleDelete
	kindAuthUserList
	kindAuthRoleList
	kindCount
)

func (k requestKind) String() string {
	return [kindCount]string{
		"Range", "Put", "DeleteRange", "Txn", "ReadonlyTxn", "Compaction", "LeaseGrant", "LeaseRevoke", "LeaseCheckpoint",
		"Alarm", "ClusterVersionSet", "ClusterMemberAttrSet", "DowngradeInfoSet",
		"Authenticate", "AuthEnable", "AuthDisable", "AuthStatus", "AuthUserAdd", "AuthUserDelete", "AuthUserChangePassword", "AuthUserGrantRole", "AuthUserGet", "AuthUserRevokeRole",
		"AuthRoleAdd", "AuthRoleGrantPermission", "AuthRoleGet", "AuthRoleRevokePermission", "AuthRoleDelete", "AuthUserList", "AuthRoleList",
	}[k]
}

// observeRequest records one request's duration; a series appears with its first observation.
func (m *Metrics) observeRequest(k requestKind, success bool, seconds float64) {
	slot := &m.requestKinds[k][indexOf(success)]
	o := slot.Load()
	if o == nil {
		made := m.requestSeconds.WithLabelValues(k.String(), strconv.FormatBool(success))
		o = &made
		slot.Store(o)
	}
	(*o).Observe(seconds)
}

// observeRange is observeRequest for the reading of a range.
func (m *Metrics) observeRange(success bool, seconds float64) {
	slot := &m.ranges[indexOf(success)]
	o := slot.Load()
	if o == nil {
		made := m.rangeSeconds.WithLabelValues(strconv.FormatBool(success))
		o = &made
		slot.Store(o)
	}
	(*o).Observe(seconds)
}

func indexOf(success bool) int {
	if success {
		return 1
	}
	return 0
}

// versionCounters keeps the counters of client API versions. The version is text from the client,
// so their number is bounded: a client that invents versions is counted as unknown.
type versionCounters struct {
	vec    *prometheus.CounterVec
	kind   string
	last   atomic.Pointer[versionCounter] // nearly all clients name one version
	mu     sync.Mutex
	byName map[string]prometheus.Counter // guarded by mu
}

type versionCounter struct {
	name    string
	counter prometheus.Counter
}

const (
	unknownVersion   = "unknown"
	maxVersionLabels = 64
	maxVersionLength = 64
)

func (v *versionCounters) init(vec *prometheus.CounterVec, kind string) {
	v.vec, v.kind = vec, kind
	v.byName = make(map[string]prometheus.Counter)
}

func (v *versionCounters) inc(name string) {
	if last := v.last.Load(); last != nil && last.name == name {
		last.counter.Inc()
		return
	}
	v.mu.Lock()
	c := v.byName[name]
	if c == nil {
		if len(v.byName) >= maxVersionLabels || len(name) > maxVersionLength {
			name = unknownVersion
		}
		c = v.vec.WithLabelValues(v.kind, name)
		v.byName[name] = c
	}
	v.mu.Unlock()
	v.last.Store(&versionCounter{name, c})
	c.Inc()
}

// authRevisionGauge is etcd_debugging_auth_revision.
func (m *Metrics) authRevisionGauge() prometheus.GaugeFunc {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "etcd_debugging", Subsystem: "auth", Name: "revision", Help: "The current revision of auth store.",
	}, func() float64 {
		if revision := m.authRevision.Load(); revision != nil {
			return (*revision)()
		}
		return 0
	})
}

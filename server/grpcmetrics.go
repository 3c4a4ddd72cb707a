package server

import (
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// codeCount is how many grpc codes there are: OK to Unauthenticated.
const codeCount = int(codes.Unauthenticated) + 1

// grpcMetrics are the grpc_server_* series that dashboards use, with every counter resolved before
// the first request: a request looks its method up once and then only adds.
//
// The methods of the services that etcd registers first exist at zero from the start, with all
// codes, so that a rate over them is right from the first error on; Election and Lock appear with
// their first call (etcd registers them after it has made its zeros).
type grpcMetrics struct {
	started  *prometheus.CounterVec
	handled  *prometheus.CounterVec
	received *prometheus.CounterVec
	sent     *prometheus.CounterVec
	seconds  *prometheus.HistogramVec // nil unless extensive

	known map[string]*methodMetrics // by full method; never changed after the start
	late  sync.Map                  // full method -> *methodMetrics, for the others
}

// methodMetrics are one method's counters.
type methodMetrics struct {
	kind, service, name     string
	started, received, sent prometheus.Counter
	handled                 [codeCount]atomic.Pointer[prometheus.Counter]
	seconds                 prometheus.Observer // nil unless extensive
	// mayWait: a unary call that may wait for other clients without end, like those of Election and
	// Lock.
	mayWait bool
}

func newGRPCMetrics(reg prometheus.Registerer, extensive bool, services []*grpc.ServiceDesc) *grpcMetrics {
	labels := []string{"grpc_type", "grpc_service", "grpc_method"}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "grpc", Subsystem: "server", Name: name, Help: help}, labels)
	}
	g := &grpcMetrics{
		started:  counter("started_total", "RPCs that began on this server.", labels...),
		handled:  counter("handled_total", "RPCs that ended on this server, with success or not, by code.", append(labels[:3:3], "grpc_code")...),
		received: counter("msg_received_total", "Messages received by this server's RPCs.", labels...),
		sent:     counter("msg_sent_total", "Messages sent by this server's RPCs.", labels...),
		known:    make(map[string]*methodMetrics),
	}
	collectors := []prometheus.Collector{g.started, g.handled, g.received, g.sent}
	if extensive {
		g.seconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "grpc", Subsystem: "server", Name: "handling_seconds",
			Help: "How long this server's RPCs took.", Buckets: prometheus.DefBuckets,
		}, labels)
		collectors = append(collectors, g.seconds)
	}
	if reg != nil {
		reg.MustRegister(collectors...)
	}
	for _, s := range services {
		for _, m := range s.Methods {
			g.addKnown(s.ServiceName, m.MethodName, "unary")
		}
		for _, m := range s.Streams {
			g.addKnown(s.ServiceName, m.StreamName, streamKind(m.ClientStreams, m.ServerStreams))
		}
	}
	return g
}

func (g *grpcMetrics) addKnown(service, name, kind string) {
	m := g.make(service, name, kind)
	for code := range codeCount {
		m.handledWith(g, codes.Code(code))
	}
	g.known["/"+service+"/"+name] = m
}

func (g *grpcMetrics) make(service, name, kind string) *methodMetrics {
	m := &methodMetrics{
		kind: kind, service: service, name: name,
		started:  g.started.WithLabelValues(kind, service, name),
		received: g.received.WithLabelValues(kind, service, name),
		sent:     g.sent.WithLabelValues(kind, service, name),
	}
	if g.seconds != nil {
		m.seconds = g.seconds.WithLabelValues(kind, service, name)
	}
	return m
}

// method returns the counters of a full method name ("/service/method") that
// the server has registered. Only registered methods reach an interceptor, so
// clients cannot make series of their own.
func (g *grpcMetrics) method(full, kind string) *methodMetrics {
	if m := g.known[full]; m != nil {
		return m
	}
	if m, ok := g.late.Load(full); ok {
		return m.(*methodMetrics)
	}
	service, name, _ := strings.Cut(strings.TrimPrefix(full, "/"), "/")
	made := g.make(service, name, kind)
	made.mayWait = true
	m, _ := g.late.LoadOrStore(full, made)
	return m.(*methodMetrics)
}

// handledWith returns the counter of one code.
func (m *methodMetrics) handledWith(g *grpcMetrics, code codes.Code) prometheus.Counter {
	if int(code) >= codeCount {
		return g.handled.WithLabelValues(m.kind, m.service, m.name, code.String())
	}
	if c := m.handled[code].Load(); c != nil {
		return *c
	}
	c := g.handled.WithLabelValues(m.kind, m.service, m.name, code.String())
	m.handled[code].Store(&c)
	return c
}

func streamKind(client, server bool) string {
	switch {
	case client && server:
		return "bidi_stream"
	case client:
		return "client_stream"
	case server:
		return "server_stream"
	}
	return "unary"
}

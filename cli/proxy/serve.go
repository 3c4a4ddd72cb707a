package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

	"github.com/belaydb/belay/internal/daemon"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/belaydb/belay/cli/proxy/cache"
	"github.com/belaydb/belay/cli/proxy/relay"
	"github.com/belaydb/belay/cli/proxy/upstream"
	"github.com/belaydb/belay/internal/version"
	"github.com/belaydb/belay/listen"
	"github.com/belaydb/belay/logsink"
	"github.com/belaydb/belay/rpc"
)

// serve runs a proxy until ctx ends or it fails.
func serve(ctx context.Context, o *options, logger *logsink.Logger) error {
	daemon.OutliveLog()
	daemon.LogGRPC(logger.Logger)
	listen.BoundUnpacking()
	p, err := start(ctx, o, logger.Logger)
	if err != nil {
		return err
	}
	daemon.NotifyReady(logger.Logger)
	select {
	case <-ctx.Done():
		logger.Info("received signal; shutting down")
		err = nil
	case err = <-p.failed:
	}
	p.stop()
	return err
}

// A proxy is one that runs.
type proxy struct {
	o      *options
	logger *zap.Logger
	ctx    context.Context // ends with it
	cancel context.CancelFunc

	registry *prometheus.Registry
	cluster  *upstream.Set
	relay    *relay.Relay
	ports    *ports
	// self reaches this proxy as a client does, without a socket; nil until it serves.
	self     *self
	resolver *resolver // nil: none
	failed   chan error
}

// start starts a proxy; with --experimental-serializable-ordering it waits for the cluster, until
// waiting ends. REQUIRES: o has been checked.
func start(waiting context.Context, o *options, logger *zap.Logger) (started *proxy, err error) {
	p := &proxy{o: o, logger: logger, failed: make(chan error, 1), registry: prometheus.NewRegistry()}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			p.stop()
		}
	}()
	p.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	endpoints, _, err := o.discovery.find(logger, o.ca)
	if err != nil {
		return nil, err
	}
	if len(endpoints) == 0 {
		endpoints = o.endpoints
	}
	if p.ports, err = openPorts(o, logger, p.fail); err != nil {
		return nil, err
	}
	secure, err := p.clusterTLS()
	if err != nil {
		return nil, err
	}
	p.cluster, err = upstream.New(upstream.Config{
		TLS: secure, KeepaliveTime: o.dialKeepalive, KeepaliveTimeout: o.dialKeepaliveWait, PermitWithoutStream: o.permitWithout,
		MaxRecvBytes: o.maxRecv, Logger: logger,
	}, endpoints)
	if err != nil {
		return nil, err
	}
	p.registerGauges()
	if o.advertise != "" {
		p.resolver = newResolver(o, logger)
	}
	cfg := relay.Config{
		Cluster: p.cluster, Namespace: o.namespace, OneFloor: o.ordering, FragmentBytes: o.maxSend + sendOverheadBytes, LogPayloads: o.logPayloads,
		Cache:   cache.Config{Bytes: o.cacheBytes, Staleness: o.cacheStaleness, Named: prefixes(o.namespace, o.cachePrefixes)},
		Metrics: relay.NewMetrics(p.registry), Logger: logger,
	}
	if p.resolver != nil {
		cfg.MemberList = p.resolver.members
	}
	if p.relay, err = relay.New(cfg); err != nil {
		return nil, err
	}
	if o.ordering {
		if err := p.recoverOrder(waiting); err != nil {
			return nil, err
		}
	}
	p.ports.serve(p.relay, p.pages())
	if p.self, err = newSelf(p.ports.memory, logger); err != nil {
		return nil, err
	}
	if p.resolver != nil {
		p.resolver.run(p.ctx, p.self.client)
	}
	if o.autoSync > 0 {
		go p.followMembers()
	}
	logger.Info("started gRPC proxy", zap.String("address", o.listenAddr), zap.String("version", version.Belay), zap.String("rpc-engine", rpc.Engine(o.rpcEngine)), zap.Strings("endpoints", endpoints))
	return p, nil
}

// prefixes are the ranges of keys with these prefixes, in the cluster; "" is all keys of the namespace.
func prefixes(namespace string, list []string) (ranges []cache.Interval) {
	for _, prefix := range list {
		key := namespace + prefix
		end := clientv3.GetPrefixRangeEnd(key)
		if key == "" {
			key = "\x00"
		}
		ranges = append(ranges, cache.Interval{Key: key, End: end})
	}
	return ranges
}

// fail ends the proxy; it waits for nothing.
func (p *proxy) fail(err error) {
	select {
	case p.failed <- err:
	default:
	}
}

// stop ends calls, after those that are short had time to end, and unregisters.
func (p *proxy) stop() {
	if p.resolver != nil {
		p.resolver.stop()
	}
	if p.relay != nil {
		p.relay.Stop()
	}
	if p.ports != nil {
		p.ports.stop()
	}
	p.cancel()
	if p.self != nil {
		p.self.close()
	}
	if p.cluster != nil {
		p.cluster.Close()
	}
}

// clusterTLS is how the proxy shows itself to the members; nil: without TLS where an endpoint does
// not ask for it.
func (p *proxy) clusterTLS() (*tls.Config, error) {
	o := p.o
	if o.cert == "" && o.key == "" && o.ca == "" && !o.insecureSkipVerify {
		return nil, nil
	}
	// A common name would be the user of every client of this proxy.
	info := listen.TLSInfo{TrustedCAFile: o.ca, CertFile: o.cert, KeyFile: o.key, EmptyCN: o.cert != ""}
	c, err := info.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("cannot use the files of --cert=%s --key=%s --cacert=%s: %w", o.cert, o.key, o.ca, err)
	}
	if o.insecureSkipVerify {
		c.InsecureSkipVerify = true
		p.logger.Warn("--insecure-skip-tls-verify was given, this grpc proxy process skips authentication of etcd server TLS certificates. This option should be enabled only for testing purposes.")
	}
	p.logger.Info("gRPC proxy client TLS", zap.String("tls-info", info.String()))
	return c, nil
}

func (p *proxy) registerGauges() {
	gauge := func(name, help string, value func() float64) {
		p.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "belay", Subsystem: "proxy", Name: name, Help: help}, value))
	}
	gauge("members", "Members of the cluster that are known, each with one connection.", func() float64 { return float64(len(p.cluster.Members())) })
	gauge("members_fit", "Members that calls may go to.", func() float64 { return float64(p.cluster.Fit()) })
	gauge("unread_answers_bytes", "Forwarded answers that clients have not taken yet, and what is reserved for those that are being asked for.",
		func() float64 { return float64(p.relay.UnreadBytes()) })
	gauge("connections", "Connections of clients.", func() float64 { return float64(p.ports.clients.Open()) })
}

// orderRetry is the time between tries to learn how far the cluster is.
const orderRetry = time.Second

// recoverOrder asks the cluster how far it is, so that no read is older than this start.
func (p *proxy) recoverOrder(ctx context.Context) error {
	p.logger.Info("waiting for linearized read from cluster to recover ordering")
	for {
		err := p.relay.Recover(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			return nil
		}
		p.logger.Warn("ordering recovery failed, retrying in 1s", zap.Error(err))
		select {
		case <-ctx.Done():
		case <-time.After(orderRetry):
		}
	}
}

// followMembers keeps the endpoints those of the member list.
func (p *proxy) followMembers() {
	ticker := time.NewTicker(p.o.autoSync)
	defer ticker.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-ticker.C:
		}
		ctx, cancel := context.WithTimeout(p.ctx, 5*time.Second)
		list, err := p.relay.ClusterMembers(ctx)
		cancel()
		if err != nil {
			if p.ctx.Err() == nil {
				p.logger.Warn("cannot learn the members of the cluster; going on with those that are known", zap.Error(err))
			}
			continue
		}
		if endpoints := clientURLs(list); len(endpoints) > 0 {
			if err := p.cluster.Update(endpoints); err != nil && p.ctx.Err() == nil {
				p.logger.Warn("cannot use the members' client URLs; going on with those that are known", zap.Strings("endpoints", endpoints), zap.Error(err))
			}
		}
	}
}

// clientURLs are where the members serve clients that have said so, but learners.
func clientURLs(list []*pb.Member) (endpoints []string) {
	for _, m := range list {
		if m.Name != "" && !m.IsLearner {
			endpoints = append(endpoints, m.ClientURLs...)
		}
	}
	return endpoints
}

package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"time"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/client/pkg/v3/tlsutil"

	"github.com/belaydb/belay/listen"
	"github.com/belaydb/belay/rpc"
)

// options are what a proxy is told; the flags' names and defaults are those of `etcd grpc-proxy
// start`.
type options struct {
	listenAddr  string
	metricsAddr string
	dataDir     string
	debug       bool
	pprof       bool

	endpoints          []string
	autoSync           time.Duration // 0: the member list is not asked for
	discovery          discovered
	dialKeepalive      time.Duration // 0: none
	dialKeepaliveWait  time.Duration
	permitWithout      bool
	maxSend, maxRecv   int
	cert, key, ca      string // as a client of the cluster
	insecureSkipVerify bool

	listenTLS             listen.TLSInfo
	cipherSuites          []string
	autoTLS               bool
	selfSignedYears       uint
	tlsMin, tlsMax        string
	keepaliveMin          time.Duration
	keepaliveInterval     time.Duration
	keepaliveTimeout      time.Duration
	maxConcurrentStreams  uint32
	rpcEngine             string
	advertise             string
	resolverPrefix        string
	resolverTTL           int
	namespace             string
	leasing               string
	cacheBytes            int64 // 0: no cache
	cachePrefixes         []string
	cacheStaleness        time.Duration
	ordering, logPayloads bool
	forEtcds              bool // called by the name etcd
}

// belayDialKeepalive is --dial-keepalive-time of `belay proxy`. etcd's default is never: a member
// whose machine is gone is then found out by the kernel, after a quarter of an hour.
const belayDialKeepalive = 10 * time.Second

func (o *options) register(fs *pflag.FlagSet) {
	fs.StringVar(&o.listenAddr, "listen-addr", "127.0.0.1:23790", "listen address")
	o.discovery.register(fs, "domain name to query for SRV records describing cluster endpoints")
	fs.StringVar(&o.metricsAddr, "metrics-addr", "", "listen for endpoint /metrics requests on an additional interface")
	fs.StringSliceVar(&o.endpoints, "endpoints", []string{"127.0.0.1:2379"}, "comma separated etcd cluster endpoints")
	fs.DurationVar(&o.autoSync, "endpoints-auto-sync-interval", 0, "etcd endpoints auto sync interval (disabled by default)")
	keepalive := belayDialKeepalive
	if o.forEtcds {
		keepalive = 0
	}
	fs.DurationVar(&o.dialKeepalive, "dial-keepalive-time", keepalive, "keepalive time for client(grpc-proxy) connections (0: none)")
	fs.DurationVar(&o.dialKeepaliveWait, "dial-keepalive-timeout", 20*time.Second, "keepalive timeout for client(grpc-proxy) connections")
	fs.BoolVar(&o.permitWithout, "permit-without-stream", false, "send keepalive pings to the cluster even with no active RPCs")
	fs.StringVar(&o.advertise, "advertise-client-url", "127.0.0.1:23790", "advertise address to register (must be reachable by client); not given: that of --listen-addr, if it is one address")
	fs.StringVar(&o.resolverPrefix, "resolver-prefix", "", "prefix to use for registering proxy (must be shared with other grpc-proxy members)")
	fs.IntVar(&o.resolverTTL, "resolver-ttl", 0, "specify TTL, in seconds, when registering proxy endpoints")
	fs.StringVar(&o.namespace, "namespace", "", "string to prefix to all keys for namespacing requests")
	fs.BoolVar(&o.pprof, "enable-pprof", false, `enable runtime profiling data via HTTP server. Address is at client URL + "/debug/pprof/"`)
	fs.StringVar(&o.dataDir, "data-dir", "default.proxy", "directory for the certificates of --auto-tls; there is no other data")
	fs.IntVar(&o.maxSend, "max-send-bytes", 1.5*1024*1024, "message send limits in bytes: of a client's request, on top of which come 512 KiB as on a member")
	fs.IntVar(&o.maxRecv, "max-recv-bytes", math.MaxInt32, "message receive limits in bytes: of a member's response")
	fs.DurationVar(&o.keepaliveMin, "grpc-keepalive-min-time", 5*time.Second, "minimum interval duration that a client should wait before pinging proxy")
	fs.DurationVar(&o.keepaliveInterval, "grpc-keepalive-interval", 2*time.Hour, "frequency duration of server-to-client ping to check if a connection is alive (0 to disable)")
	fs.DurationVar(&o.keepaliveTimeout, "grpc-keepalive-timeout", 20*time.Second, "additional duration of wait before closing a non-responsive connection (0 to disable)")

	fs.StringVar(&o.cert, "cert", "", "identify secure connections with etcd servers using this TLS certificate file")
	fs.StringVar(&o.key, "key", "", "identify secure connections with etcd servers using this TLS key file")
	fs.StringVar(&o.ca, "cacert", "", "verify certificates of TLS-enabled secure etcd servers using this CA bundle")
	fs.BoolVar(&o.insecureSkipVerify, "insecure-skip-tls-verify", false, "skip authentication of etcd server TLS certificates (CAUTION: this option should be enabled only for testing purposes)")

	fs.StringVar(&o.listenTLS.CertFile, "cert-file", "", "identify secure connections to the proxy using this TLS certificate file")
	fs.StringVar(&o.listenTLS.KeyFile, "key-file", "", "identify secure connections to the proxy using this TLS key file")
	fs.StringVar(&o.listenTLS.TrustedCAFile, "trusted-ca-file", "", "verify certificates of TLS-enabled secure proxy using this CA bundle")
	fs.StringSliceVar(&o.cipherSuites, "listen-cipher-suites", nil, "comma-separated list of supported TLS cipher suites between client/proxy (empty will be auto-populated by Go)")
	fs.BoolVar(&o.autoTLS, "auto-tls", false, "proxy TLS using generated certificates")
	fs.StringVar(&o.listenTLS.CRLFile, "client-crl-file", "", "proxy client certificate revocation list file")
	fs.UintVar(&o.selfSignedYears, "self-signed-cert-validity", 1, "the validity period of the proxy certificates, unit is year")
	fs.StringVar(&o.tlsMin, "tls-min-version", "TLS1.2", "minimum TLS version supported by grpc proxy. Possible values: TLS1.2, TLS1.3")
	fs.StringVar(&o.tlsMax, "tls-max-version", "", "maximum TLS version supported by grpc proxy. Possible values: TLS1.2, TLS1.3 (empty defers to Go)")

	fs.BoolVar(&o.ordering, "experimental-serializable-ordering", false, "ensure serializable reads have monotonically increasing store revisions across endpoints, of all clients together; those of one connection always have")
	fs.StringVar(&o.leasing, "experimental-leasing-prefix", "", "etcd's leasing metadata; it is refused")
	fs.Int64Var(&o.cacheBytes, "cache-bytes", 64<<20, "memory for the content of key ranges that reads are answered from (0: every read goes to the cluster)")
	fs.StringSliceVar(&o.cachePrefixes, "cache-prefix", nil, "comma separated key prefixes to keep in the cache at any time, beside those that are read often")
	fs.DurationVar(&o.cacheStaleness, "cache-staleness", time.Second, "how old the answer to a serializable read from the cache may be")
	fs.BoolVar(&o.logPayloads, "experimental-enable-grpc-logging", false, "log all grpc requests and responses")
	fs.BoolVar(&o.debug, "debug", false, "enable debug-level logging for grpc-proxy")
	fs.Uint32Var(&o.maxConcurrentStreams, "max-concurrent-streams", math.MaxUint32, "maximum concurrent streams that each client can open at a time")
	fs.StringVar(&o.rpcEngine, "rpc-engine", rpc.EngineBelay, "what serves clients' gRPC: 'belay', Belay's own server, or 'grpc-go'")
}

var (
	errSelfSigned   = errors.New("selfSignedCertValidity is invalid,it should be greater than 0")
	errCipherSuites = errors.New("cipher suites cannot be configured when only TLS1.3 is enabled")
	errLeasing      = errors.New("--experimental-leasing-prefix: leasing is not served; drop the flag, and do not run etcd's proxies with it beside this one: they would not notice what is written through it")
)

// check is etcd's, with its texts and in its order; then what is Belay's own.
func (o *options) check(fs *pflag.FlagSet) error {
	switch {
	case o.resolverPrefix != "" && o.resolverTTL < 1:
		return fmt.Errorf("invalid resolver-ttl %d", o.resolverTTL)
	case o.resolverPrefix == "" && o.resolverTTL > 0:
		return fmt.Errorf("invalid resolver-prefix %q", o.resolverPrefix)
	case o.resolverPrefix != "" && o.resolverTTL > 0 && o.advertise == "":
		return fmt.Errorf("invalid advertise-client-url %q", o.advertise)
	case o.autoTLS && o.selfSignedYears == 0:
		return errSelfSigned
	}
	low, err := tlsutil.GetTLSVersion(o.tlsMin)
	if err != nil {
		return fmt.Errorf("tls-min-version is invalid: %w", err)
	}
	high, err := tlsutil.GetTLSVersion(o.tlsMax)
	if err != nil {
		return fmt.Errorf("tls-max-version is invalid: %w", err)
	}
	if high != 0 && low > high {
		return fmt.Errorf("min version (%s) is greater than max version (%s)", o.tlsMin, o.tlsMax)
	}
	if low == tls.VersionTLS13 && len(o.cipherSuites) > 0 {
		return errCipherSuites
	}
	host, _, err := net.SplitHostPort(o.listenAddr)
	if err != nil {
		return fmt.Errorf("--listen-addr=%q is not host:port", o.listenAddr)
	}
	switch {
	case o.leasing != "":
		return errLeasing
	case o.maxSend < 0 || o.maxSend > math.MaxInt32-sendOverheadBytes:
		return fmt.Errorf("--max-send-bytes=%d is not between 0 and %d", o.maxSend, math.MaxInt32-sendOverheadBytes)
	case o.maxRecv < 0 || o.maxRecv > math.MaxInt32:
		return fmt.Errorf("--max-recv-bytes=%d is not between 0 and %d", o.maxRecv, math.MaxInt32)
	case o.cacheBytes < 0:
		return fmt.Errorf("--cache-bytes=%d is negative", o.cacheBytes)
	case o.cacheStaleness <= 0:
		return fmt.Errorf("--cache-staleness=%s is not positive; without a cache (--cache-bytes=0) every read goes to the cluster", o.cacheStaleness)
	case o.rpcEngine != rpc.EngineBelay && o.rpcEngine != rpc.EngineGRPC:
		return fmt.Errorf("--rpc-engine=%q is neither %q nor %q", o.rpcEngine, rpc.EngineBelay, rpc.EngineGRPC)
	case o.autoSync < 0:
		return fmt.Errorf("--endpoints-auto-sync-interval=%s is negative", o.autoSync)
	}
	if ip := net.ParseIP(host); !fs.Changed("advertise-client-url") && host != "" && (ip == nil || !ip.IsUnspecified()) {
		o.advertise = o.listenAddr
	}
	return nil
}

// sendOverheadBytes is what a request may have on top of its limit, as on a member.
const sendOverheadBytes = 512 << 10

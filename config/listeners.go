package config

import (
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"strings"

	"go.etcd.io/etcd/client/pkg/v3/tlsutil"
	"go.etcd.io/etcd/client/pkg/v3/types"
)

// Spans are the settings for tracing.
type Spans struct {
	Tracing            bool // --enable-distributed-tracing
	TracingAddress     string
	TracingServiceName string
	TracingInstanceID  string
	TracingPerMillion  int // --distributed-tracing-sampling-rate
}

func defaultSpans() Spans {
	return Spans{TracingAddress: "localhost:4317", TracingServiceName: "etcd"}
}

const (
	groupSecurity group = "Security"
	groupTracing  group = "Distributed tracing"
)

// portFlags belong to the group of members.
func portFlags() []flagDef {
	return []flagDef{
		{group: groupMember, name: "listen-client-http-urls", usage: "URLs to listen on for clients' HTTP alone. If given, --listen-client-urls serve gRPC alone.",
			bind: urlsFlag(func(c *Config) *[]url.URL { return &c.ListenClientHTTPURLs })},
		{group: groupMember, name: "enable-grpc-gateway", usage: "Serve the API as JSON under /v3/.",
			bind: boolFlag(func(c *Config) *bool { return &c.EnableGateway })},
		{group: groupMember, name: "socket-reuse-port", usage: "Listen with SO_REUSEPORT, so that another process may listen on the same port.",
			bind: boolFlag(func(c *Config) *bool { return &c.ReusePort })},
		{group: groupMember, name: "socket-reuse-address", usage: "Listen with SO_REUSEADDR, so that an address in TIME_WAIT can be listened on.",
			bind: boolFlag(func(c *Config) *bool { return &c.ReuseAddress })},
	}
}

func securityFlags() []flagDef {
	text := func(name, usage string, field func(*Config) *string) flagDef {
		return flagDef{group: groupSecurity, name: name, usage: usage, bind: stringFlag(field)}
	}
	yes := func(name, usage string, field func(*Config) *bool) flagDef {
		return flagDef{group: groupSecurity, name: name, usage: usage, bind: boolFlag(field)}
	}
	list := func(name, usage string, field func(*Config) *[]string) flagDef {
		return flagDef{group: groupSecurity, name: name, usage: usage,
			bind: valueFlag(func(c *Config) flag.Value { return stringsValue{field(c)} })}
	}
	return []flagDef{
		text("cert-file", "Certificate of the client ports.", func(c *Config) *string { return &c.ClientTLS.CertFile }),
		text("key-file", "Key of --cert-file.", func(c *Config) *string { return &c.ClientTLS.KeyFile }),
		text("client-cert-file", "Certificate to show as a client, if not --cert-file.", func(c *Config) *string { return &c.ClientTLS.ClientCertFile }),
		text("client-key-file", "Key of --client-cert-file.", func(c *Config) *string { return &c.ClientTLS.ClientKeyFile }),
		yes("client-cert-auth", "Clients must show a certificate.", func(c *Config) *bool { return &c.ClientTLS.ClientCertAuth }),
		text("client-crl-file", "Revoked certificates of clients, DER or PEM. Read again when it changes.", func(c *Config) *string { return &c.ClientTLS.CRLFile }),
		list("client-cert-allowed-hostname", "Names one of which a client's certificate must have.", func(c *Config) *[]string { return &c.ClientTLS.AllowedHostnames }),
		text("trusted-ca-file", "Authorities of clients' certificates.", func(c *Config) *string { return &c.ClientTLS.TrustedCAFile }),
		yes("auto-tls", "Make a certificate for the client ports, if none is given.", func(c *Config) *bool { return &c.ClientAutoTLS }),
		text("peer-cert-file", "Certificate of the peer ports.", func(c *Config) *string { return &c.PeerTLS.CertFile }),
		text("peer-key-file", "Key of --peer-cert-file.", func(c *Config) *string { return &c.PeerTLS.KeyFile }),
		text("peer-client-cert-file", "Certificate to show to other members, if not --peer-cert-file.", func(c *Config) *string { return &c.PeerTLS.ClientCertFile }),
		text("peer-client-key-file", "Key of --peer-client-cert-file.", func(c *Config) *string { return &c.PeerTLS.ClientKeyFile }),
		yes("peer-client-cert-auth", "Other members must show a certificate.", func(c *Config) *bool { return &c.PeerTLS.ClientCertAuth }),
		text("peer-trusted-ca-file", "Authorities of the members' certificates.", func(c *Config) *string { return &c.PeerTLS.TrustedCAFile }),
		list("peer-cert-allowed-cn", "Common names one of which a member's certificate must have.", func(c *Config) *[]string { return &c.PeerTLS.AllowedCNs }),
		list("peer-cert-allowed-hostname", "Names one of which a member's certificate must have.", func(c *Config) *[]string { return &c.PeerTLS.AllowedHostnames }),
		yes("peer-auto-tls", "Make a certificate for the peer ports, if none is given. It keeps nobody out: members trust each other's unseen.",
			func(c *Config) *bool { return &c.PeerAutoTLS }),
		{group: groupSecurity, name: "self-signed-cert-validity", usage: "Years that certificates made by --auto-tls and --peer-auto-tls last.",
			bind: uintFlag(func(c *Config) *uint { return &c.SelfSignedYears })},
		text("peer-crl-file", "Revoked certificates of members, DER or PEM. Read again when it changes.", func(c *Config) *string { return &c.PeerTLS.CRLFile }),
		list("cipher-suites", "TLS cipher suites, of TLS 1.2; none: Go's choice.", func(c *Config) *[]string { return &c.CipherSuites }),
		{group: groupSecurity, name: "cors", usage: "Origins whose pages may use the HTTP API; '*': all.",
			bind: valueFlag(func(c *Config) flag.Value { return originsValue{&c.CORS} })},
		{group: groupSecurity, name: "host-whitelist", usage: "Hosts that requests of plain HTTP may be addressed to; '*': all.",
			bind: valueFlag(func(c *Config) flag.Value { return listValue{&c.HostWhitelist} })},
		text("tls-min-version", "Oldest TLS version: TLS1.2 or TLS1.3.", func(c *Config) *string { return &c.TLSMinVersion }),
		text("tls-max-version", "Newest TLS version: TLS1.2 or TLS1.3; empty: Go's newest.", func(c *Config) *string { return &c.TLSMaxVersion }),
		yes("peer-skip-client-san-verification", "Members may connect from addresses that their certificates do not name.",
			func(c *Config) *bool { return &c.PeerTLS.SkipClientSANVerify }),
	}
}

func tracingFlags() []flagDef {
	return []flagDef{
		{group: groupTracing, name: "enable-distributed-tracing", usage: "Send OpenTelemetry spans of calls.",
			bind: boolFlag(func(c *Config) *bool { return &c.Tracing })},
		{group: groupTracing, name: "distributed-tracing-address", usage: "Collector, host:port of OTLP over gRPC without TLS.",
			bind: stringFlag(func(c *Config) *string { return &c.TracingAddress })},
		{group: groupTracing, name: "distributed-tracing-service-name", usage: "service.name of the spans; one for all members of a cluster.",
			bind: stringFlag(func(c *Config) *string { return &c.TracingServiceName })},
		{group: groupTracing, name: "distributed-tracing-instance-id", usage: "service.instance.id of the spans; another for each member.",
			bind: stringFlag(func(c *Config) *string { return &c.TracingInstanceID })},
		{group: groupTracing, name: "distributed-tracing-sampling-rate", usage: "Of a million calls without a span of their caller's, how many get one.",
			bind: intFlag(func(c *Config) *int { return &c.TracingPerMillion })},
	}
}

const maxTracingPerMillion = 1000000

func (c *Config) checkTracing() error {
	problem := ""
	switch {
	case !c.Tracing:
	case c.TracingPerMillion < 0:
		problem = "tracing sampling rate must be positive"
	case c.TracingPerMillion > maxTracingPerMillion:
		problem = fmt.Sprintf("tracing sampling rate must be less than %d", maxTracingPerMillion)
	}
	if problem != "" {
		return fmt.Errorf("distributed tracing configurition is not valid: (%s)", problem)
	}
	return nil
}

// checkTLS checks what does not need the files.
func (c *Config) checkTLS() error {
	oldest, err := tlsutil.GetTLSVersion(c.TLSMinVersion)
	if err != nil {
		return err
	}
	newest, err := tlsutil.GetTLSVersion(c.TLSMaxVersion)
	if err != nil {
		return err
	}
	if newest != 0 && oldest > newest {
		return fmt.Errorf("min version (%s) is greater than max version (%s)", c.TLSMinVersion, c.TLSMaxVersion)
	}
	if oldest == tls.VersionTLS13 && len(c.CipherSuites) > 0 {
		return errors.New("cipher suites cannot be configured when only TLS1.3 is enabled")
	}
	// etcd finds this when it listens.
	_, err = tlsutil.GetCipherSuites(c.CipherSuites)
	return err
}

// stringsValue is a flag of strings in the order given.
type stringsValue struct{ list *[]string }

func (v stringsValue) Set(s string) error {
	*v.list = strings.Split(s, ",")
	return nil
}

func (v stringsValue) String() string {
	if v.list == nil {
		return ""
	}
	return strings.Join(*v.list, ",")
}

// originsValue is a flag of URLs without a path, or "*".
type originsValue struct{ list *[]string }

func (v originsValue) Set(s string) error {
	if s == "*" {
		*v.list = []string{s}
		return nil
	}
	urls, err := types.NewURLs(strings.Split(s, ","))
	if err != nil {
		return err
	}
	*v.list = texts(urls)
	return nil
}

func (v originsValue) String() string {
	if v.list == nil {
		return ""
	}
	return strings.Join(*v.list, ",")
}

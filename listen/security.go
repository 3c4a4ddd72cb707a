package listen

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/tlsutil"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.uber.org/zap"
)

// TLSInfo is what etcd's flags say about one side's TLS.
type TLSInfo = transport.TLSInfo

// SelfSigned makes (or finds) a self-signed certificate in dir, valid for the hosts of the
// listeners and for years.
func SelfSigned(logger *zap.Logger, dir string, hosts []string, years uint) (TLSInfo, error) {
	if logger == nil {
		logger = zap.NewNop()
	}
	return transport.SelfCert(logger, dir, hosts, years)
}

// Restrict sets the versions and cipher suites that flags name; empty ones are
// left to Go. Cipher suites of TLS 1.3 cannot be chosen.
func Restrict(info *TLSInfo, suites []string, minVersion, maxVersion string) (err error) {
	if info.CipherSuites, err = tlsutil.GetCipherSuites(suites); err != nil {
		return err
	}
	if info.MinVersion, err = tlsutil.GetTLSVersion(minVersion); err != nil {
		return err
	}
	info.MaxVersion, err = tlsutil.GetTLSVersion(maxVersion)
	return err
}

// Security is one side's TLS, for clients or for peers: what this member presents and what it
// requires of others.
type Security struct {
	// server and client are templates: connections use a copy for each set of authorities that the
	// CA file has named. A session of one copy is not resumed under another, so a removed authority
	// lets nobody in.
	server *tls.Config
	client *tls.Config
	cas    *authorities // nil: the client side trusts the system's, the server asks for none
	copies *copies
	pairs  []*keyPair

	revoked  *revocations // nil: no list
	checkSAN bool
	logger   *zap.Logger
	rejected string
}

// SecurityOptions are what TLSInfo lacks.
type SecurityOptions struct {
	Logger *zap.Logger // nil: none
	// Rejected is the log message for a connection that is refused.
	Rejected string
	// CheckSAN requires that a client certificate that names hosts names the one that the
	// connection comes from, as etcd does on the peer and metrics ports.
	CheckSAN bool
	// Protocols are offered by ALPN; nil: h2, as in etcd, and HTTP/1 without ALPN.
	Protocols []string
}

// NewSecurity reads the files and returns an error for what cannot work.
func NewSecurity(info TLSInfo, opts SecurityOptions) (*Security, error) {
	if opts.Logger == nil {
		opts.Logger = zap.NewNop()
	}
	info.Logger = opts.Logger
	server, err := info.ServerConfig()
	if err != nil {
		return nil, err
	}
	client, err := info.ClientConfig()
	if err != nil {
		return nil, err
	}
	s := &Security{server: server, client: client, logger: opts.Logger, rejected: opts.Rejected,
		checkSAN: opts.CheckSAN && !info.SkipClientSANVerify}
	own := s.pair(info.CertFile, info.KeyFile, "failed to find peer cert files", "failed to create peer certificate")
	asClient := own
	if info.ClientCertFile != "" {
		asClient = s.pair(info.ClientCertFile, info.ClientKeyFile, "failed to find client cert files", "failed to create client certificate")
	}
	if s.pairs = []*keyPair{own}; asClient != own {
		s.pairs = append(s.pairs, asClient)
	}
	for _, cfg := range []*tls.Config{server, client} {
		cfg.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return own.get() }
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return asClient.get() }
	}
	if opts.Protocols != nil {
		server.NextProtos = opts.Protocols
	}
	s.copies = &copies{}
	if err := s.trust(info.TrustedCAFile); err != nil {
		return nil, err
	}
	if info.CRLFile != "" {
		s.revoked = &revocations{path: info.CRLFile}
	}
	return s, nil
}

// NewTrust is a side that presents no certificate and listens on no TLS: what its flags name is whom
// it trusts when it dials. So is a member whose own TLS somebody else terminates. Only ClientConfig
// is of use.
func NewTrust(info TLSInfo, logger *zap.Logger) (*Security, error) {
	if logger == nil {
		logger = zap.NewNop()
	}
	info.Logger = logger
	client, err := info.ClientConfig()
	if err != nil {
		return nil, err
	}
	client.MinVersion, client.MaxVersion, client.CipherSuites = max(info.MinVersion, tls.VersionTLS12), info.MaxVersion, info.CipherSuites
	s := &Security{server: &tls.Config{MinVersion: tls.VersionTLS12}, client: client, copies: &copies{}, logger: logger}
	return s, s.trust(info.TrustedCAFile)
}

// trust reads the file of authorities, and again when it changes; "": there is none.
func (s *Security) trust(file string) (err error) {
	if file == "" {
		return nil
	}
	s.cas, err = newAuthorities(file, func(err error) {
		s.logger.Warn("failed to read the certificates of authorities; those known before are still trusted",
			zap.String("trusted-ca-file", file), zap.Error(err))
	})
	return err
}

// WantsCertificates reports whether clients must present a certificate from a given authority.
func (s *Security) WantsCertificates() bool {
	return s.server.ClientAuth == tls.RequireAndVerifyClientCert && s.server.ClientCAs != nil
}

// CheckingSAN is the same side with SecurityOptions.CheckSAN.
func (s *Security) CheckingSAN() *Security {
	c := *s
	c.checkSAN = true
	return &c
}

// pair makes a keyPair, with the log messages for missing files and for files that do not match.
func (s *Security) pair(cert, key, missing, unfit string) *keyPair {
	return &keyPair{certFile: cert, keyFile: key, failed: func(err error) {
		message := unfit
		if errors.Is(err, os.ErrNotExist) {
			message = missing
		}
		s.logger.Warn(message, zap.String("cert-file", cert), zap.String("key-file", key), zap.Error(err))
	}}
}

// copies are the configurations for the authorities that are trusted now.
type copies struct {
	mu             sync.Mutex
	pool           *x509.CertPool
	server, client *tls.Config
}

// current returns the configurations for a connection that begins now.
func (s *Security) current() (server, client *tls.Config) {
	var pool *x509.CertPool
	if s.cas != nil {
		pool = s.cas.get()
	}
	c := s.copies
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server == nil || pool != c.pool {
		c.pool, c.server, c.client = pool, s.server.Clone(), s.client.Clone()
		if pool != nil && c.server.ClientCAs != nil {
			c.server.ClientCAs = pool
		}
		if pool != nil && c.client.RootCAs != nil {
			c.client.RootCAs = pool
		}
	}
	return c.server, c.client
}

// ClientConfig is for one connection that this member opens to its peers: it changes with the file
// of authorities, so call it for each connection.
func (s *Security) ClientConfig() *tls.Config {
	_, client := s.current()
	return client
}

// handshakeTimeout bounds a handshake and the checks after it.
const handshakeTimeout = 10 * time.Second

// handshake makes a TLS connection of conn and applies the rules. It logs a
// refusal; the caller closes conn.
func (s *Security) handshake(ctx context.Context, conn net.Conn) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	server, _ := s.current()
	c := tls.Server(conn, server)
	err := c.SetDeadline(time.Now().Add(handshakeTimeout))
	if err == nil {
		if err = c.HandshakeContext(ctx); err == nil {
			if err = s.admit(ctx, c); err == nil {
				err = c.SetDeadline(time.Time{})
			}
		}
	}
	if err != nil {
		s.logRejected(c, err)
		return nil, err
	}
	return c, nil
}

// admit applies the rules that TLS itself does not know, also to a resumed session.
func (s *Security) admit(ctx context.Context, c *tls.Conn) error {
	certs := c.ConnectionState().PeerCertificates
	if len(certs) == 0 {
		return nil
	}
	if s.checkSAN {
		if err := checkSAN(ctx, certs[0], c.RemoteAddr(), net.DefaultResolver); err != nil {
			return err
		}
	}
	if s.revoked != nil {
		return s.revoked.check(certs)
	}
	return nil
}

func (s *Security) logRejected(c *tls.Conn, err error) {
	log := s.logger.Warn
	if errors.Is(err, io.EOF) {
		log = s.logger.Debug // a port scan, a probe of a load balancer
	}
	state := c.ConnectionState()
	fields := []zap.Field{zap.String("remote-addr", c.RemoteAddr().String()), zap.String("server-name", state.ServerName)}
	if len(state.PeerCertificates) > 0 {
		cert := state.PeerCertificates[0]
		ips := make([]string, len(cert.IPAddresses))
		for i, ip := range cert.IPAddresses {
			ips[i] = ip.String()
		}
		fields = append(fields, zap.Strings("ip-addresses", ips), zap.Strings("dns-names", cert.DNSNames))
	}
	log(s.rejected, append(fields, zap.Error(err))...)
}

// resolver is what checkSAN needs of net.Resolver.
type resolver interface {
	LookupAddr(ctx context.Context, addr string) ([]string, error)
	LookupHost(ctx context.Context, host string) ([]string, error)
}

// checkSAN requires that cert names the source of the connection: by address, or by a name that the
// address resolves to, or that resolves to the address. A certificate without names may come from
// anywhere.
func checkSAN(ctx context.Context, cert *x509.Certificate, remote net.Addr, names resolver) error {
	if len(cert.IPAddresses) == 0 && len(cert.DNSNames) == 0 {
		return nil
	}
	if remote.Network() == "unix" {
		return nil // it comes from this machine, with the right to open the socket file
	}
	host, _, err := net.SplitHostPort(remote.String())
	if err != nil {
		return err
	}
	if len(cert.IPAddresses) > 0 {
		err := cert.VerifyHostname(host)
		if err == nil || len(cert.DNSNames) == 0 {
			return err
		}
	}
	ok, err := named(ctx, host, cert.DNSNames, names)
	if ok {
		return nil
	}
	text := fmt.Sprintf("tls: %q does not match any of DNSNames %q", host, cert.DNSNames)
	if err != nil {
		text += " (" + err.Error() + ")"
	}
	return errors.New(text)
}

// named reports whether host, an address, goes by one of the names; a name may begin with "*.". The
// reverse lookup comes first: it is a single query.
func named(ctx context.Context, host string, dnsNames []string, names resolver) (bool, error) {
	found, err := names.LookupAddr(ctx, host)
	for _, name := range found {
		name = strings.TrimSuffix(name, ".")
		for _, want := range dnsNames {
			if suffix, wild := strings.CutPrefix(want, "*"); name == want || wild && strings.HasPrefix(suffix, ".") && strings.HasSuffix(name, suffix) {
				return true, nil
			}
		}
	}
	for _, want := range dnsNames {
		if strings.HasPrefix(want, "*.") {
			continue
		}
		addresses, lookupErr := names.LookupHost(ctx, want)
		if lookupErr != nil {
			err = lookupErr
			continue
		}
		for _, a := range addresses {
			if a == host {
				return true, nil
			}
		}
	}
	return false, err
}

package server

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"

	"go.uber.org/zap"
)

// accessControl is what every HTTP request of a client passes first, as in etcd: old paths, the
// host whitelist, CORS, and no certificate's name on the gateway; and, unlike in etcd, the origin
// of a browser's request (origin.go). gRPC requests do not pass here.
type accessControl struct {
	next    http.Handler
	gateway bool // it is served
	// authOn says whether authentication is enabled, as this member has it: a proposal for each
	// request of the gateway would make it wait for a leader.
	authOn         func() bool
	hosts          []string // Config.HostWhitelist
	cors           []string // Config.CORS
	simpleRequests bool     // Config.CORSSimpleRequests
	clientCertAuth bool
	logger         *zap.Logger
}

// certifiedHeader says in the gateway's calls that the client presented a verified certificate
// without a name; it arrives as the metadata certifiedKey. A client cannot set it: it is removed
// from requests here, and honoured only in calls from within the process (see certificateName).
const (
	certifiedHeader = "Grpc-Metadata-Belay-Certified"
	certifiedKey    = "belay-certified"
)

func (a *accessControl) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if rest, ok := strings.CutPrefix(r.URL.Path, "/v3beta/"); ok {
		r.URL.Path = "/v3/" + rest
		r.URL.RawPath = ""
	}
	r.Header.Del(certifiedHeader)
	if r.TLS == nil {
		if host := hostOf(r); !allowed(a.hosts, host) {
			a.logger.Warn("rejecting HTTP request to prevent DNS rebinding attacks", zap.String("host", host))
			http.Error(w, unknownHost(host), http.StatusMisdirectedRequest)
			return
		}
	} else if a.clientCertAuth && a.gateway && strings.HasPrefix(r.URL.Path, "/v3/") && a.authOn() {
		for _, chain := range r.TLS.VerifiedChains {
			if len(chain) > 0 && chain[0].Subject.CommonName != "" {
				http.Error(w, "CommonName of client sending a request against gateway will be ignored and not used as expected", http.StatusBadRequest)
				return
			}
		}
	}
	if a.clientCertAuth && r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		r.Header.Set(certifiedHeader, "yes")
	}
	if allowed(a.cors, "*") {
		addCORS(w.Header(), "*")
	} else if origin := r.Header.Get("Origin"); a.originNamed(origin) {
		addCORS(w.Header(), origin)
	}
	if r.Method == http.MethodOptions {
		w.WriteHeader(http.StatusOK)
		return
	}
	if a.gateway && a.fromElsewhere(w, r) {
		return
	}
	a.next.ServeHTTP(w, r)
}

// allowed reports whether value is on list; an empty list, or one with "*", has all.
func allowed(list []string, value string) bool {
	return len(list) == 0 || slices.Contains(list, "*") || slices.Contains(list, value)
}

// originNamed reports whether --cors names the origin, rather than all. It takes URLs with ports alone,
// as etcd's does, and browsers leave out the port that a scheme has by default: in etcd such an origin
// cannot be named.
func (a *accessControl) originNamed(origin string) bool {
	return origin != "*" && (slices.Contains(a.cors, origin) || slices.Contains(a.cors, withPort(origin)))
}

// withPort is an origin with the port that a browser has left out.
func withPort(origin string) string {
	scheme, host, _ := strings.Cut(origin, "://")
	port := map[string]string{"http": ":80", "https": ":443"}[scheme]
	if port == "" || strings.LastIndexByte(host, ':') > strings.LastIndexByte(host, ']') {
		return origin
	}
	return origin + port
}

func hostOf(r *http.Request) string {
	if host, _, err := net.SplitHostPort(r.Host); err == nil {
		return host
	}
	return r.Host
}

func addCORS(h http.Header, origin string) {
	h.Add("Access-Control-Allow-Methods", "POST, GET, OPTIONS, PUT, DELETE")
	h.Add("Access-Control-Allow-Origin", origin)
	h.Add("Access-Control-Allow-Headers", "accept, content-type, authorization")
}

// unknownHost is etcd's text.
func unknownHost(host string) string {
	return fmt.Sprintf(`
etcd received your request, but the Host header was unrecognized.

To fix this, choose one of the following options:
- Enable TLS, then any HTTPS request will be allowed.
- Add the hostname you want to use to the whitelist in settings.
  - e.g. etcd --host-whitelist %q

This requirement has been added to help prevent "DNS Rebinding" attacks (CVE-2018-5702).
`, host)
}

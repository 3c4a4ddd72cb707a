package upstream

import (
	"fmt"
	"net"
	"net/url"
	"path"
	"strings"
)

// An endpoint is where a member listens.
type endpoint struct {
	network, address string
	serverName       string // that the certificate must have
	secure           bool
}

// parse reads an endpoint as clientv3 does: host:port, an http or https URL, or a unix or unixs one.
// One that does not say has TLS if secure, which is whether there are files for it.
func parse(text string, secure bool) (endpoint, error) {
	scheme, rest, found := strings.Cut(text, "://")
	if !found {
		if scheme, rest, found = strings.Cut(text, ":"); !found || scheme != "unix" && scheme != "unixs" {
			scheme, rest = "", text
		}
	}
	e := endpoint{network: "tcp", address: rest, secure: secure}
	switch scheme {
	case "unix", "unixs":
		e.network, e.serverName = "unix", path.Base(rest)
		e.secure = secure || scheme == "unixs"
		if host, _, err := net.SplitHostPort(e.serverName); err == nil {
			e.serverName = host
		}
		if rest == "" {
			return endpoint{}, fmt.Errorf("endpoint %q names no socket", text)
		}
		return e, nil
	case "":
	case "http", "https":
		u, err := url.Parse(text)
		if err != nil {
			return endpoint{}, fmt.Errorf("endpoint %q: %w", text, err)
		}
		e.address, e.secure = u.Host, scheme == "https"
	default:
		return endpoint{}, fmt.Errorf("endpoint %q: a scheme is http, https, unix or unixs", text)
	}
	host, port, err := net.SplitHostPort(e.address)
	if err != nil || port == "" {
		return endpoint{}, fmt.Errorf("endpoint %q is not host:port", text)
	}
	e.serverName = host
	return e, nil
}

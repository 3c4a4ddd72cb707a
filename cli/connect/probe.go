package connect

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"time"
)

// A Probe is bounded by probeTimeout for the connection and greetTimeout for a handshake.
const (
	probeTimeout = 500 * time.Millisecond
	greetTimeout = 2 * time.Second
)

// Hint is a line that says what Probe found wrong with an endpoint.
func Hint(endpoint string, perr error) string {
	if _, ok := errors.AsType[*TLSError](perr); ok {
		return fmt.Sprintf("Hint: %s %v", endpoint, perr)
	}
	if _, ok := errors.AsType[*FormError](perr); ok {
		return fmt.Sprintf("Hint: the endpoint %q %v", endpoint, perr)
	}
	return fmt.Sprintf("Hint: no server at %s: %v", endpoint, perr)
}

// A TLSError is the reason why a listening server rejects this connection, or this client the
// server.
type TLSError struct{ text string }

func (e *TLSError) Error() string { return e.text }

// A FormError is why a text is no endpoint, and what one looks like.
type FormError struct{ text string }

func (e *FormError) Error() string { return e.text }

// checkForm returns a *FormError for an endpoint that no dial can reach, whatever runs: scheme and
// address are its parts, of a TCP endpoint.
func checkForm(endpoint, scheme, address string) error {
	if endpoint == "" {
		return &FormError{"is empty: give host and port, as 127.0.0.1:2379"}
	}
	if scheme != "" && scheme != "http" && scheme != "https" {
		return &FormError{fmt.Sprintf("has the scheme %s: give it as http://%s, https://%s or %s; sockets are unix: or unixs:", scheme, address, address, address)}
	}
	_, _, err := net.SplitHostPort(address)
	wrong, ok := errors.AsType[*net.AddrError](err)
	if !ok {
		return nil
	}
	prefix := ""
	if scheme != "" {
		prefix = scheme + "://"
	}
	var meant []string // of an IPv6 address, which may end with the port
	if host, port, ok := cutLast(address, ":"); ok && strings.Contains(host, ":") && net.ParseIP(host) != nil {
		meant = append(meant, fmt.Sprintf("%s[%s]:%s", prefix, host, port))
	}
	if strings.Contains(address, ":") && net.ParseIP(address) != nil {
		meant = append(meant, fmt.Sprintf("%s[%s]:2379", prefix, address))
	}
	switch {
	case len(meant) > 0:
		return &FormError{"is an IPv6 address without brackets: give it as " + strings.Join(meant, " or ")}
	case strings.Contains(wrong.Err, "missing port"):
		return &FormError{fmt.Sprintf("has no port: give it as %s%s:2379", prefix, address)}
	}
	return &FormError{fmt.Sprintf("is not host and port, as 127.0.0.1:2379 or [::1]:2379: %s", wrong.Err)}
}

func cutLast(s, separator string) (before, after string, found bool) {
	i := strings.LastIndex(s, separator)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(separator):], true
}

// Probe connects to an endpoint as a client with this TLS configuration does, nil if it has none,
// and hangs up. A *TLSError means that a server listens, a *FormError that none can be meant. It takes
// 3 s at most.
func Probe(endpoint string, secured *tls.Config) error {
	network, address, scheme := "tcp", endpoint, ""
	switch u, err := url.Parse(endpoint); {
	case strings.HasPrefix(endpoint, "unix"):
		network = "unix"
		scheme, address, _ = strings.Cut(endpoint, ":")
		address = strings.TrimPrefix(address, "//")
	case err == nil && u.Host != "":
		address, scheme = u.Host, u.Scheme
	}
	if network == "tcp" {
		if err := checkForm(endpoint, scheme, address); err != nil {
			return err
		}
	}
	conn, err := net.DialTimeout(network, address, probeTimeout)
	if err != nil {
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil {
			err = op.Err
		}
		if sys, ok := errors.AsType[*os.SyscallError](err); ok {
			err = sys.Err
		}
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(greetTimeout)); err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	secure := scheme == "https" || scheme == "unixs" || scheme == "" && secured != nil
	if secure {
		cfg := &tls.Config{}
		if secured != nil {
			cfg = secured.Clone()
		}
		if cfg.ServerName == "" {
			cfg.ServerName = host
		}
		if _, err := greet(conn, cfg); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
				return &TLSError{"does not speak TLS: give it as http://" + address}
			}
			see := "see --cacert, --cert, --key"
			if errors.Is(err, io.EOF) { // so does an etcd's port without TLS
				see += "; if it does not speak TLS, give it as http://" + address
			}
			return &TLSError{fmt.Sprintf("cannot be reached by TLS: %v (%s)", err, see)}
		}
		return nil
	}
	if speaks, _ := greet(conn, &tls.Config{InsecureSkipVerify: true}); speaks { // nothing of the caller's is sent
		return &TLSError{"speaks TLS: give it as https://" + address + ", and --cacert"}
	}
	return nil
}

// greet makes a TLS handshake and waits briefly for an alert: with TLS 1.3 the server rejects a
// client's certificate only after the client has finished. speaks: the server speaks TLS.
func greet(conn net.Conn, cfg *tls.Config) (speaks bool, err error) {
	cfg.NextProtos = []string{"h2"}
	client := tls.Client(conn, cfg)
	if err := client.Handshake(); err != nil {
		op, ok := errors.AsType[*net.OpError](err)
		return ok && op.Op == "remote error", plainly(err) // an alert
	}
	if _, err := client.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, io.EOF) {
		return true, plainly(err)
	}
	return true, nil
}

// plainly removes the addresses, which the hint names already.
func plainly(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil {
		return op.Err
	}
	return err
}

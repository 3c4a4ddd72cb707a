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
	return fmt.Sprintf("Hint: no server at %s: %v", endpoint, perr)
}

// A TLSError is the reason why a listening server rejects this connection, or this client the
// server.
type TLSError struct{ text string }

func (e *TLSError) Error() string { return e.text }

// Probe connects to an endpoint as a client with this TLS configuration does, nil if it has none,
// and hangs up. A *TLSError means that a server listens. It takes 3 s at most.
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

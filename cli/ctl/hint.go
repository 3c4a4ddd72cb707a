package ctl

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// After a command has failed, the probe of each endpoint is bounded by probeTimeout for the
// connection and greetTimeout for a handshake.
const (
	probeTimeout = 500 * time.Millisecond
	greetTimeout = 2 * time.Second
)

// unreachable explains an error that may mean that no server answered: it tries to connect once
// more to the endpoints that each found silent, or else to every endpoint, and returns what it
// found. Empty if err has another cause.
func (c *ctl) unreachable(err error) string {
	code := status.Code(err)
	if !errors.Is(err, context.DeadlineExceeded) && code != codes.Unavailable && code != codes.DeadlineExceeded {
		return ""
	}
	all, eerr := c.global.Targets(c.err)
	if eerr != nil || len(all) == 0 {
		return ""
	}
	endpoints := c.silent
	if len(endpoints) == 0 {
		endpoints = all
	}
	results := make([]error, len(endpoints))
	var wg sync.WaitGroup
	for i, ep := range endpoints {
		wg.Go(func() { results[i] = c.probe(ep) })
	}
	wg.Wait()

	var lines []string
	dead, mute := 0, 0
	for i, perr := range results {
		if perr == nil {
			mute++
			lines = append(lines, fmt.Sprintf("Hint: %s accepts connections, but gave no answer in time", endpoints[i]))
			continue
		}
		if _, ok := errors.AsType[*tlsError](perr); !ok {
			dead++
		}
		lines = append(lines, hintOf(endpoints[i], perr))
	}
	if dead == len(endpoints) && dead >= len(all) {
		lines = append(lines, `Hint: start one with "belay server" (one member) or "belay dev" (three), or name a running one with --endpoints or ETCDCTL_ENDPOINTS`)
	} else if mute > 0 {
		// Not --cluster: listing the members needs a leader, too.
		lines = append(lines, fmt.Sprintf(`Hint: a cluster without a leader answers like this; "%s endpoint status" with all members in --endpoints shows who leads and what each lacks, and the servers' logs say who is missing`, c.name))
	}
	return strings.Join(lines, "\n")
}

// hintOf returns what probe found wrong with an endpoint.
func hintOf(endpoint string, perr error) string {
	if _, ok := errors.AsType[*tlsError](perr); ok {
		return fmt.Sprintf("Hint: %s %v", endpoint, perr)
	}
	return fmt.Sprintf("Hint: no server at %s: %v", endpoint, perr)
}

// tlsError is the reason why a listening server rejects this connection, or this client the server.
type tlsError struct{ text string }

func (e *tlsError) Error() string { return e.text }

// probe connects to an endpoint as the client did, and hangs up. A *tlsError means that a server
// listens.
func (c *ctl) probe(endpoint string) error {
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
	secure := scheme == "https" || scheme == "unixs" || scheme == "" && c.tls != nil
	if secure {
		cfg := &tls.Config{}
		if c.tls != nil {
			cfg = c.tls.Clone()
		}
		if cfg.ServerName == "" {
			cfg.ServerName = host
		}
		if _, err := greet(conn, cfg); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
				return &tlsError{"does not speak TLS: give it as http://" + address}
			}
			return &tlsError{fmt.Sprintf("refuses this connection, or this client its certificate: %v (see --cacert, --cert, --key)", err)}
		}
		return nil
	}
	if speaks, _ := greet(conn, &tls.Config{InsecureSkipVerify: true}); speaks { // nothing of the caller's is sent
		return &tlsError{"speaks TLS: give it as https://" + address + ", and --cacert"}
	}
	return nil
}

// greet makes a TLS handshake and waits briefly for an alert: with TLS 1.3 the server rejects a
// client's certificate only after the client has finished. speaks: the server speaks TLS.
func greet(conn net.Conn, cfg *tls.Config) (speaks bool, err error) {
	cfg.NextProtos = []string{"h2"}
	secured := tls.Client(conn, cfg)
	if err := secured.Handshake(); err != nil {
		op, ok := errors.AsType[*net.OpError](err)
		return ok && op.Op == "remote error", plainly(err) // an alert
	}
	if _, err := secured.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, io.EOF) {
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

package ctl

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// probeTimeout bounds the look at each endpoint after a command has failed already.
const probeTimeout = 500 * time.Millisecond

// unreachable explains an error that may mean that nobody answered: it tries to connect to each endpoint once more and
// says what it saw. Empty if err tells of something else.
func (c *ctl) unreachable(err error) string {
	code := status.Code(err)
	if !errors.Is(err, context.DeadlineExceeded) && code != codes.Unavailable && code != codes.DeadlineExceeded {
		return ""
	}
	endpoints, eerr := c.endpoints()
	if eerr != nil || len(endpoints) == 0 {
		return ""
	}
	results := make([]error, len(endpoints))
	var wg sync.WaitGroup
	for i, ep := range endpoints {
		wg.Go(func() { results[i] = probe(ep) })
	}
	wg.Wait()

	var lines []string
	dead := 0
	for i, perr := range results {
		if perr != nil {
			dead++
			lines = append(lines, fmt.Sprintf("Hint: no server at %s: %v", endpoints[i], perr))
		} else {
			lines = append(lines, fmt.Sprintf("Hint: %s accepts connections, but gave no answer in time", endpoints[i]))
		}
	}
	if dead == len(endpoints) {
		lines = append(lines, `Hint: start one with "belay server" (one member) or "belay dev" (three), or name a running one with --endpoints or ETCDCTL_ENDPOINTS`)
	} else {
		lines = append(lines, fmt.Sprintf(`Hint: a cluster without a leader answers like this; see "%s endpoint status --cluster" and the servers' logs; a TLS server needs https:// and --cacert`, c.name))
	}
	return strings.Join(lines, "\n")
}

// probe connects to an endpoint and hangs up.
func probe(endpoint string) error {
	network, address := "tcp", endpoint
	switch u, err := url.Parse(endpoint); {
	case strings.HasPrefix(endpoint, "unix"):
		network = "unix"
		_, address, _ = strings.Cut(endpoint, ":")
		address = strings.TrimPrefix(address, "//")
	case err == nil && u.Host != "":
		address = u.Host
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
	return conn.Close()
}

package ctl

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"github.com/belaydb/belay/cli/connect"
)

// tellSilence says once, on standard error, that a command that waits for its server, as etcdctl's
// does, has not reached one within the time of a short command. secured is the TLS of cli.
func tellSilence(ctx context.Context, c *ctl, cli *clientv3.Client, secured *tls.Config) {
	ctx, cancel := context.WithCancel(ctx)
	c.ends = append(c.ends, cancel)
	go func() {
		within, cancel := context.WithTimeout(ctx, c.global.CommandTimeout)
		defer cancel()
		conn := cli.ActiveConnection()
		conn.Connect()
		for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
			if conn.WaitForStateChange(within, state) {
				continue
			}
			var lines strings.Builder
			for _, ep := range cli.Endpoints() {
				if perr := connect.Probe(ep, secured); perr != nil {
					fmt.Fprintln(&lines, connect.Hint(ep, perr))
				}
			}
			if ctx.Err() == nil && lines.Len() > 0 {
				fmt.Fprintf(c.err, "%sHint: it is tried again until this command is ended\n", lines.String())
			}
			return
		}
	}()
}

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
		wg.Go(func() { results[i] = connect.Probe(ep, c.tls) })
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
		_, reached := errors.AsType[*connect.TLSError](perr)
		if _, malformed := errors.AsType[*connect.FormError](perr); !reached && !malformed {
			dead++
		}
		lines = append(lines, connect.Hint(endpoints[i], perr))
	}
	if dead == len(endpoints) && dead >= len(all) {
		lines = append(lines, `Hint: start one with "belay server" (one member) or "belay dev" (three), or name a running one with --endpoints or ETCDCTL_ENDPOINTS`)
	} else if mute > 0 {
		// Not --cluster: listing the members needs a leader, too.
		lines = append(lines, fmt.Sprintf(`Hint: a cluster without a leader answers like this; "%s endpoint status" with all members in --endpoints shows who leads and what each lacks, and the servers' logs say who is missing`, c.name))
	}
	return strings.Join(lines, "\n")
}

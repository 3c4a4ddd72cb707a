package ctl

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/cli/connect"
)

const clusterFlagUsage = "ask all members of the cluster, found through --endpoints"

func (c *ctl) endpointCommand() *cobra.Command {
	var cluster bool
	cmd := &cobra.Command{
		Use:     "endpoint <subcommand>",
		Short:   "Health and state of single servers. See `" + c.name + " endpoint --help`",
		Long:    "Health and state of single servers",
		GroupID: groupMaintenance,
	}
	cmd.PersistentFlags().BoolVar(&cluster, "cluster", false, clusterFlagUsage)
	cmd.AddCommand(c.endpointHealthCommand(&cluster), c.endpointStatusCommand(&cluster), c.endpointHashKVCommand(&cluster))
	return cmd
}

// targets are the endpoints to ask one by one. The member list's client URLs are as the members
// advertise them.
func (c *ctl) targets(cmd *cobra.Command, spec *clientv3.ConfigSpec, cluster bool) ([]string, error) {
	if !cluster {
		return spec.Endpoints, nil
	}
	cli, err := c.dial(cmd.Context(), spec)
	if err != nil {
		if e, ok := errors.AsType[*exitError](err); ok {
			e.code = codeError
		}
		return nil, err
	}
	ctx, cancel := c.timeout(cmd)
	defer cancel()
	resp, err := cli.MemberList(ctx)
	if err != nil {
		return nil, fmt.Errorf("failed to fetch endpoints from etcd cluster member list: %w", err)
	}
	var endpoints []string
	for _, m := range resp.Members {
		endpoints = append(endpoints, m.GetClientURLs()...)
	}
	return endpoints, nil
}

// each calls ask for every target with a client that knows only that one.
func (c *ctl) each(cmd *cobra.Command, spec *clientv3.ConfigSpec, cluster bool, ask func(ctx context.Context, cli *clientv3.Client, ep string) error) (failed, err error) {
	endpoints, err := c.targets(cmd, spec, cluster)
	if err != nil {
		return nil, err
	}
	for _, ep := range endpoints {
		one := spec.Clone()
		one.Endpoints = []string{ep}
		cli, err := c.dial(cmd.Context(), one)
		if err != nil {
			return nil, err
		}
		ctx, cancel := c.timeout(cmd)
		if err := ask(ctx, cli, ep); err != nil {
			failed, c.silent = err, append(c.silent, ep)
		}
		cancel()
	}
	return failed, nil
}

func (c *ctl) endpointHealthCommand(cluster *bool) *cobra.Command {
	return &cobra.Command{
		Use:   "health",
		Short: "Checks that servers answer and have no alarm",
		RunE: c.run(func(cmd *cobra.Command, args []string) error {
			spec, out, err := c.configure(cmd)
			if err != nil {
				return err
			}
			endpoints, err := c.targets(cmd, spec, *cluster)
			if err != nil {
				return err
			}
			// All at the same time: each may take the whole timeout to fail.
			list := make([]endpointHealth, len(endpoints))
			var wg sync.WaitGroup
			for i, ep := range endpoints {
				one := spec.Clone()
				one.Endpoints = []string{ep}
				cli, err := c.dial(cmd.Context(), one)
				if e, ok := errors.AsType[*exitError](err); ok && e.code == codeBadArgs {
					return err
				} else if err != nil {
					list[i] = endpointHealth{Endpoint: ep, Error: err.Error()}
					continue
				}
				wg.Go(func() {
					ctx, cancel := c.timeout(cmd)
					defer cancel()
					list[i] = health(ctx, cli, ep)
				})
			}
			wg.Wait()
			if len(list) == 0 {
				list = nil // json: null
			}
			if err := out.show(healthReply(list)); err != nil {
				return err
			}
			var hint string
			bad := false
			for _, h := range list {
				if h.Error != "" {
					bad = true
					if perr := connect.Probe(h.Endpoint, c.tls); perr != nil {
						hint += connect.Hint(h.Endpoint, perr) + "\n"
					}
				}
			}
			if bad {
				return &exitError{code: codeError, err: errors.New("unhealthy cluster"), hint: trimNewline(hint)}
			}
			return nil
		}),
	}
}

func trimNewline(s string) string {
	if n := len(s); n > 0 && s[n-1] == '\n' {
		return s[:n-1]
	}
	return s
}

// health reads a key, which needs a leader and a quorum, and then the alarms.
func health(ctx context.Context, cli *clientv3.Client, ep string) endpointHealth {
	start := time.Now()
	_, err := cli.Get(ctx, "health")
	h := endpointHealth{Endpoint: ep, Took: time.Since(start).String()}
	// The cluster works if it has denied us the right to read the key.
	if err != nil && !errors.Is(err, rpctypes.ErrPermissionDenied) {
		h.Error = err.Error()
		return h
	}
	alarms, err := cli.AlarmList(ctx)
	switch {
	case err != nil:
		h.Error = "Unable to fetch the alarm list"
	case len(alarms.Alarms) > 0:
		h.Error = "Active Alarm(s): "
		for _, a := range alarms.Alarms {
			switch a.GetAlarm() {
			case pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT:
				h.Error += a.GetAlarm().String() + " "
			default:
				h.Error += "UNKNOWN "
			}
		}
	default:
		h.Health = true
	}
	return h
}

func (c *ctl) endpointStatusCommand(cluster *bool) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Prints servers' versions, sizes and places in the cluster",
		Long: `Prints servers' versions, sizes and places in the cluster, with --write-out=simple as a comma separated line each:
endpoint, ID, version, storage version, db size, in use, percentage not in use, quota, is leader, is learner, raft term,
raft index, raft applied index, errors, downgrade target version, downgrade enabled. With --wide, and of Belay in
--write-out=json always: the changes of leader that the member has seen, the state of its disk, and the p99 of its
fsyncs, all since it started.
`,
	}
	wide, urls := wideFlags(cmd)
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		spec, out, err := c.configure(cmd)
		if err != nil {
			return err
		}
		asker, err := out.widely(spec, *wide, *urls, c.global.CommandTimeout)
		if err != nil {
			return err
		}
		defer asker.close()
		var list []endpointStatus
		failed, err := c.each(cmd, spec, *cluster, func(ctx context.Context, cli *clientv3.Client, ep string) error {
			resp, err := cli.Status(ctx, ep)
			if err != nil {
				fmt.Fprintf(c.err, "Failed to get the status of endpoint %s (%v)\n", ep, err)
				return err
			}
			list = append(list, endpointStatus{Endpoint: ep, Status: resp, Wide: asker.ask(ctx, ep, resp.Header.GetMemberId())})
			return nil
		})
		if err != nil {
			return err
		}
		if err := out.show(statusReply(list, *wide)); err != nil {
			return err
		}
		if failed != nil {
			return &exitError{code: codeError, hint: c.unreachable(failed)}
		}
		return nil
	})
	return cmd
}

func (c *ctl) endpointHashKVCommand(cluster *bool) *cobra.Command {
	var rev int64
	cmd := &cobra.Command{
		Use:   "hashkv",
		Short: "Prints servers' hashes of the key history, which must be equal at equal revisions",
	}
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		spec, out, err := c.configure(cmd)
		if err != nil {
			return err
		}
		var list []endpointHash
		hint := ""
		failed, err := c.each(cmd, spec, *cluster, func(ctx context.Context, cli *clientv3.Client, ep string) error {
			resp, err := cli.HashKV(ctx, ep, rev)
			if err != nil {
				fmt.Fprintf(c.err, "Failed to get the hash of endpoint %s (%v)\n", ep, err)
				if hint == "" {
					hint = past{c, cli}.hint(ctx, rev, err)
				}
				return err
			}
			list = append(list, endpointHash{Endpoint: ep, HashKV: resp})
			return nil
		})
		if err != nil {
			return err
		}
		if err := out.show(hashReply(list)); err != nil {
			return err
		}
		if hint != "" {
			return &exitError{code: codeError, err: failed, hint: hint}
		}
		return failed
	})
	cmd.PersistentFlags().Int64Var(&rev, "rev", 0, "hash the history up to this revision (0: the newest)")
	return cmd
}

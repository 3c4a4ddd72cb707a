package ctl

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func (c *ctl) leaseCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "lease <subcommand>",
		Short:   "Leases: keys that go away unless kept alive. See `" + c.name + " lease --help`",
		Long:    "Leases: keys that go away unless kept alive",
		GroupID: groupKV,
	}
	cmd.AddCommand(c.leaseGrantCommand(), c.leaseRevokeCommand(), c.leaseTimeToLiveCommand(), c.leaseListCommand(), c.leaseKeepAliveCommand())
	return cmd
}

func (c *ctl) leaseGrantCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "grant <ttl>",
		Short: "Creates a lease that lives for <ttl> seconds",
		RunE: c.run(func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return failf(codeBadArgs, "lease grant command needs TTL argument")
			}
			ttl, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil {
				return failf(codeBadArgs, "bad TTL (%w)", err)
			}
			ctx, cli, out, err := c.open(cmd)
			if err != nil {
				return err
			}
			resp, err := cli.Grant(ctx, ttl)
			if err != nil {
				return failf(codeError, "failed to grant lease (%w)", err)
			}
			return out.show(grantReply(resp))
		}),
	}
}

func (c *ctl) leaseRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke <leaseID>",
		Short: "Ends a lease and deletes its keys",
		RunE: c.run(func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return failf(codeBadArgs, "lease revoke command needs 1 argument")
			}
			id, err := parseLeaseID(args[0])
			if err != nil {
				return err
			}
			ctx, cli, out, err := c.open(cmd)
			if err != nil {
				return err
			}
			resp, err := cli.Revoke(ctx, id)
			if err != nil {
				return failf(codeError, "failed to revoke lease (%w)", err)
			}
			return out.show(revokeReply(id, resp))
		}),
	}
}

func (c *ctl) leaseTimeToLiveCommand() *cobra.Command {
	var keys bool
	cmd := &cobra.Command{
		Use:   "timetolive <leaseID> [options]",
		Short: "Prints how long a lease has left",
	}
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return failf(codeBadArgs, "lease timetolive command needs lease ID as argument")
		}
		ctx, cli, out, err := c.open(cmd)
		if err != nil {
			return err
		}
		id, err := parseLeaseID(args[0])
		if err != nil {
			return err
		}
		var opts []clientv3.LeaseOption
		if keys {
			opts = append(opts, clientv3.WithAttachedKeys())
		}
		resp, err := cli.TimeToLive(ctx, id, opts...)
		if err != nil {
			return fail(codeBadConnection, err)
		}
		return out.show(timeToLiveReply(resp, keys))
	})
	cmd.Flags().BoolVar(&keys, "keys", false, "print the lease's keys too")
	return cmd
}

func (c *ctl) leaseListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Prints the IDs of all leases",
		RunE: c.run(func(cmd *cobra.Command, args []string) error {
			ctx, cli, out, err := c.open(cmd)
			if err != nil {
				return err
			}
			resp, err := cli.Leases(ctx)
			if err != nil {
				return fail(codeBadConnection, err)
			}
			return out.show(leasesReply(resp))
		}),
	}
}

func (c *ctl) leaseKeepAliveCommand() *cobra.Command {
	var once bool
	cmd := &cobra.Command{
		Use:   "keep-alive [options] <leaseID>",
		Short: "Renews a lease until interrupted",
	}
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return failf(codeBadArgs, "lease keep-alive command needs lease ID as argument")
		}
		id, err := parseLeaseID(args[0])
		if err != nil {
			return err
		}
		cli, out, err := c.client(cmd)
		if err != nil {
			return err
		}
		tellSilence(cmd.Context(), c, cli, c.tls)
		if once {
			ctx, cancel := c.timeout(cmd)
			defer cancel()
			resp, err := cli.KeepAliveOnce(ctx, id)
			if err != nil {
				return fail(codeBadConnection, err)
			}
			return out.show(keepAliveReply(resp))
		}
		return c.keepAlive(cmd.Context(), cli, out, id)
	})
	cmd.Flags().BoolVar(&once, "once", false, "renew once and end")
	return cmd
}

func (c *ctl) keepAlive(ctx context.Context, cli *clientv3.Client, out *output, id clientv3.LeaseID) error {
	renewals, err := cli.KeepAlive(ctx, id)
	if err != nil {
		return fail(codeBadConnection, err)
	}
	for resp := range renewals {
		if err := out.show(keepAliveReply(resp)); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return fail(codeInterrupted, nil)
	}
	if out.format == "simple" {
		fmt.Fprintf(c.out, "lease %016x expired or revoked.\n", int64(id))
	}
	return nil
}

func parseLeaseID(arg string) (clientv3.LeaseID, error) {
	id, err := strconv.ParseInt(arg, 16, 64)
	if err != nil {
		return 0, failf(codeBadArgs, "bad lease ID arg (%w), expecting ID in Hex", err)
	}
	return clientv3.LeaseID(id), nil
}

package ctl

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func (c *ctl) compactionCommand() *cobra.Command {
	var physical bool
	cmd := &cobra.Command{
		Use:     "compaction [options] <revision>",
		Short:   "Forgets the history before a revision",
		GroupID: groupKV,
	}
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return failf(codeBadArgs, "compaction command needs 1 argument")
		}
		rev, err := strconv.ParseInt(args[0], 10, 64)
		if err != nil {
			return err
		}
		cli, _, err := c.client(cmd)
		if err != nil {
			return err
		}
		var opts []clientv3.CompactOption
		if physical {
			opts = append(opts, clientv3.WithCompactPhysical())
		}
		ctx, cancel := c.timeout(cmd)
		defer cancel()
		if _, err := cli.Compact(ctx, rev, opts...); err != nil {
			return past{c, cli}.explain(ctx, rev, err)
		}
		fmt.Fprintln(c.out, "compacted revision", rev)
		return nil
	})
	cmd.Flags().BoolVar(&physical, "physical", false, "wait until the old revisions are gone from the store")
	return cmd
}

func (c *ctl) defragCommand() *cobra.Command {
	var cluster bool
	cmd := &cobra.Command{
		Use:     "defrag",
		Short:   "Asks servers to give free space back to the disk",
		GroupID: groupMaintenance,
	}
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		spec, _, err := c.configure(cmd)
		if err != nil {
			return err
		}
		failed, err := c.each(cmd, spec, cluster, func(ctx context.Context, cli *clientv3.Client, ep string) error {
			start := time.Now()
			_, err := cli.Defragment(ctx, ep)
			took := time.Since(start)
			if err != nil {
				fmt.Fprintf(c.err, "Failed to defragment etcd member[%s]. took %s. (%v)\n", ep, took, err)
			} else {
				fmt.Fprintf(c.out, "Finished defragmenting etcd member[%s]. took %s\n", ep, took)
			}
			return err
		})
		if err != nil {
			return err
		}
		if failed != nil {
			return &exitError{code: codeError, hint: c.unreachable(failed)}
		}
		return nil
	})
	cmd.PersistentFlags().BoolVar(&cluster, "cluster", false, clusterFlagUsage)
	return cmd
}

func (c *ctl) alarmCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "alarm <subcommand>",
		Short:   "Alarms: no space, corruption. See `" + c.name + " alarm --help`",
		Long:    "Alarms: no space, corruption",
		GroupID: groupMaintenance,
	}
	leaf := func(name, short string, ask func(ctx context.Context, cli *clientv3.Client) (*clientv3.AlarmResponse, error)) *cobra.Command {
		return &cobra.Command{
			Use:   name,
			Short: short,
			RunE: c.run(func(cmd *cobra.Command, args []string) error {
				if len(args) != 0 {
					return failf(codeBadArgs, "alarm %s command accepts no arguments", name)
				}
				ctx, cli, out, err := c.open(cmd)
				if err != nil {
					return err
				}
				resp, err := ask(ctx, cli)
				if err != nil {
					return err
				}
				return out.show(alarmReply((*pb.AlarmResponse)(resp)))
			}),
		}
	}
	cmd.AddCommand(
		leaf("disarm", "Ends all alarms", func(ctx context.Context, cli *clientv3.Client) (*clientv3.AlarmResponse, error) {
			return cli.AlarmDisarm(ctx, &clientv3.AlarmMember{})
		}),
		leaf("list", "Prints all alarms", func(ctx context.Context, cli *clientv3.Client) (*clientv3.AlarmResponse, error) {
			return cli.AlarmList(ctx)
		}),
	)
	return cmd
}

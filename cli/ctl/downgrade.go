package ctl

import (
	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func (c *ctl) downgradeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "downgrade <TARGET_VERSION>",
		Short:   "Taking the cluster's version down by one. See `" + c.name + " downgrade --help`",
		Long:    "Taking the cluster's version down by one, so that members of the older version may join",
		GroupID: groupMaintenance,
	}
	leaf := func(name, short, usage string, action clientv3.DowngradeAction) *cobra.Command {
		return &cobra.Command{
			Use:   usage,
			Short: short,
			RunE: c.run(func(cmd *cobra.Command, args []string) error {
				version := ""
				if action != clientv3.DowngradeCancel {
					switch {
					case len(args) < 1:
						return failf(codeBadArgs, "TARGET_VERSION not provided")
					case len(args) > 1:
						return failf(codeBadArgs, "too many arguments")
					case args[0] == "":
						return failf(codeBadArgs, "target version not provided")
					}
					version = args[0]
				}
				ctx, cli, out, err := c.open(cmd)
				if err != nil {
					return err
				}
				resp, err := cli.Downgrade(ctx, action, version)
				if err != nil {
					return err
				}
				return out.show(downgradeReply(name, (*pb.DowngradeResponse)(resp)))
			}),
		}
	}
	cmd.AddCommand(
		leaf("validate", "Says whether the cluster could be taken down to a version", "validate <TARGET_VERSION>", clientv3.DowngradeValidate),
		leaf("enable", "Begins to take the cluster down to a version", "enable <TARGET_VERSION>", clientv3.DowngradeEnable),
		leaf("cancel", "Ends a downgrade that has begun", "cancel", clientv3.DowngradeCancel),
	)
	return cmd
}

func downgradeReply(action string, r *pb.DowngradeResponse) reply {
	return reply{
		raw: r,
		simple: func(p *page) {
			p.printf("Downgrade %s success, cluster version %s\n", action, r.GetVersion())
		},
	}
}

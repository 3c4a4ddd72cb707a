package ctl

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/cli/connect"
)

func (c *ctl) memberCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "member <subcommand>",
		Short:   "The cluster's members. See `" + c.name + " member --help`",
		Long:    "The cluster's members",
		GroupID: groupMaintenance,
	}
	cmd.AddCommand(c.memberAddCommand(), c.memberRemoveCommand(), c.memberUpdateCommand(), c.memberListCommand(), c.memberPromoteCommand(), connect.BeyondEtcd(memberReplaceCommand(c)))
	return cmd
}

func (c *ctl) memberAddCommand() *cobra.Command {
	var peerURLs string
	var learner bool
	cmd := &cobra.Command{
		Use:   "add <memberName> [options]",
		Short: "Announces a new member and prints the settings to start it with",
	}
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		if len(args) < 1 {
			return failf(codeBadArgs, "member name not provided")
		}
		if len(args) > 1 {
			msg := "too many arguments"
			for _, arg := range args {
				if strings.HasPrefix(strings.ToLower(arg), "http") {
					msg += ", did you mean --peer-urls=" + arg
				}
			}
			return failf(codeBadArgs, "%s", msg)
		}
		if peerURLs == "" {
			return failf(codeBadArgs, "member peer urls not provided")
		}
		ctx, cli, out, err := c.open(cmd)
		if err != nil {
			return err
		}
		add := cli.MemberAdd
		if learner {
			add = cli.MemberAddAsLearner
		}
		resp, err := add(ctx, strings.Split(peerURLs, ","))
		if err != nil {
			return err
		}
		return out.show(out.memberAdd(args[0], peerURLs, (*pb.MemberAddResponse)(resp)))
	})
	cmd.Flags().StringVar(&peerURLs, "peer-urls", "", "the new member's peer URLs, comma separated")
	cmd.Flags().BoolVar(&learner, "learner", false, "add it as a learner, without a vote")
	return cmd
}

// memberID reads the one argument of remove, update and promote.
func memberID(args []string) (uint64, error) {
	if len(args) != 1 {
		return 0, failf(codeBadArgs, "member ID is not provided")
	}
	id, err := strconv.ParseUint(args[0], 16, 64)
	if err != nil {
		return 0, failf(codeBadArgs, "bad member ID arg (%w), expecting ID in Hex", err)
	}
	return id, nil
}

func (c *ctl) memberRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove <memberID>",
		Short: "Removes a member from the cluster",
		RunE: c.run(func(cmd *cobra.Command, args []string) error {
			id, err := memberID(args)
			if err != nil {
				return err
			}
			ctx, cli, out, err := c.open(cmd)
			if err != nil {
				return err
			}
			resp, err := cli.MemberRemove(ctx, id)
			if err != nil {
				return err
			}
			r := (*pb.MemberRemoveResponse)(resp)
			return out.show(out.memberChanged(id, "removed from", r, r.GetHeader(), r.GetMembers()))
		}),
	}
}

func (c *ctl) memberUpdateCommand() *cobra.Command {
	var peerURLs string
	cmd := &cobra.Command{
		Use:   "update <memberID> [options]",
		Short: "Changes a member's peer URLs",
	}
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		id, err := memberID(args)
		if err != nil {
			return err
		}
		if peerURLs == "" {
			return failf(codeBadArgs, "member peer urls not provided")
		}
		ctx, cli, out, err := c.open(cmd)
		if err != nil {
			return err
		}
		resp, err := cli.MemberUpdate(ctx, id, strings.Split(peerURLs, ","))
		if err != nil {
			return err
		}
		r := (*pb.MemberUpdateResponse)(resp)
		return out.show(out.memberChanged(id, "updated in", r, r.GetHeader(), r.GetMembers()))
	})
	cmd.Flags().StringVar(&peerURLs, "peer-urls", "", "the member's new peer URLs, comma separated")
	return cmd
}

func (c *ctl) memberListCommand() *cobra.Command {
	var consistency string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Prints all members",
		Long: `Prints all members, with --write-out=simple as a comma separated line each:
ID, status, name, peer URLs, client URLs, whether it is a learner.
`,
	}
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		serializable, err := isSerializable(consistency)
		if err != nil {
			return err
		}
		var opts []clientv3.OpOption
		if serializable {
			opts = append(opts, clientv3.WithSerializable())
		}
		ctx, cli, out, err := c.open(cmd)
		if err != nil {
			return err
		}
		resp, err := cli.MemberList(ctx, opts...)
		if err != nil {
			return err
		}
		return out.show(out.memberList((*pb.MemberListResponse)(resp)))
	})
	cmd.Flags().StringVar(&consistency, "consistency", "l", "l: linearizable, the newest; s: serializable, what this server has")
	return cmd
}

func (c *ctl) memberPromoteCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "promote <memberID>",
		Short: "Gives a learner its vote",
		RunE: c.run(func(cmd *cobra.Command, args []string) error {
			id, err := memberID(args)
			if err != nil {
				return err
			}
			ctx, cli, out, err := c.open(cmd)
			if err != nil {
				return err
			}
			resp, err := cli.MemberPromote(ctx, id)
			if err != nil {
				return err
			}
			r := (*pb.MemberPromoteResponse)(resp)
			return out.show(out.memberChanged(id, "promoted in", r, r.GetHeader(), r.GetMembers()))
		}),
	}
}

func (c *ctl) moveLeaderCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "move-leader <transferee-member-id>",
		Short:   "Makes another member the leader",
		GroupID: groupMaintenance,
		RunE: c.run(func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return failf(codeBadArgs, "move-leader command needs 1 argument")
			}
			target, err := strconv.ParseUint(args[0], 16, 64)
			if err != nil {
				return fail(codeBadArgs, err)
			}
			spec, out, err := c.configure(cmd)
			if err != nil {
				return err
			}
			if _, err := c.dial(cmd.Context(), spec); err != nil { // complains about bad settings first
				return err
			}
			ctx, cancel := c.timeout(cmd)
			defer cancel()

			// Only the leader can transfer leadership.
			for _, ep := range spec.Endpoints {
				one := spec.Clone()
				one.Endpoints = []string{ep}
				cli, err := c.dial(cmd.Context(), one)
				if err != nil {
					return err
				}
				status, err := cli.Status(ctx, ep)
				if err != nil {
					return err
				}
				if leader := status.Leader; leader == status.Header.GetMemberId() {
					resp, err := cli.MoveLeader(ctx, target)
					if err != nil {
						return err
					}
					return out.show(moveLeaderReply(leader, target, (*pb.MoveLeaderResponse)(resp)))
				}
			}
			return &exitError{
				code: codeBadArgs,
				err:  fmt.Errorf("no leader endpoint given at %v", spec.Endpoints),
				hint: fmt.Sprintf("Hint: name all members with --endpoints; \"%s endpoint status --cluster\" shows which one leads", c.name),
			}
		}),
	}
}

package ctl

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/cli/connect"
)

// authCommands are auth, user and role.
func (c *ctl) authCommands() []*cobra.Command {
	return []*cobra.Command{c.authCommand(), c.userCommand(), c.roleCommand()}
}

func (c *ctl) authCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "auth <enable or disable>",
		Short:   "Enables or disables authentication. See `" + c.name + " auth --help`",
		Long:    "Enables or disables authentication",
		GroupID: groupAuth,
	}
	cmd.AddCommand(
		c.askCluster("enable", "Enables authentication", 0, "auth enable command does not accept any arguments",
			func(ctx context.Context, cli *clientv3.Client, _ []string) (reply, error) {
				return reply{}, enableAuth(ctx, cli)
			}, "Authentication Enabled"),
		c.askCluster("disable", "Disables authentication", 0, "auth disable command does not accept any arguments",
			func(ctx context.Context, cli *clientv3.Client, _ []string) (reply, error) {
				_, err := cli.AuthDisable(ctx)
				return reply{}, err
			}, "Authentication Disabled"),
		c.askCluster("status", "Prints whether authentication is enabled", 0, "auth status command does not accept any arguments",
			func(ctx context.Context, cli *clientv3.Client, _ []string) (reply, error) {
				r, err := cli.AuthStatus(ctx)
				return authStatusReply(r), err
			}, ""),
	)
	return cmd
}

// enableAuth grants the user root the role root if that is all that is missing.
func enableAuth(ctx context.Context, cli *clientv3.Client) error {
	for {
		_, err := cli.AuthEnable(ctx)
		if !errors.Is(err, rpctypes.ErrRootRoleNotExist) {
			return err
		}
		if _, err := cli.RoleAdd(ctx, "root"); err != nil {
			return err
		}
		if _, err := cli.UserGrantRole(ctx, "root", "root"); err != nil {
			return err
		}
	}
}

// askCluster makes a command that is a single call. count is how many arguments it takes, complaint
// the error for any other number. If done is not empty, it prints done instead of the reply.
func (c *ctl) askCluster(use, short string, count int, complaint string, ask func(context.Context, *clientv3.Client, []string) (reply, error), done string) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		RunE: c.run(func(cmd *cobra.Command, args []string) error {
			if len(args) != count {
				return failf(codeBadArgs, "%s", complaint)
			}
			ctx, cli, out, err := c.open(cmd)
			if err != nil {
				return err
			}
			r, err := ask(ctx, cli, args)
			if err != nil {
				return fail(codeError, err)
			}
			if done != "" {
				_, err := fmt.Fprintln(c.out, done)
				return err
			}
			return out.show(r)
		}),
	}
}

func (c *ctl) userCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "user <subcommand>",
		Short:   "Users. See `" + c.name + " user --help`",
		Long:    "Users",
		GroupID: groupAuth,
	}
	cmd.AddCommand(
		c.userAddCommand(), c.userGetCommand(), c.userPasswdCommand(),
		c.askCluster("delete <user name>", "Deletes a user", 1, "user delete command requires user name as its argument",
			func(ctx context.Context, cli *clientv3.Client, args []string) (reply, error) {
				r, err := cli.UserDelete(ctx, args[0])
				return authReply((*pb.AuthUserDeleteResponse)(r), "User "+args[0]+" deleted"), err
			}, ""),
		c.askCluster("list", "Lists all users", 0, "user list command requires no arguments",
			func(ctx context.Context, cli *clientv3.Client, _ []string) (reply, error) {
				r, err := cli.UserList(ctx)
				return userListReply(r), err
			}, ""),
		c.askCluster("grant-role <user name> <role name>", "Gives a role to a user", 2,
			"user grant command requires user name and role name as its argument",
			func(ctx context.Context, cli *clientv3.Client, args []string) (reply, error) {
				r, err := cli.UserGrantRole(ctx, args[0], args[1])
				return authReply((*pb.AuthUserGrantRoleResponse)(r), fmt.Sprintf("Role %s is granted to user %s", args[1], args[0])), err
			}, ""),
		c.askCluster("revoke-role <user name> <role name>", "Takes a role from a user", 2,
			"user revoke-role requires user name and role name as its argument",
			func(ctx context.Context, cli *clientv3.Client, args []string) (reply, error) {
				r, err := cli.UserRevokeRole(ctx, args[0], args[1])
				return authReply((*pb.AuthUserRevokeRoleResponse)(r), fmt.Sprintf("Role %s is revoked from user %s", args[1], args[0])), err
			}, ""),
	)
	return cmd
}

func (c *ctl) userAddCommand() *cobra.Command {
	var interactive, noPassword bool
	var given string
	cmd := &cobra.Command{
		Use:   "add <user name or user:password> [options]",
		Short: "Adds a user",
	}
	cmd.Flags().BoolVar(&interactive, "interactive", true, "ask for the password twice; false: read it from standard input")
	cmd.Flags().StringVar(&given, "new-user-password", "", "the password")
	cmd.Flags().BoolVar(&noPassword, "no-password", false, "a user without password, known by the name in a client certificate")
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return failf(codeBadArgs, "user add command requires user name as its argument")
		}
		user, password := args[0], given
		if !noPassword && password == "" {
			name, rest, ok := strings.Cut(user, ":")
			switch {
			case ok && name == "":
				return failf(codeBadArgs, "empty user name is not allowed")
			case ok:
				user, password = name, rest
			default:
				var err error
				if password, err = c.newPassword(user, interactive); err != nil {
					return err
				}
			}
		}
		if noPassword {
			password = ""
		}
		ctx, cli, out, err := c.open(cmd)
		if err != nil {
			return err
		}
		r, err := cli.UserAddWithOptions(ctx, user, password, &clientv3.UserAddOptions{NoPassword: noPassword})
		if err != nil {
			return fail(codeError, err)
		}
		return out.show(authReply((*pb.AuthUserAddResponse)(r), "User "+user+" created"))
	})
	return cmd
}

func (c *ctl) userPasswdCommand() *cobra.Command {
	var interactive bool
	cmd := &cobra.Command{
		Use:   "passwd <user name> [options]",
		Short: "Changes the password of a user",
	}
	cmd.Flags().BoolVar(&interactive, "interactive", true, "ask for the password twice; false: read it from standard input")
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return failf(codeBadArgs, "user passwd command requires user name as its argument")
		}
		password, err := c.newPassword(args[0], interactive)
		if err != nil {
			return err
		}
		ctx, cli, out, err := c.open(cmd)
		if err != nil {
			return err
		}
		r, err := cli.UserChangePassword(ctx, args[0], password)
		if err != nil {
			return fail(codeError, err)
		}
		return out.show(authReply((*pb.AuthUserChangePasswordResponse)(r), "Password updated"))
	})
	return cmd
}

// newPassword prompts for a password twice, or reads one word.
func (c *ctl) newPassword(user string, interactive bool) (string, error) {
	if !interactive {
		var password string
		_, _ = fmt.Fscanf(c.in, "%s", &password) // none is empty, as with etcdctl
		return password, nil
	}
	first, err := connect.AskPassword(c.in, c.out, fmt.Sprintf("Password of %s: ", user))
	if err != nil {
		return "", failf(codeBadArgs, "failed to ask password: %w", err)
	}
	if first == "" {
		return "", failf(codeBadArgs, "empty password")
	}
	second, err := connect.AskPassword(c.in, c.out, fmt.Sprintf("Type password of %s again for confirmation: ", user))
	if err != nil {
		return "", failf(codeBadArgs, "failed to ask password: %w", err)
	}
	if first != second {
		return "", failf(codeBadArgs, "given passwords are different")
	}
	return first, nil
}

func (c *ctl) userGetCommand() *cobra.Command {
	var detail bool
	cmd := &cobra.Command{
		Use:   "get <user name> [options]",
		Short: "Prints the roles of a user",
	}
	cmd.Flags().BoolVar(&detail, "detail", false, "print what the roles permit")
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return failf(codeBadArgs, "user get command requires user name as its argument")
		}
		ctx, cli, out, err := c.open(cmd)
		if err != nil {
			return err
		}
		r, err := cli.UserGet(ctx, args[0])
		if err != nil {
			return fail(codeError, err)
		}
		if !detail {
			return out.show(userGetReply(args[0], r))
		}
		fmt.Fprintf(c.out, "User: %s\n", args[0])
		for _, role := range (*pb.AuthUserGetResponse)(r).GetRoles() {
			fmt.Fprintln(c.out)
			rr, err := cli.RoleGet(ctx, role)
			if err != nil {
				return fail(codeError, err)
			}
			if err := out.show(roleGetReply(role, rr)); err != nil {
				return err
			}
		}
		return nil
	})
	return cmd
}

func (c *ctl) roleCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "role <subcommand>",
		Short:   "Roles. See `" + c.name + " role --help`",
		Long:    "Roles",
		GroupID: groupAuth,
	}
	cmd.AddCommand(
		c.roleGrantCommand(), c.roleRevokeCommand(),
		c.askCluster("add <role name>", "Adds a role", 1, "role add command requires role name as its argument",
			func(ctx context.Context, cli *clientv3.Client, args []string) (reply, error) {
				r, err := cli.RoleAdd(ctx, args[0])
				return authReply((*pb.AuthRoleAddResponse)(r), "Role "+args[0]+" created"), err
			}, ""),
		c.askCluster("delete <role name>", "Deletes a role", 1, "role delete command requires role name as its argument",
			func(ctx context.Context, cli *clientv3.Client, args []string) (reply, error) {
				r, err := cli.RoleDelete(ctx, args[0])
				return authReply((*pb.AuthRoleDeleteResponse)(r), "Role "+args[0]+" deleted"), err
			}, ""),
		c.askCluster("get <role name>", "Prints what a role permits", 1, "role get command requires role name as its argument",
			func(ctx context.Context, cli *clientv3.Client, args []string) (reply, error) {
				r, err := cli.RoleGet(ctx, args[0])
				return roleGetReply(args[0], r), err
			}, ""),
		c.askCluster("list", "Lists all roles", 0, "role list command requires no arguments",
			func(ctx context.Context, cli *clientv3.Client, _ []string) (reply, error) {
				r, err := cli.RoleList(ctx)
				return roleListReply(r), err
			}, ""),
	)
	return cmd
}

// permissionFlags are those of grant-permission and revoke-permission.
type permissionFlags struct{ prefix, fromKey bool }

func (f *permissionFlags) register(cmd *cobra.Command, verb string) {
	cmd.Flags().BoolVar(&f.prefix, "prefix", false, verb+" all keys with the prefix")
	cmd.Flags().BoolVar(&f.fromKey, "from-key", false, verb+" all keys that are greater than or equal to the key")
}

// keys returns the range that the arguments name.
func (f *permissionFlags) keys(args []string) (key, end string, err error) {
	both := f.prefix && f.fromKey
	switch {
	case args[0] == "" && both, len(args) == 1 && both:
		return "", "", failf(codeBadArgs, "--from-key and --prefix flags are mutually exclusive")
	case args[0] == "" && (f.prefix || f.fromKey):
		return "\x00", "\x00", nil
	case args[0] == "":
		return "\x00", "", nil
	case len(args) == 1 && f.prefix:
		return args[0], clientv3.GetPrefixRangeEnd(args[0]), nil
	case len(args) == 1 && f.fromKey:
		return args[0], "\x00", nil
	case len(args) == 1:
		return args[0], "", nil
	case f.prefix:
		return "", "", failf(codeBadArgs, "unexpected endkey argument with --prefix flag")
	case f.fromKey:
		return "", "", failf(codeBadArgs, "unexpected endkey argument with --from-key flag")
	}
	return args[0], args[1], nil
}

func (c *ctl) roleGrantCommand() *cobra.Command {
	var f permissionFlags
	cmd := &cobra.Command{
		Use:   "grant-permission [options] <role name> <permission type> <key> [endkey]",
		Short: "Lets a role read or write keys",
	}
	f.register(cmd, "grant")
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		if len(args) < 3 {
			return failf(codeBadArgs, "role grant command requires role name, permission type, and key [endkey] as its argument")
		}
		perm, err := clientv3.StrToPermissionType(args[1])
		if err != nil {
			return fail(codeBadArgs, err)
		}
		key, end, err := f.keys(args[2:])
		if err != nil {
			return err
		}
		ctx, cli, out, err := c.open(cmd)
		if err != nil {
			return err
		}
		r, err := cli.RoleGrantPermission(ctx, args[0], key, end, perm)
		if err != nil {
			return fail(codeError, err)
		}
		return out.show(authReply((*pb.AuthRoleGrantPermissionResponse)(r), "Role "+args[0]+" updated"))
	})
	return cmd
}

func (c *ctl) roleRevokeCommand() *cobra.Command {
	var f permissionFlags
	cmd := &cobra.Command{
		Use:   "revoke-permission <role name> <key> [endkey]",
		Short: "Takes keys from a role",
	}
	f.register(cmd, "revoke")
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		if len(args) < 2 {
			return failf(codeBadArgs, "role revoke-permission command requires role name and key [endkey] as its argument")
		}
		key, end, err := f.keys(args[1:])
		if err != nil {
			return err
		}
		ctx, cli, out, err := c.open(cmd)
		if err != nil {
			return err
		}
		r, err := cli.RoleRevokePermission(ctx, args[0], key, end)
		if err != nil {
			return fail(codeError, err)
		}
		what := fmt.Sprintf("key %s", args[1])
		switch end {
		case "":
		case "\x00":
			what = fmt.Sprintf("range [%s, <open ended>", args[1])
		default:
			what = fmt.Sprintf("range [%s, %s)", args[1], end)
		}
		return out.show(authReply((*pb.AuthRoleRevokePermissionResponse)(r), fmt.Sprintf("Permission of %s is revoked from role %s", what, args[0])))
	})
	return cmd
}

// authReply is one line; in the fields format only the header.
func authReply[R interface{ GetHeader() *pb.ResponseHeader }](r R, line string) reply {
	return reply{raw: r, simple: func(p *page) { p.line(line) }, fields: func(p *page) { p.header(r.GetHeader()) }}
}

func authStatusReply(r *clientv3.AuthStatusResponse) reply {
	resp := (*pb.AuthStatusResponse)(r)
	return reply{raw: resp, simple: func(p *page) {
		p.line("Authentication Status:", resp.GetEnabled())
		p.line("AuthRevision:", resp.GetAuthRevision())
	}}
}

func userListReply(r *clientv3.AuthUserListResponse) reply {
	resp := (*pb.AuthUserListResponse)(r)
	return reply{raw: resp, simple: func(p *page) {
		for _, user := range resp.GetUsers() {
			p.line(user)
		}
	}}
}

func userGetReply(name string, r *clientv3.AuthUserGetResponse) reply {
	resp := (*pb.AuthUserGetResponse)(r)
	return reply{raw: resp, simple: func(p *page) {
		p.printf("User: %s\nRoles:", name)
		for _, role := range resp.GetRoles() {
			p.printf(" %s", role)
		}
		p.line()
	}}
}

func roleListReply(r *clientv3.AuthRoleListResponse) reply {
	resp := (*pb.AuthRoleListResponse)(r)
	return reply{raw: resp,
		simple: func(p *page) {
			for _, role := range resp.GetRoles() {
				p.line(role)
			}
		},
		fields: func(p *page) {
			p.header(resp.GetHeader())
			p.printf(`"Roles" :`)
			for _, role := range resp.GetRoles() {
				p.printf(" %q", role)
			}
			p.line()
		}}
}

func roleGetReply(role string, r *clientv3.AuthRoleGetResponse) reply {
	resp := (*pb.AuthRoleGetResponse)(r)
	return reply{raw: resp,
		simple: func(p *page) {
			p.printf("Role %s\n", role)
			if role == "root" && resp.GetPerm() == nil {
				p.printf("KV Read:\n\t[, <open ended>\nKV Write:\n\t[, <open ended>\n")
				return
			}
			p.line("KV Read:")
			p.permissions(resp.GetPerm(), authpb.Permission_WRITE)
			p.line("KV Write:")
			p.permissions(resp.GetPerm(), authpb.Permission_READ)
		},
		fields: func(p *page) {
			p.header(resp.GetHeader())
			for _, perm := range resp.GetPerm() {
				p.line(`"PermType" : `, perm.GetPermType().String())
				p.quoted("Key", string(perm.GetKey()))
				p.quoted("RangeEnd", string(perm.GetRangeEnd()))
			}
		}}
}

// permissions prints all permissions except those of one type.
func (p *page) permissions(perms []*authpb.Permission, except authpb.Permission_Type) {
	for _, perm := range perms {
		key, end := string(perm.GetKey()), string(perm.GetRangeEnd())
		if perm.GetPermType() == except {
			continue
		}
		switch end {
		case "":
			p.printf("\t%s\n", key)
			continue
		case "\x00":
			p.printf("\t[%s, <open ended>", key)
		default:
			p.printf("\t[%s, %s)", key, end)
		}
		if clientv3.GetPrefixRangeEnd(key) == end && key != "" {
			p.printf(" (prefix %s)", key)
		}
		p.line()
	}
}

package ctl

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.etcd.io/etcd/client/pkg/v3/logutil"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/grpclog"

	"github.com/belaydb/belay/cli/connect"
)

// globalFlags are the flags every command takes; each may also come from the environment as
// ETCDCTL_<NAME>.
type globalFlags struct {
	connect.Flags
	format string
	hex    bool
}

func (g *globalFlags) register(root *cobra.Command) {
	fs := root.PersistentFlags()
	g.Flags.Register(fs)
	fs.StringVarP(&g.format, "write-out", "w", "simple", "output format: "+strings.Join(outputFormats(), ", "))
	fs.BoolVar(&g.hex, "hex", false, "print keys, values and IDs in hexadecimal")
	// The name is registered a line above, so this cannot fail.
	_ = root.RegisterFlagCompletionFunc("write-out", choices(outputFormats()...))
}

func choices(values ...string) cobra.CompletionFunc {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return values, cobra.ShellCompDirectiveDefault
	}
}

// configure turns flags and environment into a client configuration and an output.
func (c *ctl) configure(cmd *cobra.Command) (*clientv3.ConfigSpec, *output, error) {
	if err := connect.FromEnvironment(cmd.InheritedFlags(), c.err); err != nil {
		return nil, nil, fail(codeError, err)
	}
	g := &c.global
	if g.Debug {
		// grpc's logger is process-wide; only --debug touches it.
		grpclog.SetLoggerV2(grpclog.NewLoggerV2WithVerbosity(c.err, c.err, c.err, 4))
		cmd.InheritedFlags().VisitAll(func(f *pflag.Flag) {
			value := f.Value.String()
			if value != "" && slices.Contains([]string{"password", "auth-jwt-token", "user"}, f.Name) {
				value = "(hidden)" // debug output gets pasted into bug reports
			}
			fmt.Fprintf(c.err, "%s=%s\n", connect.Variable(f.Name), value)
		})
	}
	endpoints, err := g.Targets(c.err)
	if err != nil {
		return nil, nil, fail(codeError, err)
	}
	if flag := g.EmptyFile(cmd.Flags()); flag != "" {
		return nil, nil, failf(codeBadArgs, "empty string is passed to --%s option", flag)
	}
	auth, err := g.Credentials(c.in, c.out)
	if err != nil {
		return nil, nil, fail(codeError, err)
	}
	if !slices.Contains(outputFormats(), g.format) {
		return nil, nil, failf(codeBadFeature, "unsupported output format")
	}
	return g.Spec(endpoints, auth), &output{out: c.out, err: c.err, format: g.format, hex: g.hex}, nil
}

// client combines configure and dial, for the commands that talk to the cluster as a whole.
func (c *ctl) client(cmd *cobra.Command) (*clientv3.Client, *output, error) {
	spec, out, err := c.configure(cmd)
	if err != nil {
		return nil, nil, err
	}
	cli, err := c.dial(cmd.Context(), spec)
	return cli, out, err
}

// open is client with the context of a short command, for those that ask the cluster and print the
// answer. Both end with the command.
func (c *ctl) open(cmd *cobra.Command) (context.Context, *clientv3.Client, *output, error) {
	cli, out, err := c.client(cmd)
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := c.timeout(cmd)
	c.ends = append(c.ends, cancel)
	return ctx, cli, out, nil
}

// dial makes a client, closed when the command ends. It does not wait for a connection: an
// unreachable server shows at the first RPC.
func (c *ctl) dial(ctx context.Context, spec *clientv3.ConfigSpec) (*clientv3.Client, error) {
	lg := zap.NewNop()
	if c.global.Debug {
		var err error
		if lg, err = logutil.CreateDefaultZapLogger(zap.DebugLevel); err != nil {
			return nil, fail(codeError, err)
		}
		lg = lg.Named("etcd-client")
	}
	cfg, err := clientv3.NewClientConfig(spec, lg)
	if err != nil {
		return nil, fail(codeBadArgs, err)
	}
	cfg.Logger = lg
	cfg.Context = ctx
	c.tls = cfg.TLS
	cli, err := clientv3.New(*cfg)
	if err != nil {
		return nil, fail(codeBadConnection, err)
	}
	c.ends = append(c.ends, func() { cli.Close() })
	return cli, nil
}

// timeout is the context of a short command. Call it after configure, which may set the timeout
// from the environment.
func (c *ctl) timeout(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	return context.WithTimeout(cmd.Context(), c.global.CommandTimeout)
}

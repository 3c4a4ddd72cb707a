package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.etcd.io/etcd/client/pkg/v3/logutil"
	"go.etcd.io/etcd/client/pkg/v3/srv"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/grpclog"
)

// globalFlags are the flags every command takes; each may also come from the environment as
// ETCDCTL_<NAME>.
type globalFlags struct {
	endpoints          []string
	debug              bool
	format             string
	hex                bool
	dialTimeout        time.Duration
	commandTimeout     time.Duration
	keepAliveTime      time.Duration
	keepAliveTimeout   time.Duration
	maxSendBytes       int
	maxRecvBytes       int
	insecureTransport  bool
	insecureDiscovery  bool
	insecureSkipVerify bool
	cert, key, cacert  string
	token              string
	user, password     string
	srvDomain, srvName string
}

func (g *globalFlags) register(root *cobra.Command) {
	fs := root.PersistentFlags()
	fs.StringSliceVar(&g.endpoints, "endpoints", []string{"127.0.0.1:2379"}, "servers to talk to, comma separated")
	fs.BoolVar(&g.debug, "debug", false, "show the client's own log and its settings on standard error")
	fs.StringVarP(&g.format, "write-out", "w", "simple", "output format: "+strings.Join(outputFormats(), ", "))
	fs.BoolVar(&g.hex, "hex", false, "print keys, values and IDs in hexadecimal")
	fs.DurationVar(&g.dialTimeout, "dial-timeout", 2*time.Second, "how long logging in may take")
	fs.DurationVar(&g.commandTimeout, "command-timeout", 5*time.Second, "how long a short command may take")
	fs.DurationVar(&g.keepAliveTime, "keepalive-time", 2*time.Second, "send a ping on a connection idle for this long")
	fs.DurationVar(&g.keepAliveTimeout, "keepalive-timeout", 6*time.Second, "give a connection up when a ping is unanswered for this long")
	fs.IntVar(&g.maxSendBytes, "max-request-bytes", 0, "largest request to send, in bytes (0: 2 MiB)")
	fs.IntVar(&g.maxRecvBytes, "max-recv-bytes", 0, "largest response to accept, in bytes (0: 2 GiB)")
	fs.BoolVar(&g.insecureTransport, "insecure-transport", true, "connect without TLS when no certificate is given")
	fs.BoolVar(&g.insecureDiscovery, "insecure-discovery", true, "accept http endpoints from DNS discovery")
	fs.BoolVar(&g.insecureSkipVerify, "insecure-skip-tls-verify", false, "do not verify the server's certificate (for tests only)")
	fs.StringVar(&g.cert, "cert", "", "file with the client's TLS certificate")
	fs.StringVar(&g.key, "key", "", "file with the client's TLS key")
	fs.StringVar(&g.cacert, "cacert", "", "file with the CA certificates that vouch for the server")
	fs.StringVar(&g.token, "auth-jwt-token", "", "JWT to authenticate with, instead of --user")
	fs.StringVar(&g.user, "user", "", "name[:password] to authenticate with; the password is asked for if absent")
	fs.StringVar(&g.password, "password", "", "password for --user")
	fs.StringVarP(&g.srvDomain, "discovery-srv", "d", "", "domain whose SRV records name the endpoints")
	fs.StringVar(&g.srvName, "discovery-srv-name", "", "service name to look for in those records")
	// The name is registered a few lines above, so this cannot fail.
	_ = root.RegisterFlagCompletionFunc("write-out", choices(outputFormats()...))
}

func choices(values ...string) cobra.CompletionFunc {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return values, cobra.ShellCompDirectiveDefault
	}
}

// fromEnvironment sets the flags of cmd that ETCDCTL_* variables name. A variable beside its flag
// is refused, as etcdctl does: silently preferring one of them has sent commands to the wrong
// cluster.
func (c *ctl) fromEnvironment(cmd *cobra.Command) error {
	const prefix = "ETCDCTL_"
	fs := cmd.InheritedFlags()
	known := map[string]bool{
		// Read elsewhere, or meant for etcdctl 3.3 and older.
		prefix + "WATCH_KEY": true, prefix + "WATCH_RANGE_END": true, prefix + "API": true,
	}
	var shadowed string
	fs.VisitAll(func(f *pflag.Flag) {
		env := prefix + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		known[env] = true
		value, set := os.LookupEnv(env)
		if f.Changed {
			if set {
				shadowed = env
			}
			return
		}
		if value == "" {
			return
		}
		if err := fs.Set(f.Name, value); err != nil {
			fmt.Fprintf(c.err, "Warning: ignoring environment variable %s: %v\n", env, err)
		}
	})
	if shadowed != "" {
		return failf(codeError, "conflicting environment variable %s is shadowed by corresponding command-line flag (either unset environment variable or disable flag)", shadowed)
	}
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, prefix) && !known[name] {
			fmt.Fprintf(c.err, "Warning: unrecognized environment variable %s\n", name)
		}
	}
	return nil
}

// configure turns flags and environment into a client configuration and an output.
func (c *ctl) configure(cmd *cobra.Command) (*clientv3.ConfigSpec, *output, error) {
	if err := c.fromEnvironment(cmd); err != nil {
		return nil, nil, err
	}
	g := &c.global
	if g.debug {
		// grpc's logger is process-wide; only --debug touches it.
		grpclog.SetLoggerV2(grpclog.NewLoggerV2WithVerbosity(c.err, c.err, c.err, 4))
		cmd.InheritedFlags().VisitAll(func(f *pflag.Flag) {
			value := f.Value.String()
			if value != "" && slices.Contains([]string{"password", "auth-jwt-token", "user"}, f.Name) {
				value = "(hidden)" // debug output gets pasted into bug reports
			}
			fmt.Fprintf(c.err, "ETCDCTL_%s=%s\n", strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_")), value)
		})
	}
	endpoints, err := c.endpoints()
	if err != nil {
		return nil, nil, fail(codeError, err)
	}
	for _, file := range []struct{ flag, value string }{{"cert", g.cert}, {"key", g.key}, {"cacert", g.cacert}} {
		if file.value == "" && cmd.Flags().Changed(file.flag) {
			return nil, nil, failf(codeBadArgs, "empty string is passed to --%s option", file.flag)
		}
	}
	secure := &clientv3.SecureConfig{
		Cert: g.cert, Key: g.key, Cacert: g.cacert,
		InsecureTransport:  g.insecureTransport,
		InsecureSkipVerify: g.insecureSkipVerify,
	}
	if !g.insecureDiscovery {
		secure.ServerName = g.srvDomain
	}
	auth, err := c.credentials()
	if err != nil {
		return nil, nil, fail(codeError, err)
	}
	if !slices.Contains(outputFormats(), g.format) {
		return nil, nil, failf(codeBadFeature, "unsupported output format")
	}
	spec := &clientv3.ConfigSpec{
		Endpoints:          endpoints,
		DialTimeout:        g.dialTimeout,
		KeepAliveTime:      g.keepAliveTime,
		KeepAliveTimeout:   g.keepAliveTimeout,
		MaxCallSendMsgSize: g.maxSendBytes,
		MaxCallRecvMsgSize: g.maxRecvBytes,
		Secure:             secure,
		Auth:               auth,
	}
	return spec, &output{out: c.out, err: c.err, format: g.format, hex: g.hex}, nil
}

// client is configure and dial in one, for the commands that talk to the cluster as a whole.
func (c *ctl) client(cmd *cobra.Command) (*clientv3.Client, *output, error) {
	spec, out, err := c.configure(cmd)
	if err != nil {
		return nil, nil, err
	}
	cli, err := c.dial(cmd.Context(), spec)
	return cli, out, err
}

// dial makes a client, closed when the command ends. No connection is awaited: an unreachable
// server shows at the first RPC.
func (c *ctl) dial(ctx context.Context, spec *clientv3.ConfigSpec) (*clientv3.Client, error) {
	lg := zap.NewNop()
	if c.global.debug {
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
	c.clients = append(c.clients, cli)
	return cli, nil
}

// timeout is the context of a short command. To be called after configure, which may set the
// timeout from the environment.
func (c *ctl) timeout(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	return context.WithTimeout(cmd.Context(), c.global.commandTimeout)
}

// endpoints come from DNS if a domain is given, else from --endpoints.
func (c *ctl) endpoints() ([]string, error) {
	var found []string
	if c.global.srvDomain != "" {
		srvs, err := srv.GetClient("etcd-client", c.global.srvDomain, c.global.srvName)
		if err != nil {
			return nil, err
		}
		for _, ep := range srvs.Endpoints {
			if !c.global.insecureDiscovery && strings.HasPrefix(ep, "http://") {
				fmt.Fprintf(c.err, "ignoring discovered insecure endpoint %q\n", ep)
				continue
			}
			found = append(found, ep)
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	for _, ep := range c.global.endpoints {
		found = append(found, strings.TrimSpace(ep))
	}
	return found, nil
}

// credentials is nil when the command line names no user.
func (c *ctl) credentials() (*clientv3.AuthConfig, error) {
	g := &c.global
	switch {
	case g.token != "":
		return &clientv3.AuthConfig{Token: g.token}, nil
	case g.user == "":
		return nil, nil
	case g.password != "":
		return &clientv3.AuthConfig{Username: g.user, Password: g.password}, nil
	}
	if name, password, ok := strings.Cut(g.user, ":"); ok {
		return &clientv3.AuthConfig{Username: name, Password: password}, nil
	}
	password, err := c.askPassword("Password: ")
	if err != nil {
		return nil, err
	}
	g.password = password // asked once for each command line
	return &clientv3.AuthConfig{Username: g.user, Password: password}, nil
}

// askPassword reads one line from standard input, without echo if that is a terminal, and no byte
// more: what follows may be a value. An input that ends is an empty line, as with etcdctl.
func (c *ctl) askPassword(prompt string) (string, error) {
	fmt.Fprint(c.out, prompt)
	defer fmt.Fprintln(c.out)
	restore, err := echoOff(c.in)
	if err != nil {
		return "", err
	}
	if restore != nil {
		defer restore()
	}
	var line []byte
	for b := make([]byte, 1); ; {
		n, err := c.in.Read(b)
		if n == 1 && b[0] != '\n' {
			line = append(line, b[0])
		}
		switch {
		case err != nil && !errors.Is(err, io.EOF):
			return "", fmt.Errorf("failed during password entry: %w", err)
		case err != nil, n == 1 && b[0] == '\n':
			return strings.TrimSpace(string(line)), nil
		}
	}
}

package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/belaydb/belay/internal/daemon"

	"github.com/spf13/cobra"

	"github.com/belaydb/belay/cli/proxy/gateway"
	"github.com/belaydb/belay/internal/interrupt"
	"github.com/belaydb/belay/logsink"
)

// Main runs `belay proxy`, or with name "etcd" what follows etcd's name: grpc-proxy or gateway, and
// start. It returns the exit code; failures have been printed to stderr. After SIGINT or SIGTERM it
// stops in order, and then ends the process by the signal.
func Main(name string, args []string, stdout, stderr io.Writer) int {
	root := command(name, stderr)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	ctx, stop := interrupt.Context(context.Background())
	defer stop()
	err := root.ExecuteContext(ctx)
	if s := interrupt.By(ctx); s != nil && (err == nil || errors.Is(err, context.Canceled)) { // the latter: it was starting
		return interrupt.End(s)
	}
	if err != nil {
		if name != "etcd" {
			fmt.Fprintf(stderr, "belay proxy: %v\n", err)
		} else {
			fmt.Fprintln(stderr, err)
		}
		return 1
	}
	return 0
}

// command is the tree of commands of one name.
func command(name string, stderr io.Writer) *cobra.Command {
	if name != "etcd" {
		root := grpcCommand(strings.ReplaceAll(name, " ", "-"), false, stderr)
		root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: name}
		root.Short = "stand between many clients and a cluster, Belay's or etcd's"
		root.AddCommand(gatewayCommand("gateway", stderr))
		return root
	}
	root := &cobra.Command{Use: "etcd", Short: "etcd server", SilenceUsage: true, SilenceErrors: true}
	grpcProxy := &cobra.Command{Use: "grpc-proxy <subcommand>", Short: "grpc-proxy related command"}
	grpcProxy.AddCommand(grpcCommand("start", true, stderr))
	tcp := &cobra.Command{Use: "gateway <subcommand>", Short: "gateway related command"}
	tcp.AddCommand(gatewayCommand("start", stderr))
	root.AddCommand(grpcProxy, tcp)
	return root
}

func grpcCommand(use string, forEtcds bool, stderr io.Writer) *cobra.Command {
	o := options{forEtcds: forEtcds}
	c := &cobra.Command{Use: use, Short: "start the grpc proxy", Args: noArgs, SilenceUsage: true, SilenceErrors: true}
	o.register(c.Flags())
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := o.check(c.Flags()); err != nil {
			return err
		}
		return logged(stderr, o.debug, func(logger *logsink.Logger) error { return serve(c.Context(), &o, logger) })
	}
	return c
}

func gatewayCommand(use string, stderr io.Writer) *cobra.Command {
	var from discovered
	var cfg gateway.Config
	var ca string
	c := &cobra.Command{Use: use, Short: "start the gateway: TCP connections, passed on as they are", Args: noArgs, SilenceUsage: true, SilenceErrors: true}
	fs := c.Flags()
	fs.StringVar(&cfg.ListenAddr, "listen-addr", "127.0.0.1:23790", "listen address")
	from.register(fs, "DNS domain used to bootstrap initial cluster")
	fs.StringVar(&ca, "trusted-ca-file", "", "path to the client server TLS CA file for verifying the discovered endpoints when discovery-srv is provided")
	fs.StringSliceVar(&cfg.Endpoints, "endpoints", []string{"127.0.0.1:2379"}, "comma separated etcd cluster endpoints")
	fs.DurationVar(&cfg.RetryDelay, "retry-delay", time.Minute, "duration of delay before retrying failed endpoints")
	c.RunE = func(c *cobra.Command, _ []string) error {
		return logged(stderr, false, func(logger *logsink.Logger) error {
			found, records, err := from.find(logger.Logger, ca)
			if err != nil {
				return err
			}
			if len(found) > 0 {
				cfg.Endpoints, cfg.Records = found, records
			}
			cfg.Logger = logger.Logger
			daemon.OutliveLog()
			g, err := gateway.New(c.Context(), cfg)
			if err != nil {
				return err
			}
			daemon.NotifyReady(logger.Logger)
			return g.Run(c.Context())
		})
	}
	return c
}

// noArgs refuses words that are no flags: a flag whose dashes were forgotten would not count.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unexpected %q: there is no such command, and flags begin with --", strings.Join(args, " "))
	}
	return nil
}

// logged runs something with a logger, and closes it.
func logged(stderr io.Writer, debug bool, run func(*logsink.Logger) error) error {
	level := "info"
	if debug {
		level = "debug"
	}
	logger, err := logsink.New(logsink.Config{Level: level, Writer: stderr})
	if err != nil {
		return err
	}
	defer logger.Close()
	return run(logger)
}

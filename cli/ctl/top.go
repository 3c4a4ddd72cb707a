package ctl

import (
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/term"

	"github.com/belaydb/belay/cli/top"
	"github.com/belaydb/belay/internal/interrupt"
)

func topCommand(c *ctl) *cobra.Command {
	var o top.Options
	cmd := &cobra.Command{
		Use:   "top [options]",
		Short: "Shows the cluster at work on the terminal: members, requests, who uses it, events",
		Long: `Shows the cluster at work, again and again: members with their disks and sizes, requests by kind with p50 and p99,
round trips, alarms, what happened and why, and who uses it (prefixes, clients, users, watches). Works on etcd with what
its metrics have. ? shows the keys. Without a terminal, or with --once, it prints one page and ends; -w json prints
what it knows as one JSON object.`,
		GroupID: groupMaintenance,
		Args:    cobra.NoArgs,
	}
	fs := cmd.Flags()
	fs.DurationVar(&o.Every, "every", time.Second, "time between two looks")
	fs.BoolVar(&o.Once, "once", false, "print one page and end")
	fs.BoolVar(&o.Plain, "no-color", os.Getenv("NO_COLOR") != "", "no colours (also: NO_COLOR)")
	fs.StringSliceVar(&o.Live.Metrics, "metrics-urls", nil, "where members answer /metrics, if not on their client URLs")
	cmd.RunE = c.run(func(cmd *cobra.Command, _ []string) error {
		spec, out, err := c.configure(cmd)
		if err != nil {
			return err
		}
		switch {
		case out.format != "simple" && out.format != "json":
			return failf(codeBadFeature, "top prints simple and json")
		case o.Every < 100*time.Millisecond || o.Every > time.Hour:
			return failf(codeBadArgs, "--every %s: 100ms to 1h", o.Every)
		}
		if o.Live.Client, err = clientv3.NewClientConfig(spec, zap.NewNop()); err != nil {
			return fail(codeBadArgs, err)
		}
		ctx, stop := interrupt.Context(cmd.Context())
		defer stop()
		o.Live.Client.Logger, o.Live.Client.Context = zap.NewNop(), ctx
		o.Live.Timeout = min(c.global.CommandTimeout, max(o.Every, 2*time.Second))
		o.JSON, o.In, o.Out, o.Width = out.format == "json", c.in, c.out, 100
		if stdout, ok := terminal(c.out); ok {
			o.Out = stdout // bubbletea asks it for its size
			if width, _, err := term.GetSize(int(stdout.Fd())); err == nil {
				o.Width = width
			}
			keys, ok := c.in.(*os.File)
			o.Once = o.Once || !ok || !term.IsTerminal(int(keys.Fd()))
		} else {
			o.Once = true
		}
		return withoutUser(top.Run(ctx, o))
	})
	return cmd
}

// withoutUser says what to do where the members do not tell a stranger who they are.
func withoutUser(err error) error {
	if err == nil || !strings.Contains(err.Error(), rpctypes.ErrUserEmpty.Error()) {
		return err
	}
	return &exitError{code: codeError, err: err, hint: "Hint: the cluster has users: give --user NAME[:PASSWORD], or ETCDCTL_USER; root sees who uses it, too"}
}

// terminal is what a command writes to, if that is a terminal.
func terminal(out io.Writer) (*os.File, bool) {
	locked, ok := out.(*lockedWriter)
	if !ok {
		return nil, false
	}
	file, ok := locked.w.(*os.File)
	return file, ok && term.IsTerminal(int(file.Fd()))
}

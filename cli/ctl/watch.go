package ctl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// watchFlags are the flags of watch, on the command line and on each line of the interactive mode.
type watchFlags struct {
	prefix, prevKV, progress bool
	interactive              bool
	rev                      int64
}

func (f *watchFlags) register(fs *pflag.FlagSet) {
	fs.BoolVarP(&f.interactive, "interactive", "i", false, "read watch requests from standard input")
	fs.BoolVar(&f.prefix, "prefix", false, "watch all keys that begin with the key")
	fs.Int64Var(&f.rev, "rev", 0, "from this revision on (0: from now on)")
	fs.BoolVar(&f.prevKV, "prev-kv", false, "print what the key held before each event")
	fs.BoolVar(&f.progress, "progress-notify", false, "have the server tell from time to time how far the watch is")
}

// A watchRequest is one watch to start.
type watchRequest struct {
	watchFlags
	keys []string // key and perhaps range end
	exec []string // command to run for each event; empty: none
}

// request makes a request from the words before and after the "--". The key may come from
// ETCDCTL_WATCH_KEY (and ETCDCTL_WATCH_RANGE_END) instead, but not from both.
func (f watchFlags) request(keys, command []string, dash, lastIsDash bool) (watchRequest, error) {
	envKey, envEnd := os.Getenv("ETCDCTL_WATCH_KEY"), os.Getenv("ETCDCTL_WATCH_RANGE_END")
	switch {
	case dash && lastIsDash:
		return watchRequest{}, failf(codeBadArgs, "bad number of arguments (found separator --, but no commands)")
	case envKey != "" && len(keys) > 0:
		return watchRequest{}, failf(codeBadArgs, "bad number of arguments (found conflicting environment key)")
	case envKey != "" && envEnd != "":
		keys = []string{envKey, envEnd}
	case envKey != "":
		keys = []string{envKey}
	}
	if len(keys) == 0 {
		return watchRequest{}, fail(codeBadArgs, errNoWatchKey())
	}
	return watchRequest{watchFlags: f, keys: keys, exec: command}, nil
}

func errNoWatchKey() error { return errors.New("bad number of arguments") }

func (c *ctl) watchCommand() *cobra.Command {
	var flags watchFlags
	cmd := &cobra.Command{
		Use:   "watch [options] [key or prefix] [range_end] [--] [exec-command arg1 arg2 ...]",
		Short: "Prints the changes of a key or a range as they happen",
		Long: `Prints the changes of a key or a range as they happen, until interrupted.

A command behind '--' is run for each event, with ETCD_WATCH_REVISION, ETCD_WATCH_EVENT_TYPE, ETCD_WATCH_KEY and
ETCD_WATCH_VALUE in its environment. In interactive mode each line of standard input is either
"watch [options] <key> [range_end] [-- command]" or "progress".`,
		GroupID: groupKV,
	}
	at := c.atFlag(cmd, "from this time on: 15:04:05, \"2006-01-02 15:04:05\", 2006-01-02T15:04:05Z, or 10m for ten minutes ago")
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		if end := os.Getenv("ETCDCTL_WATCH_RANGE_END"); end != "" && os.Getenv("ETCDCTL_WATCH_KEY") == "" {
			return failf(codeBadArgs, "ETCDCTL_WATCH_KEY is empty but got ETCDCTL_WATCH_RANGE_END=%q", end)
		}
		if flags.interactive {
			if cmd.Flags().Changed("at") {
				return failf(codeBadArgs, "--at is not for the interactive mode")
			}
			return c.watchInteractively(cmd)
		}
		keys, command, dash := args, []string(nil), cmd.ArgsLenAtDash()
		if dash >= 0 {
			keys, command = args[:dash], args[dash:]
		}
		req, err := flags.request(keys, command, dash >= 0, len(command) == 0)
		if err != nil {
			return err
		}
		cli, out, err := c.client(cmd)
		if err != nil {
			return err
		}
		tellSilence(cmd.Context(), c, cli, c.tls)
		if cmd.Flags().Changed("at") {
			ctx, cancel := c.timeout(cmd)
			defer cancel()
			seen, err := at(ctx, cli)
			if err != nil {
				return err
			}
			req.rev = seen + 1
		}
		events, err := req.start(cmd.Context(), cli)
		if err != nil {
			return fail(codeBadArgs, err)
		}
		if err := c.follow(cmd.Context(), events, out, req.exec); err != nil {
			return err
		}
		if cmd.Context().Err() != nil {
			return fail(codeInterrupted, nil)
		}
		return failf(codeInterrupted, "watch is canceled by the server")
	})
	flags.register(cmd.Flags())
	return cmd
}

func (r *watchRequest) start(ctx context.Context, cli *clientv3.Client) (clientv3.WatchChan, error) {
	opts := []clientv3.OpOption{clientv3.WithRev(r.rev)}
	if len(r.keys) == 2 {
		if r.prefix {
			return nil, errors.New("`range_end` and `--prefix` are mutually exclusive")
		}
		opts = append(opts, clientv3.WithRange(r.keys[1]))
	}
	if r.prefix {
		opts = append(opts, clientv3.WithPrefix())
	}
	if r.prevKV {
		opts = append(opts, clientv3.WithPrevKV())
	}
	if r.progress {
		opts = append(opts, clientv3.WithProgressNotify())
	}
	return cli.Watch(clientv3.WithRequireLeader(ctx), r.keys[0], opts...), nil
}

// follow prints what a watch delivers, and runs the command for each event, until the watch ends.
func (c *ctl) follow(ctx context.Context, events clientv3.WatchChan, out *output, command []string) error {
	for resp := range events {
		if resp.Canceled {
			fmt.Fprintf(c.err, "watch was canceled (%v)\n", resp.Err())
			if resp.CompactRevision > 0 {
				fmt.Fprintf(c.err, "Hint: the oldest revision that can be watched is %d\n", resp.CompactRevision)
			}
		}
		if resp.IsProgressNotify() {
			fmt.Fprintf(c.out, "progress notify: %d\n", resp.Header.GetRevision())
		}
		if err := out.show(watchReply(&resp)); err != nil {
			return err
		}
		if len(command) == 0 {
			continue
		}
		for _, ev := range resp.Events {
			cmd := exec.CommandContext(ctx, command[0], command[1:]...)
			cmd.Env = append(os.Environ(),
				fmt.Sprintf("ETCD_WATCH_REVISION=%d", resp.Header.GetRevision()),
				fmt.Sprintf("ETCD_WATCH_EVENT_TYPE=%q", ev.GetType()),
				fmt.Sprintf("ETCD_WATCH_KEY=%q", ev.GetKv().GetKey()),
				fmt.Sprintf("ETCD_WATCH_VALUE=%q", ev.GetKv().GetValue()))
			cmd.Stdout, cmd.Stderr = c.out, c.err
			if err := cmd.Run(); err != nil {
				fmt.Fprintf(c.err, "command %q error (%v)\n", command, err)
				return fail(codeError, nil)
			}
		}
	}
	return nil
}

// watchInteractively starts a watch for each line of standard input; all of them print until the
// input ends.
func (c *ctl) watchInteractively(cmd *cobra.Command) error {
	cli, out, err := c.client(cmd)
	if err != nil {
		return err
	}
	tellSilence(cmd.Context(), c, cli, c.tls)
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	type line struct {
		text string
		err  error
	}
	lines := make(chan line) // what was typed; ends with an error
	go func() {
		in := bufio.NewReader(c.in)
		for {
			text, err := in.ReadString('\n')
			select {
			case lines <- line{strings.TrimSuffix(text, "\n"), err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	failed := make(chan error) // a watch that cannot print, or whose command failed
	for {
		var l line
		select {
		case l = <-lines:
		case err := <-failed:
			return err
		case <-ctx.Done():
			return fail(codeInterrupted, nil)
		}
		if l.err != nil {
			return failf(codeInvalidInput, "error reading watch request line: %w", l.err)
		}
		args, err := splitWords(l.text)
		if err != nil {
			return err
		}
		if len(args) == 0 {
			fmt.Fprintf(c.err, "Invalid command: %s (watch and progress supported)\n", l.text)
			continue
		}
		switch args[0] {
		case "watch":
			if len(args) < 2 && os.Getenv("ETCDCTL_WATCH_KEY") == "" {
				fmt.Fprintf(c.err, "Invalid command %s (command type or key is not provided)\n", l.text)
				continue
			}
			req, err := parseWatchLine(args[1:])
			if err != nil {
				return err
			}
			events, err := req.start(ctx, cli)
			if err != nil {
				fmt.Fprintf(c.err, "Invalid command %s (%v)\n", l.text, err)
				continue
			}
			go func() {
				if err := c.follow(ctx, events, out, req.exec); err != nil {
					select {
					case failed <- err:
					case <-ctx.Done():
					}
				}
			}()
		case "progress":
			if err := cli.RequestProgress(clientv3.WithRequireLeader(ctx)); err != nil {
				return err
			}
		default:
			fmt.Fprintf(c.err, "Invalid command %s (only support watch)\n", l.text)
		}
	}
}

func parseWatchLine(args []string) (watchRequest, error) {
	keys, command := args, []string(nil)
	dash := slices.Index(args, "--")
	if dash >= 0 {
		keys, command = args[:dash], args[dash+1:]
	}
	var flags watchFlags
	fs := pflag.NewFlagSet("watch", pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	flags.register(fs)
	if err := fs.Parse(keys); err != nil {
		return watchRequest{}, fail(codeBadArgs, err)
	}
	return flags.request(fs.Args(), command, dash >= 0, len(command) == 0)
}

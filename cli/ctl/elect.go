package ctl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/belaydb/belay/internal/interrupt"
)

func (c *ctl) electCommand() *cobra.Command {
	var listen bool
	cmd := &cobra.Command{
		Use:     "elect <election-name> [proposal]",
		Short:   "Stands for election, or observes who is elected",
		GroupID: groupConcurrency,
	}
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 && len(args) != 2 {
			return failf(codeBadArgs, "elect takes one election name argument and an optional proposal argument")
		}
		cli, out, err := c.client(cmd)
		switch {
		case err != nil:
			return err
		case len(args) == 1 && !listen:
			return failf(codeBadArgs, "no proposal argument but -l not set")
		case len(args) == 2 && listen:
			return failf(codeBadArgs, "proposal given but -l is set")
		}
		tellSilence(cmd.Context(), c, cli, c.tls)
		session, err := concurrency.NewSession(cli)
		if err != nil {
			return err
		}
		// Only now is there something to give back: until then a signal ends the
		// process, which else would wait for a server without end.
		ctx, stop := untilSignal(cmd.Context())
		defer stop()
		election := concurrency.NewElection(session, args[0])
		if listen {
			return observe(ctx, election, out)
		}
		return campaign(ctx, cli, session, election, args[1], out)
	})
	cmd.Flags().BoolVarP(&listen, "listen", "l", false, "only observe")
	return cmd
}

// untilSignal returns a context that ends at the first SIGINT or SIGTERM, so that what is held can
// be released within interrupt.Grace.
func untilSignal(ctx context.Context) (context.Context, context.CancelFunc) {
	return interrupt.Context(ctx)
}

// giveBack returns the context for releasing what is held after ctx has ended.
func giveBack(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), interrupt.Grace)
}

func observe(ctx context.Context, election *concurrency.Election, out *output) error {
	for resp := range election.Observe(ctx) {
		if err := out.show(rangeReply((*pb.RangeResponse)(resp))); err != nil {
			return err
		}
	}
	if ctx.Err() == nil {
		return errors.New("elect: observer lost")
	}
	return nil
}

func campaign(ctx context.Context, cli *clientv3.Client, session *concurrency.Session, election *concurrency.Election, proposal string, out *output) error {
	if err := election.Campaign(ctx, proposal); err != nil {
		return err
	}
	resp, err := cli.Get(ctx, election.Key())
	if err != nil {
		return err
	}
	if err := out.show(rangeReply((*pb.RangeResponse)(resp))); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-session.Done():
		return errors.New("elect: session expired")
	}
	ctx, cancel := giveBack(ctx)
	defer cancel()
	return election.Resign(ctx)
}

func (c *ctl) lockCommand() *cobra.Command {
	var ttl int
	cmd := &cobra.Command{
		Use:   "lock <lockname> [exec-command arg1 arg2 ...]",
		Short: "Takes a lock and holds it until interrupted, or while a command runs",
		Long: `Takes a lock and holds it until interrupted, or while a command runs. The command finds the lock's key and revision
in ETCD_LOCK_KEY and ETCD_LOCK_REV; its exit code becomes this command's.`,
		GroupID: groupConcurrency,
	}
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return failf(codeBadArgs, "lock takes a lock name argument and an optional command to execute")
		}
		cli, out, err := c.client(cmd)
		if err != nil {
			return err
		}
		tellSilence(cmd.Context(), c, cli, c.tls)
		session, err := concurrency.NewSession(cli, concurrency.WithTTL(ttl))
		if err != nil {
			return err
		}
		// Only now is there something to give back: until then a signal ends the
		// process, which else would wait for a server without end.
		ctx, stop := untilSignal(cmd.Context())
		defer stop()
		mutex := concurrency.NewMutex(session, args[0])
		if err := mutex.Lock(ctx); err != nil {
			return err
		}
		if len(args) > 1 {
			stop() // the lock is held as long as the command runs
			err := c.runLocked(mutex, args[1:])
			ctx, cancel := giveBack(ctx)
			defer cancel()
			unlockErr := mutex.Unlock(ctx)
			if exit, ok := errors.AsType[*exec.ExitError](err); ok {
				return fail(exit.ExitCode(), err)
			}
			if err != nil {
				return err
			}
			return unlockErr
		}
		return hold(ctx, cli, session, mutex, out)
	})
	cmd.Flags().IntVar(&ttl, "ttl", 10, "seconds until the lock is free should this process vanish")
	return cmd
}

// runLocked runs a command. The first signal is for the command: a terminal sends SIGINT to both,
// and SIGTERM is passed on. The second ends this process.
func (c *ctl) runLocked(mutex *concurrency.Mutex, command []string) error {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "ETCD_LOCK_KEY="+mutex.Key(), fmt.Sprintf("ETCD_LOCK_REV=%d", mutex.Header().GetRevision()))
	cmd.Stdout, cmd.Stderr = c.out, c.err
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-ended:
		case s := <-signals:
			if s == syscall.SIGTERM {
				_ = cmd.Process.Signal(s) // it has ended, or this system has no such thing
			}
			select {
			case <-ended:
			case s = <-signals:
				interrupt.Raise(s)
			}
		}
	}()
	return cmd.Wait()
}

// hold prints the lock's key and keeps it until the context ends.
func hold(ctx context.Context, cli *clientv3.Client, session *concurrency.Session, mutex *concurrency.Mutex, out *output) error {
	resp, err := cli.Get(ctx, mutex.Key())
	if err != nil {
		return err
	}
	if len(resp.Kvs) == 0 {
		return errors.New("lock lost on init")
	}
	if err := out.show(rangeReply((*pb.RangeResponse)(resp))); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		ctx, cancel := giveBack(ctx)
		defer cancel()
		return mutex.Unlock(ctx)
	case <-session.Done():
		return errors.New("session expired")
	}
}

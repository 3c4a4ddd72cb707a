package ctl

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/belaydb/belay/cli/connect"
)

// etcdctl's exit codes.
const (
	codeError         = 1   // an RPC or the command failed
	codeBadConnection = 2   // no client could be made; also failures of some lease commands
	codeInvalidInput  = 3   // text on standard input that cannot be parsed (txn, interactive watch)
	codeBadFeature    = 4   // a flag's value that is not supported
	codeInterrupted   = 5   // the server ended a watch; a snapshot failed
	codeBadArgs       = 128 // arguments
)

// exitError ends a command with a code.
type exitError struct {
	code int
	err  error  // printed after "Error: "; nil: the command has printed everything
	hint string // lines printed after the error; empty: none
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func fail(code int, err error) error { return &exitError{code: code, err: err} }

func failf(code int, format string, args ...any) error {
	return &exitError{code: code, err: fmt.Errorf(format, args...)}
}

// ExitCode is the process exit code for the error of executing a Command.
func ExitCode(err error) int {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[*exitError](err); ok {
		return e.code
	}
	return codeError // cobra's own: an unknown command or flag
}

// Main runs one command line. name is what the program is called in help and messages ("etcdctl" or
// "belay ctl"), args the arguments after it. It returns the exit code; failures have been printed
// to stderr. Commands that hold something (elect, lock, check) release it on SIGINT or SIGTERM;
// other commands do not handle signals.
func Main(name string, args []string, stdin io.Reader, stdout, stderr io.Writer) (exitCode int) {
	return MainContext(context.Background(), name, args, stdin, stdout, stderr)
}

// MainContext is Main for a caller that may stop the command: when ctx ends, so do its RPCs and
// watches.
func MainContext(ctx context.Context, name string, args []string, stdin io.Reader, stdout, stderr io.Writer) (exitCode int) {
	root := Command(name, stdin, stdout, stderr)
	root.InitDefaultHelpCmd()
	root.SetArgs(connect.Unabbreviate(root, args))
	cmd, err := root.ExecuteContextC(ctx)
	_, told := errors.AsType[*exitError](err)
	switch {
	case err == nil || told:
	case !strings.HasPrefix(err.Error(), "unknown command"):
		cmd.PrintErrln(cmd.UsageString()) // cobra would print it to standard output
	}
	return ExitCode(err)
}

// A ctl is one command line being run: where it reads and writes, its global flags and the clients
// it has opened.
type ctl struct {
	name   string
	in     io.Reader
	out    io.Writer
	err    io.Writer
	global globalFlags
	ends   []func()    // called when the command ends, the last first
	tls    *tls.Config // of the last client; nil: none
	silent []string    // endpoints that did not answer each
}

// Command builds the command tree. Executing it returns an error for ExitCode; the error has been
// printed. Abbreviated command names are Main's.
func Command(name string, stdin io.Reader, stdout, stderr io.Writer) *cobra.Command {
	var lock sync.Mutex // stdout and stderr may be one file, and interactive watches print concurrently
	c := &ctl{name: name, in: stdin, out: &lockedWriter{&lock, stdout}, err: &lockedWriter{&lock, stderr}}

	root := &cobra.Command{
		Use:         strings.ReplaceAll(name, " ", "-"),
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: name},
		Short:       "The command line client for etcd's v3 API.",
		// Main prints it.
		SilenceUsage: true,
	}
	root.SetIn(c.in)
	root.SetOut(c.out)
	root.SetErr(c.err)
	c.global.register(root)

	root.AddGroup(
		&cobra.Group{ID: groupKV, Title: "Key-value commands"},
		&cobra.Group{ID: groupMaintenance, Title: "Cluster maintenance commands"},
		&cobra.Group{ID: groupAuth, Title: "Authentication commands"},
		&cobra.Group{ID: groupConcurrency, Title: "Concurrency commands"},
		&cobra.Group{ID: groupUtility, Title: "Utility commands"},
	)
	backup := connect.BeyondEtcd(backupCommand(c))
	root.AddCommand(
		c.getCommand(), c.putCommand(), c.delCommand(), c.txnCommand(), c.compactionCommand(), c.watchCommand(), c.leaseCommand(),
		connect.BeyondEtcd(c.historyCommand()), connect.BeyondEtcd(c.diffCommand()), connect.BeyondEtcd(c.restoreKeyCommand()),
		c.alarmCommand(), c.defragCommand(), c.downgradeCommand(), c.endpointCommand(), c.moveLeaderCommand(), c.memberCommand(), c.snapshotCommand(), backup, connect.BeyondEtcd(topCommand(c)),
		c.lockCommand(), c.electCommand(),
		c.checkCommand(), c.makeMirrorCommand(), c.versionCommand(), c.completionCommand(), c.optionsCommand(),
	)
	root.AddCommand(c.authCommands()...)
	completer{c}.register(root)
	root.SetHelpCommandGroupID(groupUtility)
	unknown := func(err error) error { return fail(codeBadArgs, err) }
	if name == "etcdctl" { // its own groups print their help, and succeed
		connect.RefuseUnknown(backup, unknown)
	} else {
		connect.RefuseUnknown(root, unknown)
	}

	root.PersistentFlags().VisitAll(func(f *pflag.Flag) { f.Hidden = true })
	root.Flags().BoolP("help", "h", false, "help for "+name)
	root.Flags().Lookup("help").Hidden = true
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		help(cmd, args)
		fmt.Fprintf(cmd.OutOrStdout(), "Use \"%s options\" for a list of global command-line options (applies to all commands).\n", name)
	})
	return root
}

// The groups of the help text.
const (
	groupKV          = "kv"
	groupAuth        = "auth"
	groupMaintenance = "cluster maintenance"
	groupConcurrency = "concurrency"
	groupUtility     = "utility"
)

// run adapts a command's body: it prints its failure the way etcdctl does and ends what it opened.
func (c *ctl) run(body func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		defer func() {
			for _, end := range slices.Backward(c.ends) {
				end()
			}
			c.ends = nil
		}()
		err := body(cmd, args)
		if err == nil {
			return nil
		}
		e, ok := errors.AsType[*exitError](err)
		if !ok {
			e = &exitError{code: codeError, err: err}
		}
		if e.err != nil {
			fmt.Fprintln(c.err, "Error:", e.err)
			if e.hint == "" {
				e.hint = c.unreachable(e.err)
			}
		}
		if e.hint != "" {
			fmt.Fprintln(c.err, e.hint)
		}
		return e
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/belaydb/belay/cli/bench/load"
	"github.com/belaydb/belay/cli/connect"
	"github.com/belaydb/belay/internal/interrupt"
)

// Exit codes.
const (
	codeOK          = 0
	codeFailed      = 1   // no request succeeded, or the run could not begin
	codeUsage       = 2   // the command line
	codeInterrupted = 130 // by Ctrl-C; what was measured has been printed
)

// usageError is what is wrong with a command line: the flag, and what to do.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// A bench is one command line being run.
type bench struct {
	name     string
	in       io.Reader
	out, err io.Writer

	endpoints                 []string
	conns, clients            uint
	precise, sample           bool
	cert, key, cacert         string
	skipVerify, targetLeader  bool
	user                      string
	dialTimeout, syncInterval time.Duration

	perfdash bool // etcd 3.7's --report-perfdash

	timeout time.Duration
	versus  []string
	repeat  int
	report  string
	output  string
	// perSecond is as given if perSecondSet; else a line is printed on a terminal.
	perSecond, perSecondSet bool

	changed map[string]string // flags that were given
	several bool              // there is more than one run

	password string // asked for once
	code     int
}

// loop are the flags of the sub-commands that do one operation again and again.
type loop struct {
	total    int
	rate     int
	warmUp   time.Duration
	duration time.Duration
	open     bool
}

// Main runs one command line; name is what the program is called in help and messages, args are what
// follows it. It returns the exit code. SIGINT and SIGTERM end a run, and what it has measured is
// printed.
func Main(name string, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := interrupt.Context(context.Background())
	defer stop()
	return MainContext(ctx, name, args, stdin, stdout, stderr)
}

// MainContext is Main for a caller that has its own way to end a run.
func MainContext(ctx context.Context, name string, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	b := &bench{name: name, in: stdin, out: stdout, err: stderr}
	root := b.command()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var usage usageError
	switch {
	case err == nil:
		return b.code
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown"):
		fmt.Fprintf(stderr, "Error: %v\nRun `%s --help` for the flags.\n", err, name)
		return codeUsage
	}
	fmt.Fprintf(stderr, "Error: %v\n", err)
	return codeFailed
}

func (b *bench) command() *cobra.Command {
	root := &cobra.Command{
		Use:         "benchmark",
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: b.name},
		Short:       "A low-level benchmark of a cluster, Belay's or etcd's.",
		Long: `A low-level benchmark of a cluster, Belay's or etcd's: the sub-commands, flags and output of etcd's benchmark tool, and more.
It writes to the cluster that it measures: do not point it at one whose data matters.`,
		// Main prints them.
		SilenceUsage: true, SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			b.perSecondSet = cmd.Flags().Changed("per-second")
			return b.validate(cmd)
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	fs := root.PersistentFlags()
	fs.StringSliceVar(&b.endpoints, "endpoints", []string{"127.0.0.1:2379"}, "servers to talk to, comma separated; connections go round them")
	fs.UintVar(&b.conns, "conns", 1, "connections in all")
	fs.UintVar(&b.clients, "clients", 1, "clients in all, spread over the connections")
	fs.BoolVar(&b.precise, "precise", false, "print all digits of a number")
	fs.BoolVar(&b.sample, "sample", false, "print latencies and throughput of each second")
	fs.StringVar(&b.cert, "cert", "", "file with the client's TLS certificate")
	fs.StringVar(&b.key, "key", "", "file with the client's TLS key")
	fs.StringVar(&b.cacert, "cacert", "", "file with the CA certificates that vouch for the servers")
	fs.BoolVar(&b.skipVerify, "insecure-skip-tls-verify", false, "do not verify the servers' certificates")
	fs.StringVar(&b.user, "user", "", "name[:password]; the password is asked for if absent")
	fs.DurationVar(&b.dialTimeout, "dial-timeout", 0, "how long logging in may take (0: 5s)")
	fs.BoolVar(&b.targetLeader, "target-leader", false, "connect to the leader alone")
	fs.DurationVar(&b.syncInterval, "auto-sync-interval", 0, "how often the endpoints are replaced by the cluster's members (0: never)")

	fs.BoolVar(&b.perfdash, "report-perfdash", false, "also write a file of percentiles for Kubernetes' perfdash, into the folder $ARTIFACTS or ./_artifacts")

	fs.DurationVar(&b.timeout, "timeout", 0, "count a request that takes longer as failed (0: wait for it)")
	fs.StringSliceVar(&b.versus, "versus", nil, "other servers to measure in turn with --endpoints, and to compare with them")
	fs.IntVar(&b.repeat, "repeat", 0, "how often each side is measured (0: once, with --versus 3 times)")
	fs.StringVar(&b.report, "report", "", "also write a page (.html) or a picture (.svg) to this file: throughput over time, latency by percentile, values' sizes side by side")
	fs.StringVarP(&b.output, "output", "o", "text", "text as etcd's tool prints it, or json")
	fs.BoolVar(&b.perSecond, "per-second", false, "print a line each second on standard error (default: if that is a terminal)")

	root.AddCommand(b.putCommand(), b.rangeCommand(), b.txnPutCommand(), b.txnMixedCommand(), b.stmCommand(),
		b.watchCommand(), b.watchGetCommand(), b.watchLatencyCommand(), b.leaseCommand(), b.mixCommand(), b.mvccCommand())
	if b.name != "benchmark" { // whose mvcc prints its help, and succeeds
		connect.RefuseUnknown(root, func(err error) error { return usageError{err} })
	}
	return root
}

func (b *bench) validate(cmd *cobra.Command) error {
	const most = 1 << 20
	switch {
	case b.clients == 0:
		return usagef("--clients=0: give 1 or more")
	case b.conns == 0:
		return usagef("--conns=0: give 1 or more")
	case b.clients > most:
		return usagef("--clients=%d: give at most %d; for more requests without an answer use more processes", b.clients, most)
	case b.conns > most:
		return usagef("--conns=%d: give at most %d", b.conns, most)
	case len(b.endpoints) == 0:
		return usagef("--endpoints is empty: give at least one host:port")
	case b.timeout < 0:
		return usagef("--timeout=%v: give 0 or more", b.timeout)
	case b.repeat < 0 || b.repeat > 1000:
		return usagef("--repeat=%d: give 1 to 1000", b.repeat)
	case b.output != "text" && b.output != "json":
		return usagef("--output=%s: give text or json", b.output)
	case b.report != "" && !strings.HasSuffix(b.report, ".html") && !strings.HasSuffix(b.report, ".svg"):
		return usagef("--report=%s: give a name that ends in .html or .svg", b.report)
	case cmd.Flags().Changed("versus") && len(b.versus) == 0:
		return usagef("--versus is empty: give the other side's host:port, comma separated")
	case (b.cert == "") != (b.key == ""):
		return usagef("--cert and --key belong together: give both or neither")
	}
	for flag, endpoints := range map[string][]string{"endpoints": b.endpoints, "versus": b.versus} {
		for i, ep := range endpoints {
			if endpoints[i] = strings.TrimSpace(ep); endpoints[i] == "" {
				return usagef("--%s=%s: an endpoint is empty; give host:port, comma separated", flag, strings.Join(endpoints, ","))
			}
		}
	}
	return nil
}

// register adds the flags of a loop. what is the operation's name in its texts; etcd's tool has no
// --rate for keepalives.
func (l *loop) register(fs *pflag.FlagSet, what string) {
	fs.IntVar(&l.total, "total", 10000, "how many "+what+" in all")
	fs.IntVar(&l.rate, "rate", 0, "at most this many "+what+" a second (0: no limit)")
	fs.BoolVar(&l.open, "open-loop", false, "send at --rate whatever is answered, and count a latency from when its request was due")
	fs.DurationVar(&l.warmUp, "warm-up", 0, "run for so long before anything is counted")
	fs.DurationVar(&l.duration, "duration", 0, "run for so long, instead of until --total; with both, until the first of them")
}

// options are what the flags say; fs has them.
func (l *loop) options(b *bench, fs *pflag.FlagSet) (load.Options, error) {
	o := load.Options{
		Clients: int(b.clients), Total: int64(l.total), Duration: l.duration, WarmUp: l.warmUp, Rate: float64(l.rate), Open: l.open,
		Timeout: b.timeout, Describe: describe,
	}
	switch {
	case l.total < 0 || l.total == 0 && l.duration == 0:
		return o, usagef("--total=%d: give 1 or more, or a --duration", l.total)
	case l.rate < 0:
		return o, usagef("--rate=%d: give the requests a second, or 0 for no limit", l.rate)
	case l.open && l.rate == 0:
		return o, usagef("--open-loop needs a --rate: how many requests are due each second")
	case l.warmUp < 0:
		return o, usagef("--warm-up=%v: give 0 or more", l.warmUp)
	case l.duration < 0:
		return o, usagef("--duration=%v: give 0 or more", l.duration)
	}
	if l.duration > 0 && !fs.Changed("total") {
		o.Total = 0
	}
	return o, nil
}

// atLeast checks a number of a flag.
func atLeast(least int, flag string, value int) error {
	if value < least || value > math.MaxInt32 {
		return usagef("--%s=%d: give a number from %d to %d", flag, value, least, math.MaxInt32)
	}
	return nil
}

package dev

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// FaultCommand is the word behind "belay dev" that breaks something in a cluster that runs.
const FaultCommand = "fault"

const defaultDataDir = "belay-dev"

const usage = `belay dev runs a cluster on this machine, each member a process of its own, until Ctrl-C.

Usage:
  belay dev [flags] [-- flags for every member's "belay server"]
  belay dev fault [--data-dir DIR] COMMAND     breaks something in a cluster that runs: "belay dev fault --help"

While it runs it takes commands, each on a line: kill m2, start m2, partition leader for 10s, disk m3 stall, heal, status,
help. Each says what to watch for. From another terminal "belay dev fault" takes the same. Behind "--", --auto-tls or
--cert-file make clients use https, --peer-auto-tls or --peer-cert-file peers.

Flags:
  --members N       how many members (default 3)
  --data-dir DIR    where they keep their data, kept from run to run (default belay-dev)
  --clean           start afresh: remove first what an earlier belay dev left in the data directory
  --base-port PORT  use PORT, PORT+1 for the first member's clients and peers, the next two for the second, ...
                    (default: clients 2379, 22379, 32379, ..., peers 2380, 22380, 32380, ...)
  --full-log        show each line of the members' logs as it is, on a terminal too; otherwise a terminal shows warnings
                    and errors, a row each, and DIR/m1.log, ... have everything
  --no-color        no colours, even on a terminal (also: set NO_COLOR)
`

// Options say what cluster to run.
type Options struct {
	Members    int      // at least 1
	DataDir    string   // made if it is not there
	Clean      bool     // remove an earlier cluster from DataDir first
	BasePort   int      // first of 2*Members ports; 0: 2379 and 2380, plus 20000, plus 30000, ...
	ServerArgs []string // further flags for each member

	Program    string           // the belay binary
	Interrupts <-chan os.Signal // the first stops the cluster, the second kills it
	Grace      time.Duration    // how long a member may take to stop; 0: 10 s
	Colour     bool
	Compact    bool      // show only what a person wants to see of the logs, and keep them whole in files
	Input      io.Reader // commands, a line each; nil: there are none
	Stdout     io.Writer // what belay dev itself says
	Stderr     io.Writer // the members' logs and errors
}

// Main runs `belay dev` with the arguments behind "dev" and returns the exit code: 0 when it was
// stopped, 1 when the cluster could not start or a member failed, 2 for flags that make no sense.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) (exitCode int) {
	if len(args) > 0 && args[0] == FaultCommand {
		return faultMain(args[1:], stdout, stderr)
	}
	opts, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, usage)
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "belay dev: %v\nRun 'belay dev --help' for usage.\n", err)
		return 2
	}
	opts.Program, err = os.Executable()
	if err != nil {
		fmt.Fprintf(stderr, "belay dev: cannot find the belay binary to start members with: %v\n", err)
		return 1
	}
	interrupts := make(chan os.Signal, 2)
	signal.Notify(interrupts, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(interrupts)
	opts.Interrupts = interrupts
	opts.Stdout, opts.Stderr = stdout, stderr
	opts.Colour = opts.Colour && isTerminal(stderr)
	opts.Compact = opts.Compact && isTerminal(stderr)
	if takesCommands(stdin) {
		opts.Input = stdin
		mayRead()
	}
	if err := Run(opts); err != nil {
		fmt.Fprintf(stderr, "belay dev: %v\n", err)
		return 1
	}
	return 0
}

func parse(args []string) (Options, error) {
	var opts Options
	var plain, full bool
	fs := flag.NewFlagSet("belay dev", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.IntVar(&opts.Members, "members", 3, "")
	fs.StringVar(&opts.DataDir, "data-dir", defaultDataDir, "")
	fs.BoolVar(&opts.Clean, "clean", false, "")
	fs.IntVar(&opts.BasePort, "base-port", 0, "")
	fs.BoolVar(&plain, "no-color", os.Getenv("NO_COLOR") != "", "")
	fs.BoolVar(&full, "full-log", false, "")
	// What follows "--" is for the members; package flag cannot tell it from a forgotten dash.
	own, theirs := args, []string(nil)
	for i, arg := range args {
		if arg == "--" {
			own, theirs = args[:i], args[i+1:]
			break
		}
	}
	if err := fs.Parse(own); err != nil {
		return opts, err
	}
	if fs.NArg() > 0 {
		return opts, fmt.Errorf("unexpected argument %q (flags for the members go behind \"--\")", fs.Arg(0))
	}
	opts.ServerArgs = theirs
	opts.Colour, opts.Compact = !plain, !full
	return opts, opts.validate()
}

func (o *Options) validate() error {
	if o.Members < 1 {
		return fmt.Errorf("--members=%d: a cluster has at least one member", o.Members)
	}
	if o.Members > 50 {
		return fmt.Errorf("--members=%d: more than 50 processes help nobody", o.Members)
	}
	if o.DataDir == "" {
		return errors.New("--data-dir must not be empty")
	}
	if last := o.members()[o.Members-1].peerPort; last > 65535 {
		if o.BasePort == 0 {
			return fmt.Errorf("--members=%d: the default ports reach only for 6 members; choose others with --base-port", o.Members)
		}
		return fmt.Errorf("--base-port=%d: with %d members the last port would be %d, beyond 65535", o.BasePort, o.Members, last)
	}
	if o.BasePort < 0 {
		return fmt.Errorf("--base-port=%d: a port is between 1 and 65535", o.BasePort)
	}
	return nil
}

// takesCommands reports whether commands may come from r: a terminal or a pipe, not /dev/null or a
// file.
func takesCommands(r io.Reader) bool {
	f, ok := r.(*os.File)
	if !ok {
		return r != nil
	}
	if _, ok := terminalColumns(f); ok {
		return true
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeNamedPipe != 0
}

// columns is the width of the terminal w.
func columns(w io.Writer) int {
	if f, ok := w.(*os.File); ok {
		if n, ok := terminalColumns(f); ok && n > 0 {
			return n
		}
	}
	return defaultColumns
}

// isTerminal is true for character devices: a terminal or /dev/null, for which it does not matter.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

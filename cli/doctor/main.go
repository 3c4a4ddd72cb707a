package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/term"

	"github.com/belaydb/belay/cli/connect"
	"github.com/belaydb/belay/cli/doctor/report"
	"github.com/belaydb/belay/internal/interrupt"
)

// A doctor is one command line being run.
type doctor struct {
	in       io.Reader
	out, err io.Writer
	connect  connect.Flags
	output   string                            // text or json
	html     string                            // a file to write the page to; empty: none
	plain    bool                              // no colours
	code     int                               // exit code of what was found
	cluster  map[*cobra.Command]*pflag.FlagSet // of each command that asks a cluster
}

// usageError is what is wrong with a command line.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// Main runs one command line, args behind "belay doctor", and returns the exit code. SIGINT and
// SIGTERM end it.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := interrupt.Context(context.Background())
	defer stop()
	return MainContext(ctx, args, stdin, stdout, stderr)
}

// MainContext is Main for a caller that has its own way to end a command.
func MainContext(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	d := &doctor{in: stdin, out: stdout, err: stderr, cluster: map[*cobra.Command]*pflag.FlagSet{}}
	root := d.command()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var usage usageError
	switch {
	case err == nil:
		return d.code
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown"):
		fmt.Fprintf(stderr, "Error: %v\n", err)
		return report.CodeUsage
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = errors.New("interrupted: there is nothing to say yet")
	}
	fmt.Fprintf(stderr, "Error: %v\n", err)
	return report.CodeUnknown
}

func (d *doctor) command() *cobra.Command {
	root := &cobra.Command{
		Use:         "belay-doctor",
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: "belay doctor"},
		Short:       "Says which member is in trouble, why, and what to do; for Belay and for any etcd.",
		Long: `Says which member is in trouble, why, and what to do; for Belay and for any etcd. Without a command it looks at the
cluster at --endpoints as it runs, for some seconds, and changes nothing in it.

The exit code is 0 if all is well, 1 for warnings, 2 for what is critical, 3 if what was asked for could not be looked
at, 4 if the command line is wrong.`,
		Example: `  belay doctor --endpoints 10.0.0.1:2379 --html page.html
  belay doctor logs m1.log m2.log m3.log
  belay doctor disk /var/lib/etcd`,
		// Main prints them.
		SilenceUsage: true, SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if _, any := cmd.Annotations[anyOutput]; !any && d.output != "text" && d.output != "json" {
				return usagef("--output %q: text or json", d.output)
			}
			return nil
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	fs := root.PersistentFlags()
	fs.StringVarP(&d.output, "output", "o", "text", "text for people, json for scripts")
	fs.StringVar(&d.html, "html", "", "also write a page to this file, with pictures, that needs no network")
	fs.BoolVar(&d.plain, "no-color", os.Getenv("NO_COLOR") != "", "no colours, even on a terminal (also: NO_COLOR)")
	d.live(root)
	root.AddCommand(d.histogramCommand(), d.diskCommand(), d.networkCommand(), d.clockCommand())
	root.AddCommand(d.logsCommand(), d.neighboursCommand(), d.configCommand(), d.followCommand())
	root.AddCommand(d.rulesCommand(), d.dashboardCommand())
	return root
}

// asks adds the flags that say which cluster is asked.
func (d *doctor) asks(cmd *cobra.Command) {
	fs := pflag.NewFlagSet("cluster", pflag.ContinueOnError)
	d.connect.Register(fs)
	cmd.Flags().AddFlagSet(fs)
	d.cluster[cmd] = fs
}

// configured takes the environment into the flags of asks, and returns what clientv3 makes a client
// from. It asks for a password that is missing.
func (d *doctor) configured(cmd *cobra.Command) (*clientv3.Config, error) {
	if err := connect.FromEnvironment(d.cluster[cmd], d.err); err != nil {
		return nil, usageError{err}
	}
	if flag := d.connect.EmptyFile(cmd.Flags()); flag != "" {
		return nil, usagef("--%s names no file", flag)
	}
	endpoints, err := d.connect.Targets(d.err)
	if err != nil {
		return nil, err
	}
	auth, err := d.connect.Credentials(d.in, d.err)
	if err != nil {
		return nil, err
	}
	cfg, err := clientv3.NewClientConfig(d.connect.Spec(endpoints, auth), zap.NewNop())
	if err != nil {
		return nil, usageError{err}
	}
	cfg.Logger, cfg.Context = zap.NewNop(), cmd.Context()
	return cfg, nil
}

// print gives the report in the forms that the flags ask for, and remembers the exit code.
func (d *doctor) print(r *report.Report) error {
	d.code = r.ExitCode()
	// What was found is printed even if the page cannot be written.
	return errors.Join(d.show(r), d.page(r))
}

// page writes the report into the file of --html, if there is one.
func (d *doctor) page(r *report.Report) error {
	if d.html == "" {
		return nil
	}
	f, err := os.OpenFile(d.html, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(r.HTML(f), f.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", d.html, err)
	}
	return nil
}

func (d *doctor) show(r *report.Report) error {
	if d.output == "json" {
		return r.JSON(d.out)
	}
	style := report.Style{}
	if f, ok := d.out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		style.Colour = !d.plain
		if width, _, err := term.GetSize(int(f.Fd())); err == nil {
			style.Width = min(max(width, 60), 120)
		}
	}
	return r.Text(d.out, style)
}

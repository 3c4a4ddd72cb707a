package offline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/term"

	"github.com/belaydb/belay/cli/connect"
	"github.com/belaydb/belay/cli/rolling"
	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/internal/interrupt"
)

// ofCluster is what --to-etcd of move means alone.
const ofCluster = "the cluster's version"

func moveCommand(name string, stdout io.Writer) *cobra.Command {
	var target connect.Flags
	var plan, run bool
	var etcd string
	m := rolling.Move{To: rolling.Belay}
	cmd := &cobra.Command{
		Use:   "move --plan | --run [--to-etcd[=3.x]] [options]",
		Short: "Makes the members of a running etcd cluster Belay's one by one, with their data, or back",
		Long: `Makes the members of a running etcd cluster (3.5, 3.6 or 3.7) Belay's, one after the
other, each with its data, while the cluster serves; with --to-etcd back. Etcds and
Belays form one cluster meanwhile.

--plan prints the steps for this cluster and does nothing. --run takes them: followers
first, the leader last with its leadership handed over before; after each it checks that
the member answers with the same ID, votes, has caught up, that the hashes of all
members are equal at one revision, and that there is no alarm. It stops at the first
step that fails and says what to do. Run again, it goes on where it ended: it looks
at the cluster.

Processes are your init system's, so the steps that touch one are commands of yours.
They are templates: {{.Name}}, {{.ID}}, {{.Host}}, {{.PeerURL}}, {{.ClientURL}}, {{.DataDir}}
and {{.WALDir}} are the member's, {{.From}} and {{.To}} are etcd and belay, {{.Version}} is that of the etcd (3.6),
{{.Migrate}} is the command that migrates the data. Without a command --run asks at
the terminal. See docs/migration.md.`,
		Example: "  " + name + " move --plan --endpoints http://10.0.0.1:2379\n" +
			"  " + name + " move --run --endpoints http://10.0.0.1:2379,http://10.0.0.2:2379,http://10.0.0.3:2379 \\\n" +
			"    --data-dir /var/lib/etcd --stop-command 'ssh {{.Host}} systemctl stop {{.From}}' \\\n" +
			"    --migrate-command 'ssh {{.Host}} {{.Migrate}}' --start-command 'ssh {{.Host}} systemctl start {{.To}}'",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return onlyFlags(cmd, args)
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&plan, "plan", false, "print the steps")
	fs.BoolVar(&run, "run", false, "take them")
	fs.StringVar(&etcd, "to-etcd", "", "from Belay to etcd, of this version (3.5, 3.6 or 3.7; alone: the cluster's)")
	fs.Lookup("to-etcd").NoOptDefVal = ofCluster
	fs.StringVar(&m.Commands.DataDir, "data-dir", "", "a member's data directory on its machine, a template")
	fs.StringVar(&m.Commands.WALDir, "wal-dir", "", "a member's --wal-dir on its machine, a template, if the log is apart")
	fs.StringVar(&m.Commands.Stop, "stop-command", "", "what stops a member, a template")
	fs.StringVar(&m.Commands.Migrate, "migrate-command", "", "what migrates its data, a template; '{{.Migrate}}' if it is on this machine")
	fs.StringVar(&m.Commands.Start, "start-command", "", "what starts it as what it has become, a template")
	fs.DurationVar(&m.StepTimeout, "step-timeout", 30*time.Minute, "how long one command may take, and a member until it is back")
	reach := pflag.NewFlagSet("", pflag.ContinueOnError)
	target.Register(reach)
	fs.AddFlagSet(reach)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if plan == run {
			return failf(codeBadArgs, "move requires --plan or --run")
		}
		if cmd.Flags().Changed("to-etcd") {
			m.To = rolling.Etcd
			if etcd != ofCluster {
				v, err := datadir.ParseEtcdVersion(etcd)
				if err != nil {
					return failf(codeBadArgs, "%w", err)
				}
				m.Version = fmt.Sprintf("%d.%d", v.Major, v.Minor)
			}
		}
		stderr := cmd.ErrOrStderr()
		if err := connect.FromEnvironment(reach, stderr); err != nil {
			return err
		}
		endpoints, err := target.Targets(stderr)
		if err != nil {
			return err
		}
		auth, err := target.Credentials(os.Stdin, stderr)
		if err != nil {
			return err
		}
		if m.Client, err = clientv3.NewClientConfig(target.Spec(endpoints, auth), zap.NewNop()); err != nil {
			return failf(codeBadArgs, "%w", err)
		}
		m.Client.Logger, m.Timeout, m.Out = zap.NewNop(), target.CommandTimeout, stdout
		ctx, stop := interrupt.Context(cmd.Context())
		defer stop()
		return move(ctx, &m, run, stdout)
	}
	return cmd
}

func move(ctx context.Context, m *rolling.Move, run bool, stdout io.Writer) (err error) {
	if run {
		if term.IsTerminal(int(os.Stdin.Fd())) {
			m.In = os.Stdin
		}
		err = m.Run(ctx)
	} else {
		var text string
		if text, err = m.Plan(ctx); err == nil {
			_, err = io.WriteString(stdout, text)
		}
	}
	var why interface{ Hint() string }
	switch {
	case err != nil && ctx.Err() != nil:
		return errors.New("interrupted; nothing is undone, and the last member named may be stopped: the same command goes on")
	case errors.As(err, &why) && why.Hint() != "":
		return fmt.Errorf("%w\n%s", err, why.Hint())
	}
	return err
}

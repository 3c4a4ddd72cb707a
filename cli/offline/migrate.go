package offline

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/internal/interrupt"
	"github.com/belaydb/belay/internal/show"
)

// newestEtcd is what --to-etcd alone means.
const newestEtcd = "3.7"

func migrateCommand(name string, stdout io.Writer, format *string) *cobra.Command {
	var m datadir.Move
	var inPlace bool
	var etcd string
	cmd := &cobra.Command{
		Use:   "migrate --data-dir {dir} [--out {dir} | --in-place] [--to-etcd[=3.x]]",
		Short: "Makes the data of a stopped etcd member Belay's, or back; without --out and --in-place only says what it would do",
		Long: `Makes the data directory of a stopped etcd member (3.4 to 3.7) one of Belay, or
with --to-etcd one of Belay one of etcd. The member stays who it is: its id, its
cluster, its vote, what it has applied, and what its log has beyond that. Move each
member of a cluster by itself, all of them stopped.

Without --out and --in-place everything is read and judged, and nothing is written.
What is written is read back and compared with the source: every version of every
key, HashKV, leases, users, roles, members, alarms, and the log. Until then the
source is not touched. With --out it never is; with --in-place it is kept beside the
new data, as DIR/member.etcd or DIR/member.belay. See docs/migration.md.`,
		Example: "  " + name + " migrate --data-dir /var/lib/etcd                       # says what it would do\n" +
			"  " + name + " migrate --data-dir /var/lib/etcd --out /var/lib/belay\n" +
			"  " + name + " migrate --data-dir /var/lib/etcd --in-place\n" +
			"  " + name + " migrate --data-dir /var/lib/etcd --in-place --to-etcd=3.6   # and back",
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) > 0:
				return onlyFlags(cmd, args)
			case m.DataDir == "":
				return failf(codeBadArgs, "migrate requires --data-dir")
			case inPlace && m.Out != "":
				return failf(codeBadArgs, "give --out or --in-place, not both")
			case m.OutWALDir != "" && m.Out == "":
				return failf(codeBadArgs, "--out-wal-dir goes with --out")
			case *format != "simple" && *format != "json":
				return printable(*format, "json", "simple")
			}
			if cmd.Flags().Changed("to-etcd") {
				v, err := datadir.ParseEtcdVersion(etcd)
				if err != nil {
					return failf(codeBadArgs, "%w", err)
				}
				m.ToEtcd = v
			}
			m.DryRun = m.DryRun || m.Out == "" && !inPlace
			// A partly made directory is removed on a signal.
			ctx, stop := interrupt.Context(cmd.Context())
			defer stop()
			progress, end := meters(cmd.ErrOrStderr(), counted)
			m.Progress = progress
			return migrate(ctx, m, end, stdout, *format)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&m.DataDir, "data-dir", "", "data directory of the stopped member")
	fs.StringVar(&m.WALDir, "wal-dir", "", "its directory for the log, if that is apart")
	fs.StringVar(&m.Out, "out", "", "data directory to make; it must not exist, or be empty")
	fs.StringVar(&m.OutWALDir, "out-wal-dir", "", "with --out: directory to make for the log (default: in --out)")
	fs.BoolVar(&inPlace, "in-place", false, "give the new data the place of the old, which is kept as DIR/member.etcd or DIR/member.belay")
	fs.StringVar(&etcd, "to-etcd", "", "make data of Belay etcd's, for this version, 3.4 to "+newestEtcd)
	fs.Lookup("to-etcd").NoOptDefVal = newestEtcd
	fs.BoolVar(&m.DryRun, "dry-run", false, "only say what would be done")
	return cmd
}

// onlyFlags refuses arguments. --to-etcd may stand alone, so its version is not the next argument.
func onlyFlags(cmd *cobra.Command, args []string) error {
	meant := ""
	if cmd.Flags().Changed("to-etcd") {
		meant = fmt.Sprintf(": is --to-etcd=%s meant?", args[0])
	}
	return failf(codeBadArgs, "%s takes no arguments, only flags%s", cmd.Name(), meant)
}

// counted is the unit of what is counted, versions and revisions.
func counted(n int64) string { return strconv.FormatInt(n, 10) }

// migrate calls end before it prints.
func migrate(ctx context.Context, m datadir.Move, end func(), stdout io.Writer, format string) error {
	r, err := m.Run(ctx)
	end()
	if err != nil {
		return err
	}
	if format == "json" {
		text, err := json.Marshal(struct {
			*datadir.Moved
			DryRun bool
		}{r, m.DryRun})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(stdout, "%s\n", text)
		return err
	}
	var out strings.Builder
	role := "voter"
	if r.Learner {
		role = "learner"
	}
	compacted := "never compacted"
	if r.Compacted > 0 {
		compacted = fmt.Sprintf("compacted up to %d", r.Compacted)
	}
	version := r.ClusterVersion
	if version == "" {
		version = "not decided yet"
	}
	fmt.Fprintf(&out, "member   %x %q, %s, of cluster %x with %s, version %s\n", r.Member, r.Name, role, r.Cluster, show.Count(r.Members, "member"), version)
	fmt.Fprintf(&out, "keys     revision %d, %s, %s\n", r.Revision, compacted, show.Count(r.Versions, "version"))
	fmt.Fprintf(&out, "others   %s, %s, %s, %s\n", show.Count(r.Leases, "lease"), show.Count(r.Users, "user"), show.Count(r.Roles, "role"), show.Count(r.Alarms, "alarm"))
	fmt.Fprintf(&out, "log      applied %d of term %d, committed %d, last %d; term %d, vote %x\n", r.Applied, r.Term, r.Commit, r.Last, r.VoteTerm, r.Vote)
	for _, note := range r.Notes {
		fmt.Fprintf(&out, "note     %s\n", note)
	}
	if m.DryRun {
		fmt.Fprintf(&out, "%s is %s's and can be made %s's. Nothing was written: give --out or --in-place.\n", r.Source, r.From, r.To)
	} else {
		fmt.Fprintf(&out, "checked  every version, leases, users, roles, members, alarms and the log are equal")
		if len(r.Hashed) > 0 {
			fmt.Fprintf(&out, "; HashKV at %s, %d at %d", show.Count(len(r.Hashed), "revision"), r.Hash, r.Revision)
		}
		fmt.Fprintf(&out, "\n%s is %s's now. The old data is in %s.\n", r.Target, r.To, r.Source)
	}
	_, err = io.WriteString(stdout, out.String())
	return err
}

package offline

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"github.com/belaydb/belay/cli/connect"
	"github.com/belaydb/belay/config"
	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/internal/interrupt"
	"github.com/belaydb/belay/internal/show"
	"github.com/belaydb/belay/internal/version"
	"github.com/belaydb/belay/logsink"
	"github.com/belaydb/belay/raftlog"
	"github.com/belaydb/belay/snapshotfile"
)

// etcdutl's exit codes.
const (
	codeError      = 1
	codeBadFeature = 4
	codeBadArgs    = 128
)

type exitError struct {
	code int
	error
}

func failf(code int, format string, args ...any) error {
	return exitError{code, fmt.Errorf(format, args...)}
}

// Main runs one command line; name is "etcdutl" or "belay util". It returns the
// exit code; failures have been printed to stderr.
func Main(name string, args []string, stdout, stderr io.Writer) int {
	root := command(name, stdout)
	root.InitDefaultHelpCmd()
	root.SetArgs(connect.Unabbreviate(root, args))
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(context.Background())
	if err == nil {
		return 0
	}
	if errors.Is(err, context.Canceled) { // what a command makes has its place at the end, or is removed
		err = errors.New("interrupted; nothing was changed")
	}
	fmt.Fprintln(stderr, "Error:", err)
	if e, ok := errors.AsType[exitError](err); ok {
		return e.code
	}
	return codeError
}

// anyArgs are the arguments of a command that has none: etcdutl takes them and looks at none.
func anyArgs(name string) cobra.PositionalArgs {
	if name == "etcdutl" {
		return cobra.ArbitraryArgs
	}
	return cobra.NoArgs
}

func command(name string, stdout io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:         strings.ReplaceAll(name, " ", "-"),
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: name},
		Short:       "Works on the files of members that do not run.",
		// Main prints them.
		SilenceUsage: true, SilenceErrors: true,
	}
	format := root.PersistentFlags().StringP("write-out", "w", "simple", "set the output format (fields, json, simple, table)")
	wait := root.PersistentFlags().Duration("timeout", 10*time.Second, "how long defrag and etcdutl's migrate wait for an etcd's database that is in use, 0 for ever; others wait a second")

	snapshot := &cobra.Command{Use: "snapshot <subcommand>", Short: "Snapshot files, as `snapshot save` writes them"}
	snapshot.AddCommand(restoreCommand(name, stdout), statusCommand(stdout, format))
	inspect := inspectCommand(stdout)
	root.AddCommand(snapshot, hashkvCommand(stdout, format), connect.BeyondEtcd(inspect), connect.BeyondEtcd(raftlogCommand(stdout)),
		connect.BeyondEtcd(verifyCommand(name, stdout, format)), defragCommand(name, stdout, wait), &cobra.Command{
			Use: "version", Short: "Prints versions", Args: anyArgs(name),
			Run: func(*cobra.Command, []string) {
				major, minor, _ := strings.Cut(version.Etcd, ".")
				minor, _, _ = strings.Cut(minor, ".")
				fmt.Fprintf(stdout, "etcdutl version: %s\nAPI version: %s.%s\nBelay version: %s\n", version.Etcd, major, minor, version.Belay)
			},
		})
	if name == "etcdutl" {
		root.AddCommand(schemaCommand(wait))
	} else {
		root.AddCommand(migrateCommand(name, stdout, format), connect.BeyondEtcd(moveCommand(name, stdout)), connect.BeyondEtcd(backupCommand(name, stdout, format)))
	}
	// cobra's own would be for a program of the name belay-util.
	root.CompletionOptions.DisableDefaultCmd = true
	program, _, _ := strings.Cut(name, " ")
	root.AddCommand(&cobra.Command{
		Use: "completion [bash|zsh|fish|powershell]", Short: "Prints a completion script for a shell",
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"}, Args: cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(_ *cobra.Command, args []string) error { return show.Completion(stdout, args[0], program) },
	})
	unknown := func(err error) error { return exitError{codeBadArgs, err} }
	if name == "etcdutl" { // which succeeds
		connect.RefuseUnknown(inspect, unknown)
	} else {
		connect.RefuseUnknown(root, unknown)
	}
	return root
}

// restoreFlags are etcdutl's.
type restoreFlags struct {
	datadir.RestoreConfig
	peerURLs      string
	bump          uint64
	markCompacted bool
}

// add adds those that a restore from backups has, too.
func (f *restoreFlags) add(fs *pflag.FlagSet) {
	const peer = "http://localhost:2380"
	fs.StringVar(&f.WALDir, "wal-dir", "", "directory to make for the raft log (default: in --data-dir)")
	fs.StringVar(&f.InitialCluster, "initial-cluster", "default="+peer, "the new cluster's members")
	fs.StringVar(&f.InitialClusterToken, "initial-cluster-token", "etcd-cluster", "the new cluster's token; one that no other cluster has")
	fs.StringVar(&f.peerURLs, "initial-advertise-peer-urls", peer, "this member's peer URLs, as in --initial-cluster")
	fs.StringVar(&f.Name, "name", "default", "this member's name")
	fs.BoolVar(&f.markCompacted, "mark-compacted", false, "with --bump-revision: everything up to the new revision counts as compacted, so that watchers start anew")
}

// bumped takes --bump-revision over.
func (f *restoreFlags) bumped() error {
	if f.bump > 1<<61 {
		return failf(codeBadArgs, "--bump-revision is too large: at most %d", uint64(1)<<61)
	}
	f.BumpRevision = int64(f.bump)
	return nil
}

// tellStart says how the member is started that was restored.
func (f *restoreFlags) tellStart(w io.Writer) {
	wal := ""
	if f.WALDir != "" {
		wal = " --wal-dir " + f.WALDir
	}
	fmt.Fprintf(w, "Start it with: belay server --name %s --data-dir %s%s and the URLs of this member.\n", f.Name, f.DataDir, wal)
	if os.Geteuid() == 0 {
		fmt.Fprintf(w, "Only root can read it: give it to the user that the member runs as (chown -R), unless that is root.\n")
	}
}

func restoreCommand(name string, stdout io.Writer) *cobra.Command {
	var f restoreFlags
	cmd := &cobra.Command{
		Use:   "restore <filename> --data-dir {output dir} [options]",
		Short: "Makes the data directory of a Belay member from a snapshot file of etcd or Belay",
		Long: `Makes the data directory of one member of a new cluster from a snapshot file.

Run it once for each member of the new cluster, with the same file, --initial-cluster
and --initial-cluster-token; then start the members with the same flags. Keys with
their history, revisions, leases, users and roles are those of the file. The file
may also be the database of a stopped etcd member (member/snap/db), with
--skip-hash-check.`,
		Example: "  " + name + " snapshot restore backup.db --data-dir m1.belay --name m1 \\\n" +
			"    --initial-cluster m1=http://10.0.0.1:2380,m2=http://10.0.0.2:2380,m3=http://10.0.0.3:2380 \\\n" +
			"    --initial-advertise-peer-urls http://10.0.0.1:2380",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return failf(codeBadArgs, "snapshot restore requires exactly one argument")
			}
			// A partly made directory is removed on a signal. Nothing else here has anything to
			// release.
			ctx, stop := interrupt.Context(cmd.Context())
			defer stop()
			return restore(ctx, name, f, args[0], stdout, cmd.ErrOrStderr())
		},
	}
	fs := cmd.Flags()
	f.add(fs)
	fs.StringVar(&f.DataDir, "data-dir", "", "data directory to make; it must not exist, or be empty (default: NAME.belay, by the name etcdutl NAME.etcd)")
	fs.BoolVar(&f.SkipHash, "skip-hash-check", false, "do not check the file's SHA-256 (a copied database has none)")
	fs.Uint64("initial-memory-map-size", 0, "without effect: no file is mapped for writing")
	fs.Uint64Var(&f.bump, "bump-revision", 0, "how much to add to the current revision, so that it is beyond what clients have seen since the snapshot was saved")
	cmd.PreRun = func(*cobra.Command, []string) {
		if f.DataDir == "" {
			f.DataDir = f.Name + ".belay"
			if name == "etcdutl" {
				f.DataDir = f.Name + ".etcd"
			}
		}
	}
	return cmd
}

// verify checks what a start of the new cluster checks, as etcdutl does: that --initial-cluster has
// the member with the URLs that it advertises, as texts or as the addresses that they resolve to.
// It reports on stderr a name that cannot be resolved and keeps it waiting.
func verify(ctx context.Context, f restoreFlags, stderr io.Writer) error {
	urls, err := config.ParseURLs(f.peerURLs)
	if err != nil {
		return err
	}
	if len(urls) == 0 {
		return errors.New("--initial-advertise-peer-urls must name at least one URL")
	}
	lg, err := logsink.New(logsink.Config{Level: "warn", Format: "console", Writer: stderr})
	if err != nil {
		return err
	}
	member := config.Default()
	member.Name, member.AdvertisePeerURLs = f.Name, urls
	err = member.Verify(ctx, lg.Logger, f.InitialCluster)
	return errors.Join(err, lg.Close())
}

func restore(ctx context.Context, name string, f restoreFlags, file string, stdout, stderr io.Writer) error {
	if f.markCompacted != (f.bump > 0) {
		return failf(codeBadArgs, "--mark-compacted required if --revision-bump > 0")
	}
	if err := f.bumped(); err != nil {
		return err
	}
	f.Snapshot = file
	progress, end := meters(stderr, show.Bytes)
	f.Progress = progress
	if err := verify(ctx, f, stderr); err != nil {
		return err
	}
	logger := zap.NewNop()
	if name == "etcdutl" {
		logger, stdout = etcdutlLog(stderr), stderr
	}
	logger.Info("restoring snapshot", restoreFields(f.RestoreConfig)...)
	r, err := datadir.Restore(ctx, f.RestoreConfig)
	end()
	if err != nil {
		return err
	}
	logRestored(logger, f.RestoreConfig, r)
	fmt.Fprintf(stdout, "Restored %s into %s: revision %d, %s of keys, %s; member %x of cluster %x.\n",
		file, f.DataDir, r.Revision, show.Count(r.Keys, "version"), show.Count(r.Leases, "lease"), r.Member, r.Cluster)
	f.tellStart(stdout)
	return nil
}

// meters show each step of something long on a terminal; end takes the last line away. unit makes a
// text of an amount.
func meters(stderr io.Writer, unit func(int64) string) (tell datadir.Progress, end func()) {
	var meter *show.Meter
	now := ""
	tell = func(step string, done, total int64) {
		if step != now {
			meter.End()
			now, meter = step, show.NewMeter(stderr, stderr, step, unit)
		}
		meter.Show(done, total)
	}
	return tell, func() { meter.End() }
}

// formats are those that --write-out names. Some commands of etcdutl's have protobuf, none here has.
var formats = []string{"fields", "json", "protobuf", "simple", "table"}

// printable says whether a command can print in a format, in etcdutl's words: one that nobody knows
// is another error than one that this command lacks.
func printable(format string, known ...string) error {
	switch {
	case slices.Contains(known, format):
		return nil
	case slices.Contains(formats, format):
		return failf(codeBadFeature, "%s not supported as output format", format)
	}
	return failf(codeBadFeature, "unsupported output format")
}

func statusCommand(stdout io.Writer, format *string) *cobra.Command {
	return &cobra.Command{
		Use:   "status <filename>",
		Short: "Reads a snapshot file and prints its hash, revision, number of keys, size and version",
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return failf(codeBadArgs, "snapshot status requires exactly one argument")
			}
			if err := printable(*format, "fields", "json", "simple", "table"); err != nil {
				return err
			}
			if _, err := os.Stat(args[0]); err != nil {
				return err
			}
			var st snapshotfile.Status
			err := snapshotfile.Read(args[0], true, func(f *snapshotfile.Reader) (err error) {
				st, err = f.Status()
				return err
			})
			if err != nil {
				return err
			}
			return printStatus(stdout, st, *format)
		},
	}
}

func printStatus(w io.Writer, st snapshotfile.Status, format string) error {
	row := []string{fmt.Sprintf("%x", st.Hash), fmt.Sprint(st.Revision), fmt.Sprint(st.TotalKey), show.Bytes(st.TotalSize), st.Version}
	var out bytes.Buffer
	switch format {
	case "fields":
		fmt.Fprintf(&out, "\"Hash\" : %d\n\"Revision\" : %d\n\"Keys\" : %d\n\"Size\" : %d\n\"Version\" : %s\n", st.Hash, st.Revision, st.TotalKey, st.TotalSize, st.Version)
	case "json":
		text, err := json.Marshal(st)
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "%s\n", text)
	case "table":
		show.Table(&out, [][]string{{"hash", "revision", "total keys", "total size", "version"}, row})
	default:
		fmt.Fprintln(&out, strings.Join(row, ", "))
	}
	_, err := w.Write(out.Bytes())
	return err
}

func raftlogCommand(stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "raftlog <directory>",
		Short: "Prints a raft log (DATA-DIR/member/log), file by file and group by group, and whether it is good; changes nothing",
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return failf(codeBadArgs, "raftlog requires exactly one argument, the directory DATA-DIR/member/log or WAL-DIR/log")
			}
			dir := args[0]
			if _, err := os.Stat(filepath.Join(datadir.PathsOf(dir, "").Log, "META")); err == nil {
				dir = datadir.PathsOf(dir, "").Log // the data directory was given
			}
			return raftlog.Inspect(dir, nil, stdout)
		},
	}
}

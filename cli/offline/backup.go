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
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/belaydb/belay/backup"
	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/internal/interrupt"
	"github.com/belaydb/belay/internal/show"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/timemap"
)

// depotFlags say where backups are, and of which cluster.
type depotFlags struct {
	place   backup.Place
	cluster string
	rate    int64
}

func (f *depotFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.place.To, "from", "", "where the backups are: the directory or s3://BUCKET/PREFIX of the server's --backup-to")
	fs.StringVar(&f.cluster, "cluster", "", "id of the cluster, in hexadecimal, if there are backups of several")
	fs.Int64Var(&f.rate, "max-bytes-per-second", 0, "how fast backups are read, at most; 0: as fast as it goes")
}

// open finds the cluster's backups.
func (f *depotFlags) open(ctx context.Context) (d backup.Depot, c *backup.Catalog, err error) {
	if f.place.To == "" {
		return nil, nil, failf(codeBadArgs, "--from is required: where the server writes its backups to, a directory or s3://BUCKET/PREFIX (its --backup-to)")
	}
	if f.rate < 0 {
		return nil, nil, failf(codeBadArgs, "--max-bytes-per-second must not be negative (set to %d)", f.rate)
	}
	if d, err = f.place.Open("from", datadir.FS()); err != nil {
		return nil, nil, failf(codeBadArgs, "%w", err)
	}
	clusters, err := backup.Clusters(ctx, d)
	if err != nil {
		return nil, nil, err
	}
	want := strings.ToLower(strings.TrimPrefix(f.cluster, "0x"))
	want = strings.Repeat("0", max(0, 16-len(want))) + want
	switch {
	case len(clusters) == 0:
		if _, err := os.Stat(f.place.To); errors.Is(err, os.ErrNotExist) && !strings.Contains(f.place.To, "://") {
			return nil, nil, fmt.Errorf("there are no backups in %s: there is no such directory; is it mounted?", d)
		}
		return nil, nil, fmt.Errorf("there are no backups in %s", d)
	case f.cluster != "" && !slices.Contains(clusters, want):
		return nil, nil, fmt.Errorf("there are no backups of the cluster %s in %s, but of %s", want, d, strings.Join(clusters, ", "))
	case f.cluster == "" && len(clusters) > 1:
		return nil, nil, failf(codeBadArgs, "there are backups of %d clusters in %s: choose one with --cluster: %s", len(clusters), d, strings.Join(clusters, ", "))
	case f.cluster == "":
		want = clusters[0]
	}
	c, err = backup.Load(ctx, d, want, nil)
	return d, c, err
}

func backupCommand(name string, stdout io.Writer, format *string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup <subcommand>",
		Short: "Backups that a server makes with --backup-to: what there is, whether it is good, and restoring it",
	}
	cmd.AddCommand(backupListCommand(name, stdout, format), backupVerifyCommand(name, stdout), backupRestoreCommand(name, stdout))
	return cmd
}

func backupListCommand(name string, stdout io.Writer, format *string) *cobra.Command {
	var f depotFlags
	cmd := &cobra.Command{
		Use:   "list --from {dir}",
		Short: "Prints the backups, oldest first, and how far each can be relied on",
		Long: `Prints the backups of a cluster, oldest first. The states:

  good        it was restored into a scratch store, alone or with an increment that
              follows it, and its HashKV and counts were those that the member had
  read back   its files were read back, and their sums are right
  unproved    it is whole by its manifest, and was never tried
  bad         it was tried, and something was wrong
  damaged     its manifest cannot be read
  orphaned    an increment whose parent is missing, damaged or bad
  incomplete  it is being made, or was interrupted: it is no backup`,
		Example: "  " + name + " backup list --from /backups",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := printable(*format, "json", "simple", "table"); err != nil {
				return err
			}
			ctx, stop := interrupt.Context(cmd.Context())
			defer stop()
			_, c, err := f.open(ctx)
			if err != nil {
				return err
			}
			return printBackups(stdout, backup.Listing(c), *format)
		},
	}
	f.add(cmd.Flags())
	return cmd
}

func printBackups(w io.Writer, list []backup.Listed, format string) error {
	rows := [][]string{backup.Columns()}
	var why []string
	for _, l := range list {
		rows = append(rows, l.Row())
		if l.Error != "" && l.State != backup.Incomplete {
			why = append(why, fmt.Sprintf("%s is %s: %s", l.Name, l.State, l.Error))
		}
	}
	var out bytes.Buffer
	switch format {
	case "json":
		text, err := json.Marshal(list)
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "%s\n", text)
	case "table":
		show.Table(&out, rows)
	default:
		t := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
		for _, row := range rows {
			fmt.Fprintln(t, strings.Join(row, "\t"))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if format != "json" {
		for _, text := range why {
			fmt.Fprintln(&out, text)
		}
	}
	_, err := w.Write(out.Bytes())
	return err
}

func backupVerifyCommand(name string, stdout io.Writer) *cobra.Command {
	var f depotFlags
	var scratch string
	var all, filesOnly bool
	cmd := &cobra.Command{
		Use:   "verify [NAME] --from {dir}",
		Short: "Restores a backup into a scratch store, the newest if none is named, and compares it with what the member had",
		Long: `Reads a backup with its ancestors, restores it into a scratch store, compares
HashKV and counts with those that the member had when it made it, and removes the
scratch store. Nothing is written where the backups are. The exit code is 1 if a
backup is not good.`,
		Example: "  " + name + " backup verify --from /backups --scratch-dir /var/tmp\n" +
			"  " + name + " backup verify --from /backups --all --files-only",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if all && len(args) > 0 {
				return failf(codeBadArgs, "name a backup or give --all, not both")
			}
			ctx, stop := interrupt.Context(cmd.Context())
			defer stop()
			d, c, err := f.open(ctx)
			if err != nil {
				return err
			}
			entries := c.Entries
			if !all {
				var t backup.Target
				if len(args) > 0 {
					t.Name = args[0]
				}
				p, err := c.Plan(t)
				if err != nil {
					return err
				}
				entries = []*backup.Entry{p.Last()}
			}
			return verifyBackups(ctx, d, c, entries, scratch, filesOnly, backup.NewPace(f.rate), stdout)
		},
	}
	f.add(cmd.Flags())
	cmd.Flags().StringVar(&scratch, "scratch-dir", os.TempDir(), "directory for the scratch store, on a disk with room for all the data; what is made in it is removed")
	cmd.Flags().BoolVar(&all, "all", false, "try every backup")
	cmd.Flags().BoolVar(&filesOnly, "files-only", false, "restore nothing: read the files, and compare their sums")
	return cmd
}

func verifyBackups(ctx context.Context, d backup.Depot, c *backup.Catalog, entries []*backup.Entry, scratch string, filesOnly bool, pace *backup.Pace, stdout io.Writer) error {
	failed := 0
	for _, e := range entries {
		if e.Manifest == nil || e.State == backup.Orphaned {
			if e.State != backup.Incomplete { // it may be one that is being made
				failed++
			}
			fmt.Fprintf(stdout, "%s: %s: %v\n", e.Name, e.State, e.Err)
			continue
		}
		var trial backup.Trial
		if !filesOnly {
			made, err := os.MkdirTemp(scratch, "belay-verify-")
			if err != nil {
				return fmt.Errorf("--scratch-dir: %w", err)
			}
			defer os.RemoveAll(made)
			trial = backup.Trial{Scratch: scratchStore, Dir: filepath.Join(made, "store")}
		}
		start := time.Now()
		p, err := backup.Verify(ctx, d, c, e, trial, pace)
		if err != nil {
			return fmt.Errorf("%s could not be tried: %w", e.Name, err)
		}
		took := time.Since(start).Round(10 * time.Millisecond)
		switch {
		case !p.Good:
			failed++
			fmt.Fprintf(stdout, "%s: bad: %s\n", e.Name, p.Error)
		case !p.Restored:
			fmt.Fprintf(stdout, "%s: the sums of its files are right; %v\n", e.Name, took)
		case p.Hash == nil:
			fmt.Fprintf(stdout, "%s: good: restored to revision %d, %s and %s as saved; the member took no HashKV of it; %v\n",
				e.Name, e.Manifest.Revision, show.Count(p.Versions, "version"), show.Count(p.Leases, "lease"), took)
		default:
			fmt.Fprintf(stdout, "%s: good: restored to revision %d, HashKV %d, %s and %s as the member had them; %v\n",
				e.Name, e.Manifest.Revision, *p.Hash, show.Count(p.Versions, "version"), show.Count(p.Leases, "lease"), took)
		}
	}
	switch {
	case failed > 0 && len(entries) == 1:
		return errors.New("the backup is not good")
	case failed > 0:
		return fmt.Errorf("%d of %d backups are not good", failed, len(entries))
	}
	return nil
}

func scratchStore(ctx context.Context, dir string, r *backup.Reading, look func(view *mvcc.View, versions int) error) error {
	return datadir.Scratch(ctx, dir, r, look)
}

// backupRestoreFlags are those of `snapshot restore` that make sense here, and what to restore.
type backupRestoreFlags struct {
	restoreFlags
	depotFlags
	target backup.Target
	time   string
	dryRun bool
}

func backupRestoreCommand(name string, stdout io.Writer) *cobra.Command {
	var f backupRestoreFlags
	cmd := &cobra.Command{
		Use:   "restore --from {dir} --data-dir {dir} [--time TIME | --revision REV | --backup NAME] [options]",
		Short: "Makes the data directory of a member from backups, as of a time, a revision, or the newest backup",
		Long: `Makes the data directory of one member of a new cluster, with the state of the old
cluster at a time or a revision; without either, of the newest backup.

Run it once for each member of the new cluster, with the same --time, --revision or
--backup, --initial-cluster and --initial-cluster-token; then start the members with
the same flags. A time is one such as 15:04:05, "2006-01-02 15:04:05", a time in
RFC 3339, or 10m for ten minutes ago; each second is one that the member noted. Say
--dry-run first to see which revision it is.

Keys with their history are those of the revision. Leases, users and roles are those
of the last backup before it, since increments hold them as of their end.`,
		Example: "  " + name + " backup restore --from /backups --time 14:03:11 --dry-run\n" +
			"  " + name + " backup restore --from /backups --time 14:03:11 --data-dir m1.belay --name m1 \\\n" +
			"    --initial-cluster m1=http://10.0.0.1:2380,m2=http://10.0.0.2:2380,m3=http://10.0.0.3:2380 \\\n" +
			"    --initial-advertise-peer-urls http://10.0.0.1:2380",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			given := 0
			for _, flag := range []string{"time", "revision", "backup"} {
				if cmd.Flags().Changed(flag) {
					given++
				}
			}
			switch {
			case given > 1:
				return failf(codeBadArgs, "--time, --revision and --backup each say what to restore: give one")
			case cmd.Flags().Changed("revision") && f.target.Revision < 1:
				return failf(codeBadArgs, "--revision must be a revision, 1 or more (set to %d)", f.target.Revision)
			case f.time != "":
				t, err := timemap.Parse(f.time, time.Now())
				if err != nil {
					return failf(codeBadArgs, "--time: %w", err)
				}
				f.target.Time = t
			case cmd.Flags().Changed("time"):
				return failf(codeBadArgs, "--time must not be empty")
			}
			if f.markCompacted != (f.bump > 0) {
				return failf(codeBadArgs, "--bump-revision and --mark-compacted go together")
			}
			if err := f.bumped(); err != nil {
				return err
			}
			ctx, stop := interrupt.Context(cmd.Context())
			defer stop()
			return restoreBackup(ctx, f, stdout, cmd.ErrOrStderr())
		},
	}
	fs := cmd.Flags()
	f.depotFlags.add(fs)
	f.restoreFlags.add(fs)
	fs.StringVar(&f.time, "time", "", "restore what was the newest state at this time")
	fs.Int64Var(&f.target.Revision, "revision", 0, "restore this revision")
	fs.StringVar(&f.target.Name, "backup", "", "restore this backup, to its end")
	fs.BoolVar(&f.dryRun, "dry-run", false, "only say which backups and which revision it would be")
	fs.StringVar(&f.DataDir, "data-dir", "", "data directory to make; it must not exist, or be empty (default: NAME.belay)")
	fs.Uint64Var(&f.bump, "bump-revision", 0, "how much to add to the current revision, so that it is beyond what clients have seen since")
	cmd.PreRun = func(*cobra.Command, []string) {
		if f.DataDir == "" {
			f.DataDir = f.Name + ".belay"
		}
	}
	return cmd
}

func restoreBackup(ctx context.Context, f backupRestoreFlags, stdout, stderr io.Writer) error {
	d, c, err := f.depotFlags.open(ctx)
	if err != nil {
		return err
	}
	p, err := c.Plan(f.target)
	if err != nil {
		return err
	}
	tellPlan(p, f.target, stdout)
	if f.dryRun {
		return nil
	}
	if err := verify(ctx, f.restoreFlags, stderr); err != nil {
		return err
	}
	reading := backup.Read(ctx, d, p, backup.NewPace(f.rate))
	progress, end := meters(stderr, show.Bytes)
	f.Progress = progress
	r, err := datadir.RestoreFrom(ctx, f.RestoreConfig, reading)
	end()
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "Restored into %s: revision %d, %s of keys, %s; member %x of cluster %x.\n",
		f.DataDir, r.Revision, show.Count(r.Keys, "version"), show.Count(r.Leases, "lease"), r.Member, r.Cluster)
	if reading.Lost > 0 {
		fmt.Fprintf(stdout, "%s in no backup, only on keys: %d seconds from the start on.\n", show.Count(reading.Lost, "lease"), backup.LostLease)
	}
	if err := compareRestored(ctx, r.StoreDir, p, f.BumpRevision, stdout); err != nil {
		return err
	}
	f.tellStart(stdout)
	return nil
}

// tellPlan says what will be restored, before anything is.
func tellPlan(p *backup.Plan, t backup.Target, w io.Writer) {
	stamp := func(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }
	last := p.Last()
	fmt.Fprintf(w, "Revision %d", p.Revision)
	switch {
	case !p.Seen.IsZero():
		fmt.Fprintf(w, ", the newest at %s", stamp(p.Seen))
		if p.Next.IsZero() {
			fmt.Fprint(w, "; no backup holds a later one")
		} else {
			fmt.Fprintf(w, "; a later one was seen at %s", stamp(p.Next))
		}
	case t.Revision == 0:
		fmt.Fprintf(w, ", of %s", stamp(last.Manifest.Time))
	}
	from := "the backup"
	if len(p.Chain) > 1 {
		from = show.Count(len(p.Chain), "backup") + ", the last one"
	}
	fmt.Fprintf(w, ".\nOf the cluster %s, from %s %s (%s).\n", p.Cluster, from, last.Name, last.State)
	for _, m := range last.Manifest.Members {
		fmt.Fprintf(w, "Its members were: %s %s %s\n", m.ID, m.Name, strings.Join(m.PeerURLs, ","))
	}
}

// compareRestored compares HashKV of what was restored with what the member had, where that is
// known.
func compareRestored(ctx context.Context, dir string, p *backup.Plan, bump int64, w io.Writer) error {
	want := p.Last().Manifest.Hash
	if want == nil || p.Revision != p.Last().Manifest.Revision || bump > 0 {
		fmt.Fprintln(w, "The sums of all files are right. There is no HashKV of this revision to compare with.")
		return nil
	}
	have, err := hashOfStore(ctx, dir, p.Revision, io.Discard)
	if err != nil {
		return err
	}
	if have.Hash != *want {
		return fmt.Errorf("HashKV of what was restored into %s is %d, and the member had %d: do not start it; restore another backup", dir, have.Hash, *want)
	}
	fmt.Fprintf(w, "HashKV at revision %d is %d, as the member had it.\n", p.Revision, have.Hash)
	return nil
}

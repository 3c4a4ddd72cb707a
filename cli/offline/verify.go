package offline

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/coreos/go-semver/semver"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/internal/interrupt"
	"github.com/belaydb/belay/internal/show"
)

func verifyCommand(name string, stdout io.Writer, format *string) *cobra.Command {
	var dataDir, walDir string
	cmd := &cobra.Command{
		Use:   "verify --data-dir {dir} [--wal-dir {dir}]",
		Short: "Reads everything that a stopped member's data directory holds, Belay's or etcd's, and says what is wrong with it",
		Long: `Reads every byte of the log and of the store of a stopped member, Belay's or etcd's:
checksums, that the parts belong together, that each version of a key is in the index
of revisions, that the log holds what it says is committed. Nothing is changed.

The exit code is 0 if all is well and 1 if something is damaged or a member runs.
The hash is HashKV's at the revision: members of one cluster that are equal have the
same at the same revision.`,
		Example: "  " + name + " verify --data-dir /var/lib/belay\n  " + name + " verify --data-dir /var/lib/etcd -w json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := printable(*format, "json", "simple"); err != nil {
				return err
			}
			if dataDir == "" {
				return failf(codeBadArgs, "verify requires --data-dir")
			}
			ctx, stop := interrupt.Context(cmd.Context())
			defer stop()
			progress, end := meters(cmd.ErrOrStderr(), show.Bytes)
			v, err := datadir.Verify(ctx, dataDir, walDir, progress)
			end()
			if err != nil {
				return err
			}
			if err := printVerified(stdout, v, *format); err != nil {
				return err
			}
			if n := len(v.Findings); n > 0 {
				return failf(codeError, "%s: %d findings", dataDir, n)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "data directory of the stopped member")
	cmd.Flags().StringVar(&walDir, "wal-dir", "", "its directory for the log, if that is apart")
	return cmd
}

func printVerified(w io.Writer, v *datadir.Verified, format string) error {
	if format == "json" {
		text, err := json.Marshal(v)
		if err == nil {
			_, err = fmt.Fprintf(w, "%s\n", text)
		}
		return err
	}
	var out strings.Builder
	compacted := "never compacted"
	if v.Compacted > 0 {
		compacted = fmt.Sprintf("compacted up to %d", v.Compacted)
	}
	fmt.Fprintf(&out, "member   %x of cluster %x, data of %s\n", v.Member, v.Cluster, v.Kind)
	fmt.Fprintf(&out, "keys     revision %d, %s, %s, hash %d\n", v.Revision, compacted, show.Count(v.Versions, "version"), v.Hash)
	fmt.Fprintf(&out, "others   %s, %s, %d users and roles\n", show.Count(v.Members, "member"), show.Count(v.Leases, "lease"), v.Accounts)
	fmt.Fprintf(&out, "log      entries %d to %d, committed %d; the store has applied %d\n", v.First, v.Last, v.Commit, v.Applied)
	for _, note := range v.Notes {
		fmt.Fprintf(&out, "note     %s\n", note)
	}
	for _, f := range v.Findings {
		at := ""
		if f.Offset > 0 {
			at = fmt.Sprintf(" at offset %d", f.Offset)
		}
		fmt.Fprintf(&out, "damage   %s%s: %s\n", f.File, at, f.Reason)
	}
	if len(v.Findings) == 0 {
		fmt.Fprintf(&out, "nothing is damaged\n")
	}
	_, err := io.WriteString(w, out.String())
	return err
}

func defragCommand(name string, stdout io.Writer, wait *time.Duration) *cobra.Command {
	var dataDir string
	cmd := &cobra.Command{
		Use:   "defrag --data-dir {dir}",
		Short: "Defragments the store of a stopped member, etcd's or Belay's",
		Long: `Rewrites the store of a stopped member so that it takes the least space: the database
of an etcd, or Belay's store, which does the same by itself while the member runs.
An etcd's database is copied beside itself, and the copy takes its place when it is
durable: the disk needs room for both.`,
		Args: anyArgs(name),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := interrupt.Context(cmd.Context())
			defer stop()
			progress, end := meters(cmd.ErrOrStderr(), show.Bytes)
			start := time.Now()
			path, before, after, err := datadir.Defragment(ctx, dataDir, *wait, progress)
			end()
			if err != nil {
				return failf(codeError, "Failed to defragment etcd data[%s] (%w)", dataDir, err)
			}
			if name == "etcdutl" { // which says so in its log alone
				etcdutlLog(cmd.ErrOrStderr()).Info("finished defragmenting directory", zap.String("path", path), zap.Int64("current-db-size-bytes-diff", after-before),
					zap.Int64("current-db-size-bytes", after), zap.String("current-db-size", show.LogBytes(after)), zap.Duration("took", time.Since(start)))
				return nil
			}
			_, err = fmt.Fprintf(stdout, "Finished defragmenting directory %s: %s before, %s after\n", path, show.Bytes(before), show.Bytes(after))
			return err
		},
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "Required. Defragments a data directory not in use by a member.")
	_ = cmd.MarkFlagRequired("data-dir") // it is defined above
	return cmd
}

// schemaCommand is etcdutl's migrate, which is not belay util's.
func schemaCommand(wait *time.Duration) *cobra.Command {
	var dataDir, target string
	var force bool
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Migrates the storage version of an etcd's data directory, for an older or newer etcd (to make it Belay's: belay util migrate)",
		Args:  anyArgs("etcdutl"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if strings.Count(target, ".") != 1 {
				return failf(codeBadArgs, "wrong target version format, expected \"X.Y\", got %q", target)
			}
			v, err := semver.NewVersion(target + ".0")
			if err != nil {
				return failf(codeBadArgs, "failed to parse target version: %w", err)
			}
			if v.LessThan(semver.Version{Major: 3, Minor: 5}) {
				return failf(codeBadArgs, "target version %q not supported. Minimal \"3.5\"", target)
			}
			changed, err := datadir.ChangeSchema(dataDir, *v, *wait, force)
			if err != nil {
				return err
			}
			logSchema(etcdutlLog(cmd.ErrOrStderr()), changed)
			return nil
		},
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "Path to the etcd data dir")
	cmd.Flags().StringVar(&target, "target-version", "", "Target etcd version to migrate contents of data dir. Minimal value 3.5. Format \"X.Y\" for example 3.6.")
	cmd.Flags().BoolVar(&force, "force", false, "Ignore migration failure and forcefully override storage version. Not recommended.")
	_, _ = cmd.MarkFlagRequired("data-dir"), cmd.MarkFlagRequired("target-version") // they are defined above
	return cmd
}

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
	"strings"

	"github.com/spf13/cobra"

	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/internal/interrupt"
	"github.com/belaydb/belay/internal/show"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/snapshotfile"
	"github.com/belaydb/belay/store"
)

// hashKV is what etcdutl prints.
type hashKV struct {
	Hash            uint32 `json:"hash"`
	HashRevision    int64  `json:"hashRevision"`
	CompactRevision int64  `json:"compactRevision"`
}

func hashkvCommand(stdout io.Writer, format *string) *cobra.Command {
	var rev int64
	cmd := &cobra.Command{
		Use:   "hashkv <filename>",
		Short: "Prints the hash of keys and history that a file of etcd holds, or the store of a Belay member (DATA-DIR/member/store)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := printable(*format, "fields", "json", "simple", "table"); err != nil {
				return err
			}
			ctx, stop := interrupt.Context(cmd.Context())
			defer stop()
			h, err := hashOf(ctx, args[0], rev, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return printHashKV(stdout, h, *format)
		},
	}
	cmd.Flags().Int64Var(&rev, "rev", 0, "maximum revision to hash (default: latest revision)")
	return cmd
}

// hashOf never changes the file, nor the store of a member that runs, of which it says on stderr so. On
// a terminal it shows there how far it is.
func hashOf(ctx context.Context, path string, rev int64, stderr io.Writer) (h hashKV, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return h, err
	}
	if info.IsDir() {
		return hashOfStore(ctx, path, rev, stderr)
	}
	progress, end := meters(stderr, show.Bytes)
	defer end()
	err = snapshotfile.Read(path, true, func(f *snapshotfile.Reader) error {
		f.Tell = func(done, total int64) { progress("hashing", done, total) }
		h.Hash, h.HashRevision, h.CompactRevision, err = f.HashKV(rev)
		return err
	})
	return h, err
}

func hashOfStore(ctx context.Context, dir string, rev int64, stderr io.Writer) (h hashKV, err error) {
	if part := filepath.Join(dir, "member", "store"); isDir(part) {
		dir = part
	}
	runs := inUse(dir) // before what it has flushed is looked at
	st, err := store.OpenReadOnly(dir, store.Options{})
	if err != nil {
		return h, err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	view := mvcc.ReadView(st)
	defer view.Close()
	h.HashRevision, h.CompactRevision = rev, view.CompactRevision()
	if rev == 0 {
		h.HashRevision = view.Rev()
	}
	switch {
	case !runs || view.Err() != nil:
	case h.HashRevision > view.Rev():
		return h, fmt.Errorf("%w: a member runs on %s, and has flushed what is up to revision %d", mvcc.ErrFutureRev, dir, view.Rev())
	default:
		fmt.Fprintf(stderr, "Note: a member runs on %s. What it has flushed is hashed, up to revision %d; it may have more in memory.\n", dir, h.HashRevision)
	}
	progress, end := meters(stderr, func(n int64) string { return fmt.Sprintf("%d versions", n) })
	defer end()
	entries, _ := st.Entries() // what is damaged is found below, too
	// Each version has an entry in the index of revisions, too.
	done, total := int64(0), mvcc.HashSteps(entries/2)
	h.Hash, err = view.HashState(datadir.Walking(ctx, func(keys, _ int64) {
		done += keys
		progress("hashing", done, max(done, total))
	}), h.HashRevision)
	return h, err
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func printHashKV(w io.Writer, h hashKV, format string) error {
	row := []string{fmt.Sprint(h.Hash), fmt.Sprint(h.HashRevision), fmt.Sprint(h.CompactRevision)}
	var out bytes.Buffer
	switch format {
	case "fields":
		fmt.Fprintf(&out, "\"Hash\" : %d\n\"Hash revision\" : %d\n\"Compact revision\" : %d\n", h.Hash, h.HashRevision, h.CompactRevision)
	case "json":
		text, err := json.Marshal(h)
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "%s\n", text)
	case "table":
		show.Table(&out, [][]string{{"hash", "hash revision", "compact revision"}, row})
	default:
		fmt.Fprintln(&out, strings.Join(row, ", "))
	}
	_, err := w.Write(out.Bytes())
	return err
}

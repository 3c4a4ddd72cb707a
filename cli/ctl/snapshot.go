package ctl

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/internal/interrupt"
	"github.com/belaydb/belay/internal/show"
)

func (c *ctl) snapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot <subcommand>",
		Short: "Backups of the whole store",
		Long: "Backups of the whole store. To look into a file: belay util snapshot status FILE (or etcdutl);\n" +
			"to make a member of it: belay util snapshot restore FILE.",
		GroupID: groupMaintenance,
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "save <filename>",
		Short: "Saves a server's store to a file that belay util and etcdutl can restore",
		Example: "  " + c.name + " snapshot save backup.db\n" +
			"  " + c.name + " --endpoints=10.0.0.1:2379 snapshot save backup_$(date +%Y%m%d_%H%M%S).db\n" +
			"  " + c.name + " snapshot save /dev/stdout | zstd > backup.db.zst",
		RunE: c.run(func(cmd *cobra.Command, args []string) (err error) {
			if len(args) != 1 {
				return failf(codeBadArgs, "snapshot save expects one argument <filename>")
			}
			spec, _, err := c.configure(cmd)
			if err != nil {
				return err
			}
			ctx, stop := interrupt.Context(cmd.Context())
			defer func() {
				stop()
				if s := interrupt.By(ctx); s != nil && err != nil {
					interrupt.Raise(s) // as it ends etcdctl; but the part of a file has been removed
				}
			}()
			// A large store takes long: only a timeout given by flag applies.
			if cmd.Flags().Changed("command-timeout") {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, c.global.CommandTimeout)
				defer cancel()
			}
			if n := len(spec.Endpoints); n != 1 {
				return &exitError{
					code: codeInterrupted,
					err:  fmt.Errorf("snapshot must be requested to one selected node, not multiple %v", spec.Endpoints),
					hint: "Hint: choose the member to ask with --endpoints",
				}
			}
			cli, err := c.dial(ctx, spec)
			if err != nil {
				if e, ok := errors.AsType[*exitError](err); ok && e.code == codeBadConnection {
					e.code = codeInterrupted
				}
				return err
			}
			file, _ := terminal(c.err)
			meter := show.NewMeter(c.err, file, "snapshot", show.Bytes)
			said, version := c.out, ""
			if passesOn(args[0]) {
				said = c.err // standard output may be where the snapshot goes
				version, err = passSnapshotOn(ctx, cli, args[0], c.out, meter)
			} else {
				version, err = saveSnapshot(ctx, cli, args[0], meter)
			}
			if err != nil {
				return fail(codeInterrupted, err)
			}
			fmt.Fprintf(said, "Snapshot saved at %s\n", args[0])
			if version != "" {
				fmt.Fprintf(said, "Server version %s\n", version)
			}
			return nil
		}),
	})
	return cmd
}

// saveSnapshot streams a snapshot to path.part and, once it is complete, verified and durable,
// renames it to path. So there is never a partial backup under the final name. It returns the
// server's storage version.
func saveSnapshot(ctx context.Context, cli *clientv3.Client, path string, meter *show.Meter) (version string, err error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() { // said before everything is received
		return "", fmt.Errorf("could not save to %s: it is a directory, and the name of a file is needed", path)
	}
	part := path + ".part"
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return "", fmt.Errorf("could not open %s (%w)", part, err)
	}
	defer func() {
		f.Close()
		if rerr := os.Remove(part); err == nil && rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
			err = rerr
		}
	}()
	version, err = receiveVerified(ctx, cli, f, meter)
	if err != nil {
		return "", err
	}
	if err := f.Sync(); err != nil {
		return "", fmt.Errorf("could not fsync snapshot: %w", err)
	}
	if err := f.Close(); err != nil {
		return "", fmt.Errorf("could not close file descriptor: %w", err)
	}
	if err := os.Rename(part, path); err != nil {
		return "", fmt.Errorf("could not rename %s to %s (%w)", part, path, err)
	}
	if dir, err := os.Open(filepath.Dir(path)); err == nil {
		defer dir.Close()
		if err := dir.Sync(); err != nil {
			return "", fmt.Errorf("could not fsync the directory of %s: %w", path, err)
		}
	}
	return version, nil
}

// passesOn tells whether path is no place where a file is kept, but one that passes on what is
// written there, or drops it: a device, a pipe, or the process's own standard output. There nothing
// may be renamed to path: as root, that would replace the device by a file. etcdctl does so.
func passesOn(path string) bool {
	clean := filepath.Clean(path)
	if clean == stdoutPath || filepath.Dir(clean) == "/dev/fd" || filepath.Dir(clean) == "/proc/self/fd" {
		return true // though it may be a link to a regular file
	}
	info, err := os.Stat(path)
	return err == nil && !info.Mode().IsRegular() && !info.IsDir()
}

const stdoutPath = "/dev/stdout"

// passSnapshotOn streams a snapshot to a path that passesOn, of which stdout is one. What was written
// cannot be taken back: only the returned error tells that it is not whole.
func passSnapshotOn(ctx context.Context, cli *clientv3.Client, path string, stdout io.Writer, meter *show.Meter) (version string, err error) {
	if filepath.Clean(path) == stdoutPath { // not opened again, so that it is written where it stands
		return receiveVerified(ctx, cli, stdout, meter)
	}
	type opened struct {
		f   *os.File
		err error
	}
	ready := make(chan opened, 1)
	go func() { // a named pipe waits for its reader
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		ready <- opened{f, err}
	}()
	select {
	case o := <-ready:
		if o.err != nil {
			return "", fmt.Errorf("could not open %s (%w)", path, o.err)
		}
		version, err = receiveVerified(ctx, cli, o.f, meter)
		if cerr := o.f.Close(); err == nil {
			err = cerr
		}
		return version, err
	case <-ctx.Done():
		return "", fmt.Errorf("could not open %s (%w)", path, context.Cause(ctx))
	}
}

// receiveVerified writes a snapshot to w and verifies it by the digest at its end.
func receiveVerified(ctx context.Context, cli *clientv3.Client, w io.Writer, meter *show.Meter) (version string, err error) {
	digest := newTrailingDigest()
	version, size, err := receiveSnapshot(ctx, cli, io.MultiWriter(w, digest), meter.Show)
	meter.End()
	if err != nil {
		return "", err
	}
	// The database is a number of whole 512-byte sectors; its digest comes after it.
	if size%512 != sha256.Size {
		return "", fmt.Errorf("sha256 checksum not found [bytes: %d]", size)
	}
	return version, digest.verify()
}

// receiveSnapshot writes a snapshot to w and tells how much of how much is there. clientv3's own
// does not say how much is left.
func receiveSnapshot(ctx context.Context, cli *clientv3.Client, w io.Writer, tell func(done, total int64)) (version string, size int64, err error) {
	stream, err := pb.NewMaintenanceClient(cli.ActiveConnection()).Snapshot(ctx, &pb.SnapshotRequest{})
	if err != nil {
		return "", 0, clientv3.ContextError(ctx, err)
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return version, size, nil
		}
		if err != nil {
			if version == "" && size == 0 { // it was refused, or nobody was there
				return "", 0, err
			}
			return "", 0, fmt.Errorf("could not write snapshot: %w", clientv3.ContextError(ctx, err))
		}
		n, err := w.Write(resp.Blob)
		if err != nil {
			return "", 0, fmt.Errorf("could not write snapshot: %w", err)
		}
		size += int64(n)
		if resp.Version != "" {
			version = resp.Version
		}
		tell(size, size+int64(resp.RemainingBytes))
	}
}

// A trailingDigest checks a stream whose last 32 bytes are the SHA-256 of the rest, without knowing
// where it ends.
type trailingDigest struct {
	sum interface {
		io.Writer
		Sum([]byte) []byte
	}
	tail []byte // the last bytes seen, at most 32, not yet in sum
}

func newTrailingDigest() *trailingDigest { return &trailingDigest{sum: sha256.New()} }

func (d *trailingDigest) Write(p []byte) (int, error) {
	d.tail = append(d.tail, p...)
	if extra := len(d.tail) - sha256.Size; extra > 0 {
		d.sum.Write(d.tail[:extra]) // never fails
		d.tail = append(d.tail[:0], d.tail[extra:]...)
	}
	return len(p), nil
}

func (d *trailingDigest) verify() error {
	if got := d.sum.Sum(nil); !bytes.Equal(got, d.tail) {
		return fmt.Errorf("snapshot damaged on the way: its sha256 is %x, the server sent %x", got, d.tail)
	}
	return nil
}

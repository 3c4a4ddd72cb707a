package datadir

import (
	"errors"
	"fmt"
	"os"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"

	"github.com/belaydb/belay/snapshotfile"
)

// Prepare makes the data directory if necessary, durably and with the file that keeps an etcd out,
// removes what an interrupted snapshot left, and examines the parts. It refuses a directory of
// etcd's, one that cannot be written, and parts that do not belong together; then it has changed no
// part.
func Prepare(fs vfs.FS, paths Paths) (*Parts, error) {
	dir := paths.root()
	if _, err := fs.Stat(fs.PathJoin(paths.Member, etcdsFolder, "db")); err == nil {
		if parts, err := Look(fs, paths); err != nil || parts.Log() != nil {
			return nil, fmt.Errorf("%s has data of Belay, and beside it data of an etcd that was started there later; nothing in it was changed. To go on with Belay's, move member/snap and member/wal away; what clients wrote to that etcd is in those alone", dir)
		}
		return nil, fmt.Errorf("%s is a data directory of etcd, not of Belay; nothing in it was changed. Choose another --data-dir, or make the data Belay's: `belay util migrate --data-dir %s` says how (docs/migration.md)", dir, dir)
	}
	if err := fs.MkdirAll(paths.Member, 0o700); err != nil {
		err = plainPathError(err)
		if path, to, ok := leadsNowhere(err); ok {
			err = fmt.Errorf("%s is a symbolic link to %s, which does not exist. Make that directory, or name another --data-dir", path, to)
		}
		return nil, fmt.Errorf("cannot access data directory: %w", err)
	}
	// The names of both folders must survive a power failure like what is in them.
	for _, dir := range []string{dir, fs.PathDir(dir)} {
		if err := SyncDir(fs, dir); err != nil {
			return nil, fmt.Errorf("cannot access data directory: %w", plainPathError(err))
		}
	}
	if err := checkWritable(fs, dir); err != nil {
		return nil, fmt.Errorf("cannot access data directory: %w", err)
	}
	if err := keepEtcdOut(fs, paths.Member); err != nil {
		return nil, fmt.Errorf("cannot access data directory: %w", plainPathError(err))
	}
	if err := snapshotfile.RemoveLeftovers(dir); err != nil {
		return nil, fmt.Errorf("cannot remove what an interrupted snapshot left: %w", plainPathError(err))
	}
	parts, err := Look(fs, paths)
	if err == nil && parts.Log() == nil {
		// The first log takes this name when it is whole, which a link does not let it.
		if to, linkErr := os.Readlink(paths.Log); linkErr == nil {
			return nil, fmt.Errorf("%s is a symbolic link to %s, where there is no log. Remove the link, and name the directory that is to hold the log with --wal-dir", paths.Log, to)
		}
	}
	return parts, plainPathError(err)
}

// leadsNowhere reports whether a folder could not be made because a symbolic link is in its place
// whose target is not there: "file exists", says the system.
func leadsNowhere(err error) (path, to string, ok bool) {
	failed, isPath := errors.AsType[*os.PathError](err)
	if !isPath {
		return "", "", false
	}
	to, linkErr := os.Readlink(failed.Path)
	_, targetErr := os.Stat(failed.Path)
	return failed.Path, to, linkErr == nil && errors.Is(targetErr, os.ErrNotExist)
}

// keepEtcdOut puts a file where etcd has a folder. An etcd started on this data directory by
// mistake would find nothing of its own and serve an empty cluster; because of the file it ends,
// with an error that names the file.
func keepEtcdOut(fs vfs.FS, dir string) error {
	if _, err := fs.Stat(fs.PathJoin(dir, etcdsFolder)); err == nil || !oserror.IsNotExist(err) {
		return err
	}
	return WriteFile(fs, dir, etcdsFolder, []byte("This is a data directory of Belay. The file keeps an etcd from starting here with nothing.\n"))
}

const etcdsFolder = "snap"

func checkWritable(fs vfs.FS, dir string) error {
	name := fs.PathJoin(dir, ".touch")
	f, err := fs.Create(name, "")
	if err != nil {
		return plainPathError(err)
	}
	return errors.Join(f.Close(), fs.Remove(name))
}

// plainPathError reduces an error to what a person needs: the path and the operating system's text.
func plainPathError(err error) error {
	var pathError *os.PathError
	if errors.As(err, &pathError) {
		return pathError
	}
	return err
}

// smallestDisk has room for the reserved free space (128 MiB), the log and a little data.
const smallestDisk = 512 << 20

// WarnOfSmallDisks warns about file systems under the store and the log that are smaller than a
// member needs.
func (p *Parts) WarnOfSmallDisks(logger *zap.Logger) {
	if logger == nil {
		logger = zap.NewNop()
	}
	dirs := []string{p.paths.Store}
	if p.paths.logApart() {
		dirs = append(dirs, p.paths.Log)
	}
	for _, dir := range dirs {
		usage, err := p.fs.GetDiskUsage(dir)
		if err == nil && usage.TotalBytes < smallestDisk {
			logger.Warn("the file system is smaller than a member needs: with less than 128 MiB free, writes are refused",
				zap.String("path", dir), zap.Uint64("total-bytes", usage.TotalBytes), zap.Uint64("available-bytes", usage.AvailBytes), zap.Uint64("wanted-bytes", smallestDisk))
		}
	}
}

//go:build unix

package datadir

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// Denied adds to an error about a file that the system denied, such as one of a member that was
// once started as root, as whom this process runs, and whose the file is. Any other error, and what
// owner and mode do not explain, such as what root is denied, it returns as it is.
func Denied(err error) error {
	file, isFile := errors.AsType[*os.PathError](err)
	uid := os.Geteuid()
	if !isFile || !errors.Is(err, os.ErrPermission) || uid == 0 {
		return err
	}
	for path := filepath.Clean(file.Path); ; path = filepath.Dir(path) {
		info, statErr := os.Stat(path)
		if statErr != nil && path != filepath.Dir(path) {
			continue // not there yet, or in a folder that cannot be read
		}
		if statErr != nil {
			return err
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return err
		}
		if int(stat.Uid) == uid {
			needs := os.FileMode(0o600)
			if info.IsDir() {
				needs = 0o700
			}
			if info.Mode()&needs != needs {
				return fmt.Errorf("%w; %s has mode %#o, which keeps its own user out: chmod u+rwX it", err, path, info.Mode().Perm())
			}
			if path == filepath.Clean(file.Path) {
				continue // who may not write in its folder cannot remove or replace it
			}
			return err // the system has another reason, such as a security module's
		}
		return fmt.Errorf("%w; this process runs as %s, and %s belongs to %s, with mode %#o: start the member as that user, or give its files to this one (chown -R)",
			err, userName(uid), path, userName(int(stat.Uid)), info.Mode().Perm())
	}
}

func userName(uid int) string {
	id := strconv.Itoa(uid)
	if u, err := user.LookupId(id); err == nil {
		return u.Username + " (uid " + id + ")"
	}
	return "uid " + id
}

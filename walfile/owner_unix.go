//go:build unix

package walfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// GiveTo gives path, with all that is in it, to the user and group to whom like belongs: members run
// as users of their own, and tools on their files often as root. What belongs to them already is left
// alone, so whoever works on files of their own needs no rights for it.
func GiveTo(path, like string) error {
	info, err := os.Stat(like)
	if err != nil {
		return err
	}
	to, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if is, ok := info.Sys().(*syscall.Stat_t); ok && is.Uid == to.Uid && is.Gid == to.Gid {
			return nil
		}
		err = os.Lchown(name, int(to.Uid), int(to.Gid))
		if errors.Is(err, fs.ErrPermission) {
			err = fmt.Errorf("%s belongs to user %d and group %d, and what this command makes cannot be given to them: run it as that user, or as root (%w)", like, to.Uid, to.Gid, err)
		}
		return err
	})
}

package datadir

import (
	"io"
	"os"
	"syscall"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// FS is the operating system's file system, except that what is created through it only the owner
// can read, whatever the umask: files have mode 0600 and folders 0700. The folders alone would be
// enough as long as files stay in them; with copies, archives and folders whose mode was changed
// they do not.
//
// Large writes pass the page cache by; see direct.go.
func FS() vfs.FS { return privateFS{directFS{vfs.Default}} }

// privateFS creates each file itself before vfs.Default opens it, which knows no mode. Changing the
// mode afterwards would be too late if another process opened the file in between.
type privateFS struct{ vfs.FS }

const (
	fileMode   = 0o600
	folderMode = 0o700
)

// Create removes a file of that name first, as vfs.Default does: it may have other names.
func (p privateFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	err := touch(name, os.O_EXCL)
	for oserror.IsExist(err) {
		if err := os.Remove(name); err != nil && !oserror.IsNotExist(err) {
			return nil, err
		}
		err = touch(name, os.O_EXCL)
	}
	if err != nil {
		return nil, err
	}
	return p.FS.OpenReadWrite(name, c)
}

func (p privateFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	if err := touch(name, 0); err != nil {
		return nil, err
	}
	return p.FS.OpenReadWrite(name, c, opts...)
}

// Lock must not even open an existing file: the process may hold the lock already, and POSIX drops
// a lock when any descriptor of the file is closed.
func (p privateFS) Lock(name string) (io.Closer, error) {
	if err := touch(name, os.O_EXCL); err != nil && !oserror.IsExist(err) {
		return nil, err
	}
	return p.FS.Lock(name)
}

func (p privateFS) MkdirAll(dir string, _ os.FileMode) error { return p.FS.MkdirAll(dir, folderMode) }

func (p privateFS) Unwrap() vfs.FS { return p.FS }

func touch(name string, flags int) error {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_CLOEXEC|flags, fileMode)
	if err != nil {
		return err
	}
	return f.Close()
}

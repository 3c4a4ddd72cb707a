package datadir

import (
	"io"
	"os"
	"syscall"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// FS is the operating system's file system, but what is made through it nobody else can read, whatever
// the umask: files have mode 0600 and folders 0700. The folders alone would do as long as files stay in
// them; copies, archives and folders whose mode somebody changed do not keep them there.
func FS() vfs.FS { return privateFS{vfs.Default} }

// privateFS makes each file itself before vfs.Default opens it, for that knows no mode. A mode changed
// afterwards would come too late for whoever opened the file in between.
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

// Lock must not so much as open a file that exists: the process may hold the lock already, and POSIX drops
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

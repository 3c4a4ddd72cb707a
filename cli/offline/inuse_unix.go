//go:build unix

package offline

import (
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// inUse reports whether another process, a member, has the store in dir open. It asks for the lock
// without taking it, which could refuse a member that starts just then. Where it cannot be asked,
// nobody is said to have it. REQUIRES: no member of this process has the store open; its lock would
// be lost when the file is closed here, as fcntl has it.
func inUse(dir string) bool {
	f, err := os.Open(filepath.Join(dir, "LOCK"))
	if err != nil {
		return false
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	return unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock) == nil && lock.Type != unix.F_UNLCK
}

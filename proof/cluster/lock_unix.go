//go:build unix

package cluster

import (
	"os"
	"syscall"
)

// lock waits until no other process holds the file's lock; closing the file gives it back.
func lock(f *os.File) error {
	for {
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != syscall.EINTR {
			return err
		}
	}
}

package disk

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// layOut reserves the blocks, as fio and raft logs do, so that a sync need not wait for their
// allocation.
func layOut(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return f.Truncate(size) // a file system that cannot
	}
	return err
}

func syncData(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }

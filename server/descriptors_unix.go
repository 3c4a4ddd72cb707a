//go:build unix

package server

import (
	"os"
	"syscall"
)

// descriptors returns the open file descriptors and their limit; 0 where the system does not tell.
func descriptors() (used, limit uint64) {
	if entries, err := os.ReadDir("/proc/self/fd"); err == nil {
		used = uint64(len(entries))
	}
	var r syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r) == nil {
		limit = uint64(r.Cur)
	}
	return used, limit
}

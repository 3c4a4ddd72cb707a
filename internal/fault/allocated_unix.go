//go:build unix

package fault

import (
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// allocated is how much of the disk a file has, bytes: more than its size if blocks were reserved.
func allocated(info vfs.FileInfo) int64 {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return int64(s.Blocks) * 512 //nolint:unconvert // its type differs between systems
	}
	return 0
}

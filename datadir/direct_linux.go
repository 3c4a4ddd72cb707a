package datadir

import (
	"os"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// openDirect opens a file that is open once more, for direct writes; nil: they are not for this
// file. align is what memory must be aligned to, in bytes.
func openDirect(name string, open vfs.File) (f *os.File, align uintptr) {
	fd := open.Fd()
	if fd == vfs.InvalidFd {
		return nil, 0
	}
	var st, again unix.Statx_t
	const mask = unix.STATX_TYPE | unix.STATX_INO | unix.STATX_DIOALIGN
	if unix.Statx(int(fd), "", unix.AT_EMPTY_PATH, mask, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, 0
	}
	// A kernel before 6.1 does not say how direct writes are aligned. Sectors are what disks want.
	align = 512
	if st.Mask&unix.STATX_DIOALIGN != 0 {
		if align = uintptr(st.Dio_mem_align); align == 0 || st.Dio_offset_align == 0 || directPage%st.Dio_offset_align != 0 {
			return nil, 0
		}
	}
	f, err := os.OpenFile(name, os.O_WRONLY|syscall.O_DIRECT|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0
	}
	// The file may have been renamed since, and another have its name.
	if unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, mask, &again) != nil ||
		again.Ino != st.Ino || again.Dev_major != st.Dev_major || again.Dev_minor != st.Dev_minor {
		_ = f.Close() // nothing was written
		return nil, 0
	}
	return f, align
}

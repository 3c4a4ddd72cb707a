//go:build !linux

package disk

import "os"

func layOut(f *os.File, size int64) error { return f.Truncate(size) }

// syncData is a whole fsync where there is no fdatasync.
func syncData(f *os.File) error { return f.Sync() }

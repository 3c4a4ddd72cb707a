package raftlog

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestErrorsNameFileOnce: the file system names the file in its errors, and so do we.
func TestErrorsNameFileOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing")
	_, err := readFile(vfs.Default, path, 1)
	if !errors.Is(err, fs.ErrNotExist) || strings.Count(err.Error(), path) != 1 {
		t.Errorf("a missing file: %v", err)
	}
	renamed := vfs.Default.Rename(path, path+"2")
	if err := fileError("rename", path, renamed); !errors.Is(err, fs.ErrNotExist) || strings.Count(err.Error(), path+" ") != 1 {
		t.Errorf("a rename: %v", err)
	}
	if err := fileError("write", path, syscall.EIO); !errors.Is(err, syscall.EIO) || strings.Count(err.Error(), path) != 1 {
		t.Errorf("an error without a path: %v", err)
	}
}

//go:build unix

package datadir

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestPrivateWhateverTheUmask: every way to make a file or a folder. No test of this package runs
// beside another: the umask is the process's.
func TestPrivateWhateverTheUmask(t *testing.T) {
	dir := t.TempDir()
	for _, umask := range []int{0, 0o022, 0o077} {
		old := syscall.Umask(umask)
		defer syscall.Umask(old)
		fs := FS()
		root := filepath.Join(dir, fmt.Sprintf("umask-%o", umask), "b")
		if err := fs.MkdirAll(root, 0o755); err != nil {
			t.Fatal(err)
		}
		path := func(name string) string { return filepath.Join(root, name) }
		for _, name := range []string{"created", "created"} { // the second time there is one
			f, err := fs.Create(path(name), "")
			if err != nil {
				t.Fatal(err)
			}
			if info, err := f.Stat(); err != nil || info.Size() != 0 {
				t.Errorf("a created file has %d bytes: %v", info.Size(), err)
			}
			if _, err := f.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			f.Close()
		}
		f, err := fs.OpenReadWrite(path("opened"), "")
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		if err := fs.Link(path("created"), path("linked")); err != nil {
			t.Fatal(err)
		}
		if f, err = fs.ReuseForWrite(path("opened"), path("reused"), ""); err != nil {
			t.Fatal(err)
		}
		f.Close()
		lock, err := fs.Lock(path("LOCK"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fs.Lock(path("LOCK")); err == nil {
			t.Error("a file was locked twice")
		}
		lock.Close()
		if lock, err = fs.Lock(path("LOCK")); err != nil {
			t.Error(err)
		} else {
			lock.Close()
		}
		names, err := fs.List(root)
		if err != nil || len(names) != 4 {
			t.Errorf("%v, %v", names, err)
		}
		for _, name := range append(names, ".", "..") {
			info, err := os.Stat(path(name))
			if err != nil {
				t.Fatal(err)
			}
			want := os.FileMode(fileMode)
			if info.IsDir() {
				want = folderMode
			}
			if got := info.Mode().Perm(); got != want {
				t.Errorf("umask %o: %s has mode %o, want %o", umask, path(name), got, want)
			}
		}
	}
}

// TestCreateLeavesOtherNamesAlone: a file that has a second name, as one that a snapshot links, is
// not emptied under it.
func TestCreateLeavesOtherNamesAlone(t *testing.T) {
	fs, dir := FS(), t.TempDir()
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	f, err := fs.Create(first, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("content")); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := fs.Link(first, second); err != nil {
		t.Fatal(err)
	}
	if f, err = fs.Create(first, ""); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if data, err := os.ReadFile(second); err != nil || string(data) != "content" {
		t.Errorf("%q, %v", data, err)
	}
}

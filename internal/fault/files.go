package fault

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// FS is a file system on which the Layer's disks are under next's files: those below logDir belong
// to the raft log's, all others to the store's.
func (l *Layer) FS(next vfs.FS, logDir string) vfs.FS {
	return brokenFS{FS: next, layer: l, logDir: filepath.Clean(logDir)}
}

// disk is where a file lies.
type disk func(s State) Disk

type brokenFS struct {
	vfs.FS
	layer  *Layer
	logDir string
}

func (fs brokenFS) Unwrap() vfs.FS { return fs.FS }

func (fs brokenFS) disk(name string) disk {
	name = filepath.Clean(name)
	if name == fs.logDir || strings.HasPrefix(name, fs.logDir+string(filepath.Separator)) {
		return func(s State) Disk { return s.Log }
	}
	return func(s State) Disk { return s.Store }
}

func (fs brokenFS) file(name string, f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &brokenFile{File: f, name: name, layer: fs.layer, disk: fs.disk(name)}, nil
}

func (fs brokenFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := fs.FS.Create(name, c)
	return fs.file(name, f, err)
}

func (fs brokenFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := fs.FS.Open(name, opts...)
	return fs.file(name, f, err)
}

func (fs brokenFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := fs.FS.OpenReadWrite(name, c, opts...)
	return fs.file(name, f, err)
}

func (fs brokenFS) OpenDir(name string) (vfs.File, error) {
	f, err := fs.FS.OpenDir(name)
	return fs.file(name, f, err)
}

func (fs brokenFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := fs.FS.ReuseForWrite(oldname, newname, c)
	return fs.file(newname, f, err)
}

func (fs brokenFS) GetDiskUsage(path string) (vfs.DiskUsage, error) {
	u, err := fs.FS.GetDiskUsage(path)
	if s, _ := fs.layer.get(); err == nil && fs.disk(path)(s).Full {
		u.AvailBytes, u.UsedBytes = 0, u.TotalBytes
	}
	return u, err
}

type brokenFile struct {
	vfs.File
	name  string
	layer *Layer
	disk  disk
}

// sync makes one sync of the real file, when the disk lets it.
func (f *brokenFile) sync(real func() error) error {
	began := time.Now()
	for {
		s, changed := f.layer.get()
		d := f.disk(s)
		var timer <-chan time.Time
		if !d.Stall {
			wait := d.Delay - time.Since(began)
			if wait <= 0 {
				return real()
			}
			timer = time.After(wait)
		}
		select {
		case <-changed:
		case <-timer:
			return real()
		}
	}
}

func (f *brokenFile) Sync() error     { return f.sync(f.File.Sync) }
func (f *brokenFile) SyncData() error { return f.sync(f.File.SyncData) }

func (f *brokenFile) SyncTo(length int64) (full bool, err error) {
	err = f.sync(func() (err error) {
		full, err = f.File.SyncTo(length)
		return err
	})
	return full, err
}

// grow is the error of an operation that needs more of the disk than the file has.
func (f *brokenFile) grow(op string) error {
	if s, _ := f.layer.get(); f.disk(s).Full {
		return &os.PathError{Op: op, Path: f.name, Err: syscall.ENOSPC}
	}
	return nil
}

// Write appends, as all do here that write without saying where.
func (f *brokenFile) Write(p []byte) (int, error) {
	if err := f.grow("write"); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f *brokenFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.grow("write"); err != nil {
		info, statErr := f.File.Stat()
		if statErr != nil || off+int64(len(p)) > max(info.Size(), allocated(info)) {
			return 0, err
		}
	}
	return f.File.WriteAt(p, off)
}

func (f *brokenFile) Preallocate(offset, length int64) error {
	if err := f.grow("fallocate"); err != nil {
		return err
	}
	return f.File.Preallocate(offset, length)
}

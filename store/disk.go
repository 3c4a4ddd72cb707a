package store

import (
	"os"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// maxWatched is how many operations on files are watched at a time; beyond that some are not.
const maxWatched = 256

// diskWatch knows the operations on the store's files that are under way, and when one last made
// progress. The engine's own check for slow disks logs a line, but not when it is over.
type diskWatch struct {
	epoch    time.Time
	began    [maxWatched]atomic.Int64 // nanoseconds since epoch, plus one; 0: the slot is free
	next     atomic.Uint64            // where to look for a free slot
	progress atomic.Int64             // the same, of the last write or sync that ended well
}

func newDiskWatch() *diskWatch { return &diskWatch{epoch: time.Now()} }

func (d *diskWatch) now() int64 { return int64(time.Since(d.epoch)) + 1 }

// begin records that an operation begins; the result, even nil, must be passed to end.
func (d *diskWatch) begin() *atomic.Int64 {
	now, at := d.now(), d.next.Add(1)
	for i := range uint64(maxWatched) {
		if slot := &d.began[(at+i)%maxWatched]; slot.CompareAndSwap(0, now) {
			return slot
		}
	}
	return nil
}

func (d *diskWatch) end(slot *atomic.Int64) {
	if slot != nil {
		slot.Store(0)
	}
}

// ended is end for a write or sync.
func (d *diskWatch) ended(slot *atomic.Int64, err error) {
	d.end(slot)
	if err == nil {
		d.progress.Store(d.now())
	}
}

// Disk returns the state of the disk under the store: for how long the oldest operation on a file
// has been under way, 0 if none is, and how long ago a write or sync last succeeded, 0 if none has
// yet. It takes no lock and waits for nothing.
func (s *Store) Disk() (oldest, sinceProgress time.Duration) {
	d := s.disk
	now := d.now()
	for i := range d.began {
		if at := d.began[i].Load(); at != 0 {
			oldest = max(oldest, time.Duration(now-at), 1)
		}
	}
	if at := d.progress.Load(); at != 0 {
		sinceProgress = max(time.Duration(now-at), 1)
	}
	return oldest, sinceProgress
}

// watchedFS reports every operation to a diskWatch.
type watchedFS struct {
	vfs.FS
	disk *diskWatch
}

func (fs watchedFS) file(slot *atomic.Int64, f vfs.File, err error) (vfs.File, error) {
	fs.disk.end(slot)
	if err != nil {
		return nil, err
	}
	return watchedFile{f, fs.disk}, nil
}

func (fs watchedFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	slot := fs.disk.begin()
	f, err := fs.FS.Create(name, c)
	return fs.file(slot, f, err)
}

func (fs watchedFS) Link(oldname, newname string) error {
	defer fs.disk.end(fs.disk.begin())
	return fs.FS.Link(oldname, newname)
}

func (fs watchedFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	slot := fs.disk.begin()
	f, err := fs.FS.Open(name, opts...)
	return fs.file(slot, f, err)
}

func (fs watchedFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	slot := fs.disk.begin()
	f, err := fs.FS.OpenReadWrite(name, c, opts...)
	return fs.file(slot, f, err)
}

func (fs watchedFS) OpenDir(name string) (vfs.File, error) {
	slot := fs.disk.begin()
	f, err := fs.FS.OpenDir(name)
	return fs.file(slot, f, err)
}

func (fs watchedFS) Remove(name string) error {
	defer fs.disk.end(fs.disk.begin())
	return fs.FS.Remove(name)
}

func (fs watchedFS) RemoveAll(name string) error {
	defer fs.disk.end(fs.disk.begin())
	return fs.FS.RemoveAll(name)
}

func (fs watchedFS) Rename(oldname, newname string) error {
	defer fs.disk.end(fs.disk.begin())
	return fs.FS.Rename(oldname, newname)
}

func (fs watchedFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	slot := fs.disk.begin()
	f, err := fs.FS.ReuseForWrite(oldname, newname, c)
	return fs.file(slot, f, err)
}

func (fs watchedFS) MkdirAll(dir string, perm os.FileMode) error {
	defer fs.disk.end(fs.disk.begin())
	return fs.FS.MkdirAll(dir, perm)
}

func (fs watchedFS) List(dir string) ([]string, error) {
	defer fs.disk.end(fs.disk.begin())
	return fs.FS.List(dir)
}

func (fs watchedFS) Stat(name string) (vfs.FileInfo, error) {
	defer fs.disk.end(fs.disk.begin())
	return fs.FS.Stat(name)
}

func (fs watchedFS) Unwrap() vfs.FS { return fs.FS }

type watchedFile struct {
	vfs.File
	disk *diskWatch
}

func (f watchedFile) Close() error {
	defer f.disk.end(f.disk.begin())
	return f.File.Close()
}

func (f watchedFile) Read(p []byte) (int, error) {
	defer f.disk.end(f.disk.begin())
	return f.File.Read(p)
}

func (f watchedFile) ReadAt(p []byte, off int64) (int, error) {
	slot := f.disk.begin()
	n, err := f.File.ReadAt(p, off)
	f.disk.end(slot)
	return n, err
}

func (f watchedFile) Write(p []byte) (int, error) {
	slot := f.disk.begin()
	n, err := f.File.Write(p)
	f.disk.ended(slot, err)
	return n, err
}

func (f watchedFile) WriteAt(p []byte, off int64) (int, error) {
	slot := f.disk.begin()
	n, err := f.File.WriteAt(p, off)
	f.disk.ended(slot, err)
	return n, err
}

func (f watchedFile) Preallocate(offset, length int64) error {
	defer f.disk.end(f.disk.begin())
	return f.File.Preallocate(offset, length)
}

func (f watchedFile) Stat() (vfs.FileInfo, error) {
	defer f.disk.end(f.disk.begin())
	return f.File.Stat()
}

func (f watchedFile) Sync() error {
	slot := f.disk.begin()
	err := f.File.Sync()
	f.disk.ended(slot, err)
	return err
}

func (f watchedFile) SyncTo(length int64) (bool, error) {
	slot := f.disk.begin()
	full, err := f.File.SyncTo(length)
	f.disk.ended(slot, err)
	return full, err
}

func (f watchedFile) SyncData() error {
	slot := f.disk.begin()
	err := f.File.SyncData()
	f.disk.ended(slot, err)
	return err
}

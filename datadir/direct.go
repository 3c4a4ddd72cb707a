package datadir

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Large writes that pass the page cache by.
//
// A value of 1 MB is written twice, by the raft log and by the store, and a segment of the log is
// filled with zeros before. Through the page cache each of these bytes is copied once more, into
// pages that the kernel must find, clear from its lists later, and often has never touched before:
// that was a third of the CPU of such a put. Neither file is read soon: the log by followers that
// are behind, and a value by a reader who finds it in no cache. So whatever comes in large pieces
// goes to the disk from the writer's own memory (O_DIRECT).
//
// What is promised does not change. A direct write is no more durable than another before a sync:
// the disk may hold it in a cache, and the length and blocks of the file may be in memory. Both
// kinds may be torn alike. The pages on both sides of a direct write are whole pages, so the disk
// never has to read a sector of an older write in order to change a part of it; what is less than a
// page goes through the page cache. The kernel keeps both ways consistent as long as they do not
// write the same page at the same time, and one goroutine writes a file here.
//
// A file system that does not know such writes, or wants them aligned otherwise, gets ordinary
// ones.
const (
	// directBytes is how large a write is at least that is worth it, in bytes.
	directBytes = 64 << 10
	// directPage is what offsets and lengths of direct writes are multiples of, in bytes: a page,
	// and the largest sector of a disk.
	directPage = 4096
	// chunkBytes is what a file that is written from its start to its end holds in memory, from the
	// first large write on, in bytes: the writes of the engine end anywhere.
	chunkBytes = 1 << 20
)

// directFS has large writes pass the page cache by. Files that it opens for writing have one writer
// at a time, which begins at the start of the file or uses WriteAt.
type directFS struct{ vfs.FS }

func (fs directFS) Unwrap() vfs.FS { return fs.FS }

func (fs directFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := fs.FS.OpenReadWrite(name, c, opts...)
	if err != nil {
		return nil, err
	}
	return &directFile{File: f, name: name}, nil
}

// directFile is a file that is open for writing.
type directFile struct {
	vfs.File
	name string

	tried  bool     // whether direct was opened
	direct *os.File // the same file; nil: not opened, or of no use
	align  uintptr  // of memory, in bytes

	// Of Write: pos is how much was written. From the first large write on, chunk holds the bytes
	// from base, a multiple of directPage, up to pos; flushed of them are in the file.
	pos     int64
	base    int64
	chunk   *chunk
	held    int
	flushed int
	// apart: there was a chunk, which WriteAt has ended; the file's own position is not pos.
	apart bool
}

type chunk [chunkBytes]byte

// chunks are those of files that are closed. Go aligns so large an array to a page.
var chunks = sync.Pool{New: func() any { return new(chunk) }}

// openDirect makes direct usable, if it can be.
func (f *directFile) openDirect() bool {
	if !f.tried {
		f.tried = true
		f.direct, f.align = openDirect(f.name, f.File)
	}
	return f.direct != nil
}

// closeDirect has all further writes be ordinary ones.
func (f *directFile) closeDirect() error {
	if f.direct == nil {
		return nil
	}
	direct := f.direct
	f.direct = nil
	return direct.Close()
}

func (f *directFile) WriteAt(p []byte, off int64) (int, error) {
	if f.chunk != nil {
		if err := f.dropChunk(); err != nil {
			return 0, err
		}
	}
	head := int(-off & (directPage - 1))
	whole := (len(p) - head) &^ (directPage - 1)
	if whole < directBytes || !f.openDirect() || uintptr(unsafe.Pointer(&p[head]))%f.align != 0 {
		return f.File.WriteAt(p, off)
	}
	if head > 0 {
		if n, err := f.File.WriteAt(p[:head], off); err != nil {
			return n, err
		}
	}
	if n, err := f.writeDirect(p[head:head+whole], off+int64(head)); err != nil {
		return head + n, err
	}
	if rest := p[head+whole:]; len(rest) > 0 {
		n, err := f.File.WriteAt(rest, off+int64(head+whole))
		return head + whole + n, err
	}
	return len(p), nil
}

// writeDirect writes whole pages to a whole page. Where the file system does not take that, it does
// an ordinary write, this time and from now on. What of p was written before that is written twice.
func (f *directFile) writeDirect(p []byte, off int64) (int, error) {
	if f.direct != nil {
		n, err := f.direct.WriteAt(p, off)
		if !errors.Is(err, syscall.EINVAL) {
			return n, err
		}
		if err := f.closeDirect(); err != nil {
			return 0, err
		}
	}
	return f.File.WriteAt(p, off)
}

func (f *directFile) Write(p []byte) (int, error) {
	if f.apart {
		n, err := f.File.WriteAt(p, f.pos)
		f.pos += int64(n)
		return n, err
	}
	if f.chunk == nil {
		// All up to here is in the file. What comes goes into it up to the end of a page, or if the
		// write is not large.
		head := int(-f.pos & (directPage - 1))
		if len(p)-head < directBytes || !f.openDirect() {
			n, err := f.File.Write(p)
			f.pos += int64(n)
			return n, err
		}
		if head > 0 {
			n, err := f.File.Write(p[:head])
			f.pos += int64(n)
			if err != nil {
				return n, err
			}
		}
		f.chunk, f.base = chunks.Get().(*chunk), f.pos
		n, err := f.hold(p[head:])
		return head + n, err
	}
	return f.hold(p)
}

// hold takes p into the chunk, and writes the chunk when it is full.
func (f *directFile) hold(p []byte) (taken int, err error) {
	for len(p) > 0 {
		n := copy(f.chunk[f.held:], p)
		f.held += n
		if f.held == chunkBytes {
			if _, err := f.writeDirect(f.chunk[:], f.base); err != nil {
				f.held -= n
				return taken, err
			}
			f.base += chunkBytes
			f.held, f.flushed = 0, 0
		}
		f.pos += int64(n)
		taken += n
		p = p[n:]
	}
	return taken, nil
}

// flush writes what is held and not in the file. The chunk keeps it: if more comes, its pages are
// written again, as whole ones.
func (f *directFile) flush() error {
	if f.held == f.flushed {
		return nil
	}
	from := f.flushed &^ (directPage - 1)
	whole := f.held &^ (directPage - 1)
	if whole-from < directBytes {
		whole = from
	} else if _, err := f.writeDirect(f.chunk[from:whole], f.base+int64(from)); err != nil {
		return err
	}
	if whole < f.held {
		if _, err := f.File.WriteAt(f.chunk[whole:f.held], f.base+int64(whole)); err != nil {
			return err
		}
	}
	f.flushed = f.held
	return nil
}

func (f *directFile) Sync() error {
	if err := f.flush(); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *directFile) SyncData() error {
	if err := f.flush(); err != nil {
		return err
	}
	return f.File.SyncData()
}

// SyncTo has begun with all but the chunk: direct writes need none.
func (f *directFile) SyncTo(length int64) (full bool, err error) {
	if f.chunk != nil {
		return false, nil
	}
	return f.File.SyncTo(length)
}

func (f *directFile) Stat() (vfs.FileInfo, error) {
	if err := f.flush(); err != nil {
		return nil, err
	}
	return f.File.Stat()
}

func (f *directFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.flush(); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *directFile) Close() error {
	return errors.Join(f.dropChunk(), f.closeDirect(), f.File.Close())
}

// dropChunk flushes and goes on without a chunk.
func (f *directFile) dropChunk() error {
	err := f.flush()
	if f.chunk != nil {
		chunks.Put(f.chunk)
		f.chunk, f.held, f.flushed, f.apart = nil, 0, 0, true
	}
	return err
}

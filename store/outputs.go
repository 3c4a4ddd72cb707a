package store

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// outputs are the files that flushes and compactions are writing.
//
// The engine (Pebble 2.1.7) panics when the last bytes of a file of values cannot be written, or its
// sync fails: it closes what it has closed already. So no operation on such a file fails for it. A
// flush or compaction writes a table beside each, which it ends after the values: the sync of that
// fails instead, and with it the job, which is tried again or is the end of the member, as any other.
// The engine removes the files that are left then.
//
// The job that writes a file of values anew, without its garbage, has no table (what it reads: see
// rewrites.go). What it writes before the last bytes may fail. For room for these it waits; if the
// disk fails, which is the end of the member, it stays where it is.
type outputs struct {
	mu sync.Mutex
	// jobs are those of the files that are open, by path.
	jobs map[string]int
	// failed are the jobs that have a file of values that is not whole, and why.
	failed map[int]error
	// rewrites are the jobs without tables.
	rewrites map[int]rewrite
	// refused: one of these would have met damage, so that there are no more of them.
	refused atomic.Bool
	// stuck is closed when one of these stays for ever: the engine's Close would wait for it.
	stuck chan struct{}
	once  sync.Once // for that
}

func newOutputs() *outputs {
	return &outputs{jobs: make(map[string]int), failed: make(map[int]error), rewrites: make(map[int]rewrite), stuck: make(chan struct{})}
}

// created notes whose a file is. Nothing has been written to it.
func (o *outputs) created(job int, path string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.jobs[path] = job
}

func (o *outputs) closed(path string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.jobs, path)
}

func (o *outputs) rewriteBegins(job int, r rewrite) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rewrites[job] = r
}

// rewrite is the job without tables, of which there is one at a time.
func (o *outputs) rewrite() (rewrite, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range o.rewrites {
		return r, true
	}
	return rewrite{}, false
}

func (o *outputs) ended(job int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.failed, job)
	delete(o.rewrites, job)
}

// fail notes that a file of values is not whole.
func (o *outputs) fail(path string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	job, known := o.jobs[path]
	if !known {
		panic("store: a file of values that no job writes: " + path) // a table could not fail for it
	}
	if o.failed[job] == nil {
		o.failed[job] = err
	}
}

// failure is why the job of a table has failed.
func (o *outputs) failure(path string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	job, known := o.jobs[path]
	if !known {
		return nil
	}
	return o.failed[job]
}

func (o *outputs) isRewrite(path string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	job, known := o.jobs[path]
	if !known {
		return false
	}
	_, is := o.rewrites[job]
	return is
}

// tailBytes is how much the engine collects before it writes: what is longer are not the last bytes.
const tailBytes = 4096

func (fs blobFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasSuffix(name, blobSuffix) {
		if err := (rewriteCheck{fs.s}).run(); err != nil {
			return nil, err
		}
	}
	f, err := fs.FS.Create(name, c)
	switch {
	case err != nil:
		return nil, err
	case strings.HasSuffix(name, blobSuffix):
		return &newBlob{File: f, path: name, fs: fs.FS, s: fs.s}, nil
	case strings.HasSuffix(name, tableSuffix):
		return newTable{f, name, fs.s.outputs}, nil
	}
	return f, nil
}

// newTable is a table that is being written.
type newTable struct {
	vfs.File
	path    string
	outputs *outputs
}

func (f newTable) Sync() error     { return f.unlessFailed(f.File.Sync) }
func (f newTable) SyncData() error { return f.unlessFailed(f.File.SyncData) }

func (f newTable) unlessFailed(sync func() error) error {
	if err := f.outputs.failure(f.path); err != nil {
		return err
	}
	return sync()
}

func (f newTable) Close() error {
	f.outputs.closed(f.path)
	return f.File.Close()
}

// newBlob is a file of values that is being written, by one goroutine at a time.
type newBlob struct {
	vfs.File
	path   string
	fs     vfs.FS
	s      *Store
	broken bool // no operation reaches the file any more, but Close
}

func (f *newBlob) Write(p []byte) (int, error) {
	if f.broken {
		return len(p), nil
	}
	n, err := f.File.Write(p)
	if err == nil {
		return n, nil
	}
	if !f.s.outputs.isRewrite(f.path) {
		f.fail(err)
		return len(p), nil
	}
	if len(p) > tailBytes {
		f.broken = true
		f.s.backgroundError(wroteValues(err))
		return n, err
	}
	for rest := p[n:]; err != nil; rest = rest[n:] {
		if !errors.Is(err, syscall.ENOSPC) || f.s.failFull {
			f.fail(err)
		}
		f.s.backgroundError(wroteValues(err)) // it logs
		select {
		case <-f.s.closing:
			f.stay()
		case <-time.After(retryPause):
		}
		n, err = f.File.Write(rest)
	}
	return len(p), nil
}

func (f *newBlob) Sync() error     { return f.sync(f.File.Sync) }
func (f *newBlob) SyncData() error { return f.sync(f.File.SyncData) }

func (f *newBlob) SyncTo(length int64) (full bool, err error) {
	err = f.sync(func() (err error) {
		full, err = f.File.SyncTo(length)
		return err
	})
	return full, err
}

// sync calls a sync. It always succeeds. One that failed is not tried again: the next would say that
// all is well, whatever was lost.
func (f *newBlob) sync(call func() error) error {
	if f.broken {
		return nil
	}
	if err := call(); err != nil {
		f.fail(err)
	}
	return nil
}

// Close always succeeds, too.
func (f *newBlob) Close() error {
	if err := f.File.Close(); err != nil && !f.broken {
		f.fail(err)
	}
	if f.broken && f.s.outputs.isRewrite(f.path) {
		_ = f.fs.Remove(f.path) // the engine forgets it; the next start removes it, too
	}
	f.s.outputs.closed(f.path)
	return nil
}

// fail notes for the file's job that it is not whole.
func (f *newBlob) fail(err error) {
	f.broken = true
	if f.s.outputs.isRewrite(f.path) {
		// As an error that is not worth waiting for, even if the disk is full.
		f.s.backgroundError(errors.New(wroteValues(err).Error()))
		f.stay()
	}
	f.s.outputs.fail(f.path, wroteValues(err))
}

func wroteValues(err error) error { return fmt.Errorf("write a file of values: %w", err) }

func (f *newBlob) stay() { f.s.outputs.stay() }

// stay never returns.
func (o *outputs) stay() {
	o.once.Do(func() { close(o.stuck) })
	select {}
}

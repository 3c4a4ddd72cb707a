package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"
)

// OpenReadOnly opens a store to be looked at: no file is written, made, removed or locked, so a
// member may be running on it. It shows what the member's files hold, which is less than what the
// member has applied: see Applied. Only View, Get, NewIter, Applied, Entries and Close may be called.
//
// The member goes on removing files that compactions have replaced. So all are opened before the
// manifest is read, and what is open stays readable; if one that the manifest names was made and
// removed in the meantime, everything begins again. A segment of the log that is missing for good
// is met by who reads a value in it.
func OpenReadOnly(dir string, opts Options) (*Store, error) {
	fs := opts.FS
	if fs == nil {
		fs = vfs.Default
	}
	name := fs.PathJoin(dir, formatFile)
	text, err := readAll(fs, name)
	if isNotExist(err) {
		return nil, fmt.Errorf("store: %s is not a store of Belay: it has no file %s", dir, formatFile)
	}
	if err != nil {
		return nil, fmt.Errorf("store: read %s: %w", name, err)
	}
	if err := checkFormat(name, text); err != nil {
		return nil, err
	}
	if err := checkManifest(fs, dir); err != nil && checkManifest(fs, dir) != nil {
		return nil, err // twice: a list that is read while a member replaces the marker may lack both
	}
	const tries = 10
	for try := 1; ; try++ {
		s, err := openPinned(fs, dir, opts, try == tries)
		if err == nil || try == tries || !oserror.IsNotExist(err) && !isNotExist(err) {
			return s, err
		}
	}
}

func readAll(fs vfs.FS, name string) (string, error) {
	f, err := fs.Open(name)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(io.LimitReader(f, 256))
	return string(text), errors.Join(err, f.Close())
}

func openPinned(fs vfs.FS, dir string, opts Options, anyway bool) (_ *Store, err error) {
	pinned := &pinnedFS{FS: fs, files: map[string]vfs.File{}}
	defer func() {
		if err != nil {
			pinned.close()
		}
	}()
	if err := pinned.pin(dir); err != nil {
		return nil, err
	}
	s := &Store{
		dir: dir, fs: pinned, disk: newDiskWatch(), logger: zap.NewNop(), metrics: NewMetrics(nil),
		appliedKey: MetaKey("applied"), write: newGate(), readers: newReaders(), outputs: newOutputs(), closing: make(chan struct{}), corrupt: opts.Corrupt, pinned: pinned,
	}
	s.applied.Store(&position{})
	s.Segments = newSegments(s, fs, opts.PlaceBytes)
	defer func() {
		if err != nil {
			s.Segments.close()
		}
	}()
	if err := s.Segments.list(true); err != nil {
		return nil, err
	}
	s.sizes.init()
	o := s.pebbleOptions(opts)
	o.FS, o.ReadOnly, o.ErrorIfNotExists = blobFS{pinned, s}, true, true
	// Pebble's own answer to a damaged file is to end the process.
	o.DisableTableStats = true // nobody asks, and at a damaged table it would try for ever
	o.EventListener = &pebble.EventListener{DataCorruption: func(info pebble.DataCorruptionInfo) { s.tellCorrupt(info.Path, info.Details) }}
	s.opts = o
	if s.db, err = pebble.Open(dir, o); err != nil {
		return nil, fmt.Errorf("store: read the database in %s: %w", dir, explain(err))
	}
	if err := s.loadApplied(); err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	if err := s.Segments.load(anyway); err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	return s, nil
}

// errReadOnly says that Pebble wanted to write although it was told not to.
var errReadOnly = errors.New("store: it was opened to be read only")

// pinnedFS keeps tables and blob files open from the beginning, and writes nothing.
type pinnedFS struct {
	vfs.FS
	files map[string]vfs.File
}

func (p *pinnedFS) pin(dir string) error {
	names, err := p.List(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".sst") && !strings.HasSuffix(name, ".blob") {
			continue
		}
		path := p.PathJoin(dir, name)
		f, err := p.FS.Open(path, vfs.RandomReadsOption)
		if isNotExist(err) {
			continue // the manifest that is read next does not name it
		}
		if err != nil {
			return err
		}
		p.files[path] = f
	}
	return nil
}

func (p *pinnedFS) close() {
	for _, f := range p.files {
		_ = f.Close() // nothing was written
	}
	p.files = nil
}

// pinnedFile is closed with the store alone.
type pinnedFile struct{ vfs.File }

func (pinnedFile) Close() error { return nil }

func (p *pinnedFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	if f, ok := p.files[name]; ok {
		return pinnedFile{f}, nil
	}
	return p.FS.Open(name, opts...)
}

func (p *pinnedFS) Stat(name string) (vfs.FileInfo, error) {
	if f, ok := p.files[name]; ok {
		return f.Stat()
	}
	return p.FS.Stat(name)
}

type noLock struct{}

func (noLock) Close() error { return nil }

func (p *pinnedFS) Lock(string) (io.Closer, error) { return noLock{}, nil }

func (p *pinnedFS) Create(string, vfs.DiskWriteCategory) (vfs.File, error) { return nil, errReadOnly }
func (p *pinnedFS) Link(string, string) error                              { return errReadOnly }
func (p *pinnedFS) Remove(string) error                                    { return errReadOnly }
func (p *pinnedFS) RemoveAll(string) error                                 { return errReadOnly }
func (p *pinnedFS) Rename(string, string) error                            { return errReadOnly }
func (p *pinnedFS) MkdirAll(string, os.FileMode) error                     { return errReadOnly }

func (p *pinnedFS) OpenReadWrite(string, vfs.DiskWriteCategory, ...vfs.OpenOption) (vfs.File, error) {
	return nil, errReadOnly
}

func (p *pinnedFS) ReuseForWrite(string, string, vfs.DiskWriteCategory) (vfs.File, error) {
	return nil, errReadOnly
}

func (p *pinnedFS) Unwrap() vfs.FS { return p.FS }

// Dir is the store's folder.
func (s *Store) Dir() string { return s.dir }

// Entries is how many entries the store's tables have, versions that were replaced and deletions
// included: for who shows how far it is. It reads the end of every table.
func (s *Store) Entries() (n int64, err error) {
	if err := s.readers.enter(); err != nil {
		return 0, fmt.Errorf("store: list tables: %w", err)
	}
	defer s.readers.leave()
	levels, err := s.db.SSTables(pebble.WithProperties())
	if err != nil {
		return 0, fmt.Errorf("store: list tables: %w", explain(err))
	}
	for _, level := range levels {
		for _, table := range level {
			n += int64(table.Properties.NumEntries)
		}
	}
	return n, nil
}

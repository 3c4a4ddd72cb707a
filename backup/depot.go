package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// A Depot is where backups are. Names are paths with slashes, relative to it. Any goroutine.
type Depot interface {
	// List is what is directly in a folder, sorted by name; none if there is no such folder.
	List(ctx context.Context, folder string) ([]Item, error)
	// Read opens a file; an error that is fs.ErrNotExist says that there is none.
	Read(ctx context.Context, name string) (io.ReadCloser, error)
	// Write makes a file. When it returns nil, the file is durable; before, whatever happens, the
	// file is there as a whole or not at all.
	Write(ctx context.Context, name string, b []byte) error
	// Remove removes a file, durably. That it is not there is no error.
	Remove(ctx context.Context, name string) error
	// RemoveFolder removes a folder with all that is in it.
	RemoveFolder(ctx context.Context, folder string) error
	// String names it for messages, without secrets.
	String() string
}

// An Item is a file or a folder of a depot.
type Item struct {
	Name   string
	Folder bool
	Bytes  int64 // of a file
}

// dir is a Depot in a directory, of this machine or mounted.
type dir struct {
	fs   vfs.FS
	root string

	mu    sync.Mutex
	known map[string]bool // folders that are there durably
}

const temporary = ".tmp" // ends the name of a file that is being written

// Dir is a depot in a directory, which is made if it does not exist. Only the
// owner should be able to read what fs creates.
func Dir(fs vfs.FS, root string) Depot {
	return &dir{fs: fs, root: root, known: map[string]bool{}}
}

func (d *dir) String() string { return d.root }

func (d *dir) path(name string) string { return d.fs.PathJoin(d.root, filepath.FromSlash(name)) }

func (d *dir) List(_ context.Context, folder string) (items []Item, err error) {
	names, err := d.fs.List(d.path(folder))
	if oserror.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	for _, name := range names {
		if strings.HasSuffix(name, temporary) {
			continue
		}
		info, err := d.fs.Stat(d.path(path.Join(folder, name)))
		if oserror.IsNotExist(err) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		items = append(items, Item{Name: name, Folder: info.IsDir(), Bytes: info.Size()})
	}
	return items, nil
}

func (d *dir) Read(_ context.Context, name string) (io.ReadCloser, error) {
	f, err := d.fs.Open(d.path(name))
	if oserror.IsNotExist(err) {
		return nil, fmt.Errorf("%s: %w", d.path(name), iofs.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Write: a file that is not complete has another name; the content is durable before the name, and
// the name before Write returns, in folders that are durable, too.
func (d *dir) Write(_ context.Context, name string, b []byte) error {
	folder := path.Dir(name)
	write := func() error {
		if err := d.makeFolder(d.path(folder)); err != nil {
			return err
		}
		return d.writeFile(d.path(name), b)
	}
	err := write()
	if oserror.IsNotExist(err) { // somebody has removed a folder
		d.forgetAll()
		err = write()
	}
	return err
}

func (d *dir) writeFile(path string, b []byte) error {
	f, err := d.fs.Create(path+temporary, "")
	if err != nil {
		return err
	}
	_, err = f.Write(slices.Clone(b)) // a vfs.File may change its argument
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, d.fs.Remove(path+temporary))
	}
	if err := d.fs.Rename(path+temporary, path); err != nil {
		return err
	}
	return d.syncDir(d.fs.PathDir(path))
}

func (d *dir) syncDir(folder string) error {
	f, err := d.fs.OpenDir(folder)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// makeFolder makes a folder and those above it, and makes each name durable.
func (d *dir) makeFolder(folder string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.makeLocked(filepath.Clean(folder))
}

func (d *dir) makeLocked(folder string) error {
	if d.known[folder] {
		return nil
	}
	info, err := d.fs.Stat(folder)
	parent := d.fs.PathDir(folder)
	switch {
	case err == nil && !info.IsDir():
		return &os.PathError{Op: "mkdir", Path: folder, Err: errors.New("it is a file")}
	case err == nil && len(folder) < len(filepath.Clean(d.root)):
		return nil // above the depot: somebody else made it
	case err != nil && !oserror.IsNotExist(err):
		return err
	case err != nil && parent != folder:
		if err := d.makeLocked(parent); err != nil {
			return err
		}
		if err := d.fs.MkdirAll(folder, 0o700); err != nil {
			return err
		}
	}
	if parent != folder {
		if err := d.syncDir(parent); err != nil {
			return err
		}
	}
	d.known[folder] = true
	return nil
}

func (d *dir) forgetAll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.known)
}

func (d *dir) Remove(_ context.Context, name string) error {
	err := d.fs.Remove(d.path(name))
	if oserror.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return d.syncDir(d.fs.PathDir(d.path(name)))
}

func (d *dir) RemoveFolder(_ context.Context, folder string) error {
	d.forgetAll()
	if err := d.fs.RemoveAll(d.path(folder)); err != nil {
		return err
	}
	return d.syncDir(d.fs.PathDir(d.path(folder)))
}

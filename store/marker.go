package store

import (
	"errors"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// markerFS makes Pebble's markers safe. A marker is an empty file whose name says which manifest,
// or which format, holds; Pebble makes the new one, removes the old one, and syncs the folder once,
// at the end. A crash before that sync may leave any of these names and not the others: a marker of
// a manifest whose own name is lost, with which the store does not open; or no marker at all, with
// which Pebble makes an empty store in the same place. So the folder is synced before a marker
// appears, for what it names, and after, before the old one goes. (Pebble mended this after v2.1.7,
// the last of v2 so far.)
type markerFS struct{ vfs.FS }

const markerPrefix = "marker."

func (m markerFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if !strings.HasPrefix(m.FS.PathBase(name), markerPrefix) {
		return m.FS.Create(name, c)
	}
	dir := m.FS.PathDir(name)
	if err := syncDir(m.FS, dir); err != nil {
		return nil, err
	}
	f, err := m.FS.Create(name, c)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Sync(), syncDir(m.FS, dir)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (m markerFS) Unwrap() vfs.FS { return m.FS }

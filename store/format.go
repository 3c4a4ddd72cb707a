package store

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"syscall"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// formatFile says what the directory is. Its only line is formatPrefix and the version.
const (
	formatFile    = "STORE"
	formatPrefix  = "belay store "
	formatVersion = 2 // the newest that this build knows

	formatPlain        = 1 // what a store begins with
	formatWithSegments = 2 // versions may refer to segments of the raft log, see segments.go
)

const incomingDir = "incoming"

// prepareDir creates dir or checks that what is in it is a store that this version can open.
func prepareDir(fs vfs.FS, dir string) error {
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("store: create directory %s: %w", dir, err)
	}
	name := fs.PathJoin(dir, formatFile)
	f, err := fs.Open(name)
	switch {
	case err == nil:
		text, err := io.ReadAll(io.LimitReader(f, 256))
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("store: read %s: %w", name, err)
		}
		if strings.Trim(string(text), "\x00") != "" {
			if err := checkFormat(name, string(text)); err != nil {
				return err
			}
			return checkManifest(fs, dir)
		}
		// A crash cut off the very first write, whole or in content alone; there is no database
		// yet.
	case !isNotExist(err):
		return fmt.Errorf("store: open %s: %w", name, err)
	}
	files, err := fs.List(dir)
	if err != nil {
		return fmt.Errorf("store: list %s: %w", dir, err)
	}
	for _, file := range files {
		if strings.HasPrefix(file, "MANIFEST-") || strings.HasPrefix(file, "marker.") || strings.HasSuffix(file, ".sst") || file == "CURRENT" {
			return damage{fmt.Errorf("store: %s holds a database (%s) that is not a store of Belay: it has no file %s. Nothing in it was changed; choose another directory", dir, file, formatFile)}
		}
	}
	return writeFormat(fs, dir, formatPlain)
}

// checkManifest returns an error if the marker is gone that names the manifest. The engine takes such a
// store for none, and removes its tables. Tables are written only when there is a marker, see
// markerFS; a crash while the store is made may leave a manifest alone.
func checkManifest(fs vfs.FS, dir string) error {
	files, err := fs.List(dir)
	if err != nil {
		return fmt.Errorf("store: list %s: %w", dir, err)
	}
	var manifests []string
	tables := false
	for _, file := range files {
		switch {
		case strings.HasPrefix(file, manifestMarker):
			return nil
		case strings.HasPrefix(file, "MANIFEST-"):
			manifests = append(manifests, file)
		case strings.HasSuffix(file, tableSuffix) || strings.HasSuffix(file, blobSuffix):
			tables = true
		}
	}
	if !tables {
		return nil
	}
	advice := "restore this member from its peers: remove it from the cluster, delete its data, add it again"
	if len(manifests) == 1 {
		advice = fmt.Sprintf("make an empty file of the name %s000001.%s there; or %s", manifestMarker, manifests[0], advice)
	}
	return damage{fmt.Errorf("store: the database in %s is damaged: it has tables, and the file %s* is gone, without which they would be taken for leftovers. Nothing was changed (%s)",
		dir, manifestMarker, advice)}
}

// manifestMarker is how the name of the engine's file begins that names the manifest.
const manifestMarker = markerPrefix + "manifest."

func checkFormat(name, text string) error {
	number, ok := strings.CutPrefix(strings.TrimSuffix(text, "\n"), formatPrefix)
	if !ok {
		return damage{fmt.Errorf("store: %s does not say which store this is: %q. Nothing was changed", name, text)}
	}
	version, err := strconv.Atoi(number)
	if err != nil || version < 1 {
		return damage{fmt.Errorf("store: %s names a version that is not a number: %q. Nothing was changed", name, text)}
	}
	if version > formatVersion {
		return fmt.Errorf("store: %s: written by a newer Belay (format %d; this one knows up to %d). Nothing was changed; start the newer version", name, version, formatVersion)
	}
	return nil
}

// writeFormat sets the format of a store, durably. A crash leaves the old one or the new one.
func writeFormat(fs vfs.FS, dir string, version int) (err error) {
	name := fs.PathJoin(dir, formatFile)
	defer func() {
		if err != nil {
			err = fmt.Errorf("store: write %s: %w", name, err)
		}
	}()
	temp := name + ".tmp"
	f, err := fs.Create(temp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(f, "%s%d\n", formatPrefix, version); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := fs.Rename(temp, name); err != nil {
		return err
	}
	return syncDir(fs, dir)
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// openError returns what to do about an error of pebble.Open.
func openError(dir string, err error) error {
	// Pebble calls a table that is missing or has the wrong size no corruption, but its start is
	// the same; nor a store whose marker of the format is gone.
	if pebble.IsCorruptionError(err) || oserror.IsNotExist(err) || errors.Is(err, pebble.ErrDBNotPristine) || strings.Contains(err.Error(), "object size mismatch") {
		return damage{fmt.Errorf("store: the database in %s is damaged (restore this member from its peers: remove it from the cluster, delete its data, add it again): %w", dir, explain(oneLine{err}))}
	}
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) && strings.Contains(err.Error(), "LOCK") {
		return fmt.Errorf("store: another process uses the database in %s; is this member running already? (%w)", dir, err)
	}
	return fmt.Errorf("store: open the database in %s: %w", dir, oneLine{err})
}

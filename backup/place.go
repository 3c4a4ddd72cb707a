package backup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A Place says where a depot is, as flags do.
type Place struct {
	To string // a directory, or s3://BUCKET/PREFIX
}

// Check refuses what cannot be a place, without looking whether it is there. flag is the name of the
// flag that To comes from.
func (p Place) Check(flag string) error {
	switch {
	case p.To == "":
		return fmt.Errorf("--%s must name a directory, or a bucket as s3://BUCKET/PREFIX", flag)
	case isS3(p.To):
		_, err := readS3(flag, p.To)
		return err
	case strings.Contains(p.To, "://"):
		return fmt.Errorf("--%s must name a directory, or a bucket as s3://BUCKET/PREFIX, not %q", flag, p.To)
	}
	return nil
}

// Open gives the depot; a directory is on fs. Nothing is made before something is written.
func (p Place) Open(flag string, fs vfs.FS) (Depot, error) {
	if isS3(p.To) {
		place, err := readS3(flag, p.To)
		if err != nil {
			return nil, err
		}
		return place.open(flag)
	}
	if err := p.Check(flag); err != nil {
		return nil, err
	}
	root, err := filepath.Abs(p.To)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	if isFile(root) {
		return nil, fmt.Errorf("--%s: %w", flag, &os.PathError{Op: "open", Path: root, Err: errors.New("it is a file, not a directory")})
	}
	return Bounded(Dir(fs, root), answerWithin), nil
}

// lookFor is how long a look at a directory may take that might hang.
const lookFor = 2 * time.Second

// isFile reports whether a path is no directory. A file system that hangs keeps nobody from starting:
// then it is false, and the first backup says so.
func isFile(path string) bool {
	file := make(chan bool, 1)
	go func() {
		info, err := os.Stat(path)
		file <- err == nil && !info.IsDir()
	}()
	select {
	case is := <-file:
		return is
	case <-time.After(lookFor):
		return false
	}
}

package snapshotfile

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
)

// namePattern matches the files being built, which RemoveLeftovers removes.
const namePattern = "etcd-snapshot-*.db.tmp"

// File is a finished database. It no longer has a name in the file system and disappears with
// Close.
type File struct {
	f    *os.File
	size int64
}

// Size is the length of the database in bytes, a multiple of 4096.
func (f *File) Size() int64 { return f.size }

// Close frees the file's space.
func (f *File) Close() error { return f.f.Close() }

// Reader reads the database from its start, without a trailer: what etcd's members send each other.
func (f *File) Reader() io.Reader { return io.NewSectionReader(f.f, 0, f.size) }

// chunkBytes is the most that one message of a snapshot stream carries.
const chunkBytes = 32 << 10

// Send passes the database in chunks of at most 32 KiB to send, with what remains of it after each,
// and then its SHA-256 as a chunk of its own. send may keep the chunks.
func (f *File) Send(send func(chunk []byte, remaining int64) error) error {
	h := sha256.New()
	for off := int64(0); off < f.size; {
		chunk, err := f.chunk(off, h)
		if err != nil {
			return err
		}
		off += int64(len(chunk))
		if err := send(chunk, f.size-off); err != nil {
			return err
		}
	}
	return send(h.Sum(nil), 0)
}

func (f *File) chunk(off int64, h hash.Hash) ([]byte, error) {
	chunk := make([]byte, min(chunkBytes, f.size-off))
	if _, err := f.f.ReadAt(chunk, off); err != nil {
		return nil, fmt.Errorf("snapshotfile: read back: %w", err)
	}
	h.Write(chunk)
	return chunk, nil
}

// RemoveLeftovers removes what a process that died in Create left in dir.
func RemoveLeftovers(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, namePattern))
	if err != nil {
		return fmt.Errorf("snapshotfile: %w", err)
	}
	var errs []error
	for _, name := range names {
		if err := os.Remove(name); err != nil {
			errs = append(errs, fmt.Errorf("snapshotfile: remove leftover: %w", err))
		}
	}
	return errors.Join(errs...)
}

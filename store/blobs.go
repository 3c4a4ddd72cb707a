package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/cockroachdb/pebble/v2/sstable/block"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// errBlobDamaged: the end of a file of values is not what was written, or the file is missing.
var errBlobDamaged = errors.New("a file of values is damaged")

// blobFS checks a file of values before the engine opens it, so that damage gives an error. The
// engine (Pebble 2.1.7) panics when it cannot open such a file; here the read fails, and the damage
// is reported like any other. Damage further inside is found when it is read: readBlob.
type blobFS struct {
	vfs.FS
	s *Store // gets the damage; not a function, since the engine compares file systems
}

func (fs blobFS) Unwrap() vfs.FS { return fs.FS }

func (fs blobFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := fs.FS.Open(name, opts...)
	if !strings.HasSuffix(name, blobSuffix) {
		return f, err
	}
	switch {
	case err == nil:
		var footer blobFooter
		if footer, err = readBlobFooter(f); err == nil {
			if footer.checked {
				f = readBlob{f, name, footer.fileBytes, fs.s}
			}
			return f, nil
		}
		_ = f.Close() // only read
	case isNotExist(err):
		err = fmt.Errorf("%w: it is missing", errBlobDamaged) // not an error that says so itself: the engine takes that for damage
	}
	if errors.Is(err, errBlobDamaged) {
		fs.s.tellCorrupt(name, err)
		err = corruptFile(name, err)
	}
	return nil, err
}

// blobsIn returns the names of the files of values.
func blobsIn(fs vfs.FS, dir string) (map[string]bool, error) {
	names, err := fs.List(dir)
	if err != nil {
		return nil, err
	}
	blobs := make(map[string]bool)
	for _, name := range names {
		if strings.HasSuffix(name, blobSuffix) {
			blobs[name] = true
		}
	}
	return blobs, nil
}

// checkBlobs returns an error if the store that was just opened lacks files of values. The engine
// checks only its tables, and panics at the first read of a missing value. It does not say which
// files it has, only how many: a missing file beside a leftover one is not noticed here. before are
// the files from before it was opened.
func (s *Store) checkBlobs(before map[string]bool) error {
	live := s.db.Metrics().BlobFiles.LiveCount
	now, err := blobsIn(s.fs, s.dir) // it may have made some already
	if err != nil {
		return fmt.Errorf("store: list %s: %w", s.dir, err)
	}
	maps.Copy(now, before)
	if have := uint64(len(now)); have < live {
		return damage{fmt.Errorf("store: %d of %d files of values (%s/*%s) are missing (restore this member from its peers: remove it from the cluster, delete its data, add it again)",
			live-have, live, s.dir, blobSuffix)}
	}
	return nil
}

const (
	blobSuffix      = ".blob"
	tableSuffix     = ".sst"
	blobFooterBytes = 38
	blobMagic       = "\xf0\x9f\xaa\xb3\xf0\x9f\xa6\x80"
)

// blobFooter is what the end of a file of values says.
type blobFooter struct {
	fileBytes           int64
	indexAt, indexBytes uint64 // the block that says where the others are, without its trailer
	checked             bool   // blocks have checksums that we know
}

// readBlobFooter reads the footer, and checks what the engine checks when it opens the file.
func readBlobFooter(f vfs.File) (blobFooter, error) {
	info, err := f.Stat()
	if err != nil {
		return blobFooter{}, err
	}
	if info.Size() < blobFooterBytes {
		return blobFooter{}, fmt.Errorf("%w: it has only %d bytes", errBlobDamaged, info.Size())
	}
	var footer [blobFooterBytes]byte
	if _, err := f.ReadAt(footer[:], info.Size()-blobFooterBytes); err != nil {
		return blobFooter{}, err
	}
	if got, want := binary.LittleEndian.Uint32(footer[:]), maskedChecksum(footer[4:]); got != want {
		return blobFooter{}, fmt.Errorf("%w: the checksum of its footer is %08x, not %08x", errBlobDamaged, got, want)
	}
	if string(footer[30:]) != blobMagic {
		return blobFooter{}, fmt.Errorf("%w: it ends with %x", errBlobDamaged, footer[30:])
	}
	return blobFooter{
		fileBytes:  info.Size(),
		indexAt:    binary.LittleEndian.Uint64(footer[4:]),
		indexBytes: binary.LittleEndian.Uint64(footer[12:]),
		checked:    footer[20] == byte(block.ChecksumTypeCRC32c),
	}, nil
}

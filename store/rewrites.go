package store

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/sstable/block"
	"github.com/cockroachdb/pebble/v2/sstable/colblk"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/belaydb/belay/internal/crc32c"
)

// The engine (Pebble 2.1.7) does not survive damage that it meets while it writes a file of values
// anew, without its garbage: it reports damage of a file that it does not name, which panics
// ("unknown metadata type", cockroachdb/pebble#5127), or gives back buffers that are in use, which
// panics, too. After damage in a table it leaves a goroutine and an open file behind, each time that
// it tries again, which is at once. So everything that such a job reads is read before it begins. If
// something is damaged, the job does not get the file that it asks for first, and there are no more
// such jobs until the next start: the engine would choose the same file.

// rewrite is a job that writes a file of values anew.
type rewrite struct {
	input string // the path of the file
	id    uint64 // what tables call it
}

// rewriteFunction is the function of the engine in which such a job runs.
const rewriteFunction = ".(*DB).runBlobFileRewriteLocked"

// rewriteCheck reads what such a job will read.
type rewriteCheck struct{ s *Store }

// run is called when a file of values is about to be created. It returns an error if that is for a
// job that would meet damage.
func (c rewriteCheck) run() error {
	s := c.s
	r, ok := s.outputs.rewrite()
	if !ok || !calledFrom(rewriteFunction) {
		return nil
	}
	path, err := c.read(r)
	switch {
	case err == nil:
		return nil
	case IsDamage(err):
		s.tellCorrupt(path, err)
		s.outputs.refused.Store(true)
		return corruptFile(path, err)
	}
	err = fmt.Errorf("read %s: %w", path, err)
	s.backgroundError(err)
	pause(retryPause, s.closing) // it begins again at once
	return err
}

// read reads what a job reads. With an error it returns the path of the file.
func (c rewriteCheck) read(r rewrite) (path string, err error) {
	s := c.s
	if err := checkRead(s.fs, r.input, checkValues); isNotExist(err) {
		return r.input, fmt.Errorf("%w: it is missing", errBlobDamaged)
	} else if err != nil {
		return r.input, err
	}
	levels, err := s.db.SSTables()
	if err != nil {
		return s.dir, err
	}
	for _, tables := range levels {
		for _, t := range tables {
			for _, id := range t.GetBlobReferenceFiles() {
				if uint64(id) != r.id {
					continue
				}
				path := s.fs.PathJoin(s.dir, t.BackingSSTNum.String()+tableSuffix)
				if err := checkRead(s.fs, path, func(f vfs.File) error { return checkReferences(f, t, s.opts) }); err != nil && !isNotExist(err) { // a compaction may have replaced it
					return path, err
				}
				break
			}
		}
	}
	return "", nil
}

func checkRead(fs vfs.FS, path string, check func(f vfs.File) error) (err error) {
	f, err := fs.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	defer func() {
		if r := recover(); r != nil {
			err = damage{fmt.Errorf("%v", r)} // the engine's decoders panic
		}
	}()
	return check(f)
}

// checkReferences reads what tells which values a table refers to.
func checkReferences(f vfs.File, t pebble.SSTableInfo, opts *pebble.Options) error {
	readable, err := sstable.NewSimpleReadable(f)
	if err != nil {
		return err
	}
	o := opts.MakeReaderOptions()
	o.CacheOpts.FileNum = t.BackingSSTNum // for the text of errors
	r, err := sstable.NewReader(context.Background(), readable, o)
	if err != nil {
		return err
	}
	h, err := r.ReadBlobRefIndexBlock(context.Background(), block.NoReadEnv)
	if err != nil {
		return err
	}
	h.Release()
	return nil
}

// checkValues reads all blocks of a file of values.
func checkValues(f vfs.File) error {
	footer, err := readBlobFooter(f)
	if err != nil {
		return err
	}
	if !footer.checked {
		return nil // no build of Belay has written it
	}
	index, err := readBlobBlock(f, nil, int64(footer.indexAt), int64(footer.indexBytes)+blobTrailerBytes)
	if err != nil {
		return err
	}
	var d colblk.BlockDecoder
	d.Init(index[:footer.indexBytes], blobIndexHeader)
	ends := colblk.DecodeColumn(&d, 1, d.Rows()+1, colblk.DataTypeUint, colblk.DecodeUnsafeUints)
	var buf []byte
	for i := range d.Rows() {
		at, end := ends.At(i), ends.At(i+1)
		if buf, err = readBlobBlock(f, buf, int64(at), int64(end-at)); err != nil {
			return err
		}
	}
	return nil
}

// readBlobBlock reads a block and its trailer.
func readBlobBlock(f io.ReaderAt, buf []byte, at, length int64) ([]byte, error) {
	if int64(cap(buf)) < length {
		buf = make([]byte, length)
	}
	buf = buf[:length]
	if _, err := f.ReadAt(buf, at); err != nil {
		return nil, err
	}
	return buf, checkBlobBlock(buf, at)
}

const (
	blobTrailerBytes = 5 // how it is compressed, checksum
	blobIndexHeader  = 4
)

// checkBlobBlock checks the checksum of a block with its trailer.
func checkBlobBlock(b []byte, at int64) error {
	if len(b) < blobTrailerBytes {
		return fmt.Errorf("%w: a block at %d has %d bytes", errBlobDamaged, at, len(b))
	}
	data, want := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	if got := maskedChecksum(data); got != want {
		return fmt.Errorf("%w: the checksum of its block of %d bytes at %d is %08x, not %08x", errBlobDamaged, len(b), at, got, want)
	}
	return nil
}

func maskedChecksum(b []byte) uint32 {
	crc := crc32c.Checksum(b)
	return (crc>>15 | crc<<17) + 0xa282ead8
}

// readBlob is a file of values that the engine reads: block by block, after the footer. What it gets
// is whole, or it gets an error that is not one of its own for damage: for files of values it does not
// tell anybody else of that, panics while it writes one anew, and spends a second or many on looking
// for the bit that is wrong.
type readBlob struct {
	vfs.File
	path string
	size int64
	s    *Store
}

func (f readBlob) ReadAt(p []byte, at int64) (int, error) {
	n, err := f.File.ReadAt(p, at)
	if err == nil && at < f.size-blobFooterBytes {
		if err = checkBlobBlock(p[:n], at); err != nil {
			f.s.tellCorrupt(f.path, err)
			err = corruptFile(f.path, err)
		}
	}
	if err != nil && calledFrom(rewriteFunction) {
		// It could be read a moment ago, before the job began. The member ends.
		if !IsDamage(err) {
			f.s.backgroundError(fmt.Errorf("read %s: %w", f.path, err))
		}
		f.s.outputs.stay()
	}
	return n, err
}

// pause waits for a time, or until the store is closed.
func pause(d time.Duration, closing <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-closing:
	}
}

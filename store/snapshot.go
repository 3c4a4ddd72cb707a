package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/cockroachkvs"
	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/belaydb/belay/internal/crc32c"
)

// A snapshot is the whole content as a stream:
//
//	header   "BELAYSNP" | version:4 | applied index:8 | term:8 | crc:4
//	block    length:4 | crc of the payload:4 | payload            repeated
//	         payload: (uvarint key length, uvarint value length, key, value) repeated, in key order
//	trailer  0:4 | count of keys:8 | crc:4
//
// Numbers are little-endian, crc is CRC-32C. The crc of header and trailer covers what precedes it
// in the same part; that of the trailer continues the crcs of all blocks, so that none can be
// missing or moved.
const (
	snapshotMagic   = "BELAYSNP"
	snapshotVersion = 1

	snapshotHeaderLen  = 8 + 4 + 8 + 8 + 4
	snapshotTrailerLen = 8 + 4 // after the zero length

	snapshotBlockBytes = 128 << 10 // a block ends when it passes this
	snapshotBlockMax   = 1 << 30   // more than any block: one key and value at least fit
	snapshotReadStep   = 1 << 20   // memory grows with what has arrived, not with what a length promises
	snapshotTableBytes = 64 << 20  // of one received table
)

// WriteSnapshot streams everything in a view. Memory is bounded by the largest value.
func (s *Store) WriteSnapshot(ctx context.Context, v *View, w io.Writer) (err error) {
	it, err := v.NewIter(&pebble.IterOptions{})
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, it.Close())
		s.Note(err)
	}()

	index, term := v.Applied()
	buf := append(make([]byte, 0, 2*snapshotBlockBytes), snapshotMagic...)
	buf = binary.LittleEndian.AppendUint32(buf, snapshotVersion)
	buf = binary.LittleEndian.AppendUint64(buf, index)
	buf = binary.LittleEndian.AppendUint64(buf, term)
	buf = binary.LittleEndian.AppendUint32(buf, crc32c.Checksum(buf))
	if _, err := w.Write(buf); err != nil {
		return err
	}

	var count uint64
	var sums uint32 // running crc over the crcs of the blocks
	const frame = 8
	buf = buf[:frame]
	block := func() error {
		sum := crc32c.Checksum(buf[frame:])
		binary.LittleEndian.PutUint32(buf, uint32(len(buf)-frame))
		binary.LittleEndian.PutUint32(buf[4:], sum)
		sums = crc32c.Update(sums, buf[4:frame])
		_, err := w.Write(buf)
		if cap(buf) > 16*snapshotBlockBytes {
			buf = make([]byte, frame, 2*snapshotBlockBytes)
		}
		buf = buf[:frame]
		return errors.Join(err, ctx.Err())
	}
	for ok := it.First(); ok; ok = it.Next() {
		key := it.Key()
		if key[0] == spacePlace {
			continue // the values are in the versions
		}
		value, err := it.ValueAndErr()
		if err != nil {
			return Explain(err)
		}
		buf = binary.AppendUvarint(buf, uint64(len(key)))
		buf = binary.AppendUvarint(buf, uint64(len(value)))
		buf = append(append(buf, key...), value...)
		count++
		if len(buf) >= snapshotBlockBytes {
			if err := block(); err != nil {
				return err
			}
		}
	}
	if err := it.Error(); err != nil {
		return Explain(err)
	}
	if len(buf) > frame {
		if err := block(); err != nil {
			return err
		}
	}
	buf = binary.LittleEndian.AppendUint32(buf[:0], 0)
	buf = binary.LittleEndian.AppendUint64(buf, count)
	buf = binary.LittleEndian.AppendUint32(buf, crc32c.Update(sums, buf))
	if _, err := w.Write(buf); err != nil {
		return err
	}
	return nil
}

// Incoming is a received snapshot, complete and verified, that waits on disk to be installed.
type Incoming struct {
	Index, Term uint64

	s      *Store
	dir    string
	tables []string
}

// Discard removes a snapshot that will not be installed. After Install it does nothing.
func (in *Incoming) Discard() {
	if in.dir != "" {
		in.s.removeIncoming(in.dir)
		in.dir = ""
	}
}

func (s *Store) removeIncoming(dir string) {
	if err := s.fs.RemoveAll(dir); err != nil {
		s.logger.Sugar().Warnf("cannot remove %s: %v", dir, err)
	}
}

// Scratch makes a folder beside the database, for what a snapshot is made of before it is one. The
// caller removes it with done; a crash leaves it to the next Open.
func (s *Store) Scratch() (dir string, done func(), err error) {
	dir = s.fs.PathJoin(s.dir, incomingDir, strconv.FormatUint(s.incoming.Add(1), 10))
	if err := s.fs.MkdirAll(dir, 0o700); err != nil {
		return "", nil, fmt.Errorf("store: receive a snapshot: %w", err)
	}
	return dir, func() { s.removeIncoming(dir) }, nil
}

// ReceiveSnapshot writes a stream made by WriteSnapshot to tables beside the database and verifies
// all of it. Memory is bounded by the largest value. The store's content does not change, and the
// store remains usable.
func (s *Store) ReceiveSnapshot(ctx context.Context, r io.Reader) (*Incoming, error) {
	in := &Incoming{s: s}
	var err error
	if in.dir, _, err = s.Scratch(); err != nil {
		return nil, err
	}
	rc := receiver{in: in, fs: s.fs, r: r, ctx: ctx, writerOptions: s.opts.MakeWriterOptions(6, s.db.TableFormat())}
	if err := rc.receive(); err != nil {
		rc.abort()
		in.Discard()
		return nil, fmt.Errorf("store: receive a snapshot: %w", err)
	}
	return in, nil
}

// receiver turns a stream into tables.
type receiver struct {
	in            *Incoming
	fs            vfs.FS
	r             io.Reader
	ctx           context.Context
	writerOptions sstable.WriterOptions

	table      *sstable.Writer
	tableBytes int
	last       []byte // last key
	payload    bytes.Buffer
	applied    []byte // value of the meta key
	count      uint64
	sums       uint32
}

func (rc *receiver) receive() error {
	var header [snapshotHeaderLen]byte
	if _, err := io.ReadFull(rc.r, header[:]); err != nil {
		return unexpected(err)
	}
	if string(header[:8]) != snapshotMagic {
		return errors.New("this is not a snapshot of Belay")
	}
	if v := binary.LittleEndian.Uint32(header[8:]); v != snapshotVersion {
		return fmt.Errorf("it has format %d; this version knows format %d", v, snapshotVersion)
	}
	const sumAt = snapshotHeaderLen - 4
	if crc32c.Checksum(header[:sumAt]) != binary.LittleEndian.Uint32(header[sumAt:]) {
		return errors.New("its header is damaged")
	}
	rc.in.Index = binary.LittleEndian.Uint64(header[12:])
	rc.in.Term = binary.LittleEndian.Uint64(header[20:])
	for {
		more, err := rc.block()
		if err != nil {
			return err
		}
		if !more {
			break
		}
		if err := rc.ctx.Err(); err != nil {
			return err
		}
	}
	if err := rc.closeTable(); err != nil {
		return err
	}
	var index, term uint64
	if rc.applied != nil {
		var err error
		if index, term, err = decodeApplied(rc.applied); err != nil {
			return err
		}
	}
	if index != rc.in.Index || term != rc.in.Term {
		return fmt.Errorf("its header says index %d term %d, its content %d and %d", rc.in.Index, rc.in.Term, index, term)
	}
	return syncDir(rc.fs, rc.in.dir)
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// block reads one block, or the trailer.
func (rc *receiver) block() (more bool, err error) {
	var frame [4 + snapshotTrailerLen]byte
	if _, err := io.ReadFull(rc.r, frame[:4]); err != nil {
		return false, unexpected(err)
	}
	length := binary.LittleEndian.Uint32(frame[:])
	if length == 0 {
		if _, err := io.ReadFull(rc.r, frame[4:]); err != nil {
			return false, unexpected(err)
		}
		if crc32c.Update(rc.sums, frame[:12]) != binary.LittleEndian.Uint32(frame[12:]) ||
			binary.LittleEndian.Uint64(frame[4:]) != rc.count {
			return false, errors.New("its trailer does not fit its blocks: some are missing, or it is damaged")
		}
		return false, nil
	}
	if length > snapshotBlockMax {
		return false, fmt.Errorf("a block claims %d bytes", length)
	}
	if _, err := io.ReadFull(rc.r, frame[4:8]); err != nil {
		return false, unexpected(err)
	}
	if rc.payload.Cap() > 16*snapshotBlockBytes && length < snapshotBlockBytes {
		rc.payload = bytes.Buffer{}
	}
	rc.payload.Reset()
	for rest := int64(length); rest > 0; {
		n, err := io.CopyN(&rc.payload, rc.r, min(rest, snapshotReadStep))
		if err != nil {
			return false, unexpected(err)
		}
		rest -= n
	}
	payload := rc.payload.Bytes()
	if crc32c.Checksum(payload) != binary.LittleEndian.Uint32(frame[4:]) {
		return false, errors.New("a block is damaged")
	}
	rc.sums = crc32c.Update(rc.sums, frame[4:8])
	for len(payload) > 0 {
		keyLen, n := binary.Uvarint(payload)
		valueLen, m := uint64(0), 0
		if n > 0 {
			valueLen, m = binary.Uvarint(payload[n:])
		}
		if n <= 0 || m <= 0 || keyLen > math.MaxUint32 || valueLen > math.MaxUint32 ||
			keyLen+valueLen > uint64(len(payload)-n-m) {
			return false, errors.New("a block ends within a key")
		}
		payload = payload[n+m:]
		if err := rc.add(payload[:keyLen], payload[keyLen:keyLen+valueLen]); err != nil {
			return false, err
		}
		payload = payload[keyLen+valueLen:]
	}
	return true, nil
}

func (rc *receiver) add(key, value []byte) error {
	if !validKey(key) {
		return fmt.Errorf("it holds a key of a form that this version does not know: %x", key[:min(len(key), 64)])
	}
	if rc.last != nil && cockroachkvs.Compare(rc.last, key) >= 0 {
		return fmt.Errorf("its keys are out of order at %x", key[:min(len(key), 64)])
	}
	rc.last = append(rc.last[:0], key...)
	rc.count++
	if bytes.Equal(key, rc.in.s.appliedKey) {
		rc.applied = append([]byte{}, value...)
	}
	if rc.table == nil {
		name := rc.fs.PathJoin(rc.in.dir, fmt.Sprintf("%06d.sst", len(rc.in.tables)+1))
		f, err := rc.fs.Create(name, vfs.WriteCategoryUnspecified)
		if err != nil {
			return err
		}
		rc.in.tables = append(rc.in.tables, name)
		// Closing the writer syncs the file.
		rc.table = sstable.NewWriter(objstorageprovider.NewFileWritable(f), rc.writerOptions)
		rc.tableBytes = 0
	}
	if err := rc.table.Set(key, value); err != nil {
		return err
	}
	if rc.tableBytes += len(key) + len(value); rc.tableBytes >= snapshotTableBytes {
		return rc.closeTable()
	}
	return nil
}

func (rc *receiver) closeTable() error {
	if rc.table == nil {
		return nil
	}
	err := rc.table.Close()
	rc.table = nil
	return err
}

func (rc *receiver) abort() {
	if rc.table != nil {
		rc.table.Close() // the error does not matter: the file is about to be removed
		rc.table = nil
	}
}

// Install replaces the whole content by a received snapshot, in one step that is durable when it
// returns; Applied is then the snapshot's. Iterators and views made before keep showing the old
// content.
//
// REQUIRES: no batch of the applier is open, and in is newer than what is applied. On error the old
// content is intact, unless the error came from the manifest, after which the engine stops the
// process.
func (s *Store) Install(in *Incoming) error {
	if s.writing.Load() {
		panic("store: a snapshot is installed while a batch is open")
	}
	if index, _ := s.Applied(); in.Index < index {
		return fmt.Errorf("store: a snapshot of index %d cannot replace the state of index %d", in.Index, index)
	}
	if in.dir == "" {
		return errors.New("store: the snapshot was discarded or installed already")
	}
	s.write.enter()
	defer s.write.leave()
	s.generation.Add(1)
	defer s.generation.Add(1) // for readers that begin while the old content can still be read
	lower, upper := allKeys()
	if _, err := s.db.IngestAndExcise(context.Background(), in.tables, nil, nil, pebble.KeyRange{Start: lower, End: upper}); err != nil {
		return fmt.Errorf("store: install a snapshot: %w", explain(err))
	}
	s.Segments.replaced()
	if err := s.loadApplied(); err != nil {
		return err
	}
	if index, term := s.Applied(); index != in.Index || term != in.Term {
		panic(fmt.Sprintf("store: installed a snapshot of index %d term %d, but find %d and %d", in.Index, in.Term, index, term))
	}
	in.Discard()
	s.takeSample()
	return nil
}

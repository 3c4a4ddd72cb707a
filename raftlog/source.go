package raftlog

import (
	"errors"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	pieceBytes   = 1 << 20 // a multiple of sectorBytes
	piecesAhead  = 4
	freePieces   = piecesAhead + 2
	slotsAtATime = 128 // entries allocated together; they are freed together too
)

// source reads a segment's file from front to back in pieces, ahead of the parser: copying out of
// the page cache costs as much as checking and parsing.
//
// Memory that at returned never changes unless recycle returns it: entries alias it.
type source struct {
	path   string
	size   int64
	pieces chan []byte // in order; closed at the end of the file or after err is set
	free   chan []byte
	stop   chan struct{}
	err    error // of reading; read after pieces is closed

	cur []byte // the piece at hand
	off int64  // its place in the file
}

// newSource starts to read at offset from, a multiple of sectorBytes.
func newSource(fs vfs.FS, path string, size, from int64) (*source, error) {
	f, err := fs.Open(path, vfs.SequentialReadsOption)
	if err != nil {
		return nil, fileError("open", path, err)
	}
	s := &source{
		path: path, size: size, off: from,
		pieces: make(chan []byte, piecesAhead), free: make(chan []byte, freePieces), stop: make(chan struct{}),
	}
	go s.read(f, from)
	return s, nil
}

func (s *source) read(f vfs.File, off int64) {
	defer close(s.pieces)
	defer func() {
		if err := f.Close(); err != nil && s.err == nil {
			s.err = fileError("close", s.path, err)
		}
	}()
	for off < s.size {
		n := min(pieceBytes, s.size-off)
		var b []byte
		select {
		case b = <-s.free:
			b = b[:n]
		default:
			b = make([]byte, n, min(pieceBytes, s.size))
		}
		if got, err := f.ReadAt(b, off); int64(got) < n {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			s.err = fileError("read", s.path, err)
			return
		}
		select {
		case s.pieces <- b:
		case <-s.stop:
			return
		}
		off += n
	}
}

// next goes to the next piece.
func (s *source) next() error {
	b, ok := <-s.pieces
	if !ok {
		if s.err == nil {
			s.err = fileError("read", s.path, io.ErrUnexpectedEOF)
		}
		return s.err
	}
	s.off += int64(len(s.cur))
	s.cur = b
	return nil
}

// at returns n bytes at offset off, fewer at the end of the file.
//
// REQUIRES: off does not go back, except to the start of a call that asked for no more than the
// rest of its sector.
func (s *source) at(off, n int64) ([]byte, error) {
	n = min(n, s.size-off)
	if n <= 0 {
		return nil, nil
	}
	for off >= s.off+int64(len(s.cur)) {
		if err := s.next(); err != nil {
			return nil, err
		}
	}
	b := s.cur[off-s.off:]
	if int64(len(b)) >= n {
		return b[:n:n], nil
	}
	joined := append(make([]byte, 0, n), b...)
	for int64(len(joined)) < n {
		if err := s.next(); err != nil {
			return nil, err
		}
		joined = append(joined, s.cur[:min(int64(len(s.cur)), n-int64(len(joined)))]...)
	}
	return joined, nil
}

// recycle returns the present piece for reuse. REQUIRES: nothing keeps what at returned of it.
func (s *source) recycle() {
	if cap(s.cur) == pieceBytes {
		select {
		case s.free <- s.cur:
		default:
		}
	}
	s.off += int64(len(s.cur))
	s.cur = nil
}

// close ends reading.
func (s *source) close() {
	close(s.stop)
	for range s.pieces {
		continue // until the reader has seen it
	}
}

// scan calls fn for each valid group header on a sector from offset from on, until fn
// returns false. first says whether there is one at from.
func (s *source) scan(from int64, seed uint32, fn func(h groupHeader, off int64) bool) (first bool, err error) {
	for off := from; off < s.size; {
		if _, err := s.at(off, 1); err != nil {
			return first, err
		}
		b := s.cur[off-s.off:]
		for o := 0; o < len(b); o += sectorBytes {
			h, err := decodeGroupHeader(b[o:], seed)
			if err != nil {
				continue
			}
			first = first || off+int64(o) == from
			if !fn(h, off+int64(o)) {
				return first, nil
			}
		}
		off += int64(len(b))
		s.recycle()
	}
	return first, nil
}

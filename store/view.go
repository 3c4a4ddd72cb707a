package store

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/belaydb/belay/command"
)

// Reader reads keys. Store, View and Batch are readers.
type Reader interface {
	// Get returns a copy of the value.
	Get(key []byte) (value []byte, ok bool, err error)
	// NewIter iterates over one consistent state. The caller closes it.
	NewIter(*pebble.IterOptions) (Iterator, error)
}

var (
	_ Reader = (*Store)(nil)
	_ Reader = (*View)(nil)
	_ Reader = (*Batch)(nil)
)

func (g *Segments) get(r pebble.Reader, key []byte) ([]byte, bool, error) {
	value, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("store: read: %w", explain(err))
	}
	value, err = g.copyOf(key, value)
	if err := errors.Join(err, closer.Close()); err != nil {
		return nil, false, err
	}
	return value, true, nil
}

// Iterator is an iterator of the engine that is known to the store, which is not closed before it
// is. It is copied like a pointer. Its zero value is not open.
type Iterator struct {
	*pebble.Iterator
	reading *reading
}

// reading is what an iterator has besides the engine's.
type reading struct {
	segments *Segments
	slot     uint32
	buf      []byte // the last value that was in a segment
}

// IsOpen reports whether there is an iterator. It does not say whether that was closed.
func (it Iterator) IsOpen() bool { return it.Iterator != nil }

// Close ends the iterator. It must not be called twice.
func (it Iterator) Close() error {
	defer it.reading.segments.readers.end(it.reading.slot)
	return it.Iterator.Close()
}

// Clone makes another iterator over the state of this one, which may be closed before it.
func (it Iterator) Clone(o pebble.CloneOptions) (Iterator, error) {
	if err := it.reading.segments.readers.join(it.reading.slot); err != nil {
		return Iterator{}, fmt.Errorf("store: iterate: %w", err)
	}
	return it.reading.segments.iterator(it.reading.slot, func() (*pebble.Iterator, error) { return it.Iterator.Clone(o) })
}

// ValueAndErr is the value that the iterator is at, valid until it moves.
func (it Iterator) ValueAndErr() ([]byte, error) {
	value, err := it.Iterator.ValueAndErr()
	if err != nil || !isPlaced(it.Key(), value) {
		return value, err
	}
	it.reading.buf, err = it.reading.segments.resolve(it.reading.buf, value)
	return it.reading.buf, err
}

// VersionAndErr is ValueAndErr of a version. Without withValue the value that a client put may be
// left out of it, or not.
func (it Iterator) VersionAndErr(withValue bool) ([]byte, error) {
	if withValue {
		return it.ValueAndErr()
	}
	value, err := it.Iterator.ValueAndErr()
	if err != nil || !isPlaced(it.Key(), value) {
		return value, err
	}
	_, header, err := parsePlaced(value)
	return header, err
}

// Extent is how large a version is.
type Extent struct {
	Bytes int // of the version without its key

	segment command.Segment // where its value is; zero: in the store
	length  int64           // of that
}

// Extent is that of the version that the iterator is at. It reads no values in files of their own.
func (it Iterator) Extent() Extent {
	stored := it.LazyValue()
	x := Extent{Bytes: stored.Len()}
	if x.Bytes < placedMin || x.Bytes > placedMax {
		return x
	}
	value, err := it.Iterator.ValueAndErr()
	if err != nil || !isPlaced(it.Key(), value) {
		return x // who reads it meets the error
	}
	if p, header, err := parsePlaced(value); err == nil {
		x = Extent{Bytes: len(header) + p.Length, segment: p.Segment, length: int64(p.Length)}
	}
	return x
}

// iterate makes an iterator that counts as a reader until it is closed.
func (g *Segments) iterate(make func() (*pebble.Iterator, error)) (Iterator, error) {
	slot, err := g.readers.begin()
	if err != nil {
		return Iterator{}, fmt.Errorf("store: iterate: %w", err)
	}
	return g.iterator(slot, make)
}

// iterator makes an iterator for a reader that is counted in a slot.
func (g *Segments) iterator(slot uint32, make func() (*pebble.Iterator, error)) (Iterator, error) {
	it, err := make()
	if err != nil {
		g.readers.end(slot)
		return Iterator{}, fmt.Errorf("store: iterate: %w", explain(err))
	}
	return Iterator{it, &reading{segments: g, slot: slot}}, nil
}

// Get reads the newest committed value.
func (s *Store) Get(key []byte) ([]byte, bool, error) {
	slot, err := s.readers.begin()
	if err != nil {
		return nil, false, fmt.Errorf("store: read: %w", err)
	}
	defer s.readers.end(slot)
	return s.Segments.get(s.db, key)
}

// NewIter iterates over what is committed now.
func (s *Store) NewIter(o *pebble.IterOptions) (Iterator, error) {
	return s.Segments.iterate(func() (*pebble.Iterator, error) { return s.db.NewIter(o) })
}

// View is the store as it was at one moment, between two batches. It belongs to one goroutine at a
// time.
//
// It holds an iterator, from which it clones others, and not a Pebble snapshot: an installed
// snapshot removes keys from the latter, while the former keeps the files it reads.
type View struct {
	s           *Store
	base        Iterator
	point       *pebble.Iterator // for Get; nil before the first
	index, term uint64
	err         error
}

// View opens a view of what is committed now. It must be closed. An error shows in the first use of
// the view.
func (s *Store) View() *View {
	v := &View{s: s}
	s.metrics.views.Add(1)
	if v.base, v.err = s.NewIter(nil); v.err != nil {
		return v
	}
	value, ok, err := v.Get(s.appliedKey)
	if err == nil && ok {
		v.index, v.term, err = decodeApplied(value)
	}
	v.err = err
	return v
}

// Applied is the last entry whose effects the view shows.
func (v *View) Applied() (index, term uint64) { return v.index, v.term }

// Get reads a key.
func (v *View) Get(key []byte) (value []byte, ok bool, err error) {
	if v.err != nil {
		return nil, false, v.err
	}
	if v.point == nil {
		v.point, err = v.base.Iterator.Clone(pebble.CloneOptions{IterOptions: &pebble.IterOptions{UseL6Filters: true}})
		if err != nil {
			v.point = nil
			return nil, false, fmt.Errorf("store: read: %w", explain(err))
		}
	}
	if !v.point.SeekPrefixGE(key) || !bytes.Equal(v.point.Key(), key) {
		if err := v.point.Error(); err != nil {
			return nil, false, fmt.Errorf("store: read: %w", explain(err))
		}
		return nil, false, nil
	}
	value, err = v.point.ValueAndErr()
	if err != nil {
		v.s.Note(err)
		return nil, false, fmt.Errorf("store: read: %w", explain(err))
	}
	value, err = v.s.Segments.copyOf(key, value)
	return value, err == nil, err
}

// NewIter iterates over the view. The iterator may outlive it.
func (v *View) NewIter(o *pebble.IterOptions) (Iterator, error) {
	if v.err != nil {
		return Iterator{}, v.err
	}
	if o == nil {
		o = &pebble.IterOptions{}
	}
	return v.base.Clone(pebble.CloneOptions{IterOptions: o})
}

// Close ends the view. It may be called twice.
func (v *View) Close() {
	if v.s == nil {
		return
	}
	if v.point != nil {
		v.point.Close()
	}
	if v.base.IsOpen() {
		v.base.Close()
	}
	v.s.metrics.views.Add(-1)
	v.s, v.base, v.point, v.err = nil, Iterator{}, nil, errors.New("store: the view is closed")
}

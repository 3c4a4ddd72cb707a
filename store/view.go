package store

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Reader reads keys. Store, View and Batch are readers.
type Reader interface {
	// Get returns a copy of the value.
	Get(key []byte) (value []byte, ok bool, err error)
	// NewIter iterates over one consistent state. The caller closes it.
	NewIter(*pebble.IterOptions) (*pebble.Iterator, error)
}

var (
	_ Reader = (*Store)(nil)
	_ Reader = (*View)(nil)
	_ Reader = (*Batch)(nil)
)

func get(r pebble.Reader, key []byte) ([]byte, bool, error) {
	value, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("store: read: %w", explain(err))
	}
	value = append(make([]byte, 0, len(value)), value...)
	return value, true, closer.Close()
}

// Get reads the newest committed value.
func (s *Store) Get(key []byte) ([]byte, bool, error) { return get(s.db, key) }

// NewIter iterates over what is committed now.
func (s *Store) NewIter(o *pebble.IterOptions) (*pebble.Iterator, error) {
	it, err := s.db.NewIter(o)
	if err != nil {
		return nil, fmt.Errorf("store: iterate: %w", explain(err))
	}
	return it, nil
}

// View is the store as it was at one moment, between two batches. It belongs to one goroutine at a
// time.
//
// It holds an iterator, from which it clones others, and not a Pebble snapshot: an installed
// snapshot removes keys from the latter, while the former keeps the files it reads.
type View struct {
	s           *Store
	base        *pebble.Iterator
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
		v.point, err = v.base.Clone(pebble.CloneOptions{IterOptions: &pebble.IterOptions{UseL6Filters: true}})
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
	return append(make([]byte, 0, len(value)), value...), true, nil
}

// NewIter iterates over the view. The iterator may outlive it.
func (v *View) NewIter(o *pebble.IterOptions) (*pebble.Iterator, error) {
	if v.err != nil {
		return nil, v.err
	}
	if o == nil {
		o = &pebble.IterOptions{}
	}
	it, err := v.base.Clone(pebble.CloneOptions{IterOptions: o})
	if err != nil {
		return nil, fmt.Errorf("store: iterate: %w", explain(err))
	}
	return it, nil
}

// Close ends the view. It may be called twice.
func (v *View) Close() {
	if v.s == nil {
		return
	}
	if v.point != nil {
		v.point.Close()
	}
	if v.base != nil {
		v.base.Close()
	}
	v.s.metrics.views.Add(-1)
	v.s, v.base, v.point, v.err = nil, nil, nil, errors.New("store: the view is closed")
}

package lease

import (
	"encoding/binary"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/belaydb/belay/store"
)

// recordForm is the first byte of a lease record; see the box in doc.go.
const recordForm = 1

func encodeRecord(ttl, remaining int64) []byte {
	b := append(make([]byte, 0, 1+2*binary.MaxVarintLen64), recordForm)
	b = binary.AppendVarint(b, ttl)
	return binary.AppendVarint(b, remaining)
}

func decodeRecord(b []byte) (ttl, remaining int64, err error) {
	if len(b) == 0 || b[0] != recordForm {
		return 0, 0, fmt.Errorf("lease: record %x has a form this version does not know", b)
	}
	rest := b[1:]
	for _, v := range []*int64{&ttl, &remaining} {
		x, n := binary.Varint(rest)
		if n <= 0 {
			return 0, 0, fmt.Errorf("lease: record %x is cut short", b)
		}
		*v, rest = x, rest[n:]
	}
	if len(rest) != 0 {
		return 0, 0, fmt.Errorf("lease: record %x goes on after its end", b)
	}
	return ttl, remaining, nil
}

func writeRecord(b *store.Batch, id ID, ttl, remaining int64) error {
	return b.Set(store.LeaseKey(int64(id)), encodeRecord(ttl, remaining))
}

func deleteRecord(b *store.Batch, id ID) error { return b.Delete(store.LeaseKey(int64(id))) }

// readRecords calls fn for every stored lease.
func readRecords(r store.Reader, fn func(id ID, ttl, remaining int64)) error {
	lower, upper := store.LeasesSpan()
	return scan(r, lower, upper, func(key, value []byte) error {
		id, ok := store.ParseLeaseKey(key)
		if !ok {
			return fmt.Errorf("lease: stored lease has the key %x", key)
		}
		ttl, remaining, err := decodeRecord(value)
		if err != nil {
			return err
		}
		fn(ID(id), ttl, remaining)
		return nil
	})
}

// Attach attaches a key to a lease, which must exist, and Detach detaches it. Both are idempotent.
// A key is attached to at most one lease: the caller detaches it from the old one.
func (t *Table) Attach(b *store.Batch, id ID, key []byte) error {
	return b.Set(store.LeaseAttachmentKey(int64(id), key), nil)
}

// Detach: see Attach.
func (t *Table) Detach(b *store.Batch, id ID, key []byte) error {
	return b.Delete(store.LeaseAttachmentKey(int64(id), key))
}

// Keys returns the keys that are attached to a lease, in key order. r is the open batch for the
// applier, a view or the store for a reader.
func (t *Table) Keys(r store.Reader, id ID) ([][]byte, error) {
	var keys [][]byte
	lower, upper := store.LeaseAttachmentsSpan(int64(id))
	err := scan(r, lower, upper, func(key, _ []byte) error {
		_, user, ok := store.ParseLeaseAttachmentKey(key)
		if !ok {
			return fmt.Errorf("lease: stored attachment has the key %x", key)
		}
		keys = append(keys, append([]byte(nil), user...))
		return nil
	})
	return keys, err
}

func scan(r store.Reader, lower, upper []byte, fn func(key, value []byte) error) (err error) {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := it.Close(); err == nil {
			err = closeErr
		}
	}()
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if err := fn(it.Key(), value); err != nil {
			return err
		}
	}
	return it.Error()
}

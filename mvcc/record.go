package mvcc

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/belaydb/belay/store"
)

// Revision orders all changes: Main counts transactions, Sub the changes within one.
type Revision struct{ Main, Sub int64 }

// Less orders revisions.
func (r Revision) Less(o Revision) bool {
	return r.Main < o.Main || r.Main == o.Main && r.Sub < o.Sub
}

// A version of a user key, at (main, sub) in the key, is stored as
//
//	+-------+----------------------+----------------+-----------+-------+
//	| flags | main - create revision | version      | [lease:8] | value |
//	+-------+----------------------+----------------+-----------+-------+
//	  1 byte  uvarint                uvarint          if flagLease, little-endian
//
// A tombstone is stored as no bytes at all, so that a count need not read values.
//
// A revision (main, sub) is stored as
//
//	+-------+----------+
//	| flags | user key |
//	+-------+----------+
//	  1 byte
const (
	flagLease     = 1 << 0 // of a version
	flagTombstone = 1 << 0 // of a revision

	maxHeaderLen = 1 + 2*binary.MaxVarintLen64 + 8
)

// record is a version without its key.
type record struct {
	create, version, lease int64
	value                  []byte
}

func appendHeader(dst []byte, main, create, version, lease int64) []byte {
	flags := byte(0)
	if lease != 0 {
		flags = flagLease
	}
	dst = append(dst, flags)
	dst = binary.AppendUvarint(dst, uint64(main-create))
	dst = binary.AppendUvarint(dst, uint64(version))
	if lease != 0 {
		dst = binary.LittleEndian.AppendUint64(dst, uint64(lease))
	}
	return dst
}

var errRecord = errors.New("mvcc: a stored version is malformed")

// decodeRecord decodes a version that is no tombstone. The value refers to b.
func decodeRecord(b []byte, main int64) (r record, err error) {
	if len(b) < 3 || b[0]&^flagLease != 0 {
		return r, errRecord
	}
	flags := b[0]
	age, n := binary.Uvarint(b[1:])
	if n <= 0 || age > uint64(main) {
		return r, errRecord
	}
	b = b[1+n:]
	version, n := binary.Uvarint(b)
	if n <= 0 || version == 0 || version > 1<<62 {
		return r, errRecord
	}
	b = b[n:]
	r.create, r.version = main-int64(age), int64(version)
	if flags&flagLease != 0 {
		if len(b) < 8 {
			return r, errRecord
		}
		r.lease, b = int64(binary.LittleEndian.Uint64(b)), b[8:]
	}
	r.value = b
	return r, nil
}

// decodeRevision takes an entry of the revision index apart; key refers to value.
func decodeRevision(k, value []byte) (rev Revision, tombstone bool, key []byte, err error) {
	main, sub, ok := store.ParseRevisionKey(k)
	if !ok || len(value) < 1 || value[0]&^flagTombstone != 0 || main > 1<<62 {
		return rev, false, nil, fmt.Errorf("mvcc: an entry of the revision index is malformed: %x", k)
	}
	return Revision{int64(main), int64(sub)}, value[0]&flagTombstone != 0, value[1:], nil
}

// isAll reports whether end is the API's "every key from here on".
func isAll(end []byte) bool { return len(end) == 1 && end[0] == 0 }

// bounds are the iterator bounds of the range [key, end). ok is false for an empty range.
func bounds(key, end []byte) (lower, upper []byte, ok bool) {
	lower = store.AppendUserKeyPrefix(make([]byte, 0, len(key)+2), key)
	switch {
	case len(end) == 0:
		// The key and a zero byte is the next key, so this holds the versions of one key.
		return lower, store.AppendUserKeyPrefix(make([]byte, 0, len(key)+3), append(key[:len(key):len(key)], 0)), true
	case isAll(end):
		_, upper = store.UserKeysSpan()
		return lower, upper, true
	}
	if string(key) >= string(end) {
		return nil, nil, false
	}
	return lower, store.AppendUserKeyPrefix(make([]byte, 0, len(end)+2), end), true
}

// A Stored is a version as the store has it.
type Stored struct {
	Create, Version, Lease int64
	Value                  []byte
}

// ParseStored decodes the value that the store has under a key of a version, of revision main. The
// result refers to b. An empty b is a tombstone, which has none.
func ParseStored(b []byte, main int64) (Stored, error) {
	r, err := decodeRecord(b, main)
	return Stored{r.create, r.version, r.lease, r.value}, err
}

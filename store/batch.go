package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/belaydb/belay/command"
)

// ErrReplaced is the error of committing a local batch after a snapshot was installed since the
// batch was made.
var ErrReplaced = errors.New("store: the content was replaced by a snapshot")

// Batch collects writes that happen together or not at all. It belongs to one goroutine.
//
// A batch starts as a plain list of writes, the cheapest form. The first read through it (Get,
// NewIter) turns it into one that is indexed, so that reads see its own writes; writes after that
// cost about twice as much. Package mvcc looks its own writes up in a map and reads through the
// batch only for ranges.
type Batch struct {
	s           *Store
	b           *pebble.Batch // nil: committed or closed
	index, term uint64
	local       bool
	generation  uint64
	before      []func(*Batch) error
	shadows     int64   // bytes that sized deletes make garbage
	deleted     deleted // the same, of versions of users' keys

	placed int64                     // bytes of values that have a place
	live   map[command.Segment]int64 // by how much what is live in segments changes
}

// NewBatch begins the batch of the entries that end with index, of the given term. It panics if
// index is not beyond the applied index, or if the applier has another batch open.
func (s *Store) NewBatch(index, term uint64) *Batch {
	if applied, _ := s.Applied(); index <= applied {
		panic(fmt.Sprintf("store: a batch for index %d, but %d is applied", index, applied))
	}
	if !s.writing.CompareAndSwap(false, true) {
		panic("store: two batches at once")
	}
	return &Batch{s: s, b: s.db.NewBatch(), index: index, term: term, generation: s.Generation()}
}

// Expect reserves room for this many bytes of keys and values. REQUIRES: nothing was written yet.
// Without it a batch of large values grows by doubling, and copies them each time.
func (b *Batch) Expect(bytes int) {
	if bytes < expectBytes {
		return
	}
	_ = b.b.Close()
	b.b = b.s.db.NewBatchWithSize(bytes)
}

// expectBytes is the size from which Expect is worth it: what the engine keeps of a batch for the
// next one.
const expectBytes = 1 << 20

// NewLocalBatch begins a batch outside the replicated order: it does not touch the applied index.
// It is for the physical removal of what compactions have made unreachable, and may be used
// concurrently with the applier.
func (s *Store) NewLocalBatch() *Batch {
	return &Batch{s: s, b: s.db.NewBatch(), local: true, generation: s.Generation()}
}

// Set writes a key; both slices are copied.
func (b *Batch) Set(key, value []byte) error { return b.b.Set(key, value, nil) }

// SetDeferred makes room for a key and a value that the caller writes in place, and then calls
// Finish on the result. No other call on the batch may come between.
func (b *Batch) SetDeferred(keyLen, valueLen int) *pebble.DeferredBatchOp {
	return b.b.SetDeferred(keyLen, valueLen)
}

// SetPlaced writes a version of a user key whose value has a place: header is what it has before the
// value. All is copied.
func (b *Batch) SetPlaced(key, header []byte, p Place) error {
	_, _, main, sub, ok := ParseUserKey(key)
	if !ok {
		return errPlaced
	}
	b.places(p.Segment, int64(p.Length))
	b.placed += int64(p.Length)
	version := appendPlaced(make([]byte, 0, placedMax), p, header)
	back := append(binary.AppendUvarint(make([]byte, 0, binary.MaxVarintLen64+len(key)), uint64(p.Length)), key...)
	return errors.Join(b.b.Set(key, version, nil), b.b.Set(placeKey(p.Segment, main, sub), back, nil))
}

// places notes that what is live in a segment changes with the batch.
func (b *Batch) places(segment command.Segment, bytes int64) {
	if b.live == nil {
		b.live = make(map[command.Segment]int64)
	}
	b.live[segment] += bytes
}

// DeleteVersion removes a version of a user key, whose extent an iterator has told.
func (b *Batch) DeleteVersion(key []byte, x Extent) error {
	if x.segment == (command.Segment{}) {
		return b.DeleteSized(key, x.Bytes)
	}
	_, _, main, sub, ok := ParseUserKey(key)
	if !ok {
		return errPlaced
	}
	b.places(x.segment, -x.length)
	return errors.Join(b.DeleteSized(key, placedMin), b.b.Delete(placeKey(x.segment, main, sub), nil))
}

// Delete removes a key. There is no removal of a range, so no reader has to handle range
// tombstones.
func (b *Batch) Delete(key []byte) error { return b.b.Delete(key, nil) }

// DeleteSized is Delete for a key that was written once, with a value of valueBytes: the engine
// then knows how much room the delete frees, and Size no longer counts it as in use. A wrong size
// affects only the estimate.
func (b *Batch) DeleteSized(key []byte, valueBytes int) error {
	b.shadows += int64(len(key) + valueBytes + memTableEntryBytes)
	if key[0] == spaceUser {
		b.deleted.note(key, int64(len(key)+valueBytes))
	}
	return b.b.DeleteSized(key, uint32(min(max(valueBytes, 0), math.MaxUint32)), nil)
}

// Get reads a key, as this batch leaves it.
func (b *Batch) Get(key []byte) ([]byte, bool, error) {
	if err := b.makeReadable(); err != nil {
		return nil, false, err
	}
	slot, err := b.s.readers.begin()
	if err != nil {
		return nil, false, fmt.Errorf("store: read: %w", err)
	}
	defer b.s.readers.end(slot)
	return b.s.Segments.get(b.b, key)
}

// NewIter iterates over the store as this batch leaves it. Writes made after the call are not seen
// by the iterator.
func (b *Batch) NewIter(o *pebble.IterOptions) (Iterator, error) {
	if err := b.makeReadable(); err != nil {
		return Iterator{}, err
	}
	return b.s.Segments.iterate(func() (*pebble.Iterator, error) { return b.b.NewIter(o) })
}

func (b *Batch) makeReadable() error {
	if b.b.Indexed() {
		return nil
	}
	indexed := b.s.db.NewIndexedBatch()
	if !b.b.Empty() {
		if err := indexed.Apply(b.b, nil); err != nil {
			return errors.Join(err, indexed.Close())
		}
	}
	err := b.b.Close()
	b.b = indexed
	return err
}

// BeforeCommit registers fn to be called at the start of Commit, to write what is known only at the
// end.
func (b *Batch) BeforeCommit(fn func(*Batch) error) { b.before = append(b.before, fn) }

// Commit makes the writes visible, all at once, and with them the applied index. The batch is
// closed afterwards. On error nothing was written.
func (b *Batch) Commit() error {
	start := time.Now()
	defer b.Close()
	select {
	case <-b.s.broken: // it would wait in memory, until there is no room there either
		return b.s.why
	default:
	}
	for _, fn := range b.before {
		if err := fn(b); err != nil {
			return err
		}
	}
	s := b.s
	s.write.enter()
	defer s.write.leave()
	if b.generation != s.Generation() {
		return ErrReplaced
	}
	if !b.local {
		var value [16]byte
		binary.BigEndian.PutUint64(value[:8], b.index)
		binary.BigEndian.PutUint64(value[8:], b.term)
		if err := b.b.Set(s.appliedKey, value[:], nil); err != nil {
			return err
		}
	}
	written := time.Now()
	s.sizes.noteCommit(b)
	if err := s.db.Apply(b.b, pebble.NoSync); err != nil {
		return fmt.Errorf("store: commit: %w", explain(err))
	}
	s.Segments.note(b.live)
	if !b.local {
		s.applied.Store(&position{b.index, b.term})
	}
	s.reclaim.note(b.deleted)
	now := time.Now()
	s.metrics.writeSeconds.Observe(now.Sub(written).Seconds())
	s.metrics.commitSeconds.Observe(now.Sub(start).Seconds())
	return nil
}

// Close drops a batch that was not committed. After Commit it does nothing.
func (b *Batch) Close() {
	if b.b == nil {
		return
	}
	b.b.Close()
	b.b = nil
	if !b.local {
		b.s.writing.Store(false)
	}
}

// memTableEntryBytes is about what an entry costs in a memtable besides key and value.
const memTableEntryBytes = 48

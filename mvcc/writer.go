package mvcc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/belaydb/belay/store"
)

// Writer writes transactions into one batch of the store. It belongs to the applier goroutine. The
// order of calls is
//
//	NewWriter { Begin { Put DeleteRange Range Prev } End | Compact } Batch.Commit Publish
//
// A writer whose batch is not committed is dropped.
type Writer struct {
	s *Store
	b *store.Batch

	base    int64 // newest revision before this batch
	rev     int64 // newest revision of a finished transaction
	compact int64

	sub    int64 // changes of the open transaction
	ops    int
	events []*mvccpb.Event

	// overlay holds the newest version of every key that this batch wrote; kv.Version 0: a
	// tombstone.
	overlay overlay
	// committed reads what was committed before this batch; not open before it is needed.
	committed store.Iterator

	requests []compactionRequest
	changes  []change
	// wide: a range of many keys was deleted. Its tombstones do not go into the cache, where they
	// would drive out what is read.
	wide  bool
	stats struct {
		puts, deletes, ranges, txns int
		putBytes                    int64
	}
}

type overlay map[string]written

type written struct {
	kv  *mvccpb.KeyValue
	sub uint32
}

// change is a key that was created (delta 1) or deleted (delta -1) at a revision.
type change struct {
	key   []byte
	rev   int64
	delta int32
}

type compactionRequest struct {
	rev, previous int64
	// whole: the previous compaction had finished when this one was requested, so a hash can cover
	// everything in between.
	whole bool
}

// NewWriter begins to write into a batch.
func (s *Store) NewWriter(b *store.Batch) *Writer {
	rev := s.rev.Load()
	w := &Writer{s: s, b: b, base: rev, rev: rev, compact: s.compact.Load(), overlay: s.scratch}
	clear(w.overlay)
	w.dropIndex() // of a writer whose batch was dropped
	b.BeforeCommit(w.beforeCommit)
	return w
}

// Begin begins the next transaction.
func (w *Writer) Begin() { w.sub, w.ops, w.events = 0, 0, nil }

// Rev is the newest revision as the open transaction sees it: one more once it has written.
func (w *Writer) Rev() int64 {
	if w.sub > 0 {
		return w.rev + 1
	}
	return w.rev
}

// CompactRevision is the newest compaction asked for, in this batch too.
func (w *Writer) CompactRevision() int64 { return w.compact }

// End ends the transaction: its events, in the order of its changes, and the newest revision.
// Without changes there is no new revision. The events share memory with what was given to Put and
// DeleteRange.
func (w *Writer) End() (events []*mvccpb.Event, rev int64) {
	if w.ops > 1 {
		w.stats.txns++
	}
	if w.sub > 0 {
		w.rev++
	}
	events = w.events
	w.Begin()
	return events, w.rev
}

// Put writes a key and returns the previous version, or nil. prev may lack its value (see Prev) and
// must not be changed. key and value must not be changed afterwards.
func (w *Writer) Put(key, value []byte, lease int64) (prev *mvccpb.KeyValue, rev int64, err error) {
	return w.PutPlaced(key, value, lease, store.Place{})
}

// PutPlaced is Put of a value that has a place, to which the store refers; if it is set.
func (w *Writer) PutPlaced(key, value []byte, lease int64, place store.Place) (prev *mvccpb.KeyValue, rev int64, err error) {
	if prev, err = w.Prev(key, false); err != nil {
		return nil, 0, err
	}
	rev = w.rev + 1
	put := &struct {
		kv    mvccpb.KeyValue
		event mvccpb.Event
	}{}
	kv := &put.kv
	kv.Key, kv.Value, kv.ModRevision, kv.Lease = key, value, rev, lease
	if prev != nil {
		kv.CreateRevision, kv.Version = prev.CreateRevision, prev.Version+1
	} else {
		kv.CreateRevision, kv.Version = rev, 1
		w.changes = append(w.changes, change{key, rev, 1})
	}
	sub := w.nextSub()
	var header [maxHeaderLen]byte
	h := appendHeader(header[:0], rev, kv.CreateRevision, kv.Version, lease)
	if place.IsSet() {
		err = w.b.SetPlaced(store.AppendUserKey(nil, key, uint64(rev), sub), h, place)
	} else {
		op := w.b.SetDeferred(store.UserKeyLen(key, sub), len(h)+len(value))
		store.AppendUserKey(op.Key[:0], key, uint64(rev), sub)
		copy(op.Value[copy(op.Value, h):], value)
		err = op.Finish()
	}
	if err != nil {
		return nil, 0, err
	}
	if err := w.index(key, rev, sub, 0); err != nil {
		return nil, 0, err
	}
	w.overlay[str(key)] = written{kv, sub}
	put.event.Kv = kv
	w.events = append(w.events, &put.event)
	w.ops++
	w.stats.puts++
	w.stats.putBytes += int64(len(key) + len(value))
	return prev, rev, nil
}

func (w *Writer) nextSub() uint32 {
	if w.sub > math.MaxUint32 {
		panic("mvcc: too many changes in one transaction")
	}
	w.sub++
	return uint32(w.sub - 1)
}

// indexed is an entry of the revision index.
type indexed struct {
	key   []byte
	rev   int64
	sub   uint32
	flags byte
}

// maxIndexed is how many entries of the revision index wait for the end of a batch.
const maxIndexed = 4096

// index notes an entry of the revision index. Those of a batch are written one after the other: the
// engine finds the place of a key in its memory table at once when it follows the one before it, and
// between the keys of users it had to search for each of these as well. Nobody reads the index through
// a batch.
func (w *Writer) index(key []byte, rev int64, sub uint32, flags byte) error {
	w.s.indexed = append(w.s.indexed, indexed{key, rev, sub, flags})
	if len(w.s.indexed) < maxIndexed {
		return nil
	}
	return w.writeIndex()
}

// writeIndex writes what index has noted.
func (w *Writer) writeIndex() error {
	for _, e := range w.s.indexed {
		op := w.b.SetDeferred(store.RevisionKeyLen, 1+len(e.key))
		store.AppendRevisionKey(op.Key[:0], uint64(e.rev), e.sub)
		op.Value[0] = e.flags
		copy(op.Value[1:], e.key)
		if err := op.Finish(); err != nil {
			return err
		}
	}
	w.dropIndex()
	return nil
}

func (w *Writer) dropIndex() {
	clear(w.s.indexed)
	w.s.indexed = w.s.indexed[:0]
}

// remove writes a tombstone for a key that exists.
func (w *Writer) remove(key []byte) error {
	rev, sub := w.rev+1, w.nextSub()
	op := w.b.SetDeferred(store.UserKeyLen(key, sub), 0)
	store.AppendUserKey(op.Key[:0], key, uint64(rev), sub)
	if err := op.Finish(); err != nil {
		return err
	}
	if err := w.index(key, rev, sub, flagTombstone); err != nil {
		return err
	}
	gone := &struct {
		kv    mvccpb.KeyValue
		event mvccpb.Event
	}{}
	kv := &gone.kv
	kv.Key, kv.ModRevision = key, rev
	w.overlay[str(key)] = written{kv, sub}
	gone.event.Type, gone.event.Kv = mvccpb.Event_DELETE, kv
	w.events = append(w.events, &gone.event)
	w.changes = append(w.changes, change{key, rev, -1})
	return nil
}

// Prev is the newest version of a key as the transaction sees it; nil if it does not exist. It must
// not be changed.
func (w *Writer) Prev(key []byte, withValue bool) (*mvccpb.KeyValue, error) {
	own, ok := w.overlay[string(key)]
	kv := own.kv
	if !ok {
		var whole bool
		kv, whole, ok = w.s.cache.get(key, withValue)
		if !ok && w.s.exists.never(key) {
			return nil, nil
		}
		if !ok || withValue && !whole && kv.Version != 0 {
			var err error
			if kv, err = w.read(key, withValue); err != nil {
				return nil, err
			}
		}
	}
	if kv == nil || kv.Version == 0 {
		return nil, nil
	}
	return kv, nil
}

// read looks a key up in what was committed before this batch.
func (w *Writer) read(key []byte, withValue bool) (kv *mvccpb.KeyValue, err error) {
	if !w.committed.IsOpen() {
		if w.committed, err = w.s.st.NewIter(&pebble.IterOptions{UseL6Filters: true}); err != nil {
			return nil, err
		}
	}
	return newestOf(w.committed, key, w.base, withValue)
}

// DeleteRange deletes the keys of [key, end) that exist, end as in Store.Range. prevs are the
// previous versions, in key order; they lack their values unless wantPrev, and must not be changed.
func (w *Writer) DeleteRange(key, end []byte, wantPrev bool) (n int64, prevs []*mvccpb.KeyValue, err error) {
	n, prevs, _, err = w.DeleteWithin(key, end, wantPrev, 0)
	return n, prevs, err
}

// DeleteWithin is DeleteRange that reads previous values only up to maxBytes, if that is not 0:
// beyond it whole is false, and the prevs lack their values. It deletes the same keys.
func (w *Writer) DeleteWithin(key, end []byte, wantPrev bool, maxBytes int64) (n int64, prevs []*mvccpb.KeyValue, whole bool, err error) {
	w.ops++
	w.stats.deletes++
	if len(end) == 0 {
		prev, err := w.Prev(key, wantPrev)
		if err != nil || prev == nil {
			return 0, nil, true, err
		}
		return 1, []*mvccpb.KeyValue{prev}, true, w.remove(key)
	}
	whole = true
	o := RangeOptions{KeysOnly: true}
	if wantPrev {
		o = RangeOptions{MaxBytes: maxBytes}
	}
	res, err := w.rangeOf(context.Background(), key, end, o)
	if wantPrev && errors.Is(err, ErrTooLarge) {
		wantPrev, whole = false, false
		res, err = w.rangeOf(context.Background(), key, end, RangeOptions{KeysOnly: true})
	}
	if err != nil {
		return 0, nil, false, err
	}
	w.wide = w.wide || len(res.KVs) > w.s.opts.wideDelete
	w.events, w.changes = slices.Grow(w.events, len(res.KVs)), slices.Grow(w.changes, len(res.KVs))
	for _, kv := range res.KVs {
		gone := kv.Key
		if wantPrev {
			gone = bytes.Clone(gone) // the key that was read shares its memory with values
		}
		if err := w.remove(gone); err != nil {
			return 0, nil, false, err
		}
	}
	return res.Count, res.KVs, whole, nil
}

// Range reads as Store.Range does, and sees what this batch and transaction have written.
func (w *Writer) Range(ctx context.Context, key, end []byte, o RangeOptions) (RangeResult, error) {
	w.ops++
	w.stats.ranges++
	if len(end) == 0 && o.Rev <= 0 {
		kv, err := w.Prev(key, !o.CountOnly && !o.KeysOnly)
		return pointResult(kv, o, w.Rev()), err
	}
	return w.rangeOf(ctx, key, end, o)
}

func (w *Writer) rangeOf(ctx context.Context, key, end []byte, o RangeOptions) (res RangeResult, err error) {
	res.Rev = w.Rev()
	rev, err := at(o.Rev, res.Rev)
	if err != nil {
		return res, err
	}
	if rev < w.compact {
		return res, ErrCompacted
	}
	lower, upper, ok := bounds(key, end)
	if !ok {
		return res, nil
	}
	// A revision compacted after this batch began is refused above, so nothing readable can be
	// missing here.
	newIter := w.b.NewIter
	if len(w.overlay) == 0 {
		newIter = w.s.st.NewIter // the batch need not be made readable, which makes all its writes dearer
	}
	it, err := newIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return res, err
	}
	res, err = rangeOf(ctx, it, key, rev, o, w.s.keyCounts.counterWith(end, rev, w.base, w.changes))
	res.Rev = w.Rev()
	return res, errors.Join(err, it.Close())
}

// Compact records that revisions before rev need not be readable any more. What they leave is
// removed in the background after Publish. Errors: ErrCompacted if that or a newer one was
// requested before, ErrFutureRev.
func (w *Writer) Compact(rev int64) error {
	switch {
	case rev <= w.compact:
		return ErrCompacted
	case rev > w.rev:
		return ErrFutureRev
	}
	whole := len(w.requests) == 0 && w.s.finished.Load() == w.compact
	w.requests = append(w.requests, compactionRequest{rev, w.compact, whole})
	w.compact = rev
	return w.b.Set(store.MetaKey(metaScheduled), number(rev))
}

// Drop ends the reads of a writer whose batch is not committed. Who closes the store waits for them.
func (w *Writer) Drop() {
	if w.committed.IsOpen() {
		_ = w.committed.Close() // what it met was returned
		w.committed = store.Iterator{}
	}
}

func (w *Writer) beforeCommit(b *store.Batch) error {
	if w.sub != 0 {
		panic(fmt.Sprintf("mvcc: a batch is committed within a transaction, of revision %d", w.rev+1))
	}
	if w.committed.IsOpen() {
		err := w.committed.Close()
		w.committed = store.Iterator{}
		if err != nil {
			return store.Explain(err)
		}
	}
	if w.rev == w.base {
		return nil
	}
	if err := w.writeIndex(); err != nil {
		return err
	}
	return b.Set(store.MetaKey(metaRevision), number(w.rev))
}

// Publish makes the transactions of the batch readable. REQUIRES: the batch was committed.
func (w *Writer) Publish() {
	s := w.s
	if s.rev.Load() != w.base {
		panic("mvcc: a batch is published out of order")
	}
	// The order matters to readers: see the comments of cache and of Store.rev.
	for _, o := range w.overlay {
		if w.wide && o.kv.Version == 0 {
			s.cache.forget(o.kv)
		} else {
			s.cache.put(o.kv, o.sub)
		}
	}
	s.keyCounts.take(w.changes, w.rev)
	s.compact.Store(w.compact)
	s.rev.Store(w.rev)
	if len(w.overlay) > s.opts.keepOverlay { // a map does not shrink, and to clear it costs what it once held
		s.scratch = overlay{}
	}
	w.overlay = nil
	s.checkInvariants()
	s.enqueue(w.requests)

	m := s.metrics
	add := func(c interface{ Add(float64) }, n int64) {
		if n != 0 {
			c.Add(float64(n))
		}
	}
	add(m.puts, int64(w.stats.puts))
	add(m.deletes, int64(w.stats.deletes))
	add(m.ranges, int64(w.stats.ranges))
	add(m.txns, int64(w.stats.txns))
	add(m.putBytes, w.stats.putBytes)
}

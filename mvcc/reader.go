package mvcc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/belaydb/belay/store"
)

// RangeOptions say what to read of a range.
type RangeOptions struct {
	Limit     int64 // at most so many keys; 0 or less: all
	Rev       int64 // as of this revision; 0 or less: the newest
	CountOnly bool  // no keys, only how many there are
	KeysOnly  bool  // values are not needed; they may still be set

	// MaxBytes bounds the keys and values that are read; beyond it the error is ErrTooLarge. 0: no
	// bound.
	MaxBytes int64

	// NoCount skips the count: Count is then exact only if it is not greater than Limit.
	NoCount bool

	// Each, if it is set and end is not empty, gets the keys one by one instead of KVs, and none
	// after it has returned false: Count is then how many it got. Its argument is valid until it
	// returns.
	Each func(kv *mvccpb.KeyValue) (more bool)
}

// RangeResult is the content of a range. The KeyValues may be shared with the cache and with other
// callers: they must not be changed.
type RangeResult struct {
	KVs   []*mvccpb.KeyValue
	Count int64 // keys in the whole range, whatever the limit
	Rev   int64 // the newest revision when the range was read
}

// Range reads the keys of [key, end) in order. An empty end means key alone, "\0" every key from
// key on. Any goroutine may call it; it waits for no writer. Errors: ErrCompacted, ErrFutureRev,
// the context's, and those of the disk.
func (s *Store) Range(ctx context.Context, key, end []byte, o RangeOptions) (_ RangeResult, err error) {
	defer func() { s.st.Note(err) }()
	s.metrics.ranges.Inc()
	if len(end) == 0 {
		return s.point(ctx, key, o)
	}
	lower, upper, ok := bounds(key, end)
	if !ok {
		lower, upper = []byte{0xfe, 0}, []byte{0xff, 0} // an empty range, but with the errors of the revision
	}
	it, rev, current, err := s.open(ctx, o.Rev, &pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return RangeResult{Rev: current}, err
	}
	res, err := rangeOf(ctx, it, key, rev, o, s.keyCounts.counter(end, rev))
	res.Rev = current
	return res, errors.Join(err, it.Close())
}

// inMemory returns the newest version of a key and the newest revision, if the version is in memory.
func (s *Store) inMemory(key []byte) (kv *mvccpb.KeyValue, current int64, ok bool) {
	current = s.rev.Load()
	kv, whole, ok := s.cache.get(key, true)
	return kv, current, ok && whole && kv.ModRevision <= current
}

// Cached is Range of one key at the newest revision, if its newest version is in memory. It waits
// for nothing. Any goroutine may call it.
func (s *Store) Cached(key []byte) (res RangeResult, ok bool) {
	kv, current, ok := s.inMemory(key)
	if !ok {
		return RangeResult{}, false
	}
	s.metrics.ranges.Inc()
	return pointResult(kv, RangeOptions{}, current), true
}

// point reads one key.
func (s *Store) point(ctx context.Context, key []byte, o RangeOptions) (RangeResult, error) {
	current := s.rev.Load()
	rev, err := at(o.Rev, current)
	if err != nil {
		return RangeResult{Rev: current}, err
	}
	if rev < s.compact.Load() && o.Rev > 0 {
		return RangeResult{Rev: current}, ErrCompacted
	}
	if kv, whole, ok := s.cache.get(key, true); ok && kv.ModRevision <= rev && (whole || o.KeysOnly || o.CountOnly) {
		return pointResult(kv, o, current), nil
	}
	it, rev, current, err := s.open(ctx, o.Rev, &pebble.IterOptions{UseL6Filters: true})
	if err != nil {
		return RangeResult{Rev: current}, err
	}
	kv, err := newestOf(it, key, rev, !o.CountOnly && !o.KeysOnly)
	if err := errors.Join(err, it.Close()); err != nil {
		return RangeResult{Rev: current}, err
	}
	if kv != nil && rev == current && !o.CountOnly && !o.KeysOnly {
		s.cache.fill(kv, current)
	}
	return pointResult(kv, o, current), nil
}

func pointResult(kv *mvccpb.KeyValue, o RangeOptions, current int64) RangeResult {
	switch {
	case kv == nil || kv.Version == 0:
		return RangeResult{Rev: current}
	case o.CountOnly:
		return RangeResult{Count: 1, Rev: current}
	}
	return RangeResult{KVs: []*mvccpb.KeyValue{kv}, Count: 1, Rev: current}
}

// newestOf reads the newest version of a key at or below a revision: nil if there is none, Version
// 0 for a tombstone.
func newestOf(it store.Iterator, key []byte, rev int64, withValue bool) (*mvccpb.KeyValue, error) {
	var stack [128]byte
	target := store.AppendUserKey(stack[:0], key, uint64(rev), store.MaxSub)
	if !it.SeekPrefixGE(target) {
		return nil, store.Explain(it.Error())
	}
	_, _, main, _, ok := store.ParseUserKey(it.Key())
	if !ok {
		return nil, errRecord
	}
	kv := &mvccpb.KeyValue{Key: append(make([]byte, 0, len(key)), key...), ModRevision: int64(main)}
	if valueLen(it) == 0 {
		return kv, nil
	}
	b, err := it.VersionAndErr(withValue)
	if err != nil {
		return nil, store.Explain(err)
	}
	r, err := decodeRecord(b, int64(main))
	if err != nil {
		return nil, err
	}
	kv.CreateRevision, kv.Version, kv.Lease = r.create, r.version, r.lease
	if withValue && len(r.value) > 0 {
		kv.Value = append(make([]byte, 0, len(r.value)), r.value...)
	}
	return kv, nil
}

// valueLen is the length of what the store has as value at the iterator, without reading it: 0 for a
// tombstone alone.
func valueLen(it store.Iterator) int {
	v := it.LazyValue()
	return v.Len()
}

// visible walks over the keys of an iterator that exist at a revision, one stop for each.
type visible struct {
	it     store.Iterator
	rev    uint64
	walk   paced // over every key that is met
	begun  bool
	prefix []byte // scratch
	target []byte

	key  []byte // of the stop; valid until next
	main int64
}

// nextsBeforeSeek is how many newer versions are stepped over before a seek is tried.
const nextsBeforeSeek = 4

// next moves to the next existing key.
func (v *visible) next() bool {
	ok := false
	if v.begun {
		ok = v.it.NextPrefix()
	} else {
		v.begun = true
		ok = v.it.First()
	}
	for ok && v.walk.step() {
		k := v.it.Key()
		n := len(k) - int(k[len(k)-1])
		main := binary.BigEndian.Uint64(k[n:])
		if main > v.rev {
			if ok = v.skipNewer(k[:n]); !ok {
				return false
			}
			continue
		}
		if valueLen(v.it) == 0 {
			ok = v.it.NextPrefix()
			continue
		}
		v.key, v.main = k[1:n-1], int64(main)
		return true
	}
	return false
}

// skipNewer moves to the first version at or below the revision, or to the next key.
func (v *visible) skipNewer(prefix []byte) bool {
	v.prefix = append(v.prefix[:0], prefix...)
	for range nextsBeforeSeek {
		if !v.it.Next() {
			return false
		}
		k := v.it.Key()
		n := len(k) - int(k[len(k)-1])
		if binary.BigEndian.Uint64(k[n:]) <= v.rev || !bytes.Equal(k[:n], v.prefix) {
			return true
		}
	}
	v.target = binary.BigEndian.AppendUint64(append(v.target[:0], v.prefix...), v.rev)
	v.target = append(v.target, 0xff, 0xff, 0xff, 0xff, 8+4+1)
	return v.it.SeekGE(v.target)
}

// err is why next returned false, if not for the end of the keys.
func (v *visible) err() error {
	if v.walk.err != nil {
		return v.walk.err
	}
	return store.Explain(v.it.Error())
}

// record reads the version at the stop, without its value if that is not wanted. It is valid until
// next.
func (v *visible) record(withValue bool) (record, error) {
	b, err := v.it.VersionAndErr(withValue)
	if err != nil {
		return record{}, store.Explain(err)
	}
	v.walk.bytes += int64(len(b))
	return decodeRecord(b, v.main)
}

// rangeOf reads what is within the bounds of an iterator, from key on. counted, if not nil, may
// know how many keys there are from some key on (see keyCounts.counter).
func rangeOf(ctx context.Context, it store.Iterator, key []byte, rev int64, o RangeOptions, counted func(w *paced, it store.Iterator, from []byte) (int64, bool, error)) (res RangeResult, err error) {
	v := visible{it: it, rev: uint64(rev), walk: paced{ctx: ctx}}
	if o.CountOnly && counted != nil {
		if n, ok, err := counted(&v.walk, it, key); ok || err != nil {
			res.Count = n
			return res, err
		}
	}
	var kvs slab
	var one mvccpb.KeyValue
	size := int64(0)
	for v.next() {
		res.Count++
		if o.CountOnly {
			continue
		}
		if o.Limit > 0 && res.Count > o.Limit {
			if o.NoCount {
				break
			}
			if counted != nil {
				from := append(make([]byte, 0, len(v.key)), v.key...)
				n, ok, err := counted(&v.walk, it, from)
				if err != nil {
					return res, err
				}
				if ok {
					res.Count += n - 1
					break
				}
				counted = nil
			}
			continue
		}
		r, err := v.record(!o.KeysOnly)
		if err != nil {
			return res, err
		}
		if o.KeysOnly {
			r.value = nil
		}
		if size += int64(len(v.key) + len(r.value)); o.MaxBytes > 0 && size > o.MaxBytes {
			return RangeResult{}, ErrTooLarge
		}
		if o.Each != nil {
			one.Key, one.Value, one.ModRevision = v.key, r.value, v.main
			one.CreateRevision, one.Version, one.Lease = r.create, r.version, r.lease
			if !o.Each(&one) {
				break
			}
			continue
		}
		kvs.add(v.key, v.main, r)
	}
	res.KVs = kvs.out
	return res, v.err()
}

// Weigh counts the keys in [key, end), end as in Range, and the bytes of them and their values, as
// of now. It stops beyond either bound, and reads no values. Errors: the context's, and those of
// the disk.
func (s *Store) Weigh(ctx context.Context, key, end []byte, maxKeys, maxBytes int64) (keys, bytes int64, err error) {
	if len(end) == 0 {
		end = append(append(make([]byte, 0, len(key)+1), key...), 0)
	}
	lower, upper, ok := bounds(key, end)
	if !ok {
		return 0, 0, nil
	}
	it, rev, _, err := s.open(ctx, 0, &pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return 0, 0, err
	}
	v := visible{it: it, rev: uint64(rev), walk: paced{ctx: ctx}}
	for keys <= maxKeys && bytes <= maxBytes && v.next() {
		keys++
		bytes += int64(len(v.key) + it.Extent().Bytes)
	}
	return keys, bytes, errors.Join(v.err(), it.Close())
}

// slab makes many KeyValues with few allocations. One that stays reachable keeps its neighbours: it
// is for answers, which live and die together.
type slab struct {
	out   []*mvccpb.KeyValue
	kvs   []mvccpb.KeyValue
	bytes []byte
}

const (
	slabKeys     = 256
	slabBytes    = 64 << 10
	slabValueMax = 8 << 10 // larger ones get memory of their own
)

func (s *slab) add(key []byte, main int64, r record) {
	if len(s.kvs) == cap(s.kvs) {
		s.kvs = make([]mvccpb.KeyValue, 0, min(max(8, 2*len(s.out)), slabKeys))
	}
	s.kvs = s.kvs[:len(s.kvs)+1]
	kv := &s.kvs[len(s.kvs)-1]
	kv.Key = s.copy(key)
	kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease = r.create, main, r.version, r.lease
	if len(r.value) > 0 {
		kv.Value = s.copy(r.value)
	}
	s.out = append(s.out, kv)
}

func (s *slab) copy(b []byte) []byte {
	if len(b) > slabValueMax {
		return append(make([]byte, 0, len(b)), b...)
	}
	if cap(s.bytes)-len(s.bytes) < len(b) {
		s.bytes = make([]byte, 0, max(len(b), min(max(512, 2*cap(s.bytes)), slabBytes)))
	}
	n := len(s.bytes)
	s.bytes = append(s.bytes, b...)
	return s.bytes[n:len(s.bytes):len(s.bytes)]
}

package mvcc

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"go.uber.org/zap"

	"github.com/belaydb/belay/internal/crc32c"
	"github.com/belaydb/belay/store"
)

// HashKV hashes the keys and their history as of a revision (0: the newest) as etcd does, so that
// members of both kinds can be compared: CRC-32C over the word "key" and then, in revision order,
// the 17 or 18 bytes that etcd's bucket "key" has as key, and the KeyValue in protobuf. The hash
// depends on compactRev: two members that were compacted differently may differ in both.
//
// As in etcd, the hash of a compaction (over what existed between the previous one and it) is the
// answer for its revision as long as it is among the ten newest; so a compaction of revision 0 is
// the answer for "the newest".
//
// The history is stored by key, and reading it by revision would need a seek for each. CRCs can be
// joined: the CRC of A followed by B is that of A shifted by len(B), plus that of B. So one pass in
// key order records CRC and length of every version, and they are joined in revision order.
func (s *Store) HashKV(ctx context.Context, rev int64) (hash uint32, compactRev, currentRev int64, err error) {
	if h, ok := s.hashes.get(rev); ok {
		return h.Hash, h.CompactRevision, s.rev.Load(), nil
	}
	return s.HashState(ctx, rev)
}

// HashState is HashKV without the hashes of compactions: always over what is stored now. Two
// members whose compact revisions are the same have the same hash of a revision.
func (s *Store) HashState(ctx context.Context, rev int64) (hash uint32, compactRev, currentRev int64, err error) {
	defer func() { s.st.Note(err) }()
	start := time.Now()
	lower, upper := store.UserKeysSpan()
	for {
		generation := s.generation.Load()
		// Before the iterator is made: one that is newer than the iterator would be hashed without its
		// own versions, and another member's check would find data that differs.
		current := s.rev.Load()
		it, err := s.st.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
		if err != nil {
			return 0, 0, 0, err
		}
		// After it: what it shows is complete for the compaction requested by then, and for no older
		// one.
		compact := s.compact.Load()
		if s.st.Generation() != generation {
			if err := errors.Join(it.Close(), s.awaitReload(ctx)); err != nil {
				return 0, 0, 0, err
			}
			continue
		}
		at := rev
		switch {
		case rev == 0 && current < compact: // both have moved on since
			if err := it.Close(); err != nil {
				return 0, 0, 0, err
			}
			continue
		case rev > 0 && rev < compact:
			err = ErrCompacted
		case rev > current:
			err = ErrFutureRev
		case rev == 0:
			at = current
		}
		if err == nil {
			hash, err = hashRevisions(ctx, it, compact, at, false, s.opts.hashParts)
		}
		if err != nil {
			it.Close()
			return 0, 0, current, err
		}
		s.metrics.hashRevSeconds.Observe(time.Since(start).Seconds())
		return hash, compact, current, it.Close()
	}
}

// Hash hashes everything in the store that should be equal on all members. Its value means nothing
// outside Belay.
func (s *Store) Hash(ctx context.Context) (hash uint32, rev int64, err error) {
	defer func() { s.st.Note(err) }()
	start := time.Now()
	v := s.View()
	defer v.Close()
	if v.err != nil {
		return 0, 0, v.err
	}
	it, err := v.v.NewIter(&pebble.IterOptions{})
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	lower, upper := store.MetaSpan()
	placesFrom, placesTo := store.PlacesSpan()
	var frame []byte
	w := paced{ctx: ctx}
	for ok := it.First(); ok; ok = it.Next() {
		if !w.step() {
			return 0, 0, w.err
		}
		key := it.Key()
		if bytes.Compare(key, lower) >= 0 && bytes.Compare(key, upper) < 0 || bytes.Compare(key, placesFrom) >= 0 && bytes.Compare(key, placesTo) < 0 {
			continue
		}
		value, err := it.ValueAndErr()
		if err != nil {
			return 0, 0, store.Explain(err)
		}
		w.bytes += int64(len(value))
		frame = binary.AppendUvarint(frame[:0], uint64(len(key)))
		frame = binary.AppendUvarint(frame, uint64(len(value)))
		for _, b := range [][]byte{frame, key, value} {
			hash = crc32c.Update(hash, b)
		}
	}
	s.metrics.hashSeconds.Observe(time.Since(start).Seconds())
	return hash, v.rev, store.Explain(it.Error())
}

// hashRevisions is etcd's hash with "compact revision" compact and "revision" rev, over an iterator
// of user keys. What counts, of each key's versions, newest first:
//
//   - none above rev;
//   - all above compact, tombstones too;
//   - the newest at or below compact, unless it is a tombstone, if it still is the newest at rev;
//     or, which is the effect of etcd's empty "keep", if no key exists at rev at all, see
//     nothingKept.
//
// tombstoneKeeps is for the hash of a compaction: there a tombstone at rev itself makes "keep"
// non-empty. partsMax bounds the memory of a pass over the keys, in versions; there are as many
// passes as that takes.
func hashRevisions(ctx context.Context, it store.Iterator, compact, rev int64, tombstoneKeeps bool, partsMax int) (uint32, error) {
	keepEmpty := false
	if !tombstoneKeeps {
		var err error
		if keepEmpty, err = nothingKept(ctx, it, compact, rev); err != nil {
			return 0, err
		}
	}
	h := joiner{sum: crc32c.Checksum([]byte("key")), max: partsMax}
	from := Revision{}
	for {
		more, err := h.pass(ctx, it, from, compact, rev, keepEmpty)
		if err != nil {
			return 0, err
		}
		if more == nil {
			return h.sum, nil
		}
		from = *more
	}
}

// nothingKept reports whether etcd's "keep" is empty: no key exists at rev. A key that rev itself
// deleted and created again, for example in a nested transaction, does not count there: etcd looks
// for the generation that ends at rev or later, finds the one that rev ended, and leaves out its
// tombstone. For the compact revision itself this cannot be known: such a tombstone is removed when
// the compaction gets there.
func nothingKept(ctx context.Context, it store.Iterator, compact, rev int64) (bool, error) {
	v := visible{it: it, rev: uint64(rev), walk: paced{ctx: ctx}}
	for v.next() {
		if v.main != rev || rev == compact {
			return false, nil
		}
		prefix := store.AppendUserKeyPrefix(nil, v.key)
		deleted := false
		for !deleted && it.Next() {
			p, _, main, _, ok := store.ParseUserKey(it.Key())
			if !ok {
				return false, errRecord
			}
			if int64(main) != rev || !bytes.Equal(p, prefix) {
				break
			}
			deleted = valueLen(it) == 0
		}
		if !deleted {
			return false, store.Explain(it.Error())
		}
		it.SeekGE(prefix) // from where next leaves the key
	}
	return true, v.err()
}

// joiner collects CRCs by revision and joins them.
type joiner struct {
	sum   uint32
	parts []part
	max   int       // parts of a pass; twice as many are held at times
	limit *Revision // parts at or above wait for another pass
	moves [1 << 12]uint32
	frame []byte
}

type part struct {
	main        int64
	sub         uint32
	length, crc uint32
}

// defaultHashParts bounds the memory of a pass to about 25 MB.
const defaultHashParts = 1 << 19

// HashSteps is about how many versions HashState of a View walks over if so many are stored: for who
// shows how far it is.
func HashSteps(versions int64) int64 {
	passes := (versions + defaultHashParts - 1) / defaultHashParts
	return versions * passes
}

// pass joins the parts from a revision on, as many as memory allows. more is where the next pass
// must begin; nil: done.
func (h *joiner) pass(ctx context.Context, it store.Iterator, from Revision, compact, rev int64, keepEmpty bool) (more *Revision, err error) {
	h.parts, h.limit = h.parts[:0], nil
	var prefix []byte
	newest := true // of this key, at or below rev, is yet to come
	w := paced{ctx: ctx}
	for ok := it.First(); ok; {
		if !w.step() {
			return nil, w.err
		}
		p, key, umain, sub, valid := store.ParseUserKey(it.Key())
		if !valid {
			return nil, errRecord
		}
		main := int64(umain)
		if !bytes.Equal(p, prefix) {
			prefix = append(prefix[:0], p...)
			newest = true
		}
		if main > rev {
			ok = it.Next()
			continue
		}
		tombstone := valueLen(it) == 0
		if main > compact || !tombstone && (newest || keepEmpty) {
			if r := (Revision{main, int64(sub)}); !r.Less(from) && (h.limit == nil || r.Less(*h.limit)) {
				if err := h.add(it, key, r, tombstone); err != nil {
					return nil, err
				}
				w.bytes += int64(h.parts[len(h.parts)-1].length)
			}
		}
		newest = false
		if main <= compact {
			ok = it.NextPrefix() // what is older should be gone already
		} else {
			ok = it.Next()
		}
	}
	if err := it.Error(); err != nil {
		return nil, store.Explain(err)
	}
	h.sort()
	for i := range h.parts {
		p := &h.parts[i]
		h.sum = crc32c.Move(h.sum, h.move(p.length)) ^ p.crc
	}
	return h.limit, nil
}

func (h *joiner) sort() {
	slices.SortFunc(h.parts, func(a, b part) int {
		return cmp.Or(cmp.Compare(a.main, b.main), cmp.Compare(a.sub, b.sub))
	})
}

func (h *joiner) add(it store.Iterator, key []byte, r Revision, tombstone bool) error {
	b := h.frame[:0]
	b = binary.BigEndian.AppendUint64(b, uint64(r.Main))
	b = append(b, '_')
	b = binary.BigEndian.AppendUint64(b, uint64(r.Sub))
	var crc, length uint32
	if tombstone {
		b = appendBytesField(append(b, 't'), 1, key)
		crc, length = crc32c.Checksum(b), uint32(len(b))
	} else {
		stored, err := it.ValueAndErr()
		if err != nil {
			return store.Explain(err)
		}
		rec, err := decodeRecord(stored, r.Main)
		if err != nil {
			return err
		}
		b = appendBeforeValue(b, key, r.Main, rec)
		crc = crc32c.Update(0, b)
		crc = crc32c.Update(crc, rec.value)
		length = uint32(len(b) + len(rec.value))
		b = appendIntField(b[:0], 6, rec.lease)
		crc = crc32c.Update(crc, b)
		length += uint32(len(b))
	}
	h.frame = b
	h.parts = append(h.parts, part{r.Main, uint32(r.Sub), length, crc})
	if len(h.parts) >= 2*h.max {
		h.sort()
		cut := h.parts[h.max]
		h.limit = &Revision{cut.main, int64(cut.sub)}
		h.parts = h.parts[:h.max]
	}
	return nil
}

// appendBeforeValue appends what a KeyValue in protobuf has before the bytes of its value. After
// them comes the lease.
func appendBeforeValue(b, key []byte, main int64, rec record) []byte {
	b = appendBytesField(b, 1, key)
	b = appendIntField(b, 2, rec.create)
	b = appendIntField(b, 3, main)
	b = appendIntField(b, 4, rec.version)
	if len(rec.value) > 0 {
		b = append(b, 5<<3|2)
		b = binary.AppendUvarint(b, uint64(len(rec.value)))
	}
	return b
}

// The fields of a KeyValue as protobuf encodes them: in order of their numbers, zeros left out.
func appendBytesField(b []byte, field byte, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	b = binary.AppendUvarint(append(b, field<<3|2), uint64(len(v)))
	return append(b, v...)
}

func appendIntField(b []byte, field byte, v int64) []byte {
	if v == 0 {
		return b
	}
	return binary.AppendUvarint(append(b, field<<3), uint64(v))
}

// move is crc32c.Factor, and remembers those of short parts.
func (h *joiner) move(n uint32) uint32 {
	if n < uint32(len(h.moves)) && h.moves[n] != 0 {
		return h.moves[n]
	}
	p := crc32c.Factor(int(n))
	if n < uint32(len(h.moves)) {
		h.moves[n] = p
	}
	return p
}

// CompactionHash is the hash of what existed when a compaction of Revision began, after one of
// CompactRevision (-1: none). Members with the same compactions have the same hashes.
type CompactionHash struct {
	Revision, CompactRevision int64
	Hash                      uint32
}

// CompactionHashes returns the hashes of the newest compactions that this process has done, ten at
// most, by revision.
func (s *Store) CompactionHashes() []CompactionHash {
	s.hashes.mu.Lock()
	defer s.hashes.mu.Unlock()
	return slices.Clone(s.hashes.list)
}

// hashes are the ten newest hashes of compactions.
type hashes struct {
	mu   sync.Mutex
	list []CompactionHash // by revision
}

const hashesKept = 10

func (hs *hashes) get(rev int64) (CompactionHash, bool) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	for _, h := range hs.list {
		if h.Revision == rev {
			return h, true
		}
	}
	return CompactionHash{}, false
}

func (hs *hashes) put(logger *zap.Logger, h CompactionHash) {
	logger.Info("storing new hash", zap.Uint32("hash", h.Hash), zap.Int64("revision", h.Revision), zap.Int64("compact-revision", h.CompactRevision))
	hs.mu.Lock()
	defer hs.mu.Unlock()
	hs.list = append(hs.list, h)
	slices.SortStableFunc(hs.list, func(a, b CompactionHash) int { return cmp.Compare(a.Revision, b.Revision) })
	if n := len(hs.list) - hashesKept; n > 0 {
		hs.list = slices.Delete(hs.list, 0, n)
	}
}

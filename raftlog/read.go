package raftlog

import (
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
)

// Hold keeps the entry at index after, and those that follow it, in the files for a follower that
// still needs them, whatever Compact is told to keep, as long as the segments held only for this
// reason take at most limit bytes, and at most a quarter of the sum of their size and the free
// space. NoHold: no follower needs any. It does not concern memory: Read reads the files.
//
// It takes effect with the next Compact. Any goroutine may call it.
func (l *Log) Hold(after uint64, limit int64) {
	l.holdAfter.Store(after)
	l.holdLimit.Store(limit)
}

// NoHold is the index with which Hold holds nothing.
const NoHold = ^uint64(0)

// holdShare: what is held takes at most 1/holdShare of the sum of its size and the free space.
const holdShare = 4

// mayHold is how many of held bytes of segments, needed only by readers, may stay.
func (l *Log) mayHold(held int64) int64 {
	limit := l.holdLimit.Load()
	if usage, err := l.files.fs.GetDiskUsage(l.files.dir); err == nil {
		limit = min(limit, int64((usage.AvailBytes+uint64(held))/holdShare))
	}
	return limit
}

// HeldBytes is the size of the segments that stayed, at the last Compact, only because of Hold.
func (l *Log) HeldBytes() int64 { return l.heldBytes.Load() }

// Base is the entry before the first one in memory. It is committed.
func (l *Log) Base() (index, term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tail.base, l.tail.baseTerm
}

// Oldest is the index of the first entry in the files.
func (l *Log) Oldest() uint64 {
	l.files.mu.Lock()
	defer l.files.mu.Unlock()
	return l.files.segments[0].prevIndex + 1
}

// ErrNotHeld is an error of Read and Reader: the files do not hold the entries without a gap, or no
// longer do.
var ErrNotHeld = errors.New("raftlog: the files do not hold these entries")

const (
	// undecidedBytes bounds the entries that a Reader holds and that are not yet known to be final.
	undecidedBytes = 128 << 20
)

// Reader reads entries from the files, in order, each one as it finally is: in the files an entry
// may be followed by another one of the same index, which replaced it. An entry is final if a later
// hard state, or the header of the segment, calls it committed; or if it has the term of a
// committed entry at its own index or above, since the leader of a term has one log only.
//
// It verifies everything that it reads. In the meantime Compact may remove the files, and the
// writer may reuse them under other numbers, which seed the checksums: the Reader then fails, and
// never returns what was not in the log.
//
// It belongs to one goroutine.
type Reader struct {
	l     *Log
	next  uint64 // the entry that Next gives first
	given bool   // Next gave one

	segment segment
	src     *source
	off     int64  // of the next group
	group   uint64 // its number
	last    uint64 // the entry read last
	commit  uint64 // highest that was read
	ends    error  // why there was no group

	// pending are the entries from next to last that were read; empty when last < next.
	pending      []*raftpb.Entry
	pendingBytes int64
	slots        []slot
}

// Read returns a Reader of the entries from index on, which the caller must close. ErrNotHeld: the
// files begin later.
func (l *Log) Read(index uint64) (*Reader, error) {
	l.files.mu.Lock()
	segs := l.files.segments
	l.files.mu.Unlock()
	// The last segment that begins before it: an entry is final in the last place where it occurs,
	// and no later segment holds a replacement without beginning before it as well.
	i := len(segs) - 1
	for i >= 0 && segs[i].prevIndex >= index {
		i--
	}
	if i < 0 {
		return nil, fmt.Errorf("%w: they begin with entry %d, not with %d", ErrNotHeld, segs[0].prevIndex+1, index)
	}
	r := &Reader{l: l, next: index, segment: segs[i], last: segs[i].prevIndex, group: segs[i].first, off: segmentHeaderBytes}
	path := l.files.path(segmentName(r.segment.number))
	b, err := readFile(l.files.fs, path, segmentHeaderBytes)
	if err != nil {
		return nil, notHeld(err)
	}
	h, err := decodeSegmentHeader(b, l.meta.logID, r.segment.number)
	if err != nil {
		return nil, notHeld(&CorruptError{File: path, Reason: "header of the segment: " + err.Error()})
	}
	r.commit = h.hard.commit
	return r, nil
}

func notHeld(err error) error { return fmt.Errorf("%w: %w", ErrNotHeld, err) }

// Next returns the next entries, at least one and at most about maxBytes; none, with a nil error,
// if the files hold no further final entry. Then it may be called again later. The entries alias
// what was read and must not be changed.
//
// committed is the index of a committed entry, and committedTerm its term, such as Base returns.
// After an error, which is an ErrNotHeld, the Reader cannot be used any more.
func (r *Reader) Next(maxBytes int64, committed, committedTerm uint64) ([]*raftpb.Entry, error) {
	n, bytes := 0, int64(0) // of the pending, those to be given
	for {
		final := r.final(committed, committedTerm)
		if final < n {
			n, bytes = 0, 0
		}
		for n < final && (n == 0 || bytes < maxBytes) {
			bytes += entryBytes(r.pending[n])
			n++
		}
		if n > 0 && bytes >= maxBytes {
			return r.give(n, bytes), nil
		}
		// What is final would fit: read more, for a larger message. In the part of another leader each
		// group says of the one before it that it is committed, so it would be a message for each.
		more, err := r.readGroup()
		if err != nil {
			return nil, err
		}
		if more {
			continue
		}
		r.closeSource() // the file may grow
		if n > 0 {
			return r.give(n, bytes), nil
		}
		return nil, nil
	}
}

// final is how many of the pending entries are.
func (r *Reader) final(committed, committedTerm uint64) int {
	for n := len(r.pending); n > 0; n-- {
		e := r.pending[n-1]
		if i := e.GetIndex(); i <= r.commit || (i <= committed && e.GetTerm() == committedTerm) {
			return n
		}
	}
	return 0
}

func (r *Reader) give(n int, bytes int64) []*raftpb.Entry {
	out := r.pending[:n:n]
	r.pending = r.pending[n:]
	r.pendingBytes -= bytes
	r.next += uint64(n)
	r.given = true
	return out
}

// readGroup reads the next group, if there is one.
func (r *Reader) readGroup() (bool, error) {
	l := r.l
	for {
		l.files.mu.Lock()
		segs := l.files.segments
		i := slices.IndexFunc(segs, func(s segment) bool { return s.number == r.segment.number })
		var current, following segment
		if i >= 0 {
			current = segs[i]
		}
		if i+1 < len(segs) && i >= 0 {
			following = segs[i+1]
		}
		l.files.mu.Unlock()
		if i < 0 {
			return false, fmt.Errorf("%w: segment %d was dropped while it was read", ErrNotHeld, r.segment.number)
		}
		if following.number != 0 && r.group == following.first {
			r.closeSource()
			r.segment, r.off = following, segmentHeaderBytes
			continue
		}
		if following.number == 0 && r.group > l.w.lastGroup.Load() {
			return false, nil
		}
		fresh := r.src == nil
		more, err := r.readGroupOf(current)
		switch {
		case more || err != nil:
			return more, err
		case fresh && following.number != 0: // so it was complete before it was opened
			return false, notHeld(r.ends)
		case fresh: // in the last segment one may be being written
			return false, nil
		}
		r.closeSource() // what was read ahead may be old
	}
}

// readGroupOf reads the next group from the present segment. If there is none, ends says why.
func (r *Reader) readGroupOf(s segment) (bool, error) {
	l, path := r.l, r.l.files.path(segmentName(s.number))
	ends := func(reason string) (bool, error) {
		r.ends = &CorruptError{File: path, Offset: r.off, Reason: reason}
		return false, nil
	}
	if r.src == nil {
		if r.off >= s.size {
			return ends("the file ends")
		}
		var err error
		if r.src, err = newSource(l.files.fs, path, s.size, r.off); err != nil {
			return false, notHeld(err)
		}
	}
	seed := headerSeed(l.meta.logID, s.number)
	b, err := r.src.at(r.off, groupHeaderBytes)
	if err != nil {
		return false, notHeld(err)
	}
	h, err := decodeGroupHeader(b, seed)
	if err != nil {
		return ends("no group: " + err.Error())
	}
	if h.number != r.group {
		return ends(fmt.Sprintf("group %d where %d belongs", h.number, r.group))
	}
	if b, err = r.src.at(r.off, groupHeaderBytes+int64(h.payload)); err != nil {
		return false, notHeld(err)
	}
	var bad error
	_, n, err := decodeGroup(b, l.meta.logID, seed, func(rec record) {
		if bad == nil {
			bad = r.take(rec)
		}
	})
	if err != nil {
		return ends(err.Error())
	}
	if bad != nil {
		return false, notHeld(&CorruptError{File: path, Offset: r.off, Reason: bad.Error()})
	}
	if r.pendingBytes > undecidedBytes {
		return false, fmt.Errorf("%w: of %d bytes of entries from %d on nothing says that they are committed", ErrNotHeld, r.pendingBytes, r.next)
	}
	r.off += int64(n)
	r.group++
	return true, nil
}

func (r *Reader) take(rec record) error {
	switch rec.kind {
	case kindHard:
		r.commit = max(r.commit, rec.hard.commit)
	case kindBase:
		if rec.index >= r.next {
			return fmt.Errorf("a snapshot took the place of the entries from %d to %d", r.next, rec.index)
		}
		r.dropFrom(r.next)
		r.last = rec.index
	case kindEntry:
		if rec.index > r.last+1 {
			return fmt.Errorf("entry %d after entry %d", rec.index, r.last)
		}
		r.last = rec.index
		if rec.index < r.next {
			if r.given {
				return fmt.Errorf("entry %d was final and is written again", rec.index)
			}
			r.dropFrom(r.next)
			return nil
		}
		r.dropFrom(rec.index)
		if rec.index != r.next+uint64(len(r.pending)) {
			return fmt.Errorf("entry %d where entry %d belongs", rec.index, r.next+uint64(len(r.pending)))
		}
		e := r.entry(rec)
		r.pending = append(r.pending, e)
		r.pendingBytes += entryBytes(e)
	}
	return nil
}

// dropFrom drops the pending entries from index on.
func (r *Reader) dropFrom(index uint64) {
	for n := len(r.pending); n > 0 && r.pending[n-1].GetIndex() >= index; n-- {
		r.pendingBytes -= entryBytes(r.pending[n-1])
		r.pending = r.pending[:n-1]
	}
}

// entry makes an entry whose data aliases what was read.
func (r *Reader) entry(rec record) *raftpb.Entry {
	if len(r.slots) == 0 {
		r.slots = make([]slot, slotsAtATime)
	}
	return slotEntry(&r.slots, rec)
}

func (r *Reader) closeSource() {
	if r.src != nil {
		r.src.close()
		r.src = nil
	}
}

// Close ends reading.
func (r *Reader) Close() { r.closeSource() }

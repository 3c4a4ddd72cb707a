package raftlog

import (
	"math/bits"

	"go.etcd.io/raft/v3/raftpb"
)

// chunkEntries is a power of two.
const chunkEntries = 1024

// entryOverhead is what an entry costs in memory besides its data: the message, its
// three numbers and its pointer in a chunk.
const entryOverhead = 128

func entryBytes(e *raftpb.Entry) int64 { return int64(len(e.Data)) + entryOverhead }

// chunk holds the entries of chunkEntries consecutive indexes, of which the first is
// a multiple of chunkEntries.
//
// A slot, once filled, is never changed: slices returned by tail.slice alias the
// array and outlive truncation. What must change gets a new chunk.
type chunk struct {
	entries [chunkEntries]*raftpb.Entry
	bytes   int64 // of the entries it holds
}

// tail is the log in memory: the entries after base up to last, without a gap.
// Chunks instead of one slice, so that neither growing nor trimming ever copies or
// walks the whole log while the raft loop waits.
//
// Not safe for concurrent use: Log.mu guards it.
type tail struct {
	base, baseTerm uint64
	last, lastTerm uint64 // equal base, baseTerm when empty
	chunks         []*chunk
	firstChunk     uint64 // chunks[0] holds the indexes from firstChunk*chunkEntries
	bytes          int64
}

func (t *tail) at(i uint64) *raftpb.Entry {
	return t.chunks[i/chunkEntries-t.firstChunk].entries[i%chunkEntries]
}

// term returns the term of entry i. REQUIRES base <= i <= last.
func (t *tail) term(i uint64) uint64 {
	switch i {
	case t.base:
		return t.baseTerm
	case t.last:
		return t.lastTerm
	}
	return t.at(i).GetTerm()
}

// reset makes the tail empty, starting after entry (index, term).
func (t *tail) reset(index, term uint64) {
	*t = tail{base: index, baseTerm: term, last: index, lastTerm: term}
}

// push adds e. REQUIRES e's index is last+1.
func (t *tail) push(e *raftpb.Entry) {
	i := t.last + 1
	n := i / chunkEntries
	if len(t.chunks) == 0 {
		t.firstChunk = n
	}
	if n-t.firstChunk == uint64(len(t.chunks)) {
		t.chunks = append(t.chunks, new(chunk))
	}
	c := t.chunks[n-t.firstChunk]
	c.entries[i%chunkEntries] = e
	size := entryBytes(e)
	c.bytes += size
	t.bytes += size
	t.last, t.lastTerm = i, e.GetTerm()
}

// truncate drops the entries after index. REQUIRES base <= index <= last.
func (t *tail) truncate(index uint64) {
	if index == t.last {
		return
	}
	if index == t.base {
		t.reset(t.base, t.baseTerm)
		return
	}
	keep := index/chunkEntries - t.firstChunk
	for i := keep; i < uint64(len(t.chunks)); i++ {
		t.bytes -= t.chunks[i].bytes
		if i > keep {
			t.chunks[i] = nil
		}
	}
	t.chunks = t.chunks[:keep+1]
	old := t.chunks[keep]
	c := new(chunk)
	for s := range index%chunkEntries + 1 {
		if e := old.entries[s]; e != nil {
			c.entries[s] = e
			c.bytes += entryBytes(e)
		}
	}
	t.chunks[keep] = c
	t.bytes += c.bytes
	t.last, t.lastTerm = index, c.entries[index%chunkEntries].GetTerm()
}

// trim drops the entries up to index. REQUIRES base <= index <= last.
func (t *tail) trim(index uint64) {
	if index == t.base {
		return
	}
	if index == t.last {
		t.reset(index, t.lastTerm)
		return
	}
	term := t.term(index)
	n := (index+1)/chunkEntries - t.firstChunk
	for _, c := range t.chunks[:n] {
		t.bytes -= c.bytes
	}
	t.chunks = append([]*chunk(nil), t.chunks[n:]...)
	t.firstChunk += n
	if s := (index + 1) % chunkEntries; s != 0 {
		old := t.chunks[0]
		c := new(chunk)
		copy(c.entries[s:], old.entries[s:])
		for _, e := range old.entries[s:] {
			if e == nil {
				break
			}
			c.bytes += entryBytes(e)
		}
		t.bytes -= old.bytes - c.bytes
		t.chunks[0] = c
	}
	t.base, t.baseTerm = index, term
}

// trimPoint returns the index up to which entries must go so that at most keep
// bytes remain, but at most limit. REQUIRES limit <= last.
func (t *tail) trimPoint(limit uint64, keep int64) uint64 {
	excess := t.bytes - keep
	i := t.base
	for i < limit && excess > 0 {
		c := t.chunks[(i+1)/chunkEntries-t.firstChunk]
		end := (i+1)/chunkEntries*chunkEntries + chunkEntries - 1 // the chunk's last index
		if c.bytes <= excess && end <= limit {
			i = end
			excess -= c.bytes
			continue
		}
		for ; i < min(end, limit) && excess > 0; i++ {
			excess -= entryBytes(t.at(i + 1))
		}
	}
	return i
}

// bytesAfter estimates (to a chunk) the bytes of the entries after index.
func (t *tail) bytesAfter(index uint64) int64 {
	if index >= t.last {
		return 0
	}
	if index <= t.base {
		return t.bytes
	}
	var n int64
	for _, c := range t.chunks[(index+1)/chunkEntries-t.firstChunk:] {
		n += c.bytes
	}
	return n
}

// bytesBetween is the size in memory of the entries of (lo, hi] that are here. It looks at fewer
// than 2*chunkEntries entries, whatever lies between.
func (t *tail) bytesBetween(lo, hi uint64) (n int64) {
	lo, hi = max(lo, t.base), min(hi, t.last)
	for i := lo + 1; i <= hi; {
		c := t.chunks[i/chunkEntries-t.firstChunk]
		if next := (i/chunkEntries + 1) * chunkEntries; i%chunkEntries == 0 && next <= hi+1 {
			n += c.bytes
			i = next
			continue
		}
		n += entryBytes(t.at(i))
		i++
	}
	return n
}

// slice returns the entries [lo, hi), as many from lo as fit in maxSize encoded bytes, but at least
// one. REQUIRES base < lo < hi <= last+1. What it returns is never changed afterwards.
func (t *tail) slice(lo, hi, maxSize uint64) []*raftpb.Entry {
	size := encodedSize(t.at(lo))
	end := lo + 1
	for end < hi {
		size += encodedSize(t.at(end))
		if size > maxSize {
			break
		}
		end++
	}
	if lo/chunkEntries == (end-1)/chunkEntries {
		c := t.chunks[lo/chunkEntries-t.firstChunk]
		a, b := lo%chunkEntries, (end-1)%chunkEntries+1
		return c.entries[a:b:b]
	}
	out := make([]*raftpb.Entry, 0, end-lo)
	for lo < end {
		c := t.chunks[lo/chunkEntries-t.firstChunk]
		a := lo % chunkEntries
		b := min(chunkEntries, a+end-lo)
		out = append(out, c.entries[a:b]...)
		lo += b - a
	}
	return out
}

// encodedSize is proto.Size of an entry, without reflection: raft's limits count in it.
func encodedSize(e *raftpb.Entry) uint64 {
	n := 0
	if e.Type != nil {
		n += 1 + uvarintBytes(uint64(*e.Type))
	}
	if e.Term != nil {
		n += 1 + uvarintBytes(*e.Term)
	}
	if e.Index != nil {
		n += 1 + uvarintBytes(*e.Index)
	}
	if e.Data != nil {
		n += 1 + uvarintBytes(uint64(len(e.Data))) + len(e.Data)
	}
	return uint64(n)
}

func uvarintBytes(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }

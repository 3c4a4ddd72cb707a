package raftlog

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
)

// scanned is one segment file as found.
type scanned struct {
	number    uint64
	path      string
	data      []byte // the whole file, for Inspect
	raw       []byte // the header as it was read
	size      int64
	header    segmentHeader
	headerErr error // why header is not valid
}

// replay is the result of reading the segments.
type replay struct {
	logID uint64
	tail  tail
	hard  hard
	group uint64 // the last one accepted
	// The entry written last. It is below tail.base if Compact removed the segments up
	// to base while the log's end there was still the one of a deposed leader: see apply.
	last, lastTerm uint64

	live   []segment // the segments that are the log, in order
	dead   []string  // files to remove: before the last reset, after the cut
	number uint64    // the highest number of a file, dead ones included
	end    int64     // where the log ends in the last live segment
	sealed bool      // the last group accepted promises nothing
	cut    *cut      // a torn end, nil if there is none
	stale  bool      // something valid of this log lies beyond the end

	// The last group accepted, as it was read, and where; nil if the last segment has none. Nothing
	// proves it durable. header is that of its segment, if it is the first group there.
	lastGroup  []byte
	lastOffset int64
	lastHeader []byte

	slots []slot // for entries to come

	// What is applied, up to applied, leaves memory again, but for the newest keepBytes: see forget.
	applied   uint64
	keepBytes int64
	trimmed   []trimmed
}

// keepsAll is a keepBytes that lets all stay.
const keepsAll = math.MaxInt64 / 2

// keepsNone is a keepBytes for who wants the verdict alone: no entry stays for long, applied or not.
const keepsNone = -1

// cut describes a group that was dropped because it was never durable.
type cut struct {
	path   string
	offset int64
	group  uint64
	reason string
}

// listing is what a directory holds.
type listing struct {
	meta     bool
	segments []uint64 // sorted
	leftover []string // spares and temporary files, paths
}

func list(fs vfs.FS, dir string) (listing, error) {
	names, err := fs.List(dir)
	if err != nil {
		return listing{}, fileError("list", dir, err)
	}
	var ls listing
	for _, name := range names {
		name = fs.PathBase(name)
		if n, ok := parseSegmentName(name); ok {
			ls.segments = append(ls.segments, n)
		}
		if name == metaName {
			ls.meta = true
		}
		if strings.HasPrefix(name, sparePrefix) || name == metaTempName {
			ls.leftover = append(ls.leftover, fs.PathJoin(dir, name))
		}
	}
	slices.Sort(ls.segments)
	slices.Sort(ls.leftover)
	return ls, nil
}

func readMeta(fs vfs.FS, dir string) (meta, error) {
	path := fs.PathJoin(dir, metaName)
	b, err := readFile(fs, path, metaBytes)
	if err != nil {
		return meta{}, err
	}
	m, err := decodeMeta(b)
	if err != nil {
		return meta{}, &CorruptError{File: path, Reason: err.Error()}
	}
	if m.version > formatVersion {
		return meta{}, &IdentityError{Dir: dir, HaveVersion: m.version, WantVersion: formatVersion}
	}
	return m, nil
}

// readFile reads at most limit bytes from the start of a file.
func readFile(fs vfs.FS, path string, limit int64) ([]byte, error) {
	f, err := fs.Open(path, vfs.SequentialReadsOption)
	if err != nil {
		return nil, fileError("open", path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fileError("stat", path, err)
	}
	b := make([]byte, min(info.Size(), limit))
	if n, err := f.ReadAt(b, 0); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fileError("read", path, err)
	}
	return b, nil
}

// load reads a segment's file.
func (s *scanned) load(fs vfs.FS) (err error) {
	if s.data == nil {
		s.data, err = readFile(fs, s.path, 1<<62)
	}
	return err
}

// scanSegments reads the headers of all segments.
func scanSegments(fs vfs.FS, dir string, numbers []uint64, logID uint64) ([]*scanned, error) {
	var segs []*scanned
	for _, n := range numbers {
		s := &scanned{number: n, path: fs.PathJoin(dir, segmentName(n))}
		info, err := fs.Stat(s.path)
		if err != nil {
			return nil, fileError("stat", s.path, err)
		}
		s.size = info.Size()
		b, err := readFile(fs, s.path, segmentHeaderBytes)
		if err != nil {
			return nil, err
		}
		s.raw = b
		s.header, s.headerErr = decodeSegmentHeader(b, logID, n)
		if s.headerErr == nil && s.header.version > formatVersion {
			return nil, &IdentityError{Dir: dir, HaveVersion: s.header.version, WantVersion: formatVersion}
		}
		segs = append(segs, s)
	}
	return segs, nil
}

// replaySegments reads the log. It changes no file.
//
// With an error from within the groups it returns what it has read before, which only tells how far
// the damage lets one read.
//
// It does not read segments whose entries, up to applied, the store has all applied; see skip. Of the
// others, entries that are applied do not stay in memory, but for keepBytes of them or twice as much.
//
// The rule (doc.go, "Torn or damaged?"): where a group is missing or bad, the log
// ends there if nothing proves that the group was durable; if a later header, of a
// group or of a segment, says that it was, that is a CorruptError.
func replaySegments(fs vfs.FS, dir string, numbers []uint64, logID, applied uint64, keepBytes int64) (*replay, error) {
	segs, err := scanSegments(fs, dir, numbers, logID)
	if err != nil {
		return nil, err
	}
	r := &replay{logID: logID, sealed: true, applied: applied, keepBytes: keepBytes}
	if keepBytes == keepsNone {
		r.applied, r.keepBytes = math.MaxUint64, 1<<20
	}
	if len(segs) == 0 {
		return nil, &CorruptError{File: dir, Reason: "there is a " + metaName + " file but no segment: segments were removed"}
	}
	r.number = segs[len(segs)-1].number
	// What came before the last reset does not count, whatever it looks like.
	for i := len(segs) - 1; i > 0; i-- {
		if segs[i].headerErr == nil && segs[i].header.flags&flagReset != 0 {
			for _, s := range segs[:i] {
				r.dead = append(r.dead, s.path)
			}
			segs = segs[i:]
			break
		}
	}
	if segs[0].headerErr != nil {
		return nil, &CorruptError{File: segs[0].path, Reason: "header of the oldest segment: " + segs[0].headerErr.Error()}
	}
	n := skip(segs, applied)
	for _, s := range segs[:n] {
		r.live = append(r.live, s.segment())
	}
	segs = segs[n:]
	h := segs[0].header
	r.tail.reset(h.prevIndex, h.prevTerm)
	r.last, r.lastTerm = h.prevIndex, h.prevTerm
	r.hard = h.hard
	r.group = h.first - 1

	// A segment without a valid header is never reached: the one before it decides, in endAt.
	var src, ahead *source
	defer func() {
		for _, s := range []*source{src, ahead} {
			if s != nil {
				s.close()
			}
		}
	}()
	for i, s := range segs {
		if s.header.prevIndex != r.last || s.header.prevTerm != r.lastTerm {
			return r, &CorruptError{File: s.path, Reason: fmt.Sprintf(
				"the segment continues entry %d of term %d, but the log before it ends with entry %d of term %d",
				s.header.prevIndex, s.header.prevTerm, r.last, r.lastTerm)}
		}
		next := uint64(0) // the first group of the next segment, if that is valid
		if i+1 < len(segs) && segs[i+1].headerErr == nil {
			next = segs[i+1].header.first
		}
		if next != 0 && next <= r.group {
			return r, &CorruptError{File: segs[i+1].path, Reason: fmt.Sprintf(
				"the segment starts with group %d, which the one before it holds", next)}
		}
		if src, ahead = ahead, nil; src == nil {
			if src, err = newSource(fs, s.path, s.size, segmentHeaderBytes); err != nil {
				return nil, err
			}
		}
		if next != 0 {
			if ahead, err = newSource(fs, segs[i+1].path, segs[i+1].size, segmentHeaderBytes); err != nil {
				return nil, err
			}
		}
		r.live = append(r.live, s.segment())
		r.lastGroup, r.lastOffset, r.lastHeader = nil, segmentHeaderBytes, s.raw
		done, err := r.replaySegment(fs, src, segs[i:], next)
		if err != nil {
			return r, err
		}
		src.close()
		src = nil
		if done {
			break
		}
	}
	return r, nil
}

// skip returns how many of the segments, from the oldest on, need not be read, since the store has
// applied all of their entries: they were kept for followers (Hold), and could as well have been
// dropped. The situation is then the same as if Compact had dropped them. The header of the first
// one that is read proves them durable.
func skip(segs []*scanned, applied uint64) (n int) {
	for i := 1; i < len(segs); i++ {
		s := segs[i]
		if s.headerErr != nil || s.header.prevIndex > applied || s.header.synced+1 != s.header.first ||
			s.header.first <= segs[i-1].header.first {
			break
		}
		n = i
	}
	return n
}

func (s *scanned) segment() segment {
	h := s.header
	return segment{number: s.number, first: h.first, prevIndex: h.prevIndex, size: s.size}
}

// replaySegment reads the groups of segs[0] from src, up to the group before next if
// there is a next segment. done says that the log ends in it.
func (r *replay) replaySegment(fs vfs.FS, src *source, segs []*scanned, next uint64) (done bool, err error) {
	s := segs[0]
	seed := headerSeed(r.logID, s.number)
	off := int64(segmentHeaderBytes)
	for {
		r.end = off
		if next != 0 && r.group+1 == next {
			return false, nil
		}
		var bad error
		fn := func(rec record) {
			if bad == nil {
				bad = r.apply(rec)
			}
		}
		if off >= s.size {
			return true, r.endAt(fs, segs, off, "the file ends")
		}
		b, err := src.at(off, groupHeaderBytes)
		if err != nil {
			return false, err
		}
		h, err := decodeGroupHeader(b, seed)
		if err != nil {
			return true, r.endAt(fs, segs, off, "no group: "+err.Error())
		}
		if h.number != r.group+1 {
			return true, r.endAt(fs, segs, off, fmt.Sprintf("group %d where %d belongs", h.number, r.group+1))
		}
		if b, err = src.at(off, groupHeaderBytes+int64(h.payload)); err != nil {
			return false, err
		}
		h, n, err := decodeGroup(b, r.logID, seed, fn)
		if err != nil {
			return true, r.endAt(fs, segs, off, err.Error())
		}
		if bad == nil && r.hard.commit > r.last {
			bad = fmt.Errorf("commit %d is beyond the last entry %d", r.hard.commit, r.last)
		}
		if bad != nil {
			// All checksums match, so we wrote it: a bug, not a torn write.
			return true, &CorruptError{File: s.path, Offset: off, Reason: bad.Error()}
		}
		r.group = h.number
		r.sealed = h.records == 0
		r.lastGroup, r.lastOffset = b, off
		if off > segmentHeaderBytes {
			r.lastHeader = nil
		}
		off += int64(n)
	}
}

// endAt decides whether the log may end before offset off of segs[0]: only if nothing
// after it proves that the next group was durable.
func (r *replay) endAt(fs vfs.FS, segs []*scanned, off int64, reason string) error {
	missing := r.group + 1
	// If it is damage, find where: the group may be missing because the next segment cannot be
	// read.
	damage := &CorruptError{File: segs[0].path, Offset: off, Reason: reason}
	for i, s := range segs {
		from := off
		if i > 0 {
			from = segmentHeaderBytes
			r.dead = append(r.dead, s.path)
			if s.headerErr == nil {
				if s.header.synced >= missing {
					damage.Reason += fmt.Sprintf("; yet the header of %s proves that group %d was durable", s.path, missing)
					return damage
				}
				r.stale = true
			}
		}
		src, err := newSource(fs, s.path, s.size, from)
		if err != nil {
			return err
		}
		witness, at := groupHeader{}, int64(0)
		headers, err := src.scan(from, headerSeed(r.logID, s.number), func(h groupHeader, o int64) bool {
			r.stale = true
			witness, at = h, o
			return h.synced < missing
		})
		src.close()
		if err != nil {
			return err
		}
		if i == 0 && len(segs) > 1 && segs[1].headerErr != nil && !headers {
			damage = &CorruptError{File: segs[1].path, Reason: "header of the segment: " + segs[1].headerErr.Error()}
		}
		if witness.synced >= missing {
			damage.Reason += fmt.Sprintf("; yet group %d at offset %d of %s proves that group %d was durable",
				witness.number, at, s.path, missing)
			return damage
		}
	}
	if r.stale {
		r.cut = &cut{path: segs[0].path, offset: off, group: missing, reason: reason}
	}
	return nil
}

// apply replays one record.
//
// Entries may come below the base: say the log ended with 20..27 of term 1, a new segment
// starts there, then its first group replaces 20..30 by those of term 2, and, the disk
// being slow, the store had flushed up to 30 and Compact removed the segments before, when
// that group was still waiting in memory. Base is then (27, term 1), which nobody
// committed. The entries below it are in the store and are skipped; the one at base
// corrects its term. If a crash leaves only the first of them, the log ends at base, with
// the wrong term, and Adopt, with the store at 27 or more, replaces it.
func (r *replay) apply(rec record) error {
	switch rec.kind {
	case kindEntry:
		if rec.index > r.last+1 {
			return fmt.Errorf("entry %d after entry %d", rec.index, r.last)
		}
		switch {
		case rec.index > r.tail.base:
			if prev := r.tail.term(rec.index - 1); rec.term < prev {
				return fmt.Errorf("entry %d of term %d after one of term %d", rec.index, rec.term, prev)
			}
			r.tail.truncate(rec.index - 1)
			r.tail.push(r.entry(rec))
			if rec.index <= r.applied && r.tail.bytes > 2*r.keepBytes {
				r.forget()
			}
		case rec.index == r.tail.base:
			r.reset(rec.index, rec.term)
		default:
			r.reset(r.tail.base, r.tail.baseTerm)
		}
		r.last, r.lastTerm = rec.index, rec.term
	case kindHard:
		r.hard = rec.hard
	case kindBase:
		r.reset(rec.index, rec.term)
		r.last, r.lastTerm = rec.index, rec.term
	}
	return nil
}

// forget drops the oldest entries from memory, as Trim does: the store has them, and so has the file
// that is read. REQUIRES: all that the tail holds is applied. Should the log go on with entries in
// their place, that is the case of which apply tells.
func (r *replay) forget() {
	after, bytes := r.tail.base, r.tail.bytes
	r.tail.trim(r.tail.trimPoint(r.tail.last, r.keepBytes))
	r.trimmed = append(r.trimmed, trimmed{after, bytes - r.tail.bytes})
}

// reset makes the log empty, after entry (index, term).
func (r *replay) reset(index, term uint64) {
	r.tail.reset(index, term)
	r.trimmed = nil
}

// slot is an entry and its three numbers.
type slot struct {
	raftpb.Entry
	index, term uint64
	typ         raftpb.EntryType
}

func (s *slot) set(index, term uint64, typ raftpb.EntryType, data []byte) *raftpb.Entry {
	s.index, s.term, s.typ = index, term, typ
	s.Entry.Index, s.Entry.Term, s.Entry.Type, s.Entry.Data = &s.index, &s.term, &s.typ, data
	return &s.Entry
}

// entry makes an entry whose data aliases what was read.
func (r *replay) entry(rec record) *raftpb.Entry {
	if len(r.slots) == 0 {
		r.slots = make([]slot, slotsAtATime)
	}
	return slotEntry(&r.slots, rec)
}

// slotEntry takes a slot. REQUIRES: there is one.
func slotEntry(slots *[]slot, rec record) *raftpb.Entry {
	s := &(*slots)[0]
	*slots = (*slots)[1:]
	data := rec.data[:len(rec.data):len(rec.data)]
	if len(data) == 0 {
		data = nil
	}
	return s.set(rec.index, rec.term, rec.entryType, data)
}

package raftlog

import (
	"errors"
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Found is one thing in the files of a log.
type Found struct {
	File   string `json:"file"`
	Offset int64  `json:"offset"`
	Kind   string `json:"kind"` // meta, segment, group, entry, hard-state, base, damage, end

	Group  uint64 `json:"group,omitempty"`  // of a group: its number; of a segment: that of its first
	Synced uint64 `json:"synced,omitempty"` // the newest group that was durable before it
	Index  uint64 `json:"index,omitempty"`  // of an entry or a base; of a segment: the last entry before it
	Term   uint64 `json:"term,omitempty"`   // likewise; of a hard state
	Vote   string `json:"vote,omitempty"`   // of a hard state, hexadecimal
	Commit uint64 `json:"commit,omitempty"` // of a hard state
	Type   string `json:"type,omitempty"`   // of an entry
	Bytes  int    `json:"bytes,omitempty"`  // of an entry's data, or of a group's records

	Member  string `json:"member,omitempty"` // of meta, hexadecimal, like the next two
	Cluster string `json:"cluster,omitempty"`
	Log     string `json:"log,omitempty"`

	Reason string `json:"reason,omitempty"` // of damage, and why the log ends

	Data []byte `json:"-"` // of an entry; valid during the call
}

// Walk calls each for everything that the files of a log hold, in order, and goes on behind what is
// damaged. It changes nothing and takes no lock; a member may be writing. Memory is bounded by the
// largest group. Where the log of a member that runs ends may change during the walk. fs may be nil
// for the default.
//
// A group that cannot be read is damage if the header of a later group or segment proves that it was
// durable (doc.go, "Torn or damaged?"); otherwise the log ends before it.
func Walk(dir string, fs vfs.FS, each func(Found) error) error {
	if fs == nil {
		fs = vfs.Default
	}
	ls, err := list(fs, dir)
	if err != nil {
		return err
	}
	if !ls.meta {
		return fmt.Errorf("raftlog: %s holds no raft log", dir)
	}
	m, err := readMeta(fs, dir)
	if err != nil {
		return err
	}
	if err := each(Found{
		File: fs.PathJoin(dir, metaName), Kind: "meta",
		Member: fmt.Sprintf("%x", m.member), Cluster: fmt.Sprintf("%x", m.cluster), Log: fmt.Sprintf("%x", m.logID),
	}); err != nil {
		return err
	}
	segs, err := scanSegments(fs, dir, ls.segments, m.logID)
	if err != nil {
		return err
	}
	w := walk{fs: fs, logID: m.logID, each: each, oldest: true}
	for i, s := range segs {
		var following *scanned
		if i+1 < len(segs) {
			following = segs[i+1]
		}
		if err := w.segment(s, following); err != nil {
			return err
		}
		w.oldest = false
	}
	return nil
}

type walk struct {
	fs    vfs.FS
	logID uint64
	each  func(Found) error
	next  uint64 // the group that comes next; 0: unknown
	buf   []byte
	// oldest: the segment is the first one. It is never without a header: it is written before the log
	// gets its name, or a later one is, before those before it are removed.
	oldest bool
}

func (w *walk) segment(s, following *scanned) (err error) {
	if s.headerErr != nil {
		kind := "end" // a segment that a crash left without a header holds nothing
		if w.oldest || following != nil && following.headerErr == nil {
			kind = "damage"
		}
		if following != nil && following.headerErr == nil && following.header.flags&flagReset != 0 {
			kind = "end" // what came before a reset does not count
		}
		w.next = 0
		if err := w.each(Found{File: s.path, Kind: kind, Reason: "header of the segment: " + s.headerErr.Error()}); err != nil {
			return err
		}
	} else {
		h := s.header
		if w.next != 0 && h.flags&flagReset == 0 && h.first != w.next {
			if err := w.each(Found{File: s.path, Kind: "damage", Reason: fmt.Sprintf("the segment starts with group %d where %d belongs", h.first, w.next)}); err != nil {
				return err
			}
		}
		w.next = h.first
		if err := w.each(Found{
			File: s.path, Kind: "segment", Group: h.first, Synced: h.synced, Index: h.prevIndex, Term: h.prevTerm,
			Vote: fmt.Sprintf("%x", h.hard.vote), Commit: h.hard.commit,
		}); err != nil {
			return err
		}
	}
	f, err := w.fs.Open(s.path, vfs.SequentialReadsOption)
	if isNotExist(err) {
		return nil // a member that runs has removed it
	}
	if err != nil {
		return fileError("open", s.path, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return fileError("stat", s.path, err)
	}
	return w.groups(f, s, following, info.Size())
}

// read reads up to n bytes at an offset, fewer at the end of the file.
func (w *walk) read(f vfs.File, path string, off int64, n int) ([]byte, error) {
	if cap(w.buf) < n {
		w.buf = make([]byte, n)
	}
	got, err := f.ReadAt(w.buf[:n], off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fileError("read", path, err)
	}
	return w.buf[:got], nil
}

// zeros reports whether a file has nothing but zeros from an offset on.
func (w *walk) zeros(f vfs.File, path string, off, size int64) (bool, error) {
	for off < size {
		b, err := w.read(f, path, off, int(min(size-off, 1<<16)))
		if err != nil || len(b) == 0 {
			return err == nil, err
		}
		for _, c := range b {
			if c != 0 {
				return false, nil
			}
		}
		off += int64(len(b))
	}
	return true, nil
}

// groups walks one segment. What cannot be read is judged when something valid comes after it.
func (w *walk) groups(f vfs.File, s, following *scanned, size int64) error {
	seed := headerSeed(w.logID, s.number)
	var bad *Found
	for off := int64(segmentHeaderBytes); off < size; {
		b, err := w.read(f, s.path, off, groupHeaderBytes)
		if err != nil {
			return err
		}
		h, err := decodeGroupHeader(b, seed)
		if err == nil && bad != nil && h.synced >= w.next && w.next != 0 {
			bad.Kind = "damage"
			bad.Reason += fmt.Sprintf("; group %d at offset %d proves that group %d was durable", h.number, off, w.next)
			if err := w.each(*bad); err != nil {
				return err
			}
			bad, w.next = nil, h.number
		}
		if err == nil && bad != nil {
			off += sectorBytes // of an end that was cut
			continue
		}
		if err == nil && w.next != 0 && h.number != w.next {
			err = fmt.Errorf("group %d where %d belongs", h.number, w.next)
		}
		step := int64(sectorBytes)
		if err == nil {
			if b, err = w.read(f, s.path, off, groupHeaderBytes+int(min(int64(h.payload), size-off))); err != nil {
				return err
			}
			step, err = w.group(s, off, b, seed)
			var stopped stopWalk
			if errors.As(err, &stopped) {
				return stopped.error
			}
		}
		if err != nil && bad == nil {
			bad = &Found{File: s.path, Offset: off, Kind: "end", Reason: err.Error()}
		} else if err == nil {
			w.next = h.number + 1
		}
		off += step
	}
	if bad == nil {
		return nil
	}
	if following == nil && bad.Kind == "end" {
		// Files are made longer than what is in them, and written in whole pages.
		if unused, err := w.zeros(f, s.path, bad.Offset, size); err != nil || unused {
			return err
		}
	}
	if following != nil {
		if following.headerErr == nil && (following.header.first == w.next || following.header.flags&flagReset != 0) {
			return nil // the rest of the segment was never used, or does not count
		}
		if following.headerErr == nil && following.header.synced >= w.next {
			bad.Kind = "damage"
			bad.Reason += fmt.Sprintf("; the header of %s proves that group %d was durable", following.path, w.next)
		}
	}
	return w.each(*bad)
}

// stopWalk is an error of each.
type stopWalk struct{ error }

// group tells of one group; bytes is what it takes of the file.
func (w *walk) group(s *scanned, off int64, b []byte, seed uint32) (bytes int64, err error) {
	var records []Found
	h, n, err := decodeGroup(b, w.logID, seed, func(r record) {
		found := Found{File: s.path, Offset: off, Term: r.term, Index: r.index}
		switch r.kind {
		case kindEntry:
			found.Kind, found.Type, found.Bytes, found.Data = "entry", r.entryType.String(), len(r.data), r.data
		case kindHard:
			found.Kind, found.Term, found.Vote, found.Commit = "hard-state", r.hard.term, fmt.Sprintf("%x", r.hard.vote), r.hard.commit
		case kindBase:
			found.Kind = "base"
		}
		records = append(records, found)
	})
	if err != nil {
		return sectorBytes, err
	}
	found := Found{File: s.path, Offset: off, Kind: "group", Group: h.number, Synced: h.synced, Bytes: int(h.payload)}
	if err := w.each(found); err != nil {
		return 0, stopWalk{err}
	}
	for _, r := range records {
		if err := w.each(r); err != nil {
			return 0, stopWalk{err}
		}
	}
	return int64(n), nil
}

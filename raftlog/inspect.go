package raftlog

import (
	"bufio"
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Inspect writes what the files of a log hold to w, one line for each segment, group and record,
// and how recovery would judge it. It changes nothing and takes no lock, so the end of a log in use
// may look torn. fs may be nil for the default.
func Inspect(dir string, fs vfs.FS, w io.Writer) (err error) {
	if fs == nil {
		fs = vfs.Default
	}
	out := bufio.NewWriter(w)
	defer func() {
		if ferr := out.Flush(); err == nil {
			err = ferr
		}
	}()
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
	fmt.Fprintf(out, "%s version=%d member=%x cluster=%x log=%x\n", metaName, m.version, m.member, m.cluster, m.logID)
	segs, err := scanSegments(fs, dir, ls.segments, m.logID)
	if err != nil {
		return err
	}
	for _, s := range segs {
		if err := s.inspect(fs, m.logID, out); err != nil {
			return err
		}
	}
	for _, path := range ls.leftover {
		fmt.Fprintf(out, "%s not part of the log\n", fs.PathBase(path))
	}
	r, err := replaySegments(fs, dir, ls.segments, m.logID, 0, keepsAll)
	if err != nil {
		fmt.Fprintf(out, "verdict: %v\n", err)
		return nil
	}
	if r.cut != nil {
		fmt.Fprintf(out, "verdict: nothing proves durable what is at offset %d of %s, it would be cut: %s\n", r.cut.offset, fs.PathBase(r.cut.path), r.cut.reason)
	}
	fmt.Fprintf(out, "verdict: good, base=%d/%d last=%d/%d term=%d vote=%x commit=%d\n",
		r.tail.baseTerm, r.tail.base, r.tail.lastTerm, r.tail.last, r.hard.term, r.hard.vote, r.hard.commit)
	return nil
}

func (s *scanned) inspect(fs vfs.FS, logID uint64, out io.Writer) error {
	fmt.Fprintf(out, "%s ", segmentName(s.number))
	if s.headerErr != nil {
		fmt.Fprintf(out, "no header of this log: %v\n", s.headerErr)
	} else {
		h := s.header
		fmt.Fprintf(out, "first-group=%d synced=%d prev=%d/%d term=%d vote=%x commit=%d",
			h.first, h.synced, h.prevTerm, h.prevIndex, h.hard.term, h.hard.vote, h.hard.commit)
		if h.flags&flagReset != 0 {
			fmt.Fprint(out, " reset")
		}
		fmt.Fprintln(out)
	}
	if err := s.load(fs); err != nil {
		return err
	}
	defer func() { s.data = nil }()
	seed := headerSeed(logID, s.number)
	for off := int64(segmentHeaderBytes); off < int64(len(s.data)); {
		h, err := decodeGroupHeader(s.data[off:], seed)
		if err != nil {
			off += sectorBytes
			continue
		}
		fmt.Fprintf(out, "  %d: group %d synced=%d records=%d bytes=%d\n", off, h.number, h.synced, h.records, h.payload)
		_, n, err := decodeGroup(s.data[off:], logID, seed, func(r record) {
			switch r.kind {
			case kindEntry:
				fmt.Fprintf(out, "    entry %d/%d %s %d bytes\n", r.term, r.index, r.entryType, len(r.data))
			case kindHard:
				fmt.Fprintf(out, "    hard-state term=%d vote=%x commit=%d\n", r.hard.term, r.hard.vote, r.hard.commit)
			case kindBase:
				fmt.Fprintf(out, "    base %d/%d\n", r.term, r.index)
			}
		})
		if err != nil {
			fmt.Fprintf(out, "    bad: %v\n", err)
			n = sectorBytes
		}
		off += int64(n)
	}
	return nil
}

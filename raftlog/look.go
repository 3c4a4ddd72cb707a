package raftlog

import (
	"math"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
)

// Content is what the files of a log hold, as Open would find it.
type Content struct {
	Metadata
	Base, BaseTerm uint64 // the entry before the first one
	HardState      *raftpb.HardState
	Entries        []*raftpb.Entry // after Base, all in memory
	Group          uint64          // the last one
	Cut            string          // what Open would cut; empty: nothing
}

// Look reads a log that nobody writes, changing nothing and taking no lock. Segments whose entries
// are all at or below applied are not read. fs may be nil for the default. Errors: as of Open.
func Look(dir string, fs vfs.FS, applied uint64) (*Content, error) {
	if fs == nil {
		fs = vfs.Default
	}
	ls, err := list(fs, dir)
	if err != nil {
		return nil, err
	}
	m, err := readMeta(fs, dir)
	if err != nil {
		return nil, err
	}
	r, err := replaySegments(fs, dir, ls.segments, m.logID, applied, keepsAll)
	if err != nil {
		return nil, err
	}
	c := &Content{
		Metadata: m.metadata(), Base: r.tail.base, BaseTerm: r.tail.baseTerm, Group: r.group,
		HardState: &raftpb.HardState{Term: new(r.hard.term), Vote: new(r.hard.vote), Commit: new(r.hard.commit)},
	}
	if r.tail.last > r.tail.base {
		c.Entries = r.tail.slice(r.tail.base+1, r.tail.last+1, math.MaxUint64)
	}
	if r.cut != nil {
		c.Cut = r.cut.reason
	}
	return c, nil
}

// An End is how far a log can be read: its last entry, and what it promised last. Of a damaged log,
// what comes before the damage.
type End struct {
	Index, Term uint64
	HardTerm    uint64
	Commit      uint64
}

// Readable is the End of a log that nobody writes. It changes nothing and takes no lock. Errors are
// those of Open; with a *CorruptError the End is that of the part before the damage. fs may be nil
// for the default.
func Readable(dir string, fs vfs.FS) (End, error) {
	if fs == nil {
		fs = vfs.Default
	}
	ls, err := list(fs, dir)
	if err != nil {
		return End{}, err
	}
	m, err := readMeta(fs, dir)
	if err != nil {
		return End{}, err
	}
	r, err := replaySegments(fs, dir, ls.segments, m.logID, 0, keepsAll)
	if r == nil {
		return End{}, err
	}
	return End{Index: r.last, Term: r.lastTerm, HardTerm: r.hard.term, Commit: r.hard.commit}, err
}

// Check is the error that Open would return for the files of a log that nobody writes; nil: it would
// open it. The store has applied entries up to applied. It changes nothing and takes no lock, and keeps
// little in memory. fs may be nil for the default.
func Check(dir string, fs vfs.FS, applied uint64) error {
	if fs == nil {
		fs = vfs.Default
	}
	ls, err := list(fs, dir)
	if err != nil {
		return err
	}
	m, err := readMeta(fs, dir)
	if err != nil {
		return err
	}
	_, err = replaySegments(fs, dir, ls.segments, m.logID, applied, keepsNone)
	return err
}

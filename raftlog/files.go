package raftlog

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"
)

// The names in the directory. META is written last when a log is created, so its
// presence says that the log exists. Numbers are 16 hex digits and never reused
// while anything written under them could still be read.
const (
	metaName      = "META"
	metaTempName  = "META.tmp"
	lockName      = "LOCK"
	segmentPrefix = "segment-"
	segmentSuffix = ".log"
	sparePrefix   = "spare-"
)

const diskCategory = vfs.DiskWriteCategory("raft-log")

func segmentName(number uint64) string {
	return fmt.Sprintf("%s%016x%s", segmentPrefix, number, segmentSuffix)
}

func parseSegmentName(name string) (uint64, bool) {
	s, ok := strings.CutPrefix(name, segmentPrefix)
	if !ok {
		return 0, false
	}
	if s, ok = strings.CutSuffix(s, segmentSuffix); !ok || len(s) != 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 16, 64)
	return n, err == nil && segmentName(n) == name
}

// segment is a file that is part of the log.
type segment struct {
	number    uint64
	first     uint64 // its first group
	prevIndex uint64 // the last entry before it
	size      int64  // of the file
}

// maxSpares is how many segments wait to be used. One would do; a second one
// takes what Compact frees while the first is not used yet.
const maxSpares = 2

// files knows the segments in order, and the spares. The writer adds segments at
// the end, Compact takes them from the front; neither waits for the other's I/O.
//
// A spare is a file of which every block has been written: zeros by prepare, or an
// old segment. Its content stays readable until it is overwritten, which is
// harmless: it was written under lower segment numbers, so no checksum in it
// passes. That holds because Open removes the spares that it finds.
type files struct {
	mu        sync.Mutex
	segments  []segment
	spares    []string // paths
	nextSpare int
	gaveUp    bool          // preparing failed; not tried again in this segment
	want      chan struct{} // capacity 1: prepare a spare
	stop      chan struct{}
	stopped   chan struct{}
}

func (f *files) takeSpare() (path string, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.spares) == 0 {
		return "", false
	}
	path = f.spares[0]
	f.spares = f.spares[1:]
	return path, true
}

func (f *files) hasSpare() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.spares) > 0
}

func (f *files) tryAgain() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gaveUp = false
}

func (f *files) wantSpare() {
	f.mu.Lock()
	enough := f.gaveUp || len(f.spares) > 0
	f.mu.Unlock()
	if enough {
		return
	}
	select {
	case f.want <- struct{}{}:
	default:
	}
}

func (f *files) stopPreparing() {
	if f.stop != nil {
		close(f.stop)
		<-f.stopped
		f.stop = nil
	}
}

// prepareSpares is a goroutine: it makes a spare whenever one is wanted and there is
// none. Failing is not fatal: a segment can be started without.
func (l *Log) prepareSpares() {
	f := &l.files
	defer close(f.stopped)
	for {
		select {
		case <-f.stop:
			return
		case <-f.want:
		}
		if f.hasSpare() {
			continue
		}
		path, err := l.prepareSpare()
		if err != nil {
			l.lg.Warn("cannot prepare the next segment of the raft log in advance", zap.String("path", path), zap.Error(err))
			f.mu.Lock()
			f.gaveUp = true
			f.mu.Unlock()
			_ = l.fs.Remove(path) // a next attempt takes another name; Open removes what stays
			continue
		}
		if path == "" {
			return // stopped
		}
		f.mu.Lock()
		f.spares = append(f.spares, path)
		f.mu.Unlock()
		l.diskBytes.Add(l.opts.SegmentBytes)
	}
}

// prepareSpare writes a file of zeros, a piece at a time, each synced so that the
// writer's syncs never wait for much.
func (l *Log) prepareSpare() (path string, err error) {
	const piece = 1 << 20
	path = l.sparePath()
	file, err := l.fs.OpenReadWrite(path, diskCategory)
	if err != nil {
		return path, err
	}
	zeros := make([]byte, min(piece, l.opts.SegmentBytes))
	for off := int64(0); off < l.opts.SegmentBytes; off += piece {
		select {
		case <-l.files.stop:
			return "", file.Close()
		default:
		}
		n := min(piece, l.opts.SegmentBytes-off)
		if _, err = file.WriteAt(zeros[:n], off); err == nil && !l.opts.NoSync {
			err = file.SyncData()
		}
		if err != nil {
			_ = file.Close() // the first error is the one to tell
			return path, err
		}
	}
	if !l.opts.NoSync {
		err = file.Sync()
	}
	if cerr := file.Close(); err == nil {
		err = cerr
	}
	return path, err
}

func (l *Log) sparePath() string {
	l.files.mu.Lock()
	defer l.files.mu.Unlock()
	l.files.nextSpare++
	return l.path(fmt.Sprintf("%s%d", sparePrefix, l.files.nextSpare))
}

func (l *Log) path(name string) string { return l.fs.PathJoin(l.dir, name) }

// retire takes the file of a segment that is no longer part of the log out of it,
// durably, before anything else may happen to it: the oldest segments must vanish in
// their order, and a file must not be overwritten while a crash could bring back its
// old name.
func (l *Log) retire(s segment) error {
	f := &l.files
	path := l.path(segmentName(s.number))
	f.mu.Lock()
	recycle := s.size >= l.opts.SegmentBytes/8*7 && s.size <= l.opts.SegmentBytes &&
		len(f.spares) < maxSpares
	f.mu.Unlock()
	if !recycle {
		if err := l.fs.Remove(path); err != nil {
			return fmt.Errorf("raftlog: remove %s: %w", path, err)
		}
		l.diskBytes.Add(-s.size)
		return l.syncDir()
	}
	spare := l.sparePath()
	if err := l.fs.Rename(path, spare); err != nil {
		return fmt.Errorf("raftlog: rename %s: %w", path, err)
	}
	if err := l.syncDir(); err != nil {
		return err
	}
	l.diskBytes.Add(l.opts.SegmentBytes - s.size)
	f.mu.Lock()
	f.spares = append(f.spares, spare)
	f.mu.Unlock()
	return nil
}

// Compact drops entries that the store holds durably, from memory and from the
// files, and keeps the newest of them, keepBytes of the log in all, for followers
// that lag; the bound MemoryBytes holds as well.
//
// durable is the store's durable index: at least that must be flushed. Entries above
// it are never dropped, so the log may exceed its bounds while the store lags.
//
// It renames and removes files, in the caller's goroutine.
func (l *Log) Compact(durable uint64, keepBytes int64) error {
	l.compactMu.Lock()
	defer l.compactMu.Unlock()

	l.mu.Lock()
	if l.closing {
		l.mu.Unlock()
		return ErrClosed
	}
	limit := min(durable, l.tail.last)
	if limit > l.tail.base {
		l.tail.trim(l.tail.trimPoint(limit, min(keepBytes, l.opts.MemoryBytes)))
	}
	// A snapshot may have moved the base in memory beyond what the store has yet.
	drop := min(l.tail.base, durable)
	l.mu.Unlock()

	for {
		l.files.mu.Lock()
		segs := l.files.segments
		if len(segs) < 2 || segs[1].prevIndex > drop {
			l.files.mu.Unlock()
			return nil
		}
		l.files.mu.Unlock()
		// If it fails the segment stays the oldest: never remove one behind it.
		if err := l.retire(segs[0]); err != nil {
			return err
		}
		l.files.mu.Lock()
		l.files.segments = slices.Clone(l.files.segments[1:])
		l.files.mu.Unlock()
	}
}

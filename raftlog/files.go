package raftlog

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

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
	// kept: a Keeper has it under another name, or may have, so its blocks must never be overwritten.
	kept bool
}

const (
	// The first segment of a log is small and the next ones grow, so that a member with little to
	// write neither writes nor reserves much.
	firstSegmentBytes = 4 << 20
	segmentGrowth     = 4
	sparePieceBytes   = 256 << 10
	// freeFactor: space is reserved for a segment only if this many times its size is free.
	freeFactor = 8
)

// sizeAfter is the size of the segment after one of size bytes; of the first after none.
func (o *Options) sizeAfter(size int64) int64 {
	if size == 0 {
		return min(firstSegmentBytes, o.SegmentBytes)
	}
	return min(size*segmentGrowth, o.SegmentBytes)
}

// spare is a file whose blocks, size bytes, have been written.
type spare struct {
	path string
	size int64
}

// maxSpares is how many segments wait to be used. One would be enough; a second one takes what
// Compact frees while the first is still unused.
const maxSpares = 2

// files is the directory of a log: it holds the segments in order, and the spares. The writer adds
// segments at the end, Compact takes them from the front; neither waits for the other's I/O.
//
// A spare is a file of which every block has been written: zeros by prepare, or an old segment. Its
// content stays readable until it is overwritten, which is harmless: it was written under lower
// segment numbers, so no checksum in it matches. That holds because Open removes the spares that it
// finds.
type files struct {
	dir    string
	fs     vfs.FS
	opts   *Options
	logger *zap.Logger
	root   vfs.File     // the directory, for syncing it
	bytes  atomic.Int64 // of segments and spares

	mu        sync.Mutex
	segments  []segment
	spares    []spare
	nextSpare int
	gaveUp    bool // preparing failed, or there was no room; not retried in this segment
	// The spare that is wanted, and how much of it may be written by now.
	wantSize, wantBytes int64
	want                chan struct{} // capacity 1: there is something to prepare
	stop                chan struct{}
	stopped             chan struct{}
}

func (f *files) takeSpare() (s spare, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.spares) == 0 {
		return spare{}, false
	}
	s = f.spares[0]
	f.spares = f.spares[1:]
	return s, true
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

// wantSpare tells the preparing goroutine how full the last segment is: at half it begins, at seven
// eighths it should be done. So it writes little at a time beside the log, whatever the speed of
// either, and nothing while the log is idle or waits for its disk.
func (f *files) wantSpare(size, used, limit int64) {
	part := min(1, float64(used-limit/2)/float64(limit*3/8))
	f.mu.Lock()
	enough := f.gaveUp || len(f.spares) > 0
	f.wantSize, f.wantBytes = size, int64(part*float64(size))
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

// prepare is a goroutine: it makes a spare whenever one is wanted and there is none. A
// failure is not fatal: a segment can be started without a spare.
func (f *files) prepare() {
	defer close(f.stopped)
	var p *preparing
	for {
		select {
		case <-f.stop:
			if p != nil {
				_ = p.file.Close() // Open removes it
			}
			return
		case <-f.want:
		}
		f.mu.Lock()
		enough, size, upTo := f.gaveUp || len(f.spares) > 0, f.wantSize, f.wantBytes
		f.mu.Unlock()
		if enough {
			continue // what was begun continues when the next one is wanted
		}
		var err error
		if p == nil {
			if p, err = f.beginSpare(size); err == nil && p == nil {
				f.giveUp()
				continue
			}
		}
		if err == nil {
			err = f.fillSpare(p, upTo)
		}
		switch {
		case err != nil:
			f.logger.Warn("cannot prepare the next segment of the raft log in advance", zap.String("path", p.path), zap.Error(err))
			f.giveUp()
			_ = f.fs.Remove(p.path) // a next attempt takes another name; Open removes what stays
			p = nil
		case p.file == nil:
			f.mu.Lock()
			f.spares = append(f.spares, p.spare)
			f.mu.Unlock()
			f.bytes.Add(p.size)
			p = nil
		}
	}
}

func (f *files) giveUp() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gaveUp = true
}

// preparing is a spare that is not finished.
type preparing struct {
	spare
	file  vfs.File // nil when it is finished
	off   int64    // written up to here
	zeros []byte
}

// beginSpare returns nil if the disk is too full. With an error it also returns the file concerned.
func (f *files) beginSpare(size int64) (*preparing, error) {
	if !f.roomFor(size) {
		f.logger.Info("the disk is too full to prepare the next segment of the raft log in advance", zap.String("path", f.dir))
		return nil, nil
	}
	p := &preparing{spare: spare{f.sparePath(), size}, zeros: make([]byte, min(sparePieceBytes, size))}
	var err error
	p.file, err = f.fs.OpenReadWrite(p.path, diskCategory)
	return p, err
}

// fillSpare writes zeros up to upTo, in pieces that are sent to the disk one by one, so that the
// writer's syncs never wait for much; and syncs and closes the whole file when it is full. SyncTo,
// where it is supported, makes no journal commit, for which the log would have to wait.
func (f *files) fillSpare(p *preparing, upTo int64) (err error) {
	for p.off < p.size && p.off < upTo {
		select {
		case <-f.stop:
			return nil
		default:
		}
		n := min(int64(len(p.zeros)), p.size-p.off)
		if _, err = p.file.WriteAt(p.zeros[:n], p.off); err == nil && !f.opts.NoSync {
			_, err = p.file.SyncTo(p.off + n)
		}
		if err != nil {
			_ = p.file.Close() // the first error is the one to report
			return err
		}
		p.off += n
	}
	if p.off < p.size {
		return nil
	}
	if !f.opts.NoSync {
		err = p.file.Sync()
	}
	if cerr := p.file.Close(); err == nil {
		err = cerr
	}
	p.file = nil
	return err
}

// roomFor reports whether enough of the disk is free to reserve size bytes before they are needed.
// A file system that cannot tell has room.
func (f *files) roomFor(size int64) bool {
	usage, err := f.fs.GetDiskUsage(f.dir)
	return err != nil || usage.AvailBytes >= uint64(size)*freeFactor
}

func (f *files) sparePath() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nextSpare++
	return f.path(fmt.Sprintf("%s%d", sparePrefix, f.nextSpare))
}

func (f *files) path(name string) string { return f.fs.PathJoin(f.dir, name) }

// syncDir makes names in the directory durable.
func (f *files) syncDir() error {
	if f.opts.NoSync {
		return nil
	}
	if err := f.root.Sync(); err != nil {
		return fileError("sync directory", f.dir, err)
	}
	return nil
}

// syncDirOf is syncDir for another directory.
func (f *files) syncDirOf(dir string) error {
	if f.opts.NoSync {
		return nil
	}
	d, err := f.fs.OpenDir(dir)
	if err != nil {
		return fileError("open directory", dir, err)
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fileError("sync directory", dir, err)
	}
	return nil
}

// retire removes the file of a segment from the log, durably, before anything else may happen to
// it: the oldest segments must disappear in order, and a file must not be overwritten while a crash
// could bring back its old name.
func (f *files) retire(s segment) error {
	path := f.path(segmentName(s.number))
	f.mu.Lock()
	recycle := !s.kept && s.size >= f.opts.SegmentBytes/8*7 && s.size <= f.opts.SegmentBytes &&
		len(f.spares) < maxSpares
	f.mu.Unlock()
	if !recycle {
		if err := f.fs.Remove(path); err != nil {
			return fileError("remove", path, err)
		}
		f.bytes.Add(-s.size)
		return f.syncDir()
	}
	to := f.sparePath()
	if err := f.fs.Rename(path, to); err != nil {
		return fileError("rename", path, err)
	}
	if err := f.syncDir(); err != nil {
		return err
	}
	f.bytes.Add(f.opts.SegmentBytes - s.size)
	f.mu.Lock()
	f.spares = append(f.spares, spare{to, f.opts.SegmentBytes})
	f.mu.Unlock()
	return nil
}

// Trim drops entries from memory alone: those up to applied that are durable in the files, and that no
// follower of which Hold knows lacks; the newest of them stay, keepBytes of log in all, and the bound
// MemoryBytes applies as well. The files keep all that the store has not made durable, so a crash
// finds what it finds without Trim.
//
// REQUIRES: raft knows that applied is applied. It does no I/O.
func (l *Log) Trim(applied uint64, keepBytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	limit := min(applied, l.written, l.holdAfter.Load(), l.tail.last)
	if l.closing || limit <= l.tail.base {
		return
	}
	after, bytes := l.tail.base, l.tail.bytes
	l.tail.trim(l.tail.trimPoint(limit, min(keepBytes, l.opts.MemoryBytes)))
	if l.tail.base > after {
		l.trimmed = append(l.trimmed, trimmed{after, bytes - l.tail.bytes})
	}
	l.checkTail()
}

// trimmed are entries that left memory together and are in the files: those after one, bytes of them.
type trimmed struct {
	after uint64
	bytes int64
}

// keptAfter is the entry after which there are keepBytes of log, the older ones in the files alone, or
// fewer, if an earlier Compact let go of the others. REQUIRES: mu.
func (l *Log) keptAfter(keepBytes int64) uint64 {
	after, kept := l.tail.base, l.tail.bytes
	for i := len(l.trimmed) - 1; i >= 0; i-- {
		if kept += l.trimmed[i].bytes; kept > keepBytes {
			l.trimmed = slices.Delete(l.trimmed, 0, i+1)
			break
		}
		after = l.trimmed[i].after
	}
	return after
}

// Compact drops entries that the store holds durably, from memory and from the files, and keeps the
// newest of them, keepBytes of log in all, for lagging followers; the bound MemoryBytes applies as
// well. What Trim has let go of counts as kept, in the files. They keep more if Hold says so.
//
// durable is the store's durable index, or a lower one. Entries above it are never dropped, so the
// log may exceed its bounds while the store lags.
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
	keepBytes = min(keepBytes, l.opts.MemoryBytes)
	if limit, base := min(durable, l.tail.last), l.tail.base; limit > base {
		l.tail.trim(l.tail.trimPoint(limit, keepBytes))
		if l.tail.base > base {
			l.trimmed = nil // memory has all that is to be kept
		}
		l.checkTail()
	}
	// A snapshot may have moved the base in memory beyond what the store has so far.
	drop := min(l.keptAfter(keepBytes), durable)
	l.mu.Unlock()
	l.checkFiles()

	l.files.mu.Lock()
	segs := l.files.segments
	l.files.mu.Unlock()
	var held int64 // bytes of droppable segments that Hold keeps
	free := 0      // how many can be dropped
	after := l.holdAfter.Load()
	for free+1 < len(segs) && segs[free+1].prevIndex <= drop && segs[free+1].prevIndex < after {
		free++
	}
	for i := free; i+1 < len(segs) && segs[i+1].prevIndex <= drop; i++ {
		held += segs[i].size
	}
	if held > 0 {
		for limit := l.mayHold(held); held > limit; free++ {
			held -= segs[free].size
		}
	}
	l.heldBytes.Store(held)

	for ; free > 0; free-- {
		l.files.mu.Lock()
		segs := l.files.segments
		l.files.mu.Unlock()
		// If it fails the segment stays the oldest: never remove one behind it.
		if err := l.files.retire(segs[0]); err != nil {
			return err
		}
		l.files.mu.Lock()
		l.files.segments = slices.Clone(l.files.segments[1:])
		l.files.mu.Unlock()
	}
	return nil
}

package raftlog

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// slowSync is the time from which a sync is called slow, as in etcd.
const slowSync = time.Second

// writer is what the writer goroutine owns: the end of the log on disk.
type writer struct {
	files  *files
	opts   *Options
	logger *zap.Logger
	logID  uint64

	file   vfs.File // of the last segment
	number uint64   // of the last segment
	// nextNumber is greater than that of any file that was in the directory.
	nextNumber uint64
	off        int64 // where its next group starts; a multiple of sectorBytes
	limit      int64 // its size: a group that does not fit goes into the next one
	prepared   bool  // its blocks have been written before
	mustRoll   bool  // something valid lies after off: start a new segment

	seed   uint32 // of the last segment's group headers
	epoch  uint64
	group  uint64 // number of the last group written
	synced uint64 // number of the last group made durable; 0 with NoSync
	sealed bool   // the last group proves that all before it was durable, and promises nothing

	last, lastTerm uint64 // of the entries written
	hard           hard   // as of the items taken; commit may exceed last inside a split Append
	written        hard   // the hard state on disk

	// buf holds a segment header (used if the group starts a segment), the group's
	// header, its records and padding.
	buf     []byte
	records uint32
	rseed   uint32
	// prev is where the log ended, and its hard state, before the group in buf.
	prevIndex, prevTerm uint64
	prevHard            hard

	keep        keeping // of the last segment
	toldRefused bool    // that the Keeper refuses

	// For other goroutines.
	lastGroup atomic.Uint64 // group
	syncs     syncs
}

const groupStart = segmentHeaderBytes // of a group in buf

// largeWrite is from how many bytes on a write counts towards the time of its sync: the file system
// may hand it to the disk at once, and then the disk's time is that of the write.
const largeWrite = 64 << 10

// write is the writer goroutine: it takes everything that waits, writes it in groups, syncs,
// releases.
func (l *Log) write() {
	defer close(l.writerDone)
	var batch []item
	for {
		l.mu.Lock()
		for len(l.queue) == 0 && !l.closing {
			l.wake.Wait()
		}
		batch, l.queue = l.queue, batch[:0]
		l.mu.Unlock()

		var err error
		if len(batch) == 0 {
			if err = l.w.seal(); err == nil {
				return // closing, and all is written
			}
		} else {
			err = l.writeBatch(batch)
		}
		if err != nil {
			l.fail(err, batch)
			return
		}
		clear(batch)
		if cap(batch) > 1<<16 {
			batch = nil
		}
	}
}

// fail ends the log's promises: nothing is released from now on. A failed fdatasync
// may have dropped the dirty pages, so it is never tried again.
func (l *Log) fail(err error, batch []item) {
	l.mu.Lock()
	l.failure = err
	batch = append(batch, l.queue...)
	l.queue = nil
	l.mu.Unlock()
	for i := range batch {
		if batch[i].synced != nil {
			batch[i].synced <- err // buffered; an answered Sync is cleared from the batch
		}
	}
	l.opts.Failed(err)
}

// writeBatch writes batch in groups: each one write, one sync, one release.
// A group ends when it is large, before a snapshot, or with the batch.
func (l *Log) writeBatch(batch []item) error {
	w := &l.w
	i, e := 0, 0 // the next item, and the next of its entries
	for i < len(batch) {
		w.beginGroup()
		must := false // the group holds a promise
		from := i
		for i < len(batch) {
			it := &batch[i]
			if it.snapshot && e == 0 {
				if i > from {
					break // what came before must not wait for Install
				}
				if it.install != nil {
					if err := it.install(); err != nil {
						return fmt.Errorf("raftlog: install snapshot at index %d: %w", it.base.commit, err)
					}
				}
				w.buf = appendBase(w.buf, it.base.commit, it.base.term, w.rseed)
				w.records++
				w.last, w.lastTerm = it.base.commit, it.base.term
			}
			for start := e; e < len(it.entries) && (e == start || int64(len(w.buf)) < l.opts.groupBytes); e++ {
				w.note(it.entries[e], len(w.buf))
				w.buf = appendEntry(w.buf, it.entries[e], w.rseed)
				w.records++
			}
			if e > 0 {
				w.last, w.lastTerm = it.entries[e-1].GetIndex(), it.entries[e-1].GetTerm()
			}
			if it.hasHard {
				w.hard = it.hard
			}
			must = must || it.promise || (it.synced != nil && w.hard != w.written)
			if e < len(it.entries) {
				break // the rest goes into the next group
			}
			i, e = i+1, 0
			if int64(len(w.buf)) >= l.opts.groupBytes {
				break
			}
		}
		if must {
			if err := w.writeGroup(false); err != nil {
				return err
			}
			l.places.add(w.keep.group)
		}
		l.release(batch[from:i], batch[i:])
	}
	return nil
}

func (w *writer) beginGroup() {
	const reserve = groupStart + groupHeaderBytes
	if cap(w.buf) > 2*int(w.opts.groupBytes)+pageBytes || cap(w.buf) < reserve {
		w.buf = make([]byte, reserve, 64<<10)
	}
	w.buf = w.buf[:reserve]
	w.records = 0
	w.keep.group, w.keep.groupBytes = w.keep.group[:0], 0
	w.rseed = recordSeed(w.logID, w.epoch, w.group+1)
	w.prevIndex, w.prevTerm, w.prevHard = w.last, w.lastTerm, w.written
}

// writeGroup writes the group in buf, with the hard state if that changed, and syncs. With reset,
// what the log held before no longer counts.
func (w *writer) writeGroup(reset bool) error {
	h := w.hard
	h.commit = min(h.commit, w.last)
	if h != w.written {
		w.buf = appendHard(w.buf, h, w.rseed)
		w.records++
	}
	w.group++
	w.sealed = w.records == 0
	length := int64(len(w.buf)) - groupStart
	if length > maxRecordBytes {
		return fmt.Errorf("raftlog: a group of %d bytes is too large", length)
	}

	roll := reset || w.mustRoll || (w.off > segmentHeaderBytes && w.off+length > w.limit) ||
		(!w.prepared && w.off > segmentHeaderBytes && w.files.hasSpare())
	if roll {
		if err := w.startSegment(); err != nil {
			return err
		}
		sh := segmentHeader{
			logID: w.logID, number: w.number, first: w.group, synced: w.synced,
			prevIndex: w.prevIndex, prevTerm: w.prevTerm, hard: w.prevHard,
		}
		if reset {
			sh.flags = flagReset
		}
		sh.encode(w.buf)
	}
	groupHeader{
		number: w.group, synced: w.synced, epoch: w.epoch,
		payload: uint32(length - groupHeaderBytes), records: w.records,
	}.encode(w.buf[groupStart:], w.seed)

	// Pad to the end of the page.
	end := roundUp(w.off+length, pageBytes)
	pad := int(end - (w.off + length))
	n := len(w.buf)
	if cap(w.buf) < n+pad {
		w.buf = append(w.buf, make([]byte, pad)...)
	} else {
		w.buf = w.buf[:n+pad]
		clear(w.buf[n:])
	}
	b, at := w.buf[groupStart:], w.off
	if roll {
		b, at = w.buf, 0
	}

	w.keepSegment()
	start := time.Now()
	w.syncs.begin(start)
	if _, err := w.file.WriteAt(b, at); err != nil {
		return fileError("write", w.files.path(segmentName(w.number)), err)
	}
	wrote := time.Now()
	w.opts.Metrics.write.Observe(wrote.Sub(start).Seconds())
	if len(b) >= largeWrite {
		wrote = start
	}
	w.opts.Metrics.writeBytes.Add(float64(len(b)))
	if !w.opts.NoSync {
		if err := w.file.SyncData(); err != nil {
			return fileError("fdatasync", w.files.path(segmentName(w.number)), err)
		}
		if roll {
			if err := w.files.syncDir(); err != nil {
				return err
			}
		}
		took := time.Since(wrote)
		w.opts.Metrics.fsync.Observe(took.Seconds())
		w.syncs.end(wrote.Add(took), took)
		if took > slowSync {
			w.logger.Warn("slow fdatasync", zap.Duration("took", took), zap.Duration("expected-duration", slowSync))
		}
		w.synced = w.group
	} else {
		w.syncs.idle()
	}

	w.locate(w.off - groupStart)
	w.off = roundUp(w.off+length, sectorBytes)
	w.written = h
	w.accountSegment(roll, at+int64(len(b)))
	w.lastGroup.Store(w.group)
	// A segment after a kept one is likely to be kept, too. Zeros in it would be written for nothing.
	if !w.opts.noSpares && w.off > w.limit/2 && !w.keep.kept {
		w.files.wantSpare(w.opts.sizeAfter(w.limit), w.off, w.limit)
	}
	return nil
}

// accountSegment adds the segment just started, or the growth of the last one.
func (w *writer) accountSegment(started bool, end int64) {
	f := w.files
	f.mu.Lock()
	defer f.mu.Unlock()
	if started {
		size := int64(0)
		if w.prepared {
			size = w.limit // counted when it became a spare
		}
		f.segments = append(f.segments, segment{number: w.number, first: w.group, prevIndex: w.prevIndex, size: size})
	}
	s := &f.segments[len(f.segments)-1]
	s.kept = s.kept || w.keep.kept
	if end > s.size {
		f.bytes.Add(end - s.size)
		s.size = end
	}
}

// startSegment opens the file of the next segment, a spare if there is one.
// Its name is durable only after the caller has synced the directory.
func (w *writer) startSegment() error {
	number := max(w.nextNumber, 1)
	old := w.file
	w.files.tryAgain()
	path := w.files.path(segmentName(number))
	size := w.opts.sizeAfter(w.limit)
	s, ok := w.files.takeSpare()
	if ok {
		size = s.size
		if err := w.files.fs.Rename(s.path, path); err != nil {
			return fileError("rename", s.path, err)
		}
	}
	file, err := w.files.fs.OpenReadWrite(path, diskCategory)
	if err != nil {
		return fileError("create", path, err)
	}
	if !ok && w.files.roomFor(size) {
		if err := file.Preallocate(0, size); err != nil {
			// It is an optimisation, and not every file system can. A full disk will fail again at
			// the write.
			w.logger.Debug("cannot preallocate", zap.String("path", path), zap.Error(err))
		}
	}
	w.nextNumber = number + 1
	w.keep.nextSegment()
	w.file, w.number, w.off, w.limit, w.prepared, w.mustRoll = file, number, segmentHeaderBytes, size, ok, false
	w.seed = headerSeed(w.logID, number)
	if old != nil {
		if err := old.Close(); err != nil {
			return fileError("close the segment before", path, err)
		}
	}
	return nil
}

// release hands out the responses of items that are durable. rest is what remains of the batch.
func (l *Log) release(items, rest []item) {
	var responses []*raftpb.Message
	var bytes int64
	var written uint64
	entries := 0
	for i := range items {
		it := &items[i]
		bytes += it.bytes
		if n := len(it.entries); n > 0 {
			entries += n
			written = it.entries[n-1].GetIndex()
		}
		switch {
		case len(it.responses) == 0:
		case responses == nil:
			responses = it.responses[:len(it.responses):len(it.responses)]
		default:
			responses = append(responses, it.responses...)
		}
	}
	l.mu.Lock()
	l.unsyncedBytes.Add(-bytes)
	l.unsyncedEntries.Add(-int64(entries))
	l.raiseWritten(written, rest)
	oldest := oldestPromise(rest)
	if oldest.IsZero() {
		oldest = oldestPromise(l.queue)
	}
	l.oldest.set(oldest)
	l.checkWritten(rest)
	l.mu.Unlock()
	if len(responses) > 0 {
		l.opts.Released(responses)
	}
	for i := range items {
		if items[i].synced != nil {
			items[i].synced <- nil
			items[i].synced = nil
		}
	}
}

// raiseWritten notes that an item's entries, up to index, are durable. What waits may replace some of
// them: then the tail holds others from there on. REQUIRES l.mu.
func (l *Log) raiseWritten(index uint64, rest []item) {
	for _, waiting := range [][]item{rest, l.queue} {
		for i := range waiting {
			if es := waiting[i].entries; len(es) > 0 {
				index = min(index, es[0].GetIndex()-1)
			}
		}
	}
	l.written = max(l.written, index)
}

func oldestPromise(items []item) time.Time {
	for i := range items {
		if items[i].promise {
			return items[i].at
		}
	}
	return time.Time{}
}

// seal writes a last group when the log is closed: the commit that was not written
// yet, and the proof that all before it was durable.
func (w *writer) seal() error {
	if w.sealed && w.hard == w.written {
		return nil
	}
	w.beginGroup()
	return w.writeGroup(false)
}

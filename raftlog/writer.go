package raftlog

import (
	"errors"
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
	out     outgoing
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

// taken are the items that the writer has taken from the queue and not released, in their order, and
// their way to the disk. All but arrived belongs to the writer goroutine.
type taken struct {
	l     *Log
	items []item
	out   int // of the group on its way to the disk: the first out
	next  int // the next to go into a group
	e     int // the next of its entries

	// arrived: the disk has the outgoing group, that a goroutine has written. Guarded by Log.mu.
	arrived bool
}

// write is the writer goroutine: it takes everything that waits, writes it in groups, syncs,
// releases.
func (l *Log) write() {
	defer close(l.writerDone)
	for l.taken.take() {
		if err := l.taken.write(); err != nil {
			l.fail(err)
			return
		}
	}
	if err := l.w.seal(); err != nil {
		l.fail(err)
	}
}

// take waits for items. It returns false when the log is closing and all is written. REQUIRES: all that
// was taken is released.
func (t *taken) take() bool {
	l := t.l
	free := t.items[:0]
	if cap(free) > 1<<16 {
		free = nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.queue) == 0 && !l.closing {
		l.wake.Wait()
	}
	t.items, l.queue = l.queue, free
	t.next, t.e = 0, 0
	return len(t.items) > 0
}

// takeMore waits for more items, as long as the disk has not got the group that is on its way to it. It
// returns false once it has; what waits then is taken all the same.
func (t *taken) takeMore() (out bool) {
	l := t.l
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.queue) == 0 && !t.arrived {
		l.wake.Wait()
	}
	t.items = append(t.items, l.queue...)
	clear(l.queue)
	l.queue = l.queue[:0]
	return !t.arrived
}

// write writes what was taken in groups: each one write, one sync, one release. A group ends when
// it is large, before a snapshot, or when there is no more.
func (t *taken) write() error {
	l, w := t.l, &t.l.w
	for len(t.items) > 0 {
		w.beginGroup()
		must, full, err := t.fillGroup()
		for err == nil && w.out.flying && !full {
			if !t.takeMore() {
				err = t.land() // who waits for it need not wait for what is copied now
			}
			if err == nil {
				var more bool
				more, full, err = t.fillGroup()
				must = must || more
			}
		}
		if err := errors.Join(t.land(), err); err != nil {
			return err
		}
		switch {
		case !must:
			t.release(t.next)
		case len(w.buf) < l.opts.PipelineBytes:
			if err := w.writeGroup(false); err != nil {
				return err
			}
			l.places.add(w.out.places)
			t.release(t.next)
		default:
			if err := w.prepareGroup(false); err != nil {
				return err
			}
			t.out = t.next
			w.out.flying = true
			go t.fly()
		}
	}
	return nil
}

// fly writes the group that is on its way to the disk.
func (t *taken) fly() {
	l := t.l
	err := l.w.writeOut()
	l.mu.Lock()
	defer l.mu.Unlock()
	t.arrived, l.w.out.err = true, err
	l.wake.Signal()
}

// land waits until the disk has the group that is on its way to it, if there is one, and releases it.
func (t *taken) land() error {
	l, w := t.l, &t.l.w
	if !w.out.flying {
		return nil
	}
	l.mu.Lock()
	for !t.arrived {
		l.wake.Wait()
	}
	t.arrived = false
	l.mu.Unlock()
	w.out.flying = false
	if w.out.err != nil {
		return w.out.err
	}
	w.finishGroup()
	l.places.add(w.out.places)
	t.release(t.out)
	return nil
}

// fillGroup puts items into the group in the buffer. must: it holds a promise now. full: it takes no
// more.
func (t *taken) fillGroup() (must, full bool, err error) {
	l, w := t.l, &t.l.w
	for t.next < len(t.items) {
		it := &t.items[t.next]
		if it.snapshot && t.e == 0 {
			if t.next > 0 || w.out.flying {
				return must, true, nil // what came before must not wait for Install
			}
			if it.install != nil {
				if err := it.install(); err != nil {
					return must, true, fmt.Errorf("raftlog: install snapshot at index %d: %w", it.base.commit, err)
				}
			}
			w.buf = appendBase(w.buf, it.base.commit, it.base.term, w.rseed)
			w.records++
			w.last, w.lastTerm = it.base.commit, it.base.term
		}
		for start := t.e; t.e < len(it.entries) && (t.e == start || int64(len(w.buf)) < l.opts.groupBytes); t.e++ {
			pos := len(w.buf)
			w.buf = appendEntry(w.buf, it.entries[t.e], w.rseed)
			w.note(it.entries[t.e], pos)
			w.records++
		}
		if t.e > 0 {
			w.last, w.lastTerm = it.entries[t.e-1].GetIndex(), it.entries[t.e-1].GetTerm()
		}
		if it.hasHard {
			w.hard = it.hard
		}
		must = must || it.promise || (it.synced != nil && w.hard != w.written)
		if t.e < len(it.entries) {
			return must, true, nil // the rest goes into the next group
		}
		t.next, t.e = t.next+1, 0
		if int64(len(w.buf)) >= l.opts.groupBytes {
			return must, true, nil
		}
	}
	return must, false, nil
}

// fail ends the log's promises: nothing is released from now on. A failed fdatasync
// may have dropped the dirty pages, so it is never tried again.
func (l *Log) fail(err error) {
	l.mu.Lock()
	l.failure = err
	left := append(l.taken.items, l.queue...)
	l.queue = nil
	l.mu.Unlock()
	for i := range left {
		if left[i].synced != nil {
			left[i].synced <- err // buffered, and nobody has answered it
		}
	}
	l.opts.Failed(err)
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

// outgoing is the group that is written next, or at the moment.
type outgoing struct {
	flying bool // a goroutine writes it; the writer's

	buf       []byte // b is a part of it
	b         []byte // what is written
	at        int64  // where, in the last segment's file
	roll      bool   // it begins that segment
	prevIndex uint64 // of the last entry before it
	places    []placedEntry
	err       error // of writing it
}

// writeGroup writes the group in buf, with the hard state if that changed, and syncs. With reset,
// what the log held before no longer counts.
func (w *writer) writeGroup(reset bool) error {
	if err := w.prepareGroup(reset); err != nil {
		return err
	}
	if err := w.writeOut(); err != nil {
		return err
	}
	w.finishGroup()
	return nil
}

// prepareGroup makes the group in buf the outgoing one, and buf free for another. REQUIRES: nothing is
// outgoing.
func (w *writer) prepareGroup(reset bool) error {
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
	w.keepSegment()
	w.locate(w.off - groupStart)

	o := &w.out
	o.buf, w.buf = w.buf, o.buf
	o.places, w.keep.group = w.keep.group, o.places
	o.b, o.at, o.roll, o.prevIndex = o.buf[groupStart:], w.off, roll, w.prevIndex
	if roll {
		o.b, o.at = o.buf, 0
	}
	w.off = roundUp(w.off+length, sectorBytes)
	w.written = h
	return nil
}

// writeOut writes the outgoing group, and syncs. A goroutine of its own may do it, while the writer
// makes the next group.
func (w *writer) writeOut() error {
	b, start := w.out.b, time.Now()
	w.syncs.begin(start)
	if _, err := w.file.WriteAt(b, w.out.at); err != nil {
		return fileError("write", w.files.path(segmentName(w.number)), err)
	}
	wrote := time.Now()
	w.opts.Metrics.write.Observe(wrote.Sub(start).Seconds())
	if len(b) >= largeWrite {
		wrote = start
	}
	w.opts.Metrics.writeBytes.Add(float64(len(b)))
	if w.opts.NoSync {
		w.syncs.idle()
		return nil
	}
	if err := w.file.SyncData(); err != nil {
		return fileError("fdatasync", w.files.path(segmentName(w.number)), err)
	}
	if w.out.roll {
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
	return nil
}

// finishGroup takes note that the disk has the outgoing group.
func (w *writer) finishGroup() {
	if !w.opts.NoSync {
		w.synced = w.group
	}
	w.accountSegment()
	w.lastGroup.Store(w.group)
	// A segment after a kept one is likely to be kept, too. Zeros in it would be written for nothing.
	if !w.opts.noSpares && w.off > w.limit/2 && !w.keep.kept {
		w.files.wantSpare(w.opts.sizeAfter(w.limit), w.off, w.limit)
	}
}

// accountSegment adds the segment that the outgoing group has begun, or the growth of the last one.
func (w *writer) accountSegment() {
	o, f := &w.out, w.files
	f.mu.Lock()
	defer f.mu.Unlock()
	if o.roll {
		size := int64(0)
		if w.prepared {
			size = w.limit // counted when it became a spare
		}
		f.segments = append(f.segments, segment{number: w.number, first: w.group, prevIndex: o.prevIndex, size: size})
	}
	s := &f.segments[len(f.segments)-1]
	s.kept = s.kept || w.keep.kept
	if end := o.at + int64(len(o.b)); end > s.size {
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

// release hands out the responses of the first n items taken, which are durable, and lets go of them.
func (t *taken) release(n int) {
	l := t.l
	items, rest := t.items[:n], t.items[n:]
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
		}
	}
	kept := copy(t.items, rest)
	clear(t.items[kept:])
	t.items, t.out, t.next = t.items[:kept], 0, t.next-n
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

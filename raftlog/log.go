package raftlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/internal/invariants"
)

const (
	defaultSegmentBytes = 64 << 20
	defaultMemoryBytes  = 256 << 20
	defaultGroupBytes   = 8 << 20
	// To copy and sum a group of large entries takes a third of the time that a fast disk takes for it.
	defaultPipelineBytes = 1 << 20
	// defaultKeepApplied is what a follower that keeps up may lack when a member has started again.
	// Others are fed from the files.
	defaultKeepApplied = 4 << 20
)

// Options of Open. The zero value of a field means its default.
type Options struct {
	// FS is the file system; default vfs.Default. All I/O goes through it.
	FS vfs.FS
	// SegmentBytes is the size of a segment file; default 64 MiB. The first ones of a log are
	// smaller, and one with a larger group is larger. It may change between runs.
	SegmentBytes int64
	// MemoryBytes bounds the entries held in memory, except those that neither Adopt, Compact nor
	// Trim may drop. Default 256 MiB. Applied by all three.
	MemoryBytes int64
	// Applied is the store's applied entry, which Adopt will be called with: segments whose entries
	// are all applied are not read, and of what is read, applied entries leave memory again but for
	// the newest, so that neither the time nor the memory of Open grows with what is kept for
	// followers. 0: all are read, and stay. (Unread segments are not checked.)
	Applied uint64
	// MemberID and ClusterID are written into a new log and compared with an
	// existing one. Zero: not compared.
	MemberID, ClusterID uint64
	// LeastGroup is what Mark or Seal of this log returned earlier: a log that ends before it is an
	// older copy, or was cut, and Open fails with *OldError and changes nothing. Zero: not
	// compared.
	LeastGroup uint64
	Logger     *zap.Logger // default: none
	Metrics    *Metrics    // default: not exported
	// NoSync skips every fsync and fdatasync (--unsafe-no-fsync). A crash of the machine may then
	// lose what was promised.
	NoSync bool
	// Released gets the responses of each group, in the order of the Appends, when
	// that group is durable. Called by the writer goroutine; it may keep the slice.
	Released func([]*raftpb.Message)
	// Keeper, if there is one, keeps segments that hold large entries when the log needs them no more,
	// and gets the places of those entries from Places. Not with NoSync.
	Keeper Keeper

	// PipelineBytes is from which size on, in bytes, a group is written by a goroutine of its own,
	// while the writer makes the next one. Default 1 MiB.
	PipelineBytes int

	// Failed is called once, by the writer goroutine, when a write or a sync has
	// failed. Nothing is released afterwards; the process must stop.
	Failed func(error)

	// For tests: the largest group, how much of what is applied stays in memory at Open, and whether
	// spare segments are prepared.
	groupBytes  int64
	keepApplied int64
	noSpares    bool
	random      func() uint64
}

func (o *Options) fill() error {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = defaultSegmentBytes
	}
	if o.SegmentBytes < 4*pageBytes {
		return fmt.Errorf("raftlog: segments of %d bytes are too small: give at least %d", o.SegmentBytes, 4*pageBytes)
	}
	o.SegmentBytes = roundUp(o.SegmentBytes, pageBytes)
	if o.MemoryBytes == 0 {
		o.MemoryBytes = defaultMemoryBytes
	}
	if o.MemoryBytes < 0 {
		return fmt.Errorf("raftlog: a memory bound of %d bytes makes no sense", o.MemoryBytes)
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	if o.Released == nil {
		o.Released = func([]*raftpb.Message) {}
	}
	if o.Failed == nil {
		logger := o.Logger
		o.Failed = func(err error) { logger.Error("raft log failed", zap.Error(err)) }
	}
	if o.NoSync {
		o.Keeper = nil // nothing is durable, so nothing has a place
	}
	if o.groupBytes == 0 {
		o.groupBytes = defaultGroupBytes
	}
	if o.PipelineBytes == 0 {
		o.PipelineBytes = defaultPipelineBytes
	}
	if o.keepApplied == 0 {
		o.keepApplied = defaultKeepApplied
	}
	if o.random == nil {
		o.random = rand.Uint64
	}
	return nil
}

// Append is one step of the log: raft's MsgStorageAppend.
//
// In memory, and in what a crash leaves, its parts take effect in this order:
// Snapshot, Entries, HardState.
type Append struct {
	// HardState, nil for unchanged. A change of Term or Vote is a promise and is
	// synced; a change of Commit alone is written with the next group, or by Sync.
	HardState *raftpb.HardState
	// Entries continue the log or, if the log already holds the first one's index, replace it from
	// there on. They are shared, not copied, and must not change.
	Entries []*raftpb.Entry
	// Snapshot, nil for none, replaces the log by the base (its index, its term).
	Snapshot *raftpb.Snapshot
	// Install, with Snapshot, makes the snapshot's state durable. The writer goroutine calls it
	// after all earlier Appends are durable and before it writes the new base. nil: nothing to do.
	Install func() error
	// Responses are released when all of the above, and everything before it, is durable.
	Responses []*raftpb.Message
}

// Unsynced is what the disk does not have yet.
type Unsynced struct {
	// Bytes and Entries appended and not yet durable (a snapshot being installed counts no bytes).
	Bytes   int64
	Entries int
	// Oldest is the age of the oldest Append that waits for the disk, whether it
	// is in flight or queued; 0 if there is none. An Install that runs counts too.
	// After a failure it grows for ever.
	Oldest time.Duration
}

// item is an Append on its way to the disk, or a marker of Sync.
type item struct {
	entries   []*raftpb.Entry
	responses []*raftpb.Message
	hard      hard
	hasHard   bool
	snapshot  bool
	base      hard // term and commit of it: the snapshot's term and index
	install   func() error
	promise   bool // must be synced: entries, a snapshot, a term or a vote
	bytes     int64
	at        time.Time
	synced    chan error // of Sync; buffered
}

// Log is the durable raft log and its tail in memory. It implements raft.Storage.
//
// Append, the methods of raft.Storage and the Set methods belong to the raft loop;
// none of them waits for a disk. Unsynced, Stats, Bytes, BytesAfter, Compact, Sync and
// Close may be called from any goroutine.
type Log struct {
	opts   Options
	logger *zap.Logger
	meta   meta
	lock   io.Closer

	// mu guards what the raft loop sees. It is never held across I/O, except
	// by Adopt, before the loop starts.
	mu        sync.Mutex
	wake      sync.Cond // queue is not empty, or closing, or taken.arrived; the writer waits for it
	tail      tail
	hard      hard
	confState *raftpb.ConfState
	snapshot  *raftpb.Snapshot
	queue     []item
	taken     taken // the writer's
	// unsynced counts what was appended and not released; oldest is when the
	// oldest promise among it was appended, zero if there is none.
	// They change with mu held; Unsynced reads them without.
	unsyncedBytes, unsyncedEntries atomic.Int64
	oldest                         instant
	// written: what the tail holds up to here is durable in the files.
	written uint64
	// trimmed is what Trim let go of since a Compact or a snapshot did, oldest first, without gaps.
	trimmed  []trimmed
	started  bool // an Append or Sync happened: too late for Adopt
	closing  bool
	released bool // Close was called; guarded by compactMu
	failure  error
	checks   invariants.Budget // of checkTail

	places Places // of large entries

	files files  // the directory: segments and spares
	w     writer // owned by the writer goroutine once Open has returned

	compactMu  sync.Mutex        // one Compact at a time
	fileChecks invariants.Budget // of checkFiles, with compactMu held
	writerDone chan struct{}

	// See Hold.
	holdAfter            atomic.Uint64
	holdLimit, heldBytes atomic.Int64
}

var _ raft.Storage = (*Log)(nil)

// ErrClosed is returned by Sync after Close.
var ErrClosed = errors.New("raftlog: the log is closed")

// Append takes a into memory at once and queues it for the disk. It never waits.
//
// REQUIRES, and panics otherwise, since to continue would break a promise: entries follow each
// other and the log without a gap; they do not replace a committed entry; terms do not go back; the
// vote of a term does not change; Close was not called.
func (l *Log) Append(a Append) {
	it := item{responses: a.Responses, entries: a.Entries, at: time.Now()}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		panic("raftlog: Append after Close")
	}
	l.started = true

	if a.Snapshot != nil {
		m := a.Snapshot.GetMetadata()
		if m.GetIndex() <= l.hard.commit || m.GetTerm() < l.tail.baseTerm {
			panic(fmt.Sprintf("raftlog: snapshot (index %d, term %d) is older than the log (base %d, term %d, commit %d)",
				m.GetIndex(), m.GetTerm(), l.tail.base, l.tail.baseTerm, l.hard.commit))
		}
		it.snapshot, it.install, it.promise = true, a.Install, true
		it.base = hard{term: m.GetTerm(), commit: m.GetIndex()}
		l.tail.reset(m.GetIndex(), m.GetTerm())
		l.trimmed = nil
		l.confState = m.GetConfState()
	}
	if len(a.Entries) > 0 {
		it.promise = true
		it.bytes = l.takeEntries(a.Entries)
		l.unsyncedBytes.Add(it.bytes)
		l.unsyncedEntries.Add(int64(len(a.Entries)))
	}
	if a.HardState != nil {
		h := hard{term: a.HardState.GetTerm(), vote: a.HardState.GetVote(), commit: a.HardState.GetCommit()}
		switch {
		case h.term < l.hard.term, h.commit < l.hard.commit,
			h.term == l.hard.term && l.hard.vote != 0 && h.vote != l.hard.vote:
			panic(fmt.Sprintf("raftlog: hard state goes back: %+v after %+v", h, l.hard))
		case h.commit > l.tail.last:
			panic(fmt.Sprintf("raftlog: commit %d is beyond the last entry %d", h.commit, l.tail.last))
		}
		if h.term != l.hard.term || h.vote != l.hard.vote {
			it.promise = true
		}
		it.hard, it.hasHard = h, true
		l.hard = h
	}
	l.checkTail()

	if it.promise && !l.oldest.isSet() {
		l.oldest.set(it.at)
	}
	if l.failure != nil {
		return // nobody will write it; Unsynced keeps counting
	}
	l.queue = append(l.queue, it)
	l.wake.Signal()
}

// takeEntries puts entries into the tail and returns their size. REQUIRES l.mu.
func (l *Log) takeEntries(entries []*raftpb.Entry) int64 {
	first := entries[0].GetIndex()
	switch {
	case first > l.tail.last+1:
		panic(fmt.Sprintf("raftlog: entry %d leaves a gap after %d", first, l.tail.last))
	case first <= l.hard.commit || first <= l.tail.base:
		panic(fmt.Sprintf("raftlog: entry %d would replace a committed one (commit %d, base %d)", first, l.hard.commit, l.tail.base))
	}
	l.tail.truncate(first - 1)
	l.written = min(l.written, first-1)
	before := l.tail.bytes
	for _, e := range entries {
		if e.GetIndex() != l.tail.last+1 || e.GetTerm() < l.tail.lastTerm {
			panic(fmt.Sprintf("raftlog: entry (index %d, term %d) cannot follow (index %d, term %d)",
				e.GetIndex(), e.GetTerm(), l.tail.last, l.tail.lastTerm))
		}
		l.tail.push(e)
	}
	return l.tail.bytes - before
}

// Unsynced returns what the disk does not have yet. It takes no lock and may be called in each
// round of a loop; its fields may be of slightly different moments.
func (l *Log) Unsynced() Unsynced {
	return Unsynced{
		Bytes:   l.unsyncedBytes.Load(),
		Entries: int(l.unsyncedEntries.Load()),
		Oldest:  l.oldest.age(),
	}
}

// Bytes returns the size of the entries in memory (each with an estimate of its
// overhead) and of the files on disk, spare segments included.
func (l *Log) Bytes() (mem, disk int64) {
	l.mu.Lock()
	mem = l.tail.bytes
	l.mu.Unlock()
	return mem, l.files.bytes.Load()
}

// BytesAfter estimates, to about a thousand entries, the bytes of the entries after index.
func (l *Log) BytesAfter(index uint64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tail.bytesAfter(index)
}

// BytesBetween is what is held in memory of the entries after lo up to hi.
func (l *Log) BytesBetween(lo, hi uint64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tail.bytesBetween(lo, hi)
}

// Metadata says whose log this is.
func (l *Log) Metadata() Metadata {
	return l.meta.metadata()
}

// Sync waits until all that was appended before is durable, commit included.
func (l *Log) Sync(ctx context.Context) error {
	done := make(chan error, 1)
	l.mu.Lock()
	switch {
	case l.failure != nil:
		defer l.mu.Unlock()
		return l.failure
	case l.closing:
		l.mu.Unlock()
		return ErrClosed
	}
	l.started = true
	l.queue = append(l.queue, item{synced: done, at: time.Now()})
	l.wake.Signal()
	l.mu.Unlock()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Seal writes what waits and a last group, returns the group's number (0 with NoSync), and keeps
// the directory locked until Close. It waits for the disk. It returns the failure of the log if
// there was one. REQUIRES: no Append from now on.
func (l *Log) Seal() (group uint64, err error) {
	l.mu.Lock()
	l.closing = true
	l.wake.Signal()
	l.mu.Unlock()
	<-l.writerDone
	return l.w.synced, l.failure // the writer is gone
}

// Close seals the log, if Seal has not, and releases the directory. It returns the failure of the
// log if there was one. Closed again, it does nothing.
func (l *Log) Close() error {
	_, err := l.Seal()
	l.compactMu.Lock() // a running Compact must not outlive the lock on the directory
	defer l.compactMu.Unlock()
	if l.released {
		return nil
	}
	l.released = true
	l.files.stopPreparing()
	if l.w.file != nil {
		err = errors.Join(err, l.w.file.Close())
	}
	return errors.Join(err, l.files.root.Close(), l.lock.Close())
}

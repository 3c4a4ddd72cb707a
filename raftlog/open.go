package raftlog

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// Metadata says whose log a directory holds.
type Metadata struct {
	Version   uint32 // of the format
	MemberID  uint64
	ClusterID uint64
	// LogID is random, drawn when the log was made, and never 0: data kept beside the log
	// identifies it by this.
	LogID uint64
}

func (m meta) metadata() Metadata {
	return Metadata{Version: m.version, MemberID: m.member, ClusterID: m.cluster, LogID: m.logID}
}

// Peek reports whether dir holds a log, and whose. fs may be nil for the default.
func Peek(dir string, fs vfs.FS) (Metadata, bool, error) {
	if fs == nil {
		fs = vfs.Default
	}
	if _, err := fs.Stat(dir); isNotExist(err) {
		return Metadata{}, false, nil
	}
	ls, err := list(fs, dir)
	if err != nil || !ls.meta {
		return Metadata{}, false, err
	}
	m, err := readMeta(fs, dir)
	if err != nil {
		return Metadata{}, false, err
	}
	return m.metadata(), true, nil
}

// Open opens the log in dir, or makes a new one. What it returns is durable: entries that a crashed
// process had written but not synced are either synced now or gone.
//
// All entries above Options.Applied are in memory afterwards, and some below it; Adopt then drops
// what MemoryBytes does not allow. Errors: *CorruptError, *IdentityError, *OldError, or I/O with
// the file's name.
func Open(dir string, opts Options) (_ *Log, err error) {
	if err := opts.fill(); err != nil {
		return nil, err
	}
	l := &Log{opts: opts, logger: opts.Logger, writerDone: make(chan struct{})}
	l.wake.L, l.taken.l = &l.mu, l
	f := &l.files
	f.dir, f.fs, f.opts, f.logger = dir, opts.FS, &l.opts, opts.Logger
	l.w.files, l.w.opts, l.w.logger = f, &l.opts, opts.Logger
	l.holdAfter.Store(NoHold)
	now := time.Now()
	l.oldest.base, l.w.syncs.started.base, l.w.syncs.ended.base = now, now, now
	l.confState = raftpb.EnsureConfState(nil)
	if err := f.fs.MkdirAll(dir, 0o700); err != nil {
		return nil, fileError("cannot create directory", dir, err)
	}
	lockPath := f.path(lockName)
	if l.lock, err = f.fs.Lock(lockPath); err != nil {
		return nil, fmt.Errorf("raftlog: cannot lock %s: another process uses this directory, or it is not writable: %w", lockPath, err)
	}
	defer func() {
		if err != nil {
			if l.w.file != nil {
				_ = l.w.file.Close() // the first error is the one to tell
			}
			if f.root != nil {
				_ = f.root.Close()
			}
			_ = l.lock.Close()
		}
	}()
	if f.root, err = f.fs.OpenDir(dir); err != nil {
		return nil, fileError("open directory", dir, err)
	}
	ls, err := list(f.fs, dir)
	if err != nil {
		return nil, err
	}
	l.w.epoch = opts.random()
	if ls.meta {
		err = l.load(ls)
	} else {
		err = l.create(ls)
	}
	if err != nil {
		return nil, err
	}
	l.places.files, l.places.logID = f, l.meta.logID
	f.want = make(chan struct{}, 1)
	if !opts.noSpares {
		f.stop, f.stopped = make(chan struct{}), make(chan struct{})
		go f.prepare()
	}
	go l.write()
	return l, nil
}

// create makes a new log: first a segment, then, by rename, META, whose presence
// promises the segment.
func (l *Log) create(ls listing) error {
	f, w := &l.files, &l.w
	// Without META, segments can only be what a crash of create has left: one, with no group in it.
	for _, n := range ls.segments {
		path := f.path(segmentName(n))
		info, err := f.fs.Stat(path)
		if err != nil {
			return fileError("stat", path, err)
		}
		if n != 1 || info.Size() > segmentHeaderBytes {
			return &CorruptError{File: f.path(metaName), Reason: "the file is missing, but " + path + " holds a log"}
		}
		ls.leftover = append(ls.leftover, path)
	}
	for _, path := range ls.leftover {
		if err := f.fs.Remove(path); err != nil {
			return fileError("remove", path, err)
		}
	}
	// The directory's own name must be durable too, and those above it may be as new. We have not
	// made those that we may not open.
	for dir := f.fs.PathDir(f.dir); ; dir = f.fs.PathDir(dir) {
		err := f.syncDirOf(dir)
		if errors.Is(err, os.ErrPermission) {
			break
		}
		if err != nil {
			return err
		}
		if up := f.fs.PathDir(dir); up == dir {
			break
		}
	}
	l.meta = meta{version: formatVersion, member: l.opts.MemberID, cluster: l.opts.ClusterID, logID: l.opts.random()}
	for l.meta.logID == 0 {
		l.meta.logID = l.opts.random()
	}

	w.logID = l.meta.logID
	if err := w.startSegment(); err != nil {
		return err
	}
	b := make([]byte, segmentHeaderBytes)
	segmentHeader{logID: l.meta.logID, number: w.number, first: 1}.encode(b)
	_, err := w.file.WriteAt(b, 0)
	if err == nil && !l.opts.NoSync {
		err = w.file.Sync()
	}
	if err != nil {
		return fileError("write", f.path(segmentName(w.number)), err)
	}
	f.segments = []segment{{number: w.number, first: 1, size: segmentHeaderBytes}}
	f.bytes.Store(segmentHeaderBytes)
	w.sealed = true

	temp := f.path(metaTempName)
	m, err := f.fs.Create(temp, diskCategory)
	if err != nil {
		return fileError("create", temp, err)
	}
	if _, err = m.Write(l.meta.encode()); err == nil && !l.opts.NoSync {
		err = m.Sync()
	}
	if cerr := m.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = f.syncDir() // the segment's name before META's
	}
	if err == nil {
		err = f.fs.Rename(temp, f.path(metaName))
	}
	if err != nil {
		return fileError("write", f.path(metaName), err)
	}
	return f.syncDir()
}

// load reads an existing log, makes what it found durable, and removes files that are not part of
// it.
func (l *Log) load(ls listing) error {
	dir, w := &l.files, &l.w
	var err error
	if l.meta, err = readMeta(dir.fs, dir.dir); err != nil {
		return err
	}
	if (l.opts.MemberID != 0 && l.meta.member != l.opts.MemberID) || (l.opts.ClusterID != 0 && l.meta.cluster != l.opts.ClusterID) {
		return &IdentityError{
			Dir: dir.dir, HaveMember: l.meta.member, HaveCluster: l.meta.cluster,
			WantMember: l.opts.MemberID, WantCluster: l.opts.ClusterID,
			HaveVersion: l.meta.version, WantVersion: l.meta.version,
		}
	}
	r, err := replaySegments(dir.fs, dir.dir, ls.segments, l.meta.logID, l.opts.Applied, l.opts.keepApplied)
	if err != nil {
		return err
	}
	if r.group < l.opts.LeastGroup {
		return &OldError{Dir: dir.dir, Group: r.group, Least: l.opts.LeastGroup}
	}
	if r.cut != nil {
		l.logger.Warn("the raft log ends in a group that nothing proves durable, as after a write that a crash interrupted; it is cut",
			zap.String("path", r.cut.path), zap.Int64("offset", r.cut.offset),
			zap.Uint64("group", r.cut.group), zap.String("reason", r.cut.reason))
	}

	// A process that died may have left writes in the page cache. We are about to act
	// on them (answer "I have entry N"), so they must be durable first.
	for i, s := range r.live {
		path := dir.path(segmentName(s.number))
		f, err := dir.fs.OpenReadWrite(path, diskCategory)
		if err != nil {
			return fileError("open", path, err)
		}
		if !l.opts.NoSync {
			if i == len(r.live)-1 {
				err = rewriteLast(f, r)
			}
			if err == nil {
				err = f.Sync()
			}
			if err != nil {
				_ = f.Close() // the first error is the one to tell
				return fileError("sync", path, err)
			}
		}
		dir.bytes.Add(s.size)
		if i == len(r.live)-1 {
			l.w.file = f
			for limit := l.opts.sizeAfter(0); ; limit = l.opts.sizeAfter(limit) {
				l.w.limit = limit
				if s.size <= limit || limit == l.opts.SegmentBytes {
					break
				}
			}
			l.w.prepared = s.size >= l.w.limit
		} else if err := f.Close(); err != nil {
			return fileError("close", path, err)
		}
	}
	// Names too, and before any other name is removed: a new segment may be what makes the others
	// dead.
	if err := dir.syncDir(); err != nil {
		return err
	}
	// From the newest to the oldest: each crash in between leaves the same decision.
	// (Those before a reset are harmless in any order.) None is recycled.
	remove := append(ls.leftover, r.dead...)
	for i := len(remove) - 1; i >= 0; i-- {
		if err := dir.fs.Remove(remove[i]); err != nil {
			return fileError("remove", remove[i], err)
		}
		if err := dir.syncDir(); err != nil {
			return err
		}
	}

	l.tail, l.hard, l.trimmed = r.tail, r.hard, r.trimmed
	for i := range r.live {
		r.live[i].kept = true // perhaps: whoever opens the log need not know the Keeper of an earlier life
	}
	dir.segments = r.live
	w.logID = l.meta.logID
	w.keep.atOpen()
	last := r.live[len(r.live)-1]
	// A new segment gets a number that no file had, removed ones included.
	w.seed = headerSeed(l.meta.logID, last.number)
	w.number, w.off = last.number, r.end
	w.nextNumber = r.number + 1
	w.mustRoll = r.stale
	w.group, w.sealed = r.group, r.sealed
	w.lastGroup.Store(r.group)
	if !l.opts.NoSync {
		w.synced = r.group
	}
	w.last, w.lastTerm = r.last, r.lastTerm
	w.hard, w.written = r.hard, r.hard
	return nil
}

// rewriteLast writes the last group again, as it is. If the process before this one died of a
// failed fdatasync, the kernel shows us pages that it counts as clean although they never reached
// the disk, and has reported the error already: Sync alone would do nothing and report success.
// Only a write makes them dirty again. The groups before it are proven durable by it. A crash in
// the meantime is harmless: each sector gets the content that it has.
func rewriteLast(f vfs.File, r *replay) error {
	if len(r.lastHeader) > 0 {
		if _, err := f.WriteAt(r.lastHeader, 0); err != nil {
			return err
		}
	}
	if len(r.lastGroup) > 0 {
		if _, err := f.WriteAt(r.lastGroup, r.lastOffset); err != nil {
			return err
		}
	}
	return nil
}

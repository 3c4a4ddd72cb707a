package store

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"
)

const (
	// retryPause is how long the engine waits before it retries a failed flush or compaction. By
	// itself it would not wait at all.
	retryPause = 500 * time.Millisecond
	// retryLogInterval is how often a lasting failure is logged.
	retryLogInterval = 10 * time.Second
)

// background is what the store knows about its flushes and compactions.
type background struct {
	failing    atomic.Bool // the last one that ended failed
	lastLogged atomic.Pointer[time.Time]
	suppressed atomic.Int64
	stopped    atomic.Bool // Options.Failed was called, or the store is broken
	damaged    atomic.Bool // a compaction failed over damage, and none has been slowed down for it
}

// backgroundError is called for a flush or compaction that failed. Everything it would have written
// is still in memory and in the raft log. A full disk is worth waiting for: somebody may make room.
// Any other error of the disk is not: what was written around it cannot be trusted, and a member
// that continues keeps ever more in memory. It must not wait: the engine holds its mutex, but where it
// looks at tables that it has found at its start.
func (s *Store) backgroundError(err error) {
	if lookingAtTables() {
		pause(lookPause, s.closing)
		return // the damage is told by itself
	}
	if IsDamage(err) {
		s.background.damaged.Store(true)
	} else {
		s.background.failing.Store(true)
	}
	if s.failFull {
		if s.background.stopped.CompareAndSwap(false, true) {
			s.why = fmt.Errorf("store: the disk under %s does not take what is written: %w", s.dir, err)
			close(s.broken)
		}
		return
	}
	if full := errors.Is(err, syscall.ENOSPC); !full && !IsDamage(err) && s.failed != nil {
		if s.background.stopped.CompareAndSwap(false, true) {
			go func() {
				s.failed(fmt.Errorf("store: a flush or compaction failed, and a write that failed is not tried again: %w; %s", err, AfterFailure(err, s.fs, s.dir)))
			}()
		}
		return
	}
	now := time.Now()
	if last := s.background.lastLogged.Load(); last != nil && now.Sub(*last) < retryLogInterval {
		s.background.suppressed.Add(1)
		return
	}
	s.background.lastLogged.Store(&now)
	s.logger.Warn("a flush or compaction of the store failed and will be tried again",
		zap.Error(oneLine{explain(err)}), zap.String("dir", s.dir), zap.Int64("further-failures", s.background.suppressed.Swap(0)))
}

// lookPause is the pause after the engine (Pebble 2.1.7) could not read a table while it collects what
// it knows of the tables that it has found at its start. It begins again at once, for ever: one damaged
// table kept a processor busy.
const lookPause = time.Second

// lookingAtTables reports whether the engine calls from that work, in which it holds no mutex. Nothing
// else tells.
func lookingAtTables() bool { return calledFrom(".(*DB).scanReadStateTableStats") }

// calledFrom reports whether a function of the engine is among the callers.
func calledFrom(function string) bool {
	var callers [48]uintptr
	frames := runtime.CallersFrames(callers[:runtime.Callers(2, callers[:])])
	for {
		frame, more := frames.Next()
		if strings.HasSuffix(frame.Function, function) {
			return true
		}
		if !more {
			return false
		}
	}
}

// AfterFailure says what to do about a member that stops because err kept it from writing in dir. If
// dir itself is gone, nobody may be told that nothing is lost, nor to start again, which would make
// an empty member. It looks only then: a disk that fails may hang.
func AfterFailure(err error, fs vfs.FS, dir string) string {
	if isNotExist(err) && gone(fs, dir) {
		return adviceGone(dir)
	}
	return fmt.Sprintf("check the disk under %s, then start the member again: nothing acknowledged is lost", dir)
}

func gone(fs vfs.FS, dir string) bool {
	_, err := fs.Stat(dir)
	return isNotExist(err)
}

func adviceGone(dir string) string {
	return dir + " is not there any more: it was removed, moved or unmounted while the member ran. Put it back before the member starts again. " +
		"If it is lost, replace the member (belay ctl member replace), or restore a backup if it was the only one"
}

// pacedFS makes the engine wait before it tries again what failed.
type pacedFS struct {
	vfs.FS
	s *Store
}

// Create waits while flushes or compactions fail.
func (p pacedFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if p.s.background.failing.Load() && (strings.HasSuffix(name, tableSuffix) || strings.HasSuffix(name, blobSuffix)) {
		time.Sleep(retryPause)
	}
	return p.FS.Create(name, c)
}

// GetDiskUsage waits at the end of a compaction if the one before failed over damage, as this one will
// have: the engine (Pebble 2.1.7) begins again at once, for ever, if that is in a table of level 0. It
// has nothing open there, and holds no mutex.
func (p pacedFS) GetDiskUsage(path string) (vfs.DiskUsage, error) {
	if b := &p.s.background; b.damaged.Load() && calledFrom(".(*DB).compact1") && b.damaged.Swap(false) {
		pause(lookPause, p.s.closing)
	}
	return p.FS.GetDiskUsage(path)
}

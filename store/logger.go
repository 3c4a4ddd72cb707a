package store

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func isNotExist(err error) bool { return errors.Is(err, os.ErrNotExist) }

// pebbleLogger takes the engine's own words. What an operator should see comes as an event instead
// (eventListener).
type pebbleLogger struct {
	logger *zap.Logger
	fs     vfs.FS
	dir    string
}

func (l pebbleLogger) Infof(format string, args ...any) {
	if l.logger.Core().Enabled(zap.DebugLevel) {
		l.logger.Debug("storage engine", zap.String("detail", fmt.Sprintf(format, args...)))
	}
}

func (l pebbleLogger) Errorf(format string, args ...any) {
	l.logger.Warn("storage engine", zap.String("detail", fmt.Sprintf(format, args...)))
}

// Fatalf is for errors after which the engine cannot go on, such as a failed write of its manifest:
// the process ends. The raft log has everything that was not flushed. The engine passes the error's
// text only.
func (l pebbleLogger) Fatalf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if !l.logger.Core().Enabled(zap.FatalLevel) { // zap would end the process without a word
		panic("store: " + text)
	}
	// Without a stack, which tells an operator nothing.
	plain := l.logger.WithOptions(zap.AddStacktrace(zapcore.InvalidLevel))
	if strings.Contains(text, syscall.ENOENT.Error()) && gone(l.fs, l.dir) {
		plain.Fatal("the storage engine cannot go on; its directory is gone", zap.String("what-to-do", adviceGone(l.dir)), zap.String("reason", text))
	}
	plain.Fatal("the storage engine cannot go on; check the disk, then start the member again: nothing acknowledged is lost",
		zap.String("reason", text))
	panic("store: " + text)
}

func (s *Store) eventListener() pebble.EventListener {
	return pebble.EventListener{
		BackgroundError: s.backgroundError,
		DataCorruption:  func(info pebble.DataCorruptionInfo) { s.tellCorrupt(info.Path, info.Details) },
		DiskSlow: func(info pebble.DiskSlowInfo) {
			s.logger.Warn("slow disk under the store", zap.String("path", info.Path),
				zap.String("operation", info.OpType.String()), zap.Int("bytes", info.WriteSize), zap.Duration("took", info.Duration))
		},
		FlushBegin: func(pebble.FlushInfo) { s.sizes.flushBegins() },
		TableCreated: func(info pebble.TableCreateInfo) {
			if info.Reason != "ingesting" { // those are whole
				s.outputs.created(info.JobID, info.Path)
			}
		},
		BlobFileCreated: func(info pebble.BlobFileCreateInfo) { s.outputs.created(info.JobID, info.Path) },
		BlobFileRewriteBegin: func(info pebble.BlobFileRewriteInfo) {
			input := s.fs.PathJoin(s.dir, info.Input.DiskFileNum.String()+blobSuffix)
			s.outputs.rewriteBegins(info.JobID, rewrite{input, uint64(info.Input.BlobFileID)})
		},
		BlobFileRewriteEnd: func(info pebble.BlobFileRewriteInfo) { s.outputs.ended(info.JobID) },
		FlushEnd: func(info pebble.FlushInfo) {
			s.outputs.ended(info.JobID)
			if info.Err == nil {
				s.sizes.flushed(info.InputBytes)
				s.background.failing.Store(false)
			}
			s.debug("flushed", func() string { return info.String() })
		},
		CompactionEnd: func(info pebble.CompactionInfo) {
			s.outputs.ended(info.JobID)
			if info.Err == nil {
				s.background.failing.Store(false)
				s.sizes.resample()
			}
			s.debug("compacted", func() string { return info.String() })
		},
		WriteStallBegin: func(info pebble.WriteStallBeginInfo) {
			s.logger.Warn("applying waits for the disk under the store", zap.String("reason", info.Reason))
		},
		WriteStallEnd: func() { s.logger.Info("applying no longer waits for the disk under the store") },
	}
}

// tellCorrupt is called each time that a file turns out to be corrupt.
func (s *Store) tellCorrupt(path string, err error) {
	s.logger.Error("a file of the store is corrupt; restore this member from its peers", zap.String("path", path), zap.Error(err))
	if s.corrupt != nil {
		s.corrupt(corruptFile(path, err))
	}
}

func (s *Store) debug(what string, detail func() string) {
	if s.logger.Core().Enabled(zap.DebugLevel) {
		s.logger.Debug("storage engine "+what, zap.String("detail", detail()))
	}
}

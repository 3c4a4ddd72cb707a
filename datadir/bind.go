package datadir

import (
	"errors"
	"syscall"

	"go.uber.org/zap"

	"github.com/belaydb/belay/raftlog"
)

// Bind is the last step of a start before the member sends anything: from here on no other log, and
// no older copy of this one, is accepted beside this store. noSync: the log is not durable either
// (--unsafe-no-fsync).
//
// REQUIRES: the log is open, and the store's folder exists.
func (p *Parts) Bind(log *raftlog.Log, noSync bool, logger *zap.Logger) error {
	if logger == nil {
		logger = zap.NewNop()
	}
	group, err := log.Mark()
	if err != nil {
		return err
	}
	err = p.write(log, group)
	p.bound = err == nil
	if errors.Is(err, syscall.ENOSPC) && p.LeastGroup() > 0 && !noSync {
		// What is recorded still holds, and it must be possible to start the member in order to
		// make room.
		logger.Warn("the disk is full: the raft log's position was not recorded, so an older copy of the log would not be noticed", zap.Error(err))
		return nil
	}
	return err
}

// Close closes the raft log and, if the parts were bound, records where it ends while the directory
// is still locked.
func (p *Parts) Close(log *raftlog.Log, logger *zap.Logger) {
	if logger == nil {
		logger = zap.NewNop()
	}
	group, err := log.Seal()
	if err == nil && p.bound {
		if err := p.write(log, group); err != nil {
			logger.Warn("failed to record where the raft log ends", zap.Error(err))
		}
	}
	if err := log.Close(); err != nil {
		logger.Warn("failed to close the raft log", zap.Error(err))
	}
}

func (p *Parts) write(log *raftlog.Log, group uint64) error {
	meta := log.Metadata()
	return plainPathError(Write(p.fs, p.paths, Record{Member: meta.MemberID, Cluster: meta.ClusterID, Log: meta.LogID, Group: group}))
}

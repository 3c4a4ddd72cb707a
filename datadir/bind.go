package datadir

import (
	"errors"
	"syscall"

	"go.uber.org/zap"

	"github.com/belaydb/belay/raftlog"
)

// Bind is the last thing of a start before the member speaks: from here on no other log, nor an older copy
// of this one, passes for the one beside this store. noSync: the log is not durable either (--unsafe-no-fsync).
//
// REQUIRES: the log is open, and the store's folder is there.
func (p *Parts) Bind(log *raftlog.Log, noSync bool, logger *zap.Logger) error {
	group, err := log.Mark()
	if err != nil {
		return err
	}
	err = p.write(log, group)
	p.bound = err == nil
	if errors.Is(err, syscall.ENOSPC) && p.LeastGroup() > 0 && !noSync {
		// What is recorded still holds, and whoever makes room must be able to start the member.
		logger.Warn("the disk is full: the raft log's position was not recorded, so an older copy of the log would not be noticed", zap.Error(err))
		return nil
	}
	return err
}

// Close closes the raft log and records where it ends, if the parts were bound and as long as the
// directory is locked.
func (p *Parts) Close(log *raftlog.Log, logger *zap.Logger) {
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

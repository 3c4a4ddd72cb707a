package raftlog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// CorruptError means that the log on disk is damaged where it was durable: entries that were
// promised are lost or altered. Nothing was cut or changed.
type CorruptError struct {
	File   string
	Offset int64
	Reason string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("raftlog: %s is corrupt at offset %d: %s. "+
		"Entries that this member had acknowledged are damaged, so it must not rejoin with this data. "+
		"Nothing was changed. In a cluster with a healthy quorum: remove this member, move its data directory away, add it again. "+
		"A single member: restore a snapshot, or this file from a backup",
		e.File, e.Offset, e.Reason)
}

// IdentityError means that a directory holds the log of another member or cluster.
type IdentityError struct {
	Dir                      string
	HaveMember, HaveCluster  uint64
	WantMember, WantCluster  uint64
	HaveVersion, WantVersion uint32
}

func (e *IdentityError) Error() string {
	if e.HaveVersion != e.WantVersion {
		return fmt.Sprintf("raftlog: %s was written in format %d, and this program knows formats up to %d: run the version that wrote it, or a newer one",
			e.Dir, e.HaveVersion, e.WantVersion)
	}
	return fmt.Sprintf("raftlog: %s belongs to member %x of cluster %x, not to member %x of cluster %x: "+
		"check the data directory, --name, --initial-cluster and --initial-cluster-token",
		e.Dir, e.HaveMember, e.HaveCluster, e.WantMember, e.WantCluster)
}

// OldError means that a log ends before a group that it once held durably: it is an older copy, or
// its end is lost, and with it perhaps votes and acknowledgements. Nothing was changed.
type OldError struct {
	Dir          string
	Group, Least uint64
}

func (e *OldError) Error() string {
	return fmt.Sprintf("raftlog: the log in %s ends with group %d, but this member had it with group %d: it is an older copy, or its end is lost, "+
		"and with it votes and acknowledgements that this member may have given. Nothing was changed. "+
		"Put back the log that belongs here. If it is gone: remove this member, move its data directory away and add it again; a single member: restore a snapshot",
		e.Dir, e.Group, e.Least)
}

// UnfitError means that log and store do not go together: the store is older than what the log still
// has, or is another one's. Nothing was changed.
type UnfitError struct{ Reason string }

func (e *UnfitError) Error() string { return "raftlog: " + e.Reason }

func unfit(format string, args ...any) error {
	return &UnfitError{Reason: fmt.Sprintf(format, args...)}
}

// fileError adds the operation and the file to an error. Most file systems name the file in their
// errors as well; once is enough.
func fileError(op, path string, err error) error {
	if at := (*fs.PathError)(nil); errors.As(err, &at) && at.Path == path {
		return fmt.Errorf("raftlog: %s %s: %w", op, path, at.Err)
	}
	if link := (*os.LinkError)(nil); errors.As(err, &link) && link.Old == path {
		return fmt.Errorf("raftlog: %s %s to %s: %w", op, path, link.New, link.Err)
	}
	return fmt.Errorf("raftlog: %s %s: %w", op, path, err)
}

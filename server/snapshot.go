package server

import (
	"context"
	"encoding/json"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/auth"
	"github.com/belaydb/belay/lease"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/snapshotfile"
	"github.com/belaydb/belay/state"
)

// Snapshot streams etcd's snapshot file: the database in chunks of at most
// 32 KiB, then its SHA-256. It is of the moment of the call; the member serves
// on. See package snapshotfile for what it takes of memory and disk.
func (m *maintenanceService) Snapshot(r *pb.SnapshotRequest, stream pb.Maintenance_SnapshotServer) error {
	ctx := stream.Context()
	if err := m.authorizeAdmin(ctx); err != nil {
		return toGRPC(err)
	}
	return toGRPC(m.snapshot(ctx, stream))
}

func (m *maintenanceService) snapshot(ctx context.Context, stream pb.Maintenance_SnapshotServer) error {
	start := time.Now()
	file, err := m.ExportSnapshot(ctx)
	if err != nil {
		m.logger.Warn("failed to make a database snapshot", zap.Error(err))
		return err
	}
	defer file.Close()

	version := snapshotfile.StorageVersion
	total := file.Size()
	size := HumanBytes(total)
	m.logger.Info("sending database snapshot to client",
		zap.Int64("total-bytes", total), zap.String("size", size), zap.String("storage-version", version))
	var sent int64
	err = file.Send(func(chunk []byte, remaining int64) error {
		if sent == total {
			m.logger.Info("sending database sha256 checksum to client",
				zap.Int64("total-bytes", total), zap.Int("checksum-size", len(chunk)))
		}
		sent += int64(len(chunk))
		return stream.Send(&pb.SnapshotResponse{RemainingBytes: uint64(remaining), Blob: chunk, Version: version})
	})
	if err != nil {
		return err
	}
	m.logger.Info("successfully sent database snapshot to client",
		zap.Int64("total-bytes", total), zap.String("size", size),
		zap.Duration("took", time.Since(start)), zap.String("storage-version", version))
	return nil
}

// ExportSnapshot writes the state of now as etcd's database. The caller closes
// the file.
func (s *Server) ExportSnapshot(ctx context.Context) (*snapshotfile.File, error) {
	start := time.Now()
	view := s.kvStore.View()
	defer view.Close()
	content, err := snapshotContent(view)
	if err != nil {
		return nil, err
	}
	file, err := snapshotfile.Create(ctx, s.cfg.DataDir, content)
	if err == nil {
		s.metrics.snapshotSeconds.Observe(time.Since(start).Seconds())
	}
	return file, err
}

func snapshotContent(view *mvcc.View) (snapshotfile.Content, error) {
	r := view.Reader()
	stored, err := state.ReadStored(r)
	if err != nil {
		return snapshotfile.Content{}, err
	}
	c := snapshotfile.Content{
		ConfState:  stored.ConfState,
		Members:    stored.Members,
		Removed:    stored.Removed,
		Alarms:     stored.Alarms,
		CompactRev: view.CompactRevision(),
		Revisions:  view.Revisions,
		Leases: func(each func(id, ttl, remaining int64) error) error {
			return lease.Records(r, func(id lease.ID, ttl, remaining int64) error { return each(int64(id), ttl, remaining) })
		},
	}
	c.Auth = func(each func(bucket, name string, value []byte) error) error {
		return auth.Records(r, func(rec auth.Record) error { return each(rec.Bucket(), rec.Name(), rec.Value) })
	}
	c.Index, c.Term = view.Applied()
	if stored.Version != nil {
		c.ClusterVersion = stored.Version.String()
	}
	if stored.Downgrade != (state.Downgrade{}) {
		if c.Downgrade, err = json.Marshal(stored.Downgrade); err != nil {
			return snapshotfile.Content{}, err
		}
	}
	return c, nil
}

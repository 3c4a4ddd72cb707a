package server

import (
	"context"
	"errors"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/belaydb/belay/internal/show"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/snapshotfile"
	"github.com/belaydb/belay/state"
)

// Snapshot streams etcd's snapshot file: the database in chunks of at most
// 32 KiB, then its SHA-256. It is of the moment of the call; the member serves
// on. See package snapshotfile for what it takes of memory and disk.
func (m *maintenanceService) Snapshot(r *pb.SnapshotRequest, stream pb.Maintenance_SnapshotServer) error {
	ctx := stream.Context()
	may := m.callers.rightsOf(ctx)
	if err := may.admitIf(m.callers.adminCheck, func() {}); err != nil {
		return toGRPC(err)
	}
	return toGRPC(m.snapshot(ctx, may, stream))
}

const (
	// maxSnapshots is how many snapshot files are made and sent at a time, and maxSnapshotsWaiting
	// how many calls wait for their turn: each holds a file of the size of the database.
	maxSnapshots        = 2
	maxSnapshotsWaiting = 16
	// snapshotGrace and snapshotRate bound how long a client may take: this long, and
	// the time of the file at so many bytes a second.
	snapshotGrace = time.Minute
	snapshotRate  = 64 << 10
)

var (
	errManySnapshots = status.Error(codes.ResourceExhausted, "etcdserver: too many snapshots are being sent; try again later")
	errSlowSnapshot  = status.Error(codes.Aborted, "etcdserver: the client reads the snapshot too slowly; take it again")
)

// takeTurn waits until a snapshot file may be made; done gives the turn back.
func (m *maintenanceService) takeTurn(ctx context.Context) (done func(), err error) {
	if m.snapshotsWaiting.Add(1) > maxSnapshotsWaiting+maxSnapshots {
		m.snapshotsWaiting.Add(-1)
		return nil, errManySnapshots
	}
	done = func() { <-m.snapshots; m.snapshotsWaiting.Add(-1) }
	select {
	case m.snapshots <- struct{}{}:
		return done, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-m.life.stopped.Done():
		err = replica.ErrStopped
	}
	m.snapshotsWaiting.Add(-1)
	return nil, err
}

func (m *maintenanceService) snapshot(ctx context.Context, may *streamRights, stream pb.Maintenance_SnapshotServer) error {
	done, err := m.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer done()
	start := time.Now()
	file, err := m.export(yielding{ctx}) // it writes as it reads: a turn would wait for the disk
	if err != nil {
		if !clientGone(ctx, err) {
			m.logger.Warn("failed to make a database snapshot", zap.Error(err))
		}
		return err
	}
	defer file.Close()

	version := snapshotfile.StorageVersion
	total := file.Size()
	size := show.LogBytes(total)
	m.logger.Info("sending database snapshot to client",
		zap.Int64("total-bytes", total), zap.String("size", size), zap.String("storage-version", version))
	var sent int64
	deadline := time.Now().Add(snapshotGrace + time.Duration(total/snapshotRate)*time.Second)
	err = file.Send(func(chunk []byte, remaining int64) error {
		if sent == total {
			m.logger.Info("sending database sha256 checksum to client",
				zap.Int64("total-bytes", total), zap.Int("checksum-size", len(chunk)))
		}
		if err := may.keep(m.callers.adminCheck); err != nil {
			return err
		}
		sent += int64(len(chunk))
		return sendWithin(min(m.snapshotStall, time.Until(deadline)), func() error {
			return stream.Send(&pb.SnapshotResponse{RemainingBytes: uint64(remaining), Blob: chunk, Version: version})
		})
	})
	if errors.Is(err, errStreamStalled) {
		m.logger.Warn("gave up sending a database snapshot: the client reads too slowly",
			zap.Int64("sent-bytes", sent), zap.Int64("total-bytes", total), zap.Duration("took", time.Since(start)))
		return errSlowSnapshot
	}
	if err != nil {
		return err
	}
	m.logger.Info("successfully sent database snapshot to client",
		zap.Int64("total-bytes", total), zap.String("size", size),
		zap.Duration("took", time.Since(start)), zap.String("storage-version", version))
	return nil
}

// export writes the state of now as etcd's database. The caller closes the file.
func (m *maintenanceService) export(ctx context.Context) (*snapshotfile.File, error) {
	start := time.Now()
	view := m.kv.View()
	defer view.Close()
	stored, err := state.ReadStored(view.Reader())
	if err != nil {
		return nil, err
	}
	content, err := snapshotfile.ContentOf(view, stored)
	if err != nil {
		return nil, err
	}
	file, err := snapshotfile.Create(ctx, m.dataDir, content)
	if err == nil {
		m.metrics.snapshotSeconds.Observe(time.Since(start).Seconds())
	}
	return file, err
}

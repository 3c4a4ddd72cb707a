package node

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/belaydb/belay/backup"
	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/timemap"
)

// scratchFolder is where backups are restored to be proved, in the member's folder or in
// --backup-scratch-dir; there other members may have theirs.
const scratchFolder = "backup-scratch"

// makeBackups builds what makes backups; it is nil if none are to be made, or the member has no files.
func (n *Node) makeBackups() error {
	s := n.cfg.Backup
	if s.To == "" || !n.cfg.onDisk() {
		return nil
	}
	depot, err := s.Open("backup-to", datadir.FS())
	if err != nil {
		return err
	}
	disk, scratch := n.cfg.paths().Member, filepath.Join(n.cfg.paths().Member, scratchFolder)
	if s.ScratchDir != "" {
		disk, scratch = s.ScratchDir, filepath.Join(s.ScratchDir, fmt.Sprintf("%s-%016x", scratchFolder, n.id.Member))
	}
	n.backups = backup.New(s, backup.Env{
		Origin: backup.Origin{Cluster: n.id.Cluster, Member: n.id.Member, MemberName: n.cfg.Name}, Depot: depot,
		View: n.kv.View, Applied: n.replica.AppliedIndex, Leading: n.replica.IsLeader, Changed: n.replica.LeaderChanged, Times: sightings(&n.times),
		Scratch: func(ctx context.Context, dir string, r *backup.Reading, look func(*mvcc.View, int) error) error {
			return datadir.Scratch(ctx, dir, r, look)
		},
		ScratchDir: scratch,
		Free: func() (uint64, error) {
			usage, err := vfs.Default.GetDiskUsage(disk)
			if err != nil {
				return 0, fmt.Errorf("the disk of the scratch store, %s (see --backup-scratch-dir): %w", disk, err)
			}
			return usage.AvailBytes, nil
		},
		Logger: n.logger, Metrics: backup.NewMetrics(n.registry),
	})
	return nil
}

// backupsPage answers about backups; nil: there are none.
func backupsPage(m *backup.Maker) http.Handler {
	if m == nil {
		return nil // and not an interface that holds a nil
	}
	return m
}

// startBackups begins the schedule. It counts among the readers of the store, which is closed after
// them.
func (n *Node) startBackups() {
	if n.backups == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-n.stop; cancel() }()
	n.snapshots.Go(func() { n.backups.Run(ctx) })
}

// sightings says when this member saw which revision, since a time; nothing before it serves.
func sightings(times *atomic.Pointer[timemap.Keeper]) func(after time.Time) []backup.Sighting {
	return func(after time.Time) (s []backup.Sighting) {
		if k := times.Load(); k != nil {
			for _, p := range k.Since(after) {
				s = append(s, backup.Sighting(p))
			}
		}
		return s
	}
}

package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/belaydb/belay/backup"
	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/peers"
	"github.com/belaydb/belay/replica"
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
		if err := os.MkdirAll(s.ScratchDir, 0o700); err != nil { // no backup could be called good
			return fmt.Errorf("--backup-scratch-dir: %w", err)
		}
		disk, scratch = s.ScratchDir, filepath.Join(s.ScratchDir, fmt.Sprintf("%s-%016x", scratchFolder, n.id.Member))
	}
	turns := backupTurns{own: n.id.Member, members: n.state.Members, client: n.transport.Client, urls: n.peerURLs}
	n.backups = backup.New(s, backup.Env{
		Origin: backup.Origin{Cluster: n.id.Cluster, Member: n.id.Member, MemberName: n.cfg.Name}, Depot: depot,
		View: n.kv.View, Applied: n.replica.AppliedIndex, Leading: n.replica.IsLeader, Changed: n.replica.LeaderChanged, Times: sightings(&n.times),
		Leader:   func() (id, term uint64) { s := n.replica.Status(); return s.Leader, s.Term },
		Deputies: turns.deputies, Unwell: func() string { return unwell(n.replica.Disk()) },
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

// backupTurns asks the other members to make backups, over their peer ports.
type backupTurns struct {
	own     uint64
	members func() []*command.Member
	client  func() *http.Client
	urls    func(id uint64) []string
}

// deputies are the other members, as those who may make a backup for this one. An etcd, and a Belay
// that makes none, answer 404.
func (b backupTurns) deputies() (list []backup.Deputy) {
	for _, m := range b.members() {
		if m.ID == b.own || m.Name == "" {
			continue
		}
		list = append(list, backup.Deputy{ID: m.ID, Name: m.Name, Ask: func(ctx context.Context, q backup.TurnQuestion) (a backup.TurnAnswer, err error) {
			body, err := json.Marshal(q)
			if err != nil {
				return a, err
			}
			question := peers.Question{Method: http.MethodPost, Path: peers.PathBackup, Body: body, MaxAnswer: backup.MaxTurnBytes}
			err, heard := peers.ErrNoURL, false
			for _, u := range b.urls(m.ID) {
				var got peers.Answer
				if got, err = peers.At(ctx, b.client(), u, question); err == nil {
					if got.Status == http.StatusNotFound {
						return backup.TurnAnswer{Refused: "it makes no backups"}, nil
					}
					return a, errors.Join(got.OK(), json.Unmarshal(got.Body, &a))
				}
				op, ok := errors.AsType[*net.OpError](err)
				heard = heard || !ok || op.Op != "dial"
			}
			if !heard {
				err = backup.NotAsked(err)
			}
			return a, err
		}})
	}
	return list
}

// unwell is why a member with these disks should make no backup for the leader; "": nothing.
func unwell(d replica.DiskReport) string {
	switch {
	case d.State != replica.DiskHealthy:
		return "the disk of its log is " + d.State.String()
	case d.Store != replica.DiskHealthy:
		return "the disk of its store is " + d.Store.String()
	}
	return ""
}

// registerBackups serves the leader, which may have this member make a backup; m nil: it makes none.
func registerBackups(m *backup.Maker, mux *peers.Mux) {
	if m == nil {
		return
	}
	mux.Handle(peers.PathBackup, http.MethodPost, peers.NamedMembers, func(w http.ResponseWriter, r *http.Request) {
		body, ok := peers.ReadQuestion(w, r, backup.MaxTurnBytes)
		if !ok {
			return
		}
		var q backup.TurnQuestion
		from, err := strconv.ParseUint(r.Header.Get(peers.HeaderFrom), 16, 64)
		if err := errors.Join(err, json.Unmarshal(body, &q)); err != nil || q.ID == "" {
			http.Error(w, "error unmarshalling request", http.StatusBadRequest)
			return
		}
		peers.AnswerJSON(w, m.Turn(from, q))
	})
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

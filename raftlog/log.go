package raftlog

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// Metadata says whose log a directory holds.
type Metadata struct {
	Version   uint32
	MemberID  uint64
	ClusterID uint64
}

// Options of Open. Zero values mean the default.
type Options struct {
	FS                  vfs.FS // default vfs.Default
	SegmentBytes        int64  // default 64 MiB
	MemoryBytes         int64  // default 256 MiB: bound of what Open reads into memory
	MemberID, ClusterID uint64
	Logger              *zap.Logger
	Metrics             *Metrics
	NoSync              bool                    // never fsync: --unsafe-no-fsync
	Released            func([]*raftpb.Message) // called by the writer goroutine, in order
	Failed              func(error)             // called once by the writer goroutine
}

// Append is one step of the log.
type Append struct {
	HardState *raftpb.HardState
	Entries   []*raftpb.Entry
	Snapshot  *raftpb.Snapshot
	Install   func() error
	Responses []*raftpb.Message
}

// Unsynced is what the disk does not have yet.
type Unsynced struct {
	Bytes   int64
	Entries int
	Oldest  time.Duration // age of the oldest append not yet durable; 0 if none
}

// Metrics of the log, with etcd's names.
type Metrics struct{}

// NewMetrics registers the metrics; reg may be nil.
func NewMetrics(reg prometheus.Registerer) *Metrics { return &Metrics{} }

// Log is the durable log and its tail in memory.
type Log struct{}

var errFace = errors.New("raftlog: not built yet")

var _ raft.Storage = (*Log)(nil)

func Open(dir string, opts Options) (*Log, error)        { return nil, errFace }
func Peek(dir string, fs vfs.FS) (Metadata, bool, error) { return Metadata{}, false, errFace }
func Inspect(dir string, fs vfs.FS, w io.Writer) error   { return errFace }
func (l *Log) Adopt(index, term uint64, cs *raftpb.ConfState) (replaced bool, err error) {
	return false, errFace
}
func (l *Log) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) { return nil, nil, errFace }
func (l *Log) Entries(lo, hi, maxSize uint64) ([]*raftpb.Entry, error)     { return nil, errFace }
func (l *Log) Term(i uint64) (uint64, error)                               { return 0, errFace }
func (l *Log) FirstIndex() (uint64, error)                                 { return 0, errFace }
func (l *Log) LastIndex() (uint64, error)                                  { return 0, errFace }
func (l *Log) Snapshot() (*raftpb.Snapshot, error)                         { return nil, errFace }
func (l *Log) SetConfState(cs *raftpb.ConfState)                           {}
func (l *Log) SetSnapshotMeta(index, term uint64, cs *raftpb.ConfState)    {}
func (l *Log) Append(a Append)                                             {}
func (l *Log) Unsynced() Unsynced                                          { return Unsynced{} }
func (l *Log) Compact(durable uint64, keepBytes int64) error               { return errFace }
func (l *Log) Sync(ctx context.Context) error                              { return errFace }
func (l *Log) Close() error                                                { return errFace }
func (l *Log) Bytes() (mem, disk int64)                                    { return 0, 0 }

package node

import (
	"io"
	"time"

	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"

	"github.com/belaydb/belay/neighbours"
)

// keepNeighbours begins the record of who writes to the log's disk. Without it the member goes on:
// it is for people alone.
func (n *Node) keepNeighbours() {
	if n.cfg.NeighboursRecordBytes == 0 || !n.cfg.onDisk() {
		return
	}
	target, err := neighbours.Self(n.cfg.paths().Log)
	if err == nil {
		n.neighbours, err = neighbours.Keep(neighbours.KeepOptions{
			Dir: n.cfg.paths().Member, Bytes: n.cfg.NeighboursRecordBytes, Target: target, Fsyncs: n.fsyncs,
			Failed: func(err error) { n.logger.Warn("cannot record who writes to the disk", zap.Error(err)) },
		})
	}
	if err != nil {
		n.logger.Warn("cannot record who writes to the disk", zap.Error(err))
	}
}

// tellNeighbours is what /debug/belay/neighbours serves.
func (n *Node) tellNeighbours(w io.Writer, since time.Time) error {
	if n.neighbours == nil {
		return nil
	}
	return n.neighbours.Tell(w, since)
}

// fsyncs are those of the raft log, as /metrics tells them.
func (n *Node) fsyncs() (all neighbours.Fsync, stuck time.Duration) {
	families, _ := n.registry.Gather() // what could be gathered
	for _, f := range families {
		if len(f.GetMetric()) == 0 {
			continue
		}
		switch m := f.GetMetric()[0]; f.GetName() {
		case "etcd_disk_wal_fsync_duration_seconds":
			all = fsyncsOf(m.GetHistogram())
		case "belay_disk_sync_oldest_seconds":
			stuck = time.Duration(m.GetGauge().GetValue() * float64(time.Second))
		}
	}
	return all, stuck
}

func fsyncsOf(h *dto.Histogram) (f neighbours.Fsync) {
	f.Sum = h.GetSampleSum()
	seen := uint64(0)
	for _, b := range h.GetBucket() {
		if c := b.GetCumulativeCount(); c > seen {
			f.Upper, f.Count = append(f.Upper, b.GetUpperBound()), append(f.Count, float64(c-seen))
			seen = c
		}
	}
	if over := h.GetSampleCount(); over > seen {
		f.Upper, f.Count = append(f.Upper, 0), append(f.Count, float64(over-seen))
	}
	return f
}

package ctl

import (
	"context"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/belaydb/belay/cli/doctor/live"
	"github.com/belaydb/belay/cli/doctor/metrics"
)

// wideTimeout bounds the question for a member's metrics, which may be elsewhere (--metrics-urls).
const wideTimeout = 2 * time.Second

// wideStatus is what a member's metrics tell beside its status. What they have not is nil or "".
type wideStatus struct {
	LeaderChanges *int     `json:"leader_changes,omitempty"` // that it has seen since it started
	Disk          string   `json:"disk,omitempty"`           // healthy, slow, stalled or dead; of Belay
	DiskState     *int     `json:"disk_state,omitempty"`     // the same as a number, 0 to 3
	FsyncP99      *float64 `json:"fsync_p99_seconds,omitempty"`
	Error         string   `json:"error,omitempty"` // why there are no metrics
}

// wideAsker asks members for their metrics.
type wideAsker struct {
	asker *live.Asker
	// all: what any member has, and why one does not answer; otherwise only of Belay, so that what
	// is printed for an etcd is what etcdctl prints.
	all bool
}

// widely is nil where nobody wants to know.
func (o *output) widely(spec *clientv3.ConfigSpec, wide bool, urls []string, timeout time.Duration) (*wideAsker, error) {
	if !wide && o.format != "json" {
		return nil, nil
	}
	cfg, err := clientv3.NewClientConfig(spec, zap.NewNop())
	if err != nil {
		return nil, fail(codeBadArgs, err)
	}
	return &wideAsker{live.NewAsker(live.Options{Client: cfg, Metrics: urls, Timeout: min(timeout, wideTimeout)}), wide}, nil
}

func (w *wideAsker) close() {
	if w != nil {
		w.asker.Close()
	}
}

// ask returns nil for who is not to be told of.
func (w *wideAsker) ask(ctx context.Context, ep string, id uint64) *wideStatus {
	if w == nil {
		return nil
	}
	s, err := w.asker.Scrape(ctx, &live.Member{ID: id, Endpoint: ep})
	switch {
	case err != nil && w.all:
		return &wideStatus{Error: live.Plain(err)}
	case err != nil || !w.all && !s.Has("belay_disk_state"):
		return nil
	}
	return wideOf(s)
}

func wideOf(s *metrics.Scrape) *wideStatus {
	var w wideStatus
	if n, ok := s.Value("etcd_server_leader_changes_seen_total"); ok {
		changes := int(n)
		w.LeaderChanges = &changes
	}
	if state, word, ok := live.DiskState(s); ok {
		w.Disk, w.DiskState = word, &state
	}
	if h, ok := s.Histogram("etcd_disk_wal_fsync_duration_seconds"); ok && h.Count > 0 {
		p99, _ := h.Quantile(0.99)
		w.FsyncP99 = &p99
	}
	return &w
}

// wideColumns are those of `endpoint status -w table --wide`.
var wideColumns = []string{"leader changes", "disk", "fsync p99"}

func (w *wideStatus) row() []string {
	row := []string{"-", "-", "-"}
	switch {
	case w == nil:
		return row
	case w.Error != "":
		row[1] = "no metrics: " + w.Error
		return row
	}
	if w.LeaderChanges != nil {
		row[0] = strconv.Itoa(*w.LeaderChanges)
	}
	if w.Disk != "" {
		row[1] = w.Disk
	}
	if w.FsyncP99 != nil {
		row[2] = metrics.Seconds(*w.FsyncP99)
	}
	return row
}

// fields are the lines of `-w fields --wide`.
func (w *wideStatus) fields(p *page) {
	for i, text := range w.row() {
		p.quoted([]string{"LeaderChanges", "Disk", "FsyncP99"}[i], text)
	}
}

// wideFlags are those of endpoint status.
func wideFlags(cmd *cobra.Command) (wide *bool, urls *[]string) {
	wide = cmd.Flags().Bool("wide", false, "with leader changes, the state of the disk and the p99 of its fsyncs, from the members' metrics")
	urls = cmd.Flags().StringSlice("metrics-urls", nil, "with --wide and -w json: where members answer /metrics, if not on their client URLs")
	return wide, urls
}

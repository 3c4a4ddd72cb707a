// Package disk measures how fast a directory's disk makes small writes durable, as etcd's and
// Belay's logs need it: one write after the other, each followed by an fdatasync, into a file that
// was laid out before. That is what fio does with --rw=write --ioengine=sync --fdatasync=1.
//
// Files: disk.go (measuring, judging), sync_linux.go and sync_other.go (the system calls).
package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/belaydb/belay/cli/doctor/metrics"
	"github.com/belaydb/belay/cli/doctor/report"
)

// Options bound a measurement.
type Options struct {
	Dir   string
	Block int           // bytes of each write
	Bytes int64         // at most so much is written in all
	For   time.Duration // at most for so long
	Rate  int           // at most so many writes a second; 0: as many as the disk takes
}

// A Result is what was measured.
type Result struct {
	Dir     string        `json:"dir"`
	Block   int           `json:"block_bytes"`
	Writes  int           `json:"writes"`
	Rate    int           `json:"rate_limit,omitempty"` // writes a second; 0: none
	Took    time.Duration `json:"-"`
	Seconds float64       `json:"seconds"`
	IOPS    float64       `json:"iops"` // of what the disk would do: writes by the time that write and sync took
	Mean    float64       `json:"mean_seconds"`
	P50     float64       `json:"p50_seconds"` // of fdatasync alone, as fio tells it
	P90     float64       `json:"p90_seconds"`
	P99     float64       `json:"p99_seconds"`
	P999    float64       `json:"p99_9_seconds"`
	Max     float64       `json:"max_seconds"`
	syncs   []time.Duration
}

// Member is the member directory that dir is or lies in, of etcd or Belay; "" if there is none. A
// running member shares its disk with the measurement then.
func Member(dir string) string {
	at, err := filepath.Abs(dir)
	if err != nil {
		return ""
	}
	for {
		if info, err := os.Stat(filepath.Join(at, "member")); err == nil && info.IsDir() {
			return at
		}
		up := filepath.Dir(at)
		if up == at {
			return ""
		}
		at = up
	}
}

// Measure writes into a file of its own in o.Dir. The file has no name while it is written, where
// the system can do that, so nothing is left behind however the process ends. If ctx ends, so does
// the measurement, with what it has.
func Measure(ctx context.Context, o Options) (*Result, error) {
	info, err := os.Stat(o.Dir)
	switch {
	case err != nil:
		return nil, err
	case !info.IsDir():
		return nil, fmt.Errorf("%s is no directory: name one on the disk to measure", o.Dir)
	case o.Block <= 0 || o.Bytes < int64(o.Block) || o.For <= 0:
		return nil, errors.New("nothing may be written: block, size and time must be more than 0, and size at least a block")
	}
	f, err := os.CreateTemp(o.Dir, ".belay-doctor-*")
	if path := new(fs.PathError); errors.As(err, &path) {
		return nil, fmt.Errorf("no file can be made in %s: %w", o.Dir, path.Err)
	}
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name()) // again, where it could not be done while the file is open
	defer f.Close()
	_ = os.Remove(f.Name())
	size := o.Bytes / int64(o.Block) * int64(o.Block)
	if err := layOut(f, size); err != nil {
		return nil, fmt.Errorf("laying out %d bytes in %s: %w", size, o.Dir, err)
	}
	block := make([]byte, o.Block)
	for i := range block {
		block[i] = byte(i*7 + i>>8) // not zeros: some devices spare themselves those
	}
	r := &Result{Dir: o.Dir, Block: o.Block, Rate: o.Rate}
	begin := time.Now()
	var busy time.Duration
	for at := int64(0); at < size && time.Since(begin) < o.For && ctx.Err() == nil; at += int64(o.Block) {
		if o.Rate > 0 {
			due := begin.Add(time.Duration(len(r.syncs)) * time.Second / time.Duration(o.Rate))
			select {
			case <-ctx.Done():
				continue
			case <-time.After(time.Until(due)):
			}
		}
		one := time.Now()
		if _, err := f.WriteAt(block, at); err != nil {
			return nil, err
		}
		written := time.Now()
		if err := syncData(f); err != nil {
			return nil, fmt.Errorf("fdatasync in %s: %w", o.Dir, err)
		}
		end := time.Now()
		r.syncs = append(r.syncs, end.Sub(written))
		busy += end.Sub(one)
	}
	r.Took = time.Since(begin)
	r.sum(busy)
	return r, nil
}

// sum makes the figures of r.syncs; busy is what writes and syncs took together.
func (r *Result) sum(busy time.Duration) {
	r.Writes, r.Seconds = len(r.syncs), r.Took.Seconds()
	if len(r.syncs) == 0 {
		return
	}
	sorted := slices.Sorted(slices.Values(r.syncs))
	at := func(q float64) float64 {
		return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)].Seconds()
	}
	r.P50, r.P90, r.P99, r.P999, r.Max = at(0.5), at(0.9), at(0.99), at(0.999), sorted[len(sorted)-1].Seconds()
	for _, d := range sorted {
		r.Mean += d.Seconds() / float64(len(sorted))
	}
	if busy > 0 {
		r.IOPS = float64(len(r.syncs)) / busy.Seconds()
	}
}

// What a disk should do: etcd's hardware guide asks for 50 sequential IOPS, and 500 for loaded
// clusters; its fsyncs should take less than 10 ms, 99 of 100.
const (
	iopsLeast, iopsLoaded = 50, 500
	p99Most               = 0.010
)

// Judge makes the report of a result. member is the member directory beside which was measured, or "".
func Judge(r *Result, at time.Time, member string) *report.Report {
	rep := &report.Report{Command: "doctor disk", Subject: r.Dir, At: at, Data: r}
	if r.Writes < 20 {
		rep.Blind = r.Writes == 0
		rep.Add(report.Finding{
			ID: "disk-too-few", Severity: report.Critical, Confidence: report.Likely,
			What: "Hardly a write was done in the time.", Evidence: []string{fmt.Sprintf("%d in %s", r.Writes, metrics.Seconds(r.Seconds))},
			Why: "A member on this disk promises hardly anything.", Do: []string{"see the kernel's log for errors of the device", "give it more time: --for"},
		})
		return rep
	}
	evidence := []string{
		fmt.Sprintf("%.0f writes a second of %d bytes, each made durable", r.IOPS, r.Block),
		fmt.Sprintf("fdatasync p50 %s, p99 %s, p99.9 %s, max %s", metrics.Seconds(r.P50), metrics.Seconds(r.P99), metrics.Seconds(r.P999), metrics.Seconds(r.Max)),
	}
	do := []string{"see what else writes to this disk", "a local SSD with protection against power loss is as a rule ten times as fast as a network volume"}
	f := report.Finding{ID: "disk-fast", Severity: report.Good, Confidence: report.Certain, Evidence: evidence, What: "The disk is fast enough for a loaded cluster."}
	switch {
	case r.IOPS < iopsLeast:
		f = report.Finding{ID: "disk-too-slow", Severity: report.Critical, What: fmt.Sprintf("The disk is too slow: under %d durable writes a second.", iopsLeast), Why: "etcd loses its leader on such disks even when it has little to do.", Do: do}
	case r.P99 > p99Most:
		f = report.Finding{ID: "disk-uneven", Severity: report.Warning, What: fmt.Sprintf("One fdatasync of a hundred takes more than %s.", metrics.Seconds(p99Most)), Why: "A write waits for the slowest of a quorum; on etcd, heartbeats wait as well.", Do: do}
	case r.IOPS < iopsLoaded:
		f = report.Finding{ID: "disk-modest", Severity: report.Warning, What: fmt.Sprintf("The disk does for a small cluster: under %d durable writes a second.", iopsLoaded), Why: "Under load, writes will wait for it.", Do: do}
	}
	f.Evidence, f.Confidence = evidence, report.Certain
	rep.Add(f)
	if member != "" {
		rep.Summary = append(rep.Summary, fmt.Sprintf("A member has its data in %s, so little was written, and slowly: what it writes itself is in these figures, and no more than --rate a second was tried. For what the disk can do, measure while no member runs, with --rate 0.", member))
	}
	rep.Tables = []report.Table{{
		Title: "Sync latencies", Header: []string{"writes", "mean", "p50", "p90", "p99", "p99.9", "max", "writes/s"},
		Rows:  [][]string{{fmt.Sprint(r.Writes), metrics.Seconds(r.Mean), metrics.Seconds(r.P50), metrics.Seconds(r.P90), metrics.Seconds(r.P99), metrics.Seconds(r.P999), metrics.Seconds(r.Max), fmt.Sprintf("%.0f", r.IOPS)}},
		Notes: []string{fmt.Sprintf("as fio --rw=write --ioengine=sync --fdatasync=1 --bs=%d --size=%d would tell", r.Block, int64(r.Writes)*int64(r.Block))},
	}}
	return rep
}

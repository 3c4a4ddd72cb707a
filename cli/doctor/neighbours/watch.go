package neighbours

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/belaydb/belay/cli/doctor/metrics"
	"github.com/belaydb/belay/neighbours"
)

const (
	fsyncMetric  = "etcd_disk_wal_fsync_duration_seconds"
	oldestMetric = "belay_disk_sync_oldest_seconds"
	// maxMetrics is how much of an answer is read, bytes.
	maxMetrics    = 32 << 20
	scrapeTimeout = 2 * time.Second
	// keptSamples bounds the memory of a look: 6 h by the second become two hours' worth of samples.
	keptSamples = 8192
)

// Options say what to look at.
type Options struct {
	Target  neighbours.Target
	Metrics string // URL of the member's /metrics; empty: it is found by the ports of its process
	HTTP    *http.Client
	Every   time.Duration
	For     time.Duration
	Save    io.Writer // gets a record of all samples; nil: none
}

// Watch looks at a disk until o.For has passed or ctx ends, and returns what it saw. missing is why
// nothing is known of the member's fsyncs; empty: it is.
func Watch(ctx context.Context, o Options) (samples []neighbours.Sample, missing string, err error) {
	w := watcher{save: o.Save, log: neighbours.Log{Limit: keptSamples}, member: member{url: o.Metrics, http: o.HTTP}}
	if w.collector, err = neighbours.New(o.Target); err != nil {
		return nil, "", err
	}
	if o.Metrics == "" {
		w.find = func(ctx context.Context) (string, string) { return findMetrics(ctx, o) }
	}
	tick := time.NewTicker(o.Every)
	defer tick.Stop()
	begin := time.Now()
	for {
		if err := w.look(ctx, time.Now); err != nil {
			return nil, "", err
		}
		if time.Since(begin) >= o.For {
			return w.log.Samples(), w.missing, nil
		}
		select {
		case <-ctx.Done():
			return w.log.Samples(), w.missing, nil
		case <-tick.C:
		}
	}
}

// A watcher puts together what the machine and the member tell.
type watcher struct {
	collector *neighbours.Collector
	member    member
	log       neighbours.Log
	save      io.Writer
	missing   string // why nothing is known of the member's fsyncs
	// find looks for the member's /metrics, now and then while it has no URL: a member that has just
	// been started, or is busy, may answer later. nil: it has been given.
	find  func(context.Context) (url, missing string)
	looks int
}

// look takes one sample; the first only remembers.
func (w *watcher) look(ctx context.Context, now func() time.Time) error {
	var f neighbours.Fsync
	var stuck time.Duration
	if w.member.url == "" && w.find != nil && w.looks%10 == 0 {
		w.member.url, w.missing = w.find(ctx)
	}
	w.looks++
	if w.member.url != "" {
		var err error
		f, stuck, err = w.member.since(ctx)
		switch {
		case w.member.before != nil: // once is enough: it may be down for a while
			w.missing = ""
		case err != nil && ctx.Err() == nil:
			w.missing = err.Error()
		}
	}
	s, ok, err := w.collector.Look(now())
	if err != nil || !ok {
		return err
	}
	s.Fsync, s.Stuck = f, stuck
	w.log.Add(s)
	if w.save == nil {
		return nil
	}
	if err := (neighbours.Recorder{W: w.save}).Add(s); err != nil {
		return fmt.Errorf("keeping the samples: %w", err)
	}
	return nil
}

// findMetrics tries the ports on which the member listens.
func findMetrics(ctx context.Context, o Options) (url, missing string) {
	if o.Target.PID == 0 {
		return "", "no process has a log in this directory open"
	}
	ports := neighbours.Ports(o.Target.PID)
	schemes := []string{"http", "https"}
	for _, port := range ports {
		for _, scheme := range schemes {
			m := member{url: scheme + "://" + port + "/metrics", http: o.HTTP}
			if _, _, err := m.since(ctx); err == nil {
				return m.url, ""
			}
		}
	}
	if len(ports) == 0 {
		return "", "the ports of the member's process cannot be seen"
	}
	return "", "none of the ports on which the member listens answers /metrics: " + strings.Join(ports, ", ")
}

// A member is asked for its fsyncs.
type member struct {
	url    string
	http   *http.Client
	before *metrics.Histogram // of the last answer
}

// since are the fsyncs that ended since the last answer, none the first time, and the age of Belay's
// oldest sync in flight.
func (m *member) since(ctx context.Context) (f neighbours.Fsync, stuck time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, scrapeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.url, nil)
	if err != nil {
		return f, 0, err
	}
	resp, err := m.http.Do(req)
	if err != nil {
		return f, 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return f, 0, fmt.Errorf("%s answers %s", m.url, resp.Status)
	}
	// Only what is needed is parsed: the rest is a hundred times as much, each second.
	var few bytes.Buffer
	lines := bufio.NewScanner(io.LimitReader(resp.Body, maxMetrics))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if line := lines.Bytes(); bytes.Contains(line, []byte(fsyncMetric)) || bytes.Contains(line, []byte(oldestMetric)) {
			few.Write(line)
			few.WriteByte('\n')
		}
	}
	if err := lines.Err(); err != nil {
		return f, 0, err
	}
	s, err := metrics.Parse(&few, time.Now())
	if err != nil {
		return f, 0, err
	}
	h, ok := s.Histogram(fsyncMetric)
	if !ok {
		return f, 0, errors.New(m.url + " has no " + fsyncMetric)
	}
	if oldest, ok := s.Value(oldestMetric); ok && oldest > 0 && oldest < 1e6 {
		stuck = time.Duration(oldest * float64(time.Second))
	}
	if m.before != nil {
		if diff, ok := h.Since(*m.before); ok {
			f = fsyncOf(diff)
		} else {
			f = fsyncOf(h) // it was started anew
		}
	}
	m.before = &h
	return f, stuck, nil
}

// fsyncOf keeps the buckets that hold something.
func fsyncOf(h metrics.Histogram) neighbours.Fsync {
	f := neighbours.Fsync{Sum: h.Sum}
	seen := 0.0
	for _, b := range h.Buckets {
		if n := b.Count - seen; n > 0 {
			upper := b.Upper
			if math.IsInf(upper, 1) {
				upper = 0
			}
			f.Upper, f.Count = append(f.Upper, upper), append(f.Count, n)
		}
		seen = b.Count
	}
	return f
}

// Package histogram reads latency histograms of members as their operators would: what each is,
// where its percentiles lie, whether it has one face or two, and whether it is well.
//
// Files: histogram.go (series and their verdicts), prometheus.go (series from a Prometheus server).
package histogram

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/belaydb/belay/cli/doctor/metrics"
	"github.com/belaydb/belay/cli/doctor/report"
)

// A Kind is a metric that is known, with what is slow and what is bad for its p99, seconds.
type Kind struct {
	Metric    string
	Name      string // in a few words
	Slow, Bad float64
	Why       string
	Do        string // where to look if it is slow
}

// Kinds are those that doctor shows by itself. The bounds of the disks are those of etcd's hardware
// guide and alerts; that of the round trips is half the default heartbeat interval.
var Kinds = []Kind{
	{"etcd_disk_wal_fsync_duration_seconds", "fsync of the log", 0.010, 0.5, "every write waits for a quorum of these", seeDisk},
	{"etcd_disk_backend_commit_duration_seconds", "commit of the database", 0.025, 0.25, "requests wait while the database is written", seeDisk},
	{"etcd_network_peer_round_trip_time_seconds", "round trip to a peer", 0.050, 0.25, "every write waits for one to a quorum; an election timeout should be ten of them", "see what else uses that link at those times, and the CPU of both ends"},
}

const seeDisk = "see what else uses that disk at those times"

// more are known besides, and shown when they are asked for: belay's loop is late from a default
// heartbeat interval on, and the alert LoopLate fires at half an election timeout.
var more = []Kind{
	{"belay_loop_delay_seconds", "lateness of the raft loop's ticks", 0.1, 0.5, "heartbeats and elections wait for these",
		"see the CPU of that machine (limits and throttling, steal time, swapping), and what stops the process"},
}

// KindOf knows a metric by its name; others have no bounds.
func KindOf(metric string) Kind {
	for _, k := range slices.Concat(Kinds, more) {
		if k.Metric == metric {
			return k
		}
	}
	return Kind{Metric: metric, Name: metric, Slow: math.Inf(1), Bad: math.Inf(1)}
}

// Level judges h by its p99: 0 well, 1 slow, 2 bad. Of few observations one alone makes a p99; two
// that are bad, or three that are slow, are no accident.
func (k Kind) Level(h metrics.Histogram) int {
	p99, _ := h.Quantile(0.99)
	over := func(bound float64) (n float64) {
		n = h.Count
		for _, b := range h.Buckets {
			if b.Upper <= bound {
				n = h.Count - b.Count
			}
		}
		return n
	}
	switch {
	case p99 >= k.Bad && over(k.Bad) >= 2:
		return 2
	case p99 >= k.Slow && over(k.Slow) >= 3:
		return 1
	}
	return 0
}

// TwoFaces tells whether h is of a thing that is well as a rule and has something in its way at
// times: few are in the last mode, and took four times as long as half of all at least.
func TwoFaces(h metrics.Histogram) (first, last metrics.Mode, ok bool) {
	modes := h.Modes()
	if len(modes) < 2 || h.Count < 100 {
		return first, last, false
	}
	first, last = modes[0], modes[len(modes)-1]
	p50, _ := h.Quantile(0.5)
	return first, last, last.Count < h.Count/4 && last.Low >= 4*p50
}

// A Series is one histogram.
type Series struct {
	Kind   Kind
	Source string // a member, an endpoint, a file
	Peer   string // for round trips; empty: none
	Over   string // "in 5.0 s", "since its start"
	H      metrics.Histogram
}

// few is how many observations a verdict needs at least.
const few = 20

// State is ok, slow, bad or few; "-" if nobody knows what is slow.
func (s Series) State() string {
	switch {
	case s.H.Count < few:
		return "few"
	case math.IsInf(s.Kind.Slow, 1):
		return "-"
	}
	return []string{"ok", "slow", "bad"}[s.Kind.Level(s.H)]
}

func (s Series) name() string {
	if s.Peer != "" {
		return s.Source + " to " + s.Peer
	}
	return s.Source
}

// row is a series for scripts.
type row struct {
	Metric string  `json:"metric"`
	Source string  `json:"source"`
	Peer   string  `json:"peer,omitempty"`
	Over   string  `json:"over"`
	Count  float64 `json:"count"`
	Sum    float64 `json:"sum_seconds"`
	Mean   float64 `json:"mean_seconds"`
	P50    float64 `json:"p50_seconds"`
	P90    float64 `json:"p90_seconds"`
	P99    float64 `json:"p99_seconds"`
	Beyond bool    `json:"p99_beyond_last_bucket,omitempty"` // it is more than P99
	State  string  `json:"state"`
	Modes  int     `json:"modes"`
}

// Judge makes the report of series.
func Judge(subject string, at time.Time, all []Series) *report.Report {
	r := &report.Report{Command: "doctor histogram", Subject: subject, At: at}
	var data []row
	observed := false
	for _, kind := range kindsOf(all) {
		table := report.Table{Title: fmt.Sprintf("%s (%s)", kind.Name, kind.Metric), Header: []string{"member", "count", "sum", "mean", "p50", "p90", "p99", "state"}}
		if !math.IsInf(kind.Slow, 1) {
			table.Notes = []string{fmt.Sprintf("slow from a p99 of %s on, bad from %s; percentiles are found between the bounds of buckets, and are as exact as these", metrics.Seconds(kind.Slow), metrics.Seconds(kind.Bad))}
		}
		for _, s := range all {
			if s.Kind.Metric != kind.Metric {
				continue
			}
			state := s.State()
			observed = observed || state != "few"
			table.Rows = append(table.Rows, []string{
				s.name(), fmt.Sprintf("%.0f", s.H.Count), metrics.Seconds(s.H.Sum), metrics.Seconds(s.H.Mean()),
				s.H.QuantileText(0.5), s.H.QuantileText(0.9), s.H.QuantileText(0.99), state,
			})
			d := row{Metric: kind.Metric, Source: s.Source, Peer: s.Peer, Over: s.Over, Count: s.H.Count, Sum: s.H.Sum, Mean: s.H.Mean(), State: state, Modes: len(s.H.Modes())}
			if s.H.Count > 0 {
				d.P50, _ = s.H.Quantile(0.5)
				d.P90, _ = s.H.Quantile(0.9)
				d.P99, d.Beyond = s.H.Quantile(0.99)
			}
			data = append(data, d)
			if state != "few" {
				r.Charts = append(r.Charts, chart(s))
			}
			s.judge(r, state)
		}
		r.Tables = append(r.Tables, table)
	}
	r.Data = data
	if !observed {
		r.Blind = true
		r.Add(report.Finding{ID: "histogram-few", Severity: report.Unknown, Confidence: report.Certain, What: "Next to nothing was observed.",
			Evidence: []string{fmt.Sprintf("fewer than %d observations in each of %d histograms", few, len(all))}, Do: []string{"look for longer (--between), or under load; without --between at all since the start"}})
	}
	return r
}

// kindsOf are the kinds of series, in the order of Kinds, then of appearance.
func kindsOf(all []Series) (kinds []Kind) {
	seen := map[string]bool{}
	for _, k := range Kinds {
		for _, s := range all {
			if s.Kind.Metric == k.Metric && !seen[k.Metric] {
				seen[k.Metric] = true
				kinds = append(kinds, k)
			}
		}
	}
	for _, s := range all {
		if !seen[s.Kind.Metric] {
			seen[s.Kind.Metric] = true
			kinds = append(kinds, s.Kind)
		}
	}
	return kinds
}

// judge adds what is to be said of a series.
func (s Series) judge(r *report.Report, state string) {
	f := report.Finding{ID: "histogram-" + state, Member: s.name(), Confidence: report.Certain, Why: s.Kind.Why}
	f.Evidence = []string{fmt.Sprintf("p50 %s, p90 %s, p99 %s, mean %s of %.0f %s", s.H.QuantileText(0.5), s.H.QuantileText(0.9), s.H.QuantileText(0.99), metrics.Seconds(s.H.Mean()), s.H.Count, s.Over)}
	if first, last, ok := TwoFaces(s.H); ok {
		f.Evidence = append(f.Evidence, fmt.Sprintf("%d modes: %.1f %% up to %s, %.1f %% from %s on", len(s.H.Modes()), 100*first.Count/s.H.Count, metrics.Seconds(first.High), 100*last.Count/s.H.Count, metrics.Seconds(last.Low)),
			"that is a thing that is well as a rule, and at times has something in its way")
	}
	switch state {
	case "ok":
		f.Severity, f.What = report.Good, s.Kind.Name+" is well"
	case "slow":
		f.Severity, f.What = report.Warning, "The "+s.Kind.Name+" is slow at times."
	case "bad":
		f.Severity, f.What = report.Critical, "The "+s.Kind.Name+" is slow enough to cost a leader its place."
	default:
		return
	}
	if state != "ok" {
		f.Do = []string{"see when: the same over a time (--prometheus URL --for 24h), or `belay doctor logs`", s.Kind.Do}
	}
	r.Add(f)
}

// chart has the buckets from the first to the last that hold something.
func chart(s Series) report.Chart {
	c := report.Chart{Title: fmt.Sprintf("%s: %s, %.0f %s", s.name(), s.Kind.Name, s.H.Count, s.Over)}
	first, last, before := -1, -1, 0.0
	var counts []float64
	for i, b := range s.H.Buckets {
		counts = append(counts, b.Count-before)
		before = b.Count
		if counts[i] > 0 {
			if first < 0 {
				first = i
			}
			last = i
		}
	}
	if first < 0 {
		return c
	}
	p50, _ := s.H.Quantile(0.5)
	p99, beyond := s.H.Quantile(0.99)
	low := 0.0
	if first > 0 {
		low = s.H.Buckets[first-1].Upper
	}
	for i := first; i <= last; i++ {
		b := s.H.Buckets[i]
		bar := report.Bar{Label: "to " + metrics.Seconds(b.Upper), Value: counts[i]}
		if math.IsInf(b.Upper, 1) {
			bar.Label = "over " + metrics.Seconds(low)
		}
		if low < p50 && p50 <= b.Upper {
			bar.Marks = "p50"
		}
		if low < p99 && p99 <= b.Upper && !beyond || beyond && math.IsInf(b.Upper, 1) {
			bar.Marks += " p99"
		}
		c.Bars = append(c.Bars, bar)
		low = b.Upper
	}
	return c
}

// Of are the series of a scrape, of the metrics that are named; before is an earlier scrape of the
// same process, or nil.
func Of(source string, before, s *metrics.Scrape, names []string, peer func(id string) string) (all []Series) {
	for _, name := range names {
		befores := before.Histograms(name)
		for _, h := range s.Histograms(name) {
			one := Series{Kind: KindOf(name), Source: source, Over: "since its start", H: h}
			if id := h.Labels["To"]; id != "" {
				one.Peer = peer(id)
			} else if len(h.Labels) > 0 {
				one.Peer = h.Labels.Text()
			}
			if b, ok := h.Among(befores); ok {
				if diff, ok := h.Since(b); ok {
					one.H, one.Over = diff, "in "+metrics.Seconds(s.At.Sub(before.At).Seconds())
				}
			}
			all = append(all, one)
		}
	}
	return all
}

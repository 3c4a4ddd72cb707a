// Package metrics reads what members answer at /metrics, and tells from two scrapes what happened
// between them.
package metrics

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// A Scrape is one answer of /metrics.
type Scrape struct {
	At       time.Time
	families map[string]*dto.MetricFamily
}

// Parse reads Prometheus' text format. Its errors name the line.
func Parse(r io.Reader, at time.Time) (*Scrape, error) {
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(r)
	if err != nil {
		return nil, fmt.Errorf("no metrics in Prometheus' text format: %w", err)
	}
	return &Scrape{At: at, families: families}, nil
}

// Has tells whether the scrape has a family of that name. A nil scrape has none.
func (s *Scrape) Has(name string) bool { return s != nil && s.families[name] != nil }

// Labels are names and values of labels.
type Labels map[string]string

// Text is the labels as a selector: {a="b"}.
func (l Labels) Text() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(l)) {
		parts = append(parts, name+"="+strconv.Quote(l[name]))
	}
	return "{" + strings.Join(parts, ",") + "}"
}

// A Sample is one series of a counter, a gauge or an untyped metric.
type Sample struct {
	Labels Labels
	Value  float64
}

func labelsOf(m *dto.Metric) Labels {
	l := Labels{}
	for _, pair := range m.GetLabel() {
		l[pair.GetName()] = pair.GetValue()
	}
	return l
}

func valueOf(m *dto.Metric) float64 {
	switch {
	case m.Counter != nil:
		return m.Counter.GetValue()
	case m.Gauge != nil:
		return m.Gauge.GetValue()
	case m.Untyped != nil:
		return m.Untyped.GetValue()
	}
	return 0
}

// Samples are all series of a family, in the order of the answer.
func (s *Scrape) Samples(name string) []Sample {
	if !s.Has(name) {
		return nil
	}
	var all []Sample
	for _, m := range s.families[name].GetMetric() {
		all = append(all, Sample{labelsOf(m), valueOf(m)})
	}
	return all
}

// Value is the sum of all series of a family; ok is false if there is none.
func (s *Scrape) Value(name string) (value float64, ok bool) {
	for _, sample := range s.Samples(name) {
		value, ok = value+sample.Value, true
	}
	return value, ok
}

// A Bucket counts what was at most Upper.
type Bucket struct {
	Upper float64 // seconds, or what the histogram measures; the last is +Inf
	Count float64 // of all up to Upper
}

// A Histogram is one series of a histogram family.
type Histogram struct {
	Labels  Labels
	Buckets []Bucket // ascending by Upper, and Count never falls
	Sum     float64
	Count   float64
}

// Histograms are all series of a histogram family.
func (s *Scrape) Histograms(name string) []Histogram {
	if !s.Has(name) {
		return nil
	}
	var all []Histogram
	for _, m := range s.families[name].GetMetric() {
		if m.Histogram == nil {
			continue
		}
		h := Histogram{Labels: labelsOf(m), Sum: m.Histogram.GetSampleSum(), Count: float64(m.Histogram.GetSampleCount())}
		for _, b := range m.Histogram.GetBucket() {
			h.Buckets = append(h.Buckets, Bucket{b.GetUpperBound(), float64(b.GetCumulativeCount())})
		}
		if n := len(h.Buckets); n == 0 || !math.IsInf(h.Buckets[n-1].Upper, 1) {
			h.Buckets = append(h.Buckets, Bucket{math.Inf(1), h.Count})
		}
		all = append(all, h)
	}
	return all
}

// Histogram is the first series of a family.
func (s *Scrape) Histogram(name string) (Histogram, bool) {
	if all := s.Histograms(name); len(all) > 0 {
		return all[0], true
	}
	return Histogram{}, false
}

// Among finds the series that has h's labels.
func (h Histogram) Among(all []Histogram) (same Histogram, ok bool) {
	text := h.Labels.Text()
	for _, o := range all {
		if o.Labels.Text() == text {
			return o, true
		}
	}
	return Histogram{}, false
}

// Since is what came between before and h. ok is false if the process was started again between
// them, which a count that has fallen shows, or if the buckets differ.
func (h Histogram) Since(before Histogram) (diff Histogram, ok bool) {
	if h.Count < before.Count || len(h.Buckets) != len(before.Buckets) {
		return Histogram{}, false
	}
	diff = Histogram{Labels: h.Labels, Sum: h.Sum - before.Sum, Count: h.Count - before.Count}
	for i, b := range h.Buckets {
		if b.Upper != before.Buckets[i].Upper || b.Count < before.Buckets[i].Count {
			return Histogram{}, false
		}
		diff.Buckets = append(diff.Buckets, Bucket{b.Upper, b.Count - before.Buckets[i].Count})
	}
	return diff, true
}

// Mean is 0 if nothing was counted.
func (h Histogram) Mean() float64 {
	if h.Count == 0 {
		return 0
	}
	return h.Sum / h.Count
}

// Quantile is found by interpolation within a bucket, as Prometheus' histogram_quantile does. What
// lies beyond the last bound is told as that bound, with beyond set: it took at least so long.
func (h Histogram) Quantile(q float64) (value float64, beyond bool) {
	if h.Count == 0 || len(h.Buckets) == 0 {
		return math.NaN(), false
	}
	rank := q * h.Count
	i := slices.IndexFunc(h.Buckets, func(b Bucket) bool { return b.Count >= rank })
	if i < 0 {
		i = len(h.Buckets) - 1
	}
	if math.IsInf(h.Buckets[i].Upper, 1) {
		if i == 0 {
			return math.NaN(), true
		}
		return h.Buckets[i-1].Upper, true
	}
	low, below := 0.0, 0.0
	if i > 0 {
		low, below = h.Buckets[i-1].Upper, h.Buckets[i-1].Count
	}
	in := h.Buckets[i].Count - below
	if in == 0 {
		return h.Buckets[i].Upper, false
	}
	return low + (h.Buckets[i].Upper-low)*(rank-below)/in, false
}

// Above is how many were more than bound, which has to be the bound of a bucket; ok is false if it
// is none.
func (h Histogram) Above(bound float64) (n float64, ok bool) {
	for _, b := range h.Buckets {
		if b.Upper == bound {
			return h.Count - b.Count, true
		}
	}
	return 0, false
}

// A Mode is a group of neighbouring buckets that hold much, with little around it: a histogram of a
// disk that is sometimes busy has two.
type Mode struct {
	Low, High float64 // bounds; High may be +Inf
	Count     float64
}

// Modes are the peaks of h that hold at least a fiftieth of all and are parted by a valley of less
// than half the smaller peak. Buckets are compared by their counts, since their bounds grow
// geometrically.
func (h Histogram) Modes() []Mode {
	var counts []float64
	previous := 0.0
	for _, b := range h.Buckets {
		counts = append(counts, b.Count-previous)
		previous = b.Count
	}
	type hill struct{ from, peak, to int }
	var hills []hill
	for i := range counts {
		if len(hills) == 0 {
			hills = append(hills, hill{i, i, i})
			continue
		}
		last := &hills[len(hills)-1]
		valley := slices.Min(counts[last.peak : i+1])
		switch {
		case counts[i] > 0 && valley < counts[i]/2 && valley < counts[last.peak]/2 && counts[i] >= h.Count/100:
			hills = append(hills, hill{i, i, i})
		case counts[i] > counts[last.peak]:
			last.peak, last.to = i, i
		case counts[i] > 0:
			last.to = i
		}
	}
	var modes []Mode
	for n, hl := range hills {
		from, to := 0, len(counts)-1
		if n > 0 {
			from = hl.from
		}
		if n+1 < len(hills) {
			to = hills[n+1].from - 1
		}
		for from < hl.peak && counts[from] == 0 {
			from++
		}
		for to > hl.peak && counts[to] == 0 {
			to--
		}
		m := Mode{High: h.Buckets[to].Upper}
		if from > 0 {
			m.Low = h.Buckets[from-1].Upper
		}
		for _, c := range counts[from : to+1] {
			m.Count += c
		}
		if m.Count >= h.Count/50 && m.Count > 0 {
			modes = append(modes, m)
		}
	}
	return modes
}

// Seconds says a duration as a person would: 340 µs, 12 ms, 2.1 s.
func Seconds(s float64) string {
	switch {
	case math.IsNaN(s):
		return "-"
	case math.IsInf(s, 1):
		return "inf"
	case s >= 100:
		return fmt.Sprintf("%.0f s", s)
	case s >= 1:
		return fmt.Sprintf("%.1f s", s)
	case s >= 0.01:
		return fmt.Sprintf("%.0f ms", s*1e3)
	case s >= 0.001:
		return fmt.Sprintf("%.1f ms", s*1e3)
	case s > 0:
		return fmt.Sprintf("%.0f µs", s*1e6)
	}
	return "0"
}

// QuantileText is a quantile as a person would say it: "8.1 ms", or "over 8.2 s" beyond the last bound.
func (h Histogram) QuantileText(q float64) string {
	v, beyond := h.Quantile(q)
	if beyond {
		return "over " + Seconds(v)
	}
	return Seconds(v)
}

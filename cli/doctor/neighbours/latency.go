package neighbours

import (
	"math"
	"slices"
	"time"

	"github.com/belaydb/belay/cli/doctor/metrics"
	"github.com/belaydb/belay/neighbours"
)

// What is slow: over the bound of etcd's hardware guide, and twice what is usual here, and a quarter of
// the slowest, unless these are less than one in 50.
const (
	slowFsync  = 10 * time.Millisecond
	badFsync   = 500 * time.Millisecond
	slowFactor = 2
)

// A latency is how long it took to make something durable, by sample.
type latency struct {
	source string    // what was measured
	by     []float64 // seconds, of each sample; NaN: nothing was made durable in it
	slow   []bool
	usual  float64 // the median of by
	fsyncs bool    // by is of the member's fsyncs
}

// latencyOf takes the member's fsyncs if there are any, else the flushes of the disk, else its writes.
func latencyOf(samples []neighbours.Sample) latency {
	kinds := []latency{{source: "p99 of the member's fsyncs, from its /metrics", fsyncs: true}, {source: "mean of the disk's flushes, from /proc/diskstats"}, {source: "mean of the disk's writes, from /proc/diskstats"}}
	for n := range kinds {
		l := &kinds[n]
		known := 0
		for _, s := range samples {
			v := math.NaN()
			switch {
			case l.fsyncs:
				v = s.Fsync.P99()
				if math.IsInf(v, 1) {
					v = lastBound(s.Fsync)
				}
				if s.Stuck > 0 && !(v >= s.Stuck.Seconds()) {
					v = s.Stuck.Seconds() // one that has not ended is in no histogram
				}
			case n == 1 && s.Disk.Flushes > 0:
				v = s.Disk.FlushTime.Seconds() / float64(s.Disk.Flushes)
			case n == 2 && s.Disk.Writes > 0 && s.Disk.WriteTime > 0: // some disks do not tell it
				v = s.Disk.WriteTime.Seconds() / float64(s.Disk.Writes)
			}
			if !math.IsNaN(v) {
				known++
			}
			l.by = append(l.by, v)
		}
		if known >= max(5, len(samples)/20) {
			return l.judged()
		}
	}
	return latency{source: "none", by: kinds[0].by, slow: make([]bool, len(samples)), usual: math.NaN()}
}

// lastBound stands for what took longer: twice the highest bound that is known, and 8 s at least.
func lastBound(f neighbours.Fsync) float64 {
	last := 0.0
	for _, upper := range f.Upper {
		last = max(last, upper)
	}
	return max(2*last, 8.192)
}

func (l latency) judged() latency {
	known := slices.DeleteFunc(slices.Clone(l.by), math.IsNaN)
	slices.Sort(known)
	l.usual = known[len(known)/2]
	// Where some are very slow, what is only a little slow is not what matters: it may be a busy CPU.
	bound := max(slowFsync.Seconds(), slowFactor*l.usual, known[len(known)*98/100]/4)
	for _, v := range l.by {
		l.slow = append(l.slow, v > bound) // NaN is not
	}
	return l
}

// known tells whether anything was measured.
func (l latency) known() bool { return !math.IsNaN(l.usual) }

// within is the latency of all samples that in has, as it would be of one: p99 of the fsyncs, or the
// mean of a disk's.
func (l latency) within(samples []neighbours.Sample, in func(i int) bool) float64 {
	if l.fsyncs {
		var all neighbours.Fsync
		stuck := 0.0
		for i, s := range samples {
			if in(i) {
				all.Add(s.Fsync)
				stuck = max(stuck, s.Stuck.Seconds())
			}
		}
		h := histogram(all)
		v, beyond := h.Quantile(0.99)
		if beyond {
			v = lastBound(all)
		}
		if math.IsNaN(v) && stuck == 0 {
			return v
		}
		if math.IsNaN(v) {
			return stuck
		}
		return max(v, stuck)
	}
	sum, n := 0.0, 0.0
	for i, v := range l.by {
		if in(i) && !math.IsNaN(v) {
			sum, n = sum+v, n+1
		}
	}
	return sum / n
}

// histogram is f with the bounds that are missing between those that hold something: etcd's, which
// are powers of two, so that percentiles are found between the right ones.
func histogram(f neighbours.Fsync) metrics.Histogram {
	var h metrics.Histogram
	h.Sum, h.Count = f.Sum, f.Total()
	seen := 0.0
	for i, upper := range f.Upper {
		if upper == 0 {
			break
		}
		if low := upper / 2; len(h.Buckets) == 0 || h.Buckets[len(h.Buckets)-1].Upper < low {
			h.Buckets = append(h.Buckets, metrics.Bucket{Upper: low, Count: seen})
		}
		seen += f.Count[i]
		h.Buckets = append(h.Buckets, metrics.Bucket{Upper: upper, Count: seen})
	}
	h.Buckets = append(h.Buckets, metrics.Bucket{Upper: math.Inf(1), Count: h.Count})
	return h
}

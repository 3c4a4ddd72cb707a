package neighbours

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/belaydb/belay/neighbours"
)

const (
	// burstRate is what a burst writes at least, bytes a second; burstFactor how many times what the
	// writer writes otherwise; burstShare how much of its own highest rate.
	burstRate, burstFactor, burstShare = 128 << 10, 5, 0.1
	// leastBurst is how large a burst is at least, of the writer's largest: others are noise.
	leastBurst = 0.1
	// periodTolerance is how far from the period, of the period, a spacing may be; fewTolerance the
	// same if there are fewer than four: what could be chance with few is not with many.
	periodTolerance, fewTolerance = 0.15, 0.1
	// pauseOtherwise is how long a pause in a burst may be, in samples, where there is no period.
	pauseOtherwise = 10
	// fewSpacings is up to how many spacings each has to be near the period. With more, bursts may
	// be missing, and a few may be off.
	fewSpacings = 5
)

// A burst is a time in which a writer wrote much more than it does otherwise.
type burst struct {
	from, to int // samples, both included
	bytes    int64
	begin    time.Time
	took     time.Duration
}

// A series is what one writer wrote, by sample.
type series struct {
	key      neighbours.Key
	last     neighbours.Writer // with sums of Bytes, Looks, Syncs
	bytes    []int64
	bursts   []burst
	usual    float64       // bytes a second, in the quietest quarter of the time
	peak     float64       // bytes a second
	period   time.Duration // 0: none
	spacings int           // that the period rests on
	typical  burst         // the medians of bursts
}

// seriesOf takes the samples apart, the largest writers first.
func seriesOf(samples []neighbours.Sample) []*series {
	at := map[neighbours.Key]*series{}
	var all []*series
	for i, s := range samples {
		for _, w := range s.Writers {
			one := at[w.Key()]
			if one == nil {
				one = &series{key: w.Key(), last: neighbours.Writer{From: w.From, Unplaced: true}, bytes: make([]int64, len(samples))}
				at[w.Key()] = one
				all = append(all, one)
			}
			one.bytes[i] += w.Bytes
			l := &one.last
			l.Bytes, l.Looks, l.Syncs = l.Bytes+w.Bytes, l.Looks+w.Looks, l.Syncs+w.Syncs
			l.PID, l.Unplaced = w.PID, l.Unplaced && w.Unplaced
			if l.From != w.From && w.From == neighbours.FromDirtied {
				l.From = w.From // the least exact
			}
		}
	}
	for _, one := range all {
		one.find(samples)
	}
	slices.SortStableFunc(all, func(a, b *series) int { return cmp.Compare(b.last.Bytes, a.last.Bytes) })
	return all
}

// find fills in bursts and period.
func (s *series) find(samples []neighbours.Sample) {
	rates := make([]float64, len(samples))
	var steps []time.Duration
	for i, x := range samples {
		rates[i] = float64(s.bytes[i]) / x.Took.Seconds()
		steps = append(steps, x.Took)
	}
	sorted := slices.Sorted(slices.Values(rates))
	s.usual, s.peak = sorted[len(sorted)/4], sorted[len(sorted)-1]
	least := max(burstRate, burstFactor*s.usual, burstShare*s.peak)
	slices.Sort(steps)
	step := steps[len(steps)/2]

	// A burst may have pauses in it: a file is written, synced, and the next begun. The shortest
	// pause with which the bursts come at a period is taken.
	for _, pause := range []time.Duration{2, 5, 10, 20, 40, 80} {
		bursts := burstsOf(samples, s.bytes, func(i int) bool { return rates[i] > least }, pause*step)
		if s.bursts == nil || pause <= pauseOtherwise {
			s.bursts = bursts
		}
		if len(bursts) < 3 {
			break
		}
		if period, n := periodOf(bursts, step); n > 0 {
			s.bursts, s.period, s.spacings = bursts, period, n
			break
		}
	}
	s.typical = typicalOf(s.bursts)
}

func burstsOf(samples []neighbours.Sample, bytes []int64, in func(int) bool, pause time.Duration) (all []burst) {
	var largest int64
	for i, s := range samples {
		if !in(i) {
			continue
		}
		if n := len(all); n > 0 && s.Begin().Sub(samples[all[n-1].to].At) < pause {
			all[n-1].to = i
		} else {
			all = append(all, burst{from: i, to: i})
		}
	}
	for n := range all {
		b := &all[n]
		for _, x := range bytes[b.from : b.to+1] {
			b.bytes += x
		}
		b.begin = samples[b.from].Begin()
		b.took = samples[b.to].At.Sub(b.begin)
		largest = max(largest, b.bytes)
	}
	return slices.DeleteFunc(all, func(b burst) bool { return float64(b.bytes) < leastBurst*float64(largest) })
}

// periodOf is at what period bursts begin, and on how many spacings that rests; 0 if there is none.
// step is how exactly beginnings are known.
func periodOf(bursts []burst, step time.Duration) (time.Duration, int) {
	if len(bursts) < 3 {
		return 0, 0
	}
	var spacings []time.Duration
	longest := time.Duration(0)
	for i, b := range bursts {
		longest = max(longest, b.took)
		if i > 0 {
			spacings = append(spacings, b.begin.Sub(bursts[i-1].begin))
		}
	}
	sorted := slices.Sorted(slices.Values(spacings))
	period := sorted[(len(sorted)-1)/2]
	if period < 4*step || period < longest+longest/4 {
		return 0, 0 // it is rather a writer that pauses at times
	}
	share := periodTolerance
	if len(spacings) < 4 {
		share = fewTolerance
	}
	tolerance := max(time.Duration(share*float64(period)), 3*step/2)
	near, rounds, span := 0, 0, time.Duration(0)
	for _, d := range spacings {
		k := 1
		if len(spacings) > fewSpacings {
			k = min(3, max(1, int(math.Round(float64(d)/float64(period)))))
		}
		if (d - time.Duration(k)*period).Abs() <= tolerance {
			near, rounds, span = near+1, rounds+k, span+d
		}
	}
	if near < 2 || len(spacings) <= fewSpacings && near < len(spacings) || float64(near) < 0.8*float64(len(spacings)) {
		return 0, 0
	}
	return span / time.Duration(rounds), near
}

// typicalOf has the medians of bursts' sizes and lengths.
func typicalOf(bursts []burst) burst {
	if len(bursts) == 0 {
		return burst{}
	}
	var sizes []int64
	var lengths []time.Duration
	for _, b := range bursts {
		sizes, lengths = append(sizes, b.bytes), append(lengths, b.took)
	}
	slices.Sort(sizes)
	slices.Sort(lengths)
	return burst{bytes: sizes[len(sizes)/2], took: lengths[len(lengths)/2]}
}

// margin is how long after a burst fsyncs may be slow because of it: what it wrote may reach the disk
// only when the kernel writes it back, and an fsync is counted when it ends.
func (s *series) margin(samples []neighbours.Sample) time.Duration {
	step := samples[len(samples)-1].At.Sub(samples[0].Begin()) / time.Duration(len(samples))
	if s.period > 0 {
		return min(max(s.period/10, 2*step), 30*time.Second)
	}
	return max(5*time.Second, 2*step)
}

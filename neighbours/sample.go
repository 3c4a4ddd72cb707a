package neighbours

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// From is where a number of bytes comes from.
type From string

const (
	FromCgroup   From = "io.stat"  // the device's, for the cgroup
	FromSyscalls From = "syscalls" // the lesser of wchar and write_bytes
	FromDirtied  From = "dirtied"  // write_bytes, in whole folios
)

// maxWriters is how many writers a sample keeps, the largest ones, besides the member itself.
const (
	maxWriters   = 8
	maxElsewhere = 2 // of those on other disks
)

// A Sample is what happened in one interval.
type Sample struct {
	At      time.Time     `json:"at"`   // its end
	Took    time.Duration `json:"took"` // > 0, nanoseconds
	Disk    Disk          `json:"disk"`
	Fsync   Fsync         `json:"fsync,omitzero"`    // of the member
	Stuck   time.Duration `json:"stuck,omitempty"`   // the age of Belay's oldest sync in flight at its end
	Writers []Writer      `json:"writers,omitempty"` // the largest first
	Hidden  int           `json:"hidden,omitempty"`  // processes whose counters may not be read
}

// Begin is when the interval began.
func (s Sample) Begin() time.Time { return s.At.Add(-s.Took) }

// Disk are the counters of the disk in an interval, from /proc/diskstats.
type Disk struct {
	Bytes     int64         `json:"bytes"`
	Writes    int64         `json:"writes"`
	WriteTime time.Duration `json:"write_time"` // all writes' together
	Flushes   int64         `json:"flushes"`
	FlushTime time.Duration `json:"flush_time"` // all flushes' together
	Busy      time.Duration `json:"busy"`       // in which it had something to do
}

// Fsync are the member's fsyncs that ended in an interval.
type Fsync struct {
	Upper []float64 `json:"le,omitempty"` // bounds of the buckets that hold any, seconds, ascending; 0: over the last bound
	Count []float64 `json:"n,omitempty"`  // of each, not cumulative
	Sum   float64   `json:"sum,omitempty"`
}

// Total is how many they are.
func (f Fsync) Total() (n float64) {
	for _, c := range f.Count {
		n += c
	}
	return n
}

// bound is a bucket's bound for comparing: the one that has none is the last.
func bound(upper float64) float64 {
	if upper == 0 {
		return math.Inf(1)
	}
	return upper
}

// Add adds other's to f, and leaves other as it is.
func (f *Fsync) Add(other Fsync) {
	f.Sum += other.Sum
	for i, upper := range other.Upper {
		at, found := slices.BinarySearchFunc(f.Upper, upper, func(a, b float64) int { return cmp.Compare(bound(a), bound(b)) })
		if !found {
			f.Upper, f.Count = slices.Insert(f.Upper, at, upper), slices.Insert(f.Count, at, 0)
		}
		f.Count[at] += other.Count[i]
	}
}

// P99 is the bound of the bucket that holds the 99th of a hundred, seconds: at most twice too much
// with the buckets of etcd. NaN if there were none, +Inf beyond the last bound.
func (f Fsync) P99() float64 {
	rank, seen := 0.99*f.Total(), 0.0
	for i, c := range f.Count {
		if seen += c; c > 0 && seen >= rank {
			return bound(f.Upper[i])
		}
	}
	return math.NaN()
}

// A Writer is what one program of one group wrote in an interval.
type Writer struct {
	Name      string `json:"name"` // of the program; empty: the group's, of no process that could be seen
	Group     Group  `json:"group,omitzero"`
	PID       int    `json:"pid,omitempty"` // one of its processes, the last that was seen
	Bytes     int64  `json:"bytes"`
	From      From   `json:"from"`
	Own       bool   `json:"own,omitempty"`       // the member itself
	Elsewhere bool   `json:"elsewhere,omitempty"` // all files that it has open for writing are on other disks
	Unplaced  bool   `json:"unplaced,omitempty"`  // on which disk could not be seen
	Looks     int    `json:"looks,omitempty"`     // how often was looked for its threads
	Syncs     int    `json:"syncs,omitempty"`     // at how many of these one stood in fsync or the like
}

// A Key tells writers apart over time. It has no process id: who is started again is the same.
type Key struct {
	Name      string
	Group     Group
	Own       bool
	Elsewhere bool
}

// Key is the writer's.
func (w Writer) Key() Key { return Key{w.Name, w.Group, w.Own, w.Elsewhere} }

// String is "prometheus (prometheus.service)".
func (k Key) String() string {
	switch {
	case k.Group == Group{}:
		return k.Name
	case k.Name == "":
		return k.Group.String()
	}
	return k.Name + " (" + k.Group.String() + ")"
}

// Add puts the interval behind s to it.
func (s *Sample) Add(next Sample) {
	s.At, s.Took = next.At, s.Took+next.Took
	s.Disk.Bytes += next.Disk.Bytes
	s.Disk.Writes += next.Disk.Writes
	s.Disk.WriteTime += next.Disk.WriteTime
	s.Disk.Flushes += next.Disk.Flushes
	s.Disk.FlushTime += next.Disk.FlushTime
	s.Disk.Busy += next.Disk.Busy
	sum := Fsync{Upper: slices.Clone(s.Fsync.Upper), Count: slices.Clone(s.Fsync.Count), Sum: s.Fsync.Sum}
	sum.Add(next.Fsync)
	s.Fsync = sum
	s.Stuck, s.Hidden = max(s.Stuck, next.Stuck), max(s.Hidden, next.Hidden)
	s.Writers = merge(append(slices.Clone(s.Writers), next.Writers...))
}

// merge has one writer of each key, and of them the largest and the member.
func merge(all []Writer) []Writer {
	at := map[Key]int{}
	var merged []Writer
	for _, w := range all {
		i, ok := at[w.Key()]
		if !ok {
			at[w.Key()] = len(merged)
			merged = append(merged, w)
			continue
		}
		m := &merged[i]
		m.Bytes, m.Looks, m.Syncs = m.Bytes+w.Bytes, m.Looks+w.Looks, m.Syncs+w.Syncs
		m.PID, m.Unplaced = w.PID, m.Unplaced && w.Unplaced
		if m.From != w.From && w.From == FromDirtied { // the least exact
			m.From = w.From
		}
	}
	slices.SortStableFunc(merged, func(a, b Writer) int { return cmp.Compare(b.Bytes, a.Bytes) })
	here, elsewhere := 0, 0
	return slices.DeleteFunc(merged, func(w Writer) bool {
		switch {
		case w.Own:
			return false
		case w.Elsewhere:
			elsewhere++
			return elsewhere > maxElsewhere
		}
		here++
		return here > maxWriters
	})
}

// A Log holds samples of any time in bounded memory: when it is full, each two that follow each
// other become one. It gets coarser with time, and loses none.
type Log struct {
	Limit   int // of samples; at least 2
	samples []Sample
	every   int // samples that become one
	pending int // that the last one holds
}

// Add appends a sample.
func (l *Log) Add(s Sample) {
	l.every = max(l.every, 1)
	if n := len(l.samples); n > 0 && l.pending < l.every {
		l.samples[n-1].Add(s)
		l.pending++
		return
	}
	if len(l.samples) >= max(l.Limit, 2) {
		half := l.samples[:0]
		for i := 0; i < len(l.samples); i += 2 {
			one := l.samples[i]
			if i+1 < len(l.samples) {
				one.Add(l.samples[i+1])
			}
			half = append(half, one)
		}
		clear(l.samples[len(half):])
		l.samples, l.every = half, 2*l.every
	}
	l.samples, l.pending = append(l.samples, s), 1
}

// Samples are those that it holds, the oldest first. They are the log's own.
func (l *Log) Samples() []Sample { return l.samples }

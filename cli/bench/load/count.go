package load

import (
	"maps"
	"math"
	"runtime"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

const (
	finest  = int64(time.Microsecond) // latencies below it are as one
	longest = int64(time.Hour)        // and those above
	digits  = 3                       // significant ones of a quantile

	// maxKinds is how many texts of errors are told apart: a text may have an address or a number in
	// it that is new each time.
	maxKinds = 64
	// OtherErrors is the text of those beyond.
	OtherErrors = "other errors"
)

// Counts is what became of one class of operations.
type Counts struct {
	hist             *hdrhistogram.Histogram // of nanoseconds
	sum, squares     float64                 // of seconds
	n                int64
	fastest, slowest time.Duration
	errors           map[string]int64
}

// NewCounts has nothing in it.
func NewCounts() *Counts {
	return &Counts{hist: hdrhistogram.New(finest, longest, digits), errors: map[string]int64{}}
}

// Add counts an operation that took so long.
func (c *Counts) Add(took time.Duration) {
	_ = c.hist.RecordValue(min(max(int64(took), 0), longest)) // it is in the range
	s := took.Seconds()
	c.sum += s
	c.squares += s * s
	if c.n == 0 || took < c.fastest {
		c.fastest = took
	}
	c.slowest = max(c.slowest, took)
	c.n++
}

// Fail counts one that failed.
func (c *Counts) Fail(kind string) {
	if _, known := c.errors[kind]; !known && len(c.errors) >= maxKinds {
		kind = OtherErrors
	}
	c.errors[kind]++
}

// Merge adds another's.
func (c *Counts) Merge(o *Counts) {
	if o.n > 0 {
		c.hist.Merge(o.hist)
		c.sum += o.sum
		c.squares += o.squares
		if c.n == 0 || o.fastest < c.fastest {
			c.fastest = o.fastest
		}
		c.slowest = max(c.slowest, o.slowest)
		c.n += o.n
	}
	for kind, n := range o.errors {
		if _, known := c.errors[kind]; !known && len(c.errors) >= maxKinds {
			kind = OtherErrors
		}
		c.errors[kind] += n
	}
}

func (c *Counts) reset() {
	if c.n > 0 {
		c.hist.Reset()
	}
	c.sum, c.squares, c.n, c.fastest, c.slowest = 0, 0, 0, 0, 0
	clear(c.errors)
}

// N is how many operations succeeded.
func (c *Counts) N() int64 { return c.n }

// Failed is how many did not.
func (c *Counts) Failed() (n int64) {
	for _, one := range c.errors {
		n += one
	}
	return n
}

// Errors are how many failed, by the text of the error.
func (c *Counts) Errors() map[string]int64 { return maps.Clone(c.errors) }

// Fastest and Slowest are exact; 0 without operations.
func (c *Counts) Fastest() time.Duration { return c.fastest }

// Slowest is the longest latency.
func (c *Counts) Slowest() time.Duration { return c.slowest }

// Mean is 0 without operations.
func (c *Counts) Mean() time.Duration {
	if c.n == 0 {
		return 0
	}
	return time.Duration(c.sum / float64(c.n) * float64(time.Second))
}

// Deviation is the standard deviation.
func (c *Counts) Deviation() time.Duration {
	if c.n == 0 {
		return 0
	}
	mean := c.sum / float64(c.n)
	return time.Duration(math.Sqrt(max(c.squares/float64(c.n)-mean*mean, 0)) * float64(time.Second))
}

// Quantile is the latency that a share q of the operations, 0 to 1, did not exceed.
func (c *Counts) Quantile(q float64) time.Duration {
	if c.n == 0 {
		return 0
	}
	v := time.Duration(c.hist.ValueAtQuantile(q * 100))
	if v < time.Duration(finest) {
		return c.fastest
	}
	return min(v, c.slowest) // a bucket's upper bound may be beyond it
}

// Spread is how many operations took up to each of the ascending bounds, and longer than the bound
// before it.
func (c *Counts) Spread(bounds []time.Duration) []int64 {
	counts := make([]int64, len(bounds))
	i := 0
	for _, bar := range c.hist.Distribution() {
		if bar.Count == 0 {
			continue
		}
		at := time.Duration(bar.From)
		for i < len(bounds)-1 && at > bounds[i] {
			i++
		}
		counts[i] += bar.Count
	}
	return counts
}

// A Second is what ended in about one second of a run.
type Second struct {
	At     time.Time     // when it began
	Span   time.Duration // the last one of a run is shorter
	Ops    int64
	Failed int64
	Min, Mean, P50, P99,
	Max time.Duration
}

// Rate is operations per second.
func (s Second) Rate() float64 {
	if s.Span <= 0 {
		return 0
	}
	return float64(s.Ops) / s.Span.Seconds()
}

// Second is what c has counted, as a second that began at.
func (c *Counts) Second(at time.Time, span time.Duration) Second {
	return Second{At: at, Span: span, Ops: c.n, Failed: c.Failed(), Min: c.fastest, Mean: c.Mean(), P50: c.Quantile(0.50), P99: c.Quantile(0.99), Max: c.slowest}
}

// A Class is one kind of operations of a run.
type Class struct {
	Name    string
	Counts  *Counts
	Seconds []Second
}

// recorder counts what many clients do. Clients share a shard's lock; once a second what the shards
// have counted is taken from them.
type recorder struct {
	shards []*shard
	all    []*Class // of the goroutine that takes
}

type shard struct {
	mu  sync.Mutex
	per []*Counts // of each class
	_   [64]byte  // shards are used by different CPUs
}

func newRecorder(classes []string) *recorder {
	r := &recorder{}
	for range runtime.GOMAXPROCS(0) {
		s := &shard{}
		for range classes {
			s.per = append(s.per, NewCounts())
		}
		r.shards = append(r.shards, s)
	}
	for _, name := range classes {
		r.all = append(r.all, &Class{Name: name, Counts: NewCounts()})
	}
	return r
}

func (r *recorder) add(client, class int, took time.Duration) {
	s := r.shards[client%len(r.shards)]
	s.mu.Lock()
	s.per[class].Add(took)
	s.mu.Unlock()
}

func (r *recorder) fail(client, class int, kind string) {
	s := r.shards[client%len(r.shards)]
	s.mu.Lock()
	s.per[class].Fail(kind)
	s.mu.Unlock()
}

// take moves what was counted since the last call into the classes and returns it, all classes as
// one.
func (r *recorder) take(at time.Time, span time.Duration) Second {
	whole := NewCounts()
	for class, c := range r.all {
		now := NewCounts()
		for _, s := range r.shards {
			s.mu.Lock()
			now.Merge(s.per[class])
			s.per[class].reset()
			s.mu.Unlock()
		}
		c.Counts.Merge(now)
		c.Seconds = append(c.Seconds, now.Second(at, span))
		whole.Merge(now)
	}
	return whole.Second(at, span)
}

// drain counts what was added after the last take, which is what clients noted while the run ended.
func (r *recorder) drain() {
	for class, c := range r.all {
		for _, s := range r.shards {
			s.mu.Lock()
			c.Counts.Merge(s.per[class])
			if last := len(c.Seconds) - 1; last >= 0 {
				c.Seconds[last].Ops += s.per[class].n
				c.Seconds[last].Failed += s.per[class].Failed()
			}
			s.per[class].reset()
			s.mu.Unlock()
		}
	}
}

package usage

import (
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// HalfLife is after which time a request counts half.
const HalfLife = time.Minute

// A Measure is what shares are told of.
type Measure int

// The measures. Of a watch, requests are the messages that it was sent, keys the events in them,
// and churn is how often it was created.
const (
	Requests Measure = iota
	Bytes            // of keys and values, read or written
	Keys             // read, written or deleted
	Churn            // keys that were written or deleted: each is kept until it is compacted
	measures
)

func (m Measure) String() string {
	return [measures]string{"requests", "bytes", "keys", "churn"}[m]
}

// A Kind is what a name is of.
type Kind int

// The kinds.
const (
	Prefix Kind = iota
	Client      // an address without a port
	User
	Watch // a range of keys, as RangeName has it
	kinds
)

func (k Kind) String() string { return [kinds]string{"prefix", "client", "user", "watch"}[k] }

// counted are the counters of each sketch: no share is too large by more than 1/counted of all. All
// sketches together have maxDepth+3 times four times as many, of some 250 bytes each: 1.8 MB.
const counted = 256

const (
	// LargeBytes and LargeKeys are from where on a request is told always, not by sample.
	LargeBytes = 16 << 10
	LargeKeys  = 64

	// allBelow is how many small requests a second are told without sampling, mostEvery is of how
	// many at most one is told until there are maxSamples samples a second. With what the server
	// makes of it, a sample costs about a microsecond, a request 40: one of 8 costs three thousandths.
	allBelow   = 50
	mostEvery  = 8
	maxSamples = 2000
)

// Amounts are of one request, or of one key's part in it.
type Amounts [measures]float64

// Tracker keeps the sketches.
type Tracker struct {
	halfLife time.Duration
	now      func() time.Time
	random   func(n uint32) uint32 // below n; any goroutine calls it
	every    atomic.Uint32         // of how many small requests one is told, by chance

	mu       sync.Mutex
	began    time.Time
	epoch    time.Time // when a weight of 1 counts 1
	scaledAt time.Time // when grown was computed
	grown    float64   // what a weight of 1 counts now
	window   time.Time // since when requests are counted, to choose every
	seen     float64   // small requests since then, by their weights
	sampled  int       // samples since then
	prefixes [maxDepth][measures]*sketch
	others   [kinds][measures]*sketch // of prefixes, only the total is used
}

// New makes a tracker that begins now. The clock is for tests; nil: the time of day.
func New(now func() time.Time) *Tracker {
	if now == nil {
		now = time.Now
	}
	t := &Tracker{halfLife: HalfLife, now: now, random: rand.Uint32N}
	t.began = now()
	t.epoch, t.scaledAt, t.window, t.grown = t.began, t.began, t.began, 1
	t.every.Store(1)
	for m := range measures {
		for d := range t.prefixes {
			t.prefixes[d][m] = newSketch(counted)
		}
		for k := range t.others {
			t.others[k][m] = newSketch(counted)
		}
	}
	return t
}

// Sample decides whether a request is told, and how many it stands for; 0: it is not. It costs a
// few nanoseconds and takes no lock.
func (t *Tracker) Sample(bytes, keys int) (weight float64) {
	if t == nil {
		return 0
	}
	if bytes >= LargeBytes || keys >= LargeKeys {
		return 1
	}
	every := t.every.Load()
	if every > 1 && t.random(every) != 0 {
		return 0
	}
	return float64(every)
}

// A Use is one request, or one message of a stream.
type Use struct {
	Client string // address without port; empty: not known
	User   string // empty: none
	Of     Amounts
	Ops    []Op // what it does with keys
	// Watched is the name of the watch that a message is of, empty: of none, and WatchOf what it adds
	// to that.
	Watched string
	WatchOf Amounts
}

// An Op is what a request does with one key or range.
type Op struct {
	Key, End []byte // as in a request
	Of       Amounts
}

// Add counts a request that stands for as many as Sample has said, which is not 0.
func (t *Tracker) Add(weight float64, u *Use) {
	if t == nil {
		return
	}
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.choose(now, weight)
	weight *= t.growth(now)
	addTo(&t.others[Client], []byte(u.Client), &u.Of, weight)
	addTo(&t.others[User], []byte(u.User), &u.Of, weight)
	addTo(&t.others[Watch], []byte(u.Watched), &u.WatchOf, weight)
	for i := range u.Ops {
		op := &u.Ops[i]
		key := common(op.Key, op.End)
		for m, amount := range op.Of {
			t.others[Prefix][m].total += amount * weight
		}
		ends, n := prefixes(key)
		for d := range n {
			addTo(&t.prefixes[d], key[:ends[d]], &op.Of, weight)
		}
	}
}

func addTo(sketches *[measures]*sketch, name []byte, of *Amounts, weight float64) {
	if len(name) == 0 {
		return
	}
	name = name[:min(len(name), maxNameBytes)]
	for m, amount := range of {
		if amount > 0 {
			sketches[m].add(name, amount*weight)
		}
	}
}

// choose adapts every to the rate of small requests: after a second, or at once when samples come
// too fast. REQUIRES: mu held.
func (t *Tracker) choose(now time.Time, weight float64) {
	t.seen += weight
	t.sampled++
	passed := now.Sub(t.window)
	if passed < time.Second && t.sampled < maxSamples {
		return
	}
	rate := t.seen / max(passed.Seconds(), 1e-3)
	every := math.Round(rate / allBelow)
	if every > mostEvery {
		every = max(mostEvery, math.Round(rate/maxSamples))
	}
	t.every.Store(uint32(min(max(every, 1), 1<<20)))
	t.window, t.seen, t.sampled = now, 0, 0
}

// growth is what a weight of 1 counts now, by forward decay. It is computed ten times a second.
// REQUIRES: mu held.
func (t *Tracker) growth(now time.Time) float64 {
	if since := now.Sub(t.scaledAt); since >= 0 && since < 100*time.Millisecond {
		return t.grown
	}
	t.scaledAt = now
	// Clocks that jump back are taken as standing still.
	halves := max(now.Sub(t.epoch).Seconds()/t.halfLife.Seconds(), 0)
	t.grown = math.Exp2(halves)
	if halves > 64 {
		// Before numbers become too large for the last bits to count.
		for m := range measures {
			for d := range t.prefixes {
				t.prefixes[d][m].scale(1 / t.grown)
			}
			for k := range t.others {
				t.others[k][m].scale(1 / t.grown)
			}
		}
		t.epoch, t.grown = now, 1
	}
	return t.grown
}

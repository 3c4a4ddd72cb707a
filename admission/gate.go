package admission

import (
	"errors"
	"sync/atomic"
	"time"
)

// ErrTooManyRequests refuses a request that would only make things worse. The text is etcd's.
var ErrTooManyRequests = errors.New("etcdserver: too many requests")

// Options bounds what may be in progress. Zero means the default.
type Options struct {
	// MaxInFlightBytes bounds the proposals that entered and have not left. A byte in flight is
	// held about three times (request, encoded entry, log in memory), or as who enters counts it.
	// Default 1 GiB.
	MaxInFlightBytes int64
	// MaxBacklogBytes bounds what is committed and not applied on this member. Default 512 MiB.
	MaxBacklogBytes int64
	// MaxBacklogAge bounds how long a committed entry may have waited to be applied. Default 5 s:
	// with etcd's request timeout of 7 s a request behind more than this has little chance.
	MaxBacklogAge time.Duration
}

// priorityFactor is how many times the limit a priority request may fill.
const priorityFactor = 2

// Verdicts about the backlog, from the last sample.
const (
	backlogFine int32 = iota
	backlogHigh       // above the limit: priority requests only
	backlogFull       // above priorityFactor times the limit: nobody
)

// Gate is where requests enter. The zero value is not ready; use New.
type Gate struct {
	opts     Options
	inFlight atomic.Int64 // >= 0; the sum of what entered and did not leave
	backlog  atomic.Int32 // one of the verdicts above
	refused  atomic.Uint64

	samples lagMeter // used only by the sampler
}

// New makes an open gate.
func New(opts Options) *Gate {
	if opts.MaxInFlightBytes <= 0 {
		opts.MaxInFlightBytes = 1 << 30
	}
	if opts.MaxBacklogBytes <= 0 {
		opts.MaxBacklogBytes = 512 << 20
	}
	if opts.MaxBacklogAge <= 0 {
		opts.MaxBacklogAge = 5 * time.Second
	}
	return &Gate{opts: opts}
}

// Enter lets a request of n bytes in or refuses it with ErrTooManyRequests. A caller that was let
// in must call Leave with the same n.
func (g *Gate) Enter(n int, priority bool) error {
	limit, verdict := g.opts.MaxInFlightBytes, backlogFine
	if priority {
		limit, verdict = limit*priorityFactor, backlogHigh
	}
	if g.backlog.Load() > verdict {
		g.refused.Add(1)
		return ErrTooManyRequests
	}
	// Add first and take back on refusal: one atomic operation on the way that
	// matters. A request alone in flight fits whatever its size.
	if after := g.inFlight.Add(int64(n)); after > limit && after != int64(n) {
		g.inFlight.Add(int64(-n))
		g.refused.Add(1)
		return ErrTooManyRequests
	}
	return nil
}

// Leave ends a request that Enter let in.
func (g *Gate) Leave(n int) {
	if g.inFlight.Add(int64(-n)) < 0 {
		panic("admission: more left than entered")
	}
}

// InFlight is the sum of the bytes that entered and have not left.
func (g *Gate) InFlight() int64 { return g.inFlight.Load() }

// MaxInFlight is how many bytes may be in flight for clients.
func (g *Gate) MaxInFlight() int64 { return g.opts.MaxInFlightBytes }

// Refused counts the requests that were turned away.
func (g *Gate) Refused() uint64 { return g.refused.Load() }

// Observe takes one sample of this member's apply backlog: the committed and applied index and the
// bytes between them (0: unknown). Samples must come from one goroutine, and now must not go back.
// It returns the backlog's age, for metrics.
func (g *Gate) Observe(now time.Time, committed, applied uint64, backlogBytes int64) (age time.Duration) {
	age = g.samples.observe(now, committed, applied)
	verdict := backlogFine
	switch {
	case age > g.opts.MaxBacklogAge*priorityFactor || backlogBytes > g.opts.MaxBacklogBytes*priorityFactor:
		verdict = backlogFull
	case age > g.opts.MaxBacklogAge || backlogBytes > g.opts.MaxBacklogBytes:
		verdict = backlogHigh
	}
	g.backlog.Store(verdict)
	return age
}

// lagMeter turns samples of two indexes into an age: what was committed at an earlier sample and is
// still not applied has waited at least since then. This needs one clock reading for each sample
// rather than for each entry.
type lagMeter struct {
	// marks holds (time, committed index) of past samples in order, oldest
	// first; only marks with index > applied are kept. When full, every other
	// mark goes: old backlogs are measured more coarsely, in bounded memory.
	marks []mark
}

type mark struct {
	at    time.Time
	index uint64
}

const maxMarks = 256

func (l *lagMeter) observe(now time.Time, committed, applied uint64) time.Duration {
	done := 0
	for done < len(l.marks) && l.marks[done].index <= applied {
		done++
	}
	l.marks = append(l.marks[:0], l.marks[done:]...)
	if committed > applied && (len(l.marks) == 0 || l.marks[len(l.marks)-1].index < committed) {
		if len(l.marks) == maxMarks {
			kept := l.marks[:0]
			for i := 0; i < maxMarks; i += 2 {
				kept = append(kept, l.marks[i])
			}
			l.marks = kept
		}
		l.marks = append(l.marks, mark{now, committed})
	}
	if len(l.marks) == 0 {
		return 0
	}
	return now.Sub(l.marks[0].at)
}

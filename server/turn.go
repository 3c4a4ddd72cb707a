package server

import (
	"context"
	"math"
	"net"
	"runtime"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/belaydb/belay/admission"
	"github.com/belaydb/belay/mvcc"
)

// A call that reads little is served at once. One that reads on and on takes a turn: reading 10 MB
// and encoding it is tens of milliseconds of a processor, and with a hundred such calls a put,
// which goes through half a dozen goroutines, would wait in each of them for a hundred others. So a
// few read at a time, one fewer than there are processors, and the turns go round by the host that
// asks. A turn is given back before the answer is sent: how fast a client reads is its own affair.

const (
	// freeKeys and freeBytes are what a call reads without a turn.
	freeKeys  = 4096
	freeBytes = 256 << 10
	// turnTime is after which time a call that reads on lets others have a turn.
	turnTime = 100 * time.Millisecond
)

// turns are those of all calls of a member.
type turns struct {
	slots   *admission.Turns
	metrics *Metrics
}

func newTurns(m *Metrics) *turns {
	return &turns{admission.NewTurns(max(1, runtime.GOMAXPROCS(0)-1), math.MaxInt, math.MaxInt), m}
}

// turn is one call's: the context of what it reads, which takes a turn when that
// becomes much. It belongs to the call's goroutine. end must be called.
type turn struct {
	context.Context // the call's
	turns           *turns

	keys, bytes int64  // read without a turn
	release     func() // nil: it has none
	since       time.Time
	waited      time.Duration // in all
}

var _ mvcc.Pacer = (*turn)(nil)

// Pace is mvcc.Pacer's.
func (t *turn) Pace(keys, bytes int64) error {
	if t.release != nil {
		if now := time.Now(); now.Sub(t.since) > turnTime {
			t.since = now
			if t.turns.slots.Contended() {
				t.end()
				return t.take()
			}
		}
	} else {
		t.keys += keys
		t.bytes += bytes
		if t.keys >= freeKeys || t.bytes >= freeBytes {
			return t.take()
		}
	}
	// What waits for this processor has waited for a while.
	runtime.Gosched()
	return nil
}

// take waits for a turn, if the call has none.
func (t *turn) take() error {
	if t.release != nil {
		return nil
	}
	start := time.Now()
	t.turns.metrics.readersWaiting.Inc()
	release, err := t.turns.slots.Take(t, callerHost(t))
	t.turns.metrics.readersWaiting.Dec()
	t.since = time.Now()
	t.waited += t.since.Sub(start)
	t.turns.metrics.readerWait.Observe(t.since.Sub(start).Seconds())
	t.release = release
	return err
}

// expect takes a turn beforehand for what is known to be much, so that whoever waits holds nothing.
func (t *turn) expect(keys int64) error {
	if keys <= freeKeys {
		return nil
	}
	return t.take()
}

// end gives the turn back, if the call has one.
func (t *turn) end() {
	if t.release != nil {
		t.release()
		t.release = nil
	}
}

// again is end for a call that goes on to read: it has had what is free.
func (t *turn) again() {
	t.end()
	t.keys = freeKeys
}

// newTurn is for calls whose answers are sent by others.
func (ts *turns) newTurn(ctx context.Context) *turn { return &turn{Context: ctx, turns: ts} }

// yielding is a context for what reads through everything at leisure, a few at a
// time: what the member asks for itself, and snapshots. It waits for nobody, and
// lets those go first who wait for its processor.
type yielding struct{ context.Context }

func (y yielding) Pace(int64, int64) error {
	runtime.Gosched()
	return nil
}

// callerHost is where a call comes from; what comes through the gateway is one host.
func callerHost(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(p.Addr.String())
	if err != nil {
		return p.Addr.String()
	}
	return host
}

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
	answers *admission.Room // for what is read and not sent yet; nil: there is no bound
	metrics *Metrics
}

// newTurns bounds the bytes of answers; 0: not.
func newTurns(m *Metrics, answerBytes int64) *turns {
	ts := &turns{slots: admission.NewTurns(max(1, runtime.GOMAXPROCS(0)-1), math.MaxInt, math.MaxInt), metrics: m}
	if answerBytes > 0 {
		ts.answers = admission.NewRoom(answerBytes, m.answersRefused.Inc)
		m.answers.Store(ts.answers)
	}
	return ts
}

// turn is one call's: the context of what it reads, which takes a turn when that
// becomes much. It belongs to the call's goroutine. end must be called.
type turn struct {
	context.Context // the call's
	turns           *turns

	keys, bytes int64  // read without a turn
	release     func() // nil: it has none

	// Of a call that collects what it reads for one answer: it enters the room for answers before
	// its turn. drop must be called.
	collects          bool
	hold              *admission.Hold // nil: it has not entered
	allKeys, allBytes int64           // read in all, since it has entered or not
	// encoded is what it has read, of a call that encodes it at once; nil: it makes messages of it.
	encoded *encodedKeys

	since  time.Time
	waited time.Duration // in all
}

var _ mvcc.Pacer = (*turn)(nil)

// Pace is mvcc.Pacer's.
func (t *turn) Pace(keys, bytes int64) error {
	if t.collects {
		t.allKeys += keys
		t.allBytes += bytes
		if t.hold != nil {
			// More than was foreseen does not wait; see admission.Room.
			if cost := t.cost(); cost > t.hold.Bytes() {
				t.hold.Set(cost + cost/4)
			}
		}
	}
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
	host := callerHost(t)
	release, err := (func())(nil), error(nil)
	if t.collects && t.hold == nil {
		err = t.enter(host, t.cost()*unforeseen)
	}
	if err == nil {
		release, err = t.turns.slots.Take(t, host)
	}
	t.turns.metrics.readersWaiting.Dec()
	t.since = time.Now()
	t.waited += t.since.Sub(start)
	t.turns.metrics.readerWait.Observe(t.since.Sub(start).Seconds())
	t.release = release
	return err
}

// unforeseen is how many times as much as it has read a call is taken to read in the end, when it
// has read what is free.
const unforeseen = 8

// cost is about how many bytes of memory the answer takes, as far as it is read.
func (t *turn) cost() int64 {
	if t.encoded != nil {
		return int64(t.encoded.length())
	}
	return answerCost(t.allKeys, t.allBytes)
}

// answerCost is about how many bytes of memory an answer of keys takes: as read and as encoded.
func answerCost(keys, bytes int64) int64 { return keys*answerKeyBytes + 2*bytes }

// encodedCost is answerCost of keys that are encoded as they are read; bytes are those of the keys,
// too.
func encodedCost(keys, bytes int64) int64 { return keys*encodedKeyBytes + bytes }

const (
	// answerKeyBytes is what a key costs besides its bytes and those of its value, which mvcc.Pacer
	// does not count: the message, its place in the answer, and a short key.
	answerKeyBytes = 192
	// encodedKeyBytes is the same of an encoded key without its bytes: revisions, version, lengths.
	encodedKeyBytes = 32
	// shortKeyBytes is of a key whose length nobody has looked at.
	shortKeyBytes = 64
)

// answerPatience is how long a call waits for room while nothing that others hold is sent.
const answerPatience = 10 * time.Second

// enter waits for room for an answer.
func (t *turn) enter(host string, cost int64) (err error) {
	if t.turns.answers != nil && t.hold == nil {
		t.hold, err = t.turns.answers.Enter(t, host, cost, answerPatience)
	}
	return err
}

// expect takes a turn beforehand for what is known to be much, so that whoever waits holds nothing.
// sample reads the first few keys, which say how large the others may be; nil: they are taken to be
// small.
func (t *turn) expect(keys int64, sample func(keys int64) (n, bytes int64, err error)) error {
	if keys <= freeKeys {
		return nil
	}
	if t.collects && t.turns.answers != nil {
		n, bytes, err := int64(1), int64(unsampledBytes), error(nil)
		if sample != nil {
			if n, bytes, err = sample(sampledKeys); err != nil {
				return err
			}
		}
		start := time.Now()
		t.turns.metrics.readersWaiting.Inc()
		cost := answerCost
		if t.encoded != nil {
			cost = encodedCost
		}
		err = t.enter(callerHost(t), cost(keys, bytes/max(n, 1)*keys))
		t.turns.metrics.readersWaiting.Dec()
		t.waited += time.Since(start)
		if err != nil {
			return err
		}
	}
	return t.take()
}

const (
	sampledKeys    = 128 // how many keys say how large the others may be
	unsampledBytes = 256 // of a key with its value that nobody has looked at
)

// end gives the turn back, if the call has one.
func (t *turn) end() {
	if t.release != nil {
		t.release()
		t.release = nil
	}
}

// drop gives back the room that the call has, if any.
func (t *turn) drop() {
	if t.hold != nil {
		t.hold.Release()
		t.hold = nil
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

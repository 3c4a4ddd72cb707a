package sim

import (
	"math/rand/v2"
	"testing"
	"time"
	"unsafe"
)

// localFlags are the flags of one member. The replicated state must not depend on them.
type localFlags struct {
	electionTicks   int
	preVote         bool
	advanceTicks    bool
	tuneTimeouts    bool // election timeouts follow the network
	flushEntries    uint64
	keepBytes       int64
	holdBytes       int64 // while a member gets a snapshot, or lags and answers
	memoryBytes     int64 // of the log
	maxUnsynced     int64
	segmentBytes    int64
	memTableBytes   int64
	compactionBatch int
	maxLearners     int
	placeBytes      int // from which size on values may stay in the log's segments; 0: none does
	pipelineBytes   int // from which size on the log makes a group while the one before is written; 0: the default

	bound int64 // logBound of these, before a mutation changes them
}

// drawFlags draws what a world's members have in common.
func drawFlags(r *rand.Rand, seed uint64, ks kinds) localFlags {
	f := localFlags{
		electionTicks: electionTicks, preVote: true, advanceTicks: true, tuneTimeouts: r.IntN(2) == 0,
		flushEntries: uint64(20 + r.IntN(200)),
		keepBytes:    int64(1 + r.IntN(20<<10)), // a member that lags soon needs a snapshot
		memoryBytes:  256 << 20, maxUnsynced: 512 << 20,
		segmentBytes: 256 << 10, memTableBytes: 256 << 10, compactionBatch: 20, maxLearners: 1,
	}
	if r.IntN(2) == 0 {
		f.keepBytes = 1 << 20 // it gets the entries
	}
	f.holdBytes = f.keepBytes << (seed % 3 * 4)
	if ks[big] {
		f.keepBytes, f.holdBytes = 50*f.keepBytes, 50*f.holdBytes
		f.memTableBytes = 1 << 20
	}
	if ks[loaded] {
		f.memoryBytes, f.maxUnsynced, f.memTableBytes = 512<<10, 512<<10, 64<<10
	}
	if r.IntN(2) == 0 {
		f.placeBytes = 1 + r.IntN(40)
	}
	f.pipelineBytes = r.IntN(2)
	return f
}

// flagsOf are those of a member's next life.
func (w *world) flagsOf(m *member) localFlags {
	f := w.flags
	if w.kinds[flags] {
		r := rand.New(rand.NewPCG(w.seed, m.id<<32+uint64(m.lives)))
		f = drawFlags(r, r.Uint64(), w.kinds)
		f.preVote, f.advanceTicks = r.IntN(4) > 0, r.IntN(2) == 0
		f.electionTicks = electionTicks
		if w.seed%2 == 0 {
			// As amid a rolling change of the election timeout. Without pre-votes one that is
			// impatient and behind would keep the patient ones from being elected, as in etcd.
			f.preVote = true
			f.electionTicks += r.IntN(electionTicks) + 9*electionTicks*r.IntN(2)
		}
		f.segmentBytes <<= r.IntN(3)
		f.memTableBytes <<= r.IntN(3)
		f.compactionBatch = 1 + r.IntN(100)
		f.maxLearners = 1 + r.IntN(3)
	}
	f.bound = f.logBound()
	if w.o.mutation == hoard {
		f.keepBytes, f.holdBytes, f.memoryBytes = 256<<20, 256<<20, 256<<20
	}
	return f
}

// logBound is how much of the log a member may hold in memory: what it keeps for
// those who lag, what is committed and not durable in its store, and what is not
// committed, which its leader bounds. A leader's own bound has room for both.
func (f *localFlags) logBound() int64 {
	const slack = 2 << 20 // what comes within a tick, in the inbox and in messages
	return min(max(f.keepBytes, f.holdBytes), f.memoryBytes) + 2*f.maxUnsynced + slack
}

// judgeMemory checks that what the member holds has a bound.
func (l *life) judgeMemory() {
	if held, _ := l.log.Bytes(); held > l.flags.bound && !l.dead.Load() {
		applied, committed := l.replica.AppliedIndex(), l.replica.CommittedIndex()
		last, _ := l.log.LastIndex()
		l.w.violation(memory, "member %s holds %d bytes of the log in memory, the bound is %d; not synced %d, committed and not applied %d, not committed %d",
			l.name, held, l.flags.bound, l.log.Unsynced().Bytes, l.log.BytesBetween(applied, committed), l.log.BytesBetween(committed, last))
	}
}

// outside is a time with a monotonic clock reading, which those of a bubble lack.
var outside = time.Now()

// dates is the clock of a member: its monotonic reading runs evenly, while its wall clock jumps, as
// when somebody sets it.
func (w *world) dates(id uint64) func() time.Time {
	mutated := func(t time.Time) time.Time {
		if w.o.mutation == dateClock {
			return t.Round(0) // without the monotonic reading
		}
		return t
	}
	if !w.kinds[clock] {
		return func() time.Time { return mutated(time.Now()) }
	}
	return func() time.Time {
		now := time.Now()
		even := outside.Add(now.Sub(w.begin))
		// Another jump every few seconds, from minus to plus some years, or by a second.
		r := rand.New(rand.NewPCG(w.seed+id, uint64(now.Unix()/(3+int64(id)))))
		jump := r.Int64N(20e7) - 10e7
		if r.IntN(2) == 0 {
			jump = r.Int64N(20) - 10
		}
		return mutated(withDate(even, jump))
	}
}

// withDate is t with a wall clock that is seconds later, and the same monotonic reading. Package
// time has no function for that; TestWithDate checks what is assumed about its internals: the bits
// above the 30 lowest of the first word count the seconds of the wall clock while there is a
// monotonic reading.
func withDate(t time.Time, seconds int64) time.Time {
	*(*uint64)(unsafe.Pointer(&t)) += uint64(seconds) << 30
	return t
}

func TestWithDate(t *testing.T) {
	now := outside.Add(time.Hour)
	for _, seconds := range []int64{0, 1, -1, 3600, -10e7, 10e7} {
		then := withDate(now, seconds)
		if d := then.Sub(now); d != 0 {
			t.Errorf("%d s: the clock moved by %s", seconds, d)
		}
		if d := then.Round(0).Sub(now.Round(0)); d != time.Duration(seconds)*time.Second {
			t.Errorf("%d s: the date moved by %s", seconds, d)
		}
	}
}

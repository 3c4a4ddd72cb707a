package replica

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/belaydb/belay/evidence"
)

func TestWantedElectionTimeout(t *testing.T) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	for _, c := range []struct {
		base, roundTrip, gap, want int
	}{
		{1000, 0, 0, 1000},
		{1000, 1, 110, 1000},      // a local network
		{1000, 100, 150, 1000},    // another city: ten round trips are still in it
		{1000, 200, 0, 1750},      // 1000 + 3*200, in steps of 250
		{1000, 900, 0, 3750},      // 400 ms one way, with jitter
		{1000, 10, 1500, 5000},    // what was lost three times came after 1.5 s
		{1000, 10, 700, 3000},     //
		{1000, 9000, 9000, 5000},  // no longer than the bound
		{8000, 9000, 9000, 8000},  // nor shorter than what was asked for
		{10000, 900, 500, 10_000}, //
	} {
		tm := timeouts{base: ms(c.base)}
		if got := tm.want(ms(c.roundTrip), ms(c.gap), 100*time.Millisecond); got != ms(c.want) {
			t.Errorf("base %d, round trip %d, gap %d: %v, want %v", c.base, c.roundTrip, c.gap, got, ms(c.want))
		}
	}
}

// Up at once, down when less has been enough for long.
func TestTimeoutsHaveHysteresis(t *testing.T) {
	now := time.Unix(1000, 0)
	tm := timeouts{base: time.Second}
	at := func(d time.Duration, want time.Duration) bool { return tm.choose(now.Add(d), want) }
	if at(0, time.Second) || tm.current != time.Second {
		t.Fatal(tm.current)
	}
	if !at(time.Second, 3*time.Second) || tm.current != 3*time.Second {
		t.Fatal(tm.current)
	}
	for d := 2 * time.Second; d < lowerAfter; d += time.Second {
		want := time.Second
		if d == time.Minute {
			want = 2 * time.Second // once more in that time
		}
		if at(d, want) || tm.current != 3*time.Second {
			t.Fatalf("after %v it is %v", d, tm.current)
		}
	}
	if !at(lowerAfter+2*time.Second, time.Second) || tm.current != 2*time.Second {
		t.Fatal(tm.current)
	}
	if !at(2*lowerAfter+3*time.Second, time.Second) || tm.current != time.Second {
		t.Fatal(tm.current)
	}
}

// A single long gap is an accident, of the leader's process perhaps; the third
// longest of the last minutes counts.
func TestGaps(t *testing.T) {
	now := time.Unix(1000, 0)
	var tm timeouts
	tm.observeGap(now, 3*time.Second)
	tm.observeGap(now.Add(time.Second), 2*time.Second)
	if g := tm.worstGap(now.Add(time.Second)); g != 0 {
		t.Errorf("two gaps count: %v", g)
	}
	tm.observeGap(now.Add(2*time.Second), 500*time.Millisecond)
	tm.observeGap(now.Add(3*time.Second), time.Second)
	if g := tm.worstGap(now.Add(3 * time.Second)); g != time.Second {
		t.Errorf("the third is %v", g)
	}
	if g := tm.worstGap(now.Add(worstGapLife + 4*time.Second)); g != 0 {
		t.Errorf("remembered for ever: %v", g)
	}
}

type fixedRoundTrip time.Duration

func (d fixedRoundTrip) RoundTrip(uint64) (median, tail time.Duration, ok bool) {
	return time.Duration(d), time.Duration(d), true
}

// farApart is 400 ms one way; and every seven seconds nothing at all arrives for 2.2 s, as
// when a segment is lost and lost again.
func farApart(c *testCluster) {
	start := time.Now()
	const oneWay, every, stall = 400 * time.Millisecond, 7 * time.Second, 2200 * time.Millisecond
	c.latency = func(now time.Time) time.Time {
		due := now.Add(oneWay)
		if since := due.Sub(start); since > 15*time.Second && since%every < stall {
			due = due.Add(stall - since%every)
		}
		return due
	}
	c.roundTrips = fixedRoundTrip(2 * oneWay)
}

// elections runs members that are far apart for a minute once they have settled and
// counts how often the leader changed.
func elections(t *testing.T, tune bool) (n int) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, farApart, func(c *testCluster) { c.tune = tune })
		defer c.close()
		time.Sleep(12 * time.Second)
		// With pre-votes a term begins only when somebody can be elected.
		term := func() (newest uint64) {
			for _, m := range c.members {
				newest = max(newest, m.replica().Term())
			}
			return newest
		}
		before := term()
		time.Sleep(time.Minute)
		n = int(term() - before)
		if !tune {
			for _, m := range c.members {
				if d := m.replica().ElectionTimeout(); d != time.Second {
					t.Errorf("a timeout that was set has become %v", d)
				}
			}
			return
		}
		leader := c.leader()
		for _, m := range c.members {
			d := m.replica().ElectionTimeout()
			if d < 3*time.Second || d > maxElectionTimeout {
				t.Errorf("member %d has an election timeout of %v", m.id, d)
			}
			told := false
			for _, e := range m.ring.Tell(0) {
				told = told || e.Kind == evidence.Timeouts.String()
			}
			if !told {
				t.Errorf("member %d has not recorded that its timeout changed", m.id)
			}
		}
		// Patience does not make a leader beat more slowly.
		beats := leader.heartbeats.Load()
		time.Sleep(10 * time.Second)
		if sent := leader.heartbeats.Load() - beats; sent < 2*95 || sent > 2*130 {
			t.Errorf("%d heartbeats to two members in 10 s", sent)
		}
	})
	return n
}

func TestTunedTimeoutsCauseNoElection(t *testing.T) {
	if n := elections(t, true); n > 0 {
		t.Errorf("%d elections", n)
	}
}

// TestFixedTimeoutsWould shows that the network of the test above is hard enough.
func TestFixedTimeoutsWould(t *testing.T) {
	if n := elections(t, false); n == 0 {
		t.Error("no election: the test proves nothing")
	}
}

// A leader that dies is replaced by the election timeouts as they are by then.
func TestTunedMembersReplaceADeadLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t, 3, func(c *testCluster) {
			c.tune, c.roundTrips = true, fixedRoundTrip(800*time.Millisecond)
		})
		defer c.close()
		time.Sleep(15 * time.Second)
		old := c.leader()
		patience := old.replica().ElectionTimeout()
		if patience <= time.Second {
			t.Fatalf("an election timeout of %v", patience)
		}
		c.partition(old.id, true)
		start := time.Now()
		others := c.others(old)
		for !others[0].replica().IsLeader() && !others[1].replica().IsLeader() && time.Since(start) < time.Minute {
			time.Sleep(50 * time.Millisecond)
		}
		// Two, if no vote was split; each split costs up to two more.
		if took := time.Since(start); took > 6*patience {
			t.Errorf("a new leader after %v, with election timeouts of %v", took, patience)
		}
	})
}

package evidence

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// court is a leader, m1, with two others, all in one bubble of synctest.
type court struct {
	*Inspector
	ring  *Ring
	links *Links
	logs  *observer.ObservedLogs

	mu    sync.Mutex
	leads bool
	rings map[uint64]*Ring
	fails map[uint64]error // how a member does not answer
}

func newCourt(t *testing.T) *court {
	c := &court{ring: NewRing(0), leads: true, rings: map[uint64]*Ring{2: NewRing(0), 3: NewRing(0)}, fails: make(map[uint64]error)}
	reach := func(ctx context.Context, id uint64) (*Ring, error) {
		c.mu.Lock()
		ring, err := c.rings[id], c.fails[id]
		c.mu.Unlock()
		if err == context.DeadlineExceeded {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return ring, err
	}
	c.links = NewLinks(c.ring, func(ctx context.Context, id uint64) (PingAnswer, error) {
		r, err := reach(ctx, id)
		if err != nil {
			return PingAnswer{}, err
		}
		return PingAnswer{Life: fmt.Sprint(id), NearMiss: r.NearMiss()}, nil
	})
	c.links.SetPeers([]uint64{2, 3})
	core, logs := observer.New(zap.WarnLevel)
	c.logs = logs
	c.Inspector = NewInspector(InspectorOptions{
		Self: 1, Ring: c.ring, Links: c.links, Logger: zap.New(core),
		Members: func() map[uint64]string { return map[uint64]string{1: "m1", 2: "m2", 3: "m3"} },
		Leads:   func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.leads },
		Collect: func(ctx context.Context, id uint64) (Report, error) {
			r, err := reach(ctx, id)
			if err != nil {
				return Report{}, err
			}
			return r.Report(TellWithin), nil
		},
	})
	c.links.Start()
	c.Inspector.Start()
	return c
}

func (c *court) end() {
	c.Inspector.Stop()
	c.links.Stop()
}

func (c *court) fail(id uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		delete(c.fails, id)
		return
	}
	c.fails[id] = err
}

func (c *court) said() string {
	var lines []string
	given, _ := c.Verdicts()
	for _, v := range given {
		lines = append(lines, fmt.Sprintf("%s %s", v.Cause, strings.Join(v.Members, "+")))
	}
	return strings.Join(lines, "; ")
}

func (c *court) want(t *testing.T, want string) {
	t.Helper()
	if got := c.said(); got != want {
		t.Errorf("verdicts %q, want %q", got, want)
	}
	if n, m := c.logs.Len(), len(strings.Split(want, ";")); want != "" && n != m {
		t.Errorf("%d log lines for %q", n, want)
	}
}

func TestInspectorNearMissOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCourt(t)
		defer c.end()
		time.Sleep(5 * time.Second)
		c.rings[3].Record(Event{Kind: DiskSlow, Took: 2 * time.Second})
		time.Sleep(5 * time.Second)
		c.want(t, "") // it may become worse
		time.Sleep(3 * time.Second)
		c.want(t, "disk-slow m3")
		// It goes on, and there is nothing new to say.
		for range 20 {
			c.rings[3].Record(Event{Kind: DiskSlow, Took: 2 * time.Second})
			time.Sleep(4 * time.Second)
		}
		c.want(t, "disk-slow m3")
		c.rings[2].Record(Event{Kind: DiskSlow, Took: 2 * time.Second})
		time.Sleep(10 * time.Second)
		c.want(t, "disk-slow m3; disk-slow m2+m3")
		if given, open := c.Verdicts(); open != "" || given[0].Advice == "" {
			t.Errorf("open %q, %+v", open, given[0])
		}
	})
}

// TestInspectorWaitsForTheSilent: who was stopped knows so only when it runs again.
func TestInspectorWaitsForTheSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCourt(t)
		defer c.end()
		time.Sleep(3 * time.Second)
		c.fail(2, context.DeadlineExceeded)
		time.Sleep(1200 * time.Millisecond)
		c.ring.Record(Event{Kind: Elected, Peer: 2, Term: 3, Note: "nothing had come"})
		time.Sleep(9 * time.Second)
		c.want(t, "")
		if _, open := c.Verdicts(); !strings.HasPrefix(open, "election") {
			t.Errorf("open %q", open)
		}
		c.fail(2, nil)
		c.rings[2].Record(Event{Kind: Paused, Took: 10 * time.Second, Note: "stopped and continued by a signal"})
		time.Sleep(5 * time.Second)
		c.want(t, "process-paused m2")
		time.Sleep(time.Minute)
		c.want(t, "process-paused m2") // nor a second one because m2 tells of a near miss
	})
}

func TestInspectorGivesUpWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCourt(t)
		defer c.end()
		time.Sleep(3 * time.Second)
		c.fail(2, context.DeadlineExceeded)
		time.Sleep(waitForAbsent + 15*time.Second)
		c.want(t, "unreachable m2")
	})
}

func TestInspectorKilledFollower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCourt(t)
		defer c.end()
		time.Sleep(3 * time.Second)
		c.fail(3, syscall.ECONNREFUSED)
		time.Sleep(15 * time.Second)
		c.want(t, "member-killed m3")
	})
}

// TestInspectorOnlyTheLeader: an election takes over what was open, and who leads no
// more says nothing.
func TestInspectorOnlyTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCourt(t)
		defer c.end()
		time.Sleep(3 * time.Second)
		c.ring.Record(Event{Kind: DiskSlow, Took: time.Second})
		time.Sleep(time.Second)
		c.mu.Lock()
		c.leads = false
		c.mu.Unlock()
		c.ring.Record(Event{Kind: Paused, Took: time.Second})
		time.Sleep(time.Minute)
		c.want(t, "")
		c.mu.Lock()
		c.leads = true
		c.mu.Unlock()
		c.ring.Record(Event{Kind: Elected, Term: 2}) // nobody known before
		time.Sleep(10 * time.Second)
		c.want(t, "")
		c.rings[2].Record(Event{Kind: HandOver, Peer: 1, Note: "request"})
		c.ring.Record(Event{Kind: Elected, Peer: 2, Term: 3, Note: AskedToLead + " by 2"})
		time.Sleep(4 * time.Second)
		c.want(t, "transfer-requested m2")
	})
}

func TestLinks(t *testing.T) {
	c := newClock()
	r := newRing(0, c.now)
	l := NewLinks(r, nil)
	l.now = c.now
	l.SetPeers([]uint64{2})
	answered := func(took time.Duration, err error) {
		start := c.now()
		if n := len(l.poll(start)); n != 1 && err == nil {
			t.Fatalf("%d pings", n)
		}
		l.pinged(2, start, start.Add(took), PingAnswer{Life: "a", NearMiss: 7}, err)
		c.pass(pingInterval)
	}
	for range 20 {
		answered(2*time.Millisecond, nil)
	}
	if median, tail, ok := l.RoundTrip(2); !ok || median != 2*time.Millisecond || tail != 2*time.Millisecond {
		t.Errorf("%v %v %v", median, tail, ok)
	}
	if len(r.since(0, nil)) != 0 {
		t.Errorf("a good link: %+v", r.since(0, nil))
	}
	for range 3 { // three that came late make it lossy
		answered(210*time.Millisecond, nil)
		answered(2*time.Millisecond, nil)
	}
	l.poll(c.now())
	if e := r.since(0, nil); len(e) != 1 || e[0].Kind != SlowLink || e[0].Value != 3 || e[0].Took != 2*time.Millisecond {
		t.Errorf("a lossy link: %+v", e)
	}
	if _, tail, _ := l.RoundTrip(2); tail != 210*time.Millisecond {
		t.Errorf("tail %v", tail)
	}
	for range 10 {
		answered(300*time.Millisecond, nil)
	}
	if e := r.since(0, nil); e[len(e)-1].Kind != SlowLink || e[len(e)-1].Took != 300*time.Millisecond {
		t.Errorf("a slow link: %+v", e)
	}
	// Nothing comes any more.
	before := len(r.since(0, nil))
	for range 8 {
		answered(0, context.DeadlineExceeded)
	}
	kinds := map[Kind]Event{}
	for _, e := range r.since(uint64(before), nil) {
		kinds[e.Kind] = e
	}
	if e := kinds[Silent]; e.Peer != 2 || e.Took < 3*time.Second {
		t.Errorf("silent: %+v", e)
	}
	if e := kinds[Unreachable]; Absence(e.Note) != TimedOut || e.Took < 3*time.Second {
		t.Errorf("unreachable: %+v", e)
	}
	if gone, why := l.Unanswered(2); gone < 3*time.Second || why != TimedOut {
		t.Errorf("%v %s", gone, why)
	}
	// This process stands still for a minute, which is not the peer's silence.
	answered(time.Millisecond, nil)
	seq := r.next - 1
	c.pass(time.Minute)
	answered(time.Millisecond, nil)
	for _, e := range r.since(seq, nil) {
		if e.Kind == Silent || e.Kind == Unreachable {
			t.Errorf("blamed the peer: %+v", e)
		}
	}
}

// TestLateInOneSpell: round trips that were held up together, as by a member that stood still, are no
// loss, and neither is a link that is slower than it was.
func TestLateInOneSpell(t *testing.T) {
	c := newClock()
	r := newRing(0, c.now)
	l := NewLinks(r, nil)
	l.now = c.now
	l.SetPeers([]uint64{2})
	answered := func(times int, took time.Duration) {
		for range times {
			start := c.now()
			l.poll(start)
			l.pinged(2, start, start.Add(took), PingAnswer{Life: "a"}, nil)
			c.pass(pingInterval)
		}
	}
	answered(30, 2*time.Millisecond)
	answered(3, 400*time.Millisecond)
	answered(30, 2*time.Millisecond)
	answered(10, 153*time.Millisecond)
	answered(10, 160*time.Millisecond)
	answered(30, 2*time.Millisecond)
	for range 4 { // for a while about as slow as what counts as late
		answered(1, 145*time.Millisecond)
		answered(1, 170*time.Millisecond)
	}
	answered(30, 2*time.Millisecond)
	if e := r.since(0, nil); len(e) != 0 {
		t.Errorf("%+v", e)
	}
	answered(1, 400*time.Millisecond)
	answered(4, 2*time.Millisecond)
	answered(2, 400*time.Millisecond)
	answered(1, 2*time.Millisecond)
	if e := r.since(0, nil); len(e) != 1 || e[0].Kind != SlowLink || e[0].Value != 3 {
		t.Errorf("late in two spells: %+v", e)
	}
	// A link that was slow for 10 s, and later one round trip that is late: slow is what was told
	// while it was.
	answered(40, 2*time.Millisecond)
	told := len(r.since(0, nil))
	answered(20, 930*time.Millisecond)
	answered(8, 2*time.Millisecond)
	answered(1, 400*time.Millisecond)
	answered(30, 2*time.Millisecond)
	for _, e := range r.since(0, nil)[told:] {
		if e.Took < slowRoundTrip {
			t.Errorf("a slow link is called lossy: %+v", e)
		}
	}
}

func TestWhyNot(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Absence
	}{
		{nil, ""}, {syscall.ECONNREFUSED, Refused}, {fmt.Errorf("x: %w", syscall.ECONNRESET), Closed},
		{context.DeadlineExceeded, TimedOut}, {fmt.Errorf("anything"), TimedOut},
	} {
		if got := WhyNot(c.err); got != c.want {
			t.Errorf("%v: %q, want %q", c.err, got, c.want)
		}
	}
}

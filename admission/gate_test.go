package admission

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

func TestEnterBoundsBytesInFlight(t *testing.T) {
	g := New(Options{MaxInFlightBytes: 100})
	steps := []struct {
		enter    int // 0: leave instead
		leave    int
		priority bool
		refused  bool
		inFlight int64
	}{
		{enter: 500, inFlight: 500},              // alone, it fits whatever its size
		{enter: 1, refused: true, inFlight: 500}, // but nobody beside it
		{leave: 500, inFlight: 0},                //
		{enter: 60, inFlight: 60},                //
		{enter: 40, inFlight: 100},               // exactly full
		{enter: 1, refused: true, inFlight: 100}, //
		{enter: 100, priority: true, inFlight: 200},
		{enter: 1, priority: true, refused: true, inFlight: 200},
		{leave: 160, inFlight: 40},
		{enter: 60, inFlight: 100},
	}
	for i, s := range steps {
		if s.leave > 0 {
			g.Leave(s.leave)
		} else if err := g.Enter(s.enter, s.priority); errors.Is(err, ErrTooManyRequests) != s.refused {
			t.Fatalf("step %d: Enter(%d) = %v", i, s.enter, err)
		}
		if got := g.InFlight(); got != s.inFlight {
			t.Fatalf("step %d: %d bytes in flight, want %d", i, got, s.inFlight)
		}
	}
	if g.Refused() != 3 {
		t.Fatalf("%d refused, want 3", g.Refused())
	}
}

func TestBacklogShutsTheGate(t *testing.T) {
	start := time.Unix(1000, 0)
	cases := []struct {
		name             string
		after            time.Duration // of a backlog that does not move
		bytes            int64
		normal, priority bool // let in
	}{
		{name: "fresh", after: 0, normal: true, priority: true},
		{name: "old but below the limit", after: time.Second, normal: true, priority: true},
		{name: "older than the limit", after: time.Second + time.Millisecond, priority: true},
		{name: "older than twice the limit", after: 2*time.Second + time.Millisecond},
		{name: "bytes at the limit", bytes: 1000, normal: true, priority: true},
		{name: "bytes above", bytes: 1001, priority: true},
		{name: "bytes above twice", bytes: 2001},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			g := New(Options{MaxBacklogAge: time.Second, MaxBacklogBytes: 1000})
			g.Observe(start, 10, 5, c.bytes)
			g.Observe(start.Add(c.after), 12, 5, c.bytes)
			if got := g.Enter(1, false) == nil; got != c.normal {
				t.Errorf("a normal request let in: %v", got)
			}
			if got := g.Enter(1, true) == nil; got != c.priority {
				t.Errorf("a priority request let in: %v", got)
			}
			g.Observe(start.Add(c.after), 12, 12, 0) // caught up: open again
			if err := g.Enter(1, false); err != nil {
				t.Errorf("after catching up: %v", err)
			}
		})
	}
}

// The age is measured against a model that keeps every sample: never more than
// the truth, and less by at most what thinning the marks loses.
func TestLagAgainstModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	var l lagMeter
	now := time.Unix(0, 0)
	var committed, applied uint64
	type sample struct {
		at    time.Time
		index uint64
	}
	var all []sample
	for range 20000 {
		now = now.Add(time.Duration(rnd.IntN(200)) * time.Millisecond)
		committed += uint64(rnd.IntN(20))
		applied += uint64(rnd.IntN(20))
		if applied > committed || rnd.IntN(2000) == 0 {
			applied = committed
		}
		all = append(all, sample{now, committed})
		want := time.Duration(0)
		for len(all) > 0 && all[0].index <= applied {
			all = all[1:]
		}
		if len(all) > 0 {
			want = now.Sub(all[0].at)
		}
		got := l.observe(now, committed, applied)
		if got > want {
			t.Fatalf("age %v, but the oldest entry waits only since %v", got, want)
		}
		if got == 0 && want > 0 && committed > applied && want > time.Second && len(l.marks) == 0 {
			t.Fatalf("age 0 while an entry waits since %v", want)
		}
		if len(l.marks) > maxMarks {
			t.Fatalf("%d marks", len(l.marks))
		}
		if len(l.marks) < maxMarks/2 && len(all) < maxMarks/2 && got < want-time.Second {
			t.Fatalf("age %v, want about %v", got, want)
		}
	}
}

func TestEnterConcurrently(t *testing.T) {
	g := New(Options{MaxInFlightBytes: 1000})
	var wg sync.WaitGroup
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range 10000 {
				if g.Enter(300, false) == nil {
					g.Leave(300)
				}
			}
		}()
	}
	wg.Wait()
	if g.InFlight() != 0 {
		t.Fatalf("%d bytes left behind", g.InFlight())
	}
}

func TestLeaveTooMuchPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Fatal("no panic")
		}
	}()
	New(Options{}).Leave(1)
}

func BenchmarkEnterLeave(b *testing.B) {
	g := New(Options{})
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if g.Enter(256, false) == nil {
				g.Leave(256)
			}
		}
	})
}

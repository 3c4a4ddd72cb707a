package evidence

import (
	"context"
	"os"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func testSampler(ring *Ring, opts SamplerOptions) *Sampler {
	return &Sampler{ring: ring, opts: opts, stalls: map[Resource]time.Duration{}, continued: make(chan os.Signal, 1),
		gc: []metrics.Sample{{Name: "/sched/pauses/total/gc:seconds"}}}
}

func TestSamplerSeesAStandstill(t *testing.T) {
	r := NewRing(0)
	s := testSampler(r, SamplerOptions{})
	now := time.Now()
	s.sample(now.Add(-3 * time.Second))
	s.continued <- os.Interrupt // stands for SIGCONT, which is not everywhere
	s.sample(now)
	events := r.since(0, nil)
	if len(events) == 0 || events[0].Kind != Paused || events[0].Took < 2*time.Second || !strings.Contains(events[0].Note, "signal") {
		t.Fatalf("%+v", events)
	}
	// Without a signal it depends on whether this process wanted a CPU. Here it did
	// not: nothing has run since.
	s.waited, s.ran = cpuTimes()
	s.stoodStill(time.Hour)
	events = r.since(events[len(events)-1].Seq, nil)
	if len(events) != 1 || events[0].Kind != Paused || events[0].Took != time.Hour {
		t.Errorf("%+v", events)
	}
}

// TestSamplerCatchesUp: what a member reports just after it stood still has why it did, and a sampler
// that does not sample holds no report up.
func TestSamplerCatchesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRing(0)
		s := testSampler(r, SamplerOptions{})
		s.sample(time.Now())
		s.hasSampled()
		began := time.Now()
		s.CaughtUp(t.Context())
		if took := time.Since(began); took != 0 {
			t.Errorf("a report waited %v for a sampler that does its work", took)
		}
		time.Sleep(4 * time.Second) // and then all goes on at once
		told := make(chan bool, 1)
		go func() {
			s.CaughtUp(t.Context())
			told <- slices.ContainsFunc(r.since(0, nil), func(e Event) bool { return e.Kind == Paused })
		}()
		synctest.Wait()
		s.continued <- os.Interrupt // stands for SIGCONT
		s.sample(time.Now())
		s.hasSampled()
		if !<-told {
			t.Error("the report has nothing of the pause")
		}
		time.Sleep(4 * time.Second)
		began = time.Now()
		s.CaughtUp(t.Context())
		if took := time.Since(began); took != catchUp {
			t.Errorf("a report waited %v for a sampler that does nothing", took)
		}
	})
}

func TestSamplerReadsProc(t *testing.T) {
	if _, err := os.Stat("/proc/self/task"); err != nil {
		t.Skip("no /proc here")
	}
	_, before := cpuTimes()
	x := 0
	for range 50_000_000 {
		x++
	}
	runtime.KeepAlive(x)
	if _, ran := cpuTimes(); ran <= before {
		t.Errorf("this process has run for %v and then for %v", before, ran)
	}
	if _, err := os.Stat("/proc/pressure/cpu"); err == nil {
		if total, ok := pressure("cpu", "some"); !ok || total <= 0 {
			t.Errorf("CPU pressure %v %v", total, ok)
		}
	}
	if _, ok := pressure("cpu", "never"); ok {
		t.Error("a line that is not there")
	}
}

func TestSamplerCountsDroppedLines(t *testing.T) {
	r := NewRing(0)
	dropped := uint64(0)
	s := testSampler(r, SamplerOptions{LogDropped: func() uint64 { return dropped }})
	now := time.Now()
	for i := range 60 {
		s.sample(now.Add(time.Duration(i) * sampleInterval))
		if i == 15 || i == 35 {
			dropped += 10
		}
	}
	n := 0
	for _, e := range r.since(0, nil) {
		if e.Kind == LogDropped {
			n += int(e.Count)
		}
	}
	if n != 2 {
		t.Errorf("%d times, %+v", n, r.since(0, nil))
	}
}

// TestSamplerDiskFull: the call that asks for free space may hang, and Stop does not wait for it.
func TestSamplerDiskFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRing(0)
		hang := make(chan struct{})
		calls := 0
		s := &Sampler{ring: r, opts: SamplerOptions{MinFreeBytes: 100, FreeBytes: func() (uint64, error) {
			if calls++; calls > 3 {
				<-hang
			}
			return 60, nil
		}}}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() { s.watchSpace(ctx); close(ended) }()
		time.Sleep(10 * time.Second)
		events := r.since(0, nil)
		if len(events) != 1 || events[0].Kind != DiskFull || events[0].Value != 60 || events[0].Count != 3 {
			t.Errorf("%+v", events)
		}
		cancel()
		close(hang)
		<-ended
	})
}

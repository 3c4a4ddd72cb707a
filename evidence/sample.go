package evidence

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"runtime/metrics"
	"strconv"
	"sync"
	"time"
)

const (
	sampleInterval = 100 * time.Millisecond
	// standstill is the shortest pause of the whole process that is recorded.
	standstill = 300 * time.Millisecond
	// The shares of a second from which pressure and waiting are recorded.
	cpuPressurePercent    = 60
	ioPressurePercent     = 60
	memoryPressurePercent = 10
	cpuWaitPercent        = 50
	longGCPause           = 20 * time.Millisecond
	spaceInterval         = time.Second
	// catchUp bounds how long a report waits for the sampler.
	catchUp = 200 * time.Millisecond
	// logStalls is how long an output of the log must take nothing for an event.
	logStalls = 2 * time.Second
)

// Sampler samples the process and its machine ten times a second. It reads /proc, which no disk can
// delay; without it, it sees only pauses.
type Sampler struct {
	ring *Ring
	opts SamplerOptions

	cancel  context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex
	sampled time.Time     // when the last sample ended
	next    chan struct{} // closed by the next sample; nil: nobody waits

	// Of its goroutine alone.
	last      time.Time
	second    time.Time // of the last slow sample
	waited    time.Duration
	ran       time.Duration
	stalls    map[Resource]time.Duration
	dropped   uint64
	gc        []metrics.Sample
	gcCounts  []uint64
	continued chan os.Signal
}

// SamplerOptions are what else it samples; nil: it does not.
type SamplerOptions struct {
	LogDropped func() uint64          // lines, since the start
	LogStalled func() time.Duration   // how long the log's output has not taken a line
	FreeBytes  func() (uint64, error) // of the data directory's file system; may hang
	// MinFreeBytes is the free space below which there is an event.
	MinFreeBytes uint64
	// NoSignals leaves signals alone: that the process was stopped is then told by the clock only.
	NoSignals bool
}

// StartSampler begins to sample into ring.
func StartSampler(ring *Ring, opts SamplerOptions) *Sampler {
	s := &Sampler{
		ring: ring, opts: opts, stalls: make(map[Resource]time.Duration), continued: make(chan os.Signal, 1),
		gc: []metrics.Sample{{Name: "/sched/pauses/total/gc:seconds"}},
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	stopSignals := func() {}
	if !opts.NoSignals {
		stopSignals = notifyContinued(s.continued)
	}
	s.running.Go(func() {
		defer stopSignals()
		tick := time.NewTicker(sampleInterval)
		defer tick.Stop()
		for {
			s.sample(time.Now())
			s.hasSampled()
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	if opts.FreeBytes != nil {
		// Stop does not wait for it: the call hangs with its disk.
		go s.watchSpace(ctx)
	}
	return s
}

// Stop ends the sampling.
func (s *Sampler) Stop() {
	s.cancel()
	s.running.Wait()
}

func (s *Sampler) hasSampled() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sampled = time.Now()
	if s.next != nil {
		close(s.next)
		s.next = nil
	}
}

// CaughtUp waits for the next sample if the last one is long ago, but not for long. When a process
// that was stopped goes on, everything in it finds at once that it is late; why, the sampler alone
// finds out, some milliseconds later. Who reports what was recorded calls this first.
func (s *Sampler) CaughtUp(ctx context.Context) {
	s.mu.Lock()
	if time.Since(s.sampled) < sampleInterval+standstill {
		s.mu.Unlock()
		return
	}
	if s.next == nil {
		s.next = make(chan struct{})
	}
	next := s.next
	s.mu.Unlock()
	timer := time.NewTimer(catchUp)
	defer timer.Stop()
	select {
	case <-next:
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (s *Sampler) sample(now time.Time) {
	gap := now.Sub(s.last) - sampleInterval
	if !s.last.IsZero() && gap >= standstill {
		s.stoodStill(gap)
		now = time.Now()
	} else {
		select {
		case <-s.continued: // too short a stop to record
		default:
		}
	}
	s.last = now
	if now.Sub(s.second) < time.Second {
		return
	}
	elapsed := now.Sub(s.second)
	first := s.second.IsZero()
	s.second = now
	percent := func(d time.Duration) int64 { return int64(100 * d / max(elapsed, 1)) }
	waited, ran := cpuTimes()
	if wait := waited - s.waited; !first && percent(wait) >= cpuWaitPercent {
		s.ring.Record(Event{Kind: CPUWait, Took: elapsed, Value: percent(wait)})
	}
	s.waited, s.ran = waited, ran
	for _, p := range []struct {
		of    Resource
		line  string
		least int64
	}{{CPU, "some", cpuPressurePercent}, {IO, "some", ioPressurePercent}, {Memory, "full", memoryPressurePercent}} {
		total, ok := pressure(p.of, p.line)
		if !ok {
			continue
		}
		if stalled := total - s.stalls[p.of]; !first && percent(stalled) >= p.least {
			s.ring.Record(Event{Kind: Pressure, Took: elapsed, Value: percent(stalled), Note: string(p.of)})
		}
		s.stalls[p.of] = total
	}
	if s.opts.LogDropped != nil {
		if n := s.opts.LogDropped(); n > s.dropped {
			s.ring.Record(Event{Kind: LogDropped, Value: int64(n - s.dropped)})
			s.dropped = n
		}
	}
	if s.opts.LogStalled != nil {
		if d := s.opts.LogStalled(); d >= logStalls {
			s.ring.Record(Event{Kind: LogStalled, Took: d})
		}
	}
	s.sampleGC()
}

// stoodStill finds out why nothing ran for this long: the process (or its machine) was stopped, or
// it got no CPU.
func (s *Sampler) stoodStill(gap time.Duration) {
	select {
	case <-s.continued:
		s.ring.Record(Event{Kind: Paused, Took: gap, Note: "stopped and continued by a signal"})
		return
	case <-time.After(20 * time.Millisecond): // the signal may be on its way
	}
	waited, ran := cpuTimes()
	if waited == 0 && ran == 0 {
		s.ring.Record(Event{Kind: Paused, Took: gap, Note: "its clock jumped"})
		return
	}
	if waited-s.waited >= gap/4 || ran-s.ran >= gap/2 {
		s.ring.Record(Event{Kind: CPUWait, Took: gap, Value: int64(100 * (waited - s.waited) / gap), Note: noThreadRan})
		return
	}
	s.ring.Record(Event{Kind: Paused, Took: gap, Note: "no thread of it asked for a CPU: frozen, or its machine was"})
}

// cpuTimes sums over all threads how long they waited for a CPU and how long they had one. Both are
// 0 where the kernel does not report them.
func cpuTimes() (waited, ran time.Duration) {
	dirs, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return 0, 0
	}
	for _, d := range dirs {
		text, err := os.ReadFile(filepath.Join("/proc/self/task", d.Name(), "schedstat"))
		if err != nil {
			continue // the thread has ended
		}
		fields := bytes.Fields(text)
		if len(fields) < 2 {
			continue
		}
		r, _ := strconv.ParseInt(string(fields[0]), 10, 64)
		w, _ := strconv.ParseInt(string(fields[1]), 10, 64)
		ran += time.Duration(r)
		waited += time.Duration(w)
	}
	return waited, ran
}

// pressure reads the total of one line of a file of /proc/pressure.
func pressure(of Resource, line string) (time.Duration, bool) {
	text, err := os.ReadFile("/proc/pressure/" + string(of))
	if err != nil {
		return 0, false
	}
	for l := range bytes.Lines(text) {
		rest, ok := bytes.CutPrefix(l, []byte(line+" "))
		if !ok {
			continue
		}
		_, total, ok := bytes.Cut(rest, []byte("total="))
		if !ok {
			return 0, false
		}
		us, err := strconv.ParseInt(string(bytes.TrimSpace(total)), 10, 64)
		return time.Duration(us) * time.Microsecond, err == nil
	}
	return 0, false
}

// sampleGC records long stops of the world.
func (s *Sampler) sampleGC() {
	metrics.Read(s.gc)
	if s.gc[0].Value.Kind() != metrics.KindFloat64Histogram {
		return
	}
	h := s.gc[0].Value.Float64Histogram()
	if len(s.gcCounts) == len(h.Counts) {
		for i := len(h.Counts) - 1; i >= 0 && h.Buckets[i] >= longGCPause.Seconds(); i-- {
			if h.Counts[i] > s.gcCounts[i] {
				s.ring.Record(Event{Kind: GCPause, Took: time.Duration(h.Buckets[i] * float64(time.Second))})
				break
			}
		}
	}
	s.gcCounts = append(s.gcCounts[:0], h.Counts...)
}

func (s *Sampler) watchSpace(ctx context.Context) {
	tick := time.NewTicker(spaceInterval)
	defer tick.Stop()
	for {
		if free, err := s.opts.FreeBytes(); err == nil && free < s.opts.MinFreeBytes && ctx.Err() == nil {
			s.ring.Record(Event{Kind: DiskFull, Value: int64(free)})
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

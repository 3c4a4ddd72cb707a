package neighbours

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/belaydb/belay/cli/doctor/report"
	"github.com/belaydb/belay/neighbours"
)

// A world is what happened by the second, beside a member that syncs 20 times in each.
type world struct {
	seconds int
	step    time.Duration // of a sample
	usual   float64       // bound of the fsyncs as a rule, seconds
	slow    float64       // ... when they are slow
	slowAt  func(second int) bool
	writers []func(second int) neighbours.Writer
}

func every(period, long int) func(int) bool {
	return func(s int) bool { return s%period < long }
}

// bursts is a writer that writes this many bytes a second at times, and a little otherwise.
func bursts(name string, bytes int64, at func(int) bool) func(int) neighbours.Writer {
	return func(s int) neighbours.Writer {
		w := neighbours.Writer{Name: name, Group: neighbours.Group{Kind: "unit", Name: name + ".service"}, PID: 99, Bytes: 20_000, From: neighbours.FromSyscalls, Looks: 1}
		if at(s) {
			w.Bytes, w.Syncs = bytes, 1
		}
		return w
	}
}

func own(w func(int) neighbours.Writer) func(int) neighbours.Writer {
	return func(s int) neighbours.Writer { one := w(s); one.Own = true; return one }
}

func elsewhere(w func(int) neighbours.Writer) func(int) neighbours.Writer {
	return func(s int) neighbours.Writer { one := w(s); one.Elsewhere = true; return one }
}

func (w world) samples() (all []neighbours.Sample) {
	step := int(max(w.step, time.Second) / time.Second)
	for second := 0; second < w.seconds; second += step {
		var sum neighbours.Sample
		for s := second; s < second+step; s++ {
			one := neighbours.Sample{At: time.Unix(1_800_000_000+int64(s)+1, 0), Took: time.Second}
			one.Fsync = neighbours.Fsync{Upper: []float64{w.usual}, Count: []float64{20}}
			if w.slowAt != nil && w.slowAt(s) {
				one.Fsync = neighbours.Fsync{Upper: []float64{w.usual, w.slow}, Count: []float64{10, 5}}
			}
			for _, writer := range w.writers {
				if wr := writer(s); wr.Bytes > 0 {
					one.Writers = append(one.Writers, wr)
					one.Disk.Bytes += wr.Bytes
				}
			}
			if s == second {
				sum = one
			} else {
				sum.Add(one)
			}
		}
		all = append(all, sum)
	}
	return all
}

func ids(r *report.Report) (all []string) {
	for _, f := range r.Findings {
		all = append(all, f.ID)
	}
	return all
}

func TestJudge(t *testing.T) {
	const mb = 1_000_000
	prometheus := bursts("prometheus", 30*mb, every(7200, 40))
	for _, tc := range []struct {
		name  string
		world world
		want  []string // ids of the findings, the worst first
		says  []string // in the text
		not   []string
	}{
		{
			name:  "a period of two hours",
			world: world{seconds: 9 * 3600, step: 4 * time.Second, usual: 0.004, slow: 2.048, slowAt: every(7200, 40), writers: []func(int) neighbours.Writer{prometheus, own(bursts("etcd", 0, every(1, 0)))}},
			want:  []string{"neighbour-periodic"},
			says:  []string{"prometheus (prometheus.service) writes 1.2 GB in 40 s, every 2 h 00 min; each time fsync p99 went from 4.0 ms to 2.0 s.", "sure      likely", "midnight UTC"},
		},
		{
			name:  "it minds nobody",
			world: world{seconds: 600, usual: 0.004, writers: []func(int) neighbours.Writer{bursts("prometheus", 30*mb, every(60, 5))}},
			want:  []string{"neighbour-harmless", "fsync-fast"},
			says:  []string{"150 MB in 5.0 s, every 1 min, and fsyncs do not mind"},
		},
		{
			name: "two writers, of which one is to blame",
			world: world{seconds: 1200, usual: 0.004, slow: 1.024, slowAt: every(60, 6), writers: []func(int) neighbours.Writer{
				bursts("backup", 50*mb, every(97, 5)), bursts("prometheus", 20*mb, every(60, 5)),
			}},
			want: []string{"neighbour-periodic", "neighbour-harmless"},
			says: []string{"CRITICAL  prometheus (prometheus.service)", "backup (backup.service) writes 250 MB in 5.0 s, every 1 min 37 s, and fsyncs do not mind"},
		},
		{
			name: "two writers, and both are",
			world: world{seconds: 1800, usual: 0.004, slow: 0.128, slowAt: func(s int) bool { return every(100, 6)(s) || every(130, 6)(s+40) }, writers: []func(int) neighbours.Writer{
				bursts("backup", 50*mb, every(100, 5)), bursts("prometheus", 20*mb, func(s int) bool { return every(130, 5)(s + 40) }),
			}},
			want: []string{"neighbour-periodic", "neighbour-periodic"},
		},
		{
			name: "a companion of who is to blame",
			world: world{seconds: 1200, usual: 0.004, slow: 1.024, slowAt: every(60, 6), writers: []func(int) neighbours.Writer{
				bursts("prometheus", 50*mb, every(60, 5)), bursts("journald", 1*mb, every(60, 5)),
			}},
			want: []string{"neighbour-periodic"},
			says: []string{"CRITICAL  prometheus"},
		},
		{
			name:  "bursts without a period",
			world: world{seconds: 1200, usual: 0.004, slow: 0.256, slowAt: at(6, 50, 210, 290, 700, 910, 1130), writers: []func(int) neighbours.Writer{bursts("rsync", 40*mb, at(5, 50, 210, 290, 700, 910, 1130))}},
			want:  []string{"neighbour-bursts"},
			says:  []string{"rsync (rsync.service) writes 200 MB in 5.0 s, 6 times; each time", "sure      likely"},
		},
		{
			name:  "the member's own writes",
			world: world{seconds: 600, usual: 0.004, slow: 0.256, slowAt: every(60, 5), writers: []func(int) neighbours.Writer{own(bursts("belay", 40*mb, every(60, 5)))}},
			want:  []string{"own-writes"},
			says:  []string{"when the member itself wrote much"},
			not:   []string{"neighbour-"},
		},
		{
			name:  "on another disk",
			world: world{seconds: 600, usual: 0.004, slow: 0.256, slowAt: every(60, 5), writers: []func(int) neighbours.Writer{elsewhere(bursts("backup", 40*mb, every(60, 5)))}},
			want:  []string{"slow-unexplained"},
			says:  []string{"other disk"},
		},
		{
			name:  "slow at other times",
			world: world{seconds: 1200, usual: 0.004, slow: 0.256, slowAt: func(s int) bool { return every(60, 5)(s + 30) }, writers: []func(int) neighbours.Writer{bursts("prometheus", 40*mb, every(60, 5))}},
			want:  []string{"slow-unexplained", "neighbour-harmless"},
		},
		{
			name:  "slow all along, by one who writes all along",
			world: world{seconds: 300, usual: 0.032, writers: []func(int) neighbours.Writer{bursts("postgres", 60*mb, every(1, 1))}},
			want:  []string{"neighbour-steady"},
			says:  []string{"postgres (postgres.service) writes all the time, 60 MB a second", "sure      possible"},
		},
		{
			name:  "slow all along, and nobody writes",
			world: world{seconds: 300, usual: 0.032},
			want:  []string{"slow-always"},
		},
		{
			name:  "too little",
			world: world{seconds: 5, usual: 0.004},
			want:  []string{"neighbours-few"},
		},
		{
			name:  "a burst that may be an accident",
			world: world{seconds: 600, usual: 0.004, slow: 0.256, slowAt: at(5, 300), writers: []func(int) neighbours.Writer{bursts("apt", 40*mb, at(5, 300))}},
			want:  []string{"slow-unexplained"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := Judge(tc.world.samples(), About{Subject: "x", At: time.Unix(1_800_100_000, 0), Disk: "sda"})
			var text strings.Builder
			if err := r.Text(&text, report.Style{Width: 200}); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(ids(r), tc.want) {
				t.Fatalf("findings %v, want %v\n%s", ids(r), tc.want, text.String())
			}
			for _, part := range tc.says {
				if !strings.Contains(text.String(), part) {
					t.Errorf("it does not say %q:\n%s", part, text.String())
				}
			}
			for _, part := range tc.not {
				if strings.Contains(text.String(), part) {
					t.Errorf("it says %q:\n%s", part, text.String())
				}
			}
			for line := range strings.Lines(text.String()) {
				if n := len([]rune(line)); n > 201 {
					t.Errorf("a line of %d columns: %s", n, line)
				}
			}
			var page strings.Builder
			if err := r.HTML(&page); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// at is long seconds from each of these on.
func at(long int, seconds ...int) func(int) bool {
	return func(s int) bool {
		return slices.ContainsFunc(seconds, func(x int) bool { return x <= s && s < x+long })
	}
}

// TestNoPeriodInNoise has bursts at random times: of many such worlds hardly one has a period, and
// hardly one blames a writer whose bursts have nothing to do with the fsyncs.
func TestNoPeriodInNoise(t *testing.T) {
	const worlds, long, n = 60, 1200, 8
	periodic, blamed := 0, 0
	rng := rand.New(rand.NewPCG(11, 5)) // the seed decides: it fails always or never
	times := func() func(int) bool {
		var all []int
		for range n {
			all = append(all, rng.IntN(long))
		}
		return at(4, all...)
	}
	for range worlds {
		samples := world{seconds: long, usual: 0.004, slow: 0.256, slowAt: times(), writers: []func(int) neighbours.Writer{bursts("a", 40_000_000, times())}}.samples()
		for _, s := range seriesOf(samples) {
			if s.period > 0 {
				periodic++
			}
		}
		for _, id := range ids(Judge(samples, About{})) {
			if strings.HasPrefix(id, "neighbour-") && id != "neighbour-harmless" {
				blamed++
			}
		}
	}
	if periodic > worlds/100 || blamed > 0 {
		t.Errorf("of %d worlds %d have a period, and %d blame somebody", worlds, periodic, blamed)
	}
}

// TestPeriods has what periods look like: jitter, a burst with pauses in it, one that is missing, a
// large one among small ones, coarse samples.
func TestPeriods(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 6))
	jitter := map[int]int{}
	for _, tc := range []struct {
		name   string
		world  world
		period time.Duration // 0: none
		bursts int
	}{
		{"as a clock", world{seconds: 600, writers: []func(int) neighbours.Writer{bursts("w", 10_000_000, every(60, 5))}}, time.Minute, 10},
		{"jitter", world{seconds: 1200, writers: []func(int) neighbours.Writer{bursts("w", 10_000_000, func(s int) bool {
			k := s / 60
			if _, ok := jitter[k]; !ok {
				jitter[k] = rng.IntN(5)
			}
			return at(5, 60*k+jitter[k])(s)
		})}}, time.Minute, 20},
		{"pauses", world{seconds: 1200, writers: []func(int) neighbours.Writer{bursts("w", 10_000_000, func(s int) bool { return s%100 < 20 && s%8 < 3 })}}, 100 * time.Second, 12},
		{"one is missing", world{seconds: 1200, writers: []func(int) neighbours.Writer{bursts("w", 10_000_000, func(s int) bool { return s%100 < 5 && s/100 != 6 })}}, 100 * time.Second, 11},
		{"each third is large", world{seconds: 1200, writers: []func(int) neighbours.Writer{func(s int) neighbours.Writer {
			b := int64(10_000_000)
			if s/100%3 == 0 {
				b = 50_000_000
			}
			return bursts("w", b, every(100, 5))(s)
		}}}, 100 * time.Second, 12},
		{"coarse", world{seconds: 6 * 3600, step: 10 * time.Second, writers: []func(int) neighbours.Writer{bursts("w", 30_000_000, every(7200, 40))}}, 2 * time.Hour, 3},
		{"only twice", world{seconds: 200, writers: []func(int) neighbours.Writer{bursts("w", 10_000_000, every(100, 5))}}, 0, 2},
		{"always", world{seconds: 200, writers: []func(int) neighbours.Writer{bursts("w", 10_000_000, every(1, 1))}}, 0, 0},
	} {
		s := seriesOf(tc.world.samples())[0]
		if (s.period-tc.period).Abs() > tc.period/50 || len(s.bursts) != tc.bursts {
			t.Errorf("%s: %d bursts, a period of %s; want %d, %s", tc.name, len(s.bursts), s.period, tc.bursts, tc.period)
		}
	}
}

// TestWithoutFsyncs has no /metrics: the disk's flushes stand for the member's fsyncs.
func TestWithoutFsyncs(t *testing.T) {
	samples := world{seconds: 600, writers: []func(int) neighbours.Writer{bursts("prometheus", 40_000_000, every(60, 5))}}.samples()
	for i := range samples {
		samples[i].Fsync = neighbours.Fsync{}
		samples[i].Disk.Flushes, samples[i].Disk.FlushTime = 10, 20*time.Millisecond
		if i%60 < 6 {
			samples[i].Disk.FlushTime = 2 * time.Second
		}
	}
	r := Judge(samples, About{Missing: "connection refused"})
	if want := []string{"neighbour-periodic", "fsync-unknown"}; !slices.Equal(ids(r), want) || !strings.Contains(r.Findings[0].What, "the disk's latency went from 2.0 ms to ") || r.Findings[1].Evidence[0] != "connection refused" {
		t.Errorf("%v: %+v", ids(r), r.Findings)
	}
	for i := range samples {
		samples[i].Disk = neighbours.Disk{}
	}
	if r := Judge(samples, About{}); !slices.Equal(ids(r), []string{"fsync-unknown"}) || r.ExitCode() != report.CodeUnknown {
		t.Errorf("nothing known: %v, exit code %d", ids(r), r.ExitCode())
	}
}

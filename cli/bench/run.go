package bench

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/belaydb/belay/cli/bench/load"
)

// A section is one report of a run, as etcd's tool prints them.
type section struct {
	before, after string // what is printed around it
	name          string // what was counted
	class         *load.Class
	elapsed       time.Duration
	weight        float64 // operations in each request that was timed, where they are not 1; 0: 1
}

// rate is operations per second.
func (s section) rate() float64 {
	n := float64(s.class.Counts.N())
	if s.weight > 0 {
		n *= s.weight
	}
	if s.elapsed <= 0 {
		return 0
	}
	return n / s.elapsed.Seconds()
}

// An outcome is one run of a sub-command.
type outcome struct {
	sections    []section
	more        []section // counted, too, and shown among the percentiles alone
	trailer     string    // printed at the end
	interrupted bool
	unanswered  int64
	oldest      time.Duration
	gaveUp      error
	costs       *costs // nil: not to be seen
}

// operations are all that succeeded.
func (o *outcome) operations() (n int64) {
	for _, s := range o.sections {
		n += s.class.Counts.N()
	}
	return n
}

func (o *outcome) failures() (n int64) {
	for _, s := range o.sections {
		n += s.class.Counts.Failed()
	}
	return n
}

// main is the section that runs are compared by: the last one, which in watch and watch-latency is
// that of the events. A mix of reads and writes is taken as a whole.
func (o *outcome) main() section {
	if len(o.sections) == 2 && o.sections[0].name == "read" {
		both := section{name: "all", class: &load.Class{Counts: load.NewCounts()}, elapsed: o.sections[0].elapsed}
		for _, s := range o.sections {
			both.class.Counts.Merge(s.class.Counts)
			both.class.Seconds = addSeconds(both.class.Seconds, s.class.Seconds)
		}
		return both
	}
	return o.sections[len(o.sections)-1]
}

// addSeconds adds what two classes did in each second; latencies are those of the slower one.
func addSeconds(a, b []load.Second) []load.Second {
	if a == nil {
		return slices.Clone(b)
	}
	for i := range min(len(a), len(b)) {
		a[i].Ops += b[i].Ops
		a[i].Failed += b[i].Failed
		a[i].P50, a[i].P99, a[i].Max = max(a[i].P50, b[i].P50), max(a[i].P99, b[i].P99), max(a[i].Max, b[i].Max)
	}
	return a
}

// A task is one sub-command with its flags.
type task struct {
	// greet is printed before anything is done, as etcd's tool does.
	greet string
	sizes []int // of values, each of which is measured; nil: it has none
	run   func(ctx context.Context, t *target, valSize int) (*outcome, error)
}

// A measured is one run of several.
type measured struct {
	side    string // A or B
	of      []string
	size    int // of values; -1: none
	attempt int // from 1
	*outcome
}

// runs makes the body of a sub-command: plan checks its flags and says what is to be done.
func (b *bench) runs(plan func(cmd *cobra.Command, args []string) (*task, error)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		t, err := plan(cmd, args)
		if err != nil {
			return err
		}
		b.changed = flagsOf(cmd)
		return b.measure(cmd.Context(), cmd.Name(), t)
	}
}

// measure runs a task as often as the flags say: for each size of values, --repeat times, against each
// side, beginning with the other one each time.
func (b *bench) measure(ctx context.Context, command string, t *task) error {
	if b.output == "text" {
		fmt.Fprint(b.out, t.greet)
	}
	began := time.Now()
	sides := []side{{name: "A", of: b.endpoints}}
	if len(b.versus) > 0 {
		sides = append(sides, side{name: "B", of: b.versus})
	}
	for i := range sides {
		to, err := b.connect(ctx, sides[i].of)
		if err != nil {
			return err
		}
		defer to.close()
		sides[i].to = to
	}
	sizes := t.sizes
	if sizes == nil {
		sizes = []int{-1}
	}
	repeat := b.repeats()
	b.several = len(sizes)*len(sides)*repeat > 1
	var all []*measured
	for _, size := range sizes {
		for attempt := 1; attempt <= repeat && ctx.Err() == nil; attempt++ {
			order := slices.Clone(sides)
			if attempt%2 == 0 {
				slices.Reverse(order)
			}
			for _, s := range order {
				if ctx.Err() != nil {
					break
				}
				o, err := b.once(ctx, t, s.to, size)
				if err != nil {
					return err
				}
				m := &measured{side: s.name, of: s.of, size: size, attempt: attempt, outcome: o}
				all = append(all, m)
				if b.several && b.output == "text" {
					b.printLine(m, len(all) == 1)
				}
				if o.gaveUp != nil {
					b.code = codeFailed
					fmt.Fprintf(b.err, "given up: not one request succeeded; the last error: %s\n", describe(o.gaveUp))
				}
			}
		}
	}
	return b.conclude(command, began, ctx.Err() != nil, all)
}

// A side is one of two sets of endpoints that are compared.
type side struct {
	name string
	of   []string
	to   *target
}

// repeats is how often each side is measured.
func (b *bench) repeats() int {
	if b.repeat == 0 && len(b.versus) > 0 {
		return 3
	}
	return max(b.repeat, 1)
}

// once is one run with what it cost.
func (b *bench) once(ctx context.Context, t *task, to *target, size int) (*outcome, error) {
	m := newMeter(ctx, to)
	defer m.http.CloseIdleConnections()
	to.meter = m
	_ = m.begin(ctx) // again, by a run that warms up first
	o, err := t.run(ctx, to, size)
	if err != nil {
		return nil, err
	}
	if !m.ended {
		m.end(ctx)
	}
	o.costs = m.costs()
	return o, nil
}

// conclude prints what was measured, in every form that is asked for.
func (b *bench) conclude(command string, began time.Time, interrupted bool, all []*measured) error {
	verdicts := compare(all)
	switch {
	case b.output == "json":
		if err := b.printJSON(command, began, all, verdicts); err != nil {
			return err
		}
	case b.several:
		b.printVerdicts(all, verdicts)
	case len(all) == 1:
		b.printer().print(all[0].outcome)
	}
	if b.perfdash {
		for _, m := range all {
			if err := b.writePerfdash(m.outcome); err != nil {
				return fmt.Errorf("--report-perfdash: %w", err)
			}
		}
	}
	if b.report != "" && len(all) > 0 {
		if err := b.writeReport(command, began, all, verdicts); err != nil {
			return fmt.Errorf("--report: %w", err)
		}
	}
	if interrupted {
		fmt.Fprintln(b.err, "interrupted: this is what was measured so far")
		b.code = codeInterrupted
		return nil
	}
	for _, m := range all {
		if m.operations() == 0 {
			b.code = codeFailed
		}
	}
	return nil
}

// simple runs one class of operations and makes the section that etcd's tool prints.
func (b *bench) simple(ctx context.Context, o load.Options, t *target, name, after string, newClient func(int) (load.Operation, error)) (*outcome, error) {
	r, err := b.load(ctx, o, t, newClient)
	if err != nil {
		return nil, err
	}
	out := outcomeOf(r)
	out.sections = []section{{name: name, after: after, class: r.Classes[0], elapsed: r.Elapsed}}
	return out, nil
}

// load is load.Run with the meter and a line each second.
func (b *bench) load(ctx context.Context, o load.Options, t *target, newClient func(int) (load.Operation, error)) (*load.Result, error) {
	o.Begin, o.End = t.meter.begin, t.meter.end
	begin := time.Now().Add(o.WarmUp)
	if o.WarmUp > 0 && b.everySecond() {
		fmt.Fprintf(b.err, "warming up for %v\n", o.WarmUp)
	}
	o.Tick = func(s load.Second, done int64) { b.second(begin, s, done, o.Total) }
	return load.Run(ctx, o, newClient)
}

// everySecond reports whether a line is printed each second.
func (b *bench) everySecond() bool {
	if b.perSecondSet {
		return b.perSecond
	}
	f, ok := b.err.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// second prints the line of a second; total is 0 if it is not known.
func (b *bench) second(begin time.Time, s load.Second, done, total int64) {
	if !b.everySecond() || s.Span <= 0 {
		return
	}
	line := fmt.Sprintf("%6.1f s %10s ops/s  p50 %8s  p99 %8s  max %8s", s.At.Add(s.Span).Sub(begin).Seconds(), grouped(int64(s.Rate())), short(s.P50), short(s.P99), short(s.Max))
	if s.Failed > 0 {
		line += fmt.Sprintf("  %s errors", grouped(s.Failed))
	}
	if total > 0 {
		line += fmt.Sprintf("  %3d %%", 100*done/total)
	}
	fmt.Fprintln(b.err, line)
}

// grouped is a number with commas.
func grouped(n int64) string {
	digits := fmt.Sprint(n)
	var groups []string
	for len(digits) > 3 {
		groups = append([]string{digits[len(digits)-3:]}, groups...)
		digits = digits[:len(digits)-3]
	}
	return strings.Join(append([]string{digits}, groups...), ",")
}

// short is a latency with three digits: 850 µs, 4.12 ms, 41.2 ms, 1.30 s.
func short(d time.Duration) string {
	switch ms := float64(d) / float64(time.Millisecond); {
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case ms < 10:
		return fmt.Sprintf("%.2f ms", ms)
	case ms < 100:
		return fmt.Sprintf("%.1f ms", ms)
	case ms < 1000:
		return fmt.Sprintf("%.0f ms", ms)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

func outcomeOf(r *load.Result) *outcome {
	return &outcome{interrupted: r.Interrupted, unanswered: r.Unanswered, oldest: r.Oldest, gaveUp: r.GaveUp}
}

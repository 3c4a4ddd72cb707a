package bench

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// A figure is one number by which runs are compared.
type figure struct {
	name   string
	higher bool // more is better
	of     func(*measured) (value float64, known bool)
	text   func(float64) string
}

func figures() []figure {
	quantile := func(q float64) func(*measured) (float64, bool) {
		return func(m *measured) (float64, bool) {
			c := m.main().class.Counts
			return c.Quantile(q).Seconds(), c.N() > 0
		}
	}
	seconds := func(s float64) string { return short(time.Duration(s * float64(time.Second))) }
	return []figure{
		{"ops/s", true, func(m *measured) (float64, bool) { return m.main().rate(), true }, func(v float64) string { return grouped(int64(v)) }},
		{"p50", false, quantile(0.50), seconds},
		{"p99", false, quantile(0.99), seconds},
		{"p99.9", false, quantile(0.999), seconds},
		{"server CPU s per 1,000", false, func(m *measured) (float64, bool) {
			if m.costs == nil || m.main().class.Counts.N() == 0 {
				return 0, false
			}
			return m.costs.CPU / float64(m.main().class.Counts.N()) * 1000, true
		}, func(v float64) string { return fmt.Sprintf("%.4f", v) }},
	}
}

// A spread is one side's runs by one figure.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	Runs   int     `json:"runs"`
}

func spreadOf(values []float64) spread {
	slices.SortFunc(values, cmp.Compare)
	n := len(values)
	return spread{Median: (values[(n-1)/2] + values[n/2]) / 2, Min: values[0], Max: values[n-1], Runs: n}
}

// A verdict compares the sides by one figure, at one size of values.
type verdict struct {
	Size   int     `json:"val_size,omitempty"`
	Figure string  `json:"figure"`
	A      spread  `json:"a"`
	B      *spread `json:"b,omitempty"` // nil: there is one side
	Ratio  float64 `json:"ratio,omitempty"`
	Says   string  `json:"verdict,omitempty"`

	text func(float64) string
}

// compare makes the verdicts. Sides whose runs overlap are not told apart: with a handful of runs the
// ranges say as much as a test would, and everybody sees why.
func compare(all []*measured) (verdicts []verdict) {
	for _, size := range sizesOf(all) {
		for _, f := range figures() {
			values := map[string][]float64{}
			for _, m := range all {
				if m.size != size || m.interrupted {
					continue
				}
				if v, known := f.of(m); known {
					values[m.side] = append(values[m.side], v)
				}
			}
			if len(values["A"]) == 0 {
				continue
			}
			v := verdict{Size: max(size, 0), Figure: f.name, A: spreadOf(values["A"]), text: f.text}
			if len(values["B"]) > 0 {
				b := spreadOf(values["B"])
				v.B = &b
				v.judge(f)
			}
			verdicts = append(verdicts, v)
		}
	}
	return verdicts
}

// fewest is how many runs of each side make a verdict. Three of each part by chance in one of ten
// cases, five in one of 126.
const fewest = 3

func (v *verdict) judge(f figure) {
	if v.A.Median > 0 {
		v.Ratio = v.B.Median / v.A.Median
	}
	switch {
	case v.A.Runs < fewest || v.B.Runs < fewest:
		v.Says = "too few runs: give --repeat=3 or more"
	case v.A.Min <= v.B.Max && v.B.Min <= v.A.Max:
		v.Says = "not to be told apart"
	case f.higher == (v.A.Median > v.B.Median):
		v.Says = "A is better"
	default:
		v.Says = "B is better"
	}
}

// sizesOf are the sizes of values in the order in which they were measured.
func sizesOf(all []*measured) (sizes []int) {
	for _, m := range all {
		if !slices.Contains(sizes, m.size) {
			sizes = append(sizes, m.size)
		}
	}
	return sizes
}

// printLine writes one of several runs.
func (b *bench) printLine(m *measured, first bool) {
	if first {
		fmt.Fprintf(b.out, "%-5s %-4s %3s %9s %8s %8s %8s %8s %7s %8s\n", "size", "side", "run", "ops/s", "p50", "p99", "p99.9", "max", "errors", "CPU s/1k")
	}
	s := m.main()
	c := s.class.Counts
	cpu := "-"
	if m.costs != nil && c.N() > 0 {
		cpu = fmt.Sprintf("%.4f", m.costs.CPU/float64(c.N())*1000)
	}
	fmt.Fprintf(b.out, "%-5s %-4s %3d %9s %8s %8s %8s %8s %7s %8s\n", sizeName(m.size), m.side, m.attempt, grouped(int64(s.rate())),
		short(c.Quantile(0.5)), short(c.Quantile(0.99)), short(c.Quantile(0.999)), short(c.Slowest()), grouped(m.failures()), cpu)
	for _, one := range m.sections {
		for _, e := range sortedErrors(one.class.Counts.Errors()) {
			fmt.Fprintf(b.out, "         [%d]\t%s\n", e.count, e.text)
		}
	}
	if m.unanswered > 0 {
		fmt.Fprintf(b.out, "         %s requests were due and had not ended, the oldest for %s\n", grouped(m.unanswered), short(m.oldest))
	}
}

func sizeName(size int) string {
	if size < 0 {
		return "-"
	}
	return sizeText(size)
}

// printVerdicts writes the medians with their spread, and what they say.
func (b *bench) printVerdicts(all []*measured, verdicts []verdict) {
	if len(all) == 0 {
		return
	}
	printVerdicts(b.out, all, verdicts)
}

func printVerdicts(w io.Writer, all []*measured, verdicts []verdict) {
	for _, side := range []string{"A", "B"} {
		if i := slices.IndexFunc(all, func(m *measured) bool { return m.side == side }); i >= 0 {
			if side == "A" {
				fmt.Fprintln(w)
			}
			fmt.Fprintf(w, "%s = %s\n", side, strings.Join(all[i].of, ","))
		}
	}
	size := -1
	for i, v := range verdicts {
		if i == 0 || v.Size != size {
			size = v.Size
			if all[0].size >= 0 {
				fmt.Fprintf(w, "\nval-size %s:\n", sizeText(size))
			} else {
				fmt.Fprintln(w)
			}
		}
		fmt.Fprintf(w, "  %-22s  A  %s\n", v.Figure, v.A.words(v.text))
		if v.B != nil {
			fmt.Fprintf(w, "  %-22s  B  %s\n  %-22s     B : A %.2f, %s\n", "", v.B.words(v.text), "", v.Ratio, v.Says)
		}
	}
}

// words are a median and its spread.
func (s spread) words(text func(float64) string) string {
	if s.Runs == 1 {
		return text(s.Median)
	}
	return fmt.Sprintf("%s (%s..%s)", text(s.Median), text(s.Min), text(s.Max))
}

package bench

import (
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/belaydb/belay/cli/bench/load"
)

// print writes an outcome: each section as etcd's tool does, then what it does not have.
func (b *bench) print(o *outcome) {
	for _, s := range o.sections {
		io.WriteString(b.out, s.before)
		b.printReport(b.out, s)
		io.WriteString(b.out, s.after)
	}
	io.WriteString(b.out, o.trailer)
	b.printMore(b.out, o)
}

// etcdPercentiles are those of etcd's report.
var etcdPercentiles = [...]float64{10, 25, 50, 75, 90, 95, 99, 99.9}

func (b *bench) format() string {
	if b.precise {
		return "%g"
	}
	return "%4.4f"
}

// printReport writes etcd's report of one class of operations.
func (b *bench) printReport(w io.Writer, s section) {
	c := s.class.Counts
	number := b.format()
	secs := func(d time.Duration) string { return fmt.Sprintf(number+" secs", d.Seconds()) }
	if c.N() > 0 {
		fmt.Fprint(w, "\nSummary:\n")
		fmt.Fprintf(w, "  Total:\t%s.\n", secs(s.elapsed))
		fmt.Fprintf(w, "  Slowest:\t%s.\n", secs(c.Slowest()))
		fmt.Fprintf(w, "  Fastest:\t%s.\n", secs(c.Fastest()))
		fmt.Fprintf(w, "  Average:\t%s.\n", secs(c.Mean()))
		fmt.Fprintf(w, "  Stddev:\t%s.\n", secs(c.Deviation()))
		fmt.Fprintf(w, "  Requests/sec:\t"+number+"\n", s.rate())
		fmt.Fprint(w, "\nResponse time histogram:\n")
		for _, bar := range bars(c) {
			fmt.Fprintf(w, "  "+number+" [%v]\t|%v\n", bar.bound.Seconds(), bar.count, strings.Repeat("∎", bar.long))
		}
		fmt.Fprint(w, "\nLatency distribution:\n")
		for i, at := range ranks(c.N()) {
			if d := c.Quantile(at); at > 0 && d > 0 {
				fmt.Fprintf(w, "  %v%% in %s.\n", etcdPercentiles[i], secs(d))
			}
		}
		if b.sample {
			printSample(w, s.class.Seconds)
		}
	}
	if errs := c.Errors(); len(errs) > 0 {
		fmt.Fprint(w, "\nError distribution:\n")
		for _, e := range sortedErrors(errs) {
			fmt.Fprintf(w, "  [%d]\t%s\n", e.count, e.text)
		}
	}
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

type bar struct {
	bound time.Duration
	count int64
	long  int
}

// bars are etcd's histogram: eleven bounds at equal distances from the fastest to the slowest.
func bars(c *load.Counts) []bar {
	const steps, longest = 10, 40
	all := make([]bar, steps+1)
	bounds := make([]time.Duration, steps+1)
	step := float64(c.Slowest()-c.Fastest()) / steps
	for i := range bounds {
		bounds[i] = c.Fastest() + time.Duration(step*float64(i))
	}
	bounds[steps] = c.Slowest()
	most := int64(0)
	for i, n := range c.Spread(bounds) {
		all[i] = bar{bound: bounds[i], count: n}
		most = max(most, n)
	}
	for i := range all {
		if most > 0 {
			all[i].long = int(all[i].count * longest / most)
		}
	}
	return all
}

// ranks are the shares of n latencies at which etcd's report reads its percentiles: the first one
// at which the percentile is reached, and each one behind that of the percentile before it. 0: n is
// too small for it.
func ranks(n int64) []float64 {
	shares := make([]float64, len(etcdPercentiles))
	at := int64(-1)
	for i, p := range etcdPercentiles {
		at++
		for float64(at)*100/float64(n) < p {
			at = max(at+1, int64(p*float64(n)/100)-1)
		}
		if at >= n {
			break
		}
		shares[i] = (float64(at) + 1) / float64(n)
	}
	return shares
}

func printSample(w io.Writer, seconds []load.Second) {
	fmt.Fprint(w, "\nSample in one second (unix latency throughput):\n")
	table := csv.NewWriter(w)
	_ = table.Write([]string{"UNIX-SECOND", "MIN-LATENCY-MS", "AVG-LATENCY-MS", "MAX-LATENCY-MS", "AVG-THROUGHPUT"})
	for _, s := range seconds {
		_ = table.Write([]string{strconv.FormatInt(s.At.Unix(), 10), s.Min.String(), s.Mean.String(), s.Max.String(), strconv.FormatInt(s.Ops, 10)})
	}
	table.Flush() // what cannot be written to standard output is told nowhere else either
	fmt.Fprintln(w)
}

type errorCount struct {
	text  string
	count int64
}

// sortedErrors are errors by their number, the most frequent first.
func sortedErrors(errs map[string]int64) []errorCount {
	var all []errorCount
	for text, n := range errs {
		all = append(all, errorCount{text, n})
	}
	slices.SortFunc(all, func(x, y errorCount) int {
		if x.count != y.count {
			return int(y.count - x.count)
		}
		return strings.Compare(x.text, y.text)
	})
	return all
}

// highPercentiles are those of the lines below etcd's report.
var highPercentiles = [...]float64{50, 90, 99, 99.9, 99.99}

// printMore writes what etcd's report lacks.
func (b *bench) printMore(w io.Writer, o *outcome) {
	number := b.format()
	fmt.Fprint(w, "\nPercentiles:\n")
	for _, s := range slices.Concat(o.sections, o.more) {
		c := s.class.Counts
		if c.N() == 0 {
			continue
		}
		line := "  "
		if s.name != "" {
			line += s.name + ": "
		}
		for i, p := range highPercentiles {
			if i > 0 {
				line += ", "
			}
			line += fmt.Sprintf("p%v "+number, p, c.Quantile(p/100).Seconds())
		}
		fmt.Fprintf(w, "%s, max "+number+" secs.\n", line, c.Slowest().Seconds())
	}
	if o.unanswered > 0 {
		fmt.Fprintf(w, "Unanswered:\t%d requests were due and had not ended; the oldest for "+number+" secs.\n", o.unanswered, o.oldest.Seconds())
	}
}

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
	"github.com/belaydb/belay/internal/show"
)

// A printer writes outcomes as text.
type printer struct {
	w       io.Writer
	precise bool // all digits of a number
	sample  bool // what each second was
}

func (b *bench) printer() printer { return printer{b.out, b.precise, b.sample} }

// print writes an outcome: each section as etcd's tool does, then what it does not have.
func (p printer) print(o *outcome) {
	for _, s := range o.sections {
		io.WriteString(p.w, s.before)
		p.printReport(s)
		io.WriteString(p.w, s.after)
	}
	io.WriteString(p.w, o.trailer)
	p.printMore(o)
}

// etcdPercentiles are those of etcd's report.
var etcdPercentiles = [...]float64{10, 25, 50, 75, 90, 95, 99, 99.9}

func (p printer) format() string {
	if p.precise {
		return "%g"
	}
	return "%4.4f"
}

// printReport writes etcd's report of one class of operations.
func (p printer) printReport(s section) {
	c := s.class.Counts
	number := p.format()
	secs := func(d time.Duration) string { return fmt.Sprintf(number+" secs", d.Seconds()) }
	if c.N() > 0 {
		fmt.Fprint(p.w, "\nSummary:\n")
		fmt.Fprintf(p.w, "  Total:\t%s.\n", secs(s.elapsed))
		fmt.Fprintf(p.w, "  Slowest:\t%s.\n", secs(c.Slowest()))
		fmt.Fprintf(p.w, "  Fastest:\t%s.\n", secs(c.Fastest()))
		fmt.Fprintf(p.w, "  Average:\t%s.\n", secs(c.Mean()))
		fmt.Fprintf(p.w, "  Stddev:\t%s.\n", secs(c.Deviation()))
		fmt.Fprintf(p.w, "  Requests/sec:\t"+number+"\n", s.rate())
		fmt.Fprint(p.w, "\nResponse time histogram:\n")
		for _, bar := range bars(c) {
			fmt.Fprintf(p.w, "  "+number+" [%v]\t|%v\n", bar.bound.Seconds(), bar.count, strings.Repeat("∎", bar.long))
		}
		fmt.Fprint(p.w, "\nLatency distribution:\n")
		for i, at := range ranks(c.N()) {
			if d := c.Quantile(at); at > 0 && d > 0 {
				fmt.Fprintf(p.w, "  %v%% in %s.\n", etcdPercentiles[i], secs(d))
			}
		}
		if p.sample {
			printSample(p.w, s.class.Seconds)
		}
	}
	if errs := c.Errors(); len(errs) > 0 {
		fmt.Fprint(p.w, "\nError distribution:\n")
		for _, e := range sortedErrors(errs) {
			fmt.Fprintf(p.w, "  [%d]\t%s\n", e.count, e.text)
		}
	}
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
func (p printer) printMore(o *outcome) {
	number := p.format()
	fmt.Fprint(p.w, "\nPercentiles:\n")
	for _, s := range slices.Concat(o.sections, o.more) {
		c := s.class.Counts
		if c.N() == 0 {
			continue
		}
		line := "  "
		if s.name != "" {
			line += s.name + ": "
		}
		for i, share := range highPercentiles {
			if i > 0 {
				line += ", "
			}
			line += fmt.Sprintf("p%v "+number, share, c.Quantile(share/100).Seconds())
		}
		fmt.Fprintf(p.w, "%s secs.\n", line)
	}
	if o.unanswered > 0 {
		fmt.Fprintf(p.w, "Unanswered:\t%d requests were due and not answered, the oldest for "+number+" secs.\n", o.unanswered, o.oldest.Seconds())
	}
	p.printCosts(o)
}

// printCosts writes what the servers and the client have spent.
func (p printer) printCosts(o *outcome) {
	c, n := o.costs, float64(o.operations())
	if c == nil || n == 0 {
		return
	}
	seen := fmt.Sprintf("%d of %d members", c.Seen, c.Members)
	if c.Seen == c.Members {
		seen = fmt.Sprintf("%d members", c.Members)
		if c.Members == 1 {
			seen = "1 member"
		}
	}
	fmt.Fprintf(p.w, "Server CPU:\t%.4f secs per 1,000 operations (%s).\nServer RSS:\t%s, of the largest member.\n", c.CPU/n*1000, seen, show.Bytes(int64(c.RSS)))
	if c.Written >= 0 {
		fmt.Fprintf(p.w, "Written:\t%s for each operation.\n", show.Bytes(int64(float64(c.Written)/n)))
	}
	fmt.Fprintf(p.w, "Client CPU:\t%.4f secs per 1,000 operations.\n", c.Client/n*1000)
}

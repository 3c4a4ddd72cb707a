package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// scoreAll prints all tables.
func scoreAll(out io.Writer, dir, half string, verbose bool) error {
	all, err := scoreKept(dir, half)
	if err != nil {
		return err
	}
	for _, s := range all {
		if len(s.outcomes) == 0 {
			continue
		}
		fmt.Fprintf(out, "# %s\n\n", s.source)
		for _, h := range []struct {
			name, title string
			even        bool
		}{{"even", "even numbers, on which it was tuned", true}, {"odd", "odd numbers", false}} {
			if half != "" && half != h.name {
				continue
			}
			var part []*outcome
			for _, o := range s.outcomes {
				if o.Row == "" && o.even() == h.even {
					part = append(part, o)
				}
			}
			if len(part) > 0 {
				fmt.Fprintf(out, "## %s\n\n", h.title)
				table(out, part, verbose)
			}
		}
		if half == "" {
			tableOfSizes(out, s.outcomes)
		}
	}
	return nil
}

// interval is Wilson's at 95 % for k of n, in percent.
func interval(k, n int) (low, high float64) {
	if n == 0 {
		return 0, 100
	}
	const z = 1.959964
	p, m := float64(k)/float64(n), float64(n)
	middle := (p + z*z/(2*m)) / (1 + z*z/m)
	half := z / (1 + z*z/m) * math.Sqrt(p*(1-p)/m+z*z/(4*m*m))
	return 100 * max(0, middle-half), 100 * min(1, middle+half)
}

// share is k of n with its bounds.
func share(k, n int) string {
	if n == 0 {
		return "0 of 0"
	}
	low, high := interval(k, n)
	return fmt.Sprintf("%d of %d = %.1f %% (%.1f to %.1f)", k, n, 100*float64(k)/float64(n), low, high)
}

// counts are how often something is so.
type counts struct {
	all, told, silent, again       int
	cannot                         int
	member, cause, both, wrong     int
	wrongSure, pairs, bothOfAPair  int
	quiet, falsely, falselySayings int
	quietSeconds                   float64
}

func countOf(part []*outcome) (c counts) {
	for _, o := range part {
		if len(o.Faults) == 0 {
			c.quiet++
			c.quietSeconds += o.Settled.Sub(o.Began).Seconds()
			if len(o.falsely) > 0 {
				c.falsely++
			}
			c.falselySayings += len(o.falsely)
			continue
		}
		c.all++
		if o.again {
			c.again++
			continue
		}
		if !o.told {
			c.silent++
			continue
		}
		c.told++
		add := func(n *int, is bool) {
			if is {
				*n++
			}
		}
		add(&c.member, o.member)
		add(&c.cause, o.cause)
		add(&c.both, o.both)
		add(&c.wrong, len(o.wrong) > 0)
		add(&c.wrongSure, len(o.wrongSure) > 0)
		add(&c.cannot, !o.both && len(o.wrong) == 0)
		if len(o.Faults) == 2 {
			c.pairs++
			add(&c.bothOfAPair, o.bothOfPair)
		}
	}
	return c
}

func table(out io.Writer, part []*outcome, verbose bool) {
	keep := func(ok func(o *outcome) bool) (some []*outcome) {
		for _, o := range part {
			if ok(o) {
				some = append(some, o)
			}
		}
		return some
	}
	groups := []struct {
		title string
		of    []*outcome
	}{
		{"all incidents", part},
		{"leadership moved", keep(func(o *outcome) bool { return o.changed() })},
		{"leadership stayed", keep(func(o *outcome) bool { return !o.changed() })},
		{"one fault", keep(func(o *outcome) bool { return len(o.Faults) == 1 })},
		{"pairs of two", keep(func(o *outcome) bool { return len(o.Faults) == 2 })},
	}
	fmt.Fprintln(out, "| | incidents | said before, no news | nothing said | something said | of those: member right | cause right | both right | \"cannot tell\" | wrong | wrong and sure |")
	fmt.Fprintln(out, "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
	for _, g := range groups {
		c := countOf(g.of)
		fmt.Fprintf(out, "| %s | %d | %d | %d | %d | %s | %s | %s | %d | %s | %s |\n", g.title, c.all, c.again, c.silent, c.told,
			share(c.member, c.told), share(c.cause, c.told), share(c.both, c.told), c.cannot, share(c.wrong, c.told), share(c.wrongSure, c.told))
	}
	c := countOf(part)
	fmt.Fprintf(out, "\nOf %d pairs of which something was said, both faults were named in %d. Quiet times: %d, %.0f min in all; with a false finding: %d (%d findings).\n\n",
		c.pairs, c.bothOfAPair, c.quiet, c.quietSeconds/60, c.falsely, c.falselySayings)
	fmt.Fprintln(out, "| fault | incidents | said before | nothing said | both right | \"cannot tell\" | wrong | wrong and sure |")
	fmt.Fprintln(out, "| --- | --- | --- | --- | --- | --- | --- | --- |")
	var names []string
	for _, o := range part {
		if n := o.names(); len(o.Faults) == 1 && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	for _, n := range names {
		c := countOf(keep(func(o *outcome) bool { return o.names() == n }))
		fmt.Fprintf(out, "| %s | %d | %d | %d | %d | %d | %d | %d |\n", n, c.all, c.again, c.silent, c.both, c.cannot, c.wrong, c.wrongSure)
	}
	fmt.Fprintln(out)
	for _, o := range part {
		if verbose || len(o.wrong) > 0 || len(o.falsely) > 0 {
			o.print(out)
		}
	}
}

// print tells one incident with what was said of it.
func (o *outcome) print(out io.Writer) {
	word := "both right"
	switch {
	case len(o.falsely) > 0:
		word = "FALSE FINDING"
	case len(o.wrongSure) > 0:
		word = "WRONG AND SURE"
	case len(o.wrong) > 0:
		word = "WRONG"
	case o.again:
		word = "said before, no news"
	case !o.told:
		word = "nothing said"
	case !o.both && len(o.Faults) > 0:
		word = "cannot tell"
	}
	var faults []string
	for _, f := range o.Faults {
		faults = append(faults, fmt.Sprintf("%s of %s (%s) %.2f for %.1f s", f.Name, strings.Join(f.Members, "+"), f.Role, f.Severity, f.Ended.Sub(f.Began).Seconds()))
	}
	moved := "leader " + o.Before
	if o.changed() {
		moved += fmt.Sprintf(" to %s, %d terms", o.After, o.Terms)
	}
	fmt.Fprintf(out, "- %s %d (%s), %s: %s; %s; worst request %.1f s; %s\n", o.Kind, o.Number, o.life(), word, strings.Join(faults, ", "), moved, o.Worst, o.Began.UTC().Format("15:04:05"))
	for _, s := range o.said {
		if s.earlier {
			continue
		}
		fmt.Fprintf(out, "  - %s\n", s.says)
	}
}

// tableOfSizes tells from which size on a fault is told.
func tableOfSizes(out io.Writer, all []*outcome) {
	var rows []string
	by := map[string][]*outcome{}
	for _, o := range all {
		if o.Row == "" {
			continue
		}
		if by[o.Row] == nil {
			rows = append(rows, o.Row)
		}
		by[o.Row] = append(by[o.Row], o)
	}
	if rows == nil {
		return
	}
	fmt.Fprint(out, "## From which size on\n\n| fault | times | nothing said | both right | \"cannot tell\" | wrong |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, r := range rows {
		c := countOf(by[r])
		fmt.Fprintf(out, "| %s | %d | %d | %d | %d | %d |\n", r, c.all, c.silent, c.both, c.cannot, c.wrong)
	}
	fmt.Fprintln(out)
	for _, o := range all {
		if o.Row != "" && len(o.wrong) > 0 {
			o.print(out)
		}
	}
}

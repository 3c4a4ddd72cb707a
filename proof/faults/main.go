package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/belaydb/belay/proof/cluster"
	"github.com/belaydb/belay/proof/inject"
)

func main() {
	if err := start(); err != nil {
		fmt.Fprintf(os.Stderr, "faults: %v\n", err)
		os.Exit(1)
	}
}

func start() error {
	var (
		list   = flag.Bool("list", false, "print the rows and end")
		rows   = flag.String("rows", "*", "rows to run, patterns with commas (leader-*,all-slow)")
		kinds  = flag.String("kinds", "belay,etcd", "programs to run them on, in this order")
		belay  = flag.String("belay", "", "a belay binary, instead of building one")
		etcd   = flag.String("etcd", os.Getenv("BELAY_ETCD"), "an etcd binary, instead of building one")
		disk   = flag.String("disk", "fuse", "fuse: slowfs under every member; none: the plain disk")
		dir    = flag.String("dir", "", "folder on the disk to use, instead of the temporary one")
		logs   = flag.String("logs", "", "folder to keep the members' logs in")
		before = flag.Duration("before", 5*time.Second, "time without the fault, at first")
		during = flag.Duration("during", 10*time.Second, "time with it, for rows that do not say")
		after  = flag.Duration("after", 5*time.Second, "time after it")
		size   = flag.Int64("snapshot-mb", 2048, "MB in the store of the snapshot row; of snapshot-under-load twice that")
		judge  = flag.Bool("verdicts", false, "score what Belay's members say of each fault: the rows that have a label, and more of them")
	)
	flag.Parse()
	chosen, err := choose(*rows, *judge)
	if err != nil {
		return err
	}
	if *list {
		for _, s := range chosen {
			fmt.Printf("%-26s %s\n", s.name, s.about)
		}
		return nil
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s := settings{binaries: make(map[cluster.Kind]string), logs: *logs, before: *before, during: *during, after: *after, verdictQuiet: verdictQuiet, snapshotBytes: *size << 20}
	if *judge {
		*kinds = string(cluster.Belay)
	}
	if s.dir, err = os.MkdirTemp(*dir, "belay-faults-"); err != nil {
		return err
	}
	defer os.RemoveAll(s.dir)
	if s.logs != "" {
		if err := os.MkdirAll(s.logs, 0o755); err != nil {
			return err
		}
	}
	var order []cluster.Kind
	for _, k := range strings.Split(*kinds, ",") {
		kind := cluster.Kind(k)
		order = append(order, kind)
		if s.binaries[kind], err = cluster.Program(ctx, kind, s.dir, *belay, *etcd); err != nil {
			return err
		}
	}
	switch *disk {
	case "none":
	case "fuse":
		if err := inject.Mountable(); err != nil {
			return fmt.Errorf("slowfs can not be used here (-disk none leaves it out): %w", err)
		}
		if s.slowfs, err = inject.BuildSlowfs(ctx, s.dir); err != nil {
			return err
		}
	default:
		return fmt.Errorf("-disk %q: it is fuse or none", *disk)
	}

	table := newTable(os.Stdout)
	missed := 0
	for _, sc := range chosen {
		for _, kind := range order {
			began := time.Now()
			res := perform(ctx, s, sc, kind)
			if ctx.Err() != nil {
				table.details(os.Stdout)
				return errors.New("interrupted")
			}
			table.row(res)
			fmt.Fprintf(os.Stderr, "%s %s: %v\n", sc.name, kind, time.Since(began).Round(time.Second))
			if kind == cluster.Belay && (res.err != nil || len(res.missed)+len(res.faults) > 0) {
				missed++
			}
		}
	}
	if *judge {
		if missed := score(os.Stdout, table.results); missed > 0 {
			return fmt.Errorf("%d of %d verdicts are not as they should be", missed, len(chosen))
		}
		return nil
	}
	table.details(os.Stdout)
	if missed > 0 {
		return fmt.Errorf("belay misses something in %d of %d rows", missed, len(chosen))
	}
	return nil
}

// choose returns the rows that patterns match; labelled: only those with an expected verdict.
func choose(patterns string, labelled bool) ([]scenario, error) {
	all := scenarios()
	if labelled {
		known := labels()
		all = slices.DeleteFunc(append(all, verdictRows()...), func(s scenario) bool { _, ok := known[s.name]; return !ok })
		for i := range all {
			l := known[all[i].name]
			all[i].label = &l
		}
	}
	return cluster.Choose(all, func(s scenario) string { return s.name }, patterns, "rows", "row")
}

// table prints a line for each result as it comes, and the details at the end.
type table struct {
	out     io.Writer
	results []*result
}

func newTable(out io.Writer) *table {
	fmt.Fprintln(out, "| fault | | failed requests | worst write | p99 before → during | worst read | leader changes | longest time without writes | throughput before → during | lost, doubled | |")
	fmt.Fprintln(out, "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
	return &table{out: out}
}

func (t *table) row(r *result) {
	t.results = append(t.results, r)
	if r.err != nil {
		fmt.Fprintf(t.out, "| %s | %s | could not be run: %s |\n", r.run.about, r.run.kind, strings.ReplaceAll(r.err.Error(), "\n", " "))
		return
	}
	verdict := "holds"
	if bad := slices.Concat(r.missed, r.faults); len(bad) > 0 {
		verdict = "misses: " + strings.Join(bad, "; ")
	}
	percent := 0.0
	if r.before > 0 {
		percent = 100 * r.within / r.before
	}
	gap := cluster.Round(r.longestGap).String()
	if r.noWrites > r.longestGap {
		gap += fmt.Sprintf(" (%v in all)", cluster.Round(r.noWrites))
	}
	fmt.Fprintf(t.out, "| %s | %s | %d of %d | %v | %v → %v | %v | %d | %s | %.0f → %.0f/s (%.0f %%) | %d, %d | %s |\n",
		r.run.about, r.run.kind, r.failed, r.requests, cluster.Round(r.worstWrite), cluster.Round(r.p99Before), cluster.Round(r.p99Write), cluster.Round(r.worstRead), r.changes, gap, r.before, r.within, percent, r.lost, r.doubled, verdict)
}

// details prints what does not fit into a row.
func (t *table) details(out io.Writer) {
	fmt.Fprintln(out)
	for _, r := range t.results {
		fmt.Fprintf(out, "%s, %s: leader %s; %d writes acknowledged; the lease was renewed every %v at worst\n", r.run.name, r.run.kind, cmp.Or(r.leaders, "?"), r.acked, cluster.Round(r.renewalGap))
		for _, text := range slices.SortedFunc(maps.Keys(r.errors), func(a, b string) int { return r.errors[b] - r.errors[a] }) {
			fmt.Fprintf(out, "  %d × %s\n", r.errors[text], text)
		}
		for _, note := range r.run.notes {
			fmt.Fprintf(out, "  %s\n", note)
		}
	}
}

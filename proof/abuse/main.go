package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

func main() {
	beChild()
	if err := start(); err != nil {
		fmt.Fprintf(os.Stderr, "abuse: %v\n", err)
		os.Exit(1)
	}
}

func start() error {
	var (
		list    = flag.Bool("list", false, "print the attacks and end")
		names   = flag.String("attacks", "*", "attacks to make, patterns with commas (peer-*,readers)")
		kinds   = flag.String("kinds", "belay,etcd", "programs to attack, in this order")
		belay   = flag.String("belay", "", "a belay binary, instead of building one")
		etcd    = flag.String("etcd", os.Getenv("BELAY_ETCD"), "an etcd binary, instead of building one")
		dir     = flag.String("dir", "", "folder on the disk to use, instead of the temporary one")
		length  = flag.Duration("during", 8*time.Second, "time of each attack")
		size    = flag.Int("members", 3, "members; the first is attacked")
		recover = flag.Duration("normal-within", 10*time.Second, "time after the attack in which all must be as before")
	)
	flag.Parse()
	chosen, err := cluster.Choose(attacks(), func(a attack) string { return a.name }, *names, "attacks", "attack")
	if err != nil {
		return err
	}
	if *list {
		for _, a := range chosen {
			fmt.Printf("%-20s %s: %s\n", a.name, a.needs, a.how)
		}
		return nil
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s := settings{binaries: make(map[cluster.Kind]string), length: *length, size: *size, normalWithin: *recover}
	if s.dir, err = os.MkdirTemp(*dir, "belay-abuse-"); err != nil {
		return err
	}
	defer os.RemoveAll(s.dir)
	var order []cluster.Kind
	for _, k := range strings.Split(*kinds, ",") {
		kind := cluster.Kind(k)
		order = append(order, kind)
		if s.binaries[kind], err = cluster.Program(ctx, kind, s.dir, *belay, *etcd); err != nil {
			return err
		}
	}
	heading(os.Stdout)
	var results []*result
	missed := 0
	for _, a := range chosen {
		for _, kind := range order {
			res := perform(ctx, s, a, kind)
			if ctx.Err() != nil {
				return errors.New("interrupted")
			}
			row(os.Stdout, res)
			results = append(results, res)
			if kind == cluster.Belay && (res.err != nil || len(res.faults) > 0) {
				missed++
			}
		}
	}
	details(os.Stdout, results)
	if missed > 0 {
		return fmt.Errorf("belay misses something in %d of %d rows", missed, len(chosen))
	}
	return nil
}

func find(name string) (attack, bool) {
	all := attacks()
	i := slices.IndexFunc(all, func(a attack) bool { return a.name == name })
	if i < 0 {
		return attack{}, false
	}
	return all[i], true
}

func heading(out io.Writer) {
	fmt.Fprintln(out, "| attack | needs | | put p50, p99, worst | new connection, worst | others: p50, p99, worst | failed | memory (bound), others | disk | normal after | |")
	fmt.Fprintln(out, "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
}

func row(out io.Writer, r *result) {
	if r.err != nil {
		fmt.Fprintf(out, "| %s | %s | %s | could not be run: %s |\n", r.run.name, r.run.needs, r.run.kind, strings.ReplaceAll(r.err.Error(), "\n", " "))
		return
	}
	verdict := "holds"
	if len(r.faults) > 0 {
		verdict = strings.ReplaceAll(strings.Join(r.faults, "; "), "|", "/")
	}
	normal := cluster.Round(r.normalAfter).String()
	if len(r.ended) > 0 || r.normalAfter < 0 {
		normal = "-"
	}
	three := func(f figures) string {
		return fmt.Sprintf("%v, %v, %v", cluster.Round(f.p50), cluster.Round(f.p99), cluster.Round(f.worst))
	}
	fmt.Fprintf(out, "| %s | %s | %s | %s | %v | %s | %d of %d, %d of %d | %d (%d), %d MiB | %d MB | %s | %s |\n",
		r.run.name, r.run.needs, r.run.kind, three(r.attacked), cluster.Round(r.attacked.worstFresh), three(r.rest),
		r.attacked.failed, r.attacked.requests, r.rest.failed, r.rest.requests,
		r.peak>>20, r.run.bound()>>20, r.restPeak>>20, r.disk/1e6, normal, verdict)
}

// details prints what does not fit into a row.
func details(out io.Writer, results []*result) {
	fmt.Fprintln(out)
	for _, r := range results {
		fmt.Fprintf(out, "%s, %s: %s; done %d times", r.run.name, r.run.kind, r.run.how, r.outcome.Done)
		if r.outcome.Error != "" {
			fmt.Fprintf(out, ", refused or broken %d times (the last: %.200s)", r.outcome.Refused, r.outcome.Error)
		}
		fmt.Fprintln(out)
		for _, text := range slices.Concat(r.attacked.errs, r.rest.errs, r.run.notes) {
			fmt.Fprintf(out, "  %.200s\n", text)
		}
	}
}

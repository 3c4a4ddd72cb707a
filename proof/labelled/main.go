package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/belaydb/belay/proof/cluster"
	"github.com/belaydb/belay/proof/inject"
)

func main() {
	if err := start(); err != nil {
		fmt.Fprintf(os.Stderr, "labelled: %v\n", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	dir, kinds, belay, etcd, work string
	count, sizes, clusters        int
	seed                          uint64
	quiet                         time.Duration
	scoreOnly, verbose            bool
	half                          string
}

func start() error {
	var o options
	flag.StringVar(&o.dir, "dir", "", "folder of what is kept; incidents that are there are not made again (needed)")
	flag.StringVar(&o.kinds, "kinds", "belay,etcd", "programs to run")
	flag.StringVar(&o.kinds, "kind", "belay,etcd", "the same as -kinds")
	flag.StringVar(&o.belay, "belay", "", "a belay binary, instead of building one")
	flag.StringVar(&o.etcd, "etcd", os.Getenv("BELAY_ETCD"), "an etcd binary, instead of building one")
	flag.StringVar(&o.work, "work", "", "folder for disks and data, instead of the temporary one")
	flag.IntVar(&o.count, "n", 0, "incidents of each kind: numbers 1 to this")
	flag.IntVar(&o.sizes, "sizes", 0, "how often each row of the table of small faults is run")
	flag.IntVar(&o.clusters, "clusters", 1, "clusters of each kind side by side")
	flag.Uint64Var(&o.seed, "seed", 1, "what incidents are drawn from")
	flag.DurationVar(&o.quiet, "quiet", 0, "one quiet time of this length more, of each kind")
	flag.BoolVar(&o.scoreOnly, "score", false, "score what is kept, and run nothing")
	flag.StringVar(&o.half, "half", "", "score only even (for tuning) or odd (for the report) numbers; empty: both, in tables of their own")
	flag.BoolVar(&o.verbose, "v", false, "list each incident with what was said of it")
	flag.Parse()
	if o.dir == "" {
		return errors.New("-dir is needed: where incidents are kept")
	}
	if o.half != "" && o.half != "even" && o.half != "odd" {
		return fmt.Errorf("-half %q: it is even or odd", o.half)
	}
	if !o.scoreOnly {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		if err := produce(ctx, o); err != nil {
			return err
		}
	}
	return scoreAll(os.Stdout, o.dir, o.half, o.verbose)
}

// produce makes the incidents that are not kept yet.
func produce(ctx context.Context, o options) error {
	if err := inject.Mountable(); err != nil {
		return fmt.Errorf("slow disks cannot be made here: %w", err)
	}
	work, err := os.MkdirTemp(o.work, "belay-labelled-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	slowfs, err := inject.BuildSlowfs(ctx, work)
	if err != nil {
		return err
	}
	there, err := load(o.dir)
	if err != nil {
		return err
	}
	machine := new(sync.RWMutex)
	var running sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for _, k := range strings.Split(o.kinds, ",") {
		kind := cluster.Kind(k)
		binary, err := cluster.Program(ctx, kind, work, o.belay, o.etcd)
		if err != nil {
			return err
		}
		q := &queue{}
		has := map[int]bool{}
		lives := 0
		for _, i := range there {
			if i.Kind == kind {
				has[i.Number] = true
			}
		}
		if entries, err := filepath.Glob(filepath.Join(o.dir, k+"-*")); err == nil {
			lives = len(entries)
		}
		var plans []plan
		for n := range o.count {
			plans = append(plans, draw(o.seed, n+1))
		}
		plans = append(plans, sizes(o.seed, o.sizes)...)
		if o.quiet > 0 {
			plans = append([]plan{{number: 2*firstOfSizes + 1 + 2*int(time.Now().Unix()%100_000), seed: o.seed, load: 40, idle: o.quiet}}, plans...)
		}
		for _, p := range plans {
			if !has[p.number] {
				q.plans = append(q.plans, p)
			}
		}
		for range o.clusters {
			running.Go(func() {
				for ctx.Err() == nil && !q.empty() {
					mu.Lock()
					lives++
					name := fmt.Sprintf("%s-%03d", kind, lives)
					mu.Unlock()
					l := &life{kind: kind, dir: filepath.Join(o.dir, name), work: filepath.Join(work, name), binary: binary, slowfs: slowfs, machine: machine,
						verbose: func(format string, args ...any) { fmt.Fprintf(os.Stderr, name+": "+format+"\n", args...) }}
					if err := l.serve(ctx, q.next); err != nil && ctx.Err() == nil {
						l.verbose("%v", err)
						mu.Lock()
						if errs = append(errs, err); len(errs) > 20 {
							q.drop()
						}
						mu.Unlock()
					}
				}
			})
		}
	}
	running.Wait()
	if len(errs) > 20 {
		return fmt.Errorf("too much went wrong: %w", errors.Join(errs...))
	}
	return nil
}

// queue are plans that wait for a cluster.
type queue struct {
	mu    sync.Mutex
	plans []plan
}

// next takes the first plan that fits; none may.
func (q *queue) next(fits func(plan) bool) (plan, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, p := range q.plans {
		if fits(p) {
			q.plans = append(q.plans[:i:i], q.plans[i+1:]...)
			return p, true
		}
	}
	return plan{}, false
}

func (q *queue) empty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.plans) == 0
}

func (q *queue) drop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.plans = nil
}

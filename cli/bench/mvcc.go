package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/pprof"
	"time"

	"github.com/spf13/cobra"

	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/store"
)

// mvccPlan are the flags of mvcc put.
type mvccPlan struct {
	interval, limit           int // of bbolt's batches: taken, and of no meaning here
	total, keySize, valueSize int
	txn                       bool
	ops                       int
	cpuProfile, memProfile    string
}

func (b *bench) mvccCommand() *cobra.Command {
	var p mvccPlan
	cmd := &cobra.Command{Use: "mvcc", Short: "Benchmark mvcc",
		Long: `Benchmark the storage below a member, in this process and in a folder of its own below the working directory. No server is asked.`}
	fs := cmd.PersistentFlags()
	fs.IntVar(&p.interval, "batch-interval", 100, "of etcd's bbolt, milliseconds; without effect: Belay's store has no such batches")
	fs.IntVar(&p.limit, "batch-limit", 10000, "of etcd's bbolt; without effect")

	put := &cobra.Command{Use: "put", Short: "Benchmark put performance of storage", Args: cobra.NoArgs}
	fs = put.Flags()
	fs.IntVar(&p.total, "total", 100, "how many requests in all")
	fs.IntVar(&p.keySize, "key-size", 64, "bytes of a key")
	fs.IntVar(&p.valueSize, "value-size", 64, "bytes of a value")
	fs.BoolVar(&p.txn, "txn", false, "put the keys in transactions")
	fs.IntVar(&p.ops, "txn-ops", 1, "keys of a transaction")
	fs.StringVar(&p.cpuProfile, "cpuprofile", "", "write a CPU profile to this file")
	fs.StringVar(&p.memProfile, "memprofile", "", "write a profile of the heap to this file")
	put.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := cmp.Or(atLeast(1, "total", p.total), atLeast(1, "key-size", p.keySize), atLeast(0, "value-size", p.valueSize), atLeast(1, "txn-ops", p.ops)); err != nil {
			return err
		}
		if len(b.versus) > 0 || b.repeat > 1 || b.report != "" || b.output != "text" {
			return usagef("mvcc put has no --versus, --repeat, --report and --output: it measures this process once")
		}
		var o *outcome
		if err := profiled(p.cpuProfile, p.memProfile, func() (err error) {
			o, err = p.run(cmd.Context())
			return err
		}); err != nil {
			return err
		}
		b.printer().print(o)
		if o.interrupted {
			b.code = codeInterrupted
		}
		return nil
	}
	cmd.AddCommand(put)
	return cmd
}

// profiled runs fn and writes the profiles that are asked for.
func profiled(cpu, mem string, fn func() error) (err error) {
	if cpu != "" {
		f, err := os.Create(cpu)
		if err != nil {
			return usagef("--cpuprofile: %v", err)
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return fmt.Errorf("--cpuprofile: %w", err)
		}
		defer pprof.StopCPUProfile()
	}
	if mem != "" {
		f, err := os.Create(mem)
		if err != nil {
			return usagef("--memprofile: %v", err)
		}
		defer func() { err = errors.Join(err, pprof.WriteHeapProfile(f), f.Close()) }()
	}
	return fn()
}

func (p mvccPlan) run(ctx context.Context) (out *outcome, err error) {
	dir, err := os.MkdirTemp(".", "mvcc-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	db, err := store.Open(dir, store.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	kv, err := mvcc.Open(db, mvcc.Options{})
	if err != nil {
		return nil, err
	}
	defer kv.Close()

	perRequest := 1
	if p.txn {
		perRequest = p.ops
	}
	keys, values := randomBytes(p.total*perRequest*p.keySize), randomBytes(p.valueSize)
	t := newTally()
	for i := 0; i < p.total && ctx.Err() == nil; i++ {
		begin := time.Now()
		batch := db.NewBatch(uint64(i+1), 1)
		w := kv.NewWriter(batch)
		w.Begin()
		for range perRequest {
			if _, _, err := w.Put(keys[:p.keySize:p.keySize], values, 0); err != nil {
				return nil, err
			}
			keys = keys[p.keySize:]
		}
		w.End()
		if err := batch.Commit(); err != nil {
			return nil, err
		}
		w.Publish()
		// As in etcd's tool: what is timed is one key's share of a transaction.
		t.add(time.Since(begin)/time.Duration(perRequest), nil)
	}
	s := t.section("mvcc put", "")
	s.weight = float64(perRequest)
	return &outcome{sections: []section{s}, interrupted: ctx.Err() != nil}, nil
}

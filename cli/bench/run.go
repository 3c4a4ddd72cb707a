package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

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

// An outcome is one run of a sub-command.
type outcome struct {
	sections    []section
	more        []section // counted, too, and shown among the percentiles alone
	trailer     string    // printed at the end
	interrupted bool
	unanswered  int64
	oldest      time.Duration
	gaveUp      error
}

// failed reports whether no request succeeded.
func (o *outcome) failed() bool {
	for _, s := range o.sections {
		if s.class.Counts.N() > 0 {
			return false
		}
	}
	return !o.interrupted
}

// A task is one sub-command with its flags.
type task struct {
	// greet is printed before anything is done, as etcd's tool does.
	greet string
	run   func(ctx context.Context, t *target) (*outcome, error)
}

// runs makes the body of a sub-command: plan checks its flags and says what is to be done.
func (b *bench) runs(plan func(cmd *cobra.Command, args []string) (*task, error)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		t, err := plan(cmd, args)
		if err != nil {
			return err
		}
		return b.measure(cmd.Context(), t)
	}
}

func (b *bench) measure(ctx context.Context, t *task) error {
	fmt.Fprint(b.out, t.greet)
	to, err := b.connect(ctx, b.endpoints)
	if err != nil {
		return err
	}
	defer to.close()
	o, err := t.run(ctx, to)
	if err != nil {
		return err
	}
	b.print(o)
	if b.perfdash {
		if err := b.writePerfdash(o); err != nil {
			return fmt.Errorf("--report-perfdash: %w", err)
		}
	}
	switch {
	case o.interrupted:
		fmt.Fprintln(b.err, "interrupted: this is what was measured so far")
		b.code = codeInterrupted
	case o.gaveUp != nil:
		return fmt.Errorf("given up: not one request succeeded; the last error: %s", describe(o.gaveUp))
	case o.failed():
		b.code = codeFailed
	}
	return nil
}

// simple runs one class of operations and makes the section that etcd's tool prints.
func simple(ctx context.Context, o load.Options, name, after string, newClient func(int) (load.Operation, error)) (*outcome, error) {
	r, err := load.Run(ctx, o, newClient)
	if err != nil {
		return nil, err
	}
	out := outcomeOf(r)
	out.sections = []section{{name: name, after: after, class: r.Classes[0], elapsed: r.Elapsed}}
	return out, nil
}

func outcomeOf(r *load.Result) *outcome {
	return &outcome{interrupted: r.Interrupted, unanswered: r.Unanswered, oldest: r.Oldest, gaveUp: r.GaveUp}
}

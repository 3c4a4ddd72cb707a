package bench

import (
	"cmp"
	"context"
	"fmt"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/belaydb/belay/cli/bench/load"
)

// consistency is the flag of reads.
type consistency string

func (c consistency) serializable() bool { return c == "s" }

// greet is what etcd's tool prints before it reads.
func (c consistency) greet() (string, error) {
	switch c {
	case "l":
		return "bench with linearizable range\n", nil
	case "s":
		return "bench with serializable range\n", nil
	}
	return "", usagef("--consistency=%s: give l (linearizable) or s (serializable)", string(c))
}

func (b *bench) rangeCommand() *cobra.Command {
	var l loop
	var level string
	var limit int64
	var countOnly bool
	cmd := &cobra.Command{Use: "range key [end-range]", Short: "Benchmark range", Args: func(_ *cobra.Command, args []string) error {
		if len(args) < 1 || len(args) > 2 {
			return usagef("range: give a key, or a key and the end of a range, as in: %s range foo", b.name)
		}
		return nil
	}}
	fs := cmd.Flags()
	l.register(fs, "range requests")
	fs.StringVar(&level, "consistency", "l", "linearizable (l) or serializable (s)")
	fs.Int64Var(&limit, "limit", 0, "at most this many keys in an answer (0: no limit)")
	fs.BoolVar(&countOnly, "count-only", false, "ask for the number of keys alone")
	cmd.RunE = b.runs(func(_ *cobra.Command, args []string) (*task, error) {
		o, err := l.options(b, fs)
		greet, wrong := consistency(level).greet()
		if err = cmp.Or(err, wrong); err != nil {
			return nil, err
		}
		if limit < 0 {
			return nil, usagef("--limit=%d: give 0 or more", limit)
		}
		request := &pb.RangeRequest{Key: []byte(args[0]), Limit: limit, CountOnly: countOnly, Serializable: consistency(level).serializable()}
		if len(args) == 2 {
			request.RangeEnd = []byte(args[1])
		}
		encoded, err := load.Encode(request)
		if err != nil {
			return nil, err
		}
		return &task{greet: greet, run: func(ctx context.Context, t *target, _ int) (*outcome, error) {
			return b.simple(ctx, o, t, "range", "", func(i int) (load.Operation, error) {
				conn := t.conn(i)
				return func(ctx context.Context, _ int64) (int, error) {
					return 0, conn.Invoke(ctx, load.MethodRange, encoded, nil, load.Raw())
				}, nil
			})
		}}, nil
	})
	return cmd
}

// opsLine is a line of etcd's txn-mixed.
func opsLine(what string, c *load.Counts) string {
	return fmt.Sprintf("Total %s Ops: %d\nDetails:", what, c.N()+c.Failed())
}

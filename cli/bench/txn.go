package bench

import (
	"cmp"
	"context"
	"math/rand/v2"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/belaydb/belay/cli/bench/load"
)

// putsOf is a transaction of puts: of as many keys as the template is asked for.
func putsOf(key, value []byte, n int) *pb.TxnRequest {
	txn := &pb.TxnRequest{}
	for range n {
		txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: value}}})
	}
	return txn
}

func (b *bench) txnPutCommand() *cobra.Command {
	var l loop
	var k keySpace
	var ops int
	cmd := &cobra.Command{Use: "txn-put", Short: "Benchmark txn-put", Args: cobra.NoArgs}
	fs := cmd.Flags()
	l.register(fs, "transactions")
	fs.IntVar(&k.size, "key-size", 8, "bytes of a key")
	values := valSizes(fs, 8)
	fs.IntVar(&ops, "txn-ops", 1, "puts in a transaction")
	fs.IntVar(&k.count, "key-space-size", 1, "how many different keys")
	cmd.RunE = b.runs(func(*cobra.Command, []string) (*task, error) {
		o, err := l.options(b, fs)
		if err = cmp.Or(err, k.validate(), atLeast(1, "txn-ops", ops)); err != nil {
			return nil, err
		}
		if ops > k.count {
			return nil, usagef("--txn-ops=%d: a transaction writes a key once; give at most --key-space-size, which is %d", ops, k.count)
		}
		return &task{sizes: *values, run: func(ctx context.Context, t *target, valSize int) (*outcome, error) {
			value := randomBytes(valSize)
			template, err := load.NewTemplate(k.size, func(key []byte) proto.Message { return putsOf(key, value, ops) })
			if err != nil {
				return nil, err
			}
			return b.simple(ctx, o, t, "txn-put", "\n", func(i int) (load.Operation, error) {
				request, conn := template.Request(), t.conn(i)
				return func(ctx context.Context, n int64) (int, error) {
					for j := range ops {
						k.put(request.Key(j), n*int64(ops)+int64(j))
					}
					return 0, invoke(ctx, conn, load.MethodTxn, request)
				}, nil
			})
		}}, nil
	})
	return cmd
}

func (b *bench) txnMixedCommand() *cobra.Command {
	var l loop
	var k keySpace
	var endKey, level string
	var limit int64
	var ratio float64
	cmd := &cobra.Command{Use: "txn-mixed key [end-range]", Short: "Benchmark a mixed load of txn-put & txn-range.",
		Long: `Benchmark a mixed load of transactions that put and of transactions that read. Without a key, or with the empty one, all keys are read.`,
		Args: cobra.MaximumNArgs(2)}
	fs := cmd.Flags()
	l.register(fs, "transactions")
	fs.IntVar(&k.size, "key-size", 8, "bytes of a key")
	values := valSizes(fs, 8)
	fs.StringVar(&endKey, "end-key", "", "where the ranges that are read end (default: at the second argument; without a key: nowhere)")
	fs.Int64Var(&limit, "limit", 1000, "at most this many keys in an answer")
	fs.IntVar(&k.count, "key-space-size", 1, "how many different keys")
	fs.StringVar(&level, "consistency", "l", "linearizable (l) or serializable (s)")
	fs.Float64Var(&ratio, "rw-ratio", 1, "reads for each write")
	cmd.RunE = b.runs(func(_ *cobra.Command, args []string) (*task, error) {
		o, err := l.options(b, fs)
		greet, wrong := consistency(level).greet()
		if err = cmp.Or(err, wrong, k.validate()); err != nil {
			return nil, err
		}
		switch {
		case limit < 0:
			return nil, usagef("--limit=%d: give 0 or more", limit)
		case !(ratio >= 0 && ratio <= 1e9):
			return nil, usagef("--rw-ratio=%v: give the reads for each write, 0 or more", ratio)
		}
		read := &pb.RangeRequest{Limit: limit, Serializable: consistency(level).serializable()}
		if len(args) > 0 {
			read.Key = []byte(args[0])
		}
		if len(args) > 1 {
			read.RangeEnd = []byte(args[1])
		}
		if endKey != "" {
			read.RangeEnd = []byte(endKey)
		}
		if len(read.Key) == 0 {
			read.Key = []byte{0}
			if len(read.RangeEnd) == 0 {
				read.RangeEnd = []byte{0}
			}
		}
		return &task{greet: greet, sizes: *values, run: func(ctx context.Context, t *target, valSize int) (*outcome, error) {
			return b.mixed(ctx, o, t, k, valSize, read, ratio)
		}}, nil
	})
	return cmd
}

func (b *bench) mixed(ctx context.Context, o load.Options, t *target, k keySpace, valSize int, read *pb.RangeRequest, ratio float64) (*outcome, error) {
	value := randomBytes(valSize)
	template, err := load.NewTemplate(k.size, func(key []byte) proto.Message { return putsOf(key, value, 1) })
	if err != nil {
		return nil, err
	}
	reading, err := load.Encode(&pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: read}}}})
	if err != nil {
		return nil, err
	}
	const reads, writes = 0, 1
	o.Classes = []string{reads: "read", writes: "write"}
	r, err := b.load(ctx, o, t, func(i int) (load.Operation, error) {
		request, conn := template.Request(), t.conn(i)
		return func(ctx context.Context, n int64) (int, error) {
			if rand.Float64() < ratio/(1+ratio) {
				return reads, conn.Invoke(ctx, load.MethodTxn, reading, nil, load.Raw())
			}
			k.put(request.Key(0), n)
			return writes, invoke(ctx, conn, load.MethodTxn, request)
		}, nil
	})
	if err != nil {
		return nil, err
	}
	out := outcomeOf(r)
	out.sections = []section{
		{before: opsLine("Read", r.Classes[reads].Counts), after: "\n", name: "read", class: r.Classes[reads], elapsed: r.Elapsed},
		{before: opsLine("Write", r.Classes[writes].Counts), after: "\n", name: "write", class: r.Classes[writes], elapsed: r.Elapsed},
	}
	return out, nil
}

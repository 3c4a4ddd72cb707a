package ctl

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// getFlags are the flags of get, on the command line and inside txn.
type getFlags struct {
	consistency                string
	order, sortBy              string
	limit, rev                 int64
	prefix, fromKey            bool
	keysOnly, countOnly        bool
	valueOnly                  bool
	minCreateRev, maxCreateRev int64
	minModRev, maxModRev       int64
	stream                     bool
}

func (f *getFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.consistency, "consistency", "l", "l: linearizable, the newest; s: serializable, what this server has")
	fs.StringVar(&f.order, "order", "", "order of the results: ASCEND or DESCEND")
	fs.StringVar(&f.sortBy, "sort-by", "", "what to sort by: CREATE, KEY, MODIFY, VALUE or VERSION")
	fs.Int64Var(&f.limit, "limit", 0, "how many keys at most (0: all)")
	fs.BoolVar(&f.prefix, "prefix", false, "all keys that begin with the key")
	fs.BoolVar(&f.fromKey, "from-key", false, "the key and all that sort behind it")
	fs.Int64Var(&f.rev, "rev", 0, "as of this revision (0: the newest)")
	fs.BoolVar(&f.keysOnly, "keys-only", false, "leave the values out")
	fs.BoolVar(&f.countOnly, "count-only", false, "only count the keys; needs --write-out=fields")
	fs.BoolVar(&f.valueOnly, "print-value-only", false, "leave the keys out; needs --write-out=simple")
	fs.Int64Var(&f.minCreateRev, "min-create-rev", 0, "leave out keys created before this revision")
	fs.Int64Var(&f.maxCreateRev, "max-create-rev", 0, "leave out keys created after this revision")
	fs.Int64Var(&f.minModRev, "min-mod-rev", 0, "leave out keys last changed before this revision")
	fs.Int64Var(&f.maxModRev, "max-mod-rev", 0, "leave out keys last changed after this revision")
	fs.BoolVar(&f.stream, "stream", false, "fetch the range in pieces, by the RangeStream RPC")
}

func (f *getFlags) parse(args []string) (key string, opts []clientv3.OpOption, err error) {
	if len(args) == 0 {
		return "", nil, failf(codeBadArgs, "get command needs one argument as key and an optional argument as range_end")
	}
	if f.prefix && f.fromKey {
		return "", nil, fail(codeBadArgs, errPrefixAndFromKey())
	}
	if f.keysOnly && f.countOnly {
		return "", nil, failf(codeBadArgs, "`--keys-only` and `--count-only` cannot be set at the same time, choose one")
	}
	serializable, err := isSerializable(f.consistency)
	if err != nil {
		return "", nil, err
	}
	if serializable {
		opts = append(opts, clientv3.WithSerializable())
	}
	key = args[0]
	if len(args) > 1 {
		if f.prefix || f.fromKey {
			return "", nil, fail(codeBadArgs, errRangeAndPrefix())
		}
		opts = append(opts, clientv3.WithRange(args[1]))
	}
	opts = append(opts, clientv3.WithLimit(f.limit))
	if f.rev > 0 {
		opts = append(opts, clientv3.WithRev(f.rev))
	}

	var order clientv3.SortOrder
	switch strings.ToUpper(f.order) {
	case "":
		order = clientv3.SortNone
	case "ASCEND":
		order = clientv3.SortAscend
	case "DESCEND":
		order = clientv3.SortDescend
	default:
		return "", nil, failf(codeBadFeature, "bad sort order %v", f.order)
	}
	var by clientv3.SortTarget
	switch strings.ToUpper(f.sortBy) {
	case "", "KEY":
		by = clientv3.SortByKey
	case "CREATE":
		by = clientv3.SortByCreateRevision
	case "MODIFY":
		by = clientv3.SortByModRevision
	case "VALUE":
		by = clientv3.SortByValue
	case "VERSION":
		by = clientv3.SortByVersion
	default:
		return "", nil, failf(codeBadFeature, "bad sort target %v", f.sortBy)
	}
	opts = append(opts, clientv3.WithSort(by, order))

	key, opts = prefixOrFrom(key, opts, f.prefix, f.fromKey)
	if f.keysOnly {
		opts = append(opts, clientv3.WithKeysOnly())
	}
	if f.countOnly {
		opts = append(opts, clientv3.WithCountOnly())
	}
	if f.minCreateRev > 0 {
		opts = append(opts, clientv3.WithMinCreateRev(f.minCreateRev))
	}
	if f.maxCreateRev > 0 {
		if f.minCreateRev > f.maxCreateRev {
			return "", nil, failf(codeBadFeature, "getMinCreateRev(=%v) > getMaxCreateRev(=%v)", f.minCreateRev, f.maxCreateRev)
		}
		opts = append(opts, clientv3.WithMaxCreateRev(f.maxCreateRev))
	}
	if f.minModRev > 0 {
		opts = append(opts, clientv3.WithMinModRev(f.minModRev))
	}
	if f.maxModRev > 0 {
		if f.minModRev > f.maxModRev {
			return "", nil, failf(codeBadFeature, "getMinModRev(=%v) > getMaxModRev(=%v)", f.minModRev, f.maxModRev)
		}
		opts = append(opts, clientv3.WithMaxModRev(f.maxModRev))
	}
	return key, opts, nil
}

// isSerializable reads --consistency.
func isSerializable(consistency string) (bool, error) {
	switch consistency {
	case "s":
		return true, nil
	case "l":
		return false, nil
	}
	return false, failf(codeBadFeature, "unknown consistency flag %q", consistency)
}

func (c *ctl) getCommand() *cobra.Command {
	var flags getFlags
	cmd := &cobra.Command{
		Use:     "get [options] <key> [range_end]",
		Short:   "Prints a key or the keys of a range [key, range_end)",
		GroupID: groupKV,
	}
	at := c.atFlag(cmd, "as of this time: 15:04:05, \"2006-01-02 15:04:05\", 2006-01-02T15:04:05Z, or 10m for ten minutes ago")
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		key, opts, err := flags.parse(args)
		if err != nil {
			return err
		}
		ctx, cli, out, err := c.open(cmd)
		if err != nil {
			return err
		}
		seen, err := at(ctx, cli)
		if err != nil {
			return err
		}
		if seen != 0 {
			opts = append(opts, clientv3.WithRev(seen))
		}
		var resp *clientv3.GetResponse
		if flags.stream {
			var pieces clientv3.GetStreamChan
			if pieces, err = cli.GetStream(ctx, key, opts...); err == nil {
				resp, err = clientv3.GetStreamToGetResponse(pieces)
			}
		} else {
			resp, err = cli.Get(ctx, key, opts...)
		}
		if err != nil {
			return past{c, cli}.explain(ctx, max(seen, flags.rev), err)
		}
		// etcdctl asks the server first and reports these afterwards, so that a missing server is
		// reported first.
		if flags.countOnly && out.format != "fields" {
			return failf(codeBadArgs, "--count-only is only for `--write-out=fields`")
		}
		if flags.valueOnly && out.format != "simple" {
			return failf(codeBadArgs, "print-value-only is only for `--write-out=simple`")
		}
		out.valueOnly = flags.valueOnly
		return out.show(rangeReply((*pb.RangeResponse)(resp)))
	})
	flags.register(cmd.Flags())
	// The names are registered one line above, so these cannot fail.
	_ = cmd.RegisterFlagCompletionFunc("consistency", choices("l", "s"))
	_ = cmd.RegisterFlagCompletionFunc("order", choices("ASCEND", "DESCEND"))
	_ = cmd.RegisterFlagCompletionFunc("sort-by", choices("CREATE", "KEY", "MODIFY", "VALUE", "VERSION"))
	return cmd
}

// grace warns that a range is about to be deleted and waits two seconds.
func (c *ctl) grace(ctx context.Context, args []string) error {
	fmt.Fprintf(c.err, "Warning: Keys between %q and %q will be deleted. Please interrupt the command within next 2 seconds to cancel. "+
		"You can provide `--range` flag to avoid the delay.\n", args[0], args[1])
	select {
	case <-time.After(2 * time.Second):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

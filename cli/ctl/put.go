package ctl

import (
	"errors"
	"io"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// putFlags are the flags of put, on the command line and inside txn.
type putFlags struct {
	lease       string
	prevKV      bool
	ignoreValue bool
	ignoreLease bool
}

func (f *putFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.lease, "lease", "0", "ID of the lease to attach the key to, in hexadecimal")
	fs.BoolVar(&f.prevKV, "prev-kv", false, "print what the key held before")
	fs.BoolVar(&f.ignoreValue, "ignore-value", false, "keep the key's value")
	fs.BoolVar(&f.ignoreLease, "ignore-lease", false, "keep the key's lease")
}

// parse reads the value from stdin if args has none.
func (f *putFlags) parse(args []string, stdin io.Reader) (key, value string, opts []clientv3.OpOption, err error) {
	if len(args) == 0 {
		return "", "", nil, failf(codeBadArgs, "put command needs 1 argument and input from stdin or 2 arguments")
	}
	switch {
	case f.ignoreValue && len(args) > 1:
		return "", "", nil, failf(codeBadArgs, "put command needs only 1 argument when 'ignore-value' is set")
	case f.ignoreValue:
	case len(args) > 1:
		value = args[1]
	default:
		b, err := io.ReadAll(stdin)
		if err != nil || len(b) == 0 {
			return "", "", nil, failf(codeBadArgs, "put command needs 1 argument and input from stdin or 2 arguments")
		}
		value = string(b)
	}
	lease, err := strconv.ParseInt(f.lease, 16, 64)
	if err != nil {
		return "", "", nil, failf(codeBadArgs, "bad lease ID (%w), expecting ID in Hex", err)
	}
	if lease != 0 {
		opts = append(opts, clientv3.WithLease(clientv3.LeaseID(lease)))
	}
	if f.prevKV {
		opts = append(opts, clientv3.WithPrevKV())
	}
	if f.ignoreValue {
		opts = append(opts, clientv3.WithIgnoreValue())
	}
	if f.ignoreLease {
		opts = append(opts, clientv3.WithIgnoreLease())
	}
	return args[0], value, opts, nil
}

func (c *ctl) putCommand() *cobra.Command {
	var flags putFlags
	cmd := &cobra.Command{
		Use:   "put [options] <key> <value> (<value> can also be given from stdin)",
		Short: "Stores a value under a key",
		Long: `Stores a value under a key.

Without <value> and without --ignore-value the value is read from standard input:
$ cat file | put <key>

A value that begins with '-' needs '--' before it:
$ put <key> -- <value>
`,
		GroupID: groupKV,
	}
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		key, value, opts, err := flags.parse(args, c.in)
		if err != nil {
			return err
		}
		ctx, cli, out, err := c.open(cmd)
		if err != nil {
			return err
		}
		resp, err := cli.Put(ctx, key, value, opts...)
		if err != nil {
			return err
		}
		return out.show(putReply((*pb.PutResponse)(resp)))
	})
	flags.register(cmd.Flags())
	return cmd
}

// delFlags are the flags of del, on the command line and inside txn.
type delFlags struct {
	prefix  bool
	prevKV  bool
	fromKey bool
	isRange bool
}

func (f *delFlags) register(fs *pflag.FlagSet) {
	fs.BoolVar(&f.prefix, "prefix", false, "delete all keys that begin with the key")
	fs.BoolVar(&f.prevKV, "prev-kv", false, "print what was deleted")
	fs.BoolVar(&f.fromKey, "from-key", false, "delete the key and all that sort behind it")
	fs.BoolVar(&f.isRange, "range", false, "a range is meant: do not wait before deleting [key, range_end)")
}

// parse also reports whether the grace of two seconds before deleting a range applies: people have
// typed two keys and meant both.
func (f *delFlags) parse(args []string) (key string, opts []clientv3.OpOption, grace bool, err error) {
	if len(args) == 0 || len(args) > 2 {
		return "", nil, false, failf(codeBadArgs, "del command needs one argument as key and an optional argument as range_end")
	}
	if f.prefix && f.fromKey {
		return "", nil, false, fail(codeBadArgs, errPrefixAndFromKey())
	}
	key = args[0]
	if len(args) > 1 {
		if f.prefix || f.fromKey {
			return "", nil, false, fail(codeBadArgs, errRangeAndPrefix())
		}
		opts = append(opts, clientv3.WithRange(args[1]))
		grace = !f.isRange
	}
	if f.prevKV {
		opts = append(opts, clientv3.WithPrevKV())
	}
	key, opts = prefixOrFrom(key, opts, f.prefix, f.fromKey)
	return key, opts, grace, nil
}

func errPrefixAndFromKey() error {
	return errors.New("`--prefix` and `--from-key` cannot be set at the same time, choose one")
}

func errRangeAndPrefix() error {
	return errors.New("too many arguments, only accept one argument when `--prefix` or `--from-key` is set")
}

// prefixOrFrom adds the range that --prefix or --from-key mean; of the empty key both mean every
// key.
func prefixOrFrom(key string, opts []clientv3.OpOption, prefix, fromKey bool) (string, []clientv3.OpOption) {
	switch {
	case (prefix || fromKey) && key == "":
		return "\x00", append(opts, clientv3.WithFromKey())
	case prefix:
		return key, append(opts, clientv3.WithPrefix())
	case fromKey:
		return key, append(opts, clientv3.WithFromKey())
	}
	return key, opts
}

func (c *ctl) delCommand() *cobra.Command {
	var flags delFlags
	cmd := &cobra.Command{
		Use:     "del [options] <key> [range_end]",
		Short:   "Deletes a key or the keys of a range [key, range_end)",
		GroupID: groupKV,
	}
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		key, opts, grace, err := flags.parse(args)
		if err != nil {
			return err
		}
		if grace {
			if err := c.grace(cmd.Context(), args); err != nil {
				return err
			}
		}
		ctx, cli, out, err := c.open(cmd)
		if err != nil {
			return err
		}
		resp, err := cli.Delete(ctx, key, opts...)
		if err != nil {
			return err
		}
		return out.show(deleteReply((*pb.DeleteRangeResponse)(resp)))
	})
	flags.register(cmd.Flags())
	return cmd
}

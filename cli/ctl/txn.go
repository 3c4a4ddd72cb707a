package ctl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func (c *ctl) txnCommand() *cobra.Command {
	var interactive bool
	cmd := &cobra.Command{
		Use:   "txn [options]",
		Short: "Does several requests as one transaction",
		Long: `Reads a transaction from standard input and does it as a whole or not at all.

It has three parts, each ended by an empty line:
1) conditions,
2) requests to do if all conditions hold,
3) requests to do if one of them does not.

A condition is target("key") operator "value": the target is value, create, mod, version or lease, the operator one of
= != < >. A request is a get, put or del with their usual flags.

---
` + c.name + ` txn -i
# compares:
mod("key1") > "0"

# success requests (get, put, del):
put key1 "overwrote-key1"

# failure requests (get, put, del):
put key1 "created-key1"
put key2 "some extra key"

---`,
		GroupID: groupKV,
	}
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		if len(args) != 0 {
			return failf(codeBadArgs, "txn command does not accept argument")
		}
		cli, out, err := c.client(cmd)
		if err != nil {
			return err
		}
		prompt := func(s string) {
			if interactive {
				fmt.Fprintln(c.out, s)
			}
		}
		in := bufio.NewReader(c.in)

		prompt("compares:")
		var compares []clientv3.Cmp
		err = readSection(in, func(line string) error {
			cmp, err := parseCompare(line)
			compares = append(compares, cmp)
			return err
		})
		if err != nil {
			return err
		}
		requests := func() (ops []clientv3.Op, err error) {
			err = readSection(in, func(line string) error {
				op, err := c.parseRequest(cmd.Context(), line)
				ops = append(ops, op)
				return err
			})
			return ops, err
		}
		prompt("success requests (get, put, del):")
		success, err := requests()
		if err != nil {
			return err
		}
		prompt("failure requests (get, put, del):")
		failure, err := requests()
		if err != nil {
			return err
		}

		ctx, cancel := c.timeout(cmd)
		defer cancel()
		resp, err := cli.Txn(ctx).If(compares...).Then(success...).Else(failure...).Commit()
		if err != nil {
			return err
		}
		return out.show(txnReply((*pb.TxnResponse)(resp)))
	})
	cmd.Flags().BoolVarP(&interactive, "interactive", "i", false, "say which part is expected")
	return cmd
}

// readSection hands each line up to the next empty one to parse. Input that ends before the empty
// line is refused: half a transaction is a different transaction.
func readSection(in *bufio.Reader, parse func(line string) error) error {
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			e := &exitError{code: codeInvalidInput, err: err}
			if errors.Is(err, io.EOF) {
				e.hint = "Hint: the input ended early; each of the three parts (conditions, requests for success, requests for failure) ends with an empty line"
			}
			return e
		}
		if line = strings.TrimSpace(line); line == "" {
			return nil
		}
		if err := parse(line); err != nil {
			if _, ok := errors.AsType[*exitError](err); ok {
				return err
			}
			return fail(codeInvalidInput, err)
		}
	}
}

// parseRequest reads a get, put or del.
func (c *ctl) parseRequest(ctx context.Context, line string) (clientv3.Op, error) {
	args, err := splitWords(line)
	if err != nil {
		return clientv3.Op{}, err
	}
	if len(args) < 2 {
		return clientv3.Op{}, fmt.Errorf("invalid txn compare request: %s", line)
	}
	invalid := fmt.Errorf("invalid txn request: %s", line)
	fs := pflag.NewFlagSet(args[0], pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	switch name := args[0]; {
	case strings.HasPrefix("put", name):
		var flags putFlags
		flags.register(fs)
		if fs.Parse(args[1:]) != nil {
			return clientv3.Op{}, invalid
		}
		// The transaction itself is on standard input, so a value cannot be.
		key, value, opts, err := flags.parse(fs.Args(), strings.NewReader(""))
		return clientv3.OpPut(key, value, opts...), err
	case strings.HasPrefix("get", name):
		var flags getFlags
		flags.register(fs)
		if fs.Parse(args[1:]) != nil {
			return clientv3.Op{}, invalid
		}
		key, opts, err := flags.parse(fs.Args())
		return clientv3.OpGet(key, opts...), err
	case strings.HasPrefix("del", name):
		var flags delFlags
		flags.register(fs)
		if fs.Parse(args[1:]) != nil {
			return clientv3.Op{}, invalid
		}
		key, opts, grace, err := flags.parse(fs.Args())
		if err == nil && grace {
			err = c.grace(ctx, fs.Args())
		}
		return clientv3.OpDelete(key, opts...), err
	}
	return clientv3.Op{}, invalid
}

// parseCompare reads a condition such as mod("key") > "5".
func parseCompare(line string) (clientv3.Cmp, error) {
	var key, op, value string
	target, rest, ok := strings.Cut(line, "(")
	if !ok {
		return clientv3.Cmp{}, fmt.Errorf("malformed comparison: %s", line)
	}
	n, err := fmt.Sscanf(rest, "%q) %s %q", &key, &op, &value)
	if n != 3 {
		return clientv3.Cmp{}, fmt.Errorf("malformed comparison: %s; got %s(%q) %s %q", line, target, key, op, value)
	}
	if err != nil {
		return clientv3.Cmp{}, fmt.Errorf("malformed comparison: %s (%w)", line, err)
	}
	switch op {
	case "=", "!=", "<", ">":
	default: // clientv3.Compare would panic
		return clientv3.Cmp{}, fmt.Errorf("malformed comparison: %s (unknown operator %s, expected one of = != < >)", line, op)
	}
	var number int64
	switch target {
	case "val", "value":
		return clientv3.Compare(clientv3.Value(key), op, value), nil
	case "lease":
		number, err = strconv.ParseInt(value, 16, 64)
	case "ver", "version", "c", "create", "m", "mod":
		number, err = strconv.ParseInt(value, 10, 64)
	default:
		return clientv3.Cmp{}, fmt.Errorf("malformed comparison: %s (unknown target %s)", line, target)
	}
	if err != nil {
		return clientv3.Cmp{}, fmt.Errorf("invalid txn compare request: %s", line)
	}
	switch target {
	case "lease":
		return clientv3.Compare(clientv3.LeaseValue(key), op, number), nil
	case "ver", "version":
		return clientv3.Compare(clientv3.Version(key), op, number), nil
	case "c", "create":
		return clientv3.Compare(clientv3.CreateRevision(key), op, number), nil
	}
	return clientv3.Compare(clientv3.ModRevision(key), op, number), nil
}

// splitWords cuts a line into words as txn and interactive watch do: "..." with Go's escapes, '...'
// literally, or up to the next space.
func splitWords(line string) ([]string, error) {
	words := regexp.MustCompile(`"(?:[^"\\]|\\.)*"|'[^']*'|[^'"\s]\S*[^'"\s]?`).FindAllString(line, -1)
	for i, word := range words {
		switch word[0] {
		case '\'':
			words[i] = word[1 : len(word)-1]
		case '"':
			if _, err := fmt.Sscanf(word, "%q", &words[i]); err != nil {
				return nil, fail(codeInvalidInput, err)
			}
		}
	}
	return words, nil
}

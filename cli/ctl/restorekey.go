package ctl

import (
	"bytes"
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A restored key is what restore-key did, or would do.
type restored struct {
	Key      string `json:"key"`
	Action   string `json:"action"` // put, delete or nothing
	From     int64  `json:"from_revision"`
	Revision int64  `json:"revision,omitempty"` // at which it was written
	Bytes    int    `json:"bytes,omitempty"`
}

func (c *ctl) restoreKeyCommand() *cobra.Command {
	var rev int64
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "restore-key [options] <key>",
		Short: "Gives a key the value that it had at a revision or a time",
		Long: `Gives a key the value that it had at a revision (--rev) or a time (--at), or deletes it if it did not exist then. It is one
transaction: if the key changes meanwhile, nothing is written. The lease that it had is not restored.`,
		GroupID: groupKV,
	}
	at := c.atFlag(cmd, "the value at this time: 15:04:05, \"2006-01-02 15:04:05\", 2006-01-02T15:04:05Z, or 10m for ten minutes ago")
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) != 1:
			return failf(codeBadArgs, "restore-key command needs one argument, the key")
		case !cmd.Flags().Changed("rev") && !cmd.Flags().Changed("at"):
			return failf(codeBadArgs, "restore-key command needs --rev or --at")
		case cmd.Flags().Changed("rev") && rev <= 0:
			return failf(codeBadArgs, "--rev must be a revision: the first is 1")
		}
		ctx, cli, out, err := c.open(cmd)
		if err != nil {
			return err
		}
		switch seen, err := at(ctx, cli); {
		case err != nil:
			return err
		case seen != 0:
			rev = seen
		}
		done, err := past{c, cli}.restoreKey(ctx, args[0], rev, dryRun)
		if err != nil {
			return err
		}
		return out.show(done.reply(dryRun))
	})
	cmd.Flags().Int64Var(&rev, "rev", 0, "the value at this revision")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be written")
	return cmd
}

func (p past) restoreKey(ctx context.Context, key string, rev int64, dryRun bool) (*restored, error) {
	one := func(opts ...clientv3.OpOption) (*mvccpb.KeyValue, error) {
		resp, err := p.cli.Get(ctx, key, opts...)
		if err != nil || len(resp.Kvs) == 0 {
			return nil, err
		}
		return resp.Kvs[0], nil
	}
	was, err := one(clientv3.WithRev(rev))
	if err != nil {
		return nil, p.explain(ctx, rev, err)
	}
	is, err := one()
	if err != nil {
		return nil, err
	}
	done := &restored{Key: key, From: rev}
	var op clientv3.Op
	switch {
	case was == nil && is == nil, was != nil && is != nil && (was.ModRevision == is.ModRevision || bytes.Equal(was.Value, is.Value)):
		done.Action = "nothing"
		return done, nil
	case was == nil:
		done.Action, op = "delete", clientv3.OpDelete(key)
	default:
		done.Action, done.Bytes, op = "put", len(was.Value), clientv3.OpPut(key, string(was.Value))
		if was.Lease != 0 {
			fmt.Fprintf(p.c.err, "At revision %d the key had lease %016x; it is restored without one.\n", rev, was.Lease)
		}
	}
	if dryRun {
		return done, nil
	}
	resp, err := p.cli.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", is.GetModRevision())).Then(op).Commit()
	if err != nil {
		return nil, err
	}
	if !resp.Succeeded {
		return nil, failf(codeError, "%q was changed meanwhile; nothing was written", key)
	}
	done.Revision = resp.Header.GetRevision()
	return done, nil
}

func (r *restored) reply(dryRun bool) reply {
	text := map[string]string{
		"put":     fmt.Sprintf("%q has the value of revision %d again, %s: written at revision %d", r.Key, r.From, bytesOf(r.Bytes), r.Revision),
		"delete":  fmt.Sprintf("%q did not exist at revision %d and is deleted: at revision %d", r.Key, r.From, r.Revision),
		"nothing": fmt.Sprintf("%q is as it was at revision %d: nothing is to be done", r.Key, r.From),
	}
	if dryRun {
		text["put"] = fmt.Sprintf("would give %q the value of revision %d, %s", r.Key, r.From, bytesOf(r.Bytes))
		text["delete"] = fmt.Sprintf("would delete %q, which did not exist at revision %d", r.Key, r.From)
	}
	return reply{raw: r, simple: func(p *page) { p.line(text[r.Action]) }}
}

func bytesOf(n int) string {
	if n == 1 {
		return "1 byte"
	}
	return strconv.Itoa(n) + " bytes"
}

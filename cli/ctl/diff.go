package ctl

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/timemap"
)

// diffPage is how many keys are read at a time; their values are not.
const diffPage = 1000

// A difference is a key that is not the same at two revisions.
type difference struct {
	Key    string           `json:"key"`
	Change string           `json:"change"` // added, removed or changed
	From   *mvccpb.KeyValue `json:"from,omitempty"`
	To     *mvccpb.KeyValue `json:"to,omitempty"`
}

// differences is what one command found.
type differences struct {
	From    int64        `json:"from_revision"`
	To      int64        `json:"to_revision"`
	Added   int          `json:"added"`
	Removed int          `json:"removed"`
	Changed int          `json:"changed"`
	Keys    []difference `json:"keys"`
	values  bool
}

func (c *ctl) diffCommand() *cobra.Command {
	var values bool
	cmd := &cobra.Command{
		Use:   "diff [options] <revision or time> <revision or time> [prefix]",
		Short: "Prints which keys differ between two revisions",
		Long: `Prints which keys were added, removed or changed between two revisions, or two points in time (members of Belay know
which revision that was; etcd's do not). "now" is the newest revision; a time is 15:04:05, "2006-01-02 15:04:05",
2006-01-02T15:04:05Z, or 10m for ten minutes ago.`,
		GroupID: groupKV,
	}
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		if len(args) != 2 && len(args) != 3 {
			return failf(codeBadArgs, "diff command needs two revisions or times, and perhaps a prefix")
		}
		ctx, cli, out, err := c.open(cmd)
		if err != nil {
			return err
		}
		prefix := ""
		if len(args) == 3 {
			prefix = args[2]
		}
		d := &differences{values: values, Keys: []difference{}}
		p := past{c, cli}
		if d.From, err = p.revisionOf(ctx, args[0]); err != nil {
			return err
		}
		if d.To, err = p.revisionOf(ctx, args[1]); err != nil {
			return err
		}
		if err := p.diff(cmd.Context(), prefix, d); err != nil {
			return err
		}
		return out.show(d.reply())
	})
	cmd.Flags().BoolVar(&values, "values", false, "print the values too")
	return cmd
}

// revisionOf reads a revision, a time or "now".
func (p past) revisionOf(ctx context.Context, text string) (int64, error) {
	if text == "now" {
		resp, err := p.cli.Get(ctx, "\x00", clientv3.WithCountOnly())
		if err != nil {
			return 0, err
		}
		return resp.Header.GetRevision(), nil
	}
	if rev, err := strconv.ParseInt(text, 10, 64); err == nil {
		if rev <= 0 {
			return 0, failf(codeBadArgs, "%s is no revision: the first is 1", text)
		}
		return rev, nil
	}
	t, err := timemap.Parse(text, time.Now())
	if err != nil {
		return 0, fail(codeBadArgs, err)
	}
	return p.revisionAt(ctx, t)
}

// keysAt walks over the keys of a prefix as of a revision, in key order, without their values.
type keysAt struct {
	past
	next string
	end  string
	rev  int64
	page []*mvccpb.KeyValue
	done bool
}

func (p past) keysAt(prefix string, rev int64) *keysAt {
	k := &keysAt{past: p, next: prefix, end: clientv3.GetPrefixRangeEnd(prefix), rev: rev}
	if prefix == "" {
		k.next, k.end = "\x00", "\x00"
	}
	return k
}

// head is the next key, nil after the last.
func (k *keysAt) head(ctx context.Context) (*mvccpb.KeyValue, error) {
	if len(k.page) == 0 && !k.done {
		ctx, cancel := context.WithTimeout(ctx, k.c.global.CommandTimeout)
		defer cancel()
		resp, err := k.cli.Get(ctx, k.next, clientv3.WithRange(k.end), clientv3.WithRev(k.rev), clientv3.WithLimit(diffPage), clientv3.WithKeysOnly())
		if err != nil {
			return nil, k.explain(ctx, k.rev, err)
		}
		k.page, k.done = resp.Kvs, !resp.More
		if n := len(k.page); n > 0 {
			k.next = string(k.page[n-1].Key) + "\x00"
		}
	}
	if len(k.page) == 0 {
		return nil, nil
	}
	return k.page[0], nil
}

func (k *keysAt) take() { k.page = k.page[1:] }

func (p past) diff(ctx context.Context, prefix string, d *differences) error {
	from, to := p.keysAt(prefix, d.From), p.keysAt(prefix, d.To)
	for {
		a, err := from.head(ctx)
		if err != nil {
			return err
		}
		b, err := to.head(ctx)
		if err != nil {
			return err
		}
		var found difference
		switch {
		case a == nil && b == nil:
			return nil
		case b == nil || a != nil && string(a.Key) < string(b.Key):
			found = difference{string(a.Key), "removed", a, nil}
			d.Removed++
			from.take()
		case a == nil || string(b.Key) < string(a.Key):
			found = difference{string(b.Key), "added", nil, b}
			d.Added++
			to.take()
		default:
			from.take()
			to.take()
			if a.ModRevision == b.ModRevision {
				continue
			}
			found = difference{string(a.Key), "changed", a, b}
			d.Changed++
		}
		if d.values {
			if err := found.fetch(ctx, p, d); err != nil {
				return err
			}
		}
		d.Keys = append(d.Keys, found)
	}
}

// fetch replaces what was read without values.
func (f *difference) fetch(ctx context.Context, p past, d *differences) error {
	get := func(rev int64) (*mvccpb.KeyValue, error) {
		ctx, cancel := context.WithTimeout(ctx, p.c.global.CommandTimeout)
		defer cancel()
		resp, err := p.cli.Get(ctx, f.Key, clientv3.WithRev(rev))
		if err != nil {
			return nil, p.explain(ctx, rev, err)
		}
		if len(resp.Kvs) != 1 {
			return nil, fmt.Errorf("%q is not there at revision %d any more", f.Key, rev)
		}
		return resp.Kvs[0], nil
	}
	var err error
	if f.From != nil {
		f.From, err = get(d.From)
	}
	if f.To != nil && err == nil {
		f.To, err = get(d.To)
	}
	return err
}

func (d *differences) rows(hex bool) [][]string {
	head := []string{"CHANGE", "KEY", "FROM", "TO"}
	if d.values {
		head = append(head, "VALUE FROM", "VALUE TO")
	}
	rows := [][]string{head}
	for _, f := range d.Keys {
		key := f.Key
		if hex {
			key = hexEscape([]byte(f.Key))
		}
		row := []string{f.Change, key, "", ""}
		if f.From != nil {
			row[2] = strconv.FormatInt(f.From.ModRevision, 10)
		}
		if f.To != nil {
			row[3] = strconv.FormatInt(f.To.ModRevision, 10)
		}
		if d.values {
			var was, is string
			if f.From != nil {
				was = excerpt(f.From.Value, hex)
			}
			if f.To != nil {
				is = excerpt(f.To.Value, hex)
			}
			row = append(row, was, is)
		}
		rows = append(rows, row)
	}
	return rows
}

func (d *differences) reply() reply {
	return reply{
		raw: d,
		simple: func(p *page) {
			if len(d.Keys) > 0 {
				p.columns(d.rows(p.hex))
			}
			fmt.Fprintf(&p.err, "From revision %d to %d: %d added, %d removed, %d changed.\n", d.From, d.To, d.Added, d.Removed, d.Changed)
		},
		table: func() [][]string { return d.rows(false) },
	}
}

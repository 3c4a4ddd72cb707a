package ctl

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/timemap"
)

// A keyVersion is one change of a key.
type keyVersion struct {
	Revision int64       `json:"revision"`
	Written  *writtenKey `json:"written,omitempty"` // nil: not known
	Event    string      `json:"event"`             // PUT or DELETE
	Version  int64       `json:"version,omitempty"`
	Created  int64       `json:"create_revision,omitempty"`
	Lease    int64       `json:"lease,omitempty"`
	Value    []byte      `json:"value,omitempty"`
}

// writtenKey is when a version was written: after From, and not after To. To is zero if it was
// written so lately that no member has noted it yet.
type writtenKey struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to,omitzero"`
}

func (w *writtenKey) text() string {
	switch {
	case w == nil:
		return "not known"
	case w.To.IsZero():
		return "since " + stamp(w.From)
	case w.To.Sub(w.From) > coarse:
		return stamp(w.To) + fmt.Sprintf(" (or up to %v before)", w.To.Sub(w.From).Round(time.Second))
	}
	return stamp(w.To)
}

// A keyHistory is all versions of a key that can be read.
type keyHistory struct {
	Key string `json:"key"`
	// Oldest is the oldest revision that can be read: what was before it is compacted, but for the
	// version that was the newest then.
	Oldest   int64        `json:"oldest_revision"`
	Revision int64        `json:"revision"`           // as of which the rest is
	Left     int          `json:"left_out,omitempty"` // older versions, because of --limit
	Versions []keyVersion `json:"versions"`
}

func (c *ctl) historyCommand() *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:   "history [options] <key>",
		Short: "Prints every version of a key that compaction has left, and when it was written",
		Long: `Prints every version of a key that compaction has left, the oldest first: the revision, when it was written (as the
members of Belay remember it; etcd's do not), and the value. Values are cut; -w json has them whole.`,
		GroupID: groupKV,
	}
	cmd.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return failf(codeBadArgs, "history command needs one argument, the key")
		}
		if limit < 0 {
			return failf(codeBadArgs, "--limit must not be negative: 0 is all versions")
		}
		cli, out, err := c.client(cmd)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(cmd.Context())
		defer cancel()
		h, err := readHistory(ctx, cli, args[0], limit, c.global.CommandTimeout)
		if err != nil {
			return err
		}
		revisions := make([]int64, len(h.Versions))
		for i, v := range h.Versions {
			revisions[i] = v.Revision
		}
		within, cancel := c.timeout(cmd)
		defer cancel()
		when, err := past{c, cli}.writtenAt(within, revisions)
		if err != nil && len(h.Versions) > 0 {
			fmt.Fprintln(c.err, "When they were written is not known:", err)
		}
		for i := range h.Versions {
			if in, ok := when[h.Versions[i].Revision]; ok {
				h.Versions[i].Written = intervalOf(in)
			}
		}
		return out.show(h.reply())
	})
	cmd.Flags().IntVar(&limit, "limit", 0, "only so many of the newest versions (0: all)")
	return cmd
}

func intervalOf(in timemap.Interval) *writtenKey {
	w := &writtenKey{From: in.From.Time}
	if in.To != nil {
		w.To = in.To.Time
	}
	return w
}

// readHistory watches the key from the oldest revision on until it has seen all that was written
// before. The watch may take as long as answers come within patience of each other.
func readHistory(ctx context.Context, cli *clientv3.Client, key string, limit int, patience time.Duration) (*keyHistory, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	patient := time.AfterFunc(patience, func() { cancel(context.DeadlineExceeded) })
	defer patient.Stop()
	ended := func(err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}

	now, err := cli.Get(ctx, key)
	if err != nil {
		return nil, ended(err)
	}
	h := &keyHistory{Key: key, Revision: now.Header.GetRevision(), Versions: []keyVersion{}}
	if h.Oldest, err = oldestRevision(ctx, cli); err != nil {
		return nil, ended(err)
	}
	from := int64(1)
	if h.Oldest > 1 {
		was, err := cli.Get(ctx, key, clientv3.WithRev(h.Oldest))
		if err != nil {
			return nil, ended(err)
		}
		for _, kv := range was.Kvs {
			h.add(limit, versionOf("PUT", kv))
		}
		from = h.Oldest + 1
	}
	if from > h.Revision {
		return h, nil
	}

	events := cli.Watch(ctx, key, clientv3.WithRev(from), clientv3.WithProgressNotify())
	ask := time.NewTicker(100 * time.Millisecond) // a watch that catches up does not answer at once
	defer ask.Stop()
	for {
		select {
		case resp, ok := <-events:
			if !ok {
				return nil, ended(errors.New("the watch ended"))
			}
			if err := resp.Err(); err != nil {
				return nil, ended(err)
			}
			patient.Reset(patience)
			for _, ev := range resp.Events {
				if ev.Kv.ModRevision > h.Revision {
					return h, nil
				}
				h.add(limit, versionOf(ev.Type.String(), ev.Kv))
			}
			if resp.IsProgressNotify() && resp.Header.GetRevision() >= h.Revision {
				return h, nil
			}
			if last := len(h.Versions); last > 0 && len(now.Kvs) == 1 && h.Versions[last-1].Revision >= now.Kvs[0].ModRevision {
				return h, nil
			}
		case <-ask.C:
			if err := cli.RequestProgress(ctx); err != nil {
				return nil, ended(err)
			}
		}
	}
}

func versionOf(event string, kv *mvccpb.KeyValue) keyVersion {
	return keyVersion{Revision: kv.ModRevision, Event: event, Version: kv.Version, Created: kv.CreateRevision, Lease: kv.Lease, Value: kv.Value}
}

func (h *keyHistory) add(limit int, v keyVersion) {
	h.Versions = append(h.Versions, v)
	if limit > 0 && len(h.Versions) > limit {
		h.Versions = append(h.Versions[:0:0], h.Versions[1:]...)
		h.Left++
	}
}

func (h *keyHistory) rows(hex bool) [][]string {
	rows := [][]string{{"REVISION", "WRITTEN", "EVENT", "VERSION", "LEASE", "BYTES", "VALUE"}}
	for _, v := range h.Versions {
		row := []string{strconv.FormatInt(v.Revision, 10), v.Written.text(), v.Event, "", "", "", ""}
		if v.Event == "PUT" {
			row[3], row[5], row[6] = strconv.FormatInt(v.Version, 10), strconv.Itoa(len(v.Value)), excerpt(v.Value, hex)
		}
		if v.Lease != 0 {
			row[4] = fmt.Sprintf("%016x", v.Lease)
		}
		rows = append(rows, row)
	}
	return rows
}

func (h *keyHistory) reply() reply {
	notes := func(p *page) {
		if h.Left > 0 {
			fmt.Fprintf(&p.err, "%d older versions are left out by --limit.\n", h.Left)
		}
		if h.Oldest > 1 {
			fmt.Fprintf(&p.err, "Revisions before %d were compacted; of those only what was the newest then is left.\n", h.Oldest)
		}
	}
	return reply{
		raw: h,
		simple: func(p *page) {
			notes(p)
			if len(h.Versions) == 0 {
				fmt.Fprintf(&p.err, "%q has no version that can be read.\n", h.Key)
				return
			}
			p.columns(h.rows(p.hex))
		},
		table: func() [][]string { return h.rows(false) },
	}
}

// columns aligns rows.
func (p *page) columns(rows [][]string) {
	w := tabwriter.NewWriter(&p.out, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, cell)
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush() // into memory
}

// excerptRunes is how much of a value is shown on a line.
const excerptRunes = 40

// excerpt is the beginning of a value on one line.
func excerpt(value []byte, hex bool) string {
	if hex {
		if len(value) > excerptRunes/4 {
			return hexEscape(value[:excerptRunes/4]) + "..."
		}
		return hexEscape(value)
	}
	cut := len(value)
	for i, n := 0, 0; i < len(value); n++ {
		if n == excerptRunes {
			cut = i
			break
		}
		_, size := utf8.DecodeRune(value[i:])
		i += size
	}
	text := strconv.Quote(string(value[:cut]))
	if cut < len(value) {
		text += "..."
	}
	return text
}

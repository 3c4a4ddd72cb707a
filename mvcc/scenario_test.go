package mvcc

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// TestScenarios runs testdata/*. A command's input has one line for each transaction of the batch:
//
//	put a=1 b=2 a.lease=7; del c; del d..f      (";" separates the operations of one transaction)
//	compact 5
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		r := newRig(t, Options{CompactionSleep: -1, CompactionBatchLimit: 3})
		ctx := context.Background()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			number := func(name string, fallback int64) int64 {
				for _, a := range d.CmdArgs {
					if a.Key == name {
						n, err := strconv.ParseInt(a.Vals[0], 10, 64)
						if err != nil {
							d.Fatalf(t, "%v", err)
						}
						return n
					}
				}
				return fallback
			}
			var out strings.Builder
			switch d.Cmd {
			case "batch":
				for _, o := range r.apply(parseCommands(d.Input)...) {
					fmt.Fprintln(&out, strings.TrimSpace(string(o)))
				}
			case "wait":
				<-r.Compacted(number("rev", 0))
			case "reopen":
				r.flush()
				r.close()
				r.open()
				fmt.Fprintf(&out, "revision %d compacted %d\n", r.Revision(), r.CompactRevision())
			case "range":
				from, to, _ := strings.Cut(d.CmdArgs[0].Key, "..")
				res, err := r.Range(ctx, []byte(from), end(strings.ReplaceAll(to, "$", "\x00")), RangeOptions{
					Rev: number("rev", 0), Limit: number("limit", 0), KeysOnly: d.HasArg("keys"), CountOnly: d.HasArg("count"),
				})
				for _, kv := range res.KVs {
					fmt.Fprintln(&out, kvText(kv, !d.HasArg("keys")))
				}
				fmt.Fprintf(&out, "count %d revision %d", res.Count, res.Rev)
				if err != nil {
					fmt.Fprintf(&out, " %v", err)
				}
				fmt.Fprintln(&out)
			case "events":
				next, err := r.Events(ctx, number("from", 1), number("to", 1<<60), int(number("bytes", 1<<20)), nil, func(rev int64, events []*mvccpb.Event) error {
					fmt.Fprintf(&out, "%d %s\n", rev, eventsText(events))
					return nil
				})
				fmt.Fprintf(&out, "next %d", next)
				if err != nil {
					fmt.Fprintf(&out, " %v", err)
				}
				fmt.Fprintln(&out)
			case "hash":
				hash, compact, current, err := r.HashKV(ctx, number("rev", 0))
				if err != nil {
					return err.Error() + "\n"
				}
				fmt.Fprintf(&out, "%08x compacted %d current %d\n", hash, compact, current)
			case "stored":
				v := r.View()
				defer v.Close()
				if err := v.Revisions(ctx, func(main, sub int64, tombstone bool, value []byte) error {
					kv := new(mvccpb.KeyValue)
					if err := proto.Unmarshal(value, kv); err != nil {
						return err
					}
					fmt.Fprintf(&out, "%d.%d %s tombstone %v\n", main, sub, kvText(kv, true), tombstone)
					return nil
				}); err != nil {
					d.Fatalf(t, "%v", err)
				}
			default:
				d.Fatalf(t, "unknown command %s", d.Cmd)
			}
			return out.String()
		})
	})
}

func parseCommands(input string) (cmds []command) {
	for line := range strings.Lines(input) {
		line = strings.TrimSpace(line)
		if rev, ok := strings.CutPrefix(line, "compact "); ok {
			n, err := strconv.ParseInt(rev, 10, 64)
			if err != nil {
				panic(err)
			}
			cmds = append(cmds, command{compact: n})
			continue
		}
		var c command
		for part := range strings.SplitSeq(line, ";") {
			words := strings.Fields(part)
			switch words[0] {
			case "put":
				leases := map[string]int64{}
				for _, w := range words[1:] {
					k, v, _ := strings.Cut(w, "=")
					if k, ok := strings.CutSuffix(k, ".lease"); ok {
						leases[k], _ = strconv.ParseInt(v, 10, 64)
					}
				}
				for _, w := range words[1:] {
					k, v, _ := strings.Cut(w, "=")
					if !strings.HasSuffix(k, ".lease") {
						c.ops = append(c.ops, op{key: k, value: v, lease: leases[k], wantPrev: true})
					}
				}
			case "del":
				from, to, _ := strings.Cut(words[1], "..")
				c.ops = append(c.ops, op{del: true, key: from, end: strings.ReplaceAll(to, "$", "\x00"), wantPrev: true})
			default:
				panic("unknown operation " + words[0])
			}
		}
		cmds = append(cmds, c)
	}
	return cmds
}

func FuzzRecord(f *testing.F) {
	f.Add(appendHeader(nil, 9, 3, 2, 7), int64(9))
	f.Add([]byte{0, 0, 1}, int64(1))
	f.Fuzz(func(t *testing.T, b []byte, main int64) {
		if main <= 0 {
			return
		}
		r, err := decodeRecord(b, main)
		if err != nil {
			return
		}
		// What it accepts it understands: writing it again gives a version that reads the same.
		again, err := decodeRecord(append(appendHeader(nil, main, r.create, r.version, r.lease), r.value...), main)
		if err != nil || again.create != r.create || again.version != r.version || again.lease != r.lease || !bytes.Equal(again.value, r.value) {
			t.Fatalf("%+v, again %+v %v", r, again, err)
		}
	})
}

func FuzzRevision(f *testing.F) {
	f.Add([]byte("r\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00"), []byte("\x00key"))
	f.Fuzz(func(t *testing.T, k, v []byte) { decodeRevision(k, v) })
}

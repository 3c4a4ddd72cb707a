package watch

import (
	"errors"
	"fmt"
	"sort"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/cockroachdb/datadriven"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// TestScenarios runs the files of testdata. Each file has a hub of its own in a
// synctest bubble; after each command the bubble is let come to rest, so that
// what a command prints does not depend on timing. Commands:
//
//	hub [stream=B] [ring=N] [recent=B] [backlog=B] [scan=N] [revs=N] [compacted=R]
//	    starts the hub, over a history of N revisions (of key "h")
//	commit      one line per revision: "k=v", "-k" to delete, many by spaces; not yet notified
//	notify [n]  notifies the next n committed revisions, or all
//	put         commit and notify
//	skip        leaves what is committed unnotified
//	stream NAME
//	watch NAME key=K [end=E] [start=S] [id=I] [noput] [nodelete] [prev] [notify] [fragment]
//	refuse NAME reason / cancel NAME id / progress NAME / tick NAME / close NAME
//	drain NAME [n]  prints what the stream sends; with n the sender fails after n responses
//	compact R / reload / fail (the next read of history) / stats
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		synctest.Test(t, func(t *testing.T) {
			s := &scenario{streams: map[string]*Stream{}, kv: &fakeHistory{}}
			defer func() {
				for _, st := range s.streams {
					st.Close()
				}
				s.h.Close()
			}()
			datadriven.RunTest(t, path, s.run)
		})
	})
}

type scenario struct {
	kv       *fakeHistory
	h        *Hub
	notified int64
	streams  map[string]*Stream
}

func (s *scenario) run(t *testing.T, d *datadriven.TestData) string {
	arg := func(name string, def int64) int64 {
		if d.HasArg(name) {
			d.ScanArgs(t, name, &def)
		}
		return def
	}
	name := ""
	if len(d.CmdArgs) > 0 {
		name = d.CmdArgs[0].Key
	}
	st := s.streams[name]
	var out strings.Builder
	switch d.Cmd {
	case "hub":
		for range arg("revs", 0) {
			s.kv.commit(write{key: "h", value: "x"})
		}
		s.kv.compactTo(arg("compacted", 0))
		s.notified = s.kv.Revision()
		s.h = NewHub(s.kv, Options{
			StreamBytes: arg("stream", 0), RecentRevisions: int(arg("ring", 0)), RecentBytes: arg("recent", 0),
			BacklogBytes: arg("backlog", 0), ScanRevisions: arg("scan", 0),
		})
	case "commit", "put":
		for line := range strings.Lines(d.Input) {
			var ws []write
			for _, f := range strings.Fields(line) {
				if k, ok := strings.CutPrefix(f, "-"); ok {
					ws = append(ws, write{key: k, del: true})
				} else {
					k, v, _ := strings.Cut(f, "=")
					ws = append(ws, write{key: k, value: v})
				}
			}
			s.kv.commit(ws...)
			if d.Cmd == "put" {
				s.notify()
			}
		}
	case "notify":
		n := s.kv.Revision() - s.notified
		if name != "" {
			fmt.Sscan(name, &n)
		}
		for range n {
			s.notify()
		}
	case "skip": // as a bug in the applier would
		s.notified = s.kv.Revision()
	case "stream":
		s.streams[name] = s.h.NewStream()
	case "watch":
		var key, end string
		d.ScanArgs(t, "key", &key)
		req := Request{Key: []byte(key), Start: arg("start", 0), ID: arg("id", 0)}
		if d.HasArg("end") {
			d.ScanArgs(t, "end", &end)
			if end == "inf" {
				end = "\x00"
			}
			req.End = []byte(end)
		}
		req.NoPut, req.NoDelete, req.PrevKV = d.HasArg("noput"), d.HasArg("nodelete"), d.HasArg("prev")
		req.ProgressNotify, req.Fragment = d.HasArg("notify"), d.HasArg("fragment")
		if _, err := st.Watch(req); err != nil {
			fmt.Fprintln(&out, err)
		}
	case "refuse":
		st.Refuse("no")
	case "cancel":
		if !st.Cancel(arg("id", 0)) {
			fmt.Fprintln(&out, "unknown")
		}
	case "progress":
		st.Progress()
	case "tick":
		st.Tick()
	case "close":
		st.Close()
		delete(s.streams, name)
	case "drain":
		left := arg("n", 1<<30)
		var err error
		for more := true; more; synctest.Wait() {
			more, err = st.drainBatch(func(r *Response) error {
				synctest.Wait() // sending the one before made room: let the others use it
				if left--; left < 0 {
					return errors.New("sender failed")
				}
				fmt.Fprintln(&out, r)
				return nil
			})
		}
		if err != nil {
			fmt.Fprintln(&out, err)
		}
	case "compact":
		s.kv.compactTo(arg("rev", 0))
	case "reload":
		s.h.Reload()
		s.notified = s.kv.Revision()
	case "fail":
		s.kv.fail = errors.New("history cannot be read")
	case "stats":
		synctest.Wait()
		m := s.h.metrics
		s.h.mu.Lock()
		fmt.Fprintf(&out, "rev %d done %d live %d ready %d; streams %d watchers %d behind %d pending %d sent %d; history read %v\n",
			s.h.recent.rev, s.h.done, s.h.live.len(), len(s.h.ready), m.streams.Load(), m.watchers.Load(), m.behind.Load(),
			m.pending.Load(), m.sent.Load(), s.kv.scans > 0)
		s.kv.scans = 0 // how many it takes depends on timing
		s.h.mu.Unlock()
	default:
		t.Fatalf("unknown command %s", d.Cmd)
	}
	synctest.Wait()
	return out.String()
}

func (s *scenario) notify() {
	s.notified++
	s.h.Notify(s.notified, s.kv.revs[s.notified-2])
}

func (r *Response) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d @%d", r.ID, r.Rev)
	if r.Created {
		b.WriteString(" created")
	}
	if r.Canceled {
		b.WriteString(" canceled")
	}
	if r.CancelReason != "" {
		fmt.Fprintf(&b, " %q", r.CancelReason)
	}
	if r.CompactRev != 0 {
		fmt.Fprintf(&b, " compacted at %d", r.CompactRev)
	}
	for _, ev := range r.Events {
		fmt.Fprintf(&b, " %d:", ev.Kv.ModRevision)
		if ev.Type == mvccpb.Event_DELETE {
			fmt.Fprintf(&b, "-%s", ev.Kv.Key)
		} else if v := ev.Kv.Value; len(v) > 20 {
			fmt.Fprintf(&b, "%s=(%d bytes)", ev.Kv.Key, len(v))
		} else {
			fmt.Fprintf(&b, "%s=%s", ev.Kv.Key, v)
		}
		if ev.PrevKv != nil {
			fmt.Fprintf(&b, "(was %s)", ev.PrevKv.Value)
		}
	}
	return b.String()
}

// TestIndexRandom compares the index with a scan over all watchers.
func TestIndexRandom(t *testing.T) {
	rng := newRand(t)
	x := newIndex()
	var all []*watcher
	key := func() string { return strings.Repeat("k", rng.Intn(3)) + string(rune('a'+rng.Intn(26))) }
	for range 20000 {
		switch n := rng.Intn(10); {
		case n < 4:
			w := &watcher{id: int64(len(all)), span: span{start: key()}}
			switch rng.Intn(3) {
			case 0:
				w.span.single = true
			case 1:
				w.span.end.inf = true
			default:
				if w.span.end.key = key(); w.span.end.key <= w.span.start {
					w.span.end = bound{key: w.span.start + "\x00"}
				}
			}
			x.add(w)
			all = append(all, w)
		case n < 7 && len(all) > 0:
			i := rng.Intn(len(all))
			x.remove(all[i])
			all[i] = all[len(all)-1]
			all = all[:len(all)-1]
		default:
			k := []byte(key())
			want, got := map[*watcher]int{}, map[*watcher]int{}
			for _, w := range all {
				if w.span.contains(k) {
					want[w]++
				}
			}
			x.lists(k, func(l *watchList) {
				for _, w := range l.ws {
					got[w]++
				}
			})
			if len(want) != len(got) {
				t.Fatalf("key %q: %d watchers, want %d", k, len(got), len(want))
			}
			for w := range want {
				if got[w] != 1 {
					t.Fatalf("key %q: watcher of %v found %d times", k, w.span, got[w])
				}
			}
		}
		if x.len() != len(all) {
			t.Fatalf("index holds %d, want %d", x.len(), len(all))
		}
	}
	ids := func(ws []*watcher) (out []int64) {
		for _, w := range ws {
			out = append(out, w.id)
		}
		sort.Slice(out, func(i, j int) bool { return out[i] < out[j] })
		return out
	}
	if got, want := fmt.Sprint(ids(x.list())), fmt.Sprint(ids(all)); got != want {
		t.Fatal("list is not what was added")
	}
	if depth(x.root) > 60 {
		t.Fatalf("treap is %d deep", depth(x.root))
	}
}

func depth(n *node) int {
	if n == nil {
		return 0
	}
	return 1 + max(depth(n.left), depth(n.right))
}

package mvcc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"encoding/binary"

	"github.com/belaydb/belay/store"
)

// rig is a store of revisions over a store in memory, that can be closed and opened again.
type rig struct {
	t     testing.TB
	fs    vfs.FS
	dir   string
	opts  Options
	sopts store.Options
	st    *store.Store
	*Store

	segments *segmentWriter // nil: all values are in the store
}

func newRig(t testing.TB, opts Options) *rig {
	r := &rig{t: t, fs: vfs.NewMem(), dir: "db", opts: opts}
	r.sopts = store.Options{MemTableBytes: 1 << 20, CacheBytes: 1 << 20, PlaceBytes: 1}
	r.open()
	t.Cleanup(r.close)
	return r
}

func (r *rig) open() {
	r.t.Helper()
	o := r.sopts
	o.FS = r.fs
	var err error
	if r.st, err = store.Open(r.dir, o); err != nil {
		r.t.Fatal(err)
	}
	if r.Store, err = Open(r.st, r.opts); err != nil {
		r.t.Fatal(err)
	}
	r.segments.restarted()
}

func (r *rig) close() {
	if r.st == nil {
		return
	}
	r.Close()
	if err := r.st.Close(); err != nil {
		r.t.Error(err)
	}
	r.st = nil
}

func (r *rig) flush() {
	r.t.Helper()
	if err := r.st.Flush(context.Background()); err != nil {
		r.t.Fatal(err)
	}
	r.segments.drop()
}

// command is what one raft entry does: a transaction, or a compaction.
type command struct {
	ops     []op
	compact int64 // if there are no ops
}

type op struct {
	del      bool
	key, end string
	value    string
	lease    int64
	wantPrev bool
}

func (o op) String() string {
	if o.del {
		return fmt.Sprintf("delete %q %q", o.key, o.end)
	}
	return fmt.Sprintf("put %q %.10q lease %d", o.key, o.value, o.lease)
}

// outcome is everything that applying a command answers, as text.
type outcome string

// apply applies commands as one batch.
func (r *rig) apply(cmds ...command) []outcome {
	r.t.Helper()
	index, _ := r.st.Applied()
	b := r.st.NewBatch(index+uint64(len(cmds)), 1)
	w := r.NewWriter(b)
	var out []outcome
	var values [][]byte
	for _, c := range cmds {
		for _, o := range c.ops {
			values = append(values, []byte(o.value))
		}
	}
	for _, c := range cmds {
		var text strings.Builder
		if len(c.ops) == 0 {
			err := w.Compact(c.compact)
			fmt.Fprintf(&text, "compact %v rev %d at %d", err, w.Rev(), w.CompactRevision())
			out = append(out, outcome(text.String()))
			continue
		}
		w.Begin()
		for _, o := range c.ops {
			if o.del {
				n, prevs, err := w.DeleteRange([]byte(o.key), end(o.end), o.wantPrev)
				if err != nil {
					r.t.Fatal(err)
				}
				fmt.Fprintf(&text, "deleted %d rev %d:", n, w.Rev())
				for _, kv := range prevs {
					text.WriteString(kvText(kv, o.wantPrev))
				}
			} else {
				var value string
				if o.wantPrev {
					prev, err := w.Prev([]byte(o.key), true)
					if err != nil {
						r.t.Fatal(err)
					}
					value = kvText(prev, true)
				}
				prev, rev, err := w.PutPlaced([]byte(o.key), []byte(o.value), o.lease, r.segments.place(values, []byte(o.value)))
				if err != nil {
					r.t.Fatal(err)
				}
				fmt.Fprintf(&text, "put rev %d prev %s%s", rev, kvText(prev, false), value)
			}
			text.WriteString("; ")
		}
		events, rev := w.End()
		fmt.Fprintf(&text, "rev %d %s", rev, eventsText(events))
		out = append(out, outcome(text.String()))
	}
	if err := b.Commit(); err != nil {
		r.t.Fatal(err)
	}
	w.Publish()
	return out
}

// do applies one transaction.
func (r *rig) do(ops ...op) outcome { r.t.Helper(); return r.apply(command{ops: ops})[0] }

func (r *rig) compactTo(rev int64) { r.t.Helper(); r.apply(command{compact: rev}); <-r.Compacted(rev) }

// send installs a snapshot of r into a fresh rig.
func (r *rig) send(to *rig) {
	r.t.Helper()
	pr, pw := io.Pipe()
	v := r.st.View()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		defer v.Close()
		pw.CloseWithError(r.st.WriteSnapshot(context.Background(), v, pw))
	}()
	defer func() { // the view is closed before its store is
		pr.Close()
		<-sent
	}()
	in, err := to.st.ReceiveSnapshot(context.Background(), pr)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := to.st.Install(in); err != nil {
		r.t.Fatal(err)
	}
	if err := to.Reload(); err != nil {
		r.t.Fatal(err)
	}
}

func end(s string) []byte {
	if s == "" {
		return nil
	}
	return []byte(s)
}

func kvText(kv *mvccpb.KeyValue, withValue bool) string {
	if kv == nil {
		return "(none)"
	}
	s := fmt.Sprintf("(%q c%d m%d v%d l%d", kv.Key, kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease)
	if withValue {
		s += fmt.Sprintf(" %d:%.12q", len(kv.Value), kv.Value)
	}
	return s + ")"
}

func kvsText(kvs []*mvccpb.KeyValue, withValue bool) string {
	var b strings.Builder
	for _, kv := range kvs {
		b.WriteString(kvText(kv, withValue))
	}
	return b.String()
}

func eventsText(events []*mvccpb.Event) string {
	var b strings.Builder
	for _, e := range events {
		fmt.Fprintf(&b, "%s%s", e.Type, kvText(e.Kv, true))
	}
	return b.String()
}

// model is etcd's store, as simple as it can be: the bucket "key" as a list, with everything
// recomputed from it.
type model struct {
	rev, compact int64
	bucket       []modelEntry // in revision order
	hashes       []CompactionHash
}

type modelEntry struct {
	Revision
	tombstone bool
	kv        *mvccpb.KeyValue
}

func newModel() *model { return &model{rev: 1, compact: -1} }

// at returns the newest entry of each key at or below a revision, tombstones included, in key
// order.
func (m *model) at(rev int64) []modelEntry {
	newest := map[string]modelEntry{}
	for _, e := range m.bucket {
		if e.Main <= rev {
			newest[string(e.kv.Key)] = e
		}
	}
	keys := make([]string, 0, len(newest))
	for k := range newest {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	out := make([]modelEntry, len(keys))
	for i, k := range keys {
		out[i] = newest[k]
	}
	return out
}

func in(key, from, to string) bool {
	switch to {
	case "":
		return key == from
	case "\x00":
		return key >= from
	}
	return key >= from && key < to
}

func (m *model) get(from, to string, rev int64) (kvs []*mvccpb.KeyValue) {
	for _, e := range m.at(rev) {
		if !e.tombstone && in(string(e.kv.Key), from, to) {
			kvs = append(kvs, e.kv)
		}
	}
	return kvs
}

func (m *model) apply(c command) outcome {
	var text strings.Builder
	if len(c.ops) == 0 {
		err := m.doCompact(c.compact)
		fmt.Fprintf(&text, "compact %v rev %d at %d", err, m.rev, m.compact)
		return outcome(text.String())
	}
	rev, sub := m.rev+1, int64(0)
	now := func() int64 {
		if sub > 0 {
			return rev
		}
		return m.rev
	}
	var events []*mvccpb.Event
	for _, o := range c.ops {
		if o.del {
			prevs := m.get(o.key, o.end, rev)
			for _, p := range prevs {
				m.bucket = append(m.bucket, modelEntry{Revision{rev, sub}, true, &mvccpb.KeyValue{Key: p.Key}})
				events = append(events, &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: p.Key, ModRevision: rev}})
				sub++
			}
			fmt.Fprintf(&text, "deleted %d rev %d:%s", len(prevs), now(), kvsText(prevs, o.wantPrev))
		} else {
			kv := &mvccpb.KeyValue{Key: []byte(o.key), Value: []byte(o.value), Lease: o.lease, CreateRevision: rev, ModRevision: rev, Version: 1}
			var prev *mvccpb.KeyValue
			if prevs := m.get(o.key, "", rev); len(prevs) > 0 {
				prev = prevs[0]
				kv.CreateRevision, kv.Version = prev.CreateRevision, prev.Version+1
			}
			value := ""
			if o.wantPrev {
				value = kvText(prev, true)
			}
			fmt.Fprintf(&text, "put rev %d prev %s%s", rev, kvText(prev, false), value)
			m.bucket = append(m.bucket, modelEntry{Revision{rev, sub}, false, kv})
			events = append(events, &mvccpb.Event{Kv: kv})
			sub++
		}
		text.WriteString("; ")
	}
	m.rev = now()
	fmt.Fprintf(&text, "rev %d %s", m.rev, eventsText(events))
	return outcome(text.String())
}

func (m *model) doCompact(rev int64) error {
	if rev <= m.compact {
		return ErrCompacted
	}
	if rev > m.rev {
		return ErrFutureRev
	}
	// What etcd's index keeps: of each key the newest at or below rev, but no tombstone below it.
	keep := map[Revision]bool{}
	for _, e := range m.at(rev) {
		if !e.tombstone || e.Main == rev {
			keep[e.Revision] = true
		}
	}
	h := m.hash(m.compact, rev, keep)
	m.hashes = append(m.hashes, CompactionHash{rev, m.compact, h})
	if len(m.hashes) > 10 {
		m.hashes = m.hashes[1:]
	}
	m.bucket = slices.DeleteFunc(m.bucket, func(e modelEntry) bool { return e.Main <= rev && !keep[e.Revision] })
	m.compact = rev
	return nil
}

func (m *model) hash(compact, rev int64, keep map[Revision]bool) uint32 {
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	io.WriteString(h, "key")
	for _, e := range m.bucket {
		if e.Main > rev || e.Main <= compact && len(keep) > 0 && !keep[e.Revision] || e.tombstone && e.Main == compact {
			continue
		}
		k := binary.BigEndian.AppendUint64(nil, uint64(e.Main))
		k = binary.BigEndian.AppendUint64(append(k, '_'), uint64(e.Sub))
		if e.tombstone {
			k = append(k, 't')
		}
		h.Write(k)
		v, err := proto.Marshal(e.kv)
		if err != nil {
			panic(err)
		}
		h.Write(v)
	}
	return h.Sum32()
}

// hashKV is etcd's HashKV.
func (m *model) hashKV(rev int64) (hash uint32, compact int64, err error) {
	for _, h := range m.hashes {
		if h.Revision == rev {
			return h.Hash, h.CompactRevision, nil
		}
	}
	if rev > 0 && rev < m.compact {
		return 0, 0, ErrCompacted
	}
	if rev > m.rev {
		return 0, 0, ErrFutureRev
	}
	if rev == 0 {
		rev = m.rev
	}
	ended := map[string]bool{} // etcd finds nothing to keep of what rev itself deleted, even if it made it again
	for _, e := range m.bucket {
		if e.tombstone && e.Main == rev && rev > m.compact {
			ended[string(e.kv.Key)] = true
		}
	}
	keep := map[Revision]bool{}
	for _, e := range m.at(rev) {
		if !e.tombstone && !ended[string(e.kv.Key)] {
			keep[e.Revision] = true
		}
	}
	return m.hash(m.compact, rev, keep), m.compact, nil
}

// check holds everything that can be read against the model.
func (r *rig) check(m *model, rng *rand.Rand) {
	r.t.Helper()
	ctx := context.Background()
	if r.Revision() != m.rev || r.CompactRevision() != m.compact {
		r.t.Fatalf("revision %d compacted %d, want %d %d", r.Revision(), r.CompactRevision(), m.rev, m.compact)
	}
	view := r.View()
	defer view.Close()
	for rev := max(m.compact-1, 1); rev <= m.rev+1; rev++ {
		for range 3 {
			from, to := randomKey(rng), randomEnd(rng)
			o := RangeOptions{Rev: rev, Limit: rng.Int64N(4), KeysOnly: rng.IntN(4) == 0, CountOnly: rng.IntN(4) == 0}
			if rev == m.rev && rng.IntN(2) == 0 {
				o.Rev = 0
			}
			r.checkRange(m, r.Store, from, to, o)
			r.checkRange(m, view, from, to, o)
		}
		if rev < m.rev-6 && rng.IntN(4) > 0 {
			continue
		}
		want, wantCompact, wantErr := m.hashKV(rev)
		got, compact, _, err := r.HashKV(ctx, rev)
		if got != want || !errors.Is(err, wantErr) || err == nil && compact != wantCompact {
			r.t.Fatalf("HashKV(%d) = %08x compact %d %v, want %08x %d %v", rev, got, compact, err, want, wantCompact, wantErr)
		}
	}
	r.checkCounts(m)
	r.checkHistory(m, rng)
	r.checkRevisions(m, view, rng)
}

func (r *rig) checkRange(m *model, rd interface {
	Range(ctx context.Context, key, end []byte, o RangeOptions) (RangeResult, error)
}, from, to string, o RangeOptions) {
	r.t.Helper()
	got, err := rd.Range(context.Background(), []byte(from), end(to), o)
	rev, wantErr := at(o.Rev, m.rev)
	if wantErr == nil && rev < m.compact {
		wantErr = ErrCompacted
	}
	if !errors.Is(err, wantErr) || got.Rev != m.rev {
		r.t.Fatalf("range %q %q %+v: %v at %d, want %v at %d", from, to, o, err, got.Rev, wantErr, m.rev)
	}
	if err != nil {
		return
	}
	want := m.get(from, to, rev)
	if got.Count != int64(len(want)) {
		r.t.Fatalf("range %q %q %+v: count %d, want %d", from, to, o, got.Count, len(want))
	}
	if o.Limit > 0 && int(o.Limit) < len(want) && to != "" {
		want = want[:o.Limit]
	}
	if o.CountOnly {
		want = nil
	}
	if g, w := kvsText(got.KVs, !o.KeysOnly), kvsText(want, !o.KeysOnly); g != w {
		r.t.Fatalf("range %q %q %+v:\n got %s\nwant %s", from, to, o, g, w)
	}
	if !o.KeysOnly {
		for i := range want {
			if !bytes.Equal(got.KVs[i].Value, want[i].Value) {
				r.t.Fatalf("range %q %q %+v: value of %q differs", from, to, o, want[i].Key)
			}
		}
	}
}

// checkCounts holds every block of keys that are counted ahead against the model.
func (r *rig) checkCounts(m *model) {
	r.t.Helper()
	c := &r.keyCounts
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != countsBuilt {
		return
	}
	live := m.get("\x00", "\x00", m.rev)
	if c.total != int64(len(live)) || c.rev != m.rev {
		r.t.Fatalf("%d keys counted at %d, want %d at %d", c.total, c.rev, len(live), m.rev)
	}
	i := 0
	for gi := range c.groups {
		sum := int64(0)
		for bi, b := range c.groups[gi].blocks {
			to, n := c.next(gi, bi), int64(0)
			for ; i < len(live) && (to == nil || bytes.Compare(live[i].Key, to) < 0); i++ {
				if bytes.Compare(live[i].Key, b.start) < 0 {
					r.t.Fatalf("key %q before the block %q", live[i].Key, b.start)
				}
				n++
			}
			if n != b.n {
				r.t.Fatalf("the block %q counts %d, has %d", b.start, b.n, n)
			}
			sum += n
		}
		if sum != c.groups[gi].n {
			r.t.Fatalf("group %d counts %d, has %d", gi, c.groups[gi].n, sum)
		}
	}
}

// checkHistory reads events in pieces and holds them and their predecessors against the model.
func (r *rig) checkHistory(m *model, rng *rand.Rand) {
	r.t.Helper()
	ctx := context.Background()
	from := max(m.compact, 1)
	if m.compact > 1 {
		if _, err := r.Events(ctx, m.compact-1, m.rev, 1<<20, nil, nil); !errors.Is(err, ErrCompacted) {
			r.t.Fatalf("events from %d: %v", m.compact-1, err)
		}
	}
	wanted, seed := func([]byte) bool { return true }, byte(rng.IntN(256))
	wants := wanted
	switch rng.IntN(3) {
	case 0:
		wants = nil
	case 1:
		wanted = func(key []byte) bool { return (key[0]+key[len(key)-1]+seed)%3 == 0 }
		wants = wanted
	}
	var got, want strings.Builder
	for next := from; next <= m.rev; {
		n, err := r.Events(ctx, next, m.rev, rng.IntN(100), wants, func(rev int64, events []*mvccpb.Event) error {
			fmt.Fprintf(&got, "%d %s\n", rev, eventsText(events))
			for _, e := range events {
				prev, err := r.PrevKV(e)
				if err != nil {
					return err
				}
				var w []*mvccpb.KeyValue
				created := e.Type == mvccpb.Event_PUT && e.Kv.CreateRevision == rev
				if !created && rev-1 >= max(m.compact, 1) {
					w = m.get(string(e.Kv.Key), "", rev-1)
				}
				var p *mvccpb.KeyValue
				if len(w) > 0 {
					p = w[0]
				}
				if kvText(prev, true) != kvText(p, true) {
					return fmt.Errorf("before %s at %d: %s, want %s", e.Kv.Key, rev, kvText(prev, true), kvText(p, true))
				}
			}
			return nil
		})
		if err != nil {
			r.t.Fatal(err)
		}
		if n <= next {
			r.t.Fatalf("events from %d to %d came no further than %d", next, m.rev, n)
		}
		next = n
	}
	var events []*mvccpb.Event
	rev := int64(0)
	flush := func() {
		if len(events) > 0 {
			fmt.Fprintf(&want, "%d %s\n", rev, eventsText(events))
		}
		events = nil
	}
	for _, e := range m.bucket {
		if e.Main < from || !wanted(e.kv.Key) {
			continue
		}
		if e.Main != rev {
			flush()
			rev = e.Main
		}
		if e.tombstone {
			events = append(events, &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: e.kv.Key, ModRevision: rev}})
		} else {
			events = append(events, &mvccpb.Event{Kv: e.kv})
		}
	}
	flush()
	if got.String() != want.String() {
		r.t.Fatalf("events from %d:\n%s\nwant\n%s", from, got.String(), want.String())
	}
}

// checkRevisions holds the export against etcd's bucket, as it is and in parts.
func (r *rig) checkRevisions(m *model, view *View, rng *rand.Rand) {
	r.t.Helper()
	r.checkRevisionsBy(m, view, batchRevisions, batchBytes)
	r.checkRevisionsBy(m, view, 1+rng.IntN(20), 1+rng.IntN(20000))
}

func (r *rig) checkRevisionsBy(m *model, view *View, revisions, size int) {
	r.t.Helper()
	i := 0
	err := view.revisions(context.Background(), 0, revisions, size, func(main, sub int64, tombstone bool, value []byte) error {
		if i == len(m.bucket) {
			return fmt.Errorf("revision %d.%d too many", main, sub)
		}
		e := m.bucket[i]
		i++
		want, err := proto.Marshal(e.kv)
		if err != nil {
			return err
		}
		if e.Main != main || e.Sub != sub || e.tombstone != tombstone || !bytes.Equal(value, want) {
			return fmt.Errorf("revision %d.%d %v %x, want %d.%d %v %x", main, sub, tombstone, value, e.Main, e.Sub, e.tombstone, want)
		}
		return nil
	})
	if err != nil || i != len(m.bucket) {
		r.t.Fatalf("%d of %d revisions, %d and %d bytes at once: %v", i, len(m.bucket), revisions, size, err)
	}
}

// randomKey picks among few keys, some of which are prefixes of others or hold zero bytes.
func randomKey(rng *rand.Rand) string {
	keys := []string{"a", "a\x00", "a\x00\x00", "a\x00b", "ab", "b", "b\x09", "b\x0d", "c\xff", "\x00", "d\x01\x02\x03\x04\x05\x06\x07\x08\x09", strings.Repeat("long", 60)}
	return keys[rng.IntN(len(keys))]
}

func randomEnd(rng *rand.Rand) string {
	switch rng.IntN(4) {
	case 0:
		return ""
	case 1:
		return "\x00"
	}
	return randomKey(rng)
}

func randomValue(rng *rand.Rand) string {
	n := 0
	switch rng.IntN(12) {
	case 0:
	case 1:
		n = 5000 + rng.IntN(5000)
	case 2:
		n = 40000 + rng.IntN(1000)
	default:
		n = rng.IntN(40)
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = byte('a' + rng.IntN(26))
	}
	return string(b)
}

// randomCommands makes a history. rev is where it begins.
func randomCommands(rng *rand.Rand, n int) []command {
	var out []command
	rev := int64(1)
	m := newModel()
	for range n {
		var c command
		if rng.IntN(12) == 0 {
			c.compact = max(m.compact, 0) + rng.Int64N(max(m.rev-m.compact, 1)+1) - rng.Int64N(2)
		} else {
			for range 1 + rng.IntN(1+rng.IntN(4)) {
				o := op{key: randomKey(rng), wantPrev: rng.IntN(3) == 0}
				if rng.IntN(4) == 0 {
					o.del = true
					if rng.IntN(3) == 0 {
						o.end = randomEnd(rng)
					}
				} else {
					o.value = randomValue(rng)
					if rng.IntN(4) == 0 {
						o.lease = 1 + rng.Int64N(1<<40)
					}
				}
				c.ops = append(c.ops, o)
			}
		}
		m.apply(c)
		out = append(out, c)
		_ = rev
	}
	return out
}

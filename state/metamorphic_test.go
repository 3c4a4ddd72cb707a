package state

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/lease"
)

// seed is random, unless BELAY_SEED repeats a run.
func seed(t testing.TB) uint64 {
	s := rand.Uint64()
	if v := os.Getenv("BELAY_SEED"); v != "" {
		var err error
		if s, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("repeat with BELAY_SEED=%d go test ./state -run '^%s$'", s, t.Name())
	return s
}

// history is a random log: mostly requests, now and then a member change.
func history(seed uint64, n int) []command.Entry {
	g := newGenerator(seed)
	entries := make([]command.Entry, n)
	for i := range entries {
		e := command.Entry{Index: uint64(i) + 1, Term: uint64(i/100) + 1}
		if g.flip(25) {
			c := &command.Change{ID: uint64(i), MemberID: g.Uint64N(6) + 1}
			c.Type = raftpb.ConfChangeType(g.IntN(4))
			c.Member = command.Member{ID: c.MemberID, PeerURLs: []string{fmt.Sprint("http://", g.IntN(8))}}
			c.Member.IsLearner = c.Type == raftpb.ConfChangeAddLearnerNode
			c.IsPromote = c.Type == raftpb.ConfChangeAddNode && g.flip(2)
			e.Change = c
			e.ConfState = &raftpb.ConfState{Voters: []uint64{uint64(i)}}
		} else {
			e.Request = g.request()
		}
		entries[i] = e
	}
	return entries
}

// feed applies entries as the replica does, in batches of the sizes that cut gives, and appends
// what came out.
func (r *rig) feed(entries []command.Entry, cut func() int, results []string) []string {
	for len(entries) > 0 {
		if entries[0].Change != nil {
			e := entries[0]
			e.Refused = r.CheckChange(e.Change)
			results = append(results, resultText(r.ApplyChange(e)))
			entries = entries[1:]
			continue
		}
		n := 1
		for most := cut(); n < most && n < len(entries) && entries[n].Change == nil; n++ {
		}
		for _, res := range r.Apply(entries[:n]) {
			results = append(results, resultText(res))
		}
		entries = entries[n:]
	}
	return results
}

// fingerprint is all that must be equal on two members with the same applied index.
func (r *rig) fingerprint() string {
	var b strings.Builder
	index, term := r.Applied()
	fmt.Fprintln(&b, index, term, "compacted", r.kv.CompactRevision())
	// Not revision 0, nor the compacted one: for these etcd, and so package mvcc, answers from a
	// cache of compaction hashes, which a restart empties.
	if rev := r.kv.Revision(); rev > r.kv.CompactRevision() {
		fmt.Fprintln(&b, r.hashKV(rev))
	}
	all, err := r.kv.Range(context.Background(), []byte{0}, []byte{0}, rangeAll)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, kv := range all.KVs {
		fmt.Fprintln(&b, text(kv))
	}
	fmt.Fprintln(&b, membersText(r.Members()), r.ConfState(), r.ClusterVersion(), r.DowngradeInfo(), r.Alarms())
	for _, info := range r.leases.List() {
		keys, err := r.leases.Keys(r.st, info.ID)
		fmt.Fprintf(&b, "lease %d %d %q %v\n", info.ID, info.TTL, keys, err)
	}
	b.WriteString(r.dump())
	return b.String()
}

func diff(t *testing.T, what string, want, got []string) {
	t.Helper()
	for i := range max(len(want), len(got)) {
		switch {
		case i >= len(want) || i >= len(got):
			t.Errorf("%s: %d results instead of %d", what, len(got), len(want))
			return
		case want[i] != got[i]:
			t.Errorf("%s: entry %d:\n got %s\nwant %s", what, i+1, got[i], want[i])
			return
		}
	}
}

// The same log gives the same results, events and data, however it is cut, and whatever comes
// between.
func TestMetamorphic(t *testing.T) {
	s := seed(t)
	metamorphic(t, s, history(s, 600))
}

// metamorphic wants at least 600 entries.
func metamorphic(t *testing.T, s uint64, entries []command.Entry) {
	one := newRig(t, Config{})
	want := one.feed(entries, func() int { return 1 }, nil)
	one.checkAttachments()
	print := one.fingerprint()

	rnd := rand.New(rand.NewPCG(s, 2))
	cut := func() int { return 1 + rnd.IntN(40) }

	t.Run("batches", func(t *testing.T) {
		r := newRig(t, Config{MemberID: 2, ClusterID: 0xc1})
		diff(t, "results", want, r.feed(entries, cut, nil))
		diff(t, "events", one.events, r.events)
		if got := r.fingerprint(); got != print {
			t.Errorf("state:\n%s\nwant\n%s", got, print)
		}
	})
	t.Run("restarts", func(t *testing.T) {
		r := newRig(t, Config{})
		var got []string
		for from := 0; from < len(entries); {
			to := min(from+1+rnd.IntN(60), len(entries))
			got = r.feed(entries[from:to], cut, got)
			from = to
			before := r.fingerprint()
			r.reopen()
			if after := r.fingerprint(); after != before {
				t.Fatalf("after a restart at %d:\n%s\nbefore\n%s", to, after, before)
			}
		}
		diff(t, "results", want, got)
		if got := r.fingerprint(); got != print {
			t.Errorf("state:\n%s\nwant\n%s", got, print)
		}
	})
	t.Run("crashes", func(t *testing.T) { // what was not durable is applied again, with the same results
		r := newRig(t, Config{})
		for to := 100; to <= len(entries); to += 100 {
			index, _ := r.Applied()
			diff(t, "results", want[index:to], r.feed(entries[index:to], cut, nil))
			if to%200 == 0 {
				if _, _, err := r.Flush(t.Context()); err != nil { // it may or may not be done by the crash
					t.Fatal(err)
				}
			}
			r.crash()
		}
		index, _ := r.Applied()
		diff(t, "results", want[index:], r.feed(entries[index:], cut, nil))
		if got := r.fingerprint(); got != print {
			t.Errorf("state:\n%s\nwant\n%s", got, print)
		}
	})
	t.Run("replay", func(t *testing.T) { // entries that are applied already do nothing
		r := newRig(t, Config{})
		r.feed(entries[:300], cut, nil)
		before := r.fingerprint()
		for i, res := range r.feed(entries[:300], cut, nil) {
			if res != "-" {
				t.Fatalf("entry %d again: %s", i+1, res)
			}
		}
		if r.fingerprint() != before {
			t.Error("entries applied twice changed the state")
		}
	})
	t.Run("snapshot", func(t *testing.T) {
		from, to := newRig(t, Config{}), newRig(t, Config{})
		got := from.feed(entries[:350], cut, nil)
		to.feed(entries[:50], cut, nil)
		view := from.st.View()
		var stream bytes.Buffer
		if err := from.st.WriteSnapshot(context.Background(), view, &stream); err != nil {
			t.Fatal(err)
		}
		view.Close()
		in, err := to.st.ReceiveSnapshot(context.Background(), &stream)
		if err != nil {
			t.Fatal(err)
		}
		if err := to.Install(in); err != nil {
			t.Fatal(err)
		}
		if a, b := from.fingerprint(), to.fingerprint(); a != b {
			t.Errorf("after the snapshot:\n%s\nsent\n%s", b, a)
		}
		diff(t, "results", want, to.feed(entries[350:], cut, got))
		if got := to.fingerprint(); got != print {
			t.Errorf("state:\n%s\nwant\n%s", got, print)
		}
	})
	t.Run("unawaited", func(t *testing.T) {
		r := newRig(t, Config{})
		quiet := append([]command.Entry(nil), entries...)
		for i := range quiet {
			quiet[i].Unawaited = quiet[i].Change == nil
		}
		r.feed(quiet, cut, nil)
		if got := r.fingerprint(); got != print {
			t.Errorf("state:\n%s\nwant\n%s", got, print)
		}
	})
	t.Run("primary", func(t *testing.T) { // being leader changes nothing that is replicated
		r := newRig(t, Config{})
		r.leases.Promote(1, 0)
		diff(t, "results", want, r.feed(entries, cut, nil))
		r.leases.Demote(2)
		if got := r.fingerprint(); got != print {
			t.Errorf("state:\n%s\nwant\n%s", got, print)
		}
	})
	t.Run("over quota", func(t *testing.T) { // a local setting changes answers, never data
		r := newRig(t, Config{QuotaBytes: 1})
		r.feed(entries, cut, nil)
		if got := r.fingerprint(); got != print {
			t.Errorf("state:\n%s\nwant\n%s", got, print)
		}
	})
}

// Requests are read, never written: the proposer's message, the log's bytes and the events may be
// shared.
func TestApplyLeavesRequestsAlone(t *testing.T) {
	entries := history(seed(t), 300)
	var before []string
	for _, e := range entries {
		if e.Request != nil {
			before = append(before, text(e.Request))
		}
	}
	r := newRig(t, Config{})
	r.feed(entries, func() int { return 10 }, nil)
	var after []string
	for _, e := range entries {
		if e.Request != nil {
			after = append(after, text(e.Request))
		}
	}
	if !reflect.DeepEqual(before, after) {
		diff(t, "requests", before, after)
	}
}

var _ = lease.MaxTTL
var _ pb.AlarmType

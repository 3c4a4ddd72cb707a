package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/belaydb/belay/mvcc"
	"github.com/belaydb/belay/peers"
)

// fakeHasher is member 1 of a cluster whose others answer as told.
type fakeHasher struct {
	own         []covered // one answer after the other, the last for ever
	rev         int64     // after the barrier; 0: that of the last answer
	compactions []mvcc.CompactionHash
	peers       func(round int, rev int64, of string) []peerHash

	alone  bool // a cluster of one
	rounds int
	raised []uint64
}

func (f *fakeHasher) hasPeers() bool { return !f.alone }

func (f *fakeHasher) hashHere(context.Context) (covered, error) {
	h := f.own[0]
	if len(f.own) > 1 {
		f.own = f.own[1:]
	}
	return h, nil
}

func (f *fakeHasher) positionHere() (int64, int64) {
	return max(f.rev, f.own[0].rev), f.own[0].compactRev
}
func (f *fakeHasher) compactionHashes() []mvcc.CompactionHash { return slices.Clone(f.compactions) }
func (f *fakeHasher) readBarrier(context.Context) error       { return nil }
func (f *fakeHasher) raiseCorrupt(id uint64)                  { f.raised = append(f.raised, id) }
func (f *fakeHasher) hashesThere(_ context.Context, rev int64, of string, _ time.Duration) []peerHash {
	f.rounds++
	return f.peers(f.rounds, rev, of)
}

type corruptionRig struct {
	*corruption
	logs    *observer.ObservedLogs
	results []string
}

func newCorruptionRig(f *fakeHasher) *corruptionRig {
	core, logs := observer.New(zap.InfoLevel)
	r := &corruptionRig{logs: logs}
	r.corruption = &corruption{
		local: 1, timeout: time.Second, member: f, logger: zap.New(core),
		outcomes: func(check, outcome string) { r.results = append(r.results, check+" "+outcome) },
	}
	return r
}

func (r *corruptionRig) texts() (texts []string) {
	for _, e := range r.logs.TakeAll() {
		texts = append(texts, e.Message)
	}
	return texts
}

func answers(hashes ...any) func(int, int64, string) []peerHash {
	return func(_ int, rev int64, _ string) (peers []peerHash) {
		for i, h := range hashes {
			p := peerHash{id: uint64(i + 2), endpoints: []string{"http://x"}, current: rev, covered: covered{rev, 3, 0}}
			switch h := h.(type) {
			case int:
				p.hash = uint32(h)
			case error:
				p.err = h
			case covered:
				p.covered = h
			}
			peers = append(peers, p)
		}
		return peers
	}
}

func TestPeriodicCheck(t *testing.T) {
	down := errors.New("connection refused")
	for name, c := range map[string]struct {
		peers  func(int, int64, string) []peerHash
		own    []covered
		raised []uint64
		result string
	}{
		"all equal":             {peers: answers(7, 7), result: outcomeEqual},
		"a follower":            {peers: answers(7, 8), raised: []uint64{3}, result: outcomeMismatch},
		"the leader":            {peers: answers(8, 8), raised: []uint64{1}, result: outcomeMismatch},
		"two of five":           {peers: answers(7, 8, 7, 9), raised: []uint64{3, 5}, result: outcomeMismatch},
		"nobody knows":          {peers: answers(8, 9), raised: []uint64{0}, result: outcomeMismatch},
		"one of two":            {peers: answers(8), raised: []uint64{0}, result: outcomeMismatch},
		"one is down":           {peers: answers(7, down), result: outcomeIncomplete},
		"one is down, one else": {peers: answers(8, down), raised: []uint64{0}, result: outcomeMismatch},
		"one lags":              {peers: answers(7, rpctypes.ErrFutureRev), result: outcomeIncomplete},
		"compacted meanwhile":   {peers: answers(7, covered{9, 2, 8}), result: outcomeEqual},
		"compacted beyond us":   {peers: answers(7, covered{9, 5, 8}), raised: []uint64{3}, result: outcomeMismatch},
		"alone":                 {peers: answers(), result: outcomeEqual},
		"own reads differ": {
			own:   []covered{{9, 3, 7}, {9, 3, 8}, {9, 3, 7}, {9, 3, 8}},
			peers: answers(7, 7), raised: []uint64{1}, result: outcomeMismatch,
		},
		"gone when looked at again": {
			peers: func(round int, rev int64, of string) []peerHash {
				return answers(7, 7+round%2)(round, rev, of)
			},
			result: outcomeEqual,
		},
		"ahead of the leader": {
			peers: func(_ int, rev int64, _ string) []peerHash {
				return []peerHash{{id: 2, current: rev + 1, covered: covered{rev, 3, 7}}}
			},
			raised: []uint64{2}, result: outcomeMismatch,
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeHasher{own: []covered{{9, 3, 7}}, peers: c.peers}
			if c.own != nil {
				f.own = c.own
			}
			r := newCorruptionRig(f)
			if err := r.periodic(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(f.raised, c.raised) || !slices.Equal(r.results, []string{"periodic " + c.result}) {
				t.Errorf("alarms for %x (want %x), %q (want %q)\n%s", f.raised, c.raised, r.results, c.result, strings.Join(r.texts(), "\n"))
			}
		})
	}
}

func TestInitialCheck(t *testing.T) {
	down := errors.New("connection refused")
	for name, c := range map[string]struct {
		peers  []any
		fails  bool
		result string
		text   string
	}{
		"all equal":          {peers: []any{7, 7}, result: outcomeEqual, text: "initial corruption checking passed; no corruption"},
		"own is wrong":       {peers: []any{8, 8}, fails: true, result: outcomeMismatch, text: "found different hash values from remote peer"},
		"a peer is wrong":    {peers: []any{7, 8}, result: outcomeMismatch, text: "found different hash values from remote peer"},
		"nobody knows":       {peers: []any{8, down}, fails: true, result: outcomeMismatch},
		"nobody answers":     {peers: []any{down, down}, result: outcomeIncomplete},
		"a peer lags":        {peers: []any{7, rpctypes.ErrFutureRev}, result: outcomeIncomplete, text: "cannot fetch hash from slow remote peer"},
		"behind":             {peers: []any{rpctypes.ErrCompacted, 7}, result: outcomeIncomplete, text: "cannot fetch hash from remote peer; local member is behind"},
		"another cluster":    {peers: []any{7, rpctypes.ErrClusterIDMismatch}, result: outcomeIncomplete, text: "cluster ID mismatch"},
		"compacted elsewise": {peers: []any{7, covered{9, 5, 8}}, result: outcomeIncomplete, text: "found different compact revision values from remote peer"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newCorruptionRig(&fakeHasher{own: []covered{{9, 3, 7}}, peers: answers(c.peers...)})
			err := r.initial(t.Context())
			if (err != nil) != c.fails || err != nil && err.Error() != "1 found data inconsistency with peers" {
				t.Errorf("error %v", err)
			}
			texts := r.texts()
			if !slices.Equal(r.results, []string{"initial " + c.result}) || c.text != "" && !slices.Contains(texts, c.text) {
				t.Errorf("%q, want %q, and the text %q in %q", r.results, c.result, c.text, texts)
			}
		})
	}
}

func TestCompactionCheck(t *testing.T) {
	down := errors.New("connection refused")
	three := []mvcc.CompactionHash{{Revision: 3, CompactRevision: -1, Hash: 6}, {Revision: 9, CompactRevision: 3, Hash: 7}}
	for name, c := range map[string]struct {
		newest, older []any // answers about the two compactions
		raised        []uint64
		checked       int64
		results       []string
		texts         []string
	}{
		"all equal": {newest: []any{7, 7}, checked: 9, results: []string{outcomeEqual},
			texts: []string{"successfully checked hash on whole cluster"}},
		"a follower": {newest: []any{7, 8}, raised: []uint64{3}, results: []string{outcomeMismatch},
			texts: []string{"Detected compaction hash mismatch"}},
		"the leader": {newest: []any{8, 8}, raised: []uint64{1}, results: []string{outcomeMismatch}},
		"nobody knows": {newest: []any{8, 9}, raised: []uint64{0}, results: []string{outcomeMismatch},
			texts: []string{"Detected compaction hash mismatch but cannot identify the corrupted members, so intentionally set the memberID as 0"}},
		"one has only the older": {newest: []any{7, errNoCompactionHash}, older: []any{covered{3, -1, 6}, covered{3, -1, 6}}, checked: 3, results: []string{outcomeEqual},
			texts: []string{"Skipped peer's hash", "skipped revision in compaction hash check; was not able to check all peers", "successfully checked hash on whole cluster"}},
		"one is down": {newest: []any{7, down}, older: []any{covered{3, -1, 6}, down}, results: []string{outcomeIncomplete}},
		"one is down, and one differs in the older": {newest: []any{7, down}, older: []any{covered{3, -1, 5}, down}, raised: []uint64{0}, results: []string{outcomeMismatch}},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeHasher{compactions: three}
			f.peers = func(_ int, rev int64, of string) []peerHash {
				if of != peers.HashOfCompaction {
					t.Errorf("asked for %q", of)
				}
				if rev == 9 {
					return answers(c.newest...)(0, rev, of)
				}
				return answers(c.older...)(0, rev, of)
			}
			r := newCorruptionRig(f)
			r.compaction(t.Context())
			texts := r.texts()
			for i, o := range c.results {
				c.results[i] = "compaction " + o
			}
			if !slices.Equal(f.raised, c.raised) || !slices.Equal(r.results, c.results) || r.checkedRev != c.checked {
				t.Errorf("alarms for %x (want %x), %q (want %q), checked %d (want %d)\n%s", f.raised, c.raised, r.results, c.results, r.checkedRev, c.checked, strings.Join(texts, "\n"))
			}
			for _, text := range c.texts {
				if !slices.Contains(texts, text) {
					t.Errorf("%q is not in %q", text, texts)
				}
			}
			// What could not be compared is not said again; what was is not asked again.
			asked := f.rounds
			r.compaction(t.Context())
			for _, text := range r.texts() {
				if strings.HasPrefix(strings.ToLower(text), "skipped") {
					t.Errorf("said again: %q", text)
				}
			}
			if c.checked == 9 && f.rounds != asked {
				t.Error("compared again what all members share")
			}
		})
	}
}

// TestCompactionCheckSaysNothing: a check that has nothing to compare, once a
// minute for as long as the member runs, is not worth a line.
func TestCompactionCheckSaysNothing(t *testing.T) {
	r := newCorruptionRig(&fakeHasher{alone: true, compactions: []mvcc.CompactionHash{{Revision: 3, CompactRevision: -1, Hash: 6}},
		peers: func(int, int64, string) []peerHash { return nil }})
	r.compaction(t.Context())
	if texts := r.texts(); len(texts) > 0 {
		t.Errorf("said in a cluster of one: %q", texts)
	}
}

// TestHashForPeers: what a Belay peer is answered, by kind.
func TestHashForPeers(t *testing.T) {
	m := newMember(t)
	for i := range 5 {
		m.put(fmt.Sprintf("k%d", i), "v")
	}
	if _, err := m.hashFor(t.Context(), 4, peers.HashOfCompaction); !errors.Is(err, errNoCompactionHash) {
		t.Errorf("without a compaction: %v", err)
	}
	plain, err := m.hashFor(t.Context(), 4, "")
	must(t, err)
	state, err := m.hashFor(t.Context(), 4, peers.HashOfState)
	must(t, err)
	if state.CompactRevision != -1 || state.HashRevision != 4 || state.Header.Revision != 6 || state.Hash != plain.Hash {
		t.Errorf("%v, %v", state, plain)
	}
	_, err = m.kv.Compact(t.Context(), &pb.CompactionRequest{Revision: 4, Physical: true})
	must(t, err)
	kept, err := m.hashFor(t.Context(), 4, peers.HashOfCompaction)
	must(t, err)
	if kept.CompactRevision != -1 || kept.Hash != plain.Hash {
		t.Errorf("%v, want the hash of before the compaction %v", kept, plain)
	}
	if state, err = m.hashFor(t.Context(), 4, peers.HashOfState); err != nil || state.CompactRevision != 4 {
		t.Errorf("%v %v", state, err)
	}
}

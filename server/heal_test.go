package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/leader"
	"github.com/belaydb/belay/peers"
	"github.com/belaydb/belay/replica"
	"github.com/belaydb/belay/state"
)

// ward is a list of members that changes as the state machine's does, and of which each change may
// fail.
type ward struct {
	members map[uint64]*command.Member
	removed map[uint64]bool
	corrupt map[uint64]bool // whom the alarm names
	differ  []uint64        // who has other data than the others
	changes []string
	fails   func(n int) bool // the n-th change, from 1 on
}

func (w *ward) Members() (list []*command.Member) {
	for _, m := range w.members {
		list = append(list, m.Clone())
	}
	slices.SortFunc(list, func(a, b *command.Member) int { return strings.Compare(command.IDText(a.ID), command.IDText(b.ID)) })
	return list
}

func (w *ward) Member(id uint64) *command.Member { return w.members[id].Clone() }

func (w *ward) LearnerReady(context.Context, uint64) error { return nil }

func (w *ward) ProposeChange(_ context.Context, c *command.Change) (command.Result, error) {
	w.changes = append(w.changes, fmt.Sprintf("%v %x %v", c.Type, c.MemberID, c.IsPromote))
	if w.fails != nil && w.fails(len(w.changes)) {
		return command.Result{}, errors.New("no leader any more")
	}
	switch {
	case c.IsPromote:
		w.members[c.MemberID].IsLearner = false
	case c.Type == raftpb.ConfChangeRemoveNode:
		delete(w.members, c.MemberID)
		w.removed[c.MemberID] = true
	case c.Type == raftpb.ConfChangeUpdateNode:
		w.members[c.MemberID].PeerURLs = c.Member.PeerURLs
	default:
		for _, m := range w.members {
			for _, u := range c.Member.PeerURLs {
				if slices.Contains(m.PeerURLs, u) {
					return command.Result{Err: state.ErrPeerURLExists}, nil
				}
			}
		}
		w.members[c.MemberID] = c.Member.Clone()
	}
	return command.Result{Members: w.Members()}, nil
}

// patientAt answers as a member that heals with a nonce.
func patientAt(t *testing.T, nonce string) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q peers.HealingQuestion
		if r.URL.Path != peers.PathHealing || json.NewDecoder(r.Body).Decode(&q) != nil || q.Nonce != nonce {
			http.NotFound(w, r)
			return
		}
		peers.AnswerJSON(w, peers.HealingAnswer{Nonce: nonce, Found: "a byte"})
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// ill is a cluster of three, 1 to 3, of which 1 leads and 3 heals with the nonce "n".
func ill(t *testing.T) (*ward, *healing) {
	w := &ward{members: map[uint64]*command.Member{}, removed: map[uint64]bool{}, corrupt: map[uint64]bool{}}
	for id, u := range map[uint64]string{1: "http://127.0.0.1:1", 2: "http://127.0.0.1:2", 3: patientAt(t, "n")} {
		w.members[id] = &command.Member{ID: id, Name: fmt.Sprint("m", id), PeerURLs: []string{u}, ClientURLs: []string{"http://c"}}
	}
	h := &healing{
		name: "m1", memberID: 1, clusterID: 9, status: func() replica.Status {
			var st replica.Status
			st.Leader, st.State = 1, raft.StateLeader
			return st
		},
		barrier: func(context.Context) error { return nil }, isRemoved: func(id uint64) bool { return w.removed[id] },
		isEtcd: func(uint64) bool { return false }, copy: func() peers.Copy { return peers.Copy{} },
		corrupt: func() []uint64 { return slices.Sorted(maps.Keys(w.corrupt)) },
		endCorrupt: func(_ context.Context, id uint64) error {
			w.changes = append(w.changes, fmt.Sprintf("disarm %x", id))
			if w.fails != nil && w.fails(len(w.changes)) {
				return errors.New("no leader any more")
			}
			delete(w.corrupt, id)
			return nil
		},
		agree: func(_ context.Context, among []uint64, _ bool) (leader.Agreement, error) {
			a := leader.Agreement{Equal: among, Different: w.differ}
			a.Equal = slices.DeleteFunc(slices.Clone(among), func(id uint64) bool { return slices.Contains(w.differ, id) })
			return a, nil
		},
		background: func(run func(context.Context)) { go run(context.Background()) },
		client:     http.DefaultClient, busy: make(chan struct{}, 1), logger: zap.NewNop(),
		cluster: &clusterService{members: w, group: w, headers: &headers{memberID: 1}, timeout: time.Minute, logger: zap.NewNop(), metrics: NewMetrics(nil, MetricsOptions{}),
			activeSince: func(id uint64) time.Time {
				if id != 2 {
					return time.Time{}
				}
				return time.Now().Add(-time.Minute)
			}},
	}
	return w, h
}

func (w *ward) question() peers.HealQuestion {
	return peers.HealQuestion{Nonce: "n", Member: "3", PeerURLs: []string{"http://its-own-flags:1"}}
}

// TestHealEachStepFails lets each change of the members fail in turn, before or after it was made,
// and another leader go on: it ends with the same heir, in the place of the old member.
func TestHealEachStepFails(t *testing.T) {
	for _, lost := range []bool{false, true} {
		for step := 1; step <= 4; step++ {
			t.Run(fmt.Sprintf("step %d, made %v", step, lost), func(t *testing.T) {
				w, h := ill(t)
				urls := w.members[3].PeerURLs
				failed := false
				w.fails = func(n int) bool {
					if n != step || lost {
						return false
					}
					failed = true
					return true
				}
				if lost { // it was made, and the answer was lost
					inner := h.cluster.group
					h.cluster.group = groupFunc{inner, func(err error) error {
						if len(w.changes) == step {
							failed = true
							return errors.New("timed out")
						}
						return err
					}}
				}
				q := w.question()
				a := h.answer(t.Context(), q)
				for tries := 0; tries < 3 && a.Outcome == peers.HealWait; tries++ {
					_, other := ill(t) // another leader, over the same list
					other.cluster.members, other.cluster.group, other.isRemoved = w, w, h.isRemoved
					h = other
					a = h.answer(t.Context(), q)
				}
				if a.Outcome != peers.HealJoin || !a.Voter {
					t.Fatalf("%+v", a)
				}
				q.Heir, q.Member, q.Promote = a.Heir, a.Heir, true
				for range 2 { // the second time nothing is left to do
					for a = h.answer(t.Context(), q); a.Outcome == peers.HealWait; a = h.answer(t.Context(), q) {
						if !failed {
							t.Fatalf("%+v", a)
						}
						_, other := ill(t)
						other.cluster.members, other.cluster.group, other.isRemoved = w, w, h.isRemoved
						h = other
					}
				}
				heir := w.members[command.HeirID(urls, "n", true)]
				if a.Outcome != peers.HealDone || heir == nil || heir.IsLearner || !slices.Equal(heir.PeerURLs, urls) || len(w.members) != 3 || !w.removed[3] {
					t.Errorf("%+v, %v, heir %+v", a, w.changes, heir)
				}
				if !failed {
					t.Errorf("no step %d: %v", step, w.changes)
				}
			})
		}
	}
}

// groupFunc changes the errors of a group.
type groupFunc struct {
	group
	result func(error) error
}

func (g groupFunc) ProposeChange(ctx context.Context, c *command.Change) (command.Result, error) {
	r, err := g.group.ProposeChange(ctx, c)
	return r, g.result(err)
}

// TestHealRefused: nothing is changed for who is not a member that heals, nor where the others are
// no quorum.
func TestHealRefused(t *testing.T) {
	for _, c := range []struct {
		name  string
		set   func(w *ward, h *healing, q *peers.HealQuestion)
		want  peers.Outcome
		texts string
	}{
		{"a stranger", func(w *ward, _ *healing, q *peers.HealQuestion) { q.Member = "77" }, peers.HealUnknown, "no member"},
		{"a stranger that names a member's URLs", func(w *ward, _ *healing, q *peers.HealQuestion) {
			q.Nonce, q.Member, q.PeerURLs = "guessed", "", w.members[3].PeerURLs
		}, peers.HealWait, "nobody says that it heals"},
		{"a stranger that names a member", func(_ *ward, _ *healing, q *peers.HealQuestion) { q.Nonce = "guessed" }, peers.HealWait, "nobody says that it heals"},
		{"a stranger that names a member that is well", func(_ *ward, _ *healing, q *peers.HealQuestion) { q.Member = "2" }, peers.HealWait, "is connected"},
		{"a stranger that names the leader", func(_ *ward, _ *healing, q *peers.HealQuestion) { q.Member = "1" }, peers.HealWait, "leads is not damaged"},
		{"a stranger that would be promoted", func(w *ward, _ *healing, q *peers.HealQuestion) {
			w.members[4] = &command.Member{ID: 4, IsLearner: true, PeerURLs: []string{"http://127.0.0.1:4"}}
			q.Nonce, q.Member, q.Heir, q.Promote = "guessed", "4", "4", true
		}, peers.HealWait, "nobody says that it heals"},
		{"two are damaged", func(_ *ward, h *healing, _ *peers.HealQuestion) {
			h.cluster.activeSince = func(uint64) time.Time { return time.Time{} }
		}, peers.HealWait, "only 1 of the other voters"},
		{"of two", func(w *ward, _ *healing, _ *peers.HealQuestion) { delete(w.members, 2) }, peers.HealWait, "only 1 of the other voters"},
		{"no quorum answers", func(_ *ward, h *healing, _ *peers.HealQuestion) {
			h.barrier = func(context.Context) error { return errors.New("nobody") }
		}, peers.HealWait, "no quorum"},
		{"it does not lead", func(_ *ward, h *healing, _ *peers.HealQuestion) {
			h.status = func() replica.Status { return replica.Status{Leader: 2} }
		}, peers.HealWait, "leads"},
		{"there is no leader", func(_ *ward, h *healing, _ *peers.HealQuestion) {
			h.status = func() replica.Status { return replica.Status{} }
		}, peers.HealWait, "no leader"},
		{"another one is an etcd", func(_ *ward, h *healing, _ *peers.HealQuestion) { h.isEtcd = func(id uint64) bool { return id == 2 } }, peers.HealWait, "is an etcd"},
		{"another one is being replaced", func(w *ward, _ *healing, _ *peers.HealQuestion) {
			w.members[4] = &command.Member{ID: 4, IsLearner: true, PeerURLs: command.HeirURLs([]string{"http://127.0.0.1:2"}, 2)}
		}, peers.HealWait, "one at a time"},
		{"another question is being answered", func(_ *ward, h *healing, _ *peers.HealQuestion) { h.busy <- struct{}{} }, peers.HealWait, "another question"},
		{"the leader's data is in doubt", func(w *ward, _ *healing, _ *peers.HealQuestion) { w.corrupt[1] = true }, peers.HealWait, "names the member that leads"},
		{"nobody knows whose data is right", func(w *ward, _ *healing, _ *peers.HealQuestion) { w.corrupt[0] = true }, peers.HealWait, "nobody knows"},
		{"the other one's data is in doubt", func(w *ward, _ *healing, _ *peers.HealQuestion) { w.corrupt[2] = true }, peers.HealWait, "only 1 of the other voters"},
		{"it and the other one are named", func(w *ward, _ *healing, _ *peers.HealQuestion) { w.corrupt[2], w.corrupt[3] = true, true }, peers.HealWait, "only 1 of the other voters"},
		{"it was removed", func(w *ward, _ *healing, _ *peers.HealQuestion) { delete(w.members, 3); w.removed[3] = true }, peers.HealRemoved, "was removed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, h := ill(t)
			q := w.question()
			c.set(w, h, &q)
			a := h.answer(t.Context(), q)
			if a.Outcome != c.want || !strings.Contains(a.Why, c.texts) {
				t.Errorf("%+v", a)
			}
			if len(w.changes) > 0 {
				t.Errorf("changed: %v", w.changes)
			}
		})
	}
}

// compared asks until the others' data has been compared.
func compared(t *testing.T, h *healing, q peers.HealQuestion) (a peers.HealAnswer) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		a = h.answer(t.Context(), q)
		if a.Outcome != peers.HealWait || !strings.Contains(a.Why, "is being compared") {
			return a
		}
		if time.Now().After(deadline) {
			t.Fatalf("it goes on comparing: %+v", a)
		}
	}
}

// TestHealDiffering: a member whose data differs is replaced only when the others' is the same, its
// alarm is disarmed when it is no member any more, and each change may fail and another leader go on.
func TestHealDiffering(t *testing.T) {
	w, h := ill(t)
	w.corrupt[3], w.differ = true, []uint64{2}
	if a := compared(t, h, w.question()); a.Outcome != peers.HealWait || !strings.Contains(a.Why, "not the same either") || len(w.changes) > 0 {
		t.Errorf("the others differ, too: %+v, %v", a, w.changes)
	}
	for step := 1; step <= 5; step++ {
		w, h := ill(t)
		w.corrupt[3] = true
		urls := w.members[3].PeerURLs
		w.fails = func(n int) bool { return n == step }
		q := w.question()
		a := compared(t, h, q)
		for tries := 0; tries < 3 && a.Outcome == peers.HealWait; tries++ {
			_, other := ill(t) // another leader, over the same list
			other.cluster.members, other.cluster.group, other.isRemoved = w, w, h.isRemoved
			other.corrupt, other.endCorrupt = h.corrupt, h.endCorrupt
			h = other
			a = compared(t, h, q)
		}
		heir := command.HeirID(urls, "n", true)
		if a.Outcome != peers.HealJoin || len(w.corrupt) > 0 || !w.removed[3] {
			t.Fatalf("step %d: %+v, %v", step, a, w.changes)
		}
		if at := slices.Index(w.changes, "disarm 3"); at < slices.Index(w.changes, "ConfChangeRemoveNode 3 false") {
			t.Errorf("step %d: disarmed while it was a member: %v", step, w.changes)
		}
		// The heir's data is found to differ, too: it gets no vote.
		q.Heir, q.Member, q.Promote = a.Heir, a.Heir, true
		w.fails, w.corrupt[heir] = nil, true
		if a := h.answer(t.Context(), q); a.Outcome != peers.HealWait || !w.members[heir].IsLearner {
			t.Errorf("step %d: promoted with the alarm: %+v", step, a)
		}
		delete(w.corrupt, heir)
		if a := h.answer(t.Context(), q); a.Outcome != peers.HealDone || w.members[heir].IsLearner {
			t.Errorf("step %d: %+v", step, a)
		}
	}
}

// TestHealKeepsItsKind: a learner comes back as a learner, and asks for a vote in vain; an heir
// that was damaged before it was promoted is replaced by one that is to be a voter, too.
func TestHealKeepsItsKind(t *testing.T) {
	w, h := ill(t)
	w.members[3].IsLearner = true
	q := w.question()
	q.Promote = true
	a := h.answer(t.Context(), q)
	if a.Outcome != peers.HealDone || a.Voter || len(h.cluster.voters()) != 2 {
		t.Errorf("a learner: %+v, %d voters", a, len(h.cluster.voters()))
	}

	w, h = ill(t)
	first := h.answer(t.Context(), w.question())
	heir := w.members[command.HeirID(w.Members()[2].PeerURLs, "n", true)]
	for id, m := range w.members {
		if m.IsLearner {
			heir = w.members[id]
		}
	}
	heir.PeerURLs = []string{patientAt(t, "second")}
	id := command.HeirID(heir.PeerURLs, "n", true) // as if it had been added under these URLs
	delete(w.members, heir.ID)
	heir.ID = id
	w.members[id] = heir
	a = h.answer(t.Context(), peers.HealQuestion{Nonce: "second", Before: "n", Member: command.IDText(id)})
	if first.Outcome != peers.HealJoin || a.Outcome != peers.HealJoin || !a.Voter || len(w.members) != 3 || !w.removed[id] {
		t.Errorf("%+v, then %+v: %v", first, a, w.changes)
	}
}

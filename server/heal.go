package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/peers"
	"github.com/belaydb/belay/replica"
)

// healing is what a healthy member does for one whose data is damaged (--heal): as the leader, it puts
// an heir in its place. datadir/heal.go has the steps and why no vote is lost by them.
//
// What asks is not believed (peers/heal.go): only a member of this list is replaced, one that says
// so itself under the URLs that this list has of it, while no connection of it works. What a
// stranger can do is to make the leader ask one of its members a question, one at a time.
type healing struct {
	name                string
	memberID, clusterID uint64
	cluster             *clusterService
	status              func() replica.Status
	barrier             func(context.Context) error
	isRemoved           func(id uint64) bool
	isEtcd              func(id uint64) bool
	copy                func() peers.Copy
	client              *http.Client
	busy                chan struct{} // capacity 1
	logger              *zap.Logger
}

// healTimeout bounds how long the member that heals may take to say so.
const healTimeout = 2 * time.Second

func (h *healing) register(mux *peers.Mux) {
	mux.Handle(peers.PathHeal, http.MethodPost, peers.Anyone, h.serve)
}

func (h *healing) serve(w http.ResponseWriter, r *http.Request) {
	if !peers.ForCluster(w, r, command.IDText(h.clusterID)) {
		return
	}
	body, ok := peers.ReadQuestion(w, r, peers.MaxHealBytes)
	if !ok {
		return
	}
	var q peers.HealQuestion
	if err := json.Unmarshal(body, &q); err != nil || q.Nonce == "" {
		http.Error(w, errBadBody.Error(), http.StatusBadRequest)
		return
	}
	a := h.answer(r.Context(), q)
	a.Name, a.Copy, a.Cluster, a.Leads = h.name, h.copy(), command.IDText(h.clusterID), h.status().IsLeader()
	if members, err := json.Marshal(h.cluster.members.Members()); err == nil {
		a.Members = members
	}
	peers.AnswerJSON(w, a)
}

func wait(format string, args ...any) peers.HealAnswer {
	return peers.HealAnswer{Outcome: peers.HealWait, Why: fmt.Sprintf(format, args...)}
}

func (h *healing) answer(ctx context.Context, q peers.HealQuestion) peers.HealAnswer {
	st := h.status()
	switch {
	case st.Leader == 0:
		return wait("there is no leader: too few members are well to agree on anything")
	case !st.IsLeader():
		return wait("member %x leads", st.Leader)
	}
	select {
	case h.busy <- struct{}{}:
		defer func() { <-h.busy }()
	default:
		return wait("another question of a member that heals is being answered")
	}
	bounded, cancel := context.WithTimeout(ctx, h.cluster.timeout)
	defer cancel()
	if err := h.barrier(bounded); err != nil { // a leader that lost its quorum knows old members
		return wait("the leader has no quorum: %v", err)
	}
	heir, voter := h.heir(q.Nonce)
	if heir == nil {
		if id, err := strconv.ParseUint(q.Heir, 16, 64); err == nil && h.isRemoved(id) {
			return peers.HealAnswer{Outcome: peers.HealRemoved, Why: fmt.Sprintf("member %x, as which it would have come back, was removed", id)}
		}
		old, refusal := h.meant(q)
		if old == nil {
			return refusal
		}
		if why := h.mayReplace(bounded, old, q.Nonce); why != "" {
			return wait("%s", why)
		}
		var err error
		if heir, voter, err = h.add(bounded, old, q); err != nil {
			return wait("the cluster does not add it again: %v", err)
		}
	}
	plain, replaces := command.PlainURLs(heir.PeerURLs)
	if replaces != 0 {
		if old := h.cluster.members.Member(replaces); old != nil {
			if why := h.mayReplace(bounded, old, q.Nonce); why != "" {
				return wait("%s", why)
			}
			h.logger.Warn("removing a damaged member, which has another id now", zap.String("removed-member-id", command.IDText(replaces)), zap.String("heir", command.IDText(heir.ID)))
			if _, err := h.cluster.configure(bounded, &command.Change{
				Type: raftpb.ConfChangeRemoveNode, MemberID: replaces, Member: command.Member{ID: replaces},
			}); err != nil {
				return wait("the damaged member is not removed: %v", err)
			}
		}
		if _, err := h.cluster.configure(bounded, &command.Change{
			Type: raftpb.ConfChangeUpdateNode, MemberID: heir.ID, Member: command.Member{ID: heir.ID, PeerURLs: plain},
		}); err != nil {
			return wait("the member that comes back does not get its URLs: %v", err)
		}
	}
	if q.Promote && voter && heir.IsLearner {
		if _, err := h.cluster.promoteHere(bounded, heir.ID); err != nil {
			return wait("it is not promoted: %v", err)
		}
		h.logger.Info("a member that healed votes again", zap.String("member-id", command.IDText(heir.ID)))
		heir.IsLearner = false
	}
	a := peers.HealAnswer{Outcome: peers.HealJoin, Heir: command.IDText(heir.ID), Voter: voter}
	if heir.IsLearner != voter {
		a.Outcome = peers.HealDone
	}
	return a
}

// heir finds the member that was added for a nonce; nil: there is none.
func (h *healing) heir(nonce string) (m *command.Member, voter bool) {
	for _, m := range h.cluster.members.Members() {
		plain, _ := command.PlainURLs(m.PeerURLs)
		for _, voter := range []bool{true, false} {
			if m.ID == command.HeirID(plain, nonce, voter) {
				return m, voter
			}
		}
	}
	return nil, false
}

// meant finds the member that a question is about: by its id, and else by its peer URLs.
func (h *healing) meant(q peers.HealQuestion) (*command.Member, peers.HealAnswer) {
	id, _ := strconv.ParseUint(q.Member, 16, 64) // 0: it does not know
	asked := slices.Sorted(slices.Values(q.PeerURLs))
	var byURLs *command.Member
	for _, m := range h.cluster.members.Members() {
		plain, _ := command.PlainURLs(m.PeerURLs)
		if m.ID == id {
			return m, peers.HealAnswer{}
		}
		if len(asked) > 0 && slices.Equal(slices.Sorted(slices.Values(plain)), asked) {
			byURLs = m
		}
	}
	switch {
	case byURLs != nil:
		return byURLs, peers.HealAnswer{}
	case id != 0 && h.isRemoved(id):
		return nil, peers.HealAnswer{Outcome: peers.HealRemoved, Why: fmt.Sprintf("member %x was removed from the cluster", id)}
	}
	return nil, peers.HealAnswer{Outcome: peers.HealUnknown, Why: fmt.Sprintf("the cluster has no member with the id %q or the peer URLs %v", q.Member, q.PeerURLs)}
}

// mayReplace says why a member must not be replaced now; "": it may. It asks the member itself.
func (h *healing) mayReplace(ctx context.Context, old *command.Member, nonce string) string {
	if old.ID == h.memberID {
		return "the member that leads is not damaged"
	}
	if !h.cluster.activeSince(old.ID).IsZero() {
		return fmt.Sprintf("member %x is connected: another process runs as it", old.ID)
	}
	voters := h.cluster.voters()
	others := slices.DeleteFunc(slices.Clone(voters), func(m *command.Member) bool { return m.ID == old.ID })
	if connected, quorum := h.cluster.connected(others), command.Quorum(len(voters)); !old.IsLearner && connected < quorum {
		return fmt.Sprintf("only %d of the other voters have been connected for %v, and a quorum of the %d is %d", connected, healthInterval, len(voters), quorum)
	}
	for _, m := range h.cluster.members.Members() {
		if m.ID == old.ID {
			continue
		}
		if h.isEtcd(m.ID) {
			return fmt.Sprintf("member %x is an etcd; only a cluster of Belay heals", m.ID)
		}
		if _, replaces := command.PlainURLs(m.PeerURLs); replaces != 0 && replaces != old.ID {
			return fmt.Sprintf("member %x is being put in the place of member %x; one at a time", m.ID, replaces)
		}
	}
	plain, _ := command.PlainURLs(old.PeerURLs)
	body, err := json.Marshal(peers.HealingQuestion{Nonce: nonce})
	if err != nil {
		return err.Error()
	}
	bounded, cancel := context.WithTimeout(ctx, healTimeout)
	defer cancel()
	var said peers.HealingAnswer
	q := peers.Question{Method: http.MethodPost, Path: peers.PathHealing, Body: body, MaxAnswer: peers.MaxHealBytes}
	if err := peers.Ask(bounded, h.client, plain, q, func(a peers.Answer) error {
		said = peers.HealingAnswer{}
		if err := errors.Join(a.OK(), json.Unmarshal(a.Body, &said)); err != nil {
			return err
		}
		if said.Nonce != nonce {
			return errors.New("it heals with another nonce")
		}
		return nil
	}); err != nil {
		return fmt.Sprintf("under the peer URLs of member %x nobody says that it heals: %v", old.ID, err)
	}
	h.logger.Warn("a member heals", zap.String("damaged-member-id", command.IDText(old.ID)), zap.String("name", old.Name),
		zap.String("found", said.Found), zap.Stringer("its-copy", said.Copy))
	return ""
}

// add puts the heir of a member beside it.
func (h *healing) add(ctx context.Context, old *command.Member, q peers.HealQuestion) (*command.Member, bool, error) {
	plain, _ := command.PlainURLs(old.PeerURLs)
	// An heir that was damaged before it was promoted was in the place of a voter, or was not.
	voter := !old.IsLearner || q.Before != "" && command.HeirID(plain, q.Before, true) == old.ID
	m := command.Member{ID: command.HeirID(plain, q.Nonce, voter), PeerURLs: command.HeirURLs(plain, old.ID), IsLearner: true}
	// No bound on learners: this one does not stay a learner, or takes the place of one.
	change := &command.Change{Type: raftpb.ConfChangeAddLearnerNode, MemberID: m.ID, Member: m}
	h.logger.Warn("adding a damaged member again, as a learner with another id", zap.String("damaged-member-id", command.IDText(old.ID)), zap.String("heir", command.IDText(m.ID)))
	_, err := h.cluster.configure(ctx, change)
	return &m, voter, err
}

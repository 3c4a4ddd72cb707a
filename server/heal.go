package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/leader"
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
	corrupt             func() []uint64 // whom the alarm CORRUPT names; 0: nobody knows whom
	endCorrupt          func(ctx context.Context, id uint64) error
	agree               func(ctx context.Context, among []uint64, still bool) (leader.Agreement, error)
	background          func(func(context.Context)) // runs it with a context that ends with the member
	client              *http.Client
	busy                chan struct{} // capacity 1
	logger              *zap.Logger

	compared comparison
}

// comparison is the last one of the others' data, before a member was replaced whose data differs.
type comparison struct {
	mu      sync.Mutex
	nonce   string // for whom it was made
	running bool
	why     string // it must not be replaced; empty: it may
	at      time.Time
}

const (
	// comparedFresh is how long a comparison that found a quorum holds.
	comparedFresh = time.Minute
	// comparedRest is the pause after one that found none: each reads all data of all members.
	comparedRest = 10 * time.Second
)

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
	if why := h.disarm(bounded); why != "" {
		return wait("%s", why)
	}
	if slices.Contains(h.corrupt(), heir.ID) {
		return wait("the alarm CORRUPT names it")
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

// disarm ends the alarms CORRUPT of members that are none any more: nobody serves what they had.
func (h *healing) disarm(ctx context.Context) (why string) {
	for _, id := range h.corrupt() {
		if id == 0 || !h.isRemoved(id) {
			continue
		}
		h.logger.Warn("disarming the alarm CORRUPT of a member that was replaced", zap.String("removed-member-id", command.IDText(id)))
		if err := h.endCorrupt(ctx, id); err != nil {
			return fmt.Sprintf("the alarm CORRUPT of member %x is not disarmed: %v", id, err)
		}
	}
	return ""
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
	// Who comes back gets the data of the leader, which must be one that others have, too.
	corrupt := h.corrupt()
	if slices.Contains(corrupt, h.memberID) {
		return "the alarm CORRUPT names the member that leads"
	}
	if why := leader.Undecided(corrupt); why != "" {
		return why
	}
	voters := h.cluster.voters()
	others := slices.DeleteFunc(slices.Clone(voters), func(m *command.Member) bool { return m.ID == old.ID || slices.Contains(corrupt, m.ID) })
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
	if named := slices.Contains(corrupt, old.ID); named || said.Differs {
		if why := h.comparedOthers(nonce, others, len(voters), named); why != "" {
			return why
		}
	}
	h.logger.Warn("a member heals", zap.String("damaged-member-id", command.IDText(old.ID)), zap.String("name", old.Name),
		zap.String("found", said.Found), zap.Stringer("its-copy", said.Copy))
	return ""
}

// comparedOthers says why a member must not be replaced whose data can be read, but differs: "" once a
// quorum of the voters has been found to have the same data, without it and without those whose data
// is in doubt, too. The comparison may take minutes, so it is made in the background, and who
// heals asks again. still: the alarm CORRUPT is active, so nothing is written.
func (h *healing) comparedOthers(nonce string, sound []*command.Member, voters int, still bool) (why string) {
	c := &h.compared
	c.mu.Lock()
	defer c.mu.Unlock()
	const comparing = "the others' data is being compared before it is replaced"
	switch age := time.Since(c.at); {
	case c.running:
		return comparing
	case c.nonce == nonce && c.why == "" && age < comparedFresh:
		return ""
	case c.nonce == nonce && c.why != "" && age < comparedRest:
		return c.why
	}
	var among []uint64
	for _, m := range sound {
		if !m.IsLearner {
			among = append(among, m.ID)
		}
	}
	c.nonce, c.running = nonce, true
	h.background(func(ctx context.Context) {
		a, err := h.agree(ctx, among, still)
		why := ""
		switch {
		case err != nil:
			why = fmt.Sprintf("the leader's data cannot be hashed: %v", err)
		case len(a.Different) > 0:
			why = fmt.Sprintf("the others' data is not the same either; %v", a)
		default:
			why = leader.Short(a.Equal, voters, "have the same data")
		}
		h.logger.Info("compared the others' data, before a member is replaced whose data differs", zap.Stringer("found", a), zap.String("refused", why))
		c.mu.Lock()
		defer c.mu.Unlock()
		c.running, c.why, c.at = false, why, time.Now()
	})
	return comparing
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

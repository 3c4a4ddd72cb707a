package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/belaydb/belay/command"
	"github.com/belaydb/belay/datadir"
	"github.com/belaydb/belay/internal/version"
	"github.com/belaydb/belay/peers"
	"github.com/belaydb/belay/raftlog"
)

// IsDamage reports whether a start failed, or a member ended, because its data is damaged or
// missing: with Config.Heal, Heal is what comes next.
func IsDamage(err error) bool { return datadir.IsDamage(err) }

// IsDiffering reports whether damage is that the member's data is not that of the others.
func IsDiffering(err error) bool { return datadir.IsDiffering(err) }

// ErrNoHealing is in the error of a Heal that cannot succeed, however long it waited. Nothing was
// changed then.
var ErrNoHealing = errors.New("this member cannot heal")

const (
	// healPause is between two rounds of questions to the other members.
	healPause = 300 * time.Millisecond
	// healAnswerTimeout bounds an answer: the leader may make three changes before it gives one.
	healAnswerTimeout = 15 * time.Second
	// healLogInterval is how often what has not changed is logged again.
	healLogInterval = 30 * time.Second
)

// Heal has the others agree to replace a member whose data is damaged, and returns when it may start
// again: its next Start sets the damaged data aside and comes back with a new id (datadir/heal.go).
// found is why its last start failed or its last life ended; others are peer URLs of members that it
// knew. While Heal waits for the others it changes nothing but healing.json. It returns an error
// with ErrNoHealing, ErrRemoved, that of ctx, or that of a disk or a port.
//
// REQUIRES: cfg.Heal, and no member runs on the data.
func Heal(ctx context.Context, cfg Config, found error, others []string) error {
	n := newNode(cfg)
	p := &patient{
		cfg: &n.cfg, paths: n.cfg.paths(), logger: n.logger, found: found,
		own: urlStrings(n.cfg.AdvertisePeerURLs), said: make(map[string]peers.HealAnswer),
	}
	p.plain().Error("this member's data is damaged or missing: it asks the others to let it come back with theirs, under a new id",
		zap.String("found", found.Error()), zap.String("data-dir", n.cfg.DataDir))
	if err := errors.Join(n.ports.bound(), n.ports.listenPeers()); err != nil {
		n.ports.close()
		return err
	}
	defer n.ports.close()
	n.dialing.security = n.ports.toPeers
	initial := n.cfg.InitialCluster
	if n.cfg.Seeds != nil {
		if seeds, err := n.cfg.Seeds(ctx); err == nil {
			initial, n.dialing.serverName = seeds.InitialCluster, seeds.ServerName
		}
	}
	p.client = n.dialing.client(time.Second + n.cfg.electionTimeout())
	defer p.client.CloseIdleConnections()
	var err error
	if p.begun, err = datadir.ReadHealing(n.cfg.FS, p.paths); err == nil && p.begun != nil && p.begun.Heir == 0 {
		p.goesOn = true // an earlier process may have asked: what it changed is not known here
	}
	if p.state, err = datadir.BeginHealing(n.cfg.FS, p.paths, found, append(datadir.OtherURLs(n.cfg.Name, initial), others...), time.Now()); err != nil {
		return fmt.Errorf("%w: %w", ErrNoHealing, err)
	}
	p.state.Peers = slices.DeleteFunc(p.state.Peers, func(u string) bool { return slices.Contains(p.own, u) })
	if len(p.state.Peers) == 0 {
		return p.refuse("no other member is known: restore a backup")
	}
	p.copy = datadir.LookAt(n.cfg.FS, p.paths, p.state.Found)
	p.logger.Warn("healing: what can be read of the damaged data", zap.Stringer("copy", p.copy), zap.Strings("others", p.state.Peers))
	n.ports.servePeers(p.handler())
	return p.run(ctx)
}

// patient is a member that heals, as long as it has no new id.
type patient struct {
	cfg    *Config
	paths  datadir.Paths
	logger *zap.Logger
	found  error
	own    []string // this member's peer URLs
	client *http.Client
	begun  *datadir.Healing // before this process; nil: nothing
	goesOn bool
	copy   peers.Copy

	state *datadir.Healing // belongs to run

	said     map[string]peers.HealAnswer // the last answers, by URL
	told     string                      // what was logged last
	toldWhen time.Time
}

// plain is the logger without stacks: the text says what is wrong and what to do.
func (p *patient) plain() *zap.Logger {
	return p.logger.WithOptions(zap.AddStacktrace(zapcore.InvalidLevel))
}

// refuse ends a healing that has changed nothing.
func (p *patient) refuse(format string, args ...any) error {
	if !p.goesOn {
		if err := p.state.Forget(p.cfg.FS, p.paths); err != nil {
			p.logger.Warn("healing: failed to remove its file", zap.Error(err))
		}
	}
	return fmt.Errorf("%w: %s. %w", ErrNoHealing, fmt.Sprintf(format, args...), p.found)
}

// handler answers the leader, which asks whether this member heals, and others that heal.
func (p *patient) handler() http.Handler {
	nonce, member, cluster, differs := p.state.Nonce, hexID(p.state.Member), hexID(p.state.Cluster), p.state.Differs
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		// Raft's requests are for the old id, which does not speak; Belay's they still are.
		w.Header().Set(peers.HeaderBelay, version.Belay)
		http.NotFound(w, r)
	})
	mux.HandleFunc(peers.PathHealing, func(w http.ResponseWriter, r *http.Request) {
		var q peers.HealingQuestion
		if !p.read(w, r, cluster, &q) {
			return
		}
		if q.Nonce != nonce {
			http.NotFound(w, r)
			return
		}
		peers.AnswerJSON(w, peers.HealingAnswer{Nonce: nonce, Member: member, Found: p.copy.Damage, Copy: p.copy, Differs: differs})
	})
	mux.HandleFunc(peers.PathHeal, func(w http.ResponseWriter, r *http.Request) {
		var q peers.HealQuestion
		if p.read(w, r, cluster, &q) {
			peers.AnswerJSON(w, peers.HealAnswer{Outcome: peers.HealWait, Why: "it is damaged itself", Name: p.cfg.Name, Healing: true, Copy: p.copy, Cluster: cluster})
		}
	})
	return mux
}

// read reads a question. If it returns false, it has answered.
func (p *patient) read(w http.ResponseWriter, r *http.Request, cluster string, q any) bool {
	w.Header().Set(peers.HeaderBelay, version.Belay)
	if !peers.AllowMethod(w, r, http.MethodPost) {
		return false
	}
	if !peers.ForCluster(w, r, cluster) {
		return false
	}
	body, ok := peers.ReadQuestion(w, r, peers.MaxHealBytes)
	if ok && json.Unmarshal(body, q) != nil {
		http.Error(w, "error unmarshalling request", http.StatusBadRequest)
		return false
	}
	return ok
}

// hexID is "" for 0, which stands for an id that is not known.
func hexID(id uint64) string {
	if id == 0 {
		return ""
	}
	return command.IDText(id)
}

// run asks the others until they agree, or cannot.
func (p *patient) run(ctx context.Context) error {
	for {
		joined, err := p.round(ctx)
		if err != nil || joined {
			return err
		}
		p.tell()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(healPause):
		}
	}
}

// round asks all others once. joined: this member has a new id, durably.
func (p *patient) round(ctx context.Context) (joined bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	q := peers.HealQuestion{Nonce: p.state.Nonce, Before: p.state.Before, Member: hexID(p.state.Member), PeerURLs: p.own}
	type reply struct {
		url    string
		answer peers.HealAnswer
	}
	replies := make(chan reply)
	var asking sync.WaitGroup
	for _, u := range p.state.Peers {
		asking.Go(func() {
			a, err := askHeal(ctx, p.client, u, hexID(p.state.Cluster), q)
			if err != nil {
				a = peers.HealAnswer{Outcome: peers.HealWait, Why: err.Error(), Name: u}
			}
			select {
			case replies <- reply{u, a}:
			case <-ctx.Done():
			}
		})
	}
	go func() { asking.Wait(); close(replies) }()
	defer func() {
		cancel()
		for range replies { // its senders end
		}
	}()
	known := slices.Clone(p.state.Peers)
	for r := range replies {
		a := r.answer
		p.said[r.url] = a
		switch {
		case a.Outcome == peers.HealJoin, a.Outcome == peers.HealDone:
			return true, p.join(a)
		case a.Outcome == peers.HealRemoved:
			return false, fmt.Errorf("%w (%s says: %s)", ErrRemoved, a.Name, a.Why)
		case a.Outcome == peers.HealUnknown:
			return false, p.refuse("%s says: %s", a.Name, a.Why)
		}
		var members []*command.Member
		if json.Unmarshal(a.Members, &members) != nil {
			continue // none are told
		}
		if voters := countVoters(members); voters <= 2 && slices.ContainsFunc(members, p.isOld) {
			return false, p.refuse("a cluster of %d has no quorum without it; %s has this copy: %s; the damaged one here: %s", voters, a.Name, a.Copy, p.copy)
		}
		for _, m := range members {
			plain, _ := command.PlainURLs(m.PeerURLs)
			for _, u := range plain {
				if !slices.Contains(known, u) && !slices.Contains(p.own, u) {
					known = append(known, u)
				}
			}
		}
	}
	p.state.Peers = known
	return false, ctx.Err()
}

// isOld reports whether a member is the damaged one, as a voter: not its heir, beside which there
// are two of three for a moment.
func (p *patient) isOld(m *command.Member) bool {
	return !m.IsLearner && (m.ID == p.state.Member || slices.Equal(slices.Sorted(slices.Values(m.PeerURLs)), slices.Sorted(slices.Values(p.own))))
}

// helpless reports whether a member votes without which the others are no quorum even if all run.
func helpless(members []*command.Member, own uint64) bool {
	return countVoters(members) <= 2 && slices.ContainsFunc(members, func(m *command.Member) bool { return m.ID == own && !m.IsLearner })
}

func countVoters(members []*command.Member) (n int) {
	for _, m := range members {
		if !m.IsLearner {
			n++
		}
	}
	return n
}

// join takes what the leader has agreed to.
func (p *patient) join(a peers.HealAnswer) (err error) {
	h := p.state
	if h.Heir, err = strconv.ParseUint(a.Heir, 16, 64); err == nil {
		h.Cluster, err = strconv.ParseUint(a.Cluster, 16, 64)
	}
	if err == nil {
		h.Members = nil
		err = json.Unmarshal(a.Members, &h.Members)
	}
	if err != nil || h.Heir == 0 {
		return fmt.Errorf("healing: %s answers what cannot be read: %w", a.Name, errors.Join(err, errors.New(a.Heir)))
	}
	h.Voter = a.Voter
	if err := h.Write(p.cfg.FS, p.paths); err != nil {
		return err
	}
	p.logger.Warn("healing: the others agree; this member comes back under a new id", zap.String("damaged-member-id", hexID(h.Member)),
		zap.String("member-id", hexID(h.Heir)), zap.String("says", a.Name), zap.Bool("as-voter", h.Voter))
	return nil
}

// tell logs why the others do not agree, when that has changed, and from time to time.
func (p *patient) tell() {
	type copyOf struct {
		who string
		peers.Copy
	}
	copies := []copyOf{{p.cfg.Name + " (this member)", p.copy}}
	var whys, damaged []string
	leads := false
	for _, u := range slices.Sorted(slices.Values(p.state.Peers)) {
		a := p.said[u]
		whys = append(whys, fmt.Sprintf("%s: %s", a.Name, a.Why))
		if a.Cluster == "" {
			continue // no answer
		}
		leads = leads || a.Leads
		copies = append(copies, copyOf{a.Name, a.Copy})
		if a.Healing {
			damaged = append(damaged, a.Name)
		}
	}
	refuses := len(damaged) > 0 && !leads
	text := strings.Join(whys, "; ")
	if text == p.told && time.Since(p.toldWhen) < healLogInterval {
		return
	}
	p.told, p.toldWhen = text, time.Now()
	if !refuses {
		p.logger.Warn("healing: waiting for the others", zap.String("because", text))
		return
	}
	slices.SortStableFunc(copies, func(a, b copyOf) int { return b.Compare(a.Copy) })
	var list []string
	for _, c := range copies {
		list = append(list, fmt.Sprintf("%s: %s", c.who, c.Copy))
	}
	p.plain().Error("healing: refused: more members are damaged than a quorum can do without, so nothing was changed. The best copy comes first; make it whole from a backup of its files, or see A quorum is lost in docs/operations.md",
		zap.Strings("damaged-too", damaged), zap.String("best-copy", copies[0].who), zap.Strings("copies", list), zap.String("because", text))
}

// askHeal asks one member.
func askHeal(ctx context.Context, client *http.Client, url, cluster string, q peers.HealQuestion) (a peers.HealAnswer, err error) {
	body, err := json.Marshal(q)
	if err != nil {
		return a, err
	}
	header := http.Header{}
	if cluster != "" {
		header.Set(peers.HeaderCluster, cluster)
	}
	ctx, cancel := context.WithTimeout(ctx, healAnswerTimeout)
	defer cancel()
	resp, err := peers.At(ctx, client, url, peers.Question{Method: http.MethodPost, Path: peers.PathHeal, Header: header, Body: body, MaxAnswer: 1 << 20})
	switch {
	case err != nil:
		return a, err
	case resp.Status == http.StatusNotFound:
		return a, errors.New("it does not heal others; start it with --heal")
	}
	return a, errors.Join(resp.OK(), json.Unmarshal(resp.Body, &a))
}

// recovery is the rest of a healing, of a member that has a new id or is about to start with it.
type recovery struct {
	state *datadir.Healing // nil: this member does not heal
	ended sync.WaitGroup   // of end
}

// note makes damage durable that ends the process, so that its next start heals, whatever that one
// finds. Where the others are no quorum without this member nothing is noted: nobody can help it, and
// a start that finds the note would refuse to go on with what is there.
func (r *recovery) note(n *Node) func(error) {
	if !n.cfg.Heal {
		return nil
	}
	return func(found error) {
		if n.state == nil || helpless(n.state.Members(), n.id.Member) {
			n.logger.Warn("healing: the damage is not noted for the next start: without this member there is no quorum", zap.NamedError("found", found))
			return
		}
		if _, err := datadir.BeginHealing(n.cfg.FS, n.cfg.paths(), found, Others(n), time.Now()); err != nil {
			n.logger.Error("healing: the damage is not noted for the next start", zap.NamedError("found", found), zap.Error(err))
		}
	}
}

// look is the first look of a start at the data: what heals is never opened under its old id.
func (r *recovery) look(n *Node) (err error) {
	fs, paths := n.cfg.FS, n.cfg.paths()
	if r.state, err = datadir.ReadHealing(fs, paths); err != nil || r.state == nil {
		return err
	}
	if r.state.Heir == 0 {
		return r.state.Unfinished(paths)
	}
	n.metrics.healing.Set(1)
	return r.state.SetAside(fs, paths, n.logger)
}

// maySpeak is the last step before an heir says anything.
func (r *recovery) maySpeak(n *Node) error {
	if r.state == nil || r.state.Speaks {
		return nil
	}
	r.state.Speaks = true
	return r.state.Write(n.cfg.FS, n.cfg.paths())
}

// end has the member promoted when it has what the others have, and ends the healing.
func (r *recovery) end(n *Node) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-n.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	select {
	case <-n.Ready():
	case <-ctx.Done():
		return
	}
	h, own := r.state, command.IDText(n.id.Member)
	id := zap.String("member-id", own)
	n.logger.Info("healing: this member has published its name, and is to be what it was", id, zap.Bool("voter", h.Voter))
	q := peers.HealQuestion{Nonce: h.Nonce, Member: own, PeerURLs: urlStrings(n.cfg.AdvertisePeerURLs), Heir: own, Promote: true}
	for told := ""; ; {
		named, _ := n.state.Alarm(pb.AlarmType_CORRUPT, h.Member) // the leader disarms it when it is asked
		if m := n.state.Member(n.id.Member); m != nil && (!m.IsLearner || !h.Voter) && !named {
			break
		}
		why := "no leader is known"
		if m := n.state.Member(n.replica.Leader()); m != nil && m.ID != n.id.Member {
			for _, u := range m.PeerURLs {
				a, err := askHeal(ctx, n.transport.Client(), u, command.IDText(n.id.Cluster), q)
				if why = a.Why; err == nil {
					break
				}
				why = err.Error()
			}
		}
		if why != told && why != "" {
			told = why
			n.logger.Info("healing: not promoted yet", id, zap.String("because", why))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(healPause):
		}
	}
	if err := h.Done(n.cfg.FS, n.cfg.paths(), n.logger); err != nil {
		n.logger.Error("healing: this member is well again, but the file that says how far it has come is not removed", id, zap.Error(err))
		return
	}
	n.metrics.healing.Set(0)
	n.metrics.damaged.Set(float64(datadir.DamagedCopies(n.cfg.FS, n.cfg.paths())))
	n.logger.Warn("healing: this member is well again", id, zap.String("damaged-member-id", hexID(h.Member)), zap.Duration("took", time.Since(h.At)),
		zap.String("found", h.Found), zap.Bool("voter", h.Voter))
}

// lastEntry is a log's last entry; 0: none is known.
func lastEntry(log *raftlog.Log) (index, term uint64) {
	index, err := log.LastIndex()
	if err == nil {
		term, err = log.Term(index)
	}
	if err != nil {
		return 0, 0
	}
	return index, term
}

// Others are peer URLs of the other members, as a member knew them: what Heal wants to know of one
// that ended.
func Others(n *Node) (urls []string) {
	n.peersMu.Lock()
	defer n.peersMu.Unlock()
	for _, u := range n.peers {
		urls = append(urls, u...)
	}
	return urls
}

// Stopping is closed when Stop begins.
func (n *Node) Stopping() <-chan struct{} { return n.stop }

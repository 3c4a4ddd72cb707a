package server

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/belaydb/belay/command"
)

const (
	quorumInterval = 500 * time.Millisecond
	// quorumPatience is how long a quorum must have been lost before it is logged: elections and
	// restarts are shorter.
	quorumPatience = 3 * time.Second
)

// quorumSample is what the loop about a lost quorum needs.
type quorumSample struct {
	own         uint64
	members     func() []*command.Member
	activeSince func(id uint64) time.Time // Peers.ActiveSince
	leader      func() uint64
	logger      *zap.Logger
}

// run says once, in one line, that too few members are there for anything to
// be decided, who is missing and since when; and once that it is over. The lines of
// connections and elections that surround it say neither.
func (s *quorumSample) run(ctx context.Context) {
	w := quorumWatch{own: s.own}
	tick := time.NewTicker(quorumInterval)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			told := w.look(now, s.members(), func(id uint64) bool { return !s.activeSince(id).IsZero() }, s.leader())
			switch told {
			case quorumLost:
				s.logger.Warn("the cluster has no quorum: writes and linearizable reads wait until enough members are back",
					zap.String("missing", w.missingText(now)), zap.Int("voters", w.voters), zap.Int("needed", command.Quorum(w.voters)), zap.Int("reachable", w.reachable),
					zap.Duration("for", now.Sub(w.since).Round(time.Second)))
			case quorumBack:
				s.logger.Info("the cluster has a quorum and a leader again", zap.Duration("took", now.Sub(w.since).Round(time.Millisecond)))
				w.since = time.Time{}
			}
		case <-ctx.Done():
			return
		}
	}
}

type quorumNews int

const (
	noQuorumNews quorumNews = iota
	quorumLost
	quorumBack
)

// quorumWatch decides when a lost quorum is logged. It does no I/O and has no clock.
type quorumWatch struct {
	own     uint64
	since   time.Time // too few members and no leader since then; zero: not so
	told    bool
	missing []missingMember

	voters, reachable int // when it last looked
}

type missingMember struct {
	id    uint64
	name  string
	since time.Time
}

// look takes the present state: the members, whether each is connected, and the leader; 0: none.
func (w *quorumWatch) look(now time.Time, members []*command.Member, connected func(id uint64) bool, leader uint64) quorumNews {
	before := w.missing
	w.missing, w.voters, w.reachable = nil, 0, 0
	for _, m := range members {
		if m.IsLearner {
			continue
		}
		w.voters++
		if m.ID == w.own || connected(m.ID) {
			w.reachable++
			continue
		}
		gone := missingMember{m.ID, m.Name, now}
		if i := slices.IndexFunc(before, func(b missingMember) bool { return b.id == m.ID }); i >= 0 {
			gone.since = before[i].since
		}
		w.missing = append(w.missing, gone)
	}
	if leader != 0 || w.voters == 0 || w.reachable >= command.Quorum(w.voters) && !w.told {
		told := w.told
		w.told = false
		if !told {
			w.since = time.Time{}
			return noQuorumNews
		}
		return quorumBack // the caller reads since, and forgets it
	}
	if w.since.IsZero() {
		w.since = now
	}
	if !w.told && now.Sub(w.since) >= quorumPatience {
		w.told = true
		return quorumLost
	}
	return noQuorumNews
}

func (w *quorumWatch) missingText(now time.Time) string {
	var texts []string
	for _, m := range w.missing {
		name := m.name
		if name == "" {
			name = "never started"
		}
		texts = append(texts, fmt.Sprintf("%s (%s) for %s", command.IDText(m.id), name, now.Sub(m.since).Round(time.Second)))
	}
	return strings.Join(texts, ", ")
}

package backup

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

// A turn is one backup that the leader has another member make and prove, or only try again, so that
// the disk and the CPU of the leader are not spent on it. The leader alone decides what is due,
// removes what is old and watches the age; a member that follows does no more than it was asked for.
//
// A turn is a lease that the leader renews by asking how far it is, every turnAsk. The deputy ends it
// by itself when it was not asked for turnLease, or follows another leader, or leads. So at most one
// member makes backups, as far as clocks run alike:
//
//	what fails                  what becomes of the turn
//	the leader dies, stops or   the deputy hears no more of it, and ends what it does. The next leader
//	is cut off                  begins nothing for turnRest after its election
//	leadership moves            the deputy ends when it learns of it; the old leader, too, ends what it
//	                            makes itself
//	the deputy dies or is cut   the leader gets no answer for turnRest, by when a deputy that lives has
//	off                         ended it, and makes the backup itself
//	the deputy is started anew  it does not know the turn, and says so
//	the deputy hangs            likewise, if it does not answer; a depot that hangs fails its calls by
//	                            itself (Bounded)
//	the deputy fails            it says why; the leader makes the backup itself, and passes the deputy
//	                            over for a while
//
// At each of these points a folder without a manifest may be left, which counts for nothing and is
// removed by its maker's next turn, or a backup that was not tried yet, from which others go on as
// from any. Should two members make backups at once nevertheless, a clock having stopped, they do
// not disturb each other (doc.go): nobody's data rests on a turn.
//
// A deputy must see the leader's depot. It shows that by the newest backup there, name and sum; so
// the first backup of a depot is made by the leader, and with a directory for each member all are.
const (
	turnAsk   = 500 * time.Millisecond
	turnLease = 4 * time.Second
	turnRest  = 2 * turnLease
	// turnShun is for how long a deputy that failed is passed over.
	turnShun = 10 * time.Minute
	// turnSkew is how much a deputy's clock may differ from the leader's.
	turnSkew = 10 * time.Second
	// turnCatchUp is how long a deputy may take to have what the leader had.
	turnCatchUp = 5 * time.Second
)

// A TurnQuestion is what the leader asks of a deputy: to begin a turn, or how far it is.
type TurnQuestion struct {
	ID    string `json:"id"` // of the turn; drawn for each
	Begin bool   `json:"begin,omitempty"`
	Term  uint64 `json:"term"` // of the leader
	// Now is by the leader's clock: the schedule goes by the times in backups.
	Now     time.Time `json:"now,omitzero"`
	Applied uint64    `json:"applied,omitempty"`
	// Known is the newest backup that the leader sees, KnownSeal the sum of its manifest.
	Known     string `json:"known,omitempty"`
	KnownSeal string `json:"knownSeal,omitempty"`
	Parent    string `json:"parent,omitempty"` // "": a full backup
	Deep      bool   `json:"deep,omitempty"`   // to be restored, whatever that costs
	Verify    string `json:"verify,omitempty"` // a backup to try in place of making one
}

// MaxTurnBytes bounds a TurnQuestion and its answer.
const MaxTurnBytes = 16 << 10

// A TurnAnswer has one of the three.
type TurnAnswer struct {
	Refused string   `json:"refused,omitempty"` // why nothing was made, and nothing is wrong
	Running *Running `json:"running,omitempty"`
	Outcome *Outcome `json:"outcome,omitempty"` // it is over
}

// A Deputy is another member that may make a backup for the leader.
type Deputy struct {
	ID   uint64
	Name string
	Ask  func(ctx context.Context, q TurnQuestion) (TurnAnswer, error)
}

// turn is one that this member has as a deputy.
type turn struct {
	q    TurnQuestion
	from uint64 // the leader that gave it

	// Guarded by Maker.mu.
	asked  time.Time   // when it was last asked for
	answer *TurnAnswer // nil: it is not over
}

// errRefused is an error for which a deputy is not to blame.
type errRefused struct{ error }

// follows reports whether a member leads this one, in a term.
func (m *Maker) follows(leader, term uint64) bool {
	id, now := m.env.Leader()
	return id == leader && now == term && id != m.env.Member
}

// Turn answers a question of another member, from. It may be called from any goroutine.
func (m *Maker) Turn(from uint64, q TurnQuestion) TurnAnswer {
	follows, unwell := m.follows(from, q.Term), ""
	if q.Begin && follows && m.env.Unwell != nil {
		unwell = m.env.Unwell()
	}
	if skew := time.Since(q.Now); q.Begin && unwell == "" && skew.Abs() > turnSkew {
		unwell = fmt.Sprintf("its clock differs from the leader's by %v", skew.Abs().Round(time.Second))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.turn
	switch {
	case t != nil && t.q.ID == q.ID:
		t.asked = time.Now()
		if t.answer != nil {
			return *t.answer
		}
		running := Running{Doing: "beginning", Since: t.asked.UTC()}
		if m.status.Running != nil {
			running = *m.status.Running
		}
		return TurnAnswer{Running: &running}
	case !q.Begin:
		return TurnAnswer{Refused: "it does not know of this turn: it was started meanwhile"}
	case !follows:
		return TurnAnswer{Refused: "it does not follow this leader"}
	case t != nil && t.answer == nil:
		return TurnAnswer{Refused: "it ends an earlier turn"}
	case unwell != "":
		return TurnAnswer{Refused: unwell}
	}
	t = &turn{q: q, from: from, asked: time.Now()}
	select {
	case m.turns <- t:
		m.turn = t
		return TurnAnswer{Running: &Running{Doing: "beginning", Since: t.asked.UTC()}}
	default: // Run has ended, or has not come to an end of what it does
		return TurnAnswer{Refused: "it is busy"}
	}
}

// take has a turn, as a deputy.
func (m *Maker) take(ctx context.Context, t *turn) {
	var out Outcome
	lost, err := m.watched(ctx, func() error {
		m.mu.Lock()
		silent := time.Since(t.asked)
		m.mu.Unlock()
		switch {
		case silent > turnLease:
			return fmt.Errorf("the leader has not asked for it for %v", silent.Round(100*time.Millisecond))
		case !m.follows(t.from, t.q.Term):
			return errors.New("leadership has moved")
		}
		return nil
	}, func(ctx context.Context) (err error) {
		out, err = m.fulfil(ctx, t.q)
		return err
	})
	if lost != nil && err != nil {
		err = errRefused{lost}
	}
	m.seen, m.catalog = m.catalog, nil
	answer := TurnAnswer{Outcome: &out}
	out.By = m.env.MemberName
	if refused, ok := errors.AsType[errRefused](err); ok {
		answer = TurnAnswer{Refused: refused.Error()}
		m.env.Logger.Info("a backup for the leader is not made", zap.String("because", refused.Error()))
	} else if err != nil {
		out.Error = err.Error()
		m.failed(out.Name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status.Running = nil
	t.answer = &answer
}

// watched does something within a context that ends when wrong gives an error. lost is why that
// context had ended before it was done: that error, or the end of ctx; nil: it had not.
func (m *Maker) watched(ctx context.Context, wrong func() error, do func(context.Context) error) (lost, err error) {
	within, cancel := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { m.watch(within, cancel, wrong) })
	err = do(within)
	lost = context.Cause(within)
	cancel(nil)
	watching.Wait()
	return lost, err
}

// watch calls cancel when wrong gives an error, until ctx ends.
func (m *Maker) watch(ctx context.Context, cancel context.CancelCauseFunc, wrong func() error) {
	tick := time.NewTicker(turnAsk)
	defer tick.Stop()
	for {
		changed := m.env.Changed()
		if err := wrong(); err != nil {
			cancel(err)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-tick.C:
		}
	}
}

// fulfil makes what the leader asks for.
func (m *Maker) fulfil(ctx context.Context, q TurnQuestion) (out Outcome, err error) {
	m.update(func(s *Status) { s.Running = &Running{Doing: "reading what there is", Since: time.Now().UTC()} })
	if m.catalog, err = Load(ctx, m.env.Depot, clusterFolder(m.env.Cluster), m.seen); err != nil {
		return out, fmt.Errorf("%s cannot be read: %w", m.env.Depot, err)
	}
	if known := m.catalog.find(q.Known); known == nil || known.Manifest == nil || known.seal != q.KnownSeal {
		return out, errRefused{fmt.Errorf("%s does not have %s, which the leader sees", m.env.Depot, q.Known)}
	}
	m.clean(ctx, Retention{}) // what an earlier turn of its own left; the leader removes the rest
	if q.Verify != "" {
		return m.verify(ctx, q.Verify)
	}
	var parent *Entry
	if q.Parent != "" {
		if parent = m.catalog.find(q.Parent); parent == nil || !parent.State.usable() {
			return out, errRefused{fmt.Errorf("%s is not there, or not whole", q.Parent)}
		}
	}
	for deadline := time.Now().Add(turnCatchUp); m.env.Applied() < q.Applied; {
		if time.Now().After(deadline) {
			return out, errRefused{fmt.Errorf("this member is behind: it has applied entry %d of %d", m.env.Applied(), q.Applied)}
		}
		if !sleep(ctx, 50*time.Millisecond) {
			return out, ctx.Err()
		}
	}
	return m.produce(ctx, parent, q.Deep)
}

// deputies are the members that may have a turn now, the one that had the last first.
func (m *Maker) deputies(now time.Time) (able []Deputy) {
	if m.env.Deputies == nil {
		return nil
	}
	for _, d := range m.env.Deputies() {
		if now.After(m.shunned[d.ID]) {
			able = append(able, d)
		}
	}
	slices.SortStableFunc(able, func(a, b Deputy) int {
		switch m.deputy {
		case a.ID:
			return -1
		case b.ID:
			return 1
		}
		return 0
	})
	return able
}

// delegate has another member do what q says: make a backup, or try one. done is false if the leader
// is to do it itself.
func (m *Maker) delegate(ctx context.Context, q TurnQuestion) (out Outcome, done bool, err error) {
	_, known := m.newest()
	if known == nil || m.env.Deputies == nil {
		return out, false, nil
	}
	_, q.Term = m.env.Leader()
	q.Begin, q.Applied, q.Known, q.KnownSeal = true, m.env.Applied(), known.Name, known.seal
	var whys []string
	for _, d := range m.deputies(time.Now()) {
		q.ID, q.Now = rand.Text(), time.Now()
		out, err := m.grant(ctx, d, q)
		if err == nil {
			err = m.collect(ctx, q, &out)
		}
		if err == nil {
			m.deputy = d.ID
			return out, true, nil
		}
		if ctx.Err() != nil {
			return out, true, context.Cause(ctx)
		}
		if _, ok := errors.AsType[errRefused](err); ok {
			whys = append(whys, d.Name+": "+err.Error())
			continue
		}
		m.shunned[d.ID] = time.Now().Add(turnShun)
		did, does := "make", "makes"
		if q.Verify != "" {
			did, does = "try", "tries"
		}
		m.env.Logger.Warn("another member did not "+did+" the backup: this one, which leads, "+does+" it", zap.String("member", d.Name), zap.Error(err), zap.Duration("not-asked-for", turnShun))
		return out, false, nil
	}
	if why := strings.Join(whys, "; "); why != m.refusals {
		if m.refusals = why; why != "" {
			m.env.Logger.Info("no other member makes the backups: this one, which leads, makes them", zap.String("because", why))
		}
	}
	return out, false, nil
}

// collect finds what a deputy made or tried, and gives its state. That a backup is bad is no failure
// of the deputy that tried it.
func (m *Maker) collect(ctx context.Context, q TurnQuestion, out *Outcome) error {
	if out.Error != "" && (q.Verify == "" || out.State != Bad) {
		return errors.New(out.Error)
	}
	if e := m.catalog.find(q.Verify); e != nil {
		e.Proof = nil // there is another one
	}
	catalog, err := Load(ctx, m.env.Depot, clusterFolder(m.env.Cluster), m.catalog)
	if err != nil {
		return fmt.Errorf("%s cannot be read: %w", m.env.Depot, err)
	}
	m.catalog = catalog
	e := catalog.find(out.Name)
	switch {
	case e != nil && q.Verify == out.Name && (e.State == Bad) == (out.Error != ""):
	case e == nil || !e.State.usable():
		return fmt.Errorf("it says that it has %s, which is not in %s", out.Name, m.env.Depot)
	}
	out.State = e.State
	return nil
}

// grant gives a turn, and asks how far it is until it is over. When it returns, the deputy does
// nothing more: it has said so, or was not asked for long enough.
func (m *Maker) grant(ctx context.Context, d Deputy, q TurnQuestion) (out Outcome, err error) {
	heard := time.Now()
	for {
		asking, cancel := context.WithTimeout(ctx, turnLease/2)
		a, err := d.Ask(asking, q)
		cancel()
		switch {
		case ctx.Err() != nil:
			return out, ctx.Err()
		case err != nil && q.Begin:
			// It may have heard, though its answer was lost: nobody else begins before it gives up.
			if _, ok := errors.AsType[errRefused](err); ok {
				return out, err
			}
			if !sleep(ctx, turnRest) {
				return out, ctx.Err()
			}
			return out, err
		case err != nil && time.Since(heard) > turnRest:
			return out, fmt.Errorf("it has not answered for %v: %w", turnRest, err)
		case err != nil:
		case a.Refused != "":
			return out, errRefused{errors.New(a.Refused)}
		case a.Outcome != nil:
			return *a.Outcome, nil
		case a.Running != nil:
			heard, q.Begin = time.Now(), false
			m.update(func(s *Status) {
				running := *a.Running
				running.By = d.Name
				s.Running = &running
			})
			m.tellAge(heard)
		default:
			return out, errors.New("it gives an answer without meaning")
		}
		if !sleep(ctx, turnAsk) {
			return out, ctx.Err()
		}
	}
}

// NotAsked makes an error of a Deputy's Ask one for which nothing was begun.
func NotAsked(err error) error { return errRefused{err} }

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

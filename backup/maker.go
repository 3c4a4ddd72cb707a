package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/belaydb/belay/internal/show"
	"github.com/belaydb/belay/mvcc"
)

// Settings are what an operator chooses.
type Settings struct {
	Place
	Every      time.Duration // between two full backups
	Increments time.Duration // between two increments; 0: none are made
	Retention
	BytesPerSecond int64         // to and from the depot; 0: no bound
	MaxAge         time.Duration // of the last good one, before it counts as too old; 0: see tooOldAfter
	ScratchDir     string        // where backups are restored to be proved; empty: beside the member's data
}

// LeastInterval is the shortest time between two backups.
const LeastInterval = time.Second

// Check says what is wrong with the settings, by the names of the server's flags. Without a place
// no backups are made.
func (s Settings) Check() error {
	if s.To == "" {
		return nil
	}
	if err := s.Place.Check("backup-to"); err != nil {
		return err
	}
	switch {
	case s.Every < LeastInterval:
		return fmt.Errorf("--backup-interval must be at least %v (set to %v)", LeastInterval, s.Every)
	case s.Increments != 0 && s.Increments < LeastInterval:
		return fmt.Errorf("--backup-increment-interval must be 0, for no increments, or at least %v (set to %v)", LeastInterval, s.Increments)
	case s.Increments > s.Every:
		return fmt.Errorf("--backup-increment-interval must not be longer than --backup-interval, %v (set to %v)", s.Every, s.Increments)
	case s.For < 0:
		return fmt.Errorf("--backup-retention must be 0, to keep every backup, or more (set to %v)", s.For)
	case s.Least < 1:
		return fmt.Errorf("--backup-keep must be at least 1: the last good backup is never removed (set to %d)", s.Least)
	case s.BytesPerSecond < 0:
		return fmt.Errorf("--backup-max-bytes-per-second must be 0, for no bound, or more (set to %d)", s.BytesPerSecond)
	case s.MaxAge < 0:
		return fmt.Errorf("--backup-max-age must be 0, for twice the interval, or more (set to %v)", s.MaxAge)
	}
	return nil
}

// tooOldAfter is the age of the last good backup from which on something is wrong.
func (s Settings) tooOldAfter() time.Duration {
	if s.MaxAge > 0 {
		return s.MaxAge
	}
	shortest := s.Every
	if s.Increments > 0 {
		shortest = s.Increments
	}
	return 2*shortest + spareAge
}

const (
	// spareAge is what making and proving a backup may take before the last one counts as too old.
	spareAge = 10 * time.Minute

	// provingShare is what part of the time may go into restoring increments: after a trial that
	// took t, increments are only read back for t times this. Full ones are always restored.
	provingShare = 20

	firstRetry, lastRetry = 10 * time.Second, 5 * time.Minute

	// restless bounds a pause, so that what is due by the clock is seen after a change of it.
	restless = 10 * time.Second

	// scratchReserve is the free space that a scratch store must leave, besides half as much again as
	// the data takes.
	scratchReserve = 512 << 20
)

// Env is the member around a Maker.
type Env struct {
	Origin
	Depot Depot

	View    func() *mvcc.View
	Applied func() uint64          // raft's index
	Leading func() bool            // this member leads: it makes the backups, or has them made
	Changed func() <-chan struct{} // closed when that may have changed
	// Leader is the member that this one follows, 0 if none, and its term. Deputies are the other
	// members, which may make backups in its place (turn.go); nil: the leader makes all. Unwell says
	// why this member should make none for the leader; "", or nil: nothing is wrong.
	Leader   func() (id, term uint64)
	Deputies func() []Deputy
	Unwell   func() string
	// Times are the sightings after a time, oldest first.
	Times func(after time.Time) []Sighting

	Scratch Scratch
	// ScratchDir is made and removed. Free is the free space of its disk; nil: unknown.
	ScratchDir string
	Free       func() (uint64, error)

	Logger  *zap.Logger // nil: none
	Metrics *Metrics
}

// A Maker makes backups by a schedule while its member leads, or has other members make them; and
// makes one for the leader if it is asked.
type Maker struct {
	s    Settings
	env  Env
	pace *Pace

	orders chan *order // capacity 1: one waits at most
	turns  chan *turn  // capacity 1: likewise; of the leader

	// Of the goroutine of Run.
	catalog   *Catalog  // nil: to be read
	led       time.Time // since when this member leads
	unchanged time.Time // until then nothing was written since the newest backup
	retry     time.Duration
	notBefore time.Time // after a failure
	tried     struct {  // the last restore
		ended time.Time
		took  time.Duration
	}
	wasTooOld bool
	seen      *Catalog             // of the last turn as a deputy
	deputy    uint64               // the member that made the last backup for this one
	shunned   map[uint64]time.Time // members that failed, and until when they are not asked
	refusals  string               // why nobody else makes backups, as last said

	mu     sync.Mutex
	status Status
	turn   *turn // the last one as a deputy
}

// An order is what somebody asked for.
type order struct {
	verify string // a backup to try; empty: make one
	full   bool
	done   chan Outcome // capacity 1
}

// New makes a Maker. REQUIRES: the settings have a place, and are good.
func New(s Settings, env Env) *Maker {
	if env.Logger == nil {
		env.Logger = zap.NewNop()
	}
	m := &Maker{s: s, env: env, pace: NewPace(s.BytesPerSecond), orders: make(chan *order, 1), turns: make(chan *turn, 1), shunned: map[uint64]time.Time{}}
	m.status = Status{Member: env.MemberName, To: env.Depot.String(), Every: s.Every.String(), MaxAge: s.tooOldAfter().String()}
	if s.Increments > 0 {
		m.status.Increments = s.Increments.String()
	}
	return m
}

// Run makes backups until ctx ends. It returns when no view is open any more.
func (m *Maker) Run(ctx context.Context) {
	if err := os.RemoveAll(m.env.ScratchDir); err != nil { // of a process that was killed
		m.env.Logger.Warn("cannot remove what an interrupted trial of a backup left", zap.String("path", m.env.ScratchDir), zap.Error(err))
	}
	var o *order
	var t *turn
	for ctx.Err() == nil {
		changed := m.env.Changed()
		now := time.Now()
		pause := restless
		switch {
		case !m.env.Leading():
			m.catalog, m.led, m.unchanged = nil, time.Time{}, time.Time{}
			m.retry, m.notBefore = 0, time.Time{}
			if o != nil {
				o.done <- Outcome{Error: errLeads.Error()}
			}
			m.tellAge(now)
			if t != nil {
				m.take(ctx, t)
				pause = 0
			}
		default:
			if m.led.IsZero() {
				m.led, m.seen = now, nil
				if len(m.deputies(now)) > 0 { // the leader before this one may have given a turn
					m.notBefore = now.Add(turnRest)
				}
			}
			if t != nil {
				m.take(ctx, t) // it ends at once
			}
			m.step(ctx, o)
			m.tellAge(time.Now())
			pause = min(restless, max(0, time.Until(m.due())))
		}
		timer := time.NewTimer(pause)
		o, t = nil, nil
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		case o = <-m.orders:
		case t = <-m.turns:
		}
		timer.Stop()
	}
	if o != nil {
		o.done <- Outcome{Error: "the member is being stopped"}
	}
}

// due is when the next backup is.
func (m *Maker) due() time.Time {
	if m.catalog == nil {
		return m.notBefore
	}
	full, tip := m.newest()
	if full == nil {
		return m.notBefore
	}
	due := full.Manifest.Time.Add(m.s.Every)
	if m.s.Increments > 0 {
		due = earlier(due, later(tip.Manifest.Time, m.unchanged).Add(m.s.Increments))
	}
	return later(due, m.notBefore)
}

// nextTry is how long it is until the next backup by itself; one that was ordered and failed does not
// put it off.
func (m *Maker) nextTry(now time.Time) time.Duration {
	return max(0, m.due().Sub(now)).Round(time.Millisecond)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// newest are the newest full backup and the newest of all that can be gone on from; nil: none. What
// a clock wrote that was ahead does not count.
func (m *Maker) newest() (full, tip *Entry) {
	soon := time.Now().Add(time.Minute)
	for _, e := range m.catalog.Entries {
		if !e.State.usable() || e.Manifest.Time.After(soon) {
			continue
		}
		if e.Manifest.Kind == Full && (full == nil || e.Manifest.Time.After(full.Manifest.Time)) {
			full = e
		}
		if tip == nil || e.Manifest.Time.After(tip.Manifest.Time) {
			tip = e
		}
	}
	return full, tip
}

// good reports whether a backup counts as a good one: it was restored, or read back and what it
// goes on from was restored.
func good(e *Entry) bool {
	return e.State == Proved || e.State == ReadBack && e.root().State == Proved
}

// lastGood is the time of the newest good backup; zero: there is none.
func (m *Maker) lastGood() (last time.Time) {
	if m.catalog == nil {
		return last
	}
	tipGood := false
	_, tip := m.newest()
	for _, e := range m.catalog.Entries {
		if e.State.usable() && good(e) && e.Manifest.Time.After(last) {
			last, tipGood = e.Manifest.Time, e == tip
		}
	}
	if tipGood { // it still is all that there is
		last = later(last, m.unchanged)
	}
	return last
}

// step does what is due, or was ordered.
func (m *Maker) step(ctx context.Context, o *order) {
	if o == nil && time.Now().Before(m.due()) {
		return
	}
	var out Outcome
	lost, err := m.watched(ctx, func() error {
		if !m.env.Leading() {
			return errLeads
		}
		return nil
	}, func(ctx context.Context) (err error) {
		out, err = m.work(ctx, o)
		return err
	})
	switch {
	case ctx.Err() != nil:
		out.Error = "the member is being stopped"
	case err != nil && lost != nil:
		out.Error = errLeads.Error()
	case err != nil:
		out.Error = err.Error()
		if o == nil {
			m.retry = min(max(2*m.retry, firstRetry), lastRetry)
			m.notBefore = time.Now().Add(m.retry)
		}
		m.failed(out.Name, err)
	default:
		m.retry, m.notBefore = 0, time.Time{}
	}
	m.update(func(s *Status) { s.Running = nil })
	if o != nil {
		o.done <- out
	}
}

var errLeads = errors.New("this member does not lead any more: ask the leader")

// failed counts and says that a backup could not be made, or is not good.
func (m *Maker) failed(name string, err error) {
	m.env.Metrics.failures.Inc()
	fields := []zap.Field{zap.String("backup", name), zap.String("to", m.env.Depot.String()), zap.Error(err)}
	if !m.led.IsZero() {
		fields = append(fields, zap.Duration("next-try-in", m.nextTry(time.Now())))
	}
	m.env.Logger.Error("a backup failed", fields...)
	m.update(func(s *Status) { s.LastError, s.LastErrorAt = err.Error(), time.Now().UTC() })
}

func (m *Maker) work(ctx context.Context, o *order) (out Outcome, err error) {
	m.update(func(s *Status) { s.Running = &Running{Doing: "reading what there is", Since: time.Now().UTC()} })
	// What was known stays known while it cannot be read: it is no younger for that, and not gone.
	known, err := Load(ctx, m.env.Depot, clusterFolder(m.env.Cluster), m.catalog)
	if err != nil {
		return out, fmt.Errorf("%s cannot be read: %w", m.env.Depot, err)
	}
	m.catalog = known
	m.clean(ctx, m.s.Retention)
	if o != nil && o.verify != "" {
		if m.catalog.find(o.verify) == nil { // a name that was mistyped is no failure of a backup
			return Outcome{Error: "there is no backup " + o.verify}, nil
		}
		if _, err := m.verifiable(o.verify); err != nil {
			return out, err
		}
		out, done, err := m.delegate(ctx, TurnQuestion{Verify: o.verify})
		switch {
		case err != nil:
			return out, err
		case !done:
			return m.verify(ctx, o.verify)
		case out.Error != "":
			return out, errors.New(out.Error)
		}
		return out, nil
	}
	full, tip := m.newest()
	now := time.Now()
	parent := tip
	switch {
	case full == nil || o != nil && o.full || o == nil && !now.Before(full.Manifest.Time.Add(m.s.Every)):
		parent = nil
	case m.env.Applied() == tip.Manifest.Index && good(tip):
		m.unchanged = now
		return Outcome{Name: tip.Name, State: tip.State, Revision: tip.Manifest.Revision, Unchanged: true}, nil
	case m.s.Increments == 0 && o != nil:
		parent = nil
	}
	// The one before it may have given a turn. By the schedule it is put off for as long.
	if wait := time.Until(m.led.Add(turnRest)); o != nil && wait > 0 && len(m.deputies(now)) > 0 && !sleep(ctx, wait) {
		return out, ctx.Err()
	}
	q := TurnQuestion{Deep: o != nil}
	if parent != nil {
		q.Parent = parent.Name
	}
	out, done, err := m.delegate(ctx, q)
	if !done && err == nil {
		out, err = m.produce(ctx, parent, o != nil)
	}
	if err == nil {
		m.clean(ctx, m.s.Retention)
	}
	return out, err
}

// produce makes a backup here, and proves it.
func (m *Maker) produce(ctx context.Context, parent *Entry, deep bool) (out Outcome, err error) {
	now := time.Now()
	e, err := m.save(ctx, parent, deep)
	if errors.Is(err, ErrGap) {
		m.env.Logger.Info("a full backup in place of an increment", zap.String("after", parent.Name), zap.Error(err))
		e, err = m.save(ctx, nil, true)
	}
	if err != nil {
		return out, err
	}
	out = Outcome{Name: e.Name, Revision: e.Manifest.Revision, By: m.env.MemberName}
	m.catalog.Entries = append(m.catalog.Entries, e)
	m.catalog.judge()
	if err := m.try(ctx, e, e.Manifest.Hash != nil); err != nil {
		return out, err
	}
	out.State = e.State
	m.env.Metrics.made.WithLabelValues(e.Manifest.Kind).Inc()
	m.env.Metrics.took.Set(time.Since(now).Seconds())
	m.env.Logger.Info("made a backup", zap.String("backup", e.Name), zap.String("state", string(e.State)), zap.Int64("revision", e.Manifest.Revision),
		zap.Int64("versions", e.Manifest.Versions), zap.String("size", show.LogBytes(e.Bytes())), zap.Duration("took", time.Since(now)))
	return out, nil
}

// save makes a backup. deep: one that is to be restored, to be proved, whatever that costs.
func (m *Maker) save(ctx context.Context, parent *Entry, deep bool) (*Entry, error) {
	s := saving{Origin: m.env.Origin, Parent: parent, Pace: m.pace, Hash: true}
	var after time.Time
	kind := Full
	if parent != nil {
		kind, after = Increment, parent.Manifest.Time
		s.Hash = deep || time.Since(m.tried.ended) >= provingShare*m.tried.took
	}
	m.update(func(st *Status) { st.Running = &Running{Doing: "saving", Kind: kind, Since: time.Now().UTC()} })
	s.Progress = func(raw int64) {
		m.update(func(st *Status) { st.Running.Bytes = raw })
		m.tellAge(time.Now()) // a depot may be so slow that the last good one becomes too old meanwhile
	}
	s.Time = time.Now()
	view := m.env.View()
	defer view.Close()
	for _, sighting := range m.env.Times(after) {
		if sighting.Revision <= view.Rev() && sighting.Time.Before(s.Time) {
			s.Times = append(s.Times, sighting)
		}
	}
	e, err := save(ctx, m.env.Depot, view, s)
	if err == nil {
		m.env.Metrics.bytes.Add(float64(e.Bytes()))
	}
	return e, err
}

// try proves a backup, and writes what came of it beside it. deep: by restoring it. An error that is
// not about the backup leaves no proof.
func (m *Maker) try(ctx context.Context, e *Entry, deep bool) error {
	m.update(func(s *Status) {
		s.Running = &Running{Doing: "proving", Kind: e.Manifest.Kind, Since: time.Now().UTC()}
	})
	var noRoom error
	t := Trial{}
	if deep {
		if noRoom = m.room(e); noRoom == nil {
			t = Trial{m.env.Scratch, m.env.ScratchDir}
		}
	}
	start := time.Now()
	p, err := prove(ctx, m.env.Depot, m.catalog, e, t, fmt.Sprintf("%016x", m.env.Member), m.pace)
	if p.Restored {
		m.tried.ended, m.tried.took = time.Now(), time.Since(start)
	}
	if err != nil {
		return fmt.Errorf("%s could not be tried: %w", e.Name, err)
	}
	if err := writeProof(ctx, m.env.Depot, m.catalog.Cluster, e, p); err != nil {
		return err
	}
	m.catalog.judge()
	switch {
	case !p.Good:
		return fmt.Errorf("%s is bad: %s", e.Name, p.Error)
	case noRoom != nil:
		return fmt.Errorf("%s was read back but not restored: %w", e.Name, noRoom)
	}
	return nil
}

// room says whether a scratch store of a backup may be made.
func (m *Maker) room(e *Entry) error {
	if m.env.Free == nil {
		return nil
	}
	free, err := m.env.Free()
	if err != nil {
		return err
	}
	need := uint64(scratchReserve)
	for _, c := range e.chain() {
		for _, p := range c.Manifest.Parts {
			need += uint64(p.Raw) * 3 / 2
		}
	}
	if free < need {
		return fmt.Errorf("the scratch store needs %s of free space, and there are %s: name a larger disk with --backup-scratch-dir", show.Bytes(int64(need)), show.Bytes(int64(free)))
	}
	return nil
}

// verifiable finds a backup that can be tried.
func (m *Maker) verifiable(name string) (*Entry, error) {
	e := m.catalog.find(name)
	switch {
	case e == nil:
		return nil, fmt.Errorf("there is no backup %s", name)
	case e.Manifest == nil || e.State == Orphaned:
		return nil, fmt.Errorf("%s is %s: %w", name, e.State, e.Err)
	}
	return e, nil
}

// verify tries a backup here, by restoring it.
func (m *Maker) verify(ctx context.Context, name string) (out Outcome, err error) {
	e, err := m.verifiable(name)
	if err != nil {
		return out, err
	}
	out = Outcome{Name: name, Revision: e.Manifest.Revision, By: m.env.MemberName}
	err = m.try(ctx, e, true)
	out.State = e.State
	return out, err
}

// clean removes what may go. What cannot be removed is tried again next time.
func (m *Maker) clean(ctx context.Context, r Retention) {
	gone := map[*Entry]bool{}
	for _, e := range m.catalog.expired(r, fmt.Sprintf("%016x", m.env.Member), time.Now(), m.s.agingStep()) {
		if err := remove(ctx, m.env.Depot, m.catalog.Cluster, e); err != nil {
			m.env.Logger.Warn("cannot remove an old backup", zap.String("backup", e.Name), zap.String("to", m.env.Depot.String()), zap.Error(err))
			break
		}
		gone[e] = true
		m.env.Logger.Info("removed a backup", zap.String("backup", e.Name), zap.String("state", string(e.State)))
	}
	var kept []*Entry
	for _, e := range m.catalog.Entries {
		if !gone[e] {
			kept = append(kept, e)
		}
	}
	m.catalog.Entries = kept
	m.catalog.judge()
}

// tellAge publishes how old the last good backup is, and says in the log when it has become too
// old. Only the leader knows, and only it complains.
func (m *Maker) tellAge(now time.Time) {
	var last time.Time
	if !m.led.IsZero() {
		last = m.lastGood()
	}
	tooOld := !m.led.IsZero() && now.Sub(last) > m.s.tooOldAfter() && now.Sub(m.led) > m.s.tooOldAfter()
	if !last.IsZero() && !m.led.IsZero() {
		tooOld = now.Sub(last) > m.s.tooOldAfter()
	}
	metrics := m.env.Metrics
	metrics.tooOld.Set(0)
	if tooOld {
		metrics.tooOld.Set(1)
	}
	metrics.lastGood.Set(0)
	if !last.IsZero() {
		metrics.lastGood.Set(float64(last.UnixMilli()) / 1000)
	}
	m.update(func(s *Status) {
		s.Leading, s.TooOld, s.LastGood, s.Next = !m.led.IsZero(), tooOld, nil, nil
		if !last.IsZero() {
			t := last.UTC()
			s.LastGood = &t
		}
		if s.Leading {
			t := m.due().UTC()
			s.Next = &t
		}
	})
	switch {
	case tooOld && !m.wasTooOld:
		m.env.Logger.Error("the last good backup is too old", zap.Time("last-good-backup", last), zap.Duration("age-allowed", m.s.tooOldAfter()),
			zap.String("to", m.env.Depot.String()), zap.String("last-error", m.status.LastError))
	case !tooOld && m.wasTooOld && !m.led.IsZero():
		m.env.Logger.Info("there is a good backup again", zap.Time("last-good-backup", last))
	}
	m.wasTooOld = tooOld
}

func (m *Maker) update(f func(*Status)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(&m.status)
}

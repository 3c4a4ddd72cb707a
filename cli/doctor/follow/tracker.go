package follow

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

const (
	// patience is how long a change waits for its cause before it is reported without.
	patience = 8 * time.Second
	// lateVerdict is how long after a change the cause is still reported, on its own: Belay waits up
	// to half a minute for a member that does not answer.
	lateVerdict = 90 * time.Second
	// silentLooks is after how many looks without an answer a member is said to be silent.
	silentLooks = 2
	// keptTerms bounds how many changes are remembered.
	keptTerms = 4096
)

// A Look is what all members said at about one time.
type Look struct {
	At      time.Time
	Members []Seen
}

// Seen is what one member said.
type Seen struct {
	ID       uint64
	Name     string
	Err      string // why it did not answer; empty: it did
	Refused  bool   // Err: its machine answers, and nobody listens
	Leader   uint64 // 0: it knows none
	Term     uint64
	Belay    *Record // nil: it is etcd, or did not tell
	Counters *Counters
}

// A change of leader that was seen. Its term is its name: there is one leader for each.
type change struct {
	term     uint64
	at       time.Time // when it was, by the clock here
	found    time.Time // when it was found
	from, to uint64
	without  time.Duration
	atMost   bool
	missed   bool
	first    bool // the new leader knew of none before it
	vague    bool // that somebody leads in this term is all that is known
	between  int  // how many other changes were in between, that nobody saw
	reported bool
	told     bool // with its cause
	etcd     *scene
}

// A Tracker follows one cluster through Looks, and says what is to be reported.
type Tracker struct {
	since  time.Time // changes before it are not reported; zero: those before the first look are not
	begun  bool
	names  map[uint64]string
	quiet  map[uint64]int  // looks in a row without an answer
	silent map[uint64]bool // it was reported
	none   bool            // that no member answers was reported

	changes []*change // by term
	leader  uint64    // the last that was known
	term    uint64
	ledAt   time.Time        // the last look at which the leader was known and answered to by a quorum
	last    map[uint64]*Seen // of each member the last answer
	records map[uint64]*Record
}

// NewTracker makes one. Since says from when on changes are reported that the first Look finds; zero:
// none of them.
func NewTracker(since time.Time) *Tracker {
	return &Tracker{
		since: since, names: map[uint64]string{}, quiet: map[uint64]int{}, silent: map[uint64]bool{},
		last: map[uint64]*Seen{}, records: map[uint64]*Record{},
	}
}

// Observe takes one Look, and returns what there is to report, the oldest first.
func (t *Tracker) Observe(l Look) (reports []Report) {
	reports = t.answers(l)
	belay := false
	for i := range l.Members {
		if m := &l.Members[i]; m.Name != "" {
			t.names[m.ID] = m.Name
		}
		if b := l.Members[i].Belay; b != nil {
			belay = true
			t.records[l.Members[i].ID] = b
		}
	}
	// etcd: what the old leader did before is compared with what it says now.
	for i := range l.Members {
		t.compare(&l.Members[i])
	}
	if belay || len(t.records) > 0 {
		t.fromRecords(l)
	} else {
		t.fromStatus(l)
	}
	for i := range l.Members {
		if m := &l.Members[i]; m.Err == "" {
			t.last[m.ID] = m
		}
	}
	if !t.begun && slices.ContainsFunc(l.Members, func(m Seen) bool { return m.Err == "" }) {
		t.begun = true
		for _, c := range t.changes {
			c.missed = true
			if t.since.IsZero() || c.vague || c.at.Before(t.since) {
				c.reported, c.told = true, true
			}
		}
	}
	for _, c := range t.changes {
		if r, ok := t.report(c, l.At); ok {
			reports = append(reports, r)
		}
	}
	if n := len(t.changes) - keptTerms; n > 0 {
		t.changes = slices.Delete(t.changes, 0, n)
	}
	return reports
}

// answers says who does not answer, and who does again.
func (t *Tracker) answers(l Look) (reports []Report) {
	answered := 0
	for i := range l.Members {
		m := &l.Members[i]
		name := cmp.Or(m.Name, t.name(m.ID))
		if m.Err == "" {
			answered++
			t.quiet[m.ID] = 0
			if t.silent[m.ID] {
				t.silent[m.ID] = false
				reports = append(reports, Report{Event: Answers, Time: l.At, Member: name})
			}
			continue
		}
		t.quiet[m.ID]++
		if t.quiet[m.ID] >= silentLooks && !t.silent[m.ID] {
			t.silent[m.ID] = true
			reports = append(reports, Report{Event: Silent, Time: l.At, Member: name, Evidence: []string{m.Err}})
		}
	}
	if answered > 0 {
		t.none = false
	} else if !t.none && (len(l.Members) == 0 || len(reports) > 0) {
		t.none = true
		reports = append(reports, Report{Event: Silent, Time: l.At})
	}
	return reports
}

func (t *Tracker) name(id uint64) string {
	if id == 0 {
		return ""
	}
	return cmp.Or(t.names[id], fmt.Sprintf("%x", id))
}

// add takes a change in, unless its term is known.
func (t *Tracker) add(c *change) *change {
	at, known := slices.BinarySearchFunc(t.changes, c.term, func(x *change, term uint64) int { return cmp.Compare(x.term, term) })
	if known {
		return t.changes[at]
	}
	t.changes = slices.Insert(t.changes, at, c)
	return c
}

// report is what there is to say of a change now.
func (t *Tracker) report(c *change, now time.Time) (r Report, ok bool) {
	if c.told {
		return r, false
	}
	r = Report{Event: LeaderChange, Time: c.at, From: t.name(c.from), To: t.name(c.to), Term: c.term, Without: c.without.Seconds(), AtMost: c.atMost, Missed: c.missed}
	why, decided := t.cause(c, now)
	waited := now.Sub(c.found)
	switch {
	case decided, c.etcd != nil && waited >= patience, c.missed && len(why.Cause) > 0:
		c.told = true
	case waited >= lateVerdict:
		c.told = true
		if c.reported {
			return r, false
		}
	case waited < patience || c.reported:
		return r, false
	default:
		why = Report{}
		if c.missed { // nobody makes a verdict any more
			c.told = true
			why = Report{Cause: NotTold, Tells: "the log of " + orNobody(r.To)}
		}
	}
	if c.reported {
		r.Event = LateVerdict
	}
	c.reported = true
	r.Member, r.Cause, r.Sure, r.Evidence, r.Advice, r.Tells = why.Member, why.Cause, why.Sure, why.Evidence, why.Advice, why.Tells
	if c.between > 0 {
		r.Evidence = append(r.Evidence, fmt.Sprintf("%d more changes of leader came and went between two looks", c.between))
	}
	return r, true
}

// cause is what is known of the cause of a change, in a Report's fields; decided: no more will be.
func (t *Tracker) cause(c *change, now time.Time) (why Report, decided bool) {
	if c.first {
		return Report{Cause: "first-leader", Sure: certain, Evidence: []string{"no leader was known before it"}}, true
	}
	if c.etcd != nil {
		return t.etcdCause(c, now)
	}
	return t.belayCause(c)
}

package follow

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/belaydb/belay/cli/doctor/live"
)

// A Record is what a member of Belay answers at /debug/belay/events, as far as it counts here
// (docs/operations.md, Incidents).
type Record struct {
	Member   string         `json:"member_id"`
	Name     string         `json:"name"`
	Now      string         `json:"now"` // by its own clock, as all times in it
	Leader   string         `json:"leader_id"`
	Term     uint64         `json:"term"`
	Verdicts []live.Verdict `json:"verdicts"`
	Events   []Event        `json:"events"`

	got time.Time // by the clock here
}

// An Event is one that a member recorded.
type Event struct {
	Kind string  `json:"kind"`
	Ago  float64 `json:"seconds_ago"`
	Took float64 `json:"took_seconds"`
	Peer string  `json:"peer"`
	Term uint64  `json:"term"`
	Note string  `json:"note"`
	Time string  `json:"time"`
}

// Of evidence's kinds of events and words, which are part of its format and do not change.
const (
	elected     = "elected"
	followed    = "followed"
	judged      = "judged"
	askedToLead = "asked to lead"
	nearMiss    = "near miss"
	unknown     = "unknown"
)

// admitted are the causes that the member itself has reported.
var admitted = []string{"transfer-requested", "member-stopped", "member-failed", "disk-error", "disk-full"}

func (r *Record) at(e *Event) time.Time {
	return r.got.Add(-time.Duration(e.Ago * float64(time.Second)))
}

func idOf(text string) uint64 {
	id, err := strconv.ParseUint(text, 16, 64)
	if err != nil {
		return 0
	}
	return id
}

// fromRecords finds changes in what the members recorded: the new leader's own event first, since it
// knows who led before and for how long nobody did, then those of who followed it.
func (t *Tracker) fromRecords(l Look) {
	for i := range l.Members {
		m := &l.Members[i]
		if m.Belay == nil {
			continue
		}
		for j := range m.Belay.Events {
			e := &m.Belay.Events[j]
			if e.Kind != elected || e.Term == 0 {
				continue
			}
			c := t.add(&change{term: e.Term, at: m.Belay.at(e), found: l.At})
			c.to, c.from, c.first, c.vague = m.ID, idOf(e.Peer), e.Peer == "", false
			c.without = 0
			if !strings.HasPrefix(e.Note, askedToLead) {
				c.without = time.Duration(e.Took * float64(time.Second))
			}
		}
	}
	for i := range l.Members {
		m := &l.Members[i]
		if m.Belay == nil {
			continue
		}
		for j := range m.Belay.Events {
			if e := &m.Belay.Events[j]; e.Kind == followed && e.Term > 0 && idOf(e.Peer) != 0 {
				// A member that follows the same leader in the same term again, after a restart, is
				// no change.
				t.add(&change{term: e.Term, at: m.Belay.at(e), found: l.At, to: idOf(e.Peer)}).vague = false
			}
		}
		// Should the events have been overwritten: a member says who leads now.
		if leader := idOf(m.Belay.Leader); leader != 0 && m.Belay.Term > 0 {
			t.add(&change{term: m.Belay.Term, at: l.At, found: l.At, to: leader, vague: true})
		}
	}
	// Who led before, where the new leader did not say.
	for i, c := range t.changes {
		if c.from == 0 && i > 0 {
			c.from = t.changes[i-1].to
		}
	}
}

// belayCause is the verdict that the new leader gave on its election.
func (t *Tracker) belayCause(c *change) (why Report, decided bool) {
	r := t.records[c.to]
	if r == nil {
		return why, false
	}
	began, ended := "", ""
	for i := range r.Events {
		switch e := &r.Events[i]; {
		case e.Kind == elected && e.Term == c.term:
			began = e.Time
		case e.Kind == elected && e.Term > c.term && ended == "":
			ended = e.Time
		}
	}
	if began == "" {
		return why, false
	}
	from, err := time.Parse(time.RFC3339, began)
	if err != nil {
		return why, false
	}
	until, err := time.Parse(time.RFC3339, ended)
	if err != nil {
		until = from.Add(lateVerdict)
	}
	within := func(text string) bool {
		at, err := time.Parse(time.RFC3339, text)
		return err == nil && !at.Before(from) && at.Before(until)
	}
	for _, v := range r.Verdicts {
		if within(v.Time) && !strings.HasPrefix(v.Incident, nearMiss) {
			return whyOf(&v), true
		}
	}
	// Of a life of its process before this one there is the event alone.
	for i := range r.Events {
		e := &r.Events[i]
		if e.Kind != judged || !within(e.Time) || strings.HasPrefix(e.Note, nearMiss) {
			continue
		}
		if v, ok := parseJudged(e.Note); ok {
			return whyOf(&v), true
		}
	}
	return why, false
}

// parseJudged reads "election: m1 leads, before it m2; cause partition; members m2; evidence; ...".
func parseJudged(note string) (v live.Verdict, ok bool) {
	incident, rest, ok1 := strings.Cut(note, "; cause ")
	cause, rest, ok2 := strings.Cut(rest, "; members ")
	if !ok1 || !ok2 {
		return v, false
	}
	members, evidence, _ := strings.Cut(rest, "; ")
	v = live.Verdict{Incident: incident, Cause: cause}
	if members != "" {
		v.Members = strings.Split(members, ", ")
	}
	if evidence != "" {
		v.Evidence = strings.Split(evidence, "; ")
	}
	return v, true
}

// whyOf is the verdict in a Report's fields.
func whyOf(v *live.Verdict) Report {
	r := Report{Member: strings.Join(v.Members, ", "), Cause: v.Cause, Sure: likely, Evidence: v.Evidence, Advice: v.Advice}
	if r.Member == "" {
		r.Member = strings.Join(v.Links, ", ")
	}
	switch {
	case v.Cause == unknown:
		r.Cause, r.Sure, r.Tells = NotTold, "", "/debug/belay/events of all members"
	case len(v.Missing) > 0:
		r.Sure = possible
		r.Evidence = append(slices.Clone(r.Evidence), strings.Join(v.Missing, ", ")+" did not answer, and its evidence could count")
	case slices.Contains(admitted, v.Cause):
		r.Sure = certain
	}
	return r
}

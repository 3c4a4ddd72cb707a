package evidence

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/belaydb/belay/command"
)

// IncidentKind is what happened to the leadership.
type IncidentKind string

const (
	Election         IncidentKind = "election"          // another leader, by an election timeout
	LeadershipPassed IncidentKind = "hand-over"         // another leader, because the old one asked it to lead
	NearMissOnly     IncidentKind = "near miss"         // the leader stayed
	FirstElection    IncidentKind = "the first leader"  // nobody led before: no verdict
	SameLeaderAgain  IncidentKind = "leader re-elected" // the same leader in a later term
)

// Testimony is what is known about one member.
type Testimony struct {
	ID     uint64
	Name   string
	Absent Absence // why it did not answer
	// Nameless: it has never published its name, which is the first thing that a member does.
	Nameless bool
	Events   []Event // At by the judge's clock; the oldest first
	Links    []LinkReport
}

// Incident is what needs a verdict.
type Incident struct {
	Kind           IncidentKind
	Began          time.Time
	Leader, Before uint64 // who leads, and who led before; 0: nobody known
	Members        []Testimony
}

// Verdict is the explanation of an incident.
type Verdict struct {
	Time     string   `json:"time"`
	Incident string   `json:"incident"`
	Cause    Cause    `json:"cause"`
	Members  []string `json:"members"` // names of the members at fault; empty: the links are
	Links    []string `json:"links,omitempty"`
	Evidence []string `json:"evidence"`
	Also     []string `json:"also,omitempty"` // what else was seen at the time
	Advice   string   `json:"advice"`
	// Missing are members that did not answer although their evidence could count.
	Missing []string `json:"missing,omitempty"`
}

const (
	// lookback: what ended longer ago before an incident has nothing to do with it.
	lookback = 6 * time.Second
	// aftermath: what began longer after an election did not cause it.
	aftermath = time.Second
	// certainty: a verdict of this weight does not wait for members to come back.
	certainty = 90
	// ofOldLeader is how much more the old leader's problems weigh than others' when it lost the
	// leadership.
	ofOldLeader = 40
	// alike: others with the same cause are named with the first if they weigh at most this much
	// less.
	alike = 20
)

// hearing is the state of Judge on its way to a verdict.
type hearing struct {
	in       Incident
	from, to time.Time // of events that count
}

// A finding is a cause with evidence.
type finding struct {
	member   uint64 // 0: the links alone
	cause    Cause
	weight   int
	links    []string
	evidence []string
}

// Judge looks for what explains an incident: it checks the evidence for every ground in the table
// of causes. It does no I/O and reads no clock.
func Judge(in Incident, now time.Time) Verdict {
	h := &hearing{in: in, from: in.Began.Add(-lookback), to: now}
	if in.Kind != NearMissOnly {
		h.to = in.Began.Add(aftermath)
	}
	found := h.findings()
	v := h.verdict(found)
	if len(found) == 0 || found[0].weight < certainty || v.Cause == CauseUnreachable {
		v.Missing = h.missing(v.Cause)
	}
	return v
}

// findings are all causes with evidence, the heaviest first.
func (h *hearing) findings() (found []finding) {
	for i := range h.in.Members {
		for about := range topicCount {
			if f := h.ofMember(about, &h.in.Members[i]); f != nil {
				found = append(found, *f)
			}
		}
	}
	for about := range topicCount {
		if f := h.ofLinks(about); f != nil {
			found = append(found, *f)
		}
	}
	for i := range found {
		f := &found[i]
		if h.in.Kind != NearMissOnly && f.member == h.in.Before && f.member != 0 && f.cause != CauseUnknown {
			f.weight += ofOldLeader
		}
	}
	slices.SortStableFunc(found, func(x, y finding) int { return cmp.Compare(y.weight, x.weight) })
	return found
}

// ofMember is the heaviest cause about one topic for which a member has evidence; nil: none.
func (h *hearing) ofMember(about topic, m *Testimony) (heaviest *finding) {
	for i := range causes {
		for j := range causes[i].grounds {
			g := &causes[i].grounds[j]
			if g.about != about || g.evidence == nil {
				continue
			}
			if weight := h.weigh(g, m); heaviest == nil || weight > heaviest.weight {
				if lines := g.evidence(h, m); lines != nil {
					heaviest = &finding{member: m.ID, cause: causes[i].cause, weight: weight, evidence: lines}
				}
			}
		}
	}
	return heaviest
}

// ofLinks is the cause about one topic for which the members' reports about each other are
// evidence; nil: none.
func (h *hearing) ofLinks(about topic) *finding {
	for i := range causes {
		for j := range causes[i].grounds {
			g := &causes[i].grounds[j]
			if g.about != about || g.links == nil {
				continue
			}
			if f := g.links(h); f != nil {
				f.cause, f.weight = causes[i].cause, g.weight
				return f
			}
		}
	}
	return nil
}

// weigh is the weight of a ground, which depends on whether it cost the member its leadership.
func (h *hearing) weigh(g *ground, m *Testimony) int {
	switch {
	case h.in.Kind == NearMissOnly || g.swing == 0:
		return g.weight
	case h.handOver(m, g.handOver) != nil:
		return g.weight + g.swing
	}
	return g.weight - g.swing
}

// verdict names the heaviest cause, with all members concerned, and lists the others.
func (h *hearing) verdict(found []finding) Verdict {
	v := Verdict{Incident: h.title(), Cause: CauseUnknown, Evidence: h.story()}
	var strange []string
	for _, f := range found {
		switch {
		case f.cause == CauseUnknown:
			strange = append(strange, f.evidence...)
		case v.Cause == CauseUnknown, f.cause == v.Cause && f.weight >= found[0].weight-alike:
			v.Cause = f.cause
			if f.member != 0 && !slices.Contains(v.Members, h.name(f.member)) {
				v.Members = append(v.Members, h.name(f.member))
			}
			v.Links = append(v.Links, f.links...)
			v.Evidence = append(v.Evidence, f.evidence...)
		default:
			v.Also = append(v.Also, fmt.Sprintf("%s: %s", f.cause, strings.Join(f.evidence, "; ")))
		}
	}
	if v.Cause == CauseUnknown {
		v.Evidence = append(append(v.Evidence, strange...), "nothing of what the members recorded explains it")
	}
	v.Advice = v.Cause.advice()
	return v
}

// missing are the members that did not answer although their evidence could decide.
func (h *hearing) missing(cause Cause) (names []string) {
	for _, m := range h.in.Members {
		if m.Absent == TimedOut &&
			(h.in.Kind == NearMissOnly || m.ID == h.in.Before || cause == CauseUnknown || cause == CauseUnreachable) {
			names = append(names, m.Name)
		}
	}
	return names
}

func (h *hearing) title() string {
	switch h.in.Kind {
	case Election:
		return fmt.Sprintf("election: %s leads, before it %s", h.name(h.in.Leader), h.name(h.in.Before))
	case LeadershipPassed:
		return fmt.Sprintf("hand-over: %s leads, before it %s", h.name(h.in.Leader), h.name(h.in.Before))
	case SameLeaderAgain:
		return fmt.Sprintf("election: %s leads again", h.name(h.in.Leader))
	}
	return fmt.Sprintf("near miss: %s leads on", h.name(h.in.Leader))
}

func (h *hearing) name(id uint64) string {
	if id == 0 {
		return "nobody"
	}
	for i := range h.in.Members {
		if h.in.Members[i].ID == id && h.in.Members[i].Name != "" {
			return h.in.Members[i].Name
		}
	}
	return command.IDText(id)
}

// story is how leadership moved, as both sides report it.
func (h *hearing) story() (lines []string) {
	if h.in.Kind == NearMissOnly {
		return nil
	}
	for i := range h.in.Members {
		m := &h.in.Members[i]
		for _, e := range m.Events {
			if !h.counts(&e) {
				continue
			}
			switch {
			case e.Kind == Elected && m.ID == h.in.Leader:
				lines = append(lines, fmt.Sprintf("%s was elected in term %d: %s", m.Name, e.Term, e.Note))
			case e.Kind == SteppedDown && m.ID == h.in.Before:
				lines = append(lines, fmt.Sprintf("%s stepped down: %s", m.Name, e.Note))
			}
		}
	}
	return lines
}

// span is how long an event lasted.
func span(e *Event) time.Duration { return max(e.Took, e.First) }

// counts reports whether an event is of the time of the incident.
func (h *hearing) counts(e *Event) bool { return h.countsUntil(e, 0) }

// countsUntil is counts for an event that may have been recorded this much later than what it
// describes.
func (h *hearing) countsUntil(e *Event, later time.Duration) bool {
	if e.Past && e.Kind != Failing && e.Kind != Stopping {
		return false // of a member's earlier life, only its end counts
	}
	return e.At.After(h.from) && e.At.Add(-span(e)).Before(h.to.Add(later))
}

// worst finds the longest event of some kinds that counts.
func (h *hearing) worst(m *Testimony, kinds ...Kind) *Event { return h.worstUntil(m, 0, kinds...) }

func (h *hearing) worstUntil(m *Testimony, later time.Duration, kinds ...Kind) (worst *Event) {
	for i := range m.Events {
		e := &m.Events[i]
		if slices.Contains(kinds, e.Kind) && h.countsUntil(e, later) && (worst == nil || span(e) > span(worst)) {
			worst = e
		}
	}
	return worst
}

func short(d time.Duration) string {
	switch {
	case d >= time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Microsecond).String()
}

package follow

import (
	"fmt"
	"strings"
	"time"

	"github.com/belaydb/belay/cli/doctor/metrics"
)

// Kinds of reports.
const (
	LeaderChange = "leader-change" // another leader, or the same one in a later term
	LateVerdict  = "verdict"       // the cause of a change that was reported without one
	Silent       = "silent"        // a member does not answer, or none does
	Answers      = "answers"       // it does again
)

// How sure a cause is; doctor's words.
const (
	certain  = "certain"
	likely   = "likely"
	possible = "possible"
)

// NotTold is the cause of a change that nothing explains.
const NotTold = "not-told"

// A Report is one thing that happened. Its JSON names do not change.
type Report struct {
	Event  string    `json:"event"`
	Time   time.Time `json:"time"` // by the clock here
	From   string    `json:"old_leader,omitempty"`
	To     string    `json:"new_leader,omitempty"`
	Term   uint64    `json:"term,omitempty"`
	Member string    `json:"member,omitempty"` // at fault, or silent; several are parted by ", "
	Cause  string    `json:"cause,omitempty"`
	Sure   string    `json:"sure,omitempty"` // certain, likely, possible; empty: the cause is not told
	// Without is how long there was no leader, seconds; AtMost: it was less, by as much as a look
	// takes. 0 and not AtMost: unknown, or leadership was handed over.
	Without  float64  `json:"without_leader_seconds,omitempty"`
	AtMost   bool     `json:"at_most,omitempty"`
	Evidence []string `json:"evidence,omitempty"`
	Advice   string   `json:"advice,omitempty"`
	Tells    string   `json:"would_tell,omitempty"` // which log would, if this does not
	Missed   bool     `json:"missed,omitempty"`     // it was before this process looked
	LeftOut  int      `json:"left_out,omitempty"`   // how many reports were not sent before it, by --at-most
}

// Line is the report for people, in one line.
func (r *Report) Line() string {
	at := r.Time.Format("2006-01-02 15:04:05 ")
	switch r.Event {
	case Silent, Answers:
		return at + r.Summary()
	case LateVerdict:
		return at + fmt.Sprintf("term %d: %s", r.Term, r.because())
	}
	line := at + fmt.Sprintf("%s -> %s, term %d, %s: %s", orNobody(r.From), orNobody(r.To), r.Term, r.gap(), r.because())
	if r.Missed {
		line += " (missed)"
	}
	return line
}

// Summary is the report in a sentence without its time.
func (r *Report) Summary() string {
	switch r.Event {
	case Silent:
		if r.Member == "" {
			return "no member answers; asking on"
		}
		return fmt.Sprintf("%s does not answer: %s", r.Member, strings.Join(r.Evidence, "; "))
	case Answers:
		return r.Member + " answers again"
	case LateVerdict:
		return fmt.Sprintf("Why %s leads in term %d and %s does not: %s", orNobody(r.To), r.Term, orNobody(r.From), r.because())
	}
	return fmt.Sprintf("%s leads in term %d, before it %s; %s; %s", orNobody(r.To), r.Term, orNobody(r.From), r.without(), r.because())
}

func (r *Report) without() string {
	switch {
	case r.Without > 0 && r.AtMost:
		return metrics.Seconds(r.Without) + " without a leader at most"
	case r.Without > 0:
		return metrics.Seconds(r.Without) + " without a leader"
	}
	return "no time without a leader measured"
}

// gap is without for a row of a terminal.
func (r *Report) gap() string {
	switch {
	case r.Without > 0 && r.AtMost:
		return "gap at most " + metrics.Seconds(r.Without)
	case r.Without > 0:
		return "gap " + metrics.Seconds(r.Without)
	}
	return "no gap"
}

func (r *Report) because() string {
	what := r.Cause
	switch {
	case r.Cause == "":
		return "the verdict is not there yet"
	case r.Cause == NotTold:
		what = "cause not to be told"
	case r.Sure != "":
		what += ", " + r.Sure
	}
	if r.Member != "" {
		what = r.Member + ": " + what
	}
	if r.Tells != "" && (r.Cause == NotTold || r.Sure == possible) {
		what += "; " + r.Tells + " would tell"
	}
	return what
}

func orNobody(name string) string {
	if name == "" {
		return "nobody"
	}
	return name
}

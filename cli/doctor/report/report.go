// Package report is the one form that all of doctor's answers have: findings, sorted by severity,
// with tables and pictures beside them, as text for a terminal, as JSON for scripts, or as one HTML
// page that can be sent, with its pictures inside and nothing fetched from elsewhere.
//
// Files: report.go (what a report holds, its exit code), text.go, json.go, html.go (its three
// forms), chart.go and png.go (bars).
package report

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Severity says how soon somebody has to act. Its order is that of a report.
type Severity string

const (
	Critical Severity = "critical" // requests fail or will soon, or data is at risk
	Warning  Severity = "warning"  // works, and should not stay so
	Unknown  Severity = "unknown"  // could not be looked at; what is missing is said
	Good     Severity = "good"     // looked at, and well
)

func (s Severity) rank() int {
	return slices.Index([]Severity{Critical, Warning, Unknown, Good}, s)
}

// Confidence says how sure a finding is of its cause. What was measured directly is certain; what
// explains all that was seen and nothing contradicts is likely; possible is one cause among others.
type Confidence string

const (
	Certain  Confidence = "certain"
	Likely   Confidence = "likely"
	Possible Confidence = "possible"
)

// A Finding is one thing that was found out.
type Finding struct {
	ID         string     `json:"id"` // stable, kebab case; the anchor of its section in docs/doctor.md
	Severity   Severity   `json:"severity"`
	Member     string     `json:"member,omitempty"` // the member it is about, by name where that is known; empty: the cluster
	What       string     `json:"what"`             // one sentence
	Evidence   []string   `json:"evidence,omitempty"`
	Why        string     `json:"why,omitempty"` // why it matters
	Do         []string   `json:"do,omitempty"`  // what to do, in this order
	Confidence Confidence `json:"confidence"`
}

// A Table is shown below the findings. All rows have as many cells as the header.
type Table struct {
	Title  string     `json:"title"`
	Header []string   `json:"header"`
	Rows   [][]string `json:"rows"`
	Notes  []string   `json:"notes,omitempty"` // below it, each a paragraph
	// Wide is set for a matrix, whose columns are parted where they are too many for a terminal.
	Wide bool `json:"-"`
}

// A Picture is an SVG document; it is only in the HTML form.
type Picture struct {
	Title string `json:"title"`
	SVG   string `json:"svg"`
}

// A Report is what one command of doctor prints.
type Report struct {
	Command  string    `json:"command"` // "doctor", "doctor logs", ...
	Subject  string    `json:"subject"` // what was looked at: endpoints, files
	At       time.Time `json:"at"`
	Summary  []string  `json:"summary,omitempty"` // before the findings, each a paragraph
	Findings []Finding `json:"findings"`
	Tables   []Table   `json:"tables,omitempty"`
	Charts   []Chart   `json:"charts,omitempty"` // below the tables; pictures in the HTML form
	Pictures []Picture `json:"-"`
	// Blind is set if nothing could be looked at, so that no finding is no good news.
	Blind bool `json:"blind,omitempty"`
	// Data is the command's own result in full, for scripts; nil: none.
	Data any `json:"data,omitempty"`
}

// Exit codes of doctor's commands.
const (
	CodeGood     = 0
	CodeWarning  = 1
	CodeCritical = 2
	CodeUnknown  = 3 // nothing that was found is bad, and not all could be looked at; or nothing could
	CodeUsage    = 4 // the command line is not understood
)

// ExitCode is that of the worst finding.
func (r *Report) ExitCode() int {
	worst := Good
	for _, f := range r.Findings {
		if f.Severity.rank() < worst.rank() {
			worst = f.Severity
		}
	}
	switch {
	case worst == Critical:
		return CodeCritical
	case r.Blind:
		return CodeUnknown
	case worst == Warning:
		return CodeWarning
	case worst == Unknown:
		return CodeUnknown
	}
	return CodeGood
}

// Sort puts the worst findings first, and keeps the order of those that are equally bad.
func (r *Report) Sort() {
	slices.SortStableFunc(r.Findings, func(a, b Finding) int { return cmp.Compare(a.Severity.rank(), b.Severity.rank()) })
}

// together is findings for people: of those that say the same of several members one is left, with
// the evidence of each. Scripts get them one by one.
func together(findings []Finding) (all []Finding) {
	same := func(a, b Finding) bool {
		return a.ID == b.ID && a.Severity == b.Severity && a.What == b.What && a.Why == b.Why && a.Confidence == b.Confidence && slices.Equal(a.Do, b.Do)
	}
	for n, f := range findings {
		if f.Member == "" || f.Severity == Good {
			all = append(all, f)
			continue
		}
		members := []string{}
		var evidence []string
		before := false
		for k, o := range findings {
			if o.Member == "" || !same(f, o) {
				continue
			}
			before = before || k < n
			members = append(members, o.Member)
			for _, e := range o.Evidence {
				evidence = append(evidence, o.Member+": "+e)
			}
		}
		switch {
		case len(members) == 1:
			all = append(all, f)
		case !before:
			f.Member, f.Evidence = "each of "+strings.Join(members, ", "), evidence
			all = append(all, f)
		}
	}
	return all
}

// Add appends a finding.
func (r *Report) Add(f Finding) { r.Findings = append(r.Findings, f) }

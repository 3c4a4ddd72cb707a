package logs

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/belaydb/belay/cli/doctor/report"
)

// Ask says what a report is to hold.
type Ask struct {
	Subject  string
	At       time.Time
	Incident int // only this one, with all its lines; 0: all
}

// maxRows is how long the timeline of a report is; that of one incident may be ten times as long.
const maxRows = 60

// why says what an incident does to clients.
func (i *incident) why() string {
	if i.changedLeader() {
		return "Without a leader no write and no linearizable read is answered; clients wait or fail until there is one."
	}
	return ""
}

// Judge makes the report. Collector is of no use after it.
func (c *Collector) Judge(ask Ask) (*report.Report, error) {
	c.assign()
	c.events = slices.DeleteFunc(c.events, func(e *Event) bool {
		return e.At.IsZero() || !c.o.Since.IsZero() && e.Last.Before(c.o.Since) || !c.o.Until.IsZero() && e.begins().After(c.o.Until)
	})
	byTime(c.events)
	found := incidents(c.events)
	streams := map[string][]*stream{}
	for _, e := range c.events {
		if e.Member != "" && !slices.Contains(streams[e.Member], e.stream) {
			streams[e.Member] = append(streams[e.Member], e.stream)
		}
	}
	members := c.members()
	for _, i := range found {
		ct := &court{incident: i, streams: streams, all: members}
		all := ct.judge()
		i.cause, i.also = all[0], all[1:]
	}

	r := &report.Report{Command: "doctor logs", Subject: ask.Subject, At: ask.At}
	if c.lines == c.unknown {
		r.Blind = true
		f := report.Finding{ID: "no-log", Severity: report.Unknown, Confidence: report.Certain, What: "No line of a log of etcd or Belay was found.", Evidence: c.incomplete,
			Do: []string{"give what the members write: `journalctl -u etcd -o json`, `kubectl logs POD --timestamps`, `docker logs NAME`, or the file of --log-outputs"}}
		switch {
		case c.lines > 0:
			f.Evidence = append(f.Evidence, fmt.Sprintf("%s in %s, none in a form that is known", count(c.lines, "line"), count(len(c.inputs), "input")))
		case len(c.incomplete) == 0:
			f.Evidence = append(f.Evidence, "there is nothing in "+or(strings.Join(c.inputNames(), ", "), "it"))
		}
		r.Add(f)
		return r, nil
	}
	if ask.Incident != 0 {
		if ask.Incident < 0 || ask.Incident > len(found) {
			return nil, fmt.Errorf("there is no incident %d: there are %d", ask.Incident, len(found))
		}
		found = found[ask.Incident-1 : ask.Incident]
	} else {
		r.Summary = c.summary(found, members)
	}
	for _, text := range c.incomplete {
		r.Add(report.Finding{ID: "log-incomplete", Severity: report.Unknown, Confidence: report.Certain, What: text + ".", Why: "What stands in the rest is not in this report.", Do: []string{"give it again, whole and readable"}})
	}
	for _, f := range findings(found) {
		r.Add(f)
	}
	if ask.Incident == 0 {
		for _, f := range recurring(found) {
			r.Add(f)
		}
	}
	failed := c.clients(found)
	if failed != nil && ask.Incident == 0 {
		r.Add(*failed)
	}
	if len(found) == 0 && len(members) > 0 {
		r.Add(report.Finding{ID: "quiet", Severity: report.Good, Confidence: report.Certain, What: "No incident in these logs."})
	} else if len(members) == 0 && failed == nil {
		r.Add(report.Finding{ID: "no-member", Severity: report.Unknown, Confidence: report.Certain, What: "No line here is of a member.", Do: []string{"add the logs of the members"}})
	}
	if timeline := c.timeline(found, ask.Incident != 0); len(timeline.Rows) > 0 {
		r.Tables = append(r.Tables, timeline)
	}
	if ask.Incident != 0 {
		r.Tables = append(r.Tables, found[0].quoted())
	} else if len(members) > 0 {
		r.Tables = append(r.Tables, c.memberTable(members))
	}
	r.Pictures = c.pictures(found, members)
	r.Data = dataOf(found)
	return r, nil
}

// clients is what clients' logs say of times at which no member's log tells of trouble; nil: nothing.
func (c *Collector) clients(found []*incident) *report.Finding {
	var alone []*Event
	for _, e := range c.events {
		if e.Kind == kindClient && !slices.ContainsFunc(found, func(i *incident) bool { return slices.Contains(i.events, e) }) {
			alone = append(alone, e)
		}
	}
	if len(alone) == 0 {
		return nil
	}
	last := alone[0].Last
	for _, e := range alone {
		if e.Last.After(last) {
			last = e.Last
		}
	}
	form := "2006-01-02 15:04:05"
	return &report.Finding{
		ID: "client-errors", Severity: report.Unknown, Confidence: report.Certain,
		What:     fmt.Sprintf("Clients' calls failed, %s from %s to %s UTC, and no member's log here tells why.", count(lines(alone), "line"), alone[0].At.UTC().Format(form), last.UTC().Format(form)),
		Evidence: quote(alone, 4),
		Why:      "What a client sees of a member that is slow, of one that is gone, and of the network between them is the same.",
		Do:       []string{"add the logs of all members of that time", "`belay doctor` asks the members as they are now"},
	}
}

func (c *Collector) inputNames() (all []string) {
	for _, in := range c.inputs[:min(len(c.inputs), 8)] {
		all = append(all, in.name)
	}
	return all
}

// members are all that lines are of, or that a change of leader names.
func (c *Collector) members() []string {
	set := map[string]bool{}
	for _, e := range c.events {
		if e.Member != "" && e.Kind != kindClient {
			set[e.Member] = true
		}
		for _, other := range []string{e.Peer, e.Leader} {
			if other != "" && e.Kind != kindClient {
				set[other] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(set))
}

func (c *Collector) summary(found []*incident, members []string) []string {
	var forms []string
	for _, f := range sortedKeys(c.forms) {
		forms = append(forms, fmt.Sprintf("%s (%d)", f, c.forms[f]))
	}
	text := fmt.Sprintf("%s in %s", count(c.lines, "line"), count(len(c.inputs), "input"))
	if len(forms) > 0 {
		text += ", read as " + strings.Join(forms[:min(len(forms), 6)], ", ")
	}
	if c.unknown > 0 {
		text += fmt.Sprintf("; %s not understood", was(c.unknown))
	}
	out := []string{text + "."}
	text = fmt.Sprintf("%s, %s.", count(len(members), "member"), count(len(found), "incident"))
	changes := 0
	for _, i := range found {
		if i.changedLeader() {
			changes++
		}
	}
	if changes > 0 {
		text = strings.TrimSuffix(text, ".") + fmt.Sprintf(", %d of them with a change of leader.", changes)
	}
	if len(found) > 0 {
		text += " `--incident N` shows one with all its lines."
	}
	return append(out, text)
}

func was(n int) string {
	if n == 1 {
		return "1 was"
	}
	return fmt.Sprintf("%d were", n)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// span is when an incident was.
func (i *incident) span() string {
	from, to := i.from.UTC(), i.to.UTC()
	text := from.Format("2006-01-02 15:04:05.000")
	switch {
	case to.Sub(from) < time.Second:
		return text
	case from.Format(time.DateOnly) == to.Format(time.DateOnly):
		return text + " to " + to.Format("15:04:05.000")
	}
	return text + " to " + to.Format("2006-01-02 15:04:05.000")
}

// maxAlike is how many incidents of one cause and one member are told of in full.
const maxAlike = 3

// findings are the incidents'. Of many that are alike the first are told of, and of the others which
// they are.
func findings(found []*incident) (all []report.Finding) {
	type kind struct{ id, member string }
	alike := map[kind][]*incident{}
	for _, i := range found[:min(len(found), maxIncidents)] {
		k := kind{i.cause.id, i.cause.member}
		alike[k] = append(alike[k], i)
	}
	last := map[*incident][]*incident{}
	for _, them := range alike {
		if len(them) > maxAlike+1 { // one more takes no more room than to say so
			last[them[maxAlike-1]] = them[maxAlike:]
			for _, i := range them[maxAlike:] {
				last[i] = nil
			}
		}
	}
	for n, i := range found {
		if n == maxIncidents {
			all = append(all, report.Finding{ID: "more-incidents", Severity: report.Unknown, Confidence: report.Certain, What: fmt.Sprintf("%d more incidents are not told of.", len(found)-n), Do: []string{"--since and --until choose a time"}})
			break
		}
		more, known := last[i]
		if known && more == nil {
			continue
		}
		f := i.finding()
		if len(more) > 0 {
			var numbers []string
			for _, m := range more[:min(len(more), 20)] {
				numbers = append(numbers, fmt.Sprint(m.number))
			}
			if len(more) > 20 {
				numbers = append(numbers, "...")
			}
			f.Evidence = append(f.Evidence, fmt.Sprintf("%d more are like it, to %s: incidents %s", len(more), more[len(more)-1].to.UTC().Format("2006-01-02 15:04:05"), strings.Join(numbers, ", ")))
		}
		all = append(all, f)
	}
	return all
}

func (i *incident) finding() report.Finding {
	v := i.cause
	f := report.Finding{
		ID: v.id, Severity: v.severity, Member: v.member, Confidence: v.confidence, Do: v.do,
		What: fmt.Sprintf("incident %d, %s: %s.", i.number, i.span(), v.what), Evidence: slices.Clone(v.evidence),
	}
	if v.severity != report.Good {
		f.Why = i.why()
	}
	if before, after, term := i.leaders(); i.changedLeader() {
		text := fmt.Sprintf("leader before: %s, after: %s", or(before, "not told"), or(after, "none that these lines tell"))
		if term > 0 {
			text += fmt.Sprintf(", term %d", term)
		}
		f.Evidence = append(f.Evidence, text)
	}
	var also []string
	seen := map[string]bool{v.id + v.member: true}
	for _, a := range i.also {
		if !seen[a.id+a.member] && a.weight >= 30 && a.severity != report.Good && len(also) < 3 {
			seen[a.id+a.member] = true
			also = append(also, fmt.Sprintf("%s (%s)", a.what, a.confidence))
		}
	}
	if len(also) > 0 {
		f.Evidence = append(f.Evidence, "also: "+strings.Join(also, "; "))
	}
	return f
}

// row is an event of the timeline; those that say the same at about the same time share one.
type row struct {
	*Event
	count int
	last  time.Time
	took  time.Duration
}

func (c *Collector) timeline(found []*incident, whole bool) report.Table {
	t := report.Table{Title: "Timeline", Header: []string{"time", "member", "event", "term", "leader"}, Rows: [][]string{}}
	var events []*Event
	in := map[*Event]bool{}
	for _, i := range found {
		events = append(events, i.events...)
		for _, e := range i.events {
			in[e] = true
		}
	}
	// Who led, and who began to run, belongs to it at all times.
	for _, e := range c.events {
		if !whole && !in[e] && slices.Contains([]Kind{kindStart, kindLeads, kindElected, kindStopped}, e.Kind) {
			events = append(events, e)
		}
	}
	byTime(events)
	var rows []*row
	open := map[string]*row{}
	for _, e := range events {
		if slices.Contains([]Kind{kindIgnored, kindAsked, kindHeard, kindOwnLate}, e.Kind) || e.Kind == kindElected && e.Leader == e.Member {
			continue
		}
		key := string(e.Kind) + e.Member + e.Peer + e.Leader
		if r := open[key]; r != nil && e.At.Sub(r.last) < 3*time.Second && (e.Kind.repeats() || e.Kind == kindTransfer || e.Kind == kindStart || e.Kind == kindDefrag) {
			r.count, r.last, r.took = r.count+e.Count, e.Last, max(r.took, e.Took)
			if e.Term > r.Term {
				same := *r.Event
				same.Term = e.Term
				r.Event = &same
			}
			continue
		}
		r := &row{Event: e, count: e.Count, last: e.Last, took: e.Took}
		open[key] = r
		rows = append(rows, r)
	}
	limit := maxRows
	if whole {
		limit *= 10
	}
	all := len(rows)
	// First what is no trouble by itself goes, then all that is not about who leads, latest first.
	for level := 2; len(rows) > limit && level <= 3; level++ {
		over := len(rows) - limit
		for n := len(rows) - 1; n >= 0 && over > 0; n-- {
			if r := rows[n]; r.trouble() < level && r.Kind != kindLeads && r.Kind != kindStart && r.Kind != kindElected && r.Kind != kindCampaign {
				rows[n], over = nil, over-1
			}
		}
		rows = slices.DeleteFunc(rows, func(r *row) bool { return r == nil })
	}
	rows = rows[:min(len(rows), limit)]
	if n := all - len(rows); n > 0 {
		t.Notes = append(t.Notes, fmt.Sprintf("%d rows are left out; --since, --until and --incident N choose a time.", n))
	}
	form := "15:04:05.000"
	if len(rows) > 0 {
		first, last := rows[0].At.UTC(), rows[len(rows)-1].At.UTC()
		if first.Format(time.DateOnly) == last.Format(time.DateOnly) {
			t.Title += ", " + first.Format(time.DateOnly) + " UTC"
		} else {
			form = "01-02 15:04:05.000"
			t.Title += fmt.Sprintf(", %s to %s UTC", first.Format(time.DateOnly), last.Format(time.DateOnly))
		}
	}
	for _, r := range rows {
		text := r.Text
		if r.Peer != "" {
			switch r.Kind {
			case kindConnLost, kindDropped, kindTransfer:
				text += " to " + r.Peer
			case kindElected:
				text += " (before: " + r.Peer + ")"
			default:
				text += " (" + r.Peer + ")"
			}
		}
		if r.took > 0 {
			text += ", " + show(r.took)
		}
		if r.count > 1 {
			text += fmt.Sprintf(" (%d×)", r.count)
		}
		term := ""
		if r.Term > 0 {
			term = fmt.Sprint(r.Term)
		}
		t.Rows = append(t.Rows, []string{r.At.UTC().Format(form), cut(or(r.Member, "?"), 16), text, term, cut(r.Leader, 16)})
	}
	if c.guessed {
		t.Notes = append(t.Notes, fmt.Sprintf("Some times name no zone and were read as %s; --zone says another.", zoneName(c.o.Zone)))
	}
	if c.noYear {
		t.Notes = append(t.Notes, "Some times have no year, or no date; it was taken from when the input was last written.")
	}
	if c.leftOut > 0 {
		t.Notes = append(t.Notes, fmt.Sprintf("%d lines that matter less are not counted: there were too many; --since and --until choose a time.", c.leftOut))
	}
	return t
}

// zoneName is how a zone is called; that of this machine has the name Local, which tells nothing.
func zoneName(zone *time.Location) string {
	if zone == time.Local {
		return "this machine's, " + time.Now().Format("MST")
	}
	return zone.String()
}

// quoted are an incident's lines as they were.
func (i *incident) quoted() report.Table {
	t := report.Table{Title: "Its lines", Header: []string{"time", "member", "line"}, Rows: [][]string{}}
	more := 0
	for _, e := range i.events {
		for n, text := range e.Lines {
			at := clock(e.At)
			if n > 0 {
				at = ""
			}
			t.Rows = append(t.Rows, []string{at, cut(or(e.Member, "?"), 16), text})
		}
		more += e.Count - len(e.Lines)
	}
	if more > 0 {
		t.Notes = append(t.Notes, fmt.Sprintf("%d lines that repeat these are not shown.", more))
	}
	return t
}

func (c *Collector) memberTable(members []string) report.Table {
	t := report.Table{Title: "Members and logs", Header: []string{"member", "id", "log", "from", "to"}, Rows: [][]string{}}
	id := map[string]string{}
	for _, e := range c.events {
		if e.own != "" && e.Member != "" {
			id[e.Member] = e.own
		}
	}
	form, days := "15:04:05", map[string]bool{}
	for _, s := range c.streams {
		for _, at := range []time.Time{s.first, s.last} {
			if !at.IsZero() {
				days[at.UTC().Format(time.DateOnly)] = true
			}
		}
	}
	if len(days) > 1 {
		form = "01-02 15:04:05"
	}
	for _, m := range members {
		seen := false
		done := map[*stream]bool{}
		for _, e := range c.events {
			if e.Member != m || done[e.stream] {
				continue
			}
			done[e.stream], seen = true, true
			if len(done) > 8 {
				break
			}
			t.Rows = append(t.Rows, []string{cut(m, 16), id[m], tail(e.stream.input, 32), e.stream.first.UTC().Format(form), e.stream.last.UTC().Format(form)})
		}
		if !seen {
			t.Rows = append(t.Rows, []string{cut(m, 16), id[m], "not at hand", "", ""})
		}
	}
	return t
}

// tail is the end of a path.
func tail(path string, limit int) string {
	if len(path) <= limit {
		return path
	}
	return "..." + strings.ToValidUTF8(path[len(path)-limit+3:], "")
}

// An Incident is one of Data.
type Incident struct {
	Number     int               `json:"number"`
	From       time.Time         `json:"from"`
	To         time.Time         `json:"to"`
	Cause      string            `json:"cause"`
	Member     string            `json:"member,omitempty"`
	Confidence report.Confidence `json:"confidence"`
	Before     string            `json:"leader_before,omitempty"`
	After      string            `json:"leader_after,omitempty"`
	Term       uint64            `json:"term,omitempty"`
	Changed    bool              `json:"leader_changed"`
	Also       []string          `json:"also,omitempty"`
	Events     []Told            `json:"events"`
}

// A Told is an event of an Incident.
type Told struct {
	Time   time.Time `json:"time"`
	Member string    `json:"member,omitempty"`
	Kind   Kind      `json:"kind"`
	Peer   string    `json:"peer,omitempty"`
	Leader string    `json:"leader,omitempty"`
	Term   uint64    `json:"term,omitempty"`
	Took   float64   `json:"took_seconds,omitempty"`
	Count  int       `json:"count"`
	Lines  []string  `json:"lines"`
}

// Result is the report's Data.
type Result struct {
	Incidents []Incident `json:"incidents"`
}

func dataOf(found []*incident) Result {
	out := Result{Incidents: []Incident{}}
	for _, i := range found[:min(len(found), maxIncidents)] {
		one := Incident{Number: i.number, From: i.from, To: i.to, Cause: i.cause.id, Member: i.cause.member, Confidence: i.cause.confidence, Changed: i.changedLeader(), Events: []Told{}}
		one.Before, one.After, one.Term = i.leaders()
		for _, a := range i.also {
			one.Also = append(one.Also, strings.TrimSpace(a.id+" "+a.member))
		}
		for _, e := range i.events[:min(len(i.events), 500)] {
			one.Events = append(one.Events, Told{e.At, e.Member, e.Kind, e.Peer, e.Leader, e.Term, e.Took.Seconds(), e.Count, e.Lines})
		}
		out.Incidents = append(out.Incidents, one)
	}
	return out
}

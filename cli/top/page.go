package top

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/belaydb/belay/cli/doctor/metrics"
	"github.com/belaydb/belay/internal/show"
	"github.com/belaydb/belay/usage"
)

// A View is what of a picture a page shows.
type View int

// The views. All has a part of each, as much as there is room for.
const (
	All View = iota
	Requests
	Usage
	Links
	Events
	views
)

func (v View) String() string {
	return [views]string{"all", "requests", "usage", "links", "events"}[v]
}

// A Choice is what the keys have chosen.
type Choice struct {
	View   View
	By     usage.Measure
	Of     usage.Kind // of view All
	Order  int        // of requests: by rate, by p99, by name
	Filter string     // names must hold it
	Offset int        // lines of the view that are scrolled away
	Paused bool
	Typing bool // the filter is being typed
	Help   bool
	Every  time.Duration
	Zone   *time.Location // of times; nil: local
	// Age is how old the picture is, where that is worth telling; 0: it is not.
	Age time.Duration
}

var orders = [...]string{"rate", "p99", "name"}

// page makes the lines of a picture, exactly height of them; with height 0, as many as there are.
func page(p *Picture, c Choice, width, height int) []line {
	width = max(width, 20)
	head := header(p, c, width)
	foot := footer(c, width)
	body, room := middle(p, c, width, height, len(head))
	if height == 0 {
		return append(head, body...)
	}
	if c.View != All || c.Help {
		body = body[min(c.Offset, max(0, len(body)-room)):]
	}
	if len(body) > room {
		body = body[:room]
	}
	for len(body) < room {
		body = append(body, line{})
	}
	return append(append(head, body...), foot)
}

// middle is what stands between the header, of so many lines, and the footer, not scrolled yet, and how
// many lines there is room for; 0: no bound.
func middle(p *Picture, c Choice, width, height, header int) (lines []line, room int) {
	if height > 0 {
		room = max(height-header-1, 1)
	}
	switch {
	case c.Help:
		lines = help()
	case p.Error != "" && len(p.Members) == 0:
		lines = []line{{fit(clean(p.Error), width), bad}}
	default:
		lines = sections(p, c, width, room)
	}
	return lines, room
}

// deepest is how many lines a page can be scrolled: then its last line is shown.
func deepest(p *Picture, c Choice, width, height int) int {
	width = max(width, 20)
	lines, room := middle(p, c, width, height, len(header(p, c, width)))
	if c.View == All && !c.Help {
		return 0
	}
	return max(0, len(lines)-room)
}

func header(p *Picture, c Choice, width int) []line {
	zone := c.Zone
	if zone == nil {
		zone = time.Local
	}
	leader, mark := "no leader", bad
	if p.Leader != "" {
		leader, mark = "leader "+p.Leader, plain
		if p.LeaderAge > 0 {
			age := span(p.LeaderAge)
			if p.LeaderAtLeast {
				age = "at least " + age
			}
			leader += " for " + age
		}
	}
	left := fmt.Sprintf("%s  term %d", leader, p.Term)
	if p.Changes >= 0 {
		left += fmt.Sprintf("  changes %d", p.Changes)
	}
	left += fmt.Sprintf("  rev %d", p.Revision)
	if len(p.Members) == 0 {
		left = "nobody answers"
	}
	state := p.At.In(zone).Format("15:04:05")
	if c.Paused {
		state += " PAUSED"
	}
	if c.Age >= 5*time.Second {
		state += fmt.Sprintf(" (%s old)", span(c.Age.Seconds()))
	}
	var rate, slow float64
	for _, r := range p.Requests {
		rate, slow = rate+r.Rate, slow+r.Slow
	}
	var watchers, slowWatchers int64
	for _, m := range p.Members {
		watchers, slowWatchers = watchers+m.Watchers, slowWatchers+m.Slow
	}
	second := fmt.Sprintf("%s req/s  slow %s  watchers %s (%s slow)", count(rate), count(slow), count(float64(watchers)), count(float64(slowWatchers)))
	if p.Over == 0 {
		second = fmt.Sprintf("watchers %s (%s slow)", count(float64(watchers)), count(float64(slowWatchers)))
	}
	if p.Leases >= 0 {
		second += fmt.Sprintf("  leases %s", count(float64(p.Leases)))
	}
	alarms := "  no alarm"
	tone2 := plain
	if len(p.Alarms) > 0 {
		alarms, tone2 = "  ALARM "+strings.Join(p.Alarms, ", "), bad
	}
	second += alarms
	return []line{{ends(clean(left), state, width), mark}, {fit(clean(second), width), tone2}}
}

// ends puts one text at the left and one at the right.
func ends(left, right string, width int) string {
	room := width - len(right) - gap
	if room < 10 {
		return fit(left, width)
	}
	return pad(left, room, false) + strings.Repeat(" ", gap) + right
}

func footer(c Choice, width int) line {
	if c.Typing {
		return line{fit("filter: "+clean(c.Filter)+"_   enter: keep it, esc: none", width), chosen}
	}
	text := fmt.Sprintf("1-%d %s  s %s  k %s  o %s  / filter  p pause  ? help  q quit", int(views), c.View, c.By, c.Of, orders[c.Order])
	if c.Filter != "" {
		text = "filter: " + clean(c.Filter) + "  " + text
	}
	return line{fit(text, width), chosen}
}

func help() (lines []line) {
	for _, l := range []string{
		"1 to 5, tab   view: all, requests, who uses it, links, events",
		"s             sort who uses it by requests, bytes, keys, churn",
		"k             in view 1: prefixes, clients, users, watches",
		"o             sort requests by rate, by p99, by name",
		"/             filter: names that hold a text; esc: all again",
		"up, down      scroll (also j, page up, page down)",
		"p, space      pause, and go on",
		"+ -           look more often, less often",
		"q, ctrl-c     quit",
		"",
		"behind: entries that are committed and not applied there",
		"fsync: of the raft log, p99 between two looks (since the start, if few)",
		"disk: healthy, slow (a sync takes 1 s), stalled, dead; Belay alone",
		"slow: requests that took half a second or more, between two looks",
		"churn: keys written or deleted; of a watch: how often it was created",
		"who uses it: over about a minute, from samples; Belay alone, root with users on",
	} {
		lines = append(lines, line{text: l})
	}
	return lines
}

// sections are the body of a page; room 0: no bound.
func sections(p *Picture, c Choice, width, room int) []line {
	switch c.View {
	case Requests:
		return requests(p, c, width)
	case Usage:
		var all []line
		for _, of := range []usage.Kind{usage.Prefix, usage.Client, usage.User, usage.Watch} {
			if part := shares(p, c, of, width); len(part) > 1 || of == usage.Prefix {
				all = append(all, part...)
			}
		}
		return all
	case Links:
		return links(p, width)
	case Events:
		return events(p, c, width)
	}
	m, r, u, l, e := members(p, width), requests(p, c, width), shares(p, c, c.Of, width), links(p, width), events(p, c, width)
	if room == 0 {
		var all []line
		for _, part := range [][]line{m, r, l, shares(p, c, usage.Prefix, width), shares(p, c, usage.Client, width), shares(p, c, usage.User, width), shares(p, c, usage.Watch, width), head(e, 21)} {
			if len(part) > 1 {
				all = append(append(all, part...), line{})
			}
		}
		return all[:max(0, len(all)-1)]
	}
	// The members come whole; what is left is shared: each part gets its least, and then a line at a
	// time until there is no more room.
	parts := [][]line{m, r, u, e}
	if room >= 34 {
		parts = [][]line{m, r, u, l, e}
	}
	if room >= 44 {
		more := usage.Client
		if c.Of == usage.Client {
			more = usage.Prefix
		}
		if part := shares(p, c, more, width); len(part) > 1 {
			parts = slices.Insert(parts, 3, part)
		}
	}
	spaced := room >= 30 // a line between the parts
	given := make([]int, len(parts))
	left := room
	for i, part := range parts {
		least := 3
		if i == 0 {
			least = len(part)
		}
		given[i] = min(len(part), least, max(left, 0))
		left -= given[i]
		if spaced && i > 0 {
			left--
		}
	}
	for grown := true; grown && left > 0; {
		grown = false
		for i, part := range parts {
			if left > 0 && given[i] < len(part) {
				given[i], left, grown = given[i]+1, left-1, true
			}
		}
	}
	var all []line
	for i, part := range parts {
		if spaced && i > 0 && given[i] > 0 {
			all = append(all, line{})
		}
		all = append(all, part[:given[i]]...)
	}
	return all
}

func head(lines []line, n int) []line { return lines[:min(n, len(lines))] }

func seconds(s float64) string {
	if s <= 0 {
		return "-"
	}
	return metrics.Seconds(s)
}

// span is a time in one or two units.
func span(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	case d >= time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%ds", int(d.Seconds()))
}

func members(p *Picture, width int) []line {
	worst := map[string]float64{}
	for _, l := range p.Links {
		worst[l.From] = max(worst[l.From], l.P99)
	}
	columns := []column{
		{title: "MEMBER"}, {title: "ROLE"}, {title: "UP", right: true, drop: 6}, {title: "KIND", drop: 8}, {title: "TERM", right: true, drop: 9},
		{title: "BEHIND", right: true, drop: 1}, {title: "SIZE", right: true}, {title: "QUOTA", right: true, drop: 2}, {title: "IN USE", right: true, drop: 7},
		{title: "DISK", drop: 1}, {title: "FSYNC p50", right: true, drop: 10}, {title: "FSYNC p99", right: true, drop: 1},
		{title: "RTT p99", right: true, drop: 3}, {title: "REQ/S", right: true}, {title: "WATCH", right: true, drop: 4},
		{title: "CPU", right: true, drop: 5}, {title: "MEM", right: true, drop: 5}, {title: "ENDPOINT", grow: true, drop: 11},
	}
	var rows []row
	for _, m := range p.Members {
		if m.Role == "down" {
			continue
		}
		quota := "-"
		switch {
		case m.Quota > 0:
			quota = fmt.Sprintf("%s %.0f%%", show.Bytes(m.Quota), 100*float64(m.Size)/float64(m.Quota))
		case m.Quota < 0:
			quota = "none"
		}
		rate, cpu := "-", "-"
		if p.Over > 0 {
			rate, cpu = count(m.Requests), fmt.Sprintf("%.0f%%", 100*m.CPU)
		}
		r := row{cells: []string{
			m.Name, m.Role, span(m.Uptime), m.Kind, fmt.Sprint(m.Term), count(float64(m.Behind)), show.Bytes(m.Size), quota, show.Bytes(m.InUse),
			cmp.Or(m.Disk, "-"), seconds(m.FsyncP50), seconds(m.FsyncP99), seconds(worst[m.Name]), rate, count(float64(m.Watchers)), cpu, show.Bytes(m.Memory), m.Endpoint,
		}}
		if m.Role == "no leader" || m.Disk != "" && m.Disk != "healthy" || m.Quota > 0 && m.Size > m.Quota*9/10 {
			r.tone = bad
		}
		rows = append(rows, r)
	}
	lines := grid(width, columns, rows)
	for _, m := range p.Members {
		if m.Role == "down" {
			lines = append(lines, line{fit(clean(fmt.Sprintf("%s  DOWN  %s  %s", m.Name, m.Error, m.Endpoint)), width), bad})
		} else if m.Error != "" {
			lines = append(lines, line{fit(clean(m.Name+": "+m.Error), width), bad})
		}
	}
	return lines
}

func holds(c Choice, texts ...string) bool {
	return c.Filter == "" || slices.ContainsFunc(texts, func(t string) bool {
		return strings.Contains(strings.ToLower(t), strings.ToLower(c.Filter))
	})
}

func requests(p *Picture, c Choice, width int) []line {
	columns := []column{
		{title: "REQUEST", grow: true}, {title: "RATE/s", right: true}, {title: "p50", right: true}, {title: "p99", right: true},
		{title: "FAILED/s", right: true, drop: 2}, {title: "SLOW", right: true, drop: 1},
	}
	list := slices.Clone(p.Requests)
	slices.SortStableFunc(list, func(a, b Request) int {
		switch c.Order {
		case 1:
			return cmp.Compare(b.P99, a.P99)
		case 2:
			return cmp.Compare(a.Kind, b.Kind)
		}
		return cmp.Or(cmp.Compare(b.Rate, a.Rate), cmp.Compare(a.Kind, b.Kind))
	})
	var rows []row
	for _, r := range list {
		if !holds(c, r.Kind) {
			continue
		}
		rate, failed, slow := count(r.Rate), count(r.Failed), count(r.Slow)
		if p.Over == 0 {
			rate, failed, slow = "-", "-", "-"
		}
		tone := plain
		if r.Slow > 0 {
			tone = bad
		}
		rows = append(rows, row{[]string{r.Kind, rate, seconds(r.P50), seconds(r.P99), failed, slow}, tone})
	}
	return grid(width, columns, rows)
}

// bar is a share as a bar of a few cells.
func bar(share float64, cells int) string {
	n := int(share*float64(cells) + 0.5)
	return strings.Repeat("#", min(max(n, 0), cells))
}

func shares(p *Picture, c Choice, of usage.Kind, width int) []line {
	titles := map[usage.Kind]string{usage.Prefix: "PREFIX", usage.Client: "CLIENT", usage.User: "USER", usage.Watch: "WATCH"}
	columns := []column{
		{title: titles[of], grow: true}, {title: "by " + c.By.String(), right: true}, {title: "per s", right: true}, {title: strings.Repeat(" ", 20), drop: 1},
	}
	var rows []row
	for _, s := range p.Usage {
		if s.Of != of.String() || s.By != c.By.String() || !holds(c, s.Name) {
			continue
		}
		rate := count(s.Rate)
		if c.By == usage.Bytes {
			rate = show.Bytes(int64(s.Rate))
		}
		rows = append(rows, row{cells: []string{s.Name, fmt.Sprintf("%.1f%%", 100*s.Share), rate, bar(s.Share, 20)}})
	}
	lines := grid(width, columns, rows)
	if len(rows) == 0 && of == c.Of || p.UsageNote != "" && of == usage.Prefix {
		note := cmp.Or(p.UsageNote, "nothing to tell")
		lines = append(lines, line{fit(clean(note), width), faint})
	}
	return lines
}

// links is the matrix of round trips.
func links(p *Picture, width int) []line {
	columns := []column{{title: "RTT p50/p99"}}
	for _, m := range p.Members {
		columns = append(columns, column{title: "to " + m.Name, right: true})
	}
	var rows []row
	if len(p.Links) == 0 {
		return grid(width, columns, nil)
	}
	for _, from := range p.Members {
		cells := []string{from.Name}
		for _, to := range p.Members {
			cell := "-"
			for _, l := range p.Links {
				if l.From == from.Name && l.To == to.Name {
					cell = seconds(l.P50) + "/" + seconds(l.P99)
				}
			}
			cells = append(cells, cell)
		}
		rows = append(rows, row{cells: cells})
	}
	return grid(width, columns, rows)
}

// weightOf is 0 for what says more than the rest and is no older than an hour.
func weightOf(e Event, now time.Time) int {
	if now.Sub(e.At) > time.Hour {
		return 1
	}
	if e.Bad || slices.Contains([]string{"up", "leader", "elected", "hand-over", "disk-stalled", "disk-dead", "disk-full", "store-stalled", "failing", "refusing"}, e.Kind) {
		return 0
	}
	return 1
}

func events(p *Picture, c Choice, width int) []line {
	columns := []column{{title: "AGO", right: true}, {title: "MEMBER"}, {title: "EVENT"}, {title: "", grow: true}}
	var rows []row
	list := p.Events
	if c.View == All {
		// There are but a few lines: what matters comes first.
		list = slices.Clone(list)
		slices.SortStableFunc(list, func(a, b Event) int { return cmp.Compare(weightOf(a, p.At), weightOf(b, p.At)) })
	}
	for _, e := range list {
		if !holds(c, e.Kind, e.Text, e.Member) {
			continue
		}
		tone := plain
		if e.Bad {
			tone = bad
		}
		rows = append(rows, row{[]string{span(max(0, p.At.Sub(e.At).Seconds())), e.Member, e.Kind, e.Text}, tone})
	}
	if len(rows) == 0 {
		return append(grid(width, columns, nil), line{"nothing has happened", faint})
	}
	return grid(width, columns, rows)
}

package neighbours

import (
	"fmt"
	"html"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/belaydb/belay/cli/doctor/report"
	"github.com/belaydb/belay/internal/show"
	"github.com/belaydb/belay/neighbours"
)

// shownWriters is how many the table has.
const shownWriters = 12

func summary(samples []neighbours.Sample, about About, l latency) []string {
	first, last := samples[0].Begin(), samples[len(samples)-1].At
	var disk neighbours.Disk
	for _, s := range samples {
		disk.Bytes, disk.Flushes, disk.Busy = disk.Bytes+s.Disk.Bytes, disk.Flushes+s.Disk.Flushes, disk.Busy+s.Disk.Busy
	}
	took := time.Duration(0)
	for _, s := range samples {
		took += s.Took
	}
	text := fmt.Sprintf("%s to %s, %d samples.", first.UTC().Format("2006-01-02 15:04:05"), last.UTC().Format("2006-01-02 15:04:05 MST"), len(samples))
	if about.Member != "" {
		text = about.Member + ". " + text
	}
	disks := fmt.Sprintf("The disk wrote %s with %d flushes, and had something to do in %.0f %% of the time (/proc/diskstats).", show.Bytes(disk.Bytes), disk.Flushes, 100*disk.Busy.Seconds()/max(took.Seconds(), 1e-9))
	if about.Disk != "" {
		disks = "Disk " + about.Disk + ": " + disks
	}
	if l.known() {
		disks += fmt.Sprintf(" Durable in %s as a rule, %s at most (%s).", seconds(l.usual), seconds(most(l.by)), l.source)
	}
	return []string{text, disks}
}

func writersTable(samples []neighbours.Sample, all []*series, about About) report.Table {
	t := report.Table{Title: "Who wrote", Header: []string{"who", "bytes", "a second", "most", "bursts", "in sync", "from"}}
	over := 0.0
	for _, s := range samples {
		over += s.Took.Seconds()
	}
	unplaced, dirtied := false, false
	for i, s := range all {
		if i >= shownWriters && !s.key.Own {
			continue
		}
		who := clip(s.key.String(), 30)
		switch {
		case s.key.Own:
			who += ", the member"
		case s.key.Elsewhere:
			who += ", other disk"
		case s.last.Unplaced:
			who, unplaced = who+" ?", true
		}
		dirtied = dirtied || s.last.From == neighbours.FromDirtied
		syncs := "-"
		if s.last.Looks > 0 {
			syncs = fmt.Sprintf("%d/%d", s.last.Syncs, s.last.Looks)
		}
		bursts := fmt.Sprint(len(s.bursts))
		if s.period > 0 {
			bursts += " every " + span(s.period)
		}
		t.Rows = append(t.Rows, []string{who, show.Bytes(s.last.Bytes), show.Bytes(int64(float64(s.last.Bytes) / over)), show.Bytes(int64(s.peak)), bursts, syncs, string(s.last.From)})
	}
	t.Notes = append(t.Notes, "syscalls: the lesser of wchar and write_bytes of /proc/PID/io, which is sockets, too, or too much by the size of folios; io.stat: what the disk was given for its cgroup (version 2), shared out among its processes; in sync: in how many looks a thread stood in fsync or the like. The kernel counts no syncs of a process.")
	if dirtied {
		t.Notes = append(t.Notes, "dirtied: write_bytes alone, for who writes through mappings or io_uring; it may be many times too much.")
	}
	if unplaced {
		t.Notes = append(t.Notes, "?: on which disk its files are could not be seen.")
	}
	return t
}

// maxBurstRows is how many bursts a table has, the last ones.
const maxBurstRows = 10

func (a *agreement) table(samples []neighbours.Sample, l latency) report.Table {
	t := report.Table{Title: "Bursts of " + clip(a.key.String(), 60), Header: []string{"UTC", "took", "bytes", "since the last", l.short() + " then", "before"}}
	for n, b := range a.bursts {
		since := "-"
		if n > 0 {
			since = span(b.begin.Sub(a.bursts[n-1].begin))
		}
		w := a.windows[n]
		earlier := 0
		if n > 0 {
			earlier = a.windows[n-1].to + 1
		}
		t.Rows = append(t.Rows, []string{
			b.begin.UTC().Format("01-02 15:04:05"), span(b.took), show.Bytes(b.bytes), since,
			seconds(l.within(samples, func(i int) bool { return w.from <= i && i <= w.to })),
			seconds(l.within(samples, func(i int) bool { return earlier <= i && i < w.from })),
		})
	}
	if cut := len(t.Rows) - maxBurstRows; cut > 0 {
		t.Rows = t.Rows[cut:]
		t.Notes = append(t.Notes, fmt.Sprintf("%d earlier ones are left out", cut))
	}
	return t
}

func clip(text string, most int) string {
	if utf8.RuneCountInString(text) <= most {
		return text
	}
	return string([]rune(text)[:most-1]) + "…"
}

// A row of the answer for scripts.
type writerData struct {
	Name           string  `json:"name"`
	Group          string  `json:"group,omitempty"`
	PID            int     `json:"pid,omitempty"`
	Own            bool    `json:"member,omitempty"`
	Elsewhere      bool    `json:"other_disk,omitempty"`
	Unplaced       bool    `json:"disk_unknown,omitempty"`
	Bytes          int64   `json:"bytes"`
	From           string  `json:"from"`
	Bursts         int     `json:"bursts"`
	BurstBytes     int64   `json:"burst_bytes,omitempty"`
	BurstSeconds   float64 `json:"burst_seconds,omitempty"`
	PeriodSeconds  float64 `json:"period_seconds,omitempty"`
	SyncLooks      int     `json:"looks"`
	SyncsSeen      int     `json:"looks_in_sync"`
	Blamed         bool    `json:"blamed,omitempty"`
	SlowBursts     int     `json:"slow_bursts,omitempty"`
	LatencyBefore  float64 `json:"latency_otherwise_seconds,omitempty"`
	LatencyInBurst float64 `json:"latency_in_bursts_seconds,omitempty"`
}

type data struct {
	From    time.Time    `json:"from"`
	To      time.Time    `json:"to"`
	Samples int          `json:"samples"`
	Latency string       `json:"latency_source"`
	Usual   float64      `json:"latency_usual_seconds,omitempty"`
	Most    float64      `json:"latency_most_seconds,omitempty"`
	Writers []writerData `json:"writers"`
}

func dataOf(samples []neighbours.Sample, all []*series, l latency, blamed []*agreement) data {
	d := data{From: samples[0].Begin().UTC(), To: samples[len(samples)-1].At.UTC(), Samples: len(samples), Latency: l.source, Most: most(l.by), Writers: []writerData{}}
	if l.known() {
		d.Usual = l.usual
	}
	for _, s := range all {
		w := writerData{
			Name: s.key.Name, Group: s.key.Group.String(), PID: s.last.PID, Own: s.key.Own, Elsewhere: s.key.Elsewhere, Unplaced: !s.key.Own && !s.key.Elsewhere && s.last.Unplaced,
			Bytes: s.last.Bytes, From: string(s.last.From), Bursts: len(s.bursts), BurstBytes: s.typical.bytes, BurstSeconds: s.typical.took.Seconds(),
			PeriodSeconds: s.period.Seconds(), SyncLooks: s.last.Looks, SyncsSeen: s.last.Syncs,
		}
		for _, a := range blamed {
			if a.series == s {
				w.Blamed, w.SlowBursts = true, a.slow
				if !math.IsNaN(a.before) {
					w.LatencyBefore = a.before
				}
				w.LatencyInBurst = a.in
			}
		}
		d.Writers = append(d.Writers, w)
	}
	return d
}

// Sizes of the picture, in its own units (pixels when it is shown as it is).
const (
	pictureWidth = 1000
	gutter       = 230
	laneHeight   = 46
	pictureTop   = 26
	maxLanes     = 6
	columns      = 500
)

// picture has a lane for each of the largest writers, and one for the latency, over the same time.
func picture(samples []neighbours.Sample, l latency, all []*series) (p report.Picture, ok bool) {
	first, last := samples[0].Begin(), samples[len(samples)-1].At
	over := last.Sub(first)
	if over <= 0 {
		return p, false
	}
	type lane struct {
		name, most, colour string
		values             []float64 // one for each column; a share of the highest
	}
	column := func(i int) int {
		return min(int(float64(columns)*float64(samples[i].At.Add(-samples[i].Took/2).Sub(first))/float64(over)), columns-1)
	}
	build := func(name, colour string, value func(i int) float64, text func(float64) string) lane {
		one := lane{name: name, colour: colour, values: make([]float64, columns)}
		highest := 0.0
		for i := range samples {
			if v := value(i); v > 0 { // NaN is not
				one.values[column(i)] = max(one.values[column(i)], v)
				highest = max(highest, v)
			}
		}
		one.most = "up to " + text(highest)
		for i := range one.values {
			one.values[i] /= max(highest, 1e-12)
		}
		return one
	}
	lanes := []lane{build(l.short(), "#c62828", func(i int) float64 { return l.by[i] }, seconds)}
	lanes = append(lanes, build("the disk", "#555555", func(i int) float64 { return float64(samples[i].Disk.Bytes) / samples[i].Took.Seconds() }, rate))
	for _, s := range all {
		if len(lanes) == maxLanes+2 {
			break
		}
		if s.key.Elsewhere {
			continue
		}
		colour := "#2b6cb0"
		if s.key.Own {
			colour = "#2f855a"
		}
		lanes = append(lanes, build(s.key.String(), colour, func(i int) float64 { return float64(s.bytes[i]) / samples[i].Took.Seconds() }, rate))
	}
	height := pictureTop + laneHeight*len(lanes) + 10
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="11"><rect width="100%%" height="100%%" fill="#fff"/>`, pictureWidth, height)
	for i := range 6 {
		x := gutter + (pictureWidth-gutter-40)*i/5
		at := first.Add(over * time.Duration(i) / 5).UTC()
		fmt.Fprintf(&b, `<line x1="%d" x2="%[1]d" y1="%d" y2="%d" stroke="#ddd"/><text x="%[1]d" y="16" text-anchor="middle" fill="#555">%[4]s</text>`, x, pictureTop-6, height-8, at.Format("15:04:05"))
	}
	wide := float64(pictureWidth-gutter-40) / columns
	for n, one := range lanes {
		base := pictureTop + laneHeight*(n+1) - 6
		fmt.Fprintf(&b, `<text x="8" y="%d" fill="#222">%s</text><text x="8" y="%d" fill="#777">%s</text><line x1="%d" x2="%d" y1="%d" y2="%[7]d" stroke="#bbb"/>`,
			base-18, html.EscapeString(clip(one.name, 36)), base-4, html.EscapeString(one.most), gutter, pictureWidth-40, base)
		for i, v := range one.values {
			if v > 0 {
				tall := max(1, v*(laneHeight-10))
				fmt.Fprintf(&b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`, gutter+float64(i)*wide, float64(base)-tall, max(wide, 1), tall, one.colour)
			}
		}
	}
	b.WriteString("</svg>")
	return report.Picture{Title: "Latency and writers over time, UTC", SVG: b.String()}, true
}

func rate(v float64) string { return show.Bytes(int64(v)) + "/s" }

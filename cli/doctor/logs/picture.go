package logs

import (
	"fmt"
	"html"
	"slices"
	"strings"
	"time"

	"github.com/belaydb/belay/cli/doctor/report"
)

// Sizes of a picture, in its own units (pixels when it is shown as it is).
const (
	pictureWidth = 1000
	gutter       = 130 // names
	laneHeight   = 44
	topSpace     = 30
	maxLanes     = 15
	maxMarks     = 4000
	maxPictures  = 6
)

// pictures are one of all the time, if there are several incidents, and one of each of the first
// incidents.
func (c *Collector) pictures(found []*incident, members []string) []report.Picture {
	lanes := slices.DeleteFunc(slices.Clone(members), func(m string) bool {
		return !slices.ContainsFunc(c.events, func(e *Event) bool { return e.Member == m || e.Leader == m })
	})
	if len(lanes) == 0 || len(lanes) > maxLanes || len(found) == 0 {
		return nil
	}
	var out []report.Picture
	if len(found) > 1 {
		out = append(out, report.Picture{
			Title: fmt.Sprintf("All %d incidents", len(found)),
			SVG:   c.draw(lanes, found[0].from, found[len(found)-1].to),
		})
	}
	for _, i := range found {
		if len(out) == maxPictures {
			break
		}
		out = append(out, report.Picture{Title: fmt.Sprintf("Incident %d, %s", i.number, i.span()), SVG: c.draw(lanes, i.from, i.to)})
	}
	return out
}

// A reign is who led from when on.
type reign struct {
	from   time.Time
	leader string
	term   uint64
}

// reigns are who led, by time. The first that says so counts; a leader that others have lost leads
// until then.
func (c *Collector) reigns() []reign {
	var out []reign
	var term uint64
	for _, e := range c.events {
		switch {
		case (e.Kind == kindLeads || e.Kind == kindElected) && e.Leader != "" && e.Term > term:
			// Who led before the first line does so until now.
			if len(out) == 0 && e.Peer != "" && e.Peer != e.Leader {
				out = append(out, reign{leader: e.Peer})
			}
			term = e.Term
			out = append(out, reign{e.At, e.Leader, e.Term})
		case e.Kind == kindLost && len(out) == 0:
			out = append(out, reign{leader: e.Peer, term: 0})
			fallthrough
		case e.Kind == kindLost && len(out) > 0 && out[len(out)-1].leader == e.Peer && e.Term >= term:
			term = max(term, e.Term-min(e.Term, 1))
			out = append(out, reign{from: e.At})
		}
	}
	return out
}

// draw makes a picture of a time, with some of the time around it.
func (c *Collector) draw(lanes []string, from, to time.Time) string {
	around := max(to.Sub(from)/12, time.Second)
	from, to = from.Add(-around), to.Add(around)
	height := topSpace + laneHeight*len(lanes) + 64
	x := func(t time.Time) float64 {
		f := float64(t.Sub(from)) / float64(to.Sub(from))
		return gutter + min(max(f, 0), 1)*(pictureWidth-gutter-10)
	}
	y := func(member string) float64 { return topSpace + laneHeight*float64(slices.Index(lanes, member)) }
	inside := func(t time.Time) bool { return !t.Before(from) && !t.After(to) }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="12">`, pictureWidth, height, pictureWidth, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`, pictureWidth, height)
	bar := func(member string, t0, t1 time.Time, top, thick float64, fill, title string) {
		if slices.Index(lanes, member) < 0 || t1.Before(from) || t0.After(to) {
			return
		}
		fmt.Fprintf(&b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"><title>%s</title></rect>`, x(t0), y(member)+top, max(x(t1)-x(t0), 2), thick, fill, html.EscapeString(title))
	}
	// Lanes and time.
	step := axisStep(to.Sub(from))
	form := "15:04:05"
	if step < time.Second {
		form = "15:04:05.0"
	} else if step >= 12*time.Hour {
		form = "01-02 15:04"
	}
	for t := from.Truncate(step).Add(step); x(t) < pictureWidth-35; t = t.Add(step) { // the last label has room
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#ddd"/><text x="%.1f" y="18" text-anchor="middle" fill="#555">%s</text>`, x(t), topSpace-6, x(t), topSpace+laneHeight*len(lanes), x(t), t.UTC().Format(form))
	}
	for _, m := range lanes {
		fmt.Fprintf(&b, `<rect x="%d" y="%.1f" width="%d" height="%d" fill="#f0f0f0"/><text x="8" y="%.1f" fill="#000">%s</text>`, gutter, y(m)+4, pictureWidth-gutter-10, laneHeight-8, y(m)+laneHeight/2+4, html.EscapeString(cut(m, 18)))
	}
	// Who led.
	reigns := c.reigns()
	for n, r := range reigns {
		end := to
		if n+1 < len(reigns) {
			end = reigns[n+1].from
		}
		if r.leader == "" || !r.from.Before(end) {
			continue
		}
		title := r.leader + " leads"
		if r.term > 0 {
			title += fmt.Sprintf(", term %d", r.term)
		}
		bar(r.leader, r.from, end, 4, laneHeight-8, "#a5d6a7", title)
		if r.term > 0 && slices.Contains(lanes, r.leader) && end.After(from) && r.from.Before(to) && x(end)-x(r.from) > 50 {
			fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" fill="#1b5e20" font-size="11">term %d</text>`, x(r.from)+4, y(r.leader)+16, r.term)
		}
	}
	// Down: from the first word of its end to the start.
	for n, e := range c.events {
		if e.Kind != kindStart || !e.again {
			continue
		}
		gone := e.At
		for _, o := range slices.Backward(c.events[:n]) {
			if e.At.Sub(o.At) > longest || o.Member == e.Member && (o.Kind == kindStart || o.Kind == kindLeads || o.Kind == kindElected) && gone.Before(e.At) {
				break
			}
			ended := o.Member == e.Member && slices.Contains([]Kind{kindSignal, kindPanic, kindKilled, kindOOM, kindDiskFull, kindStopped}, o.Kind)
			if ended || o.Peer == e.Member && o.Member != e.Member && slices.Contains([]string{"closed", "refused"}, errorSort(o)) && (o.Kind == kindConnLost || o.Kind == kindInactive || o.Kind == kindProbe) {
				gone = o.At
			}
		}
		bar(e.Member, gone, e.At, 4, laneHeight-8, "#616161", e.Member+" was down")
	}
	// What took long, and what was lost.
	marks := 0
	for _, e := range c.events {
		if !inside(e.At) && !inside(e.Last) && !inside(e.begins()) || !slices.Contains(lanes, e.Member) {
			continue
		}
		if marks++; marks > maxMarks {
			break
		}
		title := fmt.Sprintf("%s %s: %s", clock(e.At), e.Member, cut(e.Lines[0], 160))
		top := y(e.Member)
		switch e.Kind {
		case kindSync, kindDiskBad:
			bar(e.Member, e.begins(), e.Last, 22, 8, "#e65100", title)
		case kindLate, kindLateCPU:
			bar(e.Member, e.begins(), e.Last, 31, 7, "#c62828", title)
		case kindApply, kindRequest, kindReadIndex, kindDefrag, kindCompact:
			bar(e.Member, e.begins(), e.Last, 16, 5, "#7b1fa2", title)
		case kindConnLost, kindInactive, kindProbe, kindDropped:
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3" fill="#1565c0"><title>%s</title></circle>`, x(e.At), top+35, html.EscapeString(title))
		case kindLost, kindDown:
			fmt.Fprintf(&b, `<path d="M%.1f %.1fl8 8m0 -8l-8 8" stroke="#b71c1c" stroke-width="2" fill="none"><title>%s</title></path>`, x(e.At)-4, top+8, html.EscapeString(title))
		case kindCampaign:
			fmt.Fprintf(&b, `<path d="M%.1f %.1fl5 9h-10z" fill="#f9a825"><title>%s</title></path>`, x(e.At), top+22, html.EscapeString(title))
		case kindStart:
			fmt.Fprintf(&b, `<path d="M%.1f %.1fv%d" stroke="#000" stroke-width="2"><title>%s</title></path>`, x(e.At), top+4, laneHeight-8, html.EscapeString(title))
		case kindSignal, kindPanic, kindKilled, kindOOM, kindDiskFull, kindNoSpace:
			fmt.Fprintf(&b, `<rect x="%.1f" y="%.1f" width="8" height="8" fill="#000"><title>%s</title></rect>`, x(e.At)-4, top+8, html.EscapeString(title))
		}
	}
	legend(&b, topSpace+laneHeight*len(lanes)+18)
	b.WriteString(`</svg>`)
	return b.String()
}

// legend says what signs mean, in two rows.
func legend(b *strings.Builder, top int) {
	for n, sign := range []struct{ mark, text string }{
		{`<rect x="0" y="-9" width="14" height="10" fill="#a5d6a7"/>`, "leads"},
		{`<rect x="0" y="-9" width="14" height="10" fill="#616161"/>`, "down"},
		{`<rect x="0" y="-8" width="14" height="8" fill="#e65100"/>`, "fsync, disk"},
		{`<rect x="0" y="-8" width="14" height="7" fill="#c62828"/>`, "heartbeats late"},
		{`<rect x="0" y="-7" width="14" height="5" fill="#7b1fa2"/>`, "slow request, defragmentation"},
		{`<circle cx="7" cy="-4" r="3" fill="#1565c0"/>`, "lost a peer"},
		{`<path d="M3 -8l8 8m0 -8l-8 8" stroke="#b71c1c" stroke-width="2"/>`, "lost its leader"},
		{`<path d="M7 -9l5 9h-10z" fill="#f9a825"/>`, "starts an election"},
		{`<path d="M7 -9v10" stroke="#000" stroke-width="2"/>`, "started"},
		{`<rect x="3" y="-8" width="8" height="8" fill="#000"/>`, "ended, or no space"},
	} {
		fmt.Fprintf(b, `<g transform="translate(%d %d)">%s<text x="20" y="0" fill="#333" font-size="11">%s</text></g>`, gutter+n%5*170, top+n/5*20, sign.mark, sign.text)
	}
}

// axisStep is the time between two lines of the axis: at most nine of them.
func axisStep(span time.Duration) time.Duration {
	for _, step := range []time.Duration{
		100 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second,
		time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 30 * time.Minute, time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour,
	} {
		if span <= 9*step {
			return step
		}
	}
	days := int64(span/(9*24*time.Hour)) + 1
	return time.Duration(days) * 24 * time.Hour
}

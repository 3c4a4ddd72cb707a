package report

import (
	"bytes"
	"fmt"
	"html"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A Chart is bars, one for each of a few ranges.
type Chart struct {
	Title string `json:"title"`
	Bars  []Bar  `json:"bars"`
	Note  string `json:"note,omitempty"`
}

// A Bar is one of a chart's.
type Bar struct {
	Label string  `json:"label"`
	Value float64 `json:"value"`
	Marks string  `json:"mark,omitempty"` // what is said behind its value
}

// text draws bars of at most the columns that are left.
func (c Chart) text(b *bytes.Buffer, width int) {
	wrap(b, width, "", "  ", c.Title)
	label, most, all := 0, 0.0, 0.0
	for _, bar := range c.Bars {
		label = max(label, utf8.RuneCountInString(printable(bar.Label)))
		most, all = max(most, bar.Value), all+bar.Value
	}
	room := max(width-label-30, 10)
	for _, bar := range c.Bars {
		name := printable(bar.Label)
		long := 0
		if most > 0 && bar.Value > 0 {
			long = max(1, int(bar.Value/most*float64(room)+0.5))
		}
		line := fmt.Sprintf("  %s%s %s%s %5.1f %%", strings.Repeat(" ", label-utf8.RuneCountInString(name)), name, strings.Repeat("█", long), strings.Repeat(" ", room-long), 100*bar.Value/max(all, 1))
		if bar.Marks != "" {
			line += "  " + printable(bar.Marks)
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	if c.Note != "" {
		wrap(b, width, "  ", "  ", c.Note)
	}
}

// SVG is the chart as a picture. It is drawn here: most plotting libraries of Go load their fonts at
// the start of every process that has them inside, and `belay server` is this program, too (7 MB of
// memory, 10 MB of binary). The one of cli/bench loads them when it draws.
func (c Chart) SVG() string {
	const step, width, height, top, below = 26, 18, 200, 40, 70
	most := 0.0
	for _, bar := range c.Bars {
		most = max(most, bar.Value)
	}
	wide := max(60+step*len(c.Bars)+20, 420)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="11">`, wide, top+height+below)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/><text x="10" y="20">%s</text>`, html.EscapeString(printable(c.Title)))
	for i := range 5 { // lines of the scale
		y := top + height - height*i/4
		fmt.Fprintf(&b, `<line x1="55" x2="%d" y1="%d" y2="%[2]d" stroke="#ddd"/><text x="50" y="%d" text-anchor="end" fill="#555">%s</text>`, wide-10, y, y+4, strconv.FormatFloat(most*float64(i)/4, 'f', -1, 32))
	}
	for i, bar := range c.Bars {
		x, tall := 60+step*i, 0.0
		if most > 0 {
			tall = bar.Value / most * height
		}
		if bar.Value > 0 {
			tall = max(tall, 1)
		}
		label := html.EscapeString(printable(strings.TrimSpace(bar.Label + " " + bar.Marks)))
		colour := "#2b6cb0"
		if bar.Marks != "" {
			colour = "#c05621"
		}
		fmt.Fprintf(&b, `<rect x="%d" y="%.1f" width="%d" height="%.1f" fill="%s"><title>%s: %g</title></rect>`, x, float64(top+height)-tall, width, tall, colour, label, bar.Value)
		fmt.Fprintf(&b, `<text transform="translate(%d %d) rotate(55)" fill="#333">%s</text>`, x+4, top+height+12, label)
	}
	b.WriteString("</svg>")
	return b.String()
}

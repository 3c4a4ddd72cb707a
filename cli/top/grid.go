package top

import (
	"strings"
	"unicode"

	"github.com/charmbracelet/x/ansi"
)

// A tone is how a line looks where there are colours.
type tone int

const (
	plain tone = iota
	heading
	faint
	bad
	chosen
)

// A line is one of a page; its text has no control characters and is not wider than the page.
type line struct {
	text string
	tone tone
}

// column is one of a grid.
type column struct {
	title string
	right bool // numbers
	grow  bool // takes what is left of the width; one column of a grid
	// drop says which columns are left out first where there is no room: the largest first; 0: never.
	drop int
}

// row is one of a grid, a cell for each column.
type row struct {
	cells []string
	tone  tone
}

// clean makes any text safe for a terminal: what a member or a client has named stays one line
// without commands.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t':
			return ' '
		case r == unicode.ReplacementChar, unicode.IsPrint(r):
			return r
		}
		return '\uFFFD'
	}, text)
}

// fit cuts a text to a width, with a mark where something is missing.
func fit(text string, width int) string {
	if width <= 0 {
		return ""
	}
	return ansi.Truncate(text, width, "…")
}

// pad fills a cell up to a width.
func pad(text string, width int, right bool) string {
	text = fit(text, width)
	space := strings.Repeat(" ", max(0, width-ansi.StringWidth(text)))
	if right {
		return space + text
	}
	return text + space
}

// gap is between two columns.
const gap = 2

// grid makes lines of rows, the titles first.
func grid(width int, columns []column, rows []row) []line {
	widths := make([]int, len(columns))
	for i, c := range columns {
		widths[i] = ansi.StringWidth(c.title)
	}
	for r := range rows {
		for i := range rows[r].cells {
			rows[r].cells[i] = clean(rows[r].cells[i])
			if i < len(widths) {
				widths[i] = max(widths[i], ansi.StringWidth(rows[r].cells[i]))
			}
		}
	}
	shown := make([]bool, len(columns))
	for i := range columns {
		shown[i] = true
	}
	// least is what the columns need; one that grows needs little.
	least := func() (sum int) {
		for i, c := range columns {
			switch {
			case !shown[i]:
			case c.grow:
				sum += min(widths[i], 16) + gap
			default:
				sum += widths[i] + gap
			}
		}
		return sum - gap
	}
	for least() > width {
		worst := -1
		for i, c := range columns {
			if shown[i] && c.drop > 0 && (worst < 0 || c.drop > columns[worst].drop) {
				worst = i
			}
		}
		if worst < 0 {
			break
		}
		shown[worst] = false
	}
	fixed := 0
	for i, c := range columns {
		if shown[i] && !c.grow {
			fixed += widths[i] + gap
		}
	}
	for i, c := range columns {
		if c.grow {
			widths[i] = min(widths[i], max(width-fixed, 8))
		}
	}
	text := func(cell func(i int) string) string {
		var b strings.Builder
		for i, c := range columns {
			if !shown[i] {
				continue
			}
			if b.Len() > 0 {
				b.WriteString(strings.Repeat(" ", gap))
			}
			b.WriteString(pad(cell(i), widths[i], c.right))
		}
		return fit(strings.TrimRight(b.String(), " "), width)
	}
	lines := []line{{text(func(i int) string { return columns[i].title }), heading}}
	for _, r := range rows {
		lines = append(lines, line{text(func(i int) string {
			if i < len(r.cells) {
				return r.cells[i]
			}
			return ""
		}), r.tone})
	}
	return lines
}

package show

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// Table draws rows in a box, the first row as the header: upper case and centred, the others to the
// right. A table without data has no line below its header, as in etcdctl.
//
//	┌────┬───────┐
//	│ ID │ NAME  │
//	├────┼───────┤
//	│  1 │ infra │
//	└────┴───────┘
func Table(w *bytes.Buffer, rows [][]string) {
	header := make([]string, len(rows[0]))
	for i, name := range rows[0] {
		header[i] = strings.ToUpper(strings.ReplaceAll(name, "_", " "))
	}
	width := make([]int, len(header))
	for i, name := range header {
		width[i] = utf8.RuneCountInString(name)
	}
	for _, row := range rows[1:] {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}

	rule := func(left, middle, right string) {
		parts := make([]string, len(width))
		for i, n := range width {
			parts[i] = strings.Repeat("─", n+2)
		}
		w.WriteString(left + strings.Join(parts, middle) + right + "\n")
	}
	line := func(cells []string, before func(spare int) int) {
		for i, cell := range cells {
			spare := width[i] - utf8.RuneCountInString(cell)
			left := before(spare)
			w.WriteString("│ " + strings.Repeat(" ", left) + cell + strings.Repeat(" ", spare-left) + " ")
		}
		w.WriteString("│\n")
	}

	rule("┌", "┬", "┐")
	line(header, func(spare int) int { return spare / 2 })
	if len(rows) > 1 {
		rule("├", "┼", "┤")
	}
	for _, row := range rows[1:] {
		line(row, func(spare int) int { return spare })
	}
	rule("└", "┴", "┘")
}

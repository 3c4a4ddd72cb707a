package report

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Style is how text is laid out.
type Style struct {
	Width  int  // columns; 0: 80
	Colour bool // ANSI colours for severities
}

// Text writes the report for people. Lines are at most style.Width wide, but for tables and for
// words that are longer.
func (r *Report) Text(w io.Writer, style Style) error {
	if style.Width <= 0 {
		style.Width = 80
	}
	r.Sort()
	var b bytes.Buffer
	fmt.Fprintf(&b, "belay %s: %s, %s\n", r.Command, printable(r.Subject), r.At.Format("2006-01-02 15:04:05 MST"))
	for _, p := range r.Summary {
		b.WriteByte('\n')
		wrap(&b, style.Width, "", "", p)
	}
	good := 0
	for _, f := range together(r.Findings) {
		if f.Severity == Good {
			good++
			continue
		}
		b.WriteByte('\n')
		f.text(&b, style)
	}
	if good > 0 {
		b.WriteString("\nLooked at, and well:\n")
		for _, f := range r.Findings {
			if f.Severity == Good {
				text := f.What
				if len(f.Evidence) > 0 {
					text += " (" + strings.Join(f.Evidence, "; ") + ")"
				}
				wrap(&b, style.Width, "  - ", "    ", f.of()+text)
			}
		}
	}
	for _, t := range r.Tables {
		b.WriteByte('\n')
		t.text(&b, style.Width)
	}
	for _, c := range r.Charts {
		b.WriteByte('\n')
		c.text(&b, style.Width)
	}
	b.WriteString("\n" + r.verdict() + "\n")
	_, err := w.Write(b.Bytes())
	return err
}

// verdict is the last line.
func (r *Report) verdict() string {
	count := map[Severity]int{}
	for _, f := range together(r.Findings) {
		count[f.Severity]++
	}
	switch {
	case r.Blind:
		return "Nothing could be looked at, so nothing can be said."
	case count[Critical]+count[Warning]+count[Unknown] == 0:
		return "Nothing is wrong that doctor can see."
	}
	var parts []string
	for _, s := range []Severity{Critical, Warning, Unknown} {
		if n := count[s]; n > 0 {
			part := fmt.Sprintf("%d %s", n, s)
			if s == Warning && n > 1 {
				part += "s"
			}
			parts = append(parts, part)
		}
	}
	return "In all: " + strings.Join(parts, ", ") + "."
}

// of names the member, if there is one.
func (f Finding) of() string {
	if f.Member == "" {
		return ""
	}
	return f.Member + ": "
}

func (f Finding) text(b *bytes.Buffer, style Style) {
	label := strings.ToUpper(string(f.Severity))
	if colour := map[Severity]string{Critical: "31;1", Warning: "33", Unknown: "36"}[f.Severity]; style.Colour && colour != "" {
		label = "\x1b[" + colour + "m" + label + "\x1b[0m"
	}
	var what bytes.Buffer
	wrap(&what, style.Width, strings.Repeat(" ", len(f.Severity)+2), "  ", f.of()+f.What)
	b.WriteString(label + "  ")
	b.WriteString(what.String()[len(f.Severity)+2:])
	part := func(title, text string) {
		if text != "" {
			wrap(b, style.Width, "  "+title+strings.Repeat(" ", 10-len(title)), strings.Repeat(" ", 12), text)
		}
	}
	for i, e := range f.Evidence {
		part(map[bool]string{true: "evidence", false: ""}[i == 0], e)
	}
	part("matters", f.Why)
	for i, d := range f.Do {
		part(map[bool]string{true: "do", false: ""}[i == 0], d)
	}
	part("sure", string(f.Confidence)+" ["+f.ID+"]")
}

// text draws the table with as few columns of space as it needs. If it needs more than there are, a
// table of many narrow columns is parted, its first column on each part, and the cells of another
// are broken into lines.
func (t Table) text(b *bytes.Buffer, width int) {
	if t.Title != "" {
		b.WriteString(printable(t.Title) + "\n")
	}
	rows := make([][]string, 0, len(t.Rows)+1)
	widths := make([]int, len(t.Header))
	for _, row := range append([][]string{t.Header}, t.Rows...) {
		clean := make([]string, len(row))
		for i, cell := range row {
			clean[i] = printable(cell)
			widths[i] = max(widths[i], utf8.RuneCountInString(clean[i]))
		}
		rows = append(rows, clean)
	}
	if !t.Wide {
		fit(widths, rows[0], width-2)
		drawn(b, rows, widths, columns(0, len(widths)), width)
	} else {
		for from := 1; from < len(widths); {
			to, used := from, widths[0]+2
			for to < len(widths) && (to == from || used+2+widths[to] <= width) {
				used += 2 + widths[to]
				to++
			}
			if from > 1 {
				b.WriteByte('\n')
			}
			drawn(b, rows, widths, append([]int{0}, columns(from, to)...), width)
			from = to
		}
	}
	for _, note := range t.Notes {
		wrap(b, width, "  ", "  ", note)
	}
}

func columns(from, to int) (all []int) {
	for i := from; i < to; i++ {
		all = append(all, i)
	}
	return all
}

// fit takes width from the widest columns until all fit into room, but none below its header or 12.
func fit(widths []int, header []string, room int) {
	for {
		total := -2
		for _, w := range widths {
			total += w + 2
		}
		widest := -1
		for i, w := range widths {
			if w > max(12, utf8.RuneCountInString(header[i])) && (widest < 0 || w > widths[widest]) {
				widest = i
			}
		}
		if total <= room || widest < 0 {
			return
		}
		widths[widest]--
	}
}

// drawn draws these columns of rows, the first of which is the header.
func drawn(b *bytes.Buffer, rows [][]string, widths, which []int, width int) {
	for n, row := range rows {
		broken, high := make([][]string, len(which)), 1
		for j, i := range which {
			broken[j] = breakCell(row[i], widths[i])
			high = max(high, len(broken[j]))
		}
		for k := range high {
			var line strings.Builder
			line.WriteString("  ")
			for j, i := range which {
				cell := ""
				if k < len(broken[j]) {
					cell = broken[j][k]
				}
				line.WriteString(cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
			}
			b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
		}
		if n == 0 {
			total := 0
			for _, i := range which {
				total += widths[i] + 2
			}
			b.WriteString("  " + strings.Repeat("-", min(max(total-2, 0), width-2)) + "\n")
		}
	}
}

// breakCell breaks a cell into lines of at most width columns, between words where it can.
func breakCell(cell string, width int) (lines []string) {
	if utf8.RuneCountInString(cell) <= width {
		return []string{cell}
	}
	line := ""
	for _, word := range strings.Fields(cell) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
		for r := []rune(line); len(r) > width; r = []rune(line) {
			lines, line = append(lines, string(r[:width])), string(r[width:])
		}
	}
	if line != "" {
		lines = append(lines, line)
	}
	return lines
}

// wrap writes text in lines of at most width columns: first begins the first, next the others.
func wrap(b *bytes.Buffer, width int, first, next, text string) {
	line, used := first, false
	for _, word := range strings.Fields(printable(text)) {
		if used && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			b.WriteString(strings.TrimRight(line, " ") + "\n")
			line, used = next, false
		}
		if used {
			line += " "
		}
		line, used = line+word, true
	}
	b.WriteString(strings.TrimRight(line, " ") + "\n")
}

// printable replaces what a terminal would obey: names, keys and lines of logs come from others.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return '\uFFFD'
		}
		return r
	}, text)
}

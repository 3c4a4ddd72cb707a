package dev

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// A view turns a member's log into what a person wants to see on a terminal: warnings and errors,
// one row each, and repeated lines once a minute. A file has the whole log (see cluster.start).
type view struct {
	colour bool
	width  func() int // of the terminal, in columns
	now    func() time.Time
	told   map[string]*repeats // what was shown in the last foldTime
}

// repeats counts the lines of a kind that were not shown.
type repeats struct {
	shown time.Time
	count int
}

// foldTime is how long a line that repeats an earlier one is not shown.
const foldTime = time.Minute

// A record is a line of a log in zap's console form.
type record struct {
	clock, level, text string
	fields             map[string]any
}

// parseRecord parses a line; ok is false for anything else, such as the trace of a panic.
func parseRecord(line string) (r record, ok bool) {
	parts := strings.Split(strings.TrimRight(line, "\n"), "\t")
	if len(parts) < 4 {
		return r, false
	}
	at, err := time.Parse(time.RFC3339Nano, parts[0])
	if err != nil || !slices.Contains([]string{"debug", "info", "warn", "error", "dpanic", "panic", "fatal"}, parts[1]) {
		return r, false
	}
	r.clock, r.level = at.Local().Format("15:04:05"), parts[1]
	if last := parts[len(parts)-1]; strings.HasPrefix(last, "{") && json.Unmarshal([]byte(last), &r.fields) == nil {
		parts = parts[:len(parts)-1]
	}
	r.text = strings.TrimSpace(parts[len(parts)-1])
	return r, r.text != ""
}

// kind is what lines that say the same about the same thing have in common.
func (r record) kind() string {
	kind := r.level + " " + r.text
	for _, name := range []string{"remote-peer-id", "remote-member-id", "address"} {
		if v, ok := r.fields[name]; ok {
			return fmt.Sprint(kind, " ", v)
		}
	}
	return kind
}

// verdictText is the message of the log's line that says what an incident was.
const verdictText = "verdict on an incident"

// rows is what is shown of a line after the member's prefix, which is prefix columns wide; nil:
// nothing.
func (v *view) rows(line string, prefix int) []string {
	r, ok := parseRecord(line)
	if !ok {
		return []string{strings.TrimRight(line, "\n")}
	}
	if _, term, leads := strings.Cut(r.text, "became leader at term "); leads {
		return []string{r.clock + " leads, in term " + term}
	}
	if r.level == "debug" || r.level == "info" {
		return nil
	}
	now := v.now()
	before := v.told[r.kind()]
	if before != nil && now.Sub(before.shown) < foldTime {
		before.count++
		return nil
	}
	more := ""
	if before != nil && before.count > 0 {
		more = fmt.Sprintf(" (%d times more since %s)", before.count, before.shown.Local().Format("15:04:05"))
	}
	if v.told == nil || len(v.told) > 1000 {
		v.told = map[string]*repeats{}
	}
	v.told[r.kind()] = &repeats{shown: now}

	if r.text == verdictText {
		return v.verdict(r, prefix)
	}
	text := r.text + more
	for _, name := range []string{"error", "reason"} {
		if s, ok := r.fields[name].(string); ok && s != "" {
			text += ": " + s
		}
	}
	var rest []string
	for name, value := range r.fields {
		if name != "error" && name != "reason" {
			rest = append(rest, fmt.Sprintf("%s=%v", name, value))
		}
	}
	slices.Sort(rest)
	for _, field := range rest {
		text += " " + field
	}
	head := r.clock + " " + r.level + " "
	text = cut(text, v.width()-prefix-utf8.RuneCountInString(head))
	return []string{r.clock + " " + v.paint(r.level, r.level) + " " + text}
}

// verdict shows a verdict in full: it is what one wants to know.
func (v *view) verdict(r record, prefix int) (rows []string) {
	list := func(name string) string {
		values, _ := r.fields[name].([]any)
		var words []string
		for _, value := range values {
			words = append(words, fmt.Sprint(value))
		}
		return strings.Join(words, "; ")
	}
	text := fmt.Sprintf("verdict: %v (%s): %s.", r.fields["cause"], list("members"), list("evidence"))
	if advice, ok := r.fields["advice"].(string); ok && advice != "" {
		text += " Advice: " + advice
	}
	for i, row := range wrap(text, v.width()-prefix-len(r.clock)-1) {
		lead := r.clock
		if i > 0 {
			lead = strings.Repeat(" ", len(r.clock))
		}
		rows = append(rows, lead+" "+v.paint("verdict", row))
	}
	return rows
}

// paint colours a text by level.
func (v *view) paint(level, text string) string {
	colour := map[string]string{"warn": "33", "verdict": "1"}[level] // yellow, bold
	if colour == "" {
		colour = "31" // red
	}
	if !v.colour {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// cut shortens a text to a row of n columns, leaving at least some of it.
func cut(text string, n int) string {
	n = max(n, 20)
	if utf8.RuneCountInString(text) <= n {
		return text
	}
	return string([]rune(text)[:n-3]) + "..."
}

// wrap breaks a text into rows of at most n columns, between words.
func wrap(text string, n int) (rows []string) {
	n = max(n, 20)
	row := ""
	for _, word := range strings.Fields(text) {
		if row != "" && utf8.RuneCountInString(row)+1+utf8.RuneCountInString(word) > n {
			rows, row = append(rows, row), ""
		}
		if row != "" {
			row += " "
		}
		row += word
	}
	return append(rows, row)
}

package report

import (
	"bytes"
	"fmt"
	"image/png"
	"strings"
	"testing"
	"unicode/utf8"
)

// TestWide: tables fit into the columns that there are: a matrix in parts, others with cells that are
// broken.
func TestWide(t *testing.T) {
	matrix := Table{Title: "Matrix", Header: []string{"from"}, Wide: true}
	for i := range 7 {
		matrix.Header = append(matrix.Header, fmt.Sprintf("to m%d", i))
	}
	for i := range 7 {
		row := []string{fmt.Sprintf("m%d", i)}
		for range 7 {
			row = append(row, "600 µs, 198 ms")
		}
		matrix.Rows = append(matrix.Rows, row)
	}
	long := Table{Title: "Long", Header: []string{"time", "what", "file"}, Rows: [][]string{
		{"00:43:15", "hands leadership over: its disk has stalled (m1), 2.1 s", "/var/log/pods/kube-system_etcd-m1_0123456789abcdef/etcd/0.log"},
	}}
	r := Report{Tables: []Table{matrix, long}}
	var b strings.Builder
	if err := r.Text(&b, Style{}); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	if n := strings.Count(b.String(), "198 ms"); n != 49 {
		t.Errorf("%d cells of 49:\n%s", n, b.String())
	}
	joined := strings.Join(strings.Fields(b.String()), "")
	for _, part := range []string{"handsleadership", "etcd/0.log"} {
		if !strings.Contains(joined, part) {
			t.Errorf("no %s in:\n%s", part, b.String())
		}
	}
}

// TestTogether: what is said of several members alike is one finding for people, and one each for
// scripts.
func TestTogether(t *testing.T) {
	of := func(member, evidence string, s Severity) Finding {
		return Finding{ID: "disk-slow", Severity: s, Member: member, What: "Slow.", Evidence: []string{evidence}, Do: []string{"look"}, Confidence: Certain}
	}
	r := Report{Findings: []Finding{of("m1", "a", Warning), of("m2", "b", Critical), of("m3", "c", Warning), {ID: "x", Severity: Warning, What: "X.", Confidence: Certain}}}
	var text, page, js bytes.Buffer
	for _, err := range []error{r.Text(&text, Style{}), r.HTML(&page), r.JSON(&js)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"WARNING  each of m1, m3: Slow.\n  evidence  m1: a\n            m3: c\n", "CRITICAL  m2: Slow.\n  evidence  b\n", "In all: 1 critical, 2 warnings."} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
	if strings.Count(page.String(), "each of m1, m3") != 1 || strings.Count(js.String(), "disk-slow") != 3 {
		t.Errorf("%s\n%s", page.String(), js.String())
	}
}

func TestPNG(t *testing.T) {
	c := Chart{Title: "m1: fsync of the log", Bars: []Bar{{Label: "to 1.0 ms", Value: 3, Marks: "p50"}, {Label: "over 8.2 s", Value: 0}, {Label: "to 340 µs", Value: 1}}}
	m, err := png.Decode(bytes.NewReader(c.PNG()))
	if err != nil || m.Bounds().Dx() < 400 || m.Bounds().Dy() < 90 {
		t.Errorf("%v, %v", m, err)
	}
}

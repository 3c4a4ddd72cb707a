package main

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write testdata/score.txt anew; read the diff")

// TestScoreOfKept scores a small set that was kept of real members, of etcd and of Belay, some of it
// from before a mistake of Belay's was mended. The text of the score is the review.
func TestScoreOfKept(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := scoreAll(&out, "testdata/kept", "", true); err != nil {
		t.Fatal(err)
	}
	const path = "testdata/score.txt"
	if *rewrite {
		if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, wanted := strings.Split(out.String(), "\n"), strings.Split(string(want), "\n")
	for n := range max(len(got), len(wanted)) {
		line := func(lines []string) string {
			if n < len(lines) {
				return lines[n]
			}
			return "(no line)"
		}
		if line(got) != line(wanted) {
			t.Errorf("line %d is\n  %s\nand was\n  %s", n+1, line(got), line(wanted))
		}
	}
}

// TestInterval compares with published values of Wilson's interval.
func TestInterval(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		k, n      int
		low, high float64
	}{
		{0, 10, 0, 27.75}, {10, 10, 72.25, 100}, {5, 10, 23.66, 76.34}, {81, 263, 25.53, 36.62}, {1, 29, 0.61, 17.18},
	} {
		low, high := interval(c.k, c.n)
		if low < c.low-0.01 || low > c.low+0.01 || high < c.high-0.01 || high > c.high+0.01 {
			t.Errorf("%d of %d: %.2f to %.2f, want %.2f to %.2f", c.k, c.n, low, high, c.low, c.high)
		}
	}
}

// TestDraw: a number is one plan for ever, all faults are drawn, and severities are in their bounds.
func TestDraw(t *testing.T) {
	t.Parallel()
	seen, pairs := map[string]int{}, 0
	for n := range 3000 {
		p, again := draw(1, n+1), draw(1, n+1)
		if len(p.faults) != len(again.faults) || p.load != again.load {
			t.Fatalf("%d is two plans", n+1)
		}
		if len(p.faults) == 0 {
			seen[quiet]++
		}
		if len(p.faults) == 2 {
			pairs++
			if toolOf(p.faults[0].name) == toolOf(p.faults[1].name) {
				t.Errorf("%d: two faults by one tool", n+1)
			}
		}
		for i, f := range p.faults {
			if f != again.faults[i] {
				t.Fatalf("%d is two plans", n+1)
			}
			seen[f.name]++
			low, high := 0.2, 10.0
			switch f.name {
			case "loss":
				low, high = 0.01, 0.1
			case "delay":
				low, high = 0.02, 1
			}
			if f.severity < low || f.severity > high || f.hold <= 0 {
				t.Errorf("%d: %+v", n+1, f)
			}
			if truth := (&Fault{Name: f.name}); truth.right(sourceVerdicts) == nil || truth.right(sourceLogs) == nil {
				t.Errorf("nothing is right to say of %s", f.name)
			}
		}
	}
	for _, h := range harms {
		if seen[h.name] == 0 {
			t.Errorf("%s was not drawn", h.name)
		}
	}
	if pairs < 100 {
		t.Errorf("%d pairs", pairs)
	}
}

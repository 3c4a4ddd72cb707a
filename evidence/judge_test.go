package evidence

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
)

// TestJudge gives recorded rings and reads the verdict. A line of input is
//
//	m1 absent=timeout         (or absent=refused nameless: it never told its name)
//	m1 late-to=m2 2        (of the last thirty round trips)
//	m1 paused ago=0.5s took=10s peer=m2 value=3 term=4 note="text"
//
// ago counts back from the moment of judgement.
func TestJudge(t *testing.T) {
	datadriven.Walk(t, "testdata/judge", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
			var kind, leader, before, ago string
			d.ScanArgs(t, "kind", &kind)
			d.ScanArgs(t, "leader", &leader)
			d.ScanArgs(t, "ago", &ago)
			if d.HasArg("before") {
				d.ScanArgs(t, "before", &before)
			}
			in := Incident{Kind: map[string]IncidentKind{"election": Election, "hand-over": LeadershipPassed, "near-miss": NearMissOnly, "again": SameLeaderAgain}[kind],
				Began: now.Add(-duration(t, ago)), Leader: testID(leader), Before: testID(before)}
			if in.Kind == "" {
				t.Fatalf("no kind %q", kind)
			}
			in.Members = testMembers(t, d.Input, now)
			return verdictText(Judge(in, now))
		})
	})
}

// TestCauses holds the table of causes to its own rules: each stands there once, with grounds and
// advice, and is the verdict of a scenario.
func TestCauses(t *testing.T) {
	files, err := filepath.Glob("testdata/judge/*")
	if err != nil {
		t.Fatal(err)
	}
	var scenarios strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		scenarios.Write(text)
	}
	seen := make(map[Cause]bool)
	for _, c := range causes {
		if seen[c.cause] {
			t.Errorf("%s stands twice in the table", c.cause)
		}
		seen[c.cause] = true
		if len(c.grounds) == 0 || c.advice == "" {
			t.Errorf("%s has no grounds or no advice", c.cause)
		}
		for _, g := range c.grounds {
			if (g.evidence == nil) == (g.links == nil) || g.about < 0 || g.about >= topicCount {
				t.Errorf("%s: a ground of weight %d has no evidence, or two kinds of it, or no topic", c.cause, g.weight)
			}
			if (g.swing == 0) != (g.handOver == "") {
				t.Errorf("%s: a ground of weight %d has a swing without a reason, or the reverse", c.cause, g.weight)
			}
		}
		if !strings.Contains(scenarios.String(), "\ncause: "+string(c.cause)+"\n") {
			t.Errorf("no scenario has the verdict %s", c.cause)
		}
	}
}

func duration(t *testing.T, text string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func testID(name string) uint64 {
	n, _ := strconv.ParseUint(strings.TrimPrefix(name, "m"), 10, 64)
	return n
}

var field = regexp.MustCompile(`(\w+)=("[^"]*"|\S+)`)

// testMembers reads the input; all of m1, m2, m3 are there, also without a line.
func testMembers(t *testing.T, text string, now time.Time) []Testimony {
	members := []Testimony{{ID: 1, Name: "m1"}, {ID: 2, Name: "m2"}, {ID: 3, Name: "m3"}}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 || strings.HasPrefix(line, "#") {
			continue
		}
		m := &members[testID(words[0])-1]
		if why, ok := strings.CutPrefix(words[1], "absent="); ok {
			m.Absent, m.Nameless = Absence(why), len(words) > 2 && words[2] == "nameless"
			continue
		}
		if peer, ok := strings.CutPrefix(words[1], "late-to="); ok {
			late, _ := strconv.Atoi(words[2])
			m.Links = append(m.Links, LinkReport{Peer: fmt.Sprintf("%x", testID(peer)), RTT: 0.002, Late: late})
			continue
		}
		e := Event{Kind: kindOf(words[1]), At: now, Count: 1}
		if e.Kind == 0 {
			t.Fatalf("no event is called %q", words[1])
		}
		for _, f := range field.FindAllStringSubmatch(line, -1) {
			value := strings.Trim(f[2], `"`)
			switch f[1] {
			case "ago":
				e.At = now.Add(-duration(t, value))
			case "took":
				e.Took = duration(t, value)
			case "over":
				e.First = duration(t, value)
			case "peer":
				e.Peer = testID(value)
			case "value":
				e.Value, _ = strconv.ParseInt(value, 10, 64)
			case "term":
				e.Term, _ = strconv.ParseUint(value, 10, 64)
			case "note":
				e.Note = value
			case "past":
				e.Past = true
			default:
				t.Fatalf("no field %q", f[1])
			}
		}
		m.Events = append(m.Events, e)
	}
	return members
}

func verdictText(v Verdict) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\ncause: %s\nmembers: %s\n", v.Incident, v.Cause, strings.Join(v.Members, ", "))
	if len(v.Links) > 0 {
		fmt.Fprintf(&b, "links: %s\n", strings.Join(v.Links, ", "))
	}
	for _, e := range v.Evidence {
		fmt.Fprintf(&b, "evidence: %s\n", e)
	}
	for _, e := range v.Also {
		fmt.Fprintf(&b, "also: %s\n", e)
	}
	if len(v.Missing) > 0 {
		fmt.Fprintf(&b, "waits for: %s\n", strings.Join(v.Missing, ", "))
	}
	return b.String()
}

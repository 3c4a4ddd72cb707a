package surface

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// costs are the figures of a case in benchmarks.md, Belay's as a part of etcd's, on one node and on
// three.
type costs struct{ cpu, rss []float64 }

// benchmarked reads the tables of benchmarks.md.
func benchmarked(t *testing.T) map[string]*costs {
	t.Helper()
	text, err := os.ReadFile("../../docs/benchmarks.md")
	if err != nil {
		t.Fatal(err)
	}
	of, name := map[string]*costs{}, ""
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(line, "|")
		if len(cells) < 9 {
			continue
		}
		if at := strings.TrimSpace(cells[1]); at != "" {
			name = at
		}
		if strings.TrimSpace(cells[2]) != "**belay : etcd**" {
			continue
		}
		number := func(cell string) float64 {
			f, err := strconv.ParseFloat(strings.Trim(cell, " *"), 64)
			if err != nil {
				t.Fatalf("benchmarks.md: %s: %v", name, err)
			}
			return f
		}
		if of[name] == nil {
			of[name] = &costs{}
		}
		of[name].cpu = append(of[name].cpu, number(cells[6]))
		of[name].rss = append(of[name].rss, number(cells[8]))
	}
	return of
}

// agrees reports whether a figure of the README is one of benchmarks.md, rounded as the README has
// it: 0.6 is 0.55 to 0.65.
func agrees(said string, measured float64) bool {
	f, err := strconv.ParseFloat(said, 64)
	if err != nil {
		return false
	}
	half := 0.5
	if _, decimals, ok := strings.Cut(said, "."); ok {
		for range decimals {
			half /= 10
		}
	}
	return f-half-1e-9 <= measured && measured <= f+half+1e-9
}

// TestReadmeCosts holds what README.md says of costs to the tables of benchmarks.md.
func TestReadmeCosts(t *testing.T) {
	page, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	text, of := strings.Join(strings.Fields(string(page)), " "), benchmarked(t)
	for _, tc := range []struct {
		sentence string // with the smallest and the largest figure
		cases    []string
		of       func(*costs) []float64
	}{
		{`([0-9.]+) to ([0-9.]+) of it for a get`, []string{"get-lin-100", "get-ser-100"}, func(c *costs) []float64 { return c.cpu }},
		{`([0-9.]+) to ([0-9.]+) for a small put`, []string{"put-1", "put-100", "put-1000"}, func(c *costs) []float64 { return c.cpu }},
		{`([0-9.]+) to ([0-9.]+) for a range of 10,000 keys`, []string{"range-10k"}, func(c *costs) []float64 { return c.cpu }},
		{`([0-9.]+) to ([0-9.]+) for a lease renewal`, []string{"keepalive-100"}, func(c *costs) []float64 { return c.cpu }},
		{`Memory under a load of writes is ([0-9.]+) to ([0-9.]+) times etcd's`, []string{"put-1", "put-100", "put-1000"}, func(c *costs) []float64 { return c.rss }},
	} {
		said := regexp.MustCompile(tc.sentence).FindStringSubmatch(text)
		if said == nil {
			t.Errorf("README.md does not say %q any more: say here what it says of %v", tc.sentence, tc.cases)
			continue
		}
		var all []float64
		for _, name := range tc.cases {
			if of[name] == nil {
				t.Fatalf("benchmarks.md has no case %s", name)
			}
			all = append(all, tc.of(of[name])...)
		}
		low, high := all[0], all[0]
		for _, f := range all {
			low, high = min(low, f), max(high, f)
		}
		if said[1] != "" && !agrees(said[1], low) || !agrees(said[2], high) {
			t.Errorf("README.md says %q; benchmarks.md has %v", said[0], all)
		}
	}
	if agrees("0.6", 0.66) || agrees("0.32", 0.33) || !agrees("0.6", 0.56) || agrees("x", 0) {
		t.Error("figures that differ agree")
	}
}

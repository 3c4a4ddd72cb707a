package ctl

import (
	"bytes"
	"testing"
	"time"
)

// TestJudge: each bound of check perf fails by itself, in etcdctl's words.
func TestJudge(t *testing.T) {
	w := workload{rate: 10}
	for _, tc := range []struct {
		name string
		s    *tally
		good bool
		text string
	}{
		{"good", &tally{seconds: []float64{0.1, 0.1, 0.1, 0.1}, total: 400 * time.Millisecond}, true,
			"PASS: Throughput is 11 writes/s\nPASS: Slowest request took 0.100000s\nPASS: Stddev is 0.000000s\n"},
		{"too slow", &tally{seconds: []float64{0.1, 0.1}, total: time.Second}, false,
			"FAIL: Throughput too low: 3 writes/s\nPASS: Slowest request took 0.100000s\nPASS: Stddev is 0.000000s\n"},
		{"a slow write", &tally{seconds: []float64{0.6, 0.6}, total: 200 * time.Millisecond}, false,
			"PASS: Throughput is 11 writes/s\nSlowest request took too long: 0.600000s\nPASS: Stddev is 0.000000s\n"},
		{"unsteady", &tally{seconds: []float64{0.0, 0.4}, total: 200 * time.Millisecond}, false,
			"PASS: Throughput is 11 writes/s\nPASS: Slowest request took 0.400000s\nStddev too high: 0.200000s\n"},
		{"errors", &tally{errors: map[string]int{"etcdserver: no leader": 3}, seconds: []float64{0.1, 0.1}, total: 200 * time.Millisecond}, false,
			"FAIL: too many errors\nFAIL: ERROR(etcdserver: no leader) -> 3\nPASS: Throughput is 11 writes/s\nPASS: Slowest request took 0.100000s\nPASS: Stddev is 0.000000s\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			c := &ctl{out: &out}
			if good := c.judge(tc.s, w); good != tc.good || out.String() != tc.text {
				t.Errorf("%v\n%s\nwant %v\n%s", good, out.String(), tc.good, tc.text)
			}
		})
	}
}

func TestMirrorRename(t *testing.T) {
	for _, tc := range []struct{ prefix, dest, key, want string }{
		{"", "", "a/b", "a/b"}, {"", "x/", "a/b", "x/a/b"}, {"a/", "x/", "a/a/", "x/a/"}, {"a/", "", "a/b", "b"},
	} {
		m := mirrorFlags{prefix: tc.prefix, destPrefix: tc.dest}
		if got := m.rename([]byte(tc.key)); got != tc.want {
			t.Errorf("%q with %q for %q: %q, want %q", tc.key, tc.dest, tc.prefix, got, tc.want)
		}
	}
}

package usage

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// clock is a time that the test moves.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func testTracker() (*Tracker, *clock) {
	c := &clock{time.Unix(1_000_000, 0)}
	return New(c.now), c
}

// small tells of a request on one key as the server does.
func small(t *Tracker, client, key string, bytes, churn float64) {
	if w := t.Sample(int(bytes), 1); w > 0 {
		of := Amounts{Requests: 1, Bytes: bytes, Keys: 1, Churn: churn}
		t.Add(w, &Use{Client: client, Of: of, Ops: []Op{{Key: []byte(key), Of: of}}})
	}
}

func find(t *testing.T, a Answer, of Kind, by Measure, name string) Share {
	t.Helper()
	for _, s := range a.Top {
		if s.Of == of.String() && s.By == by.String() && s.Name == name {
			return s
		}
	}
	t.Fatalf("no %v %q by %v in %+v", of, name, by, a.Top)
	return Share{}
}

// TestKnownShares: shares of requests whose truth is known, skewed, with more names than counters,
// are told within five percent of the whole, at rates where all, few and very few are sampled.
func TestKnownShares(t *testing.T) {
	t.Parallel()
	for _, perSecond := range []int{20, 1_000, 60_000} {
		tr, c := testTracker()
		random := rand.New(rand.NewPCG(1, uint64(perSecond)))
		tr.random = rand.New(rand.NewPCG(2, uint64(perSecond))).Uint32N
		var requests, bytes [maxDepth + 1]map[string]float64
		for i := range requests {
			requests[i], bytes[i] = map[string]float64{}, map[string]float64{}
		}
		clients := map[string]float64{}
		n := min(max(perSecond*60, 6_000), 200_000)
		for i := range n {
			c.at = c.at.Add(time.Second / time.Duration(perSecond))
			// Half of all is one prefix, a fifth another; the rest is spread over 5,000.
			kind, size := "spread", 100.0
			switch r := random.Float64(); {
			case r < 0.5:
				kind = "leases"
			case r < 0.7:
				kind, size = "pods", 5000
			}
			second := fmt.Sprint(random.IntN(4))
			if kind == "spread" {
				second = fmt.Sprint(random.IntN(5000))
			}
			client := fmt.Sprintf("10.0.0.%d", min(i%10, 5))
			key := "/registry/" + kind + "/" + second + "/name"
			small(tr, client, key, size, 0)
			for d, p := range []string{"/registry/", "/registry/" + kind + "/", "/registry/" + kind + "/" + second + "/"} {
				requests[d][p]++
				bytes[d][p] += size
			}
			clients[client]++
		}
		if every := tr.every.Load(); perSecond == 20 && every != 1 || perSecond > 2_000 && every < mostEvery {
			t.Errorf("at %d a second one of %d is told", perSecond, every)
		}
		a := tr.Answer(MaxTop)
		within := func(s Share, truth, all float64) {
			t.Helper()
			if math.Abs(s.Share-truth/all) > 0.05 {
				t.Errorf("at %d a second: %s %s by %s: share %.3f, in truth %.3f", perSecond, s.Of, s.Name, s.By, s.Share, truth/all)
			}
		}
		total := 0.0
		for _, b := range bytes[0] {
			total += b
		}
		for d := 1; d < 3; d++ {
			for p, truth := range requests[d] {
				if truth/float64(n) > 0.06 {
					within(find(t, a, Prefix, Requests, p), truth, float64(n))
				}
			}
			for p, truth := range bytes[d] {
				if truth/total > 0.2 {
					within(find(t, a, Prefix, Bytes, p), truth, total)
				}
			}
		}
		for client, truth := range clients {
			within(find(t, a, Client, Requests, client), truth, float64(n))
		}
		// What is told of the spread ones does not add up to a heavy name.
		for _, s := range a.Top {
			if strings.HasPrefix(s.Name, "/registry/spread/") && s.Name != "/registry/spread/" && s.Share > 0.02 {
				t.Errorf("%s has %.3f of all", s.Name, s.Share)
			}
		}
		if got := a.Rates["requests"]; math.Abs(got-float64(perSecond)) > 0.1*float64(perSecond) {
			t.Errorf("%.0f requests a second, in truth %d", got, perSecond)
		}
	}
}

// TestForgets: after a half-life, what was before counts half, and much later nothing.
func TestForgets(t *testing.T) {
	t.Parallel()
	tr, c := testTracker()
	for range 1000 {
		small(tr, "before", "a/x", 1, 0)
	}
	c.at = c.at.Add(HalfLife)
	for range 1000 {
		of := Amounts{Requests: 1}
		tr.Add(1, &Use{Client: "after", Of: of})
	}
	a := tr.Answer(10)
	if s := find(t, a, Client, Requests, "after"); math.Abs(s.Share-2.0/3) > 0.05 {
		t.Errorf("what came a half-life later has %.3f, not two thirds", s.Share)
	}
	for range 100 { // numbers are scaled on the way
		c.at = c.at.Add(HalfLife)
		tr.Add(1, &Use{Client: "now", Of: Amounts{Requests: 1}})
	}
	a = tr.Answer(10)
	for _, s := range a.Top {
		if s.Of == "client" && s.Name == "before" {
			t.Errorf("it still tells %+v", s)
		}
	}
	if s := find(t, a, Client, Requests, "now"); s.Share < 0.99 {
		t.Errorf("what comes now has %.3f", s.Share)
	}
	c.at = c.at.Add(-time.Hour) // a clock that jumps back
	tr.Add(1, &Use{Client: "back", Of: Amounts{Requests: 1}})
	if s := find(t, tr.Answer(10), Client, Requests, "now"); math.IsNaN(s.Share) || s.Share > 1 {
		t.Errorf("after the clock jumped back: %+v", s)
	}
}

// TestLargeAreAlwaysTold: a few large requests among many small ones, at a rate where one of many is
// sampled, are counted to the last byte.
func TestLargeAreAlwaysTold(t *testing.T) {
	t.Parallel()
	tr, c := testTracker()
	for i := range 100_000 {
		c.at = c.at.Add(10 * time.Microsecond)
		small(tr, "many", "a/x", 10, 0)
		if i%10_000 == 0 {
			if tr.Sample(1<<20, 1) != 1 {
				t.Fatal("a large request was left out")
			}
			of := Amounts{Requests: 1, Bytes: 1 << 20, Keys: 1}
			tr.Add(1, &Use{Client: "large", Of: of})
		}
	}
	truth := 10.0 * (1 << 20)
	if s := find(t, tr.Answer(10), Client, Bytes, "large"); math.Abs(s.Share-truth/(truth+1e6)) > 0.01 {
		t.Errorf("the large ones have %.3f of the bytes", s.Share)
	}
}

// TestSketchBounds holds Space-Saving to its promises on a stream that is made to evict.
func TestSketchBounds(t *testing.T) {
	t.Parallel()
	const capacity = 20
	random := rand.New(rand.NewPCG(7, 7))
	s, truth := newSketch(capacity), map[string]float64{}
	for range 20_000 {
		name := fmt.Sprint(int(math.Exp(random.Float64() * 6)))
		weight := random.Float64() * 10
		s.add([]byte(name), weight)
		truth[name] += weight
	}
	if len(s.heap) != capacity || len(s.byName) != capacity {
		t.Fatalf("%d counters, %d names", len(s.heap), len(s.byName))
	}
	for i, c := range s.heap {
		if c.at != i || s.byName[c.name] != c {
			t.Fatalf("counter %d of %q is lost", i, c.name)
		}
		if c.weight < truth[c.name]-1e-6 || c.weight-c.excess > truth[c.name]+1e-6 || c.excess > s.total/capacity {
			t.Errorf("%q weighs %.1f (at most %.1f too much), in truth %.1f", c.name, c.weight, c.excess, truth[c.name])
		}
	}
	for name, weight := range truth {
		if weight > s.total/capacity && s.byName[name] == nil {
			t.Errorf("%q has %.1f of %.1f and is not kept", name, weight, s.total)
		}
	}
}

func TestPrefixes(t *testing.T) {
	t.Parallel()
	for key, want := range map[string]string{
		"/registry/pods/default/web-1":   "/registry/ /registry/pods/ /registry/pods/default/",
		"/a/b/c/d/e/f":                   "/a/ /a/b/ /a/b/c/ /a/b/c/d/",
		"//a//b":                         "//a//",
		"service:foo:1":                  "service: service:foo:",
		"a/system:node":                  "a/",
		"org.example.key":                "org. org.example.",
		"plain":                          "",
		"":                               "",
		"///":                            "",
		strings.Repeat("x", 200) + "/y":  "",
		"a/" + strings.Repeat("x/", 300): "a/ a/x/ a/x/x/ a/x/x/x/",
	} {
		ends, n := prefixes([]byte(key))
		var got []string
		for _, end := range ends[:n] {
			got = append(got, key[:end])
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%.40q: %q, want %q", key, got, want)
		}
	}
}

func TestRanges(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ key, end, common, name string }{
		{"a/x", "", "a/x", "a/x"},
		{"a/", "a0", "a/", "a/*"},
		{"a/x\x00", "a0", "a/", "[a/x\x00, a0)"},
		{"a", "c", "", "[a, c)"},
		{"a/b/c", "a/b/e", "a/b/", "[a/b/c, a/b/e)"},
		{"\x00", "\x00", "", "*"},
		{"m", "\x00", "", "[m, )"},
		{"ab", "b", "a", "[ab, b)"},
	} {
		if got := string(common([]byte(c.key), []byte(c.end))); got != c.common {
			t.Errorf("%q to %q have %q in common, want %q", c.key, c.end, got, c.common)
		}
		if got := RangeName([]byte(c.key), []byte(c.end)); got != c.name {
			t.Errorf("%q to %q is %q, want %q", c.key, c.end, got, c.name)
		}
	}
}

// TestPrefixesThatTellMore: a prefix whose whole weight is a longer one's is left out, one that has
// several is told beside them.
func TestPrefixesThatTellMore(t *testing.T) {
	t.Parallel()
	tr, _ := testTracker()
	for i := range 100 {
		small(tr, "c", fmt.Sprintf("/registry/pods/ns%d/x", i%2), 1, 1)
	}
	a := tr.Answer(10)
	var names []string
	for _, s := range a.Top {
		if s.Of == "prefix" && s.By == "churn" {
			names = append(names, s.Name)
		}
	}
	if got := strings.Join(names, " "); got != "/registry/pods/ /registry/pods/ns0/ /registry/pods/ns1/" {
		t.Errorf("prefixes %s", got)
	}
}

// TestMetrics: a bounded number of series, none with a name when names are not to be shown, whatever
// the names are.
func TestMetrics(t *testing.T) {
	t.Parallel()
	tr, _ := testTracker()
	for i := range 2000 {
		small(tr, fmt.Sprintf("10.0.%d.%d", i%7, i%3), fmt.Sprintf("k%d/\xff%d", i%13, i%5), 10, 1)
		tr.Add(1, &Use{Watched: fmt.Sprintf("w\xfe%d", i%10), WatchOf: Amounts{Requests: 1, Keys: 1}})
		tr.Add(1, &Use{Watched: fmt.Sprintf("w\xff%d", i%10), WatchOf: Amounts{Requests: 1, Keys: 1}})
	}
	named := true
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(NewCollector(tr, func() bool { return named }))
	count := func(name string) (n int) {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == name {
				n += len(f.GetMetric())
			}
		}
		return n
	}
	if n := count("belay_usage_share"); n == 0 || n > int(kinds)*int(measures)*metricNames {
		t.Errorf("%d series of shares", n)
	}
	named = false
	if n := count("belay_usage_share"); n != 0 {
		t.Errorf("%d series with names while users are on", n)
	}
	if n := count("belay_usage_per_second"); n != int(measures) {
		t.Errorf("%d rates", n)
	}
}

// TestNil: a tracker that is off keeps nothing and answers nothing.
func TestNil(t *testing.T) {
	t.Parallel()
	var tr *Tracker
	tr.Add(1, &Use{Client: "x"})
	if w, a := tr.Sample(1<<30, 1), tr.Answer(10); w != 0 || len(a.Top) != 0 {
		t.Errorf("weight %v, answer %+v", w, a)
	}
}

func BenchmarkSmallRequest(b *testing.B) {
	for _, every := range []uint32{1, mostEvery} {
		b.Run(fmt.Sprint("one of ", every), func(b *testing.B) {
			tr, key := New(nil), []byte("/registry/leases/kube-system/scheduler")
			b.ReportAllocs()
			for b.Loop() {
				tr.every.Store(every)
				if w := tr.Sample(100, 1); w > 0 {
					of := Amounts{Requests: 1, Bytes: 100, Keys: 1, Churn: 1}
					tr.Add(w, &Use{Client: "10.0.0.1", Of: of, Ops: []Op{{Key: key, Of: of}}})
				}
			}
		})
	}
}

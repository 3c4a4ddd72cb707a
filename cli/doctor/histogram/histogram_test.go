package histogram

import (
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/belaydb/belay/cli/doctor/metrics"
	"github.com/belaydb/belay/cli/doctor/report"
)

// buckets are those of etcd's fsyncs, 1 ms to 8 s by powers of two, with these counts.
func buckets(counts ...float64) metrics.Histogram {
	h := metrics.Histogram{}
	upper := 0.001
	for _, c := range counts {
		h.Count += c
		h.Sum += c * upper * 0.75
		h.Buckets = append(h.Buckets, metrics.Bucket{Upper: upper, Count: h.Count})
		upper *= 2
	}
	h.Buckets = append(h.Buckets, metrics.Bucket{Upper: math.Inf(1), Count: h.Count})
	return h
}

func TestStates(t *testing.T) {
	fsync := Kinds[0]
	for _, tc := range []struct {
		h     metrics.Histogram
		state string
		code  int
		modes bool
	}{
		{buckets(100, 10), "ok", report.CodeGood, false},
		{buckets(500, 40, 2, 0, 0, 20, 3), "slow", report.CodeWarning, true},
		{buckets(500, 40, 2, 0, 0, 0, 0, 0, 0, 0, 5, 40), "bad", report.CodeCritical, true},
		{buckets(3, 1), "few", report.CodeUnknown, false},
		// Two that make a p99 are an accident, and two peaks side by side no two faces.
		{buckets(30, 1, 0, 0, 0, 2), "ok", report.CodeGood, false},
		{buckets(10, 5, 48, 20, 52, 5), "slow", report.CodeWarning, false},
	} {
		s := Series{Kind: fsync, Source: "m1", Over: "since its start", H: tc.h}
		if s.State() != tc.state {
			t.Errorf("%v is %s, want %s", tc.h.Buckets, s.State(), tc.state)
		}
		r := Judge("x", time.Now(), []Series{s})
		if r.ExitCode() != tc.code {
			t.Errorf("%s: exit code %d, want %d", tc.state, r.ExitCode(), tc.code)
		}
		var text strings.Builder
		if err := r.Text(&text, report.Style{}); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(text.String(), "modes") != tc.modes {
			t.Errorf("%s: modes are told: %v\n%s", tc.state, !tc.modes, text.String())
		}
		for line := range strings.Lines(text.String()) {
			if n := len([]rune(strings.TrimRight(line, "\n"))); n > 80 {
				t.Errorf("%s: a line of %d columns: %s", tc.state, n, line)
			}
		}
	}
	if s := (Series{Kind: KindOf("other"), H: buckets(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 100)}); s.State() != "-" {
		t.Errorf("a metric without bounds is %s", s.State())
	}
	// What the runbook's LoopLate asks for, whose alert fires at half an election timeout.
	if s := (Series{Kind: KindOf("belay_loop_delay_seconds"), H: buckets(60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 40)}); s.State() != "bad" {
		t.Errorf("a loop that is a second late is %s", s.State())
	}
}

func TestPrometheus(t *testing.T) {
	answers := map[string]string{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		query := r.Form.Get("query")
		for part, result := range answers {
			if strings.Contains(query, part) {
				fmt.Fprintf(w, `{"status":"success","data":{"resultType":"vector","result":[%s]}}`, result)
				return
			}
		}
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"status":"error","errorType":"bad_data","error":"no such thing"}`)
	}))
	defer srv.Close()
	if _, err := FromPrometheus(t.Context(), srv.URL, time.Hour, time.Now(), []string{"x"}); err == nil || !strings.Contains(err.Error(), srv.URL) {
		t.Errorf("an error of the server: %v", err)
	}
	answers["x_bucket[1h]"] = `{"metric":{"instance":"a","le":"+Inf"},"value":[0,"100.2"]},{"metric":{"instance":"a","le":"0.001"},"value":[0,"90.4"]},{"metric":{"instance":"b","le":"0.001"},"value":[0,"7"]}`
	answers["x_sum[1h]"] = `{"metric":{"instance":"a"},"value":[0,"0.5"]}`
	all, err := FromPrometheus(t.Context(), srv.URL, time.Hour, time.Now(), []string{"x"})
	if err != nil || len(all) != 2 || all[0].Source != "a" || all[0].H.Count != 100 || all[0].H.Buckets[0].Count != 90 || all[0].H.Sum != 0.5 || all[0].Over != "in 1h" {
		t.Errorf("%+v, %v", all, err)
	}
}

// TestRoundTripsOfAReport has the histogram that somebody added up with a calculator, rebuilt with
// other ids and counts: one peer near, and one whose answers come either at once or late. The table
// tells count, sum and percentiles, and the second peer's two modes.
func TestRoundTripsOfAReport(t *testing.T) {
	var text strings.Builder
	text.WriteString("# TYPE etcd_network_peer_round_trip_time_seconds histogram\n")
	for peer, counts := range map[string][]int{
		"7d3e91aa04c2b617": {0, 0, 0, 912, 70102, 73090, 73100, 73100, 73100, 73100, 73100, 73100, 73100, 73100, 73100, 73100},
		"c09f52e1d86a7340": {0, 0, 0, 0, 70644, 72811, 72816, 72816, 145403, 145610, 145610, 145610, 145610, 145610, 145610, 145610},
	} {
		upper := 0.0001
		for _, n := range counts {
			fmt.Fprintf(&text, "etcd_network_peer_round_trip_time_seconds_bucket{To=%q,le=\"%g\"} %d\n", peer, upper, n)
			upper *= 2
		}
		last := counts[len(counts)-1]
		fmt.Fprintf(&text, "etcd_network_peer_round_trip_time_seconds_bucket{To=%q,le=\"+Inf\"} %d\n", peer, last)
		fmt.Fprintf(&text, "etcd_network_peer_round_trip_time_seconds_sum{To=%q} %g\n", peer, float64(last)*0.0115)
		fmt.Fprintf(&text, "etcd_network_peer_round_trip_time_seconds_count{To=%q} %d\n", peer, last)
	}
	scrape, err := metrics.Parse(strings.NewReader(text.String()), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	all := Of("m1", nil, scrape, []string{"etcd_network_peer_round_trip_time_seconds"}, func(id string) string { return id })
	r := Judge("a scrape", time.Now(), all)
	rows := map[string]row{}
	for _, one := range r.Data.([]row) {
		rows[one.Peer] = one
	}
	near, far := rows["7d3e91aa04c2b617"], rows["c09f52e1d86a7340"]
	if near.Count != 73100 || near.State != "ok" || near.Modes != 1 || near.P99 > 0.004 {
		t.Errorf("the near peer: %+v", near)
	}
	if far.Count != 145610 || far.Modes != 2 || far.P50 > 0.026 || far.P90 < 0.012 || far.P99 > 0.026 || far.State != "ok" {
		t.Errorf("the peer with two modes: %+v", far)
	}
	if want := 145610 * 0.0115; math.Abs(far.Sum-want) > 1 {
		t.Errorf("sum %v, want %v", far.Sum, want)
	}
}

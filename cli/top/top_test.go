package top

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"
	"github.com/cockroachdb/datadriven"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/cli/doctor/metrics"
	"github.com/belaydb/belay/evidence"
	"github.com/belaydb/belay/usage"
)

var began = time.Date(2026, 11, 29, 8, 0, 0, 0, time.UTC)

// scrape is what a member answers at a time, after it has served so many puts and gets.
func scrape(t *testing.T, belay bool, at time.Time, puts, slow, gets int) *metrics.Scrape {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "process_start_time_seconds %d\n", began.Add(-3*time.Hour).Unix())
	fmt.Fprintf(&b, "process_cpu_seconds_total %f\nprocess_resident_memory_bytes 62914560\n", 100+at.Sub(began).Seconds()*0.07)
	fmt.Fprintf(&b, "etcd_server_leader_changes_seen_total 4\netcd_debugging_mvcc_watcher_total 1200\netcd_debugging_mvcc_slow_watcher_total 1\n")
	if belay {
		b.WriteString("belay_disk_state 0\nbelay_store_state 0\n")
	}
	histogram := func(name, labels string, n, beyond int, unit float64) {
		if labels != "" {
			labels += ","
		}
		fmt.Fprintf(&b, "%s_bucket{%sle=\"%g\"} %d\n", name, labels, unit, n/2)
		fmt.Fprintf(&b, "%s_bucket{%sle=\"%g\"} %d\n", name, labels, unit*2, n-beyond)
		fmt.Fprintf(&b, "%s_bucket{%sle=\"0.512\"} %d\n", name, labels, n-beyond)
		fmt.Fprintf(&b, "%s_bucket{%sle=\"+Inf\"} %d\n", name, labels, n)
		fmt.Fprintf(&b, "%s_sum{%s} 1\n%s_count{%s} %d\n", name, strings.TrimSuffix(labels, ","), name, strings.TrimSuffix(labels, ","), n)
	}
	fmt.Fprintf(&b, "# TYPE %s histogram\n", fsyncs)
	histogram(fsyncs, "", 1000+puts, 0, 0.002)
	fmt.Fprintf(&b, "# TYPE %s histogram\n", durations)
	histogram(durations, `success="true",type="Put"`, puts, slow, 0.004)
	histogram(durations, `success="true",type="Range"`, gets, 0, 0.001)
	histogram(durations, `success="false",type="Put"`, puts/100, 0, 0.004)
	if !belay {
		fmt.Fprintf(&b, "# TYPE %s histogram\n", roundTrips)
		for _, to := range []string{"b", "c"} {
			histogram(roundTrips, `To="`+to+`"`, 100+puts, 0, 0.0008)
		}
	}
	fmt.Fprintf(&b, "%s{grpc_code=\"OK\",grpc_method=\"Status\",grpc_service=\"etcdserverpb.Maintenance\",grpc_type=\"unary\"} %d\n", handled, gets/100)
	fmt.Fprintf(&b, "%s{grpc_code=\"OK\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} %d\n", handled, puts)
	fmt.Fprintf(&b, "%s{grpc_method=\"LeaseKeepAlive\",grpc_service=\"etcdserverpb.Lease\",grpc_type=\"bidi_stream\"} %d\n", received, gets/10)
	s, err := metrics.Parse(strings.NewReader(b.String()), at)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// lookAt is a look at a cluster of three, seconds after it began. kinds: healthy, killed (the first
// member is, from the fourth second on), etcd, users (the caller is not root).
func lookAt(t *testing.T, kind string, seconds int) *Look {
	t.Helper()
	at := began.Add(time.Duration(seconds) * time.Second)
	l := &Look{At: at, ClusterID: 0xcdf818194e3a8c32, Leases: 12}
	killed := kind == "killed" && seconds >= 4
	leader, term := uint64(0xa), uint64(7)
	if killed {
		leader, term = 0xb, 8
	}
	for i, name := range []string{"m1", "m2", "m3"} {
		id := uint64(0xa + i)
		m := Seen{ID: id, Name: name, Endpoint: "http://10.0.0." + fmt.Sprint(i+1) + ":2379", Started: true}
		if killed && i == 0 {
			m.Err, m.ScrapeErr = "connection refused", "connection refused"
			l.Members = append(l.Members, m)
			continue
		}
		m.Status = &clientv3.StatusResponse{
			Header:  &pb.ResponseHeader{ClusterId: l.ClusterID, MemberId: id, Revision: int64(1000 + 100*seconds), RaftTerm: term},
			Version: "3.7.3", Leader: leader, RaftTerm: term, RaftIndex: 5000, RaftAppliedIndex: uint64(5000 - i), DbSize: 123 << 20, DbSizeInUse: 100 << 20, DbSizeQuota: 2 << 30,
		}
		if kind == "healthy" && i == 1 {
			m.Status.DbSize = 2010 << 20
			m.Status.Errors = []string{"memberID:11 alarm:NOSPACE "}
		}
		m.Scrape = scrape(t, kind != "etcd", at, (300+i)*seconds, map[bool]int{true: 2 * seconds}[i == 2], 1000*seconds)
		if kind == "etcd" {
			l.Members = append(l.Members, m)
			continue
		}
		r := &evidence.Report{Member: fmt.Sprintf("%x", id), Name: name, Uptime: 10800 + float64(seconds)}
		for j, peer := range []string{"a", "b", "c"} {
			if j != i {
				r.Links = append(r.Links, evidence.LinkReport{Peer: peer, RTT: 0.0004 * float64(j+1), Tail: 0.003 * float64(i+1)})
			}
		}
		ago := func(s int) (float64, string) {
			return at.Sub(began.Add(time.Duration(s) * time.Second)).Seconds(), began.Add(time.Duration(s) * time.Second).Format(time.RFC3339Nano)
		}
		told := func(seq uint64, s int, e evidence.Told) {
			e.Seq = seq
			e.Ago, e.Time = ago(s)
			r.Events = append(r.Events, e)
		}
		if i == 0 {
			told(1, -7200, evidence.Told{Kind: "elected", Term: 7, Note: "no leader was known"})
		}
		told(2, -60, evidence.Told{Kind: "pressure", Took: 1.2, Count: int64(seconds), Note: "cpu \x1b[31m a"})
		if killed && i == 1 {
			told(3, 4, evidence.Told{Kind: "elected", Peer: "a", Took: 1.2, Term: 8, Note: "nothing had come from a for 1.2 s"})
			_, when := ago(4)
			r.Verdicts = []evidence.Verdict{{Time: when, Cause: "member-killed", Members: []string{"m1"}, Evidence: []string{"nothing had come from it for 1.2 s"}, Advice: "look why its process ended"}}
		}
		m.Record = r
		if kind == "users" {
			m.UsageErr = "who uses it is for root: --user root"
		} else {
			u := &usage.Answer{}
			for _, of := range []string{"prefix", "client", "user", "watch"} {
				for by, rate := range map[string]float64{"requests": 400, "bytes": 4e6, "keys": 800, "churn": 100} {
					for n, share := range []float64{0.9, 0.5, 0.25} {
						u.Top = append(u.Top, usage.Share{Of: of, By: by, Name: fmt.Sprintf("%s-%d/\x1b]0;title\x07/%s", of, n, strings.Repeat("long", 8*n)), Share: share, Rate: rate * share})
					}
				}
			}
			m.Usage = u
		}
		l.Members = append(l.Members, m)
	}
	return l
}

// TestPages shows pages of fixed answers. Their diff is the review (-rewrite).
func TestPages(t *testing.T) {
	t.Parallel()
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var kind, keys string
			var width, height, seconds int
			d.ScanArgs(t, "of", &kind)
			d.ScanArgs(t, "width", &width)
			d.MaybeScanArgs(t, "height", &height)
			d.MaybeScanArgs(t, "keys", &keys)
			if !d.MaybeScanArgs(t, "seconds", &seconds) {
				seconds = 6
			}
			s := &screen{choice: Choice{Every: time.Second, Zone: time.UTC}, width: width, height: height}
			for second := 2; second <= seconds; second += 2 {
				s.Update(looked{lookAt(t, kind, second)})
			}
			for _, key := range strings.Fields(keys) {
				s.Update(press(key))
			}
			s.now = func() time.Time { return s.shown.At }
			lines := page(s.shown, s.choice, width, height)
			if height > 0 && len(lines) != height {
				t.Errorf("%d lines, not %d", len(lines), height)
			}
			var out strings.Builder
			for _, l := range lines {
				if w := ansi.StringWidth(l.text); w > width || clean(l.text) != l.text {
					t.Errorf("%d cells of %d, or a control character: %q", w, width, l.text)
				}
				fmt.Fprintln(&out, "|"+l.text)
			}
			return out.String()
		})
	})
}

func press(key string) tea.KeyPressMsg {
	switch key {
	case "enter":
		return tea.KeyPressMsg{Code: tea.KeyEnter}
	case "esc":
		return tea.KeyPressMsg{Code: tea.KeyEscape}
	case "down":
		return tea.KeyPressMsg{Code: tea.KeyDown}
	}
	return tea.KeyPressMsg{Code: rune(key[0]), Text: key}
}

// TestSmallAndEmpty: no size and no answer breaks a page.
func TestSmallAndEmpty(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"healthy", "killed", "etcd", "users", "nobody"} {
		var story Story
		p := story.Add(&Look{At: began, Err: "connection refused\x1b[2J", Leases: -1})
		if kind != "nobody" {
			story.Add(lookAt(t, kind, 2))
			p = story.Add(lookAt(t, kind, 4))
		}
		for _, width := range []int{1, 20, 40, 80, 300} {
			for _, height := range []int{0, 1, 2, 3, 5, 10, 24, 60} {
				for view := range views {
					for _, c := range []Choice{{View: view}, {View: view, Help: true, Offset: 400}, {View: view, Filter: "none has this"}} {
						for _, l := range page(p, c, width, height) {
							if clean(l.text) != l.text {
								t.Fatalf("%s: a control character in %q", kind, l.text)
							}
						}
					}
				}
			}
		}
	}
}

// TestKeys: what the keys choose, and that a paused screen goes on looking.
func TestKeys(t *testing.T) {
	t.Parallel()
	s := &screen{ctx: context.Background(), look: func(context.Context) *Look { return nil }, now: time.Now, choice: Choice{Every: time.Second}, width: 80, height: 24}
	s.Update(looked{lookAt(t, "killed", 2)})
	s.Update(press("p"))
	_, cmd := s.Update(looked{lookAt(t, "killed", 4)})
	if s.shown.Term != 7 || cmd == nil {
		t.Errorf("paused, it shows term %d; it looks on: %v", s.shown.Term, cmd != nil)
	}
	s.Update(press("p"))
	s.Update(looked{lookAt(t, "killed", 6)})
	if s.shown.Term != 8 || s.shown.Leader != "m2" || s.shown.Members[0].Role != "down" {
		t.Errorf("it shows %+v", s.shown)
	}
	for _, key := range []string{"/", "p", "q", "enter"} {
		if _, cmd := s.Update(press(key)); cmd != nil {
			t.Errorf("%s while the filter is typed does something", key)
		}
	}
	if s.choice.Filter != "pq" || s.choice.Paused {
		t.Errorf("the filter is %q", s.choice.Filter)
	}
	s.choice.Filter, s.choice.View, s.height = "", Events, 8
	for range 100 {
		s.Update(press("j"))
	}
	last := s.choice.Offset
	if s.Update(press("up")); last == 0 || s.choice.Offset != last-1 || len(events(s.shown, s.choice, s.width))-last != s.height-3 {
		t.Errorf("scrolled to %d at the end, and %d a line before", last, s.choice.Offset)
	}
	if _, cmd := s.Update(press("q")); cmd == nil {
		t.Error("q does not quit")
	}
	s.asking = true
	if _, cmd := s.Update(tick{}); cmd != nil {
		t.Error("it looks twice at a time")
	}
}

// TestRestart: the counters of a process that was started again make no rate, and no event of its
// earlier life is lost to the new one's numbers.
func TestRestart(t *testing.T) {
	t.Parallel()
	var story Story
	story.Add(lookAt(t, "healthy", 20))
	again := lookAt(t, "healthy", 2)
	again.At = began.Add(22 * time.Second)
	for i := range again.Members {
		again.Members[i].Record.Uptime = 1
		again.Members[i].Record.Events = []evidence.Told{{Seq: 2, Kind: "disk-slow", Ago: 1}}
	}
	p := story.Add(again)
	for _, r := range p.Requests {
		if r.Rate < 0 {
			t.Errorf("%+v", r)
		}
	}
	kinds := map[string]int{}
	for _, e := range p.Events {
		kinds[e.Kind]++
	}
	if kinds["pressure"] != 3 || kinds["disk-slow"] != 3 {
		t.Errorf("events %v", kinds)
	}
}

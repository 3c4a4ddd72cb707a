package live

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/belaydb/belay/cli/doctor/metrics"
	"github.com/belaydb/belay/cli/doctor/report"
)

var now = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

// page is a member's metrics; fsync is how many syncs there were of 1 ms and of 2 s.
func page(t *testing.T, at time.Time, quick, slow int, more string) *metrics.Scrape {
	t.Helper()
	text := fmt.Sprintf(`# TYPE etcd_disk_wal_fsync_duration_seconds histogram
etcd_disk_wal_fsync_duration_seconds_bucket{le="0.001"} %[1]d
etcd_disk_wal_fsync_duration_seconds_bucket{le="1.024"} %[1]d
etcd_disk_wal_fsync_duration_seconds_bucket{le="2.048"} %[2]d
etcd_disk_wal_fsync_duration_seconds_bucket{le="+Inf"} %[2]d
etcd_disk_wal_fsync_duration_seconds_sum 1
etcd_disk_wal_fsync_duration_seconds_count %[2]d
# TYPE etcd_server_leader_changes_seen_total counter
etcd_server_leader_changes_seen_total 1
# TYPE etcd_server_quota_backend_bytes gauge
etcd_server_quota_backend_bytes 2e9
# TYPE process_start_time_seconds gauge
process_start_time_seconds %[3]d
%[4]s`, quick, quick+slow, now.Add(-time.Hour).Unix(), more)
	s, err := metrics.Parse(strings.NewReader(text), at)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// withDisk is a page of a member that has so much left on its disk.
func withDisk(t *testing.T, free int) *metrics.Scrape {
	return page(t, now.Add(5*time.Second), 1200, 0, fmt.Sprintf("# TYPE belay_disk_free_bytes gauge\nbelay_disk_free_bytes %d\n# TYPE belay_disk_free_minimum_bytes gauge\nbelay_disk_free_minimum_bytes %d\n", free, 128<<20))
}

// withBackup is a page of a leader whose last good backup is of that age.
func withBackup(t *testing.T, tooOld int, age time.Duration) *metrics.Scrape {
	return page(t, now.Add(5*time.Second), 1200, 0, fmt.Sprintf("# TYPE belay_backup_too_old gauge\nbelay_backup_too_old %d\n# TYPE belay_backup_last_good_timestamp_seconds gauge\nbelay_backup_last_good_timestamp_seconds %d\n", tooOld, now.Add(-age).Unix()))
}

// TestFullDiskIsNoQuota: the alarm of a member whose disk is full is not laid to its quota.
func TestFullDiskIsNoQuota(t *testing.T) {
	c := three(t)
	c.Members[0].Belay = &Events{MemberID: "1"}
	c.Members[0].After = withDisk(t, 0)
	c.Alarms = []*pb.AlarmMember{{MemberID: 1, Alarm: pb.AlarmType_NOSPACE}}
	for _, f := range Judge(c).Findings {
		if text := f.What + strings.Join(f.Do, " "); f.ID == "alarm" && (!strings.Contains(text, "disk is full") || strings.Contains(text, "quota")) {
			t.Errorf("%+v", f)
		}
	}
}

// fresh is another status like st.
func fresh(st *clientv3.StatusResponse) *clientv3.StatusResponse {
	return &clientv3.StatusResponse{Header: st.Header, Version: st.Version, Leader: st.Leader, RaftTerm: st.RaftTerm, RaftIndex: st.RaftIndex, RaftAppliedIndex: st.RaftAppliedIndex, DbSize: st.DbSize, DbSizeInUse: st.DbSizeInUse}
}

// three is a cluster of etcd's that is well.
func three(t *testing.T) *Cluster {
	c := &Cluster{At: now, Endpoints: []string{"10.0.0.1:2379"}, ID: 7, TLS: true, AuthKnown: true}
	for i := uint64(1); i <= 3; i++ {
		m := &Member{
			ID: i, ClusterID: 7, Name: fmt.Sprintf("m%d", i), Started: true, Endpoint: fmt.Sprintf("10.0.0.%d:2379", i),
			PeerURLs: []string{fmt.Sprintf("https://10.0.0.%d:2380", i)}, ClientURLs: []string{fmt.Sprintf("https://10.0.0.%d:2379", i)},
			Before: page(t, now, 1000, 0, ""), After: page(t, now.Add(5*time.Second), 1200, 0, ""),
			Clock: Clock{Known: true, Within: 10 * time.Millisecond}, RTT: []time.Duration{time.Millisecond},
			Certificates: []Certificate{{NotAfter: now.AddDate(1, 0, 0)}},
		}
		m.Status = &clientv3.StatusResponse{Header: &pb.ResponseHeader{MemberId: i, ClusterId: 7}, Version: "3.6.5", Leader: 1, RaftTerm: 4, RaftIndex: 1000, RaftAppliedIndex: 1000, DbSize: 1e8, DbSizeInUse: 9e7}
		m.Later = m.Status
		c.Members = append(c.Members, m)
	}
	return c
}

// TestJudge breaks a cluster that is well in one way each time: the finding has to be there, be
// about that member, and be the only one.
func TestJudge(t *testing.T) {
	for _, tc := range []struct {
		id, member string
		severity   report.Severity
		code       int
		does       func(*testing.T, *Cluster)
	}{
		{"", "", report.Good, report.CodeGood, func(*testing.T, *Cluster) {}},
		{"member-unreachable", "m2", report.Warning, report.CodeWarning, func(_ *testing.T, c *Cluster) {
			c.Members[1].Err, c.Members[1].Status, c.Members[1].Later = errors.New("refused"), nil, nil
		}},
		{"member-unreachable", "m3", report.Warning, report.CodeWarning, func(_ *testing.T, c *Cluster) {
			m := c.Members[2]
			m.Started, m.Status, m.Later, m.Before, m.After, m.Endpoint = false, nil, nil, nil, nil, ""
		}},
		{"disk-slow", "m2", report.Critical, report.CodeCritical, func(t *testing.T, c *Cluster) {
			c.Members[1].After = page(t, now.Add(5*time.Second), 1060, 10, "")
		}},
		{"disk-slow", "", report.Unknown, report.CodeUnknown, func(t *testing.T, c *Cluster) {
			c.Members[0].Before, c.Members[0].After = page(t, now, 2, 0, ""), page(t, now.Add(5*time.Second), 3, 0, "")
		}},
		{"leader-changes", "m3", report.Critical, report.CodeCritical, func(t *testing.T, c *Cluster) {
			c.Members[2].After = page(t, now.Add(5*time.Second), 1200, 0, "")
			c.Members[2].Before = page(t, now, 1000, 0, "")
			s := strings.NewReader("# TYPE etcd_server_leader_changes_seen_total counter\netcd_server_leader_changes_seen_total 0\n")
			c.Members[2].Before, _ = metrics.Parse(s, now)
		}},
		{"alarm", "m1", report.Critical, report.CodeCritical, func(_ *testing.T, c *Cluster) {
			c.Alarms = []*pb.AlarmMember{{MemberID: 1, Alarm: pb.AlarmType_NOSPACE}}
		}},
		{"disk-full", "m2", report.Warning, report.CodeWarning, func(t *testing.T, c *Cluster) { c.Members[1].After = withDisk(t, 900<<20) }},
		{"disk-full", "m2", report.Critical, report.CodeCritical, func(t *testing.T, c *Cluster) { c.Members[1].After = withDisk(t, 200<<20) }},
		{"", "", report.Good, report.CodeGood, func(t *testing.T, c *Cluster) { c.Members[1].After = withDisk(t, 2<<30) }},
		{"backup-too-old", "m1", report.Critical, report.CodeCritical, func(t *testing.T, c *Cluster) { c.Members[0].After = withBackup(t, 1, 3*time.Hour) }},
		{"", "", report.Good, report.CodeGood, func(t *testing.T, c *Cluster) { c.Members[0].After = withBackup(t, 0, time.Minute) }},
		{"quota", "m2", report.Critical, report.CodeCritical, func(_ *testing.T, c *Cluster) {
			st := fresh(c.Members[1].Status)
			st.DbSize = 1.99e9
			c.Members[1].Later = st
		}},
		{"quota", "m1", report.Warning, report.CodeWarning, func(_ *testing.T, c *Cluster) {
			// Belay's quota, too, is of the size, whatever of it is in use.
			c.Members[0].Belay = &Events{MemberID: "1"}
			st := fresh(c.Members[0].Status)
			st.DbSize, st.DbSizeInUse = 1.7e9, 1e8
			c.Members[0].Later = st
		}},
		{"quota", "m3", report.Warning, report.CodeWarning, func(_ *testing.T, c *Cluster) {
			st := fresh(c.Members[2].Status)
			st.DbSize = 1e9 // nine tenths of it free
			c.Members[2].Later = st
		}},
		{"member-behind", "m2", report.Critical, report.CodeCritical, func(_ *testing.T, c *Cluster) {
			st := fresh(c.Members[1].Status)
			st.RaftIndex, st.RaftAppliedIndex = 9000, 4100
			c.Members[1].Later = st
		}},
		{"certificate-expiry", "m1", report.Critical, report.CodeCritical, func(_ *testing.T, c *Cluster) {
			c.Members[0].Certificates[0].NotAfter = now.Add(48 * time.Hour)
		}},
		{"clock-differs", "", report.Warning, report.CodeWarning, func(_ *testing.T, c *Cluster) { c.Members[1].Clock.Ahead = 3 * time.Second }},
		{"version", "", report.Warning, report.CodeWarning, func(_ *testing.T, c *Cluster) {
			st := fresh(c.Members[1].Status)
			st.Version = "3.5.21"
			c.Members[1].Status, c.Members[1].Later = st, st
		}},
		{"version", "m1", report.Critical, report.CodeCritical, func(_ *testing.T, c *Cluster) {
			for _, m := range c.Members {
				st := fresh(m.Status)
				st.Version = "3.5.9"
				m.Status, m.Later = st, st
			}
			c.Members[0].Status.Version, c.Members[1].Status.Version, c.Members[2].Status.Version = "3.5.2", "3.5.2", "3.5.2"
		}},
		{"membership-one-machine", "", report.Warning, report.CodeWarning, func(_ *testing.T, c *Cluster) { c.Members[1].PeerURLs = c.Members[0].PeerURLs }},
		{"membership-learner", "m3", report.Warning, report.CodeWarning, func(t *testing.T, c *Cluster) {
			c.Members[2].Learner = true
			more := *c.Members[0]
			more.ID, more.Name, more.PeerURLs = 4, "m4", []string{"https://10.0.0.4:2380"}
			c.Members = append(c.Members, &more)
		}},
		{"read-slow", "m2", report.Warning, report.CodeWarning, func(_ *testing.T, c *Cluster) { c.Members[1].Read.Took = time.Second }},
		{"slow-watchers", "m1", report.Warning, report.CodeWarning, func(t *testing.T, c *Cluster) {
			c.Members[0].Before = page(t, now, 1000, 0, "etcd_debugging_mvcc_slow_watcher_total 3\netcd_debugging_mvcc_watcher_total 10\n")
			c.Members[0].After = page(t, now.Add(5*time.Second), 1200, 0, "etcd_debugging_mvcc_slow_watcher_total 2\netcd_debugging_mvcc_watcher_total 10\n")
		}},
		{"descriptors", "m1", report.Critical, report.CodeCritical, func(t *testing.T, c *Cluster) {
			c.Members[0].After = page(t, now.Add(5*time.Second), 1200, 0, "process_open_fds 1000\nprocess_max_fds 1024\n")
		}},
		{"open-to-all", "", report.Warning, report.CodeWarning, func(_ *testing.T, c *Cluster) {
			c.TLS = false
			for _, m := range c.Members {
				m.ClientURLs = []string{strings.Replace(m.ClientURLs[0], "https", "http", 1)}
			}
		}},
	} {
		c := three(t)
		tc.does(t, c)
		r := Judge(c)
		found := false
		for _, f := range r.Findings {
			switch {
			case f.Severity == report.Good:
			case f.ID == tc.id && (f.Member == tc.member || tc.id == "version"):
				found = true
				if f.Severity != tc.severity {
					t.Errorf("%s at %q is %s, want %s: %s", f.ID, f.Member, f.Severity, tc.severity, f.What)
				}
				if f.Severity != report.Unknown && len(f.Do) == 0 {
					t.Errorf("%s has no advice", f.ID)
				}
			default:
				t.Errorf("%s at %q: also found %s at %q: %s %v", tc.id, tc.member, f.ID, f.Member, f.What, f.Evidence)
			}
		}
		if tc.id != "" && !found {
			t.Errorf("%s at %q was not found", tc.id, tc.member)
		}
		if code := r.ExitCode(); code != tc.code {
			t.Errorf("%s at %q: exit code %d, want %d", tc.id, tc.member, code, tc.code)
		}
		var text strings.Builder
		if err := r.Text(&text, report.Style{}); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(text.String()) {
			if n := len([]rune(strings.TrimRight(line, "\n"))); n > 80 {
				t.Errorf("%s: a line of %d columns: %s", tc.id, n, line)
			}
		}
	}
}

// TestOthersApart: what answers where a member was expected is told, and nothing that it said is taken
// for the cluster's. With endpoints of two clusters doctor had spoken of one cluster of both.
func TestOthersApart(t *testing.T) {
	for _, tc := range []struct {
		name, id, member string
		severity         report.Severity
		does             func(c *Cluster)
	}{
		{"another cluster at a member's URL", "membership-other-cluster", "m3", report.Critical, func(c *Cluster) {
			c.Members[2].Status.Header = &pb.ResponseHeader{MemberId: 3, ClusterId: 8} // a member's id may be the same: it comes from its URL
			c.Members[2].Status.Leader = 3
		}},
		{"another member at a member's URL", "membership-other-member", "m3", report.Warning, func(c *Cluster) {
			c.Members[2].Status = c.Members[1].Status
		}},
		{"an endpoint of another cluster", "membership-other-cluster", "", report.Critical, func(c *Cluster) {
			c.Others = []Other{{Endpoint: "10.0.0.9:2379", ClusterID: 8, MemberID: 9}}
		}},
		{"a removed member's endpoint", "membership-other-member", "", report.Warning, func(c *Cluster) {
			c.Others = []Other{{Endpoint: "10.0.0.9:2379", ClusterID: 7, MemberID: 9}}
		}},
	} {
		c := three(t)
		tc.does(c)
		c.setOthersApart()
		var bad []report.Finding
		for _, f := range Judge(c).Findings {
			if f.Severity != report.Good {
				bad = append(bad, f)
			} else if f.ID == "member-unreachable" && tc.member != "" {
				t.Errorf("%s: %s", tc.name, f.What)
			}
		}
		if len(bad) != 1 || bad[0].ID != tc.id || bad[0].Member != tc.member || bad[0].Severity != tc.severity {
			t.Errorf("%s: %+v", tc.name, bad)
		}
	}
	c := three(t)
	c.setOthersApart()
	if len(c.Others) > 0 {
		t.Errorf("of a cluster that is well: %+v", c.Others)
	}
}

// TestNotAccused has what looks like a fault and is none, or is the consequence of one that is told.
func TestNotAccused(t *testing.T) {
	rtt := func(quick, slow int) string {
		return fmt.Sprintf(`# TYPE etcd_network_peer_round_trip_time_seconds histogram
etcd_network_peer_round_trip_time_seconds_bucket{To="2",le="0.0064"} %[1]d
etcd_network_peer_round_trip_time_seconds_bucket{To="2",le="0.2048"} %[2]d
etcd_network_peer_round_trip_time_seconds_bucket{To="2",le="+Inf"} %[2]d
etcd_network_peer_round_trip_time_seconds_sum{To="2"} 1
etcd_network_peer_round_trip_time_seconds_count{To="2"} %[2]d
`, quick, quick+slow)
	}
	lost := func(n int) string {
		return fmt.Sprintf("# TYPE etcd_network_peer_sent_failures_total counter\netcd_network_peer_sent_failures_total{To=\"2\"} %d\n", n)
	}
	c := three(t)
	m1, m2 := c.Members[0], c.Members[1]
	// One round trip of 33 that was late when the member started makes a p99, and no finding.
	m1.Before, m1.After = page(t, now, 1000, 0, rtt(32, 1)+lost(3)), page(t, now.Add(5*time.Second), 1200, 0, rtt(32, 1)+lost(90))
	// A member that is down: what others could not send it is the same fault.
	m2.Err, m2.Status, m2.Later, m2.Before, m2.After = errors.New("refused"), nil, nil, nil, nil
	r := Judge(c)
	for _, f := range r.Findings {
		if f.Severity != report.Good && f.ID != "member-unreachable" {
			t.Errorf("%s at %q: %s %v", f.ID, f.Member, f.What, f.Evidence)
		}
		if f.ID == "member-unreachable" && !strings.Contains(strings.Join(f.Evidence, "\n"), "m1 could not reach it either") {
			t.Errorf("%v", f.Evidence)
		}
	}
	if r.ExitCode() != report.CodeWarning {
		t.Errorf("exit code %d", r.ExitCode())
	}

	// Slow fsyncs on a machine without CPU to spare may be the CPU's; of another machine nothing is
	// known.
	for here, want := range map[bool]report.Confidence{true: report.Possible, false: report.Certain} {
		c = three(t)
		c.Machine = pressure("some avg10=61.50 avg60=1.00 avg300=0.10 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
		c.Members[1].Here = here
		c.Members[1].After = page(t, now.Add(5*time.Second), 1060, 10, "")
		for _, f := range Judge(c).Findings {
			if f.ID == "disk-slow" && f.Member == "m2" && (f.Confidence != want || here == (f.Severity == report.Critical) || strings.Contains(f.Evidence[0], "62 % of the last 10 s") != here) {
				t.Errorf("here %t: %+v", here, f)
			}
		}
	}
}

// TestSlowLinkNow: what a member's links are now counts, and not what they were in the weeks since it
// started.
func TestSlowLinkNow(t *testing.T) {
	const quick = `# TYPE etcd_network_peer_round_trip_time_seconds histogram
etcd_network_peer_round_trip_time_seconds_bucket{To="2",le="0.0064"} %[1]d
etcd_network_peer_round_trip_time_seconds_bucket{To="2",le="0.8192"} %[2]d
etcd_network_peer_round_trip_time_seconds_bucket{To="2",le="+Inf"} %[2]d
etcd_network_peer_round_trip_time_seconds_sum{To="2"} 1
etcd_network_peer_round_trip_time_seconds_count{To="2"} %[2]d
`
	for _, tc := range []struct {
		what        string
		before, now [2]int // round trips that were quick, and that took long
		link        Link   // of Belay
		severity    report.Severity
		says        string
	}{
		{"slow by pings", [2]int{100000, 0}, [2]int{100000, 1}, Link{RTT: 0.4, Tail: 0.405}, report.Critical, "m1 to m2: p50 400 ms of the last 30"},
		{"lossy by pings", [2]int{100000, 0}, [2]int{100000, 1}, Link{RTT: 0.001, Tail: 0.3, Late: 7}, report.Warning, "7 of them late"},
		{"well by pings again", [2]int{500, 500}, [2]int{501, 500}, Link{RTT: 0.001, Tail: 0.002}, report.Good, ""},
		{"slow in a longer look", [2]int{100000, 0}, [2]int{100000, 10}, Link{}, report.Critical, "of 10 in 5.0 s"},
	} {
		c := three(t)
		m := c.Members[0]
		m.Before = page(t, now, 1000, 0, fmt.Sprintf(quick, tc.before[0], tc.before[0]+tc.before[1]))
		m.After = page(t, now.Add(5*time.Second), 1200, 0, fmt.Sprintf(quick, tc.now[0], tc.now[0]+tc.now[1]))
		if tc.link.RTT > 0 {
			tc.link.Peer = "2"
			m.Belay = &Events{MemberID: "1", Links: []Link{tc.link}}
		}
		found, said := report.Good, ""
		for _, f := range JudgeNetwork(c, nil).Findings {
			if f.ID == "network-slow" {
				found, said = f.Severity, strings.Join(f.Evidence, "\n")
			}
		}
		if found != tc.severity || found != report.Good && !strings.Contains(said, tc.says) {
			t.Errorf("%s: severity %v, want %v: %s", tc.what, found, tc.severity, said)
		}
	}
}

// TestVerdicts: near misses of one cause are one finding, changes of leader each their own.
func TestVerdicts(t *testing.T) {
	c := three(t)
	e := &Events{MemberID: "1", Now: now.Format(time.RFC3339)}
	for i, v := range []Verdict{
		{Incident: "near miss: m1 leads on", Cause: "cpu-starved", Members: []string{"m1"}},
		{Incident: "near miss: m1 leads on", Cause: "cpu-starved", Members: []string{"m2", "m3"}},
		{Incident: "election: m1 leads, before it m2", Cause: "disk-slow", Members: []string{"m2"}},
	} {
		v.Time, v.Advice = now.Add(time.Duration(i-10)*time.Minute).Format(time.RFC3339), "advice"
		e.Verdicts = append(e.Verdicts, v)
	}
	c.Members[0].Belay = e
	var got []string
	for _, f := range Judge(c).Findings {
		if strings.HasPrefix(f.ID, "verdict-") {
			got = append(got, f.Member+": "+f.What+" "+f.Evidence[len(f.Evidence)-1])
		}
	}
	want := []string{
		"m2, m3: 9 min ago: near miss: m1 leads on; the cause was cpu-starved at m2, m3. 2 times within the last hour; the others, by how long ago: 10 min (m1)",
		"m2: 8 min ago: election: m1 leads, before it m2; the cause was disk-slow at m2. the verdict of m1, which led",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestNatural(t *testing.T) {
	names := []string{"m10", "m2", "etcd-0", "m1", "m02", "etcd-11", "a"}
	slices.SortStableFunc(names, natural)
	if got := strings.Join(names, " "); got != "a etcd-0 etcd-11 m1 m2 m02 m10" {
		t.Error(got)
	}
}

func TestPlain(t *testing.T) {
	for text, want := range map[string]string{
		`connection error: desc = "transport: Error while dialing: dial tcp: lookup foo.invalid on 10.0.0.2:53: no such host"`: "lookup foo.invalid on 10.0.0.2:53: no such host",
		`connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused"`:         "connection refused",
		`Get "http://x/metrics": context deadline exceeded`:                                                                    "no answer in time",
	} {
		if got := plain(errors.New(text)); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

// TestRefused: a member that does not run is told from one that does not answer.
func TestRefused(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := newGatherer(Options{Client: &clientv3.Config{Logger: zap.NewNop()}, Timeout: 300 * time.Millisecond})
	m := &Member{Endpoint: "http://" + listener.Addr().String()}
	if _, err := g.status(t.Context(), m); err == nil || plain(err) != inTime { // nobody accepts
		t.Errorf("one that is stopped: %v", err)
	}
	listener.Close()
	if _, err := g.status(t.Context(), m); err == nil || plain(err) != "connection refused" {
		t.Errorf("one that does not run: %v", err)
	}
}

func TestNobody(t *testing.T) {
	r := Judge(&Cluster{At: now, Endpoints: []string{"x:1"}, Errors: []string{"x:1: refused"}})
	if r.ExitCode() != report.CodeCritical || !r.Blind || len(r.Findings) != 1 {
		t.Errorf("%+v", r)
	}
	// Metrics that nobody answers are no good news.
	c := three(t)
	for _, m := range c.Members {
		m.Before, m.After, m.MetricsErr = nil, nil, errors.New("403")
	}
	r = Judge(c)
	if r.ExitCode() != report.CodeUnknown {
		t.Errorf("without metrics: exit code %d", r.ExitCode())
	}
}

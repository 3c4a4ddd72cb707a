package follow

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/belaydb/belay/cli/doctor/live"
	"github.com/belaydb/belay/cli/doctor/metrics"
)

var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// at is noon and so many seconds.
func at(seconds float64) time.Time { return noon.Add(time.Duration(seconds * float64(time.Second))) }

// belay is a member of Belay with an id, as it answers at a time. Events are of the seconds after noon
// that they name.
func belay(now float64, id uint64, leader, term uint64, events []Event, verdicts ...live.Verdict) Seen {
	r := &Record{Member: fmt.Sprintf("%x", id), Name: fmt.Sprintf("m%d", id), Leader: fmt.Sprintf("%x", leader), Term: term, Verdicts: verdicts, got: at(now)}
	for _, e := range events {
		e.Time = at(e.Ago).Format(time.RFC3339Nano)
		e.Ago = now - e.Ago
		r.Events = append(r.Events, e)
	}
	return Seen{ID: id, Name: r.Name, Leader: leader, Term: term, Belay: r}
}

func silentMember(id uint64, refused bool) Seen {
	return Seen{ID: id, Name: fmt.Sprintf("m%d", id), Err: map[bool]string{true: "connection refused", false: "no answer"}[refused], Refused: refused}
}

// lines are what a Tracker reports of a look.
func lines(t *Tracker, now float64, members ...Seen) (all []string) {
	for _, r := range t.Observe(Look{At: at(now), Members: members}) {
		all = append(all, strings.TrimPrefix(r.Line(), "2026-11-29 "))
	}
	return all
}

func expect(t *testing.T, what string, have []string, want ...string) {
	t.Helper()
	if !slices.Equal(have, want) {
		t.Errorf("%s:\n%s\nwant\n%s", what, strings.Join(have, "\n"), strings.Join(want, "\n"))
	}
}

func verdict(after float64, incident, cause string, members ...string) live.Verdict {
	return live.Verdict{Time: at(after).Format(time.RFC3339Nano), Incident: incident, Cause: cause, Members: members, Evidence: []string{"it was seen"}, Advice: "look"}
}

func TestBelay(t *testing.T) {
	first := []Event{{Kind: "elected", Term: 2, Ago: -600, Note: "no leader was known"}}
	tr := NewTracker(time.Time{})
	expect(t, "begin", lines(tr, 0, belay(0, 1, 1, 2, first), belay(0, 2, 1, 2, nil), belay(0, 3, 1, 2, nil)))

	// An election. The verdict comes a moment later, and the report with it.
	two := []Event{{Kind: "elected", Term: 3, Peer: "1", Took: 1.25, Ago: 10}}
	expect(t, "no verdict yet", lines(tr, 11, silentMember(1, false), belay(11, 2, 2, 3, two), belay(11, 3, 2, 3, []Event{{Kind: "followed", Peer: "2", Term: 3, Ago: 10}})))
	why := verdict(12.5, "election: m2 leads, before it m1", "process-paused", "m1")
	expect(t, "a near miss is no verdict on it", lines(tr, 12, silentMember(1, false), belay(12, 2, 2, 3, two, verdict(11, "near miss: m2 leads on", "slow-link", "m3"))),
		"12:00:12 m1 does not answer: no answer")
	expect(t, "the verdict", lines(tr, 13, belay(13, 1, 2, 3, nil), belay(13, 2, 2, 3, two, why)),
		"12:00:13 m1 answers again",
		"12:00:10 m1 -> m2, term 3, gap 1.2 s: m1: process-paused, likely")
	expect(t, "once", lines(tr, 14, belay(14, 1, 2, 3, nil), belay(14, 2, 2, 3, two, why)))

	// Two changes between two looks, one of them asked for; of one the verdict is not there in time.
	three := []Event{{Kind: "elected", Term: 4, Peer: "2", Note: "asked to lead by 2", Took: 9, Ago: 20}}
	again := append(slices.Clone(two), Event{Kind: "elected", Term: 5, Peer: "3", Took: 2, Ago: 24})
	asked := verdict(22.6, "hand-over: m3 leads, before it m2", "transfer-requested", "m2")
	expect(t, "a hand-over", lines(tr, 25, belay(25, 2, 2, 5, again, why), belay(25, 3, 2, 5, three, asked)),
		"12:00:20 m2 -> m3, term 4, no gap: m2: transfer-requested, certain")
	expect(t, "too late", lines(tr, 34, belay(34, 2, 2, 5, again, why), silentMember(3, true)),
		"12:00:24 m3 -> m2, term 5, gap 2.0 s: the verdict is not there yet")
	unsure := verdict(54, "election: m2 leads, before it m3", "unreachable", "m3")
	unsure.Missing = []string{"m3"}
	expect(t, "later", lines(tr, 55, belay(55, 2, 2, 5, again, why, unsure), silentMember(3, true)),
		"12:00:55 m3 does not answer: connection refused",
		"12:00:24 term 5: m3: unreachable, possible")
	// All are lost, which is said once, and one is back with what happened meanwhile.
	expect(t, "lost", lines(tr, 60, silentMember(2, true), silentMember(3, true)))
	expect(t, "lost", lines(tr, 61, silentMember(2, true), silentMember(3, true)), "12:01:01 m2 does not answer: connection refused", "12:01:01 no member answers; asking on")
	expect(t, "lost", lines(tr, 62, silentMember(2, true), silentMember(3, true)))
	past := append(again, Event{Kind: "elected", Term: 7, Peer: "2", Took: 0.5, Ago: 64},
		Event{Kind: "judged", Ago: 67, Note: "election: m2 leads again; cause unknown; members ; m2 was elected; nothing explains it"},
		Event{Kind: "elected", Term: 8, Took: 1, Ago: 70, Note: "no leader was known"})
	expect(t, "back", lines(tr, 90, belay(90, 2, 2, 8, past), silentMember(3, true)),
		"12:01:30 m2 answers again",
		"12:01:04 m2 -> m2, term 7, gap 500 ms: cause not to be told; /debug/belay/events of all members would tell",
		"12:01:10 m2 -> m2, term 8, gap 1.0 s: first-leader, certain")
}

// What was before the first look is reported from Since on, each with what is known.
func TestSince(t *testing.T) {
	m1 := belay(0, 1, 2, 4, []Event{
		{Kind: "elected", Term: 2, Ago: -7000, Note: "no leader was known"},
		{Kind: "elected", Term: 3, Peer: "2", Took: 1, Ago: -3000}, {Kind: "judged", Ago: -2997, Note: "election: m1 leads, before it m2; cause partition; members m2; heard nothing"},
	})
	m2 := belay(0, 2, 2, 4, []Event{{Kind: "elected", Term: 4, Peer: "1", Took: 2, Ago: -900}})
	tr := NewTracker(at(-3600))
	expect(t, "missed", lines(tr, 0, m1, m2), "11:10:00 m2 -> m1, term 3, gap 1.0 s: m2: partition, likely (missed)")
	m1.Belay.got, m2.Belay.got = at(9), at(9)
	for _, m := range []Seen{m1, m2} {
		for i := range m.Belay.Events {
			m.Belay.Events[i].Ago += 9
		}
	}
	expect(t, "without a verdict", lines(tr, 9, m1, m2), "11:45:00 m1 -> m2, term 4, gap 2.0 s: cause not to be told; the log of m2 would tell (missed)")
	// Who has only now begun to look knows no more than who leads.
	expect(t, "no record", lines(NewTracker(at(-3600)), 0, belay(0, 1, 2, 4, nil), belay(0, 2, 2, 4, nil)))
}

// etcd is a member of etcd as it answers.
func etcdMember(id, leader, term uint64, started, late float64, slowSyncs float64) Seen {
	text := fmt.Sprintf(`process_start_time_seconds %g
etcd_server_leader_changes_seen_total %d
etcd_server_heartbeat_send_failures_total %g
# TYPE etcd_disk_wal_fsync_duration_seconds histogram
etcd_disk_wal_fsync_duration_seconds_bucket{le="0.001"} 100
etcd_disk_wal_fsync_duration_seconds_bucket{le="1.024"} 100
etcd_disk_wal_fsync_duration_seconds_bucket{le="2.048"} %[4]g
etcd_disk_wal_fsync_duration_seconds_bucket{le="+Inf"} %[4]g
etcd_disk_wal_fsync_duration_seconds_sum 1
etcd_disk_wal_fsync_duration_seconds_count %[4]g
`, started, term-1, late, 100+slowSyncs)
	s, err := metrics.Parse(strings.NewReader(text), noon)
	if err != nil {
		panic(err)
	}
	return Seen{ID: id, Name: fmt.Sprintf("m%d", id), Leader: leader, Term: term, Counters: CountersOf(s)}
}

func TestEtcd(t *testing.T) {
	for name, c := range map[string]struct {
		then []Seen // m1, which led, at the looks after another one leads
		want string
	}{
		"killed": {[]Seen{silentMember(1, true)},
			"12:00:03 m1 -> m2, term 3, gap at most 2.0 s: m1: process-ended, certain"},
		"started again": {[]Seen{silentMember(1, false), etcdMember(1, 2, 3, 500, 0, 0)},
			"12:00:03 m1 -> m2, term 3, gap at most 2.0 s: m1: process-ended, certain"},
		"disk": {[]Seen{etcdMember(1, 2, 3, 100, 3, 1)},
			"12:00:03 m1 -> m2, term 3, gap at most 2.0 s: m1: disk-slow, likely"},
		"silent": {slices.Repeat([]Seen{silentMember(1, false)}, 12),
			"12:00:03 m1 -> m2, term 3, gap at most 2.0 s: m1: unreachable, likely"},
		"late": {append(slices.Repeat([]Seen{silentMember(1, false)}, 3), slices.Repeat([]Seen{etcdMember(1, 2, 3, 100, 3, 0)}, 9)...),
			"12:00:03 m1 -> m2, term 3, gap at most 2.0 s: m1: stood-still, possible; the log of m1 would tell"},
		"nothing": {slices.Repeat([]Seen{etcdMember(1, 2, 3, 100, 0, 0)}, 12),
			"12:00:03 m1 -> m2, term 3, gap at most 2.0 s: cause not to be told; the log of m1 would tell"},
	} {
		tr := NewTracker(time.Time{})
		var have []string
		see := func(now float64, members ...Seen) {
			for _, line := range lines(tr, now, members...) {
				if strings.Contains(line, "->") {
					have = append(have, line)
				}
			}
		}
		see(1, etcdMember(1, 1, 2, 100, 0, 0), etcdMember(2, 1, 2, 100, 0, 0), etcdMember(3, 1, 2, 100, 0, 0))
		see(2, silentMember(1, false), etcdMember(2, 0, 2, 100, 0, 0), etcdMember(3, 0, 2, 100, 0, 0))
		for i, m1 := range c.then {
			see(3+float64(i), m1, etcdMember(2, 2, 3, 100, 0, 0), etcdMember(3, 2, 3, 100, 0, 0))
		}
		expect(t, name, have, c.want)
	}
	// More than one change between two looks.
	tr := NewTracker(time.Time{})
	tr.Observe(Look{At: at(1), Members: []Seen{etcdMember(1, 1, 2, 100, 0, 0), etcdMember(2, 1, 2, 100, 0, 0)}})
	reports := tr.Observe(Look{At: at(2), Members: []Seen{silentMember(1, true), etcdMember(2, 2, 5, 100, 0, 0)}})
	if len(reports) != 1 || !slices.Contains(reports[0].Evidence, "2 more changes of leader came and went between two looks") {
		t.Errorf("%+v", reports)
	}
}

package follow

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/belaydb/belay/cli/doctor/metrics"
)

// Counters are what a member's /metrics say that may explain a change of leader.
type Counters struct {
	At             time.Time
	Started        float64 // of the process, seconds since 1970; 0: not told
	Changes        float64 // of leader, seen since the start
	LateHeartbeats float64 // that could not be sent in time
	Syncs          metrics.Histogram
}

// Names of etcd's metrics, from 3.4 to 3.7.
const (
	metricStarted    = "process_start_time_seconds"
	metricChanges    = "etcd_server_leader_changes_seen_total"
	metricHeartbeats = "etcd_server_heartbeat_send_failures_total"
	metricSyncs      = "etcd_disk_wal_fsync_duration_seconds"
)

// CountersOf takes them out of a scrape.
func CountersOf(s *metrics.Scrape) *Counters {
	c := &Counters{At: s.At}
	c.Started, _ = s.Value(metricStarted)
	c.Changes, _ = s.Value(metricChanges)
	c.LateHeartbeats, _ = s.Value(metricHeartbeats)
	c.Syncs, _ = s.Histogram(metricSyncs)
	return c
}

// A scene is what is known of the old leader around a change, on etcd.
type scene struct {
	before    *Counters // before the change; nil: none were asked for
	after     *Counters // the last since
	refused   bool      // it did not listen since
	silent    int       // looks since without an answer that were not refused
	lastErr   string
	restarted bool
}

// slowSync is the bound of a bucket over which a sync costs a leader of etcd its leadership: an
// election timeout. A bucket of that bound is in every version.
const slowSync = 1.024

// fromStatus finds a change in who the members say leads.
func (t *Tracker) fromStatus(l Look) {
	var leader, term uint64
	votes := map[uint64]int{}
	for _, m := range l.Members {
		if m.Err != "" {
			continue
		}
		if m.Term > term {
			term, leader = m.Term, 0
		}
		if m.Term == term && m.Leader != 0 {
			leader = m.Leader
			votes[leader]++
		}
	}
	if leader == 0 {
		return
	}
	if t.leader == 0 {
		t.leader, t.term, t.ledAt = leader, term, l.At
		return
	}
	if leader == t.leader && term == t.term {
		t.ledAt = l.At
		return
	}
	c := t.add(&change{term: term, at: l.At, found: l.At, from: t.leader, to: leader, without: l.At.Sub(t.ledAt), atMost: true, etcd: &scene{}})
	if c.etcd == nil {
		c.etcd = &scene{}
	}
	if old := t.last[t.leader]; old != nil {
		c.etcd.before = old.Counters
	}
	for i := range l.Members {
		m := &l.Members[i]
		before := t.last[m.ID]
		if m.Counters == nil || before == nil || before.Counters == nil || m.Counters.Started != before.Counters.Started {
			continue
		}
		c.between = max(c.between, int(m.Counters.Changes-before.Counters.Changes)-1)
	}
	// A member that loses its leader and gets one counts one change for each.
	c.between = max(0, min(c.between, int(term-t.term)-1))
	t.leader, t.term, t.ledAt = leader, term, l.At
	for i := range l.Members {
		t.compare(&l.Members[i])
	}
}

// compare takes what the old leader of a change says since.
func (t *Tracker) compare(m *Seen) {
	for _, c := range t.changes {
		if c.etcd == nil || c.told || c.from != m.ID {
			continue
		}
		switch s := c.etcd; {
		case m.Err != "":
			s.lastErr = m.Err
			if m.Refused {
				s.refused = true
			} else {
				s.silent++
			}
		case m.Counters != nil:
			s.after = m.Counters
			s.restarted = s.before != nil && s.before.Started != 0 && m.Counters.Started != 0 && m.Counters.Started > s.before.Started+0.5
		}
	}
}

// etcdCause is what metrics tell of a change. It is decided when waiting would not change it.
func (t *Tracker) etcdCause(c *change, now time.Time) (why Report, decided bool) {
	s, old := c.etcd, t.name(c.from)
	logOf := "the log of " + orNobody(old)
	waited := now.Sub(c.found) >= patience
	switch {
	case c.from == c.to:
		return Report{
			Cause: NotTold, Evidence: []string{old + " was elected again: it lost the others for a moment, or they lost it"}, Tells: logOf,
		}, waited
	case s.restarted:
		return Report{
			Member: old, Cause: "process-ended", Sure: certain, Tells: logOf + ", or journalctl",
			Evidence: []string{fmt.Sprintf("its process was started again (%s %.0f, before %.0f)", metricStarted, s.after.Started, s.before.Started), "whether it was stopped, killed or crashed no metric tells"},
			Advice:   "see why it ended: the supervisor's log, the kernel's log (out of memory), the last lines of its own",
		}, true
	case s.refused:
		return Report{
			Member: old, Cause: "process-ended", Sure: certain, Tells: logOf + ", or journalctl",
			Evidence: []string{"nobody listens on its client port: " + s.lastErr, "whether it was stopped, killed or crashed no metric tells"},
			Advice:   "see why it ended: the supervisor's log, the kernel's log (out of memory), the last lines of its own",
		}, true
	case s.before == nil:
		return Report{Cause: NotTold, Evidence: []string{"the metrics of " + orNobody(old) + " before it are not known"}, Tells: logOf}, waited
	case s.silent > 0 && s.after == nil:
		return Report{
			Member: old, Cause: "unreachable", Sure: likely, Tells: logOf + ", and that machine,",
			Evidence: []string{"it does not answer: " + s.lastErr, "cut off, frozen, or its machine is down"},
			Advice:   "look whether the machine runs, then at its network",
		}, waited
	case s.after == nil:
		return Report{Cause: NotTold, Evidence: []string{"the metrics of " + old + " since are not known"}, Tells: logOf}, waited
	}
	if d, ok := s.after.Syncs.Since(s.before.Syncs); ok {
		if n, ok := d.Above(slowSync); ok && n > 0 {
			return Report{
				Member: old, Cause: "disk-slow", Sure: likely,
				Evidence: []string{fmt.Sprintf("%.0f fsyncs of its log took over %s around then, p99 %s", n, metrics.Seconds(slowSync), d.QuantileText(0.99))},
				Advice:   "find what else writes to that disk: belay doctor neighbours, there; belay doctor disk",
			}, true
		}
	}
	evidence := []string{}
	if n := s.after.LateHeartbeats - s.before.LateHeartbeats; n > 0 {
		evidence = append(evidence, fmt.Sprintf("%.0f heartbeats of %s were late, and none of its fsyncs took over %s", n, old, metrics.Seconds(slowSync)))
	}
	if s.silent > 0 {
		evidence = append(evidence, fmt.Sprintf("it did not answer %d times and does again, the same process", s.silent))
	}
	switch {
	case len(evidence) > 0:
		return Report{
			Member: old, Cause: "stood-still", Sure: possible, Evidence: evidence, Tells: logOf,
			Advice: "a pause, a busy CPU or a cut look alike: see steal time, cpu.stat (nr_throttled), and the network of that machine",
		}, waited
	default:
		return Report{
			Cause: NotTold, Tells: logOf,
			Evidence: []string{old + " answered all the time: no fsync over " + metrics.Seconds(slowSync) + ", no late heartbeat, the same process", "a hand-over (move-leader) looks like this, and so does a short cut between members"},
		}, waited
	}
}

// refused tells from an error's text that a machine answers and nobody listens there.
func refused(text string) bool {
	return slices.ContainsFunc([]string{"connection refused", "actively refused"}, func(s string) bool { return strings.Contains(text, s) })
}

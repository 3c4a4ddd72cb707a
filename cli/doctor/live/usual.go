package live

import (
	"fmt"
	"time"

	"github.com/belaydb/belay/cli/doctor/metrics"
	"github.com/belaydb/belay/cli/doctor/rules"
)

// Measured is what the alerts of doctor rules are tuned by, and of how many members it is.
func (c *Cluster) Measured(latencies []string) (m rules.Measured, answered int) {
	m.Series = c.Histograms(latencies)
	for _, one := range c.Members {
		s := one.scrape()
		if s == nil {
			continue
		}
		answered++
		used, ok := s.Value("etcd_mvcc_db_total_size_in_bytes")
		quota, ok2 := s.Value("etcd_server_quota_backend_bytes")
		if ok && ok2 {
			m.Sizes = append(m.Sizes, rules.Size{Member: one.Name, Used: used, Quota: quota})
		}
		// Each member counts the grants of all.
		if granted, ok := s.Value("etcd_debugging_lease_granted_total"); ok && one.uptime() > time.Minute {
			m.Grants = max(m.Grants, granted/one.uptime().Seconds())
		}
	}
	return m, answered
}

// Timers are the longest that Belay's members tell; etcd's tell none.
func (c *Cluster) Timers() (t rules.Timers, ok bool) {
	for _, m := range c.Members {
		beat, ok1 := m.scrape().Value("belay_heartbeat_interval_seconds")
		election, ok2 := m.scrape().Value("belay_election_timeout_seconds")
		if ok1 && ok2 && beat > 0 && election >= beat {
			ok = true
			t.Heartbeat = max(t.Heartbeat, time.Duration(beat*1e9))
			t.Election = max(t.Election, time.Duration(election*1e9))
		}
	}
	return t, ok
}

// Silence is why members did not answer with their metrics, or nobody said who they are.
func (c *Cluster) Silence() []string {
	all := append(append([]string(nil), c.Errors...), c.Strangers...)
	for _, m := range c.Members {
		switch {
		case m.Err != nil:
			all = append(all, fmt.Sprintf("%s: %s", m.Name, plain(m.Err)))
		case m.MetricsErr != nil:
			all = append(all, fmt.Sprintf("%s: %s", m.Name, plain(m.MetricsErr)))
		}
	}
	return all
}

// diskStates are the states of belay_disk_state and belay_store_state, in words.
var diskStates = []string{"healthy", "slow", "stalled", "dead"}

// DiskState is the worse of the two that a member of Belay reports, of its log's disk and its
// store's; ok is false for an etcd.
func DiskState(s *metrics.Scrape) (state int, word string, ok bool) {
	log, ok := s.Value("belay_disk_state")
	if !ok {
		return 0, "", false
	}
	store, _ := s.Value("belay_store_state")
	state = min(max(int(max(log, store)), 0), len(diskStates)-1)
	return state, diskStates[state], true
}

package live

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/belaydb/belay/cli/doctor/metrics"
	"github.com/belaydb/belay/cli/doctor/report"
)

// summary is what the cluster is, in a paragraph.
func summary(c *Cluster) []string {
	kinds := map[string]bool{}
	for _, m := range c.Members {
		switch {
		case m.Belay != nil:
			kinds["Belay"] = true
		case m.Status != nil:
			kinds["etcd "+m.Status.Version] = true
		}
	}
	var names []string
	for k := range kinds {
		names = append(names, k)
	}
	slices.Sort(names)
	text := fmt.Sprintf("Cluster %x, members: %d (%s).", c.ID, len(c.Members), strings.Join(names, " and "))
	if l := c.leader(); l != nil {
		text += fmt.Sprintf(" %s is the leader", l.Name)
		if st := l.latest(); st != nil {
			text += fmt.Sprintf(" in term %d", st.RaftTerm)
		}
		if changes, ok := l.scrape().Value("etcd_server_leader_changes_seen_total"); ok {
			switch n := max(0, changes-1); {
			case n == 0:
				text += fmt.Sprintf("; the leader has not changed in the %s that it has run", age(l.uptime()))
			case n == 1:
				text += fmt.Sprintf("; it has seen one change of leader in the %s that it has run", age(l.uptime()))
			default:
				text += fmt.Sprintf("; it has seen %.0f changes of leader in the %s that it has run", n, age(l.uptime()))
			}
		}
		text += "."
	}
	return []string{text}
}

func tables(c *Cluster) []report.Table {
	members := report.Table{
		Title: "Members", Header: []string{"member", "version", "role", "up", "db", "in use", "fsync p99", "clock", "rtt"},
		Notes: []string{"clock: ahead of the one here, 0 if that cannot be told apart; rtt: of a small request from here"},
	}
	for _, m := range c.Members {
		row := []string{m.Name, "-", "-", "-", "-", "-", "-", "-", "-"}
		if m.Learner {
			row[2] = "learner"
		}
		if st := m.latest(); st != nil {
			row[1], row[4], row[5] = st.Version, bytes(float64(st.DbSize)), bytes(float64(st.DbSizeInUse))
			switch {
			case st.Leader == m.ID:
				row[2] = "leader"
			case !m.Learner:
				row[2] = "follower"
			}
		}
		if up := m.uptime(); up > 0 {
			row[3] = age(up)
		}
		if h, _, ok := m.histogram(fsyncs, 20); ok {
			row[6] = h.QuantileText(0.99)
		}
		if m.Clock.Known {
			row[7] = fmt.Sprintf("%+.2f s", m.Clock.Ahead.Seconds())
			if m.Clock.Ahead.Abs() <= m.Clock.Within {
				row[7] = "0"
			}
		}
		if len(m.RTT) > 0 {
			row[8] = metrics.Seconds(median(m.RTT).Seconds())
		}
		members.Rows = append(members.Rows, row)
	}
	all := []report.Table{members}
	rtt := report.Table{Title: "Round trips between members (p50, p99; from the row to the column)", Header: []string{"from"}, Wide: true}
	for _, m := range c.Members {
		rtt.Header = append(rtt.Header, "to "+m.Name)
	}
	during := map[string]bool{} // over what the figures are
	for _, from := range c.Members {
		row := []string{from.Name}
		for _, to := range c.Members {
			cell := "-"
			for _, h := range from.scrape().Histograms(roundTrips) {
				if h.Labels["To"] != fmt.Sprintf("%x", to.ID) {
					continue
				}
				h, over := from.recently(h, roundTrips, fewTrips)
				switch l, pinged := from.link(h.Labels["To"]); {
				case pinged && over == sinceStart:
					cell, over = metrics.Seconds(l.RTT)+", "+metrics.Seconds(l.Tail), "by pings: the median of 30, the third longest of a minute"
				case h.Count >= fewTrips:
					cell = h.QuantileText(0.5) + ", " + h.QuantileText(0.99)
				default:
					continue
				}
				during[over] = true
			}
			row = append(row, cell)
		}
		rtt.Rows = append(rtt.Rows, row)
	}
	if len(during) > 0 {
		rtt.Notes = []string{"as the members measure them, " + strings.Join(slices.Sorted(maps.Keys(during)), ", or ")}
		all = append(all, rtt)
	}
	return all
}

func median(all []time.Duration) time.Duration {
	return slices.Sorted(slices.Values(all))[len(all)/2]
}

func age(d time.Duration) string {
	switch {
	case d > 48*time.Hour:
		return fmt.Sprintf("%.0f d", d.Hours()/24)
	case d > time.Hour:
		return fmt.Sprintf("%.0f h", d.Hours())
	case d > time.Minute:
		return fmt.Sprintf("%.0f min", d.Minutes())
	}
	return fmt.Sprintf("%.0f s", d.Seconds())
}

// A memberData is a member for scripts.
type memberData struct {
	Name         string  `json:"name"`
	ID           string  `json:"id"`
	Endpoint     string  `json:"endpoint,omitempty"`
	Belay        bool    `json:"belay"`
	Version      string  `json:"version,omitempty"`
	Leader       bool    `json:"leader"`
	Learner      bool    `json:"learner"`
	Term         uint64  `json:"term,omitempty"`
	Index        uint64  `json:"raft_index,omitempty"`
	Applied      uint64  `json:"raft_applied_index,omitempty"`
	Size         int64   `json:"db_bytes,omitempty"`
	InUse        int64   `json:"db_in_use_bytes,omitempty"`
	Uptime       float64 `json:"uptime_seconds,omitempty"`
	FsyncP99     float64 `json:"fsync_p99_seconds,omitempty"`
	ReadSeconds  float64 `json:"read_seconds,omitempty"`
	ClockAhead   float64 `json:"clock_ahead_seconds,omitempty"`
	ClockWithin  float64 `json:"clock_within_seconds,omitempty"`
	RTTFromHere  float64 `json:"rtt_from_here_seconds,omitempty"`
	Error        string  `json:"error,omitempty"`
	MetricsError string  `json:"metrics_error,omitempty"`
}

func data(c *Cluster) any {
	var all []memberData
	for _, m := range c.Members {
		d := memberData{Name: m.Name, ID: fmt.Sprintf("%x", m.ID), Endpoint: m.Endpoint, Belay: m.Belay != nil, Learner: m.Learner, Uptime: m.uptime().Seconds(), ReadSeconds: m.Read.Took.Seconds()}
		if st := m.latest(); st != nil {
			d.Version, d.Leader, d.Term, d.Index, d.Applied, d.Size, d.InUse = st.Version, st.Leader == m.ID, st.RaftTerm, st.RaftIndex, st.RaftAppliedIndex, st.DbSize, st.DbSizeInUse
		}
		if h, _, ok := m.histogram(fsyncs, 20); ok {
			d.FsyncP99, _ = h.Quantile(0.99)
		}
		if m.Clock.Known {
			d.ClockAhead, d.ClockWithin = m.Clock.Ahead.Seconds(), m.Clock.Within.Seconds()
		}
		if len(m.RTT) > 0 {
			d.RTTFromHere = median(m.RTT).Seconds()
		}
		if m.Err != nil {
			d.Error = plain(m.Err)
		}
		if m.MetricsErr != nil {
			d.MetricsError = plain(m.MetricsErr)
		}
		all = append(all, d)
	}
	return struct {
		ClusterID string       `json:"cluster_id"`
		Members   []memberData `json:"members"`
	}{fmt.Sprintf("%x", c.ID), all}
}

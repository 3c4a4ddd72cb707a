package live

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/belaydb/belay/cli/doctor/histogram"
	"github.com/belaydb/belay/cli/doctor/metrics"
	"github.com/belaydb/belay/cli/doctor/report"
)

// Trips are what small requests from here to a member took.
type Trips struct {
	Took   []time.Duration // of those that were answered, in the order of asking
	Failed int
	Err    error // of the last that failed
}

// late is how much longer than the median an answer takes if a packet was lost on the way: TCP
// sends it again after 200 ms at the earliest (Linux).
const late = 200 * time.Millisecond

// GatherNetwork asks as Gather does, and then each member count times for its version, one request
// after the other.
func GatherNetwork(ctx context.Context, o Options, count int, every time.Duration) (*Cluster, map[*Member]*Trips, error) {
	c, err := Gather(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	g := newGatherer(o)
	defer g.http.CloseIdleConnections()
	trips := map[*Member]*Trips{}
	var wg sync.WaitGroup
	for _, m := range c.Members {
		base := g.base(m)
		if m.Endpoint == "" || base == "" {
			continue
		}
		t := &Trips{}
		trips[m] = t
		wg.Go(func() {
			_, _, _ = g.get(ctx, base+"/version") // the connection is made, and not counted
			for range count {
				begin := time.Now()
				if _, _, err := g.get(ctx, base+"/version"); err != nil {
					t.Failed, t.Err = t.Failed+1, err
				} else {
					t.Took = append(t.Took, time.Since(begin))
				}
				select {
				case <-ctx.Done():
					return
				case <-time.After(every):
				}
			}
		})
	}
	wg.Wait()
	return c, trips, ctx.Err()
}

// JudgeNetwork makes the report of the links, among the members and from here.
func JudgeNetwork(c *Cluster, trips map[*Member]*Trips) *report.Report {
	r := &report.Report{Command: "doctor network", Subject: strings.Join(c.Endpoints, ","), At: c.At}
	if c.silent() {
		return nobody(c, r)
	}
	checkRTT(c, &adder{id: "network-slow", r: r})
	checkPeers(c, &adder{id: "peer-unreachable", r: r})
	from := report.Table{Title: "From here", Header: []string{"member", "answers", "p50", "p90", "p99", "max", "late", "failed"}, Notes: []string{"small HTTP requests over one connection; late: by 200 ms and more over p50, as when a packet was lost and sent again"}}
	type trip struct {
		Member string  `json:"member"`
		Count  int     `json:"count"`
		P50    float64 `json:"p50_seconds"`
		P99    float64 `json:"p99_seconds"`
		Max    float64 `json:"max_seconds"`
		Late   int     `json:"late"`
		Failed int     `json:"failed"`
	}
	var data []trip
	for _, m := range c.Members {
		t := trips[m]
		if t == nil {
			continue
		}
		if len(t.Took) == 0 {
			r.Add(report.Finding{ID: "network-silent", Severity: report.Critical, Confidence: report.Certain, Member: m.Name, What: "It answers nothing from here.", Evidence: []string{m.Endpoint + ": " + plain(errors.Join(t.Err))}, Do: []string{"is it down? `belay doctor` tells what the others say"}})
			from.Rows = append(from.Rows, []string{m.Name, "0", "-", "-", "-", "-", "-", fmt.Sprint(t.Failed)})
			data = append(data, trip{Member: m.Name, Failed: t.Failed})
			continue
		}
		sorted := slices.Sorted(slices.Values(t.Took))
		at := func(q float64) time.Duration { return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)] }
		lates := 0
		for _, d := range t.Took {
			if d >= at(0.5)+late {
				lates++
			}
		}
		d := trip{m.Name, len(t.Took), at(0.5).Seconds(), at(0.99).Seconds(), sorted[len(sorted)-1].Seconds(), lates, t.Failed}
		data = append(data, d)
		from.Rows = append(from.Rows, []string{m.Name, fmt.Sprint(d.Count), metrics.Seconds(d.P50), metrics.Seconds(at(0.9).Seconds()), metrics.Seconds(d.P99), metrics.Seconds(d.Max), fmt.Sprint(lates), fmt.Sprint(t.Failed)})
		evidence := []string{fmt.Sprintf("from here: p50 %s, p99 %s, %d of %d late, %d failed", metrics.Seconds(d.P50), metrics.Seconds(d.P99), lates, d.Count, t.Failed)}
		switch {
		case t.Failed > 0:
			r.Add(report.Finding{ID: "network-fails", Severity: report.Critical, Confidence: report.Certain, Member: m.Name, What: "Some requests from here fail.", Evidence: append(evidence, plain(t.Err)), Do: []string{"if others reach it, look at the way from here; else at the member"}})
		case lates*20 > d.Count: // one of twenty
			r.Add(report.Finding{ID: "network-lossy", Severity: report.Warning, Confidence: report.Likely, Member: m.Name, What: "The way to it loses packets, or its CPU is taken.", Evidence: evidence, Why: "Each loss costs 200 ms and more.", Do: []string{"`ping` or `mtr` tells which; see the CPU of that machine"}})
		case d.P50 > histogram.KindOf(roundTrips).Slow:
			r.Add(report.Finding{ID: "network-far", Severity: report.Warning, Confidence: report.Certain, Member: m.Name, What: "It is far from here.", Evidence: evidence, Why: "Clients here wait as long for each request.", Do: []string{"let clients use the members that are near"}})
		default:
			r.Add(report.Finding{ID: "network-from-here", Severity: report.Good, Confidence: report.Certain, Member: m.Name, What: "near to here, p50 " + metrics.Seconds(d.P50) + ", p99 " + metrics.Seconds(d.P99)})
		}
	}
	r.Tables = append([]report.Table{from}, tables(c)[1:]...)
	r.Data = data
	return r
}

// JudgeClock makes the report of the members' clocks.
func JudgeClock(c *Cluster) *report.Report {
	r := &report.Report{Command: "doctor clock", Subject: strings.Join(c.Endpoints, ","), At: c.At}
	if c.silent() {
		return nobody(c, r)
	}
	table := report.Table{Header: []string{"member", "ahead of here", "give or take"}, Notes: []string{"found by the second at which the Date of its HTTP answers changes"}}
	type clock struct {
		Member string  `json:"member"`
		Ahead  float64 `json:"ahead_seconds"`
		Within float64 `json:"within_seconds"`
	}
	var data []clock
	var unknown []string
	for _, m := range c.Members {
		if !m.Clock.Known {
			unknown = append(unknown, m.Name)
			table.Rows = append(table.Rows, []string{m.Name, "-", "-"})
			continue
		}
		data = append(data, clock{m.Name, m.Clock.Ahead.Seconds(), m.Clock.Within.Seconds()})
		table.Rows = append(table.Rows, []string{m.Name, fmt.Sprintf("%+.3f s", m.Clock.Ahead.Seconds()), fmt.Sprintf("%.3f s", m.Clock.Within.Seconds())})
		if m.Clock.Ahead.Abs()-m.Clock.Within > 500*time.Millisecond {
			r.Add(report.Finding{ID: "clock-off-here", Severity: report.Warning, Confidence: report.Certain, Member: m.Name, What: "Its clock and the one here differ.", Evidence: []string{fmt.Sprintf("it is %+.2f s ahead, give or take %.2f s", m.Clock.Ahead.Seconds(), m.Clock.Within.Seconds())}, Why: "One of the two is wrong; lines of logs are put in the wrong order by it.", Do: []string{"see that chrony or ntpd runs on both"}})
		}
	}
	checkClocks(c, &adder{id: "clock-differs", r: r})
	if len(unknown) > 0 {
		r.Add(report.Finding{ID: "clock-unknown", Severity: report.Unknown, Confidence: report.Certain, What: "Some clocks could not be asked for.", Evidence: unknown, Do: []string{"they have to answer HTTP on their client URLs"}})
	}
	r.Tables, r.Data = []report.Table{table}, data
	return r
}

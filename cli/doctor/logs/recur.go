package logs

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/belaydb/belay/cli/doctor/report"
)

const (
	// leastPeriod: what comes more often than this is no schedule but one thing that goes on.
	leastPeriod = 5 * time.Minute
	// leastTimes of one cause with a period in them may be chance, surelyTimes are none.
	leastTimes  = 3
	surelyTimes = 4
	// mostMissed: a period may pass without an incident this often in a row.
	mostMissed = 2
)

// recurring finds what comes back after the same time again and again: something that runs by the
// clock beside the cluster. The incidents are by time.
func recurring(found []*incident) (all []report.Finding) {
	type what struct{ id, member string }
	of := map[what][]*incident{}
	var order []what
	for _, i := range found {
		if i.cause.severity == report.Good {
			continue
		}
		// By its member, and of all members: each may have its own schedule, or all the same.
		for _, key := range []what{{i.cause.id, i.cause.member}, {i.cause.id, ""}} {
			if of[key] == nil {
				order = append(order, key)
			}
			if n := len(of[key]); n == 0 || of[key][n-1] != i {
				of[key] = append(of[key], i)
			}
		}
	}
	told := map[*incident]bool{}
	for _, key := range order {
		them := of[key]
		period, ok := periodOf(them)
		if !ok || told[them[0]] {
			continue
		}
		for _, i := range them {
			told[i] = true
		}
		var times, members []string
		for _, i := range them {
			if len(times) < 6 {
				times = append(times, i.from.UTC().Format("01-02 15:04:05"))
			}
			if m := i.cause.member; m != "" && !slices.Contains(members, m) {
				members = append(members, m)
			}
		}
		if n := len(them) - len(times); n > 0 {
			times = append(times, fmt.Sprintf("and %d more", n))
		}
		f := report.Finding{
			ID: "recurring", Severity: report.Warning, Member: key.member, Confidence: report.Possible,
			What:     fmt.Sprintf("%d incidents of the same kind (%s) come every %s, as by a clock.", len(them), key.id, roughly(period)),
			Evidence: []string{strings.Join(times, ", ")},
			Why:      "What comes by the clock comes from a program that runs by the clock, and comes again.",
			Do: []string{
				"look for what runs with that period on the machines of the members: a Prometheus writes its block every 2 h, and there are backups, log rotation, cron jobs, etcd's own compaction and defragmentation",
				"`belay doctor neighbours` beside a member tells which process writes at that time",
			},
		}
		if key.member == "" && len(members) > 0 {
			f.Evidence = append(f.Evidence, "of "+strings.Join(members, ", "))
		}
		if len(them) >= surelyTimes {
			f.Confidence = report.Likely
		}
		all = append(all, f)
	}
	return all
}

// periodOf is the time after which incidents come again: the gaps between them are this, or small
// multiples of it where one was left out.
func periodOf(them []*incident) (period time.Duration, ok bool) {
	if len(them) < leastTimes {
		return 0, false
	}
	var gaps []time.Duration
	for n := 1; n < len(them); n++ {
		gaps = append(gaps, them[n].from.Sub(them[n-1].from))
	}
	period = slices.Min(gaps)
	if period < leastPeriod {
		return 0, false
	}
	slack := max(period/30, 20*time.Second)
	single, sum, count := 0, time.Duration(0), time.Duration(0)
	for _, g := range gaps {
		times := (g + period/2) / period
		if times > mostMissed+1 || (g-times*period).Abs() > times*slack {
			return 0, false
		}
		if times == 1 {
			single++
		}
		sum, count = sum+g, count+times
	}
	// Where most gaps are multiples, the smallest may be chance.
	return sum / count, 2*single > len(gaps)
}

// roughly is a period as people say it.
func roughly(d time.Duration) string {
	d = d.Round(time.Minute)
	switch h, m := int(d/time.Hour), int(d%time.Hour/time.Minute); {
	case h == 0:
		return fmt.Sprintf("%d min", m)
	default:
		return fmt.Sprintf("%d h %02d min", h, m)
	}
}

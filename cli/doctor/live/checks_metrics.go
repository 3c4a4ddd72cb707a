package live

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/belaydb/belay/cli/doctor/bounds"
	"github.com/belaydb/belay/cli/doctor/histogram"
	"github.com/belaydb/belay/cli/doctor/metrics"
	"github.com/belaydb/belay/cli/doctor/report"
	"github.com/belaydb/belay/internal/show"
)

// The latencies that are looked at.
const (
	fsyncs     = "etcd_disk_wal_fsync_duration_seconds"
	commits    = "etcd_disk_backend_commit_duration_seconds"
	roundTrips = "etcd_network_peer_round_trip_time_seconds"
)

// each calls check for the members whose metrics were answered, and says that none was.
func each(c *Cluster, a *adder, about string, check func(*Member)) {
	n := 0
	for _, m := range c.Members {
		if m.scrape() != nil {
			n++
			check(m)
		}
	}
	if n == 0 {
		a.unknown(about+" not known: no member's metrics were answered.", metricsErrors(c), "name the URLs of --listen-metrics-urls by --metrics-urls")
	}
}

// describe is a histogram in a line: "p50 1.2 ms, p99 8.1 ms of 4,210 in 5.0 s".
func describe(h metrics.Histogram, over string) string {
	return fmt.Sprintf("p50 %s, p99 %s of %s %s", h.QuantileText(0.5), h.QuantileText(0.99), count(h.Count), over)
}

// count writes a number with thousands parted.
func count(n float64) string {
	text := fmt.Sprintf("%.0f", n)
	for at := len(text) - 3; at > 0; at -= 3 {
		text = text[:at] + "," + text[at:]
	}
	return text
}

// twoModes says that a histogram shows a disk or a link with two faces; "" if it does not.
func twoModes(h metrics.Histogram) string {
	first, last, ok := histogram.TwoFaces(h)
	if !ok {
		return ""
	}
	return fmt.Sprintf("two modes: %s of them up to %s, %s from %s on: as a rule it is well, and at times something else is in its way",
		share(first.Count, h.Count), metrics.Seconds(first.High), share(last.Count, h.Count), metrics.Seconds(last.Low))
}

func share(part, all float64) string {
	if all == 0 {
		return "0 %"
	}
	switch p := 100 * part / all; {
	case p < 1:
		return fmt.Sprintf("%.1f %%", p)
	default:
		return fmt.Sprintf("%.0f %%", p)
	}
}

// slow judges a histogram of the metric by its p99 and the metric's bounds: 0 well, 1 slow, 2 bad.
// What is older than the look counts less.
func slow(h metrics.Histogram, over, metric string) int {
	level := histogram.KindOf(metric).Level(h)
	if !strings.HasPrefix(over, "in ") {
		return min(level, 1)
	}
	return level
}

// busyCPU is said wherever a time is long that has waiting for a CPU in it.
const busyCPU = "a machine without CPU to spare makes them long, too: see its load and its steal time"

// late adds what a member measures to be slow. If its machine has no CPU to spare, that may be why.
func (a *adder) late(severity report.Severity, m *Member, noCPU, what, why string, evidence []string, do ...string) {
	f := report.Finding{Severity: severity, Member: m.Name, What: what, Why: why, Evidence: evidence, Do: do}
	if noCPU != "" {
		f.Severity, f.Confidence = report.Warning, report.Possible
		f.Evidence = slices.Clone(evidence)
		f.Evidence[0] += noCPU
		do = slices.DeleteFunc(slices.Clone(do), func(s string) bool { return s == busyCPU })
		f.Do = append([]string{"first see who takes the CPUs of this machine (`top`), then look again"}, do...)
	}
	a.add(f)
}

func severity(level int) report.Severity {
	return []report.Severity{report.Good, report.Warning, report.Critical}[level]
}

func checkDisk(c *Cluster, a *adder) {
	var well, few []string
	each(c, a, "How fast the logs' disks are is", func(m *Member) {
		if m.Belay != nil {
			s := m.scrape()
			if oldest, ok := s.Value("belay_disk_sync_oldest_seconds"); ok && oldest >= bounds.SlowSync.Seconds() {
				a.bad(report.Critical, m, "The disk of its raft log does not answer.", "It promises nothing meanwhile; the others do, and a leader hands over.",
					[]string{"the oldest sync is " + metrics.Seconds(oldest) + " old"}, whoWrites, "see the kernel's log for errors (`journalctl -k`)")
				return
			}
		}
		h, over, ok := m.histogram(fsyncs, 20)
		if !ok {
			few = append(few, m.Name)
			return
		}
		level := slow(h, over, fsyncs)
		evidence := []string{"fsync " + describe(h, over)}
		if two := twoModes(h); two != "" {
			evidence = append(evidence, two)
		}
		if level == 0 {
			well = append(well, m.Name+" p99 "+h.QuantileText(0.99))
			return
		}
		why := "Every write waits for a quorum of these, and on etcd the leader's heartbeats wait too: syncs of a second cost it the leadership."
		if m.Belay != nil {
			severe := report.Warning
			a.late(severe, m, c.noCPU(m), "The fsyncs of its raft log are slow.", "Nobody waits for them while those of a quorum of the others are fast.", evidence,
				whoWrites, busyCPU, "give the log a disk of its own: --wal-dir")
			return
		}
		a.late(severity(level), m, c.noCPU(m), "The fsyncs of its log are slow.", why, evidence,
			whoWrites+"; `belay doctor disk DIR` there tells what the disk can",
			busyCPU,
			"give the log a disk of its own (--wal-dir), a local SSD rather than a network volume")
	})
	if len(well) > 0 {
		a.good("the logs' disks are fast: %s", strings.Join(well, ", "))
	}
	if len(few) > 0 {
		a.unknown("How fast the logs' disks are cannot be told: next to nothing has been written.", []string{"fewer than 20 fsyncs: " + strings.Join(few, ", ")}, "run doctor under load, or `belay doctor disk DIR` on a directory of that disk")
	}
}

func checkBackend(c *Cluster, a *adder) {
	var well []string
	each(c, a, "How long commits of the databases take is", func(m *Member) {
		if m.Belay != nil {
			if oldest, ok := m.scrape().Value("belay_store_oldest_seconds"); ok && oldest >= bounds.SlowSync.Seconds() {
				a.bad(report.Critical, m, "Its store makes no progress.", "Writes wait in memory, up to --max-unsynced-bytes.", []string{"for " + metrics.Seconds(oldest)}, "see the disk of the data directory and the kernel's log")
			}
			return
		}
		h, over, ok := m.histogram(commits, 10)
		if !ok {
			return
		}
		if level := slow(h, over, commits); level > 0 {
			a.late(severity(level), m, c.noCPU(m), "Commits of its database are slow.", "Requests wait while its database is written.", []string{"commit " + describe(h, over)},
				"large values, many keys for each transaction, or a busy disk: compare with the fsyncs of the log above", "`defrag` if much of the file is free")
			return
		}
		well = append(well, m.Name+" p99 "+h.QuantileText(0.99))
	})
	if len(well) > 0 {
		a.good("commits of the databases are fast: %s", strings.Join(well, ", "))
	}
}

func checkRTT(c *Cluster, a *adder) {
	type link struct{ from, to string }
	var all, late []link
	var evidence []string
	worst := 0
	each(c, a, "Round trips between members are", func(m *Member) {
		for _, h := range m.scrape().Histograms(roundTrips) {
			h, over := m.recently(h, roundTrips, fewTrips)
			now, pinged := m.link(h.Labels["To"])
			if !pinged && over == sinceStart && h.Count < 20 {
				continue // it was started just now
			}
			l := link{m.Name, peerName(c, h.Labels["To"])}
			all = append(all, l)
			level, says := slow(h, over, roundTrips), describe(h, over)
			if pinged && over == sinceStart {
				// A histogram of weeks shows no hour that is slow, and still shows one that is over.
				level, says = now.level()
			}
			if level == 0 {
				continue
			}
			worst = max(worst, level)
			late = append(late, l)
			evidence = append(evidence, l.from+" to "+l.to+": "+says)
			if two := twoModes(h); two != "" && says == describe(h, over) {
				evidence = append(evidence, two)
			}
		}
	})
	if len(late) == 0 {
		if len(all) > 0 {
			a.good("round trips between members are short: %d links under %s (p99)", len(all), metrics.Seconds(histogram.KindOf(roundTrips).Slow))
		}
		return
	}
	f := report.Finding{
		Severity: severity(worst), What: "Round trips between members are long.", Evidence: evidence, Confidence: report.Likely,
		Why: "Each write waits for one to a quorum. Election timeouts should be ten of them at least; if they are near it, leaders change for no reason.",
		Do: []string{"a busy CPU at either end looks the same: see the CPU of both", "`belay doctor network` measures from here",
			"over long distances: --heartbeat-interval about the round trip, --election-timeout ten times that"},
	}
	for _, m := range c.Members {
		if text := c.noCPU(m); text != "" {
			f.Severity, f.Confidence = report.Warning, report.Possible
			f.Evidence = append(f.Evidence, m.Name+" runs"+strings.TrimPrefix(text, ","))
			break
		}
	}
	// One member's, if it has a part in each link that is slow and the others are fast among
	// themselves.
	for _, m := range c.Members {
		if len(c.Members) > 2 && len(late) < len(all) && !slices.ContainsFunc(late, func(l link) bool { return l.from != m.Name && l.to != m.Name }) {
			f.Member = m.Name
			f.What = "Round trips to and from it are long; those among the others are not."
			break
		}
	}
	a.add(f)
}

// lossy is how many late round trips of 30 are no accident, as the members' own verdicts have it.
const lossy = 3

// level judges a link: 0 well, 1 slow or lossy, 2 bad.
func (l Link) level() (level int, says string) {
	k := histogram.KindOf(roundTrips)
	says = fmt.Sprintf("p50 %s of the last 30, %d of them late", metrics.Seconds(l.RTT), l.Late)
	switch {
	case l.RTT > k.Bad:
		return 2, says
	case l.RTT > k.Slow, l.Late >= lossy:
		return 1, says
	}
	return 0, says
}

func peerName(c *Cluster, id string) string {
	for _, m := range c.Members {
		if fmt.Sprintf("%x", m.ID) == id {
			return m.Name
		}
	}
	return id
}

func checkPeers(c *Cluster, a *adder) {
	each(c, a, "Whether members reach each other is", func(m *Member) {
		for _, l := range m.lost() {
			if slices.ContainsFunc(c.Members, func(o *Member) bool { return o.Err != nil && fmt.Sprintf("%x", o.ID) == l.to }) {
				continue // it does not answer at all, which is told
			}
			a.bad(report.Critical, m, "Messages to "+peerName(c, l.to)+" are lost.", "It hears too little of this member.", []string{fmt.Sprintf("%.0f in %s", l.count, metrics.Seconds(m.between().Seconds()))},
				"it answers from here: look at the peer port, firewalls and certificates between the two, and whether it was started just now")
		}
		active, ok1 := m.scrape().Value("etcd_network_active_peers")
		others := float64(len(c.Members) - 1)
		if ok1 && active < others && c.allAnswer() && others > 0 {
			a.bad(report.Warning, m, "It is not connected to all other members.", "Appends to them wait or fail.", []string{fmt.Sprintf("%.0f of %.0f peers are active", active, others)}, "the peer port between them, both ways; certificates")
		}
	})
	a.good("members reach each other")
}

// A lost is how many messages to a member were lost while doctor looked.
type lost struct {
	to    string // its id
	count float64
}

func (m *Member) lost() (all []lost) {
	if m.between() == 0 {
		return nil
	}
	for _, s := range m.scrape().Samples("etcd_network_peer_sent_failures_total") {
		was := 0.0
		for _, b := range m.Before.Samples("etcd_network_peer_sent_failures_total") {
			if b.Labels["To"] == s.Labels["To"] {
				was = b.Value
			}
		}
		if s.Value > was {
			all = append(all, lost{s.Labels["To"], s.Value - was})
		}
	}
	return all
}

func (c *Cluster) allAnswer() bool {
	return !slices.ContainsFunc(c.Members, func(m *Member) bool { return m.Err != nil || !m.Started })
}

func checkProposals(c *Cluster, a *adder) {
	each(c, a, "Proposals that wait or fail are", func(m *Member) {
		if by, ok := m.grown("etcd_server_proposals_failed_total"); ok && by > 0 {
			a.bad(report.Critical, m, "Writes fail.", "Clients see a timeout, or `leader changed`.", []string{fmt.Sprintf("%s proposals failed in %s", count(by), metrics.Seconds(m.between().Seconds()))}, "see the leader, the quorum and the disks")
		} else if failed, ok := m.scrape().Value("etcd_server_proposals_failed_total"); ok && failed > 0 {
			if committed, _ := m.scrape().Value("etcd_server_proposals_committed_total"); failed > committed/1000 && failed > bounds.FailedProposals {
				a.bad(report.Warning, m, "Writes have failed.", "Most often in elections.", []string{fmt.Sprintf("%s of %s proposals since its start, %s ago", count(failed), count(committed), m.uptime().Round(time.Minute))}, "`belay doctor logs` tells when and why")
			}
		}
		before, _ := m.Before.Value("etcd_server_proposals_pending")
		if after, ok := m.scrape().Value("etcd_server_proposals_pending"); ok && min(before, after) >= bounds.PendingProposals {
			a.bad(report.Warning, m, "Many writes wait.", "Their clients wait as well.", []string{fmt.Sprintf("%s and then %s proposals pending", count(before), count(after))}, "a slow disk, or more writes than it bears")
		}
	})
	a.good("no write fails or waits long")
}

func checkBehind(c *Cluster, a *adder) {
	var index uint64
	if l := c.leader(); l != nil && l.Status != nil {
		index = l.Status.RaftIndex // before the others' later answers, so that none can be ahead by time alone
	}
	for _, m := range c.Members {
		st := m.latest()
		if st == nil {
			continue
		}
		if gap := int64(st.RaftIndex) - int64(st.RaftAppliedIndex); gap >= bounds.ApplyGapSlow {
			level := 1
			if gap >= bounds.ApplyGapBad {
				level = 2
			}
			a.bad(severity(level), m, "It applies more slowly than is written.", "Reads there are late; etcd answers `too many requests` from 5,000 entries on.", []string{fmt.Sprintf("%s entries are committed and not applied", count(float64(gap)))},
				"its CPU or its database is too slow: see both", "large ranges or transactions hold it up: see its log for `apply request took too long`")
		}
		if gap := int64(index) - int64(st.RaftIndex); index > 0 && gap > 5000 {
			a.bad(report.Warning, m, "It is behind the leader.", "It is no help for a quorum until it has caught up; further behind it needs a snapshot.", []string{fmt.Sprintf("by %s entries", count(float64(gap)))}, "see its disk and its link to the leader")
		}
	}
	a.good("all members are up to date")
}

func checkHeartbeats(c *Cluster, a *adder) {
	each(c, a, "Late heartbeats are", func(m *Member) {
		if by, ok := m.grown("etcd_server_heartbeat_send_failures_total"); ok && by > 0 {
			a.bad(report.Warning, m, "It sends heartbeats late.", "Followers begin an election when none comes for the election timeout.", []string{fmt.Sprintf("%.0f in %s", by, metrics.Seconds(m.between().Seconds())) + c.noCPU(m)},
				"etcd's log blames the disk; the CPU is as often to blame: see both here")
		}
		for name, what := range map[string]string{
			"etcd_server_slow_apply_total":        "Applying is slow at times.",
			"etcd_server_slow_read_indexes_total": "Linearizable reads wait long for the leader.",
		} {
			if by, ok := m.grown(name); ok && by > 0 {
				a.bad(report.Warning, m, what, "Clients wait as long.", []string{fmt.Sprintf("%s grew by %.0f in %s", name, by, metrics.Seconds(m.between().Seconds()))}, "see its disk, its CPU and the load")
			}
		}
	})
	a.good("heartbeats are sent in time")
}

// whoWrites is the advice where a member's disk is slow or full.
const whoWrites = "see what else writes to that disk: `belay doctor neighbours` on that machine"

// diskFree is what a member of Belay may still write to its disk, in bytes, and with less than what it
// raises NOSPACE; etcd does not tell.
func diskFree(m *Member) (free, least float64, known bool) {
	if m == nil || m.scrape() == nil {
		return 0, 0, false
	}
	free, known1 := m.scrape().Value("belay_disk_free_bytes")
	least, known2 := m.scrape().Value("belay_disk_free_minimum_bytes")
	return free, least, known1 && known2
}

func checkFree(c *Cluster, a *adder) {
	var well []string
	for _, m := range c.Members {
		free, least, known := diskFree(m)
		if !known {
			continue
		}
		evidence := []string{bytes(free) + " are free; with less than " + bytes(least) + " it raises NOSPACE"}
		const why = "A member whose disk is full has the whole cluster refuse writes."
		do := []string{"free space on that disk or enlarge the volume", whoWrites}
		switch {
		case free < least*bounds.DiskFull:
			a.bad(report.Critical, m, "Its disk is full, or nearly.", why, evidence, do...)
		case free < least*bounds.DiskNear:
			a.bad(report.Warning, m, "Its disk is getting full.", why, evidence, do...)
		default:
			well = append(well, m.Name+" "+bytes(free))
		}
	}
	if len(well) > 0 {
		a.good("disks have room: %s", strings.Join(well, ", "))
	}
}

// checkBackups looks at the backups that Belay's leader has made (--backup-to); nobody else tells of
// any.
func checkBackups(c *Cluster, a *adder) {
	for _, m := range c.Members {
		tooOld, ok := m.scrape().Value("belay_backup_too_old")
		if !ok {
			continue
		}
		last, _ := m.scrape().Value("belay_backup_last_good_timestamp_seconds")
		age, evidence := time.Duration(0), "it knows of no good one"
		if last > 0 {
			age = c.At.Sub(time.Unix(int64(last), 0)).Round(time.Second)
			evidence = "the last good one is " + age.String() + " old"
		}
		switch {
		case tooOld > 0:
			a.bad(report.Critical, m, "No good backup is being made.", "What was written since the last one would be lost with the members' disks.", []string{evidence},
				"`belay ctl backup status` has the last error, the log of the member that tried it, too: `a backup failed`",
				"mend that, as a rule a full or unreachable --backup-to, then `belay ctl backup now`")
		case last > 0:
			a.good("backups are made: the last good one is %s old", age)
		}
	}
}

func checkQuota(c *Cluster, a *adder) {
	var well []string
	for _, m := range c.Members {
		st := m.latest()
		if st == nil {
			continue
		}
		quota, ok := m.scrape().Value("etcd_server_quota_backend_bytes")
		if !ok || quota <= 0 {
			continue
		}
		size, free := float64(st.DbSize), float64(st.DbSize-st.DbSizeInUse)
		evidence := []string{fmt.Sprintf("%s of %s (%s)", bytes(size), bytes(quota), share(size, quota))}
		before, ok1 := m.Before.Value("etcd_mvcc_db_total_size_in_use_in_bytes")
		after, ok2 := m.scrape().Value("etcd_mvcc_db_total_size_in_use_in_bytes")
		if m.After != nil && ok1 && ok2 && after > before && m.between() > 0 {
			perSecond := (after - before) / m.between().Seconds()
			left := time.Duration((quota - size) / perSecond * 1e9)
			if left > 0 && left < bounds.FullSoon {
				evidence = append(evidence, fmt.Sprintf("it grows by %s/s now; at that rate it is full in %s", bytes(perSecond), left.Round(time.Minute)))
			}
		}
		do := []string{"compact old revisions (--auto-compaction-retention), and see who writes so much", "raise --quota-backend-bytes: on etcd up to 8 GB is advised"}
		if m.Belay == nil && free > size/2 && size > 100<<20 {
			evidence = append(evidence, fmt.Sprintf("%s of the file are free and come back by defrag alone", bytes(free)))
			do = append([]string{"`defrag` this member (it answers nothing meanwhile), followers first"}, do...)
		}
		if m.Belay != nil && free > size/2 {
			evidence = append(evidence, fmt.Sprintf("%s of them are no longer in use and come back by themselves", bytes(free)))
			do = append([]string{"`defrag` this member: it serves meanwhile, and the space comes back at once"}, do...)
		}
		switch {
		case size >= quota*bounds.QuotaFull:
			a.bad(report.Critical, m, "Its database is almost full.", "At the quota the whole cluster refuses writes.", evidence, do...)
		case size >= quota*bounds.QuotaNear:
			a.bad(report.Warning, m, "Its database is getting full.", "At the quota the whole cluster refuses writes.", evidence, do...)
		case m.Belay == nil && free > size*bounds.FreeShare && size > bounds.FreeFile:
			a.bad(report.Warning, m, "Most of its database file is free space.", "It counts against the quota, and makes snapshots and restarts slower.", evidence, do...)
		default:
			well = append(well, m.Name+" "+evidence[0])
		}
	}
	if len(well) > 0 {
		a.good("databases are within their quotas: %s", strings.Join(well, ", "))
	}
}

func bytes(n float64) string { return show.Bytes(int64(n)) }

func checkHistory(c *Cluster, a *adder) {
	for _, m := range c.Members {
		current, ok1 := m.scrape().Value("etcd_debugging_mvcc_current_revision")
		compacted, ok2 := m.scrape().Value("etcd_debugging_mvcc_compact_revision")
		if !ok1 || !ok2 {
			continue
		}
		if kept := current - max(compacted, 0); kept > bounds.HistoryKept {
			a.bad(report.Warning, m, "Much history is kept.", "Every revision since the last compaction stays in the database.", []string{count(kept) + " revisions"},
				"--auto-compaction-mode=periodic --auto-compaction-retention=1h, unless Kubernetes' API server compacts (each 5 minutes by default)")
			return
		}
		if m == c.leader() {
			a.good("little history is kept: revisions since the last compaction: %s", count(current-max(compacted, 0)))
		}
	}
}

func checkWatchers(c *Cluster, a *adder) {
	each(c, a, "Watchers that are behind are", func(m *Member) {
		slowOnes, ok1 := m.scrape().Value("etcd_debugging_mvcc_slow_watcher_total")
		all, _ := m.scrape().Value("etcd_debugging_mvcc_watcher_total")
		before, _ := m.Before.Value("etcd_debugging_mvcc_slow_watcher_total")
		if ok1 && min(slowOnes, before) > 0 {
			a.bad(report.Warning, m, "Some watchers are behind.", "They get their events late; each costs memory, and on etcd reads of history.", []string{fmt.Sprintf("%s of %s watchers", count(slowOnes), count(all))},
				"their clients read too slowly, or watch from old revisions")
		}
		if pending, ok := m.scrape().Value("etcd_debugging_mvcc_pending_events_total"); ok && pending > bounds.PendingEvents {
			a.bad(report.Warning, m, "Many events wait for their watchers.", "", []string{count(pending)}, "more events than the network or the clients take")
		}
	})
	a.good("no watcher is behind")
}

func checkLeases(c *Cluster, a *adder) {
	for _, m := range c.Members {
		granted, ok := m.grown("etcd_debugging_lease_granted_total")
		if !ok || m.between() == 0 {
			continue
		}
		if rate := granted / m.between().Seconds(); rate > bounds.LeaseGrants {
			a.bad(report.Warning, m, "Leases are granted at a high rate.", "Each grant is a write, and each that ends another.", []string{fmt.Sprintf("%s grants a second", count(rate))}, "clients should keep one lease alive rather than grant one for each key")
			return
		}
	}
	a.good("few leases are granted")
}

func checkRequests(c *Cluster, a *adder) {
	each(c, a, "Requests that fail are", func(m *Member) {
		if m.between() == 0 {
			return
		}
		before := map[string]float64{}
		for _, s := range m.Before.Samples("grpc_server_handled_total") {
			before[s.Labels.Text()] = s.Value
		}
		by := map[string]float64{}
		for _, s := range m.After.Samples("grpc_server_handled_total") {
			grew := s.Value - before[s.Labels.Text()]
			code := s.Labels["grpc_code"]
			if grew > 0 && slices.Contains(bounds.FailedCodes(), code) && s.Labels["grpc_service"] != "etcdserverpb.Watch" {
				by[s.Labels["grpc_method"]+" "+code] += grew
			}
		}
		if len(by) == 0 {
			return
		}
		var evidence []string
		for what, n := range by {
			evidence = append(evidence, fmt.Sprintf("%s: %s in %s", what, count(n), metrics.Seconds(m.between().Seconds())))
		}
		slices.Sort(evidence)
		a.bad(report.Warning, m, "Requests fail.", "Unavailable is a member without a leader or on its way down; ResourceExhausted a full database, too large a request or too many; DeadlineExceeded a client that did not wait longer.", evidence, "its log has each that was slow")
	})
	a.good("no request failed while doctor looked")
}

func checkDescriptors(c *Cluster, a *adder) {
	each(c, a, "Open files are", func(m *Member) {
		open, ok1 := m.scrape().Value("process_open_fds")
		limit, ok2 := m.scrape().Value("process_max_fds")
		if ok1 && ok2 && limit > 0 && open > limit*bounds.Descriptors {
			a.bad(report.Critical, m, "It is short of file descriptors.", "At the limit etcd takes no connection, and cannot make its next log file.", []string{fmt.Sprintf("%.0f of %.0f", open, limit)}, "raise the limit (LimitNOFILE= of its unit), and see who holds so many connections")
		}
	})
	a.good("file descriptors suffice")
}

func checkCPU(c *Cluster, a *adder) {
	each(c, a, "CPU use is", func(m *Member) {
		used, ok := m.grown("process_cpu_seconds_total")
		if !ok || m.between() < time.Second {
			return
		}
		if cpus := used / m.between().Seconds(); cpus > 4 {
			a.bad(report.Warning, m, "It uses much CPU.", "Heartbeats are late when its machine has none left.", []string{fmt.Sprintf("%.1f CPUs", cpus)}, "see what is asked of it: large ranges, many watches, TLS handshakes (`belay ctl check`, its log of slow requests)")
		}
	})
	a.good("no member uses more than 4 CPUs")
}

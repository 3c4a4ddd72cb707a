package live

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/belaydb/belay/cli/doctor/bounds"
	"github.com/belaydb/belay/cli/doctor/metrics"
	"github.com/belaydb/belay/cli/doctor/report"
)

func checkReachable(c *Cluster, a *adder) {
	voters, up := c.voters(), 0
	for _, m := range voters {
		if m.Err == nil {
			up++
		}
	}
	need := len(voters)/2 + 1
	for _, m := range c.Members {
		_, other := errors.AsType[otherError](m.Err)
		switch {
		case other: // told by checkMembership
		case m.Err != nil && m.Endpoint != "":
			severity, why := report.Warning, fmt.Sprintf("%d of %d voters answer, %d are needed: the cluster works, and bears %s.", up, len(voters), need, losses(up-need))
			if up < need {
				severity, why = report.Critical, fmt.Sprintf("%d of %d voters answer, and %d are needed to write: the cluster has no quorum, if they are as silent to each other as to doctor.", up, len(voters), need)
			}
			evidence := []string{m.Endpoint + ": " + plain(m.Err)}
			if losing := c.losing(m); len(losing) > 0 {
				evidence = append(evidence, strings.Join(losing, ", ")+" could not reach it either: it is not the way from here")
			}
			if m.Health != "" {
				evidence = append(evidence, "its /health says "+m.Health)
			}
			if m.Learner {
				severity, why = report.Warning, "It is a learner: nothing waits for it."
			}
			a.bad(severity, m, "It does not answer.", why, evidence,
				"is its process there, and is the address right from here?",
				"its last lines of log say why it stopped: `belay doctor logs FILE`",
				"if its data is gone for good: remove it (`member remove`) and add a new one; never start it again with an empty directory")
		case !m.Started:
			a.bad(report.Warning, m, "It was added and has never started.",
				"It counts for the quorum though it cannot vote: the cluster bears one failure less than it seems to.",
				[]string{"it has told the cluster neither name nor client URLs; peer URLs " + strings.Join(m.PeerURLs, ",")},
				"start it with --initial-cluster-state=existing, or take it out again: `member remove`")
		}
	}
	for _, s := range c.Strangers {
		a.unknown("An endpoint that is no member's does not answer.", []string{s}, "take it out of --endpoints, or see what is behind it")
	}
	if slices.ContainsFunc(c.Others, func(o Other) bool { return o.Member != nil }) {
		return // those members do not answer
	}
	a.good("each member answers (%d of %d)", len(c.Members), len(c.Members))
}

// losing are the members that lost messages to m while doctor looked.
func (c *Cluster) losing(m *Member) (names []string) {
	for _, o := range c.Members {
		for _, l := range o.lost() {
			if l.to == fmt.Sprintf("%x", m.ID) {
				names = append(names, o.Name)
			}
		}
	}
	return names
}

func losses(n int) string {
	switch {
	case n <= 0:
		return "no further loss"
	case n == 1:
		return "one further loss"
	}
	return fmt.Sprintf("%d further losses", n)
}

func checkLeader(c *Cluster, a *adder) {
	leaders, terms, without := map[uint64][]string{}, map[uint64]bool{}, []string{}
	for _, m := range c.Members {
		st := m.latest()
		if st == nil {
			continue
		}
		if st.Leader == 0 {
			without = append(without, m.Name)
			continue
		}
		leaders[st.Leader] = append(leaders[st.Leader], m.Name)
		terms[st.RaftTerm] = true
	}
	switch {
	case len(leaders) == 0:
		a.bad(report.Critical, nil, "No member knows a leader.", "Nothing can be written, and linearizable reads fail.",
			[]string{"asked: " + strings.Join(without, ", ")},
			"if fewer members answer than a quorum, start the others: that comes first",
			"else look at the links between the peer ports, and at the members' logs: `belay doctor logs FILE`")
	case len(without) > 0:
		a.bad(report.Critical, nil, "Some members know no leader.", "Clients that are connected to them fail.",
			[]string{"without a leader: " + strings.Join(without, ", ")},
			"look at the peer port between them and the leader, both ways, certificates included")
	case len(leaders) > 1:
		var evidence []string
		for id, who := range leaders {
			evidence = append(evidence, fmt.Sprintf("%s say %x", strings.Join(who, ", "), id))
		}
		slices.Sort(evidence)
		a.bad(report.Warning, nil, "Members name different leaders.", "That is so for a moment during an election; if it stays, they do not hear each other.", evidence, "run doctor again; if it is still so, look at the peer links")
	}
	if l := c.leader(); l != nil {
		a.good("%s leads, and all members say so", l.Name)
	}
}

func checkAlarms(c *Cluster, a *adder) {
	if c.AlarmsErr != nil {
		a.unknown("Alarms could not be asked for.", []string{plain(c.AlarmsErr)}, "with users on, ask as root: --user root")
	}
	for _, alarm := range c.Alarms {
		m := c.byID(alarm.MemberID)
		switch alarm.Alarm.String() {
		case "NOSPACE":
			what, evidence := "it is over its quota", []string(nil)
			do := []string{"find who writes so much before making room (`belay doctor` says what grows)",
				"compact to a recent revision: `compact REV`", "give the space back: `defrag` each member, followers first", "`alarm disarm`"}
			if free, least, known := diskFree(m); known && free < least*3/2 {
				what, evidence = "its disk is full", []string{bytes(free) + " are free; with less than " + bytes(least) + " the alarm is raised"}
				do = []string{"free space on that disk or enlarge the volume: the alarm ends by itself then", whoWrites}
			} else if m != nil && m.Belay != nil {
				do = []string{"delete or compact what is not needed: space comes back by itself, and the alarm ends with it", "or raise --quota-backend-bytes"}
			}
			a.bad(report.Critical, m, "NOSPACE: "+what+", so the whole cluster refuses writes.", "Every put is answered `etcdserver: mvcc: database space exceeded`.", evidence, do...)
		case "CORRUPT":
			a.bad(report.Critical, m, "CORRUPT: its data differs from the other members'.", "It may answer with wrong data; the cluster refuses writes.",
				nil, "do not disarm", "compare `endpoint hashkv --cluster` at one revision to see who differs from the majority", "remove that member, move its data away, add it again")
		default:
			a.bad(report.Critical, m, "Alarm "+alarm.Alarm.String(), "", nil)
		}
	}
	if c.AlarmsErr == nil {
		a.good("no alarms")
	}
}

// slowRead is what a linearizable read of a key that is not there takes at most where all is well.
const slowRead = 100 * time.Millisecond

func checkReads(c *Cluster, a *adder) {
	slowest := time.Duration(0)
	for _, m := range c.Members {
		if m.Status == nil || m.Learner {
			continue
		}
		switch err := m.Read.Err; {
		case err != nil && denied(err):
			a.unknown("A read could not be tried.", []string{m.Name + ": " + plain(err)}, "name a user: --user")
			return
		case err != nil:
			a.bad(report.Critical, m, "A linearizable read fails.", "Clients see the same error.", []string{plain(err)}, "see the other findings; without a leader or a quorum this is their consequence")
		case m.Read.Took > slowRead:
			a.bad(report.Warning, m, "A linearizable read is slow.", "It waits for a round of heartbeats, and until the member has applied what was committed.",
				[]string{metrics.Seconds(m.Read.Took.Seconds()) + " for a key that is not there"}, "see the round trips, the disk (on etcd) and the CPU below")
		default:
			slowest = max(slowest, m.Read.Took)
		}
	}
	a.good("linearizable reads take %s at most", metrics.Seconds(slowest.Seconds()))
}

func denied(err error) bool {
	return strings.Contains(err.Error(), "permission denied") || strings.Contains(err.Error(), "user name is empty") || strings.Contains(err.Error(), "invalid auth token")
}

func checkCertificates(c *Cluster, a *adder) {
	seen := 0
	var first time.Time
	for _, m := range c.Members {
		for _, cert := range m.Certificates {
			seen++
			left := cert.NotAfter.Sub(c.At)
			if first.IsZero() || cert.NotAfter.Before(first) {
				first = cert.NotAfter
			}
			evidence := []string{cert.Subject, "valid until " + cert.NotAfter.UTC().Format("2006-01-02 15:04 MST")}
			switch {
			case left < 0:
				a.bad(report.Critical, m, "Its certificate has expired.", "New connections fail wherever it is verified.", evidence, "replace it; etcd and Belay read it again for each connection, without a restart")
			case left < bounds.CertificateNow:
				a.bad(report.Critical, m, fmt.Sprintf("Its certificate expires in %s.", days(left)), "Then every new connection fails at once.", evidence, "replace it now, without a restart")
			case left < bounds.CertificateSoon:
				a.bad(report.Warning, m, fmt.Sprintf("Its certificate expires in %s.", days(left)), "Then every new connection fails at once.", evidence, "replace it, without a restart")
			case cert.NotBefore.After(c.At):
				a.bad(report.Critical, m, "Its certificate is not valid yet.", "New connections fail wherever it is verified.", evidence, "is a clock wrong?")
			}
		}
	}
	if seen > 0 {
		a.good("certificates on the client ports are valid until %s at least", first.UTC().Format("2006-01-02"))
	}
}

func days(d time.Duration) string {
	if d < 48*time.Hour {
		return fmt.Sprintf("%.0f hours", d.Hours())
	}
	return fmt.Sprintf("%.0f days", d.Hours()/24)
}

func checkVerdicts(c *Cluster, a *adder) {
	type told struct {
		Verdict
		by  string
		ago time.Duration
	}
	alike := map[string][]told{}
	var order []string
	belays := 0
	for _, m := range c.Members {
		if m.Belay == nil {
			continue
		}
		belays++
		now, err := time.Parse(time.RFC3339, m.Belay.Now)
		for _, v := range m.Belay.Verdicts {
			at, err2 := time.Parse(time.RFC3339, v.Time)
			if err != nil || err2 != nil || now.Sub(at) > time.Hour {
				continue
			}
			key := fmt.Sprint(v.Cause, v.Members, v.Links)
			if strings.HasPrefix(v.Incident, "near miss") {
				key = v.Cause // nobody lost anything: one finding, whoever it was each time
			}
			if alike[key] == nil {
				order = append(order, key)
			}
			alike[key] = append(alike[key], told{v, m.Name, now.Sub(at)})
		}
	}
	for _, key := range order {
		all := alike[key]
		slices.SortStableFunc(all, func(x, y told) int { return cmp.Compare(x.ago, y.ago) })
		v := all[0] // the last one
		who := " at " + strings.Join(v.Members, ", ")
		switch {
		case len(v.Members) > 0:
		case len(v.Links) > 0:
			who = " at the links " + strings.Join(v.Links, ", ")
		default:
			who = ""
		}
		f := report.Finding{
			ID: "verdict-" + v.Cause, Severity: report.Warning, Confidence: report.Likely,
			Member:   strings.Join(v.Members, ", "),
			What:     fmt.Sprintf("%s ago: %s; the cause was %s%s.", age(v.ago), v.Incident, v.Cause, who),
			Evidence: append(slices.Clone(v.Evidence), "the verdict of "+v.by+", which led"),
			Why:      "Each change of leader, and each near miss, costs some clients a retry.",
		}
		if len(all) > 1 {
			var ages []string
			for _, o := range all[1:min(len(all), 7)] {
				ages = append(ages, strings.TrimSpace(age(o.ago)+" ("+strings.Join(append(slices.Clone(o.Members), o.Links...), ", ")+")"))
			}
			more := ""
			if len(all) > 7 {
				more = ", ..."
			}
			f.Evidence = append(f.Evidence, fmt.Sprintf("%d times within the last hour; the others, by how long ago: %s%s", len(all), strings.Join(ages, ", "), more))
		}
		if v.Advice != "" {
			f.Do = []string{v.Advice}
		}
		if v.Cause == "unknown" {
			f.Confidence = report.Possible
			f.What = fmt.Sprintf("%s ago: %s; nothing that the members noted explains it.", age(v.ago), v.Incident)
			f.Do = append(f.Do, "`belay doctor logs` on the logs of all members of that time")
		}
		a.add(f)
	}
	if belays > 0 {
		a.good("no incident in the last hour")
	}
}

func checkLeaderChanges(c *Cluster, a *adder) {
	told := false
	for _, m := range c.Members {
		seen, ok := m.scrape().Value("etcd_server_leader_changes_seen_total")
		if !ok {
			continue
		}
		told = true
		if by, ok := m.grown("etcd_server_leader_changes_seen_total"); ok && by > 0 {
			a.bad(report.Critical, m, "The leader changed while doctor looked.", "During an election nothing is written.", []string{fmt.Sprintf("%.0f times in %s", by, metrics.Seconds(m.between().Seconds()))},
				"`belay doctor logs` on the logs of all members tells whose fault it was")
			return
		}
		up := m.uptime()
		// The first leader that a process hears of is counted, too.
		if hours := up.Hours(); hours >= 0.5 && (seen-1)/hours >= bounds.LeaderChangesHourly || hours < 0.5 && hours > 0 && seen > bounds.LeaderChanges {
			a.bad(report.Warning, m, "It has seen many changes of leader.", "Each costs clients `leader changed` errors and timeouts.",
				[]string{fmt.Sprintf("%.0f since it started, %s ago", seen, up.Round(time.Minute))},
				"`belay doctor logs` on the logs of all members tells when, and whose fault it was")
			return
		}
	}
	if told {
		a.good("the leader is steady")
	} else {
		a.unknown("Changes of leader are not known: no member's metrics were answered.", metricsErrors(c), "name the URLs of --listen-metrics-urls by --metrics-urls")
	}
}

func metricsErrors(c *Cluster) (all []string) {
	for _, m := range c.Members {
		if m.MetricsErr != nil && m.Err == nil {
			all = append(all, m.Name+": "+plain(m.MetricsErr))
		}
	}
	return all
}

func checkClocks(c *Cluster, a *adder) {
	var known []*Member
	for _, m := range c.Members {
		if m.Clock.Known {
			known = append(known, m)
		}
	}
	if len(known) < 2 {
		return
	}
	first, last := known[0], known[0]
	for _, m := range known {
		if m.Clock.Ahead < first.Clock.Ahead {
			first = m
		}
		if m.Clock.Ahead > last.Clock.Ahead {
			last = m
		}
	}
	apart, within := last.Clock.Ahead-first.Clock.Ahead, last.Clock.Within+first.Clock.Within
	evidence := []string{fmt.Sprintf("%s is %s ahead of %s, give or take %s", last.Name, metrics.Seconds(apart.Seconds()), first.Name, metrics.Seconds(within.Seconds()))}
	if apart-within > 500*time.Millisecond {
		a.bad(report.Warning, nil, "The members' clocks differ.", "Raft does not mind; certificates, JWTs and the order of log lines do, and whoever reads the logs.", evidence, "see that chrony or ntpd runs on each, with the same servers")
		return
	}
	a.good("clocks agree: %s", evidence[0])
}

func checkVersions(c *Cluster, a *adder) {
	by := map[string][]string{}
	belay := 0
	for _, m := range c.Members {
		if m.Status == nil {
			continue
		}
		v := m.Status.Version
		if m.Belay != nil {
			belay++
		}
		by[v] = append(by[v], m.Name)
		if m.Belay == nil && slices.Contains([]string{"3.5.0", "3.5.1", "3.5.2"}, v) {
			a.bad(report.Critical, m, "etcd "+v+" can corrupt its data when it is killed.", "Versions 3.5.0 to 3.5.2 could commit the consistent index apart from the data; upstream advises against them in production.",
				nil, "upgrade to the newest 3.5, one member at a time", "then compare: `endpoint hashkv --cluster`")
		}
	}
	if len(by) > 1 {
		var evidence []string
		for v, who := range by {
			evidence = append(evidence, v+": "+strings.Join(who, ", "))
		}
		slices.Sort(evidence)
		a.bad(report.Warning, nil, "Members run different versions.", "That is meant for the time of an upgrade; features of the newer one are off meanwhile.", evidence, "finish the upgrade")
		return
	}
	for v := range by {
		if belay > 0 {
			a.good("all members are Belay's, with the surface of etcd %s", v)
		} else {
			a.good("all members run etcd %s", v)
		}
	}
}

func checkMembership(c *Cluster, a *adder) {
	voters := len(c.voters())
	switch {
	case voters == 1:
		a.add(report.Finding{ID: "membership-single", Severity: report.Warning, What: "The cluster has one voter.", Why: "When it is down, everything is; when its disk is lost, so is the data.", Do: []string{"fine for development; else add two members"}})
	case voters%2 == 0:
		a.add(report.Finding{ID: "membership-even", Severity: report.Warning, What: fmt.Sprintf("The cluster has %d voters, an even number.", voters),
			Why: fmt.Sprintf("It bears %s, as one of %d does, and one more disk has to answer each write.", losses((voters-1)/2), voters-1), Do: []string{fmt.Sprintf("add one member, or take one out: %d or %d", voters-1, voters+1)}})
	case voters > 7:
		a.add(report.Finding{ID: "membership-many", Severity: report.Warning, What: fmt.Sprintf("The cluster has %d voters.", voters), Why: "Each write waits for more disks and costs more; more than five rarely help.", Do: []string{"five voters bear two losses"}})
	}
	for _, m := range c.Members {
		if m.Learner && m.Started && m.Status != nil {
			f := report.Finding{ID: "membership-learner", Severity: report.Warning, Member: m.Name, What: "It is a learner.", Why: "It copies the data and does not vote: the cluster bears no loss more for it.",
				Do: []string{"promote it: `member promote`, or remove it, unless it is on purpose"}}
			if l := c.leader(); l != nil && l.latest() != nil {
				f.Evidence = []string{fmt.Sprintf("it has %d of the leader's %d entries", m.Status.RaftAppliedIndex, l.latest().RaftAppliedIndex)}
			}
			a.add(f)
		}
	}
	hosts := map[string][]string{}
	for _, m := range c.Members {
		if len(m.PeerURLs) == 0 {
			continue
		}
		if u, err := url.Parse(m.PeerURLs[0]); err == nil && u.Hostname() != "" {
			hosts[u.Hostname()] = append(hosts[u.Hostname()], m.Name)
		}
	}
	for host, who := range hosts {
		if len(who) > 1 {
			f := report.Finding{ID: "membership-one-machine", Severity: report.Warning, What: "Members share a machine: " + strings.Join(who, ", ") + ".", Why: "They fail together, and one's disk and CPU slow the others.",
				Evidence: []string{"their peer URLs have the host " + host}, Do: []string{"fine for development; else a machine and a disk for each"}}
			if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
				f.Confidence = report.Likely // a name may stand for several, behind a port each
			}
			a.add(f)
		}
	}
	for _, o := range c.Others {
		a.add(o.finding(c))
	}
	a.good("%d voters, each on a host of its own", voters)
}

// finding says what it means that somebody else answers.
func (o Other) finding(c *Cluster) report.Finding {
	f := report.Finding{Evidence: []string{fmt.Sprintf("%s: member %x of cluster %x", o.Endpoint, o.MemberID, o.ClusterID)}}
	if o.Member != nil {
		f.Member = o.Member.Name
		f.Evidence = append(f.Evidence, fmt.Sprintf("%s is member %x of cluster %x", o.Member.Name, o.Member.ID, c.ID))
	}
	const apart = "It has none of this cluster's writes: clients that know both read and write other data, by which of them they reach."
	switch {
	case o.ClusterID != c.ID && o.Member != nil:
		f.ID, f.Severity = "membership-other-cluster", report.Critical
		f.What, f.Why = "A member of another cluster answers at its client URL.", apart
		f.Do = []string{
			"stop what answers there",
			"if it is this member, started again on an empty directory as a cluster of its own (--initial-cluster-state=new): `member remove` it, move its directory away, `member add` it, and start it with --initial-cluster-state=existing",
			"if the address belongs to somebody else now: correct --advertise-client-urls",
		}
	case o.ClusterID != c.ID:
		f.ID, f.Severity = "membership-other-cluster", report.Critical
		f.What, f.Why = "The endpoints belong to different clusters.", apart
		f.Evidence = append(f.Evidence, fmt.Sprintf("the rest of this report is about cluster %x", c.ID))
		f.Do = []string{
			"take it out of --endpoints, and out of the lists of clients that should have one cluster; look at each cluster by itself",
			"if it should be a member: stop it, move its directory away, `member add` it, and start it with --initial-cluster-state=existing",
		}
	case o.Member != nil:
		f.ID, f.Severity = "membership-other-member", report.Warning
		f.What, f.Why = "Another member answers at its client URL.", "What clients ask of it is asked of another member; nothing could be looked at here that it would tell."
		if m := c.byID(o.MemberID); m != nil {
			f.What = m.Name + " answers at its client URL."
		}
		f.Do = []string{"have each member advertise where it listens itself (--advertise-client-urls), not the address of another or of a load balancer"}
	default:
		f.ID, f.Severity = "membership-other-member", report.Warning
		f.What, f.Why = "A process answers that is no member.", "It was removed from the cluster, or has just been added: its data may be old."
		f.Do = []string{"if it was removed: stop it, and take it out of the lists of clients"}
	}
	return f
}

func checkOpen(c *Cluster, a *adder) {
	if c.TLS || !c.AuthKnown || c.Auth {
		return
	}
	var open []string
	for _, m := range c.Members {
		for _, u := range m.ClientURLs {
			host, _, _ := net.SplitHostPort(hostOf(u))
			if ip := net.ParseIP(host); strings.HasPrefix(u, "http://") && (ip == nil || !ip.IsLoopback()) {
				open = append(open, u)
			}
		}
	}
	if len(open) > 0 {
		a.bad(report.Warning, nil, "Whoever reaches the client ports may read, write and remove all.", "There are neither users nor client certificates.", []string{strings.Join(open, ", ")},
			"ask for client certificates (--client-cert-auth, --trusted-ca-file), or turn users on (`auth enable`), or keep the ports in a network of their own")
	}
}

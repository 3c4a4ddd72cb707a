package logs

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/belaydb/belay/cli/doctor/report"
)

// A verdict is a cause that explains an incident, or a part of it.
type verdict struct {
	id         string
	member     string
	what       string
	severity   report.Severity
	confidence report.Confidence
	weight     int // the heaviest is the incident's cause
	evidence   []string
	do         []string
}

// rules are tried on every incident. What a member says of its own end comes before what it
// measured, and that before what others say of it. A rule that the lines do not bear out says
// nothing.
var rules = []func(*court) []verdict{
	ruleVerdict, ruleCorrupt, ruleDiskFull, ruleTransfer, ruleEnded, ruleSignal, ruleStart, ruleGone, ruleDefrag, ruleDisk, rulePaused, ruleHungLog,
	ruleLinks, ruleSteppedDown, ruleUnheard, ruleAlone, ruleNoSpace, ruleCertificate, ruleCluster, ruleOverload, ruleClock, ruleLate, ruleNetwork,
}

// A court is one incident with what is known of the members' logs.
type court struct {
	*incident
	streams map[string][]*stream // by member
	before  string               // who led
	changed bool
	all     []string // members that any log names
}

// logged says whether the member's log is at hand for this time.
func (c *court) logged(member string, from, to time.Time) bool {
	return slices.ContainsFunc(c.streams[member], func(s *stream) bool { return !s.first.After(from) && !s.last.Before(to) })
}

// wrote says whether the member wrote anything in whole seconds within this time.
func (c *court) wrote(member string, from, to time.Time) bool {
	return slices.ContainsFunc(c.streams[member], func(s *stream) bool { return s.active.any(from, to) })
}

func clock(t time.Time) string { return t.UTC().Format("15:04:05.000") }

// of is the incident's verdicts, the heaviest first; never none.
func (c *court) judge() []verdict {
	c.before, _, _ = c.leaders()
	c.changed = c.changedLeader()
	var found []verdict
	for _, rule := range rules {
		found = append(found, rule(c)...)
	}
	for n := range found {
		v := &found[n]
		if v.member == nobody {
			v.member = ""
		}
		// Of two that explain alike, the one about who led. What happened to a member that neither
		// led nor asked for votes changes no leader while a quorum is there.
		switch {
		case c.before == "" || v.member == "" || !c.changed:
		case v.member == c.before:
			v.weight += 3
		case len(c.of(v.member, kindCampaign)) == 0 && len(c.of("", kindDown)) == 0 && slices.Contains(ofOneMember, v.id):
			v.weight = min(v.weight, 38)
			v.what += " (it did not lead: the change of leader is not from that alone)"
		}
	}
	slices.SortStableFunc(found, func(a, b verdict) int { return b.weight - a.weight })
	if len(found) == 0 || c.changed && found[0].weight < 40 {
		found = append([]verdict{c.cannotTell()}, found...)
	}
	return found
}

// ofOneMember are the causes that a member has for itself.
var ofOneMember = []string{"disk-slow", "stall", "process-paused", "loop-blocked", "defragmentation", "killed", "crashed", "not-running", "stopped", "unreachable", "large-requests"}

// cannotTell is the verdict when nothing explains the incident.
func (c *court) cannotTell() verdict {
	v := verdict{id: "not-told", severity: report.Unknown, confidence: report.Certain, what: "why is not to be told from these logs"}
	if c.changed {
		if c.before != "" {
			v.member = ""
			v.evidence = append(v.evidence, fmt.Sprintf("%s led; nothing in these lines says that it stood still, that its disk was slow, or that it ended", c.before))
		}
		if c.before != "" && !c.logged(c.before, c.from, c.to) {
			v.do = append(v.do, fmt.Sprintf("add the log of %s from %s to %s: it is the one that would tell", c.before, clock(c.from.Add(-10*time.Second)), clock(c.to.Add(10*time.Second))))
		}
	}
	var missing []string
	for _, m := range c.all {
		if m != c.before && !c.logged(m, c.from, c.to) {
			missing = append(missing, m)
		}
	}
	if len(missing) > 0 {
		v.do = append(v.do, "no log of "+strings.Join(missing, ", ")+" here reaches over that time: add them")
	}
	v.do = append(v.do,
		"these metrics of that time would tell: etcd_disk_wal_fsync_duration_seconds and etcd_network_peer_round_trip_time_seconds of each member, the CPU and steal time of its machine",
		"etcd logs no fsync under 1 s and no link that recovers within 5 s: a fault that is shorter leaves no line")
	return v
}

// quote is the first lines of events as evidence.
func quote(events []*Event, limit int) []string {
	var out []string
	for _, e := range events {
		if len(out) == limit {
			break
		}
		if len(e.Lines) > 0 {
			text := fmt.Sprintf("%s %s: %s", clock(e.At), or(e.Member, "?"), cut(e.Lines[0], 220))
			if e.Count > 1 {
				text += fmt.Sprintf(" (%d such lines)", e.Count)
			}
			out = append(out, text)
		}
	}
	return out
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// fault is a severity for what went wrong: worse if the leader was lost.
func (c *court) fault() report.Severity { return report.Warning }

func ruleVerdict(c *court) (found []verdict) {
	for _, e := range c.of("", kindVerdict) {
		cause := e.fields["cause"]
		if cause == "" || cause == "unknown" {
			continue
		}
		v := verdict{
			id: "verdict", member: list(e.fields["members"], ", "), weight: 110, severity: c.fault(), confidence: report.Likely,
			what: "Belay's own verdict is " + cut(cause, 40),
			do:   []string{or(cut(e.fields["advice"], 300), "see the incidents section of docs/operations.md for this cause")},
		}
		if slices.Contains([]string{"transfer-requested", "member-stopped"}, cause) {
			v.severity = report.Good
		}
		if links := list(e.fields["links"], ", "); links != "" {
			v.what += ", of " + cut(links, 80)
		}
		if text := list(e.fields["evidence"], "; "); text != "" {
			v.evidence = append(v.evidence, "the leader collected the events of all members: "+cut(text, 300))
		}
		v.evidence = append(v.evidence, clock(e.At)+" "+or(e.Member, "?")+": verdict on an incident")
		found = append(found, v)
	}
	return found
}

// list is a JSON list of texts as one text.
func list(text, between string) string {
	var parts []string
	if json.Unmarshal([]byte(text), &parts) == nil {
		return cut(strings.Join(parts, between), 300)
	}
	return cut(strings.Trim(text, "[]"), 300)
}

func ruleCorrupt(c *court) []verdict {
	ev := c.of("", kindCorrupt)
	if len(ev) == 0 {
		return nil
	}
	return []verdict{{
		id: "corrupt", weight: 100, severity: report.Critical, confidence: report.Certain, what: "members' data differ (a hash check failed)", evidence: quote(ev, 3),
		do: []string{"find which member differs (`etcdctl endpoint hashkv --cluster`), remove it, delete its data, add it again; take a snapshot of a good one first"},
	}}
}

func ruleDiskFull(c *court) (found []verdict) {
	for _, m := range membersOf(c.of("", kindDiskFull)) {
		found = append(found, verdict{
			id: "disk-full", member: m, weight: 99, severity: report.Critical, confidence: report.Certain, what: "the file system of " + m + " is full",
			evidence: quote(c.of(m, kindDiskFull), 2),
			do:       []string{"free space on the file system of the data directory (and of the log, if it is another), then start the member again", "find what filled it: `du -xh --max-depth=2` on its mount"},
		})
	}
	return found
}

// nobody stands for the member of lines that do not tell whose they are.
const nobody = "a member that these lines do not name"

// membersOf are the members of events, by name.
func membersOf(events []*Event) []string {
	set := map[string]bool{}
	for _, e := range events {
		set[or(e.Member, nobody)] = true
	}
	return slices.Sorted(maps.Keys(set))
}

func ruleTransfer(c *court) (found []verdict) {
	for _, e := range c.of("", kindHandDisk) {
		found = append(found, verdict{
			id: "disk-stalled", member: e.Member, weight: 97, severity: c.fault(), confidence: report.Certain,
			what:     fmt.Sprintf("%s handed leadership over because its disk had stalled for %s", e.Member, show(e.Took)),
			evidence: quote([]*Event{e}, 1), do: diskAdvice,
		})
	}
	if len(found) > 0 {
		return found
	}
	for _, e := range c.of("", kindTransfer) {
		if len(c.of(e.Member, kindSignal, kindPanic, kindDiskFull, kindHandDisk)) > 0 {
			continue
		}
		return []verdict{{
			id: "transfer", member: e.Member, weight: 95, severity: report.Good, confidence: report.Certain,
			what:     fmt.Sprintf("leadership went from %s to %s on purpose (move-leader), and nothing had failed", or(e.Member, "the leader"), or(e.Peer, "another member")),
			evidence: quote([]*Event{e}, 1),
		}}
	}
	return nil
}

// ruleEnded is about processes that ended and said so, or of which somebody else did.
func ruleEnded(c *court) (found []verdict) {
	if panics := c.of("", kindPanic); len(panics) > 0 {
		e := panics[0]
		found = append(found, verdict{
			id: "crashed", member: e.Member, weight: 94, severity: c.fault(), confidence: report.Certain, what: or(e.Member, "a member") + " crashed by itself",
			evidence: quote([]*Event{e}, 1), do: []string{"its last lines say why; a panic is a bug of the server or damage on its disk: keep the data directory until that is clear"},
		})
		if v := &found[len(found)-1]; containsAny(strings.ToLower(e.err+" "+strings.Join(e.Lines, " ")), "input/output error", "read-only file system") {
			v.id, v.what = "disk-error", or(e.Member, "a member")+" ended because its disk fails: writing gave an error"
			v.do = []string{"look at the kernel's log (`journalctl -k`) and at the disk; replace the member rather than start it again on that disk"}
		}
	}
	for _, e := range c.of("", kindOOM, kindKilled) {
		v := verdict{id: "killed", member: e.Member, weight: 93, severity: c.fault(), confidence: report.Certain, what: "the process of " + or(e.Member, "a member") + " was killed", evidence: quote([]*Event{e}, 1)}
		if e.Kind == kindOOM {
			v.what += " by the kernel, for lack of memory"
			v.do = []string{"give the machine or the container more memory, or find what else uses it; of etcd, large ranges and many watchers do"}
		} else {
			v.do = []string{"`journalctl -k` of that time says whether it was the kernel (out of memory); otherwise somebody or something sent the signal"}
		}
		found = append(found, v)
	}
	return found
}

func ruleSignal(c *court) (found []verdict) {
	for _, m := range membersOf(c.of("", kindSignal)) {
		v := verdict{
			id: "stopped", member: m, weight: 92, severity: report.Good, confidence: report.Certain, evidence: quote(c.of(m, kindSignal), 1),
			what: m + " was stopped by a signal",
		}
		if len(c.of(m, kindTransfer)) > 0 {
			v.what += ", and handed leadership over"
		}
		if len(c.of(m, kindStart)) > 0 {
			v.what += "; it was started again"
		}
		found = append(found, v)
	}
	if len(found) > 1 {
		v := found[0]
		v.member, v.weight, v.what = "", 93, fmt.Sprintf("%d members were stopped by signals", len(found))
		return append([]verdict{v}, found...)
	}
	return found
}

func ruleStart(c *court) []verdict {
	starts := c.of("", kindStart)
	if len(starts) == 0 || slices.ContainsFunc(starts, func(e *Event) bool { return e.again }) || c.before != "" || c.changed {
		return nil
	}
	// What others said before the first start is no part of it.
	if c.events[0].At.Before(starts[0].At.Add(-2 * time.Second)) {
		return nil
	}
	return []verdict{{
		id: "cluster-start", weight: 90, severity: report.Good, confidence: report.Certain, evidence: quote(starts, 1),
		what: "the start of " + strings.Join(membersOf(starts), ", ") + "; members cannot reach each other until all have begun",
	}}
}

// ruleGone is about processes that are there no more, and did not say why.
func ruleGone(c *court) (found []verdict) {
	for _, m := range c.all {
		if len(c.of(m, kindSignal, kindPanic, kindKilled, kindOOM, kindDiskFull)) > 0 {
			continue
		}
		closed, refused := c.lostBy(m, "closed"), c.lostBy(m, "refused")
		var start *Event
		if s := c.of(m, kindStart); len(s) > 0 {
			start = s[0]
		}
		switch {
		case start != nil && start.again:
			v := verdict{
				id: "killed", member: m, weight: 90, severity: c.fault(), confidence: report.Likely,
				what:     m + " ended without a word and was started again: killed (kill -9, out of memory), or its machine went down",
				evidence: quote([]*Event{start}, 1),
				do:       []string{"look for the end of the process in the journal of its machine: `journalctl -k | grep -i oom`, `journalctl -u etcd`, and for containers the last state in `kubectl describe pod`"},
			}
			// Certain if the log goes up to the end of that life: otherwise it may have lost the
			// lines that tell of a stop.
			if lost := append(slices.Clone(closed), refused...); len(lost) > 0 && c.wrote(m, lost[0].At.Add(-10*time.Minute), lost[0].At.Add(time.Second)) {
				v.confidence = report.Certain
				v.evidence = append(v.evidence, "its log holds no signal, no panic and no fatal line before that start")
				v.evidence = append(v.evidence, quote(append(closed, refused...), 2)...)
			}
			found = append(found, v)
		case len(refused) > 0 && start == nil && c.wrote(m, refused[0].At.Add(time.Second), refused[len(refused)-1].Last.Add(-time.Second)):
			found = append(found, verdict{
				id: "link", weight: 70, severity: c.fault(), confidence: report.Possible,
				what:     "connections to " + m + " were refused while it ran: a firewall that rejects, another address, or its peer listener",
				evidence: quote(refused, 3), do: []string{"look at firewalls and network policies, and at --listen-peer-urls and --initial-advertise-peer-urls of " + m},
			})
		case len(refused) > 0 && (start == nil || !start.At.Before(refused[0].At)):
			v := verdict{ // a firewall that rejects looks the same from outside
				id: "not-running", member: m, weight: 88, severity: c.fault(), confidence: report.Likely,
				what:     "the process of " + m + " was not running: its machine refused connections",
				evidence: quote(append(refused, closed...), 3),
				do:       []string{"why it ended is not in these logs: look into the end of its own log and the journal of its machine"},
			}
			if start != nil {
				v.what += "; it was started at " + clock(start.At)
			}
			found = append(found, v)
		case len(closed) >= 2 && len(c.streams[m]) > 0 && !c.logged(m, c.from, c.to) && start == nil && len(membersOf(closed)) >= 2:
			found = append(found, verdict{
				id: "killed", member: m, weight: 86, severity: c.fault(), confidence: report.Likely,
				what:     m + " seems to have ended: its log stops there and its connections were closed",
				evidence: quote(closed, 3), do: []string{"look into the journal of its machine"},
			})
		}
	}
	return found
}

// lostBy are events of others that lost member, with errors of this sort: refused, closed, timeout.
func (c *court) lostBy(member, sort string) (found []*Event) {
	for _, e := range c.of("", kindConnLost, kindInactive, kindProbe) {
		if e.Peer == member && e.Member != member && errorSort(e) == sort {
			found = append(found, e)
		}
	}
	return found
}

// errorSort says what an error on a link tells: refused (the machine answers, the process is not
// there), closed (the other end, or its kernel, closed the connection), timeout (nothing came),
// local (this side ended it), other.
func errorSort(e *Event) string {
	text := strings.ToLower(e.err + " " + strings.Join(e.Lines, " "))
	switch {
	case strings.Contains(text, "refused"):
		return "refused"
	case strings.Contains(text, "context canceled") || strings.Contains(text, "stopped"):
		return "local"
	case containsAny(text, "timeout", "timed out", "deadline exceeded", "no route", "unreachable"):
		return "timeout"
	case containsAny(text, "eof", "reset", "broken pipe", "closed"):
		return "closed"
	}
	return "other"
}

func containsAny(text string, parts ...string) bool {
	return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(text, p) })
}

func ruleDefrag(c *court) (found []verdict) {
	for _, m := range membersOf(c.of("", kindDefrag)) {
		w := worst(c.of(m, kindDefrag))
		if w.Took < 500*time.Millisecond {
			continue
		}
		found = append(found, verdict{
			id: "defragmentation", member: m, weight: 89, severity: c.fault(), confidence: report.Certain,
			what:     fmt.Sprintf("%s was defragmented, which stops a member of etcd from answering: %s", m, show(w.Took)),
			evidence: quote([]*Event{w}, 1),
			do:       []string{"defragment one member after the other, the leader last and after a move-leader, at a quiet time", "defragment less often: it only helps when the file is much larger than what is in use"},
		})
	}
	return found
}

var diskAdvice = []string{
	"look at what else writes to that disk at this time: a backup, a Prometheus block, another etcd; `belay doctor neighbours` watches for it",
	"give the write-ahead log a disk of its own (--wal-dir), with fsync under 10 ms at p99",
}

func ruleDisk(c *court) (found []verdict) {
	syncs := c.of("", kindSync, kindDiskBad)
	slow := membersOf(syncs)
	for _, m := range slow {
		own := c.of(m, kindSync, kindDiskBad)
		w := worst(own)
		belay := len(c.of(m, kindDiskBad)) > 0
		v := verdict{
			id: "disk-slow", member: m, weight: 87, severity: c.fault(), confidence: report.Likely, do: diskAdvice,
			what: fmt.Sprintf("the disk of %s was slow: %s for one fsync", m, show(w.Took)),
		}
		if n := lines(own); n > 1 {
			v.what = fmt.Sprintf("the disk of %s was slow: up to %s for one fsync, %d lines", m, show(w.Took), n)
		}
		v.evidence = quote(own, 2)
		late := worst(c.of(m, kindLate, kindLateCPU))
		if late != nil && late.Kind == kindLate && w.Took >= late.Took/2 && slices.ContainsFunc(own, late.within) {
			v.evidence = append(v.evidence, fmt.Sprintf("its heartbeats were late by %s, which the fsync explains", show(late.Took)))
		}
		timeouts := c.lostBy(m, "timeout")
		ran := slices.ContainsFunc(own, func(e *Event) bool { return e.ran })
		heard, slept := c.heardWithin(m, w.begins().Add(atOnce), w.At.Add(-atOnce/3)), c.heardLate(m)
		if heard != nil {
			ran = true
		}
		starved := worst(c.of(m, kindLateCPU))
		switch {
		case belay && starved != nil && starved.Took >= 300*time.Millisecond && 4*starved.Took >= w.Took:
			// A process without CPU sees its own syncs end late.
			v.id, v.weight, v.confidence = "stall", 60, report.Possible
			v.what = fmt.Sprintf("a fsync of %s took %s, or it had no CPU to see its end", m, show(w.Took))
		case belay || ran:
			v.confidence = report.Certain
			if heard != nil {
				v.evidence = append(v.evidence, quote([]*Event{heard}, 1)...)
			}
			if ran {
				v.evidence = append(v.evidence, "well into that fsync it wrote another line, so the process itself ran")
			}
		case slept != nil && slept.at.At.After(w.At.Add(-atOnce)) && lines(own) < 3:
			// It heard of the vote when the fsync was over, and not when it was asked.
			v.id, v.weight = "process-paused", 86
			v.what = fmt.Sprintf("%s stood still, or got no CPU, for about %s, in a fsync", m, show(w.Took))
			v.evidence = append(v.evidence, quote([]*Event{slept.from, slept.at}, 2)...)
			v.evidence = append(v.evidence, fmt.Sprintf("it was asked for its vote and heard of it %s later, when the fsync was over: one that waits for its disk hears at once", show(slept.took)))
			v.do = pauseAdvice
		case len(timeouts) > 0 && lines(own) < 3:
			v.id, v.weight, v.confidence = "stall", 60, report.Possible
			v.what = fmt.Sprintf("%s hung for %s in a fsync: its disk was slow, or the process stood still", m, show(w.Took))
			v.evidence = append(v.evidence, "others got nothing at all from it meanwhile, as of a process that stands still: a disk alone does not do that")
		case lines(own) < 3:
			// Its member is told, and not which of the two.
			v.id, v.confidence = "stall", report.Possible
			v.what = fmt.Sprintf("%s hung for %s in a fsync: its disk was slow, or the process stood still", m, show(w.Took))
			v.evidence = append(v.evidence, "a process that is stopped while it syncs leaves the same line, and it wrote no other meanwhile")
			v.do = append([]string{"etcd_disk_wal_fsync_duration_seconds of the hours around it tells: a slow disk is seldom slow once"}, append(slices.Clone(diskAdvice), pauseAdvice[0])...)
		}
		if m == nobody {
			v.confidence, v.weight = report.Possible, 60
		}
		found = append(found, v)
	}
	if len(slow) > 1 {
		v := found[0]
		v.id, v.member, v.weight = "disk-shared", "", 88
		v.what = "the disks of " + strings.Join(slow, ", ") + " were slow at the same time, as if they shared storage"
		v.confidence, v.evidence = report.Likely, quote(syncs, 4)
		v.do = append([]string{"members need disks that do not fail together: not volumes of one storage pool"}, diskAdvice...)
		found = append(found, v)
	}
	return found
}

const (
	// twoSyncs is how long etcd's raft loop can be held up by fsyncs none of which is logged.
	twoSyncs = 2 * time.Second
	// severalTimes is how far apart lines about late heartbeats are that tell of more than one time.
	severalTimes = 500 * time.Millisecond
)

func rulePaused(c *court) (found []verdict) {
	for _, m := range membersOf(c.of("", kindLate, kindLateCPU)) {
		if own := c.of(m, kindLateCPU); len(own) > 0 {
			if w := worst(own); w.Took >= 300*time.Millisecond {
				found = append(found, verdict{
					id: "process-paused", member: m, weight: 87, severity: c.fault(), confidence: report.Certain,
					what: fmt.Sprintf("%s stood still or got no CPU for %s (it measured that itself)", m, show(w.Took)), evidence: quote([]*Event{w}, 1), do: pauseAdvice,
				})
			}
			continue
		}
		w := worst(c.of(m, kindLate))
		if w.Took < time.Second {
			continue
		}
		if s := worst(c.of(m, kindSync, kindDiskBad)); s != nil && s.Took >= w.Took/3 {
			continue
		}
		if d := worst(c.of(m, kindDefrag)); d != nil && d.Took >= w.Took/3 {
			continue
		}
		v := verdict{
			id: "process-paused", member: m, weight: 86, severity: c.fault(), confidence: report.Likely, do: pauseAdvice,
			what:     fmt.Sprintf("%s stood still, or got no CPU, for about %s", m, show(w.Took)),
			evidence: quote([]*Event{w}, 1),
		}
		heard := c.heardWithin(m, w.begins().Add(atOnce), w.At.Add(-atOnce/3))
		if own := worst(c.of(m, kindOwnLate)); own != nil && own.Took >= hungLog {
			continue // ruleHungLog
		}
		switch {
		case w.ran || heard != nil || len(c.of(m, kindReadState)) > 0:
			v.id, v.confidence = "loop-blocked", report.Possible
			v.what = fmt.Sprintf("the raft loop of %s was blocked for about %s while the process ran: CPU, memory or disk, these lines do not tell which", m, show(w.Took))
			v.evidence = append(v.evidence, "it wrote other lines meanwhile, so it was not stopped", "no fsync over 1 s is logged, but a write or a new log file can hang too")
			if len(c.of(m, kindReadState)) > 0 {
				v.what = fmt.Sprintf("the raft loop of %s was blocked for about %s: it waited for its own readers (\"timed out sending read state\")", m, show(w.Took))
			}
		case w.Took < twoSyncs && w.Last.Sub(w.At) >= severalTimes:
			v.id, v.confidence = "loop-blocked", report.Possible
			v.what = fmt.Sprintf("the raft loop of %s was blocked several times, for up to %s: CPU, memory or disk, these lines do not tell which", m, show(w.Took))
			v.evidence = append(v.evidence, fmt.Sprintf("it was late again and again for %s, as one that is stopped once is not", show(w.Last.Sub(w.At))),
				"etcd logs each fsync over 1 s, and there is no such line; but two that take a little less are as long together")
		default:
			v.evidence = append(v.evidence,
				"etcd blames the disk in every such line; but it logs each fsync over 1 s, and there is no such line",
				"it wrote no other line in that time")
		}
		found = append(found, v)
	}
	return found
}

// hungLog is how long what a member wrote must have been on its way to its disk to explain that the
// others lost it.
const hungLog = 500 * time.Millisecond

// ruleHungLog is about a leader whose log hung in a write, of which etcd logs nothing, as it does of
// an fsync: what it had appended was on its disk only long after it had learned of the next leader.
func ruleHungLog(c *court) (found []verdict) {
	for _, m := range membersOf(c.of("", kindOwnLate)) {
		own := worst(c.of(m, kindOwnLate))
		lag := own.Took
		if lag < hungLog || worst(c.of(m, kindSync, kindDiskBad)) != nil || len(c.of(m, kindReadState)) > 0 {
			continue
		}
		found = append(found, verdict{
			id: "disk-slow", member: m, weight: 86, severity: c.fault(), confidence: report.Likely, do: diskAdvice,
			what: fmt.Sprintf("the disk of %s hung: what it had written to its log was there only %s after it had learned of the next leader", m, show(lag)),
			evidence: append(quote([]*Event{own}, 1),
				"it heard of that leader at once, so it ran and its network was there",
				"etcd logs an fsync of 1 s and more, and no write that hangs"),
		})
	}
	return found
}

// ruleUnheard is about a leader that was lost although it ran and its disk did not hang: by when it
// heard of the votes that others asked for, one direction of its network or both were gone.
func ruleUnheard(c *court) []verdict {
	m := c.before
	if m == "" || !c.changed || len(c.lostAsLeader(m)) == 0 {
		return nil
	}
	late := worst(c.of(m, kindLate, kindLateCPU))
	if late != nil && late.Took >= 500*time.Millisecond || worst(c.of(m, kindSync, kindDiskBad)) != nil ||
		len(c.of(m, kindOwnLate, kindSignal, kindPanic, kindStart, kindTransfer, kindHandDisk, kindReadState, kindDiskFull, kindDefrag)) > 0 {
		return nil
	}
	lost := c.lostAsLeader(m)
	v := verdict{
		id: "partition", member: m, weight: 71, severity: c.fault(), confidence: report.Likely,
		do: []string{"look at the network of " + m + ": link, firewall, routes; `belay doctor network` measures it"},
	}
	if h := c.heardLate(m); h != nil {
		v.what = fmt.Sprintf("the network of %s was gone, or slower than the election timeout: it was asked for its vote and heard of it %s later, and it was late with nothing", m, show(h.took))
		v.evidence = append(quote(lost, 2), quote([]*Event{h.from, h.at}, 2)...)
		return []verdict{v}
	}
	if h := c.heardWithin(m, lost[0].At.Add(-time.Second), lost[len(lost)-1].At.Add(3*time.Second)); h != nil {
		v.what = fmt.Sprintf("what %s sent did not arrive, or later than the election timeout: it ran, was late with nothing, and heard of the votes that others asked for at once", m)
		v.evidence = append(quote(lost, 2), quote([]*Event{h}, 1)...)
		v.confidence = report.Possible
		return []verdict{v}
	}
	return nil
}

// lostAsLeader are the events of members that lost m.
func (c *court) lostAsLeader(m string) (all []*Event) {
	for _, e := range c.of("", kindLost) {
		if e.Peer == m && e.Member != m {
			all = append(all, e)
		}
	}
	return all
}

var pauseAdvice = []string{
	"look for what stops it: a debugger or SIGSTOP, a frozen or throttled container (cpu.stat: nr_throttled), a virtual machine that is moved, saved or overcommitted (steal time), swapping",
	"give it CPU that others cannot take: requests equal to limits, or a higher CPUWeight=",
}

// ruleLinks is about members that lost each other.
func ruleLinks(c *court) (found []verdict) {
	type pair struct{ from, to string }
	lost := map[pair][]*Event{}
	degree := map[string]int{}
	for _, e := range c.of("", kindConnLost, kindInactive, kindProbe) {
		if e.Member == "" || e.Peer == "" || e.Member == e.Peer {
			continue
		}
		switch errorSort(e) {
		case "timeout":
		case "other", "closed":
			if e.Kind != kindInactive && len(c.lostBy(e.Peer, "timeout")) == 0 {
				continue
			}
			if errorSort(e) == "closed" {
				continue
			}
		default:
			continue
		}
		lost[pair{e.Member, e.Peer}] = append(lost[pair{e.Member, e.Peer}], e)
	}
	// What is explained by a member that ended, or that stood still, is none of a link.
	excused := map[string]bool{}
	for _, m := range c.all {
		late := worst(c.of(m, kindLate, kindLateCPU))
		if len(c.of(m, kindSignal, kindPanic, kindKilled, kindOOM, kindStart)) > 0 || len(c.lostBy(m, "refused")) > 0 || late != nil && late.Took >= time.Second || len(c.of(m, kindSync, kindDiskBad)) > 0 {
			excused[m] = true
		}
	}
	both := map[pair]bool{}
	for p := range lost {
		if excused[p.from] || excused[p.to] {
			delete(lost, p)
		}
	}
	if len(lost) == 0 {
		return nil
	}
	all := func(m string) (ev []*Event) {
		for p, e := range lost {
			if m == "" || p.from == m || p.to == m {
				ev = append(ev, e...)
			}
		}
		byTime(ev)
		return ev
	}
	for p := range lost {
		key := p
		if key.from > key.to {
			key.from, key.to = key.to, key.from
		}
		if _, seen := both[key]; !seen {
			degree[key.from]++
			degree[key.to]++
		}
		_, back := lost[pair{p.to, p.from}]
		both[key] = back
	}
	pairs := slices.SortedFunc(maps.Keys(both), func(a, b pair) int { return strings.Compare(a.from+a.to, b.from+b.to) })
	hub := ""
	for _, m := range sortedKeys(degree) {
		if degree[m] == len(pairs) && len(pairs) >= 2 {
			hub = m
		}
	}
	advice := []string{"look at switches, firewalls and routes between them, and at packet loss (`ip -s link`, `nstat TcpRetransSegs`); `belay doctor network` measures it"}
	switch {
	case hub != "":
		own := 0
		var others, itself time.Time // when the first of the others lost it, and it one of them
		for p, events := range lost {
			at := &others
			if p.from == hub {
				own++
				at = &itself
			}
			if at.IsZero() || events[0].At.Before(*at) {
				*at = events[0].At
			}
		}
		ev := all(hub)
		from, to := ev[0].At, ev[len(ev)-1].Last
		switch {
		// One that is cut off asks for votes within seconds, or steps down, and says so.
		case own > 0 && itself.After(others.Add(time.Second)) && !c.wrote(hub, others.Add(-3*time.Second), itself.Truncate(time.Second)):
			found = append(found, verdict{
				id: "process-paused", member: hub, weight: 82, severity: c.fault(), confidence: report.Likely,
				what:     hub + " wrote nothing while the others lost it, not even that it had no leader: it stood still, or its machine did",
				evidence: append(quote(ev, 3), fmt.Sprintf("its own log goes on at %s", clock(itself))), do: pauseAdvice,
			})
		case own > 0:
			found = append(found, verdict{
				id: "partition", member: hub, weight: 84, severity: c.fault(), confidence: report.Likely,
				what:     hub + " was cut off from the others: both ends lost each other, and both ran",
				evidence: quote(ev, 4), do: advice,
			})
		case c.logged(hub, from, to) && !c.wrote(hub, from.Add(-4*time.Second), to.Add(-time.Second)):
			found = append(found, verdict{
				id: "process-paused", member: hub, weight: 82, severity: c.fault(), confidence: report.Possible,
				what:     hub + " wrote nothing while all others lost it: it stood still, or its machine did",
				evidence: append(quote(ev, 3), "its own log has no line in that time, and lines before and after"), do: pauseAdvice,
			})
		default:
			v := verdict{
				id: "unreachable", member: hub, weight: 78, severity: c.fault(), confidence: report.Possible,
				what:     "all others lost " + hub + ": cut off, frozen, or its machine down; from outside these look the same",
				evidence: quote(ev, 3),
			}
			if !c.logged(hub, from, to) {
				v.do = append(v.do, "add the log of "+hub+" for that time: lines in it say that it ran, a gap that it stood still")
			}
			v.do = append(v.do, "uptime and `journalctl --list-boots` of its machine tell a restart")
			found = append(found, v)
		}
	case len(pairs) == 1:
		p := pairs[0]
		v := verdict{
			id: "link", weight: 76, severity: c.fault(), confidence: report.Likely, evidence: quote(all(""), 4), do: advice,
			what: fmt.Sprintf("the link between %s and %s was lost: both ends say so", p.from, p.to),
		}
		if !both[p] {
			e := all("")[0]
			v.confidence, v.weight = report.Possible, 70
			v.what = fmt.Sprintf("%s lost %s, and %s says nothing of it: the link, one direction of it, or %s itself", e.Member, e.Peer, e.Peer, e.Peer)
			if !c.logged(e.Peer, c.from, c.to) {
				v.do = append([]string{"add the log of " + e.Peer + " for that time"}, v.do...)
			}
		}
		found = append(found, v)
	default:
		found = append(found, verdict{
			id: "partition", weight: 74, severity: c.fault(), confidence: report.Possible, evidence: quote(all(""), 5), do: advice,
			what: fmt.Sprintf("several links were lost at once (%d pairs): the network between the members", len(pairs)),
		})
	}
	return found
}

func ruleSteppedDown(c *court) (found []verdict) {
	for _, e := range c.of("", kindDown) {
		m := e.Member
		late := worst(c.of(m, kindLate, kindLateCPU))
		others := 0
		for _, o := range c.of("", kindLost) {
			if o.Peer == m && o.Member != m {
				others++
			}
		}
		if m == "" || late != nil && late.Took >= 500*time.Millisecond || worst(c.of(m, kindSync, kindDiskBad)) != nil || others == 0 {
			continue
		}
		found = append(found, verdict{
			id: "partition", member: m, weight: 72, severity: c.fault(), confidence: report.Likely,
			what:     m + " led and got no answer from a quorum, while the others lost it and went on: the network between them",
			evidence: append(quote([]*Event{e}, 1), quote(c.of("", kindLost), 2)...),
			do:       []string{"look at the network of " + m + ": link, firewall, routes"},
		})
	}
	return found
}

// ruleAlone is about a member that heard no leader while the others did, and asked for votes again
// and again: so it ran, and its leader did too.
func ruleAlone(c *court) (found []verdict) {
	for _, lost := range c.of("", kindLost) {
		m, leader := lost.Member, lost.Peer
		if m == "" || leader == "" || m == leader {
			continue
		}
		if slices.ContainsFunc(c.events, func(e *Event) bool {
			return e.Kind == kindLost && e.Member != m || e.Kind == kindLeads || e.Kind == kindElected && e.Leader != leader || e.Kind == kindDown
		}) {
			continue
		}
		tries := c.of(m, kindCampaign)
		if lines(tries) < 3 || tries[len(tries)-1].Last.Sub(tries[0].At) < time.Second || worst(c.of(m, kindSync, kindDiskBad)) != nil || len(c.of(m, kindStart)) > 0 {
			continue
		}
		v := verdict{
			id: "partition", member: m, weight: 73, severity: c.fault(), confidence: report.Likely,
			what:     m + " was cut off: it heard no leader and nobody answered it, and it ran; the others went on without it",
			evidence: append(quote([]*Event{lost}, 1), quote(tries, 1)...),
			do:       []string{"look at the network of " + m + ": link, firewall, routes"},
		}
		for _, e := range c.of("", kindIgnored) {
			// While it was alone: what comes after was on its way for as long as the network was gone.
			if e.Member != m && e.Peer == m && strings.HasPrefix(e.Text, "refused") && e.At.Before(tries[len(tries)-1].Last) {
				v.id, v.member, v.weight = "link", "", 77
				v.what = fmt.Sprintf("%s heard nothing from its leader %s while %s heard both: the link between %s and %s", m, leader, or(e.Member, "another"), m, leader)
				v.evidence = append(v.evidence, quote([]*Event{e}, 1)...)
				v.do = []string{"look at switches, firewalls and routes between them; `belay doctor network` measures it"}
				break
			}
		}
		found = append(found, v)
		break
	}
	return found
}

func ruleNoSpace(c *court) []verdict {
	ev := c.of("", kindNoSpace)
	if len(ev) == 0 {
		return nil
	}
	return []verdict{{
		id: "nospace", member: or(membersOf(ev)[0], ""), weight: 66, severity: report.Critical, confidence: report.Certain,
		what: "NOSPACE: the data reached the quota (or the disk its end), and writes are refused", evidence: quote(ev, 2),
		do: []string{"compact, defragment (etcd), then `etcdctl alarm disarm`", "set --auto-compaction-retention, or a larger --quota-backend-bytes"},
	}}
}

func ruleCertificate(c *court) []verdict {
	ev := c.of("", kindTLS)
	if len(ev) == 0 {
		return nil
	}
	v := verdict{
		id: "certificate", weight: 64, severity: c.fault(), confidence: report.Certain, what: "connections fail for their certificates", evidence: quote(ev, 3),
		do: []string{"compare the certificate, its names and its CA on both ends (`openssl x509 -noout -dates -ext subjectAltName -in FILE`)"},
	}
	for _, e := range ev {
		if text := strings.ToLower(strings.Join(e.Lines, " ") + e.err); strings.Contains(text, "expired") {
			v.what = "connections fail because a certificate has expired"
			v.do = []string{"renew it; etcd and Belay read the new files at the next connection, without a restart"}
			break
		}
	}
	return []verdict{v}
}

func ruleCluster(c *court) []verdict {
	ev := c.of("", kindCluster)
	if len(ev) == 0 {
		return nil
	}
	return []verdict{{
		id: "cluster-mismatch", weight: 62, severity: c.fault(), confidence: report.Certain, what: "a member of another cluster is at a peer URL of this one", evidence: quote(ev, 2),
		do: []string{"a member was started with another --initial-cluster-token, or on an old data directory: stop it, remove it, and add it again with empty data"},
	}}
}

func ruleOverload(c *court) []verdict {
	ev := c.of("", kindApply, kindRequest)
	if n := lines(ev); n == 0 || n < 10 && worst(ev).Took < time.Second {
		return nil
	}
	w := worst(ev)
	v := verdict{
		id: "overload", member: w.Member, weight: 44, severity: c.fault(), confidence: report.Possible,
		what:     fmt.Sprintf("requests were slow (%d lines, up to %s): load, CPU or disk, these lines do not tell which", lines(ev), show(w.Took)),
		evidence: quote([]*Event{w}, 1),
		do:       []string{"etcd_disk_backend_commit_duration_seconds, the CPU of the machine and the rate of requests at that time would tell"},
	}
	for _, e := range ev {
		for _, text := range e.Lines {
			if m := rxSize.FindStringSubmatch(text); m != nil && (len(m[1]) >= 5 || len(m[2]) >= 7) {
				v.id, v.confidence, v.member, v.weight = "large-requests", report.Likely, e.Member, 46
				v.what = fmt.Sprintf("large ranges make %s slow: %s keys, %s bytes in one answer", or(e.Member, "a member"), m[1], m[2])
				v.evidence = quote([]*Event{e}, 1)
				v.do = []string{"have clients read with a limit and pages, or count only; find who asks by `request stats` lines (field remote)"}
				return []verdict{v}
			}
		}
	}
	if c.changed || len(c.of("", kindLate)) > 0 {
		v.weight = 20 // its sign as well as its cause
	}
	return []verdict{v}
}

// clockTimes: etcd says every 30 s that clocks differ, as long as it is so. So often in a row is not
// of late answers.
const clockTimes = 3

// ruleClock: etcd takes the answer of its probe to be of the middle of the round trip, so that one
// that came late looks like a clock that differs. It is the clock if it is said again later.
func ruleClock(c *court) []verdict {
	ev := c.of("", kindClock)
	if len(ev) == 0 {
		return nil
	}
	w := worst(ev)
	if !slices.ContainsFunc(ev, func(e *Event) bool { return e.Count >= clockTimes }) {
		return []verdict{{
			id: "late-answer", weight: 30, severity: report.Warning, confidence: report.Possible,
			what:     fmt.Sprintf("%s got an answer from %s that was late, or their clocks differ by %s: a line or two do not tell which", or(w.Member, "?"), or(w.Peer, "?"), show(w.Took)),
			evidence: append(quote([]*Event{w}, 1), "clocks that differ are said again every 30 s"),
			do:       []string{"`belay doctor clock` tells how far the clocks are apart now"},
		}}
	}
	return []verdict{{
		id: "clock-differs", weight: 30, severity: report.Warning, confidence: report.Certain,
		what: fmt.Sprintf("the clocks of %s and %s differ by %s; the order of their lines here is not to be relied on", or(w.Member, "?"), or(w.Peer, "?"), show(w.Took)), evidence: quote([]*Event{w}, 1),
		do: []string{"run chrony or systemd-timesyncd on every member; `chronyc tracking` tells the offset"},
	}}
}

// ruleLate is for heartbeats that were late by less than what etcd logs of a disk.
func ruleLate(c *court) (found []verdict) {
	for _, m := range membersOf(c.of("", kindLate)) {
		w := worst(c.of(m, kindLate))
		if w.Took < 100*time.Millisecond && lines(c.of(m, kindLate)) < 10 || w.Took >= time.Second || worst(c.of(m, kindSync, kindDiskBad, kindDefrag)) != nil {
			continue
		}
		v := verdict{
			id: "heartbeats-late", member: m, weight: 42, severity: report.Warning, confidence: report.Possible,
			what:     fmt.Sprintf("%s sent heartbeats late, by up to %s (%d lines): disk, CPU or a pause cannot be told apart", m, show(w.Took), lines(c.of(m, kindLate))),
			evidence: append(quote([]*Event{w}, 1), "etcd blames the disk in every such line, and logs no fsync under 1 s"),
			do:       []string{"etcd_disk_wal_fsync_duration_seconds of " + m + " at that time tells whether it was the disk; steal time and cpu.stat of its machine whether it was the CPU"},
		}
		found = append(found, v)
	}
	return found
}

func ruleNetwork(c *court) []verdict {
	ev := c.of("", kindDropped)
	if lines(ev) < 3 {
		return nil
	}
	return []verdict{{
		id: "slow-link", weight: 36, severity: report.Warning, confidence: report.Possible,
		what: fmt.Sprintf("messages to %s had to be dropped: the link, or that member, did not keep up", or(ev[0].Peer, "a peer")), evidence: quote(ev, 2),
		do: []string{"etcd_network_peer_round_trip_time_seconds tells whether it was the link"},
	}}
}

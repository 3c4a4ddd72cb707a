package evidence

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// IncidentKind is what happened to the leadership.
type IncidentKind string

const (
	Election         IncidentKind = "election"          // another leader, by an election timeout
	LeadershipPassed IncidentKind = "hand-over"         // another leader, because the old one asked it to lead
	NearMissOnly     IncidentKind = "near miss"         // the leader stayed
	FirstElection    IncidentKind = "the first leader"  // nobody led before: no verdict
	SameLeaderAgain  IncidentKind = "leader re-elected" // the same leader in a later term
)

// Cause is what a verdict names. It is the label of belay_verdicts_total.
type Cause string

const (
	CauseDiskError    Cause = "disk-error"
	CauseDiskFull     Cause = "disk-full"
	CauseDiskDead     Cause = "disk-dead"
	CauseDiskStalled  Cause = "disk-stalled"
	CauseDiskSlow     Cause = "disk-slow"
	CauseStoreStalled Cause = "store-stalled"
	CauseFailed       Cause = "member-failed"
	CauseKilled       Cause = "member-killed"
	CauseNeverStarted Cause = "member-never-started"
	CauseStopped      Cause = "member-stopped"
	CauseTransfer     Cause = "transfer-requested"
	CausePaused       Cause = "process-paused"
	CauseCPU          Cause = "cpu-starved"
	CauseMemory       Cause = "memory"
	CausePartition    Cause = "partition"
	CauseUnreachable  Cause = "unreachable"
	CauseSlowLink     Cause = "slow-link"
	CauseLossyLink    Cause = "lossy-link"
	CauseSnapshot     Cause = "snapshot"
	CauseLogOutput    Cause = "log-output"
	CauseUnknown      Cause = "unknown"
)

// Causes are all there are.
func Causes() []Cause {
	return []Cause{CauseDiskError, CauseDiskFull, CauseDiskDead, CauseDiskStalled, CauseDiskSlow, CauseStoreStalled, CauseFailed, CauseKilled, CauseNeverStarted, CauseStopped,
		CauseTransfer, CausePaused, CauseCPU, CauseMemory, CausePartition, CauseUnreachable, CauseSlowLink, CauseLossyLink, CauseSnapshot, CauseLogOutput, CauseUnknown}
}

func (c Cause) advice() string {
	switch c {
	case CauseDiskError:
		return "look at the kernel's log and the disk of that member; nothing acknowledged is lost; start it again when the disk is sound, or replace the member"
	case CauseDiskFull:
		return "free space on that member or enlarge its volume, then disarm the NOSPACE alarm"
	case CauseDiskDead, CauseDiskStalled:
		return "look at that member's disk, its controller or its volume's service; if it does not come back replace the member"
	case CauseStoreStalled:
		return "look at the disk under that member's data directory; if it does not come back replace the member"
	case CauseDiskSlow:
		return "nobody waits for it while a quorum of other disks is fast; find what else writes to that disk, or give the raft log its own with --wal-dir"
	case CauseFailed:
		return "its last log line says why it stopped"
	case CauseKilled:
		return "see why the process ended: the supervisor's log, the kernel's log (out of memory), a core file"
	case CauseNeverStarted:
		return "start it with the --initial-cluster that member add printed, or remove it: it counts for the quorum"
	case CauseStopped, CauseTransfer:
		return "nothing: it was asked for"
	case CausePaused:
		return "see what stopped or froze the process: a debugger, a container runtime, a live migration or snapshot of its virtual machine"
	case CauseCPU:
		return "give that machine more CPU or the member a larger share (nice, cgroup weight or quota); see what else runs there"
	case CauseMemory:
		return "give the member more memory, or see what else takes it; look at GOMEMLIMIT and the container's limit"
	case CausePartition:
		return "look at the network between the members that are named: firewall, routes, switch, interface"
	case CauseUnreachable:
		return "the machine is down, frozen or cut off: look whether it runs, then at its network"
	case CauseSlowLink:
		return "look at the network between the members that are named; timeouts that were left at their defaults follow the measured round trips"
	case CauseLossyLink:
		return "packets are lost between the members that are named: look at cables, interfaces' error counters, overloaded links"
	case CauseSnapshot:
		return "a snapshot was on its way and took what others needed; give the members more bandwidth or disk"
	case CauseLogOutput:
		return "the output of the log (--log-outputs) does not take the lines; requests do not wait for it; look at the disk of the log files"
	}
	return "the events of all members are at /debug/belay/events of each; please report what they show"
}

// Testimony is what is known of one member.
type Testimony struct {
	ID   uint64
	Name string
	// Absent: it did not answer, and why not: refused, closed or timeout.
	Absent string
	// Nameless: it has never told the cluster its name, which is the first that a member does.
	Nameless bool
	Events   []Event // At by the judge's clock; the oldest first
	Links    []LinkReport
}

// Incident is what a verdict is asked for.
type Incident struct {
	Kind           IncidentKind
	Began          time.Time
	Leader, Before uint64 // who leads, and who led before; 0: nobody known
	Members        []Testimony
}

// Verdict says why.
type Verdict struct {
	Time     string   `json:"time"`
	Incident string   `json:"incident"`
	Cause    Cause    `json:"cause"`
	Members  []string `json:"members"` // names of those that the cause lies with; none: with the links
	Links    []string `json:"links,omitempty"`
	Evidence []string `json:"evidence"`
	Also     []string `json:"also,omitempty"` // what else was seen at the time
	Advice   string   `json:"advice"`
	// Missing are members that did not answer although their word could count.
	Missing []string `json:"missing,omitempty"`
}

const (
	// lookback: what ended longer before an incident has nothing to do with it.
	lookback = 6 * time.Second
	// aftermath: what began longer after an election did not cause it.
	aftermath = time.Second
	// How long a member must have stood still, or its ticks must have been late, for
	// it to explain anything.
	tellingPause = 300 * time.Millisecond
	tellingLate  = 200 * time.Millisecond
	// decisive: what lasts less explains no election by itself.
	decisive = 400 * time.Millisecond
	// disturbed: a member whose ticks were so late answers late, too, which is not
	// the network's fault.
	disturbed = 100 * time.Millisecond
	// tellingSnapshot is how long a snapshot must take to be a burden.
	tellingSnapshot = time.Second
	// certainty: a verdict of this weight does not wait for members to come back.
	certainty = 90
	// ofOldLeader is what the old leader's faults weigh more than others' when
	// leadership went away from it.
	ofOldLeader = 40
	// alike: others with the same cause are named with the first if they weigh so
	// little less.
	alike = 20
)

// A finding is one thing that is wrong with one member or its links.
type finding struct {
	member   uint64 // 0: the links alone
	cause    Cause
	weight   int
	links    []string
	evidence []string
}

// bench is a judgement being made.
type bench struct {
	in       Incident
	from, to time.Time // of events that count
	found    []finding
}

// Judge looks for what explains an incident. It does no I/O and asks no clock.
func Judge(in Incident, now time.Time) Verdict {
	b := &bench{in: in, from: in.Began.Add(-lookback), to: now}
	if in.Kind != NearMissOnly {
		b.to = in.Began.Add(aftermath)
	}
	for i := range in.Members {
		b.member(&in.Members[i])
	}
	b.partitions()
	b.slowLinks()
	for i := range b.found {
		f := &b.found[i]
		if in.Kind != NearMissOnly && f.member == in.Before && f.member != 0 && f.cause != CauseUnknown {
			f.weight += ofOldLeader
		}
	}
	slices.SortStableFunc(b.found, func(x, y finding) int { return cmp.Compare(y.weight, x.weight) })

	v := Verdict{Incident: b.title(), Cause: CauseUnknown, Evidence: b.story()}
	var strange []string
	for _, f := range b.found {
		switch {
		case f.cause == CauseUnknown:
			strange = append(strange, f.evidence...)
		case v.Cause == CauseUnknown && len(v.Members) == 0 && len(v.Links) == 0,
			f.cause == v.Cause && f.weight >= b.found[0].weight-alike:
			v.Cause = f.cause
			if f.member != 0 && !slices.Contains(v.Members, b.name(f.member)) {
				v.Members = append(v.Members, b.name(f.member))
			}
			v.Links = append(v.Links, f.links...)
			v.Evidence = append(v.Evidence, f.evidence...)
		default:
			v.Also = append(v.Also, fmt.Sprintf("%s: %s", f.cause, strings.Join(f.evidence, "; ")))
		}
	}
	if v.Cause == CauseUnknown {
		v.Evidence = append(append(v.Evidence, strange...), "nothing of what the members recorded explains it")
	}
	if len(b.found) == 0 || b.found[0].weight < certainty || v.Cause == CauseUnreachable {
		for _, m := range in.Members {
			if m.Absent == whyTimeout && (in.Kind == NearMissOnly || m.ID == in.Before || v.Cause == CauseUnknown || v.Cause == CauseUnreachable) {
				v.Missing = append(v.Missing, m.Name)
			}
		}
	}
	v.Advice = v.Cause.advice()
	return v
}

func (b *bench) title() string {
	switch b.in.Kind {
	case Election:
		return fmt.Sprintf("election: %s leads, before it %s", b.name(b.in.Leader), b.name(b.in.Before))
	case LeadershipPassed:
		return fmt.Sprintf("hand-over: %s leads, before it %s", b.name(b.in.Leader), b.name(b.in.Before))
	case SameLeaderAgain:
		return fmt.Sprintf("election: %s leads again", b.name(b.in.Leader))
	}
	return fmt.Sprintf("near miss: %s leads on", b.name(b.in.Leader))
}

func (b *bench) name(id uint64) string {
	if id == 0 {
		return "nobody"
	}
	for i := range b.in.Members {
		if b.in.Members[i].ID == id && b.in.Members[i].Name != "" {
			return b.in.Members[i].Name
		}
	}
	return fmt.Sprintf("%x", id)
}

// story is how the leadership went, by both sides' word.
func (b *bench) story() (lines []string) {
	if b.in.Kind == NearMissOnly {
		return nil
	}
	for i := range b.in.Members {
		m := &b.in.Members[i]
		for _, e := range m.Events {
			if !b.counts(&e) {
				continue
			}
			switch {
			case e.Kind == Elected && m.ID == b.in.Leader:
				lines = append(lines, fmt.Sprintf("%s was elected in term %d: %s", m.Name, e.Term, e.Note))
			case e.Kind == SteppedDown && m.ID == b.in.Before:
				lines = append(lines, fmt.Sprintf("%s stepped down: %s", m.Name, e.Note))
			}
		}
	}
	return lines
}

// span is how long an event lasted.
func span(e *Event) time.Duration { return max(e.Took, e.First) }

func (b *bench) counts(e *Event) bool {
	if e.Past && e.Kind != Failing && e.Kind != Stopping {
		return false // of what a member was before, only its end counts
	}
	return e.At.After(b.from) && e.At.Add(-span(e)).Before(b.to)
}

// worst finds the longest event of a kind that counts.
func (b *bench) worst(m *Testimony, kinds ...Kind) *Event {
	var worst *Event
	for i := range m.Events {
		e := &m.Events[i]
		if slices.Contains(kinds, e.Kind) && b.counts(e) && (worst == nil || span(e) > span(worst)) {
			worst = e
		}
	}
	return worst
}

func (b *bench) add(m *Testimony, cause Cause, weight int, format string, args ...any) {
	b.found = append(b.found, finding{member: m.ID, cause: cause, weight: weight, evidence: []string{m.Name + " " + fmt.Sprintf(format, args...)}})
}

func (b *bench) member(m *Testimony) {
	b.ended(m)
	if e := b.worst(m, Paused); e != nil && e.Took >= tellingPause {
		weight := 85
		if e.Took < decisive {
			weight = 56
		}
		b.add(m, CausePaused, weight, "stood still for %s: %s", short(e.Took), e.Note)
	}
	b.disk(m)
	b.cpu(m)
	if e := b.worst(m, LogDropped); e != nil {
		b.add(m, CauseLogOutput, 45, "dropped lines of its log (%d or more at once)", e.Value)
	} else if e := b.worst(m, LogStalled); e != nil {
		b.add(m, CauseLogOutput, 45, "could not write its log for %s", short(e.Took))
	}
	if e := b.worst(m, SnapshotSent, SnapshotReceived); e != nil && e.Took >= tellingSnapshot {
		b.add(m, CauseSnapshot, 35, "%s of %d bytes, %s %s, in %s", e.Kind, e.Value, towards(e.Kind), b.name(e.Peer), short(e.Took))
	}
}

func towards(k Kind) string {
	if k == SnapshotSent {
		return "to"
	}
	return "from"
}

// ended judges how the process of a member ended, by its own word, its last words
// to others, and how it does not answer.
func (b *bench) ended(m *Testimony) {
	failed, stopped := "", false
	for _, e := range m.Events {
		if !b.counts(&e) {
			continue
		}
		switch e.Kind {
		case Failing:
			failed = e.Note
		case Stopping:
			stopped = true
		}
	}
	for i := range b.in.Members {
		for _, e := range b.in.Members[i].Events {
			if e.Peer != m.ID || !b.counts(&e) {
				continue
			}
			switch e.Kind {
			case PeerFails:
				failed = e.Note
			case PeerStops:
				stopped = true
			}
		}
	}
	var again *Event
	for i := range m.Events {
		// A start after the incident counts, too: it tells of an end before it.
		if e := &m.Events[i]; e.Kind == Started && !e.Past && e.At.After(b.from) {
			again = e
		}
	}
	if again != nil && failed == "" {
		if text, ok := strings.CutPrefix(again.Note, "after a failure: "); ok {
			failed = text
		}
	}
	switch {
	case failed != "":
		cause := CauseFailed
		switch {
		case strings.Contains(failed, "no space left"):
			cause = CauseDiskFull
		case strings.Contains(failed, "input/output error"), strings.Contains(failed, "raft log"), strings.Contains(failed, "read-only file system"):
			cause = CauseDiskError
		}
		b.add(m, cause, 100, "stopped because it could not go on: %s", failed)
	case stopped:
		b.add(m, CauseStopped, 95, "said that it stops on purpose")
	case again != nil && again.Note == "after a crash":
		b.add(m, CauseKilled, 90, "started again (%+.1f s) and had not ended in order", again.At.Sub(b.in.Began).Seconds())
	case again != nil && again.Note == "after a stop":
		b.add(m, CauseStopped, 90, "was stopped and started again")
	case m.Absent != "" && m.Nameless:
		b.add(m, CauseNeverStarted, 90, "does not answer, and has never told the cluster its name: it was added and not started")
	case m.Absent == whyRefused, m.Absent == whyClosed:
		b.add(m, CauseKilled, 90, "is not running: connections to it are %s, and it had not said that it stops", m.Absent)
	case m.Absent == whyTimeout:
		gone := time.Duration(0)
		for i := range b.in.Members {
			for _, e := range b.in.Members[i].Events {
				if e.Kind == Unreachable && e.Peer == m.ID && e.At.After(b.from) {
					gone = max(gone, e.Took)
				}
			}
		}
		b.add(m, CauseUnreachable, 62, "does not answer, for %s by now: cut off, frozen, or its machine is down", short(gone))
	}
}

func (b *bench) disk(m *Testimony) {
	handOver := b.worst(m, HandOver)
	if handOver != nil && b.in.Kind != NearMissOnly && m.ID == b.in.Before {
		switch handOver.Note {
		case "request":
			b.add(m, CauseTransfer, 60, "handed over to %s because a client asked it to", b.name(handOver.Peer))
		case "stop":
			b.add(m, CauseStopped, 60, "handed over to %s before it stopped", b.name(handOver.Peer))
		}
	}
	passed := 0 // what a disk weighs more when it was the reason of a hand-over
	switch {
	case b.in.Kind == NearMissOnly:
	case handOver != nil && handOver.Note == "disk" && m.ID == b.in.Before:
		passed = 40
	default:
		passed = -40 // nobody is elected because of a disk that nobody waits for
	}
	if e := b.worst(m, DiskFull); e != nil {
		b.add(m, CauseDiskFull, 88+passed/2, "has %d MB left on the disk of its data", e.Value>>20)
	}
	if e := b.worst(m, StoreStalled); e != nil {
		weight := 74
		if b.in.Kind != NearMissOnly {
			weight -= 40 // as below
		}
		if handOver != nil && handOver.Note == "store" && m.ID == b.in.Before && b.in.Kind != NearMissOnly {
			weight += 80
		}
		b.add(m, CauseStoreStalled, weight, "had a store that did not get on for %s, in applying or in making durable", short(e.Took))
		if weight > 100 {
			f := &b.found[len(b.found)-1]
			f.evidence = append(f.evidence, fmt.Sprintf("%s handed over to %s because of it", m.Name, b.name(handOver.Peer)))
		}
	}
	for _, k := range []struct {
		kind   Kind
		cause  Cause
		weight int
	}{{DiskDead, CauseDiskDead, 78}, {DiskStalled, CauseDiskStalled, 76}, {DiskSlow, CauseDiskSlow, 64}} {
		e := b.worst(m, k.kind)
		if e == nil {
			continue
		}
		b.add(m, k.cause, k.weight+passed, "had a sync of its raft log in flight for %s, or without any progress", short(e.Took))
		if passed > 0 {
			f := &b.found[len(b.found)-1]
			f.evidence = append(f.evidence, fmt.Sprintf("%s handed over to %s because of it", m.Name, b.name(handOver.Peer)))
		}
		return
	}
}

func (b *bench) cpu(m *Testimony) {
	late := b.worst(m, LateTick)
	// What is sampled once a second may come a little later than what it explains.
	of := *b
	of.to = of.to.Add(2 * time.Second)
	wait := of.worst(m, CPUWait)
	pressed := func(what string) *Event {
		for i := range m.Events {
			if e := &m.Events[i]; e.Kind == Pressure && e.Note == what && of.counts(e) {
				return e
			}
		}
		return nil
	}
	lateness := time.Duration(0)
	if late != nil {
		lateness = late.Took
	}
	stoodStill := false
	for i := range m.Events {
		if e := &m.Events[i]; e.Kind == CPUWait && e.Note != "" && b.counts(e) {
			stoodStill, lateness = true, max(lateness, e.Took)
		}
	}
	if lateness < tellingLate {
		return
	}
	if e := b.worst(m, Paused); e != nil && e.Took >= lateness/2 {
		return // that was it
	}
	gc, memory := b.worst(m, GCPause), pressed("memory")
	switch {
	case memory != nil || gc != nil && gc.Took >= lateness/2:
		what := "its machine had too little memory"
		if gc != nil && gc.Took >= lateness/2 {
			what = fmt.Sprintf("the garbage collector stopped it for %s", short(gc.Took))
		}
		b.add(m, CauseMemory, 72, "was late by up to %s: %s", short(lateness), what)
	case wait != nil || stoodStill || pressed("cpu") != nil:
		var why []string
		if wait != nil {
			why = append(why, fmt.Sprintf("its threads waited for a CPU for %d %% of a second's time", wait.Value))
		}
		if e := pressed("cpu"); e != nil {
			why = append(why, fmt.Sprintf("CPU pressure of its machine was %d %%", e.Value))
		}
		// The later, the more likely the reason.
		weight := 70 + int(min(lateness/(500*time.Millisecond), 4))
		if lateness < decisive {
			weight = 40
		}
		b.add(m, CauseCPU, weight, "was late by up to %s: %s", short(lateness), strings.Join(why, ", "))
	default:
		b.add(m, CauseUnknown, 0, "was late by up to %s", short(lateness))
	}
}

// standstills says whether a member did not run, or began, while e lasted: then its
// silence was its own.
func (b *bench) standstills(m *Testimony, e *Event) bool {
	from := e.At.Add(-span(e))
	for i := range m.Events {
		s := &m.Events[i]
		switch s.Kind {
		case Paused, Stopping, Failing:
		case CPUWait:
			if s.Note == "" {
				continue
			}
		case LateTick:
			if s.Took < tellingPause {
				continue
			}
		case Started:
			if s.At.After(from) && s.At.Before(e.At.Add(2*time.Second)) {
				return true
			}
			continue
		default:
			continue
		}
		if s.At.After(from) && s.At.Add(-span(s)).Before(e.At) {
			return true
		}
	}
	return false
}

// partitions finds directions in which nothing arrived although both ends ran.
func (b *bench) partitions() {
	type direction struct{ from, to int }
	blocked := make(map[direction]time.Duration)
	members := b.in.Members
	touched := make([]int, len(members))
	for to := range members {
		for i := range members[to].Events {
			e := &members[to].Events[i]
			if e.Kind != Silent || !b.counts(e) {
				continue
			}
			from := slices.IndexFunc(members, func(m Testimony) bool { return m.ID == e.Peer })
			if from < 0 || members[from].Absent != "" || b.standstills(&members[from], e) || b.standstills(&members[to], e) {
				continue
			}
			d := direction{from, to}
			if blocked[d] == 0 {
				touched[from]++
				touched[to]++
			}
			blocked[d] = max(blocked[d], e.Took)
		}
	}
	if len(blocked) == 0 {
		return
	}
	worst := 0
	for i, n := range touched {
		if n > touched[worst] || n == touched[worst] && members[i].ID == b.in.Before ||
			n == touched[worst] && b.in.Kind == NearMissOnly && members[worst].ID == b.in.Leader {
			worst = i
		}
	}
	m := &members[worst]
	f := finding{member: m.ID, cause: CausePartition, weight: 68}
	// A single link between two of which neither leads or led is nobody's more than the
	// other's.
	equals := 0
	for i, n := range touched {
		if n == touched[worst] && members[i].ID != b.in.Leader {
			equals++
		}
	}
	if equals > 1 && m.ID != b.in.Before {
		f.member = 0
	}
	in, out := 0, 0
	for from := range members {
		for to := range members {
			took, ok := blocked[direction{from, to}]
			if !ok {
				continue
			}
			f.links = append(f.links, members[from].Name+"→"+members[to].Name)
			f.evidence = append(f.evidence, fmt.Sprintf("%s heard nothing from %s for %s while both ran", members[to].Name, members[from].Name, short(took)))
			if from == worst {
				out++
			}
			if to == worst {
				in++
			}
		}
	}
	switch {
	case in > 0 && out == 0:
		f.evidence = append(f.evidence, fmt.Sprintf("one way: nothing arrived at %s, what it sent did", m.Name))
	case out > 0 && in == 0:
		f.evidence = append(f.evidence, fmt.Sprintf("one way: nothing of %s arrived, what was sent to it did", m.Name))
	}
	b.found = append(b.found, f)
}

// slowLinks finds links whose round trips are long or uneven although both ends
// were in time.
func (b *bench) slowLinks() {
	type pair struct{ a, b int }
	worst := make(map[pair]*Event)
	members := b.in.Members
	// Late ticks explain round trips that are not much longer, and of those that came
	// late now and then as many as there were of them.
	uneasy := func(m *Testimony, took time.Duration, lateCount int64) bool {
		if m.Absent != "" || b.worst(m, Paused) != nil {
			return true
		}
		late, ticks := b.worst(m, LateTick), int64(0)
		for i := range m.Events {
			if e := &m.Events[i]; e.Kind == LateTick && b.counts(e) {
				ticks += e.Count
			}
		}
		if took < slowRoundTrip && 2*ticks < lateCount {
			return false
		}
		return late != nil && late.Took >= max(disturbed, took/2) && b.worst(m, CPUWait, Pressure) != nil
	}
	for i := range members {
		for j := range members[i].Events {
			e := &members[i].Events[j]
			if e.Kind != SlowLink || !b.counts(e) {
				continue
			}
			peer := slices.IndexFunc(members, func(m Testimony) bool { return m.ID == e.Peer })
			if peer < 0 || uneasy(&members[i], e.Took, e.Value) || uneasy(&members[peer], e.Took, e.Value) {
				continue
			}
			p := pair{min(i, peer), max(i, peer)}
			if old := worst[p]; old == nil || e.Took > old.Took || e.Took == old.Took && e.Value > old.Value {
				worst[p] = e
			}
		}
	}
	if len(worst) == 0 {
		return
	}
	// Where one link is lossy, another that is a little so belongs to it.
	for i := range members {
		for _, k := range members[i].Links {
			peer := slices.IndexFunc(members, func(m Testimony) bool { return fmt.Sprintf("%x", m.ID) == k.Peer })
			if peer < 0 || k.Late < lossyCount-1 || uneasy(&members[i], 0, int64(k.Late)) || uneasy(&members[peer], 0, int64(k.Late)) {
				continue
			}
			if p := (pair{min(i, peer), max(i, peer)}); worst[p] == nil {
				worst[p] = &Event{Took: time.Duration(k.RTT * float64(time.Second)), Value: int64(k.Late)}
			}
		}
	}
	touched := make([]int, len(members))
	f := finding{cause: CauseLossyLink, weight: 50}
	for i := range members {
		for j := i + 1; j < len(members); j++ {
			e := worst[pair{i, j}]
			if e == nil {
				continue
			}
			touched[i]++
			touched[j]++
			f.links = append(f.links, members[i].Name+"–"+members[j].Name)
			text := fmt.Sprintf("a round trip between %s and %s took %s", members[i].Name, members[j].Name, short(e.Took))
			if e.Took >= slowRoundTrip {
				f.cause = CauseSlowLink
			} else {
				text += fmt.Sprintf(" mostly, but %d of the last %d came late", e.Value, lateWindow)
			}
			f.evidence = append(f.evidence, text)
		}
	}
	// One member whose links are all of those is the place to look.
	for i, n := range touched {
		if n == len(worst) && (len(worst) > 1 || len(members) == 2 || members[i].ID != b.in.Leader) {
			f.member = members[i].ID
			break
		}
	}
	b.found = append(b.found, f)
}

func short(d time.Duration) string {
	switch {
	case d >= time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Microsecond).String()
}

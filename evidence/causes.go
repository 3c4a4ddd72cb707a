package evidence

import "time"

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

// causes are all causes that a verdict can name. Judge follows this table: for each cause its
// grounds, each with a weight and the evidence that it needs, and the advice.
//
// The verdict names the heaviest cause found; the others are listed beside it. What is known about
// the end of a process weighs most, then a member's own measurements, then what the two ends of a
// link report about each other. Of the grounds about one topic only the heaviest with evidence
// counts, so that one problem is not reported twice.
var causes = []struct {
	cause   Cause
	grounds []ground
	advice  string
}{
	{CauseFailed, []ground{
		{about: itsEnd, weight: 100, evidence: failedBecause(CauseFailed)},
	}, "its last log line says why it stopped"},

	{CauseDiskError, []ground{
		{about: itsEnd, weight: 100, evidence: failedBecause(CauseDiskError)},
	}, "look at the kernel's log and the disk of that member; nothing acknowledged is lost; start it again when the disk is sound, or replace the member"},

	{CauseDiskFull, []ground{
		{about: itsEnd, weight: 100, evidence: failedBecause(CauseDiskFull)},
		{about: itsSpace, weight: 88, handOver: ForDisk, swing: 20, evidence: hasLittleSpace},
	}, "free space on that member or enlarge its volume; the NOSPACE alarm ends by itself then (unless --nospace-disarm is false)"},

	{CauseStopped, []ground{
		{about: itsEnd, weight: 95, evidence: saidThatItStops},
		{about: itsEnd, weight: 90, evidence: startedAfterStop},
		{about: itsHandOver, weight: 60, evidence: handedOverToStop},
	}, "nothing: it was asked for"},

	{CauseKilled, []ground{
		{about: itsEnd, weight: 90, evidence: startedAfterCrash},
		{about: itsEnd, weight: 90, evidence: doesNotRun},
	}, "see why the process ended: the supervisor's log, the kernel's log (out of memory), a core file"},

	{CauseNeverStarted, []ground{
		{about: itsEnd, weight: 90, evidence: neverToldItsName},
	}, "start it with the --initial-cluster that member add printed, or remove it: it counts for the quorum"},

	{CauseUnreachable, []ground{
		{about: itsEnd, weight: 62, evidence: doesNotAnswer},
	}, "the machine is down, frozen or cut off: look whether it runs, then at its network"},

	{CausePaused, []ground{
		{about: itsPauses, weight: 85, evidence: stoodStillFor(decisive)},
		{about: itsPauses, weight: 56, evidence: stoodStillFor(tellingPause)},
	}, "see what stopped or froze the process: a debugger, a container runtime, a live migration or snapshot of its virtual machine"},

	{CauseTransfer, []ground{
		{about: itsHandOver, weight: 60, evidence: handedOverOnRequest},
	}, "nothing: it was asked for"},

	// A leader's disk costs it the leadership only by a hand-over: nothing waits for the disk
	// otherwise.
	{CauseDiskDead, []ground{
		{about: itsSyncs, weight: 78, handOver: ForDisk, swing: 40, evidence: syncInFlight(DiskDead)},
	}, "look at that member's disk, its controller or its volume's service; if it does not come back replace the member"},

	{CauseDiskStalled, []ground{
		{about: itsSyncs, weight: 76, handOver: ForDisk, swing: 40, evidence: syncInFlight(DiskStalled)},
	}, "look at that member's disk, its controller or its volume's service; if it does not come back replace the member"},

	{CauseDiskSlow, []ground{
		{about: itsSyncs, weight: 64, handOver: ForDisk, swing: 40, evidence: syncInFlight(DiskSlow)},
	}, "nobody waits for it while a quorum of other disks is fast; find what else writes to that disk, or give the raft log its own with --wal-dir"},

	{CauseStoreStalled, []ground{
		{about: itsStore, weight: 74, handOver: ForStore, swing: 40, evidence: storeStalled},
	}, "look at the disk under that member's data directory; if it does not come back replace the member"},

	{CauseMemory, []ground{
		{about: itsTicks, weight: 72, evidence: lateForMemory},
	}, "give the member more memory, or see what else takes it; look at GOMEMLIMIT and the container's limit"},

	// The longer the delay, the more likely it is the reason.
	{CauseCPU, []ground{
		{about: itsTicks, weight: 74, evidence: lateForCPU(2 * time.Second)},
		{about: itsTicks, weight: 73, evidence: lateForCPU(1500 * time.Millisecond)},
		{about: itsTicks, weight: 72, evidence: lateForCPU(time.Second)},
		{about: itsTicks, weight: 71, evidence: lateForCPU(500 * time.Millisecond)},
		{about: itsTicks, weight: 70, evidence: lateForCPU(decisive)},
		{about: itsTicks, weight: 40, evidence: lateForCPU(tellingLate)},
	}, "give that machine more CPU or the member a larger share (nice, cgroup weight or quota); see what else runs there"},

	{CauseLogOutput, []ground{
		{about: itsLogging, weight: 45, evidence: droppedLogLines},
		{about: itsLogging, weight: 45, evidence: logOutputStalled},
	}, "the output of the log (--log-outputs) does not take the lines; requests do not wait for it; look at the disk of the log files"},

	{CauseSnapshot, []ground{
		{about: itsSnapshots, weight: 35, evidence: movedSnapshot},
	}, "a snapshot was on its way and took what others needed; give the members more bandwidth or disk"},

	{CausePartition, []ground{
		{about: theLinks, weight: 68, links: partition},
	}, "look at the network between the members that are named: firewall, routes, switch, interface"},

	{CauseSlowLink, []ground{
		{about: theRoundTrips, weight: 50, links: slowLinks},
	}, "look at the network between the members that are named; timeouts that were left at their defaults follow the measured round trips"},

	{CauseLossyLink, []ground{
		{about: theRoundTrips, weight: 50, links: lossyLinks},
	}, "packets are lost between the members that are named: look at cables, interfaces' error counters, overloaded links"},

	// For incidents that nothing explains.
	{CauseUnknown, []ground{
		{about: itsTicks, weight: 0, evidence: late},
	}, "the events of all members are at /debug/belay/events of each; please report what they show"},
}

// A ground is a reason to name a cause. Either evidence or links is set.
type ground struct {
	about  topic
	weight int
	// evidence returns what supports the ground in a member's testimony, in lines that begin with
	// the member's name; with none the ground does not apply.
	evidence func(h *hearing, m *Testimony) []string
	// links does the same for the reports of all members about each other; nil: the ground does not
	// apply.
	links func(h *hearing) *finding

	// handOver is the reason of a hand-over because of this ground, and swing how much more the
	// ground then weighs. If leadership moved without one, it weighs as much less. 0: it always
	// weighs the same.
	handOver HandOverReason
	swing    int
}

// topic is what grounds are about. Causes of equal weight are listed in this order.
type topic int

const (
	itsEnd topic = iota
	itsPauses
	itsHandOver
	itsSpace
	itsStore
	itsSyncs
	itsTicks
	itsLogging
	itsSnapshots
	theLinks // these two are about all members at once
	theRoundTrips
	topicCount
)

// Causes returns all causes.
func Causes() []Cause {
	all := make([]Cause, len(causes))
	for i := range causes {
		all[i] = causes[i].cause
	}
	return all
}

func (c Cause) advice() string {
	for i := range causes {
		if causes[i].cause == c {
			return causes[i].advice
		}
	}
	return ""
}

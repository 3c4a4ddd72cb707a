package main

import "slices"

// cause is what is right to say of a fault.
type cause struct {
	fault    string
	verdicts []string // causes of Belay's verdicts
	logs     []string // causes of doctor logs
}

// What slows or stops the files of a data directory slows the raft log and the store in it: which
// of them a verdict names depends on which came first.
var (
	diskVerdicts = []string{"disk-slow", "disk-stalled", "disk-dead", "store-stalled"}
	diskLogs     = []string{"disk-slow", "disk-stalled"}
	cutLogs      = []string{"partition", "link"}
)

var causes = []cause{
	{"slow", diskVerdicts, diskLogs},
	{"hang", diskVerdicts, diskLogs},
	{"all-slow", diskVerdicts, append([]string{"disk-shared"}, diskLogs...)},
	{"disk-error", []string{"disk-error"}, []string{"disk-error", "crashed"}},
	{"disk-full", []string{"disk-full"}, []string{"disk-full"}},
	{"pause", []string{"process-paused"}, []string{"process-paused"}},
	{"starve", []string{"cpu-starved"}, []string{"process-paused", "cpu-starved"}}, // "stood still, or got no CPU"
	{"kill", []string{"member-killed"}, []string{"killed", "not-running"}},
	{"stop", []string{"member-stopped"}, []string{"stopped"}},
	{"transfer", []string{"transfer-requested"}, []string{"transfer"}},
	{"cut", []string{"partition"}, cutLogs},
	{"cut-in", []string{"partition"}, cutLogs},
	{"cut-out", []string{"partition"}, cutLogs},
	{"cut-link", []string{"partition"}, cutLogs},
	{"flap", []string{"partition"}, cutLogs},
	{"delay", []string{"slow-link"}, []string{"slow-link", "link"}},
	{"loss", []string{"lossy-link", "slow-link"}, []string{"slow-link", "link"}},
}

// unsure are statements that name a sign and say that its cause is not to be told.
var unsure = []string{
	"unknown", "unreachable", // verdicts
	"not-told", "heartbeats-late", "loop-blocked", "overload", "log-incomplete", "quiet", "cluster-start", "no-log", "late-answer", "stall", // doctor logs
}

// electionTimeout is that of members that no flag has given another.
const electionTimeout = 1.0 // seconds

// noticed is for how long nothing must come from a member until Belay calls it silent. A link that
// was cut for less has been slow, or has lost something; nobody can tell.
const noticed = 1.5 // seconds

// right are the causes that are right to name for a fault.
func (f *Fault) right(source string) (all []string) {
	i := slices.IndexFunc(causes, func(c cause) bool { return c.fault == f.Name })
	if i < 0 {
		return nil
	}
	if source == sourceVerdicts {
		all = slices.Clone(causes[i].verdicts)
		if toolOf(f.Name) == links && slices.Contains(all, "partition") && f.Severity < noticed {
			all = append(all, "slow-link", "lossy-link")
		}
		return all
	}
	all = slices.Clone(causes[i].logs)
	if f.Name == "delay" && 2*f.Severity >= electionTimeout {
		all = append(all, "partition") // which doctor logs words as "gone, or slower than the timers"
	}
	return all
}

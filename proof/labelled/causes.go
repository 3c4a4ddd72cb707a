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
	"not-told", "heartbeats-late", "loop-blocked", "overload", "log-incomplete", "quiet", "cluster-start", "no-log", "late-answer", // doctor logs
}

func (c *cause) of(source string) []string {
	if source == sourceVerdicts {
		return c.verdicts
	}
	return c.logs
}

// causeOf is the entry of a fault.
func causeOf(fault string) *cause {
	i := slices.IndexFunc(causes, func(c cause) bool { return c.fault == fault })
	if i < 0 {
		return &cause{fault: fault}
	}
	return &causes[i]
}

package evidence

import "strings"

// The Note of some events has the reason, from a fixed set of words, and the judge decides by it.
// The words are part of the record on disk and of reports from members of other versions, so they
// must not change. Code that records or reads such an event uses the constants here.

// HandOverReason is the reason of a hand-over: the Note of HandOver, and the label of
// belay_handovers_total.
type HandOverReason string

const (
	ForDisk    HandOverReason = "disk"    // of its raft log
	ForStore   HandOverReason = "store"   // which makes no progress
	ForStop    HandOverReason = "stop"    // of this member
	ForRequest HandOverReason = "request" // of a client
	ForRemoval HandOverReason = "removal" // of this member
)

// End is how the previous process ended: the Note of Started.
type End string

const (
	FirstStart End = "first start"
	AfterStop  End = "after a stop"
	AfterCrash End = "after a crash"
	// afterFailure is followed by the error.
	afterFailure End = "after a failure: "
)

// AfterFailure is the end of a process that could not go on, with its error.
func AfterFailure(why string) End { return afterFailure + End(why) }

// failure is the error that a process ended with.
func (e End) failure() (why string, ok bool) {
	return strings.CutPrefix(string(e), string(afterFailure))
}

// Absence is why a peer does not answer: the Note of Unreachable. Refused and Closed mean that its
// machine answers and its process is gone; TimedOut does not say where it is.
type Absence string

const (
	Answered Absence = ""
	Refused  Absence = "refused"
	Closed   Absence = "closed"
	TimedOut Absence = "timeout"
)

// Resource is what a machine has too little of: the Note of Pressure. It is a file's name, too, in
// /proc/pressure.
type Resource string

const (
	CPU    Resource = "cpu"
	IO     Resource = "io"
	Memory Resource = "memory"
)

// noThreadRan is the Note of a CPUWait during which no thread of this process ran; other events of
// this kind have none.
const noThreadRan = "no thread of it ran"

func (e *Event) stoodStill() bool { return e.Kind == CPUWait && e.Note != "" }

// AskedToLead begins the Note of an Elected after a hand-over.
const AskedToLead = "asked to lead"

func (e *Event) askedToLead() bool { return strings.HasPrefix(e.Note, AskedToLead) }

// failures maps failures to causes, by the texts of the operating system and of package raftlog:
// the text is all that is left of an error after a restart or the network.
var failures = []struct {
	cause Cause
	texts []string
}{
	{CauseDiskFull, []string{"no space left"}},
	{CauseDiskError, []string{"input/output error", "raft log", "read-only file system"}},
}

// causeOfFailure is the cause that a failure's text names.
func causeOfFailure(why string) Cause {
	for _, f := range failures {
		for _, text := range f.texts {
			if strings.Contains(why, text) {
				return f.cause
			}
		}
	}
	return CauseFailed
}

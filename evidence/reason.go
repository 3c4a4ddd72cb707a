package evidence

import "strings"

// Some events carry in their Note why it happened, in words of a fixed set, and the judge decides
// by them. The words are part of the record on disk and of what members of other versions tell:
// they stay. Whoever records such an event, and whoever reads it, takes them from here.

// HandOverReason is why a leader hands over: the Note of HandOver, and the label of
// belay_handovers_total.
type HandOverReason string

const (
	ForDisk    HandOverReason = "disk"    // of its raft log
	ForStore   HandOverReason = "store"   // which does not get on
	ForStop    HandOverReason = "stop"    // of this member
	ForRequest HandOverReason = "request" // of a client
	ForRemoval HandOverReason = "removal" // of this member
)

// End is how the process before this one ended: the Note of Started.
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

// Absence is why a peer does not answer: the Note of Unreachable. Refused and Closed say that its
// machine does, and that its process is not there; TimedOut says nothing of where it is.
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

// noThreadRan is the Note of a CPUWait during which this process stood still; the others have none.
const noThreadRan = "no thread of it ran"

func (e *Event) stoodStill() bool { return e.Kind == CPUWait && e.Note != "" }

// AskedToLead begins the Note of an Elected after a hand-over.
const AskedToLead = "asked to lead"

func (e *Event) askedToLead() bool { return strings.HasPrefix(e.Note, AskedToLead) }

// failures says which failures are a disk's, by the texts of the operating system and of package
// raftlog: the text is all that is left of an error that has crossed the network or a restart.
var failures = []struct {
	cause Cause
	texts []string
}{
	{CauseDiskFull, []string{"no space left"}},
	{CauseDiskError, []string{"input/output error", "raft log", "read-only file system"}},
}

// causeOfFailure is the cause that a failure's text tells of.
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

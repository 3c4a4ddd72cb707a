package evidence

import (
	"fmt"
	"strings"
	"time"
)

// The evidence for grounds about one member, from its testimony.

const (
	// tellingPause and tellingLate are how long a pause must have been, or how late a member's
	// ticks, to explain anything.
	tellingPause = 300 * time.Millisecond
	tellingLate  = 200 * time.Millisecond
	// decisive: anything shorter explains no election by itself.
	decisive = 400 * time.Millisecond
	// tellingSnapshot is how long a snapshot must take to matter.
	tellingSnapshot = time.Second
	// sampledLate: a value that is sampled once a second may be recorded this much later than what
	// it explains.
	sampledLate = 2 * time.Second
)

// line is one line of evidence about a member.
func line(m *Testimony, format string, args ...any) []string {
	return []string{m.Name + " " + fmt.Sprintf(format, args...)}
}

// How its process ended.

// lastWords is what is known about the end of a member's process: from its own report, from its
// last words to others, and from what its next process found in the record.
func (h *hearing) lastWords(m *Testimony) (failure string, stopped bool) {
	for i := range m.Events {
		switch e := &m.Events[i]; {
		case !h.counts(e):
		case e.Kind == Failing:
			failure = e.Note
		case e.Kind == Stopping:
			stopped = true
		}
	}
	for i := range h.in.Members {
		for j := range h.in.Members[i].Events {
			switch e := &h.in.Members[i].Events[j]; {
			case e.Peer != m.ID || !h.counts(e):
			case e.Kind == PeerFails:
				failure = e.Note
			case e.Kind == PeerStops:
				stopped = true
			}
		}
	}
	if again := h.startedAgain(m); again != nil && failure == "" {
		if why, ok := End(again.Note).failure(); ok {
			failure = why
		}
	}
	return failure, stopped
}

// startedAgain is the last start of a member. One after the incident counts, too: it shows that the
// process ended before.
func (h *hearing) startedAgain(m *Testimony) (again *Event) {
	for i := range m.Events {
		if e := &m.Events[i]; e.Kind == Started && !e.Past && e.At.After(h.from) {
			again = e
		}
	}
	return again
}

func failedBecause(cause Cause) func(*hearing, *Testimony) []string {
	return func(h *hearing, m *Testimony) []string {
		why, _ := h.lastWords(m)
		if why == "" || causeOfFailure(why) != cause {
			return nil
		}
		return line(m, "stopped because it could not go on: %s", why)
	}
}

func saidThatItStops(h *hearing, m *Testimony) []string {
	if _, stopped := h.lastWords(m); !stopped {
		return nil
	}
	return line(m, "said that it stops on purpose")
}

func startedAfterStop(h *hearing, m *Testimony) []string {
	if again := h.startedAgain(m); again == nil || End(again.Note) != AfterStop {
		return nil
	}
	return line(m, "was stopped and started again")
}

func startedAfterCrash(h *hearing, m *Testimony) []string {
	again := h.startedAgain(m)
	if again == nil || End(again.Note) != AfterCrash {
		return nil
	}
	return line(m, "started again (%+.1f s) and had not ended in order", again.At.Sub(h.in.Began).Seconds())
}

func neverToldItsName(_ *hearing, m *Testimony) []string {
	if m.Absent == Answered || !m.Nameless {
		return nil
	}
	return line(m, "does not answer, and has never told the cluster its name: it was added and not started")
}

func doesNotRun(_ *hearing, m *Testimony) []string {
	if m.Nameless || m.Absent != Refused && m.Absent != Closed {
		return nil
	}
	return line(m, "is not running: connections to it are %s, and it had not said that it stops", m.Absent)
}

func doesNotAnswer(h *hearing, m *Testimony) []string {
	if m.Absent != TimedOut {
		return nil
	}
	gone := time.Duration(0)
	for i := range h.in.Members {
		for _, e := range h.in.Members[i].Events {
			if e.Kind == Unreachable && e.Peer == m.ID && e.At.After(h.from) {
				gone = max(gone, e.Took)
			}
		}
	}
	return line(m, "does not answer, for %s by now: cut off, frozen, or its machine is down", short(gone))
}

// Pauses, and hand-overs with their reason.

func stoodStillFor(least time.Duration) func(*hearing, *Testimony) []string {
	return func(h *hearing, m *Testimony) []string {
		e := h.worst(m, Paused)
		if e == nil || e.Took < least {
			return nil
		}
		return line(m, "stood still for %s: %s", short(e.Took), e.Note)
	}
}

// handOver is the hand-over by which a member gave up leadership, if it had this reason.
func (h *hearing) handOver(m *Testimony, reason HandOverReason) *Event {
	if h.in.Kind == NearMissOnly || m.ID != h.in.Before {
		return nil
	}
	if e := h.worst(m, HandOver); e != nil && HandOverReason(e.Note) == reason {
		return e
	}
	return nil
}

func handedOverOnRequest(h *hearing, m *Testimony) []string {
	e := h.handOver(m, ForRequest)
	if e == nil {
		return nil
	}
	return line(m, "handed over to %s because a client asked it to", h.name(e.Peer))
}

func handedOverToStop(h *hearing, m *Testimony) []string {
	e := h.handOver(m, ForStop)
	if e == nil {
		return nil
	}
	return line(m, "handed over to %s before it stopped", h.name(e.Peer))
}

// Its disks.

// andHandedOver adds that a member handed over for the reason in the lines, if it did.
func (h *hearing) andHandedOver(m *Testimony, reason HandOverReason, lines []string) []string {
	if e := h.handOver(m, reason); e != nil {
		lines = append(lines, line(m, "handed over to %s because of it", h.name(e.Peer))...)
	}
	return lines
}

func hasLittleSpace(h *hearing, m *Testimony) []string {
	e := h.worst(m, DiskFull)
	if e == nil {
		return nil
	}
	return line(m, "has %d MB left on the disk of its data", e.Value>>20)
}

func storeStalled(h *hearing, m *Testimony) []string {
	e := h.worst(m, StoreStalled)
	if e == nil {
		return nil
	}
	return h.andHandedOver(m, ForStore,
		line(m, "had a store that did not get on for %s, in applying or in making durable", short(e.Took)))
}

func syncInFlight(kind Kind) func(*hearing, *Testimony) []string {
	return func(h *hearing, m *Testimony) []string {
		e := h.worst(m, kind)
		if e == nil {
			return nil
		}
		return h.andHandedOver(m, ForDisk,
			line(m, "had a sync of its raft log in flight for %s, or without any progress", short(e.Took)))
	}
}

// Why its ticks were late.

// lateness is how late the ticks of a member were; 0: not late enough to matter, or late because of
// a pause, which is reported already.
func (h *hearing) lateness(m *Testimony) (lateness time.Duration) {
	if late := h.worst(m, LateTick); late != nil {
		lateness = late.Took
	}
	for i := range m.Events {
		if e := &m.Events[i]; e.stoodStill() && h.counts(e) {
			lateness = max(lateness, e.Took)
		}
	}
	if e := h.worst(m, Paused); lateness < tellingLate || e != nil && e.Took >= lateness/2 {
		return 0
	}
	return lateness
}

// pressed is the first event that a member's machine had too little of something.
func (h *hearing) pressed(m *Testimony, what Resource) *Event {
	for i := range m.Events {
		if e := &m.Events[i]; e.Kind == Pressure && Resource(e.Note) == what && h.countsUntil(e, sampledLate) {
			return e
		}
	}
	return nil
}

func late(h *hearing, m *Testimony) []string {
	lateness := h.lateness(m)
	if lateness == 0 {
		return nil
	}
	return line(m, "was late by up to %s", short(lateness))
}

func lateForMemory(h *hearing, m *Testimony) []string {
	lateness := h.lateness(m)
	if lateness == 0 {
		return nil
	}
	if gc := h.worst(m, GCPause); gc != nil && gc.Took >= lateness/2 {
		return line(m, "was late by up to %s: the garbage collector stopped it for %s", short(lateness), short(gc.Took))
	}
	if h.pressed(m, Memory) == nil {
		return nil
	}
	return line(m, "was late by up to %s: its machine had too little memory", short(lateness))
}

// lateForCPU is the evidence that a member was at least this late because it got no CPU, unless it
// lacked memory, which costs CPU, too.
func lateForCPU(least time.Duration) func(*hearing, *Testimony) []string {
	return func(h *hearing, m *Testimony) []string {
		lateness := h.lateness(m)
		if lateness == 0 || lateness < least || lateForMemory(h, m) != nil {
			return nil
		}
		wait, pressed := h.worstUntil(m, sampledLate, CPUWait), h.pressed(m, CPU)
		var why []string
		if wait != nil {
			why = append(why, fmt.Sprintf("its threads waited for a CPU for %d %% of a second's time", wait.Value))
		}
		if pressed != nil {
			why = append(why, fmt.Sprintf("CPU pressure of its machine was %d %%", pressed.Value))
		}
		if why == nil {
			return nil
		}
		return line(m, "was late by up to %s: %s", short(lateness), strings.Join(why, ", "))
	}
}

// Its log's output, and snapshots.

func droppedLogLines(h *hearing, m *Testimony) []string {
	e := h.worst(m, LogDropped)
	if e == nil {
		return nil
	}
	return line(m, "dropped lines of its log (%d or more at once)", e.Value)
}

func logOutputStalled(h *hearing, m *Testimony) []string {
	e := h.worst(m, LogStalled)
	if e == nil {
		return nil
	}
	return line(m, "could not write its log for %s", short(e.Took))
}

func movedSnapshot(h *hearing, m *Testimony) []string {
	e := h.worst(m, SnapshotSent, SnapshotReceived)
	if e == nil || e.Took < tellingSnapshot {
		return nil
	}
	direction := "from"
	if e.Kind == SnapshotSent {
		direction = "to"
	}
	return line(m, "%s of %d bytes, %s %s, in %s", e.Kind, e.Value, direction, h.name(e.Peer), short(e.Took))
}

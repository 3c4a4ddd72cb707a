package evidence

import (
	"fmt"
	"time"

	"github.com/belaydb/belay/command"
)

// Kind is the kind of an event. Its name is what the endpoint shows.
type Kind uint8

const (
	// The life of the process.
	Started    Kind = iota + 1 // this process began; Note is an End: how the one before it ended
	Stopping                   // it ends on purpose; Note says why
	Failing                    // it ends because it cannot go on; Note is the error
	Paused                     // nothing of it ran for Took, and it had not asked for a CPU either; Note: how that is known
	LateTick                   // the raft loop's tick came late by Took
	CPUWait                    // its threads were ready to run and got no CPU, for Value percent of the time; Note: noThreadRan, or none
	Pressure                   // of the machine: Note is a Resource, Value the percent of the time that some task waited
	GCPause                    // the garbage collector stopped the process for Took, at most
	LogStalled                 // an output of the log has not taken a line for Took
	LogDropped                 // Value lines of the log were dropped: their output does not take them
	// Its disk.
	DiskSlow     // no sync of the raft log has ended for Took, or one took so long
	DiskStalled  // the same, beyond the hand-over bound
	DiskDead     // the same, so long that it may never end
	DiskBetter   // the disk does better again; Note: its state
	StoreStalled // the store has made no progress in applying or in making durable for Took
	StoreBetter  // it makes progress again; Took: the longest time without
	DiskFull     // less space is free than the bound; Value: bytes
	// Its peers. Peer is the other member.
	Silent      // nothing has come from Peer for Took
	Unreachable // Peer has not answered for Took; Note is an Absence
	SlowLink    // round trips to Peer take Took, Value of the last thirty came late
	Dropped     // Value messages to Peer found no room or no connection
	PeerFails   // Peer said, as its last words, that it cannot go on; Note: why
	PeerStops   // Peer said that it stops on purpose
	// Snapshots and queues.
	SnapshotSent     // to Peer, Value bytes in Took; Note tells a failure
	SnapshotReceived // from Peer
	Backlog          // Value entries are committed and not applied
	Queue            // Value bytes wait for the raft loop
	Refusing         // writes, or appends, since Value bytes of the raft log wait in memory; Note: for what
	// Raft.
	LateHeartbeat // nothing came from the leader, Peer, for Took: more than half an election timeout
	Campaign      // this member asks for votes, after Took without hearing from a leader
	Elected       // this member leads; Peer led before; Note: why, AskedToLead first after a hand-over
	Followed      // this member follows Peer now; Note: why
	LostLeader    // this member knows no leader; Peer led before
	SteppedDown   // this member no longer leads; Note: why; Peer: the member that caused it
	HandOver      // this member, the leader, hands over to Peer; Note is a HandOverReason
	Timeouts      // the election timeout is now Took
	// What was made of all that.
	Judged // Note is the verdict

	kindCount
)

var kindNames = [kindCount]string{
	Started: "started", Stopping: "stopping", Failing: "failing", Paused: "paused", LateTick: "late-tick",
	CPUWait: "cpu-wait", Pressure: "pressure", GCPause: "gc-pause", LogStalled: "log-stalled", LogDropped: "log-dropped",
	DiskSlow: "disk-slow", DiskStalled: "disk-stalled", DiskDead: "disk-dead", DiskBetter: "disk-better", DiskFull: "disk-full",
	StoreStalled: "store-stalled", StoreBetter: "store-better",
	Silent: "silent", Unreachable: "unreachable", SlowLink: "slow-link", Dropped: "dropped", PeerFails: "peer-fails", PeerStops: "peer-stops",
	SnapshotSent: "snapshot-sent", SnapshotReceived: "snapshot-received", Backlog: "backlog", Queue: "queue", Refusing: "refusing",
	LateHeartbeat: "late-heartbeat", Campaign: "campaign", Elected: "elected", Followed: "followed", LostLeader: "lost-leader",
	SteppedDown: "stepped-down", HandOver: "hand-over", Timeouts: "timeouts", Judged: "judged",
}

func (k Kind) String() string {
	if k == 0 || k >= kindCount {
		return fmt.Sprintf("kind-%d", uint8(k))
	}
	return kindNames[k]
}

// kindOf returns the kind with a name; 0: one of a later version.
func kindOf(name string) Kind {
	for k, n := range kindNames {
		if k > 0 && n == name {
			return Kind(k)
		}
	}
	return 0
}

// An Event is one observation. The comment at its Kind says what its fields mean; unused ones are
// zero. Note is its only pointer, and a constant on hot paths.
type Event struct {
	Kind  Kind
	Peer  uint64
	Took  time.Duration // until At
	Value int64
	Term  uint64
	Note  string

	// The ring sets these.
	Seq   uint64        // counts the events of this life, from 1
	At    time.Time     // when it was recorded, or last extended; with its monotonic clock if of this life
	Count int64         // how many events were merged into this one
	First time.Duration // from the first of these to At
	Past  bool          // of a life of this process before this one
}

// Near misses: events that may cost a leader its leadership, or that an operator should know about
// although nobody noticed. Each opens an incident.
func (k Kind) nearMiss() bool {
	switch k {
	case Failing, Paused, LogStalled, LogDropped, DiskSlow, DiskStalled, DiskDead, DiskFull, StoreStalled, Refusing,
		SlowLink, PeerFails, LateHeartbeat, Campaign, SteppedDown:
		return true
	}
	return false
}

// Told is an event as JSON, for other members and for people: times are ages, so that clocks need
// not agree.
type Told struct {
	Seq   uint64  `json:"seq,omitempty"`
	Kind  string  `json:"kind"`
	Ago   float64 `json:"seconds_ago"`
	Took  float64 `json:"took_seconds,omitempty"`
	Over  float64 `json:"over_seconds,omitempty"` // from the first of several to the last
	Peer  string  `json:"peer,omitempty"`         // member id, hexadecimal
	Value int64   `json:"value,omitempty"`
	Term  uint64  `json:"term,omitempty"`
	Count int64   `json:"count,omitempty"` // if more than one
	Note  string  `json:"note,omitempty"`
	Past  bool    `json:"past,omitempty"` // of an earlier life of this process
	Time  string  `json:"time,omitempty"` // by the member's own clock, for people
}

func (e *Event) told(now time.Time) Told {
	t := Told{
		Seq: e.Seq, Kind: e.Kind.String(), Ago: max(0, now.Sub(e.At).Seconds()), Took: e.Took.Seconds(), Value: e.Value, Term: e.Term, Note: e.Note,
		Past: e.Past, Time: e.At.Format("2006-01-02T15:04:05.000Z07:00"),
	}
	if e.Peer != 0 {
		t.Peer = command.IDText(e.Peer)
	}
	if e.Count > 1 {
		t.Count, t.Over = e.Count, e.First.Seconds()
	}
	return t
}

// event is the inverse, with At relative to now.
func (t *Told) event(now time.Time) Event {
	const longest = 1e8 // seconds; values from a broken peer must not overflow
	seconds := func(s float64) time.Duration {
		return time.Duration(min(max(s, 0), longest) * float64(time.Second))
	}
	e := Event{Seq: t.Seq, Kind: kindOf(t.Kind), At: now.Add(-seconds(t.Ago)), Took: seconds(t.Took), Value: t.Value, Term: t.Term, Note: t.Note, Count: max(1, t.Count), First: seconds(t.Over), Past: t.Past}
	if t.Peer != "" {
		if _, err := fmt.Sscanf(t.Peer, "%x", &e.Peer); err != nil {
			e.Peer = 0
		}
	}
	return e
}

// Report is what a member reports about itself: the answer of both endpoints.
type Report struct {
	Member   string  `json:"member_id"` // hexadecimal
	Name     string  `json:"name"`
	Now      string  `json:"now"`            // by its own clock, for people
	Uptime   float64 `json:"uptime_seconds"` // of the process
	Leader   string  `json:"leader_id,omitempty"`
	Term     uint64  `json:"term"`
	NearMiss uint64  `json:"near_miss_seq"` // of the newest near miss of this life; 0: none
	Lost     uint64  `json:"events_overwritten"`
	Unkept   uint64  `json:"events_not_on_disk"` // events that could not be written to the file

	Links    []LinkReport `json:"links"`
	Verdicts []Verdict    `json:"verdicts"` // that this member gave, the newest last
	Open     string       `json:"open_incident,omitempty"`
	Events   []Told       `json:"events"` // the oldest first
}

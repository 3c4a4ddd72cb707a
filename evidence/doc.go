// Package evidence is what a member remembers of its own troubles, and what is made
// of it when leadership moved, or nearly did: one verdict that names a member and a
// cause.
//
// etcd prints "likely from slow disk" for every late heartbeat. Here each member
// keeps a bounded ring of what it has measured (Ring): late ticks, syncs in flight,
// pauses of the process, waiting for a CPU, peers that are silent, changes of
// leader with this side's reason, and so on (Kind). At an election, a hand-over or a near miss
// the leader asks all members for theirs (Inspector) and looks for what explains
// it (Judge).
//
// # Promises
//
//   - Record never waits: a mutex that is held for copies in memory, no allocation.
//     The loop of raft calls it.
//   - Nothing here touches the disk but Keeper's goroutine, which nobody waits for
//     longer than said. The record is never synced.
//   - No clock has to agree with another: members tell ages, not times, and half a
//     round trip is taken off.
//   - One verdict for each incident. An election waits a moment for the record of
//     it to be complete, a near miss for it to become an election, both up to half
//     a minute for a member that is silent and whose word could decide: a process
//     that was stopped knows so only once it runs again.
//   - A near miss whose verdict is that of the last minutes again is not told again.
//
// # What Judge goes by
//
// One table (causes): for each cause the grounds for which it is named, with their weight and the
// evidence that they need, and the advice. Judge tries all of them and names the heaviest.
//
// A member's own word comes first: its last words (I/O error, stop), then a hand-over
// with its reason, then what it measured of itself (it stood still, its disk, its
// CPU), then what the two ends of a link say of each other. A link is blamed only if
// both ends ran; a slow disk is blamed for a change of leader only if the leader
// handed over because of it, since nobody waits for it otherwise.
//
// # Goroutines
//
// Sampler, Links, Keeper and Inspector have one each, Links one more for each ping
// under way. Ring may be used from any.
//
// # Files
//
//	event.go            kinds of events, their JSON
//	reason.go           the words in events that decide
//	ring.go             the ring
//	file.go             the record on disk
//	sample.go           the process and its machine
//	continued_unix.go   that a signal let the process go on
//	continued_other.go  the same where there is no such signal
//	links.go            pings: round trips, silence
//	inspector.go        incidents, collecting
//	judge.go            from events to a verdict
//	causes.go           the table that it goes by
//	grounds.go          the table's evidence about a member
//	grounds_links.go    the table's evidence about links
package evidence

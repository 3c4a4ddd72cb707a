// Package evidence records what went wrong with a member, and draws one verdict from it when
// leadership moved, or nearly did: a member and a cause.
//
// etcd prints "likely from slow disk" for every late heartbeat. Here each member keeps a bounded
// ring of what it has measured (Ring): late ticks, syncs in flight, pauses of the process, waiting
// for a CPU, silent peers, changes of leader with this side's reason, and so on (Kind). At an
// election, a hand-over or a near miss the leader collects the events of all members (Inspector)
// and looks for an explanation (Judge).
//
// # Promises
//
//   - Record never waits: it takes a mutex that is held only for copies in memory, and allocates
//     nothing. The raft loop calls it.
//   - Only Keeper's goroutine touches the disk, and nobody waits for it beyond a stated bound. The
//     record is never synced.
//   - Clocks need not agree: members exchange ages, not times, and half a round trip is subtracted.
//   - There is one verdict for each incident. After an election it waits a moment until the members
//     have recorded it, after a near miss in case it becomes an election, and after both up to half
//     a minute for a silent member whose evidence could decide: a process that was stopped knows it
//     only once it runs again.
//   - A near miss with the same verdict as one in the last minutes is not reported again.
//
// # What Judge goes by
//
// One table (causes): for each cause the grounds for which it is named, with their weight and the
// evidence that they need, and the advice. Judge tries all of them and names the one with the
// greatest weight.
//
// A member's own evidence comes first: its last words (I/O error, stop), then a hand-over with its
// reason, then its own measurements (a pause, its disk, its CPU), then what the two ends of a link
// report about each other. A link is blamed only if both ends ran. A slow disk is blamed for a
// change of leader only if the leader handed over because of it, since nothing waits for it
// otherwise.
//
// # Goroutines
//
// Sampler, Links, Keeper and Inspector have one goroutine each, Links one more for each ping under
// way. Ring may be used from any goroutine.
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

// Package leader is what the leader of a cluster does by itself: it revokes expired leases,
// compacts the history, maintains the cluster's version, compares the members' data, and raises and
// ends the alarms that stop writes.
//
// Every member runs all of it, and checks each time whether it leads: leadership moves, and a new
// leader continues from what it recorded as a follower (for example the revisions of the last
// hour). A member does three things for itself whether it leads or not: it compares its data before
// it serves (Corruption.Initial), it watches its own space (Space), and it leaves to come back with the
// others' data when it is the one that differs (Outlier).
//
// # Deciders and loops
//
// Each task has two parts. A decider gets observations and returns what to do; it does no I/O,
// starts no goroutine and reads no clock, and its scenarios in testdata are text. A loop observes,
// asks the decider and does what it returns. A loop knows its member through a small Config of its
// own, with the funcs and interfaces that it needs; none may be nil unless its comment says what
// nil means.
//
// A decider returns its log lines, with etcd's texts where etcd has them.
//
// # What holds
//
//   - A leader that was stopped for a while still believes that it leads when it resumes. So what
//     only the leader of a term may propose is bound to that term, and dropped in any other.
//   - Nothing here writes; it proposes. A failed proposal is repeated at the next check.
//   - Data counts as corrupt only if it was found different twice (Corruption).
//
// # Goroutines
//
// Each Run is one goroutine, and owns its decider. Methods that other goroutines may call say so.
//
// # Files
//
//	expiry.go      leases: when this member is their primary, what it revokes and notes
//	compaction.go  auto compaction, by time and by revision
//	version.go     the cluster's version, and the end of a downgrade
//	corruption.go  comparing hashes: who differs from most
//	checks.go      the three corruption checks: what is asked of whom, and when
//	outlier.go     the member that differs from a quorum leaves, to heal
//	space.go       alarms of space: when they are raised, and when they end
//	ask.go         what other members are asked over HTTP
//	lines.go       log lines that a decider returns
//
// Sources: etcd server/etcdserver/{server,corrupt,version}.go, api/v3compactor and lease/lessor.go
// for behaviour.
package leader

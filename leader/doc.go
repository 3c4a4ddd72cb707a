// Package leader is what the leader of a cluster does by itself, with nobody asking: it revokes
// leases that have expired, compacts the history, keeps the cluster's version, compares the
// members' data, and raises and ends the alarms that stop writes.
//
// Every member runs all of it, and looks each time whether it leads: leadership moves, and what
// a follower has noted meanwhile (revisions of the last hour, say) it goes on from. Two things a
// member does for itself whether it leads or not: it compares its data before it serves
// (Corruption.Initial), and it watches its own space (Space).
//
// # Deciders and loops
//
// Each task is two things. A decider is told what was observed and says what to do; it does no
// I/O, starts no goroutine and asks no clock, and its scenarios in testdata are text. A loop
// observes, asks the decider and does what it says. A loop knows the member that it runs on by a
// small Config of its own: funcs and interfaces of what it needs, none of which may be nil unless
// its comment says what nil means.
//
// What a decider wants said in the log it returns as lines, in etcd's words where etcd has them.
//
// # What holds
//
//   - A leader that was stopped for a while still believes that it leads when it wakes. So what
//     only the leader of a term may propose is bound to that term, and given up in any other.
//   - Nothing here writes: it proposes. A proposal that fails is made again at the next look.
//   - Data is called corrupt only where it was found different twice (Corruption).
//
// # Goroutines
//
// Each Run is one goroutine, and owns its decider. Methods that others may call say so.
//
// # Files
//
//	expiry.go      leases: when this member is their primary, what it revokes and notes
//	compaction.go  auto compaction, by time and by revision
//	version.go     the cluster's version, and the end of a downgrade
//	corruption.go  comparing hashes: who differs from most
//	checks.go      the three corruption checks: what is asked of whom, and when
//	space.go       alarms of space: when they are raised, and when they end
//	ask.go         what other members are asked over HTTP
//	lines.go       log lines that a decider returns
//
// Sources: etcd server/etcdserver/{server,corrupt,version}.go, api/v3compactor and lease/lessor.go
// for behaviour.
package leader

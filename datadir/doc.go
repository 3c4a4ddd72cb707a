// Package datadir knows whose data a member's folders hold, and checks that they belong together:
// the member's identity in its cluster, how its first log is made, and how data comes from a
// snapshot. It runs no member: package node does, and cli/offline works on the same files while
// none runs.
//
// # What for
//
// A member has three parts, each of which may be lost, swapped or restored from a backup
// separately:
//
//	member/identity.json          the identity: whose data this folder holds
//	member/store/                 the store, with an identity.json of its own
//	member/log/, or in --wal-dir  the raft log, with its META
//
// Two parts that do not belong together would make one member of two histories: it would serve what
// was never written, lack what was acknowledged, and vote twice in one term. So each start checks
// all three before it opens any, and refuses parts that do not fit.
//
// # How the parts know each other
//
// The raft log draws a random id when it is made (META), and this is the id of the whole: both
// identity.json contain it, with member and cluster. Both also contain the number of a group of the
// log: the log numbers what it makes durable; a start writes a group of its own and records its
// number before the member sends anything, a stop records the number of the last one. A log that
// ends before the recorded group is an older copy, or was cut, and votes and acknowledgements may
// be lost with what is missing.
//
// # What is right and what is refused
//
// The log is what a member promised, the store only the result. So an older store of the same log
// is valid as long as the log still has what follows it, and so is no store at all if the log has
// everything from the first entry on; otherwise raftlog.Adopt fails. A store ahead of the log is
// valid too (ARCHITECTURE.md, "The one idea"). An older log is not, and neither is a part with
// another log id.
//
// What cannot be detected: copies of all parts from one earlier moment, restored together; and an
// older log together with both identity.json of its time.
//
// # The order of writing
//
// The log first, by a rename or by META, which comes last; then identity.json in the store; then
// member/identity.json, and only then does the member send anything. Each is durable before the
// next. So an interrupted start leaves a log that nobody depends on, and the next start, with the
// same flags, continues with it. Conversely, if member/identity.json has a log's id, there was such
// a log, and a store beside it.
//
// Data of versions before this one has an identity.json without a log's id, or none, and nothing in
// the store. Both are written at the next start. Until then only member and cluster can be
// compared.
//
// # Who a member is
//
// Its log says so. A member without one is a newcomer (Newcomer): it makes a new cluster with the
// members of --initial-cluster, whose ids follow from their names and URLs, so that all write the
// same first entries; or it joins a running cluster, and asks its members with which id it was
// added. Either way it asks whether they know it as one that has run: then its data is lost, and
// with it what it promised, and it must not vote. Members that were down at that time are asked
// before any of their messages is accepted (Founder).
//
// # Goroutines
//
// Everything but a Founder belongs to the goroutine that starts or stops the member. A Founder's
// methods may be called from any.
//
// # Files
//
//	verify.go    reading everything, and what is wrong with it
//	schema.go    the storage version of an etcd's data
//	defrag.go    rewriting the store of a stopped member
//	parts.go     the three parts, and what identity.json says
//	bind.go      recording that they belong together
//	misfit.go    folders that cannot be a member's
//	folder.go    making the folder, and keeping etcd out of it
//	private.go   a file system whose files nobody else can read
//	identity.go  a member's id, made from flags
//	bootstrap.go who a member without data is
//	join.go      asking a cluster that runs
//	founder.go   asking those that were down
//	firstlog.go  the first log of a new cluster
//	owner.go     flags that describe another member
//	heal.go      damaged data replaced by the others': steps, crash points, what is kept
//	force.go     a cluster of one (--force-new-cluster)
//	restore.go   data made from a snapshot file
//	migrate.go   data of an etcd made Belay's, or back: steps and crash points; frometcd.go, toetcd.go, waldir.go
//	received.go  the database that an etcd sends as its snapshot, made a store
//	compare.go   what was made, compared with what it was made of
//	exchange_linux.go, exchange_other.go  two names swapped in one step
package datadir

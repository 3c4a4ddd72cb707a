// Package backup makes backups of a cluster's state beside the member, proves each by restoring it,
// and restores them to a revision or a time.
//
// # What for
//
// A snapshot that somebody saves by hand, or a script by cron, is tried for the first time on the
// day when it is needed. A member with --backup-to saves the state by a schedule, reads each backup
// back, restores it into a scratch store, and compares HashKV and counts with what it saw itself;
// only then the backup is called good. The age of the last good one is a metric.
//
// # What there is
//
// A full backup holds every version that the member kept, and leases, users and roles. An increment
// holds the versions after its parent's revision, and leases, users and roles whole. With its
// ancestors it can be restored to each of its revisions, and to each second, since it also holds
// when the member saw which revision (package timemap).
//
// Increments are made of revisions, not of entries of the raft log: revisions are what is to be
// restored, they mean the same in every version, and a member that came by a snapshot has them,
// too. The price: leases, users and roles are known at the end of each increment only. A compaction
// that overtakes the increments makes a gap, and then the next backup is a full one.
//
// # Promises
//
// Each file is written whole or not at all (Depot), and the manifest last: a folder without one is
// no backup, whatever a crash left in it. The manifest names length and SHA-256 of every part, and
// ends with its own; an increment names that of its parent's manifest. So what is cut, lost or
// changed is refused, and never taken for less data. The sums are no signatures: who can write to
// the depot can make a backup that says what he likes.
//
// Memory is bounded by a few parts of 8 MiB, whatever the size of the data (and by the largest
// value); one backup is made at a time. What goes to the depot and comes from it is bounded by a
// Pace.
//
// # Who makes it
//
// The leader, because there is one, decides; another member makes it, if one can (turn.go). Two
// members that both believe to lead, or that make backups at once, do not disturb each other: names
// contain time and member, nothing is ever written twice, and an increment is valid whoever made its
// parent, because both saw the same history. That it is the same is checked: a restored cluster has
// the id of the one before it.
//
// # Goroutines
//
// A Maker's methods may be called from any goroutine; its own goroutine makes the backups.
// Everything else belongs to its caller, and nothing here is called on the way of a request.
//
// # Files
//
//	format.go    manifests, proofs, parts: what is written
//	depot.go     where it is written: a directory; s3.go: a bucket
//	bounded.go   a depot that hangs keeps nobody waiting
//	save.go      a backup made of a view
//	catalog.go   what is in a depot, and which backups lead to a revision or a time
//	source.go    a chain of backups read back
//	prove.go     restoring into a scratch store, and comparing
//	retain.go    what may be removed
//	pace.go      the bandwidth
//	place.go     flags that say where a depot is
//	maker.go     the schedule
//	turn.go      another member makes one in the leader's place
//	answer.go    what is asked over HTTP, and metrics
//	listing.go   a catalog to be shown
//	walk.go      every file of a depot, for who inspects
package backup

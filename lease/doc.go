// Package lease is the lease table: which leases exist, which keys are attached to them, and, on
// the leader, when each expires. It deletes no key and proposes nothing: package state deletes the
// keys of a revoked lease, and the leader's loop turns what Expired and Checkpoints report into
// raft entries.
//
// # What is replicated, what is not
//
// A lease's id, TTL and checkpointed remaining TTL, and the attachments (lease, key), are
// replicated: they change only through Grant, Revoke, Checkpoint, Attach and Detach, which the
// applier goroutine calls and which write into the store batch that also carries the applied index.
// Expiry times are not: they live in memory, by the local clock, and exist only while this member
// is primary. So the replicated part is a function of the log alone.
//
//	lease record        +---------+---------------+---------------------+
//	                    | 1 byte  | zigzag varint | zigzag varint       |
//	                    | form: 1 | TTL, seconds  | remaining TTL, s    |  0: the full TTL
//	                    +---------+---------------+---------------------+
//	attachment          key: (lease id, user key), no value
//
// The TTL is stored as the entry has it; the minimum (a local setting that follows the election
// timeout) is applied where it is used. Who proposes a grant raises it to its own minimum before, so
// that a leader with a shorter one keeps to what the client is told. Attachments live only in the
// store, so a lease with a million keys costs no memory.
//
// The tables in memory change at once, the batch a moment later. Both follow from a committed
// entry, so the difference looks like an answer that came a moment earlier or later.
//
// # Primary, term and fencing
//
// The leader calls Promote with its term when it has applied the first entry of that term, and
// Demote when it stops leading. A late Promote, for a term that was demoted already, is ignored.
// Expired reports the term with the leases: their revocation must be proposed only as leader of
// that very term. This keeps a leader that comes back from a stall from revoking, through its
// successor, leases that the successor renewed.
//
// Between the report of an expiry and the revocation a lease cannot be renewed: Renew waits until
// the lease is gone or this member is no longer primary. A renewal is either answered and kept, or
// not answered.
//
// # TTLs over elections
//
// A new leader cannot know which leases were renewed a moment before the old one died, so it gives
// each the full TTL (or what a checkpoint left of it) and one election timeout, or Overlap if that
// is longer. With nothing else, frequent changes of leader would keep dead leases alive for ever. So
// Checkpoints reports leases that nobody has renewed for half their TTL, or for the interval if that
// is shorter; a live client renews after a third and costs no entry. If a renewed lease has a
// checkpoint, an entry must clear it before the renewal is answered: Renew says when. Checkpoints
// must not be proposed while the cluster has real etcd members without the LeaseCheckpoint gate:
// they would never clear one.
//
// # Goroutines
//
// Lookup, List, Renew, Keys, Promote, Demote, Expired and Checkpoints may be called from any
// goroutine. Renew and Lookup take a read lock and touch one lease. The expiry heap is lazy: a
// renewal leaves its lease where it is in the heap, and the lease moves to its new place when the
// old time has come.
//
// Files: table.go (the table and its replicated part), expiry.go (renewal, expiry, checkpoints,
// promotion), record.go (the stored form), export.go and restore.go (to and from snapshot files),
// heap.go, metrics.go, invariants.go (costly checks).
//
// Sources: etcd server/lease/lessor.go (what clients see); docs/compatibility.md, section 1.5.
package lease

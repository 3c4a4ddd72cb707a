// Package state is the replicated state machine: committed entries go in; one store batch, results
// and events come out.
//
// # Promises
//
//   - What Apply leaves in the store is a function of the entries alone: no clock, no randomness,
//     no map order, no local setting. How entries are divided into batches, restarts and snapshots
//     make no difference. (Tests check this.)
//   - Data and applied index cannot diverge: both are in the same store batch, which is atomic.
//   - An entry is applied completely or not at all; one at or below the applied index does nothing.
//   - Whatever bytes an entry decodes from, applying it neither panics nor stops the member: an
//     entry that did would stop every member, again after every restart. The exceptions are listed
//     below.
//
// # One batch
//
// Apply takes consecutive entries and writes one store batch for all. Then, in this order: commit,
// Publish (readers see the new revisions), the member list, alarms and versions become visible, the
// applied index moves, Sink.Notify for each transaction that made events, in revision order; then
// the results are returned. So whoever sees a result, an event or the applied index can read what
// it refers to.
//
// # When it stops
//
// Two things stop the process, through the logger at level fatal, with the entry's index and kind:
// a store that cannot be read or written (the state would diverge from the other members'), and a
// broken invariant, such as a panic in here. A third stops it too: an entry whose only content are
// fields that this version does not know. It comes from a newer member; skipping it would let this
// member's data silently diverge from the others'. The message says to upgrade. (etcd panics.) An
// entry with no content at all is answered with ErrUnknownRequest, here and everywhere.
//
// # Authentication
//
// Who may do what is judged in authorize, by the user and auth revision in the header of each
// request, before it is applied; requests about users and roles make the next auth.Policy.
//
// # Goroutines
//
// Apply, ApplyChange, Install and Reload belong to the applier goroutine. What they do to an open
// batch is done by an application, which begin makes and commit ends: holding one means having an
// open batch. Everything else of a Machine, the readers of members, alarms, versions, quota and
// applied index, may be called from any goroutine and does not wait for the applier.
//
// # Files
//
//	machine.go     Open, Apply, Reload, what is published
//	application.go the open batch, the stop
//	dispatch.go    one request: alarms' refusals, dispatch, metrics, slow requests
//	kind.go        the kinds of requests
//	auth.go        who may do what; users and roles
//	kv.go          put, delete, compaction
//	txn.go         transactions, in the batch and read-only
//	rangeread.go   RangeRequest to RangeResponse, for the server too
//	leases.go      grant, revoke, checkpoint
//	cluster.go     members, removed members, versions, alarms: the stored form and the mirror for readers
//	change.go      changes of the member list
//	quota.go       the space quota
//	slow.go        the log lines of etcd's names about slow and failed requests
//	logtext.go     requests as text in log lines
//	metrics.go     the metrics
//	errors.go      the errors
//	invariants.go  the asserts of a build with the tag invariants
//	export.go      what a store holds of the cluster, for who copies it
//	restore.go     the members of a new cluster, written before a Machine is opened
//
// Sources: etcd server/etcdserver/apply, server/etcdserver/txn, server/etcdserver/api/membership
// (behaviour); docs/compatibility.md, sections 1.3, 1.5, 1.6, 1.7, 1.10, 1.11.
package state

// Package snapshotfile writes the state of a member as etcd's snapshot file: a
// bbolt database that etcdutl restores and a real etcd starts from. It is the
// way back to etcd, and what `snapshot save` of every etcd client expects.
//
// # Format
//
//	+--------------------------------------+-----------+
//	| bbolt database, whole pages of 4 KiB | SHA-256   |   the trailer is not part
//	|                                      | 32 bytes  |   of the database
//	+--------------------------------------+-----------+
//
//	bucket           key                               value
//	key              main (8 BE) '_' sub (8 BE)        mvccpb.KeyValue
//	                 the same and 't'                  tombstone: its key alone
//	meta             consistent_index, term            8 BE
//	                 confState                         JSON of raft's
//	                 storageVersion                    "3.7.0"
//	                 scheduledCompactRev, finished...  as a revision, if ever compacted
//	lease            id (8 BE)                         leasepb.Lease{ID, TTL, RemainingTTL}
//	members          id, hex                           JSON
//	members_removed  id, hex                           "removed"
//	cluster          clusterVersion, downgrade         text, JSON
//	alarm            AlarmMember                       empty
//	auth             authRevision                      8 BE; 1: no user or role was ever made
//	                 authEnabled                       1 byte, 0 or 1; absent: never on
//	authUsers, authRoles  name                         authpb.User, authpb.Role
//
// # Promises
//
// A file shows one moment, that of the view it is made from; the member serves in the meantime.
// Memory is bounded by one batch of writes whatever the size of the database. The cost is disk: the
// file is built beside the data, then unlinked and read from its descriptor, so that a process that
// dies while it streams leaves nothing. One that dies while it builds leaves a file that
// RemoveLeftovers removes at the next start.
//
// bbolt's file cannot be streamed as it is built: its first pages name the
// root of a tree whose inner pages are known last.
//
// The file is never synced: nobody relies on it after a crash.
//
// # Goroutines
//
// Create and Files are independent of each other; a File belongs to one goroutine.
//
// Files: create.go (writing one), file.go (File: opening, checking), read.go (what is in it),
// pages.go (whether bbolt can read it), cluster.go (of it: what is about the cluster), hash.go
// (HashKV of it), content.go (a view's content), maintain.go (a stopped etcd's database:
// defragmenting it, its storage version).
//
// Sources: docs/compatibility.md, section 8; etcd server/storage/schema,
// etcdserver/api/v3rpc/maintenance.go (Snapshot), etcdutl/snapshot.
package snapshotfile

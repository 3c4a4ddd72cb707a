// Package mvcc keeps every key in every version: revisions, ranges, puts, deletes, compaction and
// hashes over the versioned keys of package store.
//
// # Revisions
//
// Every transaction that changes something has the next main revision; its changes are numbered by
// sub. The empty store has revision 1. A read at revision R sees, of each key, the newest version
// at or below R. So readers need no locks: later writes are above their R.
//
// # What it promises
//
// A revision can be read after Publish and not before, and then completely and by everybody. The
// result of writing depends only on the store's content and the calls. HashKV equals etcd's for the
// same history.
//
// A compaction makes old revisions unreadable at once, for all, and removes them later, in small
// steps beside the traffic. A reader never loses what it has begun to read.
//
// # Who may call
//
// NewWriter and its Writer: the applier goroutine. Reload: when nothing is being written.
// Everything else: any goroutine; readers wait only for a snapshot being installed. A View belongs
// to one goroutine at a time.
//
// # Where it is
//
// A version lives at (user key, revision), newest first, and an index leads from each revision to
// its key: record.go draws both. The newest versions of hot keys are in memory too (cache.go): they
// answer point reads, and give puts the create revision and version to continue from. A filter
// knows keys that certainly do not exist (exists.go): their first put looks nothing up. The number
// of keys in a range is known without reading them (counts.go).
//
// # Files
//
//	store.go    Open, Reload, what readers go by
//	record.go   the stored forms
//	writer.go   one batch of transactions
//	reader.go   ranges, as of a revision
//	view.go     several ranges at one revision
//	pace.go     long walks that give way
//	history.go  events of the past, for watchers
//	cache.go    the newest versions of hot keys
//	exists.go   which keys certainly do not exist
//	counts.go   how many keys a range holds
//	compact.go  compactions and their goroutine
//	hash.go     HashKV, and what members compare
//	restore.go  keys of a snapshot file, written before a Store is opened
//	metrics.go  the metrics
//	invariants.go  the asserts of a build with the tag invariants
//
// # Sources
//
// etcd's server/storage/mvcc for what must be equal: revision and compaction rules (kvstore.go,
// key_index.go, kvstore_compaction.go), HashKV (hash.go). zlib's crc32_combine for joining CRCs.
package mvcc

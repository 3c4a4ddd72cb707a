// Package store is the database of a member: a Pebble LSM without a write-ahead log, since the raft
// log is one already.
//
// # What it promises
//
// Data and applied index cannot diverge. A Batch is made for a raft index and term and writes both,
// under one key of the meta space, in the same Pebble batch as the data. Pebble puts a batch into
// one memtable and a memtable into the manifest with one edit, in the order of commits; so after
// any crash the store is as it was after some batch, and Applied says which. (etcd 3.5 kept the
// index in a transaction of its own, and lost data that way.)
//
// Nothing is durable when Commit returns. AsyncFlush names an index and closes a channel when
// everything up to it is; only then may the raft log drop those entries. Flushes that Pebble starts
// by itself make data durable too, which is harmless: DurableIndex is a lower bound.
//
// A received snapshot replaces the whole content in one manifest edit (IngestAndExcise over all
// keys). After a crash the store holds either all of the old content or all of the new.
//
// # Who may call
//
// NewBatch and its batch: one goroutine, the applier, one batch at a time. NewLocalBatch: any
// goroutine, beside the applier. Everything that reads: any goroutine, without waiting for writers.
// A View and an Iterator belong to one goroutine at a time. Close: when no batch is open; it waits
// for who reads. Install: when no batch is open and none
// will be made until it returns.
//
// Generation counts installed snapshots. A reader that remembers something about the content
// (package mvcc does) compares it after making its iterator or view: if it has not changed, what
// the reader remembers and what it reads belong together.
//
// # Keys
//
// Every key is a key of Pebble's cockroachkvs schema: a prefix, the byte 0, and for user keys a
// version. The first byte names the key space; keys.go lists them. User keys are versioned by
// revision: walltime is main, logical is sub, so newer versions of a key come first, a seek for
// "newest at or below R" is one step, and bloom filters work by user key.
//
//	user key      k <key> 00 <main:8> [<sub:4>] <suffix length:1>     sub is left out when 0
//	revision      r <main:8> <sub:4> 00
//	lease         l <id:8> 00
//	attachment    a <lease id:8> <key> 00
//	auth          u <kind:1> <name> 00
//	member        m <id:8> 00
//	removed       d <id:8> 00
//	alarm         n <alarm:4> <member id:8> 00
//	place         p <log id:8> <segment:8> <main:8> <sub:4> 00   see segments.go; of this member alone
//	cluster       c <name> 00
//	meta          z <name> 00
//
// Numbers are big-endian. The order of the spaces has no meaning.
//
// # On disk
//
//	STORE         what this directory is, and the version of its format, in text
//	incoming/     snapshots being received; removed at Open
//	segments/     second names of segments of the raft log, to whose values versions refer
//	the rest      Pebble's (LOCK, MANIFEST-*, OPTIONS-*, *.sst, *.blob, marker.*)
//
// Large values live in blob files (Pebble's value separation), so that compactions do not rewrite
// them. Values of 32 KiB and more are not written at all, as a rule: the raft log has them
// already. It gives the store's segments/ a second name of the segment, and the version says
// where in it the value is. A segment goes when no version refers to it any more, durably, and
// nobody reads an older state; values of segments of which little is referred to are moved into
// the store. segments.go has all of it, and readers.go tells who reads which state. What reads a
// version through this package gets its value, wherever that is, so nothing above this package
// but the writer of versions knows of places.
//
// The order of what is made durable: the segment's data, its second name, the store's format that older
// builds refuse, then the version that refers to it; and the other way, the end of the last reference,
// then the removal of the name. So no version that a crash leaves refers to what is not there.
//
// Pebble 2.1.7 moves its markers in an order that a power failure can break; marker.go corrects
// that below Pebble. Pebble panics on a blob file that is missing or damaged at its end; blobs.go
// turns that into an error. It panics, too, over damage that it meets while it writes a blob file
// anew, and when the end of a new blob file cannot be written; rewrites.go checks what such a job
// reads before it begins, and outputs.go has the job fail.
//
// Source files: store.go (Store, Open), batch.go, view.go, readers.go, keys.go and format.go
// (reading, writing, who reads when it is closed, the bytes of keys), snapshot.go (received
// state, and installing it), size.go, reclaim.go, background.go and disk.go (space, garbage,
// flushes and compactions, operations on files that hang), marker.go, blobs.go, rewrites.go and
// outputs.go (see above), segments.go (values in the raft log), cache.go (how much the cache of
// blocks may hold), readonly.go (looking at one), nosync.go, logger.go, metrics.go.
//
// What we assume of the disk: a rename, create or link is durable after a sync of the directory;
// synced bytes stay.
package store

// Package raftlog is the durable raft log of one member, and its tail in memory.
//
// # What for
//
// Memory is the log, the disk follows, and only promises wait for the disk. Append takes entries
// and hard state into memory at once, so that raft continues; a writer goroutine writes everything
// that waits with one write and one fdatasync, and only then releases the responses that promise
// it: votes, and acknowledgements of entries. Log is raft's Storage, and answers from memory alone.
//
// # Promises
//
//   - What was released is on disk: entries, term, vote, and the base after a snapshot. Open finds
//     it after any crash, in the same order, without a gap.
//   - Responses are released in the order of the Appends.
//   - Nothing is released after a failed write or sync, and neither is retried: after a failed
//     fsync the kernel may have dropped the dirty pages and called them clean.
//   - What Open returns is durable. A process that was killed may have left a write in the page
//     cache; raft would tell others about it, so Open syncs it first. If that process died of a
//     failed fsync, the pages may be there but count as clean, so Open writes the last group again
//     before it syncs (rewriteLast).
//   - A change of commit by itself promises nothing: it is written with the next group, by Sync or
//     by Close. Adopt raises it to what the store has applied.
//   - Damage to what was durable is an error that names the file (with the limits below).
//   - Memory: entries beyond MemoryBytes or beyond what Compact or Trim was told to keep are
//     dropped, but never one that is not in the files or not applied. Bytes reports the size. Right
//     after Open all of the log is in memory, until Adopt says where the store is.
//   - Files: never is an entry dropped that the store does not hold durably.
//
// # Who may call
//
// Append, the methods of raft.Storage and SetSnapshotMeta: the raft loop; they never wait for the
// disk. Compact: one flusher, it renames and removes files. Unsynced and Stats, which take no lock,
// Trim, Bytes, BytesAfter, Sync, Close: any goroutine. Released and Failed are called by the writer
// goroutine, and so is Install; while one of them runs nothing is written.
//
// The log's own goroutines: the writer, which owns the end of the log on disk, and one that
// prepares the next segment. A large group (PipelineBytes) is written and synced by a goroutine of
// its own, while the writer copies and sums what comes next into a second buffer; only one group is on
// its way at a time, so what a crash may leave is the same.
//
// # On disk
//
//	META                         whose log this is; its presence says that there is one
//	LOCK                         held by the process that uses the log
//	segment-0000000000000001.log the log, in the order of the numbers
//	spare-1                      a segment to be used next; removed by Open
//
// The format is drawn in format.go. A segment is a header sector and then groups, each starting on
// a sector; a group is what one write and one fdatasync made durable, a header and its records, and
// is valid as a whole or not at all. The segment's header repeats the hard state and the position,
// so that older segments can be removed.
//
// A segment's blocks are written before it is used: zeros by the preparing goroutine, or its
// content under an earlier number. Nothing in it can be taken for part of the log: the checksum of
// a group's header is seeded with the log's random id and the segment's number, that of a record
// with the log's id, the number of the group and a random number of the process. A crash may leave
// a spare with a few sectors of the segment that it was about to become, so Open removes spares
// instead of using them.
//
// # Torn or damaged?
//
// An invalid group may be a write that a crash interrupted: then it was never acknowledged, and the
// log ends before it. Or it was durable and acknowledged and is damaged now: then cutting it would
// break a promise. With many records in a group and a disk that writes sectors in any order, "a
// valid record follows" proves nothing. So every group carries the number of the last group that
// was durable when it was written (the one before it, since a group is written only after the sync
// of the last). If the header of any later group, or of a segment, is valid and says that the
// invalid group was durable, it is damage: CorruptError, and nothing is changed. If there is no
// such witness, the group is cut, with a log line that says where. If anything valid lies beyond
// the cut, the log continues in a new segment, whose header says with which group it starts;
// otherwise it continues in place.
//
// Close writes a last, empty group as a witness for the one before. So what cannot be detected is
// this: damage to the very last group after a crash looks like a torn write, and so does the loss
// of the last segment.
//
// With NoSync groups are witnesses of nothing, and damage anywhere is cut. That is the price of the
// option.
//
// What we assume of the disk: after fdatasync has returned, the file's data is there, and after
// fsync of the directory its names are; a sector of 512 bytes is written whole or not at all, and
// writing one does not harm its neighbours (a group never shares a sector with another). We do not
// assume that sectors of one write arrive in order, nor that unsynced renames do.
//
// # The restart rule
//
// The store may have been flushed beyond this log; see Adopt. Two things follow for the
// files. Compact may remove segments up to the store's durable index although the end of
// the log there is not yet what was committed, while the write that corrects it still
// waits: recovery knows this (replay.apply). And a replaced log is one new
// segment whose header says that nothing before it counts.
//
// # Kept segments
//
// A segment most of which are large entries is given to the Keeper, which makes a second name of
// the file before the group that decided it is written. The entries of that group and later ones
// get places, once they are durable (Places). Such a segment is removed and never recycled,
// and no zeros are written for the one after it. What the second name is for is not the log's
// business: to recovery, Reader and Compact the segment is like any other. A segment of an older
// process gets no places, since its second name may be a copy; the log begins a new one instead
// when large entries come.
//
// # Measured
//
// On 2 cores of an AMD EPYC, ext4 on a virtual disk, 2026-11-21: one write and one fdatasync,
// p50 of 400 each, in two rounds, with other builds on the machine:
//
//	bytes   file grows    blocks reserved   blocks written before
//	  512   138-139 µs    145-147 µs        105-125 µs
//	 4096   181-227 µs    175-190 µs         92-138 µs
//	16384   177-206 µs    156-174 µs        108-158 µs
//
// Reserving blocks (fallocate, keeping the size, which is what vfs offers) gains little: the size
// and the extents still change with each write. Writing them beforehand saved 10-50 %.
// BenchmarkFdatasync measures the same; a single run of it under heavier load gave 165-186 µs for
// all three at 512 bytes, 454, 188 and 201 at 4096, 414, 286 and 180 at 16384: there the noise is
// larger than the gain at small sizes, and reserving was as good at 4096. So spares are written
// with zeros, in the background, and Compact hands old segments back. The first segment of a log is
// of 4 MiB and used as it is, the next ones grow to SegmentBytes; a spare is begun when the last
// segment is half full and written in step with it (files.wantSpare), and not at all if less than
// eight times its size is free. A new, idle member writes less than 0.1 MB and reserves 4 MiB.
//
// Open of 128 MiB of 300-byte entries in two segments takes 107 ms of CPU and 193 MB, the
// log's own 128 included (BenchmarkOpen, same day and machine; 145 ms and 320 MB before
// entries aliased what was read).
//
// Writes are padded to the page (4096 bytes), not only to the sector, so that the kernel need not
// read the rest of the page of a recycled segment; that cost nothing measurable (100-122 µs for 512
// bytes).
//
// # Ways not taken
//
//   - pebble/record, which Pebble's own WAL uses: it recycles too, but cuts records into blocks of
//     32 KiB with a header each, and does not record which group was durable when (its newer format
//     does).
//   - A checksum for the group instead of one for each record: half of the checks would go,
//     but a record could not be judged alone, and tools want that.
//   - One slice of entries in memory, as raft.MemoryStorage: growing or compacting it copies
//     the whole log while the raft loop waits.
//   - Writing several segments' tails in parallel: the disk has one queue.
//
// # Source files
//
//	log.go      Log, Options, Append: what the raft loop sees
//	storage.go  raft.Storage
//	tail.go     the entries in memory
//	writer.go   the writer goroutine: groups, sync, release
//	format.go   all bytes
//	open.go     Open, Peek, creation
//	recover.go  reading the segments, the verdict
//	source.go   reading a file ahead of the parser
//	adopt.go    the restart rule
//	files.go    segments, spares, Compact
//	read.go     Reader and Hold: entries that are in files alone, for followers
//	stats.go    how fast the disk syncs
//	metrics.go  its metrics; errors.go: errors that callers tell apart
//	invariants.go  the costly asserts
//	places.go   Keeper: segments that the store goes on using for the large values in them
//	inspect.go  Inspect, for people; look.go and walk.go: Look and Walk, for programs
//
// Sources: Ongaro's thesis, 3.8 and 10.2.1; LevelDB's and Pebble's recyclable log format; etcd's
// server/storage/wal (whose check for zeroed sectors cannot work with recycled ones); Rebello et
// al., "Can Applications Recover from fsync Failures?" (2020); Alagappan et al., "Protocol-Aware
// Recovery" (2018), for distinguishing torn from corrupt.
package raftlog

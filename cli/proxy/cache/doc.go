// Package cache decides which reads of a proxy's clients are answered from memory. It does no I/O
// and asks no clock: reads, what the cluster says and the time go in; answers, and questions to the
// cluster, come out.
//
// # The idea
//
// An area is a range of keys with its content in memory: it is read once, at some revision, and a
// watch of the cluster from there on keeps it. All areas are on one Watch stream, so one progress
// request tells how far all of them are. A read is answered from an area that covers it. What an
// answer may say is known from barriers: a barrier is one linearizable read of the cluster, of
// nothing, and its revision R says that every write that was acknowledged before the barrier was
// sent has a revision of R or less.
//
// # Promises
//
//  1. An area's content is that of the store at each revision from changed to at; at never falls.
//  2. A linearizable read is answered at or above the revision of a barrier that was sent after the
//     read came. One barrier serves all reads that waited for it, of all areas.
//  3. A serializable read is answered at or above the revision of a barrier that was sent at most
//     Config.Staleness ago. The word of the watch alone would not do: a member that has lost its
//     leader goes on saying that nothing has happened.
//  4. No answer is older than Read.Seen.
//  5. Barriers are asked without a user. So one that is answered shows that the cluster had no
//     users when it was sent, and answers need no rights; when one is refused, everything is
//     forgotten.
//  6. Keys, values and answers that are kept have Config.Bytes at most together; see limits.go.
//
// What cannot be answered so is a miss: the caller asks the cluster. Reads of a past revision are,
// for whether that was compacted is the cluster's to say.
//
// # Progress
//
// A progress message with revision P says that all watches of the stream have everything up to P.
// etcd sends it, and that a watch was created, by two queues: a message from before a watch was
// there may come after the word that it was created, and would then be believed of events that are
// still to come. So of a watch that was created at revision C, P is believed if it is above C, or
// if no progress request from before its creation is unanswered (doubt).
//
// Watches begin at the revision that an area has, not behind it: etcd answers no progress request
// while one begins in the future. What comes twice is left out.
//
// A Cache belongs to who holds the lock that guards it; its Env is called with that lock.
//
// Files: cache.go reads and barriers; area.go a range; fill.go how it is read; stream.go watches;
// limits.go memory, and which ranges are kept; marks.go what barriers have shown.
package cache

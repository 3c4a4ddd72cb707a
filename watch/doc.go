// Package watch tells clients what changed: it distributes the events of the state machine to
// watchers, in order, completely and without duplicates, and lets no slow reader delay the writer
// or another reader.
//
// # Promises
//
//   - A watcher that starts at revision S gets every event with revision >= S that matches its
//     range and filters, exactly once, by ascending revision, and within a revision in the order
//     the transaction made them. All events of one revision are in one Response.
//   - "Created" comes before the first event of a watcher, "canceled" after the last.
//   - A progress response with revision R comes after every event with a revision
//     <= R of the watchers that it speaks for.
//   - A stream holds at most Options.StreamBytes of undelivered events, or its equal share of
//     Options.QueueBytes if that is less (and one revision, if that alone is larger). A
//     watcher whose stream has no room falls back to the history and loses nothing, unless the
//     history it still needs is compacted: then it is cancelled with the compact revision.
//   - Hub.Notify never waits for a stream, for a disk or for a watcher being made.
//
// # How an event travels
//
//	applier -- Notify --> recent (ring) --> dispatcher --> index --> stream queue --> Drain
//	                         |                                          ^
//	                         +------------ replay ----------+           |
//	                                                        |           |
//	                      mvcc history --> catch-up scan ---+-----------+
//
// Notify only records the events of a revision in a ring (type recent) and, if anybody watches,
// wakes the dispatcher. The dispatcher looks the watchers of each event up (exact keys in a map,
// ranges in an interval treap) and appends to the queue of each stream. The owner of a stream calls
// Drain, which merges what waits for a watcher into few responses.
//
// The way not taken: etcd looks watchers up and writes to their channels inside
// the write transaction, so that a put pays for all watchers of its key.
//
// # Joining the live feed without gap or double
//
// A watcher is live, or behind, or ended. One number separates the two sources: Hub.done, the
// newest revision that the dispatcher handed to the live watchers. It changes only with Hub.mu
// held. For a watcher w, w.next is the first revision that is not yet in its stream's queue.
//
//   - live (in Hub.live): w gets the revisions > done from the dispatcher, and
//     only those >= w.next. Every matching revision in [start, done] is queued.
//   - behind: w gets the revisions [w.next, done] from history; the dispatcher does
//     not know it. Only the catch-up goroutine pushes for it.
//
// A watcher goes from behind to live only with Hub.mu held and w.next > done, so the revision that
// the dispatcher handles next is either >= w.next (and w sees it live) or below (and w has it
// already). To get there while writes go on, the catch-up goroutine scans history up to a done it
// read before, then takes Hub.mu, replays the few revisions that came since from the ring, and
// moves the watcher. If the ring does not reach back that far it scans once more. A new watcher
// whose start the ring covers joins in this way at once, without any scan (the usual case: list at
// revision R, watch from R+1).
//
// A watcher goes from live to behind when its stream has no room for revision R (then w.next = R,
// nothing of R was queued), when the ring ran over before the dispatcher had read it, or when a
// snapshot replaced the state (Reload): then w.next = max(w.next, done+1).
//
// Each push asserts that revisions of a watcher ascend and that none is below its next; a violation
// panics, since silently lost or duplicated events are worse.
//
// # Catching up
//
// One goroutine scans the history for all watchers that are behind and whose stream has room. A
// scan serves every such watcher whose next revision lies in the window it reads, and watchers that
// are far apart take turns window by window. The watchers whose stream is full wait at the stream;
// it offers them again when half of its bound is free.
//
// # Goroutines
//
// Notify: only the applier's goroutine. Reload: whoever installs a snapshot, while the applier is
// idle. Stream.Watch, Cancel, Refuse, Progress: any, in practice the one that receives.
// Stream.Drain, Tick and Close: the one goroutine that sends. Hub owns two goroutines: the
// dispatcher and the catch-up.
//
// Lock order: Hub.mu, then recent.mu or Stream.mu. Neither of the latter is held
// while anything blocks.
//
// # Files
//
//	hub.go      Hub: registering, dispatching, progress
//	recent.go   the ring of the newest revisions
//	index.go    watchers by key: map and interval treap
//	catchup.go  scans of history for those that are behind
//	stream.go   Stream: bounded queue, merging, responses
//	metrics.go  etcd's metric names
//	invariants.go  the asserts of a build with the tag invariants
//
// Sources: etcd's API guarantees ("watch: ordered, unique, reliable, atomic,
// resumable, bookmarkable"); etcd issues 15220 (progress not in step with events),
// 17507 (no progress for a new watcher), 17529 (hundreds of watches on one stream
// starve and lose events), 16839 (memory of slow watchers).
package watch

// Package merge decides how the watches of many clients become few watches of the cluster. It does no
// I/O and asks no clock: requests of clients and responses of the cluster go in, messages to both come
// out.
//
// # The idea
//
// Each watch of a client begins as a watch of its own at the cluster, a source, with the revision that
// the client asked for. So the cluster itself judges rights, revisions and compactions, and a client
// that is behind catches up without anybody else. When a source has caught up with another one of the
// same range, the leading one, its watches move there and it is cancelled.
//
// # When watches may move
//
// Of every source two revisions are known:
//
//	      quiet              next
//	--------|------------------|----------------> revisions
//	  ...k  |  no event here   |  all that comes
//
// next: what comes from the cluster begins at next, and is all that there is from there on. quiet:
// there is no event from quiet up to next; it is the last event's revision + 1, or where the source
// began. A watch whose client has everything below its own next may move to a source whose quiet is
// not above that: nothing lies between, and what the source delivers below is left out for this watch
// (min).
//
// # Invariants
//
//  1. A watch belongs to one source, or is parked.
//  2. What a client has got of a watch are all events of its range from its start to below
//     max(min, next of its source), or min if it is parked, once and in order.
//  3. quiet <= next, and next never falls.
//  4. A source without watches is cancelled.
//  5. Every watch of a group that is neither behind nor in doubt is the lead's.
//  6. A progress message for a client's stream is passed on only when each of its watches belongs to a
//     source that the cluster had created when it made the message: its word is about all sources.
//     etcd sends messages and the word that a watch was created by two queues, so one that was made
//     before may come after: see source.doubt.
//
// # Slow clients
//
// A watch that has an event for a client whose queue is full is parked: it leaves its source with the
// revision that it needs, and nothing is kept for it. When the queue has emptied it begins again as a
// source of its own. So a slow client costs the length of its queue and delays nobody.
//
// # A broken connection
//
// All sources are created again where they were, at next. A lead that does not know whether it is
// behind (synced) takes no new watches until an event or a progress message says so; a new source that
// knows becomes the lead instead.
//
// A Hub belongs to one goroutine. Its watches are those of one caller: rights are never shared.
//
// Files: hub.go the sources; client.go the clients; batch.go events, encoded once.
package merge

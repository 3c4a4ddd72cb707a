// Package relay answers the calls of a proxy's clients from the cluster behind it.
//
// # Promises
//
//   - What is not understood is not looked at: messages pass as the bytes that they are, with the
//     metadata beside them, in both directions. Errors are the members' own, with codes, texts and
//     details. So are deadlines, and so is who the caller is: a token goes with each of its
//     client's calls, and the members judge it.
//
//   - With a namespace every key that goes to a member has the prefix, and no key that comes from
//     one is shown without having had it: of KV, Watch, Lease, Lock and Election.
//
//   - No read is older than a response that the same connection had had when it asked, of any kind,
//     whichever member answers, or none.
//
//   - A stream whose client does not read is read from the member no further than flow control
//     allows.
//
//   - Watches of one caller on one range are one watch of the cluster (package merge). Callers are
//     told apart by their tokens, and each has a stream of its own at a member, which so enforces
//     its rights, and takes them away. Without users there is one caller, or two: who requires a
//     leader.
//
//   - Reads of callers that do not say who they are may be answered from a cache (package cache),
//     which says how old they may be.
//
//   - A keepalive goes to the cluster only on behalf of a client that asks for it, and not when the
//     cluster was asked just before: see leases.
//
// Calls come in by Relay.handle, those that no service is registered for, too, and over package rpc the
// unary ones by Relay.serveHot. The methods and their messages are those of the protobuf descriptors,
// so none can be forgotten.
//
// Files: relay.go the calls; hot.go those that need no handler; reads.go which requests read what one
// member has; caching.go reads that the cache answers, and sending.go what of their answers is under
// way; watch.go a client's watches; watchhub.go those of one caller, at the cluster; keepalive.go and
// keephub.go the same for leases; link.go a stream to a member that is kept; hubs.go and outbox.go
// what both have; room.go room for answers that clients have not read; methods.go which there are;
// namespace.go keys; metrics.go counters; payload.go lines for each message; ask.go the proxy's own
// questions.
package relay

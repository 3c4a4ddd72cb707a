// Package relay answers the calls of a proxy's clients from the cluster behind it.
//
// # Promises
//
//   - What is not understood is not looked at: messages pass as the bytes that they are, with the
//     metadata beside them, in both directions. Errors are the members' own, with codes, texts and
//     details. So are deadlines, and so is who the caller is: a token goes with each of its client's
//     calls, and the members judge it.
//   - With a namespace every key that goes to a member has the prefix, and no key that comes from
//     one is shown without having had it: of KV, Watch, Lease, Lock and Election.
//   - No response is older than one that the same connection has had before, whichever member
//     answers.
//   - A stream whose client does not read is read from the member no further than flow control
//     allows.
//
// All calls come in by Relay.handle, which no service is registered for, by the method's name. The
// methods and their messages are those of the protobuf descriptors, so none can be forgotten.
//
// Files: relay.go the calls; methods.go which there are; namespace.go keys; metrics.go counters;
// payload.go lines for each message; ask.go the proxy's own questions.
package relay

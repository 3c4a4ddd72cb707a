// Package upstream is the cluster behind a proxy: its members, one connection to each, and which of
// them a call goes to.
//
// # Promises
//
//   - There is one connection to each member, however many clients there are.
//   - A call goes to a member that can be reached and knows a leader, if there is one. A Client, which
//     is one connection of a client of the proxy, stays with its member for as long as that holds.
//   - Call repeats a request only if it certainly did not run, or is a read. Whether it may have run is
//     known from the transport, not guessed from an error's text: as long as no stream was opened on a
//     connection, no byte of the request has left.
//   - When no member can be reached a call waits for one, for Config.Patience, and then fails with
//     Unavailable.
//
// Each member has two goroutines: one keeps its connection, the other asks it for its status every
// ProbeInterval. A member that does not answer in time, that knows no leader or that is a learner is
// avoided, and the reads that wait for it are asked elsewhere.
//
// All methods may be called from any goroutine.
//
// Files: endpoint.go what an endpoint's text means; members.go the set and its connections; call.go
// one request; frame.go messages that are not decoded.
package upstream

// Package peers is how members reach each other over HTTP: one way to dial
// whatever URL a member may have, and one way to ask it something.
//
// A peer URL is http, https, unix or unixs, as etcd's are; the last two name a
// socket file. A RoundTripper knows all four, so nothing above has to: what is
// asked of a member before this one has a raft group (who the members are,
// whether they know this one) goes the same way as raft's messages do.
//
// Ask sends one question to a member, under one of its URLs after the other
// until an answer is taken; At asks under one URL. Both bound what they read.
// Neither retries, logs, or waits longer than its context: that is the caller's.
//
// Files: roundtrip.go (dialling), ask.go (questions).
//
// Everything here may be called from any goroutine.
package peers

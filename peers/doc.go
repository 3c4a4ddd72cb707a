// Package peers is the members' HTTP protocol: its names, one way to dial any URL that a member may
// have, one way to ask, and one place where questions are answered.
//
// docs/peer-protocol.md describes the whole protocol; protocol.go has its names: paths, headers,
// and the contexts of raft messages that only Belay understands. No other package spells one of
// them out.
//
// A peer URL is http, https, unix or unixs, as etcd's are; the last two name a socket file. A
// RoundTripper knows all four, so nothing above it has to: questions from before this member has a
// raft group (who the members are, whether they know this one) take the same path as raft's
// messages.
//
// Ask sends one question to a member, under one URL after the other until an answer is accepted; At
// asks under one URL. Both bound what they read. Neither retries, logs, or waits longer than its
// context: that is up to the caller.
//
// Open asks for a connection on which another protocol is spoken, for what is asked thousands of
// times a second; Upgrade answers it.
//
// A Mux is the other side: each part of a member registers what it answers on the peer port, and
// who may ask. Package transport decides whether a sender is a member, and serves raft's own
// messages itself.
//
// # Files
//
//	protocol.go   the names           ask.go   questions
//	roundtrip.go  dialling            mux.go   answers
//	upgrade.go    connections on which neither asks and answers in HTTP
//	renewals.go   what goes over one of them to the leader, and back
//	heal.go       what a member that heals and the others say
//
// Everything here may be called from any goroutine, except that a Mux must be complete before it
// serves.
package peers

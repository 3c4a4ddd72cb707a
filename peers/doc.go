// Package peers is what members say to each other over HTTP: the names of it, one way to dial whatever URL a
// member may have, one way to ask it something, and one place where what is asked is answered.
//
// docs/peer-protocol.md is the whole protocol; protocol.go has its names: paths, headers, and the contexts
// of raft messages that mean something to Belay alone. No other package writes one of them out.
//
// A peer URL is http, https, unix or unixs, as etcd's are; the last two name a socket file. A RoundTripper
// knows all four, so nothing above has to: what is asked of a member before this one has a raft group (who
// the members are, whether they know this one) goes the same way as raft's messages do.
//
// Ask sends one question to a member, under one of its URLs after the other until an answer is taken; At
// asks under one URL. Both bound what they read. Neither retries, logs, or waits longer than its context:
// that is the caller's.
//
// A Mux is the other side: each part of a member registers what it answers on the peer port, and says who
// may ask. Package transport judges whether somebody is a member; raft's own messages it serves by itself.
//
// # Files
//
//	protocol.go   the names           ask.go   questions
//	roundtrip.go  dialling            mux.go   answers
//
// Everything here may be called from any goroutine, but that a Mux is complete before it serves.
package peers

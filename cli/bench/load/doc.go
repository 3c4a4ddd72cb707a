// Package load runs clients against a server and counts what they see.
//
// # What it promises
//
// A client is a goroutine with an operation that it does again and again. In a closed loop it does
// the next one when the last has ended, no faster than a rate; in an open loop operation n is due
// n/rate after the start, whatever became of those before it, and its latency counts from then:
// what a server that stalls does to clients that do not wait for it is seen, and not left out.
//
// Every operation is counted, once, with its latency or under the text of its error. Latencies are
// kept in HDR histograms: a quantile is exact to a thousandth of itself, however many there are, in
// some hundred kB for each class of operations.
//
// The client is to cost little, because it often shares the machine with the servers. So requests
// are encoded once: a Template holds what is alike in all of them, and each client writes the keys
// of its next request beside it. Answers are dropped undecoded, unless somebody wants their bytes.
//
// # Who may call
//
// Run from any goroutine; it returns when all its clients have ended. A Request belongs to one
// client. Counts are read when Run has returned.
//
// Files: run.go (the loops), count.go (histograms, the seconds of a run), wire.go (encoded requests),
// fields.go (the few fields of answers that somebody wants).
package load

// Package usage finds who uses a member: which prefixes of keys, which clients, users and watches
// have the largest shares of its requests, bytes, keys and churn. It holds a fixed amount of memory
// whatever the clients send, and forgets by halves: what happened a [HalfLife] ago counts half.
//
// A [Tracker] is told of samples of what the member serves. Small requests are sampled, one of
// several at random and the more the busier the member is, and count for those that were not
// sampled; large ones are all told, for a few of them make up most bytes ([Tracker.Sample]). The
// random choice keeps the shares unbiased; with n samples, a share of s is off by about
// sqrt(s(1-s)/n): by two points at worst after 600 samples.
//
// For each kind of name and each measure there is one sketch (sketch.go): Space-Saving (Metwally,
// Agrawal and El Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data Streams",
// ICDT 2005), which keeps the heaviest names in a fixed number of counters. With c counters and a
// total weight of W, no estimate is too large by more than W/c, none is too small, and every name
// of more than W/c is kept. Weights decay forward (Cormode, Shkapenyuk, Srivastava and Xu, "Forward
// Decay: A Practical Time Decay Model for Streaming Systems", ICDE 2009): new weights grow by the
// half-life instead of old ones falling, so that nothing is touched but what a sample names.
// Count-min was not taken: it estimates the weight of a given name, and would need a list of the
// heaviest ones beside it.
//
// Prefixes end at separators (prefix.go), and each depth has sketches of its own, after the
// hierarchical heavy hitters of Cormode, Korn, Muthukrishnan and Srivastava (VLDB 2003).
//
// All methods may be called from any goroutine, and on a nil Tracker, which keeps nothing. Names are
// parts of keys and may be secret: who may see an [Answer] is decided by package server.
package usage

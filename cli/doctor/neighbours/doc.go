// Package neighbours says who fills the disk that a member's log is on, and whether that is why its
// fsyncs are slow: `belay doctor neighbours`.
//
// Samples (package belay/neighbours) come from a look at this machine, or from a record. Judge takes
// them apart by writer, finds each one's bursts (bursts.go) and whether they come at a period, and
// compares them with when fsyncs were slow. It looks at nothing else: no clock, no files.
//
// A neighbour is blamed if fsyncs were slow in most of its bursts, more often than would be by
// chance, and by the time at which it burst alone, where others burst, too. That bytes and slow
// fsyncs come together is no proof, so a cause is likely at best. The member's own writes are never
// a neighbour's, nor are those of who has its files on other disks.
//
// Files: watch.go (looking, with the member's /metrics), latency.go (when fsyncs were slow),
// bursts.go (bursts, periods), judge.go (the verdict), text.go (tables, picture).
package neighbours

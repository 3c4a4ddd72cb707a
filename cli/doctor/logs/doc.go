// Package logs reads the logs of members, of etcd from 3.3 on and of Belay, and of their clients,
// and says what happened to the cluster: one timeline of all members, incidents, and for each the
// cause as far as the lines prove one.
//
// # Promises
//
//   - Lines are understood in whatever wrapping they come (line.go lists the forms). What is not
//     understood is counted and said, and never an error.
//   - Memory is bounded whatever the input: a line counts up to maxLine bytes, lines that repeat
//     become one event, and there are at most maxEvents of them. What had to be left out is said.
//   - Text of a log is data: it is shown cut and without control characters, and decides nothing
//     but what its own line says.
//   - A member is accused with certainty only by what cannot come of another cause. etcd's "likely
//     from slow disk" is a guess that it prints for every late heartbeat; it counts as a late
//     heartbeat and not as a slow disk.
//
// # Steps
//
// Read takes one input after the other (read.go), makes a Line of each line (line.go, stamp.go),
// and an Event of each Line that matters (event.go). Judge then finds out whose stream is whose
// (member.go), puts events that are near in time together (incident.go), looks for what explains
// each incident (cause.go) and for what comes back by the clock (recur.go), and makes the report
// (judge.go) with its picture (picture.go).
//
// Collector may be used from one goroutine at a time. Nothing here opens a file or asks a clock.
package logs

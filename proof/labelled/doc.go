// Command labelled makes incidents whose cause is known, keeps what members said of them, and counts
// how often Belay's verdicts and `belay doctor logs` are right.
//
//	go run ./proof/labelled -dir DIR -kinds belay -n 300 -seed 1   make incidents, then score
//	go run ./proof/labelled -dir DIR -sizes 3                      small faults, each size three times
//	go run ./proof/labelled -dir DIR -quiet 30m                    an hour in which nothing is wrong
//	go run ./proof/labelled -dir DIR -score                        score what is kept, run nothing
//
// An incident is drawn from the seed and its number alone: one fault or a pair of two, the leader or
// a follower, its severity (0.2 to 10 s; loss in parts of what is sent), how long, and the load of
// the clients. Which member leads is the cluster's own affair, and is told in the truth. Even
// numbers are for tuning the product, odd ones for the report.
//
// # What is kept
//
// DIR/life/ is one cluster, which serves many incidents one after the other, with quiet time
// between them: m1.log.gz and so on are its members' logs, whole. DIR/life/number/ is one incident:
// truth.json (Truth), of Belay what each member answered at /debug/belay/events, and each member's
// metrics before and after. Scoring reads only that, as often as one likes.
//
// # How it is scored
//
// A statement is what was said of the time of an incident: a verdict of a Belay member, or an
// incident of `doctor logs`, which gets all logs of the life and --since and --until. The table
// causes (causes.go) tells which causes are right for which fault, and which statements say that
// they do not know. A statement is wrong if it names another cause or another member; it is sure if
// it is a verdict of Belay (it has no way to doubt), or is called certain.
//
// Bounds are Wilson's, at 95 %.
//
// It needs Linux, root and /dev/fuse for the disks. Clusters run side by side; a fault that takes
// the machine's CPU waits until it is alone.
//
// Files: main.go (flags), draw.go (from a number to a plan), life.go (one cluster and its
// incidents), harm.go (the faults), truth.go (what is kept), causes.go (what is right), score.go
// (statements and outcomes), table.go (the tables, bounds).
package main

// Package cluster starts real member processes, Belay's and etcd's, for the
// checks and the benchmark.
//
// A [Cluster] is one or more [Member]s on loopback ports. Both kinds are given the same flags; only
// the program and its first argument differ, so every check can run against either. That is how a
// harness shows that it is correct itself: it must pass against etcd.
//
// The package promises:
//   - a member's process never outlives the process that started it (Linux:
//     it is killed with its parent);
//   - a port handed out here is not handed out twice, to no process of this
//     user, and is outside of the range from which Linux takes ports for
//     outgoing connections, so that a restarted member finds its port free;
//   - every wait has a deadline, and ends early when the process has exited;
//   - all output of a member goes to one file, across restarts.
//
// A Cluster and its Members may be used from several goroutines, except that
// Start, Stop and Kill of one member are not called at the same time.
//
// Files: cluster.go (processes), parent_linux.go and parent_other.go (no process outlives us),
// port.go, lock_unix.go and lock_other.go (one process at a time is given ports), certs.go (an
// authority), build.go (programs under test), usage.go (what a process cost: CPU, memory, bytes
// written), table.go (rows of the tables that harnesses print).
package cluster

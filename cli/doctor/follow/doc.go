// Package follow watches who leads a cluster, and reports each change of leader with its cause: on
// Belay the verdict of the cluster, on etcd as far as metrics tell.
//
// # Promises
//
//   - It changes nothing in the cluster. It asks each member once a look, over connections that it
//     keeps, and each question has an end.
//   - A change is reported once. On Belay the members' records are read, so that a change between
//     two looks, or while no member answered, or before this process began (Options.Since), is not
//     missed as far as the records reach; one that is killed may lack its last seconds. etcd keeps
//     none: what comes and goes between two looks is counted by a metric, and only said.
//   - What cannot be told is said, with the log that would tell.
//   - A member that does not answer is reported once, and once when it answers again.
//   - What the receivers do never holds up the looking: reports wait for them in a bounded queue.
//   - The command of Exec gets facts by its environment and as JSON on standard input, never on a
//     command line, and no shell reads it.
//
// Tracker decides, without I/O or a clock; Asker asks; Deliverer delivers. Each belongs to one
// goroutine, but Deliverer.Put may be called from any.
//
// Files: report.go (what is reported, its forms), tracker.go, belay.go and etcd.go (what a Tracker
// concludes), ask.go, deliver.go, alone_unix.go and
// alone_other.go (what differs between systems), run.go (the loop).
package follow

// Package doctor is `belay doctor`: it finds out which member of a cluster is in trouble, why, and
// what to do, on Belay and on any etcd from 3.4 on, with no agent on the members. It asks what every
// member answers anyway (the API, /metrics, /version) and reads what operators have at hand: logs, a
// Prometheus server, a configuration.
//
// # Promises
//
//   - It changes nothing: not in a cluster, and on disks only files of its own, which it removes.
//   - Each finding names what was seen in numbers, why it matters, what to do, and how sure it is.
//     What cannot be told is said, with what would tell it.
//   - Exit codes: 0 well, 1 warnings, 2 critical, 3 not to be told, 4 the command line is wrong.
//   - Main keeps nothing in package variables and never ends the process.
//
// Files: main.go (the command line), live.go, histogram.go, disk.go, network.go, logs.go,
// neighbours.go, config.go, rules.go, follow.go (one command or two each).
//
// Packages inside: report is the form of every answer; each other one is the part of a command that
// decides, without a terminal or a network.
package doctor
